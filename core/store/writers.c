/* SPDX-License-Identifier: Apache-2.0 */
/*
 * writers/NAME/ has `lock`, a part K-of-N.json for each writer that has come, and `done` or `failed` when something
 * came of them, with the ids of the parts that it came of. Names change under the lock only, but for the whole
 * directory's, which goes to the trash in one call: so whoever has it open can see what became of it. Whoever makes the
 * step may be killed before it has written `done`. So the step's id follows from the parts, and the next one who takes
 * the lock writes the file.
 */
#include "core/store/writers.h"

#include "core/base/path.h"
#include "core/base/util.h"
#include "core/io/disk.h"
#include "core/store/internal.h"
#include "core/store/part_items.h"
#include "core/store/seal.h"

#include <fcntl.h>
#include <stdio.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <xxhash.h>

#define PLACE      "writers"
#define KEEP_DONE  86400  /* seconds after which nobody looks for a result any more */
#define KEEP_PARTS 604800 /* of a step that some writers never came to */
#define DONE_MAX   ((size_t)4 << 20)

struct ckpt_writers {
    struct ckpt_store *store;
    char step[CKPT_STEP_NAME + 1];
    int dir;
    bool made;  /* the step was made of what this writer had here before */
    bool equal; /* which is what it has now */
};

static int fail(const struct ckpt_writers *w, int r, const char *what, struct ckpt_err *err)
{
    return r < 0 ? ckpt_fail(err, -r, "step %s: %s: %s", w->step, what, strerror(-r)) : 0;
}

static bool is_there(int dir, const char *name)
{
    return faccessat(dir, name, F_OK, AT_SYMLINK_NOFOLLOW) == 0;
}

/* `done` and `failed`. */
static int read_text(int dir, const char *name, char **ret)
{
    size_t len;
    return ckpt_text_at(dir, name, DONE_MAX, ret, &len);
}

/* "K-of-N.json" */
static bool is_part(const char *name, unsigned *ret_k, unsigned *ret_n)
{
    int end = 0;
    return sscanf(name, "%5u-of-%5u.json%n", ret_k, ret_n, &end) == 2 && end && !name[end];
}

static void part_name(unsigned k, unsigned n, char ret[32])
{
    snprintf(ret, 32, "%u-of-%u.json", k, n);
}

/* --- the place --- */

#define PLACE_PATH (CKPT_STEP_NAME + 16)

static void place_path(const char *step, char ret[PLACE_PATH])
{
    snprintf(ret, PLACE_PATH, PLACE "/%s", step);
}

/* If the step was made of these parts, and nobody has said so. */
static int note_made(struct ckpt_writers *w)
{
    char path[CKPT_STEP_FILE + 8], id[33];
    snprintf(path, sizeof path, "steps/%s.json", w->step);
    if (!is_there(w->store->dir, path) || is_there(w->dir, "done"))
        return 0;
    int r = ckpt_writers_id(w, id, NULL);
    if (r == 0)
        r = ckpt_store_step_is(w->store, w->step, id);
    return r == 1 ? ckpt_writers_finish(w, 0, NULL) : r;
}

static int wait_for_flock(int fd)
{
    while (flock(fd, LOCK_EX) < 0)
        if (errno != EINTR)
            return -errno;
    return 0;
}

/* Has the open directory still the step's name? */
static bool is_current(const struct ckpt_writers *w)
{
    char path[PLACE_PATH];
    struct stat ours, now;
    place_path(w->step, path);
    if (fstat(w->dir, &ours) < 0 || fstatat(w->store->dir, path, &now, AT_SYMLINK_NOFOLLOW) < 0)
        return false;
    return ours.st_ino == now.st_ino && ours.st_dev == now.st_dev;
}

/* The directory's lock, if that is still the step's; -ESTALE: it was moved to the trash. */
static int lock_place(struct ckpt_writers *w)
{
    bool made = !is_there(w->dir, "lock");
    CKPT_AUTOFD int fd = openat(w->dir, "lock", O_RDWR | O_CREAT | O_CLOEXEC, 0666);
    if (fd < 0)
        return -errno;
    if (made)
        ckpt_store_give(w->store, w->dir, "lock");
    int r = wait_for_flock(fd);
    if (r < 0)
        return r;
    if (!is_current(w))
        return -ESTALE;
    r = note_made(w);
    return r < 0 ? r : CKPT_STEAL_FD(fd);
}

