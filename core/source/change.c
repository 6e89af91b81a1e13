/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What changes a native root. A directory right at its top is a step: a staged one is a directory tree that calls go
 * through to (core/stage/stage.h), a committed one becomes a staged copy of itself at the first change. Changes of a
 * directory of a committed step are made to the copy at once; for anything else the caller is told -ESTALE, and finds
 * the copy when it looks the path up again.
 */
#include "core/base/util.h"
#include "core/format/native.h"
#include "core/source/change.h"

#include <linux/fs.h>
#include <sys/statvfs.h>

/* --- names --- */

struct making {
    const char *name;
    uint32_t mode;
    int flags;
    const struct ckpt_caller *who;
    struct ckpt_attr *ret;
    struct ckpt_handle **ret_handle;
};

static int mkdir_at(struct ckpt_source *src, uint64_t parent, uint64_t none, void *arg, struct ckpt_err *err)
{
    const struct making *m = arg;
    struct place p;
    struct ckpt_stage_attr attr;
    int r = ckpt_source_find_place(src, parent, &p, err);
    if (r < 0)
        return r;
    bool top = r == 1;
    r = top ? ckpt_source_new_step(src, &p, m->name, m->mode, m->who, &attr, err)
            : ckpt_stage_mkdir(p.stages, p.id, m->name, m->mode, m->who, &attr);
    if (r == 0) {
        ckpt_source_attr_of_stage(&attr, m->ret);
        m->ret->uncached |= top;
    }
    ckpt_source_place_clear(src, &p);
    return r;
}

int ckpt_mkdir(struct ckpt_source *src, uint64_t parent, const char *name, uint32_t mode, const struct ckpt_caller *who,
               struct ckpt_attr *ret, struct ckpt_err *err)
{
    struct making m = {.name = name, .mode = mode, .who = who, .ret = ret};
    int r = ckpt_source_retry(src, parent, 0, mkdir_at, &m, err);
    if (r == 0)
        ckpt_source_own_id(src, parent, name, ret);
    return r;
}

static int create_at(struct ckpt_source *src, uint64_t parent, uint64_t none, void *arg, struct ckpt_err *err)
{
    const struct making *m = arg;
    struct place p;
    struct ckpt_stage_attr attr;
    struct ckpt_stage_handle *staged;
    int r = ckpt_source_find_place(src, parent, &p, err);
    if (r < 0)
        return r;
    r = r == 1 ? ckpt_fail(err, EPERM, "files lie in steps: make a directory for one first")
               : ckpt_stage_create(p.stages, p.id, m->name, m->mode, m->flags, m->who, &attr, &staged);
    if (r == 0) {
        r = ckpt_source_wrap(staged, m->ret_handle);
        if (r < 0)
            ckpt_stage_forget(p.stages, attr.id, 1);
        else
            ckpt_source_attr_of_stage(&attr, m->ret);
    }
    ckpt_source_place_clear(src, &p);
    return r;
}

int ckpt_create(struct ckpt_source *src, uint64_t parent, const char *name, uint32_t mode, int flags,
                const struct ckpt_caller *who, struct ckpt_attr *ret, struct ckpt_handle **ret_handle,
                struct ckpt_err *err)
{
    struct making m = {.name = name, .mode = mode, .flags = flags, .who = who, .ret = ret, .ret_handle = ret_handle};
    return ckpt_source_retry(src, parent, 0, create_at, &m, err);
}

struct removing {
    uint64_t parent; /* as the caller has it */
    const char *name;
    bool dir;
    const struct ckpt_caller *who;
};

static int unlink_in(struct ckpt_source *src, struct place *p, const struct removing *m, struct ckpt_err *err)
{
    int r = ckpt_stage_unlink(p->stages, p->id, m->name, m->dir, m->who);
    if (r == -ENOENT && m->dir && ckpt_stage_is_files_view(p->stages, p->id)) {
        r = ckpt_source_remove_step_files(src, m->name, err);
        ckpt_stages_tidy(p->stages);
        ckpt_source_root_changed(src->root, r == 0 ? m->name : NULL);
    }
    return r;
}

