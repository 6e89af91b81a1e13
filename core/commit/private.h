/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Private to core/commit: what a commit is made of. commit.c tells the order; walk.c goes through the staged tree, for
 * content.c and then for describe.c; leaf.c says what files are, pieces.c and join.c make arrays of what was written in
 * pieces, pack.c packs small leaves, hold.c makes objects, publish.c makes all of it a step. One thread a commit, but
 * for the objects of large leaves, which threads of its own make.
 */
#ifndef CKPT_COMMIT_PRIVATE_H
#define CKPT_COMMIT_PRIVATE_H

#include "core/base/pool.h"
#include "core/base/util.h"
#include "core/commit/commit.h"
#include "core/store/seal.h"

#include <sys/stat.h>

/* --- hold.c --- */

#define HOLD_NAME   (CKPT_HEX + 16) /* "HASH", "HASH.sums", "HASH.alias" */
#define OBJECT_MODE 0444            /* less the umask */

/* What becomes of a payload that is stored as it is. */
enum hold_raw {
    HOLD_LATER, /* the file and its sums are made durable, no more */
    HOLD_COPY,
    HOLD_ALIAS_OF, /* a link to the file, which nobody writes to any more unless the commit fails */
    HOLD_MOVE,     /* the file itself, which is nobody else's: it loses its name */
};

struct hold_input {
    int fd;
    uint64_t size;
    enum ckpt_object_codec codec; /* NONE, LZ4 or BLOSC */
    bool sample;                  /* NONE, if that serves better */
    unsigned typesize;
    uint64_t chunk;
    enum hold_raw raw;
    int dir; /* of ALIAS_OF and MOVE: where its name is */
    const char *name;
    const atomic_bool *cancel;
};

void ckpt_hold_name(const uint8_t sha256[CKPT_SHA256], const char *suffix, char ret[HOLD_NAME]);
/* The object of a file: held already, found in the store, or made. */
int ckpt_hold_content(struct ckpt_hold *h, const struct hold_input *in, struct ckpt_ref *ret,
                      struct ckpt_err *err) CKPT_MUST_USE;
/* As ckpt_hold_file chooses: the codec for a file's content. */
void ckpt_hold_choose(struct hold_input *in, enum ckpt_object_codec codec, bool npy);
/* An object that was made, or put off, before: 1 if it is held now; 0: its file must be read again. */
int ckpt_hold_known(struct ckpt_hold *h, const struct hold_input *in, const struct ckpt_ref *ref,
                    struct ckpt_err *err) CKPT_MUST_USE;
/* -EBADMSG: the file became shorter. */
int ckpt_hold_copy_bytes(int fd, uint64_t size, int out, const atomic_bool *cancel) CKPT_MUST_USE;
/* Remove what commits and threads that were cut short have left. Nobody else uses the directory meanwhile. */
int ckpt_hold_sweep(struct ckpt_hold *h) CKPT_MUST_USE;
/* For ckpt_names_each of hold/: a link to a staged file. */
int ckpt_hold_is_alias(void *arg, int dir, const char *name);
/* May an object that was found by its hash be believed? 1 and *ret, or 0. */
int ckpt_hold_trusted(struct ckpt_backend *files, const char *path, const uint8_t sha256[CKPT_SHA256], uint64_t size,
                      struct ckpt_object_info *ret) CKPT_MUST_USE;

/* --- commit.c: the commit under way --- */

/* What is known of a leaf between the two walks. */
struct commit_leaf {
    uint8_t sha256[CKPT_SHA256];
    uint64_t size, offset, stored;
    uint32_t object; /* one of commit.objects, or COMMIT_OWN: its own */
    uint16_t mode;   /* that its object may have, as a file of the root's group: known from the second walk on */
    uint8_t codec;   /* enum ckpt_object_codec; COMMIT_VALUE: its text is in the manifest */
};
#define COMMIT_OWN   UINT32_MAX
#define COMMIT_VALUE UINT8_MAX

