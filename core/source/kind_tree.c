/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A checkpoint, and all that is in it: directories, leaves, views, slices. Where this process has a staged copy of the
 * step, names, lists and attributes are the copy's; the bytes stay what readers have open.
 */
#include "core/base/util.h"
#include "core/source/kinds.h"
#include "core/source/removal.h"
#include "core/tree/key.h"

#include <stdio.h>

/* --- attributes --- */

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

static enum ckpt_leaf leaf_of(const struct ckpt_node *n)
{
    static const enum ckpt_leaf leaves[CKPT_NODE_KINDS] = {
        [CKPT_NODE_ARRAY] = CKPT_LEAF_ARRAY, [CKPT_NODE_VALUE] = CKPT_LEAF_VALUE, [CKPT_NODE_BLOB] = CKPT_LEAF_BLOB};
    return leaves[n->kind];
}

static int inner_attr(struct ckpt_source *src, const struct target *t, uint64_t id, struct ckpt_attr *ret,
                      struct ckpt_err *err)
{
    const struct node *n = t->node;
    ckpt_source_common_attr(n, id, ret);
    int r = own_attr(t, ret, err);
    if (r < 0)
        return r;
    ret->immutable = true;
    ret->view = t->file.view != CKPT_VIEW_LISTED;
    ret->ino = t->slice ? t->slice->ino + (t->file.view == CKPT_VIEW_SLICE)
                        : ckpt_source_inner_ino(n, t->file.node, t->file.view);
    if (ckpt_viewed_is_dir(&t->file)) {
        ret->type = CKPT_DIR;
        ckpt_source_removal_times(src, t->node, t->file.node, ret);
        return 0;
    }
    ret->type = CKPT_FILE;
    ret->leaf = ret->view ? CKPT_NO_LEAF : leaf_of(&t->tree->nodes[t->file.node]);
    ret->mode &= n->writable && !ret->view ? 07777 : 0444;
    /* A leaf that cannot be read at all is listed, but not found by name: so opening it gives the error. */
    return ckpt_view_size(&src->views, &t->file, &ret->size, &ret->stored, err);
}

/* Where a committed step has a staged copy: mode, owner and times are the copy's. The bytes, and so the size, stay what
 * readers have open. */
static void copied_attr(struct ckpt_source *src, struct target *t, struct ckpt_attr *ret)
{
    struct ckpt_attr copy;
    uint64_t id;
    if (atomic_load(&t->node->stale) || ckpt_source_copied(src, t, &id) != 1)
        return;
    if (ckpt_source_staged_attr(src, id, &copy, NULL) == 0) {
        ret->mode = copy.mode;
        ret->uid = copy.uid;
        ret->gid = copy.gid;
        ret->mtime_ns = copy.mtime_ns;
        ret->atime_ns = copy.atime_ns;
        ret->ctime_ns = copy.ctime_ns;
        ret->immutable = false;
        ret->staged = true;
    }
    ckpt_forget(src, id, 1);
}

static int tree_attr(struct ckpt_source *src, struct target *t, struct ckpt_attr *ret, struct ckpt_err *err)
{
    if (t->tree) {
        int r = inner_attr(src, t, t->id, ret, err);
        if (r == 0 && t->file.view == CKPT_VIEW_LISTED)
            copied_attr(src, t, ret);
        return r;
    }
    ckpt_source_attr_of_node(src, t->node, ret);
    ckpt_source_removal_times(src, t->node, 0, ret);
    copied_attr(src, t, ret);
    return 0;
}

/* --- names --- */

/* The node of a directory of the checkpoint's folder that is no part of it, but has checkpoints in it. `listed`: as the
 * tree calls it. */
static int take_below(struct ckpt_source *src, struct node *n, const char *real, const char *listed, struct node **ret,
                      struct ckpt_err *err)
{
    struct ckpt_entry e = {.name = real};
    struct ckpt_probe probe = {0};
    struct ckpt_backend *dir;
    struct ckpt_stat st;
    char path[SOURCE_PATH];
    int r = ckpt_source_join(n->path, real, path);
    if (r == 0)
        r = ckpt_backend_stat(src->backend, path, &st);
    if (r == 0)
        r = ckpt_backend_sub(src->backend, path, &dir);
    if (r == 0) {
        r = ckpt_probe_dir(dir, &e.format, &probe);
        ckpt_backend_unref(dir);
    }
    if (r < 0)
        return ckpt_fail(err, -r, "%s: %s", real, strerror(-r));
    bool is_checkpoint = probe.bits > 1 && !probe.weak && !*probe.unfinished;
    e.is_step = is_checkpoint && (ckpt_step_number(real, true, &e.number) || ckpt_step_number_glued(real, &e.number));
    return ckpt_node_take(src, n, real, listed, is_checkpoint ? NODE_TREE : NODE_DIR, &st, is_checkpoint ? &e : NULL,
                          NULL, ret);
}

