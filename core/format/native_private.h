/* SPDX-License-Identifier: Apache-2.0 */
/* Private to the store's reader: an opened step. */
#ifndef CKPT_FORMAT_NATIVE_PRIVATE_H
#define CKPT_FORMAT_NATIVE_PRIVATE_H

#include "core/object/manifest.h"
#include "core/object/opened.h"
#include "core/tree/tree.h"

#define STORE_LEAVES         64
#define STORE_LAYOUT_BUCKETS 256
#define STORE_RIGHTS         256

/* What is asked of a leaf again and again. */
struct store_leaf {
    uint32_t node; /* 0: none */
    uint64_t size, stored;
    struct ckpt_span span;
    uint8_t sha256[CKPT_SHA256];
    struct ckpt_leaf_attrs attrs;
};

/* Arrays that are stored alike share a layout. */
struct store_layout {
    struct store_layout *next;
    struct ckpt_array *array;
    size_t len;
    uint8_t key[];
};

/* Of each node there is only where its record lies, and (in its `ref`) a sum of it; and (in its `mark`) which of
 * `rights` those have who may read all that is in it. */
struct store {
    char *name;          /* of the manifest in its directory */
    struct ckpt_stat st; /* of the manifest, when it was opened */
    char id[CKPT_MANIFEST_ID];
    uint64_t *places; /* by node: offset << 20 | length - 1 */
    uint32_t cap;
    struct ckpt_leaf_attrs top;
    struct ckpt_rights *rights; /* that differ, STORE_RIGHTS at most: the last of so many is nobody's */
    unsigned right_count;
    struct ckpt_opened *opened;
    pthread_mutex_t lock;                   /* what follows */
    struct store_leaf leaves[STORE_LEAVES]; /* by node modulo */
    struct store_layout *layouts[STORE_LAYOUT_BUCKETS];
    size_t layout_bytes;
};

/* The record of a node but the top, as it was when the manifest was opened. */
int ckpt_store_record(struct ckpt_tree *t, uint32_t node, struct ckpt_manifest_node *ret,
                      struct ckpt_err *err) CKPT_MUST_USE;
/* "params/w.npy", cut at the front where it is too long. */
void ckpt_store_path(const struct ckpt_tree *t, uint32_t node, char *buf, size_t len);
int ckpt_store_verify(struct ckpt_tree *t, void (*progress)(void *arg, uint64_t bytes), void *arg,
                      struct ckpt_err *err);

#endif
