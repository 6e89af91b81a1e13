/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Staged steps: each is a real directory tree below .ckptstore/staging, to which calls like those of the kernel go
 * through. What is in it is known by ids (bit 63 is set) as long as the caller holds references. Content that is stored
 * already is shared by reference files (commit.h); the rest is hashed and encoded in the background as files are
 * closed, so that a commit has little left to do.
 *
 * Internally locked, any thread. Locks, in this order: a step's `freeze` (readers change its tree, the writer commits
 * it), a file's `content` (what its bytes are), the set's `lock` (tables, counts, names; not held across calls that
 * wait for a disk).
 */
#ifndef CKPT_STAGE_STAGE_H
#define CKPT_STAGE_STAGE_H

#include "core/base/caller.h"
#include "core/base/setattr.h"
#include "core/commit/commit.h"

#include <sys/stat.h>

#define CKPT_STAGED ((uint64_t)1 << 63)

struct ckpt_stages;       /* those of one root, in this process */
struct ckpt_stage_handle; /* an open file */

struct ckpt_stage_options {
    double settle;        /* seconds without a change before a step commits by itself */
    bool explicit_commit; /* never by itself */
    bool overwrite;       /* a rename onto a step replaces it */
    unsigned writers,
        writer; /* how many make each step together, and which one this is (from 0); writers 0: this is the only one */
    double commit_timeout; /* seconds that a commit waits for the others */
    bool set_codec;        /* codec is given, whatever the root's configuration says */
    enum ckpt_object_codec codec;
    unsigned threads;
    uint64_t first_id; /* bits that all ids of this set have, bit 63 among them; the low 40 are the set's own */
    /* The root's listing is out of date. name, unless it is NULL: of a step that was committed, deleted or renamed.
     * Called without locks, but of a step that is frozen for its commit, before its staged directory goes. Once too
     * often does no harm. */
    void (*changed)(void *arg, const char *name);
    void (*tick)(void *arg); /* a few times a second, without locks; NULL: nothing to do */
    void *arg;
};

struct ckpt_stage_attr {
    uint64_t id;
    bool copy;      /* of a committed step: what is in it is reached by the step's ids too */
    struct stat st; /* st_ino is the mount's */
};

/* Takes over the staged steps that no living process owns. store and cache are borrowed. */
int ckpt_stages_open(struct ckpt_store *store, struct ckpt_cache *cache, const struct ckpt_stage_options *options,
                     struct ckpt_stages **ret, struct ckpt_err *err) CKPT_MUST_USE;
void ckpt_stages_close(struct ckpt_stages *set);

/* --- steps, by their names at the root --- */
bool ckpt_stage_exists(struct ckpt_stages *set, const char *name);
/* Its top directory, with a reference. -ENOENT. */
int ckpt_stage_ref_step(struct ckpt_stages *set, const char *name, struct ckpt_stage_attr *ret) CKPT_MUST_USE;
int ckpt_stage_each(struct ckpt_stages *set, int (*visit)(void *arg, const char *name, uint64_t ino), void *arg);
/* A new one, empty. -EEXIST. With a reference. */
int ckpt_stage_new(struct ckpt_stages *set, const char *name, mode_t mode, const struct ckpt_caller *who,
                   struct ckpt_stage_attr *ret, struct ckpt_err *err) CKPT_MUST_USE;
/* What was removed of a committed step: bits by the numbers of its manifest's nodes (0: the top). */
struct ckpt_stage_removed {
    uint64_t *nodes; /* those that are gone, what was in them too */
    uint64_t *dirs;  /* directories that are there, and had something removed from them */
    int64_t time_ns; /* CLOCK_REALTIME, of the last removal */
};

/*
 * A copy of a committed step that shares all its leaves, to be changed under the same name. 0 too if there is one
 * already. manifest, id: the step that is meant. -ESTALE: it is not the one that has the name any more. removed: of
 * what is not copied; NULL: all is.
 */
int ckpt_stage_copy(struct ckpt_stages *set, const char *name, struct ckpt_file *manifest, const char *id,
                    const struct ckpt_stage_removed *removed, struct ckpt_err *err) CKPT_MUST_USE;
/* The top directory of the copy of that step, with a reference. -ENOENT. */
int ckpt_stage_ref_copy(struct ckpt_stages *set, const char *name, const char *id,
                        struct ckpt_stage_attr *ret) CKPT_MUST_USE;
bool ckpt_stage_same_step(struct ckpt_stages *set, uint64_t a, uint64_t b);
/* Is something in a staged step that is a copy of that one? */
bool ckpt_stage_is_copy(struct ckpt_stages *set, uint64_t staged, const char *id);

/* --- steps that have been committed: what an id of a staged one, or a committed one that was changed, stands for now
 * --- */

/* Of a file or directory whose staged step was committed, or an alias: the id of the step's manifest, and the path in
 * it. -ESTALE. */
int ckpt_stage_became(struct ckpt_stages *set, uint64_t id, char manifest[CKPT_MANIFEST_ID],
                      struct ckpt_buf *path) CKPT_MUST_USE;
