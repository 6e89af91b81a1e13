/* SPDX-License-Identifier: Apache-2.0 */
/*
 * How the kernel may remember: what is part of a committed step, for ever (another step under the same name has other
 * numbers); what the source holds besides, for the refresh time; a control file, not at all.
 *
 * Files of a read-only mount need no open: the answer ENOSYS to the first one tells the kernel to stop asking, and a
 * file that is read again costs no request. (On a mount that is written this would lose truncations and closes.)
 * Readers that outlive their step are safe all the same, since a checkpoint's files are kept open while the kernel
 * knows any of its names.
 */
#include "fs/operations.h"

#include "core/base/util.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/xattr.h>

#define FOR_EVER    (365 * 86400.0)
#define STAGED_ATTR 1.0                 /* seconds */
#define INSIDE      ((uint64_t)1 << 40) /* ids from here on are inside of checkpoints */

static const mode_t types[] = {[CKPT_FILE] = S_IFREG, [CKPT_DIR] = S_IFDIR, [CKPT_LINK] = S_IFLNK};

static mode_t shown_mode(const struct fs_mount *m, const struct ckpt_attr *a)
{
    if (a->type == CKPT_LINK)
        return S_IFLNK | 0777;
    return types[a->type] | (a->mode & ~(mode_t)m->opt->shown.umask);
}

static nlink_t shown_links(const struct ckpt_attr *a)
{
    if (a->nlink != CKPT_NLINK_UNKNOWN)
        return a->nlink;
    return a->type == CKPT_DIR ? 2 : 1;
}

void fs_fill_stat(const struct fs_mount *m, const struct ckpt_attr *a, struct stat *st)
{
    *st = (struct stat){
        .st_ino = a->ino,
        .st_mode = shown_mode(m, a),
        .st_nlink = shown_links(a),
        .st_uid = m->opt->shown.set_uid ? m->opt->shown.uid : a->uid,
        .st_gid = m->opt->shown.set_gid ? m->opt->shown.gid : a->gid,
        .st_size = (off_t)a->size,
        .st_blocks = (blkcnt_t)((a->stored + 511) / 512),
        .st_blksize = 1 << 20, /* tools that size their buffers by it read fast */
    };
    st->st_mtim = ckpt_timespec(a->mtime_ns);
    st->st_atim = ckpt_timespec(a->atime_ns);
    st->st_ctim = ckpt_timespec(a->ctime_ns);
}

/* Nobody but this mount changes what is staged: the kernel knows all changes, but not the times and blocks that follow
 * from them. */
double fs_attr_timeout(const struct fs_mount *m, const struct ckpt_attr *a)
{
    if (a->immutable || a->snapshot)
        return FOR_EVER;
    return a->staged ? STAGED_ATTR : m->opt->core.refresh;
}

static double entry_timeout(const struct fs_mount *m, const struct ckpt_attr *a)
{
    if (a->snapshot || a->uncached)
        return 0;
    return a->immutable || a->staged ? FOR_EVER : m->opt->core.refresh;
}

void fs_fill_entry(const struct fs_mount *m, const struct ckpt_attr *a, struct fuse_entry_param *e)
{
    *e = (struct fuse_entry_param){.ino = a->id};
    e->entry_timeout = entry_timeout(m, a);
    e->attr_timeout = fs_attr_timeout(m, a);
    fs_fill_stat(m, a, &e->attr);
}

static void op_init(void *userdata, struct fuse_conn_info *conn)
{
    struct fs_mount *m = userdata;
    m->no_open = !m->writable && !m->passthrough && conn->capable & FUSE_CAP_NO_OPEN_SUPPORT;
    conn->want &= ~FUSE_CAP_WRITEBACK_CACHE; /* slower, and errors would come too late */
    conn->max_write = 1 << 20;
    conn->want &= ~(FUSE_CAP_SPLICE_READ | FUSE_CAP_SPLICE_WRITE | FUSE_CAP_SPLICE_MOVE); /* slower here than copying */
}

static void op_lookup(fuse_req_t req, fuse_ino_t parent, const char *name)
{
    struct fs_mount *m = fs_mount_of(req);
    struct ckpt_attr a;
    struct fuse_entry_param e = {0};
    struct ckpt_caller who = fs_caller(req);
    int r = ckpt_lookup_for(m->source, parent, name, &who, &a, NULL);
    bool stays_away = r == -ENOENT && parent >= INSIDE && !a.uncached;
    if (stays_away) {
        /* A committed step never gets another name; but where steps are changed, its directories stand for those of the
         * changed one. */
        e.entry_timeout = m->writable ? m->opt->core.refresh : FOR_EVER;
        fuse_reply_entry(req, &e);
        return;
    }
    if (r < 0) {
        fuse_reply_err(req, -r);
        return;
    }
    fs_fill_entry(m, &a, &e);
    if (fuse_reply_entry(req, &e) < 0)
        ckpt_forget(m->source, a.id, 1);
}

