/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Open files of staged steps. A reference file gets bytes of its own before the first change (stage_own). When the last writer closes a
 * file, a thread of the pool makes its object, so that it is hashed, encoded and durable by the time of the commit.
 */
#include "core/store/stage_private.h"

#include <stdio.h>
#include <linux/magic.h>
#include <sys/utsname.h>
#include <sys/vfs.h>
#include <sys/xattr.h>

#define COPY ((size_t)1 << 20)

/* --- reference files --- */

int stage_shares(struct stage_inode *n, struct ckpt_ref *ret)
{
    int known = atomic_load(&n->shared);
    if (known < 0) {
        char text[CKPT_REF_TEXT], path[32];
        struct stat st;
        snprintf(path, sizeof path, "/proc/self/fd/%d", n->fd);
        ssize_t len = getxattr(path, CKPT_REF_XATTR, text, sizeof text);
        /* One whose length is not the content's was being given bytes of its own when the machine stopped: the bytes count. */
        known = len > 0 && ckpt_ref_parse(text, (size_t)len, &n->shares) && fstatat(n->fd, "", &st, AT_EMPTY_PATH) == 0 &&
                (uint64_t)st.st_size == n->shares.size;
        atomic_store(&n->shared, known);
    }
    if (known && ret)
        *ret = n->shares;
    return known;
}

int stage_make_ref(int fd, const struct ckpt_ref *ref)
{
    char text[CKPT_REF_TEXT];
    ckpt_ref_print(ref, text);
    int r = ckpt_disk_setxattr(fd, CKPT_REF_XATTR, text, strlen(text));
    return r < 0 ? r : ckpt_disk_truncate(fd, ref->size);
}

static int open_object(struct ckpt_stages *set, const struct ckpt_ref *ref, uint64_t size, struct ckpt_file **ret)
{
    struct ckpt_pins *pins; /* for this file alone, so that it is not held open longer */
    int r = ckpt_pins_new(set->dir, &pins);
    if (r < 0)
        return r;
    r = ckpt_object_open(pins, set->cache, ref->object, size, ret, NULL);
    ckpt_pins_unref(pins);
    return r;
}

static int open_payload(struct stage_step *step, const struct ckpt_ref *ref, struct ckpt_file **ret)
{
    struct ckpt_stages *set = step->set;
    uint64_t size = memcmp(ref->sha256, ref->object, CKPT_SHA256) ? UINT64_MAX : ref->size;
    int r = open_object(set, ref, size, ret);
    if (r != -ENOENT)
        return r;
    /* Another mount's gc has taken it away; the step holds it. It is put back under its name, where it may be taken away again. */
    char name[2 * CKPT_HEX], path[CKPT_OBJECT_PATH], sums[CKPT_OBJECT_PATH + 8];
    ckpt_hash_hex(ref->object, name);
    ckpt_object_path(ref->object, path);
    snprintf(sums, sizeof sums, "%s.sums", path);
    if (ckpt_disk_link(step->hold, name, step->set->store->objects, path) < 0)
        return -ENOENT;
    strcat(name, ".sums");
    if (ckpt_disk_link(step->hold, name, step->set->store->objects, sums) < 0 && ref->codec == CKPT_OBJECT_NONE)
        return -ENOENT;
    return open_object(set, ref, size, ret);
}

int stage_own(struct stage_inode *n, int fd, uint64_t keep)
{
    struct ckpt_ref ref;
    struct ckpt_file *payload = NULL;
    if (!stage_shares(n, &ref))
        return 0;
    struct stat before;
    int r = fstat(fd, &before) < 0 ? -errno : 0;
    keep = CKPT_MIN(keep, ref.size);
    if (r < 0)
        return r;
    if (keep) {
        CKPT_AUTOFREE uint8_t *buf = malloc(COPY);
        r = buf ? open_payload(n->step, &ref, &payload) : -ENOMEM;
        for (uint64_t off = 0; off < keep && r == 0;) {
            size_t len = (size_t)CKPT_MIN((uint64_t)COPY, keep - off);
            ssize_t got = ckpt_file_read(payload, buf, len, ref.offset + off);
            r = got < 0 ? (int)got : (size_t)got < len ? -EBADMSG : ckpt_disk_write(fd, buf, len, off);
            off += len;
        }
        ckpt_file_unref(payload);
        /* For its user nothing was written. */
        if (r == 0 && futimens(fd, (const struct timespec[]){before.st_atim, before.st_mtim}) < 0)
            r = -errno;
        /* The bytes are there before the reference goes. */
        if (r == 0)
            r = ckpt_disk_fsync(fd);
    } else
        r = ckpt_disk_truncate(fd, 0);
    if (r == 0)
        r = ckpt_disk_removexattr(fd, CKPT_REF_XATTR);
    if (r == 0) {
        atomic_store(&n->shared, 0);
        stage_dirty(n);
    }
    return r;
}

