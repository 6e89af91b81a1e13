/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What uses a staged step: references, changes under way, which a commit waits for, and what it keeps of them. It knows
 * nothing of the files in it.
 */
#include "core/stage/private.h"

#include "core/base/rights.h"
#include "core/store/internal.h"

#include <stdio.h>
#include <sys/stat.h>

/* --- what keeps it --- */

static void close_dirs(struct stage_step *step)
{
    int *fds[] = {&step->work, &step->tree, &step->hold, &step->lock};
    for (size_t i = 0; i < sizeof fds / sizeof *fds; i++) {
        if (*fds[i] >= 0)
            close(*fds[i]);
        *fds[i] = -1;
    }
    ckpt_stage_uncharge(step);
}

void ckpt_stage_step_close_idle(struct stage_step *step)
{
    bool idle = step->uses == step->inodes && !step->busy && !step->jobs;
    bool gone = atomic_load(&step->state) == STAGE_GONE;
    if (idle && gone && step->tree >= 0)
        close_dirs(step);
}

void ckpt_stage_step_unref_locked(struct stage_step *step)
{
    if (--step->uses) {
        ckpt_stage_step_close_idle(step);
        return;
    }
    close_dirs(step);
    pthread_rwlock_destroy(&step->freeze);
    pthread_mutex_destroy(&step->names);
    free(step->processes);
    free(step->error);
    free(step->name);
    free(step);
}

int ckpt_stage_enter(struct stage_step *step)
{
    if (pthread_rwlock_tryrdlock(&step->freeze) != 0) { /* it is being committed */
        int r = ckpt_waiting_begin();
        if (r < 0)
            return r;
        pthread_rwlock_rdlock(&step->freeze);
        ckpt_waiting_end();
    }
    if (atomic_load(&step->state) == STAGE_OPEN)
        return 0;
    pthread_rwlock_unlock(&step->freeze);
    return -ESTALE;
}

void ckpt_stage_leave(struct stage_step *step)
{
    pthread_rwlock_unlock(&step->freeze);
}

void ckpt_stage_step_unref(struct stage_step *step)
{
    struct ckpt_stages *set = step->set;
    CKPT_GUARD(&set->lock);
    ckpt_stage_step_unref_locked(step);
}

/* --- what happens to it --- */

void ckpt_stage_touch(struct stage_step *step, const struct ckpt_caller *who)
{
    if (step->files_view)
        return;
    CKPT_GUARD(&step->set->lock);
    if (who->pid)
        ckpt_stage_end_awaited_locked(step, who->pid);
    step->touched = true;
    step->tried = false;
    step->changed_ns = ckpt_monotonic_ns();
    ckpt_stage_add_process_locked(step, who->pid);
}

void ckpt_stage_write_failed(struct stage_step *step, int r)
{
    bool lost = r == -ENOSPC || r == -EDQUOT || r == -EIO; /* others are the caller's mistake */
    if (!lost || step->files_view)
        return;
    struct ckpt_err err;
    ckpt_fail(&err, -r,
              "a file could not be written: %s. It is not committed by itself any more; commit it with sync when it is "
              "complete",
              strerror(-r));
    pthread_mutex_lock(&step->set->lock);
    step->write_failed = true;
    pthread_mutex_unlock(&step->set->lock);
    ckpt_stage_set_error(step, &err);
}

bool ckpt_stage_number(const struct stage_step *step, double *ret)
{
    if (*step->base_id) /* a changed step keeps its name, whatever version gave it */
        return ckpt_step_is_stored(step->name, ret);
    return ckpt_step_name(step->name, ret);
}

void ckpt_stage_set_error(struct stage_step *step, const struct ckpt_err *err)
{
    CKPT_GUARD(&step->set->lock);
    free(step->error);
    step->error = err && err->code ? strdup(err->text) : NULL;
    step->told_name = false;
}

void ckpt_stage_end_awaited_locked(struct stage_step *step, pid_t thread)
{
    for (unsigned i = 0; i < STAGE_AWAITED; i++)
        if (step->awaited[i].until_ns && step->awaited[i].thread == thread) {
            step->awaited[i].until_ns = 0;
            pthread_cond_broadcast(&step->set->idle);
        }
}

/* --- small things --- */

int ckpt_stage_read_text(int dir, const char *name, char *buf, size_t len)
{
    CKPT_AUTOFD int fd = openat(dir, name, O_RDONLY | O_CLOEXEC);
    ssize_t n = fd < 0 ? -1 : pread(fd, buf, len - 1, 0);
    if (n < 0)
        return -errno;
    buf[n] = 0;
    return 0;
}

int ckpt_stage_metadata(struct stage_step *step, char **ret, size_t *ret_len)
{
    *ret = NULL;
    int r = ckpt_text_at(step->work, STAGE_METADATA, STAGE_METADATA_MAX, ret, ret_len);
    return r == -ENOENT ? 0 : r;
}

int ckpt_stage_may_commit(struct stage_step *step, const struct ckpt_caller *who, struct ckpt_err *err)
{
    struct stat st;
    if (fstat(step->tree, &st) < 0)
        return ckpt_fail(err, errno, "%s", strerror(errno));
    if (ckpt_caller_owns(who, st.st_uid) || ckpt_caller_may(who, st.st_mode, st.st_uid, st.st_gid, 2))
        return 0;
    return ckpt_fail(err, EACCES, "the step is committed by its owner, or by who may write to it");
}

struct timespec ckpt_stage_deadline(int64_t ns)
{
    return ckpt_timespec(ckpt_realtime_ns() + ns);
}
