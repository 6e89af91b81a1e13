/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Committed steps and their staged copies: how a copy is made, and the file of a copy that stands for a committed one.
 *
 * A copy belongs to one manifest, by its id. A step of the same name with another manifest, which another mount may
 * have made, is another step.
 */
#include "core/base/util.h"
#include "core/format/native.h"
#include "core/source/removal.h"

#include <stdio.h>

#define AGAIN_NS 5000000000ll /* until a copy is tried again that could not be made */

struct node *ckpt_source_root_of(struct ckpt_source *src, const struct node *tree)
{
    CKPT_GUARD(&src->lock);
    if (tree->kind != NODE_TREE || !tree->stored)
        return NULL;
    for (unsigned i = 0; i < src->set_count; i++)
        if (src->sets[i]->id == tree->parent)
            return src->sets[i];
    return NULL;
}

void ckpt_source_step_name(struct ckpt_source *src, const struct node *n, char ret[CKPT_NAME_MAX + 1])
{
    CKPT_GUARD(&src->lock);
    snprintf(ret, CKPT_NAME_MAX + 1, "%s", n->name);
}

/* --- the file of a copy --- */

int ckpt_source_each_name(const struct ckpt_tree *tree, uint32_t node, int (*visit)(void *arg, const char *name),
                          void *arg)
{
    uint32_t path[CKPT_MAX_DEPTH];
    unsigned depth = 0;
    int r = 0;
    for (uint32_t at = node; at && depth < CKPT_MAX_DEPTH; at = tree->nodes[at].parent)
        path[depth++] = at;
    while (r == 0 && depth--) {
        struct ckpt_buf name = CKPT_BUF_INIT;
        ckpt_tree_name(tree, path[depth], &name);
        ckpt_buf_addc(&name, 0);
        r = ckpt_buf_error(&name);
        if (r == 0)
            r = visit(arg, (char *)name.data);
        ckpt_buf_clear(&name);
    }
    return r;
}

struct copy_walk {
    struct ckpt_stages *stages;
    struct ckpt_stage_attr at;
};

static int walk_on(void *arg, const char *name)
{
    struct copy_walk *w = arg;
    uint64_t parent = w->at.id;
    int r = ckpt_stage_lookup(w->stages, parent, name, &w->at);
    ckpt_stage_forget(w->stages, parent, 1);
    return r;
}

int ckpt_source_find_copy(struct ckpt_source *src, struct node *root, struct target *t, uint64_t *ret)
{
    struct ckpt_tree *tree;
    struct copy_walk w = {.stages = root->stages};
    char name[CKPT_NAME_MAX + 1];
    ckpt_source_step_name(src, t->node, name);
    if (!ckpt_stage_exists(root->stages, name))
        return 0;
    int r = ckpt_source_tree(src, t->node, &tree, NULL); /* its id is wanted, also of its top */
    if (r < 0)
        return 0;
    bool found = ckpt_stage_ref_copy(root->stages, name, ckpt_store_tree_id(tree), &w.at) == 0;
    if (found && t->tree)
        r = ckpt_source_each_name(tree, t->file.node, walk_on, &w);
    ckpt_tree_unref(tree);
    if (!found)
        return 0;
    if (r < 0)
        return r == -ENOTDIR ? -ENOENT : r;
    *ret = w.at.id;
    return 1;
}

int ckpt_source_copied(struct ckpt_source *src, struct target *t, uint64_t *ret)
{
    struct node *root = ckpt_source_root_of(src, t->node);
    return root ? ckpt_source_find_copy(src, root, t, ret) : 0;
}

/* --- making a copy --- */

/* What was noted is in the copy now. */
static void forget_noted(struct ckpt_source *src, struct node *n, struct removal *r)
{
    CKPT_GUARD(&src->lock);
    if (n->removal == r)
        ckpt_source_forget_removal(src, n);
}

/* Of a step that has something noted or not. */
static int copy_noted(struct ckpt_source *src, struct node *root, struct node *n, struct ckpt_file *manifest,
                      const char *id, struct ckpt_err *err)
{
    char name[CKPT_NAME_MAX + 1];
    NODE_LOADING(src, n);
    ckpt_source_step_name(src, n, name);
    pthread_mutex_lock(&src->lock);
    struct removal *removed = n->removal;
    struct ckpt_caller who = {.pid = removed ? removed->pid : 0};
    if (removed)
        removed->refs++;
    pthread_mutex_unlock(&src->lock);
    int r = atomic_load(&n->stale)
                ? -ESTALE
                : ckpt_stage_copy(root->stages, name, manifest, id, removed ? &removed->what : NULL, err);
    if (!removed)
        return r;
    if (r == 0) {
        ckpt_stage_touched(root->stages, name, &who);
        forget_noted(src, n, removed);
    }
    CKPT_GUARD(&src->lock);
    ckpt_removal_unref(removed);
    return r;
}

