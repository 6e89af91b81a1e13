/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Calls of ids whose step a commit of this mount has replaced: what an id stands for now, and the call made again there
 * (docs/architecture.md, "Ids after a commit").
 */
#include "core/base/util.h"
#include "core/format/native.h"
#include "core/source/kind.h"

#include <stdio.h>

#define TRIES 16 /* of a call, each after a commit that came between */

/* The root of staged steps, kept; NULL. */
static struct node *root_of_set(struct ckpt_source *src, uint64_t id)
{
    CKPT_GUARD(&src->lock);
    unsigned number = source_set_number(id);
    struct node *root = number < src->set_count ? src->sets[number] : NULL;
    if (root)
        root->uses++;
    return root;
}

static int add_name(void *arg, const char *name)
{
    struct ckpt_buf *path = arg;
    if (path->len)
        ckpt_buf_addc(path, '/');
    ckpt_buf_adds(path, name);
    return ckpt_buf_error(path);
}

/* The manifest of a committed step, and the path in it. */
static int committed_path(struct ckpt_source *src, struct target *t, char manifest[CKPT_MANIFEST_ID],
                          struct ckpt_buf *path)
{
    struct ckpt_tree *tree;
    int r = ckpt_source_tree(src, t->node, &tree, NULL);
    if (r < 0)
        return r;
    snprintf(manifest, CKPT_MANIFEST_ID, "%s", ckpt_store_tree_id(tree));
    if (t->tree)
        r = ckpt_source_each_name(tree, t->file.node, add_name, path);
    ckpt_tree_unref(tree);
    ckpt_buf_addc(path, 0);
    return r < 0 ? r : ckpt_buf_error(path);
}

/* Of something in a step that this mount has replaced by a commit: the manifest of the step as it was, and the path.
 * *ret_root is kept. */
static int replaced_path(struct ckpt_source *src, uint64_t id, struct node **ret_root, char manifest[CKPT_MANIFEST_ID],
                         struct ckpt_buf *path)
{
    if (id & CKPT_STAGED) {
        *ret_root = root_of_set(src, id);
        return *ret_root ? ckpt_stage_became((*ret_root)->stages, id, manifest, path) : -ESTALE;
    }
    struct target t;
    int r = ckpt_source_target(src, id, &t, NULL);
    if (r < 0)
        return r;
    bool view = t.tree && t.file.view != CKPT_VIEW_LISTED, replaced = !view && atomic_load(&t.node->stale);
    struct node *root = replaced ? ckpt_source_root_of(src, t.node) : NULL;
    r = root ? committed_path(src, &t, manifest, path) : -ESTALE;
    if (r == 0) {
        CKPT_GUARD(&src->lock);
        root->uses++;
        *ret_root = root;
    }
    ckpt_source_done(src, &t);
    return r;
}

/* Is it the step of that manifest, or the copy of it? */
static bool is_step_of(struct ckpt_source *src, struct node *root, uint64_t id, const char *manifest)
{
    struct target t;
    struct ckpt_tree *tree;
    if (id & CKPT_STAGED)
        return ckpt_stage_is_copy(root->stages, id, manifest);
    if (ckpt_source_target(src, id, &t, NULL) < 0)
        return false;
    bool same = ckpt_source_root_of(src, t.node) == root && ckpt_source_tree(src, t.node, &tree, NULL) == 0;
    if (same) {
        same = !strcmp(ckpt_store_tree_id(tree), manifest);
        ckpt_tree_unref(tree);
    }
    ckpt_source_done(src, &t);
    return same;
}

/* The path from the step on, of which a commit may be made meanwhile: -ESTALE. */
static int walk_now(struct ckpt_source *src, struct node *root, const char *manifest, const char *path,
                    struct ckpt_attr *ret)
{
    char name[CKPT_STEP_NAME + 1], now[CKPT_MANIFEST_ID], part[CKPT_NAME_MAX + 1];
    if (ckpt_stage_successor(root->stages, manifest, name, now) < 0)
        return -ENOENT;
    int r = ckpt_source_lookup(src, root->id, name, ret, NULL);
    if (r == 0 && !is_step_of(src, root, ret->id, now)) {
        ckpt_forget(src, ret->id, 1);
        return -ESTALE;
    }
    while (r == 0 && *path) {
        uint64_t parent = ret->id;
        size_t n = strcspn(path, "/");
        snprintf(part, sizeof part, "%.*s", (int)n, path);
        path += n + (path[n] == '/');
        r = ckpt_source_lookup(src, parent, part, ret, NULL);
        ckpt_forget(src, parent, 1);
    }
    return r;
}

