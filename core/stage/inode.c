/* SPDX-License-Identifier: Apache-2.0 */
/* The table of staged files: by id, and by device and inode number of the file on disk. */
#include "core/stage/private.h"

#include "core/base/hash.h"
#include "core/base/path.h"
#include "core/store/seal.h"

#include <stdio.h>

#define ID_BITS 40

static struct stage_inode **id_bucket(struct ckpt_stages *set, uint64_t id)
{
    return &set->by_id[id % STAGE_BUCKETS];
}

static struct stage_inode **key_bucket(struct ckpt_stages *set, dev_t dev, ino_t ino)
{
    return &set->by_key[ckpt_mix(ino ^ (uint64_t)dev << 48) % STAGE_BUCKETS];
}

uint64_t ckpt_stage_ino(const struct ckpt_stages *set, dev_t dev, ino_t ino)
{
    return ckpt_mix(ino * 0x9e3779b97f4a7c15 + dev + set->opt.first_id) >> 1 | 16;
}

struct stage_inode *ckpt_stage_inode_by_id(struct ckpt_stages *set, uint64_t id)
{
    struct stage_inode *n = *id_bucket(set, id);
    while (n && n->id != id)
        n = n->next_id;
    return n;
}

static struct stage_inode *inode_by_key(struct ckpt_stages *set, dev_t dev, ino_t ino)
{
    struct stage_inode *n = *key_bucket(set, dev, ino);
    while (n && (n->ino != ino || n->dev != dev))
        n = n->next_key;
    return n;
}

static void remove_key(struct ckpt_stages *set, struct stage_inode *n)
{
    if (n->unlinked)
        return;
    struct stage_inode **link = key_bucket(set, n->dev, n->ino);
    while (*link != n)
        link = &(*link)->next_key;
    *link = n->next_key;
    n->unlinked = true;
}

int ckpt_stage_reopen(int fd, int flags)
{
    char path[32];
    ckpt_fd_path(path, fd);
    int r = open(path, (flags & ~O_NOFOLLOW) | O_CLOEXEC);
    return r < 0 ? -errno : r;
}

/* --- descriptors: all under the set's lock --- */

static void unlink_open(struct ckpt_stages *set, struct stage_inode *n)
{
    *(n->older ? &n->older->newer : &set->oldest) = n->newer;
    *(n->newer ? &n->newer->older : &set->newest) = n->older;
    n->older = n->newer = NULL;
}

static void link_open(struct ckpt_stages *set, struct stage_inode *n)
{
    n->older = set->newest;
    *(set->newest ? &set->newest->newer : &set->oldest) = n;
    set->newest = n;
}

static void close_fd(struct stage_inode *n)
{
    if (n->fd < 0)
        return;
    unlink_open(n->step->set, n);
    n->step->set->fds--;
    close(n->fd);
    n->fd = -1;
}

static bool may_close(const struct stage_inode *n)
{
    bool in_use = n->uses || n->opens;
    return !in_use && n->name && !n->unlinked; /* by its name it is opened again */
}

/* Give it a descriptor, which is taken over, and close others where there are too many. */
static void give_fd(struct stage_inode *n, int fd)
{
    struct ckpt_stages *set = n->step->set;
    if (n->fd >= 0) {
        close(fd);
        return;
    }
    n->fd = fd;
    link_open(set, n);
    set->fds++;
    /* Those that must stay open are passed over, a few of them at a time. */
    struct stage_inode *old = set->oldest;
    for (unsigned looked = 0; set->fds > set->fd_limit && old && looked < 64; looked++) {
        struct stage_inode *next = old->newer;
        if (old != n && may_close(old))
            close_fd(old);
        else {
            unlink_open(set, old);
            link_open(set, old);
        }
        old = next;
    }
}

/* --- names --- */

/* name: NULL, it has none. */
static bool is_named(const struct stage_inode *n, const char *name)
{
    if (!name || !n->name)
        return !name && !n->name;
    return !strcmp(n->name, name);
}

