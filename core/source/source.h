/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Private to core/source: the source, and how its nodes, what is inside of checkpoints and staged steps share one space
 * of ids.
 *
 * An id below 2^40 is a node of the source. Others name something inside a checkpoint: 23 bits which (the serial of its
 * node), 8 bits how it is viewed, 32 bits the tree's node, or the number of a slice. Ids with bit 63 are of staged
 * steps: 23 bits which root's, and 40 bits of its own (core/stage/stage.h).
 *
 * Locks, in this order: loading a node (NODE_LOADING: one at a time, held while its listing or tree is read; of a tree
 * that is a leaf of another one first, then of that one), then look_lock, then src->lock (tables, counts, pointers;
 * never held across input or output).
 */
#ifndef CKPT_SOURCE_SOURCE_H
#define CKPT_SOURCE_SOURCE_H

#include "core/ckpt.h"
#include "core/source/listing.h"
#include "core/source/node.h"
#include "core/stage/stage.h"
#include "core/tree/key.h"
#include "core/view/view.h"

#define CKPT_CONTROL    2 /* the id of .ckptfs */
#define CKPT_FILES_VIEW 3 /* of .files */

#define CKPT_SETS 256 /* of native roots with staged steps */

/* A thread that was told to look a path up again, to change what it finds, or to read it. */
struct source_told {
    pid_t thread;
    bool change;
    int64_t until_ns; /* CLOCK_MONOTONIC */
};
#define SOURCE_TOLD 64

struct kind;

struct ckpt_source {
    const struct kind *const *kinds; /* by enum node_kind; see kind.h */
    struct ckpt_backend *backend;
    struct ckpt_options opt;
    char *spill_dir;
    char *path;
    char *file; /* the source is a file: its name */
    int place;  /* the source's directory, or that of the file: its path may lead to the mount by now */
    struct ckpt_pool *pool;
    struct ckpt_cache *cache;
    struct ckpt_views views;
    pthread_mutex_t lock;
    pthread_cond_t loaded; /* a node that somebody listed, or opened */
    struct node_table nodes;
    struct opened *newest, *oldest; /* checkpoints that have pins, by their last use */
    uint64_t trees, tree_bytes;     /* as of the last count, and what was opened since */
    unsigned since_count;
    unsigned kept_files;
    atomic_uint removals; /* nodes of which something is removed */
    struct source_told told[SOURCE_TOLD];
    atomic_int_fast64_t told_until_ns; /* the last of them */
    struct node *root;         /* of a checkpoint that is the source, another one when that is replaced (top.c) */
    pthread_mutex_t look_lock; /* held while it is looked what has the source's name */
    struct ckpt_listing *top;  /* what was there at the last look; NULL: the source is no checkpoint */
    atomic_int_fast64_t looked_ns;
    struct node *sets[CKPT_SETS]; /* native roots with staged steps, by the number in their ids */
    unsigned set_count;
    bool closing;
    bool lazy; /* the source was an empty directory: the first step makes it a native root */
    atomic_uint_fast64_t lookups, getattrs, readdirs, reads, bytes_read;
};

/* A checkpoint's tree, opened if need be; unref it. */
int ckpt_source_tree(struct ckpt_source *src, struct node *n, struct ckpt_tree **ret,
                     struct ckpt_err *err) CKPT_MUST_USE;
/* A directory's listing, not older than the refresh time; unref it. */
int ckpt_source_listing(struct ckpt_source *src, struct node *n, struct ckpt_listing **ret,
                        struct ckpt_err *err) CKPT_MUST_USE;

/* opened.c: it is no more among those that have pins. Under the lock, or when nobody else knows its node. */
void ckpt_source_unlink_opened(struct ckpt_source *src, struct opened *o);

/* What an id names. Until ckpt_source_done, the node does not go away, and the tree (NULL unless inside of one) is
 * open. */
struct target {
    uint64_t id;
    const struct kind *kind;
    struct ckpt_stages *stages; /* of a staged id alone, which has nothing of what follows */
    struct node *node;
    struct ckpt_tree *tree;
    struct ckpt_viewed file; /* inside a tree; for its top directory the node itself is named */
    const struct slice *slice;
};

