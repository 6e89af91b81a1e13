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

/* A blob that is a file of the folder: its node's ref is the path, a string of the tree. Of other nodes: a place, or an
 * entry. */
#define SAFETENSORS_FILE_MARK 1

struct safetensors_shard {
    uint32_t name, why; /* strings of the tree; why: what is wrong with it, if error is not 0 */
    int error;          /* positive errno */
    uint64_t ino, size; /* as it was when its header was read */
    int64_t mtime_ns;
};

struct safetensors_entry {
    uint64_t hash; /* of the tensor's name */
    uint32_t shard;
    uint32_t place : 31; /* in the shard's header; 0: it does not have the tensor */
    uint32_t packed : 1;
};

struct safetensors {
    struct ckpt_recent_layouts layouts;
    struct ckpt_file *file; /* NULL: a folder */
    struct safetensors_shard *shards;
    struct safetensors_entry *entries; /* by hash */
    uint32_t shard_count, entry_count, entry_cap;
};

int ckpt_safetensors_tree_new(const struct ckpt_opening *o, struct ckpt_tree **ret, struct ckpt_err *err);
/* Takes the text of an object, if there is any, as the tree's metadata. */
int ckpt_safetensors_set_metadata(struct ckpt_tree *t, struct ckpt_buf *json, struct ckpt_err *err);

int ckpt_safetensors_folder_open(const struct ckpt_opening *o, struct ckpt_tree **ret, struct ckpt_err *err);
/* The file of an entry's tensor, and its place there. The caller unrefs. */
int ckpt_safetensors_folder_locate(struct ckpt_tree *t, uint32_t entry, struct ckpt_file **ret, uint64_t *ret_place,
                                   struct ckpt_err *err);

#endif
