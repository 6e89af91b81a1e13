/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Open files of staged steps. A reference file gets bytes of its own before the first change (stage_bytes.c). When the
 * last writer has closed a file, a thread of the pool makes its object, so that it is hashed, encoded and durable by
 * the time of the commit. Then its own bytes are not needed any more: the file becomes a reference file, and the disk
 * never has to take them.
 *
 * The kernel may write to a file by itself, and does so, where it is mapped, also after the last close. A file that it
 * was once given is therefore believed to be at rest only when a lease on it shows that nobody else has it open.
 */
#include "core/stage/private.h"

#include "core/store/seal.h"

#include <sys/statvfs.h>
#include <sys/vfs.h>

#define FULL ((size_t)2 << 20) /* a disk with less room than that: a large write fails while there is still some */

/* --- files at rest --- */

#define STRAGGLES                                                                                                      \
    8 /* waits, the first of 100 µs, each twice as long as the one before: the kernel ends the use of a file a little \
         after its close */

/*
 * A lease, which is given back at once. -EAGAIN: for reading, somebody may write to the file, by a descriptor or a
 * mapping; for writing, somebody has it. Under the content's lock, or with the step frozen: meanwhile the file cannot
 * be opened.
 */
static int try_lease(int fd, int type)
{
    for (unsigned i = 0;; i++) {
        if (fcntl(fd, F_SETLEASE, type) == 0)
            return fcntl(fd, F_SETLEASE, F_UNLCK) < 0 ? -errno : 0;
        if (errno != EAGAIN || i == STRAGGLES)
            return -errno;
        nanosleep(&(struct timespec){.tv_nsec = 100000l << i}, NULL);
    }
}

bool ckpt_stage_has_leases(int dir)
{
    CKPT_AUTOFD int fd = openat(dir, "store.json", O_RDONLY | O_CLOEXEC);
    return fd >= 0 && try_lease(fd, F_RDLCK) == 0;
}

int ckpt_stage_known(void *arg, int fd, const struct stat *st, struct ckpt_ref *ret)
{
    struct stage_step *step = arg;
    pthread_mutex_lock(&step->set->lock);
    struct stage_inode *n = ckpt_stage_inode_by_stat(step->set, st);
    bool known = n && n->known && n->known_gen == atomic_load(&n->gen) && n->made.size == (uint64_t)st->st_size;
    bool kernel_writes = n ? atomic_load(&n->kernel_writes)
                           : step->set->leases; /* an earlier mount may have given it to the kernel */
    if (known)
        *ret = n->made;
    pthread_mutex_unlock(&step->set->lock);
    return known ? 1 : kernel_writes && try_lease(fd, F_RDLCK) == -EAGAIN ? -EBUSY : 0;
}

/*
 * May its own bytes be evicted, since there is an object of them? Not those that a user has made durable: these are on
 * the disk already. And not those of pieces: these are joined soon. Under the set's lock.
 */
static bool may_evict(const struct stage_inode *n)
{
    return n->known && n->known_gen == atomic_load(&n->gen) && !n->opens && !n->unlinked &&
           !atomic_load(&n->no_evict) && atomic_load(&n->shared) == 0 && n->name && !ckpt_pieces_stem(n->name) &&
           !n->step->files_view && !n->step->set->closing;
}

/* With its content locked, so that nobody opens it meanwhile: fd is the only descriptor that this process has. */
static void evict_locked(struct stage_inode *n, int fd)
{
    struct stage_step *step = n->step;
    struct stat st;
    char name[CKPT_HEX];
    pthread_mutex_lock(&step->set->lock);
    bool wanted = may_evict(n) && atomic_load(&step->state) == STAGE_OPEN;
    struct ckpt_ref ref = n->made;
    pthread_mutex_unlock(&step->set->lock);
    ckpt_hash_hex(ref.object, name);
    if (!wanted || faccessat(step->hold, name, F_OK, AT_SYMLINK_NOFOLLOW) < 0 || fstat(fd, &st) < 0 ||
        (uint64_t)st.st_size != ref.size)
        return; /* what is stored as it is has no object before the commit, which makes this file one */
    if (!atomic_load(&n->kernel_writes) || try_lease(fd, F_WRLCK) == 0)
        ckpt_stage_evict(n, fd, &ref);
}

/* Make it a reference to its object, unless it is in use again. The caller keeps the inode; the descriptor is taken
 * over. */