/* Not of a staged id, which is -ESTALE: kind.c holds those. */
int ckpt_source_target(struct ckpt_source *src, uint64_t id, struct target *ret, struct ckpt_err *err) CKPT_MUST_USE;
void ckpt_source_done(struct ckpt_source *src, struct target *t);

/* The node of the tree that an id stands for, where it is a directory or leaf of one; opens the tree when the id is a
 * checkpoint's. */
int ckpt_source_enter(struct ckpt_source *src, struct target *t, uint32_t *ret_node,
                      struct ckpt_err *err) CKPT_MUST_USE;

/* -ESTALE if a checkpoint that is a file has been written to since its tree was made from it: what was read may be
 * anything. */
int ckpt_source_unchanged(struct ckpt_source *src, const struct node *n, struct ckpt_err *err) CKPT_MUST_USE;

/* blob.c: a backend whose only file is a leaf of a tree, as it is listed. Takes over a reference that a look-up of the
 * id gave; NULL: no memory, and nothing is taken. */
struct ckpt_backend *ckpt_source_blob(struct ckpt_source *src, uint64_t id, const char *name,
                                      const struct ckpt_stat *st);

/* roots.c: the staged steps of a native root; -EROFS where there can be none. */
int ckpt_source_stages(struct ckpt_source *src, struct node *n, struct ckpt_stages **ret,
                       struct ckpt_err *err) CKPT_MUST_USE;

/* The root's listing is out of date. name: of a step that has another manifest, or none; NULL: of none. */
void ckpt_source_root_changed(void *arg, const char *name);

/* The source's own directory on disk of a node, to be freed. */
char *ckpt_source_disk_path(const struct ckpt_source *src, const struct node *n);

/* The set that an id of a staged step belongs to. */
struct ckpt_stages *ckpt_source_set(struct ckpt_source *src, uint64_t id);
void ckpt_source_attr_of_stage(const struct ckpt_stage_attr *a, struct ckpt_attr *ret);
#define SOURCE_SET_SHIFT 40 /* where an id of something staged has the number of its root's set */
static inline unsigned source_set_number(uint64_t id)
{
    return id >> SOURCE_SET_SHIFT & 0x7fffff;
}

/* --- copy.c --- */

/* The root that a tree is a step of, where that is a native one that has staged steps; NULL. */
struct node *ckpt_source_root_of(struct ckpt_source *src, const struct node *tree);
/* A step may be renamed at any time. */
void ckpt_source_step_name(struct ckpt_source *src, const struct node *n, char ret[CKPT_NAME_MAX + 1]);
/* Calls visit with each name on the way from the top of a tree to a node. A nonzero result ends that and is returned.
 */
int ckpt_source_each_name(const struct ckpt_tree *tree, uint32_t node, int (*visit)(void *arg, const char *name),
                          void *arg) CKPT_MUST_USE;
/* The file or directory that stands for one of a committed step, in the staged copy of it that this process has: 1 and
 * its id with a reference; 0: there is no copy. -ENOENT: it was removed in the copy. */
int ckpt_source_copied(struct ckpt_source *src, struct target *t, uint64_t *ret) CKPT_MUST_USE;
int ckpt_source_find_copy(struct ckpt_source *src, struct node *root, struct target *t, uint64_t *ret) CKPT_MUST_USE;
/* The same, the step opened for changes if it is not. -ESTALE: it has been committed again, or is not the step of its
 * name any more. */
int ckpt_source_open_copy(struct ckpt_source *src, struct target *t, struct ckpt_stages **ret_stages, uint64_t *ret,
                          struct ckpt_err *err) CKPT_MUST_USE;
/* Make the staged copy of a committed step, without what was removed of it. 0 too if there is one. -ESTALE: another
 * step has its name. */
int ckpt_source_copy_step(struct ckpt_source *src, struct node *root, struct node *n,
                          struct ckpt_err *err) CKPT_MUST_USE;
/* The same of all steps of a root of which nothing more was removed for so many seconds; a negative number: of all of
 * them, now. */