int ckpt_source_again(struct ckpt_source *src, uint64_t id, struct ckpt_attr *ret)
{
    struct ckpt_buf path = CKPT_BUF_INIT;
    struct node *root = NULL;
    char manifest[CKPT_MANIFEST_ID];
    int r = replaced_path(src, id, &root, manifest, &path);
    bool known = r == 0;
    for (unsigned i = 0; known && i < TRIES; i++) {
        r = walk_now(src, root, manifest, (char *)path.data, ret);
        if (r != -ESTALE)
            break;
    }
    ckpt_buf_clear(&path);
    if (root)
        ckpt_node_release(src, root);
    return r == 0 ? 0 : -ESTALE;
}

/* The directory of that name which the committed step itself has; CKPT_NO_NODE. */
static uint32_t own_directory(const struct target *t, const struct ckpt_tree *tree, const char *name)
{
    uint32_t node = ckpt_tree_lookup(tree, t->tree ? t->file.node : 0, name, strlen(name));
    return node != CKPT_NO_NODE && tree->nodes[node].kind == CKPT_NODE_DIR ? node : CKPT_NO_NODE;
}

/* Of a directory of a committed step: 0, or the id that stands for its subdirectory, with a reference. */
static uint64_t committed_id(struct ckpt_source *src, struct target *t, const char *name, struct ckpt_attr *ret)
{
    struct node *n = t->node;
    struct ckpt_tree *tree;
    uint64_t copy, id = 0;
    if (!ckpt_source_root_of(src, n) || ckpt_source_tree(src, n, &tree, NULL) < 0)
        return 0;
    uint32_t node = own_directory(t, tree, name);
    ckpt_tree_unref(tree);
    if (node != CKPT_NO_NODE) {
        CKPT_GUARD(&src->lock);
        n->inner++;
        ret->ino = ckpt_source_inner_ino(n, node, CKPT_VIEW_LISTED);
        return (uint64_t)n->serial << 40 | (uint64_t)CKPT_VIEW_LISTED << 32 | node;
    }
    if (ckpt_source_copied(src, t, &copy) == 1) {
        if (ckpt_stage_alias(ckpt_source_set(src, copy), copy, name, &id) < 0)
            id = 0;
        ckpt_forget(src, copy, 1);
    }
    return id;
}

/* Both are in the same checkpoint. */
static bool is_same_tree(uint64_t a, uint64_t b)
{
    bool inside = a >= NODE_INSIDE && b >= NODE_INSIDE;
    return inside && !(a & CKPT_STAGED) && a >> 40 == b >> 40;
}

/* Below a staged directory whose step has ended. 0: the id that was found will do. */
static uint64_t id_below_staged(struct ckpt_source *src, uint64_t parent, const char *name)
{
    uint64_t id;
    struct ckpt_stages *set = ckpt_source_set(src, parent);
    if (!set || !ckpt_stage_ended(set, parent))
        return 0;
    return ckpt_stage_alias(set, parent, name, &id) < 0 ? 0 : id;
}

/* Below a directory of a committed step that has a copy, or was replaced. 0: the id that was found will do. */
static uint64_t id_below_committed(struct ckpt_source *src, uint64_t parent, const char *name, struct ckpt_attr *ret)
{
    uint64_t id = 0;
    struct target t;
    if (is_same_tree(ret->id, parent) || ckpt_source_target(src, parent, &t, NULL) < 0)
        return 0;
    bool is_elsewhere = ret->id & CKPT_STAGED || atomic_load(&t.node->stale);
    if (t.node->kind == NODE_TREE && is_elsewhere)
        id = committed_id(src, &t, name, ret);
    ckpt_source_done(src, &t);
    return id;
}

void ckpt_source_own_id(struct ckpt_source *src, uint64_t parent, const char *name, struct ckpt_attr *ret)
{
    if (ret->type != CKPT_DIR)
        return;
    uint64_t id = parent & CKPT_STAGED ? id_below_staged(src, parent, name)
                                       : id_below_committed(src, parent, name, ret);
    if (!id)
        return;
    ckpt_forget(src, ret->id, 1);
    ret->id = id;
    ret->immutable = false;
    ret->uncached = true;
}

int ckpt_source_retry(struct ckpt_source *src, uint64_t id, uint64_t other, source_at_fn *call, void *arg,
                      struct ckpt_err *err)
{
    struct ckpt_attr now, other_now;
    int r = call(src, id, other, arg, err);
    for (unsigned i = 0; r == -ESTALE && i < TRIES; i++) {
        bool moved = ckpt_source_again(src, id, &now) == 0,
             other_moved = ckpt_source_again(src, other, &other_now) == 0;
        if (!moved && !other_moved)
            return r;
        if (err)
            *err = (struct ckpt_err){0};
        r = call(src, moved ? now.id : id, other_moved ? other_now.id : other, arg, err);
        if (moved)
            ckpt_forget(src, now.id, 1);
        if (other_moved)
            ckpt_forget(src, other_now.id, 1);
    }
    return r;
}
