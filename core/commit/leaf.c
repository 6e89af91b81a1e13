/* SPDX-License-Identifier: Apache-2.0 */
/* What the files of a staged step are, from their names, their first bytes and their attributes. */
#include "core/commit/private.h"

#include "core/store/internal.h"

#include <fcntl.h>
#include <linux/limits.h>
#include <stdio.h>
#include <sys/xattr.h>

#define HEAD         ((size_t)4096) /* holds nearly every .npy header */
#define SHARED_CACHE ((uint64_t)8 << 20)

/* --- content that is stored already --- */

struct commit_shared {
    struct ckpt_pool *pool;
    struct ckpt_cache *cache;
    struct ckpt_file *object; /* the last one: many small leaves are in one pack */
    uint8_t sha256[CKPT_SHA256];
};

void ckpt_shared_close(struct commit *c)
{
    struct commit_shared *s = c->shared;
    if (!s)
        return;
    if (s->object)
        ckpt_file_unref(s->object);
    ckpt_pool_free(s->pool);
    ckpt_cache_free(s->cache);
    free(s);
    c->shared = NULL;
}

static int shared_begin(struct commit *c)
{
    const struct ckpt_cache_options options = {.memory = SHARED_CACHE, .spill_dir = "/var/tmp"};
    if (c->shared)
        return 0;
    c->shared = calloc(1, sizeof *c->shared);
    if (!c->shared)
        return -ENOMEM;
    int r = ckpt_pool_new(1, &c->shared->pool);
    if (r == 0)
        r = ckpt_cache_new(&options, c->shared->pool, &c->shared->cache);
    if (r < 0)
        ckpt_shared_close(c);
    return r;
}

int ckpt_shared_open(struct commit *c, const struct ckpt_ref *ref, struct ckpt_file **ret, struct ckpt_err *err)
{
    int r = shared_begin(c);
    if (r < 0)
        return ckpt_fail(err, -r, "%s", strerror(-r));
    struct commit_shared *s = c->shared;
    if (!s->object || memcmp(s->sha256, ref->object, CKPT_SHA256)) {
        struct ckpt_file *object;
        r = ckpt_hold_open(&c->hold, s->cache, ref, &object, err);
        if (r == -ENOENT)
            return ckpt_fail(err, EIO, "its content cannot be read: it is missing from the store");
        if (r < 0)
            return ckpt_fail(err, -r, "its content cannot be read: %s", strerror(-r));
        if (s->object)
            ckpt_file_unref(s->object);
        s->object = object;
        memcpy(s->sha256, ref->object, CKPT_SHA256);
    }
    if (ref->offset > s->object->st.size || ref->size > s->object->st.size - ref->offset)
        return ckpt_fail(err, EUCLEAN, "its content lies beyond the end of the object that it should be in");
    *ret = ckpt_file_ref(s->object);
    return 0;
}

/* --- files --- */

void ckpt_leaf_close(struct leaf_file *f)
{
    if (f->object)
        ckpt_file_unref(f->object);
    if (f->fd >= 0)
        close(f->fd);
    f->object = NULL;
    f->fd = -1;
}

static int read_ref(struct leaf_file *f, struct ckpt_err *err)
{
    int r = ckpt_ref_of(f->fd, &f->ref);
    if (r == -EUCLEAN)
        return ckpt_fail(err, EUCLEAN, "its reference to stored content is damaged: write it again");
    if (r < 0)
        return ckpt_fail(err, -r, "its attributes cannot be read: %s", strerror(-r));
    f->is_shared = r;
    f->size = r ? f->ref.size : (uint64_t)f->st.st_size;
    return 0;
}

