/* SPDX-License-Identifier: Apache-2.0 */
/*
 * An open tree: of one file, whose nodes know the places of their tensors in its header, or of a folder, whose nodes
 * know entries of the index. Immutable once opened, but for the recent layouts.
 */
#ifndef CKPT_FORMAT_SAFETENSORS_SAFETENSORS_PRIVATE_H
#define CKPT_FORMAT_SAFETENSORS_SAFETENSORS_PRIVATE_H

#include "core/format/named.h"
#include "core/format/safetensors/header.h"
#include "core/format/safetensors/safetensors.h"
#include "core/format/shards.h"

/* A blob that is a file of the folder: its node's ref is the path, a string of the tree. Of other nodes: a place, or an
 * entry. */
#define SAFETENSORS_FILE_MARK 1

struct safetensors {
    struct ckpt_recent_layouts layouts;
    struct ckpt_file *file;    /* NULL: a folder */
    struct ckpt_shards shards; /* of a folder */
};

int ckpt_safetensors_tree_new(const struct ckpt_opening *o, struct ckpt_tree **ret, struct ckpt_err *err);
/* Takes the text of an object, if there is any, as the tree's metadata. */
int ckpt_safetensors_set_metadata(struct ckpt_tree *t, struct ckpt_buf *json, struct ckpt_err *err);

int ckpt_safetensors_folder_open(const struct ckpt_opening *o, struct ckpt_tree **ret, struct ckpt_err *err);
/* The file of an entry's tensor, and its place there. The caller unrefs. */
int ckpt_safetensors_folder_locate(struct ckpt_tree *t, uint32_t entry, struct ckpt_file **ret, uint64_t *ret_place,
                                   struct ckpt_err *err);

#endif