/* --- objects in the background --- */

#define LAG ((uint64_t)64 << 20) /* bytes of files that are closed and whose objects are not made yet */
#define FLUSHERS 4               /* closes that wait for that at once: each keeps a thread of the caller's, who has others to serve */

struct job {
    struct stage_inode *inode;
    int fd;
    uint64_t size;
};

static void make_object(void *arg)
{
    struct job *job = arg;
    struct stage_inode *n = job->inode;
    struct stage_step *step = n->step;
    struct ckpt_stages *set = step->set;
    struct ckpt_hold hold = {.store = set->store, .dir = step->hold};
    struct ckpt_ref made;
    struct ckpt_err err = {0};
    uint64_t gen = atomic_load(&n->gen);
    int r = atomic_load(&step->state) == STAGE_GONE ? -ESTALE
                                                    : ckpt_hold_file(&hold, job->fd, "X.npy", set->opt.codec, false, &n->cancel, &made, &err);
    if (r < 0 && r != -ESTALE && r != -ECANCELED) /* the commit will try again, and tell */
        ckpt_log(CKPT_LOG_DEBUG, "%s: %s", set->store->path, err.text);
    close(job->fd);
    pthread_mutex_lock(&set->lock);
    set->job_bytes -= job->size;
    n->queued = false;
    if (r == 0 && gen == atomic_load(&n->gen)) {
        n->known = true;
        n->known_gen = gen;
        n->made = made;
    }
    step->jobs--;
    pthread_cond_broadcast(&set->idle);
    stage_reap(n);
    pthread_mutex_unlock(&set->lock);
    free(job);
}

/* Takes the descriptor over. Under the set's lock. */
static void queue_object(struct stage_inode *n, int fd, const struct stat *st)
{
    struct stage_step *step = n->step;
    struct ckpt_stages *set = step->set;
    struct job *job = malloc(sizeof *job);
    if (job) {
        *job = (struct job){n, fd, (uint64_t)st->st_size};
        n->queued = true;
        atomic_store(&n->cancel, false);
        n->queued_ctime = st->st_ctim;
        step->jobs++;
        set->job_bytes += job->size;
        if (ckpt_pool_submit(set->pool, make_object, job) == 0)
            return;
        set->job_bytes -= job->size;
        step->jobs--;
        n->queued = false;
    }
    free(job);
    close(fd);
}

/* Is there something to make, and nobody else who will change it? Under the set's lock. */
static bool wants_object(const struct stage_inode *n, const struct stat *st, unsigned writers)
{
    return (uint64_t)st->st_size >= CKPT_SMALL && n->open_writes == writers && !n->queued && !n->unlinked && atomic_load(&n->shared) != 1 &&
           !n->step->face && (!n->known || n->known_gen != atomic_load(&n->gen)) && atomic_load(&n->step->state) == STAGE_OPEN && !n->step->set->closing;
}

/* --- handles --- */

static struct ckpt_stage_handle *handle_new(struct stage_inode *n, int fd, int flags)
{
    struct ckpt_stage_handle *h = calloc(1, sizeof *h);
    if (!h)
        return NULL;
    h->inode = n;
    h->fd = fd;
    h->write = (flags & O_ACCMODE) != O_RDONLY;
    pthread_mutex_init(&h->lock, NULL);
    CKPT_GUARD(&n->step->set->lock);
    n->opens++;
    if (h->write) {
        n->open_writes++;
        n->step->open_writes++;
    }
    return h;
}

