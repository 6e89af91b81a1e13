/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The first walk of a commit: where the content of each leaf is, in objects that are held and durable by its end. The
 * walk itself, small leaves and joined pieces are one thread's; objects of large leaves are made by others, of which a
 * bounded number waits.
 */
#include "core/commit/private.h"

#include "core/base/grow.h"
#include "core/io/disk.h"
#include "core/store/internal.h"

#include <fcntl.h>
#include <stdio.h>

static int no_memory(struct ckpt_err *err)
{
    return ckpt_no_memory(err);
}

/* --- leaves --- */

static int add_leaf(struct commit *c, size_t *ret)
{
    if (c->leaf_count == c->leaf_room) {
        CKPT_GUARD(&c->lock); /* large leaves are written to meanwhile */
        if (!CKPT_ROOM_FOR_ONE(c->leaves, c->leaf_count, c->leaf_room))
            return -ENOMEM;
    }
    c->leaves[c->leaf_count] = (struct commit_leaf){.object = COMMIT_OWN};
    *ret = c->leaf_count++;
    return 0;
}

static void set_leaf(struct commit *c, size_t number, const struct ckpt_ref *ref)
{
    CKPT_GUARD(&c->lock);
    struct commit_leaf *leaf = &c->leaves[number];
    memcpy(leaf->sha256, ref->sha256, CKPT_SHA256);
    leaf->size = ref->size;
    leaf->offset = ref->offset;
    leaf->stored = ref->stored;
    leaf->codec = (uint8_t)ref->codec;
}

/* Content that is stored already. */
static int add_shared(struct commit *c, size_t number, const struct ckpt_ref *ref)
{
    uint32_t object = COMMIT_OWN;
    set_leaf(c, number, ref);
    if (!memcmp(ref->sha256, ref->object, CKPT_SHA256))
        return 0;
    int r = ckpt_commit_object(c, ref->object, &object);
    if (r < 0)
        return r;
    c->objects[object].used = true;
    c->leaves[number].object = object;
    return 0;
}

/* --- objects of large leaves: one job each --- */

struct job {
    struct commit *commit;
    size_t leaf;
    struct hold_input in;
    bool is_known;
    struct ckpt_ref known;
    char *path, *name;
};

static void job_free(struct job *j)
{
    if (j->in.fd >= 0)
        close(j->in.fd);
    if (j->in.dir >= 0)
        close(j->in.dir);
    free(j->path);
    free(j->name);
    free(j);
}

static void run_job(void *arg)
{
    struct job *j = arg;
    struct commit *c = j->commit;
    struct ckpt_err err = {0};
    struct ckpt_ref ref = j->known;
    int r = j->is_known ? ckpt_hold_known(&c->hold, &j->in, &ref, &err) : 0;
    if (r == 0) {
        ckpt_hold_choose(&j->in, c->in->codec, ckpt_has_suffix(j->path, ".npy"));
        r = ckpt_hold_content(&c->hold, &j->in, &ref, &err);
    }
    if (r >= 0)
        set_leaf(c, j->leaf, &ref);
    if (j->in.raw == HOLD_MOVE && faccessat(j->in.dir, j->name, F_OK, AT_SYMLINK_NOFOLLOW) == 0)
        (void)!ckpt_disk_unlink(j->in.dir, j->name, 0);
    CKPT_GUARD(&c->lock);
    if (r < 0 && !atomic_exchange(c->cancel, true)) {
        c->failure = err;
        ckpt_fail_in(&c->failure, -r, "%s", j->path);
    }
    job_free(j);
    c->running--;
    pthread_cond_broadcast(&c->done);
}

/* The descriptor is taken over. */
static int submit(struct commit *c, size_t leaf, const struct walk_at *at, int fd, uint64_t size, enum hold_raw raw,
                  int dir, const char *name, const struct ckpt_ref *known)
{
    struct job *j = calloc(1, sizeof *j);
    if (!j) {
        close(fd);
        return -ENOMEM;
    }
    *j = (struct job){
        .commit = c, .leaf = leaf, .is_known = known != NULL, .path = strdup(at->path), .name = strdup(name)};
    j->in = (struct hold_input){.fd = fd,
                                .size = size,
                                .raw = raw,
                                .dir = fcntl(dir, F_DUPFD_CLOEXEC, 3),
                                .name = j->name,
                                .cancel = c->cancel};
    if (known)
        j->known = *known;
    int r = !j->path || !j->name ? -ENOMEM : j->in.dir < 0 ? -errno : 0;
    if (r < 0) {
        job_free(j);
        return r;
    }
    pthread_mutex_lock(&c->lock);
    while (c->running >= c->limit)
        pthread_cond_wait(&c->done, &c->lock);
    c->running++;
    pthread_mutex_unlock(&c->lock);
    r = ckpt_pool_submit(c->pool, run_job, j);
    if (r < 0) {
        job_free(j);
        CKPT_GUARD(&c->lock);
        c->running--;
    }
    return r;
}

/* All jobs have ended; the first error is theirs, if there was one. Without one, those that were cancelled have made
 * nothing. */
static int wait_jobs(struct commit *c, int r, struct ckpt_err *err)
{
    CKPT_GUARD(&c->lock);
    if (r < 0)
        atomic_exchange(c->cancel, true);
    while (c->running)
        pthread_cond_wait(&c->done, &c->lock);
    if (r == 0 && atomic_load(c->cancel))
        r = -ECANCELED;
    if (c->failure.code && r == -ECANCELED) {
        if (err)
            *err = c->failure;
        r = -c->failure.code;
    }
    return r;
}

