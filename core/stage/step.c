/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The life of a staged step. Its directory in staging/ is durable before its name is seen; a lock in it tells other
 * processes that it has an owner. It ends by a commit or a removal: its directory goes to the trash first, in one call,
 * and is then taken apart.
 *
 * A crash can come between the moment a manifest appears and the moment its staging directory goes. So the commit's id
 * is written to staging/ID/commit before, and whoever finds the directory later compares it with the manifest.
 */
#include "core/stage/private.h"

#include "core/store/internal.h"
#include "core/commit/work.h"
#include "core/store/writers.h"

#include <stdio.h>
#include <sys/file.h>

/* --- making and finding them --- */

int ckpt_stage_open_dirs(struct stage_step *step, const char *id)
{
    snprintf(step->id, sizeof step->id, "%s", id);
    step->work = openat(step->set->store->staging, id, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (step->work < 0)
        return -errno;
    step->lock = openat(step->work, "lock", O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (step->lock < 0 || flock(step->lock, LOCK_EX | LOCK_NB) < 0)
        return -errno;
    step->tree = openat(step->work, "tree", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (step->tree < 0 && errno != ENOENT)
        return -errno;
    step->hold = openat(step->work, "hold", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    return step->hold < 0 && errno != ENOENT ? -errno : 0;
}

int ckpt_stage_add_top(struct stage_step *step, const char *name)
{
    struct ckpt_stage_attr attr;
    step->name = strdup(name);
    CKPT_AUTOFD int top = ckpt_stage_reopen(step->tree, O_PATH);
    if (!step->name)
        return -ENOMEM;
    if (top < 0)
        return top;
    int r = ckpt_stage_ref_fd(step, CKPT_STEAL_FD(top), NULL, NULL, &attr);
    if (r < 0)
        return r;
    r = ckpt_stage_use(step->set, attr.id, &step->top);
    if (r < 0)
        return r;
    ckpt_stage_unuse(step->top); /* the top stays known without references */
    ckpt_stage_forget(step->set, attr.id, 1);
    step->changed_ns = ckpt_monotonic_ns();
    return 0;
}

struct stage_step *ckpt_stage_begin(struct ckpt_stages *set)
{
    struct stage_step *step = calloc(1, sizeof *step);
    if (!step)
        return NULL;
    step->set = set;
    step->uses = 1;
    step->work = step->tree = step->hold = step->lock = -1;
    pthread_mutex_init(&step->names, NULL);
    /* A commit waits for the changes under way, not for those that come after it. */
    pthread_rwlockattr_t attr;
    pthread_rwlockattr_init(&attr);
    pthread_rwlockattr_setkind_np(&attr, PTHREAD_RWLOCK_PREFER_WRITER_NONRECURSIVE_NP);
    pthread_rwlock_init(&step->freeze, &attr);
    pthread_rwlockattr_destroy(&attr);
    return step;
}

struct stage_step *ckpt_stage_step_by_name(struct ckpt_stages *set, const char *name)
{
    struct stage_step *s = set->steps;
    while (s && strcmp(s->name, name))
        s = s->next;
    return s;
}

struct stage_step *ckpt_stage_step_ref(struct ckpt_stages *set, const char *name)
{
    CKPT_GUARD(&set->lock);
    struct stage_step *s = ckpt_stage_step_by_name(set, name);
    if (s)
        s->uses++;
    return s;
}

/* Its directory goes to the trash in one call; taking that apart may last. */
struct trashed {
    struct ckpt_stages *set;
    char name[64];
};

static void remove_trash(void *arg)
{
    struct trashed *r = arg;
    ckpt_disk_remove_tree(r->set->store->trash, r->name);
    free(r);
}

static void trash_dir(struct ckpt_stages *set, const char *id)
{
    struct trashed *r = malloc(sizeof *r);
    if (!r)
        return; /* gc finds it without an owner */
    r->set = set;
    snprintf(r->name, sizeof r->name, "staging-%s", id);
    int moved = ckpt_disk_rename(set->store->staging, id, set->store->trash, r->name, 0);
    if (moved < 0 || ckpt_pool_submit(set->pool, remove_trash, r) < 0)
        free(r);
}

void ckpt_stage_end(struct stage_step *step)
{
    struct ckpt_stages *set = step->set;
    pthread_mutex_lock(&set->lock);
    atomic_store(&step->state, STAGE_GONE);
    struct stage_step **link = &set->steps;
    while (*link && *link != step)
        link = &(*link)->next;
    bool listed = *link;
    if (listed)
        *link = step->next;
    step->top = NULL;
    ckpt_stage_drop_jobs(step);
    ckpt_stage_close_inodes(step);
    if (listed)
        ckpt_stage_step_unref_locked(step);
    set->gc_wanted = true;
    pthread_mutex_unlock(&set->lock);
    trash_dir(set, step->id); /* last: who closes a file that has no name any more waits until its pages are freed */
}

int ckpt_stage_make_dirs(struct stage_step *step, mode_t mode)
{
    struct ckpt_store *store = step->set->store;
    struct ckpt_work work;
    int r = ckpt_work_begin(store, &work, NULL);
    if (r < 0)
        return r;
    snprintf(step->id, sizeof step->id, "%s", work.id);
    step->work = work.dir;
    step->tree = work.tree;
    step->hold = work.hold;
    step->lock = work.lock;
    return fchmod(step->tree, mode & 07777) < 0 ? -errno : 0;
}

/* A file system's sync, since a copy has files that share what is stored by the thousand. */
static int note_base(struct stage_step *step, const char *base_id)
{
    int r = ckpt_disk_syncfs(step->work);
    return r < 0 ? r : ckpt_disk_replace(step->work, "base", base_id, strlen(base_id));
}

int ckpt_stage_name_dir(struct stage_step *step, const char *name, const char *base_id)
{
    const struct ckpt_stage_options *opt = &step->set->opt;
    char writer[16];
    int r = 0;
    if (opt->writers) {
        snprintf(writer, sizeof writer, "%u", opt->writer);
        r = ckpt_disk_replace(step->work, "writer", writer, strlen(writer));
    }
    if (r == 0 && *base_id)
        r = note_base(step, base_id);
    if (r == 0)
        r = ckpt_disk_replace(step->work, "name", name, strlen(name)); /* and what is beside it */
    return r < 0 ? r : ckpt_disk_fsync(step->set->store->staging);
}

int ckpt_stage_publish(struct stage_step *step, const char *name)
{
    struct ckpt_stages *set = step->set;
    int r = ckpt_stage_add_top(step, name);
    if (r < 0)
        return r;
    CKPT_GUARD(&set->lock);
    if (ckpt_stage_step_by_name(set, name))
        return -EEXIST;
    step->next = set->steps;
    set->steps = step;
    step->uses++;
    return 0;
}

void ckpt_stage_drop(struct stage_step *step)
{
    struct ckpt_stages *set = step->set;
    if (step->work >= 0)
        trash_dir(set, step->id);
    CKPT_GUARD(&set->lock);
    atomic_store(&step->state, STAGE_GONE);
    step->top = NULL;
    ckpt_stage_close_inodes(step);
    ckpt_stage_step_unref_locked(step);
}
