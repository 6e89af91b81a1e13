/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Open files of staged steps. A reference file gets bytes of its own before the first change (stage_own). When the last writer has closed a
 * file, a thread of the pool makes its object, so that it is hashed, encoded and durable by the time of the commit. Then its own bytes are
 * not needed any more: the file becomes a reference file, and the disk never has to take them.
 *
 * The kernel may write to a file by itself, and does so, where it is mapped, also after the last close. A file that it was once given is
 * therefore believed to be at rest only when a lease on it shows that nobody else has it open.
 */
#include "core/store/stage_private.h"

#include "core/store/commit_private.h"

#include <stdio.h>
#include <linux/magic.h>
#include <sys/statvfs.h>
#include <sys/utsname.h>
#include <sys/vfs.h>
#include <sys/xattr.h>

#define COPY ((size_t)1 << 20)
#define FULL ((size_t)2 << 20) /* a disk with less room than that: a large write fails while there is still some */

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

static int mark_ref(int fd, const struct ckpt_ref *ref)
{
    char text[CKPT_REF_TEXT];
    ckpt_ref_print(ref, text);
    return ckpt_disk_setxattr(fd, CKPT_REF_XATTR, text, strlen(text));
}

int stage_make_ref(int fd, const struct ckpt_ref *ref)
{
    int r = mark_ref(fd, ref);
    return r < 0 ? r : ckpt_disk_truncate(fd, ref->size);
}

static int open_payload(struct stage_step *step, const struct ckpt_ref *ref, struct ckpt_file **ret)
{
    struct ckpt_hold hold = {.store = step->set->store, .dir = step->hold};
    struct ckpt_err err = {0};
    int r = ckpt_hold_open(&hold, step->set->cache, ref, ret, &err);
    if (r < 0)
        ckpt_log(CKPT_LOG_WARN, "%s: content of a staged file: %s", step->set->store->path, err.code ? err.text : strerror(-r));
    return r == -ENOENT ? -EIO : r;
}

/* Its bytes are made otherwise, without change for its user: the times stay. From here on, and no more. With its content locked. */
static int keep_times(struct stage_inode *n, int fd)
{
    struct stat st;
    if (fstat(fd, &st) < 0)
        return -errno;
    CKPT_GUARD(&n->step->set->lock);
    n->times[0] = st.st_atim;
    n->times[1] = st.st_mtim;
    atomic_fetch_add(&n->remade, 1);
    return 0;
}

static int restore_times(struct stage_inode *n, int fd)
{
    int r = futimens(fd, n->times) < 0 ? -errno : 0;
    atomic_fetch_add(&n->remade, 1);
    return r;
}

int stage_own(struct stage_inode *n, int fd, uint64_t keep)
{
    struct ckpt_ref ref;
    struct ckpt_file *payload = NULL;
    if (!stage_shares(n, &ref))
        return 0;
    int r = 0;
    keep = CKPT_MIN(keep, ref.size);
    if (keep) {
        r = keep_times(n, fd);
        if (r < 0)
            return r;
        CKPT_AUTOFREE uint8_t *buf = malloc(COPY);
        r = buf ? open_payload(n->step, &ref, &payload) : -ENOMEM;
        for (uint64_t off = 0; off < keep && r == 0;) {
            size_t len = (size_t)CKPT_MIN((uint64_t)COPY, keep - off);
            ssize_t got = ckpt_file_read(payload, buf, len, ref.offset + off);
            r = got < 0 ? (int)got : (size_t)got < len ? -EBADMSG : ckpt_disk_write(fd, buf, len, off);
            off += len;
        }
        ckpt_file_unref(payload);
        int restored = restore_times(n, fd);
        r = r < 0 ? r : restored;
        /* The bytes are there before the reference goes. */
        if (r == 0)
            r = ckpt_disk_fsync(fd);
    } else
        r = ckpt_disk_truncate(fd, 0);
    if (r == 0)
        r = ckpt_disk_removexattr(fd, CKPT_REF_XATTR);
    if (r == 0) {
        n->keeps_bytes = true; /* who changes it once may do so again */
        atomic_store(&n->shared, 0);
        stage_dirty(n);
    }
    return r;
}

/* --- files at rest --- */

#define STRAGGLES 8 /* waits, the first of 100 µs, each twice as long as the one before: the kernel ends the use of a file a little after its close */

