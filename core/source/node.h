/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Private to core/source: the nodes of the source's own directories, and the table of them. What is in a checkpoint has
 * no nodes, but slices, which are numbered as they are looked up. The table and the counts are under the source's lock,
 * which is never held across input or output.
 */
#ifndef CKPT_SOURCE_NODE_H
#define CKPT_SOURCE_NODE_H

#include "core/source/listing.h"
#include "core/stage/stage.h"
#include "core/view/view.h"

/* What an id names. STAGED is no node: what is in a staged step is known to core/stage alone. */
enum node_kind {
    NODE_DIR,
    NODE_FILE,
    NODE_TREE,
    NODE_LINK,
    NODE_CONTROL_DIR,
    NODE_CONTROL,
    NODE_FILES_VIEW,
    NODE_STAGED,
    NODE_KINDS
};

struct slice {
    struct slice *next;    /* in the table's bucket */
    const struct node *of; /* the checkpoint */
    uint32_t node;         /* of its tree */
    uint32_t number;       /* of the slice, in ids */
    bool npy;
    uint64_t refs;
    uint64_t ino;
    char *text;
    struct ckpt_selection sel;
};

/*
 * What is opened of a node, from the first time on. Most of the nodes of a large root never are: so that they are
 * small, it is apart. All but `listing`, which who loads the node changes, is under the source's lock.
 */
struct opened {
    struct node *node;
    struct opened *newer, *older; /* of those that have pins, by their last use */
    struct ckpt_listing *listing; /* DIR */
    struct ckpt_backend *blob; /* TREE that is a leaf of another one: what it is read from, from the beginning; `inside`
                                  is the file's name there */
    struct ckpt_file *file;    /* FILE, once it was read; TREE that is a file: what its tree was made from */
    struct ckpt_pins *pins;    /* TREE, with what follows */
    struct ckpt_tree *tree;
    struct ckpt_err *err; /* why it does not open; NULL: nothing is known against it */
    int64_t err_ns;
    struct slice **slices; /* by their numbers; NULL: the number is free */
    uint32_t slice_count;
    uint32_t slice_free; /* no lower number is free */
    uint8_t told;        /* a former top: in how many sweeps its names were told */
    uint32_t renamed_count;
    char **renamed; /* paths since it was made; somebody may still look at the earlier ones */
};

struct node {
    uint64_t id, ino;
    uint64_t parent;
    const char *path, *name; /* path in the source */
    struct node *next_id, *next_name, *next_serial;
    uint64_t refs;     /* look-ups */
    uint64_t inner;    /* look-ups of what is inside (of a tree) */
    uint32_t uses;     /* calls and open directories under way */
    uint32_t serial;   /* TREE */
    uint8_t kind;      /* enum node_kind */
    bool named;        /* found by (parent, name); a replaced one is not */
    bool loading;      /* somebody lists it, or opens it: see NODE_LOADING */
    atomic_bool stale; /* TREE: another step has its name now. Set under the lock */
    bool writable;     /* a native root that may be changed, or a step of its store */
    bool stored;       /* TREE: a step of the store of its root */
    bool is_step;
    atomic_bool removing; /* there is some `removal` */
    struct ckpt_stat st;
    struct opened *opened;

    int64_t checked_ns;       /* DIR, when its listing was: CLOCK_MONOTONIC; 0: look again */
    struct ckpt_store *store; /* DIR that is a native root and may be changed, from the first change on */
    struct ckpt_stages *stages;
    struct ckpt_source *source; /* of a root with stages: for what they call */
    struct removal *removal;    /* TREE of a store: what was removed of it, and is not in a staged copy yet */
    const struct ckpt_format *format;
    const char *inside; /* the checkpoint's name below the directory that it is read from ("" : it is the directory),
                           unless it is stored */
    struct ckpt_backend *files; /* FILES_VIEW, FILE of a step of a store: what it is read from, under `inside` */
    uint32_t content_len;
    bool top_attributes; /* the step of a store that it is was written with attributes of its own directory */
    char *content;       /* CONTROL: its bytes; LINK: its target; TREE that is the top: why it is not there */
    char own[];          /* the path that it was made with, and the name if that does not end it */
};

#define NODE_BUCKETS 16384
#define NODE_INSIDE  ((uint64_t)1 << 40) /* ids from here on name something inside a checkpoint */

struct node_table {
    struct node *by_id[NODE_BUCKETS], *by_name[NODE_BUCKETS], *by_serial[NODE_BUCKETS];
    struct slice *slices[NODE_BUCKETS];
    uint64_t next_id;
    uint32_t next_serial;
};

struct ckpt_source;