static void op_forget(fuse_req_t req, fuse_ino_t ino, uint64_t count)
{
    ckpt_forget(fs_mount_of(req)->source, ino, count);
    fuse_reply_none(req);
}

static void op_forget_multi(fuse_req_t req, size_t count, struct fuse_forget_data *forgets)
{
    for (size_t i = 0; i < count; i++)
        ckpt_forget(fs_mount_of(req)->source, forgets[i].ino, forgets[i].nlookup);
    fuse_reply_none(req);
}

static void op_getattr(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
    struct fs_mount *m = fs_mount_of(req);
    struct ckpt_attr a;
    struct stat st;
    int r = ckpt_getattr(m->source, ino, &a, NULL);
    if (r < 0) {
        fuse_reply_err(req, -r);
        return;
    }
    fs_fill_stat(m, &a, &st);
    fuse_reply_attr(req, &st, fs_attr_timeout(m, &a));
}

static void op_readlink(fuse_req_t req, fuse_ino_t ino)
{
    char target[4096];
    int r = ckpt_readlink(fs_mount_of(req)->source, ino, target, sizeof target);
    if (r < 0)
        fuse_reply_err(req, -r);
    else
        fuse_reply_readlink(req, target);
}

/* The descriptor by which the kernel may read and write the file itself, or -1. Of a handle it is the handle's own. */
static int direct_fd(struct fs_mount *m, fuse_ino_t ino, struct ckpt_handle *handle)
{
    if (handle)
        return ckpt_handle_fd(handle);
    return m->opt->passthrough ? ckpt_backing_fd(m->source, ino) : -1;
}

static int reply_open(struct fs_mount *m, fuse_req_t req, fuse_ino_t ino, struct ckpt_handle *handle,
                      struct fuse_file_info *fi)
{
    int fd = direct_fd(m, ino, handle);
    int32_t backing = fs_passthrough_open(m->passthrough, ino, fd);
    if (fd >= 0 && !handle)
        close(fd);
    if (backing && handle)
        ckpt_handle_unseen(handle);
    return backing ? fs_passthrough_reply_open(req, fi->fh, backing, fi->noflush) : fuse_reply_open(req, fi);
}

static void op_open(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
    struct fs_mount *m = fs_mount_of(req);
    struct ckpt_caller who = fs_caller(req);
    struct ckpt_handle *handle = NULL;
    struct fs_open *open = NULL;
    struct ckpt_attr a;
    if (m->no_open) {
        fuse_reply_err(req, ENOSYS);
        return;
    }
    int r = ckpt_getattr(m->source, ino, &a, NULL);
    if (r == 0)
        r = fs_open_begin(m->opens, who.uid, &open);
    if (r == 0)
        r = ckpt_open(m->source, ino, fi->flags, &who, &handle, NULL);
    if (!handle) { /* what is committed costs nothing */
        fs_open_end(m->opens, open);
        open = NULL;
    }
    if (r < 0) {
        fuse_reply_err(req, -r);
        return;
    }
    if (open)
        open->what = handle;
    fi->fh = (uintptr_t)open;
    /* What the kernel writes by passthrough is not in its cache of this file. */
    bool cache_is_current = a.staged && !m->passthrough;
    fi->keep_cache = a.immutable || cache_is_current;
    fi->noflush = (fi->flags & O_ACCMODE) == O_RDONLY;
    if (reply_open(m, req, ino, handle, fi) < 0) {
        fs_passthrough_release(m->passthrough, ino);
        ckpt_release(handle);
        fs_open_end(m->opens, open);
    }
}

static int give(void *arg, const struct iovec *iov, int count)
{
    fuse_reply_iov(arg, iov, count); /* if it fails, the reader has gone */
    return 0;
}

static void op_read(fuse_req_t req, fuse_ino_t ino, size_t size, off_t off, struct fuse_file_info *fi)
{
    struct ckpt_handle *handle = fs_handle_of(fi);
    if (handle) {
        CKPT_AUTOFREE char *buf = malloc(CKPT_MAX(size, (size_t)1));
        ssize_t n = buf ? ckpt_handle_read(handle, buf, size, (uint64_t)off, !(fi->flags & O_DIRECT)) : -ENOMEM;
        if (n < 0)
            fuse_reply_err(req, (int)-n);
        else
            fuse_reply_buf(req, buf, (size_t)n);
        return;
    }
    ssize_t n = ckpt_read_to(fs_mount_of(req)->source, ino, size, (uint64_t)off, give, req, NULL);
    if (n < 0)
        fuse_reply_err(req, (int)-n);
}