void ckpt_stage_handle_unseen(struct ckpt_stage_handle *h)
{
    h->unseen = true;
}

/* Does every change of a file whose times were looked at since the last one give it another time? Elsewhere two within a tick look like one. */
static bool has_fine_times(int fd)
{
    struct utsname kernel;
    struct statfs fs;
    unsigned major, minor;
    if (uname(&kernel) < 0 || sscanf(kernel.release, "%u.%u", &major, &minor) != 2 || fstatfs(fd, &fs) < 0)
        return false;
    return (major > 6 || (major == 6 && minor >= 13)) &&
           (fs.f_type == EXT4_SUPER_MAGIC || fs.f_type == XFS_SUPER_MAGIC || fs.f_type == BTRFS_SUPER_MAGIC || fs.f_type == TMPFS_MAGIC);
}

void ckpt_stage_copied(struct ckpt_stage_handle *h, const struct ckpt_ref *ref)
{
    struct stat st;
    if (h->inode->step->face || !has_fine_times(h->fd) || fstat(h->fd, &st) < 0 || (uint64_t)st.st_size != ref->size)
        return; /* its content is looked at, as any file's */
    h->copied = true;
    h->copied_ctime = st.st_ctim;
    h->made = *ref;
}

static bool hold_copied(struct ckpt_stage_handle *h)
{
    struct stage_step *step = h->inode->step;
    struct ckpt_hold hold = {.store = step->set->store, .dir = step->hold};
    return ckpt_hold_object(&hold, h->made.object) == 0;
}

/* Nothing has been written since its object was begun. */
static bool is_as_queued(const struct ckpt_stage_handle *h, const struct stat *st)
{
    const struct timespec *t = &h->inode->queued_ctime;
    return st->st_ctim.tv_sec == t->tv_sec && st->st_ctim.tv_nsec == t->tv_nsec && has_fine_times(h->fd);
}

void ckpt_stage_flush(struct ckpt_stage_handle *h)
{
    struct stage_inode *n = h->inode;
    struct ckpt_stages *set = n->step->set;
    struct stat st;
    if (!h->write || fstat(h->fd, &st) < 0)
        return;
    CKPT_GUARD(&set->lock);
    if (h->unseen && !is_as_queued(h, &st))
        stage_dirty(n);
    int fd = wants_object(n, &st, 1) && !h->copied ? fcntl(h->fd, F_DUPFD_CLOEXEC, 0) : -1;
    if (fd >= 0)
        queue_object(n, fd, &st);
    if (set->flushing == FLUSHERS)
        return;
    set->flushing++;
    while (set->job_bytes > LAG && !set->closing)
        pthread_cond_wait(&set->idle, &set->lock);
    set->flushing--;
}

void ckpt_stage_release(struct ckpt_stage_handle *h)
{
    struct stage_inode *n = h->inode;
    struct stage_step *step = n->step;
    struct ckpt_stages *set = step->set;
    struct stat st = {0};
    bool same = h->write && fstat(h->fd, &st) == 0 && h->copied && (uint64_t)st.st_size == h->made.size &&
                st.st_ctim.tv_sec == h->copied_ctime.tv_sec && st.st_ctim.tv_nsec == h->copied_ctime.tv_nsec && hold_copied(h);
    bool unseen = h->write && h->unseen && !same;
    if (unseen)
        stage_touch(step, &(struct ckpt_caller){0});
    ckpt_file_unref(h->payload);
    pthread_mutex_destroy(&h->lock);
    pthread_mutex_lock(&set->lock);
    if (unseen && !is_as_queued(h, &st))
        stage_dirty(n);
    n->opens--;
    if (h->write) {
        n->open_writes--;
        step->open_writes--;
        pthread_cond_broadcast(&set->idle);
    }
    if (same && !n->open_writes) { /* nothing has touched it since it was copied */
        n->known = true;
        n->known_gen = atomic_load(&n->gen);
        n->made = h->made;
    }
    if (h->write && wants_object(n, &st, 0))
        queue_object(n, h->fd, &st);
    else
        close(h->fd);
    stage_reap(n);
    pthread_mutex_unlock(&set->lock);
    free(h);
}

