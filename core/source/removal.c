/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A committed step that is being removed, name by name. rm -r of a large step should not copy it first, and must work
 * on a disk that is full: so what is removed is only noted, here in memory, until the step's own directory goes, which
 * deletes the step at once. It is as if it had not been, should the process end before. Any other change of the step,
 * or a while without another removal, makes the staged copy, without what was removed.
 */
#include "core/base/util.h"
#include "core/format/native.h"
#include "core/source/source.h"

#include <stdio.h>

#define AGAIN_NS 5000000000ll /* until a copy is tried again that could not be made */

struct removal {
    unsigned refs;                  /* the node's, and that of who makes the copy: under the source's lock */
    struct ckpt_stage_removed what; /* a tree's nodes have the numbers of its manifest's */
    uint32_t count;                 /* of them */
    pid_t pid;                      /* who did the last */
    int64_t changed_ns;             /* CLOCK_MONOTONIC */
    int64_t again_ns;               /* no copy is tried before */
};

static void removal_unref(struct removal *r)
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

/* The node stays known meanwhile. Under the source's lock. */
static int begin(struct ckpt_source *src, struct node *n, uint32_t count)
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
        removal_unref(r);
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
    removal_unref(n->removal);
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

static int find(struct ckpt_source *src, struct target *t, uint32_t dir, const char *name, bool is_dir, uint32_t *ret)
{
    const struct ckpt_tree *tree = t->tree;
    uint32_t node = ckpt_tree_lookup(tree, dir, name, strlen(name));
    if (node == CKPT_NO_NODE || ckpt_source_is_removed(src, t->node, node))
        return -ENOENT;
    if ((tree->nodes[node].kind == CKPT_NODE_DIR) != is_dir)
        return is_dir ? -ENOTDIR : -EISDIR;
    if (is_dir && !ckpt_source_is_emptied(src, t->node, tree, node))
        return -ENOTEMPTY;
    *ret = node;
    return 0;
}

static int note(struct ckpt_source *src, struct node *root, struct target *t, uint32_t dir, const char *name,
                bool is_dir, pid_t pid)
{
    struct node *n = t->node;
    char step[CKPT_NAME_MAX + 1];
    uint32_t node;
    NODE_LOADING(src, n); /* no copy is made meanwhile */
    ckpt_source_step_name(src, n, step);
    if (ckpt_stage_exists(root->stages, step))
        return 1;
    int r = find(src, t, dir, name, is_dir, &node);
    if (r < 0)
        return r;
    CKPT_GUARD(&src->lock);
    if (atomic_load(&n->stale) || !n->named) /* a copy has come and gone meanwhile */
        return -ESTALE;
    r = begin(src, n, t->tree->count);
    if (r < 0)
        return r;
    struct removal *now = n->removal;
    ckpt_set_bit(now->what.nodes, node);
    ckpt_set_bit(now->what.dirs, dir);
    now->what.time_ns = ckpt_realtime_ns();
    now->changed_ns = ckpt_monotonic_ns();
    now->again_ns = 0;
    now->pid = pid;
    return 0;
}

int ckpt_source_remove(struct ckpt_source *src, uint64_t parent, const char *name, bool is_dir,
                       const struct ckpt_caller *who, struct ckpt_err *err)
{
    struct target t;
    uint32_t dir;
    if (parent & CKPT_STAGED)
        return 1;
    int r = ckpt_source_target(src, parent, &t, err);
    if (r < 0)
        return r;
    struct node *root = ckpt_source_root_of(src, t.node);
    if (!root)
        r = 1;
    else if (atomic_load(&t.node->stale))
        r = -ESTALE;
    else
        r = ckpt_source_enter(src, &t, &dir, err);
    if (r == 0)
        r = note(src, root, &t, dir, name, is_dir, who->pid);
    ckpt_source_done(src, &t);
    return r < 0 ? ckpt_fail(err, -r, "%s: %s", name, strerror(-r)) : r;
}

/* It is in the copy now. */
static void end(struct ckpt_source *src, struct node *n, struct removal *r)
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
        end(src, n, removed);
    }
    CKPT_GUARD(&src->lock);
    removal_unref(removed);
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
            if (!r || n->parent != root->id ||
                (seconds >= 0 && (r->again_ns > now || now - r->changed_ns < (int64_t)(seconds * 1e9))))
                continue;
            r->again_ns = now + AGAIN_NS; /* if it fails; else there is nothing more to do */
            n->uses++;
            return n;
        }
    return NULL;
}

static void forget(struct ckpt_source *src, struct node *n)
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
            forget(src, n);
        ckpt_source_done(src, &(struct target){.node = n});
    }
}
