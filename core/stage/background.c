/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Objects made in the background. When the last writer has closed a file, a thread of the pool makes its object, so
 * that it is hashed, encoded and durable by the time of the commit. Then the file's own bytes can be evicted: it
 * becomes a reference file, and the disk never has to take them.
 */
#include "core/stage/private.h"

#define LAG      ((uint64_t)64 << 20)  /* bytes of a step's closed files without objects: with more, a close waits */
#define LAG_NS   1000000000l           /* that it waits at most */
#define FLUSHERS 4                     /* closes that wait at once: each keeps a thread of the caller's from others */
#define SLOW     ((uint64_t)256 << 20) /* bytes that are not hashed and encoded at once */

/* --- content that is known --- */

/* Is `made` what the file holds now? Under the set's lock. */
static bool is_made(const struct stage_inode *n)
{
    return n->known && n->known_gen == atomic_load(&n->gen);
}

int ckpt_stage_known(void *arg, int fd, const struct stat *st, struct ckpt_ref *ret)
{
    struct stage_step *step = arg;
    pthread_mutex_lock(&step->set->lock);
    struct stage_inode *n = ckpt_stage_inode_by_stat(step->set, st);
    bool known = n && is_made(n) && n->made.size == (uint64_t)st->st_size;
    bool kernel_writes = step->set->leases; /* an earlier mount may have given it to the kernel */
    if (n)
        kernel_writes = atomic_load(&n->kernel_writes);
    if (known)
        *ret = n->made;
    pthread_mutex_unlock(&step->set->lock);
    if (known)
        return 1;
    bool in_use = kernel_writes && ckpt_stage_try_lease(fd, F_RDLCK) == -EAGAIN;
    return in_use ? -EBUSY : 0;
}

/* --- eviction --- */

/*
 * May its own bytes be evicted, since there is an object of them? Not those that a user has made durable: these are on
 * the disk already. And not those of pieces: these are joined soon. Under the set's lock.
 */
static bool may_evict(const struct stage_inode *n)
{
    const struct stage_step *step = n->step;
    if (!is_made(n) || n->opens || n->unlinked || atomic_load(&n->no_evict))
        return false;
    if (atomic_load(&n->shared) != 0 || step->files_view || step->set->closing)
        return false;
    return n->name && !ckpt_pieces_stem(n->name);
}

/* Does the step hold the object of these bytes, and has the file as many? What is best stored as it is has no object
 * before the commit, which makes the file itself one. */
static bool is_held(const struct stage_step *step, int fd, const struct ckpt_ref *ref)
{
    struct stat st;
    char name[CKPT_HEX];
    ckpt_hash_hex(ref->object, name);
    if (faccessat(step->hold, name, F_OK, AT_SYMLINK_NOFOLLOW) < 0 || fstat(fd, &st) < 0)
        return false;
    return (uint64_t)st.st_size == ref->size;
}

/* With its content locked, so that nobody opens it meanwhile: fd is the only descriptor that this process has. */
static void evict_locked(struct stage_inode *n, int fd)
{
    struct stage_step *step = n->step;
    pthread_mutex_lock(&step->set->lock);
    bool wanted = may_evict(n) && atomic_load(&step->state) == STAGE_OPEN;
    struct ckpt_ref ref = n->made;
    pthread_mutex_unlock(&step->set->lock);
    if (!wanted || !is_held(step, fd, &ref))
        return;
    bool at_rest = !atomic_load(&n->kernel_writes) || ckpt_stage_try_lease(fd, F_WRLCK) == 0;
    if (at_rest)
        ckpt_stage_evict(n, fd, &ref);
}

/* Make it a reference to its object, unless it is in use again. The caller keeps the inode; the descriptor is taken
 * over. */
static void evict_file(struct stage_inode *n, int fd)
{
    if (pthread_rwlock_tryrdlock(&n->step->freeze) != 0) { /* a commit is under way, which ends the whole step */
        close(fd);
        return;
    }
    pthread_mutex_lock(&n->content);
    CKPT_AUTOFD int own = ckpt_stage_reopen(fd, O_RDWR);
    close(fd); /* first: a lease for writing is refused while there is another descriptor */
    if (own >= 0)
        evict_locked(n, own);
    pthread_mutex_unlock(&n->content);
    ckpt_stage_leave(n->step);
}

