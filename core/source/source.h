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
 * that is a leaf of another one first, then of that one), then src->lock (tables, counts, pointers; never held across
 * input or output).
 */
#ifndef CKPT_SOURCE_SOURCE_H
#define CKPT_SOURCE_SOURCE_H

#include "core/ckpt.h"
#include "core/source/listing.h"
#include "core/source/node.h"
#include "core/stage/stage.h"
#include "core/tree/key.h"
#include "core/view/view.h"

#define CKPT_CONTROL 2 /* the id of .ckptfs */
#define CKPT_FACE    3 /* of .files */

#define CKPT_SETS 256 /* of native roots with staged steps */

/* A thread that was told to look a path up again, to change what it finds, or to read it. */
struct source_told {
    pid_t thread;
    bool change;
    int64_t until_ns; /* CLOCK_MONOTONIC */
};
#define SOURCE_TOLD 64

struct ckpt_source {
    struct ckpt_backend *backend;
    struct ckpt_options opt;
    char *spill_dir;
    char *path;
    char *file; /* the source is a file: its name */
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
    struct node *root;
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
    struct node *node;
    struct ckpt_tree *tree;
    struct ckpt_viewed file; /* inside a tree; for its top directory the node itself is named */
    const struct slice *slice;
};
int ckpt_source_target(struct ckpt_source *src, uint64_t id, struct target *ret, struct ckpt_err *err) CKPT_MUST_USE;
void ckpt_source_done(struct ckpt_source *src, struct target *t);
/* The node of the tree that an id stands for, where it is a directory or leaf of one; opens the tree when the id is a
 * checkpoint's. */
int ckpt_source_enter(struct ckpt_source *src, struct target *t, uint32_t *ret_node,
                      struct ckpt_err *err) CKPT_MUST_USE;
/* The tree that an .npy file of a directory is when it is looked at as an array, entered at its top; -ENODATA for other
 * files. */
int ckpt_source_npy(struct ckpt_source *src, struct node *file, struct target *ret, struct ckpt_err *err) CKPT_MUST_USE;

/* -ESTALE if a checkpoint that is a file has been written to since its tree was made from it: what was read may be
 * anything. */
int ckpt_source_unchanged(struct ckpt_source *src, const struct node *n, struct ckpt_err *err) CKPT_MUST_USE;
/* blob.c: a backend whose only file is a leaf of a tree, as it is listed. Takes over a reference that a look-up of the
 * id gave; NULL: no memory, and nothing is taken. */
struct ckpt_backend *ckpt_source_blob(struct ckpt_source *src, uint64_t id, const char *name,
                                      const struct ckpt_stat *st);

/* write.c: the staged steps of a native root; -EROFS where there can be none. */
int ckpt_source_stages(struct ckpt_source *src, struct node *n, struct ckpt_stages **ret,
                       struct ckpt_err *err) CKPT_MUST_USE;
/* The name of the best step of a native root, to be freed; NULL. */
char *ckpt_source_best_step(struct ckpt_source *src, struct node *n);
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
/* The file or directory that stands for one of a committed step, in the staged copy of it that this process has: 1 and
 * its id with a reference; 0: there is no copy. -ENOENT: it was removed in the copy. */
int ckpt_source_copied(struct ckpt_source *src, struct target *t, uint64_t *ret) CKPT_MUST_USE;
int ckpt_source_find_copy(struct ckpt_source *src, struct node *root, struct target *t, uint64_t *ret) CKPT_MUST_USE;
/* The same, the step opened for changes if it is not. -ESTALE: it has been committed again, or is not the step of its
 * name any more. */
int ckpt_source_open_copy(struct ckpt_source *src, struct target *t, struct ckpt_stages **ret_stages, uint64_t *ret,
                          struct ckpt_err *err) CKPT_MUST_USE;
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
/* ckpt_lookup of what the id itself names. */
int ckpt_source_lookup(struct ckpt_source *src, uint64_t parent, const char *name, struct ckpt_attr *ret,
                       struct ckpt_err *err) CKPT_MUST_USE;

/* The inode number of something inside a checkpoint. */
uint64_t ckpt_source_inner_ino(const struct node *n, uint32_t node, enum ckpt_view view);
/* attr.c: the mode of a node as it is shown; its attributes, under the source's lock; those of what is inside of a
 * checkpoint, as `id`. */
