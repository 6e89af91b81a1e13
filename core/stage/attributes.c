/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Attributes of staged files: the user's own are kept with the file on disk; of user.ckpt.* those that a commit reads;
 * a step's state is shown.
 *
 * What is set here has its place in a manifest, and again in each staged copy of the step. A file system may have as
 * little room for a file's attributes as one block, in which those of ours lie too. So one that would leave too little
 * for these, or for the manifest, is refused (ENOSPC).
 */
#include "core/stage/private.h"

#include "core/array/npy.h"
#include "core/base/path.h"

#include <linux/limits.h>
#include <stdio.h>
#include <sys/xattr.h>

#define PREFIX     "user.ckpt."
#define NOT_TOLD   "the step is not committed; who may commit it is told why"
#define ROOM_XATTR "user.ckptfs.room"
/* A copy may have user.ckpt.dtype as well, and fills what room there is in another order. */
#define ROOM ((size_t)256)

/* One that is set. */
struct setting {
    const char *name, *value;
    size_t len;
    int flags; /* XATTR_CREATE, XATTR_REPLACE */
};

static bool has_prefix(const char *name, const char *prefix)
{
    return !strncmp(name, prefix, strlen(prefix));
}

bool ckpt_stage_is_own_xattr(const char *name)
{
    return has_prefix(name, "user.") && !has_prefix(name, PREFIX) && !has_prefix(name, "user.ckptfs.");
}

static bool is_kept(const char *name)
{
    static const char *const ours[] = {PREFIX "kind",      PREFIX "dtype", PREFIX "shape",
                                       PREFIX "prng_impl", PREFIX "key",   PREFIX "pinned"};
    for (size_t i = 0; i < sizeof ours / sizeof *ours; i++)
        if (!strcmp(name, ours[i]))
            return true;
    return ckpt_stage_is_own_xattr(name);
}

static bool is_step_top(const struct stage_inode *n)
{
    return n->is_top && !n->step->files_view;
}

/* --- reading --- */

static ssize_t give_text(const char *text, char *buf, size_t len)
{
    return ckpt_give_xattr(text, strlen(text), buf, len);
}

static ssize_t give_metadata(struct stage_step *step, char *buf, size_t len)
{
    CKPT_AUTOFREE char *text = NULL;
    size_t text_len;
    int r = ckpt_stage_metadata(step, &text, &text_len);
    if (r < 0)
        return r;
    return text ? ckpt_give_xattr(text, text_len, buf, len) : -ENODATA;
}

/* The pin of the committed step that is changed. Under the set's lock. */
static ssize_t give_base_pin(const struct stage_step *step, char *buf, size_t len)
{
    char file[CKPT_STEP_NAME + 16];
    snprintf(file, sizeof file, "%s.pin", step->name);
    bool pinned = faccessat(step->set->store->steps, file, F_OK, 0) == 0;
    return give_text(pinned ? "1" : "0", buf, len);
}

/* Under the set's lock. */
static ssize_t give_number(const struct stage_step *step, char *buf, size_t len)
{
    double number;
    if (!ckpt_stage_number(step, &number))
        return -ENODATA;
    struct ckpt_buf shown = CKPT_BUF_INIT;
    ckpt_add_json_number(&shown, number);
    ssize_t r = ckpt_buf_error(&shown);
    if (r == 0)
        r = ckpt_give_xattr((char *)shown.data, shown.len, buf, len);
    ckpt_buf_clear(&shown);
    return r;
}

/* state, and error where the last commit failed: of a step's own directory. */
static ssize_t step_xattr(struct stage_inode *n, const char *name, const struct ckpt_caller *who, char *buf, size_t len)
{
    struct stage_step *step = n->step;
    if (!is_step_top(n) || !has_prefix(name, PREFIX))
        return -ENODATA;
    const char *what = name + strlen(PREFIX);
    if (!strcmp(what, "state"))
        return give_text("staged", buf, len);
    if (!strcmp(what, "metadata"))
        return give_metadata(step, buf, len);
    /* What was wrong may be a file that others cannot list. */
    bool may_know = !who || ckpt_stage_may_commit(step, who, NULL) == 0;
    CKPT_GUARD(&step->set->lock);
    if (!strcmp(what, "pinned") && *step->base_id)
        return give_base_pin(step, buf, len);
    if (!strcmp(what, "error") && step->error)
        return give_text(may_know ? step->error : NOT_TOLD, buf, len);
    return strcmp(what, "step") ? -ENODATA : give_number(step, buf, len);
}