/* The manifest that took the place of this one by the commits of this mount, and its step's name. -ESTALE: nothing is
 * known of it. */
int ckpt_stage_successor(struct ckpt_stages *set, const char *id, char name[CKPT_STEP_NAME + 1],
                         char now[CKPT_MANIFEST_ID]) CKPT_MUST_USE;
/*
 * An id for a directory of that name in what is a directory of a committed step, or was one of a staged step: a kernel
 * that finds one directory below two others takes it for moved, and fails where it cannot move it. Every call of this
 * id is -ESTALE; ckpt_stage_became() says what it stands for.
 */
int ckpt_stage_alias(struct ckpt_stages *set, uint64_t dir, const char *name, uint64_t *ret) CKPT_MUST_USE;
/* A committed step has another name. */
void ckpt_stage_renamed(struct ckpt_stages *set, const char *from, const char *to);
/* The caller has looked it up, and will open or change it next: its step does not commit before that, or before a
 * second has passed. -ESTALE: it is committed already. */
int ckpt_stage_await(struct ckpt_stages *set, uint64_t id, const struct ckpt_caller *who) CKPT_MUST_USE;
/* Something was deleted from the store without a staged step: its room is wanted back soon. */
void ckpt_stages_tidy(struct ckpt_stages *set);
/* Somebody has changed it. */
void ckpt_stage_touched(struct ckpt_stages *set, const char *name, const struct ckpt_caller *who);
/* Of a step that is a directory without entries: it goes, and with it the committed step that it was a copy of. */
int ckpt_stage_remove(struct ckpt_stages *set, const char *name, struct ckpt_err *err) CKPT_MUST_USE;
/* Under another name; a step's name commits it. */
int ckpt_stage_rename(struct ckpt_stages *set, const char *from, const char *to, const struct ckpt_caller *who,
                      struct ckpt_err *err) CKPT_MUST_USE;
int ckpt_stage_commit(struct ckpt_stages *set, const char *name, const struct ckpt_caller *who,
                      struct ckpt_err *err) CKPT_MUST_USE;

/*
 * The root's own directory, as if it were a step that never commits: what other libraries save there becomes a foreign
 * step when they rename it. Its bytes are never shared with the store, which is not seen in it. With a reference.
 */
int ckpt_stage_ref_files_view(struct ckpt_stages *set, struct ckpt_stage_attr *ret) CKPT_MUST_USE;
bool ckpt_stage_is_files_view(struct ckpt_stages *set, uint64_t id);
/* Is this a name in that directory that is not seen? */
bool ckpt_stage_hides(struct ckpt_stages *set, uint64_t dir, const char *name);

/* --- what is in them: -ESTALE for what belongs to a step that has been committed or removed --- */
int ckpt_stage_lookup(struct ckpt_stages *set, uint64_t parent, const char *name,
                      struct ckpt_stage_attr *ret) CKPT_MUST_USE;
/* One more reference, to be forgotten. */
int ckpt_stage_ref(struct ckpt_stages *set, uint64_t id) CKPT_MUST_USE;
void ckpt_stage_forget(struct ckpt_stages *set, uint64_t id, uint64_t count);
/* Of a file that is open also when its step has ended. */
int ckpt_stage_getattr(struct ckpt_stages *set, uint64_t id, struct ckpt_stage_attr *ret) CKPT_MUST_USE;
/* Has the step of this file or directory been committed, or removed? */
bool ckpt_stage_ended(struct ckpt_stages *set, uint64_t id);

/* what: which members of st, CKPT_ATTR_*. tv_nsec of a time may be UTIME_NOW. */
int ckpt_stage_setattr(struct ckpt_stages *set, uint64_t id, const struct stat *st, unsigned what,
                       const struct ckpt_caller *who, struct ckpt_stage_attr *ret) CKPT_MUST_USE;
int ckpt_stage_mkdir(struct ckpt_stages *set, uint64_t parent, const char *name, mode_t mode,
                     const struct ckpt_caller *who, struct ckpt_stage_attr *ret) CKPT_MUST_USE;
int ckpt_stage_create(struct ckpt_stages *set, uint64_t parent, const char *name, mode_t mode, int flags,
                      const struct ckpt_caller *who, struct ckpt_stage_attr *ret,
                      struct ckpt_stage_handle **ret_handle) CKPT_MUST_USE;
int ckpt_stage_unlink(struct ckpt_stages *set, uint64_t parent, const char *name, bool dir,
                      const struct ckpt_caller *who) CKPT_MUST_USE;
/* Within one step; -EXDEV between two. flags: RENAME_NOREPLACE, RENAME_EXCHANGE. */
int ckpt_stage_move(struct ckpt_stages *set, uint64_t parent, const char *name, uint64_t new_parent,
                    const char *new_name, unsigned flags, const struct ckpt_caller *who) CKPT_MUST_USE;
