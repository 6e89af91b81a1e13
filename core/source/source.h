/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Private to core/source: the nodes of the source's own directories, and how they, the trees inside of checkpoints and the
 * control files share one space of ids.
 *
 * An id below 2^40 is a node of the source. Others name something inside a checkpoint: 23 bits which (the serial of its node), 8
 * bits how it is viewed, 32 bits the tree's node, or the number of a slice. Ids with bit 63 are of staged steps: 23 bits which root's, and
 * 40 bits of its own (core/store/stage.h).
 *
 * Locks, in this order: a node's `load` (one at a time, held while its listing or tree is read; of a tree that is a leaf of another one
 * first, then of that one), then src->lock (tables, counts,
 * pointers; never held across input or output).
 */
#ifndef CKPT_SOURCE_SOURCE_H
#define CKPT_SOURCE_SOURCE_H

#include "core/ckpt.h"
#include "core/source/listing.h"
#include "core/store/stage.h"
#include "core/view/view.h"

#define CKPT_CONTROL 2 /* the id of .ckptfs */
#define CKPT_FACE 3    /* of .files */

enum node_kind { NODE_DIR, NODE_FILE, NODE_TREE, NODE_LINK, NODE_CONTROL_DIR, NODE_CONTROL, NODE_FACE };

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
    int64_t checked_ns;           /* CLOCK_MONOTONIC; 0: look again */
    struct ckpt_store *store;     /* DIR that is a native root and may be changed, from the first change on */
    struct ckpt_stages *stages;
    struct ckpt_source *source;   /* of a root with stages: for what they call */
    bool stale;                   /* TREE: another step has its name now */
    struct ckpt_backend *files;   /* FACE, FILE of a step of a store: what it is read from, under `inside` */
    struct removal *removal;      /* TREE of a store: what was removed of it, and is not in a staged copy yet */
    atomic_bool removing;         /* there is some */
    bool writable;                /* a native root that may be changed, or a step of its store */

    uint32_t serial; /* TREE */
    const struct ckpt_reader *reader;
    const char *inside;       /* the checkpoint's name below the directory that it is read from ("" : it is the directory), as in its listing's entry */
    char **old;               /* paths, names and manifests before renamings, which somebody may still look at */
    size_t old_count;
    struct ckpt_backend *blob; /* TREE that is a leaf of another one: what it is read from; `inside` is the file's name there */
    char *dir;                /* TREE of a store, or that is a file: its directory's path in the source */
    char *manifest;           /* TREE of a store: what `inside` points into */
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
    struct ckpt_file *file;   /* FILE, once it was read; TREE that is a file: what its tree was made from */
};

#define CKPT_BUCKETS 16384
#define CKPT_SETS 256

