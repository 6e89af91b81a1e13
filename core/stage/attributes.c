/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Attributes of staged files: the user's own are kept with the file on disk; of user.ckpt.* those that a commit reads;
 * a step's state is told.
 *
 * What is set here has its place in a manifest, and again in each staged copy of the step. A file system may have as
 * little room for a file's attributes as one block, in which those of ours lie too. So one that would leave too little
 * for these, or for the manifest, is refused (ENOSPC).
 */
#include "core/stage/private.h"

#include "core/array/npy.h"

#include <linux/limits.h>
#include <stdio.h>
#include <sys/xattr.h>

#define PREFIX     "user.ckpt."
#define NOT_TOLD   "the step is not committed; who may commit it is told why"
#define ROOM_XATTR "user.ckptfs.room"
#define ROOM                                                                                                           \
    ((size_t)256) /* a copy may have user.ckpt.dtype as well, and fills what room there is in another order            \
                   */

bool ckpt_stage_is_own_xattr(const char *name)
{
    return !strncmp(name, "user.", 5) && strncmp(name, PREFIX, strlen(PREFIX)) && strncmp(name, "user.ckptfs.", 12);
}

static bool is_kept(const char *name)
{
    return ckpt_stage_is_own_xattr(name) || !strcmp(name, PREFIX "kind") || !strcmp(name, PREFIX "dtype") ||
           !strcmp(name, PREFIX "pinned");
}

static bool is_step_top(const struct stage_inode *n)
{
    return n->is_top && !n->step->files_view;
}

/* --- reading --- */

/* state, and error where the last commit failed: of a step's own directory. */
static ssize_t step_xattr(struct stage_inode *n, const char *name, const struct ckpt_caller *who, char *buf, size_t len)
{
    struct stage_step *step = n->step;
    if (!is_step_top(n) || strncmp(name, PREFIX, strlen(PREFIX)))
        return -ENODATA;
    name += strlen(PREFIX);
    if (!strcmp(name, "state"))
        return ckpt_give_xattr("staged", 6, buf, len);
    if (!strcmp(name, "metadata")) {
        CKPT_AUTOFREE char *text = NULL;
        size_t text_len;
        int r = ckpt_stage_metadata(step, &text, &text_len);
        return r < 0 ? r : text ? ckpt_give_xattr(text, text_len, buf, len) : -ENODATA;
    }
    bool told = !who ||
                ckpt_stage_may_commit(step, who, NULL) == 0; /* what was wrong may be a file that others cannot list */
    CKPT_GUARD(&step->set->lock);
    double number;
    char text[CKPT_STEP_NAME + 16];
    if (!strcmp(name, "pinned") && *step->base_id) { /* the pin of the step that it changes */
        snprintf(text, sizeof text, "%s.pin", step->name);
        return ckpt_give_xattr(faccessat(step->set->store->steps, text, F_OK, 0) == 0 ? "1" : "0", 1, buf, len);
    }
    if (!strcmp(name, "error") && step->error)
        return told ? ckpt_give_xattr(step->error, strlen(step->error), buf, len)
                    : ckpt_give_xattr(NOT_TOLD, strlen(NOT_TOLD), buf, len);
    if (strcmp(name, "step") || !ckpt_step_name(step->name, &number))
        return -ENODATA;
    struct ckpt_buf shown = CKPT_BUF_INIT;
    ckpt_add_json_number(&shown, number);
    ssize_t r = ckpt_buf_error(&shown) ? -ENOMEM : ckpt_give_xattr((char *)shown.data, shown.len, buf, len);
    ckpt_buf_clear(&shown);
    return r;
}

ssize_t ckpt_stage_getxattr(struct ckpt_stages *set, uint64_t id, const char *name, const struct ckpt_caller *who,
                            char *buf, size_t len)
{
    struct stage_inode *n;
    char path[32];
    int r = ckpt_stage_use(set, id, &n);
    if (r < 0)
        return r;
    snprintf(path, sizeof path, "/proc/self/fd/%d", n->fd);
    ssize_t got = step_xattr(n, name, who, buf, len);
    if (got == -ENODATA && is_kept(name) && (got = getxattr(path, name, buf, len)) < 0)
        got = -errno;
    ckpt_stage_unuse(n);
    return got;
}

