/* SPDX-License-Identifier: Apache-2.0 */
/* What the files of core/store, core/commit and core/stage share: the directories of the store, and small things about
 * them. */
#ifndef CKPT_STORE_INTERNAL_H
#define CKPT_STORE_INTERNAL_H

#include "core/store/store.h"

/* "NAME.json" below steps/. */
#define CKPT_STEP_FILE  (CKPT_STEP_NAME + 16)
#define CKPT_TRASH_KEEP 60 /* seconds */
/* The lock of a store whose `lock` is a directory. */
#define CKPT_STORE_LOCK_2 "lock2"

/* bytes random bytes as hex digits, with a NUL. */
void ckpt_random_hex(char *ret, size_t bytes);

/* Something that was made in the store gets the root's owner, if this process may give it away. */
void ckpt_store_give(const struct ckpt_store *s, int dir, const char *name);

/* Each name in a directory but "." and ".."; a nonzero result of visit ends it and is returned. */
int ckpt_names_each(int dir, const char *path, int (*visit)(void *arg, int dir, const char *name),
                    void *arg) CKPT_MUST_USE;

/* All of a small file, NUL-terminated, to be freed. -EFBIG beyond max bytes. */
int ckpt_text_at(int dir, const char *path, size_t max, char **ret, size_t *ret_len) CKPT_MUST_USE;

/* What a new store has, as text. */
int ckpt_store_config_new(struct ckpt_buf *text) CKPT_MUST_USE;

/* Version 0.1.0 does not take it for a step's name. */
bool ckpt_step_needs_mark(const char *name);
/*
 * Before a manifest gets such a name, without the lock: from then on version 0.1.0 does not open the store, and where
 * it has it open it cannot take the lock. It would take the step's objects for garbage. Nothing happens for other
 * names.
 */
int ckpt_store_allow_name(struct ckpt_store *s, const char *name, struct ckpt_err *err) CKPT_MUST_USE;
/* store.json says so, durably; by a caller that holds the lock exclusively. */
int ckpt_store_require_names(struct ckpt_store *s, struct ckpt_err *err) CKPT_MUST_USE;

/* steps/NAME.json for reading. */
int ckpt_store_manifest(struct ckpt_store *s, const char *step, struct ckpt_file **ret,
                        struct ckpt_err *err) CKPT_MUST_USE;
/* Is there a step of that name, whose manifest has this id? 1, 0; negative: that cannot be told. */
int ckpt_store_step_is(struct ckpt_store *s, const char *step, const char *id);
/* Do its first and its last line look as they should? What is between them is not read. */
bool ckpt_store_step_is_whole(struct ckpt_store *s, const char *step);
/* As ckpt_store_delete, by a caller that holds the lock. */
int ckpt_store_delete_locked(struct ckpt_store *s, const char *name, struct ckpt_err *err) CKPT_MUST_USE;
/* Pins without a step; by a caller that holds the lock exclusively. */
int ckpt_store_drop_stale_pins(struct ckpt_store *s) CKPT_MUST_USE;

/* A set of hashes in memory: 48 to 96 bytes each. One thread. */
struct ckpt_hashes {
    uint8_t (*slot)[CKPT_SHA256];
    size_t size, count; /* size: a power of two */
    bool zero;          /* the hash of zeros, which marks a free slot, is in it */
    uint64_t seed[4];
};
void ckpt_hashes_init(struct ckpt_hashes *h);
void ckpt_hashes_clear(struct ckpt_hashes *h);
int ckpt_hashes_add(struct ckpt_hashes *h, const uint8_t hash[CKPT_SHA256]) CKPT_MUST_USE; /* 1: it is new */
int ckpt_hashes_add_all(struct ckpt_hashes *h, const struct ckpt_hashes *from) CKPT_MUST_USE;
bool ckpt_hashes_has(const struct ckpt_hashes *h, const uint8_t hash[CKPT_SHA256]);

/* --- manifests that cannot be read, and the objects that they may name: aside.c --- */

struct ckpt_aside {
    struct ckpt_aside_manifest {
        uint8_t id[CKPT_SHA256]; /* what it is known by */
        char *name;              /* below .ckptstore */
        struct ckpt_err why;
    } * found;
    size_t count;
};
/* Of its bytes; of its file as it is where they cannot be read, or it cannot be opened (NULL). false: out of memory. */
bool ckpt_aside_identity(struct ckpt_file *file, const struct ckpt_stat *st, uint8_t ret[CKPT_SHA256]);
bool ckpt_aside_has(const struct ckpt_aside *a, const uint8_t id[CKPT_SHA256]);
int ckpt_aside_add(struct ckpt_aside *a, const uint8_t id[CKPT_SHA256], const char *name,
                   const struct ckpt_err *why) CKPT_MUST_USE;
void ckpt_aside_clear(struct ckpt_aside *a);
/* All objects that they may name, into the set. The list of them is made where there is none that knows them all (dry:
 * it is not kept). */
int ckpt_aside_keep(struct ckpt_store *s, const struct ckpt_aside *a, bool dry,
                    struct ckpt_hashes *named) CKPT_MUST_USE;
/* There is none any more. */
int ckpt_aside_drop(struct ckpt_store *s) CKPT_MUST_USE;

/* Each name in objects/ab. */
int ckpt_objects_each(struct ckpt_store *s, int (*visit)(void *arg, int dir, const char *name),
                      void *arg) CKPT_MUST_USE;

/* --- the trash; what is taken out of it is counted in *ret --- */

/* Objects that are named and lie in the trash only go back. The lock is held exclusively. */
int ckpt_trash_restore(struct ckpt_store *s, const struct ckpt_hashes *named, struct ckpt_err *err) CKPT_MUST_USE;
/* An object and its sums go there. The lock is held exclusively. Nothing happens if it is not in objects/. */
int ckpt_trash_object(struct ckpt_store *s, const uint8_t hash[CKPT_SHA256], struct ckpt_gc_result *ret,
                      struct ckpt_err *err) CKPT_MUST_USE;
/* Staging directories that nobody owns and that hold nothing go there. */
int ckpt_trash_staging(struct ckpt_store *s, struct ckpt_err *err) CKPT_MUST_USE;
/* What has been there for trash_keep seconds goes for good. dry: is only counted. */
int ckpt_trash_purge(struct ckpt_store *s, bool dry, struct ckpt_gc_result *ret, struct ckpt_err *err) CKPT_MUST_USE;

/* A name in objects/ or trash/objects/: HASH or HASH.sums. */
bool ckpt_object_name(const char *name, uint8_t ret[CKPT_SHA256], bool *ret_sums);
/* Bytes of a file; 0 if it is not there. */
uint64_t ckpt_size_at(int dir, const char *path);

#endif
