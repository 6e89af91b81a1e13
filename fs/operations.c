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

void fs_fill_stat(const struct fs_mount *m, const struct ckpt_attr *a, struct stat *st)
{
    static const mode_t types[] = {[CKPT_FILE] = S_IFREG, [CKPT_DIR] = S_IFDIR, [CKPT_LINK] = S_IFLNK};
    *st = (struct stat){
        .st_ino = a->ino,
        .st_mode = types[a->type] | (a->type == CKPT_LINK ? 0777 : a->mode & ~(mode_t)m->opt->shown.umask),
        .st_nlink = a->nlink != CKPT_NLINK_UNKNOWN ? a->nlink
                    : a->type == CKPT_DIR          ? 2
                                                   : 1,
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
    return a->immutable || a->snapshot ? FOR_EVER : a->staged ? STAGED_ATTR : m->opt->core.refresh;
}

void fs_fill_entry(const struct fs_mount *m, const struct ckpt_attr *a, struct fuse_entry_param *e)
{
    *e = (struct fuse_entry_param){.ino = a->id};
    e->entry_timeout = a->snapshot || a->uncached ? 0 : a->immutable || a->staged ? FOR_EVER : m->opt->core.refresh;
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
    if (r == -ENOENT && parent >= INSIDE && !a.uncached) {
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
    fi->keep_cache = a.immutable ||
                     (a.staged &&
                      !m->passthrough); /* what the kernel has written by itself is not in its cache of this file */
    fi->noflush = (fi->flags & O_ACCMODE) == O_RDONLY;
    int fd = handle ? ckpt_handle_fd(handle) : m->opt->passthrough ? ckpt_backing_fd(m->source, ino) : -1;
    int32_t backing = fs_passthrough_open(m->passthrough, ino, fd);
    if (fd >= 0 && !handle)
        close(fd);
    if (backing && handle)
        ckpt_handle_unseen(handle);
    if ((backing ? fs_passthrough_reply_open(req, fi->fh, backing, fi->noflush) : fuse_reply_open(req, fi)) < 0) {
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
        CKPT_AUTOFREE char *buf = malloc(size ? size : 1);
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
    if (r < 0 || *off >= a.size)
        return r < 0 ? r : -ENXIO;
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
    int r = whence == SEEK_DATA || whence == SEEK_HOLE ? seek(fs_mount_of(req), ino, fs_handle_of(fi), &at, whence)
                                                       : -EINVAL;
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

static void list(fuse_req_t req, fuse_ino_t ino, size_t size, off_t off, struct fuse_file_info *fi, bool plus)
{
    static const mode_t types[] = {[CKPT_FILE] = S_IFREG, [CKPT_DIR] = S_IFDIR, [CKPT_LINK] = S_IFLNK};
    struct fs_mount *m = fs_mount_of(req);
    CKPT_AUTOFREE char *buf = malloc(size);
    size_t used = 0;
    struct ckpt_dirent d;
    int r = buf ? 0 : -ENOMEM;
    for (uint64_t pos = (uint64_t)off; r >= 0 && (r = next_dirent(fs_dir_of(fi), pos, ino, &d)) == 1; pos = d.next) {
        struct fuse_entry_param e = {.attr = {.st_ino = d.ino, .st_mode = types[d.type]}};
        struct ckpt_attr a;
        bool taken = false;
        if (plus && pos >= 2 && !ckpt_dir_is_uncached(fs_dir_of(fi))) {
            int l = ckpt_lookup(m->source, ino, d.name, &a, NULL);
            if (l == -ENOENT && !ckpt_dir_in_tree(fs_dir_of(fi)))
                continue;                  /* it has gone since the directory was opened */
            taken = l == 0 && !a.snapshot; /* which is for who looks it up */
            if (taken)
                fs_fill_entry(m, &a, &e);
            else if (l == 0)
                ckpt_forget(m->source, a.id, 1);
        }
        size_t n = plus ? fuse_add_direntry_plus(req, buf + used, size - used, d.name, &e, (off_t)d.next)
                        : fuse_add_direntry(req, buf + used, size - used, d.name, &e.attr, (off_t)d.next);
        if (n > size - used) {
            if (taken)
                ckpt_forget(m->source, a.id, 1);
            break;
        }
        used += n;
    }
    if (r < 0 && !used)
        fuse_reply_err(req, -r);
    else
        fuse_reply_buf(req, buf, used);
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
    CKPT_AUTOFREE char *buf = size ? malloc(size) : NULL;
    reply_xattr(req, size && !buf ? -ENOMEM : ckpt_getxattr(fs_mount_of(req)->source, ino, name, &who, buf, size), buf,
                size);
}

static void op_listxattr(fuse_req_t req, fuse_ino_t ino, size_t size)
{
    CKPT_AUTOFREE char *buf = size ? malloc(size) : NULL;
    reply_xattr(req, size && !buf ? -ENOMEM : ckpt_listxattr(fs_mount_of(req)->source, ino, buf, size), buf, size);
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
