/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A root with a store, for the rest of core: its directories, its configuration, its committed steps (docs/format.md).
 * What programs may do to it as a whole is core/ckpt_store.h. Staged steps are stage.h, commits commit.h. Internally
 * locked; several processes and hosts may have the same root open.
 *
 * The one lock between processes is flock on .ckptstore/lock: shared by a commit from when it makes sure that its
 * objects are there until its manifest is; exclusive by whoever takes objects away. It is given back when a process
 * dies.
 */
#ifndef CKPT_STORE_STORE_H
#define CKPT_STORE_STORE_H

#include "core/ckpt_store.h"
#include "core/object/manifest.h"
#include "core/object/object.h"

#include <pthread.h>

#define CKPT_STORE_DIR     ".ckptstore"
#define CKPT_STORE_VERSION 1

struct ckpt_retention {
    uint64_t keep_last, keep_period; /* 0: not set */
    double keep_newer;               /* seconds; 0: not set */
    char best_metric[128];           /* empty: not set */
    bool best_max;                   /* best_mode */
    uint64_t keep_best;
};

struct ckpt_store_config {
    char id[33];                  /* of the store, 32 hex digits */
    bool step_names;              /* it requires that: there may be steps of names that version 0.1.0 does not know */
    enum ckpt_object_codec codec; /* of what is written; AUTO by default */
    struct ckpt_retention retention;
};

struct ckpt_store {
    int root, dir; /* descriptors: the root's directory, .ckptstore */
    int steps, objects, staging, trash;
    char *path;                 /* of the root, for messages */
    struct ckpt_backend *files; /* .ckptstore, for reading */
    pthread_mutex_t lock;       /* config */
    uid_t uid;                  /* the root's owner, to whom what is in it belongs */
    gid_t gid;
    struct ckpt_store_config config; /* as last read: ckpt_store_config_read */
    unsigned trash_keep;             /* seconds that what is deleted stays in the trash (60) */
};

/* Make a directory a native root: .ckptstore and what is in it, durably. Nothing happens where there is one already. */
int ckpt_store_init(const char *root, struct ckpt_err *err) CKPT_MUST_USE;

/* Look at store.json again (another process may have written it). */
int ckpt_store_config_read(struct ckpt_store *s, struct ckpt_store_config *ret, struct ckpt_err *err) CKPT_MUST_USE;
/* The keys and their values as text, in that order; keys that are not set are left out. */
int ckpt_store_config_each(const struct ckpt_store_config *c,
                           int (*visit)(void *arg, const char *key, const char *value), void *arg);

#define CKPT_STEP_NAME 240 /* bytes of a step's name */

/* A name that a committed step may have: as of ckpt_step_name(), and what version 0.1.0 gave, with a dot in it. */
bool ckpt_step_is_stored(const char *name, double *ret_number);

/* The step of a manifest's file name in steps/ ("7.json"); false for a file that is none. ret_number may be NULL. */
bool ckpt_step_of_file(const char *file, char ret[CKPT_STEP_NAME + 1], double *ret_number);

/* The flock: a descriptor to close, or an error. Waits. */
int ckpt_store_lock(struct ckpt_store *s, bool exclusive) CKPT_MUST_USE;

/* --- committed steps --- */
struct ckpt_store_step {
    char *name;
    double number;
    bool pinned;
    char id[33];      /* the manifest's; filled by ckpt_store_steps only when asked for */
    uint64_t time_ns; /* likewise */
    int64_t mtime_ns; /* of the manifest's file */
    uint64_t ino, dev;
};
/* All of them, by number, ties by bytes of the name. heads: read id and time_ns of each (a step whose manifest is
 * damaged has id ""). */
int ckpt_store_steps(struct ckpt_store *s, bool heads, struct ckpt_store_step **ret, size_t *ret_count,
                     struct ckpt_err *err) CKPT_MUST_USE;
void ckpt_store_steps_free(struct ckpt_store_step *steps, size_t count);

/* Durable when they return. A manifest goes to the trash; its objects when gc finds them unused. -ENOENT.
 * id: of the manifest that is meant; NULL: whatever has the name. -ESTALE: another step has the name. */
int ckpt_store_delete(struct ckpt_store *s, const char *name, const char *id, struct ckpt_err *err) CKPT_MUST_USE;
/* -EEXIST unless overwrite. The pin goes with it. */
int ckpt_store_rename(struct ckpt_store *s, const char *from, const char *to, bool overwrite,
                      struct ckpt_err *err) CKPT_MUST_USE;
int ckpt_store_pin(struct ckpt_store *s, const char *name, bool pinned, struct ckpt_err *err) CKPT_MUST_USE;

/* The best step by the metric that retention names: 1, or 0 if it names none or no step has it. */
int ckpt_store_best(struct ckpt_store *s, char ret[CKPT_STEP_NAME + 1], struct ckpt_err *err);

#endif