static void set_name(struct stage_inode *n, struct stage_inode *dir, const char *name)
{
    if (n->parent == dir && is_named(n, name))
        return;
    char *copy = name ? strdup(name) : NULL; /* without memory it keeps its descriptor */
    free(n->name);
    n->name = copy;
    if (copy)
        dir->children++;
    struct stage_inode *old = n->parent;
    n->parent = copy ? dir : NULL;
    if (old) {
        old->children--;
        ckpt_stage_reap(old);
    }
}

/* One that is closed, and whose directory is open or needs no other to be opened. Kept, and the directory too. */
static struct stage_inode *first_to_open(struct stage_inode *n)
{
    while (n->parent && n->parent->fd < 0)
        n = n->parent;
    ckpt_stage_use_locked(n);
    if (n->parent)
        ckpt_stage_use_locked(n->parent);
    return n;
}

/* Errors that say nothing of the file. */
static bool is_passing(int error)
{
    return error == EMFILE || error == ENFILE || error == ENOMEM || error == EIO;
}

/* The file of an inode by its name in that directory, if it is there still: a descriptor. -ESTALE. */
static int open_by_name(const struct stage_inode *n, const struct stage_inode *dir)
{
    struct stat st;
    CKPT_AUTOFD int fd = openat(dir->fd, n->name, O_PATH | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0)
        return is_passing(errno) ? -errno : -ESTALE;
    if (fstatat(fd, "", &st, AT_EMPTY_PATH) < 0)
        return -ESTALE;
    bool same = st.st_ino == n->ino && st.st_dev == n->dev;
    return same ? CKPT_STEAL_FD(fd) : -ESTALE;
}

/* Under the set's lock. */
static void unuse_and_reap(struct stage_inode *n)
{
    ckpt_stage_unuse_locked(n);
    ckpt_stage_reap(n);
}

/* Opens it, or the first directory above it that can be opened. 1: it is open. */
static int open_one(struct stage_inode *n)
{
    struct ckpt_stages *set = n->step->set;
    pthread_mutex_lock(&set->lock);
    bool open = n->fd >= 0;
    struct stage_inode *closed = open ? NULL : first_to_open(n), *dir = open ? NULL : closed->parent;
    pthread_mutex_unlock(&set->lock);
    if (open)
        return 1;
    int fd = dir ? open_by_name(closed, dir) : -ESTALE;
    CKPT_GUARD(&set->lock);
    if (fd >= 0)
        give_fd(closed, fd);
    unuse_and_reap(closed);
    if (dir)
        unuse_and_reap(dir);
    return CKPT_MIN(fd, 0);
}

/* Open it by its name, as far up as need be. Caller holds `names`, so that no name changes, and keeps the inode. */
static int open_again(struct stage_inode *n)
{
    int r = 0;
    while (r == 0)
        r = open_one(n);
    return CKPT_MIN(r, 0);
}

int ckpt_stage_detach_name(struct stage_inode *dir, const char *name)
{
    struct ckpt_stages *set = dir->step->set;
    struct stat st;
    if (fstatat(dir->fd, name, &st, AT_SYMLINK_NOFOLLOW) < 0)
        return errno == ENOENT ? 0 : -errno;
    pthread_mutex_lock(&set->lock);
    struct stage_inode *n = inode_by_key(set, st.st_dev, st.st_ino);
    bool by_this_name = n && n->parent == dir && is_named(n, name);
    if (by_this_name)
        ckpt_stage_use_locked(n);
    pthread_mutex_unlock(&set->lock);
    if (!by_this_name)
        return 0;
    int r = open_again(n);
    CKPT_GUARD(&set->lock);
    if (r == 0)
        set_name(n, NULL, NULL);
    ckpt_stage_unuse_locked(n);
    ckpt_stage_reap(n);
    return r;
}

void ckpt_stage_attach_name(struct stage_inode *dir, const char *name)
{
    struct ckpt_stages *set = dir->step->set;
    struct stat st;
    if (fstatat(dir->fd, name, &st, AT_SYMLINK_NOFOLLOW) < 0)
        return;
    CKPT_GUARD(&set->lock);
    struct stage_inode *n = inode_by_key(set, st.st_dev, st.st_ino);
    if (n && n != n->step->top)
        set_name(n, dir, name);
}

void ckpt_stage_use_locked(struct stage_inode *n)
{
    n->uses++;
    n->step->busy++;
}

void ckpt_stage_unuse_locked(struct stage_inode *n)
{
    n->uses--;
    n->step->busy--;
}

