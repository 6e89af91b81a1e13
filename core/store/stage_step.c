/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The life of a staged step. Its directory in staging/ is durable before its name is seen; a lock in it tells other processes that it
 * has an owner. It ends by a commit or a removal: its directory goes to the trash first, in one call, and is then taken apart.
 *
 * A crash can come between the moment a manifest appears and the moment its staging directory goes. So the commit's id is written to
 * staging/ID/commit before, and whoever finds the directory later compares it with the manifest.
 */
#include "core/store/stage_private.h"

#include "core/format/json.h"
#include "core/store/internal.h"
#include "core/store/work.h"
#include "core/store/writers.h"

#include <dirent.h>
#include <stdio.h>
#include <sys/file.h>
#include <sys/resource.h>
#include <sys/xattr.h>
#include <time.h>

#define TICK_NS 200000000l
#define CLOSE_WAIT_NS 500000000l /* the kernel tells of a close a little after the program has gone on */
#define MAX_WRITERS 4096
#define MAX_FDS 8192 /* that inodes may hold, beside those that are in use */

/* --- what keeps it --- */

void stage_step_unref(struct stage_step *step)
{
    if (--step->uses)
        return;
    int fds[] = {step->work, step->tree, step->hold, step->lock};
    for (size_t i = 0; i < sizeof fds / sizeof *fds; i++)
        if (fds[i] >= 0)
            close(fds[i]);
    pthread_rwlock_destroy(&step->freeze);
    pthread_mutex_destroy(&step->names);
    free(step->writers);
    free(step->error);
    free(step->name);
    free(step);
}

int stage_enter(struct stage_step *step)
{
    pthread_rwlock_rdlock(&step->freeze);
    if (atomic_load(&step->state) == STAGE_OPEN)
        return 0;
    pthread_rwlock_unlock(&step->freeze);
    return -ESTALE;
}

void stage_leave(struct stage_step *step)
{
    pthread_rwlock_unlock(&step->freeze);
}

/* --- who writes --- */

/* When a process began, and in *pid its own number if a thread's was given. */
static bool process_start(pid_t *pid, unsigned long long *ret)
{
    char path[64], line[1024];
    snprintf(path, sizeof path, "/proc/%d/status", *pid);
    FILE *f = fopen(path, "re");
    if (!f)
        return false;
    int group;
    while (fgets(line, sizeof line, f))
        if (sscanf(line, "Tgid: %d", &group) == 1)
            *pid = group;
    fclose(f);
    snprintf(path, sizeof path, "/proc/%d/stat", *pid);
    f = fopen(path, "re");
    size_t n = f ? fread(line, 1, sizeof line - 1, f) : 0;
    if (f)
        fclose(f);
    line[n] = 0;
    const char *p = strrchr(line, ')'); /* the name before it may hold anything */
    return p && sscanf(p + 1, " %*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %*u %*u %*d %*d %*d %*d %*d %*d %llu", ret) == 1;
}

static void add_writer(struct stage_step *step, pid_t thread)
{
    struct stage_writer w = {.pid = thread};
    if (!thread || thread == step->last_pid || !process_start(&w.pid, &w.start))
        return;
    step->last_pid = thread;
    for (unsigned i = 0; i < step->writer_count; i++)
        if (step->writers[i].pid == w.pid && step->writers[i].start == w.start)
            return;
    if (step->writer_count == step->writer_cap) {
        unsigned cap = step->writer_cap ? step->writer_cap * 2 : 8;
        struct stage_writer *p = cap <= MAX_WRITERS ? realloc(step->writers, cap * sizeof *p) : NULL;
        if (!p)
            return;
        step->writers = p;
        step->writer_cap = cap;
    }
    step->writers[step->writer_count++] = w;
}

static bool writers_ended(struct stage_step *step)
{
    unsigned kept = 0;
    for (unsigned i = 0; i < step->writer_count; i++) {
        struct stage_writer w = step->writers[i];
        if (process_start(&w.pid, &w.start) && w.pid == step->writers[i].pid && w.start == step->writers[i].start)
            step->writers[kept++] = step->writers[i];
    }
    step->writer_count = kept;
    step->last_pid = 0;
    return !kept;
}

