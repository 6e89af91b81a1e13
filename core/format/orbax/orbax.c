/* SPDX-License-Identifier: Apache-2.0 */
/* Orbax checkpoints as trees: how they are opened, and what is kept of them while they are. */
#include "core/format/orbax/orbax.h"

#include "core/base/log.h"
#include "core/base/util.h"
#include "core/format/orbax/item.h"

#include <stdio.h>

static const struct ckpt_tree_ops orbax_ops;

/* --- opening --- */

/* A tree without nodes yet. */
static int orbax_tree_new(struct ckpt_pins *pins, struct ckpt_tree **ret, struct ckpt_err *err)
{
    struct ckpt_tree *t;
    int r = ckpt_tree_new(&orbax_ops, pins, &t);
    if (r < 0)
        return ckpt_fail(err, -r, "out of memory");
    struct orbax *o = calloc(1, sizeof *o);
    if (!o) {
        ckpt_tree_unref(t);
        return ckpt_fail(err, ENOMEM, "out of memory");
    }
    t->priv = o;
    o->tree = t;
    o->items = calloc(ORBAX_MAX_ITEMS, sizeof *o->items);
    o->shards = ckpt_zarr_cache_new();
    o->layouts = ckpt_zarr_layouts_new();
    bool made = o->items && o->shards && o->layouts;
    if (!made) {
        ckpt_tree_unref(t);
        return ckpt_fail(err, ENOMEM, "out of memory");
    }
    *ret = t;
    return 0;
}

/* Keeps the files of the databases open. True: one of them is missing. */
static bool pin_databases(struct orbax *o)
{
    bool missing = false;
    struct ckpt_ocdbt *db;
    for (unsigned i = 0; i < o->count; i++)
        for (unsigned n = 0; ckpt_orbax_item_database(&o->items[i], n, &db); n++) {
            struct ckpt_err err = {0};
            int r = db ? ckpt_ocdbt_pin(db, &err) : 0;
            if (r < 0) /* the leaves that it concerns will say so */
                ckpt_log(CKPT_LOG_DEBUG, "%s", err.text);
            missing |= r == -ENOENT;
        }
    return missing;
}

static int tell_missing(struct orbax *o)
{
    if (!o->missing.len)
        return 0;
    ckpt_buf_addc(&o->missing, 0);
    if (ckpt_buf_error(&o->missing) ||
        asprintf(&o->tree->fault, "_CHECKPOINT_METADATA names items that are not there: %s", o->missing.data) < 0)
        return -ENOMEM;
    return 0;
}

static int load_tree(struct orbax *o, struct ckpt_err *err)
{
    struct ckpt_tree *t = o->tree;
    int r = ckpt_orbax_step_load(o, err);
    bool empty = t->nodes[0].first == CKPT_NO_NODE; /* it may be the last moment of a deletion */
    bool missing = r == -ENOENT || o->incomplete || o->guessed || empty;
    if (r == 0)
        missing |= pin_databases(o);
    if (missing && ckpt_orbax_is_vanishing(o, NULL))
        return ckpt_fail(err, ENOENT, "the checkpoint is being deleted");
    if (r == -ENOENT) { /* nobody deletes it: it is damaged, and the text says where */
        if (err)
            err->code = EUCLEAN;
        return -EUCLEAN;
    }
    if (r < 0)
        return r;
    atomic_store(&o->loaded_print, ckpt_orbax_fingerprint(o, NULL, NULL));
    r = tell_missing(o);
    return r < 0 ? ckpt_no_memory(err) : ckpt_tree_finish(t, err);
}

static int orbax_open(const struct ckpt_opening *opening, struct ckpt_tree **ret, struct ckpt_err *err)
{
    struct ckpt_tree *t = NULL;
    int r = orbax_tree_new(opening->pins, &t, err);
    if (r < 0)
        return r;
    return ckpt_tree_give(t, load_tree(t->priv, err), ret);
}

/* --- the open tree --- */

static int orbax_verify(struct ckpt_tree *t, void (*progress)(void *arg, uint64_t bytes), void *arg,
                        struct ckpt_err *err)
{
    struct orbax *o = t->priv;
    struct ckpt_ocdbt *db;
    for (unsigned i = 0; i < o->count; i++)
        for (unsigned n = 0; ckpt_orbax_item_database(&o->items[i], n, &db); n++) {
            int r = db ? ckpt_ocdbt_verify(db, progress, arg, err) : 0;
            if (r < 0)
                return r;
        }
    return 0;
}

static size_t orbax_memory(const struct ckpt_tree *t)
{
    const struct orbax *o = t->priv;
    size_t n = sizeof *o + ORBAX_MAX_ITEMS * sizeof *o->items;
    for (unsigned i = 0; i < o->count; i++) {
        const struct orbax_item *item = &o->items[i];
        struct ckpt_ocdbt *db;
        for (unsigned k = 0; ckpt_orbax_item_database(item, k, &db); k++)
            n += db ? ckpt_ocdbt_memory(db) : 0;
        if (item->aggregate)
            n += ckpt_flax_state_memory(item->aggregate);
    }
    return n;
}

static void orbax_close(struct ckpt_tree *t)
{
    struct orbax *o = t->priv;
    for (unsigned i = 0; i < o->count; i++)
        ckpt_orbax_item_clear(&o->items[i]);
    ckpt_zarr_layouts_free(o->layouts);
    ckpt_zarr_cache_free(o->shards);
    ckpt_buf_clear(&o->missing);
    free(o->items);
    free(o);
}

static const struct ckpt_tree_ops orbax_ops = {
    .name = "orbax",
    .layout = ckpt_orbax_layout,
    .chunk = ckpt_orbax_chunk,
    .stored = ckpt_orbax_stored,
    .blob = ckpt_orbax_blob,
    .rights = ckpt_orbax_rights,
    .pin = ckpt_orbax_pin,
    .describe = ckpt_orbax_describe,
    .verify = orbax_verify,
    .memory = orbax_memory,
    .close = orbax_close,
};

const struct ckpt_format ckpt_orbax_format = {
    .name = "orbax",
    .probe = ckpt_orbax_probe,
    .open = orbax_open,
    .unfinished_name = ckpt_orbax_unfinished_name,
};
