/* SPDX-License-Identifier: Apache-2.0 */
/*
 * OCDBT, TensorStore's copy-on-write B+tree of byte-string keys and values, read only
 * (TensorStore's documentation: kvstore/ocdbt, "storage format"). The manifest is read on open, nodes on demand;
 * decoded nodes are kept in a bounded cache. Internally locked.
 */
#ifndef CKPT_FORMAT_OCDBT_OCDBT_H
#define CKPT_FORMAT_OCDBT_OCDBT_H

#include "core/io/extent.h"
#include "core/io/pins.h"

struct ckpt_ocdbt;

/* The database whose manifest is DIR/manifest.ocdbt; dir is a path in pins ("" is its top), pins is borrowed and
 * outlives the database. */
int ckpt_ocdbt_open(struct ckpt_pins *pins, const char *dir, struct ckpt_ocdbt **ret,
                    struct ckpt_err *err) CKPT_MUST_USE;
void ckpt_ocdbt_close(struct ckpt_ocdbt *db);
/*
 * The value of a key: where it lies. -ENOENT when there is none; -EIO when its data file is gone, -EBADMSG when that is
 * too short. *ret is for the caller to clear.
 */
int ckpt_ocdbt_get(struct ckpt_ocdbt *db, const void *key, size_t key_len, struct ckpt_extent *ret,
                   struct ckpt_err *err) CKPT_MUST_USE;

/* In key order, all keys that begin with prefix. value_len is the value's length; return nonzero to stop. */
typedef int ckpt_ocdbt_fn(void *arg, const void *key, size_t key_len, uint64_t value_len);
int ckpt_ocdbt_each(struct ckpt_ocdbt *db, const void *prefix, size_t prefix_len, ckpt_ocdbt_fn *visit, void *arg,
                    struct ckpt_err *err) CKPT_MUST_USE;
/* Pin all data files that the tree names, so far as its nodes have been read or can be with one node (the root) more.
 */
int ckpt_ocdbt_pin(struct ckpt_ocdbt *db, struct ckpt_err *err) CKPT_MUST_USE;
/* Keep 1/count of the nodes that it may, where there are so many databases. Before it is shared. */
void ckpt_ocdbt_share_cache(struct ckpt_ocdbt *db, unsigned count);
/* Bytes of memory that cached nodes take. */
size_t ckpt_ocdbt_memory(struct ckpt_ocdbt *db);
/* Read the whole tree and check every checksum and bound it has; progress(arg, bytes) for each node, with its stored
 * length (may be NULL). */
int ckpt_ocdbt_verify(struct ckpt_ocdbt *db, void (*progress)(void *arg, uint64_t bytes), void *arg,
                      struct ckpt_err *err) CKPT_MUST_USE;

#endif