struct ckpt_source {
    struct ckpt_backend *backend;
    struct ckpt_options opt;
    char *spill_dir;
    char *path;
    char *file;                /* the source is a file: its name */
    struct ckpt_pool *pool;
    struct ckpt_cache *cache;
    struct ckpt_views views;
    pthread_mutex_t lock;
    struct node *by_id[CKPT_BUCKETS], *by_name[CKPT_BUCKETS], *by_serial[CKPT_BUCKETS];
    uint64_t next_id;
    uint32_t next_serial;
    uint64_t clock;
    uint64_t trees, tree_bytes; /* as of the last count, and what was opened since */
    unsigned since_count;
    unsigned kept_files;
    atomic_uint removals;       /* nodes of which something is removed */
    struct node *root;
    struct node *sets[CKPT_SETS];  /* native roots with staged steps, by the number in their ids */
    unsigned set_count;
    bool closing;
    bool lazy;                 /* the source was an empty directory: the first step makes it a native root */
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
/* The tree that an .npy file of a directory is when it is looked at as an array, entered at its top; -ENODATA for other files. */
int source_npy(struct ckpt_source *src, struct node *file, struct target *ret, struct ckpt_err *err) CKPT_MUST_USE;

/* -ESTALE if a checkpoint that is a file has been written to since its tree was made from it: what was read may be anything. */
int source_unchanged(struct ckpt_source *src, const struct node *n, struct ckpt_err *err) CKPT_MUST_USE;
/* blob.c: a backend whose only file is a leaf of a tree, as it is listed. Takes over a reference that a look-up of the id gave; NULL: no
 * memory, and nothing is taken. */
struct ckpt_backend *source_blob(struct ckpt_source *src, uint64_t id, const char *name, const struct ckpt_stat *st);

/* What is known under a name of a root is not what it stands for any more. */
void source_replaced(struct ckpt_source *src, struct node *root, const char *name);
/* A committed step of a store has another name: its node, if it is known, goes with it. */
void source_rename_step(struct ckpt_source *src, struct node *root, const char *from, const char *to);

/* write.c: the staged steps of a native root; -EROFS where there can be none. */
int source_stages(struct ckpt_source *src, struct node *n, struct ckpt_stages **ret, struct ckpt_err *err) CKPT_MUST_USE;
/* The name of the best step of a native root, to be freed; NULL. */
char *source_best_step(struct ckpt_source *src, struct node *n);
/* The set that an id of a staged step belongs to. */
struct ckpt_stages *source_set(struct ckpt_source *src, uint64_t id);
void source_attr_of_stage(const struct ckpt_stage_attr *a, struct ckpt_attr *ret);
/* The directory of a staged copy that stands for a directory of a committed step in this process: 1 and its id with a reference, or 0. */
int source_copied(struct ckpt_source *src, const struct target *t, uint64_t *ret);
/* The root that a tree is a step of, where that is a native one that has staged steps; NULL. */
struct node *source_root_of(struct ckpt_source *src, const struct node *tree);

/* The inode number of something inside a checkpoint. */
uint64_t source_inner_ino(const struct node *n, uint32_t node, enum ckpt_view view);
/* A name directly under the mount's top that belongs to the mount. */
bool source_is_reserved(uint64_t parent, const char *name);
/* The node of a name, found or made, with a reference more. key: what it is known by in its directory, where that is not its name. */
int source_take_node(struct ckpt_source *src, struct node *dir, const char *name, const char *key, enum node_kind kind, const struct ckpt_stat *st,
                     const struct ckpt_entry *e, const char *link, struct node **ret) CKPT_MUST_USE;
/* What a link of the source says; -ENOENT where following it, here or from the mount, would lead outside. */
int source_link_target(struct ckpt_source *src, const char *path, char *buf, size_t len) CKPT_MUST_USE;

/* face.c: what is in a directory of the files face. */
int source_face_lookup(struct ckpt_source *src, struct node *dir, const char *name, struct node **ret) CKPT_MUST_USE;
/* The same of a step of the store that lies there. */
int source_face_step(struct ckpt_source *src, struct node *dir, const char *name, struct node **ret) CKPT_MUST_USE;
/* Note that a file or directory of such a step is removed; 1: it is not in one. And the step itself, when nothing is left in it. */
int source_face_remove(struct ckpt_source *src, uint64_t parent, const char *name, bool is_dir, struct ckpt_err *err) CKPT_MUST_USE;
int source_face_remove_step(struct ckpt_source *src, const char *name, struct ckpt_err *err) CKPT_MUST_USE;
typedef int source_name_fn(void *arg, const char *name, uint64_t ino, enum ckpt_type type);
int source_face_each(struct ckpt_source *src, struct node *dir, source_name_fn *each, void *arg) CKPT_MUST_USE;
int source_face_steps(struct ckpt_source *src, struct node *dir, source_name_fn *each, void *arg) CKPT_MUST_USE;

/* removal.c: note that a name in a committed step is removed. 1: it is not in one, or that has a staged copy. */
int source_remove(struct ckpt_source *src, uint64_t parent, const char *name, bool is_dir, const struct ckpt_caller *who, struct ckpt_err *err) CKPT_MUST_USE;
bool source_is_removed(struct ckpt_source *src, struct node *n, uint32_t node);
/* A directory's time is that of the last removal, if something was removed from it. */
void source_removal_time(struct ckpt_source *src, struct node *n, uint32_t dir, int64_t *mtime_ns);
/* Make the staged copy of a committed step, without what was removed of it. 0 too if there is one. */
int source_copy_step(struct ckpt_source *src, struct node *root, struct node *n, struct ckpt_err *err) CKPT_MUST_USE;
/* The same of all steps of a root of which nothing more was removed for so many seconds. */
void source_settle_removals(struct ckpt_source *src, struct node *root, double seconds);
void source_forget_removal(struct ckpt_source *src, struct node *n); /* under the source's lock */

/* control.c: the text of a control file; -ENOENT. */
int source_control(struct ckpt_source *src, const char *name, uint8_t **ret, size_t *ret_len, struct ckpt_err *err) CKPT_MUST_USE;
extern const char *const source_control_names[]; /* NULL-terminated */

#endif
