/* SPDX-License-Identifier: Apache-2.0 */
/* The dispatcher: holds what an id names, asks which kind it is, and calls its member or does what is common. */
#include "core/source/kind.h"
#include "core/base/util.h"

static int hold(struct ckpt_source *src, uint64_t id, struct target *t, struct ckpt_err *err)
{
    if (!(id & CKPT_STAGED))
        return ckpt_source_target(src, id, t, err);
    *t = (struct target){.id = id, .kind = src->kinds[NODE_STAGED], .stages = ckpt_source_set(src, id)};
    return t->stages ? 0 : ckpt_fail(err, ESTALE, "the step is not staged any more");
}

/* Another step has the name of the checkpoint that it is or that it lies in. */
static bool is_stale(const struct target *t)
{
    return t->node && atomic_load(&t->node->stale);
}

/* --- names --- */

/* Names under the mount's top that belong to it are escaped where a checkpoint or the source has them. */
static const char *unescape(uint64_t parent, const char *name)
{
    if (parent != CKPT_ROOT)
        return name;
    if (!strcmp(name, "%2Eckptfs"))
        return ".ckptfs";
    return strcmp(name, "%2Efiles") ? name : ".files";
}

static int counted_getattr(struct ckpt_source *src, uint64_t id, struct ckpt_attr *ret, struct ckpt_err *err)
{
    atomic_fetch_add_explicit(&src->getattrs, 1, memory_order_relaxed);
    return ckpt_source_getattr(src, id, ret, err);
}

/* The files view: of a root that is written, its own directory. */
static int lookup_files_view(struct ckpt_source *src, struct ckpt_attr *ret, struct ckpt_err *err)
{
    struct ckpt_stages *stages;
    struct ckpt_stage_attr attr;
    if (!ckpt_source_writable(src))
        return counted_getattr(src, CKPT_FILES_VIEW, ret, err);
    int r = ckpt_source_stages(src, src->root, &stages, err);
    if (r < 0)
        return r;
    r = ckpt_stage_ref_files_view(stages, &attr);
    if (r < 0)
        return ckpt_fail(err, -r, ".files: %s", strerror(-r));
    ckpt_source_attr_of_stage(&attr, ret);
    return 0;
}

int ckpt_source_lookup(struct ckpt_source *src, uint64_t parent, const char *name, struct ckpt_attr *ret,
                       struct ckpt_err *err)
{
    struct target t;
    if (strlen(name) > 255)
        return ckpt_fail(err, ENAMETOOLONG, "the name is longer than 255 bytes");
    if (ckpt_source_is_reserved(parent, name))
        return strcmp(name, ".files") ? counted_getattr(src, CKPT_CONTROL, ret, err) : lookup_files_view(src, ret, err);
    name = unescape(parent, name);
    int r = hold(src, parent, &t, err);
    if (r < 0)
        return r;
    if (is_stale(&t))
        r = -ESTALE;
    else
        r = t.kind->lookup ? t.kind->lookup(src, &t, name, ret, err) : -ENOTDIR;
    ckpt_source_done(src, &t);
    if (r < 0 && err && err->code != -r)
        ckpt_fail(err, -r, "%s: %s", name, strerror(-r));
    return r;
}

int ckpt_source_getattr(struct ckpt_source *src, uint64_t id, struct ckpt_attr *ret, struct ckpt_err *err)
{
    struct target t;
    int r = hold(src, id, &t, err);
    if (r < 0)
        return r;
    if (t.kind->attr)
        r = t.kind->attr(src, &t, ret, err);
    else {
        CKPT_GUARD(&src->lock);
        ckpt_source_node_attr(t.node, ret);
    }
    ckpt_source_done(src, &t);
    return r;
}

int ckpt_source_opendir(struct ckpt_source *src, uint64_t id, struct ckpt_dir **ret, bool *ret_immutable,
                        struct ckpt_err *err)
{
    struct ckpt_dir *d = calloc(1, sizeof *d);
    if (!d)
        return ckpt_fail(err, ENOMEM, "out of memory");
    d->src = src;
    d->id = id;
    *ret_immutable = false;
    int r = hold(src, id, &d->target, err);
    if (r == 0 && is_stale(&d->target))
        r = -ESTALE;
    if (r == 0)
        r = d->target.kind->open_dir ? d->target.kind->open_dir(d, ret_immutable, err)
                                     : ckpt_fail(err, ENOTDIR, "not a directory");
    if (r < 0)
        ckpt_closedir(d);
    else
        *ret = d;
    return r;
}

/* --- reading --- */

/* Checks and counts before it hands on: who has its bytes may look at the figures at once. */
struct counted_give {
    struct ckpt_source *src;
    ckpt_give_fn *give;
    void *arg;
};

static int count_and_give(void *arg, const struct iovec *iov, int count)
{
    const struct counted_give *g = arg;
    for (int i = 0; i < count; i++)
        atomic_fetch_add_explicit(&g->src->bytes_read, iov[i].iov_len, memory_order_relaxed);
    return g->give(g->arg, iov, count);
}

/* A file that is read into a buffer first. */
static ssize_t read_and_give(struct target *t, size_t len, uint64_t off, struct counted_give *give,
                             struct ckpt_err *err)
{
    if (!t->kind->read)
        return ckpt_fail(err, EISDIR, "a directory");
    CKPT_AUTOFREE uint8_t *buf = malloc(len ? len : 1);
    if (!buf)
        return -ENOMEM;
    ssize_t r = t->kind->read(give->src, t, buf, len, off, err);
    if (r < 0)
        return r;
    int given = count_and_give(give, &(struct iovec){buf, (size_t)r}, 1);
    return given < 0 ? given : r;
}