/*
 * A lease, which is given back at once. -EAGAIN: for reading, somebody may write to the file, by a descriptor or a mapping; for writing, somebody has
 * it. Under the content's lock, or with the step frozen: meanwhile the file cannot be opened.
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

bool stage_has_leases(int dir)
{
    CKPT_AUTOFD int fd = openat(dir, "store.json", O_RDONLY | O_CLOEXEC);
    return fd >= 0 && try_lease(fd, F_RDLCK) == 0;
}

int stage_known(void *arg, int fd, const struct stat *st, struct ckpt_ref *ret)
{
    struct stage_step *step = arg;
    pthread_mutex_lock(&step->set->lock);
    struct stage_inode *n = stage_find(step->set, st);
    bool known = n && n->known && n->known_gen == atomic_load(&n->gen) && n->made.size == (uint64_t)st->st_size;
    bool unseen = n ? atomic_load(&n->unseen) : step->set->leases; /* an earlier mount may have given it to the kernel */
    if (known)
        *ret = n->made;
    pthread_mutex_unlock(&step->set->lock);
    return known ? 1 : unseen && try_lease(fd, F_RDLCK) == -EAGAIN ? -EBUSY : 0;
}

/*
 * Does its object, which is made, make its own bytes needless? Not those that a user has made durable, which are on the disk already, and not
 * those of pieces, which are joined soon. Under the set's lock.
 */
static bool may_let_go(const struct stage_inode *n)
{
    return n->known && n->known_gen == atomic_load(&n->gen) && !n->opens && !n->unlinked && !atomic_load(&n->keeps_bytes) &&
           atomic_load(&n->shared) == 0 && n->name && !pieces_stem(n->name) && !n->step->face && !n->step->set->closing;
}

/* With its content locked: nobody can open it meanwhile, and fd is the only descriptor that is known of. */
static void let_go_locked(struct stage_inode *n, int fd)
{
    struct stage_step *step = n->step;
    struct stat st;
    char name[CKPT_HEX];
    pthread_mutex_lock(&step->set->lock);
    bool wanted = may_let_go(n) && atomic_load(&step->state) == STAGE_OPEN;
    struct ckpt_ref ref = n->made;
    pthread_mutex_unlock(&step->set->lock);
    ckpt_hash_hex(ref.object, name);
    if (!wanted || faccessat(step->hold, name, F_OK, AT_SYMLINK_NOFOLLOW) < 0 || fstat(fd, &st) < 0 || (uint64_t)st.st_size != ref.size)
        return; /* what is stored as it is has no object before the commit, which makes this file one */
    if ((atomic_load(&n->unseen) && try_lease(fd, F_WRLCK) < 0) || keep_times(n, fd) < 0)
        return;
    if (ckpt_head_keep(fd, &ref) == 0 && mark_ref(fd, &ref) == 0) {
        n->shares = ref;
        atomic_store(&n->shared, 1);
        (void)!ckpt_disk_punch(fd, ref.size);
    }
    (void)!restore_times(n, fd);
}

/* Make it a reference to its object, unless it is in use again. The caller keeps the inode; the descriptor is taken over. */
static void let_go(struct stage_inode *n, int fd)
{
    bool free_to_change = pthread_rwlock_tryrdlock(&n->step->freeze) == 0; /* else a commit is under way, which takes all of it away */
    if (free_to_change)
        pthread_mutex_lock(&n->content);
    CKPT_AUTOFD int own = free_to_change ? stage_reopen(fd, O_RDWR) : -1;
    close(fd);
    if (own >= 0)
        let_go_locked(n, own);
    if (free_to_change) {
        pthread_mutex_unlock(&n->content);
        stage_leave(n->step);
    }
}

/* --- objects in the background --- */

#define LAG ((uint64_t)64 << 20) /* bytes of files that are closed and whose objects are not made yet */
#define FLUSHERS 4               /* closes that wait for that at once: each keeps a thread of the caller's, who has others to serve */

struct job {
    struct stage_inode *inode;
    int fd; /* to read from */
    uint64_t size;
    bool copied; /* from stored content, which it still is if nothing has changed it since */
    struct timespec copied_ctime;
    struct ckpt_ref made;
};

/* Is there something to make, and nobody who will change it? Under the set's lock. */
static bool wants_object(const struct stage_inode *n, const struct stat *st)
{
    return (uint64_t)st->st_size >= CKPT_SMALL && !n->open_writes && !n->queued && !n->unlinked && atomic_load(&n->shared) != 1 && !n->step->face &&
           (!n->known || n->known_gen != atomic_load(&n->gen)) && atomic_load(&n->step->state) == STAGE_OPEN && !n->step->set->closing;
}