void stage_touch(struct stage_step *step, const struct ckpt_caller *who)
{
    if (step->face)
        return;
    CKPT_GUARD(&step->set->lock);
    step->touched = true;
    step->tried = false;
    step->changed_ns = ckpt_monotonic_ns();
    add_writer(step, who->pid);
}

static void set_error(struct stage_step *step, const struct ckpt_err *err)
{
    CKPT_GUARD(&step->set->lock);
    free(step->error);
    step->error = err && err->code ? strdup(err->text) : NULL;
}

/* --- making and finding them --- */

int stage_read_text(int dir, const char *name, char *buf, size_t len)
{
    CKPT_AUTOFD int fd = openat(dir, name, O_RDONLY | O_CLOEXEC);
    ssize_t n = fd < 0 ? -1 : pread(fd, buf, len - 1, 0);
    if (n < 0)
        return -errno;
    buf[n] = 0;
    return 0;
}

int stage_metadata(struct stage_step *step, char **ret, size_t *ret_len)
{
    *ret = NULL;
    int r = ckpt_text_at(step->work, STAGE_METADATA, STAGE_METADATA_MAX, ret, ret_len);
    return r == -ENOENT ? 0 : r;
}

static int open_dirs(struct stage_step *step, const char *id)
{
    snprintf(step->id, sizeof step->id, "%s", id);
    step->work = openat(step->set->store->staging, id, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (step->work < 0)
        return -errno;
    step->lock = openat(step->work, "lock", O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (step->lock < 0 || flock(step->lock, LOCK_EX | LOCK_NB) < 0)
        return -errno;
    step->tree = openat(step->work, "tree", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    step->hold = openat(step->work, "hold", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    return 0;
}

/* With its directories open: known to the set. Under the set's lock. */
static int add_step(struct stage_step *step, const char *name)
{
    struct ckpt_stage_attr attr;
    step->name = strdup(name);
    int top = stage_reopen(step->tree, O_PATH);
    int r = !step->name ? -ENOMEM : CKPT_MIN(top, 0);
    if (r == 0)
        r = stage_take(step, top, NULL, NULL, &attr);
    if (r == 0)
        r = stage_get(step->set, attr.id, &step->top);
    if (r == 0) { /* the top stays known without references */
        stage_put(step->top);
        ckpt_stage_forget(step->set, attr.id, 1);
        step->changed_ns = ckpt_monotonic_ns();
    }
    return r;
}

struct stage_step *stage_begin(struct ckpt_stages *set)
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

static struct stage_step *find_step(struct ckpt_stages *set, const char *name)
{
    struct stage_step *s = set->steps;
    while (s && strcmp(s->name, name))
        s = s->next;
    return s;
}

/* The step of a name, kept until it is put. */
static struct stage_step *get_step(struct ckpt_stages *set, const char *name)
{
    CKPT_GUARD(&set->lock);
    struct stage_step *s = find_step(set, name);
    if (s)
        s->uses++;
    return s;
}

static void put_step(struct stage_step *step)
{
    struct ckpt_stages *set = step->set;
    CKPT_GUARD(&set->lock);
    stage_step_unref(step);
}

/* Its directory goes to the trash in one call; taking that apart may last. */
struct removal {
    struct ckpt_stages *set;
    char name[64];
};

static void remove_trash(void *arg)
{
    struct removal *r = arg;
    ckpt_disk_remove_tree(r->set->store->trash, r->name);
    free(r);
}

static void discard_dir(struct ckpt_stages *set, const char *id)
{
    struct removal *r = malloc(sizeof *r);
    if (!r)
        return;
    r->set = set;
    snprintf(r->name, sizeof r->name, "staging-%s", id);
    if (ckpt_disk_rename(set->store->staging, id, set->store->trash, r->name, 0) < 0 || ckpt_pool_submit(set->pool, remove_trash, r) < 0)
        free(r);
}

/* Under freeze's writer: nobody finds it any more. */
static void end_step(struct stage_step *step)
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
    stage_let_go(step);
    if (listed)
        stage_step_unref(step);
    set->gc_wanted = true;
    pthread_mutex_unlock(&set->lock);
    discard_dir(set, step->id); /* last: who closes a file that has no name any more waits until its pages are freed */
}

int stage_make_dirs(struct stage_step *step, mode_t mode)
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

/* From now on it is taken over if this process dies: so it is whole by now. */
static int name_dir(struct stage_step *step, const char *name, const char *base_id)
{
    int r = 0;
    if (*base_id) /* of files that share what is stored, made by the thousand */
        r = ckpt_disk_syncfs(step->work);
    if (r == 0 && *base_id)
        r = ckpt_disk_replace(step->work, "base", base_id, strlen(base_id));
    if (r == 0)
        r = ckpt_disk_replace(step->work, "name", name, strlen(name)); /* and what is beside it */
    if (r == 0)
        r = ckpt_disk_fsync(step->set->store->staging);
    return r;
}

static int publish_step(struct stage_step *step, const char *name)
{
    struct ckpt_stages *set = step->set;
    int r = add_step(step, name);
    if (r < 0)
        return r;
    CKPT_GUARD(&set->lock);
    if (find_step(set, name))
        return -EEXIST;
    step->next = set->steps;
    set->steps = step;
    step->uses++;
    return 0;
}

/* One that did not come to be. */
void stage_drop(struct stage_step *step)
{
    struct ckpt_stages *set = step->set;
    if (step->work >= 0)
        discard_dir(set, step->id);
    CKPT_GUARD(&set->lock);
    atomic_store(&step->state, STAGE_GONE);
    step->top = NULL;
    stage_let_go(step);
    stage_step_unref(step);
}

int ckpt_stage_find(struct ckpt_stages *set, const char *name, struct ckpt_stage_attr *ret)
{
    struct stage_step *step = get_step(set, name);
    if (!step)
        return -ENOENT;
    int fd = stage_reopen(step->tree, O_PATH);
    int r = fd < 0 ? fd : stage_take(step, fd, NULL, NULL, ret);
    put_step(step);
    return r;
}

/* Once, when the set is opened. */
static int open_face(struct ckpt_stages *set)
{
    struct stage_step *face = stage_begin(set);
    if (!face)
        return -ENOMEM;
    face->face = true;
    face->tree = stage_reopen(set->store->root, O_RDONLY | O_DIRECTORY);
    int r = face->tree < 0 ? face->tree : add_step(face, ".files");
    if (r < 0)
        put_step(face);
    else
        set->face = face;
    return r;
}

int ckpt_stage_face(struct ckpt_stages *set, struct ckpt_stage_attr *ret)
{
    int fd = stage_reopen(set->face->tree, O_PATH);
    return fd < 0 ? fd : stage_take(set->face, fd, NULL, NULL, ret);
}

bool ckpt_stage_is_face(struct ckpt_stages *set, uint64_t id)
{
    return id == set->face->top->id;
}

bool ckpt_stage_hides(struct ckpt_stages *set, uint64_t dir, const char *name)
{
    return ckpt_stage_is_face(set, dir) && !strcmp(name, CKPT_STORE_DIR);
}

bool ckpt_stage_exists(struct ckpt_stages *set, const char *name)
{
    CKPT_GUARD(&set->lock);
    return find_step(set, name);
}

void ckpt_stage_touched(struct ckpt_stages *set, const char *name, const struct ckpt_caller *who)
{
    struct stage_step *step = get_step(set, name);
    if (!step)
        return;
    stage_touch(step, who);
    put_step(step);
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

int ckpt_stage_new(struct ckpt_stages *set, const char *name, mode_t mode, const struct ckpt_caller *who, struct ckpt_stage_attr *ret,
                   struct ckpt_err *err)
{
    if (ckpt_stage_exists(set, name))
        return ckpt_fail(err, EEXIST, "%s is there already", name);
    struct stage_step *step = stage_begin(set);
    if (!step)
        return ckpt_fail(err, ENOMEM, "out of memory");
    int r = stage_make_dirs(step, mode);
    if (r == 0 && (who->uid != geteuid() || who->gid != getegid()) && fchownat(step->work, "tree", who->uid, who->gid, 0) < 0 && geteuid() == 0)
        r = -errno;
    if (r == 0)
        r = name_dir(step, name, "");
    if (r == 0)
        r = publish_step(step, name);
    if (r < 0) {
        stage_drop(step);
        return ckpt_fail(err, -r, "%s: %s", name, strerror(-r));
    }
    stage_touch(step, who);
    put_step(step);
    return ckpt_stage_find(set, name, ret);
}

/* --- a copy of a committed step, to be changed --- */

int ckpt_stage_copy(struct ckpt_stages *set, const char *name, const struct ckpt_stage_removed *removed, struct ckpt_err *err)
{
    char path[300];
    struct ckpt_file *manifest;
    struct ckpt_manifest_info info = {0};
    if (ckpt_stage_exists(set, name))
        return 0;
    snprintf(path, sizeof path, "steps/%s.json", name);
    int r = ckpt_backend_open(set->dir, path, &manifest);
    if (r < 0)
        return ckpt_fail(err, -r, "%s: %s", name, strerror(-r));
    struct stage_step *step = stage_begin(set);
    r = step ? ckpt_manifest_info(manifest, &info, err) : -ENOMEM;
    if (r == 0) {
        snprintf(step->base_id, sizeof step->base_id, "%s", info.id);
        r = stage_make_dirs(step, 0755);
    }
    if (r == 0)
        r = stage_copy_tree(step, manifest, removed, err);
    if (r == 0)
        r = name_dir(step, name, info.id);
    if (r == 0)
        r = publish_step(step, name);
    if (r < 0 && step)
        stage_drop(step);
    else if (r == 0)
        put_step(step);
    ckpt_manifest_info_clear(&info);
    ckpt_file_unref(manifest);
    if (r == -EEXIST) /* somebody else was quicker */
        return 0;
    return r < 0 ? ckpt_fail(err, -r, "%s: it cannot be opened for changes: %s", name, err && err->code ? err->text : strerror(-r)) : 0;
}

/* --- commit --- */

/* The path in the step of a file that is open for writing. Under the set's lock. */
static void open_name(struct stage_step *step, char *ret, size_t len)
{
    struct ckpt_stages *set = step->set;
    char link[32], tree[PATH_MAX], path[PATH_MAX];
    snprintf(ret, len, "a file");
    snprintf(link, sizeof link, "/proc/self/fd/%d", step->tree);
    ssize_t top = readlink(link, tree, sizeof tree - 1), n;
    for (unsigned i = 0; i < STAGE_BUCKETS && top > 0; i++)
        for (struct stage_inode *f = set->by_id[i]; f; f = f->next_id) {
            if (f->step != step || !f->open_writes || f->fd < 0)
                continue;
            snprintf(link, sizeof link, "/proc/self/fd/%d", f->fd);
            n = readlink(link, path, sizeof path - 1);
            if (n > top + 1)
                snprintf(ret, len, "%.*s", (int)(n - top - 1), path + top + 1);
            return;
        }
}

/* For pthread_cond_timedwait. */
static struct timespec deadline(int64_t ns)
{
    int64_t at = ckpt_realtime_ns() + ns;
    return (struct timespec){at / 1000000000, at % 1000000000};
}

/* Nobody writes, and nothing is under way. Under freeze's writer. */
static int wait_quiet(struct stage_step *step, const atomic_bool *interrupted, struct ckpt_err *err)
{
    struct ckpt_stages *set = step->set;
    struct timespec until = deadline(CLOSE_WAIT_NS);
    CKPT_GUARD(&set->lock);
    while (step->open_writes && pthread_cond_timedwait(&set->idle, &set->lock, &until) == 0)
        ;
    if (step->open_writes) {
        char name[PATH_MAX];
        open_name(step, name, sizeof name);
        return ckpt_fail(err, EBUSY, "%s%s still open for writing: close %s first", name, step->open_writes == 1 ? " is" : ", and others, are",
                         step->open_writes == 1 ? "it" : "them");
    }
    while (step->jobs && !(interrupted && atomic_load(interrupted)) && !set->closing) {
        until = deadline(1000000000); /* an interruption wakes nobody */
        pthread_cond_timedwait(&set->idle, &set->lock, &until);
    }
    return step->jobs ? ckpt_fail(err, EINTR, "the commit was interrupted") : 0;
}

int stage_run_commit(struct stage_step *step, const char *name, int (*put)(void *arg, int work, const char *manifest, struct ckpt_err *err), void *put_arg,
                     atomic_bool *interrupted, char id[33], struct ckpt_err *err)
{
    struct ckpt_stages *set = step->set;
    struct ckpt_store_config config;
    CKPT_AUTOFREE char *metadata = NULL;
    size_t len;
    bool same_name = !strcmp(name, step->name);
    int r = stage_metadata(step, &metadata, &len);
    if (r < 0)
        return ckpt_fail(err, -r, "%s: its metadata cannot be read: %s", name, strerror(-r));
    r = ckpt_store_config_read(set->store, &config, err);
    if (!*id)
        ckpt_random_hex(id, 16);
    if (r == 0 && (r = ckpt_disk_replace(step->work, "commit", id, strlen(id))) < 0)
        return ckpt_fail(err, -r, "%s: %s", name, strerror(-r));
    struct ckpt_commit c = {
        .store = set->store,
        .hold = {.store = set->store, .dir = step->hold},
        .work = step->work,
        .tree = step->tree,
        .name = name,
        .id = id,
        .overwrite = set->opt.overwrite || put, /* of a part the caller has said whether it may be */
        .base_id = same_name && *step->base_id ? step->base_id : NULL,
        .codec = set->opt.set_codec ? set->opt.codec : config.codec,
        .metadata = metadata && *metadata ? metadata : NULL,
        .known = stage_known,
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

/* Nobody writes, and nothing has changed for a while. Under the set's lock. */
static bool is_settled(struct stage_step *step)
{
    double number;
    return step->touched && !step->open_writes && ckpt_step_name(step->name, &number) &&
           ckpt_monotonic_ns() - step->changed_ns >= (int64_t)(step->set->opt.settle * 1e9) && writers_ended(step);
}

/* Once more when changes are kept out: a writer may have begun since it was seen. */
static bool still_settled(struct stage_step *step)
{
    CKPT_GUARD(&step->set->lock);
    if (is_settled(step))
        return true;
    step->tried = false;
    return false;
}

static int commit_as(struct stage_step *step, const char *as, bool if_settled, atomic_bool *interrupted, struct ckpt_err *err)
{
    struct ckpt_stages *set = step->set;
    struct ckpt_err own = {0};
    char *name = NULL, id[33] = "";
    pthread_rwlock_wrlock(&step->freeze);
    int r = atomic_load(&step->state) == STAGE_OPEN ? 0 : -ESTALE;
    if (r == 0 && !(name = strdup(as ? as : step->name)))
        r = -ENOMEM;
    if (r == 0 && if_settled && !still_settled(step)) {
        pthread_rwlock_unlock(&step->freeze);
        free(name);
        return -EAGAIN;
    }
    if (r == 0)
        r = wait_quiet(step, interrupted, &own);
    if (r == 0)
        r = set->opt.writers ? stage_commit_part(step, name, interrupted, &own)
                             : stage_run_commit(step, name, NULL, NULL, interrupted, id, &own);
    if (r < 0 && !own.code)
        ckpt_fail(&own, -r, "%s", strerror(-r));
    bool pinned = r == 0 && has_pin(step);
    if (r == 0) /* the committed step is seen before the staged one goes */
        set->opt.changed(set->opt.arg, name);
    if (r == 0)
        end_step(step);
    pthread_rwlock_unlock(&step->freeze);
    if (pinned && ckpt_store_pin(set->store, name, true, &own) < 0)
        ckpt_log(CKPT_LOG_WARN, "%s: step %s is not pinned: %s", set->store->path, name, own.text);
    if (r == 0) {
        prune(set);
        ckpt_log(CKPT_LOG_INFO, "%s: step %s is committed", set->store->path, name);
        set->opt.changed(set->opt.arg, name);
    } else if (r != -ESTALE) {
        set_error(step, &own);
        ckpt_log(CKPT_LOG_WARN, "%s: step %s is not committed: %s", set->store->path, name ? name : "", own.text);
    }
    if (err)
        *err = own;
    free(name);
    return r;
}

int ckpt_stage_commit(struct ckpt_stages *set, const char *name, const struct ckpt_caller *who, struct ckpt_err *err)
{
    struct stage_step *step = get_step(set, name);
    if (!step)
        return ckpt_fail(err, ENOENT, "%s: no staged step of that name", name);
    int r = commit_as(step, NULL, false, who->interrupted, err);
    put_step(step);
    return r;
}

int ckpt_stage_fsyncdir(struct ckpt_stages *set, uint64_t id, const struct ckpt_caller *who, struct ckpt_err *err)
{
    struct stage_inode *n;
    double number;
    int r = stage_get(set, id, &n);
    if (r < 0)
        return r;
    struct stage_step *step = n->step;
    pthread_mutex_lock(&set->lock);
    bool commit = n == step->top && ckpt_step_name(step->name, &number);
    step->uses++;
    pthread_mutex_unlock(&set->lock);
    CKPT_AUTOFD int fd = commit ? -1 : stage_reopen(n->fd, O_RDONLY);
    r = commit ? 0 : fd < 0 ? fd : ckpt_disk_fsync(fd);
    if (r == 0 && !commit && !step->face) /* files in it may share content, which the step holds there */
        r = ckpt_disk_fsync(step->hold);
    stage_put(n);
    if (commit)
        r = commit_as(step, NULL, false, who->interrupted, err);
    put_step(step);
    return r;
}

/* --- other ends, other names --- */

static bool is_empty(int dir)
{
    int fd = openat(dir, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *d = fd < 0 ? NULL : fdopendir(fd);
    if (!d) {
        if (fd >= 0)
            close(fd);
        return false;
    }
    bool empty = true;
    for (struct dirent *e; empty && (e = readdir(d));)
        empty = !strcmp(e->d_name, ".") || !strcmp(e->d_name, "..");
    closedir(d);
    return empty;
}

int ckpt_stage_remove(struct ckpt_stages *set, const char *name, struct ckpt_err *err)
{
    struct stage_step *step = get_step(set, name);
    if (!step)
        return ckpt_fail(err, ENOENT, "%s: no staged step of that name", name);
    pthread_rwlock_wrlock(&step->freeze);
    int r = atomic_load(&step->state) == STAGE_OPEN ? 0 : -ESTALE;
    if (r == 0 && !is_empty(step->tree))
        r = ckpt_fail(err, ENOTEMPTY, "%s is not empty", name);
    if (r == 0 && *step->base_id) {
        r = ckpt_store_delete(set->store, name, err);
        r = r == -ENOENT ? 0 : r; /* another mount was quicker */
    }
    if (r == 0 && set->opt.writers) {
        r = ckpt_writers_withdraw(set->store, name, set->opt.writer, set->opt.writers);
        r = r < 0 ? ckpt_fail(err, -r, "%s: its part cannot be taken back: %s", name, strerror(-r)) : 0;
    }
    if (r == 0)
        end_step(step);
    pthread_rwlock_unlock(&step->freeze);
    put_step(step);
    if (r == 0)
        set->opt.changed(set->opt.arg, name);
    return r;
}

/* Is the committed step of that name still the one that was copied? */
static bool is_base(struct stage_step *step, const char *name)
{
    return ckpt_store_step_is(step->set->store, name, step->base_id);
}

/* Only its name, where that commits nothing. */
static int relabel(struct stage_step *step, const char *to)
{
    struct ckpt_stages *set = step->set;
    char *name = strdup(to);
    if (!name)
        return -ENOMEM;
    pthread_rwlock_wrlock(&step->freeze);
    int r = atomic_load(&step->state) == STAGE_OPEN ? ckpt_disk_replace(step->work, "name", to, strlen(to)) : -ESTALE;
    if (r == 0) {
        CKPT_GUARD(&set->lock);
        free(step->name);
        step->name = CKPT_STEAL(name);
    }
    pthread_rwlock_unlock(&step->freeze);
    free(name);
    return r;
}

int ckpt_stage_rename(struct ckpt_stages *set, const char *from, const char *to, const struct ckpt_caller *who, struct ckpt_err *err)
{
    double number;
    struct stage_step *step = get_step(set, from), *there = get_step(set, to);
    int r = step ? 0 : ckpt_fail(err, ENOENT, "%s: no staged step of that name", from);
    if (r == 0 && there && !(is_empty(there->tree) && !*there->base_id))
        r = ckpt_fail(err, set->opt.overwrite ? EBUSY : EEXIST, "%s is being written", to);
    else if (r == 0 && there)
        r = ckpt_stage_remove(set, to, err);
    if (r == 0)
        r = ckpt_step_name(to, &number) ? commit_as(step, to, false, who->interrupted, err) : relabel(step, to);
    if (r == 0 && *step->base_id && is_base(step, from)) /* the step that was changed has the new name alone */
        r = ckpt_store_delete(set->store, from, err);
    if (there)
        put_step(there);
    if (step)
        put_step(step);
    return r;
}

/* --- by itself --- */

/* The next step that may be committed by itself, kept until it is put, and its name. Under the set's lock. */
static struct stage_step *settled_step(struct ckpt_stages *set, char name[CKPT_STEP_NAME + 1])
{
    for (struct stage_step *s = set->steps; s; s = s->next)
        if (!s->tried && is_settled(s)) {
            s->tried = true;
            s->uses++;
            snprintf(name, CKPT_STEP_NAME + 1, "%s", s->name);
            return s;
        }
    return NULL;
}

static void settle(struct ckpt_stages *set)
{
    for (;;) {
        pthread_mutex_lock(&set->lock);
        char name[CKPT_STEP_NAME + 1];
        struct stage_step *step = set->opt.explicit_commit ? NULL : settled_step(set, name);
        pthread_mutex_unlock(&set->lock);
        if (!step)
            return;
        struct ckpt_commit c = {.store = set->store, .hold = {.store = set->store, .dir = step->hold}, .work = step->work, .tree = step->tree, .name = name};
        struct ckpt_err err = {0};
        if (!is_empty(step->tree)) { /* an empty directory is rather one that is about to be filled */
            if (ckpt_commit_check(&c, &err) < 0)
                set_error(step, &err);
            else
                (void)!commit_as(step, NULL, true, NULL, NULL);
        }
        put_step(step);
    }
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
    if (ckpt_store_gc(set->store, false, NULL, NULL, &result, &err) < 0)
        ckpt_log(CKPT_LOG_WARN, "%s: gc: %s", set->store->path, err.text);
    else if (result.objects || wanted) {
        CKPT_GUARD(&set->lock);
        set->gc_ns = ckpt_monotonic_ns() + (int64_t)(set->store->trash_keep + 1) * 1000000000;
    }
}

static void *settler(void *arg)
{
    struct ckpt_stages *set = arg;
    for (;;) {
        struct timespec until = deadline(TICK_NS);
        pthread_mutex_lock(&set->lock);
        while (!set->closing && pthread_cond_timedwait(&set->idle, &set->lock, &until) == 0)
            ;
        bool closing = set->closing;
        pthread_mutex_unlock(&set->lock);
        if (closing)
            return NULL;
        if (set->opt.tick)
            set->opt.tick(set->opt.arg);
        settle(set);
        tidy(set);
    }
}

/* --- the set --- */

/* Did the commit that this step was in the middle of happen? */
static bool was_committed(struct stage_step *step, const char *name)
{
    char id[64];
    if (stage_read_text(step->work, "commit", id, sizeof id) < 0)
        return false;
    if (ckpt_writers_was_done(step->set->store, name, id))
        return true;
    /* It may have been committed under another name, by a rename: then the name in the head tells nothing of ours. */
    struct ckpt_store_step *steps;
    size_t count;
    bool found = ckpt_store_step_is(step->set->store, name, id);
    if (!found && ckpt_store_steps(step->set->store, true, &steps, &count, NULL) == 0) {
        for (size_t i = 0; i < count; i++)
            found |= !strcmp(steps[i].id, id);
        ckpt_store_steps_free(steps, count);
    }
    return found;
}

static void adopt(struct ckpt_stages *set, const char *id)
{
    struct stage_step *step = stage_begin(set);
    char name[256];
    if (!step)
        return;
    int r = open_dirs(step, id);
    if (r < 0) { /* it has an owner */
        put_step(step);
        return;
    }
    if (step->tree < 0 || step->hold < 0 || stage_read_text(step->work, "name", name, sizeof name) < 0 || was_committed(step, name)) {
        stage_drop(step);
        return;
    }
    if (stage_read_text(step->work, "base", step->base_id, sizeof step->base_id) < 0)
        *step->base_id = 0;
    if (faccessat(step->work, "ready", F_OK, 0) == 0) {
        step->touched = true; /* it was about to commit by itself when the mount ended */
        r = ckpt_disk_unlink(step->work, "ready", 0);
    }
    if (r == 0) {
        struct ckpt_commit c = {.store = set->store, .hold = {.store = set->store, .dir = step->hold}, .work = step->work, .tree = step->tree, .name = name};
        r = ckpt_commit_recover(&c, NULL);
    }
    if (r == 0)
        r = publish_step(step, name);
    if (r < 0) {
        ckpt_log(CKPT_LOG_WARN, "%s: staging/%s stays aside: %s", set->store->path, id, strerror(-r));
        pthread_mutex_lock(&set->lock);
        atomic_store(&step->state, STAGE_GONE);
        step->top = NULL;
        stage_let_go(step);
        pthread_mutex_unlock(&set->lock);
    } else
        ckpt_log(CKPT_LOG_INFO, "%s: %s is staged: it was not committed before the last mount ended", set->store->path, name);
    put_step(step);
}

static int adopt_name(void *arg, const char *name, enum ckpt_ftype type)
{
    if (type == CKPT_FT_DIR)
        adopt(arg, name);
    return 0;
}

int ckpt_stages_open(struct ckpt_store *store, struct ckpt_cache *cache, const struct ckpt_stage_options *options, struct ckpt_stages **ret,
                     struct ckpt_err *err)
{
    struct ckpt_stages *set = calloc(1, sizeof *set);
    CKPT_AUTOFREE char *path = malloc(strlen(store->path) + sizeof CKPT_STORE_DIR + 2);
    if (!set || !path) {
        free(set);
        return ckpt_fail(err, ENOMEM, "out of memory");
    }
    sprintf(path, "%s/" CKPT_STORE_DIR, store->path);
    set->store = store;
    set->cache = cache;
    set->opt = *options;
    struct rlimit files = {.rlim_cur = 1024};
    getrlimit(RLIMIT_NOFILE, &files);
    set->fd_limit = (unsigned)CKPT_MIN(CKPT_MAX(files.rlim_cur / 4, (rlim_t)64), (rlim_t)MAX_FDS);
    if (!options->set_codec)
        set->opt.codec = store->config.codec;
    set->gc_wanted = true;
    set->leases = stage_has_leases(store->dir);
    pthread_mutex_init(&set->lock, NULL);
    pthread_cond_init(&set->idle, NULL);
    int r = ckpt_backend_open_posix(path, &set->dir, err);
    if (r == 0 && (r = ckpt_pool_new(CKPT_MAX(options->threads, 1u), &set->pool)) < 0)
        ckpt_fail(err, -r, "no threads can be made");
    if (r == 0 && (r = open_face(set)) < 0)
        ckpt_fail(err, -r, "%s: %s", store->path, strerror(-r));
    if (r == 0)
        r = ckpt_backend_list(set->dir, "staging", adopt_name, set);
    if (r == 0) {
        set->settling = pthread_create(&set->settler, NULL, settler, set) == 0;
        if (!set->settling)
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
    if (!step->touched || step->open_writes || !ckpt_step_name(step->name, &number) || step->set->opt.explicit_commit || !writers_ended(step))
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
    ckpt_pool_free(set->pool);
    pthread_mutex_lock(&set->lock);
    if (set->face) {
        set->face->next = set->steps;
        set->steps = set->face;
    }
    for (struct stage_step *s = set->steps; s; s = s->next) {
        if (!s->face)
            mark_ready(s);
        s->top = NULL;
        s->uses++;
    }
    stage_free_all(set);
    for (struct stage_step *s = set->steps, *next; s; s = next) {
        next = s->next;
        stage_step_unref(s); /* the list's, and the one above */
        stage_step_unref(s);
    }
    pthread_mutex_unlock(&set->lock);
    ckpt_backend_unref(set->dir);
    pthread_cond_destroy(&set->idle);
    pthread_mutex_destroy(&set->lock);
    free(set);
}
