/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A commit may have ended with its process after files of the step were linked among the objects (see hold.c). The step
 * may even have been published, and changed or renamed by another mount since, so that nothing tells. Before it is
 * staged again, such files get bytes of their own: then nobody can change an object through them.
 */
#include "core/commit/private.h"

#include "core/io/disk.h"
#include "core/store/internal.h"

#include <fcntl.h>
#include <sys/xattr.h>

#define TEMP_NAME "own.tmp"
#define LIST_MAX  ((size_t)64 << 10)

static int copy_xattr(int from, int to, const char *name, void *room)
{
    ssize_t n = fgetxattr(from, name, room, LIST_MAX);
    return n < 0 ? -errno : ckpt_disk_setxattr(to, name, room, (size_t)n);
}

static int copy_xattrs(int from, int to)
{
    CKPT_AUTOFREE char *list = malloc(2 * LIST_MAX); /* and room for a value behind it */
    if (!list)
        return -ENOMEM;
    ssize_t len = flistxattr(from, list, LIST_MAX);
    if (len < 0)
        return -errno;
    int r = 0;
    for (const char *p = list; r == 0 && p < list + len; p += strlen(p) + 1) {
        bool is_users = !strncmp(p, "user.", strlen("user."));
        if (is_users && strcmp(p, CKPT_ALIAS_XATTR))
            r = copy_xattr(from, to, p, list + LIST_MAX);
    }
    return r;
}

/* Only root can give a file away; others leave its owner. */
static int set_rights(int fd, const struct stat *st, mode_t more)
{
    if (fchown(fd, st->st_uid, st->st_gid) < 0 && geteuid() == 0)
        return -errno;
    return fchmod(fd, (st->st_mode & 07777) | more) < 0 ? -errno : 0;
}

/* Those that it had before it became an object. Where its mark does not tell, its owner can write to it, whatever an
 * object's mode is. */
static int copy_attributes(int from, int to, const struct stat *now)
{
    struct stat own = *now, *st = &own;
    mode_t writable = ckpt_seal_marked(from, st) ? 0 : S_IWUSR;
    const struct timespec times[2] = {st->st_atim, st->st_mtim};
    int r = copy_xattrs(from, to);
    if (r == 0)
        r = set_rights(to, st, writable);
    if (r == 0 && futimens(to, times) < 0)
        r = -errno;
    return r;
}

/* By a copy that no object is linked to. */
static int replace_file(struct commit *c, int dir, const char *name, int fd, const struct stat *st)
{
    CKPT_AUTOFD int own = ckpt_commit_temporary(c, TEMP_NAME, 0600);
    if (own < 0)
        return own;
    int r = ckpt_hold_copy_bytes(fd, (uint64_t)st->st_size, own, NULL);
    if (r == 0)
        r = copy_attributes(fd, own, st);
    if (r == 0)
        r = ckpt_disk_fsync(own);
    return r < 0 ? r : ckpt_disk_rename(c->in->work, TEMP_NAME, dir, name, 0);
}

static int recover_one(struct commit *c, int dir, const char *name)
{
    struct stat st;
    CKPT_AUTOFD int fd = openat(dir, name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
    if (fd < 0 || fstat(fd, &st) < 0)
        return -errno;
    bool has_mark = S_ISREG(st.st_mode) && fgetxattr(fd, CKPT_ALIAS_XATTR, NULL, 0) >= 0;
    if (!has_mark)
        return 0;
    if (st.st_nlink > 1)
        return replace_file(c, dir, name, fd, &st);
    int r = ckpt_seal_marked(fd, &st) ? set_rights(fd, &st, 0) : 0;
    if (r < 0)
        return r;
    return ckpt_disk_removexattr(fd, CKPT_ALIAS_XATTR);
}

static int recover_file(void *arg, const struct walk_at *at, struct ckpt_err *err)
{
    int r = recover_one(arg, at->dir, at->name);
    return r < 0 ? ckpt_fail(err, -r, "%s: %s", at->path, strerror(-r)) : 0;
}

static int recover_pieces(void *arg, const struct walk_at *at, struct ckpt_err *err)
{
    int r = 0;
    for (size_t i = 0; i < at->piece_count && r == 0; i++)
        r = recover_one(arg, at->dir, at->pieces[i]);
    return r < 0 ? ckpt_fail(err, -r, "%s: %s", at->path, strerror(-r)) : 0;
}

static int enter_dir(void *arg, const struct walk_at *at, int fd, uint32_t *ret_number, struct ckpt_err *err)
{
    *ret_number = 0;
    return 0;
}

int ckpt_hold_is_alias(void *arg, int dir, const char *name)
{
    return ckpt_has_suffix(name, CKPT_ALIAS_SUFFIX);
}

int ckpt_commit_recover(const struct ckpt_commit *in, struct ckpt_err *err)
{
    struct commit c = {.in = in, .store = in->store, .hold = in->hold};
    const struct walk_visitor v = {enter_dir, recover_file, recover_pieces, &c};
    int has_alias = ckpt_names_each(c.hold.dir, ".", ckpt_hold_is_alias, NULL);
    if (has_alias == 0)
        return 0;
    if (has_alias < 0)
        return ckpt_fail(err, -has_alias, "%s: what it holds cannot be listed: %s", in->name, strerror(-has_alias));
    int r = ckpt_walk_tree(in, &v, err);
    if (r < 0)
        return r;
    r = ckpt_hold_sweep(&c.hold);
    return r < 0 ? ckpt_fail(err, -r, "%s: what it holds cannot be tidied up: %s", in->name, strerror(-r)) : 0;
}
