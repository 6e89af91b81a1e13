/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Which steps go. Rules add up: a step stays if any of them keeps it, if it is pinned, if it is the latest, or if it
 * cannot be judged, because its manifest or its metrics cannot be read. One that cannot be read is in no other's place:
 * the latest steps are those that can. Without a rule everything stays; and so it does where the only rule is a metric
 * that no step has, since then it is more likely that its name is wrong.
 *
 * Judging reads manifests and takes its time, so it is done without the lock. Then, with the lock held exclusively (no
 * commit, deletion or renaming meanwhile), the steps are listed again: what is not the manifest that was judged stays,
 * and if the latest step has changed all is judged anew.
 */
#include "core/store/metrics.h"

#include "core/base/log.h"
#include "core/base/util.h"
#include "core/store/internal.h"

#include <math.h>
#include <stdio.h>

#define TRIES 10

struct judgement {
    struct ckpt_store_step *steps;
    size_t count;
    bool *keep;
};

static void clear(struct judgement *j)
{
    ckpt_store_steps_free(j->steps, j->count);
    free(j->keep);
    *j = (struct judgement){0};
}

static bool any_rule(const struct ckpt_retention *r)
{
    return r->keep_last || r->keep_period || r->keep_newer > 0 || *r->best_metric;
}

/* --- the best --- */

struct score {
    size_t step;
    double value;
};

static int compare_values(const struct score *x, const struct score *y)
{
    return (x->value > y->value) - (x->value < y->value);
}

/* Of equal ones the later is the better. */
static int compare_ages(const struct score *x, const struct score *y)
{
    return (x->step < y->step) - (x->step > y->step);
}

static int best_first_min(const void *a, const void *b)
{
    int d = compare_values(a, b);
    return d ? d : compare_ages(a, b);
}

static int best_first_max(const void *a, const void *b)
{
    int d = compare_values(b, a);
    return d ? d : compare_ages(a, b);
}

static void sort_scores(const struct ckpt_retention *r, struct score *scores, size_t count)
{
    qsort(scores, count, sizeof *scores, r->best_max ? best_first_max : best_first_min);
}

static int read_scores(struct ckpt_store *s, const struct ckpt_retention *r, struct judgement *j, struct score *scores,
                       size_t *ret_count, struct ckpt_err *err)
{
    struct ckpt_metrics *metrics;
    struct ckpt_err why;
    int e = ckpt_metrics_open(s, &metrics, err);
    if (e < 0)
        return e;
    for (size_t i = 0; i < j->count; i++) {
        double value;
        why = (struct ckpt_err){0};
        int found = ckpt_metrics_get(metrics, j->steps[i].name, r->best_metric, &value, &why);
        if (found == 1)
            scores[(*ret_count)++] = (struct score){i, value};
        else if (found < 0 && found != -ENOENT) {
            ckpt_log(CKPT_LOG_WARN, "%s: step %s is kept, its metrics cannot be read: %s", s->path, j->steps[i].name,
                     why.text);
            j->keep[i] = true;
        }
    }
    ckpt_metrics_close(metrics);
    return 0;
}

static int keep_best(struct ckpt_store *s, const struct ckpt_retention *r, struct judgement *j, struct ckpt_err *err)
{
    CKPT_AUTOFREE struct score *scores = calloc(j->count, sizeof *scores);
    size_t count = 0;
    if (!scores)
        return ckpt_no_memory(err);
    int e = read_scores(s, r, j, scores, &count, err);
    if (e < 0)
        return e;
    sort_scores(r, scores, count);
    uint64_t best = r->keep_best ? r->keep_best : 1;
    for (size_t i = 0; i < count && i < best; i++)
        j->keep[scores[i].step] = true;
    bool alone = !r->keep_last && !r->keep_period && !(r->keep_newer > 0);
    if (!count && alone)
        memset(j->keep, true, j->count);
    return 0;
}

int ckpt_store_best(struct ckpt_store *s, char ret[CKPT_STEP_NAME + 1], struct ckpt_err *err)
{
    struct ckpt_store_config config;
    struct judgement j = {0};
    size_t count = 0;
    int r = ckpt_store_config_read(s, &config, err);
    if (r < 0 || !*config.retention.best_metric)
        return r;
    r = ckpt_store_steps(s, false, &j.steps, &j.count, err);
    if (r < 0)
        return r;
    CKPT_AUTOFREE struct score *scores = calloc(j.count + 1, sizeof *scores);
    j.keep = calloc(j.count + 1, sizeof *j.keep); /* not looked at: reading the scores writes to it */
    if (scores && j.keep)
        r = read_scores(s, &config.retention, &j, scores, &count, err);
    else
        r = ckpt_no_memory(err);
    if (r == 0 && count) {
        sort_scores(&config.retention, scores, count);
        snprintf(ret, CKPT_STEP_NAME + 1, "%s", j.steps[scores[0].step].name);
    }
    clear(&j);
    return r < 0 ? r : count > 0;
}

/* --- all rules --- */

static void keep_latest(struct ckpt_store *s, uint64_t wanted, struct judgement *j)
{
    for (size_t i = j->count; i-- && wanted;) {
        j->keep[i] = true;
        wanted -= ckpt_store_step_is_whole(s, j->steps[i].name);
    }
}

static bool is_periodic(const struct ckpt_retention *r, const struct ckpt_store_step *step)
{
    return r->keep_period && fmod(step->number, (double)r->keep_period) == 0;
}