static int move_to_trash(struct ckpt_store *s, const char *step)
{
    char path[PLACE_PATH], trash[64], random[17];
    ckpt_random_hex(random, 8);
    place_path(step, path);
    snprintf(trash, sizeof trash, PLACE "-%s", random);
    int r = ckpt_disk_rename(s->dir, path, s->trash, trash, 0);
    if (r == 0)
        (void)!ckpt_disk_remove_tree(s->trash, trash); /* else gc does it */
    return r == -ENOENT ? 0 : r;
}

/* A durable directory of the store. path: with its parent's, `above`. */
static int make_place_dir(struct ckpt_store *s, const char *path, const char *above)
{
    int r = ckpt_disk_mkdir(s->dir, path, 0777);
    if (r < 0)
        return r == -EEXIST ? 0 : r;
    ckpt_store_give(s, s->dir, path);
    return above ? ckpt_disk_fsync_dir(s->dir, above) : ckpt_disk_fsync(s->dir);
}

/* One that is there. */
static int open_dir(struct ckpt_writers *w)
{
    char path[PLACE_PATH];
    place_path(w->step, path);
    w->dir = openat(w->store->dir, path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    return w->dir < 0 ? -errno : 0;
}

static int open_place(struct ckpt_writers *w)
{
    char path[PLACE_PATH];
    place_path(w->step, path);
    int r = make_place_dir(w->store, PLACE, NULL);
    if (r == 0)
        r = make_place_dir(w->store, path, PLACE);
    return r < 0 ? r : open_dir(w);
}

/* Is one of the ids, a line each, among those in `done`? */
static bool names_any(const char *done, const char *ids)
{
    char id[CKPT_MANIFEST_ID];
    for (const char *p = ids; *p; p += strcspn(p, "\n"), p += *p == '\n') {
        size_t len = strcspn(p, "\n");
        snprintf(id, sizeof id, "%.*s", (int)len, p);
        if (len && len < sizeof id && strstr(done, id))
            return true;
    }
    return false;
}

/* -ESTALE, -ENOENT: once more. */
static int open_current(struct ckpt_writers *w, const char *before)
{
    CKPT_AUTOFREE char *done = NULL;
    if (w->dir >= 0)
        close(CKPT_STEAL_FD(w->dir));
    int r = open_place(w);
    if (r < 0)
        return r;
    CKPT_AUTOFD int lock = lock_place(w);
    if (lock < 0)
        return lock;
    if (read_text(w->dir, "done", &done) < 0)
        return 0;
    w->made = names_any(done, before);
    if (w->made)
        return 0;
    r = move_to_trash(w->store, w->step); /* of a step of that name that was there before */
    return r < 0 ? r : -ESTALE;
}

int ckpt_writers_open(struct ckpt_store *s, const char *step, const char *before, struct ckpt_writers **ret,
                      struct ckpt_err *err)
{
    struct ckpt_writers *w = calloc(1, sizeof *w);
    if (!w)
        return ckpt_no_memory(err);
    w->store = s;
    w->dir = -1;
    snprintf(w->step, sizeof w->step, "%s", step);
    int r;
    do
        r = open_current(w, before);
    while (r == -ESTALE || r == -ENOENT); /* somebody else has moved it to the trash meanwhile */
    if (r < 0) {
        ckpt_fail(err, -r, "step %s: the parts of its writers have no place: %s", step, strerror(-r));
        ckpt_writers_close(w);
        return r;
    }
    *ret = w;
    return 0;
}

void ckpt_writers_close(struct ckpt_writers *w)
{
    if (w && w->dir >= 0)
        close(w->dir);
    free(w);
}

/* --- parts --- */

static int open_part(struct ckpt_store *s, const char *step, const char *name, struct ckpt_file **ret)
{
    char path[CKPT_STEP_NAME + 64];
    snprintf(path, sizeof path, PLACE "/%s/%s", step, name);
    return ckpt_backend_open(s->files, path, ret);
}

/* --- do two parts agree? --- */

struct comparing {
    struct ckpt_writers *w;
    unsigned k, n;
    const struct ckpt_part_items *mine;
    struct ckpt_err *err;
};

/* Calls for each part of another writer. */
static int compare_part(void *arg, int dir, const char *name)
{
    struct comparing *c = arg;
    const struct ckpt_writers *w = c->w;
    unsigned k, n;
    struct ckpt_file *file;
    char conflict[CKPT_PART_CONFLICT];
    if (!is_part(name, &k, &n))
        return 0;
    if (n != c->n)
        return ckpt_fail(c->err, EINVAL, "step %s: writer %u was mounted with writers=%u, this one with writers=%u",
                         w->step, k, n, c->n);
    if (k == c->k)
        return 0;
    int r = open_part(w->store, w->step, name, &file);
    if (r < 0)
        return fail(w, r, "the part of another writer cannot be opened", c->err);
    r = ckpt_part_items_compare(c->mine, file, conflict, c->err);
    ckpt_file_unref(file);
    if (r == -EEXIST)
        return ckpt_fail(c->err, EEXIST, "step %s: writer %u has written other bytes to %s", w->step, k, conflict);
    return r;
}

static int fail_made_before(const struct ckpt_writers *w, struct ckpt_err *err)
{
    return ckpt_fail(err, EEXIST, "step %s was made of what this writer had before its last changes", w->step);
}

/* With the part that this writer had when the step was made. */
static int compare_made(struct ckpt_writers *w, const char *part, const struct ckpt_part_items *mine,
                        struct ckpt_err *err)
{
    struct ckpt_file *file;
    struct ckpt_part_items *was;
    int r = open_part(w->store, w->step, part, &file);
    if (r < 0)
        return fail(w, r, "the part that it was made of cannot be opened", err);
    r = ckpt_part_items_read(file, &was, err);
    ckpt_file_unref(file);
    if (r < 0)
        return r;
    w->equal = ckpt_part_items_equal(mine, was);
    ckpt_part_items_free(was);
    return w->equal ? 0 : fail_made_before(w, err);
}

/* The manifest of that name in `work`. */
static int read_own_part(struct ckpt_writers *w, int work, const char *name, struct ckpt_part_items **ret,
                         struct ckpt_err *err)
{
    char path[64];
    struct ckpt_backend *dir;
    struct ckpt_file *file;
    ckpt_fd_path(path, work);
    int r = ckpt_backend_open_posix(path, &dir, err);
    if (r < 0)
        return r;
    r = ckpt_backend_open(dir, name, &file);
    ckpt_backend_unref(dir);
    if (r < 0)
        return fail(w, r, "its part cannot be opened", err);
    r = ckpt_part_items_read(file, ret, err);
    ckpt_file_unref(file);
    return r;
}

static int compare_parts(struct ckpt_writers *w, unsigned k, unsigned n, int work, const char *name,
                         struct ckpt_err *err)
{
    char part[32];
    struct ckpt_part_items *mine;
    int r = read_own_part(w, work, name, &mine, err);
    if (r < 0)
        return r;
    if (is_there(w->dir, "done")) {
        part_name(k, n, part);
        r = compare_made(w, part, mine, err);
    } else {
        struct comparing c = {w, k, n, mine, err};
        r = ckpt_names_each(w->dir, ".", compare_part, &c);
    }
    ckpt_part_items_free(mine);
    return r;
}

int ckpt_writers_put(struct ckpt_writers *w, unsigned k, unsigned n, int work, const char *name, struct ckpt_err *err)
{
    char part[32];
    part_name(k, n, part);
    CKPT_AUTOFD int lock = lock_place(w);
    if (lock < 0)
        return fail(w, lock, "the lock of its writers cannot be taken", err);
    int r = compare_parts(w, k, n, work, name, err);
    if (r < 0 || w->equal)
        return r;
    r = ckpt_disk_rename(work, name, w->dir, part, 0);
    if (r == 0)
        r = ckpt_disk_fsync(w->dir);
    return fail(w, r, "its part cannot be put beside the others", err);
}

/* The reason that `failed` begins with: "CODE TEXT". */
static int fail_as_noted(char *text, struct ckpt_err *err)
{
    int code = atoi(text);
    if (code <= 0 || code >= 4096)
        code = EIO;
    char *end = strchr(text, '\n');
    if (end)
        *end = 0;
    const char *space = strchr(text, ' ');
    return ckpt_fail(err, code, "%s", space ? space + 1 : "the writers' step cannot be made");
}

int ckpt_writers_done(struct ckpt_writers *w, const char *part, struct ckpt_err *err)
{
    CKPT_AUTOFREE char *done = NULL, *failed = NULL;
    if (w->equal)
        return 1;
    int r = read_text(w->dir, "done", &done);
    if (r == 0)
        return strstr(done, part) ? 1 : fail_made_before(w, err);
    if (r != -ENOENT)
        return fail(w, r, "what became of it cannot be told", err);
    if (read_text(w->dir, "failed", &failed) < 0)
        return 0;
    return strstr(failed, part) ? fail_as_noted(failed, err) : 0;
}

struct counting {
    bool *there;
    unsigned n, count, highest;
};

static int count_part(void *arg, int dir, const char *name)
{
    struct counting *c = arg;
    unsigned k, n;
    if (!is_part(name, &k, &n) || n != c->n || k > n)
        return 0;
    c->count += !c->there[k];
    c->there[k] = true;
    c->highest = CKPT_MAX(c->highest, k);
    return 0;
}

static int count_parts(struct ckpt_writers *w, unsigned n, struct counting *ret)
{
    *ret = (struct counting){.n = n, .there = calloc(n + 1, sizeof *ret->there)};
    if (!ret->there)
        return -ENOMEM;
    return ckpt_names_each(w->dir, ".", count_part, ret);
}

void ckpt_writers_missing(struct ckpt_writers *w, unsigned n, char *buf, size_t len)
{
    struct counting c;
    size_t at = 0;
    *buf = 0;
    if (count_parts(w, n, &c) == 0) {
        unsigned first = c.highest == n; /* some count from 1 */
        for (unsigned k = first; k < n + first && at < len; k++) {
            if (c.there[k])
                continue;
            const char *comma = at ? ", " : "";
            at += (size_t)snprintf(buf + at, len - at, "%s%u", comma, k);
        }
    }
    free(c.there);
}

/* --- the step --- */

int ckpt_writers_complete(struct ckpt_writers *w, unsigned n, struct ckpt_err *err)
{
    struct counting c;
    int r = count_parts(w, n, &c);
    free(c.there);
    if (r < 0)
        return fail(w, r, "the parts of its writers cannot be listed", err);
    return c.count >= n && !is_there(w->dir, "done");
}

int ckpt_writers_lock(struct ckpt_writers *w, struct ckpt_err *err)
{
    int lock = lock_place(w);
    return lock < 0 && lock != -ESTALE ? fail(w, lock, "the lock of its writers cannot be taken", err) : lock;
}

struct visiting {
    struct ckpt_store *store;
    const char *step;
    ckpt_part_fn *visit;
    void *arg;
    struct ckpt_err *err;
    bool may_go; /* nobody holds the lock */
};

static int visit_part(void *arg, int dir, const char *name)
{
    struct visiting *v = arg;
    struct ckpt_file *file;
    unsigned k, n;
    if (!is_part(name, &k, &n))
        return 0;
    int r = open_part(v->store, v->step, name, &file);
    if (r == -ENOENT && v->may_go)
        return 0;
    if (r < 0)
        return ckpt_fail(v->err, -r, "step %s: the part of a writer cannot be opened: %s", v->step, strerror(-r));
    r = v->visit(v->arg, file, v->err);
    ckpt_file_unref(file);
    return r;
}

int ckpt_writers_each(struct ckpt_writers *w, ckpt_part_fn *visit, void *arg, struct ckpt_err *err)
{
    struct visiting v = {w->store, w->step, visit, arg, err, false};
    return ckpt_names_each(w->dir, ".", visit_part, &v);
}

/* In whatever order they come. */
static int mix_id(void *arg, struct ckpt_file *part, struct ckpt_err *err)
{
    struct ckpt_manifest_info info = {0};
    XXH128_hash_t *all = arg;
    int r = ckpt_manifest_info(part, &info, err);
    if (r == 0) {
        XXH128_hash_t one = XXH3_128bits(info.id, strlen(info.id));
        *all = (XXH128_hash_t){all->low64 ^ one.low64, all->high64 ^ one.high64};
    }
    ckpt_manifest_info_clear(&info);
    return r;
}

int ckpt_writers_id(struct ckpt_writers *w, char ret[33], struct ckpt_err *err)
{
    XXH128_hash_t all = {0, 0};
    int r = ckpt_writers_each(w, mix_id, &all, err);
    snprintf(ret, 33, "%016llx%016llx", (unsigned long long)all.high64, (unsigned long long)all.low64);
    return r;
}

static int add_id(void *arg, struct ckpt_file *part, struct ckpt_err *err)
{
    struct ckpt_manifest_info info = {0};
    int r = ckpt_manifest_info(part, &info, err);
    if (r == 0)
        ckpt_buf_addf(arg, "%s\n", info.id);
    ckpt_manifest_info_clear(&info);
    return r;
}

static int drop_part(void *arg, int dir, const char *name)
{
    unsigned k, n;
    return is_part(name, &k, &n) ? ckpt_disk_unlink(dir, name, 0) : 0;
}

static int part_mode(void *arg, int dir, const char *name)
{
    mode_t *mode = arg;
    struct stat st;
    unsigned k, n;
    if (is_part(name, &k, &n) && fstatat(dir, name, &st, AT_SYMLINK_NOFOLLOW) == 0)
        *mode &= st.st_mode;
    return 0;
}

/* The reason may name something in the parts: it is for who may read them. */
static int seal_reason(struct ckpt_writers *w)
{
    mode_t mode = 0666;
    int r = ckpt_names_each(w->dir, ".", part_mode, &mode);
    return r < 0 ? r : ckpt_seal_object(w->store, w->dir, "failed", mode | 0600);
}

int ckpt_writers_finish(struct ckpt_writers *w, int result, const struct ckpt_err *why)
{
    const char *file = result < 0 ? "failed" : "done";
    struct ckpt_buf text = CKPT_BUF_INIT;
    if (result < 0)
        ckpt_buf_addf(&text, "%d %s\n", -result, why->text);
    int r = ckpt_writers_each(w, add_id, &text, NULL);
    if (r == 0)
        r = ckpt_buf_error(&text);
    if (r == 0)
        r = ckpt_disk_replace(w->dir, file, text.data, text.len);
    ckpt_buf_clear(&text);
    if (r < 0 || result == 0)
        return r;
    r = seal_reason(w);
    return r < 0 ? r : ckpt_names_each(w->dir, ".", drop_part, NULL); /* all come again, with what they have then */
}

/* --- afterwards --- */

bool ckpt_writers_made(const struct ckpt_writers *w)
{
    return w->made;
}

bool ckpt_writers_was_done(struct ckpt_store *s, const char *step, const char *ids)
{
    struct ckpt_writers w = {.store = s, .dir = -1};
    CKPT_AUTOFREE char *text = NULL;
    if (snprintf(w.step, sizeof w.step, "%s", step) >= (int)sizeof w.step)
        return false;
    if (open_dir(&w) < 0)
        return false;
    CKPT_AUTOFD int dir = w.dir;
    CKPT_AUTOFD int lock = lock_place(&w); /* whoever made the step may have been killed before it noted that */
    if (lock < 0 || read_text(dir, "done", &text) < 0)
        return false;
    return names_any(text, ids);
}

static int any_part(void *arg, int dir, const char *name)
{
    unsigned k, n;
    return is_part(name, &k, &n);
}

int ckpt_writers_withdraw(struct ckpt_store *s, const char *step, unsigned k, unsigned n)
{
    char part[32];
    struct ckpt_writers w = {.store = s, .dir = -1};
    snprintf(w.step, sizeof w.step, "%s", step);
    part_name(k, n, part);
    int r = open_dir(&w);
    if (r < 0)
        return r == -ENOENT ? 0 : r;
    CKPT_AUTOFD int dir = w.dir;
    CKPT_AUTOFD int lock = lock_place(&w);
    if (lock < 0)
        return lock == -ESTALE ? 0 : lock;
    if (is_there(dir, "done") || !is_there(dir, part))
        return 0;
    r = ckpt_disk_unlink(dir, part, 0);
    if (r == 0)
        r = ckpt_names_each(dir, ".", any_part, NULL);
    if (r > 0) /* parts of others wait there */
        return 0;
    return r < 0 ? r : move_to_trash(s, step);
}

static int visit_step(void *arg, int dir, const char *name)
{
    struct visiting *v = arg;
    char done[CKPT_STEP_NAME + 8];
    if (strlen(name) > CKPT_STEP_NAME)
        return 0;
    snprintf(done, sizeof done, "%s/done", name);
    if (is_there(dir, done))
        return 0;
    v->step = name;
    int r = ckpt_names_each(dir, name, visit_part, v);
    return r == -ENOENT || r == -ENOTDIR ? 0 : r;
}

int ckpt_writers_parts(struct ckpt_store *s, ckpt_part_fn *visit, void *arg, struct ckpt_err *err)
{
    struct visiting v = {s, NULL, visit, arg, err, true};
    int r = ckpt_names_each(s->dir, PLACE, visit_step, &v);
    return r == -ENOENT ? 0 : r;
}

static int tidy_step(void *arg, int dir, const char *name)
{
    struct stat st;
    char path[CKPT_STEP_NAME + 8];
    if (strlen(name) > CKPT_STEP_NAME)
        return 0;
    snprintf(path, sizeof path, "%s/done", name);
    bool done = fstatat(dir, path, &st, AT_SYMLINK_NOFOLLOW) == 0;
    if (!done && fstatat(dir, name, &st, AT_SYMLINK_NOFOLLOW) < 0)
        return 0;
    int64_t age = ckpt_realtime_ns() - ckpt_timespec_ns(&st.st_ctim);
    int64_t limit = (done ? KEEP_DONE : KEEP_PARTS) * 1000000000ll;
    return age > limit ? move_to_trash(arg, name) : 0;
}

int ckpt_writers_tidy(struct ckpt_store *s)
{
    int r = ckpt_names_each(s->dir, PLACE, tidy_step, s);
    return r == -ENOENT ? 0 : r;
}
