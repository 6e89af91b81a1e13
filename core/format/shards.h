/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A checkpoint whose tensors are spread over several files of a folder: an index says which names there are, and in
 * which file each is. A shard that is missing or malformed spoils its own tensors alone. Built by one thread, then
 * immutable.
 */
#ifndef CKPT_FORMAT_SHARDS_H
#define CKPT_FORMAT_SHARDS_H

#include "core/tree/tree.h"

struct ckpt_shard {
    uint32_t name, why; /* strings of the tree; why: what is wrong with it, if error is not 0 */
    int error;          /* positive errno */
    uint64_t ino, size; /* as it was when it was opened first */
    int64_t mtime_ns;
};

struct ckpt_shard_entry {
    uint64_t hash; /* of the tensor's name */
    uint32_t shard;
    uint32_t place : 31; /* in the shard, as its format has it; 0: it does not have the tensor */
    uint32_t packed : 1;
};

struct ckpt_shards {
    struct ckpt_tree *tree; /* borrowed */
    char index_name[256];
    struct ckpt_shard *all; /* in the order of their names' strings */
    uint32_t count;
    struct ckpt_shard_entry *entries; /* by hash */
    uint32_t entry_count, entry_cap;
};

/* The name of a folder's index, which ends in `suffix`: "BASE + suffix" has the first right, then the first by name.
 * Empty: there is none. */
int ckpt_shards_choose(struct ckpt_backend *dir, const char *base, const char *suffix, char ret[256]) CKPT_MUST_USE;
/* Whether a folder has one, and a file that is called like a shard ("-00001-of-00002" before `shard`; NULL: it need not
 * have one): of many models only the small files are downloaded. */
int ckpt_shards_probe(struct ckpt_backend *dir, const char *suffix, const char *shard, bool *ret) CKPT_MUST_USE;
/* Opens the index that was chosen. */
int ckpt_shards_open_index(const struct ckpt_shards *s, struct ckpt_pins *pins, struct ckpt_file **ret,
                           struct ckpt_err *err) CKPT_MUST_USE;
/* Entries and shards from the index. *metadata (NULL: not wanted): the index's own, a JSON object or nothing. */
int ckpt_shards_read(struct ckpt_shards *s, struct ckpt_file *index, struct ckpt_buf *metadata,
                     struct ckpt_err *err) CKPT_MUST_USE;
/* NULL: there is none. */
struct ckpt_shard_entry *ckpt_shards_find(const struct ckpt_shards *s, const char *name, size_t len);
const char *ckpt_shard_name(const struct ckpt_shards *s, uint32_t shard);
/* A shard for the first time. */
int ckpt_shard_open(struct ckpt_shards *s, uint32_t shard, struct ckpt_file **ret, struct ckpt_err *err) CKPT_MUST_USE;
/* Notes that it cannot be read (r, and why), unless memory is short. */
int ckpt_shard_spoil(struct ckpt_shards *s, uint32_t shard, int r, const struct ckpt_err *why,
                     struct ckpt_err *err) CKPT_MUST_USE;
/* What is wrong with the shard of an entry, or that it has not the tensor; 0: nothing. */
int ckpt_shards_check(const struct ckpt_shards *s, const struct ckpt_shard_entry *e,
                      struct ckpt_err *err) CKPT_MUST_USE;
/* Again, where it must be the same still. The caller unrefs. */
int ckpt_shard_reopen(const struct ckpt_shards *s, uint32_t shard, struct ckpt_file **ret,
                      struct ckpt_err *err) CKPT_MUST_USE;
/* The index or a shard, which are shown as tensors already; takes ckpt_shards as its argument. */
bool ckpt_shards_own(void *shards, const char *name);
size_t ckpt_shards_memory(const struct ckpt_shards *s);
void ckpt_shards_clear(struct ckpt_shards *s);

#endif
