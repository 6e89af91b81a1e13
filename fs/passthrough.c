/* SPDX-License-Identifier: Apache-2.0 */
/* The numbers of the protocol that the headers of older systems lack are from Linux's include/uapi/linux/fuse.h,
 * version 7.41. */
#include "fs/passthrough.h"

#include "core/base/log.h"
#include "core/base/util.h"

#include <errno.h>
#include <linux/fuse.h>
#include <stdatomic.h>
#include <sys/ioctl.h>
#include <sys/uio.h>

#define INIT_EXT         (1u << 30) /* FUSE_INIT_EXT, of flags */
#define KILLPRIV_V2      (1u << 28) /* FUSE_HANDLE_KILLPRIV_V2, of flags */
#define PASSTHROUGH      (1u << 5)  /* FUSE_PASSTHROUGH, of flags2 */
#define OPEN_NOFLUSH     (1u << 5)  /* FOPEN_NOFLUSH */
#define OPEN_PASSTHROUGH (1u << 7)  /* FOPEN_PASSTHROUGH */
#define INIT_FLAGS       12         /* offsets in fuse_init_out */
#define INIT_FLAGS2      32
#define INIT_DEPTH       36
#define INIT_SIZE        64

struct backing_map {
    int32_t fd;
    uint32_t flags;
    uint64_t padding;
};
#define BACKING_OPEN  _IOW(229, 1, struct backing_map)
#define BACKING_CLOSE _IOW(229, 2, uint32_t)

struct open_file {
    struct open_file *next;
    uint64_t ino;
    unsigned opens;
    int32_t backing; /* 0: through the daemon */
};

#define BUCKETS 4096

struct fs_passthrough {
    int dev;
    atomic_bool on;
    uint64_t greeting; /* the request whose answer is changed; 0: none yet */
    uint32_t killpriv; /* KILLPRIV_V2, if the kernel knows it */
    pthread_mutex_t lock;
    struct open_file *files[BUCKETS];
};

/* libfuse hands its callbacks its own userdata, which is the mount's; there is one session in a process. */
static struct fs_passthrough *of_session;

static ssize_t read_request(int fd, void *buf, size_t len, void *userdata)
{
    ssize_t n = read(fd, buf, len);
    const struct fuse_in_header *in = buf;
    if (n >= (ssize_t)(sizeof *in + sizeof(struct fuse_init_in)) && in->opcode == FUSE_INIT) {
        const uint8_t *body = (const uint8_t *)buf + sizeof *in;
        uint32_t flags = ckpt_le32(body + INIT_FLAGS), flags2 = ckpt_le32(body + 16);
        of_session->killpriv = flags & KILLPRIV_V2;
        if (flags & INIT_EXT && flags2 & PASSTHROUGH)
            of_session->greeting = in->unique;
    }
    return n;
}

static ssize_t write_reply(int fd, struct iovec *iov, int count, void *userdata)
{
    struct fs_passthrough *p = of_session;
    const struct fuse_out_header *out = iov[0].iov_base;
    if (!p->greeting || out->unique != p->greeting || out->error || out->len != sizeof *out + INIT_SIZE)
        return writev(fd, iov, count);
    uint8_t whole[sizeof *out + INIT_SIZE], *at = whole, *body = whole + sizeof *out;
    for (int i = 0; i < count; i++) {
        memcpy(at, iov[i].iov_base, iov[i].iov_len);
        at += iov[i].iov_len;
    }
    /* We drop set-id bits ourselves, when a file is opened to be changed. Else the kernel asks for security.capability
     * before each write. */
    uint32_t flags = ckpt_le32(body + INIT_FLAGS) | INIT_EXT | p->killpriv,
             flags2 = ckpt_le32(body + INIT_FLAGS2) | PASSTHROUGH, depth = 1;
    memcpy(body + INIT_FLAGS, &flags, 4);
    memcpy(body + INIT_FLAGS2, &flags2, 4);
    memcpy(body + INIT_DEPTH, &depth, 4);
    p->greeting = 0;
    atomic_store(&p->on, true);
    struct iovec one = {whole, sizeof whole};
    return writev(fd, &one, 1);
}

struct fs_passthrough *fs_passthrough_new(struct fuse_session *session)
{
    static const struct fuse_custom_io io = {.read = read_request, .writev = write_reply};
    struct fs_passthrough *p = calloc(1, sizeof *p);
    if (!p)
        return NULL;
    p->dev = fuse_session_fd(session);
    pthread_mutex_init(&p->lock, NULL);
    of_session = p;
    if (fuse_session_custom_io(session, &io, p->dev) != 0) {
        fs_passthrough_free(p);
        return NULL;
    }
    return p;
}