/* What is known of its content outlives its references. */
static bool is_needed(const struct stage_inode *n)
{
    if (n->refs || n->uses || n->opens || n->queued || n->children)
        return true;
    if (n == n->step->top)
        return true;
    bool gone = atomic_load(&n->step->state) == STAGE_GONE;
    return n->known && !n->unlinked && !gone;
}

/* A descriptor that no call needs, and that a name or nothing can replace. */
static bool is_fd_needless(const struct stage_inode *n)
{
    if (n->uses || n->opens)
        return false;
    if (atomic_load(&n->step->state) == STAGE_GONE)
        return true;
    return !n->refs && n != n->step->top && n->name;
}

void ckpt_stage_reap(struct stage_inode *n)
{
    struct ckpt_stages *set = n->step->set;
    ckpt_stage_step_close_idle(n->step);
    while (n) {
        if (is_fd_needless(n))
            close_fd(n);
        if (is_needed(n))
            return;
        close_fd(n);
        remove_key(set, n);
        struct stage_inode **link = id_bucket(set, n->id), *parent = n->parent;
        while (*link != n)
            link = &(*link)->next_id;
        *link = n->next_id;
        pthread_mutex_destroy(&n->content);
        free(n->name);
        if (parent)
            parent->children--;
        n->step->inodes--;
        ckpt_stage_step_unref_locked(n->step);
        free(n);
        n = parent; /* which keeps the step */
    }
}

void ckpt_stage_close_inodes(struct stage_step *step)
{
    struct ckpt_stages *set = step->set;
    step->uses++;
    for (unsigned i = 0; i < STAGE_BUCKETS; i++)
        for (struct stage_inode *n = set->by_id[i]; n; n = n->next_id)
            if (n->step == step) {
                remove_key(set, n); /* its number may be another file's soon */
                if (!n->uses && !n->opens)
                    close_fd(n);
            }
    for (unsigned i = 0; i < STAGE_BUCKETS; i++) {
        struct stage_inode *n = set->by_id[i];
        while (n) {
            bool free_now = n->step == step && !is_needed(n);
            if (free_now)
                ckpt_stage_reap(n); /* and perhaps others of this bucket */
            n = free_now ? set->by_id[i] : n->next_id;
        }
    }
    ckpt_stage_step_unref_locked(step);
}

void ckpt_stage_free_all(struct ckpt_stages *set)
{
    for (unsigned i = 0; i < STAGE_BUCKETS; i++)
        for (struct stage_inode *n = set->by_id[i]; n; n = n->next_id) {
            n->step->busy = 0;
            n->refs = n->uses = n->opens = n->children = 0;
            n->known = n->queued = false;
            n->parent = NULL;
        }
    for (unsigned i = 0; i < STAGE_BUCKETS; i++)
        while (set->by_id[i])
            ckpt_stage_reap(set->by_id[i]);
}

/* --- use --- */

int ckpt_stage_stat(struct stage_inode *n, struct ckpt_stage_attr *ret)
{
    unsigned seq;
    do {
        seq = atomic_load(&n->seq);
        if (fstatat(n->fd, "", &ret->st, AT_EMPTY_PATH) < 0)
            return -errno;
        if (!(seq & 1) && atomic_load(&n->shared) != 1)
            continue;
        CKPT_GUARD(&n->step->set->lock);
        ret->st.st_size = (off_t)(seq & 1 ? n->length : n->shares.size);
        if (seq & 1) {
            ret->st.st_atim = n->times[0];
            ret->st.st_mtim = n->times[1];
        }
    } while (seq != atomic_load(&n->seq));
    if (atomic_load(&n->step->sealed) && S_ISREG(ret->st.st_mode))
        (void)!ckpt_seal_marked(n->fd, &ret->st);
    ret->id = n->id;
    ret->copy = *n->step->base_id;
    ret->st.st_ino = ckpt_stage_ino(n->step->set, n->dev, n->ino);
    ret->st.st_dev = 0;
    return 0;
}