int ckpt_leaf_open(int dir, const char *name, struct leaf_file *ret, struct ckpt_err *err)
{
    struct leaf_file f = {.fd = openat(dir, name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY | O_CLOEXEC)};
    if (f.fd < 0 || fstat(f.fd, &f.st) < 0) {
        int r = ckpt_fail(err, errno, "cannot be read: %s", strerror(errno));
        ckpt_leaf_close(&f);
        return r;
    }
    int r = S_ISREG(f.st.st_mode) ? read_ref(&f, err) : ckpt_fail(err, EPERM, "not a file");
    if (r < 0) {
        ckpt_leaf_close(&f);
        return r;
    }
    f.is_blob = ckpt_told_blob(f.fd, name);
    *ret = f;
    return 0;
}

/* A negative errno, also of the disk. */
static ssize_t read_some(const struct leaf_file *f, uint8_t *buf, size_t len, uint64_t off)
{
    if (f->is_shared)
        return ckpt_file_read(f->object, buf, len, f->ref.offset + off);
    ssize_t n = pread(f->fd, buf, len, (off_t)off);
    return n < 0 ? -errno : n;
}

int ckpt_leaf_read(struct commit *c, struct leaf_file *f, void *buf, size_t len, uint64_t off, struct ckpt_err *err)
{
    if (f->is_shared && !f->object) {
        int r = ckpt_shared_open(c, &f->ref, &f->object, err);
        if (r < 0)
            return r;
    }
    for (size_t done = 0; done < len;) {
        ssize_t n = read_some(f, (uint8_t *)buf + done, len - done, off + done);
        if (n == -EINTR)
            continue;
        if (n < 0)
            return ckpt_fail(err, (int)-n, "cannot be read: %s", strerror((int)-n));
        if (n == 0)
            return ckpt_fail(err, EBADMSG, "became shorter while it was read");
        done += (size_t)n;
    }
    return 0;
}

static bool is_hole_on_disk(const struct leaf_file *f, uint64_t off, uint64_t len)
{
    bool has_holes = (uint64_t)f->st.st_blocks * 512 < f->size;
    if (!has_holes)
        return false;
    off_t data = lseek(f->fd, (off_t)off, SEEK_DATA);
    if (data < 0)
        return errno == ENXIO; /* a hole up to its end */
    return (uint64_t)data >= off + len;
}

int ckpt_leaf_hole(struct commit *c, struct leaf_file *f, uint64_t off, uint64_t len, struct ckpt_err *err)
{
    uint64_t end;
    if (!f->is_shared)
        return is_hole_on_disk(f, off, len);
    int r = f->object ? 0 : ckpt_shared_open(c, &f->ref, &f->object, err);
    if (r < 0)
        return r;
    bool data = ckpt_file_data(f->object, f->ref.offset + off, &end);
    return !data && end - f->ref.offset >= off + len;
}

/* --- arrays --- */

/* Bytes before the data, as the first bytes say; they may be wrong. */
static size_t header_bytes(const uint8_t *head, size_t len)
{
    if (len < 12)
        return len;
    if (head[6] == 1) /* the version: 1 has a length of two bytes, later ones have four */
        return 10 + (size_t)ckpt_le16(head + 8);
    return 12 + (size_t)CKPT_MIN(ckpt_le32(head + 8), (uint32_t)CKPT_NPY_HEADER_MAX);
}

/* *ret_read: false when it is the reading that failed. */
static int read_header(struct commit *c, struct leaf_file *f, struct ckpt_npy *ret, bool *ret_read,
                       struct ckpt_err *err)
{
    uint8_t head[HEAD];
    CKPT_AUTOFREE uint8_t *large = NULL;
    size_t len = (size_t)CKPT_MIN((uint64_t)HEAD, f->size);
    size_t kept = f->is_shared ? ckpt_head_kept(f->fd, &f->ref, head) : 0;
    bool is_all = kept == f->size || header_bytes(head, kept) <= kept;
    *ret_read = true;
    if (kept && is_all)
        return ckpt_npy_parse(head, kept, ret, err);
    int r = ckpt_leaf_read(c, f, head, len, 0, err);
    *ret_read = r == 0;
    if (r < 0)
        return r;
    size_t want = (size_t)CKPT_MIN((uint64_t)header_bytes(head, len), f->size);
    if (want <= len || memcmp(head, "\x93NUMPY", 6))
        return ckpt_npy_parse(head, len, ret, err);
    large = malloc(want);
    r = large ? ckpt_leaf_read(c, f, large, want, 0, err) : ckpt_no_memory(err);
    *ret_read = r == 0;
    return r < 0 ? r : ckpt_npy_parse(large, want, ret, err);
}