/* Writers need to read too: the kernel reads pages that it changes in part, and the background reads all. */
static int backing_flags(int flags)
{
    int access = (flags & O_ACCMODE) == O_RDONLY ? O_RDONLY : O_RDWR;
    return access | (flags & O_DSYNC) | O_NONBLOCK | O_NOCTTY;
}

int ckpt_stage_open(struct ckpt_stages *set, uint64_t id, int flags, const struct ckpt_caller *who, struct ckpt_stage_handle **ret)
{
    struct stage_inode *n;
    int r = stage_get(set, id, &n);
    if (r < 0)
        return r;
    bool write = (flags & O_ACCMODE) != O_RDONLY;
    int fd = n->dir ? -EISDIR : stage_reopen(n->fd, backing_flags(flags));
    r = CKPT_MIN(fd, 0);
    if (r == 0 && (write || (flags & O_TRUNC))) {
        r = stage_enter(n->step);
        if (r == 0) {
            pthread_mutex_lock(&n->content);
            r = stage_own(n, fd, flags & O_TRUNC ? 0 : UINT64_MAX);
            if (r == 0 && (flags & O_TRUNC)) {
                r = ckpt_disk_truncate(fd, 0);
                stage_dirty(n);
            }
            pthread_mutex_unlock(&n->content);
            stage_touch(n->step, who);
            /* Counted as open before a commit can begin. */
            if (r == 0 && !(*ret = handle_new(n, fd, flags)))
                r = -ENOMEM;
            stage_leave(n->step);
        }
    } else if (r == 0) {
        pthread_mutex_lock(&n->content);
        stage_shares(n, NULL); /* known from now on: ckpt_stage_handle_fd asks */
        pthread_mutex_unlock(&n->content);
        if (!(*ret = handle_new(n, fd, flags)))
            r = -ENOMEM;
    }
    if (r < 0 && fd >= 0)
        close(fd);
    stage_put(n);
    return r;
}

int ckpt_stage_create(struct ckpt_stages *set, uint64_t parent, const char *name, mode_t mode, int flags, const struct ckpt_caller *who,
                      struct ckpt_stage_attr *ret, struct ckpt_stage_handle **ret_handle)
{
    struct stage_inode *dir, *n;
    int r = stage_get(set, parent, &dir);
    if (r < 0)
        return r;
    struct stage_step *step = dir->step;
    r = stage_enter(step);
    if (r < 0) {
        stage_put(dir);
        return r;
    }
    int fd = ckpt_stage_hides(set, parent, name) ? -EPERM : ckpt_disk_open(dir->fd, name, O_CREAT | O_NOFOLLOW | (flags & O_EXCL) | O_CLOEXEC | backing_flags(flags | O_RDWR), mode & 07777);
    r = CKPT_MIN(fd, 0);
    if (r == 0 && (who->uid != geteuid() || who->gid != getegid()) && fchown(fd, who->uid, who->gid) < 0 && geteuid() == 0)
        r = -errno;
    if (r == 0 && fchmod(fd, mode & 07777) < 0) /* the caller's umask is applied already, and this process has another */
        r = -errno;
    if (r == 0) {
        int path = stage_reopen(fd, O_PATH);
        r = path < 0 ? path : stage_take(step, path, dir, name, ret);
    }
    if (r == 0 && (r = stage_get(set, ret->id, &n)) == 0) {
        pthread_mutex_lock(&n->content);
        if (flags & O_TRUNC) {
            r = stage_own(n, fd, 0);
            r = r < 0 ? r : ckpt_disk_truncate(fd, 0);
            stage_dirty(n);
        } else if (atomic_load(&n->shared) < 0 && !ret->st.st_size)
            atomic_store(&n->shared, 0);
        pthread_mutex_unlock(&n->content);
        if (r == 0 && !(*ret_handle = handle_new(n, fd, O_RDWR)))
            r = -ENOMEM;
        if (r == 0)
            r = stage_stat(n, ret);
        stage_put(n);
        if (r < 0)
            ckpt_stage_forget(set, ret->id, 1);
    }
    if (r < 0 && fd >= 0)
        close(fd);
    stage_touch(step, who);
    stage_leave(step);
    stage_put(dir);
    return r;
}