static int lookup_below(struct ckpt_source *src, const struct target *dir, uint32_t node, const char *name,
                        enum ckpt_view view, struct ckpt_attr *ret, struct ckpt_err *err)
{
    static const char suffix[] = ".safetensors";
    struct node *below;
    size_t len;
    const char *real = ckpt_tree_text(dir->tree, dir->tree->nodes[node].key, &len);
    bool listed = view == CKPT_VIEW_LISTED;
    if (!listed && !ckpt_has_suffix(name, suffix))
        return -ENOENT;
    CKPT_AUTOFREE char *base = strndup(name, strlen(name) - (listed ? 0 : strlen(suffix)));
    int r = base ? take_below(src, dir->node, real, base, &below, err) : -ENOMEM;
    if (r < 0)
        return r;
    if (!listed)
        return ckpt_source_lookup_view(src, below, suffix, ret, err);
    ckpt_source_attr_of_node(src, below, ret);
    return 0;
}

static bool is_below(const struct ckpt_tree *t, uint32_t node)
{
    return t->nodes[node].kind == CKPT_NODE_DIR && t->nodes[node].mark == CKPT_BELOW_MARK;
}

static int lookup_inner(struct ckpt_source *src, struct target *dir, const char *name, struct ckpt_attr *ret,
                        struct ckpt_err *err)
{
    struct node *n = dir->node;
    uint32_t parent, number;
    const char *slice;
    size_t slice_len;
    struct target t = {.node = n};
    int r = ckpt_source_enter(src, dir, &parent, err);
    if (r < 0)
        return r;
    if (!ckpt_viewed_is_dir(&dir->file))
        return -ENOTDIR;
    t.tree = dir->tree;
    t.file.tree = dir->tree;
    r = ckpt_view_lookup(dir->tree, parent, name, &t.file.node, &t.file.view, &slice, &slice_len);
    if (r == 0 && ckpt_source_is_removed(src, n, t.file.node))
        r = -ENOENT;
    if (r < 0)
        return r;
    if (is_below(dir->tree, t.file.node))
        return lookup_below(src, dir, t.file.node, name, t.file.view, ret, err);
    struct ckpt_selection sel;
    struct slice shown;
    if (slice) {
        char text[CKPT_NAME_MAX + 1];
        snprintf(text, sizeof text, "%.*s", (int)slice_len, slice);
        r = ckpt_view_select(dir->tree, t.file.node, slice, slice_len, &sel, err);
        if (r == 0)
            r = ckpt_node_take_slice(src, n, t.file.node, t.file.view == CKPT_VIEW_SLICE_NPY, text, &sel, &shown);
        if (r < 0)
            return r;
        number = shown.number;
        t.slice = &shown;
        t.file.sel = &sel;
    } else {
        number = t.file.node;
        pthread_mutex_lock(&src->lock);
        n->inner++;
        pthread_mutex_unlock(&src->lock);
    }
    uint64_t id = (uint64_t)n->serial << 40 | (uint64_t)t.file.view << 32 | number;
    if (dir->tree->ops->pin && t.file.view != CKPT_VIEW_META)
        dir->tree->ops->pin(dir->tree, t.file.node);
    r = inner_attr(src, &t, id, ret, err);
    if (r < 0)
        ckpt_forget(src, id, 1);
    /* Directly under the mount's top nothing is immutable: the checkpoint that is the source may itself be replaced. */
    if (node_is_top(dir->node) && parent == 0)
        ret->immutable = false;
    return r;
}

int ckpt_source_lookup_view(struct ckpt_source *src, struct node *node, const char *name, struct ckpt_attr *ret,
                            struct ckpt_err *err)
{
    uint64_t id = node->id;
    struct target t;
    int r = ckpt_source_target(src, id, &t, err);
    if (r == 0) {
        r = lookup_inner(src, &t, name, ret, err);
        ckpt_source_done(src, &t);
    }
    ckpt_forget(src, id, 1);
    if (r == 0)
        ret->immutable = false; /* its name goes with the checkpoint's */
    return r;
}

