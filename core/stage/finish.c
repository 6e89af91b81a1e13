/* SPDX-License-Identifier: Apache-2.0 */
/* The commit of a staged step: it waits until nobody writes, and ends the step when that has become a committed one. */
#include "core/stage/private.h"

#include "core/base/path.h"
#include "core/store/internal.h"

#include <dirent.h>
#include <stdio.h>
#include <sys/xattr.h>

#define AWAITED_MAX_NS 2000000000ll /* in all, where ever new ones come */
#define CLOSE_WAIT_NS  500000000l   /* the kernel tells of a close a little after the program has gone on */

/* The path in the step of a file that is open for writing. Under the set's lock. */
static void open_name(struct stage_step *step, char *ret, size_t len)
{
    struct ckpt_stages *set = step->set;
    char link[32], tree[PATH_MAX], path[PATH_MAX];
    snprintf(ret, len, "a file");
    ckpt_fd_path(link, step->tree);
    ssize_t top = readlink(link, tree, sizeof tree - 1), n;
    for (unsigned i = 0; i < STAGE_BUCKETS && top > 0; i++)
        for (struct stage_inode *f = set->by_id[i]; f; f = f->next_id) {
            if (f->step != step || !f->open_writes || f->fd < 0)
                continue;
            ckpt_fd_path(link, f->fd);
            n = readlink(link, path, sizeof path - 1);
            if (n > top + 1)
                snprintf(ret, len, "%.*s", (int)(n - top - 1), path + top + 1);
            return;
        }
}

static bool is_interrupted(const atomic_bool *interrupted)
{
    return interrupted && atomic_load(interrupted);
}

/* Nobody writes, and nothing is under way. Under freeze's writer. */
static int wait_quiet(struct stage_step *step, const atomic_bool *interrupted, struct ckpt_err *err)
{
    struct ckpt_stages *set = step->set;
    struct timespec until = ckpt_stage_deadline(CLOSE_WAIT_NS);
    CKPT_GUARD(&set->lock);
    while (step->open_writes && pthread_cond_timedwait(&set->idle, &set->lock, &until) == 0)
        ;
    if (step->open_writes) {
        char name[PATH_MAX];
        open_name(step, name, sizeof name);
        if (step->open_writes == 1)
            return ckpt_fail(err, EBUSY, "%s is still open for writing: close it first", name);
        return ckpt_fail(err, EBUSY, "%s, and others, are still open for writing: close them first", name);
    }
    ckpt_stage_drop_jobs(step);
    while (step->jobs && !is_interrupted(interrupted) && !set->closing) {
        until = ckpt_stage_deadline(1000000000); /* an interruption wakes nobody */
        pthread_cond_timedwait(&set->idle, &set->lock, &until);
    }
    return step->jobs ? ckpt_fail(err, EINTR, "the commit was interrupted") : 0;
}

int ckpt_stage_run_commit(struct stage_step *step, const char *name, bool overwrite,
                          int (*put)(void *arg, int work, const char *manifest, struct ckpt_err *err), void *put_arg,
                          atomic_bool *interrupted, char id[33], struct ckpt_err *err)
{
    struct ckpt_stages *set = step->set;
    struct ckpt_store_config config;
    atomic_store(&step->sealed, true);
    CKPT_AUTOFREE char *metadata = NULL;
    size_t len;
    bool same_name = !strcmp(name, step->name);
    int r = ckpt_stage_metadata(step, &metadata, &len);
    if (r < 0)
        return ckpt_fail(err, -r, "%s: its metadata cannot be read: %s", name, strerror(-r));
    r = ckpt_store_config_read(set->store, &config, err);
    if (!*id)
        ckpt_random_hex(id, 16);
    if (r == 0 && !put) /* a part's id is noted by who puts it */
        r = ckpt_disk_replace(step->work, "commit", id, strlen(id));
    if (r < 0)
        return ckpt_fail(err, -r, "%s: %s", name, strerror(-r));
    struct ckpt_commit c = {
        .store = set->store,
        .hold = stage_hold(step),
        .work = step->work,
        .tree = step->tree,
        .name = name,
        .id = id,
        .overwrite = overwrite,
        .base_id = same_name && *step->base_id ? step->base_id : NULL,
        .codec = set->opt.set_codec ? set->opt.codec : config.codec,
        .metadata = metadata && *metadata ? metadata : NULL,
        .known = ckpt_stage_known,
        .arg = step,
        .put = put,
        .put_arg = put_arg,
        .threads = set->opt.threads,
        .interrupted = interrupted,
    };
    return r < 0 ? r : ckpt_commit_run(&c, err);
}

