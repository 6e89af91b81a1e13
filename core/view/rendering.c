/* SPDX-License-Identifier: Apache-2.0 */
#include "core/view/rendering.h"

#include "core/base/temporary.h"
#include "core/base/util.h"

#define IN_MEMORY ((size_t)1 << 20)
#define KEPT      64

struct kept {
    uint64_t tree;
    uint32_t node;
    enum ckpt_view view;
    uint64_t used;
    struct ckpt_rendering *rendering;
};

struct ckpt_renderings {
    pthread_mutex_t lock;
    uint64_t clock;
    struct kept kept[KEPT];
};

struct ckpt_rendering *ckpt_rendering_new(const char *spill_dir)
{
    struct ckpt_rendering *r = calloc(1, sizeof *r);
    if (!r)
        return NULL;
    atomic_init(&r->refs, 1);
    r->fd = -1;
    r->spill_dir = spill_dir;
    return r;
}

void ckpt_rendering_unref(struct ckpt_rendering *r)
{
    if (!r || atomic_fetch_sub(&r->refs, 1) != 1)
        return;
    if (r->fd >= 0)
        close(r->fd);
    ckpt_buf_clear(&r->text);
    free(r->parts);
    free(r);
}

static void move_to_file(struct ckpt_rendering *r)
{
    if (r->error || !r->text.len)
        return;
    if (r->fd < 0) {
        int fd = ckpt_temporary(r->spill_dir);
        if (fd < 0) {
            r->error = fd;
            return;
        }
        r->fd = fd;
    }
    r->error = ckpt_pwrite(r->fd, r->text.data, r->text.len, r->moved);
    if (r->error)
        return;
    r->moved += r->text.len;
    r->text.len = 0;
}

void ckpt_rendering_flush(struct ckpt_rendering *r)
{
    if (r->text.len >= IN_MEMORY)
        move_to_file(r);
}

int ckpt_rendering_finish(struct ckpt_rendering *r)
{
    if (r->fd >= 0)
        move_to_file(r);
    if (!r->error)
        r->error = ckpt_buf_error(&r->text);
    r->size = ckpt_rendering_text_size(r);
    return r->error;
}

int ckpt_rendering_patch(struct ckpt_rendering *r, const void *data, size_t len, uint64_t off)
{
    if (r->fd >= 0)
        return ckpt_pwrite(r->fd, data, len, off);
    memcpy(r->text.data + off, data, len);
    return 0;
}

uint64_t ckpt_rendering_text_size(const struct ckpt_rendering *r)
{
    return r->moved + r->text.len;
}

ssize_t ckpt_rendering_read(const struct ckpt_rendering *r, void *buf, size_t len, uint64_t off)
{
    uint64_t size = ckpt_rendering_text_size(r);
    if (off >= size)
        return 0;
    len = (size_t)CKPT_MIN((uint64_t)len, size - off);
    if (r->fd < 0) {
        memcpy(buf, r->text.data + off, len);
        return (ssize_t)len;
    }
    ssize_t n = ckpt_pread(r->fd, buf, len, off);
    return n < 0 || (size_t)n == len ? n : -EIO;
}

static struct ckpt_rendering *find_kept(struct ckpt_renderings *all, const struct ckpt_viewed *f)
{
    for (unsigned i = 0; i < KEPT; i++) {
        struct kept *k = &all->kept[i];
        if (k->rendering && k->tree == f->tree->id && k->node == f->node && k->view == f->view) {
            k->used = ++all->clock;
            atomic_fetch_add(&k->rendering->refs, 1);
            return k->rendering;
        }
    }
    return NULL;
}

static void keep(struct ckpt_renderings *all, const struct ckpt_viewed *f, struct ckpt_rendering *r)
{
    struct kept *oldest = &all->kept[0];
    for (unsigned i = 1; i < KEPT; i++)
        if (all->kept[i].used < oldest->used)
            oldest = &all->kept[i];
    ckpt_rendering_unref(oldest->rendering);
    atomic_fetch_add(&r->refs, 1);
    *oldest = (struct kept){f->tree->id, f->node, f->view, ++all->clock, r};
}

int ckpt_rendering_get(struct ckpt_views *v, const struct ckpt_viewed *f, struct ckpt_rendering **ret,
                       struct ckpt_err *err)
{
    static int (*const makers[CKPT_VIEWS])(struct ckpt_views *, const struct ckpt_viewed *, struct ckpt_rendering *,
                                           struct ckpt_err *) = {
        [CKPT_VIEW_TEXT] = ckpt_render_text,
        [CKPT_VIEW_META] = ckpt_render_meta,
        [CKPT_VIEW_TREE] = ckpt_render_tree,
        [CKPT_VIEW_SAFETENSORS] = ckpt_render_safetensors,
    };
    pthread_mutex_lock(&v->renderings->lock);
    *ret = find_kept(v->renderings, f);
    pthread_mutex_unlock(&v->renderings->lock);
    if (*ret)
        return 0;
    struct ckpt_rendering *r = ckpt_rendering_new(v->spill_dir);
    if (!r)
        return ckpt_fail(err, ENOMEM, "out of memory");
    int e = makers[f->view](v, f, r, err);
    if (e == 0 && r->error)
        e = ckpt_fail(err, -r->error, "%s: %s", v->spill_dir, strerror(-r->error));
    if (e < 0) {
        ckpt_rendering_unref(r);
        return e;
    }
    pthread_mutex_lock(&v->renderings->lock);
    keep(v->renderings, f, r);
    pthread_mutex_unlock(&v->renderings->lock);
    *ret = r;
    return 0;
}

int ckpt_views_init(struct ckpt_views *v, struct ckpt_cache *cache, const char *spill_dir)
{
    memset(v, 0, sizeof *v);
    v->reader.cache = cache;
    v->spill_dir = spill_dir;
    v->renderings = calloc(1, sizeof *v->renderings);
    if (!v->renderings)
        return -ENOMEM;
    pthread_mutex_init(&v->renderings->lock, NULL);
    return 0;
}

void ckpt_views_clear(struct ckpt_views *v)
{
    if (!v->renderings)
        return;
    for (unsigned i = 0; i < KEPT; i++)
        ckpt_rendering_unref(v->renderings->kept[i].rendering);
    pthread_mutex_destroy(&v->renderings->lock);
    free(v->renderings);
    v->renderings = NULL;
}