static void evict_file(struct stage_inode *n, int fd)
{
    bool free_to_change = pthread_rwlock_tryrdlock(&n->step->freeze) ==
                          0; /* else a commit is under way, which takes all of it away */
    if (free_to_change)
        pthread_mutex_lock(&n->content);
    CKPT_AUTOFD int own = free_to_change ? ckpt_stage_reopen(fd, O_RDWR) : -1;
    close(fd);
    if (own >= 0)
        evict_locked(n, own);
    if (free_to_change) {
        pthread_mutex_unlock(&n->content);
        ckpt_stage_leave(n->step);
    }
}

/* --- objects in the background --- */

#define LAG    ((uint64_t)64 << 20) /* bytes of a step's files that are closed and whose objects are not made yet */
#define LAG_NS 1000000000l          /* that a close waits for it to become less */
#define FLUSHERS                                                                                                       \
    4 /* closes that wait for that at once: each keeps a thread of the caller's, who has others to serve               \
       */
#define SLOW ((uint64_t)256 << 20) /* bytes that are not hashed and encoded at once */

struct job {
    struct stage_task task;
    struct stage_inode *inode;
    int fd; /* to read from */
    uint64_t size;
    struct ckpt_ref made;
};

/* Is there something to make, and nobody who will change it? Under the set's lock. */
static bool wants_object(const struct stage_inode *n, const struct stat *st)
{
    return (uint64_t)st->st_size >= CKPT_SMALL && !n->open_writes && !n->queued && !n->unlinked &&
           atomic_load(&n->shared) == 0 && !n->step->files_view &&
           (!n->known || n->known_gen != atomic_load(&n->gen)) && atomic_load(&n->step->state) == STAGE_OPEN &&
           !n->step->set->closing;
}

static int find_content(struct job *job, struct ckpt_err *err)
{
    struct stage_inode *n = job->inode;
    struct stage_step *step = n->step;
    struct ckpt_hold hold = {.store = step->set->store, .dir = step->hold};
    if (atomic_load(&step->state) == STAGE_GONE)
        return -ESTALE;
    if (atomic_load(&n->kernel_writes)) {
        CKPT_GUARD(&n->content);
        if (try_lease(job->fd, F_RDLCK) < 0)
            return -EBUSY;
    }
    return ckpt_hold_file(&hold, job->fd, "X.npy", step->set->opt.codec, false, &n->cancel, &job->made, err);
}

static void queue_object(struct stage_inode *n, int fd, const struct stat *st);

static void make_object(struct stage_task *task)
{
    struct job *job = (struct job *)task;
    struct stage_inode *n = job->inode;
    struct stage_step *step = n->step;
    struct ckpt_stages *set = step->set;
    struct ckpt_err err = {0};
    struct stat st;
    uint64_t gen = atomic_load(&n->gen);
    int r = find_content(job, &err);
    if (r < 0 && r != -ESTALE && r != -ECANCELED) /* the commit will try again, and tell */
        ckpt_log(CKPT_LOG_DEBUG, "%s: %s", set->store->path, err.code ? err.text : strerror(-r));
    pthread_mutex_lock(&set->lock);
    step->job_bytes -= job->size;
    n->queued = false;
    ckpt_stage_use_locked(n);
    if (r == 0 && gen == atomic_load(&n->gen)) {
        n->known = true;
        n->known_gen = gen;
        n->made = job->made;
    }
    bool evictable = may_evict(n);
    if (gen != atomic_load(&n->gen) && fstat(job->fd, &st) == 0 &&
        wants_object(n, &st)) /* it was changed, and closed, meanwhile */
        queue_object(n, CKPT_STEAL_FD(job->fd), &st);
    pthread_cond_broadcast(&set->idle);
    pthread_mutex_unlock(&set->lock);
    if (evictable)
        evict_file(n, CKPT_STEAL_FD(job->fd));
    if (job->fd >= 0)
        close(job->fd);
    pthread_mutex_lock(&set->lock);
    ckpt_stage_unuse_locked(n);
    step->jobs--;
    pthread_cond_broadcast(&set->idle);
    ckpt_stage_reap(n);
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
        uint64_t size = (uint64_t)st->st_size, stored = (uint64_t)st->st_blocks * 512;
        if (ckpt_object_wants_sparse(size, stored))
            size = stored; /* its holes are no work */
        *job = (struct job){{NULL, step, st->st_uid, size >= SLOW, make_object}, n, fd, size};
        n->queued = true;
        atomic_store(&n->cancel, false);
        step->jobs++;
        step->job_bytes += job->size;
        if (ckpt_stage_queue_add(set, &job->task) == 0)
            return;
        step->job_bytes -= job->size;
        step->jobs--;
        n->queued = false;
    }
    free(job);
    close(fd);
}

