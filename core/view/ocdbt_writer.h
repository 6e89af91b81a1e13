/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Writes an OCDBT database of keys in rising order (google.github.io/tensorstore/kvstore/ocdbt): a file of B+tree
 * nodes, of which this makes the text, and a manifest. Large values lie in a data file of the caller's. One thread.
 */
#ifndef CKPT_VIEW_OCDBT_WRITER_H
#define CKPT_VIEW_OCDBT_WRITER_H

#include "core/view/rendering.h"

/* The columns of a node that is being made, one buffer each. */
struct ckpt_ocdbt_columns {
    struct ckpt_buf prefix, suffix, keys, last;         /* lengths of the keys' parts, their suffixes; the last key */
    struct ckpt_buf length, kind, file, offset, values; /* leaf; interior: of the children */
    struct ckpt_buf subtree, num_keys, tree_bytes, indirect; /* interior */
    uint64_t count;
};

struct ckpt_ocdbt_writer {
    struct ckpt_rendering *nodes;       /* gets the nodes */
    const char *nodes_path, *data_path; /* of the two files, from the manifest's directory */
    struct ckpt_ocdbt_columns leaf, root;
    struct ckpt_buf first;               /* the leaf's first key */
    uint64_t leaf_indirect;              /* bytes of its values in the data file */
    uint64_t keys, tree_bytes, indirect; /* of all leaves */
};

/* value NULL: it is len bytes at off of the data file. */
int ckpt_ocdbt_write(struct ckpt_ocdbt_writer *w, const struct ckpt_buf *key, const void *value, uint64_t len,
                     uint64_t off) CKPT_MUST_USE;
/* After the last key, of which there must be one: the rest of the nodes, and the manifest; appended. */
int ckpt_ocdbt_write_manifest(struct ckpt_ocdbt_writer *w, uint64_t time_ns, struct ckpt_buf *manifest) CKPT_MUST_USE;
void ckpt_ocdbt_writer_clear(struct ckpt_ocdbt_writer *w);

#endif
