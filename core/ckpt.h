/* SPDX-License-Identifier: Apache-2.0 */
/*
 * libckptfs: checkpoints as a tree of files, without FUSE. A source is opened; its files are found by name from the top
 * down, and known by an id as long as the caller holds a reference to it. What the names and bytes mean is in
 * docs/using.md, writing.md and reference.md.
 *
 * Threads: everything may be called at once. Ownership: ckpt_lookup takes a reference to the id that it returns,
 * ckpt_forget gives references back; an id may be used while the caller holds a reference. CKPT_ROOT needs none.
 * Errors: 0 (or a count) or a negative errno, with a sentence in *err (which may be NULL).
 */
#ifndef CKPT_H
#define CKPT_H

#include "core/base/caller.h"
#include "core/base/err.h"
#include "core/base/log.h"
#include "core/base/setattr.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>
#include <sys/uio.h>

#define CKPT_ROOT 1

struct ckpt_source;
struct ckpt_dir;

struct ckpt_options {
    uint64_t cache;        /* bytes of decoded chunks in memory */
    uint64_t spill;        /* bytes of decoded chunks in spill files */
    const char *spill_dir; /* NULL: $TMPDIR, or /var/tmp */
    double refresh;        /* seconds after which the source is looked at again */
    unsigned threads;      /* that decode; 0: one a processor */
    const char
        *hidden; /* a path that is not part of the source though it lies there: where it will be mounted; NULL: none */
    bool flat;   /* names that formats join with dots are kept whole, not split into directories */
    bool follow; /* links that lead out of the source are followed */
    bool write;  /* native roots may be changed; an empty directory becomes one */
    double settle;         /* seconds without a change after which a staged step commits by itself */
    bool explicit_commit;  /* it never does */
    unsigned writers;      /* how many mounts write each step together, at most 65,536; 0: this one alone */
    unsigned writer;       /* the number of this one: from 0, or from 1, to writers */
    double commit_timeout; /* seconds that a commit waits for the other writers */
    bool overwrite;        /* renaming a step onto another one replaces that */
    const char *codec;     /* of what is written: auto, none, lz4, blosc; NULL: as the root is configured */
};
#define CKPT_OPTIONS_INIT                                                                                              \
    {                                                                                                                  \
        .cache = 128 << 20, .spill = (uint64_t)8 << 30, .refresh = 1.0, .settle = 2.0, .commit_timeout = 300           \
    }

enum ckpt_type { CKPT_FILE, CKPT_DIR, CKPT_LINK };
/* What a file inside of a checkpoint is; NO_LEAF: it is in none, or is a view. */
enum ckpt_leaf { CKPT_NO_LEAF, CKPT_LEAF_ARRAY, CKPT_LEAF_VALUE, CKPT_LEAF_BLOB };

#define CKPT_NLINK_UNKNOWN UINT32_MAX

struct ckpt_attr {
    uint64_t id;  /* for the calls below */
    uint64_t ino; /* stable for the life of the source: the same file has the same, another file another */
    enum ckpt_type type;
    enum ckpt_leaf leaf;
    uint64_t size;   /* bytes as read */
    uint64_t stored; /* bytes in the source */
    int64_t mtime_ns, atime_ns, ctime_ns;
    uint32_t nlink;          /* of a staged file; else CKPT_NLINK_UNKNOWN */
    uint32_t mode, uid, gid; /* permission bits and owner, as of the checkpoint's directory or the file in the source */
    bool staged;             /* part of a staged step: only this process changes it */
    bool uncached; /* the name may be another file's at once: the directory of a staged step, `latest` of a root that is
                      written */
    bool immutable; /* part of a committed step: neither it nor its bytes ever change */
    bool snapshot;  /* made for this look-up alone: the next one is another file */
    bool view;      /* another rendering of something: never listed under this name */
};

/* -EUCLEAN and the like: the source is itself a checkpoint, and a bad one; -ENOENT, -EACCES...: it cannot be reached.
 */
int ckpt_source_open(const char *path, const struct ckpt_options *options, struct ckpt_source **ret,
                     struct ckpt_err *err);