void ckpt_stage_drop_jobs(struct stage_step *step)
{
    for (struct stage_task *task = ckpt_stage_queue_take(step), *next; task; task = next) {
        struct job *job = (struct job *)task;
        next = task->next;
        step->job_bytes -= job->size;
        step->jobs--;
        job->inode->queued = false;
        ckpt_stage_reap(job->inode);
        close(job->fd);
        free(job);
    }
}

/* --- handles --- */

static struct ckpt_stage_handle *handle_new(struct stage_inode *n, int fd, int flags)
{
    struct ckpt_stage_handle *h = calloc(1, sizeof *h);
    if (!h)
        return NULL;
    h->inode = n;
    h->fd = fd;
    h->read = (flags & O_ACCMODE) != O_WRONLY;
    h->write = (flags & O_ACCMODE) != O_RDONLY;
    pthread_mutex_init(&h->lock, NULL);
    CKPT_GUARD(&n->step->set->lock);
    n->opens++;
    n->step->busy++;
    if (h->write) {
        n->open_writes++;
        n->step->open_writes++;
    }
    return h;
}

void ckpt_stage_handle_kernel_writes(struct ckpt_stage_handle *h)
{
    h->kernel_writes = true;
    atomic_store(&h->inode->kernel_writes, true);
    if (h->write)
        ckpt_stage_dirty(h->inode);
}

void ckpt_stage_flush(struct ckpt_stage_handle *h)
{
    struct stage_step *step = h->inode->step;
    struct ckpt_stages *set = step->set;
    struct timespec until = ckpt_stage_deadline(LAG_NS);
    if (!h->write)
        return;
    CKPT_GUARD(&set->lock);
    if (set->flushing == FLUSHERS)
        return;
    set->flushing++;
    while (step->job_bytes > LAG && !set->closing && pthread_cond_timedwait(&set->idle, &set->lock, &until) == 0)
        ;
    set->flushing--;
}

/* Whose writes the kernel makes by itself is not told that one failed; but then there is no room. */
static bool is_full(int fd)
{
    struct statvfs fs;
    return fstatvfs(fd, &fs) == 0 && (geteuid() ? fs.f_bavail : fs.f_bfree) < FULL / fs.f_frsize;
}

void ckpt_stage_release(struct ckpt_stage_handle *h)
{
    struct stage_inode *n = h->inode;
    struct stage_step *step = n->step;
    struct ckpt_stages *set = step->set;
    struct stat st = {0};
    bool large = h->write && fstat(h->fd, &st) == 0 && (uint64_t)st.st_size >= CKPT_SMALL;
    int fd = large ? ckpt_stage_reopen(h->fd, O_RDONLY) : -1;
    bool full = h->write && h->kernel_writes && is_full(h->fd);
    close(h->fd); /* first: a lease is refused while it is open */
    if (h->write && h->kernel_writes) {
        ckpt_stage_touch(step, &(struct ckpt_caller){0});
        if (full)
            ckpt_stage_write_failed(step, -ENOSPC);
    }
    ckpt_file_unref(h->payload);
    pthread_mutex_destroy(&h->lock);
    pthread_mutex_lock(&set->lock);
    n->opens--;
    step->busy--;
    if (h->write) {
        n->open_writes--;
        step->open_writes--;
        pthread_cond_broadcast(&set->idle);
    }
    if (fd >= 0 && wants_object(n, &st))
        queue_object(n, CKPT_STEAL_FD(fd), &st);
    ckpt_stage_reap(n);
    pthread_mutex_unlock(&set->lock);
    if (fd >= 0)
        close(fd);
    free(h);
}

/* Writers need to read too: the kernel reads pages that it changes in part, and the background reads all. */
static int backing_flags(int flags)
{
    int access = (flags & O_ACCMODE) == O_RDONLY ? O_RDONLY : O_RDWR;
    return access | (flags & O_DSYNC) | O_NONBLOCK | O_NOCTTY;
}

int ckpt_stage_drop_setid(int fd, const struct ckpt_caller *who)
{
    struct stat st;
    if (!who->uid || fstat(fd, &st) < 0 || !(st.st_mode & (S_ISUID | S_ISGID)))
        return 0;
    mode_t drop = S_ISUID | (st.st_mode & S_IXGRP ? S_ISGID : 0);
    int r = ckpt_seal_forget(fd);
    return r < 0 ? r : ckpt_disk_chmod(fd, st.st_mode & 07777 & ~drop);
}

