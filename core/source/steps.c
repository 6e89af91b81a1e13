/* SPDX-License-Identifier: Apache-2.0 */
/* What happens at the top of a native root: steps are made, removed and renamed. */
#include "core/base/util.h"
#include "core/format/native.h"
#include "core/source/change.h"
#include "core/source/removal.h"

#include <linux/fs.h>
#include <stdio.h>

#define TRIES 16 /* where others open a step for changes, or commit it, meanwhile */

enum step_kind { STEP_NONE, STEP_STORED, STEP_FOREIGN };

/* What the root has under a name, staged steps aside. */
static int kind_of(struct ckpt_source *src, struct node *root, const char *name, enum step_kind *ret,
                   struct ckpt_err *err)
{
    struct ckpt_listing *l;
    ckpt_source_root_changed(root, NULL);
    int r = ckpt_source_listing(src, root, &l, err);
    if (r < 0)
        return r;
    const struct ckpt_entry *e = ckpt_listing_find(l, name);
    if (!e || (e->kind == CKPT_ENTRY_HIDDEN && !*e->hidden))
        *ret = STEP_NONE;
    else
        *ret = e->stored ? STEP_STORED : STEP_FOREIGN;
    ckpt_listing_unref(l);
    return 0;
}

static bool is_reserved(const char *name)
{
    static const char *const names[] = {"latest", "best", ".ckptfs", ".files", CKPT_STORE_DIR};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (!strcmp(names[i], name))
            return true;
    return false;
}

int ckpt_source_new_step(struct ckpt_source *src, struct place *p, const char *name, uint32_t mode,
                         const struct ckpt_caller *who, struct ckpt_stage_attr *ret, struct ckpt_err *err)
{
    enum step_kind kind;
    if (is_reserved(name))
        return ckpt_fail(err, EEXIST, "%s is a name that the mount has given", name);
    int r = kind_of(src, p->top.node, name, &kind, err);
    if (r == 0 && kind != STEP_NONE)
        r = ckpt_fail(err, EEXIST, "%s is there already", name);
    return r < 0 ? r : ckpt_stage_new(p->stages, name, mode, who, ret, err);
}

/* The node of a committed step, which is held (see NODE_LOADING), so that it gets no staged copy meanwhile. -ESTALE: it
 * has one already, or has been replaced. */
static int hold_step(struct ckpt_source *src, struct node *root, const char *name, struct target *ret,
                     struct ckpt_err *err)
{
    struct ckpt_attr attr;
    int r = ckpt_source_lookup(src, root->id, name, &attr, err);
    if (r < 0)
        return r;
    r = attr.id & CKPT_STAGED ? -ESTALE : ckpt_source_target(src, attr.id, ret, err);
    ckpt_forget(src, attr.id, 1);
    if (r < 0)
        return r;
    ckpt_node_load(src, ret->node);
    if (ret->node->kind == NODE_TREE && !atomic_load(&ret->node->stale) && !ckpt_stage_exists(root->stages, name))
        return 0;
    ckpt_node_loaded(&(struct loading){src, ret->node});
    ckpt_source_done(src, ret);
    return -ESTALE;
}

static void release_step(struct ckpt_source *src, struct target *t)
{
    ckpt_node_loaded(&(struct loading){src, t->node});
    ckpt_source_done(src, t);
}

/* A committed step that is empty, or of which all was removed, goes with one rmdir. */
static int remove_stored(struct ckpt_source *src, struct place *p, const char *name, struct ckpt_err *err)
{
    struct node *root = p->top.node;
    struct ckpt_tree *tree = NULL;
    struct ckpt_attr attr;
    struct target t;
    int r = ckpt_source_lookup(src, root->id, name, &attr, err);
    if (r < 0)
        return r;
    r = attr.id & CKPT_STAGED ? -ESTALE : ckpt_source_target(src, attr.id, &t, err);
    if (r == 0) {
        r = t.node->kind == NODE_TREE ? ckpt_source_tree(src, t.node, &tree, err) : -ENOTDIR;
        ckpt_source_done(src, &t);
    }
    ckpt_forget(src, attr.id, 1);
    bool unreadable = r == -EUCLEAN || r == -EBADMSG || r == -EOPNOTSUPP; /* it can still be removed */
    if (r < 0 && !unreadable)
        return r;
    r = hold_step(src, root, name, &t, err);
    if (r == 0) {
        if (unreadable)
            r = ckpt_store_delete(root->store, name, NULL, err);
        else if (ckpt_source_is_emptied(src, t.node, tree, 0))
            r = ckpt_store_delete(root->store, name, ckpt_store_tree_id(tree), err);
        else
            r = ckpt_fail(err, ENOTEMPTY, "step %s is not empty", name);
        release_step(src, &t);
    }
    ckpt_tree_unref(tree);
    return r;
}

