/* SPDX-License-Identifier: Apache-2.0 */
/* The forms in which a state dict holds arrays. One thread. */
#ifndef CKPT_FORMAT_FLAX_ARRAY_H
#define CKPT_FORMAT_FLAX_ARRAY_H

#include "core/array/layout.h"
#include "core/format/msgpack.h"

#define FLAX_CHUNKED "__msgpack_chunked_array__" /* the first key of the map that stands for an array in pieces */

enum flax_ext { FLAX_EXT_NDARRAY = 1, FLAX_EXT_COMPLEX = 2, FLAX_EXT_SCALAR = 3, FLAX_EXT_TUPLE = 4 };

/* Makes the payload of an extension the whole range, and back: the cursor stands behind it then. *saved is the end of
 * the outer range. */
void ckpt_flax_enter(struct ckpt_mp *mp, const struct ckpt_mp_token *ext, uint64_t *saved);
int ckpt_flax_leave(struct ckpt_mp *mp, uint64_t saved,
                    struct ckpt_err *err) CKPT_MUST_USE; /* -EUCLEAN if something is left in the payload */

/*
 * The array that a token begins: an extension of one of the first three types, or a map whose first key was
 * FLAX_CHUNKED, which has been read. Any other token is refused. The cursor is behind it then. Its layout is one chunk;
 * *ret_where (may be NULL) is where its elements lie. All that is claimed has been checked but the file's end.
 */
int ckpt_flax_array(struct ckpt_mp *mp, const struct ckpt_mp_token *t, struct ckpt_array **ret,
                    struct ckpt_extent *ret_where, struct ckpt_err *err) CKPT_MUST_USE;

#endif
