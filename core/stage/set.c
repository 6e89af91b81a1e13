/* SPDX-License-Identifier: Apache-2.0 */
/* The staged steps of a root: taken over when it is opened, committed by themselves when they have settled, made ready
 * for the next mount at its end. */
#include "core/stage/private.h"

#include "core/store/internal.h"
#include "core/store/writers.h"

#include <stdio.h>
#include <sys/resource.h>

#define TICK_NS   200000000l
#define SETTLINGS 8     /* steps that commit by themselves at once */
#define MAX_FDS   8192u /* that inodes may hold, beside those that are in use */

/* --- by itself --- */

/* A step that is being committed by itself, in a thread of its own: it may last, and those of other users do not wait
 * for it. */
struct settling {
    struct ckpt_stages *set;
    struct stage_step *step; /* kept */
    uid_t uid;               /* whose it is: one at a time of each user's */
    char name[CKPT_STEP_NAME + 1];
    struct settling *next;
};

/* Under the set's lock. */
static bool has_turn(const struct ckpt_stages *set, uid_t uid)
{
    unsigned count = 0;
    for (const struct settling *s = set->settlings; s; s = s->next, count++)
        if (s->uid == uid)
            return false;
    return count < SETTLINGS;
}

static void end_settling(struct settling *s)
{
    struct ckpt_stages *set = s->set;
    CKPT_GUARD(&set->lock);
    struct settling **link = &set->settlings;
    while (*link != s)
        link = &(*link)->next;
    *link = s->next;
    ckpt_stage_step_unref_locked(s->step);
    free(s);
    pthread_cond_broadcast(&set->idle);
}

/* The next step that may be committed by itself, begun. */
static struct settling *next_settling(struct ckpt_stages *set)
{
    struct stat st;
    CKPT_GUARD(&set->lock);
    for (struct stage_step *step = set->steps; step; step = step->next) {
        if (step->tried || !ckpt_stage_is_settled(step) || fstat(step->tree, &st) < 0 || !has_turn(set, st.st_uid))
            continue;
        struct settling *s = malloc(sizeof *s);
        if (!s)
            return NULL;
        *s = (struct settling){.set = set, .step = step, .uid = st.st_uid, .next = set->settlings};
        snprintf(s->name, sizeof s->name, "%s", step->name);
        set->settlings = s;
        step->tried = true;
        step->uses++;
        return s;
    }
    return NULL;
}

static void *settle_one(void *arg)
{
    struct settling *s = arg;
    struct stage_step *step = s->step;
    struct ckpt_store *store = s->set->store;
    struct ckpt_commit c = {
        .store = store, .hold = stage_hold(step), .work = step->work, .tree = step->tree, .name = s->name};
    struct ckpt_err err = {0};
    if (!ckpt_stage_is_empty(step->tree)) { /* an empty directory is rather one that is about to be filled */
        if (ckpt_commit_check(&c, &err) < 0)
            ckpt_stage_set_error(step, &err);
        else
            (void)!ckpt_stage_commit_as(step, NULL, true, NULL, NULL);
    }
    end_settling(s);
    return NULL;
}

static void settle(struct ckpt_stages *set)
{
    struct settling *s;
    while (!set->opt.explicit_commit && (s = next_settling(set))) {
        pthread_t thread;
        if (pthread_create(&thread, NULL, settle_one, s) == 0)
            pthread_detach(thread);
        else
            settle_one(s);
    }
}

static void warn_aside(void *arg, const char *name, const struct ckpt_err *why)
{
    const struct ckpt_stages *set = arg;
    ckpt_log(CKPT_LOG_WARN, "%s: gc: %s is set aside, and what it may name is kept: %s", set->store->path, name,
             why->text);
}

static void wait_settlings(struct ckpt_stages *set)
{
    CKPT_GUARD(&set->lock);
    while (set->settlings)
        pthread_cond_wait(&set->idle, &set->lock);
}

static void tidy(struct ckpt_stages *set)
{
    struct ckpt_err err = {0};
    struct ckpt_gc_result result;
    pthread_mutex_lock(&set->lock);
    bool wanted = set->gc_wanted, gc = wanted || (set->gc_ns && ckpt_monotonic_ns() > set->gc_ns);
    set->gc_wanted = false;
    if (gc)
        set->gc_ns = 0;
    pthread_mutex_unlock(&set->lock);
    if (!gc)
        return;
    const struct ckpt_gc_watch watch = {.aside = warn_aside, .arg = set};
    if (ckpt_store_gc(set->store, false, &watch, &result, &err) < 0)
        ckpt_log(CKPT_LOG_WARN, "%s: gc: %s", set->store->path, err.text);
    else if (result.objects || wanted) {
        CKPT_GUARD(&set->lock);
        set->gc_ns = ckpt_monotonic_ns() + (int64_t)(set->store->trash_keep + 1) * 1000000000;
    }
}

/* False at the end of the set. */
static bool wait_tick(struct ckpt_stages *set)
{
    struct timespec until = ckpt_stage_deadline(TICK_NS);
    CKPT_GUARD(&set->lock);
    while (!set->closing && pthread_cond_timedwait(&set->idle, &set->lock, &until) == 0)
        ;
    return !set->closing;
}