/* With its content locked: evict_file() may have a lease, which would refuse the descriptor or be broken by it. */
static int open_locked(struct stage_inode *n, int flags, const struct ckpt_caller *who, struct ckpt_stage_handle **ret)
{
    bool change = (flags & O_ACCMODE) != O_RDONLY || flags & O_TRUNC;
    int fd = ckpt_stage_reopen(n->fd, backing_flags(flags | (change ? O_RDWR : 0)));
    int r = CKPT_MIN(fd, 0);
    if (r == 0 && change)
        r = ckpt_stage_drop_setid(fd, who);
    if (r == 0 && flags & O_TRUNC)
        r = ckpt_stage_resize(n, fd, 0);
    else if (r == 0 && change)
        r = ckpt_stage_copy_up(n, fd, STAGE_ALL);
    struct ckpt_ref ref;
    struct ckpt_file *payload = NULL;
    if (r == 0 && (flags & O_ACCMODE) != O_WRONLY)
        r = ckpt_stage_open_payload(n, &ref, &payload);
    /* Counted as open before a commit can begin, and before its bytes can go. */
    if (r == 0 && !(*ret = handle_new(n, fd, flags)))
        r = -ENOMEM;
    if (r == 0)
        ckpt_stage_give_payload(*ret, &ref, CKPT_STEAL(payload));
    ckpt_file_unref(payload);
    if (r < 0 && fd >= 0)
        close(fd);
    return r;
}

int ckpt_stage_open(struct ckpt_stages *set, uint64_t id, int flags, const struct ckpt_caller *who,
                    struct ckpt_stage_handle **ret)
{
    struct stage_inode *n;
    int r = ckpt_stage_use(set, id, &n);
    if (r < 0)
        return r;
    bool change = (flags & O_ACCMODE) != O_RDONLY || flags & O_TRUNC;
    r = n->dir ? -EISDIR : change ? ckpt_stage_enter(n->step) : 0;
    if (r == 0) {
        pthread_mutex_lock(&n->content);
        r = open_locked(n, flags, who, ret);
        pthread_mutex_unlock(&n->content);
        if (change) {
            ckpt_stage_write_failed(n->step, r);
            ckpt_stage_touch(n->step, who);
            ckpt_stage_leave(n->step);
        } else
            ckpt_stage_came(n->step, who);
    }
    ckpt_stage_unuse(n);
    return r;
}

/* A new file, with its owner and mode, or none. -EEXIST. */
static int make_file(struct stage_inode *dir, const char *name, int flags, mode_t mode, const struct ckpt_caller *who)
{
    struct stat above;
    int how = O_CREAT | O_EXCL | O_NOFOLLOW | backing_flags(flags | O_RDWR);
    int fd = ckpt_disk_open(dir->fd, name, how, mode & 07777);
    if (fd < 0)
        return fd;
    bool inherits = fstatat(dir->fd, "", &above, AT_EMPTY_PATH) == 0 && above.st_mode & S_ISGID;
    gid_t gid = inherits ? above.st_gid : who->gid;
    int r = who->uid != geteuid() || gid != getegid() ? ckpt_disk_chown(fd, who->uid, gid) : 0;
    if (geteuid() || r == 0)
        r = ckpt_disk_chmod(fd, mode & 07777); /* the caller's umask is applied already, and this process has another */
    if (r == 0)
        return fd;
    (void)!ckpt_disk_unlink(dir->fd, name, 0);
    close(fd);
    return r;
}

/* The descriptor of a file that was made here is taken over. */
static int open_made(struct stage_inode *dir, const char *name, int fd, bool writes_only, struct ckpt_stage_attr *ret,
                     struct ckpt_stage_handle **ret_handle)
{
    struct ckpt_stages *set = dir->step->set;
    struct stage_inode *n;
    int path = ckpt_stage_reopen(fd, O_PATH);
    int r = path < 0 ? path : ckpt_stage_ref_fd(dir->step, path, dir, name, ret);
    if (r == 0 && (r = ckpt_stage_use(set, ret->id, &n)) == 0) {
        atomic_store(&n->kernel_writes, false);
        r = (*ret_handle = handle_new(n, fd, writes_only ? O_WRONLY : O_RDWR)) ? ckpt_stage_stat(n, ret) : -ENOMEM;
        ckpt_stage_unuse(n);
        if (r < 0 && *ret_handle)
            ckpt_stage_release(*ret_handle); /* and with it the descriptor */
        fd = *ret_handle ? -1 : fd;
        if (r < 0)
            ckpt_stage_forget(set, ret->id, 1);
    }
    if (fd >= 0)
        close(fd);
    return r;
}