/* blob is taken over, unless there is no memory (NULL). */
static struct node *new_blob_node(struct ckpt_source *src, uint64_t parent, const char *path, const char *key,
                                  const struct ckpt_stat *st, struct ckpt_backend *blob)
{
    struct node *n = ckpt_node_new(parent, path, key, NODE_TREE, st);
    if (!n)
        return NULL;
    if (!ckpt_node_opened(n)) {
        ckpt_node_free(src, n);
        return NULL;
    }
    n->opened->blob = blob;
    ckpt_node_set_file(n);
    return n;
}

/* The node of a blob, under its listed name in a directory of a tree, as the tree that it is a checkpoint of; with a
 * reference. */
static int take_blob(struct ckpt_source *src, struct target *dir, const char *name, struct node **ret,
                     struct ckpt_err *err)
{
    struct ckpt_attr at;
    struct ckpt_entry e = {0};
    struct ckpt_probe probe;
    uint32_t parent;
    char path[SOURCE_PATH], key[32];
    int r = ckpt_source_enter(src, dir, &parent, err);
    if (r < 0)
        return r;
    uint32_t leaf = ckpt_tree_lookup(dir->tree, parent, name, strlen(name));
    if (leaf == CKPT_NO_NODE || dir->tree->nodes[leaf].kind != CKPT_NODE_BLOB)
        return -ENOENT;
    r = ckpt_source_join(dir->node->path, name, path);
    if (r == 0)
        r = lookup_inner(src, dir, name, &at, err);
    if (r < 0)
        return r;
    struct ckpt_stat st = {
        .type = CKPT_FT_FILE,
        .size = at.size,
        .stored = at.stored,
        .mtime_ns = at.mtime_ns,
        .ctime_ns = at.mtime_ns,
        .dev = dir->node->st.dev,
        .ino = at.ino,
        .mode = at.mode,
        .uid = at.uid,
        .gid = at.gid,
    };
    struct ckpt_backend *blob = ckpt_source_blob(src, at.id, name, &st);
    if (!blob) {
        ckpt_forget(src, at.id, 1);
        return -ENOMEM;
    }
    r = ckpt_probe_file(blob, name, false, &e.format, &probe);
    bool is_tree = r == 0 && e.format && !probe.weak && !*probe.unfinished;
    if (!is_tree) {
        ckpt_backend_unref(blob);
        return r < 0 ? r : -ENOENT;
    }
    snprintf(key, sizeof key, "%u/", leaf); /* no name has a slash */
    struct node *fresh = new_blob_node(src, dir->node->id, path, key, &st, blob);
    if (!fresh) {
        ckpt_backend_unref(blob);
        return -ENOMEM;
    }
    ckpt_node_keep(src, fresh, &e, ret);
    return 0;
}

/* BLOB.tree, and BLOB.tree.safetensors beside it. */
static int lookup_blob(struct ckpt_source *src, struct target *dir, const char *name, struct ckpt_attr *ret,
                       struct ckpt_err *err)
{
    static const char *const suffixes[] = {".tree", ".tree.safetensors"};
    struct node *node;
    for (unsigned i = 0; i < 2; i++) {
        if (!ckpt_has_suffix(name, suffixes[i]))
            continue;
        CKPT_AUTOFREE char *base = strndup(name, strlen(name) - strlen(suffixes[i]));
        int r = base ? take_blob(src, dir, base, &node, err) : -ENOMEM;
        if (r < 0)
            return r;
        if (i)
            return ckpt_source_lookup_view(src, node, ".safetensors", ret, err);
        ckpt_source_attr_of_node(src, node, ret);
        return 0;
    }
    return -ENOENT;
}

static int tree_lookup(struct ckpt_source *src, struct target *t, const char *name, struct ckpt_attr *ret,
                       struct ckpt_err *err)
{
    uint64_t copy;
    int r = ckpt_source_copied(src, t, &copy);
    if (r < 0)
        return r;
    if (r == 1) {
        r = ckpt_source_staged_lookup(src, copy, name, ret, err);
        ckpt_forget(src, copy, 1);
        return r;
    }
    r = lookup_inner(src, t, name, ret, err);
    return r == -ENOENT ? lookup_blob(src, t, name, ret, err) : r;
}

/* --- listing --- */

