/* SPDX-License-Identifier: Apache-2.0 */
/* Attributes: of nodes, of what is in a checkpoint, of staged files. */
#include "core/base/util.h"
#include "core/source/source.h"

uint64_t ckpt_source_inner_ino(const struct node *n, uint32_t node, enum ckpt_view view)
{
    uint64_t ino = ckpt_mix(n->ino * 0x9e3779b97f4a7c15 + ((uint64_t)view << 32 | node)) >> 1;
    return ino < 16 ? ino + 16 : ino;
}

/* A file that is a checkpoint is shown as a directory: who may read it may enter. */
uint32_t ckpt_source_shown_mode(const struct node *n)
{
    uint32_t mode = n->st.mode & (n->writable ? 07777 : 0555);
    return n->kind == NODE_TREE && n->st.type == CKPT_FT_FILE ? mode | (mode & 0444) >> 2 : mode;
}

static void common_attr(const struct node *n, uint64_t id, struct ckpt_attr *ret)
{
    *ret = (struct ckpt_attr){
        .id = id, .nlink = CKPT_NLINK_UNKNOWN, .mtime_ns = n->st.mtime_ns, .uid = n->st.uid, .gid = n->st.gid};
    ret->mode = ckpt_source_shown_mode(n);
    ret->atime_ns = ret->ctime_ns = ret->mtime_ns;
}

void ckpt_source_node_attr(const struct node *n, struct ckpt_attr *ret)
{
    common_attr(n, n->id, ret);
    ret->ino = n->ino;
    switch (n->kind) {
    case NODE_FILE:
        ret->type = CKPT_FILE;
        ret->size = n->st.size;
        ret->stored = n->st.stored;
        break;
    case NODE_LINK:
        ret->type = CKPT_LINK;
        ret->fleeting = n->writable; /* a commit may change it at any time */
        ret->size = n->content_len;
        break;
    case NODE_CONTROL:
        ret->type = CKPT_FILE;
        ret->size = n->content_len;
        ret->snapshot = true;
        break;
    default:
        ret->type = CKPT_DIR;
        ret->fleeting = n->kind == NODE_TREE && n->writable;
    }
}

int ckpt_source_rights(const struct target *t, uint32_t node, bool whole, struct ckpt_rights *ret, struct ckpt_err *err)
{
    const struct node *n = t->node;
    const struct ckpt_tree_ops *ops = t->tree->ops;
    struct ckpt_rights top = ckpt_rights_of(n->st.mode, n->st.uid, n->st.gid, n->st.type == CKPT_FT_DIR);
    int r = ops->rights ? ops->rights(t->tree, node, whole, ret, err) : 1;
    if (r == 1)
        *ret = top;
    else if (r == 0 && !node) /* its own directory is told by the node */
        *ret = ckpt_rights_join(&top, ret);
    return r < 0 ? r : 0;
}

static void set_rights(const struct ckpt_rights *r, bool dir, struct ckpt_attr *ret)
{
    ret->mode = r->mode | (dir ? r->mode >> 2 : 0);
    ret->uid = r->uid;
    ret->gid = r->gid;
}

/* A view of a directory gives no more rights than all that it joins, whatever it is made of them. What the checkpoint
 * keeps of a leaf or directory is its own; where it keeps nothing, it is what its files have in the source. */
static int own_attr(const struct target *t, struct ckpt_attr *ret, struct ckpt_err *err)
{
    struct ckpt_leaf_attrs own;
    struct ckpt_rights rights;
    const struct ckpt_tree_ops *ops = t->tree->ops;
    bool dir = t->tree->nodes[t->file.node].kind == CKPT_NODE_DIR, view = t->file.view != CKPT_VIEW_LISTED;
    if ((dir && view) || (!ops->attrs && ops->rights)) {
        int r = ckpt_source_rights(t, t->file.node, view, &rights, err);
        if (r == 0)
            set_rights(&rights, dir && !view, ret);
        return r;
    }
    if (!ops->attrs)
        return 0;
    int r = ops->attrs(t->tree, t->file.node, &own, err);
    if (r < 0)
        return r;
    ret->mode = own.mode & (t->node->writable ? 07777 : 0555);
    ret->uid = own.uid;
    ret->gid = own.gid;
    ret->mtime_ns = ret->atime_ns = ret->ctime_ns = own.mtime_ns;
    return 0;
}