void ckpt_source_close(struct ckpt_source *src);

int ckpt_lookup(struct ckpt_source *src, uint64_t parent, const char *name, struct ckpt_attr *ret,
                struct ckpt_err *err);
/* From an id, name by name; "" is the id itself. A link at the end is followed where it stays inside. */
int ckpt_walk(struct ckpt_source *src, uint64_t from, const char *path, struct ckpt_attr *ret, struct ckpt_err *err);
void ckpt_forget(struct ckpt_source *src, uint64_t id, uint64_t count);
int ckpt_getattr(struct ckpt_source *src, uint64_t id, struct ckpt_attr *ret, struct ckpt_err *err);
/* NUL-terminated. */
int ckpt_readlink(struct ckpt_source *src, uint64_t id, char *buf, size_t len);
/* Bytes read; fewer than len only at the end. */
ssize_t ckpt_read(struct ckpt_source *src, uint64_t id, void *buf, size_t len, uint64_t off, struct ckpt_err *err);
/* Are there data at off (1), or zeros that need not be read (0)? Either way up to *ret_end, or longer; it may lie
 * behind the end of the file. */
int ckpt_run(struct ckpt_source *src, uint64_t id, uint64_t off, uint64_t *ret_end, struct ckpt_err *err);

/* The same without a buffer of the caller's: the bytes are handed to give(arg, iov, count), once, where they lie. A
 * negative result of give is returned. */
ssize_t ckpt_read_to(struct ckpt_source *src, uint64_t id, size_t len, uint64_t off,
                     int (*give)(void *arg, const struct iovec *iov, int count), void *arg, struct ckpt_err *err);

/* A file that is a pointer of Git LFS, in the place of one that was not fetched. */
bool ckpt_is_lfs_pointer(struct ckpt_source *src, const struct ckpt_attr *file);

/* An open directory is a snapshot of its names. immutable: the list never changes. */
int ckpt_opendir(struct ckpt_source *src, uint64_t id, struct ckpt_dir **ret, bool *ret_immutable,
                 struct ckpt_err *err);
void ckpt_closedir(struct ckpt_dir *dir);
struct ckpt_dirent {
    char name[256];
    enum ckpt_type type;
    uint64_t ino;
    uint64_t next; /* position behind this entry */
};
/* True for a directory inside of a checkpoint: its names are all there, also of leaves that cannot be looked up. */
bool ckpt_dir_in_tree(const struct ckpt_dir *dir);
/* True for a root that is written: its names are looked up anew each time, so that what a listing says of them is of no
 * use. */
bool ckpt_dir_is_uncached(const struct ckpt_dir *dir);
/* What is listed: the id that was opened, or that of the staged copy which stands for it. */
uint64_t ckpt_dir_id(const struct ckpt_dir *dir);
/* The entry at a position (0: the first): 1, or 0 at the end. */
int ckpt_readdir(struct ckpt_dir *dir, uint64_t pos, struct ckpt_dirent *ret);

/* Extended attributes: the value's length. -ENODATA: there is none of that name. who (NULL: anybody): why a step fails
 * is told in full only to those who may look at all that it says. */
ssize_t ckpt_getxattr(struct ckpt_source *src, uint64_t id, const char *name, const struct ckpt_caller *who, char *buf,
                      size_t len);
/* The names, each with its NUL. */
ssize_t ckpt_listxattr(struct ckpt_source *src, uint64_t id, char *buf, size_t len);

/*
 * --- changing: in native roots of a source that was opened for it. -EROFS elsewhere ---
 *
 * Made for the calls of a kernel that resolves paths itself. -ESTALE says that what the id named has become something
 * else (a staged copy of a committed step, or a committed step that was staged): look the path up again, and do the
 * call again. A directory at the top of a native root is a staged step; docs/writing.md says what commits it.
 */
struct ckpt_handle; /* an open file of a staged step */

bool ckpt_source_writable(const struct ckpt_source *src);
/* ckpt_lookup, by a thread that may have been told -ESTALE just before: what it finds does not become something else
 * before the thread has opened it, since the kernel looks a path up again once only. A control file tells of the source
 * what the caller can list himself. ret->uncached is also set of a name that is not there and may be the next time. */
