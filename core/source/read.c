/* SPDX-License-Identifier: Apache-2.0 */
/* Reading of files and links. */
#include "core/base/util.h"
#include "core/source/source.h"

#include <stdio.h>

#define KEPT_FILES 256 /* plain files that are kept open */

int ckpt_readlink(struct ckpt_source *src, uint64_t id, char *buf, size_t len)
{
    struct target t;
    int r = ckpt_source_target(src, id, &t, NULL);
    if (r < 0)
        return r;
    if (t.tree || t.node->kind != NODE_LINK)
        r = -EINVAL;
    else
        snprintf(buf, len, "%s", t.node->content);
    ckpt_source_done(src, &t);
    return r;
}

/* A file of the source that is shown as itself. It is kept open, so that a reader goes on when its name is gone. */
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

static ssize_t read_file(struct ckpt_source *src, struct node *n, void *buf, size_t len, uint64_t off)
{
    struct ckpt_file *f;
    ssize_t r = open_file(src, n, &f);
    if (r < 0)
        return r;
    r = ckpt_file_read(f, buf, len, off);
    ckpt_file_unref(f);
    return r;
}

static void log_leaf(struct ckpt_source *src, const struct target *t, const struct ckpt_err *err, int code)
{
    struct ckpt_buf name = CKPT_BUF_INIT;
    ckpt_tree_name(t->tree, t->file.node, &name);
    ckpt_log(CKPT_LOG_WARN, "%s%s%s: leaf %.*s: %s", src->path, *t->node->path ? "/" : "", t->node->path,
             (int)CKPT_MIN(name.len, (size_t)255), name.data ? (char *)name.data : "",
             err->code ? err->text : strerror(code));
    ckpt_buf_clear(&name);
}

/* What is not inside of a checkpoint. */
static ssize_t read_outer(struct ckpt_source *src, struct node *n, void *buf, size_t len, uint64_t off,
                          struct ckpt_err *err)
{
    if (n->kind == NODE_FILE) {
        ssize_t r = read_file(src, n, buf, len, off);
        return r < 0 ? ckpt_fail(err, (int)-r, "%s/%s: %s", src->path, n->path, strerror((int)-r)) : r;
    }
    if (n->kind != NODE_CONTROL)
        return ckpt_fail(err, EISDIR, "a directory");
    len = off < n->content_len ? CKPT_MIN(len, n->content_len - (size_t)off) : 0;
    if (len)
        memcpy(buf, n->content + off, len);
    return (ssize_t)len;
}

/* Checks and counts before it hands on: who has its bytes may look at the figures at once. */
struct counted_give {
    struct ckpt_source *src;
    ckpt_give_fn *give;
    void *arg;
    const struct node *node; /* of what is read; NULL: not inside of a checkpoint */
    struct ckpt_err *err;
};

static int count_and_give(void *arg, const struct iovec *iov, int count)
{
    struct counted_give *g = arg;
    int r = g->node ? ckpt_source_unchanged(g->src, g->node, g->err) : 0;
    if (r < 0)
        return r;
    for (int i = 0; i < count; i++)
        atomic_fetch_add_explicit(&g->src->bytes_read, iov[i].iov_len, memory_order_relaxed);
    return g->give(g->arg, iov, count);
}

/* With give: to it; else into buf. */
static ssize_t read_any(struct ckpt_source *src, uint64_t id, void *buf, size_t len, uint64_t off,
                        struct counted_give *give, struct ckpt_err *err)
{
    struct target t;
    struct ckpt_err own = {0};
    atomic_fetch_add_explicit(&src->reads, 1, memory_order_relaxed);
    unsigned shortages = ckpt_shortages();
    ssize_t r = ckpt_source_target(src, id, &t, err);
    if (r < 0)
        return r;
    if (t.tree && ckpt_viewed_is_dir(&t.file))
        r = ckpt_fail(err, EISDIR, "a directory");
    else if (t.tree) {
        if (give) {
            give->node = t.node;
            give->err = &own;
            r = ckpt_view_give(&src->views, &t.file, len, off, count_and_give, give, &own);
        } else {
            r = ckpt_view_read(&src->views, &t.file, buf, len, off, &own);
            int changed = r > 0 ? ckpt_source_unchanged(src, t.node, &own) : 0;
            r = changed < 0 ? changed : r;
        }
        if (r < 0) {
            log_leaf(src, &t, &own, (int)-r);
            if (err)
                *err = own;
        }
    } else if (!give)
        r = read_outer(src, t.node, buf, len, off, err);
    else {
        CKPT_AUTOFREE uint8_t *own_buf = malloc(len ? len : 1);
        r = own_buf ? read_outer(src, t.node, own_buf, len, off, err) : -ENOMEM;
        if (r >= 0) {
            int g = count_and_give(give, &(struct iovec){own_buf, (size_t)r}, 1);
            r = g < 0 ? g : r;
        }
    }
    ckpt_source_done(src, &t);
    r = r == -ENOENT ? source_absent((int)r, shortages) : r;
    if (r > 0 && !give)
        atomic_fetch_add_explicit(&src->bytes_read, (uint64_t)r, memory_order_relaxed);
    return r;
}

ssize_t ckpt_read(struct ckpt_source *src, uint64_t id, void *buf, size_t len, uint64_t off, struct ckpt_err *err)
{
    return read_any(src, id, buf, len, off, NULL, err);
}

int ckpt_run(struct ckpt_source *src, uint64_t id, uint64_t off, uint64_t *ret_end, struct ckpt_err *err)
{
    struct target t;
    struct ckpt_file *f;
    int r = ckpt_source_target(src, id, &t, err);
    if (r < 0)
        return r;
    *ret_end = INT64_MAX;
    r = 1;
    if (t.tree && !ckpt_viewed_is_dir(&t.file))
        r = ckpt_view_run(&src->views, &t.file, off, ret_end, err);
    else if (!t.tree && t.node->kind == NODE_FILE && (r = open_file(src, t.node, &f)) == 0) {
        r = ckpt_file_data(f, off, ret_end);
        ckpt_file_unref(f);
    }
    ckpt_source_done(src, &t);
    return r;
}

ssize_t ckpt_read_to(struct ckpt_source *src, uint64_t id, size_t len, uint64_t off,
                     int (*give)(void *arg, const struct iovec *iov, int count), void *arg, struct ckpt_err *err)
{
    struct counted_give g = {.src = src, .give = give, .arg = arg};
    return read_any(src, id, NULL, len, off, &g, err);
}
