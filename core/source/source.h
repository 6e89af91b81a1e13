/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Private to core/source: the nodes of the source's own directories, and how they, the trees inside of checkpoints and the
 * control files share one space of ids.
 *
 * An id below 2^40 is a node of the source. Others name something inside a checkpoint: 24 bits which (the serial of its node), 8
 * bits how it is viewed, 32 bits the tree's node, or the number of a slice.
 *
 * Locks, in this order: a node's `load` (one at a time, held while its listing or tree is read), then src->lock (tables, counts,
 * pointers; never held across input or output).
 */
#ifndef CKPT_SOURCE_SOURCE_H
#define CKPT_SOURCE_SOURCE_H

#include "core/ckpt.h"
#include "core/source/listing.h"
#include "core/view/view.h"

#define CKPT_CONTROL 2 /* the id of .ckptfs */

enum node_kind { NODE_DIR, NODE_FILE, NODE_TREE, NODE_LINK, NODE_CONTROL_DIR, NODE_CONTROL };

struct slice {
    uint32_t node;
    bool npy;
    uint64_t refs;
    uint64_t ino;
    char *text;
    struct ckpt_selection sel;
};

struct node {
    uint64_t id, ino;
    enum node_kind kind;
    uint64_t parent;
    char *path, *name;        /* path in the source */
    struct node *next_id, *next_name, *next_serial;
    bool named;               /* found by (parent, name); a replaced one is not */
    uint64_t refs;            /* look-ups */
    uint64_t inner;           /* look-ups of what is inside (of a tree) */
    uint64_t uses;            /* calls and open directories under way */
    struct ckpt_stat st;
    pthread_mutex_t load;

    struct ckpt_listing *listing; /* DIR */
    int64_t checked_ns;           /* CLOCK_MONOTONIC */

    uint32_t serial; /* TREE */
    const struct ckpt_reader *reader;
    bool is_step;
    double number;
    struct ckpt_pins *pins;
    struct ckpt_tree *tree;
    uint64_t tree_used;
    struct ckpt_err err;      /* why it does not open */
    int64_t err_ns;
    struct slice **slices;
    uint32_t slice_count;

    char *link;               /* LINK: its target */
    uint8_t *content;         /* CONTROL */
    size_t content_len;
    struct ckpt_file *file;   /* FILE, once it was read */
};

#define BUCKETS 16384

struct ckpt_source {
    struct ckpt_backend *backend;
    struct ckpt_options opt;
    char *spill_dir;
    char *path;
    struct ckpt_pool *pool;
    struct ckpt_cache *cache;
    struct ckpt_views views;
    pthread_mutex_t lock;
    struct node *by_id[BUCKETS], *by_name[BUCKETS], *by_serial[BUCKETS];
    uint64_t next_id;
    uint32_t next_serial;
    uint64_t clock;
    uint64_t trees, tree_bytes; /* as of the last count, and what was opened since */
    unsigned since_count;
    unsigned kept_files;
    struct node *root;
    atomic_uint_fast64_t lookups, getattrs, readdirs, reads, bytes_read;
};

/* A checkpoint's tree, opened if need be; unref it. */
int source_tree(struct ckpt_source *src, struct node *n, struct ckpt_tree **ret, struct ckpt_err *err) CKPT_MUST_USE;
/* A directory's listing, not older than the refresh time; unref it. */
int source_listing(struct ckpt_source *src, struct node *n, struct ckpt_listing **ret, struct ckpt_err *err) CKPT_MUST_USE;

/* What an id names. Until source_done, the node does not go away, and the tree (NULL unless inside of one) is open. */
struct target {
    struct node *node;
    struct ckpt_tree *tree;
    struct ckpt_viewed file; /* inside a tree; for its top directory the node itself is named */
    struct slice *slice;
};
int source_target(struct ckpt_source *src, uint64_t id, struct target *ret, struct ckpt_err *err) CKPT_MUST_USE;
void source_done(struct ckpt_source *src, struct target *t);
/* The node of the tree that an id stands for, where it is a directory or leaf of one; opens the tree when the id is a checkpoint's. */
int source_enter(struct ckpt_source *src, struct target *t, uint32_t *ret_node, struct ckpt_err *err) CKPT_MUST_USE;

/* control.c: the text of a control file; -ENOENT. */
int source_control(struct ckpt_source *src, const char *name, uint8_t **ret, size_t *ret_len, struct ckpt_err *err) CKPT_MUST_USE;
extern const char *const source_control_names[]; /* NULL-terminated */

#endif
