/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The life of a staged step. Its directory in staging/ is durable before its name is seen; a lock in it tells other processes that it
 * has an owner. It ends by a commit or a removal: its directory goes to the trash first, in one call, and is then taken apart.
 *
 * A crash can come between the moment a manifest appears and the moment its staging directory goes. So the commit's id is written to
 * staging/ID/commit before, and whoever finds the directory later compares it with the manifest.
 */
#include "core/store/stage_private.h"

#include "core/store/internal.h"
#include "core/store/work.h"
#include "core/store/writers.h"

#include <dirent.h>
#include <stdio.h>
#include <sys/file.h>

#define MAX_WRITERS 4096

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

bool stage_writers_ended(struct stage_step *step)
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

void stage_write_failed(struct stage_step *step, int r)
{
    if ((r != -ENOSPC && r != -EDQUOT && r != -EIO) || step->face)
        return;
    struct ckpt_err err;
    ckpt_fail(&err, -r, "a file could not be written: %s. It is not committed by itself any more; commit it with sync when it is complete", strerror(-r));
    pthread_mutex_lock(&step->set->lock);
    step->write_failed = true;
    pthread_mutex_unlock(&step->set->lock);
    stage_set_error(step, &err);
}

void stage_set_error(struct stage_step *step, const struct ckpt_err *err)
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

int stage_open_dirs(struct stage_step *step, const char *id)
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

struct stage_step *stage_step_get(struct ckpt_stages *set, const char *name)
{
    CKPT_GUARD(&set->lock);
    struct stage_step *s = find_step(set, name);
    if (s)
        s->uses++;
    return s;
}

void stage_step_put(struct stage_step *step)
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

void stage_end(struct stage_step *step)
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

int stage_publish(struct stage_step *step, const char *name)
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
    struct stage_step *step = stage_step_get(set, name);
    if (!step)
        return -ENOENT;
    int fd = stage_reopen(step->tree, O_PATH);
    int r = fd < 0 ? fd : stage_take(step, fd, NULL, NULL, ret);
    stage_step_put(step);
    return r;
}

int stage_open_face(struct ckpt_stages *set)
{
    struct stage_step *face = stage_begin(set);
    if (!face)
        return -ENOMEM;
    face->face = true;
    face->tree = stage_reopen(set->store->root, O_RDONLY | O_DIRECTORY);
    int r = face->tree < 0 ? face->tree : add_step(face, ".files");
    if (r < 0)
        stage_step_put(face);
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
    struct stage_step *step = stage_step_get(set, name);
    if (!step)
        return;
    stage_touch(step, who);
    stage_step_put(step);
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
        r = stage_publish(step, name);
    if (r < 0) {
        stage_drop(step);
        return ckpt_fail(err, -r, "%s: %s", name, strerror(-r));
    }
    stage_touch(step, who);
    stage_step_put(step);
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
        r = stage_publish(step, name);
    if (r < 0 && step)
        stage_drop(step);
    else if (r == 0)
        stage_step_put(step);
    ckpt_manifest_info_clear(&info);
    ckpt_file_unref(manifest);
    if (r == -EEXIST) /* somebody else was quicker */
        return 0;
    return r < 0 ? ckpt_fail(err, -r, "%s: it cannot be opened for changes: %s", name, err && err->code ? err->text : strerror(-r)) : 0;
}

/* --- other ends, other names --- */

bool stage_is_empty(int dir)
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

/* Is the committed step of that name still the one that was copied? */
static bool is_base(struct stage_step *step, const char *name)
{
    return ckpt_store_step_is(step->set->store, name, step->base_id);
}

int ckpt_stage_remove(struct ckpt_stages *set, const char *name, struct ckpt_err *err)
{
    struct stage_step *step = stage_step_get(set, name);
    if (!step)
        return ckpt_fail(err, ENOENT, "%s: no staged step of that name", name);
    pthread_rwlock_wrlock(&step->freeze);
    int r = atomic_load(&step->state) == STAGE_OPEN ? 0 : -ESTALE;
    if (r == 0 && !stage_is_empty(step->tree))
        r = ckpt_fail(err, ENOTEMPTY, "%s is not empty", name);
    if (r == 0 && *step->base_id && is_base(step, name)) { /* what another mount has made of it since stays */
        r = ckpt_store_delete(set->store, name, err);
        r = r == -ENOENT ? 0 : r; /* another mount was quicker */
    }
    if (r == 0 && set->opt.writers) {
        r = ckpt_writers_withdraw(set->store, name, set->opt.writer, set->opt.writers);
        r = r < 0 ? ckpt_fail(err, -r, "%s: its part cannot be taken back: %s", name, strerror(-r)) : 0;
    }
    if (r == 0)
        stage_end(step);
    pthread_rwlock_unlock(&step->freeze);
    stage_step_put(step);
    if (r == 0)
        set->opt.changed(set->opt.arg, name);
    return r;
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
    struct stage_step *step = stage_step_get(set, from), *there = stage_step_get(set, to);
    int r = step ? 0 : ckpt_fail(err, ENOENT, "%s: no staged step of that name", from);
    if (r == 0 && there && !(stage_is_empty(there->tree) && !*there->base_id))
        r = ckpt_fail(err, set->opt.overwrite ? EBUSY : EEXIST, "%s is being written", to);
    else if (r == 0 && there)
        r = ckpt_stage_remove(set, to, err);
    if (r == 0)
        r = ckpt_step_name(to, &number) ? stage_commit_as(step, to, false, who->interrupted, err) : relabel(step, to);
    if (r == 0 && *step->base_id && is_base(step, from)) /* the step that was changed has the new name alone */
        r = ckpt_store_delete(set->store, from, err);
    if (there)
        stage_step_put(there);
    if (step)
        stage_step_put(step);
    return r;
}
