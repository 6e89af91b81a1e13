/* SPDX-License-Identifier: Apache-2.0 */
/* What an id names, and references to ids. */
#include "core/base/util.h"
#include "core/source/top.h"

bool ckpt_source_is_reserved(uint64_t parent, const char *name)
{
    return parent == CKPT_ROOT && (!strcmp(name, ".ckptfs") || !strcmp(name, ".files"));
}

struct ckpt_stages *ckpt_source_set(struct ckpt_source *src, uint64_t id)
{
    unsigned number = source_set_number(id);
    CKPT_GUARD(&src->lock);
    return number < src->set_count ? src->sets[number]->stages : NULL;
}

static bool is_slice(enum ckpt_view view)
{
    return view == CKPT_VIEW_SLICE || view == CKPT_VIEW_SLICE_NPY;
}

static enum ckpt_view view_of_id(uint64_t id)
{
    return (enum ckpt_view)(id >> 32 & 0xff);
}

/* What an id names inside of the checkpoint of ret->node. */
static int enter_at_id(struct ckpt_source *src, uint64_t id, struct target *ret, struct ckpt_err *err)
{
    uint32_t node = (uint32_t)id;
    enum ckpt_view view = view_of_id(id);
    int r = ckpt_source_tree(src, ret->node, &ret->tree, err);
    if (r < 0)
        return r;
    if (is_slice(view)) {
        pthread_mutex_lock(&src->lock);
        ret->slice = ckpt_node_slice(ret->node, node);
        pthread_mutex_unlock(&src->lock);
        if (!ret->slice)
            return ckpt_fail(err, ESTALE, "nothing is known under this number any more");
        node = ret->slice->node;
    }
    if (node >= ret->tree->count)
        return ckpt_fail(err, ESTALE, "the checkpoint has changed");
    const struct ckpt_selection *sel = ret->slice ? &ret->slice->sel : NULL;
    ret->file = (struct ckpt_viewed){ret->tree, node, view, sel};
    return 0;
}

int ckpt_source_target(struct ckpt_source *src, uint64_t id, struct target *ret, struct ckpt_err *err)
{
    *ret = (struct target){.id = id};
    if (id == CKPT_ROOT)
        ckpt_source_look(src, false);
    pthread_mutex_lock(&src->lock);
    ret->node = ckpt_node_of_id(&src->nodes, id);
    if (ret->node)
        ret->node->uses++;
    pthread_mutex_unlock(&src->lock);
    if (!ret->node)
        return ckpt_fail(err, ESTALE, "nothing is known under this number any more");
    ret->kind = src->kinds[ret->node->kind];
    if (id < NODE_INSIDE)
        return 0;
    int r = enter_at_id(src, id, ret, err);
    if (r < 0)
        ckpt_source_done(src, ret);
    return r;
}

void ckpt_source_done(struct ckpt_source *src, struct target *t)
{
    ckpt_tree_unref(t->tree);
    t->tree = NULL;
    if (t->node)
        ckpt_node_release(src, CKPT_STEAL(t->node));
}

int ckpt_source_enter(struct ckpt_source *src, struct target *t, uint32_t *ret_node, struct ckpt_err *err)
{
    if (!t->tree) {
        if (t->node->kind != NODE_TREE)
            return ckpt_fail(err, ENOTDIR, "not inside a checkpoint");
        int r = ckpt_source_tree(src, t->node, &t->tree, err);
        if (r < 0)
            return r;
        t->file = (struct ckpt_viewed){t->tree, 0, CKPT_VIEW_LISTED, NULL};
    }
    *ret_node = t->file.node;
    return 0;
}

static void forget_node(struct ckpt_source *src, uint64_t id, uint64_t count)
{
    struct node *dead = NULL;
    bool inside = id >= NODE_INSIDE;
    pthread_mutex_lock(&src->lock);
    struct node *n = ckpt_node_of_id(&src->nodes, id);
    if (n) {
        uint64_t *refs = inside ? &n->inner : &n->refs;
        *refs -= CKPT_MIN(*refs, count);
        if (inside && is_slice(view_of_id(id)))
            ckpt_node_put_slice(&src->nodes, n, (uint32_t)id, count);
        dead = ckpt_node_reap(src, n);
    }
    pthread_mutex_unlock(&src->lock);
    if (dead)
        ckpt_node_free(src, dead);
}

void ckpt_forget(struct ckpt_source *src, uint64_t id, uint64_t count)
{
    bool lasting = id == CKPT_ROOT || id == CKPT_CONTROL || id == CKPT_FILES_VIEW;
    if (lasting)
        return;
    if (!(id & CKPT_STAGED)) {
        forget_node(src, id, count);
        return;
    }
    struct ckpt_stages *set = ckpt_source_set(src, id);
    if (set)
        ckpt_stage_forget(set, id, count);
}
