/* SPDX-License-Identifier: Apache-2.0 */
/* Private to the Orbax reader: one pytree item, and the state of a tree of items. */
#ifndef CKPT_FORMAT_ORBAX_ITEM_H
#define CKPT_FORMAT_ORBAX_ITEM_H

#include "core/format/flax/state.h"
#include "core/format/format.h"
#include "core/format/ocdbt/ocdbt.h"
#include "core/format/zarr.h"

#define ORBAX_MAX_ITEMS 250

/* Layouts by the text of their metadata: leaves that are stored alike share one. */
struct orbax_layout {
    char *text;
    size_t len;
    struct ckpt_array *array;
    struct orbax_layout *next;
};

#define ORBAX_LAYOUT_BUCKETS 1024

struct orbax_item {
    char *dir;     /* "" or "default" or "rng/jax_random_key" */
    uint32_t root; /* its top node */
    bool zarr3;
    bool fill_missing;         /* a chunk that is not there holds the fill value */
    struct ckpt_ocdbt *db;     /* NULL: arrays are plain directories */
    struct ckpt_rights rights; /* who may read its files, its arrays' own directories aside; all: these too. Under the
                                  tree's rights_lock */
    struct ckpt_rights all;
    bool rights_known, all_known;
    struct flax_state *aggregate; /* the msgpack file `checkpoint`; NULL: there is none */
};

struct orbax {
    struct ckpt_tree *tree; /* borrowed */
    struct orbax_item *items;
    unsigned count;
    bool incomplete; /* something that belongs to it was not there when it was loaded */
    bool guessed;    /* an item without any metadata: an old one, or what is left of one */
    atomic_uint_fast64_t loaded_print, stable_print; /* see vanish.c; 0 = none yet */
    atomic_bool vanished;
    struct ckpt_zarr_cache *shards;
    pthread_mutex_t lock;
    struct orbax_layout *layouts[ORBAX_LAYOUT_BUCKETS];
};

/* FNV-1a, of texts that are short. */
static inline uint64_t orbax_hash(const void *text, size_t len)
{
    const uint8_t *p = text;
    uint64_t h = 0xcbf29ce484222325;
    for (size_t i = 0; i < len; i++)
        h = (h ^ p[i]) * 0x100000001b3;
    return h ^ h >> 31;
}

/* probe.c */
bool ckpt_orbax_unfinished_name(const char *name, size_t *ret_len);
int ckpt_orbax_probe(struct ckpt_backend *dir, struct ckpt_probe *ret);
bool ckpt_orbax_is_item(struct ckpt_backend *dir, const char *sub);

/* item.c */
/* Fill the tree from an item's files; item->root and item->dir are set. */
int ckpt_orbax_item_load(struct orbax *o, struct orbax_item *item, struct ckpt_err *err) CKPT_MUST_USE;

/* A path in the item's directory; NUL-terminated. */
char *ckpt_orbax_path(const struct orbax_item *item, const char *name);
/* The item that a node belongs to. */
struct orbax_item *ckpt_orbax_item_of(const struct ckpt_tree *t, uint32_t node);
/* The name of a leaf's array: its keys below the item, joined with dots. */
void ckpt_orbax_param(const struct ckpt_tree *t, uint32_t node, struct ckpt_buf *buf);

/* vanish.c. `array`: the directory of the array that something is missing of, or NULL. */
/* A number for the state of the checkpoint's directories; 0 where they have no name any more. *ret_newest_ns (which may
 * be NULL): the last time that anything changed. */
uint64_t ckpt_orbax_fingerprint(struct orbax *o, const char *array, int64_t *ret_newest_ns);
/* A file is missing: is the checkpoint just being deleted? May wait for some seconds. */
bool ckpt_orbax_is_vanishing(struct orbax *o, const char *array);

/* leaves.c, describe.c, rights.c: the calls of struct ckpt_tree_ops */
int ckpt_orbax_layout(struct ckpt_tree *t, uint32_t node, struct ckpt_array **ret, struct ckpt_err *err) CKPT_MUST_USE;
int ckpt_orbax_chunk(struct ckpt_tree *t, uint32_t node, const struct ckpt_array *a, uint64_t index,
                     struct ckpt_extent *ret, struct ckpt_err *err) CKPT_MUST_USE;
int ckpt_orbax_stored(struct ckpt_tree *t, uint32_t node, const struct ckpt_array *a, uint64_t *ret,
                      struct ckpt_err *err) CKPT_MUST_USE;
int ckpt_orbax_blob(struct ckpt_tree *t, uint32_t node, struct ckpt_extent *ret, struct ckpt_err *err) CKPT_MUST_USE;
void ckpt_orbax_pin(struct ckpt_tree *t, uint32_t node);
void ckpt_orbax_describe(struct ckpt_tree *t, uint32_t node, struct ckpt_buf *out);
int ckpt_orbax_rights(struct ckpt_tree *t, uint32_t node, bool whole, struct ckpt_rights *ret,
                      struct ckpt_err *err) CKPT_MUST_USE;

#endif