static int tree_next(struct ckpt_dir *d, uint64_t pos, struct ckpt_dirent *ret)
{
    const struct ckpt_tree *t = d->target.tree;
    if (pos >= t->count)
        return 0;
    uint32_t node = pos ? t->nodes[pos].next : t->nodes[d->node].first;
    while (node != CKPT_NO_NODE && ckpt_source_is_removed(d->src, d->target.node, node))
        node = t->nodes[node].next;
    if (node == CKPT_NO_NODE)
        return 0;
    struct ckpt_buf name = CKPT_BUF_INIT;
    ckpt_tree_name(t, node, &name);
    ckpt_buf_addc(&name, 0);
    int r = ckpt_buf_error(&name);
    if (r == 0) {
        ckpt_source_set_name(d, ret, (char *)name.data);
        ret->type = t->nodes[node].kind == CKPT_NODE_DIR ? CKPT_DIR : CKPT_FILE;
        ret->ino = ckpt_source_inner_ino(d->target.node, node, CKPT_VIEW_LISTED);
        ret->next = node;
        r = 1;
    }
    ckpt_buf_clear(&name);
    return r;
}

static int tree_open_dir(struct ckpt_dir *d, bool *ret_immutable, struct ckpt_err *err)
{
    uint64_t copy;
    int r = ckpt_source_copied(d->src, &d->target, &copy);
    if (r < 0)
        return r;
    if (r == 1) {
        r = ckpt_source_staged_opendir(d, copy, err);
        ckpt_forget(d->src, copy, 1);
        return r;
    }
    r = ckpt_source_enter(d->src, &d->target, &d->node, err);
    if (r < 0)
        return r;
    if (!ckpt_viewed_is_dir(&d->target.file))
        return ckpt_fail(err, ENOTDIR, "not a directory");
    d->next = tree_next;
    *ret_immutable = !node_is_top(d->target.node);
    return 0;
}

/* --- bytes --- */

static bool is_file(const struct target *t)
{
    return t->tree && !ckpt_viewed_is_dir(&t->file);
}

/* Of a leaf that cannot be read. */
static void tell_fault(struct ckpt_source *src, const struct target *t, const struct ckpt_err *own, int code,
                       struct ckpt_err *err)
{
    struct ckpt_buf name = CKPT_BUF_INIT;
    ckpt_tree_name(t->tree, t->file.node, &name);
    ckpt_log(CKPT_LOG_WARN, "%s%s%s: leaf %.*s: %s", src->path, *t->node->path ? "/" : "", t->node->path,
             (int)CKPT_MIN(name.len, (size_t)255), name.data ? (char *)name.data : "",
             own->code ? own->text : strerror(code));
    ckpt_buf_clear(&name);
    if (err)
        *err = *own;
}

static ssize_t tree_read(struct ckpt_source *src, struct target *t, void *buf, size_t len, uint64_t off,
                         struct ckpt_err *err)
{
    struct ckpt_err own = {0};
    if (!is_file(t))
        return ckpt_fail(err, EISDIR, "a directory");
    ssize_t r = ckpt_view_read(&src->views, &t->file, buf, len, off, &own);
    if (r > 0) {
        int changed = ckpt_source_unchanged(src, t->node, &own);
        r = changed < 0 ? changed : r;
    }
    if (r < 0)
        tell_fault(src, t, &own, (int)-r, err);
    return r;
}

/* Bytes of a checkpoint that was changed in place are not handed on. */
struct checked_give {
    struct ckpt_source *src;
    const struct node *node;
    ckpt_give_fn *give;
    void *arg;
    struct ckpt_err *err;
};

static int check_and_give(void *arg, const struct iovec *iov, int count)
{
    const struct checked_give *g = arg;
    int r = ckpt_source_unchanged(g->src, g->node, g->err);
    return r < 0 ? r : g->give(g->arg, iov, count);
}

static ssize_t tree_give(struct ckpt_source *src, struct target *t, size_t len, uint64_t off, ckpt_give_fn *give,
                         void *arg, struct ckpt_err *err)
{
    struct ckpt_err own = {0};
    struct checked_give g = {src, t->node, give, arg, &own};
    if (!is_file(t))
        return ckpt_fail(err, EISDIR, "a directory");
    ssize_t r = ckpt_view_give(&src->views, &t->file, len, off, check_and_give, &g, &own);
    if (r < 0)
        tell_fault(src, t, &own, (int)-r, err);
    return r;
}