/* The true type: what the attribute says; a void of two bytes is bfloat16. */
static int read_dtype(struct leaf_file *f, struct ckpt_npy *npy, struct ckpt_err *err)
{
    char name[sizeof npy->descr + 1];
    enum ckpt_dtype dtype;
    ssize_t n = fgetxattr(f->fd, "user.ckpt.dtype", name, sizeof name - 1);
    if (n < 0 && errno != ERANGE) { /* there is none */
        bool is_void2 = !strcmp(npy->descr, "<V2") || !strcmp(npy->descr, "|V2");
        if (is_void2)
            npy->dtype = CKPT_DT_BF16;
        return 0;
    }
    name[CKPT_MAX(n, 0)] = 0;
    if (n >= 0 && !strcmp(name, npy->descr)) /* what a mount says of types that have no name, brought here by a copy */
        return 0;
    if (n < 0 || !ckpt_dtype_by_name(name, &dtype))
        return ckpt_fail(err, EUCLEAN, "its user.ckpt.dtype is not the name of a type: \"%s\"", name);
    bool opaque = npy->dtype == CKPT_DT_OTHER && (*npy->descr == '[' || !strchr(npy->descr, 'V'));
    if (ckpt_dtype_info(dtype)->size != npy->itemsize || opaque)
        return ckpt_fail(err, EUCLEAN, "its user.ckpt.dtype is %s, which no element of type %s can be", name,
                         npy->descr);
    npy->dtype = dtype;
    return 0;
}

int ckpt_leaf_array(struct commit *c, struct leaf_file *f, struct ckpt_npy *ret, struct ckpt_err *err)
{
    struct ckpt_err own = {0};
    bool read;
    if (f->is_blob)
        return 0;
    int r = read_header(c, f, ret, &read, &own);
    bool is_other = r == -EUCLEAN || r == -EOPNOTSUPP; /* something else than an array that this program knows */
    if (read && is_other)
        return 0;
    if (r < 0)
        return ckpt_fail(err, -r, read ? "is not complete: %s" : "%s", own.text);
    unsigned long long has = f->size, want = ret->header + ret->nbytes;
    if (has < want)
        return ckpt_fail(err, EBADMSG, "is not complete: it has %llu of %llu bytes", has, want);
    if (has > want)
        return ckpt_fail(err, EBADMSG, "has %llu bytes, where its array ends at %llu", has, want);
    r = read_dtype(f, ret, err);
    return r < 0 ? r : 1;
}

/* --- values --- */

int ckpt_leaf_value(struct commit *c, struct leaf_file *f, char **ret, struct ckpt_err *err)
{
    if (f->is_blob || !f->size || f->size > CKPT_MANIFEST_TEXT_MAX)
        return 0;
    CKPT_AUTOFREE char *text = malloc(f->size + 1);
    if (!text)
        return ckpt_no_memory(err);
    int r = ckpt_leaf_read(c, f, text, f->size, 0, err);
    if (r < 0)
        return r;
    text[f->size] = 0;
    if (memchr(text, 0, f->size) || !ckpt_manifest_text_ok(text, f->size))
        return 0;
    *ret = CKPT_STEAL(text);
    return 1;
}

/* --- attributes --- */

/* Those of ours are made from what the manifest says. */
static bool is_users(const char *name)
{
    return !strncmp(name, "user.", 5) && strncmp(name, "user.ckpt.", 10) && strncmp(name, "user.ckptfs.", 12);
}

