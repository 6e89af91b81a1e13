/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A committed step that is being removed, name by name. rm -r of a large step should not copy it first, and must work on a disk that is full:
 * so what is removed is only noted, here in memory, until the step's own directory goes, which deletes the step at once. It is as if it had not been, should
 * the process end before. Any other change of the step, or a while without another removal, makes the staged copy, without what was removed.
 */
#include "core/base/util.h"
#include "core/source/source.h"

struct removal {
    struct ckpt_stage_removed what; /* a tree's nodes have the numbers of its manifest's */
    uint32_t count;       /* of them */
    pid_t pid;            /* who did the last */
    int64_t changed_ns;   /* CLOCK_MONOTONIC */
    bool failed;          /* no copy could be made since */
};

static void removal_free(struct removal *r)
{
    free(r->what.nodes);
    free(r->what.dirs);
    free(r);
}

bool source_is_removed(struct ckpt_source *src, struct node *n, uint32_t node)
{
    if (!atomic_load(&n->removing))
        return false;
    CKPT_GUARD(&src->lock);
    const struct removal *r = n->removal;
    return r && node < r->count && ckpt_has_bit(r->what.nodes, node);
}

void source_removal_time(struct ckpt_source *src, struct node *n, uint32_t dir, int64_t *mtime_ns)
{
    if (!atomic_load(&n->removing))
        return;
    CKPT_GUARD(&src->lock);
    const struct removal *r = n->removal;
    if (r && dir < r->count && ckpt_has_bit(r->what.dirs, dir))
        *mtime_ns = r->what.time_ns;
}

/* The node stays known meanwhile. Under the source's lock. */
static int begin(struct ckpt_source *src, struct node *n, uint32_t count)
{
    if (n->removal)
        return 0;
    struct removal *r = calloc(1, sizeof *r);
    if (!r)
        return -ENOMEM;
    r->what.nodes = calloc(count / 64 + 1, sizeof *r->what.nodes);
    r->what.dirs = calloc(count / 64 + 1, sizeof *r->what.dirs);
    if (!r->what.nodes || !r->what.dirs) {
        removal_free(r);
        return -ENOMEM;
    }
    r->count = count;
    n->removal = r;
    n->uses++;
    src->removals++;
    atomic_store(&n->removing, true);
    return 0;
}

void source_forget_removal(struct ckpt_source *src, struct node *n)
{
    if (!n->removal)
        return;
    removal_free(n->removal);
    n->removal = NULL;
    n->uses--;
    src->removals--;
    atomic_store(&n->removing, false);
}

static int find(struct ckpt_source *src, struct target *t, uint32_t dir, const char *name, bool is_dir, uint32_t *ret)
{
    const struct ckpt_tree *tree = t->tree;
    uint32_t node = ckpt_tree_lookup(tree, dir, name, strlen(name));
    if (node == CKPT_NO_NODE || source_is_removed(src, t->node, node))
        return -ENOENT;
    if ((tree->nodes[node].kind == CKPT_NODE_DIR) != is_dir)
        return is_dir ? -ENOTDIR : -EISDIR;
    for (uint32_t child = is_dir ? tree->nodes[node].first : CKPT_NO_NODE; child != CKPT_NO_NODE; child = tree->nodes[child].next)
        if (!source_is_removed(src, t->node, child))
            return -ENOTEMPTY;
    *ret = node;
    return 0;
}

int source_remove(struct ckpt_source *src, uint64_t parent, const char *name, bool is_dir, const struct ckpt_caller *who, struct ckpt_err *err)
{
    struct target t;
    uint32_t dir, node;
    if (parent & CKPT_STAGED)
        return 1;
    int r = source_target(src, parent, &t, err);
    if (r < 0)
        return r;
    struct node *root = source_root_of(src, t.node);
    r = root && !t.node->stale ? source_enter(src, &t, &dir, err) : 1;
    if (r == 0) {
        CKPT_GUARD(&t.node->load); /* no copy is made meanwhile */
        r = ckpt_stage_exists(root->stages, t.node->name) ? 1 : find(src, &t, dir, name, is_dir, &node);
        if (r == 0) {
            CKPT_GUARD(&src->lock);
            r = begin(src, t.node, t.tree->count);
            if (r == 0) {
                struct removal *now = t.node->removal;
                ckpt_set_bit(now->what.nodes, node);
                ckpt_set_bit(now->what.dirs, dir);
                now->what.time_ns = ckpt_realtime_ns();
                now->changed_ns = ckpt_monotonic_ns();
                now->pid = who->pid;
                now->failed = false;
            }
        }
    }
    source_done(src, &t);
    return r < 0 ? ckpt_fail(err, -r, "%s: %s", name, strerror(-r)) : r;
}

int source_copy_step(struct ckpt_source *src, struct node *root, struct node *n, struct ckpt_err *err)
{
    CKPT_GUARD(&n->load);
    pthread_mutex_lock(&src->lock);
    const struct removal *removed = n->removal; /* only who holds `load` changes it */
    struct ckpt_caller who = {.pid = removed ? removed->pid : 0};
    pthread_mutex_unlock(&src->lock);
    int r = ckpt_stage_copy(root->stages, n->name, removed ? &removed->what : NULL, err);
    if (r == 0 && removed) {
        ckpt_stage_touched(root->stages, n->name, &who);
        CKPT_GUARD(&src->lock);
        source_forget_removal(src, n);
    }
    return r;
}

/* A step of a root of which something is removed, the last for at least so long ago; kept. NULL: none. */
static struct node *next_removal(struct ckpt_source *src, struct node *root, double seconds)
{
    if (!atomic_load(&src->removals)) /* looked for several times a second, and rare */
        return NULL;
    CKPT_GUARD(&src->lock);
    for (unsigned i = 0; i < NODE_BUCKETS; i++)
        for (struct node *n = src->nodes.by_serial[i]; n; n = n->next_serial)
            if (n->removal && n->parent == root->id && !n->stale && !n->removal->failed &&
                ckpt_monotonic_ns() - n->removal->changed_ns >= (int64_t)(seconds * 1e9)) {
                n->removal->failed = true; /* until it has not */
                n->uses++;
                return n;
            }
    return NULL;
}

void source_settle_removals(struct ckpt_source *src, struct node *root, double seconds)
{
    for (struct node *n; (n = next_removal(src, root, seconds));) {
        struct ckpt_err err = {0};
        if (source_copy_step(src, root, n, &err) < 0)
            ckpt_log(CKPT_LOG_WARN, "%s/%s: what was removed of it is not gone yet: %s", src->path, n->path, err.text);
        source_done(src, &(struct target){.node = n});
    }
}