static int tree_run(struct ckpt_source *src, struct target *t, uint64_t off, uint64_t *ret_end, struct ckpt_err *err)
{
    return is_file(t) ? ckpt_view_run(&src->views, &t->file, off, ret_end, err) : 1;
}

/* --- extended attributes --- */

/* The staged file that stands for a committed one; with a reference. */
static bool copy_of(struct ckpt_source *src, struct target *t, uint64_t *ret)
{
    bool itself = !t->tree || t->file.view == CKPT_VIEW_LISTED;
    return itself && !atomic_load(&t->node->stale) && ckpt_source_copied(src, t, ret) == 1;
}

static ssize_t tree_getxattr(struct ckpt_source *src, struct target *t, const char *name, const struct ckpt_caller *who,
                             char *buf, size_t len)
{
    uint64_t copy;
    if (!copy_of(src, t, &copy))
        return ckpt_source_tree_getxattr(src, t, name, who, buf, len);
    struct ckpt_stages *set = ckpt_source_set(src, copy);
    ssize_t r = set ? ckpt_stage_getxattr(set, copy, name, who, buf, len) : -ESTALE;
    ckpt_forget(src, copy, 1);
    return r;
}

static ssize_t tree_listxattr(struct ckpt_source *src, struct target *t, char *buf, size_t len)
{
    uint64_t copy;
    if (!copy_of(src, t, &copy))
        return ckpt_source_tree_listxattr(src, t, buf, len);
    struct ckpt_stages *set = ckpt_source_set(src, copy);
    ssize_t r = set ? ckpt_stage_listxattr(set, copy, buf, len) : -ESTALE;
    ckpt_forget(src, copy, 1);
    return r;
}

/* --- changing --- */

/* What a removal of that name takes away. */
static int find_removed(struct ckpt_source *src, struct target *t, uint32_t dir, const char *name, bool is_dir,
                        uint32_t *ret)
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

/* 1: the step has a staged copy, which is changed instead. */
static int note_removed(struct ckpt_source *src, struct node *root, struct target *t, uint32_t dir, const char *name,
                        bool is_dir, pid_t pid)
{
    struct node *n = t->node;
    char step[CKPT_NAME_MAX + 1];
    uint32_t node;
    NODE_LOADING(src, n); /* no copy is made meanwhile */
    ckpt_source_step_name(src, n, step);
    if (ckpt_stage_exists(root->stages, step))
        return 1;
    int r = find_removed(src, t, dir, name, is_dir, &node);
    if (r < 0)
        return r;
    CKPT_GUARD(&src->lock);
    if (atomic_load(&n->stale) || !n->named) /* a copy has come and gone meanwhile */
        return -ESTALE;
    r = ckpt_removal_begin(src, n, t->tree->count);
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

static int tree_remove(struct ckpt_source *src, struct target *t, const char *name, bool is_dir,
                       const struct ckpt_caller *who, struct ckpt_err *err)
{
    uint32_t dir;
    struct node *root = ckpt_source_root_of(src, t->node);
    if (!root)
        return 1;
    if (atomic_load(&t->node->stale))
        return -ESTALE;
    int r = ckpt_source_enter(src, t, &dir, err);
    return r < 0 ? r : note_removed(src, root, t, dir, name, is_dir, who->pid);
}

static int tree_place(struct ckpt_source *src, struct place *p, struct ckpt_err *err)
{
    if (is_file(&p->top))
        return ckpt_fail(err, ENOTDIR, "not a directory");
    return ckpt_source_open_copy(src, &p->top, &p->stages, &p->id, err);
}

static int tree_staged(struct ckpt_source *src, struct target *t, struct staged_file *ret, struct ckpt_err *err)
{
    if (!src->opt.write)
        return ckpt_fail(err, EROFS, "this cannot be written");
    if (t->tree && t->file.view != CKPT_VIEW_LISTED)
        return ckpt_fail(err, EROFS, "a view cannot be written");
    return ckpt_source_open_copy(src, t, &ret->stages, &ret->id, err);
}

const struct kind ckpt_kind_tree = {
    .lookup = tree_lookup,
    .attr = tree_attr,
    .open_dir = tree_open_dir,
    .read = tree_read,
    .give = tree_give,
    .run = tree_run,
    .getxattr = tree_getxattr,
    .listxattr = tree_listxattr,
    .remove = tree_remove,
    .place = tree_place,
    .staged = tree_staged,
};