void fs_passthrough_free(struct fs_passthrough *p)
{
    if (!p)
        return;
    for (unsigned i = 0; i < BUCKETS; i++)
        for (struct open_file *f = p->files[i], *next; f; f = next) {
            next = f->next;
            free(f);
        }
    pthread_mutex_destroy(&p->lock);
    of_session = NULL;
    free(p);
}

/* An id of a backing file; 0: not now. */
static int32_t open_backing(struct fs_passthrough *p, int fd)
{
    struct backing_map map = {.fd = fd};
    int id = ioctl(p->dev, BACKING_OPEN, &map);
    if (id > 0)
        return id;
    if (errno == EPERM) {
        atomic_store(&p->on, false);
        ckpt_log(CKPT_LOG_INFO,
                 "the kernel wants a privileged daemon for passthrough: files are read through the daemon");
    }
    return 0;
}

int32_t fs_passthrough_open(struct fs_passthrough *p, uint64_t ino, int fd)
{
    if (!p)
        return 0;
    CKPT_GUARD(&p->lock);
    struct open_file **link = &p->files[ino % BUCKETS], *f;
    for (f = *link; f && f->ino != ino;)
        f = f->next;
    if (!f) {
        f = calloc(1, sizeof *f);
        if (!f)
            return 0;
        f->ino = ino;
        f->backing = fd >= 0 && atomic_load(&p->on) ? open_backing(p, fd) : 0;
        f->next = *link;
        *link = f;
    }
    f->opens++;
    return f->backing;
}

void fs_passthrough_release(struct fs_passthrough *p, uint64_t ino)
{
    if (!p)
        return;
    CKPT_GUARD(&p->lock);
    struct open_file **link = &p->files[ino % BUCKETS];
    while (*link && (*link)->ino != ino)
        link = &(*link)->next;
    struct open_file *f = *link;
    if (!f || --f->opens)
        return;
    uint32_t id = (uint32_t)f->backing;
    if (id && ioctl(p->dev, BACKING_CLOSE, &id) < 0)
        ckpt_log(CKPT_LOG_DEBUG, "a backing file stays open: %s", strerror(errno));
    *link = f->next;
    free(f);
}

/* The body of the reply to open, as the kernel reads it; libfuse's own struct has no place for the id. */
struct open_out {
    uint64_t fh;
    uint32_t flags;
    int32_t backing;
};

int fs_passthrough_reply_open(fuse_req_t req, uint64_t fh, int32_t backing, bool no_flush)
{
    struct open_out out = {fh, OPEN_PASSTHROUGH | (no_flush ? OPEN_NOFLUSH : 0), backing};
    return fuse_reply_buf(req, (const char *)&out, sizeof out);
}

static void split_timeout(double t, uint64_t *sec, uint32_t *nsec)
{
    *sec = (uint64_t)t;
    *nsec = (uint32_t)((t - (double)*sec) * 1e9);
}

int fs_passthrough_reply_create(fuse_req_t req, const struct fuse_entry_param *e, uint64_t fh, int32_t backing)
{
    struct {
        struct fuse_entry_out entry;
        struct open_out open;
    } out = {.open = {fh, OPEN_PASSTHROUGH, backing}};
    _Static_assert(sizeof out == 144, "as the kernel reads it");
    const struct stat *st = &e->attr;
    out.entry.nodeid = e->ino;
    out.entry.generation = e->generation;
    split_timeout(e->entry_timeout, &out.entry.entry_valid, &out.entry.entry_valid_nsec);
    split_timeout(e->attr_timeout, &out.entry.attr_valid, &out.entry.attr_valid_nsec);
    out.entry.attr = (struct fuse_attr){
        .ino = st->st_ino,
        .size = (uint64_t)st->st_size,
        .blocks = (uint64_t)st->st_blocks,
        .atime = (uint64_t)st->st_atim.tv_sec,
        .mtime = (uint64_t)st->st_mtim.tv_sec,
        .ctime = (uint64_t)st->st_ctim.tv_sec,
        .atimensec = (uint32_t)st->st_atim.tv_nsec,
        .mtimensec = (uint32_t)st->st_mtim.tv_nsec,
        .ctimensec = (uint32_t)st->st_ctim.tv_nsec,
        .mode = st->st_mode,
        .nlink = (uint32_t)st->st_nlink,
        .uid = st->st_uid,
        .gid = st->st_gid,
        .blksize = (uint32_t)st->st_blksize,
    };
    return fuse_reply_buf(req, (const char *)&out, sizeof out);
}