/* --- jobs --- */

struct job {
    struct stage_task task;
    struct stage_inode *inode;
    int fd; /* to read from */
    uint64_t size;
    struct ckpt_ref made;
};

bool ckpt_stage_wants_object(const struct stage_inode *n, const struct stat *st)
{
    const struct stage_step *step = n->step;
    if ((uint64_t)st->st_size < CKPT_SMALL || is_made(n)) /* small ones are packed by the commit */
        return false;
    if (n->open_writes || n->queued || n->unlinked || atomic_load(&n->shared) != 0)
        return false;
    return !step->files_view && atomic_load(&step->state) == STAGE_OPEN && !step->set->closing;
}

static int make_content(struct job *job, struct ckpt_err *err)
{
    struct stage_inode *n = job->inode;
    struct stage_step *step = n->step;
    struct ckpt_hold hold = stage_hold(step);
    if (atomic_load(&step->state) == STAGE_GONE)
        return -ESTALE;
    if (atomic_load(&n->kernel_writes)) {
        CKPT_GUARD(&n->content);
        if (ckpt_stage_try_lease(job->fd, F_RDLCK) < 0)
            return -EBUSY;
    }
    return ckpt_hold_file(&hold, job->fd, "X.npy", step->set->opt.codec, false, &n->cancel, &job->made, err);
}

/* gen: the file's before its bytes were read. Under the set's lock; the inode is in use. */
static void note_made(struct job *job, int r, uint64_t gen)
{
    struct stage_inode *n = job->inode;
    struct stat st;
    n->queued = false;
    if (gen == atomic_load(&n->gen)) {
        if (r < 0)
            return;
        n->known = true;
        n->known_gen = gen;
        n->made = job->made;
        return;
    }
    /* It was changed meanwhile, and perhaps closed again. */
    if (fstat(job->fd, &st) == 0 && ckpt_stage_wants_object(n, &st))
        ckpt_stage_queue_object(n, CKPT_STEAL_FD(job->fd), &st);
}

static void run_job(struct stage_task *task)
{
    struct job *job = (struct job *)task;
    struct stage_inode *n = job->inode;
    struct stage_step *step = n->step;
    struct ckpt_stages *set = step->set;
    struct ckpt_err err = {0};
    uint64_t gen = atomic_load(&n->gen);
    int r = make_content(job, &err);
    if (r < 0 && r != -ESTALE && r != -ECANCELED) /* the commit tries again, and reports it */
        ckpt_log(CKPT_LOG_DEBUG, "%s: %s", set->store->path, err.code ? err.text : strerror(-r));
    pthread_mutex_lock(&set->lock);
    step->job_bytes -= job->size;
    ckpt_stage_use_locked(n);
    note_made(job, r, gen);
    bool evictable = may_evict(n);
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

void ckpt_stage_queue_object(struct stage_inode *n, int fd, const struct stat *st)
{
    struct stage_step *step = n->step;
    uint64_t size = (uint64_t)st->st_size, stored = (uint64_t)st->st_blocks * 512;
    struct job *job = malloc(sizeof *job);
    if (!job) {
        close(fd);
        return;
    }
    if (ckpt_object_wants_sparse(size, stored))
        size = stored; /* its holes are no work */
    *job = (struct job){{NULL, step, st->st_uid, size >= SLOW, run_job}, n, fd, size};
    n->queued = true;
    atomic_store(&n->cancel, false);
    step->jobs++;
    step->job_bytes += job->size;
    if (ckpt_stage_queue_add(step->set, &job->task) == 0)
        return;
    step->job_bytes -= job->size;
    step->jobs--;
    n->queued = false;
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

/* --- closes that wait for them --- */

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
    int r = 0;
    while (step->job_bytes > LAG && !set->closing && r == 0)
        r = pthread_cond_timedwait(&set->idle, &set->lock, &until);
    set->flushing--;
}