static bool is_too_long(int error)
{
    return error == ERANGE || error == E2BIG;
}

static int too_many(struct ckpt_err *err)
{
    return ckpt_fail(err, EOPNOTSUPP, "has more extended attributes than a manifest has room for");
}

static int add_xattr(struct ckpt_buf *json, int fd, const char *name, struct ckpt_err *err)
{
    CKPT_AUTOFREE uint8_t *value = malloc(XATTR_SIZE_MAX);
    if (!value)
        return ckpt_no_memory(err);
    if (!ckpt_utf8(name, strlen(name)))
        return ckpt_fail(err, EOPNOTSUPP, "has an extended attribute whose name is not UTF-8");
    ssize_t n = fgetxattr(fd, name, value, XATTR_SIZE_MAX);
    if (n < 0 && is_too_long(errno))
        return too_many(err);
    if (n < 0)
        return ckpt_fail(err, errno, "its attribute %s: %s", name, strerror(errno));
    if (json->len > CKPT_MANIFEST_XATTRS_MAX)
        return too_many(err);
    ckpt_buf_addc(json, json->len ? ',' : '{');
    ckpt_buf_add_json_string(json, name, strlen(name));
    ckpt_buf_adds(json, ":\"");
    for (ssize_t i = 0; i < n; i++) {
        static const char digits[] = "0123456789abcdef";
        ckpt_buf_addc(json, digits[value[i] >> 4]);
        ckpt_buf_addc(json, digits[value[i] & 15]);
    }
    ckpt_buf_addc(json, '"');
    return 0;
}

static int by_name(const void *a, const void *b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

static int add_xattrs(struct ckpt_buf *json, int fd, char *list, size_t len, struct ckpt_err *err)
{
    size_t count = 0;
    for (const char *p = list; p < list + len; p += strlen(p) + 1)
        count += is_users(p);
    if (!count)
        return 0;
    CKPT_AUTOFREE char **names = malloc(count * sizeof *names);
    if (!names)
        return ckpt_no_memory(err);
    count = 0;
    for (char *p = list; p < list + len; p += strlen(p) + 1)
        if (is_users(p))
            names[count++] = p;
    qsort(names, count, sizeof *names, by_name);
    int r = 0;
    for (size_t i = 0; i < count && r == 0; i++)
        r = add_xattr(json, fd, names[i], err);
    ckpt_buf_addc(json, '}');
    return r;
}

int ckpt_leaf_xattrs(int fd, char **ret, struct ckpt_err *err)
{
    char few[1024], *list = few;
    CKPT_AUTOFREE char *many = NULL;
    struct ckpt_buf json = CKPT_BUF_INIT;
    *ret = NULL;
    ssize_t n = flistxattr(fd, few, sizeof few);
    if (n < 0 && errno == ERANGE) {
        list = many = malloc(XATTR_LIST_MAX);
        if (!list)
            return ckpt_no_memory(err);
        n = flistxattr(fd, many, XATTR_LIST_MAX);
    }
    if (n < 0 && (errno == EOPNOTSUPP || errno == ENOSYS))
        return 0;
    if (n < 0 && is_too_long(errno))
        return too_many(err);
    if (n < 0)
        return ckpt_fail(err, errno, "its attributes cannot be read: %s", strerror(errno));
    int r = add_xattrs(&json, fd, list, (size_t)n, err);
    if (r == 0 && ckpt_buf_error(&json) < 0)
        r = ckpt_no_memory(err);
    if (r == 0 && json.len > CKPT_MANIFEST_XATTRS_MAX)
        r = too_many(err);
    if (r == 0 && json.len) {
        *ret = ckpt_buf_steal(&json, NULL);
        if (!*ret)
            r = ckpt_no_memory(err);
    }
    ckpt_buf_clear(&json);
    return r;
}