/* A step's state, error and number are not listed: tools that make attributes equal would try to take them away. */
ssize_t ckpt_stage_listxattr(struct ckpt_stages *set, uint64_t id, char *buf, size_t len)
{
    struct stage_inode *n;
    char path[32], all[XATTR_LIST_MAX];
    struct ckpt_buf out = CKPT_BUF_INIT;
    int r = ckpt_stage_use(set, id, &n);
    if (r < 0)
        return r;
    snprintf(path, sizeof path, "/proc/self/fd/%d", n->fd);
    ssize_t got = listxattr(path, all, sizeof all);
    int failed = got < 0 && errno != EOPNOTSUPP ? -errno : 0;
    for (const char *p = all; p < all + CKPT_MAX(got, 0); p += strlen(p) + 1)
        if (is_kept(p))
            ckpt_buf_add(&out, p, strlen(p) + 1);
    if (is_step_top(n) && faccessat(n->step->work, STAGE_METADATA, F_OK, 0) == 0)
        ckpt_buf_add(&out, PREFIX "metadata", sizeof PREFIX "metadata");
    ckpt_stage_unuse(n);
    got = failed ? failed : ckpt_buf_error(&out);
    if (got == 0)
        got = ckpt_give_xattr((char *)out.data, out.len, buf, len);
    ckpt_buf_clear(&out);
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
    static const char *const containers[] = {"dict", "list", "tuple", "namedtuple", NULL};
    static const char *const leaves[] = {"array", "value", "blob", NULL};
    if (is_one_of(value, len, dir ? containers : leaves))
        return 0;
    return ckpt_fail(err, EINVAL,
                     dir ? "user.ckpt.kind of a directory is dict, list, tuple or namedtuple"
                         : "user.ckpt.kind of a file is array, value or blob");
}

/* Blocks of quantised or packed numbers, which are blobs: "Q4_K", "F6_E2M3". Tools that copy attributes bring it. */
static bool is_block_type(const char *name)
{
    return *name >= 'A' && *name <= 'Z' && strpbrk(name, "0123456789") &&
           strspn(name, "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_") == strlen(name);
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
        return 0;
    return ckpt_fail(err, EINVAL,
                     "user.ckpt.dtype is the name of a type, as bfloat16, or one as NumPy writes it, as <f4");
}

static int check_pinned(const char *value, size_t len, struct ckpt_err *err)
{
    return !len || (len == 1 && (*value == '0' || *value == '1'))
               ? 0
               : ckpt_fail(err, EINVAL, "user.ckpt.pinned is 0 or 1");
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
    for (const char *p = list; p < list + n; p += strlen(p) + 1)
        if (ckpt_stage_is_own_xattr(p) && strcmp(p, name))
            sum += most_in_manifest(p, (size_t)CKPT_MAX(getxattr(path, p, NULL, 0), 0));
    return sum < CKPT_MANIFEST_XATTRS_MAX
               ? 0
               : ckpt_fail(err, ENOSPC, "its attributes are more than a manifest has room for");
}

/* With its content locked. The room that is left to what is ours is taken up while it is set. */
static int set_with_room(struct stage_inode *n, const char *path, const char *name, const void *value, size_t len,
                         int flags)
{
    static const char room[ROOM + CKPT_REF_TEXT];
    size_t need = n->dir || ckpt_stage_shares(n, NULL) == 1 ? ROOM : sizeof room;
    ssize_t old = getxattr(path, name, NULL, 0);
    bool refused = old < 0 ? flags & XATTR_REPLACE : flags & XATTR_CREATE; /* and nothing changes, no time either */
    if (n->step->files_view || refused || (old >= 0 && (size_t)old >= len))
        return ckpt_disk_setxattr_as(n->fd, name, value, len, flags);
    int r = ckpt_disk_setxattr(n->fd, ROOM_XATTR, room, need);
    if (r == 0)
        r = ckpt_disk_setxattr_as(n->fd, name, value, len, flags);
    int removed = ckpt_disk_removexattr(n->fd, ROOM_XATTR);
    return r == 0 && removed < 0 && removed != -ENODATA ? removed : r;
}