int ckpt_lookup_for(struct ckpt_source *src, uint64_t parent, const char *name, const struct ckpt_caller *who,
                    struct ckpt_attr *ret, struct ckpt_err *err);
int ckpt_mkdir(struct ckpt_source *src, uint64_t parent, const char *name, uint32_t mode, const struct ckpt_caller *who,
               struct ckpt_attr *ret, struct ckpt_err *err);
/* flags as of open(2). The handle is to be released. */
int ckpt_create(struct ckpt_source *src, uint64_t parent, const char *name, uint32_t mode, int flags,
                const struct ckpt_caller *who, struct ckpt_attr *ret, struct ckpt_handle **ret_handle,
                struct ckpt_err *err);
int ckpt_unlink(struct ckpt_source *src, uint64_t parent, const char *name, bool dir, const struct ckpt_caller *who,
                struct ckpt_err *err);
/* flags as of renameat2(2). */
int ckpt_rename(struct ckpt_source *src, uint64_t parent, const char *name, uint64_t new_parent, const char *new_name,
                unsigned flags, const struct ckpt_caller *who, struct ckpt_err *err);
int ckpt_link(struct ckpt_source *src, uint64_t id, uint64_t parent, const char *name, const struct ckpt_caller *who,
              struct ckpt_attr *ret, struct ckpt_err *err);

/* Why a symbolic link or special file cannot be made there: -EPERM, or -EROFS where nothing can. */
int ckpt_no_link(struct ckpt_source *src, uint64_t parent);

struct stat;
/* what: which members of st, CKPT_ATTR_*. tv_nsec may be UTIME_NOW. With what 0, a file's set-id bits go if the caller
 * owns it: the kernel asks so for chown(2) with neither an owner nor a group. */
int ckpt_setattr(struct ckpt_source *src, uint64_t id, const struct stat *st, unsigned what,
                 const struct ckpt_caller *who, struct ckpt_attr *ret, struct ckpt_err *err);
int ckpt_setxattr(struct ckpt_source *src, uint64_t id, const char *name, const void *value, size_t len, int flags,
                  const struct ckpt_caller *who, struct ckpt_err *err);
int ckpt_removexattr(struct ckpt_source *src, uint64_t id, const char *name, const struct ckpt_caller *who,
                     struct ckpt_err *err);

/* For reading too: *ret_handle is NULL for what needs none (ckpt_read). */
int ckpt_open(struct ckpt_source *src, uint64_t id, int flags, const struct ckpt_caller *who,
              struct ckpt_handle **ret_handle, struct ckpt_err *err);
void ckpt_release(struct ckpt_handle *h);
/* cached: for the kernel's page cache. */
ssize_t ckpt_handle_read(struct ckpt_handle *h, void *buf, size_t len, uint64_t off, bool cached);
/* As ckpt_run. */
int ckpt_handle_run(struct ckpt_handle *h, uint64_t off, uint64_t *ret_end);
ssize_t ckpt_handle_write(struct ckpt_handle *h, const void *buf, size_t len, uint64_t off,
                          const struct ckpt_caller *who);
int ckpt_handle_allocate(struct ckpt_handle *h, int mode, uint64_t off, uint64_t len, const struct ckpt_caller *who);
/* A descriptor of it is being closed; may wait for work to be done, so that a commit has little left. */
void ckpt_handle_flush(struct ckpt_handle *h);
int ckpt_handle_fsync(struct ckpt_handle *h);
/* A descriptor of the file with its bytes, for as long as the handle is open; -1 where there is none. */
int ckpt_handle_fd(const struct ckpt_handle *h);
/* The kernel writes to that descriptor by itself from now on. */
void ckpt_handle_unseen(struct ckpt_handle *h);
/* A descriptor, to be closed, of a file on disk whose bytes are those of a committed file; -1 where there is none. */
int ckpt_backing_fd(struct ckpt_source *src, uint64_t id);
/* Bytes copied to an open file; content that is stored already is shared. from: a handle, or NULL and the id of a
 * committed file. */