/* One without an id cannot be read, and its age is not known. */
static bool is_newer(const struct ckpt_retention *r, const struct ckpt_store_step *step, uint64_t now)
{
    if (!(r->keep_newer > 0))
        return false;
    if (!*step->id || step->time_ns > now)
        return true;
    return (double)(now - step->time_ns) < r->keep_newer * 1e9;
}

static void apply_rules(struct ckpt_store *s, const struct ckpt_retention *r, struct judgement *j)
{
    uint64_t now = (uint64_t)ckpt_realtime_ns();
    keep_latest(s, CKPT_MAX(r->keep_last, (uint64_t)1), j);
    for (size_t i = 0; i < j->count; i++) {
        const struct ckpt_store_step *step = &j->steps[i];
        if (step->pinned || is_periodic(r, step) || is_newer(r, step, now))
            j->keep[i] = true;
    }
}

static int judge(struct ckpt_store *s, struct judgement *j, struct ckpt_err *err)
{
    struct ckpt_store_config config;
    int r = ckpt_store_config_read(s, &config, err);
    if (r < 0 || !any_rule(&config.retention))
        return r;
    r = ckpt_store_steps(s, config.retention.keep_newer > 0, &j->steps, &j->count, err);
    if (r < 0 || !j->count)
        return r;
    j->keep = calloc(j->count, sizeof *j->keep);
    if (!j->keep)
        return ckpt_no_memory(err);
    apply_rules(s, &config.retention, j);
    return *config.retention.best_metric ? keep_best(s, &config.retention, j, err) : 0;
}

/* --- deletion --- */

static bool is_same_step(const struct ckpt_store_step *a, const struct ckpt_store_step *b)
{
    bool same_file = a->ino == b->ino && a->dev == b->dev && a->mtime_ns == b->mtime_ns;
    return same_file && !strcmp(a->name, b->name);
}

/* As steps are listed. */
static int compare_steps(const struct ckpt_store_step *a, const struct ckpt_store_step *b)
{
    if (a->number != b->number)
        return a->number < b->number ? -1 : 1;
    return strcmp(a->name, b->name);
}

/* The step of that name, as listed now. */
static const struct ckpt_store_step *find_step(const struct judgement *now, const struct ckpt_store_step *step)
{
    size_t low = 0, high = now->count;
    while (low < high) {
        size_t mid = low + (high - low) / 2;
        const struct ckpt_store_step *m = &now->steps[mid];
        int order = compare_steps(m, step);
        if (order == 0)
            return m;
        if (order < 0)
            low = mid + 1;
        else
            high = mid;
    }
    return NULL;
}

static bool same_latest(const struct judgement *now, const struct judgement *judged)
{
    if (!now->count)
        return false;
    return is_same_step(&now->steps[now->count - 1], &judged->steps[judged->count - 1]);
}

/* The lock is held. How many; -EAGAIN: judge anew. */
static int delete_judged(struct ckpt_store *s, const struct judgement *j, void (*tell)(void *arg, const char *step),
                         void *arg, struct ckpt_err *err)
{
    struct judgement now = {0};
    int count = 0, r = ckpt_store_steps(s, false, &now.steps, &now.count, err);
    if (r == 0 && !same_latest(&now, j))
        r = -EAGAIN;
    for (size_t i = 0; i < j->count && r == 0; i++) {
        const struct ckpt_store_step *step = j->keep[i] ? NULL : find_step(&now, &j->steps[i]);
        if (!step || step->pinned || !is_same_step(step, &j->steps[i]))
            continue;
        r = ckpt_store_delete_locked(s, step->name, err);
        count += r == 0;
        if (r == 0 && tell)
            tell(arg, step->name);
    }
    clear(&now);
    return r < 0 ? r : count;
}

static bool anything(const struct judgement *j)
{
    for (size_t i = 0; i < j->count; i++)
        if (!j->keep[i])
            return true;
    return false;
}

static int tell_judged(const struct judgement *j, void (*tell)(void *arg, const char *step), void *arg)
{
    int count = 0;
    for (size_t i = 0; i < j->count; i++)
        if (!j->keep[i]) {
            count++;
            if (tell)
                tell(arg, j->steps[i].name);
        }
    return count;
}

static int prune_once(struct ckpt_store *s, bool dry, void (*tell)(void *arg, const char *step), void *arg,
                      struct ckpt_err *err)
{
    struct judgement j = {0};
    int r = judge(s, &j, err);
    if (r == 0 && j.keep && anything(&j)) {
        if (dry)
            r = tell_judged(&j, tell, arg);
        else {
            CKPT_AUTOFD int lock = ckpt_store_lock(s, true);
            r = lock < 0 ? ckpt_fail(err, -lock, "%s: the lock cannot be taken: %s", s->path, strerror(-lock))
                         : delete_judged(s, &j, tell, arg, err);
        }
    }
    clear(&j);
    return r;
}

int ckpt_store_prune(struct ckpt_store *s, bool dry, void (*tell)(void *arg, const char *step), void *arg,
                     struct ckpt_err *err)
{
    int r = -EAGAIN;
    for (int i = 0; r == -EAGAIN && i < TRIES; i++)
        r = prune_once(s, dry, tell, arg, err);
    return r == -EAGAIN ? ckpt_fail(err, EAGAIN, "%s: its steps change too quickly to be pruned", s->path) : r;
}