static int set_kept(struct stage_inode *n, const char *path, const char *name, const void *value, size_t len, int flags,
                    struct ckpt_err *err)
{
    CKPT_GUARD(&n->content);
    bool own = ckpt_stage_is_own_xattr(name) && !n->step->files_view;
    if (own && !ckpt_utf8(name, strlen(name)))
        return ckpt_fail(err, EINVAL, "the name of an attribute is UTF-8");
    int r = own ? check_manifest_room(path, name, len, err) : 0;
    if (r < 0)
        return r;
    r = set_with_room(n, path, name, value, len, flags);
    if (r == -ENOSPC && ckpt_disk_removexattr(n->fd, CKPT_HEAD_XATTR) == 0) /* which only saves a look at the content */
        r = set_with_room(n, path, name, value, len, flags);
    return r == -E2BIG ? -ENOSPC : r;
}

/* --- changes --- */

static int set_metadata(struct stage_inode *n, const char *value, size_t len, struct ckpt_err *err)
{
    int r = len ? ckpt_manifest_metadata_ok(value, len, err) : 0;
    return r < 0 ? r : ckpt_disk_replace(n->step->work, STAGE_METADATA, value, len);
}

static int set_pinned(struct stage_inode *n, const char *path, const char *value, size_t len, int flags,
                      struct ckpt_err *err)
{
    char step[CKPT_STEP_NAME + 1] = "";
    int r = check_pinned(value, len, err);
    if (r < 0 || !is_step_top(n))
        return r;
    if (*n->step->base_id) {
        CKPT_GUARD(&n->step->set->lock);
        snprintf(step, sizeof step, "%s", n->step->name);
    }
    return *step ? ckpt_store_pin(n->step->set->store, step, len == 1 && *value == '1', err)
                 : set_kept(n, path, PREFIX "pinned", value, len, flags, err);
}

/* Others of ours (key, shape, codec...) follow from the file: tools that copy attributes may set them, to no effect. */
static int set_ours(struct stage_inode *n, const char *path, const char *name, const char *value, size_t len, int flags,
                    struct ckpt_err *err)
{
    const char *what = name + strlen(PREFIX);
    if (!strcmp(what, "metadata"))
        return is_step_top(n) ? set_metadata(n, value, len, err) : 0;
    if (!strcmp(what, "pinned"))
        return set_pinned(n, path, value, len, flags, err);
    bool kind = !strcmp(what, "kind");
    if (!kind && strcmp(what, "dtype"))
        return 0;
    int r = kind ? check_kind(n->dir, value, len, err) : check_dtype(value, len, err);
    bool keep = kind ? r == 0 && n->dir : r == 1 && !n->dir;
    return keep ? set_kept(n, path, name, value, len, flags, err) : CKPT_MIN(r, 0);
}

int ckpt_stage_setxattr(struct ckpt_stages *set, uint64_t id, const char *name, const void *value, size_t len,
                        int flags, const struct ckpt_caller *who)
{
    struct stage_inode *n;
    struct ckpt_err err = {0};
    char path[32];
    if (strncmp(name, "user.", 5) || !strncmp(name, "user.ckptfs.", 12))
        return -EOPNOTSUPP;
    int r = ckpt_stage_enter_inode(set, id, &n);
    if (r < 0)
        return r;
    bool ours = !strncmp(name, PREFIX, strlen(PREFIX));
    snprintf(path, sizeof path, "/proc/self/fd/%d", n->fd);
    r = ours ? set_ours(n, path, name, value, len, flags, &err) : set_kept(n, path, name, value, len, flags, &err);
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
    bool ours = !strncmp(name, PREFIX, strlen(PREFIX)), absent = r == -ENODATA || r == -ENOENT;
    return ours && absent ? 0 : r;
}