void ckpt_source_settle_removals(struct ckpt_source *src, struct node *root, double seconds);
/* What the store has of a committed file; clear it. -EXDEV where it is not of a store, or only another rendering. */
int ckpt_source_record_of(struct ckpt_source *src, uint64_t id, struct ckpt_manifest_node *ret) CKPT_MUST_USE;

/* --- retry.c --- */

/* What stands for a file or directory of a step that this mount has committed since: staged or committed, with a
 * reference. -ESTALE: nothing does, or the step was not committed. */
int ckpt_source_again(struct ckpt_source *src, uint64_t id, struct ckpt_attr *ret) CKPT_MUST_USE;
/*
 * The id of a directory that was found in, or below the place of, a directory that the kernel knows by another id than
 * the staged one: the kernel is told an id that it sees below that one alone.
 */
void ckpt_source_own_id(struct ckpt_source *src, uint64_t parent, const char *name, struct ckpt_attr *ret);
/* A call of what an id names, or two, made again where that is now when a commit came between. other: 0 where there is
 * none. */
typedef int source_at_fn(struct ckpt_source *src, uint64_t id, uint64_t other, void *arg, struct ckpt_err *err);
int ckpt_source_retry(struct ckpt_source *src, uint64_t id, uint64_t other, source_at_fn *call, void *arg,
                      struct ckpt_err *err) CKPT_MUST_USE;

/* The inode number of something inside a checkpoint. */
uint64_t ckpt_source_inner_ino(const struct node *n, uint32_t node, enum ckpt_view view);

/* attr.c: the mode of a node as it is shown; what all attributes of and in a node begin with; the node's own, under the
 * source's lock, or not. */
uint32_t ckpt_source_shown_mode(const struct node *n);
void ckpt_source_common_attr(const struct node *n, uint64_t id, struct ckpt_attr *ret);
void ckpt_source_node_attr(const struct node *n, struct ckpt_attr *ret);
void ckpt_source_attr_of_node(struct ckpt_source *src, const struct node *n, struct ckpt_attr *ret);
/* Of a file or directory of the source as they are on the disk now. */
int ckpt_source_outer_attr(struct ckpt_source *src, struct target *t, struct ckpt_attr *ret,
                           struct ckpt_err *err) CKPT_MUST_USE;
/* Who may read a node of a target's tree; whole: and all that is in it. */
int ckpt_source_rights(const struct target *t, uint32_t node, bool whole, struct ckpt_rights *ret,
                       struct ckpt_err *err) CKPT_MUST_USE;

/* The staged steps of the source, where it is a native root that is written; NULL. */
static inline struct ckpt_stages *source_stages(const struct ckpt_source *src)
{
    return src->top ? NULL : src->root->stages; /* a checkpoint that is the top may be freed meanwhile */
}

/* A name directly under the mount's top that belongs to the mount. */
bool ckpt_source_is_reserved(uint64_t parent, const char *name);

/* What a link of the source says; -ENOENT where following it, here or from the mount, would lead outside. */
int ckpt_source_link_target(struct ckpt_source *src, const char *path, char *buf, size_t len) CKPT_MUST_USE;

/* files.c: who may read all that is laid out as files. */
int ckpt_source_files_rights(const struct ckpt_files *f, struct ckpt_rights *ret, struct ckpt_err *err) CKPT_MUST_USE;

/* removal.c: what was removed of a checkpoint is in a copy, or will not go. Under the source's lock. */
void ckpt_source_forget_removal(struct ckpt_source *src, struct node *n);

/* control.c: the text of a control file, with what `who` (NULL: anybody) can list of the source; -ENOENT. */
int ckpt_source_control(struct ckpt_source *src, const char *name, const struct ckpt_caller *who, uint8_t **ret,
                        size_t *ret_len, struct ckpt_err *err) CKPT_MUST_USE;
extern const char *const ckpt_source_control_names[]; /* NULL-terminated */

/* What is not found may only not have been opened. shortages: ckpt_shortages() before. */
static inline int source_absent(int r, unsigned shortages)
{
    return r == -ENOENT && ckpt_shortages() != shortages ? -EMFILE : r;
}

#endif