int ckpt_stage_handle_fd(const struct ckpt_stage_handle *h)
{
    return atomic_load(&h->inode->shared) == 0 ? h->fd : -1;
}

int ckpt_stage_handle_ref(struct ckpt_stage_handle *h, struct ckpt_ref *ret)
{
    CKPT_GUARD(&h->inode->content);
    return stage_shares(h->inode, ret);
}

ssize_t ckpt_stage_read(struct ckpt_stage_handle *h, void *buf, size_t len, uint64_t off)
{
    struct stage_inode *n = h->inode;
    struct ckpt_ref ref;
    if (atomic_load(&n->shared) == 0)
        return ckpt_pread(h->fd, buf, len, off);
    pthread_mutex_lock(&n->content);
    int shared = stage_shares(n, &ref);
    pthread_mutex_unlock(&n->content);
    if (!shared)
        return ckpt_pread(h->fd, buf, len, off);
    pthread_mutex_lock(&h->lock);
    int r = h->payload ? 0 : open_payload(n->step, &ref, &h->payload);
    pthread_mutex_unlock(&h->lock);
    if (r < 0)
        return r == -ENOENT ? -EIO : r;
    len = off < ref.size ? (size_t)CKPT_MIN((uint64_t)len, ref.size - off) : 0;
    return len ? ckpt_file_read(h->payload, buf, len, ref.offset + off) : 0;
}

ssize_t ckpt_stage_write(struct ckpt_stage_handle *h, const void *buf, size_t len, uint64_t off, const struct ckpt_caller *who)
{
    struct stage_inode *n = h->inode;
    int r = 0;
    /* The step cannot be committed while the file is open for writing, so there is nothing to keep out. */
    stage_dirty(n);
    if (atomic_load(&n->shared) != 0) { /* it was made to share content after it was opened */
        CKPT_GUARD(&n->content);
        r = stage_own(n, h->fd, UINT64_MAX);
    }
    if (r == 0)
        r = ckpt_disk_write(h->fd, buf, len, off);
    stage_dirty(n);
    stage_touch(n->step, who);
    return r < 0 ? r : (ssize_t)len;
}

int ckpt_stage_allocate(struct ckpt_stage_handle *h, int mode, uint64_t off, uint64_t len, const struct ckpt_caller *who)
{
    int r = 0;
    if (atomic_load(&h->inode->shared) != 0) {
        CKPT_GUARD(&h->inode->content);
        r = stage_own(h->inode, h->fd, UINT64_MAX);
    }
    if (r == 0 && fallocate(h->fd, mode, (off_t)off, (off_t)len) < 0)
        r = -errno;
    stage_dirty(h->inode);
    stage_touch(h->inode->step, who);
    return r;
}

int ckpt_stage_share(struct ckpt_stage_handle *h, const struct ckpt_ref *ref, const struct ckpt_caller *who)
{
    struct stage_inode *n = h->inode;
    struct stage_step *step = n->step;
    struct ckpt_hold hold = {.store = step->set->store, .dir = step->hold};
    struct stat st;
    if (!h->write || h->unseen || step->face || fstat(h->fd, &st) < 0 || st.st_size || !ref->size)
        return -EXDEV;
    int r = ckpt_hold_object(&hold, ref->object);
    if (r == 0) {
        CKPT_GUARD(&n->content);
        r = stage_make_ref(h->fd, ref);
        if (r == 0) {
            n->shares = *ref;
            atomic_store(&n->shared, 1);
        }
        stage_dirty(n);
    }
    stage_touch(step, who);
    return r < 0 ? -EXDEV : 0;
}

int ckpt_stage_fsync(struct ckpt_stage_handle *h)
{
    int r = ckpt_disk_fsync(h->fd);
    /* The bytes of a reference file are an object that the step holds. */
    return r == 0 && atomic_load(&h->inode->shared) == 1 ? ckpt_disk_fsync(h->inode->step->hold) : r;
}
