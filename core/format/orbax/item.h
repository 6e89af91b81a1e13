/* SPDX-License-Identifier: Apache-2.0 */
/* Private to the Orbax reader: one pytree item, and the state of a tree of items. */
#ifndef CKPT_FORMAT_ORBAX_ITEM_H
#define CKPT_FORMAT_ORBAX_ITEM_H

#include "core/format/flax/state.h"
#include "core/format/format.h"
#include "core/format/named.h"
#include "core/format/ocdbt/ocdbt.h"
#include "core/format/zarr_layouts.h"

#define ORBAX_MAX_ITEMS 250

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
    struct flax_state *aggregate; /* the msgpack file `checkpoint`; NULL: there is none, or it is not needed */
    bool has_aggregate;           /* there is such a file */
    struct orbax_sub *subs;       /* by their directories */
    unsigned sub_count;
};

/* A database of its own in a directory of an item: Orbax 0.3.5 to 0.4.1 put an array a/b there, with the key b. */
struct orbax_sub {
    char *dir; /* below the item's */
    struct ckpt_ocdbt *db;
};

struct orbax {
    struct ckpt_tree *tree; /* borrowed */
    struct orbax_item *items;
    unsigned count;
    bool incomplete;         /* something that belongs to it was not there when it was loaded */
    struct ckpt_buf missing; /* names of such items */
    unsigned beside;         /* files and folders of others */
    bool guessed;            /* an item without any metadata: an old one, or what is left of one */
    atomic_uint_fast64_t loaded_print, stable_print; /* see vanish.c; 0 = none yet */
    atomic_bool vanished;
    struct ckpt_zarr_cache *shards;
    struct ckpt_zarr_layouts *layouts;
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
void ckpt_orbax_item_clear(struct orbax_item *item);
/* The database of arrays whose names begin with a path; NULL: they are in the item's own. */
const struct orbax_sub *ckpt_orbax_find_sub(const struct orbax_item *item, const char *dir, size_t len);
/* Its databases, from 0; *ret may be NULL. False behind the last. */
bool ckpt_orbax_item_database(const struct orbax_item *item, unsigned i, struct ckpt_ocdbt **ret);

/* types.c */
/* Of the item's containers: what value_metadata_tree says of them. */
int ckpt_orbax_types_apply(struct ckpt_tree *t, uint32_t root, const char *text, size_t len,
                           struct ckpt_err *err) CKPT_MUST_USE;

/* A path in the item's directory; NUL-terminated. */
char *ckpt_orbax_path(const struct orbax_item *item, const char *name);
/* The item that a node belongs to. */
struct orbax_item *ckpt_orbax_item_of(const struct ckpt_tree *t, uint32_t node);
/* The name of a leaf's array: its keys below the item, joined with dots. */
void ckpt_orbax_param(const struct ckpt_tree *t, uint32_t node, struct ckpt_buf *buf);

/* item_name.c */
int ckpt_orbax_open_in_item(struct orbax *o, struct orbax_item *item, const char *name,
                            struct ckpt_file **ret) CKPT_MUST_USE;
/* Is it an array, or a number in one, that is not in the msgpack file? */
bool ckpt_orbax_is_apart(const struct ckpt_tree *t, uint32_t node);

/* own.c: what is Orbax's own of all that is in an item's directory. */
struct orbax_own {
    const struct orbax_item *item;
    struct ckpt_name_set paths; /* of directories of arrays, and of what leads to them */
    bool bare;                  /* the item's directory is itself an array's */
};
enum orbax_whose { ORBAX_USERS, ORBAX_OWN, ORBAX_LEADS /* something of Orbax is in it */ };

/* A file of a step, or of any item. */
bool ckpt_orbax_own_file(const char *name);
/* The nodes of the item are those from `first` on. */
int ckpt_orbax_own_init(struct orbax_own *own, const struct orbax *o, const struct orbax_item *item,
                        uint32_t first) CKPT_MUST_USE;
void ckpt_orbax_own_clear(struct orbax_own *own);
enum orbax_whose ckpt_orbax_own_whose(const struct orbax_own *own, const char *path, enum ckpt_ftype type);

/* step.c */
/* All that is in the checkpoint. */
int ckpt_orbax_step_load(struct orbax *o, struct ckpt_err *err) CKPT_MUST_USE;

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