int ckpt_source_copy_step(struct ckpt_source *src, struct node *root, struct node *n, struct ckpt_err *err)
{
    struct ckpt_tree *tree;
    struct ckpt_file *manifest;
    int r = ckpt_source_tree(src, n, &tree, err);
    if (r < 0)
        return r;
    r = ckpt_store_tree_manifest(tree, &manifest, err);
    if (r == 0) {
        r = copy_noted(src, root, n, manifest, ckpt_store_tree_id(tree), err);
        ckpt_file_unref(manifest);
    }
    ckpt_tree_unref(tree);
    return r;
}

int ckpt_source_open_copy(struct ckpt_source *src, struct target *t, struct ckpt_stages **ret_stages, uint64_t *ret,
                          struct ckpt_err *err)
{
    struct node *root = ckpt_source_root_of(src, t->node);
    if (!root)
        return ckpt_fail(err, EROFS, "only the steps of a store can be changed");
    int r = ckpt_source_copy_step(src, root, t->node, err);
    if (r == 0)
        r = ckpt_source_find_copy(src, root, t, ret);
    *ret_stages = root->stages;
    return r == 0 ? -ESTALE : CKPT_MIN(r, 0); /* it has been committed already */
}

int ckpt_source_record_of(struct ckpt_source *src, uint64_t id, struct ckpt_manifest_node *ret)
{
    struct target t;
    int r = ckpt_source_target(src, id, &t, NULL);
    if (r < 0)
        return r;
    bool stored = t.tree && t.file.view == CKPT_VIEW_LISTED && !ckpt_viewed_is_dir(&t.file) &&
                  ckpt_source_root_of(src, t.node);
    r = stored ? ckpt_store_tree_record(t.tree, t.file.node, ret, NULL) : -EXDEV;
    ckpt_source_done(src, &t);
    return r;
}

/* --- steps of which something was removed --- */

static bool is_settled(const struct removal *r, int64_t now, double seconds)
{
    return r->again_ns <= now && now - r->changed_ns >= (int64_t)(seconds * 1e9);
}

/* A step of a root of which something is removed, the last for at least so long ago; kept. NULL: none. */
static struct node *next_removal(struct ckpt_source *src, struct node *root, double seconds)
{
    if (!atomic_load(&src->removals)) /* looked for several times a second, and rare */
        return NULL;
    int64_t now = ckpt_monotonic_ns();
    CKPT_GUARD(&src->lock);
    for (unsigned i = 0; i < NODE_BUCKETS; i++)
        for (struct node *n = src->nodes.by_serial[i]; n; n = n->next_serial) {
            struct removal *r = n->removal;
            if (!r || n->parent != root->id)
                continue;
            if (seconds >= 0 && !is_settled(r, now, seconds))
                continue;
            r->again_ns = now + AGAIN_NS; /* if it fails; else there is nothing more to do */
            n->uses++;
            return n;
        }
    return NULL;
}

static void forget_removal(struct ckpt_source *src, struct node *n)
{
    CKPT_GUARD(&src->lock);
    ckpt_source_forget_removal(src, n);
}

void ckpt_source_settle_removals(struct ckpt_source *src, struct node *root, double seconds)
{
    for (struct node *n; (n = next_removal(src, root, seconds));) {
        struct ckpt_err err = {0};
        int r = ckpt_source_copy_step(src, root, n, &err);
        if (r == -ESTALE)
            ckpt_log(CKPT_LOG_WARN,
                     "%s/%s: another mount has replaced the step: what was removed here of the one before comes back",
                     src->path, n->path);
        else if (r < 0)
            ckpt_log(CKPT_LOG_WARN, "%s/%s: what was removed of it is not gone yet: %s", src->path, n->path, err.text);
        if (r == -ESTALE || (r < 0 && seconds < 0)) /* the last try */
            forget_removal(src, n);
        ckpt_node_release(src, n);
    }
}
