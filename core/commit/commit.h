/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A directory of plain files becomes a step. The files lie below `tree`; those that stand for content that is stored
 * already have the attribute user.ckptfs.ref (struct ckpt_ref, as text). commit.c tells the order of all that is
 * written.
 */
#ifndef CKPT_COMMIT_COMMIT_H
#define CKPT_COMMIT_COMMIT_H

#include "core/store/store.h"

#include <sys/stat.h>

#define CKPT_REF_XATTR "user.ckptfs.ref"
#define CKPT_REF_TEXT  256

/* Content that is stored already: bytes of an object. */
struct ckpt_ref {
    uint8_t sha256[CKPT_SHA256], object[CKPT_SHA256];
    uint64_t size, offset, stored;
    enum ckpt_object_codec codec;
};
void ckpt_ref_print(const struct ckpt_ref *ref, char ret[CKPT_REF_TEXT]);
bool ckpt_ref_parse(const char *text, size_t len, struct ckpt_ref *ret);
/*
 * What the bytes of a staged file are: 1 and *ret, stored content, all of it and nothing else; or 0, its own. The
 * attribute alone decides that, and what such a file has on disk does not count. -EUCLEAN: the attribute is damaged.
 * fd: also an O_PATH one.
 */
int ckpt_ref_of(int fd, struct ckpt_ref *ret) CKPT_MUST_USE;

/*
 * The first bytes of an array's file, kept in an attribute of a file that becomes a reference, so that a commit need
 * not decode a chunk to know its header: the content's SHA-256, by which they are known to be of it, and then the
 * bytes. _keep: fd has the content still; files that do not begin as .npy files have none kept. _kept: their number, 0
 * if there are none.
 */
#define CKPT_HEAD_XATTR "user.ckptfs.head"
#define CKPT_HEAD       ((size_t)256)
int ckpt_head_keep(int fd, const struct ckpt_ref *ref) CKPT_MUST_USE;
size_t ckpt_head_kept(int fd, const struct ckpt_ref *ref, uint8_t ret[CKPT_HEAD]);

/*
 * What a manifest says of a leaf beside its bytes, kept with a file that has those (told.c). name: of the file, without
 * its directory. _copy: from another file with the same content.
 */
int ckpt_told_keep(int fd, const struct ckpt_manifest_node *n, const char *name) CKPT_MUST_USE;
int ckpt_told_copy(int from, int to) CKPT_MUST_USE;

/*
 * The work area of one staged step: hold/ has hard links to the objects that it will need, and objects made for it that
 * are not in objects/ yet. `dir` is borrowed.
 */
struct ckpt_hold {
    struct ckpt_store *store;
    int dir; /* staging/ID/hold */
};
/* Hold an object that is in objects/ (or in the trash). -ENOENT: it is in neither. */
int ckpt_hold_object(struct ckpt_hold *h, const uint8_t sha256[CKPT_SHA256]) CKPT_MUST_USE;
/* The object that content is in, decoded: of the store, or one that is only held, since no commit has put it there yet
 * or gc has taken it away. The cache must outlive it. */
int ckpt_hold_open(struct ckpt_hold *h, struct ckpt_cache *cache, const struct ckpt_ref *ref, struct ckpt_file **ret,
                   struct ckpt_err *err) CKPT_MUST_USE;
/*
 * The content of a file as an object that is held and durable: found, or made with the store's codec. Files under
 * CKPT_SMALL bytes are left to the commit, which packs them (only their hash is computed; ref->object is all zeros).
 * name: one that ends in ".npy" may be an array. What is best stored as it is becomes an object only when frozen is
 * true: a copy, since the file may still be written to. Otherwise the file itself is made durable, its sums are
 * written, and the commit, during which it cannot change, makes an object of it without a copy.
 */
#define CKPT_SMALL ((uint64_t)64 << 10)
int ckpt_hold_file(struct ckpt_hold *h, int fd, const char *name, enum ckpt_object_codec codec, bool frozen,
                   const atomic_bool *cancel, struct ckpt_ref *ret, struct ckpt_err *err) CKPT_MUST_USE;

struct ckpt_commit {
    struct ckpt_store *store;
    struct ckpt_hold hold;
    int work;         /* staging/ID: for temporary files */
    int tree;         /* staging/ID/tree */
    const char *name; /* of the step */
    bool overwrite;   /* replace a step of that name */
    const char *id;   /* of the manifest that is made: 32 hex digits, random; NULL: made here */
    const char *
        base_id; /* the id of the manifest that this is a change of: it may be replaced, and nothing else; NULL: none */
    enum ckpt_object_codec codec;
    const char *metadata; /* JSON, or NULL */
    /* Content that is known already from when the file was closed: 1 and *ret; or 0, or -EBUSY: somebody can still
     * change it. NULL: none is. */
    int (*known)(void *arg, int fd, const struct stat *st, struct ckpt_ref *ret);
    void *arg;
    /* Of one of several writers: pieces of arrays stay pieces, and instead of being given the step's name the manifest,
     * a file of that name in `work`, is handed to put, when all that it names is in place. NULL: it becomes a step. */
    int (*put)(void *put_arg, int work, const char *manifest, struct ckpt_err *err);
    void *put_arg;
    unsigned threads;
    /* Set by another thread, it ends the commit before anything is visible: -EINTR. Set by the commit when it fails.
     * NULL: nobody sets it. */
    atomic_bool *interrupted;
};
/* Durable when it returns 0. Else nothing has changed: -EBADMSG a truncated or overlong array, -ENODATA pieces that do
 * not tile, -EEXIST, -EPERM a link or special file, -EUCLEAN attributes that do not fit, -EOPNOTSUPP what a step cannot
 * hold, and what the disk says. */
int ckpt_commit_run(const struct ckpt_commit *c, struct ckpt_err *err) CKPT_MUST_USE;
/* Of a staged step that is taken over from a process that has ended, before any of its files is opened: files that a
 * commit of it had made objects of get bytes of their own. Quick where no commit was cut short. */
int ckpt_commit_recover(const struct ckpt_commit *c, struct ckpt_err *err) CKPT_MUST_USE;
/* Is every array complete? The part of the checks that the automatic commit asks for: 0, -EBADMSG, -ENODATA. */
int ckpt_commit_check(const struct ckpt_commit *c, struct ckpt_err *err) CKPT_MUST_USE;

/* The length of X where the name is "X@SLICE.npy"; 0: it is no piece's. */
size_t ckpt_pieces_stem(const char *name);

#endif
