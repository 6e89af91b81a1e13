/* SPDX-License-Identifier: Apache-2.0 */
/*
 * libckptfs: what is done to a root with a store as a whole, without a mount: make one, configure it, import a step,
 * delete what retention does not keep, collect garbage. To read what is in a root, see ckpt.h.
 *
 * Threads: a store is locked internally, and several processes and hosts may have the same root open; an import is for
 * one thread. Ownership: an import borrows its store. Errors: 0 (or a count) or a negative errno, with a sentence in
 * *err (which may be NULL).
 */
#ifndef CKPT_CKPT_STORE_H
#define CKPT_CKPT_STORE_H

#include "core/base/err.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct ckpt_store;

/* Makes the directory if it is not there, and a native root of it, durably. *ret_created: it was none before. */
int ckpt_store_create(const char *root, bool *ret_created, struct ckpt_err *err) CKPT_MUST_USE;
/* -ENOENT: not a native root; -EOPNOTSUPP: newer than this program; -EUCLEAN: malformed. */
int ckpt_store_open(const char *root, struct ckpt_store **ret, struct ckpt_err *err) CKPT_MUST_USE;
void ckpt_store_close(struct ckpt_store *s);

/* 32 hex digits. */
const char *ckpt_store_id(const struct ckpt_store *s);
/* A name that a step can be committed under: digits, or a prefix that ends in '_', '-' or '=', and digits; without a
 * dot; at most 240 bytes, no '/'. ret_number may be NULL. */
bool ckpt_step_name(const char *name, double *ret_number);
#define CKPT_STEP_RULE "digits are wanted, or a prefix that ends in '_', '-' or '=', and digits"
/* Is there a step of that name, committed or beside the store? */
bool ckpt_store_has_step(const struct ckpt_store *s, const char *name);

/* --- settings --- */

/* One "key" of `ckptfs config` with its value, "" unsets: codec keep_last keep_period keep_newer (7d, 12h, 30m, 90 or
 * 90s) best_metric best_mode (min, max) keep_best. -EINVAL with the reason. Unknown members of store.json are kept. */
int ckpt_store_config_set(struct ckpt_store *s, const char *key, const char *value, struct ckpt_err *err) CKPT_MUST_USE;
/* Would it be accepted? */
int ckpt_store_config_check(const char *key, const char *value, struct ckpt_err *err) CKPT_MUST_USE;
/* The keys and their values as text, in that order, as last read; keys that are not set are left out. A nonzero result
 * of visit ends it and is returned. */
int ckpt_store_settings(const struct ckpt_store *s, int (*visit)(void *arg, const char *key, const char *value),
                        void *arg);

/* --- import --- */

struct ckpt_import;

/* Would a step accept this text as its user.ckpt.metadata? -EINVAL. */
int ckpt_import_check_metadata(const char *json, size_t len, struct ckpt_err *err) CKPT_MUST_USE;
int ckpt_import_begin(struct ckpt_store *s, struct ckpt_import **ret, struct ckpt_err *err) CKPT_MUST_USE;
/* A descriptor of the directory that the step's files are written to, as a mount would show them. Borrowed. */
int ckpt_import_dir(const struct ckpt_import *import);
/* Makes a step of the files. Durable when it returns 0; else there is no step. -EEXIST: another has the name.
 * metadata: JSON, or NULL. */
int ckpt_import_commit(struct ckpt_import *import, const char *step, const char *metadata,
                       struct ckpt_err *err) CKPT_MUST_USE;
/* Deletes what was written and is in no step. */
void ckpt_import_end(struct ckpt_import *import);

/* --- what may be deleted --- */

/* Deletes what retention does not keep (dry: only reports it), in the order of the numbers. It always keeps the latest
 * step. tell may be NULL. Returns how many steps. */
int ckpt_store_prune(struct ckpt_store *s, bool dry, void (*tell)(void *arg, const char *step), void *arg,
                     struct ckpt_err *err);

struct ckpt_gc_result {
    uint64_t objects, bytes;       /* moved to the trash (dry: that would be) */
    uint64_t purged, purged_bytes; /* taken out of it for good */
    uint64_t kept;                 /* objects that manifests name, or may name */
    uint64_t aside;                /* of these: that none names which can be read */
};
struct ckpt_gc_watch { /* each may be NULL */
    void (*progress)(void *arg, uint64_t done, uint64_t total);
    /* A manifest that cannot be read: its name below .ckptstore, and why. */
    void (*aside)(void *arg, const char *name, const struct ckpt_err *why);
    void *arg;
};
/* What is deleted stays in the trash for so many seconds (60). For this store as it is open, not for the root. */
void ckpt_store_set_trash_keep(struct ckpt_store *s, unsigned seconds);
/*
 * Moves what no manifest names to the trash, and empties the trash of what has been there long enough; staging
 * directories that nobody owns and that hold nothing go too. Objects that a staged step needs are held there by a hard
 * link of its own. Where a manifest cannot be read (damaged, newer), all that was there when it was first found so
 * stays, for as long as there is such a one.
 */
int ckpt_store_gc(struct ckpt_store *s, bool dry, const struct ckpt_gc_watch *watch, struct ckpt_gc_result *ret,
                  struct ckpt_err *err) CKPT_MUST_USE;

#endif
