/* SPDX-License-Identifier: Apache-2.0 */
/* The staged steps by their names: found, made new or as copies of committed ones, removed, renamed. */
#include "core/stage/private.h"

#include "core/store/internal.h"
#include "core/store/writers.h"

#include <stdio.h>

/* Its own directory, with a reference. -ESTALE: it has ended. */
static int ref_top(struct stage_step *step, struct ckpt_stage_attr *ret)
{
    int fd = ckpt_stage_reopen(step->tree, O_PATH);
    return fd < 0 ? fd : ckpt_stage_ref_fd(step, fd, NULL, NULL, ret);
}

int ckpt_stage_ref_step(struct ckpt_stages *set, const char *name, struct ckpt_stage_attr *ret)
{
    struct stage_step *step = ckpt_stage_step_ref(set, name);
    if (!step)
        return -ENOENT;
    int r = ref_top(step, ret);
    ckpt_stage_step_unref(step);
    return r;
}

int ckpt_stage_open_files_view(struct ckpt_stages *set)
{
    struct stage_step *view = ckpt_stage_begin(set);
    if (!view)
        return -ENOMEM;
    view->files_view = true;
    view->tree = ckpt_stage_reopen(set->store->root, O_RDONLY | O_DIRECTORY);
    int r = view->tree < 0 ? view->tree : ckpt_stage_add_top(view, ".files");
    if (r < 0) {
        ckpt_stage_step_unref(view);
        return r;
    }
    set->files_view = view;
    return 0;
}

int ckpt_stage_ref_files_view(struct ckpt_stages *set, struct ckpt_stage_attr *ret)
{
    int fd = ckpt_stage_reopen(set->files_view->tree, O_PATH);
    return fd < 0 ? fd : ckpt_stage_ref_fd(set->files_view, fd, NULL, NULL, ret);
}

bool ckpt_stage_is_files_view(struct ckpt_stages *set, uint64_t id)
{
    return id == set->files_view->top->id;
}

bool ckpt_stage_hides(struct ckpt_stages *set, uint64_t dir, const char *name)
{
    return ckpt_stage_is_files_view(set, dir) && !strcmp(name, CKPT_STORE_DIR);
}

bool ckpt_stage_exists(struct ckpt_stages *set, const char *name)
{
    CKPT_GUARD(&set->lock);
    return ckpt_stage_step_by_name(set, name);
}

void ckpt_stage_touched(struct ckpt_stages *set, const char *name, const struct ckpt_caller *who)
{
    struct stage_step *step = ckpt_stage_step_ref(set, name);
    if (!step)
        return;
    ckpt_stage_touch(step, who);
    ckpt_stage_step_unref(step);
}

void ckpt_stages_tidy(struct ckpt_stages *set)
{
    CKPT_GUARD(&set->lock);
    set->gc_wanted = true;
}

int ckpt_stage_each(struct ckpt_stages *set, int (*visit)(void *arg, const char *name, uint64_t ino), void *arg)
{
    CKPT_GUARD(&set->lock);
    int r = 0;
    for (struct stage_step *s = set->steps; s && r == 0; s = s->next)
        r = visit(arg, s->name, ckpt_stage_ino(set, s->top->dev, s->top->ino));
    return r;
}

static int charge(struct stage_step *step, uid_t uid)
{
    CKPT_GUARD(&step->set->lock);
    return ckpt_stage_charge(step, uid, false);
}

/* The caller gets the top directory, where this process may give it away. */
static int give_top(struct stage_step *step, const struct ckpt_caller *who)
{
    if (who->uid == geteuid() && who->gid == getegid())
        return 0;
    if (fchownat(step->work, "tree", who->uid, who->gid, 0) == 0 || geteuid() != 0)
        return 0;
    return -errno;
}

static int make_new(struct stage_step *step, const char *name, mode_t mode, const struct ckpt_caller *who)
{
    int r = charge(step, who->uid);
    if (r < 0)
        return r;
    r = ckpt_stage_make_dirs(step, mode);
    if (r < 0)
        return r;
    r = give_top(step, who);
    if (r < 0)
        return r;
    r = ckpt_stage_name_dir(step, name, "");
    return r < 0 ? r : ckpt_stage_publish(step, name);
}

int ckpt_stage_new(struct ckpt_stages *set, const char *name, mode_t mode, const struct ckpt_caller *who,
                   struct ckpt_stage_attr *ret, struct ckpt_err *err)
{
    if (ckpt_stage_exists(set, name))
        return ckpt_fail(err, EEXIST, "%s is there already", name);
    struct stage_step *step = ckpt_stage_begin(set);
    if (!step)
        return ckpt_no_memory(err);
    int r = make_new(step, name, mode, who);
    if (r < 0) {
        ckpt_stage_drop(step);
        return ckpt_fail(err, -r, "%s: %s", name, strerror(-r));
    }
    ckpt_stage_touch(step, who);
    ckpt_stage_step_unref(step);
    return ckpt_stage_ref_step(set, name, ret);
}

