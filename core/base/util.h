/* SPDX-License-Identifier: Apache-2.0 */
/* Scope cleanup, checked arithmetic, little-endian access, small helpers. */
#ifndef CKPT_BASE_UTIL_H
#define CKPT_BASE_UTIL_H

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static inline void ckpt_cleanup_free(void *p)
{
    free(*(void **)p);
}
static inline void ckpt_cleanup_fd(int *fd)
{
    if (*fd >= 0)
        close(*fd);
}
static inline void ckpt_cleanup_unlock(pthread_mutex_t **m)
{
    if (*m)
        pthread_mutex_unlock(*m);
}
static inline pthread_mutex_t *ckpt_lock(pthread_mutex_t *m)
{
    pthread_mutex_lock(m);
    return m;
}

#define CKPT_AUTOFREE __attribute__((cleanup(ckpt_cleanup_free)))
#define CKPT_AUTOFD __attribute__((cleanup(ckpt_cleanup_fd)))
/* Holds a mutex to the end of the scope. */
#define CKPT_GUARD(m) CKPT_GUARD_NAMED(m, __LINE__)
#define CKPT_GUARD_NAMED(m, n) CKPT_GUARD_NAMED2(m, n)
#define CKPT_GUARD_NAMED2(m, n)                                                                                        \
    __attribute__((cleanup(ckpt_cleanup_unlock), unused)) pthread_mutex_t *guard_##n = ckpt_lock(m)

/* Take a pointer out of a variable that would be cleaned up. */
#define CKPT_STEAL(p)                                                                                                  \
    ({                                                                                                                 \
        __auto_type steal_ = (p);                                                                                      \
        (p) = NULL;                                                                                                    \
        steal_;                                                                                                        \
    })

#define CKPT_MIN(a, b)                                                                                                 \
    ({                                                                                                                 \
        __auto_type min_a_ = (a);                                                                                      \
        __auto_type min_b_ = (b);                                                                                      \
        min_a_ < min_b_ ? min_a_ : min_b_;                                                                             \
    })
#define CKPT_MAX(a, b)                                                                                                 \
    ({                                                                                                                 \
        __auto_type max_a_ = (a);                                                                                      \
        __auto_type max_b_ = (b);                                                                                      \
        max_a_ > max_b_ ? max_a_ : max_b_;                                                                             \
    })

/* True on overflow, like the builtins. */
static inline bool ckpt_mul(uint64_t a, uint64_t b, uint64_t *ret)
{
    return __builtin_mul_overflow(a, b, ret);
}
static inline bool ckpt_add(uint64_t a, uint64_t b, uint64_t *ret)
{
    return __builtin_add_overflow(a, b, ret);
}

static inline uint16_t ckpt_le16(const void *p)
{
    uint16_t v;
    memcpy(&v, p, sizeof v);
    return v;
}
static inline uint32_t ckpt_le32(const void *p)
{
    uint32_t v;
    memcpy(&v, p, sizeof v);
    return v;
}
static inline uint64_t ckpt_le64(const void *p)
{
    uint64_t v;
    memcpy(&v, p, sizeof v);
    return v;
}

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "ckptfs is written for little-endian machines");

#endif