uint32_t ckpt_source_shown_mode(const struct node *n);
void ckpt_source_node_attr(const struct node *n, struct ckpt_attr *ret);
int ckpt_source_inner_attr(struct ckpt_source *src, const struct target *t, uint64_t id, struct ckpt_attr *ret,
                           struct ckpt_err *err) CKPT_MUST_USE;
/* Who may read a node of a target's tree; whole: and all that is in it. */
int ckpt_source_rights(const struct target *t, uint32_t node, bool whole, struct ckpt_rights *ret,
                       struct ckpt_err *err) CKPT_MUST_USE;
/* A name directly under the mount's top that belongs to the mount. */
bool ckpt_source_is_reserved(uint64_t parent, const char *name);
/* What a link of the source says; -ENOENT where following it, here or from the mount, would lead outside. */
int ckpt_source_link_target(struct ckpt_source *src, const char *path, char *buf, size_t len) CKPT_MUST_USE;

/* files.c: who may read all that is laid out as files. */
int ckpt_source_files_rights(const struct ckpt_files *f, struct ckpt_rights *ret, struct ckpt_err *err) CKPT_MUST_USE;
/* face.c: what is in a directory of the files face. */
int ckpt_source_face_lookup(struct ckpt_source *src, struct node *dir, const char *name,
                            struct node **ret) CKPT_MUST_USE;
/* The same of a step of the store that lies there. */
int ckpt_source_face_step(struct ckpt_source *src, struct node *dir, const char *name, struct node **ret) CKPT_MUST_USE;
/* Note that a file or directory of such a step is removed; 1: it is not in one. And the step itself, when nothing is
 * left in it. */
int ckpt_source_face_remove(struct ckpt_source *src, uint64_t parent, const char *name, bool is_dir,
                            struct ckpt_err *err) CKPT_MUST_USE;
int ckpt_source_face_remove_step(struct ckpt_source *src, const char *name, struct ckpt_err *err) CKPT_MUST_USE;
typedef int source_name_fn(void *arg, const char *name, uint64_t ino, enum ckpt_type type);
int ckpt_source_face_each(struct ckpt_source *src, struct node *dir, source_name_fn *each, void *arg) CKPT_MUST_USE;
int ckpt_source_face_steps(struct ckpt_source *src, struct node *dir, source_name_fn *each, void *arg) CKPT_MUST_USE;

/* removal.c: note that a name in a committed step is removed. 1: it is not in one, or that has a staged copy. -ESTALE:
 * the step has been replaced. */
int ckpt_source_remove(struct ckpt_source *src, uint64_t parent, const char *name, bool is_dir,
                       const struct ckpt_caller *who, struct ckpt_err *err) CKPT_MUST_USE;
bool ckpt_source_is_removed(struct ckpt_source *src, struct node *n, uint32_t node);
/* Is nothing left in a directory? */
bool ckpt_source_is_emptied(struct ckpt_source *src, struct node *n, const struct ckpt_tree *tree, uint32_t dir);
/* A directory's time is that of the last removal, if something was removed from it. */
void ckpt_source_removal_times(struct ckpt_source *src, struct node *n, uint32_t dir, struct ckpt_attr *attr);
/* Make the staged copy of a committed step, without what was removed of it. 0 too if there is one. -ESTALE: another
 * step has its name. */
int ckpt_source_copy_step(struct ckpt_source *src, struct node *root, struct node *n,
                          struct ckpt_err *err) CKPT_MUST_USE;
/* The same of all steps of a root of which nothing more was removed for so many seconds; a negative number: of all of
 * them, now. */
void ckpt_source_settle_removals(struct ckpt_source *src, struct node *root, double seconds);
void ckpt_source_forget_removal(struct ckpt_source *src, struct node *n); /* under the source's lock */

/* lookup.c: a control file, with that text: each look-up makes one of its own. */
int ckpt_source_lookup_control(struct ckpt_source *src, const char *name, const struct ckpt_caller *who,
                               struct ckpt_attr *ret, struct ckpt_err *err) CKPT_MUST_USE;
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
