/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a staged step holds. An entry of hold/ is whole and durable when it has its name, HASH or HASH.sums: it is made
 * under another one.
 *
 * A payload that is stored as it is should cost no second copy: the staged file itself becomes the object, by a link.
 * But a commit may fail, or the machine stop, after that link was made; then the step is staged again, its file may be
 * written to, and what has the name of a hash in objects/ is something else. So before the first link the file gets a
 * mark, CKPT_ALIAS_XATTR, durably. Manifests name it only once its bytes can no longer change, and whoever comes from a
 * manifest may believe it. Whoever finds it by its hash alone does not believe a marked one, but makes an object of its
 * own, which takes the name over; unless no other link is left, the staged file's among them, and the bytes have that
 * hash: then the mark goes. In hold/ such links are called HASH.alias, and those that an earlier commit has left are
 * removed before they could be taken for good. recover.c takes care of a step that is staged again after its process
 * has ended.
 */
#include "core/commit/private.h"

#include "core/base/path.h"
#include "core/io/disk.h"
#include "core/store/internal.h"

#include <fcntl.h>
#include <stdio.h>
#include <sys/xattr.h>

#define COPY ((size_t)1 << 20)
#define TEMP ".tmp-"

void ckpt_hold_name(const uint8_t sha256[CKPT_SHA256], const char *suffix, char ret[HOLD_NAME])
{
    char hex[CKPT_HEX];
    ckpt_hash_hex(sha256, hex);
    snprintf(ret, HOLD_NAME, "%s%s", hex, suffix);
}

static bool there(int dir, const char *name)
{
    return faccessat(dir, name, F_OK, AT_SYMLINK_NOFOLLOW) == 0;
}

/* --- objects that are there --- */

/* Where an object's file is in the store, or was, or is again: things move from objects/ to the trash, and back. */
static int link_from_store(struct ckpt_hold *h, const uint8_t sha256[CKPT_SHA256], const char *suffix)
{
    char path[CKPT_OBJECT_PATH], live[2 * CKPT_OBJECT_PATH], trash[2 * CKPT_OBJECT_PATH], name[HOLD_NAME];
    ckpt_object_path(sha256, path);
    snprintf(live, sizeof live, "%s%s", path, suffix);
    snprintf(trash, sizeof trash, "objects/%s%s", path + 3, suffix);
    ckpt_hold_name(sha256, suffix, name);
    int r = ckpt_disk_link(h->store->objects, live, h->dir, name);
    if (r == -ENOENT)
        r = ckpt_disk_link(h->store->trash, trash, h->dir, name);
    if (r == -ENOENT)
        r = ckpt_disk_link(h->store->objects, live, h->dir, name);
    return r == -EEXIST ? 0 : r;
}

int ckpt_hold_object(struct ckpt_hold *h, const uint8_t sha256[CKPT_SHA256])
{
    char name[HOLD_NAME];
    ckpt_hold_name(sha256, "", name);
    if (there(h->dir, name))
        return 0;
    int r = link_from_store(h, sha256, ".sums"); /* before what needs them */
    if (r < 0 && r != -ENOENT)                   /* encoded ones have none */
        return r;
    return link_from_store(h, sha256, "");
}

/* A file that has a mark: its bytes count, once nobody can change them. */
static bool prove(int fd, const uint8_t sha256[CKPT_SHA256])
{
    struct stat st;
    uint8_t is[CKPT_SHA256];
    if (fstat(fd, &st) < 0 || st.st_nlink > 1)
        return false;
    if (ckpt_object_hash(fd, 0, (uint64_t)st.st_size, NULL, is, NULL, NULL) < 0)
        return false;
    if (memcmp(is, sha256, CKPT_SHA256))
        return false;
    return ckpt_disk_removexattr(fd, CKPT_ALIAS_XATTR) == 0;
}

int ckpt_hold_trusted(struct ckpt_backend *files, const char *path, const uint8_t sha256[CKPT_SHA256], uint64_t size,
                      struct ckpt_object_info *ret)
{
    struct ckpt_file *file;
    int r = ckpt_backend_open(files, path, &file);
    if (r < 0)
        return r == -ENOENT ? 0 : r;
    int fd = ckpt_file_fd(file);
    bool trusted = ckpt_object_stat(file, sha256, size, ret, NULL) == 0;
    if (trusted && fgetxattr(fd, CKPT_ALIAS_XATTR, NULL, 0) >= 0)
        trusted = prove(fd, sha256);
    ckpt_file_unref(file);
    return trusted;
}