/* It was made by somebody else since the caller has looked. */
static int open_found(struct stage_inode *dir, const char *name, int flags, const struct ckpt_caller *who,
                      struct ckpt_stage_attr *ret, struct ckpt_stage_handle **ret_handle)
{
    struct ckpt_stages *set = dir->step->set;
    int r = ckpt_stage_lookup(set, dir->id, name, ret);
    if (r < 0)
        return r;
    r = ckpt_stage_open(set, ret->id, (flags & ~O_ACCMODE) | O_RDWR, who, ret_handle);
    if (r == 0 && (r = ckpt_stage_getattr(set, ret->id, ret)) < 0)
        ckpt_stage_release(*ret_handle);
    if (r < 0)
        ckpt_stage_forget(set, ret->id, 1);
    return r;
}

int ckpt_stage_create(struct ckpt_stages *set, uint64_t parent, const char *name, mode_t mode, int flags,
                      const struct ckpt_caller *who, struct ckpt_stage_attr *ret, struct ckpt_stage_handle **ret_handle)
{
    struct stage_inode *dir;
    int r = ckpt_stage_use(set, parent, &dir);
    if (r < 0)
        return r;
    struct stage_step *step = dir->step;
    *ret_handle = NULL;
    r = ckpt_stage_enter(step);
    if (r == 0) {
        int fd = ckpt_stage_hides(set, parent, name) ? -EPERM : make_file(dir, name, flags, mode, who);
        r = fd < 0 ? fd : open_made(dir, name, fd, (flags & O_ACCMODE) == O_WRONLY, ret, ret_handle);
        if (fd >= 0 && r < 0)
            (void)!ckpt_disk_unlink(dir->fd, name, 0);
        ckpt_stage_write_failed(step, r);
        ckpt_stage_touch(step, who);
        ckpt_stage_leave(step);
    }
    if (r == -EEXIST && !(flags & O_EXCL))
        r = open_found(dir, name, flags, who, ret, ret_handle);
    ckpt_stage_unuse(dir);
    return r;
}

int ckpt_stage_handle_fd(const struct ckpt_stage_handle *h)
{
    return h->inode->step->set->leases && atomic_load(&h->inode->shared) == 0 ? h->inode->fd : -1;
}

ssize_t ckpt_stage_write(struct ckpt_stage_handle *h, const void *buf, size_t len, uint64_t off,
                         const struct ckpt_caller *who)
{
    struct stage_inode *n = h->inode;
    if (off > CKPT_LEAF_MAX - len)
        return -EFBIG;
    /* The step cannot be committed while the file is open for writing, so there is nothing to keep out. */
    ckpt_stage_dirty(n);
    int r = ckpt_stage_begin_change(n, h->fd); /* it may have been made to share content after it was opened */
    if (r == 0)
        r = ckpt_disk_write(h->fd, buf, len, off);
    ckpt_stage_end_change(n);
    ckpt_stage_write_failed(n->step, r);
    ckpt_stage_dirty(n);
    ckpt_stage_touch(n->step, who);
    return r < 0 ? r : (ssize_t)len;
}

int ckpt_stage_allocate(struct ckpt_stage_handle *h, int mode, uint64_t off, uint64_t len,
                        const struct ckpt_caller *who)
{
    if (off > CKPT_LEAF_MAX || len > CKPT_LEAF_MAX - off)
        return -EFBIG;
    int r = ckpt_stage_begin_change(h->inode, h->fd);
    if (r == 0)
        r = ckpt_disk_allocate(h->fd, mode, off, len);
    ckpt_stage_end_change(h->inode);
    ckpt_stage_write_failed(h->inode->step, r);
    ckpt_stage_dirty(h->inode);
    ckpt_stage_touch(h->inode->step, who);
    return r;
}

int ckpt_stage_fsync(struct ckpt_stage_handle *h)
{
    pthread_mutex_lock(&h->inode->content);
    h->inode->no_evict = true; /* they are on the disk from now on */
    pthread_mutex_unlock(&h->inode->content);
    int r = ckpt_disk_fsync(h->fd);
    /* The bytes of a reference file are an object that the step holds. */
    return r == 0 && atomic_load(&h->inode->shared) == 1 ? ckpt_disk_fsync(h->inode->step->hold) : r;
}
