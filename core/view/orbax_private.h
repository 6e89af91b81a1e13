/* SPDX-License-Identifier: Apache-2.0 */
/* Private to core/view: an Orbax layout while it is made. orbax_judge.c says what becomes of each leaf, orbax_files.c
 * lays the data out, orbax_texts.c writes the files that are text. */
#ifndef CKPT_VIEW_ORBAX_PRIVATE_H
#define CKPT_VIEW_ORBAX_PRIVATE_H

#include "core/view/orbax_files.h"
#include "core/view/rendering.h"

#define ORBAX_FILES 9 /* of one checkpoint, at most */

enum fate { OUT, ARRAY, KEY_ARRAY, SCALAR, STRING, NONE }; /* KEY_ARRAY: key data of JAX's typed random keys */

/* How an array is cut along dimension `axis`: `runs` (the product of those before it) times `cuts` pieces of `rows`
 * rows. */
struct grid {
    unsigned axis;
    uint64_t rows, cuts, runs;
    uint64_t piece, run, padded; /* bytes of a chunk, of a run in the array, of one in the file: the last chunk of a run
                                    is a whole one */
};

/* An array or a number. */
struct part {
    uint32_t node;
    uint32_t name_len;
    uint64_t name;      /* in `names` */
    uint64_t off, size; /* in the data file */
    uint64_t run, padded;
    uint8_t dtype;
};

struct entry { /* a key of the database */
    uint32_t part;
    uint64_t chunk; /* 0: the array's metadata; else 1 + the chunk's number */
};

struct file {
    const char *path;
    struct ckpt_rendering *text; /* NULL: the data file */
};

struct ckpt_orbax_files {
    struct ckpt_views *views;
    struct ckpt_tree *tree;
    struct part *parts; /* in the order of the data file */
    size_t part_count, part_cap;
    uint64_t data; /* bytes of the data file */
    struct file files[ORBAX_FILES];
    size_t count;
};

struct string { /* a leaf that is one */
    uint32_t node, name_len;
    uint64_t name;
};

struct maker {
    struct ckpt_orbax_files *out;
    struct ckpt_tree *tree;
    uint32_t top;
    uint8_t *fates; /* of each node; of a container whether it is a sequence */
    struct ckpt_buf names;
    struct entry *entries;
    size_t entry_count, entry_cap;
    struct string *strings;
    size_t string_count, string_cap;
    bool keys; /* there are typed random keys */
    bool bare; /* the tree is one leaf, without a key */
    int64_t time_ns;
    ckpt_left_out_fn *left_out;
    void *arg;
    struct ckpt_err *err;
};

/* --- orbax_judge.c --- */
int ckpt_orbax_maker_no_memory(const struct maker *m);
/* Room for one more item in an array of `count`; items points to the array. */
int ckpt_orbax_maker_grow(const struct maker *m, void *items, size_t size, size_t count, size_t *cap);
/* Sets the fate of every leaf, and lists the parts and strings. */
int ckpt_orbax_maker_judge(struct maker *m);
/* As TensorStore's Zarr driver calls a type; NULL: it does not have it. */
const char *ckpt_orbax_zarr_type(enum ckpt_dtype dtype);
/* The nodes from the top down to one, that one first; their number. */
unsigned ckpt_orbax_maker_path(const struct maker *m, uint32_t node, uint32_t path[CKPT_MAX_DEPTH]);
/* It is left out, and why. */
void ckpt_orbax_maker_tell(struct maker *m, uint32_t node, const char *why);
/* The implementation of typed random keys that an array is the data of; an empty buffer: it is not. */
void ckpt_orbax_maker_key_impl(const struct maker *m, uint32_t node, const struct ckpt_array *a, struct ckpt_buf *ret);

/* --- orbax_files.c --- */
/* NULL where a part is a number. The caller unrefs. */
int ckpt_orbax_maker_layout(const struct maker *m, const struct part *p, struct ckpt_array **ret);

/* --- orbax_texts.c --- */
/* *ret: the children of a list or tuple in the order of their indices, to be freed; NULL where they are not 0, 1, ...
 * all kept: then it is a dict. */
int ckpt_orbax_text_sequence(const struct maker *m, uint32_t dir, uint32_t **ret, uint32_t *ret_count) CKPT_MUST_USE;
/* Of the strings those that Orbax could not find again. */
void ckpt_orbax_text_drop_strings(struct maker *m);
int ckpt_orbax_text_metadata(struct maker *m, struct ckpt_rendering *out);
int ckpt_orbax_text_strings(struct maker *m, struct ckpt_rendering *out);
int ckpt_orbax_text_shardings(struct maker *m, struct ckpt_rendering *out);
int ckpt_orbax_text_array_metadatas(struct maker *m, struct ckpt_rendering *out);
int ckpt_orbax_text_checkpoint_metadata(struct maker *m, struct ckpt_rendering *out);
int ckpt_orbax_text_success(struct maker *m, struct ckpt_rendering *out);

#endif
