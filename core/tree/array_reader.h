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

/* Exactly len bytes from off of the C-order, little-endian bytes of a selection; both must lie inside of it. */
int ckpt_read_array(struct ckpt_array_reader *s, struct ckpt_tree *t, uint32_t node, const struct ckpt_array *a,
                    const struct ckpt_selection *sel, void *buf, size_t len, uint64_t off,
                    struct ckpt_err *err) CKPT_MUST_USE;

/*
 * The same bytes where they lie in a decoded chunk, without copying them: *ret until *ret_hold is put back with
 * ckpt_chunk_put. NULL when they do not lie together in memory; that is no error.
 */
int ckpt_map_array(struct ckpt_array_reader *s, struct ckpt_tree *t, uint32_t node, const struct ckpt_array *a,
                   const struct ckpt_selection *sel, size_t len, uint64_t off, const void **ret,
                   struct ckpt_chunk **ret_hold, struct ckpt_err *err) CKPT_MUST_USE;

#endif