static void *settler(void *arg)
{
    struct ckpt_stages *set = arg;
    while (wait_tick(set)) {
        if (set->opt.tick)
            set->opt.tick(set->opt.arg);
        settle(set);
    }
    return NULL;
}

/* Apart from the settler: it reads every manifest, and no step waits for that. */
static void *collector(void *arg)
{
    struct ckpt_stages *set = arg;
    while (wait_tick(set))
        tidy(set);
    return NULL;
}

/* --- the set --- */

/* Did the commit that this step was in the middle of happen? */
static bool was_committed(struct stage_step *step, const char *name)
{
    char ids[STAGE_PART_IDS];
    if (ckpt_stage_read_text(step->work, "commit", ids, sizeof ids) < 0)
        return false;
    if (ckpt_writers_was_done(step->set->store, name, ids))
        return true;
    ids[strcspn(ids, "\n")] = 0;
    if (ckpt_store_step_is(step->set->store, name, ids) == 1)
        return true;
    /* It may have been committed under another name, by a rename: then the name in the head tells nothing of ours. */
    struct ckpt_store_step *steps;
    size_t count;
    bool found = false;
    if (ckpt_store_steps(step->set->store, true, &steps, &count, NULL) < 0)
        return false;
    for (size_t i = 0; i < count; i++)
        found |= !strcmp(steps[i].id, ids);
    ckpt_store_steps_free(steps, count);
    return found;
}

/* Several writers may have the same step, each in a directory of its own, and may have ended together. */
static bool is_other_writers(struct stage_step *step)
{
    const struct ckpt_stage_options *opt = &step->set->opt;
    char writer[16];
    if (!opt->writers)
        return false;
    if (ckpt_stage_read_text(step->work, "writer", writer, sizeof writer) < 0)
        return false;
    return strtoul(writer, NULL, 10) != opt->writer;
}

static int take_over(struct stage_step *step)
{
    struct stat st;
    if (fstat(step->tree, &st) < 0)
        return -errno;
    CKPT_GUARD(&step->set->lock);
    return ckpt_stage_charge(step, st.st_uid, true);
}

enum adoption { ADOPT_TAKE, ADOPT_LEAVE, ADOPT_DROP };

/* What is to be done with a step whose directories were opened, with this result. *ret_r: of taking it. */
static enum adoption judge(struct stage_step *step, int opened, char *name, size_t len, int *ret_r)
{
    *ret_r = opened;
    if (opened == -EWOULDBLOCK || opened == -ENOENT) /* it has an owner, or had one, or will have */
        return ADOPT_LEAVE;
    if (opened < 0)
        return ADOPT_TAKE;
    if (is_other_writers(step))
        return ADOPT_LEAVE;
    int named = ckpt_stage_read_text(step->work, "name", name, len);
    if (named == -ENOENT || step->tree < 0 || step->hold < 0)
        return ADOPT_DROP;
    if (named == 0 && was_committed(step, name))
        return ADOPT_DROP;
    *ret_r = named;
    return ADOPT_TAKE;
}

static int read_base(struct stage_step *step)
{
    int r = ckpt_stage_read_text(step->work, "base", step->base_id, sizeof step->base_id);
    if (r < 0)
        *step->base_id = 0;
    return r == -ENOENT ? 0 : r;
}

/* It was about to commit by itself when the mount ended. */
static int take_ready(struct stage_step *step)
{
    if (faccessat(step->work, "ready", F_OK, 0) < 0)
        return 0;
    step->touched = true;
    return ckpt_disk_unlink(step->work, "ready", 0);
}

static int recover(struct stage_step *step, const char *name)
{
    struct ckpt_store *store = step->set->store;
    const struct ckpt_commit c = {
        .store = store, .hold = stage_hold(step), .work = step->work, .tree = step->tree, .name = name};
    return ckpt_commit_recover(&c, NULL);
}

static int adopt_step(struct stage_step *step, const char *name)
{
    int r = read_base(step);
    if (r == 0)
        r = take_over(step);
    if (r == 0)
        r = take_ready(step);
    if (r == 0)
        r = recover(step, name);
    return r < 0 ? r : ckpt_stage_publish(step, name);
}

/* It is not deleted: somebody may want its files. */
static void leave_aside(struct stage_step *step)
{
    CKPT_GUARD(&step->set->lock);
    atomic_store(&step->state, STAGE_GONE);
    step->top = NULL;
    ckpt_stage_close_inodes(step);
}