static int open_dir(struct ckpt_hold *h, struct ckpt_backend **ret)
{
    char path[64];
    ckpt_fd_path(path, h->dir);
    return ckpt_backend_open_posix(path, ret, NULL);
}

int ckpt_hold_open(struct ckpt_hold *h, struct ckpt_cache *cache, const struct ckpt_ref *ref, struct ckpt_file **ret,
                   struct ckpt_err *err)
{
    struct ckpt_pins *pins = NULL; /* for this file alone, so that it is not held open longer */
    struct ckpt_backend *dir = NULL;
    uint64_t size = memcmp(ref->sha256, ref->object, CKPT_SHA256) ? UINT64_MAX : ref->size;
    int r = ckpt_pins_new(h->store->files, &pins);
    if (r == 0)
        r = ckpt_object_open(pins, cache, ref->object, size, ret, err);
    if (r == -ENOENT) {
        ckpt_pins_unref(CKPT_STEAL(pins));
        r = open_dir(h, &dir);
        if (r == 0)
            r = ckpt_pins_new(dir, &pins);
        if (r == 0)
            r = ckpt_object_open_held(pins, cache, ref->object, size, ret, err);
    }
    ckpt_pins_unref(pins);
    ckpt_backend_unref(dir);
    return r;
}

/* What is held under a name of hold/: 1 and *ret, or 0. */
static int look_at_held(struct ckpt_hold *h, const uint8_t sha256[CKPT_SHA256], uint64_t size,
                        struct ckpt_object_info *ret)
{
    char name[HOLD_NAME];
    struct ckpt_backend *b;
    struct ckpt_file *file;
    ckpt_hold_name(sha256, "", name);
    int r = open_dir(h, &b);
    if (r < 0)
        return r;
    r = ckpt_backend_open(b, name, &file);
    ckpt_backend_unref(b);
    if (r < 0)
        return r == -ENOENT ? 0 : r;
    r = ckpt_object_stat(file, sha256, size, ret, NULL) == 0;
    ckpt_file_unref(file);
    return r;
}

/* Holds an object of the store that can be trusted: 1, or 0. */
static int hold_trusted(struct ckpt_hold *h, const uint8_t sha256[CKPT_SHA256], uint64_t size)
{
    char path[CKPT_OBJECT_PATH], full[2 * CKPT_OBJECT_PATH];
    struct ckpt_object_info info;
    ckpt_object_path(sha256, path);
    snprintf(full, sizeof full, "objects/%s", path);
    int r = ckpt_hold_trusted(h->store->files, full, sha256, size, &info);
    if (r == 0) {
        snprintf(full, sizeof full, "trash/objects/%s", path + 3);
        r = ckpt_hold_trusted(h->store->files, full, sha256, size, &info);
    }
    if (r <= 0)
        return r;
    r = ckpt_hold_object(h, sha256);
    if (r == -ENOENT || r == -EMLINK) /* it went, or has as many links as there can be */
        return 0;
    return r < 0 ? r : 1;
}

/* An object of that content in hold/, or in the store and from now on in hold/: 1 and *ret, or 0. */
static int find_object(struct ckpt_hold *h, const uint8_t sha256[CKPT_SHA256], uint64_t size,
                       struct ckpt_object_info *ret)
{
    char name[HOLD_NAME];
    ckpt_hold_name(sha256, "", name);
    if (!there(h->dir, name)) {
        int held = hold_trusted(h, sha256, size);
        if (held <= 0)
            return held;
    }
    int r = look_at_held(h, sha256, size, ret);
    if (r == 0) /* it is damaged; better none than that one */
        r = ckpt_disk_unlink(h->dir, name, 0);
    return r == -ENOENT ? 0 : r;
}

/* --- objects that are made --- */

struct temporary {
    int fd;
    char name[HOLD_NAME];
};

static int temporary_open(struct ckpt_hold *h, struct temporary *ret)
{
    char random[17];
    ckpt_random_hex(random, 8);
    snprintf(ret->name, sizeof ret->name, "%s%s", TEMP, random);
    ret->fd = ckpt_disk_open(h->dir, ret->name, O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW, OBJECT_MODE);
    return CKPT_MIN(ret->fd, 0);
}

