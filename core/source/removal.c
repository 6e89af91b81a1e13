/* SPDX-License-Identifier: Apache-2.0 */
/* Notes of what was removed of a committed step. */
#include "core/base/util.h"
#include "core/source/removal.h"

void ckpt_removal_unref(struct removal *r)
{
    if (--r->refs)
        return;
    free(r->what.nodes);
    free(r->what.dirs);
    free(r);
}

bool ckpt_source_is_removed(struct ckpt_source *src, struct node *n, uint32_t node)
{
    if (!atomic_load(&n->removing))
        return false;
    CKPT_GUARD(&src->lock);
    const struct removal *r = n->removal;
    return r && node < r->count && ckpt_has_bit(r->what.nodes, node);
}

void ckpt_source_removal_times(struct ckpt_source *src, struct node *n, uint32_t dir, struct ckpt_attr *attr)
{
    if (!atomic_load(&n->removing))
        return;
    CKPT_GUARD(&src->lock);
    const struct removal *r = n->removal;
    if (r && dir < r->count && ckpt_has_bit(r->what.dirs, dir))
        attr->mtime_ns = attr->ctime_ns = r->what.time_ns;
}

int ckpt_removal_begin(struct ckpt_source *src, struct node *n, uint32_t count)
{
    if (n->removal)
        return 0;
    struct removal *r = calloc(1, sizeof *r);
    if (!r)
        return -ENOMEM;
    r->refs = 1;
    r->what.nodes = calloc(count / 64 + 1, sizeof *r->what.nodes);
    r->what.dirs = calloc(count / 64 + 1, sizeof *r->what.dirs);
    if (!r->what.nodes || !r->what.dirs) {
        ckpt_removal_unref(r);
        return -ENOMEM;
    }
    r->count = count;
    n->removal = r;
    n->uses++;
    src->removals++;
    atomic_store(&n->removing, true);
    return 0;
}

void ckpt_source_forget_removal(struct ckpt_source *src, struct node *n)
{
    if (!n->removal)
        return;
    ckpt_removal_unref(n->removal);
    n->removal = NULL;
    n->uses--;
    src->removals--;
    atomic_store(&n->removing, false);
}

bool ckpt_source_is_emptied(struct ckpt_source *src, struct node *n, const struct ckpt_tree *tree, uint32_t dir)
{
    for (uint32_t child = tree->nodes[dir].first; child != CKPT_NO_NODE; child = tree->nodes[child].next)
        if (!ckpt_source_is_removed(src, n, child))
            return false;
    return true;
}
