/* SPDX-License-Identifier: Apache-2.0 */
/* Arrays that grow: a pointer, a count, and how many there is room for, kept wherever the owner likes. Caller locks. */
#ifndef CKPT_BASE_GROW_H
#define CKPT_BASE_GROW_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

/* Room for one more than `count` items: the array, moved perhaps, or NULL without memory or beyond max. */
static inline void *ckpt_grow(void *items, size_t size, size_t count, size_t *room, size_t max)
{
    if (count < *room)
        return items;
    size_t more = *room ? *room + *room / 2 + 1 : 16;
    bool fits = more <= max && more <= SIZE_MAX / size;
    void *moved = fits ? realloc(items, more * size) : NULL;
    if (moved)
        *room = more;
    return moved;
}

/* Room for one more item. `room` is a variable of any unsigned type. False: there is none, and nothing changed. */
#define CKPT_ROOM_FOR_ONE(items, count, room)                                                                          \
    ({                                                                                                                 \
        size_t room_ = (room);                                                                                         \
        void *moved_ = ckpt_grow((items), sizeof *(items), (count), &room_, (__typeof__(room))-1);                     \
        if (moved_) {                                                                                                  \
            (items) = moved_;                                                                                          \
            (room) = (__typeof__(room))room_;                                                                          \
        }                                                                                                              \
        moved_ != NULL;                                                                                                \
    })

#endif