/* With what it has got so far in r: durable, and under its name; or gone. */
static int temporary_close(struct ckpt_hold *h, struct temporary *t, const char *name, int r)
{
    if (r == 0)
        r = ckpt_disk_fsync(t->fd);
    if (r == 0)
        r = ckpt_disk_rename(h->dir, t->name, h->dir, name, 0);
    if (r < 0)
        (void)!ckpt_disk_unlink(h->dir, t->name, 0);
    close(t->fd);
    return r;
}

static int write_sums(struct ckpt_hold *h, uint64_t size, const uint8_t sha256[CKPT_SHA256],
                      const struct ckpt_buf *sums, struct ckpt_err *err)
{
    struct temporary t;
    char name[HOLD_NAME];
    ckpt_hold_name(sha256, ".sums", name);
    if (there(h->dir, name))
        return 0;
    int r = temporary_open(h, &t);
    if (r == 0)
        r = temporary_close(h, &t, name, ckpt_object_write_sums(t.fd, size, sha256, sums, err));
    return r < 0 ? ckpt_fail(err, -r, "the sums of an object cannot be written: %s", strerror(-r)) : 0;
}

int ckpt_hold_copy_bytes(int fd, uint64_t size, int out, const atomic_bool *cancel)
{
    CKPT_AUTOFREE uint8_t *buf = malloc(COPY);
    if (!buf)
        return -ENOMEM;
    int r = 0;
    for (uint64_t off = 0; off < size && r == 0;) {
        ssize_t n = pread(fd, buf, (size_t)CKPT_MIN((uint64_t)COPY, size - off), (off_t)off);
        int error = errno;
        if (n < 0 && error == EINTR)
            continue;
        if (cancel && atomic_load_explicit(cancel, memory_order_relaxed))
            return -ECANCELED;
        if (n < 0)
            return -error;
        if (n == 0)
            return -EBADMSG;
        r = ckpt_disk_write(out, buf, (size_t)n, off);
        off += (uint64_t)n;
    }
    return r;
}

static int make_copy(struct ckpt_hold *h, const struct hold_input *in, const uint8_t sha256[CKPT_SHA256])
{
    struct temporary t;
    char name[HOLD_NAME];
    ckpt_hold_name(sha256, "", name);
    int r = temporary_open(h, &t);
    return r < 0 ? r : temporary_close(h, &t, name, ckpt_hold_copy_bytes(in->fd, in->size, t.fd, in->cancel));
}

static bool cannot_have_mark(int r)
{
    bool no_room = r == -ENOSPC || r == -E2BIG, not_allowed = r == -EACCES || r == -EPERM;
    return no_room || not_allowed || r == -EOPNOTSUPP;
}

/* The mark is on the disk before the link can be. */
static int make_alias(struct ckpt_hold *h, const struct hold_input *in, const uint8_t sha256[CKPT_SHA256])
{
    char name[HOLD_NAME];
    ckpt_hold_name(sha256, CKPT_ALIAS_SUFFIX, name);
    struct stat st;
    char mark[CKPT_SEAL_MARK];
    if (fstat(in->fd, &st) < 0)
        return -errno;
    (void)ckpt_seal_marked(in->fd, &st);
    ckpt_seal_mark(&st, mark);
    int r = ckpt_disk_setxattr(in->fd, CKPT_ALIAS_XATTR, mark, strlen(mark));
    if (cannot_have_mark(r))
        return make_copy(h, in, sha256);
    if (r == 0)
        r = ckpt_disk_fsync(in->fd);
    if (r == 0)
        r = ckpt_disk_link(in->dir, in->name, h->dir, name);
    if (r == -EPERM || r == -EMLINK)
        return make_copy(h, in, sha256);
    return r == -EEXIST ? 0 : r; /* of another file with these bytes, by this commit */
}

static int make_raw(struct ckpt_hold *h, const struct hold_input *in, const uint8_t sha256[CKPT_SHA256],
                    struct ckpt_err *err)
{
    char name[HOLD_NAME];
    int r;
    switch (in->raw) {
    case HOLD_COPY:
        r = make_copy(h, in, sha256);
        break;
    case HOLD_ALIAS_OF:
        r = make_alias(h, in, sha256);
        break;
    case HOLD_MOVE:
        ckpt_hold_name(sha256, "", name);
        r = ckpt_disk_fsync(in->fd);
        if (r == 0)
            r = ckpt_disk_rename(in->dir, in->name, h->dir, name, 0);
        break;
    default:
        r = ckpt_disk_fsync(in->fd);
    }
    return r < 0 ? ckpt_fail(err, -r, "its object cannot be made: %s", strerror(-r)) : 0;
}

