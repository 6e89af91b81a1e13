/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Committed steps and their staged copies: the file of a copy that stands for a committed one, and what an id stands
 * for when a commit of this mount has put another manifest in the place of its step.
 *
 * A copy belongs to one manifest, by its id. A step of the same name that was made otherwise, be it by another mount,
 * is another step.
 */
#include "core/base/util.h"
#include "core/format/native.h"
#include "core/source/source.h"

#include <stdio.h>

#define TRIES 16 /* of a call, each after a commit that came between */

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

/* Each name on the way from the top of a tree to a node; a nonzero result of visit ends it and is returned. */
static int each_name(const struct ckpt_tree *tree, uint32_t node, int (*visit)(void *arg, const char *name), void *arg)
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

struct walk {
    struct ckpt_stages *stages;
    struct ckpt_stage_attr at;
};

static int walk_on(void *arg, const char *name)
{
    struct walk *w = arg;
    uint64_t parent = w->at.id;
    int r = ckpt_stage_lookup(w->stages, parent, name, &w->at);
    ckpt_stage_forget(w->stages, parent, 1);
    return r;
}

int ckpt_source_find_copy(struct ckpt_source *src, struct node *root, struct target *t, uint64_t *ret)
{
    struct ckpt_tree *tree;
    struct walk w = {.stages = root->stages};
    char name[CKPT_NAME_MAX + 1];
    ckpt_source_step_name(src, t->node, name);
    if (!ckpt_stage_exists(root->stages, name))
        return 0;
    int r = ckpt_source_tree(src, t->node, &tree, NULL); /* its id is wanted, also of its top */
    if (r < 0)
        return 0;
    r = ckpt_stage_ref_copy(root->stages, name, ckpt_store_tree_id(tree), &w.at) < 0 ? 0 : 1;
    if (r == 1 && t->tree) {
        int walked = each_name(tree, t->file.node, walk_on, &w);
        r = walked == 0 ? 1 : walked == -ENOTDIR ? -ENOENT : walked;
    }
    ckpt_tree_unref(tree);
    if (r == 1)
        *ret = w.at.id;
    return r;
}

int ckpt_source_copied(struct ckpt_source *src, struct target *t, uint64_t *ret)
{
    struct node *root = ckpt_source_root_of(src, t->node);
    return root ? ckpt_source_find_copy(src, root, t, ret) : 0;
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

/* --- what an id stands for now --- */

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
    struct ckpt_tree *tree = NULL;
    int r = ckpt_source_target(src, id, &t, NULL);
    if (r < 0)
        return r;
    bool view = t.tree && t.file.view != CKPT_VIEW_LISTED;
    struct node *root = !view && atomic_load(&t.node->stale) ? ckpt_source_root_of(src, t.node) : NULL;
    r = root ? ckpt_source_tree(src, t.node, &tree, NULL) : -ESTALE;
    if (r == 0) {
        snprintf(manifest, CKPT_MANIFEST_ID, "%s", ckpt_store_tree_id(tree));
        r = t.tree ? each_name(tree, t.file.node, add_name, path) : 0;
        ckpt_buf_addc(path, 0);
        r = r < 0 ? r : ckpt_buf_error(path);
        ckpt_tree_unref(tree);
    }
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
    for (unsigned i = 0; known && i < TRIES; i++)
        if ((r = walk_now(src, root, manifest, (char *)path.data, ret)) != -ESTALE)
            break;
    ckpt_buf_clear(&path);
    ckpt_source_done(src, &(struct target){.node = root});
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

void ckpt_source_own_id(struct ckpt_source *src, uint64_t parent, const char *name, struct ckpt_attr *ret)
{
    uint64_t id = 0;
    struct target t;
    if (ret->type != CKPT_DIR)
        return;
    if (parent & CKPT_STAGED) {
        struct ckpt_stages *set = ckpt_source_set(src, parent);
        if (!set || !ckpt_stage_ended(set, parent) || ckpt_stage_alias(set, parent, name, &id) < 0)
            return;
    } else {
        bool below_itself = ret->id >= NODE_INSIDE && !(ret->id & CKPT_STAGED) && parent >= NODE_INSIDE &&
                            ret->id >> 40 == parent >> 40;
        if (below_itself || ckpt_source_target(src, parent, &t, NULL) < 0)
            return;
        if (t.node->kind == NODE_TREE && (ret->id & CKPT_STAGED || atomic_load(&t.node->stale)))
            id = committed_id(src, &t, name, ret);
        ckpt_source_done(src, &t);
    }
    if (!id)
        return;
    ckpt_forget(src, ret->id, 1);
    ret->id = id;
    ret->forever = false;
    ret->fleeting = true;
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