static int unlink_at(struct ckpt_source *src, uint64_t parent, uint64_t none, void *arg, struct ckpt_err *err)
{
    const struct removing *m = arg;
    struct place p;
    /* Only noted where the kernel learns of it by the call itself. By another id of the directory it does not: what it
     * keeps of this one for ever is not asked for any more once there is a staged copy. */
    bool may_note = parent == m->parent;
    int r = may_note ? ckpt_source_remove(src, parent, m->name, m->dir, m->who, err) : 1;
    if (r <= 0)
        return r;
    r = ckpt_source_find_place(src, parent, &p, err);
    if (r < 0)
        return r;
    if (r == 0)
        r = unlink_in(src, &p, m, err);
    else
        r = m->dir ? ckpt_source_remove_step(src, &p, m->name, err)
                   : ckpt_fail(err, EROFS, "%s is not a step of the store", m->name);
    ckpt_source_place_clear(src, &p);
    return r;
}

int ckpt_unlink(struct ckpt_source *src, uint64_t parent, const char *name, bool dir, const struct ckpt_caller *who,
                struct ckpt_err *err)
{
    struct removing m = {parent, name, dir, who};
    return ckpt_source_retry(src, parent, 0, unlink_at, &m, err);
}

struct renaming {
    const char *from, *to;
    unsigned flags;
    const struct ckpt_caller *who;
};

static int rename_between(struct ckpt_source *src, struct place *from, struct place *to, const struct renaming *m,
                          struct ckpt_err *err)
{
    bool from_top = !from->id, to_top = !to->id, same_root = from->stages == to->stages;
    if (to_top && !from_top && same_root)
        return ckpt_fail(err, EPERM, "only steps lie there");
    if (from_top != to_top || !same_root)
        return ckpt_fail(err, EXDEV, "another step: copy, which shares the data");
    if (from_top)
        return ckpt_source_rename_step(src, from, m->from, m->to, m->flags, m->who, err);
    return ckpt_stage_move(from->stages, from->id, m->from, to->id, m->to, m->flags, m->who);
}

static int rename_at(struct ckpt_source *src, uint64_t parent, uint64_t new_parent, void *arg, struct ckpt_err *err)
{
    const struct renaming *m = arg;
    struct place from, to;
    int r = ckpt_source_find_place(src, parent, &from, err);
    if (r < 0)
        return r;
    r = ckpt_source_find_place(src, new_parent, &to, err);
    if (r >= 0) {
        r = rename_between(src, &from, &to, m, err);
        ckpt_source_place_clear(src, &to);
    }
    ckpt_source_place_clear(src, &from);
    return r;
}

int ckpt_rename(struct ckpt_source *src, uint64_t parent, const char *name, uint64_t new_parent, const char *new_name,
                unsigned flags, const struct ckpt_caller *who, struct ckpt_err *err)
{
    struct renaming m = {name, new_name, flags, who};
    if (flags & ~(unsigned)(RENAME_NOREPLACE | RENAME_EXCHANGE)) /* a whiteout is a device */
        return ckpt_fail(err, EINVAL, "a rename that does more than replace or exchange");
    return ckpt_source_retry(src, parent, new_parent, rename_at, &m, err);
}

/* One more name of a leaf of a committed step: in the same step, of the file that stands for it; in another one, of a
 * new file that shares its content. */
static int link_committed(struct ckpt_source *src, uint64_t id, const struct place *p, const struct making *m,
                          struct ckpt_stage_attr *ret)
{
    struct target t;
    struct ckpt_manifest_node node = {0};
    uint64_t copy;
    int r = ckpt_source_target(src, id, &t, NULL);
    if (r < 0)
        return r;
    bool copied = t.file.view == CKPT_VIEW_LISTED && ckpt_source_copied(src, &t, &copy) == 1;
    ckpt_source_done(src, &t);
    if (copied) {
        bool same = ckpt_source_set(src, copy) == p->stages && ckpt_stage_same_step(p->stages, copy, p->id);
        if (same)
            r = ckpt_stage_link(p->stages, copy, p->id, m->name, m->who, ret);
        ckpt_forget(src, copy, 1);
        if (same)
            return r;
    }
    r = ckpt_source_record_of(src, id, &node);
    if (r == 0)
        r = ckpt_stage_link_stored(p->stages, &node, p->id, m->name, m->who, ret);
    ckpt_manifest_node_clear(&node);
    return r;
}

static int link_at(struct ckpt_source *src, uint64_t parent, uint64_t id, void *arg, struct ckpt_err *err)
{
    const struct making *m = arg;
    struct place p;
    struct ckpt_stage_attr attr;
    int r = ckpt_source_find_place(src, parent, &p, err);
    if (r < 0)
        return r;
    if (r == 1)
        r = ckpt_fail(err, EPERM, "files lie in steps");
    else if (id & CKPT_STAGED)
        r = ckpt_source_set(src, id) == p.stages ? ckpt_stage_link(p.stages, id, p.id, m->name, m->who, &attr) : -EXDEV;
    else
        r = link_committed(src, id, &p, m, &attr);
    if (r == 0)
        ckpt_source_attr_of_stage(&attr, m->ret);
    ckpt_source_place_clear(src, &p);
    return r;
}

