/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A state dict as flax.serialization writes it: one msgpack object of maps, lists and values, with arrays in extension
 * types. Only its structure is read when it is loaded. What is not a short value stays in the file; a node's ref names
 * the place. Immutable once loaded; any thread.
 */
#ifndef CKPT_FORMAT_FLAX_STATE_H
#define CKPT_FORMAT_FLAX_STATE_H

#include "core/tree/tree.h"

/* What differs where other libraries use the encoding. */
struct flax_dialect {
    const char *elsewhere; /* a string that begins so stands for an array that is not in the file; NULL: none does */
    bool tuples;           /* extension type 4 is a tuple */
    const char *folder;    /* of the tree's files: maps of TensorStore's stand for Zarr arrays in it (spec.h), which are
                              elsewhere too; NULL: they are maps like others */
};

struct flax_state;

/* The file is referenced. */
int ckpt_flax_state_new(struct ckpt_file *file, struct flax_state **ret);
void ckpt_flax_state_free(struct flax_state *s);
/*
 * Add all that is in the file to a container of a tree that is being built. -EBADMSG: the file ends too early;
 * -EUCLEAN: malformed, the same key twice in a map; -EOPNOTSUPP: a dtype that is not known, a tree that takes too much
 * memory.
 */
int ckpt_flax_state_load(struct flax_state *s, const struct flax_dialect *dialect, struct ckpt_tree *t, uint32_t top,
                         struct ckpt_err *err) CKPT_MUST_USE;

/* Of the leaves that were added: does it lie in the file? Only then the functions below may be asked of it. */
bool ckpt_flax_state_has(const struct ckpt_tree *t, uint32_t node);
/* The name of an array that does not, which follows dialect.elsewhere; NULL. */
const char *ckpt_flax_state_elsewhere(const struct ckpt_tree *t, uint32_t node, size_t *ret_len);
/* Leaves that are laid out alike get the same object, mostly. */
int ckpt_flax_state_layout(struct flax_state *s, const struct ckpt_tree *t, uint32_t node, struct ckpt_array **ret,
                           struct ckpt_err *err) CKPT_MUST_USE;
/* All elements of an array. */
int ckpt_flax_state_elements(struct flax_state *s, const struct ckpt_tree *t, uint32_t node, struct ckpt_extent *ret,
                             struct ckpt_err *err) CKPT_MUST_USE;
int ckpt_flax_state_blob(struct flax_state *s, const struct ckpt_tree *t, uint32_t node, struct ckpt_extent *ret,
                         struct ckpt_err *err) CKPT_MUST_USE;
size_t ckpt_flax_state_memory(const struct flax_state *s);
/* Append what is particular about a leaf to its metadata. */
void ckpt_flax_state_describe(struct flax_state *s, const struct ckpt_tree *t, uint32_t node, struct ckpt_buf *json);

#endif