/* An object that leaves share: a pack. */
struct commit_object {
    uint8_t sha256[CKPT_SHA256];
    bool used;     /* by a leaf of this commit */
    uint16_t mode; /* of all those leaves together */
};

struct commit_pack;
struct commit_shared;

struct commit {
    const struct ckpt_commit *in;
    struct ckpt_store *store;
    struct ckpt_hold hold;
    struct commit_leaf *leaves; /* in the order of the walk; moved and, for large leaves, written to under lock */
    size_t leaf_count, leaf_room;
    struct commit_object *objects;
    uint32_t object_count, object_room, last_object;
    struct commit_pack *pack;
    struct commit_shared *shared; /* to read content that is stored already */
    /* what the threads do */
    struct ckpt_pool *pool;
    pthread_mutex_t lock;
    pthread_cond_t done;
    unsigned running, limit;     /* jobs */
    atomic_bool failed, *cancel; /* the caller's own where it gave one */
    struct ckpt_err failure;     /* of the first job that failed */
    unsigned next_temp;
    bool whole;    /* a leaf is named like a piece */
    bool doubtful; /* the manifest may have its name though it should not */
};

/* A new file below staging/ID: a descriptor. One of that name may be a link to something that counts: it goes, and is
 * not emptied. */
int ckpt_commit_temporary(struct commit *c, const char *name, mode_t mode) CKPT_MUST_USE;

/* --- content.c, describe.c: the two walks --- */

/* The number of an object in commit.objects. */
int ckpt_commit_object(struct commit *c, const uint8_t sha256[CKPT_SHA256], uint32_t *ret) CKPT_MUST_USE;
/* Fills c->leaves. */
int ckpt_content_make(struct commit *c, struct ckpt_err *err) CKPT_MUST_USE;
/* Writes the manifest to a temporary file, durably. *ret_mode: what the umask leaves of a file's mode. */
int ckpt_describe_tree(struct commit *c, const char *name, mode_t *ret_mode, struct ckpt_err *err) CKPT_MUST_USE;

/* --- walk.c --- */

/* Where a walk is. */
struct walk_at {
    int dir;                   /* that it is in */
    const char *name;          /* in there, as it is listed: of pieces, the name of the array that they make */
    const char *path;          /* from the step on, for people */
    uint32_t parent;           /* number of the directory */
    struct stat st;            /* not of pieces */
    bool whole;                /* a file that is named like a piece, and is none */
    const char *const *pieces; /* names of the files that are the array's pieces; NULL: it is a file or directory */
    size_t piece_count;
};

struct walk_visitor {
    /* fd is open on it. *ret_number is what `parent` will be of what is in it. */
    int (*dir)(void *arg, const struct walk_at *at, int fd, uint32_t *ret_number, struct ckpt_err *err);
    int (*file)(void *arg, const struct walk_at *at, struct ckpt_err *err);
    int (*pieces)(void *arg, const struct walk_at *at, struct ckpt_err *err);
    void *arg;
};

/* All that is in a staged tree but its top, depth first, in an order that follows from the names alone. A nonzero
 * result of a visitor ends it and is returned. -EPERM: what is no file or directory. */
int ckpt_walk_tree(const struct ckpt_commit *in, const struct walk_visitor *v, struct ckpt_err *err) CKPT_MUST_USE;
enum ckpt_container ckpt_walk_container(int fd);

/* --- told.c --- */

/* What is told of a leaf whose kind, hash and content are in *n. */
int ckpt_told_apply(int fd, struct ckpt_manifest_node *n) CKPT_MUST_USE;
/* Is it a blob, though its name is that of an array or value? */
bool ckpt_told_blob(int fd, const char *name);
/* Of a file that is named like a piece of an array: is it a leaf of that very name? */
bool ckpt_told_whole(int dir, const char *name);

/* --- leaf.c --- */

/* A staged file, open for reading, its bytes its own or stored already. */
struct leaf_file {
    int fd;
    uint64_t size;
    struct stat st;
    bool is_shared;
    bool is_blob; /* whatever its name */
    struct ckpt_ref ref;
    struct ckpt_file *object; /* of a shared one, once it was read; a reference */
};
#define LEAF_FILE_INIT                                                                                                 \
    {                                                                                                                  \
        .fd = -1                                                                                                       \
    }