int ckpt_link(struct ckpt_source *src, uint64_t id, uint64_t parent, const char *name, const struct ckpt_caller *who,
              struct ckpt_attr *ret, struct ckpt_err *err)
{
    struct making m = {.name = name, .who = who, .ret = ret};
    return ckpt_source_retry(src, parent, id, link_at, &m, err);
}

int ckpt_no_link(struct ckpt_source *src, uint64_t parent)
{
    struct target t;
    if (parent & CKPT_STAGED)
        return -EPERM;
    if (!src->opt.write || ckpt_source_target(src, parent, &t, NULL) < 0)
        return -EROFS;
    bool will_be_root = t.node == src->root && src->lazy;
    bool is_root = t.node->kind == NODE_DIR && (t.node->stages || will_be_root);
    bool ours = is_root || ckpt_source_root_of(src, t.node);
    ckpt_source_done(src, &t);
    return ours ? -EPERM : -EROFS;
}

/* --- attributes --- */

struct setting {
    const struct stat *st;
    unsigned what;
    const char *name; /* of an attribute */
    const void *value;
    size_t len;
    int flags;
    const struct ckpt_caller *who;
    struct ckpt_attr *ret;
};

static int setattr_at(struct ckpt_source *src, uint64_t id, uint64_t none, void *arg, struct ckpt_err *err)
{
    const struct setting *m = arg;
    struct ckpt_stage_attr attr;
    struct staged_file f;
    int r = ckpt_source_find_staged(src, id, &f, err);
    if (r < 0)
        return r;
    r = ckpt_stage_setattr(f.stages, f.id, m->st, m->what, m->who, &attr);
    ckpt_stage_forget(f.stages, f.id, 1);
    if (r < 0)
        return r;
    if (f.id != id) /* readers that have the committed file open keep its size */
        return ckpt_getattr(src, id, m->ret, err);
    ckpt_source_attr_of_stage(&attr, m->ret);
    return 0;
}

/* What chown(2) does when it is given neither an owner nor a group: set-id bits go. A caller who does not own the file
 * changes nothing. */
static int drop_set_id(struct ckpt_source *src, uint64_t id, const struct ckpt_caller *who, struct ckpt_attr *ret,
                       struct ckpt_err *err)
{
    int r = ckpt_getattr(src, id, ret, err);
    if (r < 0)
        return r;
    bool has_set_id = ret->type != CKPT_DIR && ret->mode & (S_ISUID | S_ISGID);
    bool is_owner = !who->uid || who->uid == ret->uid;
    if (!has_set_id || !is_owner)
        return 0;
    struct stat same = {.st_uid = (uid_t)-1};
    return ckpt_setattr(src, id, &same, CKPT_ATTR_UID, who, ret, err);
}

int ckpt_setattr(struct ckpt_source *src, uint64_t id, const struct stat *st, unsigned what,
                 const struct ckpt_caller *who, struct ckpt_attr *ret, struct ckpt_err *err)
{
    if (!what)
        return drop_set_id(src, id, who, ret, err);
    struct setting m = {.st = st, .what = what, .who = who, .ret = ret};
    if (!(what & CKPT_ATTR_SIZE))
        return ckpt_source_retry(src, id, 0, setattr_at, &m, err);
    int r = id & CKPT_STAGED ? setattr_at(src, id, 0, &m, err) : -ESTALE;
    return r == -ESTALE ? ckpt_source_must_look_again(src, id, who, err) : r;
}

/* user.ckpt.pinned of a committed step: "1" or "0". 1: it was that. */
static int set_pin(struct ckpt_source *src, uint64_t id, const char *name, const char *value, size_t len,
                   struct ckpt_err *err)
{
    struct target t;
    char step[CKPT_NAME_MAX + 1];
    if (strcmp(name, "user.ckpt.pinned") || id & CKPT_STAGED)
        return 0;
    int r = ckpt_source_target(src, id, &t, err);
    if (r < 0)
        return r;
    struct node *root = t.tree ? NULL : ckpt_source_root_of(src, t.node);
    bool on = len && value[0] == '1', off = !len || value[0] == '0';
    if (!root)
        r = ckpt_fail(err, EROFS, "only the steps of a store can be pinned");
    else if (len > 1 || !(on || off))
        r = ckpt_fail(err, EINVAL, "user.ckpt.pinned is 0 or 1");
    else if (atomic_load(&t.node->stale))
        r = -ESTALE;
    else {
        ckpt_source_step_name(src, t.node, step);
        r = ckpt_store_pin(root->store, step, on, err);
    }
    ckpt_source_done(src, &t);
    return r < 0 ? r : 1;
}

