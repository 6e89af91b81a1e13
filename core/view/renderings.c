/* SPDX-License-Identifier: Apache-2.0 */
/* Who renders which view, and the renderings that were read last, which are kept. */
#include "core/view/rendering.h"

#include "core/base/util.h"

#define KEPT 64

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
        return ckpt_no_memory(err);
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