/* Where data, or a hole, begin; holes are those that need not be read. */
static int seek(struct fs_mount *m, fuse_ino_t ino, struct ckpt_handle *handle, uint64_t *off, int whence)
{
    struct ckpt_attr a;
    uint64_t end;
    int r = ckpt_getattr(m->source, ino, &a, NULL);
    if (r < 0)
        return r;
    if (*off >= a.size)
        return -ENXIO;
    for (; *off < a.size; *off = CKPT_MIN(end, a.size)) {
        r = handle ? ckpt_handle_run(handle, *off, &end) : ckpt_run(m->source, ino, *off, &end, NULL);
        if (r < 0)
            return r;
        if ((r == 1) == (whence == SEEK_DATA))
            return 0;
        if (end <= *off)
            return -EIO;
    }
    return whence == SEEK_HOLE ? 0 : -ENXIO;
}

static void op_lseek(fuse_req_t req, fuse_ino_t ino, off_t off, int whence, struct fuse_file_info *fi)
{
    uint64_t at = (uint64_t)off;
    bool is_known = whence == SEEK_DATA || whence == SEEK_HOLE; /* the kernel does the others */
    int r = is_known ? seek(fs_mount_of(req), ino, fs_handle_of(fi), &at, whence) : -EINVAL;
    if (r < 0)
        fuse_reply_err(req, -r);
    else
        fuse_reply_lseek(req, (off_t)at);
}

static void op_opendir(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
    struct fs_mount *m = fs_mount_of(req);
    struct ckpt_dir *dir;
    struct fs_open *open = NULL;
    bool immutable;
    int r = fs_open_begin(m->opens, fuse_req_ctx(req)->uid, &open);
    if (r == 0)
        r = ckpt_opendir(m->source, ino, &dir, &immutable, NULL);
    if (r < 0) {
        fs_open_end(m->opens, open);
        fuse_reply_err(req, -r);
        return;
    }
    open->what = dir;
    fi->fh = (uintptr_t)open;
    fi->cache_readdir = fi->keep_cache = immutable;
    if (fuse_reply_open(req, fi) < 0) {
        ckpt_closedir(dir);
        fs_open_end(m->opens, open);
    }
}

static void op_releasedir(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
    ckpt_closedir(fs_dir_of(fi));
    fs_open_end(fs_mount_of(req)->opens, (struct fs_open *)(uintptr_t)fi->fh);
    fuse_reply_err(req, 0);
}

/* Positions 0 and 1 are "." and ".."; the directory's own follow. */
static int next_dirent(struct ckpt_dir *dir, uint64_t pos, fuse_ino_t ino, struct ckpt_dirent *ret)
{
    if (pos < 2) {
        *ret = (struct ckpt_dirent){.type = CKPT_DIR, .ino = ino, .next = pos + 1};
        strcpy(ret->name, pos ? ".." : ".");
        return 1;
    }
    int r = ckpt_readdir(dir, pos - 2, ret);
    ret->next += 2;
    return r;
}

/* A directory that is being listed into a buffer. */
struct listing {
    fuse_req_t req;
    struct fs_mount *m;
    struct ckpt_dir *dir;
    fuse_ino_t ino;
    bool plus; /* entries are looked up, too */
    char *buf;
    size_t size, used;
};

/* Fills *e, with a reference if it is found: 1, which the kernel then has; 0: it is not looked up; -ENOENT: it has gone
 * since the directory was opened. */
static int look_up_listed(const struct listing *l, const struct ckpt_dirent *d, struct fuse_entry_param *e)
{
    struct ckpt_attr a;
    if (ckpt_dir_is_uncached(l->dir))
        return 0;
    int r = ckpt_lookup(l->m->source, l->ino, d->name, &a, NULL);
    if (r < 0) {
        bool is_gone = r == -ENOENT && !ckpt_dir_in_tree(l->dir);
        return is_gone ? r : 0;
    }
    if (a.snapshot) { /* which is for who looks it up by name */
        ckpt_forget(l->m->source, a.id, 1);
        return 0;
    }
    fs_fill_entry(l->m, &a, e);
    return 1;
}

