/* SPDX-License-Identifier: Apache-2.0 */
/* Reads ranges of arrays: from bytes of a selection to the chunks that hold them. */
#ifndef CKPT_TREE_ARRAY_READER_H
#define CKPT_TREE_ARRAY_READER_H

#include "core/array/slice.h"
#include "core/tree/chunk.h"
#include "core/tree/tree.h"

#define CKPT_ARRAY_READER_TRACKS 256

struct ckpt_array_reader {
    struct ckpt_cache *cache;
    atomic_uint_fast64_t
        track[CKPT_ARRAY_READER_TRACKS]; /* where the last read of an array ended, by hash: is it read in order? */
};

/* What is read: elements of one leaf. Nothing of it is kept. */
struct ckpt_selected {
    struct ckpt_tree *tree;
    uint32_t node;
    const struct ckpt_array *array; /* the node's */
    const struct ckpt_selection *sel;
};

/* Exactly len bytes from off of the C-order, little-endian bytes of a selection; both must lie inside of it. */
int ckpt_read_array(struct ckpt_array_reader *s, const struct ckpt_selected *what, void *buf, size_t len, uint64_t off,
                    struct ckpt_err *err) CKPT_MUST_USE;

struct ckpt_mapped {
    const void *data;        /* NULL: the bytes do not lie together in memory, which is no error */
    struct ckpt_chunk *hold; /* for ckpt_chunk_put, which takes data away; NULL: nothing is held */
};

/* The same bytes where they lie in a decoded chunk, without copying them. */
int ckpt_map_array(struct ckpt_array_reader *s, const struct ckpt_selected *what, size_t len, uint64_t off,
                   struct ckpt_mapped *ret, struct ckpt_err *err) CKPT_MUST_USE;

#endif
