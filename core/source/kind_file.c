/* SPDX-License-Identifier: Apache-2.0 */
/* A file of the source that is shown as itself, or a file of a step in the files view. */
#include "core/base/util.h"
#include "core/source/kinds.h"

#define KEPT_FILES 256 /* plain files that are kept open */

/* It is kept open, so that a reader goes on when its name is gone. */
static int open_file(struct ckpt_source *src, struct node *n, struct ckpt_file **ret)
{
    pthread_mutex_lock(&src->lock);
    *ret = n->opened && n->opened->file ? ckpt_file_ref(n->opened->file) : NULL;
    pthread_mutex_unlock(&src->lock);
    if (*ret)
        return 0;
    int r = n->files ? ckpt_backend_open(n->files, n->inside, ret) : ckpt_backend_open(src->backend, n->path, ret);
    if (r < 0)
        return r;
    CKPT_GUARD(&src->lock);
    struct opened *o = src->kept_files < KEPT_FILES ? ckpt_node_opened(n) : NULL;
    if (o && !o->file) {
        o->file = ckpt_file_ref(*ret);
        src->kept_files++;
    }
    return 0;
}

static ssize_t file_read(struct ckpt_source *src, struct target *t, void *buf, size_t len, uint64_t off,
                         struct ckpt_err *err)
{
    struct ckpt_file *f;
    ssize_t r = open_file(src, t->node, &f);
    if (r == 0) {
        r = ckpt_file_read(f, buf, len, off);
        ckpt_file_unref(f);
    }
    return r < 0 ? ckpt_fail(err, (int)-r, "%s/%s: %s", src->path, t->node->path, strerror((int)-r)) : r;
}

static int file_run(struct ckpt_source *src, struct target *t, uint64_t off, uint64_t *ret_end, struct ckpt_err *err)
{
    struct ckpt_file *f;
    int r = open_file(src, t->node, &f);
    if (r < 0)
        return r;
    r = ckpt_file_data(f, off, ret_end);
    ckpt_file_unref(f);
    return r;
}

static ssize_t file_getxattr(struct ckpt_source *src, struct target *t, const char *name, const struct ckpt_caller *who,
                             char *buf, size_t len)
{
    return ckpt_source_npy_getxattr(src, t, name, buf, len);
}

const struct kind ckpt_kind_file = {
    .attr = ckpt_source_outer_attr,
    .read = file_read,
    .run = file_run,
    .getxattr = file_getxattr,
    .listxattr = ckpt_source_npy_listxattr,
};