int ckpt_source_inner_attr(struct ckpt_source *src, const struct target *t, uint64_t id, struct ckpt_attr *ret,
                           struct ckpt_err *err)
{
    const struct node *n = t->node;
    common_attr(n, id, ret);
    int r = own_attr(t, ret, err);
    if (r < 0)
        return r;
    ret->forever = true;
    ret->view = t->file.view != CKPT_VIEW_LISTED;
    ret->ino = t->slice ? t->slice->ino + (t->file.view == CKPT_VIEW_SLICE)
                        : ckpt_source_inner_ino(n, t->file.node, t->file.view);
    if (ckpt_viewed_is_dir(&t->file)) {
        ret->type = CKPT_DIR;
        ckpt_source_removal_times(src, t->node, t->file.node, ret);
        return 0;
    }
    ret->type = CKPT_FILE;
    ret->mode &= n->writable && !ret->view ? 07777 : 0444;
    /* A leaf that cannot be read at all is listed, but not found by name: so opening it gives the error. */
    return ckpt_view_size(&src->views, &t->file, &ret->size, &ret->stored, err);
}

static int staged_attr(struct ckpt_source *src, uint64_t id, struct ckpt_attr *ret, struct ckpt_err *err)
{
    struct ckpt_stages *set = ckpt_source_set(src, id);
    struct ckpt_stage_attr attr;
    int r = set ? ckpt_stage_getattr(set, id, &attr) : -ESTALE;
    if (r < 0)
        return ckpt_fail(err, -r, "the step is not staged any more");
    ckpt_source_attr_of_stage(&attr, ret);
    return 0;
}

/* Where a committed step has a staged copy: mode, owner and times are the copy's. The bytes, and so the size, stay what
 * readers have open. */
static void copied_attr(struct ckpt_source *src, struct target *t, struct ckpt_attr *ret)
{
    struct ckpt_attr copy;
    uint64_t id;
    if (t->node->kind != NODE_TREE || atomic_load(&t->node->stale) || ckpt_source_copied(src, t, &id) != 1)
        return;
    if (staged_attr(src, id, &copy, NULL) == 0) {
        ret->mode = copy.mode;
        ret->uid = copy.uid;
        ret->gid = copy.gid;
        ret->mtime_ns = copy.mtime_ns;
        ret->atime_ns = copy.atime_ns;
        ret->ctime_ns = copy.ctime_ns;
        ret->forever = false;
        ret->staged = true;
    }
    ckpt_forget(src, id, 1);
}

static int getattr_at(struct ckpt_source *src, uint64_t id, uint64_t none, void *arg, struct ckpt_err *err)
{
    struct ckpt_attr *ret = arg;
    struct target t;
    if (id & CKPT_STAGED)
        return staged_attr(src, id, ret, err);
    int r = ckpt_source_target(src, id, &t, err);
    if (r < 0)
        return r;
    if (t.tree) {
        r = ckpt_source_inner_attr(src, &t, id, ret, err);
        if (r == 0 && t.file.view == CKPT_VIEW_LISTED)
            copied_attr(src, &t, ret);
    } else {
        if ((t.node->kind == NODE_DIR || t.node->kind == NODE_FILE || t.node->kind == NODE_FACE) && !t.node->files) {
            struct ckpt_stat st;
            if (ckpt_backend_stat(src->backend, t.node->path, &st) == 0) {
                pthread_mutex_lock(&src->lock);
                if (st.ino == t.node->st.ino && st.dev == t.node->st.dev)
                    t.node->st = st;
                pthread_mutex_unlock(&src->lock);
            }
        }
        pthread_mutex_lock(&src->lock);
        ckpt_source_node_attr(t.node, ret);
        pthread_mutex_unlock(&src->lock);
        ckpt_source_removal_times(src, t.node, 0, ret);
        copied_attr(src, &t, ret);
    }
    ckpt_source_done(src, &t);
    return r;
}

int ckpt_getattr(struct ckpt_source *src, uint64_t id, struct ckpt_attr *ret, struct ckpt_err *err)
{
    atomic_fetch_add_explicit(&src->getattrs, 1, memory_order_relaxed);
    int r = ckpt_source_retry(src, id, 0, getattr_at, ret, err);
    if (r == 0 && ret->id != id) {
        ret->forever = false; /* it may be somewhere else at the next look */
        ret->id = id;
    }
    return r;
}
