/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the bytes of a leaf do not tell: the type of a number, of quantised blocks, of random keys. Who writes a file
 * may say so in user.ckpt.* attributes. What comes from a committed leaf is in an attribute of our own, with the hash
 * of the content that it is true of, so that it ends with the first change of that.
 */
#include "core/commit/private.h"

#include "core/io/disk.h"
#include "core/tree/key.h"

#include <limits.h>
#include <stdio.h>
#include <sys/xattr.h>

#define TOLD_XATTR "user.ckptfs.told"
#define TOLD_ROOM  1024

/* Words by their names: "dtype Q4_0\nshape 1,256\n". */
struct told {
    char dtype[CKPT_MANIFEST_TOLD_MAX + 1], prng_impl[CKPT_MANIFEST_TOLD_MAX + 1], shape[512];
};

/* --- keeping --- */

/* What is told of it; NULL: its bytes say it. */
static const char *type_of(const struct ckpt_manifest_node *n)
{
    enum ckpt_dtype plain;
    bool big;
    if (n->kind != CKPT_NODE_ARRAY)
        return n->type;
    if (n->npy.dtype == CKPT_DT_OTHER || n->npy.dtype == CKPT_DT_BF16)
        return NULL;
    bool is_plain = ckpt_dtype_by_descr(n->npy.descr, &plain, &big) && plain == n->npy.dtype;
    return is_plain ? NULL : ckpt_dtype_info(n->npy.dtype)->name;
}

static void add_word(struct ckpt_buf *text, const char *name, const char *word)
{
    if (word)
        ckpt_buf_addf(text, "%s %s\n", name, word);
}

static int keep_told(int fd, const struct ckpt_manifest_node *n)
{
    CKPT_AUTOBUF struct ckpt_buf text = CKPT_BUF_INIT;
    ckpt_buf_add(&text, n->sha256, CKPT_SHA256);
    add_word(&text, "dtype", type_of(n));
    add_word(&text, "prng_impl", n->prng_impl);
    for (unsigned i = 0; n->shaped && i <= n->npy.ndim; i++) {
        if (i < n->npy.ndim)
            ckpt_buf_addf(&text, "%s%llu", i ? "," : "shape ", (unsigned long long)n->npy.shape[i]);
        else
            ckpt_buf_adds(&text, i ? "\n" : "shape \n");
    }
    int r = ckpt_buf_error(&text);
    if (r < 0 || text.len == CKPT_SHA256)
        return r;
    return ckpt_disk_setxattr(fd, TOLD_XATTR, text.data, text.len);
}

/* Would its name make something else of a blob? */
static bool looks_like_leaf(const char *name)
{
    return ckpt_has_suffix(name, ".npy") || ckpt_has_suffix(name, ".json");
}

int ckpt_told_keep(int fd, const struct ckpt_manifest_node *n, const char *name)
{
    int r = keep_told(fd, n);
    if (r == 0 && n->kind == CKPT_NODE_BLOB && looks_like_leaf(n->name))
        r = ckpt_disk_setxattr(fd, "user.ckpt.kind", "blob", 4);
    bool whole = n->whole && !strcmp(n->name, name);
    if (r == 0 && whole)
        r = ckpt_disk_setxattr(fd, "user.ckpt.key", name, strlen(name) - strlen(".npy"));
    return r;
}

int ckpt_told_copy(int from, int to)
{
    char text[TOLD_ROOM];
    ssize_t n = fgetxattr(from, TOLD_XATTR, text, sizeof text);
    return n > 0 ? ckpt_disk_setxattr(to, TOLD_XATTR, text, (size_t)n) : 0;
}

/* --- reading --- */

/* An attribute as text. False: there is none, or it is longer. */
static bool read_word(int fd, const char *name, char *ret, size_t size)
{
    ssize_t n = fgetxattr(fd, name, ret, size - 1);
    bool ok = n > 0 && !memchr(ret, 0, (size_t)n);
    ret[ok ? n : 0] = 0;
    return ok;
}

static void take_word(const char *line, const char *name, char *ret, size_t size)
{
    size_t n = strlen(name);
    bool is_this = !strncmp(line, name, n) && line[n] == ' ';
    if (is_this && !*ret)
        snprintf(ret, size, "%s", line + n + 1);
}

/* What is kept of this very content, so far as nothing else is said. */
static void read_kept(int fd, const uint8_t sha256[CKPT_SHA256], struct told *ret)
{
    char text[TOLD_ROOM], *rest = text + CKPT_SHA256, *line;
    ssize_t n = fgetxattr(fd, TOLD_XATTR, text, sizeof text - 1);
    if (n < (ssize_t)CKPT_SHA256 || memcmp(text, sha256, CKPT_SHA256))
        return;
    text[n] = 0;
    while ((line = strsep(&rest, "\n"))) {
        take_word(line, "dtype", ret->dtype, sizeof ret->dtype);
        take_word(line, "prng_impl", ret->prng_impl, sizeof ret->prng_impl);
        take_word(line, "shape", ret->shape, sizeof ret->shape);
    }
}