/* A name in a directory of the source ("": its top), and the manifest of a step in a root. -ENAMETOOLONG. */
#define SOURCE_PATH 4096
int ckpt_source_join(const char *dir, const char *name, char ret[SOURCE_PATH]) CKPT_MUST_USE;
int ckpt_source_manifest_path(const char *root, const char *step, char ret[SOURCE_PATH]) CKPT_MUST_USE;

struct node *ckpt_node_new(uint64_t parent, const char *path, const char *name, enum node_kind kind,
                           const struct ckpt_stat *st) CKPT_MUST_USE;
/* A path of the step of a store that a node is: where its manifest lies in the source, or (below_store) in the
 * directory of its store. */
#define NODE_PATH 4352
void ckpt_node_manifest(const struct node *n, bool below_store,
                        char ret[NODE_PATH]); /* under the lock: it may be renamed */
/* Under the lock; NULL: out of memory. */
struct opened *ckpt_node_opened(struct node *n);

static inline struct ckpt_backend *node_blob(const struct node *n)
{
    return n->opened ? n->opened->blob : NULL;
}

/* It is the source itself, or was. */
static inline bool node_is_top(const struct node *n)
{
    return n->parent == 0;
}

/* Why there is no checkpoint to be shown where the source is one; NULL: there is. */
static inline const char *node_absence(const struct node *n)
{
    return n->kind == NODE_TREE ? n->content : NULL;
}

/* One thread at a time lists a directory or opens a checkpoint, to the end of the scope. Without the source's lock. */
struct loading {
    struct ckpt_source *src;
    struct node *node;
};
struct loading ckpt_node_load(struct ckpt_source *src, struct node *n);
void ckpt_node_loaded(struct loading *l);
#define NODE_LOADING(src, n)                                                                                           \
    __attribute__((cleanup(ckpt_node_loaded), unused)) struct loading loading = ckpt_node_load(src, n)

/* One that is in no table any more, without the lock. */
void ckpt_node_free(struct ckpt_source *src, struct node *n);

/* Under the lock; NULL: not there. */
struct node *ckpt_node_by_id(struct node_table *t, uint64_t id);
/* The node itself, or the checkpoint in which an id is. */
struct node *ckpt_node_of_id(struct node_table *t, uint64_t id);

/* Under the lock. id: NODE_NEXT: the next one. */
#define NODE_NEXT 0
void ckpt_node_insert(struct node_table *t, struct node *n, uint64_t id);
/* It is not found by its name any more, but still by its id. */
void ckpt_node_unname(struct node_table *t, struct node *n);
/* Take a node that nothing refers to out of the table; the caller frees it. NULL: it stays. */
struct node *ckpt_node_reap(struct ckpt_source *src, struct node *n) CKPT_MUST_USE;

/* `fresh` is the top from now on. The one that was goes on under an id of its own; to be freed if it is returned. Under
 * the lock. */
struct node *ckpt_node_replace_top(struct ckpt_source *src, struct node *fresh) CKPT_MUST_USE;

/* One use less; a node that nothing refers to any more is freed. Without the lock. */
void ckpt_node_release(struct ckpt_source *src, struct node *n);

/* It is a checkpoint that is a file. */
void ckpt_node_set_file(struct node *n);
/* The node that is known already where `fresh`, which is taken over, would be, or that one; with a reference more. e:
 * what is told of a TREE. */
void ckpt_node_keep(struct ckpt_source *src, struct node *fresh, const struct ckpt_entry *e, struct node **ret);
/* The node of a name, found or made, with a reference more. key: what it is known by in its directory, where that is
 * not its name. */
int ckpt_node_take(struct ckpt_source *src, struct node *dir, const char *name, const char *key, enum node_kind kind,
                   const struct ckpt_stat *st, const struct ckpt_entry *e, const char *link,
                   struct node **ret) CKPT_MUST_USE;

/* The step that is known under a name of a root is stale, unless it still has the name on the disk. */
void ckpt_node_replaced(struct ckpt_source *src, struct node *root, const char *name);
/* A committed step of a store has another name: its node, if it is known, goes with it. */
void ckpt_node_rename_step(struct ckpt_source *src, struct node *root, const char *from, const char *to);

/* A slice by its text, found or made, with a reference more of it and of what is inside of its checkpoint. *ret is a
 * copy. */
int ckpt_node_take_slice(struct ckpt_source *src, struct node *n, uint32_t node, bool npy, const char *text,
                         const struct ckpt_selection *sel, struct slice *ret) CKPT_MUST_USE;
/* Under the lock; NULL: not there. */
const struct slice *ckpt_node_slice(const struct node *n, uint32_t number);
void ckpt_node_put_slice(struct node_table *t, struct node *n, uint32_t number, uint64_t count);

#endif
