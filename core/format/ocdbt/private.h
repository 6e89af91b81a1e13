/* SPDX-License-Identifier: Apache-2.0 */
/* Private to ocdbt: a database, and its nodes through the cache. */
#ifndef CKPT_FORMAT_OCDBT_PRIVATE_H
#define CKPT_FORMAT_OCDBT_PRIVATE_H

#include "core/format/ocdbt/node.h"
#include "core/format/ocdbt/ocdbt.h"

#include <pthread.h>

#define CKPT_OCDBT_BUCKETS     256
#define CKPT_OCDBT_CACHE_BYTES ((size_t)48 << 20)

/* One node that is cached, or on its way. */
struct ckpt_ocdbt_slot {
    struct ckpt_ocdbt_ref ref;
    struct ckpt_ocdbt_node *node; /* NULL: being read */
    struct ckpt_ocdbt_slot *chain;
    struct ckpt_ocdbt_slot *newer, *older; /* only with a node */
};

struct ckpt_ocdbt {
    struct ckpt_pins *pins;
    char *dir;
    struct ckpt_ocdbt_manifest manifest;

    pthread_mutex_t lock; /* all below */
    pthread_cond_t arrived;
    struct ckpt_ocdbt_slot *buckets[CKPT_OCDBT_BUCKETS];
    struct ckpt_ocdbt_slot *newest, *oldest;
    size_t bytes, max;
};

/* A way to a node; the caller unrefs it. */
typedef int ckpt_ocdbt_node_fn(struct ckpt_ocdbt *db, const struct ckpt_ocdbt_ref *ref, struct ckpt_ocdbt_node **ret,
                               struct ckpt_err *err);

/* cache.c */
char *ckpt_ocdbt_join(const char *dir, const char *name);
/* A file that a node names. */
int ckpt_ocdbt_data_open(struct ckpt_ocdbt *db, const char *name, struct ckpt_file **ret);
/* From the file, past the cache; through it. */
ckpt_ocdbt_node_fn ckpt_ocdbt_node_read, ckpt_ocdbt_node_get;
int ckpt_ocdbt_child_get(struct ckpt_ocdbt *db, const struct ckpt_ocdbt_node *parent, uint32_t i,
                         ckpt_ocdbt_node_fn *get, struct ckpt_ocdbt_node **ret, struct ckpt_err *err) CKPT_MUST_USE;
/* All nodes that are cached now, each with a reference. */
int ckpt_ocdbt_cached(struct ckpt_ocdbt *db, struct ckpt_ocdbt_node ***ret, size_t *ret_count) CKPT_MUST_USE;
void ckpt_ocdbt_cache_clear(struct ckpt_ocdbt *db);

/* ocdbt.c: the value of an entry of a leaf. */
int ckpt_ocdbt_value_get(struct ckpt_ocdbt *db, const struct ckpt_ocdbt_node *leaf, uint32_t i, struct ckpt_extent *ret,
                         struct ckpt_err *err) CKPT_MUST_USE;

#endif