static bool is_as_copied(const struct job *job)
{
    struct stage_step *step = job->inode->step;
    struct ckpt_hold hold = {.store = step->set->store, .dir = step->hold};
    struct stat st;
    return job->copied && fstat(job->fd, &st) == 0 && (uint64_t)st.st_size == job->made.size && st.st_ctim.tv_sec == job->copied_ctime.tv_sec &&
           st.st_ctim.tv_nsec == job->copied_ctime.tv_nsec && ckpt_hold_object(&hold, job->made.object) == 0;
}

static int find_content(struct job *job, struct ckpt_err *err)
{
    struct stage_inode *n = job->inode;
    struct stage_step *step = n->step;
    struct ckpt_hold hold = {.store = step->set->store, .dir = step->hold};
    if (atomic_load(&step->state) == STAGE_GONE)
        return -ESTALE;
    if (atomic_load(&n->unseen)) {
        CKPT_GUARD(&n->content);
        if (try_lease(job->fd, F_RDLCK) < 0)
            return -EBUSY;
    }
    return is_as_copied(job) ? 0 : ckpt_hold_file(&hold, job->fd, "X.npy", step->set->opt.codec, false, &n->cancel, &job->made, err);
}

static void queue_object(struct stage_inode *n, int fd, const struct stat *st, const struct ckpt_stage_handle *copied);

static void make_object(void *arg)
{
    struct job *job = arg;
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
    set->job_bytes -= job->size;
    n->queued = false;
    n->uses++;
    if (r == 0 && gen == atomic_load(&n->gen)) {
        n->known = true;
        n->known_gen = gen;
        n->made = job->made;
    }
    bool needless = may_let_go(n);
    if (gen != atomic_load(&n->gen) && fstat(job->fd, &st) == 0 && wants_object(n, &st)) /* it was changed, and closed, meanwhile */
        queue_object(n, CKPT_STEAL_FD(job->fd), &st, NULL);
    pthread_cond_broadcast(&set->idle);
    pthread_mutex_unlock(&set->lock);
    if (needless)
        let_go(n, CKPT_STEAL_FD(job->fd));
    if (job->fd >= 0)
        close(job->fd);
    pthread_mutex_lock(&set->lock);
    n->uses--;
    step->jobs--;
    pthread_cond_broadcast(&set->idle);
    stage_reap(n);
    pthread_mutex_unlock(&set->lock);
    free(job);
}

