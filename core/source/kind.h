/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Private to core/source: what each kind of thing that an id names does. A kind is a const table in a file of its own
 * (kind_*.c); the dispatcher (kind.c) holds what an id names, finds the table, and supplies what a member that is NULL
 * would do.
 *
 * The dispatcher finds the tables by the source (src->kinds, from kinds.c), so a kind may use calls that lie above the
 * dispatcher: the files view opens a step by its path in the mount.
 *
 * Threads: all members may run at once, and hold no locks when they are called. t is held by the caller until the call
 * returns. Results are 0 or a count, or a negative errno. -ESTALE: a commit came between, see ckpt_source_retry().
 */
#ifndef CKPT_SOURCE_KIND_H
#define CKPT_SOURCE_KIND_H

#include "core/source/dir.h"
#include "core/source/source.h"

/* The directory that a call wants to change: in a staged step (id, with a reference), or the top of a native root (no
 * id; the root's node is held by top). */
struct place {
    struct ckpt_stages *stages;
    uint64_t id;
    struct target top;
};

/* A file or directory of a staged step, with a reference. */
struct staged_file {
    struct ckpt_stages *stages;
    uint64_t id;
};

struct kind {
    /* A name in a directory; ret->id has a reference more. NULL: -ENOTDIR. */
    int (*lookup)(struct ckpt_source *src, struct target *t, const char *name, struct ckpt_attr *ret,
                  struct ckpt_err *err);
    /* NULL: those of the node. */
    int (*attr)(struct ckpt_source *src, struct target *t, struct ckpt_attr *ret, struct ckpt_err *err);
    /* Opens d->target as a directory, and sets d->next. NULL: -ENOTDIR. */
    int (*open_dir)(struct ckpt_dir *d, bool *ret_immutable, struct ckpt_err *err);
    /* NULL: -EISDIR. Staged files are read by their handles. */
    ssize_t (*read)(struct ckpt_source *src, struct target *t, void *buf, size_t len, uint64_t off,
                    struct ckpt_err *err);
    /* The same bytes handed to give, once. NULL: `read` into a buffer. */
    ssize_t (*give)(struct ckpt_source *src, struct target *t, size_t len, uint64_t off, ckpt_give_fn *give, void *arg,
                    struct ckpt_err *err);
    /* As ckpt_run(); *ret_end is INT64_MAX. NULL: data to the end. */
    int (*run)(struct ckpt_source *src, struct target *t, uint64_t off, uint64_t *ret_end, struct ckpt_err *err);
    /* The name begins with "user.". NULL: -ENODATA. */
    ssize_t (*getxattr)(struct ckpt_source *src, struct target *t, const char *name, const struct ckpt_caller *who,
                        char *buf, size_t len);
    /* NULL: none. */
    ssize_t (*listxattr)(struct ckpt_source *src, struct target *t, char *buf, size_t len);
    /* Makes a note that a name is removed. 1: what is removed lies in a place. NULL: 1. */
    int (*remove)(struct ckpt_source *src, struct target *t, const char *name, bool is_dir,
                  const struct ckpt_caller *who, struct ckpt_err *err);
    /* The place to change for a directory; a committed step is opened for changes. p->top is the target. NULL: -EROFS.
     */
    int (*place)(struct ckpt_source *src, struct place *p, struct ckpt_err *err);
    /* The staged file that is changed in the stead of this one; a committed step is opened for changes. NULL: -EROFS.
     */
    int (*staged)(struct ckpt_source *src, struct target *t, struct staged_file *ret, struct ckpt_err *err);
};

/* --- kinds.c --- */

extern const struct kind *const ckpt_source_kinds[NODE_KINDS]; /* by enum node_kind */

/* --- kind.c: each once, with what the id names now --- */

/* In `ret->uncached` and the like as ckpt_lookup(). */
int ckpt_source_lookup(struct ckpt_source *src, uint64_t parent, const char *name, struct ckpt_attr *ret,
                       struct ckpt_err *err) CKPT_MUST_USE;
int ckpt_source_getattr(struct ckpt_source *src, uint64_t id, struct ckpt_attr *ret,
                        struct ckpt_err *err) CKPT_MUST_USE;
int ckpt_source_opendir(struct ckpt_source *src, uint64_t id, struct ckpt_dir **ret, bool *ret_immutable,
                        struct ckpt_err *err) CKPT_MUST_USE;
ssize_t ckpt_source_getxattr(struct ckpt_source *src, uint64_t id, const char *name, const struct ckpt_caller *who,
                             char *buf, size_t len) CKPT_MUST_USE;