/* ended: also one that a handle is open of, though its step has ended. */
static int use_inode(struct ckpt_stages *set, uint64_t id, bool ended, struct stage_inode **ret)
{
    pthread_mutex_lock(&set->lock);
    struct stage_inode *n = ckpt_stage_inode_by_id(set, id);
    if (!n || n->alias || (atomic_load(&n->step->state) == STAGE_GONE && !(ended && n->opens && n->fd >= 0))) {
        pthread_mutex_unlock(&set->lock);
        return -ESTALE;
    }
    ckpt_stage_use_locked(n);
    bool open = n->fd >= 0;
    if (open) {
        unlink_open(set, n);
        link_open(set, n);
    }
    pthread_mutex_unlock(&set->lock);
    int r = 0;
    if (!open) {
        CKPT_GUARD(&n->step->names);
        r = open_again(n);
    }
    if (r < 0)
        ckpt_stage_unuse(n);
    else
        *ret = n;
    return r;
}

int ckpt_stage_use(struct ckpt_stages *set, uint64_t id, struct stage_inode **ret)
{
    return use_inode(set, id, false, ret);
}

void ckpt_stage_unuse(struct stage_inode *n)
{
    struct ckpt_stages *set = n->step->set;
    CKPT_GUARD(&set->lock);
    ckpt_stage_unuse_locked(n);
    ckpt_stage_reap(n);
}

static struct stage_inode *inode_new(struct stage_step *step, const struct stat *st)
{
    struct ckpt_stages *set = step->set;
    struct stage_inode *n = calloc(1, sizeof *n);
    if (!n)
        return NULL;
    n->id = set->opt.first_id | (++set->next_id & (((uint64_t)1 << ID_BITS) - 1));
    n->dev = st->st_dev;
    n->ino = st->st_ino;
    n->dir = S_ISDIR(st->st_mode);
    n->step = step;
    n->fd = -1;
    atomic_init(&n->shared, S_ISREG(st->st_mode) ? -1 : 0);
    atomic_init(&n->no_evict, st->st_size > 0); /* a staged file of an earlier mount may have been made durable */
    atomic_init(&n->kernel_writes, step->adopted && step->set->leases &&
                                       S_ISREG(st->st_mode)); /* and a mapping that it made may be there still */
    pthread_mutex_init(&n->content, NULL);
    step->uses++;
    step->inodes++;
    struct stage_inode **b = id_bucket(set, n->id);
    n->next_id = *b;
    *b = n;
    b = key_bucket(set, n->dev, n->ino);
    n->next_key = *b;
    *b = n;
    return n;
}

int ckpt_stage_ref_fd(struct stage_step *step, int fd, struct stage_inode *dir, const char *name,
                      struct ckpt_stage_attr *ret)
{
    struct ckpt_stages *set = step->set;
    struct stat st;
    if (fstatat(fd, "", &st, AT_EMPTY_PATH) < 0) {
        int r = -errno;
        close(fd);
        return r;
    }
    pthread_mutex_lock(&set->lock);
    bool ended = atomic_load(&step->state) == STAGE_GONE;
    struct stage_inode *n = ended ? NULL : inode_by_key(set, st.st_dev, st.st_ino);
    if (!n && !ended) {
        n = inode_new(step, &st);
        if (n)
            n->is_top = !dir; /* before anything in it is looked up */
    }
    if (n) {
        n->refs++;
        ckpt_stage_use_locked(n);
        give_fd(n, fd);
        if (dir)
            set_name(n, dir, name);
    } else
        close(fd);
    pthread_mutex_unlock(&set->lock);
    if (!n)
        return ended ? -ESTALE : -ENOMEM;
    if (atomic_load(&n->shared) < 0) {
        CKPT_GUARD(&n->content); /* known from now on; where it is not, whoever wants its bytes gets the error */
        if (ckpt_stage_shares(n, NULL) == 1)
            atomic_store(&n->kernel_writes, false); /* no kernel writes to it */
    }
    int r = ckpt_stage_stat(n, ret);
    CKPT_GUARD(&set->lock);
    ckpt_stage_unuse_locked(n);
    n->refs -= r < 0;
    bool lost_its_name = r == 0 && dir && !ret->st.st_nlink; /* perhaps before it was in the table */
    if (lost_its_name)
        remove_key(set, n);
    ckpt_stage_reap(n);
    return r;
}

/* --- aliases --- */