ssize_t ckpt_read(struct ckpt_source *src, uint64_t id, void *buf, size_t len, uint64_t off, struct ckpt_err *err)
{
    struct target t;
    atomic_fetch_add_explicit(&src->reads, 1, memory_order_relaxed);
    unsigned shortages = ckpt_shortages();
    ssize_t r = ckpt_source_target(src, id, &t, err);
    if (r < 0)
        return r;
    r = t.kind->read ? t.kind->read(src, &t, buf, len, off, err) : ckpt_fail(err, EISDIR, "a directory");
    ckpt_source_done(src, &t);
    if (r > 0)
        atomic_fetch_add_explicit(&src->bytes_read, (uint64_t)r, memory_order_relaxed);
    return r == -ENOENT ? source_absent((int)r, shortages) : r;
}

ssize_t ckpt_read_to(struct ckpt_source *src, uint64_t id, size_t len, uint64_t off,
                     int (*give)(void *arg, const struct iovec *iov, int count), void *arg, struct ckpt_err *err)
{
    struct target t;
    struct counted_give g = {src, give, arg};
    atomic_fetch_add_explicit(&src->reads, 1, memory_order_relaxed);
    unsigned shortages = ckpt_shortages();
    ssize_t r = ckpt_source_target(src, id, &t, err);
    if (r < 0)
        return r;
    r = t.kind->give ? t.kind->give(src, &t, len, off, count_and_give, &g, err) : read_and_give(&t, len, off, &g, err);
    ckpt_source_done(src, &t);
    return r == -ENOENT ? source_absent((int)r, shortages) : r;
}

int ckpt_run(struct ckpt_source *src, uint64_t id, uint64_t off, uint64_t *ret_end, struct ckpt_err *err)
{
    struct target t;
    int r = ckpt_source_target(src, id, &t, err);
    if (r < 0)
        return r;
    *ret_end = INT64_MAX;
    r = t.kind->run ? t.kind->run(src, &t, off, ret_end, err) : 1;
    ckpt_source_done(src, &t);
    return r;
}

/* --- extended attributes: what does not open has none, and only a step that has ended says so --- */

ssize_t ckpt_source_getxattr(struct ckpt_source *src, uint64_t id, const char *name, const struct ckpt_caller *who,
                             char *buf, size_t len)
{
    struct target t;
    /* `ls -l` asks for attributes of other kinds of each name, until it is told that the file system has none. */
    if (strncmp(name, "user.", 5))
        return -EOPNOTSUPP;
    ssize_t r = hold(src, id, &t, NULL);
    if (r < 0)
        return id & CKPT_STAGED ? r : -ENODATA;
    r = t.kind->getxattr ? t.kind->getxattr(src, &t, name, who, buf, len) : -ENODATA;
    ckpt_source_done(src, &t);
    return r;
}

ssize_t ckpt_source_listxattr(struct ckpt_source *src, uint64_t id, char *buf, size_t len)
{
    struct target t;
    ssize_t r = hold(src, id, &t, NULL);
    if (r < 0)
        return id & CKPT_STAGED ? r : 0;
    r = t.kind->listxattr ? t.kind->listxattr(src, &t, buf, len) : 0;
    ckpt_source_done(src, &t);
    return r;
}

/* --- changing --- */

int ckpt_source_remove(struct ckpt_source *src, uint64_t parent, const char *name, bool is_dir,
                       const struct ckpt_caller *who, struct ckpt_err *err)
{
    struct target t;
    int r = hold(src, parent, &t, err);
    if (r < 0)
        return r;
    r = t.kind->remove ? t.kind->remove(src, &t, name, is_dir, who, err) : 1;
    ckpt_source_done(src, &t);
    return r < 0 ? ckpt_fail(err, -r, "%s: %s", name, strerror(-r)) : r;
}

int ckpt_source_find_place(struct ckpt_source *src, uint64_t id, struct place *ret, struct ckpt_err *err)
{
    *ret = (struct place){0};
    int r = hold(src, id, &ret->top, err);
    if (r < 0)
        return r;
    r = ret->top.kind->place ? ret->top.kind->place(src, ret, err) : ckpt_fail(err, EROFS, "this cannot be written");
    if (r < 0) {
        ckpt_source_place_clear(src, ret);
        return r;
    }
    return ret->id ? 0 : 1;
}

void ckpt_source_place_clear(struct ckpt_source *src, struct place *p)
{
    if (p->id)
        ckpt_stage_forget(p->stages, p->id, 1);
    ckpt_source_done(src, &p->top);
}

int ckpt_source_find_staged(struct ckpt_source *src, uint64_t id, struct staged_file *ret, struct ckpt_err *err)
{
    struct target t;
    int r = hold(src, id, &t, err);
    if (r < 0)
        return r;
    r = t.kind->staged ? t.kind->staged(src, &t, ret, err) : ckpt_fail(err, EROFS, "this cannot be written");
    ckpt_source_done(src, &t);
    return r;
}

int ckpt_source_open_step(struct ckpt_source *src, uint64_t id, struct ckpt_err *err)
{
    struct target t;
    struct staged_file copy;
    int r = hold(src, id, &t, err);
    if (r < 0)
        return r;
    if (t.stages) /* it is open already, or has ended */
        return ckpt_stage_ended(t.stages, id) ? -ESTALE : 0;
    struct target top = {.id = id, .node = t.node};
    r = t.kind->staged ? t.kind->staged(src, &top, &copy, err) : ckpt_fail(err, EROFS, "this cannot be written");
    if (r == 0)
        ckpt_stage_forget(copy.stages, copy.id, 1);
    ckpt_source_done(src, &t);
    return r;
}