int ckpt_leaf_open(int dir, const char *name, struct leaf_file *ret, struct ckpt_err *err) CKPT_MUST_USE;
void ckpt_leaf_close(struct leaf_file *f);
/* Exactly len bytes. */
int ckpt_leaf_read(struct commit *c, struct leaf_file *f, void *buf, size_t len, uint64_t off,
                   struct ckpt_err *err) CKPT_MUST_USE;
/* Are these bytes, which lie in the file, zeros that need not be read? 1, 0. */
int ckpt_leaf_hole(struct commit *c, struct leaf_file *f, uint64_t off, uint64_t len,
                   struct ckpt_err *err) CKPT_MUST_USE;
/* What X.npy is: 1 an array, 0 a blob; -EBADMSG when it is not complete, -EUCLEAN a dtype attribute that does not fit.
 */
int ckpt_leaf_array(struct commit *c, struct leaf_file *f, struct ckpt_npy *ret, struct ckpt_err *err) CKPT_MUST_USE;
/* What X.json is: 1 a value and its text, 0 a blob. */
int ckpt_leaf_value(struct commit *c, struct leaf_file *f, char **ret, struct ckpt_err *err) CKPT_MUST_USE;
/* The user's own attributes as a JSON object, or NULL when there are none. */
int ckpt_leaf_xattrs(int fd, char **ret, struct ckpt_err *err) CKPT_MUST_USE;
/* Content that is stored already, through a cache of the commit's own. */
int ckpt_shared_open(struct commit *c, const struct ckpt_ref *ref, struct ckpt_file **ret,
                     struct ckpt_err *err) CKPT_MUST_USE;
void ckpt_shared_close(struct commit *c);

/* --- pieces.c, join.c --- */

struct pieces;
/* What they are from their names and headers: each is complete and of its box's shape, all have one type. */
int ckpt_pieces_open(struct commit *c, const struct walk_at *at, struct pieces **ret,
                     struct ckpt_err *err) CKPT_MUST_USE;
/* Do they tile the array? -ENODATA. */
int ckpt_pieces_check(struct pieces *p, struct ckpt_err *err) CKPT_MUST_USE;
/* The array as an .npy file. -EEXIST: repeats differ. */
int ckpt_pieces_join(struct pieces *p, int out, uint64_t *ret_size, struct ckpt_err *err) CKPT_MUST_USE;
const struct ckpt_npy *ckpt_pieces_npy(const struct pieces *p);
/* Of the first piece; a descriptor to close. */
int ckpt_pieces_first(struct pieces *p, struct stat *ret, struct ckpt_err *err) CKPT_MUST_USE;
void ckpt_pieces_close(struct pieces *p);

/* --- pack.c --- */

int ckpt_pack_new(struct commit *c) CKPT_MUST_USE;
void ckpt_pack_free(struct commit *c);
/* The content of a small leaf, into c->leaves[number]: found, or put into the pack. */
int ckpt_pack_add(struct commit *c, size_t number, const uint8_t *data, size_t len, struct ckpt_err *err) CKPT_MUST_USE;
/* Makes the pack's object, if there is anything in it. No other thread is at work. */
int ckpt_pack_finish(struct commit *c, struct ckpt_err *err) CKPT_MUST_USE;

/* --- publish.c --- */

/* Is the name free, or its step one that may be replaced? -EEXIST. */
int ckpt_commit_allowed(struct commit *c, struct ckpt_err *err) CKPT_MUST_USE;
/* All objects go where the manifest says that they are, then the manifest (a file of that mode in work) becomes the
 * step's. */
int ckpt_commit_publish(struct commit *c, const char *manifest, mode_t allowed, struct ckpt_err *err) CKPT_MUST_USE;
/* After it has failed, or what goes before it. */
void ckpt_commit_give_back(struct commit *c);

#endif