static void adopt(struct ckpt_stages *set, const char *id)
{
    struct stage_step *step = ckpt_stage_begin(set);
    char name[256];
    int r;
    if (!step)
        return;
    step->adopted = true;
    enum adoption how = judge(step, ckpt_stage_open_dirs(step, id), name, sizeof name, &r);
    if (how == ADOPT_DROP) {
        ckpt_stage_drop(step);
        return;
    }
    if (how == ADOPT_LEAVE) {
        ckpt_stage_step_unref(step);
        return;
    }
    if (r == 0)
        r = adopt_step(step, name);
    if (r < 0) {
        ckpt_log(CKPT_LOG_WARN, "%s: staging/%s stays aside: %s", set->store->path, id, strerror(-r));
        leave_aside(step);
    } else
        ckpt_log(CKPT_LOG_INFO, "%s: %s is staged: it was not committed before the last mount ended", set->store->path,
                 name);
    ckpt_stage_step_unref(step);
}

static int adopt_name(void *arg, const char *name, enum ckpt_ftype type)
{
    if (type == CKPT_FT_DIR)
        adopt(arg, name);
    return 0;
}

int ckpt_stages_open(struct ckpt_store *store, struct ckpt_cache *cache, const struct ckpt_stage_options *options,
                     struct ckpt_stages **ret, struct ckpt_err *err)
{
    struct ckpt_stages *set = calloc(1, sizeof *set);
    CKPT_AUTOFREE char *path = malloc(strlen(store->path) + sizeof CKPT_STORE_DIR + 2);
    if (!set || !path) {
        free(set);
        return ckpt_no_memory(err);
    }
    sprintf(path, "%s/" CKPT_STORE_DIR, store->path);
    set->store = store;
    set->cache = cache;
    set->opt = *options;
    struct rlimit files = {.rlim_cur = 1024};
    getrlimit(RLIMIT_NOFILE, &files);
    unsigned descriptors = (unsigned)CKPT_MIN(files.rlim_cur, (rlim_t)1 << 20);
    set->fd_limit = CKPT_MIN(CKPT_MAX(descriptors / 8, 16u), MAX_FDS);
    ckpt_stage_users_begin(set, descriptors);
    if (!options->set_codec)
        set->opt.codec = store->config.codec;
    set->gc_wanted = true;
    set->leases = ckpt_stage_has_leases(store->dir);
    pthread_mutex_init(&set->lock, NULL);
    pthread_cond_init(&set->idle, NULL);
    int r = ckpt_backend_open_posix(path, &set->dir, err);
    unsigned threads = CKPT_MAX(options->threads, 2u); /* one is for what does not last */
    set->slow_limit = threads - 1;
    if (r == 0 && (r = ckpt_pool_new(threads, &set->pool)) < 0)
        ckpt_fail(err, -r, "no threads can be made");
    if (r == 0 && (r = ckpt_stage_open_files_view(set)) < 0)
        ckpt_fail(err, -r, "%s: %s", store->path, strerror(-r));
    if (r == 0)
        r = ckpt_backend_list(set->dir, "staging", adopt_name, set);
    if (r == 0) {
        set->settling = pthread_create(&set->settler, NULL, settler, set) == 0;
        set->collecting = set->settling && pthread_create(&set->collector, NULL, collector, set) == 0;
        if (!set->collecting)
            r = ckpt_fail(err, EAGAIN, "no threads can be made");
    }
    if (r < 0)
        ckpt_stages_close(set);
    else
        *ret = set;
    return r;
}

/* Steps that would have committed by themselves do so in the next mount. */
static void mark_ready(struct stage_step *step)
{
    double number;
    if (step->set->opt.explicit_commit || !ckpt_stage_number(step, &number))
        return;
    if (!step->touched || step->write_failed || step->open_writes)
        return;
    if (!ckpt_stage_processes_ended(step))
        return;
    int fd = ckpt_disk_open(step->work, "ready", O_CREAT | O_WRONLY | O_CLOEXEC, 0600);
    if (fd >= 0)
        close(fd);
}

void ckpt_stages_close(struct ckpt_stages *set)
{
    if (!set)
        return;
    pthread_mutex_lock(&set->lock);
    set->closing = true;
    for (unsigned i = 0; i < STAGE_BUCKETS; i++)
        for (struct stage_inode *n = set->by_id[i]; n; n = n->next_id)
            atomic_store(&n->cancel, true);
    pthread_cond_broadcast(&set->idle);
    pthread_mutex_unlock(&set->lock);
    if (set->settling)
        pthread_join(set->settler, NULL);
    if (set->collecting)
        pthread_join(set->collector, NULL);
    wait_settlings(set);
    ckpt_pool_free(set->pool);
    ckpt_stage_queue_free(set);
    pthread_mutex_lock(&set->lock);
    if (set->files_view) {
        set->files_view->next = set->steps;
        set->steps = set->files_view;
    }
    for (struct stage_step *s = set->steps; s; s = s->next) {
        if (!s->files_view)
            mark_ready(s);
        s->top = NULL;
        s->uses++;
    }
    ckpt_stage_free_all(set);
    for (struct stage_step *s = set->steps, *next; s; s = next) {
        next = s->next;
        ckpt_stage_step_unref_locked(s); /* the list's, and the one above */
        ckpt_stage_step_unref_locked(s);
    }
    pthread_mutex_unlock(&set->lock);
    ckpt_backend_unref(set->dir);
    pthread_cond_destroy(&set->idle);
    pthread_mutex_destroy(&set->lock);
    free(set);
}
