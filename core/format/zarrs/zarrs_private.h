/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Private to folders of Zarr arrays. The keys of a tree's nodes, joined with slashes, are what its leaves are called:
 * paths below the folder, or keys of a database that lies in it. So a node keeps no name of its own.
 */
#ifndef CKPT_FORMAT_ZARRS_ZARRS_PRIVATE_H
#define CKPT_FORMAT_ZARRS_ZARRS_PRIVATE_H

#include "core/format/format.h"
#include "core/format/ocdbt/ocdbt.h"
#include "core/format/zarr.h"
#include "core/format/zarr_layouts.h"

#define ZARRS_MAX_METADATA ((size_t)4 << 20) /* of an array */

/* A database, or those that several processes wrote and nobody joined: what one does not have another one may. */
struct zarrs_base {
    struct ckpt_ocdbt **parts;
    unsigned count;
    uint32_t top; /* the node that its keys begin below */
};

struct zarrs {
    struct ckpt_tree *tree; /* borrowed */
    struct zarrs_base *bases;
    uint32_t base_count;
    bool apart; /* directories right in the folder that are another format's checkpoints are no part of the tree */
    int64_t opened_ns;
    struct ckpt_zarr_cache *shards;
    struct ckpt_zarr_layouts *layouts;
};

/* Of a leaf: `ref` is 0 for what lies in files, else 1 + the number of its base. `mark` of an array: */
enum zarrs_mark {
    ZARRS_BARE = 1,    /* it is the folder itself, or the database, and its key is empty */
    ZARRS_VERSION3 = 2 /* its metadata are in zarr.json, else in .zarray */
};

/* What a directory is. */
enum zarrs_kind { ZARRS_FOLDER, ZARRS_GROUP, ZARRS_ARRAY2, ZARRS_ARRAY3, ZARRS_DATABASE };

static inline bool ckpt_zarrs_is_array(enum zarrs_kind kind)
{
    return kind == ZARRS_ARRAY2 || kind == ZARRS_ARRAY3;
}

/* look.c */
bool ckpt_zarrs_has_file(struct ckpt_backend *dir, const char *sub, const char *name);
enum zarrs_kind ckpt_zarrs_look(struct ckpt_backend *dir, const char *sub);
/* Is the text of a zarr.json that of a group? What is malformed is an array, whose fault it then is. */
bool ckpt_zarrs_is_group(const void *text, size_t len);
/* A file of Zarr's own in a folder, or of who is writing one. */
bool ckpt_zarrs_is_own(const char *name, size_t len);
/* A part of the key of a chunk: "0.1", "0" or "c". */
bool ckpt_zarrs_is_chunk(const char *name, size_t len);
/* ocdbt.process_0, process_0 */
bool ckpt_zarrs_is_process(const char *name);

/* probe.c */
int ckpt_zarrs_probe(struct ckpt_backend *dir, struct ckpt_probe *ret);
/* Another format's checkpoint, by its files. */
bool ckpt_zarrs_is_foreign(struct ckpt_backend *dir, const char *sub);

/* folder.c: add what is in the folder to the tree. */
int ckpt_zarrs_add_folder(struct zarrs *z, struct ckpt_err *err) CKPT_MUST_USE;

/* database.c: add the keys of a base, whose databases are open, below its top. */
int ckpt_zarrs_add_keys(struct zarrs *z, uint32_t base, struct ckpt_err *err) CKPT_MUST_USE;
/* The value of a key; -ENOENT: none of the databases has it. */
int ckpt_zarrs_base_get(const struct zarrs_base *base, const void *key, size_t len, struct ckpt_extent *ret,
                        struct ckpt_err *err) CKPT_MUST_USE;
void ckpt_zarrs_base_close(struct zarrs_base *base);

/* attributes.c: those in a .zattrs, or in a zarr.json; to be freed. NULL: there are none that can be shown. */
char *ckpt_zarrs_attributes(const struct ckpt_extent *e, bool version3);

/* leaves.c: the calls of struct ckpt_tree_ops */
int ckpt_zarrs_layout(struct ckpt_tree *t, uint32_t node, struct ckpt_array **ret, struct ckpt_err *err) CKPT_MUST_USE;
int ckpt_zarrs_chunk(struct ckpt_tree *t, uint32_t node, const struct ckpt_array *a, uint64_t index,
                     struct ckpt_extent *ret, struct ckpt_err *err) CKPT_MUST_USE;
int ckpt_zarrs_stored(struct ckpt_tree *t, uint32_t node, const struct ckpt_array *a, uint64_t *ret,
                      struct ckpt_err *err) CKPT_MUST_USE;
int ckpt_zarrs_blob(struct ckpt_tree *t, uint32_t node, struct ckpt_extent *ret, struct ckpt_err *err) CKPT_MUST_USE;
void ckpt_zarrs_pin(struct ckpt_tree *t, uint32_t node);
void ckpt_zarrs_describe(struct ckpt_tree *t, uint32_t node, struct ckpt_buf *json);

#endif