#define ALIAS_DEV ((dev_t)-1) /* no disk has it */

static ino_t alias_key(const struct stage_inode *dir, const char *name)
{
    return ckpt_mix(ckpt_fnv(dir->id, name, strlen(name)));
}

int ckpt_stage_alias(struct ckpt_stages *set, uint64_t dir, const char *name, uint64_t *ret)
{
    CKPT_GUARD(&set->lock);
    struct stage_inode *d = ckpt_stage_inode_by_id(set, dir);
    if (!d)
        return -ESTALE;
    const struct stat key = {.st_dev = ALIAS_DEV, .st_ino = alias_key(d, name), .st_mode = S_IFDIR};
    struct stage_inode *n = *key_bucket(set, key.st_dev, key.st_ino);
    while (n && !(n->alias && n->parent == d && !strcmp(n->name, name)))
        n = n->next_key;
    if (!n) {
        n = inode_new(d->step, &key);
        if (!n)
            return -ENOMEM;
        n->alias = true;
        set_name(n, d, name);
        if (!n->name) {
            ckpt_stage_reap(n);
            return -ENOMEM;
        }
    }
    n->refs++;
    *ret = n->id;
    return 0;
}

void ckpt_stage_unlinked(struct ckpt_stages *set, dev_t dev, ino_t ino)
{
    CKPT_GUARD(&set->lock);
    struct stage_inode *n = inode_by_key(set, dev, ino);
    if (!n)
        return;
    remove_key(set, n); /* its number may be another file's soon */
    atomic_store(&n->cancel, true);
    ckpt_stage_reap(n);
}

void ckpt_stage_dirty(struct stage_inode *n)
{
    atomic_fetch_add(&n->gen, 1);
    atomic_store(&n->cancel, true);
}

struct stage_inode *ckpt_stage_inode_by_stat(struct ckpt_stages *set, const struct stat *st)
{
    return inode_by_key(set, st->st_dev, st->st_ino);
}

void ckpt_stage_forget(struct ckpt_stages *set, uint64_t id, uint64_t count)
{
    CKPT_GUARD(&set->lock);
    struct stage_inode *n = ckpt_stage_inode_by_id(set, id);
    if (!n)
        return;
    n->refs -= CKPT_MIN(n->refs, count);
    ckpt_stage_reap(n);
}

bool ckpt_stage_ended(struct ckpt_stages *set, uint64_t id)
{
    CKPT_GUARD(&set->lock);
    const struct stage_inode *n = ckpt_stage_inode_by_id(set, id);
    return !n || n->alias || atomic_load(&n->step->state) == STAGE_GONE;
}

int ckpt_stage_getattr(struct ckpt_stages *set, uint64_t id, struct ckpt_stage_attr *ret)
{
    struct stage_inode *n;
    int r = use_inode(set, id, true, &n); /* who reads on asks for the size */
    if (r < 0)
        return r;
    r = ckpt_stage_stat(n, ret);
    ckpt_stage_unuse(n);
    return r;
}

int ckpt_stage_ref(struct ckpt_stages *set, uint64_t id)
{
    struct stage_inode *n;
    int r = ckpt_stage_use(set, id, &n);
    if (r < 0)
        return r;
    CKPT_GUARD(&set->lock);
    ckpt_stage_unuse_locked(n);
    n->refs++;
    return 0;
}

/* --- with its step, for a change --- */

int ckpt_stage_enter_inode(struct ckpt_stages *set, uint64_t id, struct stage_inode **ret)
{
    struct stage_inode *n;
    int r = ckpt_stage_use(set, id, &n);
    if (r < 0)
        return r;
    r = ckpt_stage_enter(n->step);
    if (r < 0) {
        ckpt_stage_unuse(n);
        return r;
    }
    *ret = n;
    return 0;
}

void ckpt_stage_leave_inode(struct stage_inode *n, const struct ckpt_caller *who)
{
    struct ckpt_stages *set = n->step->set;
    bool of_root = n == set->files_view->top;
    ckpt_stage_touch(n->step, who);
    ckpt_stage_leave(n->step);
    ckpt_stage_unuse(n);
    if (of_root) /* a foreign step may be there now, or gone */
        set->opt.changed(set->opt.arg, NULL);
}
