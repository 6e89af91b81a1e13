/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Private to the GGUF reader: an open tree, of one file or of the parts of a split model. A node's ref is the place of
 * its tensor in the header of its file. Immutable once opened, but for the recent layouts.
 */
#ifndef CKPT_FORMAT_GGUF_PRIVATE_H
#define CKPT_FORMAT_GGUF_PRIVATE_H

#include "core/format/gguf/gguf.h"
#include "core/format/gguf/header.h"
#include "core/format/named.h"
#include "core/format/shards.h"

#define GGUF_FILE_MARK 1 /* of blobs that are files of the folder: the ref is their path */
#define GGUF_LOST_MARK 2 /* of blobs that stand for a part that cannot be read: the ref is its number */

struct gguf_part {
    struct ckpt_file *file; /* NULL: of a split model, whose files are opened by name */
    bool big_endian;
    uint64_t data;     /* where they begin in the file */
    uint64_t *offsets; /* of all tensors, in order, if the size of some is not known */
    uint32_t offset_count;
};

struct gguf {
    struct ckpt_recent_layouts layouts;
    struct gguf_part *parts;
    uint32_t part_count;
    struct ckpt_shards shards; /* of a split model: the parts' files */
    struct gguf_range {
        uint32_t first, part; /* nodes from `first` on are of this part */
    } * ranges;               /* of a split model */
    uint32_t range_count;
};

int ckpt_gguf_tree_new(const struct ckpt_opening *o, struct ckpt_tree **ret, struct ckpt_err *err) CKPT_MUST_USE;
/* Reads the header of a part, and checks it; *h is to be closed. */
int ckpt_gguf_part_open(struct gguf_part *part, struct ckpt_file *file, struct gguf_header *h,
                        struct ckpt_buf *metadata, struct ckpt_err *err) CKPT_MUST_USE;
/* The tensors of a header whose names are of the round. */
struct gguf_builder {
    struct ckpt_tree *tree;
    bool flat;
    enum ckpt_name_round round;
    struct ckpt_name_set *names; /* NULL: not wanted */
    struct ckpt_err *err;
};
int ckpt_gguf_add_tensors(struct gguf_builder *b, struct gguf_header *h) CKPT_MUST_USE;

/* --- split.c --- */
int ckpt_gguf_split_probe(struct ckpt_backend *dir, bool *ret) CKPT_MUST_USE;
int ckpt_gguf_split_open(const struct ckpt_opening *o, struct ckpt_tree **ret, struct ckpt_err *err) CKPT_MUST_USE;
/* The part of a node's tensor, and its file, which the caller unrefs. */
int ckpt_gguf_split_part(struct ckpt_tree *t, uint32_t node, const struct gguf_part **ret, struct ckpt_file **ret_file,
                         struct ckpt_err *err) CKPT_MUST_USE;

#endif