int ckpt_source_remove_step(struct ckpt_source *src, struct place *p, const char *name, struct ckpt_err *err)
{
    enum step_kind kind;
    if (ckpt_stage_exists(p->stages, name))
        return ckpt_stage_remove(p->stages, name, err);
    int r = kind_of(src, p->top.node, name, &kind, err);
    if (r == 0 && kind == STEP_NONE)
        return ckpt_fail(err, ENOENT, "there is no step %s", name);
    if (r == 0 && kind == STEP_FOREIGN)
        return ckpt_fail(err, EROFS, "%s is not a step of the store: remove it in the source", name);
    if (r == 0)
        r = remove_stored(src, p, name, err);
    if (r == 0)
        ckpt_stages_tidy(p->stages);
    ckpt_source_root_changed(p->top.node, r == 0 ? name : NULL);
    return r;
}

/* A step of which something was removed is a changed one, whatever becomes of its name. */
static int copy_if_removing(struct ckpt_source *src, struct node *root, const char *name, struct ckpt_err *err)
{
    struct ckpt_attr attr;
    struct target t;
    if (ckpt_stage_exists(root->stages, name) || ckpt_lookup(src, root->id, name, &attr, NULL) < 0)
        return 0;
    int r = attr.id & CKPT_STAGED ? -ESTALE : ckpt_source_target(src, attr.id, &t, err);
    if (r == 0) {
        if (t.node->kind == NODE_TREE && atomic_load(&t.node->removing))
            r = ckpt_source_copy_step(src, root, t.node, err);
        ckpt_source_done(src, &t);
    }
    ckpt_forget(src, attr.id, 1);
    return r;
}

/* A committed step that nobody has opened for changes. */
static int rename_stored(struct ckpt_source *src, struct node *root, const char *from, const char *to, bool replace,
                         struct ckpt_err *err)
{
    struct target t;
    int r = hold_step(src, root, from, &t, err);
    if (r < 0)
        return r;
    r = ckpt_store_rename(root->store, from, to, replace, err);
    if (r == 0) {
        ckpt_node_rename_step(src, root, from, to);
        ckpt_stage_renamed(root->stages, from, to);
    }
    release_step(src, &t);
    return r;
}

static int rename_once(struct ckpt_source *src, struct place *p, const char *from, const char *to, unsigned flags,
                       const struct ckpt_caller *who, struct ckpt_err *err)
{
    struct node *root = p->top.node;
    enum step_kind kind, there;
    double number;
    if (flags & RENAME_EXCHANGE)
        return ckpt_fail(err, EINVAL, "steps cannot be exchanged");
    if (is_reserved(to))
        return ckpt_fail(err, EEXIST, "%s is a name that the mount has given", to);
    int r = kind_of(src, root, from, &kind, err);
    if (r == 0)
        r = kind_of(src, root, to, &there, err);
    if (r < 0)
        return r;
    r = copy_if_removing(src, root, from, err);
    if (r < 0)
        return r;
    bool replace = src->opt.overwrite && !(flags & RENAME_NOREPLACE);
    if (there == STEP_FOREIGN)
        return ckpt_fail(err, EEXIST, "%s is there already", to);
    if (there == STEP_STORED && !replace)
        return ckpt_fail(err, EEXIST, "%s is there already: -o overwrite replaces it", to);
    bool staged = ckpt_stage_exists(p->stages, from);
    if (staged && (kind != STEP_STORED || ckpt_step_name(to, &number))) {
        r = ckpt_stage_rename(p->stages, from, to, who, err);
        ckpt_source_root_changed(root, from);
        ckpt_source_root_changed(root, to);
        return r;
    }
    if (kind == STEP_NONE)
        return ckpt_fail(err, ENOENT, "there is no step %s", from);
    if (kind == STEP_FOREIGN)
        return ckpt_fail(err, EROFS, "%s is not a step of the store", from);
    if (!ckpt_step_name(to, &number))
        return ckpt_fail(err, EPERM, "a committed step needs a step's name: " CKPT_STEP_RULE);
    r = rename_stored(src, root, from, to, replace, err);
    ckpt_source_root_changed(root, NULL);
    return r;
}

int ckpt_source_rename_step(struct ckpt_source *src, struct place *p, const char *from, const char *to, unsigned flags,
                            const struct ckpt_caller *who, struct ckpt_err *err)
{
    int r = rename_once(src, p, from, to, flags, who, err);
    for (unsigned i = 0; r == -ESTALE && i < TRIES; i++)
        r = rename_once(src, p, from, to, flags, who, err);
    return r;
}