ssize_t ckpt_stage_getxattr(struct ckpt_stages *set, uint64_t id, const char *name, const struct ckpt_caller *who,
                            char *buf, size_t len)
{
    struct stage_inode *n;
    char path[32];
    int r = ckpt_stage_use(set, id, &n);
    if (r < 0)
        return r;
    ssize_t got = step_xattr(n, name, who, buf, len);
    if (got == -ENODATA && is_kept(name)) {
        ckpt_fd_path(path, n->fd);
        got = getxattr(path, name, buf, len);
        if (got < 0)
            got = -errno;
    }
    ckpt_stage_unuse(n);
    return got;
}

/* The names to be listed, each with its NUL. */
static int list_names(struct stage_inode *n, struct ckpt_buf *ret)
{
    char path[32], all[XATTR_LIST_MAX];
    ckpt_fd_path(path, n->fd);
    ssize_t len = listxattr(path, all, sizeof all);
    if (len < 0 && errno != EOPNOTSUPP)
        return -errno;
    for (const char *p = all; p < all + CKPT_MAX(len, 0); p += strlen(p) + 1)
        if (is_kept(p))
            ckpt_buf_add(ret, p, strlen(p) + 1);
    if (is_step_top(n) && faccessat(n->step->work, STAGE_METADATA, F_OK, 0) == 0)
        ckpt_buf_add(ret, PREFIX "metadata", sizeof PREFIX "metadata");
    return ckpt_buf_error(ret);
}

/* A step's state, error and number are not listed: tools that make attributes equal would try to take them away. */
ssize_t ckpt_stage_listxattr(struct ckpt_stages *set, uint64_t id, char *buf, size_t len)
{
    struct stage_inode *n;
    struct ckpt_buf names = CKPT_BUF_INIT;
    int r = ckpt_stage_use(set, id, &n);
    if (r < 0)
        return r;
    ssize_t got = list_names(n, &names);
    ckpt_stage_unuse(n);
    if (got == 0)
        got = ckpt_give_xattr((char *)names.data, names.len, buf, len);
    ckpt_buf_clear(&names);
    return got;
}

/* --- what may be set --- */

static bool is_one_of(const char *value, size_t len, const char *const *words)
{
    while (*words && (strlen(*words) != len || memcmp(*words, value, len)))
        words++;
    return *words;
}

/* Of a directory, what it is in a pytree. Of a file it follows from the file, so that it is no more than what such an
 * attribute can be. */
static int check_kind(bool dir, const char *value, size_t len, struct ckpt_err *err)
{
    static const char *const containers[] = {"dict", "list", "tuple", "namedtuple", "object", NULL};
    static const char *const leaves[] = {"array", "value", "blob", NULL};
    if (is_one_of(value, len, dir ? containers : leaves))
        return 0;
    return ckpt_fail(err, EINVAL,
                     dir ? "user.ckpt.kind of a directory is dict, list, tuple, namedtuple or object"
                         : "user.ckpt.kind of a file is array, value or blob");
}

/* Blocks of quantised or packed numbers, which are blobs: "Q4_K", "F6_E2M3". Tools that copy attributes bring it. */
static bool is_block_type(const char *name)
{
    bool begins = *name >= 'A' && *name <= 'Z', has_digit = strpbrk(name, "0123456789");
    return begins && has_digit && strspn(name, "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_") == strlen(name);
}

/* 1: it is worth keeping. */
static int check_dtype(const char *value, size_t len, struct ckpt_err *err)
{
    struct ckpt_npy npy;
    char name[sizeof npy.descr] = "";
    enum ckpt_dtype dtype;
    if (len < sizeof name && !memchr(value, 0, len))
        memcpy(name, value, len);
    if (ckpt_dtype_by_name(name, &dtype) || ckpt_npy_parse_descr(name, &npy, NULL) == 0)
        return 1;
    if (is_block_type(name))
        return 1;
    return ckpt_fail(err, EINVAL,
                     "user.ckpt.dtype is the name of a type, as bfloat16, or one as NumPy writes it, as <f4");
}

static int check_pinned(const char *value, size_t len, struct ckpt_err *err)
{
    bool is_digit = len == 1 && (*value == '0' || *value == '1');
    return !len || is_digit ? 0 : ckpt_fail(err, EINVAL, "user.ckpt.pinned is 0 or 1");
}

/* --- room --- */

/* The most that an attribute takes in a manifest: its name with all escaped, its value in hex. */
static size_t most_in_manifest(const char *name, size_t len)
{
    return 6 * strlen(name) + 2 * len + 8;
}