static int setxattr_at(struct ckpt_source *src, uint64_t id, uint64_t none, void *arg, struct ckpt_err *err)
{
    const struct setting *m = arg;
    struct staged_file f;
    int r = set_pin(src, id, m->name, m->value ? m->value : "0", m->value ? m->len : 1, err);
    if (r)
        return CKPT_MIN(r, 0);
    r = ckpt_source_find_staged(src, id, &f, err);
    if (r < 0)
        return r;
    r = m->value ? ckpt_stage_setxattr(f.stages, f.id, m->name, m->value, m->len, m->flags, m->who)
                 : ckpt_stage_removexattr(f.stages, f.id, m->name, m->who);
    ckpt_stage_forget(f.stages, f.id, 1);
    return r;
}

int ckpt_setxattr(struct ckpt_source *src, uint64_t id, const char *name, const void *value, size_t len, int flags,
                  const struct ckpt_caller *who, struct ckpt_err *err)
{
    struct setting m = {.name = name, .value = value ? value : "", .len = len, .flags = flags, .who = who};
    return ckpt_source_retry(src, id, 0, setxattr_at, &m, err);
}

int ckpt_removexattr(struct ckpt_source *src, uint64_t id, const char *name, const struct ckpt_caller *who,
                     struct ckpt_err *err)
{
    struct setting m = {.name = name, .who = who};
    return ckpt_source_retry(src, id, 0, setxattr_at, &m, err);
}

/* --- what is durable --- */

/* The staged copy of a directory of a committed step, made now if something was removed of that: 1. 0: nothing was
 * changed of it. */
static int find_changed(struct ckpt_source *src, struct target *t, const struct ckpt_caller *who,
                        struct staged_file *ret, struct ckpt_err *err)
{
    struct node *root = atomic_load(&t->node->stale) ? NULL : ckpt_source_root_of(src, t->node);
    if (!root)
        return 0;
    const struct ckpt_stat *top = &t->node->st;
    bool may = ckpt_caller_owns(who, top->uid) || ckpt_caller_may(who, top->mode, top->uid, top->gid, 2);
    ret->stages = root->stages;
    int r = ckpt_source_find_copy(src, root, t, &ret->id);
    if (r != 0 || !atomic_load(&t->node->removing))
        return r;
    if (!may)
        return ckpt_fail(err, EACCES, "the step is committed by its owner, or by who may write to it");
    r = ckpt_source_open_copy(src, t, &ret->stages, &ret->id, err);
    return r < 0 ? r : 1;
}

/* A directory of a committed step: what was changed of that here, if anything was, is committed. */
static int fsyncdir_committed(struct ckpt_source *src, uint64_t id, const struct ckpt_caller *who, struct ckpt_err *err)
{
    struct staged_file copy;
    struct target t;
    int r = ckpt_source_target(src, id, &t, err);
    if (r < 0)
        return r;
    r = find_changed(src, &t, who, &copy, err);
    ckpt_source_done(src, &t);
    if (r <= 0)
        return r;
    r = ckpt_stage_fsyncdir(copy.stages, copy.id, who, err);
    ckpt_stage_forget(copy.stages, copy.id, 1);
    return r;
}

static int fsyncdir_staged(struct ckpt_source *src, uint64_t id, const struct ckpt_caller *who, struct ckpt_err *err)
{
    struct ckpt_stages *set = ckpt_source_set(src, id);
    return set ? ckpt_stage_fsyncdir(set, id, who, err) : 0;
}

int ckpt_fsyncdir(struct ckpt_source *src, uint64_t id, const struct ckpt_caller *who, struct ckpt_err *err)
{
    struct ckpt_attr now;
    bool moved = ckpt_source_again(src, id, &now) == 0; /* what has been changed since its commit is in another copy */
    uint64_t at = moved ? now.id : id;
    int r = at & CKPT_STAGED ? fsyncdir_staged(src, at, who, err) : fsyncdir_committed(src, at, who, err);
    if (moved)
        ckpt_forget(src, now.id, 1);
    return r == -ESTALE ? 0 : r; /* committed meanwhile, with all that was changed before this call: it is durable */
}

int ckpt_statfs(struct ckpt_source *src, struct statvfs *ret)
{
    return fstatvfs(src->place, ret) < 0 ? -errno : 0;
}