/* "1,256", or JSON: "[1,256]". */
static bool parse_shape(const char *text, struct ckpt_npy *ret)
{
    bool bracket = *text == '[';
    ret->ndim = 0;
    for (const char *p = text + bracket; *p && *p != ']';) {
        char *end;
        errno = 0;
        p += *p == ' ';
        uint64_t size = strtoull(p, &end, 10);
        bool more = *end == ',';
        bool ok = *p >= '0' && *p <= '9' && !errno && size <= CKPT_LEAF_MAX && ret->ndim < CKPT_MAX_DIMS;
        if (!ok || !(more || !*end || (bracket && *end == ']')))
            return false;
        ret->shape[ret->ndim++] = size;
        p = end + more;
    }
    return true;
}

static int set_type(struct ckpt_manifest_node *n, const char *type)
{
    if (!*type)
        return 0;
    n->type = strdup(type);
    return n->type ? 0 : -ENOMEM;
}

/* Only where another one than the text would have. */
static int apply_value(struct ckpt_manifest_node *n, const struct told *told)
{
    char number[64];
    snprintf(number, sizeof number, "%.*s", (int)strcspn(n->text, " \t\r\n"), n->text);
    enum ckpt_dtype natural = ckpt_dtype_for_json(number);
    bool is_natural = natural != CKPT_DT_OTHER && !strcmp(told->dtype, ckpt_dtype_info(natural)->name);
    return is_natural || !ckpt_told_fits(told->dtype, n->text) ? 0 : set_type(n, told->dtype);
}

static int apply_blob(struct ckpt_manifest_node *n, const struct told *told)
{
    if (!ckpt_told_ok(told->dtype))
        return 0;
    n->shaped = *told->shape && parse_shape(told->shape, &n->npy);
    return set_type(n, told->dtype);
}

/* The type that a file's own attribute says is in npy already. */
static int apply_array(struct ckpt_manifest_node *n, const struct told *told, bool is_said)
{
    enum ckpt_dtype dtype;
    if (ckpt_told_ok(told->prng_impl) && !(n->prng_impl = strdup(told->prng_impl)))
        return -ENOMEM;
    if (is_said || !ckpt_dtype_by_name(told->dtype, &dtype))
        return 0;
    bool opaque = *n->npy.descr == '[' || ckpt_dtype_info(dtype)->size != n->npy.itemsize;
    if (!opaque)
        n->npy.dtype = dtype;
    return 0;
}

/* Most files have nothing of it, which one call tells. */
static bool may_be_told(int fd)
{
    char names[1024];
    ssize_t n = flistxattr(fd, names, sizeof names);
    bool found = n < 0 && errno == ERANGE;
    for (const char *p = names; !found && p < names + n; p += strlen(p) + 1)
        found = !strncmp(p, "user.ckpt.", 10) || !strcmp(p, TOLD_XATTR);
    return found;
}

int ckpt_told_apply(int fd, struct ckpt_manifest_node *n)
{
    struct told told = {0};
    if (!may_be_told(fd))
        return 0;
    bool is_said = read_word(fd, "user.ckpt.dtype", told.dtype, sizeof told.dtype);
    (void)read_word(fd, "user.ckpt.prng_impl", told.prng_impl, sizeof told.prng_impl);
    (void)read_word(fd, "user.ckpt.shape", told.shape, sizeof told.shape);
    read_kept(fd, n->sha256, &told);
    switch (n->kind) {
    case CKPT_NODE_VALUE:
        return apply_value(n, &told);
    case CKPT_NODE_BLOB:
        return apply_blob(n, &told);
    case CKPT_NODE_ARRAY:
        return apply_array(n, &told, is_said);
    default:
        return 0;
    }
}

bool ckpt_told_blob(int fd, const char *name)
{
    char kind[16];
    return looks_like_leaf(name) && read_word(fd, "user.ckpt.kind", kind, sizeof kind) && !strcmp(kind, "blob");
}

static bool is_name_of(const char *key, size_t len, const char *suffix, const char *name)
{
    CKPT_AUTOBUF struct ckpt_buf listed = CKPT_BUF_INIT;
    ckpt_key_escape(&listed, key, len, suffix);
    return !ckpt_buf_error(&listed) && listed.len == strlen(name) && !memcmp(listed.data, name, listed.len);
}

bool ckpt_told_whole(int dir, const char *name)
{
    char path[NAME_MAX + 64], key[NAME_MAX + 1];
    size_t stem = strlen(name) - strlen(".npy");
    snprintf(path, sizeof path, "/proc/self/fd/%d/%s", dir, name);
    ssize_t n = lgetxattr(path, "user.ckpt.key", key, sizeof key);
    if (n < 0)
        return false;
    bool as_listed = (size_t)n == stem && !memcmp(key, name, stem);
    return as_listed || is_name_of(key, (size_t)n, ".npy", name) || is_name_of(key, (size_t)n, "", name);
}