static int make_sparse(struct ckpt_hold *h, const struct hold_input *in, struct ckpt_ref *ref,
                       const struct ckpt_buf *present, struct ckpt_err *err)
{
    struct temporary t;
    char name[HOLD_NAME];
    ckpt_hold_name(ref->object, "", name);
    int r = temporary_open(h, &t);
    if (r < 0)
        return ckpt_fail(err, -r, "its object cannot be made: %s", strerror(-r));
    struct ckpt_err own = {0};
    struct ckpt_object_input object = {
        .fd = in->fd,
        .len = in->size,
        .typesize = in->typesize,
        .sha256 = ref->object,
        .present = present,
        .cancel = in->cancel,
    };
    r = ckpt_object_encode_sparse(&object, t.fd, &ref->stored, &own);
    r = temporary_close(h, &t, name, r);
    return r < 0 ? ckpt_fail(err, -r, "%s", own.code == -r ? own.text : strerror(-r)) : 0;
}

static int hold_sparse(struct ckpt_hold *h, const struct hold_input *in, struct ckpt_ref *ret, struct ckpt_err *err)
{
    struct ckpt_ref ref = {.size = in->size, .codec = CKPT_OBJECT_SPARSE};
    struct ckpt_object_info found;
    struct ckpt_buf present = CKPT_BUF_INIT;
    int r = ckpt_object_hash_sparse(in->fd, in->size, in->cancel, ref.object, &present, err);
    if (r == 0) {
        memcpy(ref.sha256, ref.object, CKPT_SHA256);
        r = find_object(h, ref.object, in->size, &found);
        if (r == 1)
            ref.stored = found.stored;
        else if (r == 0)
            r = make_sparse(h, in, &ref, &present, err);
        else
            ckpt_fail(err, -r, "the store cannot be searched: %s", strerror(-r));
    }
    ckpt_buf_clear(&present);
    if (r < 0)
        return r;
    *ret = ref;
    return 0;
}

/* 0, or 1 if it turned out to save nothing. */
static int make_encoded(struct ckpt_hold *h, const struct hold_input *in, enum ckpt_object_codec codec,
                        struct ckpt_ref *ref, const struct ckpt_buf *sums, struct ckpt_err *err)
{
    struct temporary t;
    char name[HOLD_NAME];
    struct ckpt_err own = {0};
    ckpt_hold_name(ref->sha256, "", name);
    int r = temporary_open(h, &t);
    if (r == 0) {
        struct ckpt_object_input object = {
            .fd = in->fd,
            .len = in->size,
            .codec = codec,
            .typesize = in->typesize,
            .chunk_bytes = in->chunk,
            .sha256 = ref->sha256,
            .sums = sums,
            .cancel = in->cancel,
        };
        r = ckpt_object_encode(&object, t.fd, &ref->stored, &own);
        bool useless = r == 0 && in->sample && ref->stored >= in->size;
        r = temporary_close(h, &t, name, useless ? -E2BIG : r);
        if (useless && r == -E2BIG)
            return 1;
    }
    if (r < 0 && own.code == -r) {
        if (err)
            *err = own;
        return r;
    }
    ref->codec = codec;
    return r < 0 ? ckpt_fail(err, -r, "its object cannot be made: %s", strerror(-r)) : 0;
}

static int make(struct ckpt_hold *h, const struct hold_input *in, struct ckpt_ref *ref, const struct ckpt_buf *sums,
                struct ckpt_err *err)
{
    enum ckpt_object_codec codec = in->codec;
    if (in->sample)
        codec = ckpt_object_sample(in->fd, 0, in->size, in->codec, in->typesize);
    int r = codec == CKPT_OBJECT_NONE ? 1 : make_encoded(h, in, codec, ref, sums, err);
    if (r <= 0)
        return r;
    ref->codec = CKPT_OBJECT_NONE;
    ref->stored = in->size;
    r = write_sums(h, in->size, ref->sha256, sums, err);
    return r < 0 ? r : make_raw(h, in, ref->sha256, err);
}

