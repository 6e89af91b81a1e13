/* SPDX-License-Identifier: Apache-2.0 */
/* What is in a staged step: calls go through to core/stage. Open files are handles (handle.c). */
#include "core/base/util.h"
#include "core/source/kinds.h"

#include <stdio.h>
#include <sys/stat.h>

/* A step of the store in the files view of the root that is the source. */
static int lookup_step_files(struct ckpt_source *src, const char *name, struct ckpt_attr *ret)
{
    struct target view;
    struct node *n;
    int r = ckpt_source_target(src, CKPT_FILES_VIEW, &view, NULL);
    if (r < 0)
        return r;
    r = ckpt_source_step_files(src, view.node, name, &n);
    if (r == 0) {
        CKPT_GUARD(&src->lock);
        ckpt_source_node_attr(n, ret);
        ret->uncached = true;
    }
    ckpt_source_done(src, &view);
    return r;
}

int ckpt_source_staged_lookup(struct ckpt_source *src, uint64_t parent, const char *name, struct ckpt_attr *ret,
                              struct ckpt_err *err)
{
    struct ckpt_stages *set = ckpt_source_set(src, parent);
    struct ckpt_stage_attr attr;
    int r = set ? ckpt_stage_lookup(set, parent, name, &attr) : -ESTALE;
    if (r == -ENOENT && ckpt_stage_is_files_view(set, parent) && lookup_step_files(src, name, ret) == 0)
        return 0;
    if (r < 0)
        return ckpt_fail(err, -r, "%s: %s", name, strerror(-r));
    ckpt_source_attr_of_stage(&attr, ret);
    return 0;
}

int ckpt_source_staged_attr(struct ckpt_source *src, uint64_t id, struct ckpt_attr *ret, struct ckpt_err *err)
{
    struct ckpt_stages *set = ckpt_source_set(src, id);
    struct ckpt_stage_attr attr;
    int r = set ? ckpt_stage_getattr(set, id, &attr) : -ESTALE;
    if (r < 0)
        return ckpt_fail(err, -r, "the step is not staged any more");
    ckpt_source_attr_of_stage(&attr, ret);
    return 0;
}

/* Positions are those of the directory on disk. Once its step has ended that is taken apart, so what is left of it is
 * no answer. */
static int staged_next(struct ckpt_dir *d, uint64_t pos, struct ckpt_dirent *ret)
{
    if (pos)
        seekdir(d->entries, (long)pos);
    else
        rewinddir(d->entries);
    for (;;) {
        errno = 0;
        struct dirent *e = readdir(d->entries);
        int code = errno;
        if (ckpt_stage_ended(ckpt_source_set(d->src, d->id), d->id))
            return -ESTALE;
        if (!e)
            return -code;
        if (!strcmp(e->d_name, ".") || !strcmp(e->d_name, ".."))
            continue;
        snprintf(ret->name, sizeof ret->name, "%s", e->d_name);
        ret->type = e->d_type == DT_DIR ? CKPT_DIR : CKPT_FILE;
        ret->next = (uint64_t)telldir(d->entries);
        ret->ino = ckpt_stage_ino(ckpt_source_set(d->src, d->id), d->dev, e->d_ino);
        return 1;
    }
}

int ckpt_source_staged_opendir(struct ckpt_dir *d, uint64_t id, struct ckpt_err *err)
{
    struct ckpt_stages *set = ckpt_source_set(d->src, id);
    int fd, r = set ? ckpt_stage_opendir(set, id, &fd) : -ESTALE;
    if (r < 0)
        return ckpt_fail(err, -r, "%s", strerror(-r));
    struct stat st;
    d->entries = fstat(fd, &st) == 0 ? fdopendir(fd) : NULL;
    if (!d->entries) {
        r = errno;
        close(fd);
        return ckpt_fail(err, r, "%s", strerror(r));
    }
    d->id = id;
    d->dev = st.st_dev;
    d->next = staged_next;
    return 0;
}

/* --- the table --- */

static int staged_lookup(struct ckpt_source *src, struct target *t, const char *name, struct ckpt_attr *ret,
                         struct ckpt_err *err)
{
    return ckpt_source_staged_lookup(src, t->id, name, ret, err);
}

static int staged_attr(struct ckpt_source *src, struct target *t, struct ckpt_attr *ret, struct ckpt_err *err)
{
    return ckpt_source_staged_attr(src, t->id, ret, err);
}

/* The root's own directory is listed as the files view has it. */
static int staged_open_dir(struct ckpt_dir *d, bool *ret_immutable, struct ckpt_err *err)
{
    uint64_t id = d->id;
    if (!ckpt_stage_is_files_view(d->target.stages, id))
        return ckpt_source_staged_opendir(d, id, err);
    int r = ckpt_source_target(d->src, CKPT_FILES_VIEW, &d->target, err);
    return r < 0 ? r : ckpt_source_files_view_opendir(d, err);
}

static ssize_t staged_getxattr(struct ckpt_source *src, struct target *t, const char *name,
                               const struct ckpt_caller *who, char *buf, size_t len)
{
    return ckpt_stage_getxattr(t->stages, t->id, name, who, buf, len);
}

static ssize_t staged_listxattr(struct ckpt_source *src, struct target *t, char *buf, size_t len)
{
    return ckpt_stage_listxattr(t->stages, t->id, buf, len);
}

static int staged_place(struct ckpt_source *src, struct place *p, struct ckpt_err *err)
{
    int r = ckpt_stage_ref(p->top.stages, p->top.id);
    if (r < 0)
        return ckpt_fail(err, -r, "the step is not staged any more");
    p->stages = p->top.stages;
    p->id = p->top.id;
    return 0;
}

static int staged_itself(struct ckpt_source *src, struct target *t, struct staged_file *ret, struct ckpt_err *err)
{
    *ret = (struct staged_file){t->stages, t->id};
    return ckpt_stage_ref(t->stages, t->id);
}

const struct kind ckpt_kind_staged = {
    .lookup = staged_lookup,
    .attr = staged_attr,
    .open_dir = staged_open_dir,
    .getxattr = staged_getxattr,
    .listxattr = staged_listxattr,
    .place = staged_place,
    .staged = staged_itself,
};