ssize_t ckpt_copy_range(struct ckpt_source *src, struct ckpt_handle *from, uint64_t from_id, uint64_t from_off,
                        struct ckpt_handle *to, uint64_t to_off, uint64_t len, const struct ckpt_caller *who,
                        struct ckpt_err *err);
/* Of a staged step's own directory, if it has a step's name: the commit. Of anything committed: nothing. */
int ckpt_fsyncdir(struct ckpt_source *src, uint64_t id, const struct ckpt_caller *who, struct ckpt_err *err);
/* Free and used space where the source lies. */
struct statvfs;
int ckpt_statfs(struct ckpt_source *src, struct statvfs *ret);

/* Calls gone(arg, parent, name) for each step that is held here and no longer in the source under its name. */
void ckpt_sweep(struct ckpt_source *src, void (*gone)(void *arg, uint64_t parent, const char *name), void *arg);

/* What KEY.meta.json says of a leaf, or the same of a checkpoint or directory inside of one: JSON, to be freed.
 * -ENODATA: it is neither. */
int ckpt_describe(struct ckpt_source *src, uint64_t id, char **ret, size_t *ret_len, struct ckpt_err *err);

/*
 * A checkpoint, or a directory of one, as the files of an Orbax checkpoint. They are laid out from metadata: what is in
 * them is read when it is asked for. left_out (may be NULL) is told of each leaf that Orbax cannot hold. -ENODATA: it
 * is neither.
 */
struct ckpt_files;
int ckpt_files_open(struct ckpt_source *src, uint64_t id,
                    void (*left_out)(void *arg, const char *path, const char *reason), void *arg,
                    struct ckpt_files **ret, struct ckpt_err *err);
void ckpt_files_close(struct ckpt_files *files);
/* The path and size of each, from 0; false behind the last. That everything is there is said by the last. */
bool ckpt_files_get(const struct ckpt_files *files, size_t index, const char **ret_path, uint64_t *ret_size);
/* Bytes read; fewer than len only at the end. */
ssize_t ckpt_files_read(struct ckpt_files *files, size_t index, void *buf, size_t len, uint64_t off,
                        struct ckpt_err *err);

/* What is read of the source, and what becomes of it. */
struct ckpt_stats {
    uint64_t lookups, getattrs, readdirs, reads; /* calls */
    uint64_t bytes_read;                         /* handed to callers */
    uint64_t bytes_fetched;                      /* read from the source */
    uint64_t fetches;
    uint64_t chunks_decoded, bytes_decoded;
    uint64_t cache_hits, cache_misses, cache_bytes, spill_bytes;
    uint64_t trees, tree_bytes; /* in memory */
    uint64_t resident;          /* bytes of memory of the process */
};
void ckpt_source_stats(struct ckpt_source *src, struct ckpt_stats *ret);

/* Read all of a subtree and check every checksum it has. file is told of each file before it is read, progress of bytes
 * as they are checked, fault of each file that is damaged; all may be NULL. Returns the number of faults, or an error.
 */
struct ckpt_verify {
    void (*file)(void *arg, const char *path);
    void (*progress)(void *arg, const char *path, uint64_t bytes);
    void (*fault)(void *arg, const char *path, const struct ckpt_err *err);
    void *arg;
};
int ckpt_verify(struct ckpt_source *src, uint64_t id, const char *path, const struct ckpt_verify *how,
                struct ckpt_err *err);

/* The steps of the roots at and below a directory, in order of their numbers within each root. */
struct ckpt_step {
    const char *root; /* path of the root in the source, "" for its top */
    const char *name;
    double number; /* NaN: a checkpoint that is no step */
    const char *format;
    int64_t mtime_ns;
    bool latest;
};
int ckpt_each_step(struct ckpt_source *src, int (*visit)(void *arg, const struct ckpt_step *step), void *arg,
                   struct ckpt_err *err);
/* The same, and behind a directory's steps its other checkpoints. */
int ckpt_each_checkpoint(struct ckpt_source *src, int (*visit)(void *arg, const struct ckpt_step *step), void *arg,
                         struct ckpt_err *err);

#endif