/* --- a copy of a committed step, to be changed --- */

/* Is there a staged step of that name? 1: it is a copy of that one; -ESTALE: it is another one. */
static int has_copy(struct ckpt_stages *set, const char *name, const char *id)
{
    CKPT_GUARD(&set->lock);
    const struct stage_step *s = ckpt_stage_step_by_name(set, name);
    if (!s)
        return 0;
    return strcmp(s->base_id, id) ? -ESTALE : 1;
}

static int publish_frozen(struct stage_step *step, const char *name)
{
    int r = ckpt_stage_publish(step, name);
    if (r < 0)
        return r;
    int same = ckpt_store_step_is(step->set->store, name, step->base_id);
    if (same != 1) {
        ckpt_stage_end(step);
        return same < 0 ? same : -ESTALE;
    }
    ckpt_stage_lineage_begin(step->set, step->base_id, name);
    return 0;
}

/*
 * It is found by its name, frozen, and then it is looked whether the step that it is a copy of still has the name: a
 * commit of this mount can only have come before, since from now on there is a staged step. So nobody can have changed
 * a copy that is out of date.
 */
static int publish_copy(struct stage_step *step, const char *name)
{
    pthread_rwlock_wrlock(&step->freeze);
    int r = publish_frozen(step, name);
    pthread_rwlock_unlock(&step->freeze);
    return r;
}

/* As a rule nobody else changes a step than its owner. */
static int charge_owner(struct stage_step *step, struct ckpt_file *manifest, struct ckpt_err *err)
{
    struct ckpt_manifest_info info;
    int r = ckpt_manifest_info(manifest, &info, err);
    if (r < 0)
        return r;
    r = charge(step, info.top.uid);
    ckpt_manifest_info_clear(&info);
    return r;
}

static int fill_copy(struct stage_step *step, struct ckpt_file *manifest, const struct ckpt_stage_removed *removed,
                     struct ckpt_err *err)
{
    int r = charge_owner(step, manifest, err);
    if (r < 0)
        return r;
    r = ckpt_stage_make_dirs(step, 0755);
    return r < 0 ? r : ckpt_stage_copy_tree(step, manifest, removed, err);
}

static int make_copy(struct ckpt_stages *set, const char *name, struct ckpt_file *manifest, const char *id,
                     const struct ckpt_stage_removed *removed, struct ckpt_err *err)
{
    struct stage_step *step = ckpt_stage_begin(set);
    if (!step)
        return -ENOMEM;
    snprintf(step->base_id, sizeof step->base_id, "%s", id);
    int r = fill_copy(step, manifest, removed, err);
    if (r == 0)
        r = ckpt_stage_name_dir(step, name, id);
    if (r == 0)
        r = publish_copy(step, name);
    if (r < 0 && atomic_load(&step->state) == STAGE_OPEN)
        ckpt_stage_drop(step);
    else
        ckpt_stage_step_unref(step);
    return r;
}

int ckpt_stage_copy(struct ckpt_stages *set, const char *name, struct ckpt_file *manifest, const char *id,
                    const struct ckpt_stage_removed *removed, struct ckpt_err *err)
{
    struct ckpt_err own = {0};
    int r = has_copy(set, name, id);
    if (r)
        return CKPT_MIN(r, 0);
    r = ckpt_store_step_is(set->store, name, id);
    if (r == 0)
        return -ESTALE;
    if (r == 1)
        r = make_copy(set, name, manifest, id, removed, &own);
    if (r == -EEXIST) /* somebody else was quicker */
        r = has_copy(set, name, id) == 1 ? 0 : -ESTALE;
    if (r == 0 || r == -ESTALE)
        return r;
    return ckpt_fail(err, -r, "%s: it cannot be opened for changes: %s", name, own.code ? own.text : strerror(-r));
}

int ckpt_stage_ref_copy(struct ckpt_stages *set, const char *name, const char *id, struct ckpt_stage_attr *ret)
{
    struct stage_step *step = ckpt_stage_step_ref(set, name);
    if (!step)
        return -ENOENT;
    int r = strcmp(step->base_id, id) ? -ENOENT : ref_top(step, ret);
    ckpt_stage_step_unref(step);
    return r;
}

bool ckpt_stage_same_step(struct ckpt_stages *set, uint64_t a, uint64_t b)
{
    CKPT_GUARD(&set->lock);
    const struct stage_inode *na = ckpt_stage_inode_by_id(set, a), *nb = ckpt_stage_inode_by_id(set, b);
    return na && nb && na->step == nb->step;
}

bool ckpt_stage_is_copy(struct ckpt_stages *set, uint64_t staged, const char *id)
{
    CKPT_GUARD(&set->lock);
    const struct stage_inode *n = ckpt_stage_inode_by_id(set, staged);
    return n && !strcmp(n->step->base_id, id);
}