static int check_manifest_room(const char *path, const char *name, size_t len, struct ckpt_err *err)
{
    CKPT_AUTOFREE char *list = malloc(XATTR_LIST_MAX);
    size_t sum = most_in_manifest(name, len);
    if (!list)
        return -ENOMEM;
    ssize_t n = listxattr(path, list, XATTR_LIST_MAX);
    if (n < 0)
        return errno == E2BIG ? ckpt_fail(err, ENOSPC, "its attributes have too many names") : -errno;
    for (const char *p = list; p < list + n; p += strlen(p) + 1) {
        if (!ckpt_stage_is_own_xattr(p) || !strcmp(p, name))
            continue;
        ssize_t value = getxattr(path, p, NULL, 0);
        sum += most_in_manifest(p, (size_t)CKPT_MAX(value, 0));
    }
    if (sum < CKPT_MANIFEST_XATTRS_MAX)
        return 0;
    return ckpt_fail(err, ENOSPC, "its attributes are more than a manifest has room for");
}

static int set_on_disk(struct stage_inode *n, const struct setting *s)
{
    return ckpt_disk_setxattr_as(n->fd, s->name, s->value, s->len, s->flags);
}

/* Does it take more room than there is of it now? What is refused changes nothing, no time either. */
static bool grows(const char *path, const struct setting *s)
{
    ssize_t old = getxattr(path, s->name, NULL, 0);
    if (old < 0)
        return !(s->flags & XATTR_REPLACE);
    return !(s->flags & XATTR_CREATE) && (size_t)old < s->len;
}

/* With its content locked. An attribute of our own takes up the room that is left to us while this one is set. */
static int set_with_room(struct stage_inode *n, const char *path, const struct setting *s)
{
    static const char room[ROOM + CKPT_REF_TEXT];
    bool has_ref = !n->dir && ckpt_stage_shares(n, NULL) == 1;
    size_t need = n->dir || has_ref ? ROOM : sizeof room;
    if (n->step->files_view || !grows(path, s))
        return set_on_disk(n, s);
    int r = ckpt_disk_setxattr(n->fd, ROOM_XATTR, room, need);
    if (r == 0)
        r = set_on_disk(n, s);
    int removed = ckpt_disk_removexattr(n->fd, ROOM_XATTR);
    if (r == 0 && removed < 0 && removed != -ENODATA)
        return removed;
    return r;
}

static int set_kept(struct stage_inode *n, const struct setting *s, struct ckpt_err *err)
{
    char path[32];
    ckpt_fd_path(path, n->fd);
    CKPT_GUARD(&n->content);
    bool own = ckpt_stage_is_own_xattr(s->name) && !n->step->files_view;
    if (own && !ckpt_utf8(s->name, strlen(s->name)))
        return ckpt_fail(err, EINVAL, "the name of an attribute is UTF-8");
    int r = own ? check_manifest_room(path, s->name, s->len, err) : 0;
    if (r < 0)
        return r;
    r = set_with_room(n, path, s);
    if (r == -ENOSPC && ckpt_disk_removexattr(n->fd, CKPT_HEAD_XATTR) == 0) /* which only saves a look at the content */
        r = set_with_room(n, path, s);
    return r == -E2BIG ? -ENOSPC : r;
}

/* --- changes --- */

static int set_metadata(struct stage_inode *n, const char *value, size_t len, struct ckpt_err *err)
{
    int r = len ? ckpt_manifest_metadata_ok(value, len, err) : 0;
    return r < 0 ? r : ckpt_disk_replace(n->step->work, STAGE_METADATA, value, len);
}

static int set_pinned(struct stage_inode *n, const struct setting *s, struct ckpt_err *err)
{
    struct stage_step *step = n->step;
    char name[CKPT_STEP_NAME + 1] = "";
    int r = check_pinned(s->value, s->len, err);
    if (r < 0 || !is_step_top(n))
        return r;
    if (!*step->base_id)
        return set_kept(n, s, err);
    pthread_mutex_lock(&step->set->lock);
    snprintf(name, sizeof name, "%s", step->name);
    pthread_mutex_unlock(&step->set->lock);
    bool pinned = s->len == 1 && *s->value == '1';
    return ckpt_store_pin(step->set->store, name, pinned, err);
}

/* What a commit would make of a file by its name. */
enum named { NAMED_BLOB, NAMED_ARRAY, NAMED_PIECE, NAMED_VALUE };

static enum named named_of(struct stage_inode *n)
{
    CKPT_GUARD(&n->step->set->lock);
    if (!n->name)
        return NAMED_BLOB;
    if (ckpt_pieces_stem(n->name))
        return NAMED_PIECE;
    if (ckpt_has_suffix(n->name, ".npy"))
        return NAMED_ARRAY;
    return ckpt_has_suffix(n->name, ".json") ? NAMED_VALUE : NAMED_BLOB;
}

/* Of a directory; what a file is follows from the file, but for a blob whose name is an array's or a value's. */
static int set_kind(struct stage_inode *n, const struct setting *s, struct ckpt_err *err)
{
    int r = check_kind(n->dir, s->value, s->len, err);
    if (r < 0)
        return r;
    return n->dir || named_of(n) != NAMED_BLOB ? set_kept(n, s, err) : 0;
}

