/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Where bytes come from: a tree of named files (a directory, an object store's prefix, a table in memory).
 * Paths are relative, '/'-separated, without empty, "." or ".." parts; "" is the backend's own top.
 * A backend is internally locked: all calls may run at once. Files are immutable handles: what was opened
 * stays readable after its name is gone. Errors are negative errno; -ENOENT for a name that is not there,
 * -EXDEV for a symlink that leads outside and is not followed.
 */
#ifndef CKPT_IO_BACKEND_H
#define CKPT_IO_BACKEND_H

#include "core/base/err.h"

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

enum ckpt_ftype { CKPT_FT_FILE, CKPT_FT_DIR, CKPT_FT_LINK, CKPT_FT_OTHER, CKPT_FT_COUNT };

struct ckpt_stat {
    enum ckpt_ftype type;
    uint32_t mode, uid, gid; /* permission bits, owner */
    uint64_t size;           /* bytes */
    uint64_t stored;         /* bytes allocated */
    int64_t mtime_ns, ctime_ns;
    int64_t btime_ns; /* when it was made; 0: the medium does not say */
    uint64_t dev, ino;
};

/* True when both describe the same, unchanged object. */
bool ckpt_stat_same(const struct ckpt_stat *a, const struct ckpt_stat *b);

struct ckpt_backend {
    const struct ckpt_backend_ops *ops;
    atomic_uint refs;
};

/* Embedded first in each implementation's file handle. */
struct ckpt_file {
    const struct ckpt_file_ops *ops;
    struct ckpt_stat st; /* as it was when opened */
    atomic_uint refs;
};

/* Bytes of a file that are alike in one thing: they are known to be zeros without being read, or they are not. */
struct ckpt_run {
    uint64_t begin, end;
    bool zeros;
};

/* Return nonzero to stop; it is then the result of the listing. */
typedef int ckpt_list_fn(void *arg, const char *name, enum ckpt_ftype type);

struct ckpt_backend_ops {
    const char *name;
    bool changes; /* others may write to the files, so that what is missing may be on its way out, or in */
    int (*stat)(struct ckpt_backend *, const char *path, struct ckpt_stat *ret); /* follows links that stay inside */
    int (*list)(struct ckpt_backend *, const char *path, ckpt_list_fn *visit, void *arg); /* in no order */
    int (*open)(struct ckpt_backend *, const char *path, struct ckpt_file **ret);         /* regular files only */
    int (*sub)(struct ckpt_backend *, const char *path,
               struct ckpt_backend **ret); /* the directory itself, whatever its name becomes; NULL: -EOPNOTSUPP */
    int (*readlink)(struct ckpt_backend *, const char *path, char *buf,
                    size_t len); /* NULL: no links. NUL-terminates */
    void (*free)(struct ckpt_backend *);
};

/* A file needs no backend: many are made of other files (a part of one, its decompressed bytes). */
struct ckpt_file_ops {
    const char *name;
    bool derived; /* made of other files, which count their reads themselves */
    ssize_t (*read)(struct ckpt_file *, void *buf, size_t len, uint64_t off); /* short only at the end of the file */
    int (*fd)(struct ckpt_file *);                                            /* NULL: it has no descriptor */
    void (*run)(struct ckpt_file *, uint64_t off, uint64_t end, struct ckpt_run *ret); /* NULL: nothing is known */
    void (*close)(struct ckpt_file *);
};

int ckpt_backend_open_posix(const char *path, struct ckpt_backend **ret, struct ckpt_err *err);
/* What is seen through a directory of the machine. Links that lead out of it are followed where this says so, and are
 * then what they lead to; those of a snapshot in a cache of the Hugging Face hub to blobs of its own repository always
 * are. */
struct ckpt_bounds {
    const char *hidden; /* a path in it of which there is nothing, nor of what lies below; NULL: none */
    bool follow;        /* all links */
    const char *own;    /* the link of this name, at the top; NULL: none */
    const char *never;  /* an absolute path without links: no link is followed to what lies there; NULL: none */
};
/* Of a directory that was opened by ckpt_backend_open_posix(), before it is shared. */
int ckpt_backend_set_bounds(struct ckpt_backend *posix, const struct ckpt_bounds *bounds) CKPT_MUST_USE;

/* A directory of a name in another one, which alone is kept open: each call looks the name up again, so that it sees
 * what has the name now. What is opened, and what `sub` gives, stays what it was. */
int ckpt_backend_open_named(const char *parent, const char *name, const struct ckpt_bounds *bounds,
                            struct ckpt_backend **ret, struct ckpt_err *err) CKPT_MUST_USE;

/* A table in memory, for fuzzing and unit tests. Bytes are borrowed. Add files before sharing it. */
struct ckpt_backend *ckpt_backend_new_memory(void);
int ckpt_backend_memory_add(struct ckpt_backend *b, const char *path, const void *data, size_t len);

struct ckpt_backend *ckpt_backend_ref(struct ckpt_backend *b);
void ckpt_backend_unref(struct ckpt_backend *b);
int ckpt_backend_stat(struct ckpt_backend *b, const char *path, struct ckpt_stat *ret) CKPT_MUST_USE;
int ckpt_backend_list(struct ckpt_backend *b, const char *path, ckpt_list_fn *visit, void *arg) CKPT_MUST_USE;
int ckpt_backend_open(struct ckpt_backend *b, const char *path, struct ckpt_file **ret) CKPT_MUST_USE;
int ckpt_backend_sub(struct ckpt_backend *b, const char *path, struct ckpt_backend **ret) CKPT_MUST_USE;
int ckpt_backend_readlink(struct ckpt_backend *b, const char *path, char *buf, size_t len) CKPT_MUST_USE;

struct ckpt_file *ckpt_file_ref(struct ckpt_file *f);
void ckpt_file_unref(struct ckpt_file *f);

static inline void ckpt_cleanup_file(struct ckpt_file **f)
{
    ckpt_file_unref(*f);
}
/* Gives the reference back at the end of its scope. */
#define CKPT_AUTOFILE __attribute__((cleanup(ckpt_cleanup_file)))
/* Counts into the statistics. Short only at the end of the file. */
ssize_t ckpt_file_read(struct ckpt_file *f, void *buf, size_t len, uint64_t off) CKPT_MUST_USE;
/* The run that begins at off, as far as `end` or less. A file that is written to meanwhile has other runs. */
void ckpt_file_run(struct ckpt_file *f, uint64_t off, uint64_t end, struct ckpt_run *ret);
/* The same to the end of the file: true if it must be read. *ret_end is the run's end. */
bool ckpt_file_data(struct ckpt_file *f, uint64_t off, uint64_t *ret_end);
/* The descriptor of a plain file of this machine, borrowed; -1: it is none. */
int ckpt_file_fd(struct ckpt_file *f);
/* All of a file of at most max bytes (NUL-terminated beyond len; the caller frees). -EFBIG when larger. */
int ckpt_file_read_all(struct ckpt_file *f, size_t max, uint8_t **ret, size_t *ret_len) CKPT_MUST_USE;
int ckpt_backend_read_all(struct ckpt_backend *b, const char *path, size_t max, uint8_t **ret,
                          size_t *ret_len) CKPT_MUST_USE;

/*
 * How often this thread could not open something since there were no descriptors left. Whoever has taken any failure
 * for an absence compares: if it has grown meanwhile, what was looked at is not known, and the answer is -EMFILE.
 */
unsigned ckpt_shortages(void);
void ckpt_count_shortage(int r); /* r: of an open */

/* True if a path is relative and has no empty, "." or ".." part and no NUL. "" is not safe. */
bool ckpt_path_safe(const char *path, size_t len);

/* Bytes and calls of all reads so far, in the process. */
void ckpt_io_counters(uint64_t *ret_bytes, uint64_t *ret_reads);

#endif
