/* SPDX-License-Identifier: Apache-2.0 */
/* Attributes: what several kinds share. */
#include "core/base/util.h"
#include "core/source/source.h"

/* A file that is a checkpoint is shown as a directory: who may read it may enter. */
uint32_t ckpt_source_shown_mode(const struct node *n)
{
    uint32_t mode = n->st.mode & (n->writable ? 07777 : 0555);
    return n->kind == NODE_TREE && n->st.type == CKPT_FT_FILE ? mode | (mode & 0444) >> 2 : mode;
}

void ckpt_source_common_attr(const struct node *n, uint64_t id, struct ckpt_attr *ret)
{
    *ret = (struct ckpt_attr){
        .id = id, .nlink = CKPT_NLINK_UNKNOWN, .mtime_ns = n->st.mtime_ns, .uid = n->st.uid, .gid = n->st.gid};
    ret->mode = ckpt_source_shown_mode(n);
    ret->atime_ns = ret->ctime_ns = ret->mtime_ns;
}

void ckpt_source_node_attr(const struct node *n, struct ckpt_attr *ret)
{
    ckpt_source_common_attr(n, n->id, ret);
    ret->ino = n->ino;
    switch (n->kind) {
    case NODE_FILE:
        ret->type = CKPT_FILE;
        ret->size = n->st.size;
        ret->stored = n->st.stored;
        break;
    case NODE_LINK:
        ret->type = CKPT_LINK;
        ret->uncached = n->writable; /* a commit may change it at any time */
        ret->size = n->content_len;
        break;
    case NODE_CONTROL:
        ret->type = CKPT_FILE;
        ret->size = n->content_len;
        ret->snapshot = true;
        break;
    default:
        ret->type = CKPT_DIR;
        ret->uncached = n->kind == NODE_TREE && n->writable;
    }
}

void ckpt_source_attr_of_node(struct ckpt_source *src, const struct node *n, struct ckpt_attr *ret)
{
    CKPT_GUARD(&src->lock);
    ckpt_source_node_attr(n, ret);
}

int ckpt_source_outer_attr(struct ckpt_source *src, struct target *t, struct ckpt_attr *ret, struct ckpt_err *err)
{
    struct ckpt_stat st;
    bool fresh = !t->node->files && ckpt_backend_stat(src->backend, t->node->path, &st) == 0;
    CKPT_GUARD(&src->lock);
    if (fresh && st.ino == t->node->st.ino && st.dev == t->node->st.dev)
        t->node->st = st;
    ckpt_source_node_attr(t->node, ret);
    return 0;
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

void ckpt_source_attr_of_stage(const struct ckpt_stage_attr *a, struct ckpt_attr *ret)
{
    const struct stat *st = &a->st;
    *ret = (struct ckpt_attr){
        .id = a->id,
        .ino = st->st_ino,
        .type = S_ISDIR(st->st_mode) ? CKPT_DIR : CKPT_FILE,
        .size = (uint64_t)st->st_size,
        .stored = (uint64_t)st->st_blocks * 512,
        .mtime_ns = st->st_mtim.tv_sec * 1000000000ll + st->st_mtim.tv_nsec,
        .atime_ns = st->st_atim.tv_sec * 1000000000ll + st->st_atim.tv_nsec,
        .ctime_ns = st->st_ctim.tv_sec * 1000000000ll + st->st_ctim.tv_nsec,
        .nlink = (uint32_t)st->st_nlink,
        .mode = st->st_mode & 07777,
        .uid = st->st_uid,
        .gid = st->st_gid,
        .staged = true,
        .uncached = a->copy,
    };
}
