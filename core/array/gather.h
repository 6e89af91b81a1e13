/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Which bytes of which chunk make a range of a result: a range of the C-order bytes of a selection is cut into boxes,
 * and each box into pieces, one a chunk. Pure arithmetic.
 */
#ifndef CKPT_ARRAY_GATHER_H
#define CKPT_ARRAY_GATHER_H

#include "core/array/layout.h"
#include "core/array/slice.h"

/* Part of one chunk and where it goes: dimension by dimension, count elements, src bytes apart in the chunk and dst
 * bytes apart in the result. Dimensions of count 1 are left out and neighbours that are contiguous in both are joined.
 */
struct ckpt_piece {
    uint64_t chunk;           /* C-order number in the grid */
    uint64_t src;             /* byte of the first element in the decoded chunk */
    uint64_t dst;             /* byte of the first element in the buffer */
    uint64_t lowest, highest; /* first byte, and end of the last byte, that the piece meets in the chunk */
    unsigned ndim;            /* outermost first; 0: one element */
    struct ckpt_piece_dim {
        uint64_t count;
        int64_t src, dst;
    } dim[CKPT_MAX_DIMS];
};

/* Calls visit for each piece of elements [first, first + count) of the selection, in no particular order of result; the
 * buffer that dst speaks of begins with element `first`. Stops at, and returns, the first nonzero result. */
int ckpt_gather(const struct ckpt_array *a, const struct ckpt_selection *sel, uint64_t first, uint64_t count,
                int (*visit)(void *arg, const struct ckpt_piece *piece), void *arg) CKPT_MUST_USE;

/* Copy a piece out of a decoded chunk in memory. */
void ckpt_piece_copy(const struct ckpt_piece *piece, uint32_t itemsize, const uint8_t *chunk, uint8_t *buf);
/* Copy a piece out of a chunk that is not in memory, by reads that give exactly what is asked for; in as few as are
 * worth it. */
typedef int ckpt_piece_read_fn(void *arg, void *buf, size_t len, uint64_t off);
int ckpt_piece_fetch(const struct ckpt_piece *piece, uint32_t itemsize, ckpt_piece_read_fn *read, void *arg,
                     uint8_t *buf) CKPT_MUST_USE;
/* Fill a piece with copies of one element. */
void ckpt_piece_fill(const struct ckpt_piece *piece, uint32_t itemsize, const uint8_t *element, uint8_t *buf);

/* C-order chunk number to indices. */
void ckpt_chunk_index(const struct ckpt_array *a, uint64_t chunk, uint64_t *index);

#endif