ssize_t ckpt_source_listxattr(struct ckpt_source *src, uint64_t id, char *buf, size_t len) CKPT_MUST_USE;
int ckpt_source_remove(struct ckpt_source *src, uint64_t parent, const char *name, bool is_dir,
                       const struct ckpt_caller *who, struct ckpt_err *err) CKPT_MUST_USE;
/* 0: in a staged step; 1: the top of a root. */
int ckpt_source_find_place(struct ckpt_source *src, uint64_t id, struct place *ret, struct ckpt_err *err) CKPT_MUST_USE;
void ckpt_source_place_clear(struct ckpt_source *src, struct place *p);
int ckpt_source_find_staged(struct ckpt_source *src, uint64_t id, struct staged_file *ret,
                            struct ckpt_err *err) CKPT_MUST_USE;
/* The step that an id is in is opened for changes, whatever of it the id names (a view too). */
int ckpt_source_open_step(struct ckpt_source *src, uint64_t id, struct ckpt_err *err) CKPT_MUST_USE;

/* --- kind_tree.c --- */

/* A name in a directory of a checkpoint itself, whatever staged copy it has. */
int ckpt_source_lookup_view(struct ckpt_source *src, struct node *tree, const char *name, struct ckpt_attr *ret,
                            struct ckpt_err *err) CKPT_MUST_USE;

/* --- kind_staged.c: by the id of something staged --- */

int ckpt_source_staged_lookup(struct ckpt_source *src, uint64_t parent, const char *name, struct ckpt_attr *ret,
                              struct ckpt_err *err) CKPT_MUST_USE;
int ckpt_source_staged_attr(struct ckpt_source *src, uint64_t id, struct ckpt_attr *ret,
                            struct ckpt_err *err) CKPT_MUST_USE;
int ckpt_source_staged_opendir(struct ckpt_dir *d, uint64_t id, struct ckpt_err *err) CKPT_MUST_USE;

/* --- kind_files_view.c --- */

/* A step of the store as a directory of the files view. */
int ckpt_source_step_files(struct ckpt_source *src, struct node *dir, const char *name,
                           struct node **ret) CKPT_MUST_USE;
/* Deletes the step when all of its files were removed. */
int ckpt_source_remove_step_files(struct ckpt_source *src, const char *name, struct ckpt_err *err) CKPT_MUST_USE;
/* Opens d->target, a directory of the files view. */
int ckpt_source_files_view_opendir(struct ckpt_dir *d, struct ckpt_err *err) CKPT_MUST_USE;

/* --- kind_control.c --- */

/* A control file, with what `who` (NULL: anybody) may know: each look-up makes one of its own. */
int ckpt_source_lookup_control(struct ckpt_source *src, const char *name, const struct ckpt_caller *who,
                               struct ckpt_attr *ret, struct ckpt_err *err) CKPT_MUST_USE;

/* --- xattr.c --- */

/* user.ckpt.* of a leaf or directory of a tree. */
ssize_t ckpt_source_tree_getxattr(struct ckpt_source *src, struct target *t, const char *name,
                                  const struct ckpt_caller *who, char *buf, size_t len) CKPT_MUST_USE;
ssize_t ckpt_source_tree_listxattr(struct ckpt_source *src, struct target *t, char *buf, size_t len) CKPT_MUST_USE;
/* The same of an .npy file of a directory. */
ssize_t ckpt_source_npy_getxattr(struct ckpt_source *src, struct target *t, const char *name, char *buf,
                                 size_t len) CKPT_MUST_USE;
ssize_t ckpt_source_npy_listxattr(struct ckpt_source *src, struct target *t, char *buf, size_t len) CKPT_MUST_USE;

/* --- npy.c: an .npy file of a directory as the tree that its views are of --- */

/* The file in a listing that a name with this many bytes of a key could be a view of; file: its name. NULL: none. */
const struct ckpt_entry *ckpt_source_npy_of_key(const struct ckpt_listing *l, const char *name, size_t len,
                                                char file[256]);
/* The node of the tree, which is found under a name that no file has; with a reference. */
int ckpt_source_take_npy(struct ckpt_source *src, struct node *dir, const char *file, const struct ckpt_entry *e,
                         struct node **ret) CKPT_MUST_USE;
/* The tree of a file, entered at its top; -ENODATA for other files. */
int ckpt_source_npy(struct ckpt_source *src, struct node *file, struct target *ret, struct ckpt_err *err) CKPT_MUST_USE;

#endif