/* --- the walk --- */

static int add_small(struct commit *c, size_t number, struct leaf_file *f, struct ckpt_err *err)
{
    CKPT_AUTOFREE uint8_t *data = malloc(f->size + 1);
    if (!data)
        return no_memory(err);
    int r = ckpt_leaf_read(c, f, data, f->size, 0, err);
    return r < 0 ? r : ckpt_pack_add(c, number, data, f->size, err);
}

static int add_large(struct commit *c, size_t number, const struct walk_at *at, struct leaf_file *f,
                     const struct ckpt_ref *known, struct ckpt_err *err)
{
    bool is_known = known && known->size == f->size && !memcmp(known->sha256, known->object, CKPT_SHA256);
    int r = submit(c, number, at, CKPT_STEAL_FD(f->fd), f->size, HOLD_ALIAS_OF, at->dir, at->name,
                   is_known ? known : NULL);
    return r < 0 ? ckpt_fail(err, -r, "%s", strerror(-r)) : 0;
}

static int add_content(struct commit *c, const struct walk_at *at, struct leaf_file *f, struct ckpt_err *err)
{
    size_t number;
    struct ckpt_npy npy;
    struct ckpt_ref known;
    char *text;
    int r = add_leaf(c, &number);
    if (r == 0 && f->is_shared)
        r = add_shared(c, number, &f->ref);
    if (r < 0)
        return no_memory(err);
    if (f->is_shared)
        return 0;
    int is_known = c->in->known ? c->in->known(c->in->arg, f->fd, &f->st, &known) : 0;
    if (is_known < 0)
        return ckpt_fail(err, EBUSY, "is still open for writing, or mapped by a program: close and unmap it first");
    if (ckpt_has_suffix(at->name, ".json") && (r = ckpt_leaf_value(c, f, &text, err)) == 1) {
        free(text);
        c->leaves[number].size = f->size;
        c->leaves[number].codec = COMMIT_VALUE;
        return 0;
    }
    if (r == 0 && ckpt_has_suffix(at->name, ".npy"))
        r = ckpt_leaf_array(c, f, &npy, err);
    if (r < 0)
        return r;
    return f->size < CKPT_SMALL ? add_small(c, number, f, err)
                                : add_large(c, number, at, f, is_known ? &known : NULL, err);
}

static int content_file(void *arg, const struct walk_at *at, struct ckpt_err *err)
{
    struct commit *c = arg;
    struct leaf_file f;
    if (atomic_load(c->cancel))
        return -ECANCELED;
    c->whole |= at->whole;
    int r = ckpt_leaf_open(at->dir, at->name, &f, err);
    if (r == 0) {
        r = add_content(c, at, &f, err);
        ckpt_leaf_close(&f);
    }
    return r < 0 ? ckpt_fail_in(err, -r, "%s", at->path) : 0;
}

static int add_joined(struct commit *c, const struct walk_at *at, const char *name, int fd, uint64_t size,
                      struct ckpt_err *err)
{
    size_t number;
    int r = add_leaf(c, &number);
    if (r == 0 && size >= CKPT_SMALL) {
        int copy = fcntl(fd, F_DUPFD_CLOEXEC, 3);
        r = copy < 0 ? -errno : submit(c, number, at, copy, size, HOLD_MOVE, c->in->work, name, NULL);
        return r < 0 ? ckpt_fail(err, -r, "%s", strerror(-r)) : 0;
    }
    struct leaf_file f = {.fd = fd, .size = size};
    r = r < 0 ? no_memory(err) : add_small(c, number, &f, err);
    (void)!ckpt_disk_unlink(c->in->work, name, 0);
    return r;
}

static int content_pieces(void *arg, const struct walk_at *at, struct ckpt_err *err)
{
    struct commit *c = arg;
    struct pieces *ps;
    char name[32];
    uint64_t size = 0;
    if (atomic_load(c->cancel))
        return -ECANCELED;
    int r = ckpt_pieces_open(c, at, &ps, err);
    if (r < 0)
        return r;
    snprintf(name, sizeof name, "joined-%u.tmp", c->next_temp++);
    r = ckpt_pieces_check(ps, err);
    CKPT_AUTOFD int fd = r < 0 ? -1 : ckpt_commit_temporary(c, name, OBJECT_MODE);
    if (r == 0 && fd < 0)
        r = ckpt_fail(err, -fd, "%s: its pieces cannot be joined: %s", at->path, strerror(-fd));
    if (r == 0) {
        r = ckpt_pieces_join(ps, fd, &size, err);
        if (r < 0)
            (void)!ckpt_disk_unlink(c->in->work, name, 0);
    }
    ckpt_pieces_close(ps);
    if (r == 0 && (r = add_joined(c, at, name, fd, size, err)) < 0)
        r = ckpt_fail_in(err, -r, "%s", at->path);
    return r;
}

static int content_dir(void *arg, const struct walk_at *at, int fd, uint32_t *ret_number, struct ckpt_err *err)
{
    *ret_number = 0;
    return 0;
}

int ckpt_content_make(struct commit *c, struct ckpt_err *err)
{
    const struct walk_visitor v = {content_dir, content_file, content_pieces, c};
    struct ckpt_err own = {0};
    int r = wait_jobs(c, ckpt_walk_tree(c->in, &v, &own), &own);
    if (r == 0)
        r = ckpt_pack_finish(c, &own);
    return r < 0 ? ckpt_fail(err, -r, "%s", own.text) : 0;
}