int ckpt_stage_link(struct ckpt_stages *set, uint64_t id, uint64_t parent, const char *name,
                    const struct ckpt_caller *who, struct ckpt_stage_attr *ret) CKPT_MUST_USE;
/* A new file that is a leaf of a committed step once more, with all that is known of it. */
int ckpt_stage_link_stored(struct ckpt_stages *set, const struct ckpt_manifest_node *node, uint64_t parent,
                           const char *name, const struct ckpt_caller *who, struct ckpt_stage_attr *ret) CKPT_MUST_USE;

/* --- files --- */
int ckpt_stage_open(struct ckpt_stages *set, uint64_t id, int flags, const struct ckpt_caller *who,
                    struct ckpt_stage_handle **ret) CKPT_MUST_USE;
void ckpt_stage_release(struct ckpt_stage_handle *h);
ssize_t ckpt_stage_read(struct ckpt_stage_handle *h, void *buf, size_t len, uint64_t off) CKPT_MUST_USE;
/*
 * For a page cache, which asks for whole pages up to the file's end. It learns that the file was cut a little after
 * that was done, and would show zeros where it gets nothing. So it gets what was there, if it asks for pages behind the
 * end.
 */
ssize_t ckpt_stage_read_cached(struct ckpt_stage_handle *h, void *buf, size_t len, uint64_t off) CKPT_MUST_USE;
/* Are there data at off (1), or a hole (0)? Either way up to *ret_end, or longer. */
int ckpt_stage_run(struct ckpt_stage_handle *h, uint64_t off, uint64_t *ret_end) CKPT_MUST_USE;
ssize_t ckpt_stage_write(struct ckpt_stage_handle *h, const void *buf, size_t len, uint64_t off,
                         const struct ckpt_caller *who) CKPT_MUST_USE;
int ckpt_stage_allocate(struct ckpt_stage_handle *h, int mode, uint64_t off, uint64_t len,
                        const struct ckpt_caller *who) CKPT_MUST_USE;
/* All of a committed leaf, or of another staged file, was copied to it: so is what is told of its content. */
int ckpt_stage_keep_told(struct ckpt_stage_handle *h, const struct ckpt_manifest_node *n) CKPT_MUST_USE;
int ckpt_stage_copy_told(struct ckpt_stage_handle *from, struct ckpt_stage_handle *to) CKPT_MUST_USE;
/* Make an empty file that is open for writing the same as stored content. -EXDEV: it is not empty, or the kernel writes
 * to it; copy the bytes. */
int ckpt_stage_share(struct ckpt_stage_handle *h, const struct ckpt_ref *ref,
                     const struct ckpt_caller *who) CKPT_MUST_USE;
/* What a staged file has of stored content; 1, or 0 when it has bytes of its own. Else it cannot be read. */
int ckpt_stage_handle_ref(struct ckpt_stage_handle *h, struct ckpt_ref *ret);
/* A descriptor of it is being closed: wait a little while much of its step is under way, so that a commit does not find
 * much left to do (a rename that commits keeps the kernel from listing the root). */
void ckpt_stage_flush(struct ckpt_stage_handle *h);
int ckpt_stage_fsync(struct ckpt_stage_handle *h) CKPT_MUST_USE;
/* Of a directory; of a step's own that has a step's name it is the commit. */
int ckpt_stage_fsyncdir(struct ckpt_stages *set, uint64_t id, const struct ckpt_caller *who,
                        struct ckpt_err *err) CKPT_MUST_USE;
/* The kernel reads and writes the file itself from now on: that it was changed is taken for granted. Whoever calls this
 * ignores SIGIO. */
void ckpt_stage_handle_kernel_writes(struct ckpt_stage_handle *h);
/* A descriptor (O_PATH, so that it does not count as a use) of the file that holds the bytes, for as long as the handle
 * is open; -1 if the kernel must not have it. */
int ckpt_stage_handle_fd(const struct ckpt_stage_handle *h);

/* --- directories: a descriptor to read entries from (fdopendir), to be closed --- */
int ckpt_stage_opendir(struct ckpt_stages *set, uint64_t id, int *ret_fd) CKPT_MUST_USE;
/* Inode number of an entry as the mount shows it. */
uint64_t ckpt_stage_ino(const struct ckpt_stages *set, dev_t dev, ino_t ino);

/* --- attributes --- */
ssize_t ckpt_stage_getxattr(struct ckpt_stages *set, uint64_t id, const char *name, const struct ckpt_caller *who,
                            char *buf, size_t len) CKPT_MUST_USE;
ssize_t ckpt_stage_listxattr(struct ckpt_stages *set, uint64_t id, char *buf, size_t len) CKPT_MUST_USE;
int ckpt_stage_setxattr(struct ckpt_stages *set, uint64_t id, const char *name, const void *value, size_t len,
                        int flags, const struct ckpt_caller *who) CKPT_MUST_USE;
int ckpt_stage_removexattr(struct ckpt_stages *set, uint64_t id, const char *name,
                           const struct ckpt_caller *who) CKPT_MUST_USE;

#endif