/* What retention does not keep goes with the commit, so that whoever looks afterwards sees what stays. */
static void prune(struct ckpt_stages *set)
{
    struct ckpt_err err = {0};
    int n = ckpt_store_prune(set->store, false, NULL, NULL, &err);
    if (n > 0)
        set->opt.changed(set->opt.arg, NULL);
    if (n < 0)
        ckpt_log(CKPT_LOG_WARN, "%s: retention: %s", set->store->path, err.text);
}

/* A step that was pinned while it was staged. */
static bool has_pin(struct stage_step *step)
{
    char value[2];
    return fgetxattr(step->tree, "user.ckpt.pinned", value, sizeof value) == 1 && value[0] == '1';
}

bool ckpt_stage_is_settled(struct stage_step *step)
{
    double number;
    if (!step->touched || step->write_failed || step->open_writes)
        return false;
    if (!ckpt_stage_number(step, &number))
        return false;
    int64_t quiet_ns = ckpt_monotonic_ns() - step->changed_ns;
    return quiet_ns >= (int64_t)(step->set->opt.settle * 1e9) && ckpt_stage_processes_ended(step);
}

/* Once more when changes are kept out: a writer may have begun since it was seen. */
static bool still_settled(struct stage_step *step)
{
    CKPT_GUARD(&step->set->lock);
    if (ckpt_stage_is_settled(step))
        return true;
    step->tried = false;
    return false;
}

/* Changes wait from now on. Before that come those who have looked something up for the second time: they are not told
 * -ESTALE twice. */
static void freeze(struct stage_step *step)
{
    int64_t end = ckpt_monotonic_ns() + AWAITED_MAX_NS;
    for (;;) {
        ckpt_stage_wait_awaited(step, end);
        pthread_rwlock_wrlock(&step->freeze);
        if (ckpt_monotonic_ns() >= end || !ckpt_stage_is_awaited(step))
            return;
        pthread_rwlock_unlock(&step->freeze);
    }
}

/* Under freeze's writer. *ret_name: that of the committed step, to be freed; it is set also where that fails. */
static int commit_frozen(struct stage_step *step, const char *as, atomic_bool *interrupted, char **ret_name,
                         struct ckpt_err *err)
{
    struct ckpt_stages *set = step->set;
    char id[CKPT_MANIFEST_ID] = "";
    if (atomic_load(&step->state) != STAGE_OPEN)
        return -ESTALE;
    char *name = *ret_name = strdup(as ? as : step->name);
    if (!name)
        return -ENOMEM;
    int r = wait_quiet(step, interrupted, err);
    if (r < 0)
        return r;
    bool overwrite = as && set->opt.overwrite;
    if (set->opt.writers)
        r = ckpt_stage_commit_part(step, name, interrupted, err);
    else
        r = ckpt_stage_run_commit(step, name, overwrite, NULL, NULL, interrupted, id, err);
    if (r == 0)
        ckpt_stage_lineage_add(step, id, name);
    return r;
}

static void report_commit(struct stage_step *step, const char *name, int r, const struct ckpt_err *err)
{
    const char *path = step->set->store->path;
    if (r == 0) {
        prune(step->set);
        ckpt_log(CKPT_LOG_INFO, "%s: step %s is committed", path, name);
    } else if (r != -ESTALE) {
        ckpt_stage_set_error(step, err);
        ckpt_log(CKPT_LOG_WARN, "%s: step %s is not committed: %s", path, name ? name : "", err->text);
    }
}