/* False: there is no room for it. */
static bool add_listed(struct listing *l, const struct ckpt_dirent *d, uint64_t pos)
{
    struct fuse_entry_param e = {.attr = {.st_ino = d->ino, .st_mode = types[d->type]}};
    char *to = l->buf + l->used;
    size_t n, left = l->size - l->used;
    if (!l->plus) {
        n = fuse_add_direntry(l->req, to, left, d->name, &e.attr, (off_t)d->next);
        l->used += n <= left ? n : 0;
        return n <= left;
    }
    bool is_dots = pos < 2;
    int found = is_dots ? 0 : look_up_listed(l, d, &e);
    if (found < 0)
        return true;
    n = fuse_add_direntry_plus(l->req, to, left, d->name, &e, (off_t)d->next);
    if (n <= left) {
        l->used += n;
        return true;
    }
    if (found)
        ckpt_forget(l->m->source, e.ino, 1);
    return false;
}

static void list(fuse_req_t req, fuse_ino_t ino, size_t size, off_t off, struct fuse_file_info *fi, bool plus)
{
    CKPT_AUTOFREE char *buf = malloc(size);
    struct listing l = {req, fs_mount_of(req), fs_dir_of(fi), ino, plus, buf, size, 0};
    struct ckpt_dirent d;
    if (!buf) {
        fuse_reply_err(req, ENOMEM);
        return;
    }
    uint64_t pos = (uint64_t)off;
    int r = next_dirent(l.dir, pos, ino, &d);
    while (r == 1 && add_listed(&l, &d, pos)) {
        pos = d.next;
        r = next_dirent(l.dir, pos, ino, &d);
    }
    if (r < 0 && !l.used)
        fuse_reply_err(req, -r);
    else
        fuse_reply_buf(req, buf, l.used);
}

static void op_readdir(fuse_req_t req, fuse_ino_t ino, size_t size, off_t off, struct fuse_file_info *fi)
{
    list(req, ino, size, off, fi, false);
}

static void op_readdirplus(fuse_req_t req, fuse_ino_t ino, size_t size, off_t off, struct fuse_file_info *fi)
{
    list(req, ino, size, off, fi, true);
}

static void reply_xattr(fuse_req_t req, ssize_t n, const char *buf, size_t size)
{
    if (n < 0)
        fuse_reply_err(req, (int)-n);
    else if (!size)
        fuse_reply_xattr(req, (size_t)n);
    else
        fuse_reply_buf(req, buf, (size_t)n);
}

static void op_getxattr(fuse_req_t req, fuse_ino_t ino, const char *name, size_t size)
{
    struct ckpt_caller who = fs_caller(req);
    CKPT_AUTOFREE char *buf = malloc(size + 1); /* size 0 asks for the length */
    ssize_t n = buf ? ckpt_getxattr(fs_mount_of(req)->source, ino, name, &who, buf, size) : -ENOMEM;
    reply_xattr(req, n, buf, size);
}

static void op_listxattr(fuse_req_t req, fuse_ino_t ino, size_t size)
{
    CKPT_AUTOFREE char *buf = malloc(size + 1);
    ssize_t n = buf ? ckpt_listxattr(fs_mount_of(req)->source, ino, buf, size) : -ENOMEM;
    reply_xattr(req, n, buf, size);
}

const struct fuse_lowlevel_ops fs_operations = {
    .init = op_init,
    .lookup = op_lookup,
    .forget = op_forget,
    .forget_multi = op_forget_multi,
    .getattr = op_getattr,
    .readlink = op_readlink,
    .open = op_open,
    .read = op_read,
    .lseek = op_lseek,
    .opendir = op_opendir,
    .readdir = op_readdir,
    .readdirplus = op_readdirplus,
    .releasedir = op_releasedir,
    .getxattr = op_getxattr,
    .listxattr = op_listxattr,
    .setattr = fs_op_setattr,
    .mknod = fs_op_mknod,
    .mkdir = fs_op_mkdir,
    .unlink = fs_op_unlink,
    .rmdir = fs_op_rmdir,
    .symlink = fs_op_symlink,
    .rename = fs_op_rename,
    .link = fs_op_link,
    .create = fs_op_create,
    .write = fs_op_write,
    .flush = fs_op_flush,
    .release = fs_op_release,
    .fsync = fs_op_fsync,
    .fsyncdir = fs_op_fsyncdir,
    .statfs = fs_op_statfs,
    .setxattr = fs_op_setxattr,
    .removexattr = fs_op_removexattr,
    .fallocate = fs_op_fallocate,
    .copy_file_range = fs_op_copy_file_range,
};