/* --- other ends, other names --- */

static int stop_at_name(void *arg, int dir, const char *name)
{
    return 1;
}

bool ckpt_stage_is_empty(int dir)
{
    return ckpt_names_each(dir, ".", stop_at_name, NULL) == 0;
}

/* The committed step that it is a copy of. What another mount has made of that since stays. */
static int delete_base(struct stage_step *step, const char *name, struct ckpt_err *err)
{
    struct ckpt_err own = {0};
    int r = *step->base_id ? ckpt_store_delete(step->set->store, name, step->base_id, &own) : 0;
    if (r == 0 || r == -ENOENT || r == -ESTALE)
        return 0;
    if (err)
        *err = own;
    return r;
}

static int withdraw_part(struct ckpt_stages *set, const char *name, struct ckpt_err *err)
{
    if (!set->opt.writers)
        return 0;
    int r = ckpt_writers_withdraw(set->store, name, set->opt.writer, set->opt.writers);
    return r < 0 ? ckpt_fail(err, -r, "%s: its part cannot be taken back: %s", name, strerror(-r)) : 0;
}

static int remove_frozen(struct stage_step *step, const char *name, struct ckpt_err *err)
{
    if (atomic_load(&step->state) != STAGE_OPEN)
        return -ESTALE;
    if (!ckpt_stage_is_empty(step->tree))
        return ckpt_fail(err, ENOTEMPTY, "%s is not empty", name);
    int r = delete_base(step, name, err);
    if (r < 0)
        return r;
    r = withdraw_part(step->set, name, err);
    if (r == 0)
        ckpt_stage_end(step);
    return r;
}

int ckpt_stage_remove(struct ckpt_stages *set, const char *name, struct ckpt_err *err)
{
    struct stage_step *step = ckpt_stage_step_ref(set, name);
    if (!step)
        return ckpt_fail(err, ENOENT, "%s: no staged step of that name", name);
    pthread_rwlock_wrlock(&step->freeze);
    int r = remove_frozen(step, name, err);
    pthread_rwlock_unlock(&step->freeze);
    ckpt_stage_step_unref(step);
    if (r == 0)
        set->opt.changed(set->opt.arg, name);
    return r;
}

/* Only its name, where that commits nothing. */
static int relabel(struct stage_step *step, const char *to)
{
    CKPT_AUTOFREE char *name = strdup(to);
    if (!name)
        return -ENOMEM;
    pthread_rwlock_wrlock(&step->freeze);
    int r = -ESTALE;
    if (atomic_load(&step->state) == STAGE_OPEN)
        r = ckpt_disk_replace(step->work, "name", to, strlen(to));
    if (r == 0) {
        CKPT_GUARD(&step->set->lock);
        free(step->name);
        step->name = CKPT_STEAL(name);
        if (step->told_name) /* of the other name */
            free(CKPT_STEAL(step->error));
        step->told_name = false;
    }
    pthread_rwlock_unlock(&step->freeze);
    return r;
}

/* A step of that name is in the way of a rename: one that is new and empty goes. */
static int make_way(struct stage_step *there, const char *name, struct ckpt_err *err)
{
    bool is_new = !*there->base_id;
    if (ckpt_stage_is_empty(there->tree) && is_new)
        return ckpt_stage_remove(there->set, name, err);
    return ckpt_fail(err, there->set->opt.overwrite ? EBUSY : EEXIST, "%s is being written", name);
}

/* there: the step that has the new name; NULL: none. */
static int rename_step(struct stage_step *step, struct stage_step *there, const char *to, const struct ckpt_caller *who,
                       struct ckpt_err *err)
{
    double number;
    bool commits = ckpt_step_name(to, &number);
    int r = commits ? ckpt_stage_may_commit(step, who, err) : 0;
    if (r == 0 && there)
        r = make_way(there, to, err);
    if (r < 0)
        return r;
    return commits ? ckpt_stage_commit_as(step, to, false, who->interrupted, err) : relabel(step, to);
}

int ckpt_stage_rename(struct ckpt_stages *set, const char *from, const char *to, const struct ckpt_caller *who,
                      struct ckpt_err *err)
{
    struct stage_step *step = ckpt_stage_step_ref(set, from);
    if (!step)
        return ckpt_fail(err, ENOENT, "%s: no staged step of that name", from);
    struct stage_step *there = ckpt_stage_step_ref(set, to);
    int r = rename_step(step, there, to, who, err);
    if (r == 0) { /* the step that was changed has the new name alone */
        r = delete_base(step, from, err);
        set->opt.changed(set->opt.arg, from);
    }
    if (there)
        ckpt_stage_step_unref(there);
    ckpt_stage_step_unref(step);
    return r;
}