static int commit_as(struct stage_step *step, const char *as, bool if_settled, atomic_bool *interrupted,
                     struct ckpt_err *err)
{
    struct ckpt_stages *set = step->set;
    struct ckpt_err own = {0};
    CKPT_AUTOFREE char *name = NULL;
    freeze(step);
    bool open = atomic_load(&step->state) == STAGE_OPEN;
    if (if_settled && open && !still_settled(step)) {
        pthread_rwlock_unlock(&step->freeze);
        return -EAGAIN;
    }
    int r = commit_frozen(step, as, interrupted, &name, &own);
    if (r < 0 && !own.code)
        ckpt_fail(&own, -r, "%s", strerror(-r));
    bool pinned = r == 0 && has_pin(step);
    if (r == 0) { /* the committed step is seen before the staged one goes */
        set->opt.changed(set->opt.arg, name);
        ckpt_stage_end(step);
    }
    pthread_rwlock_unlock(&step->freeze);
    if (pinned && ckpt_store_pin(set->store, name, true, &own) < 0)
        ckpt_log(CKPT_LOG_WARN, "%s: step %s is not pinned: %s", set->store->path, name, own.text);
    report_commit(step, name, r, &own);
    if (err)
        *err = own;
    return r;
}

int ckpt_stage_commit_as(struct stage_step *step, const char *as, bool if_settled, atomic_bool *interrupted,
                         struct ckpt_err *err)
{
    int r = ckpt_waiting_begin();
    if (r < 0)
        return ckpt_fail(err, -r, "too many commits wait: try again when others have ended");
    r = commit_as(step, as, if_settled, interrupted, err);
    ckpt_waiting_end();
    return r;
}

int ckpt_stage_commit(struct ckpt_stages *set, const char *name, const struct ckpt_caller *who, struct ckpt_err *err)
{
    struct stage_step *step = ckpt_stage_step_ref(set, name);
    if (!step)
        return ckpt_fail(err, ENOENT, "%s: no staged step of that name", name);
    int r = ckpt_stage_commit_as(step, NULL, false, who->interrupted, err);
    ckpt_stage_step_unref(step);
    return r;
}

/* A directory's entries; of files that were linked there, which are new ones on disk, the attributes too. */
static int fsync_names(struct stage_step *step, int fd)
{
    if (!atomic_exchange(&step->unsynced, false))
        return ckpt_disk_fsync(fd);
    int r = ckpt_disk_syncfs(fd);
    if (r < 0)
        atomic_store(&step->unsynced, true);
    return r;
}

static int fsync_dir(const struct stage_inode *n)
{
    struct stage_step *step = n->step;
    CKPT_AUTOFD int fd = ckpt_stage_reopen(n->fd, O_RDONLY);
    if (fd < 0)
        return fd;
    int r = fsync_names(step, fd);
    if (r < 0 || step->files_view)
        return r;
    return ckpt_disk_fsync(step->hold); /* files in it may share content, which the step holds there */
}

/* It is on the disk, and no step: whoever asked for that may have meant a commit. */
static void tell_uncommitted(struct stage_step *step)
{
    struct ckpt_err err = {0};
    CKPT_GUARD(&step->set->lock);
    if (step->told_name)
        return;
    ckpt_fail(&err, EINVAL,
              "%s stays staged, since that is not a step's name: rename it to one to commit it; " CKPT_STEP_RULE,
              step->name);
    ckpt_log(CKPT_LOG_WARN, "%s: sync: %s", step->set->store->path, err.text);
    if (step->write_failed) /* which is told already, and worse */
        return;
    free(step->error);
    step->error = strdup(err.text);
    step->told_name = step->error;
}

int ckpt_stage_fsyncdir(struct ckpt_stages *set, uint64_t id, const struct ckpt_caller *who, struct ckpt_err *err)
{
    struct stage_inode *n;
    double number;
    int r = ckpt_stage_use(set, id, &n);
    if (r < 0)
        return r;
    struct stage_step *step = n->step;
    pthread_mutex_lock(&set->lock);
    bool is_top = n == step->top && !step->files_view;
    bool commit = is_top && ckpt_stage_number(step, &number);
    step->uses++;
    pthread_mutex_unlock(&set->lock);
    if (!commit)
        r = fsync_dir(n);
    if (r == 0 && is_top && !commit)
        tell_uncommitted(step);
    ckpt_stage_unuse(n);
    if (commit) {
        r = ckpt_stage_may_commit(step, who, err);
        if (r == 0)
            r = ckpt_stage_commit_as(step, NULL, false, who->interrupted, err);
    }
    ckpt_stage_step_unref(step);
    return r;
}
