/* SPDX-License-Identifier: Apache-2.0 */
/* Private to the Orbax reader: one pytree item, and the state of a tree of items. */
#ifndef CKPT_FORMAT_ORBAX_ITEM_H
#define CKPT_FORMAT_ORBAX_ITEM_H

#include "core/format/flax/state.h"
#include "core/format/format.h"
#include "core/format/orbax/ocdbt.h"
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
    atomic_uint_fast64_t loaded_print, stable_print; /* see is_vanishing(); 0 = none yet */
    atomic_bool vanished;
    struct ckpt_zarr_cache *shards;
    pthread_mutex_t lock;
    struct orbax_layout *layouts[ORBAX_LAYOUT_BUCKETS];
};

/* probe.c */
bool ckpt_orbax_unfinished_name(const char *name, size_t *ret_len);
int ckpt_orbax_probe(struct ckpt_backend *dir, struct ckpt_probe *ret);
bool ckpt_orbax_is_item(struct ckpt_backend *dir, const char *sub);

/* item.c: fill the tree from an item's files; item->root and item->dir are set. */
int ckpt_orbax_item_load(struct orbax *o, struct orbax_item *item, struct ckpt_err *err) CKPT_MUST_USE;

/* orbax.c */
int ckpt_orbax_layout(struct ckpt_tree *t, uint32_t node, struct ckpt_array **ret, struct ckpt_err *err) CKPT_MUST_USE;
/* The name of a leaf's array: its keys below the item, joined with dots. */
void ckpt_orbax_param(const struct ckpt_tree *t, uint32_t node, struct ckpt_buf *buf);
/* rights.c */
int ckpt_orbax_rights(struct ckpt_tree *t, uint32_t node, bool whole, struct ckpt_rights *ret,
                      struct ckpt_err *err) CKPT_MUST_USE;
/* A path in the item's directory; NUL-terminated. */
char *ckpt_orbax_path(const struct orbax_item *item, const char *name);

#endif
