/* SPDX-License-Identifier: Apache-2.0 */
/* The commit of a step that several writers make together: its own part, and, for the one that sees the last part come,
 * the whole. */
#include "core/stage/private.h"
#include "core/store/seal.h"
#include "core/store/writers.h"

#include <stdio.h>
#include <time.h>

#define POLL_NS 50000000l

struct putting {
    struct ckpt_writers *writers;
    const struct ckpt_stage_options *opt;
    const char *id;              /* of the part */
    char before[STAGE_PART_IDS]; /* of the parts that may be there from earlier commits, a line each */
};

/* While the part takes the place of the one before it, either may be the one that the whole is made of. A process that
 * is killed meanwhile must find its step among the committed ones by either id. */
static int put_part(void *arg, int work, const char *manifest, struct ckpt_err *err)
{
    struct putting *p = arg;
    char ids[STAGE_PART_IDS];
    snprintf(ids, sizeof ids, "%s\n%.*s", p->id, STAGE_PART_IDS - CKPT_MANIFEST_ID - 1, p->before);
    int r = ckpt_disk_replace(work, "commit", ids, strlen(ids));
    if (r < 0)
        return ckpt_fail(err, -r, "the part's id cannot be noted: %s", strerror(-r));
    r = ckpt_writers_put(p->writers, p->opt->writer, p->opt->writers, work, manifest, err);
    if (r == 0 && *p->before)
        (void)!ckpt_disk_replace(work, "commit", p->id, strlen(p->id)); /* else one id too many is noted, of no part */
    return r;
}

/* --- the whole --- */

static int add_part(void *arg, struct ckpt_file *part, struct ckpt_err *err)
{
    return ckpt_stage_copy_tree(arg, part, NULL, err);
}

/* A staged step that nobody sees gets what is in all parts, and is committed as any other. */
static int make_whole(struct stage_step *step, struct ckpt_writers *w, const char *name, atomic_bool *interrupted,
                      struct ckpt_err *err)
{
    char id[33];
    struct stage_step *whole = ckpt_stage_begin(step->set);
    if (!whole)
        return ckpt_no_memory(err);
    int r = ckpt_stage_make_dirs(whole, 0755);
    if (r < 0)
        ckpt_fail(err, -r, "%s: %s", name, strerror(-r));
    if (r == 0 && !(whole->name = strdup(name)))
        r = ckpt_no_memory(err);
    if (r == 0)
        r = ckpt_writers_id(w, id, err);
    if (r == 0)
        r = ckpt_writers_each(w, add_part, whole, err);
    if (r == 0)
        r = ckpt_stage_run_commit(whole, name, whole->set->opt.overwrite, NULL, NULL, interrupted, id, err);
    ckpt_stage_drop(whole);
    return r;
}

/* If all parts are there, and nobody else was quicker. */
static int try_whole(struct stage_step *step, struct ckpt_writers *w, const char *name, atomic_bool *interrupted,
                     struct ckpt_err *err)
{
    unsigned n = step->set->opt.writers;
    int r = ckpt_writers_complete(w, n, err);
    if (r != 1)
        return r;
    CKPT_AUTOFD int lock = ckpt_writers_lock(w, err);
    if (lock < 0)
        return lock == -ESTALE ? 0 : lock; /* they went to the trash: the caller finds there what became of them */
    r = ckpt_writers_complete(w, n, err);
    if (r != 1)
        return r;
    r = make_whole(step, w, name, interrupted, err);
    if (r == -EINTR) /* another may do it, or this one later */
        return r;
    int told = ckpt_writers_finish(w, r, err);
    if (r == 0 && told < 0)
        ckpt_log(CKPT_LOG_WARN, "%s: step %s is committed, but the other writers cannot be told: %s",
                 step->set->store->path, name, strerror(-told));
    return r;
}

/* --- waiting --- */

static int wait_for_others(struct stage_step *step, struct ckpt_writers *w, const char *name, const char *part,
                           atomic_bool *interrupted, struct ckpt_err *err)
{
    const struct ckpt_stage_options *o = &step->set->opt;
    for (int64_t end = ckpt_monotonic_ns() + (int64_t)(o->commit_timeout * 1e9);;) {
        int r = try_whole(step, w, name, interrupted, err);
        if (r == 0)
            r = ckpt_writers_done(w, part, err);
        if (r)
            return CKPT_MIN(r, 0);
        if (interrupted && atomic_load(interrupted))
            return ckpt_fail(err, EINTR, "the commit was interrupted");
        if (ckpt_monotonic_ns() >= end) {
            char missing[160];
            ckpt_writers_missing(w, o->writers, missing, sizeof missing);
            return ckpt_fail(err, ETIMEDOUT,
                             "%s: of %u writers these did not arrive within %g s: %s. Sync again to go on waiting, or "
                             "remove the step",
                             name, o->writers, o->commit_timeout, missing);
        }
        nanosleep(&(struct timespec){.tv_nsec = POLL_NS}, NULL);
    }
}

static bool is_committed(struct ckpt_stages *set, const char *name)
{
    char file[CKPT_STEP_NAME + 8];
    snprintf(file, sizeof file, "%s.json", name);
    return faccessat(set->store->steps, file, F_OK, AT_SYMLINK_NOFOLLOW) == 0;
}

int ckpt_stage_commit_part(struct stage_step *step, const char *name, atomic_bool *interrupted, struct ckpt_err *err)
{
    struct ckpt_stages *set = step->set;
    char part[CKPT_MANIFEST_ID] = "";
    struct putting p = {.opt = &set->opt, .id = part};
    if (*step->base_id)
        return ckpt_fail(
            err, EOPNOTSUPP,
            "%s: several writers make a new step; a committed one is changed in a mount without writers=", name);
    (void)!ckpt_stage_read_text(step->work, "commit", p.before, sizeof p.before);
    int r = ckpt_writers_open(set->store, name, p.before, &p.writers, err);
    if (r < 0)
        return r;
    if (!set->opt.overwrite && !ckpt_writers_made(p.writers) && is_committed(set, name))
        r = ckpt_fail(err, EEXIST, "there is a step %s already", name);
    if (r == 0)
        r = ckpt_stage_run_commit(step, name, true, put_part, &p, interrupted, part, err);
    if (r == 0)
        r = wait_for_others(step, p.writers, name, part, interrupted, err);
    if (r < 0)
        ckpt_seal_undo_all(step->hold);
    ckpt_writers_close(p.writers);
    return r;
}