int ckpt_hold_content(struct ckpt_hold *h, const struct hold_input *in, struct ckpt_ref *ret, struct ckpt_err *err)
{
    struct ckpt_ref ref = {.size = in->size};
    struct ckpt_object_info found;
    struct ckpt_buf sums = CKPT_BUF_INIT;
    struct stat st;
    if (in->size > CKPT_LEAF_MAX) /* the kernel writes some files by itself, and has other limits */
        return ckpt_fail(err, EFBIG, "has %llu bytes, where a file of a step has at most %llu: make it shorter",
                         (unsigned long long)in->size, (unsigned long long)CKPT_LEAF_MAX);
    if (fstat(in->fd, &st) == 0 && ckpt_object_wants_sparse(in->size, (uint64_t)st.st_blocks * 512))
        return hold_sparse(h, in, ret, err);
    int r = ckpt_object_hash(in->fd, 0, in->size, in->cancel, ref.sha256, &sums, err);
    if (r == 0) {
        memcpy(ref.object, ref.sha256, CKPT_SHA256);
        r = find_object(h, ref.sha256, in->size, &found);
        if (r == 1) {
            ref.codec = found.codec;
            ref.stored = found.stored;
            /* Sums may be missing where another commit was cut short between the two. */
            r = found.codec == CKPT_OBJECT_NONE ? write_sums(h, in->size, ref.sha256, &sums, err) : 0;
        } else if (r == 0)
            r = make(h, in, &ref, &sums, err);
        else
            r = ckpt_fail(err, -r, "the store cannot be searched: %s", strerror(-r));
    }
    ckpt_buf_clear(&sums);
    if (r == 0)
        *ret = ref;
    return r;
}

int ckpt_hold_known(struct ckpt_hold *h, const struct hold_input *in, const struct ckpt_ref *ref, struct ckpt_err *err)
{
    char name[HOLD_NAME], sums[HOLD_NAME];
    ckpt_hold_name(ref->object, "", name);
    ckpt_hold_name(ref->object, ".sums", sums);
    if (there(h->dir, name))
        return 1;
    if (ref->codec != CKPT_OBJECT_NONE || in->raw != HOLD_ALIAS_OF || !there(h->dir, sums))
        return 0;
    int r = make_raw(h, in, ref->sha256, err);
    return r < 0 ? r : 1;
}

/* --- files --- */

/* Bytes of an element, of what begins like an array; 0: it does not. */
static unsigned element_size(int fd)
{
    uint8_t head[4096];
    struct ckpt_npy npy;
    ssize_t n = pread(fd, head, sizeof head, 0);
    if (n <= 0 || ckpt_npy_parse(head, (size_t)n, &npy, NULL) < 0)
        return 0;
    return CKPT_MAX(npy.itemsize, 1u);
}

void ckpt_hold_choose(struct hold_input *in, enum ckpt_object_codec codec, bool npy)
{
    bool may_be_blosc = codec != CKPT_OBJECT_LZ4 && codec != CKPT_OBJECT_NONE;
    unsigned element = npy && may_be_blosc ? element_size(in->fd) : 0;
    in->sample = codec == CKPT_OBJECT_AUTO;
    in->codec = codec;
    if (codec != CKPT_OBJECT_NONE)
        in->codec = element ? CKPT_OBJECT_BLOSC : CKPT_OBJECT_LZ4;
    in->typesize = CKPT_MAX(element, 1u);
    in->chunk = CKPT_OBJECT_CHUNK;
}

int ckpt_hold_file(struct ckpt_hold *h, int fd, const char *name, enum ckpt_object_codec codec, bool frozen,
                   const atomic_bool *cancel, struct ckpt_ref *ret, struct ckpt_err *err)
{
    struct stat st;
    if (fstat(fd, &st) < 0)
        return ckpt_fail(err, errno, "%s: %s", name, strerror(errno));
    struct hold_input in = {
        .fd = fd, .size = (uint64_t)st.st_size, .raw = frozen ? HOLD_COPY : HOLD_LATER, .dir = -1, .cancel = cancel};
    if (in.size < CKPT_SMALL) {
        *ret = (struct ckpt_ref){.size = in.size};
        return ckpt_object_hash(fd, 0, in.size, cancel, ret->sha256, NULL, err);
    }
    ckpt_hold_choose(&in, codec, ckpt_has_suffix(name, ".npy"));
    return ckpt_hold_content(h, &in, ret, err);
}

/* --- what is left over --- */

static int sweep_one(void *arg, int dir, const char *name)
{
    bool left = !strncmp(name, TEMP, strlen(TEMP)) || ckpt_has_suffix(name, CKPT_ALIAS_SUFFIX);
    return left ? ckpt_disk_unlink(dir, name, 0) : 0;
}

int ckpt_hold_sweep(struct ckpt_hold *h)
{
    return ckpt_names_each(h->dir, ".", sweep_one, NULL);
}
