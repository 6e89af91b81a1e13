/* SPDX-License-Identifier: Apache-2.0 */
/* The table of staged files: by id, and by device and inode number of the file on disk. */
#include "core/store/stage_private.h"

#include <stdio.h>

#define ID_BITS 40

static uint64_t mix(uint64_t h)
{
    h = (h ^ h >> 30) * 0xbf58476d1ce4e5b9;
    h = (h ^ h >> 27) * 0x94d049bb133111eb;
    return h ^ h >> 31;
}

static struct stage_inode **id_bucket(struct ckpt_stages *set, uint64_t id)
{
    return &set->by_id[id % STAGE_BUCKETS];
}

static struct stage_inode **key_bucket(struct ckpt_stages *set, dev_t dev, ino_t ino)
{
    return &set->by_key[mix(ino ^ (uint64_t)dev << 48) % STAGE_BUCKETS];
}

uint64_t ckpt_stage_ino(const struct ckpt_stages *set, dev_t dev, ino_t ino)
{
    return mix(ino * 0x9e3779b97f4a7c15 + dev + set->opt.first_id) >> 1 | 16;
}

static struct stage_inode *find_id(struct ckpt_stages *set, uint64_t id)
{
    struct stage_inode *n = *id_bucket(set, id);
    while (n && n->id != id)
        n = n->next_id;
    return n;
}

static struct stage_inode *find_key(struct ckpt_stages *set, dev_t dev, ino_t ino)
{
    struct stage_inode *n = *key_bucket(set, dev, ino);
    while (n && (n->ino != ino || n->dev != dev))
        n = n->next_key;
    return n;
}

static void drop_key(struct ckpt_stages *set, struct stage_inode *n)
{
    if (n->unlinked)
        return;
    struct stage_inode **link = key_bucket(set, n->dev, n->ino);
    while (*link != n)
        link = &(*link)->next_key;
    *link = n->next_key;
    n->unlinked = true;
}

int stage_reopen(int fd, int flags)
{
    char path[32];
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    int r = open(path, (flags & ~O_NOFOLLOW) | O_CLOEXEC);
    return r < 0 ? -errno : r;
}

/* Its descriptor is open while somebody refers to it; what is known of its content outlives that. */
void stage_reap(struct stage_inode *n)
{
    struct ckpt_stages *set = n->step->set;
    bool gone = atomic_load(&n->step->state) == STAGE_GONE;
    if (n->refs || n->opens || n->queued || n == n->step->top)
        return;
    if (n->fd >= 0)
        close(n->fd);
    n->fd = -1;
    if (n->known && !n->unlinked && !gone)
        return;
    drop_key(set, n);
    struct stage_inode **link = id_bucket(set, n->id);
    while (*link != n)
        link = &(*link)->next_id;
    *link = n->next_id;
    pthread_mutex_destroy(&n->content);
    stage_step_unref(n->step);
    free(n);
}

int stage_stat(struct stage_inode *n, struct ckpt_stage_attr *ret)
{
    if (fstatat(n->fd, "", &ret->st, AT_EMPTY_PATH) < 0)
        return -errno;
    ret->id = n->id;
    ret->st.st_ino = ckpt_stage_ino(n->step->set, n->dev, n->ino);
    ret->st.st_dev = 0;
    return 0;
}

int stage_get(struct ckpt_stages *set, uint64_t id, struct stage_inode **ret)
{
    CKPT_GUARD(&set->lock);
    struct stage_inode *n = find_id(set, id);
    if (!n || n->fd < 0 || atomic_load(&n->step->state) == STAGE_GONE)
        return -ESTALE;
    n->refs++;
    *ret = n;
    return 0;
}

void stage_put(struct stage_inode *n)
{
    struct ckpt_stages *set = n->step->set;
    CKPT_GUARD(&set->lock);
    n->refs--;
    stage_reap(n);
}

int stage_take(struct stage_step *step, int fd, struct ckpt_stage_attr *ret)
{
    struct ckpt_stages *set = step->set;
    struct stat st;
    if (fstatat(fd, "", &st, AT_EMPTY_PATH) < 0) {
        int r = -errno;
        close(fd);
        return r;
    }
    pthread_mutex_lock(&set->lock);
    struct stage_inode *n = find_key(set, st.st_dev, st.st_ino);
    if (n) {
        if (n->fd < 0)
            n->fd = fd;
        else
            close(fd);
    } else if ((n = calloc(1, sizeof *n))) {
        n->id = set->opt.first_id | (++set->next_id & (((uint64_t)1 << ID_BITS) - 1));
        n->dev = st.st_dev;
        n->ino = st.st_ino;
        n->dir = S_ISDIR(st.st_mode);
        n->step = step;
        n->fd = fd;
        atomic_init(&n->shared, S_ISREG(st.st_mode) ? -1 : 0);
        pthread_mutex_init(&n->content, NULL);
        step->uses++;
        struct stage_inode **b = id_bucket(set, n->id);
        n->next_id = *b;
        *b = n;
        b = key_bucket(set, n->dev, n->ino);
        n->next_key = *b;
        *b = n;
    } else
        close(fd);
    if (n)
        n->refs++;
    pthread_mutex_unlock(&set->lock);
    if (!n)
        return -ENOMEM;
    int r = stage_stat(n, ret);
    if (r < 0)
        stage_put(n);
    return r;
}

void stage_unlinked(struct ckpt_stages *set, dev_t dev, ino_t ino)
{
    CKPT_GUARD(&set->lock);
    struct stage_inode *n = find_key(set, dev, ino);
    if (!n)
        return;
    drop_key(set, n); /* its number may be another file's soon */
    atomic_store(&n->cancel, true);
    stage_reap(n);
}

void stage_dirty(struct stage_inode *n)
{
    atomic_fetch_add(&n->gen, 1);
    atomic_store(&n->cancel, true);
}

int stage_known(void *arg, const struct stat *st, struct ckpt_ref *ret)
{
    struct stage_step *step = arg;
    CKPT_GUARD(&step->set->lock);
    struct stage_inode *n = find_key(step->set, st->st_dev, st->st_ino);
    if (!n || !n->known || n->known_gen != atomic_load(&n->gen) || n->made.size != (uint64_t)st->st_size)
        return 0;
    *ret = n->made;
    return 1;
}

void ckpt_stage_forget(struct ckpt_stages *set, uint64_t id, uint64_t count)
{
    CKPT_GUARD(&set->lock);
    struct stage_inode *n = find_id(set, id);
    if (!n)
        return;
    n->refs -= CKPT_MIN(n->refs, count);
    stage_reap(n);
}

int ckpt_stage_getattr(struct ckpt_stages *set, uint64_t id, struct ckpt_stage_attr *ret)
{
    struct stage_inode *n;
    int r = stage_get(set, id, &n);
    if (r < 0)
        return r;
    r = stage_stat(n, ret);
    stage_put(n);
    return r;
}

int ckpt_stage_hold(struct ckpt_stages *set, uint64_t id)
{
    struct stage_inode *n;
    return stage_get(set, id, &n);
}