/* Takes the descriptor over. copied: the handle by which it was, or NULL. Under the set's lock. */
static void queue_object(struct stage_inode *n, int fd, const struct stat *st, const struct ckpt_stage_handle *copied)
{
    struct stage_step *step = n->step;
    struct ckpt_stages *set = step->set;
    struct job *job = malloc(sizeof *job);
    if (job) {
        *job = (struct job){n, fd, (uint64_t)st->st_size};
        if (copied) {
            job->copied = true;
            job->copied_ctime = copied->copied_ctime;
            job->made = copied->made;
        }
        n->queued = true;
        atomic_store(&n->cancel, false);
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
    atomic_store(&h->inode->unseen, true);
    if (h->write)
        stage_dirty(h->inode);
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

void ckpt_stage_flush(struct ckpt_stage_handle *h)
{
    struct ckpt_stages *set = h->inode->step->set;
    if (!h->write)
        return;
    CKPT_GUARD(&set->lock);
    if (set->flushing == FLUSHERS)
        return;
    set->flushing++;
    while (set->job_bytes > LAG && !set->closing)
        pthread_cond_wait(&set->idle, &set->lock);
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
    int fd = large ? stage_reopen(h->fd, O_RDONLY) : -1;
    bool full = h->write && h->unseen && is_full(h->fd);
    close(h->fd); /* first: a lease is refused while it is open */
    if (h->write && h->unseen) {
        stage_touch(step, &(struct ckpt_caller){0});
        if (full)
            stage_write_failed(step, -ENOSPC);
    }
    ckpt_file_unref(h->payload);
    pthread_mutex_destroy(&h->lock);
    pthread_mutex_lock(&set->lock);
    n->opens--;
    if (h->write) {
        n->open_writes--;
        step->open_writes--;
        pthread_cond_broadcast(&set->idle);
    }
    if (fd >= 0 && wants_object(n, &st))
        queue_object(n, CKPT_STEAL_FD(fd), &st, h->copied ? h : NULL);
    stage_reap(n);
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

int stage_drop_setid(int fd, const struct ckpt_caller *who)
{
    struct stat st;
    if (!who->uid || fstat(fd, &st) < 0 || !(st.st_mode & (S_ISUID | S_ISGID)))
        return 0;
    mode_t drop = S_ISUID | (st.st_mode & S_IXGRP ? S_ISGID : 0);
    return fchmod(fd, st.st_mode & 07777 & ~drop) < 0 ? -errno : 0;
}

/* With its content locked: let_go() may have a lease, which would refuse the descriptor or be broken by it. */
static int open_locked(struct stage_inode *n, int flags, const struct ckpt_caller *who, struct ckpt_stage_handle **ret)
{
    bool change = (flags & O_ACCMODE) != O_RDONLY || flags & O_TRUNC;
    int fd = stage_reopen(n->fd, backing_flags(flags | (change ? O_RDWR : 0)));
    int r = CKPT_MIN(fd, 0);
    if (r == 0 && change)
        r = stage_drop_setid(fd, who);
    if (r == 0 && change)
        r = stage_own(n, fd, flags & O_TRUNC ? 0 : UINT64_MAX);
    else if (r == 0)
        stage_shares(n, NULL); /* known from now on: ckpt_stage_handle_fd asks */
    if (r == 0 && (flags & O_TRUNC)) {
        r = ckpt_disk_truncate(fd, 0);
        stage_dirty(n);
    }
    /* Counted as open before a commit can begin, and before its bytes can go. */
    if (r == 0 && !(*ret = handle_new(n, fd, flags)))
        r = -ENOMEM;
    if (r < 0 && fd >= 0)
        close(fd);
    return r;
}

int ckpt_stage_open(struct ckpt_stages *set, uint64_t id, int flags, const struct ckpt_caller *who, struct ckpt_stage_handle **ret)
{
    struct stage_inode *n;
    int r = stage_get(set, id, &n);
    if (r < 0)
        return r;
    bool change = (flags & O_ACCMODE) != O_RDONLY || flags & O_TRUNC;
    r = n->dir ? -EISDIR : change ? stage_enter(n->step) : 0;
    if (r == 0) {
        pthread_mutex_lock(&n->content);
        r = open_locked(n, flags, who, ret);
        pthread_mutex_unlock(&n->content);
        if (change) {
            stage_write_failed(n->step, r);
            stage_touch(n->step, who);
            stage_leave(n->step);
        } else
            stage_came(n->step, who);
    }
    stage_put(n);
    return r;
}

/* It may be there already, and let_go() may have a lease on it, for an instant. */
static int create(int dir, const char *name, int flags, mode_t mode)
{
    int fd;
    for (unsigned i = 0; i < 100; i++) {
        fd = ckpt_disk_open(dir, name, O_CREAT | O_NOFOLLOW | (flags & O_EXCL) | backing_flags(flags | O_RDWR), mode & 07777);
        if (fd != -EAGAIN)
            break;
        nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
    }
    return fd;
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
    int fd = ckpt_stage_hides(set, parent, name) ? -EPERM : create(dir->fd, name, flags, mode);
    r = CKPT_MIN(fd, 0);
    struct stat above;
    gid_t gid = fstatat(dir->fd, "", &above, AT_EMPTY_PATH) == 0 && above.st_mode & S_ISGID ? above.st_gid : who->gid;
    if (r == 0 && (who->uid != geteuid() || gid != getegid()) && fchown(fd, who->uid, gid) < 0 && geteuid() == 0)
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
        if (r == 0 && !(*ret_handle = handle_new(n, fd, O_RDWR)))
            r = -ENOMEM;
        pthread_mutex_unlock(&n->content);
        if (r == 0)
            r = stage_stat(n, ret);
        stage_put(n);
        if (r < 0)
            ckpt_stage_forget(set, ret->id, 1);
    }
    if (r < 0 && fd >= 0)
        close(fd);
    stage_write_failed(step, r);
    stage_touch(step, who);
    stage_leave(step);
    stage_put(dir);
    return r;
}

int ckpt_stage_handle_fd(const struct ckpt_stage_handle *h)
{
    return h->inode->step->set->leases && atomic_load(&h->inode->shared) == 0 ? h->inode->fd : -1;
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
        return r;
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
    stage_write_failed(n->step, r);
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
    stage_write_failed(h->inode->step, r);
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
    pthread_mutex_lock(&h->inode->content);
    h->inode->keeps_bytes = true; /* they are on the disk from now on */
    pthread_mutex_unlock(&h->inode->content);
    int r = ckpt_disk_fsync(h->fd);
    /* The bytes of a reference file are an object that the step holds. */
    return r == 0 && atomic_load(&h->inode->shared) == 1 ? ckpt_disk_fsync(h->inode->step->hold) : r;
}