/* Of a file that is no array, types of blocks too. */
static int set_dtype(struct stage_inode *n, const struct setting *s, struct ckpt_err *err)
{
    int r = check_dtype(s->value, s->len, err);
    if (r < 0 || n->dir)
        return CKPT_MIN(r, 0);
    enum named named = named_of(n);
    bool block = s->len < 64 && *s->value >= 'A' && *s->value <= 'Z';
    bool array = named == NAMED_ARRAY || named == NAMED_PIECE;
    return block && array ? 0 : set_kept(n, s, err);
}

/* The shape of a blob's blocks; an array has its own. */
static int set_shape(struct stage_inode *n, const struct setting *s, struct ckpt_err *err)
{
    bool ok = s->len <= 512;
    for (size_t i = 0; i < s->len && ok; i++)
        ok = s->value[i] && strchr("[]0123456789, ", s->value[i]);
    if (!ok)
        return ckpt_fail(err, EINVAL, "user.ckpt.shape is numbers with commas between them");
    return !n->dir && named_of(n) == NAMED_BLOB ? set_kept(n, s, err) : 0;
}

static int set_prng_impl(struct stage_inode *n, const struct setting *s, struct ckpt_err *err)
{
    char name[CKPT_MANIFEST_TOLD_MAX + 1] = "";
    if (s->len < sizeof name)
        memcpy(name, s->value, s->len);
    if (strlen(name) != s->len || !ckpt_told_ok(name))
        return ckpt_fail(err, EINVAL, "user.ckpt.prng_impl is a name, as threefry2x32");
    return !n->dir && named_of(n) == NAMED_ARRAY ? set_kept(n, s, err) : 0;
}

/* A leaf's key, where its file would be taken for a piece of an array. */
static int set_key(struct stage_inode *n, const struct setting *s, struct ckpt_err *err)
{
    return !n->dir && named_of(n) == NAMED_PIECE ? set_kept(n, s, err) : 0;
}

/* Others of ours (codec, stored...) follow from the file: tools that copy attributes may set them, to no effect. */
static int set_ours(struct stage_inode *n, const struct setting *s, struct ckpt_err *err)
{
    const char *what = s->name + strlen(PREFIX);
    if (!strcmp(what, "metadata"))
        return is_step_top(n) ? set_metadata(n, s->value, s->len, err) : 0;
    if (!strcmp(what, "pinned"))
        return set_pinned(n, s, err);
    if (!strcmp(what, "kind"))
        return set_kind(n, s, err);
    if (!strcmp(what, "shape"))
        return set_shape(n, s, err);
    if (!strcmp(what, "prng_impl"))
        return set_prng_impl(n, s, err);
    if (!strcmp(what, "key"))
        return set_key(n, s, err);
    return strcmp(what, "dtype") ? 0 : set_dtype(n, s, err);
}

int ckpt_stage_setxattr(struct ckpt_stages *set, uint64_t id, const char *name, const void *value, size_t len,
                        int flags, const struct ckpt_caller *who)
{
    const struct setting s = {name, value, len, flags};
    struct stage_inode *n;
    struct ckpt_err err = {0};
    if (!has_prefix(name, "user.") || has_prefix(name, "user.ckptfs."))
        return -EOPNOTSUPP;
    int r = ckpt_stage_enter_inode(set, id, &n);
    if (r < 0)
        return r;
    r = has_prefix(name, PREFIX) ? set_ours(n, &s, &err) : set_kept(n, &s, &err);
    ckpt_stage_leave_inode(n, who);
    if (r < 0 && err.code)
        ckpt_log(CKPT_LOG_WARN, "%s: an attribute is refused: %s", set->store->path, err.text);
    return r;
}

int ckpt_stage_removexattr(struct ckpt_stages *set, uint64_t id, const char *name, const struct ckpt_caller *who)
{
    struct stage_inode *n;
    int r = ckpt_stage_enter_inode(set, id, &n);
    if (r < 0)
        return r;
    if (is_step_top(n) && !strcmp(name, PREFIX "metadata"))
        r = ckpt_disk_unlink(n->step->work, STAGE_METADATA, 0);
    else
        r = is_kept(name) ? ckpt_disk_removexattr(n->fd, name) : -ENODATA;
    ckpt_stage_leave_inode(n, who);
    /* What follows from the file is listed, and cannot be removed: tools that copy attributes need not mind. */
    bool ours = has_prefix(name, PREFIX), absent = r == -ENODATA || r == -ENOENT;
    return ours && absent ? 0 : r;
}
