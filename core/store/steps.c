/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Committed steps. A step is there from when its manifest has its name in steps/ until it has none: each change here is
 * one rename, and what goes with it (pins) is arranged so that a crash in between leaves at worst a pin too many, which
 * means nothing without its step.
 *
 * Whoever changes names holds the lock shared, so that prune, which holds it exclusively, deletes what it has judged
 * and nothing else.
 */
#include "core/store/internal.h"

#include "core/base/grow.h"
#include "core/base/util.h"
#include "core/io/disk.h"

#include <fcntl.h>
#include <stdio.h>
#include <sys/stat.h>

#define RANDOM_TRIES 16

static int step_file(const char *step, const char *suffix, char ret[CKPT_STEP_FILE], struct ckpt_err *err)
{
    if (!ckpt_step_is_stored(step, NULL))
        return ckpt_fail(err, EINVAL, "%s is not a step's name: " CKPT_STEP_RULE, step);
    snprintf(ret, CKPT_STEP_FILE, "%s%s", step, suffix);
    return 0;
}

static bool there(int dir, const char *name)
{
    return faccessat(dir, name, F_OK, AT_SYMLINK_NOFOLLOW) == 0;
}

static int fail(struct ckpt_store *s, const char *step, int error, const char *what, struct ckpt_err *err)
{
    return ckpt_fail(err, -error, "%s: step %s %s: %s", s->path, step, what, strerror(-error));
}

int ckpt_store_manifest(struct ckpt_store *s, const char *step, struct ckpt_file **ret, struct ckpt_err *err)
{
    char name[CKPT_STEP_FILE], path[CKPT_STEP_FILE + 8];
    int r = step_file(step, ".json", name, err);
    if (r < 0)
        return r;
    snprintf(path, sizeof path, "steps/%s", name);
    r = ckpt_backend_open(s->files, path, ret);
    return r < 0 ? fail(s, step, r, "cannot be opened", err) : 0;
}

bool ckpt_store_has_step(const struct ckpt_store *s, const char *name)
{
    char file[CKPT_STEP_FILE];
    if (step_file(name, ".json", file, NULL) < 0)
        return false;
    return there(s->steps, file) || there(s->root, name);
}

/* --- the list --- */

struct list {
    struct ckpt_store *store;
    struct ckpt_store_step *steps;
    size_t count, room;
};

static int add_step(void *arg, int dir, const char *name)
{
    struct list *l = arg;
    char step[CKPT_STEP_NAME + 1], pin[CKPT_STEP_FILE];
    struct stat st;
    double number;
    if (!ckpt_step_of_file(name, step, &number))
        return 0;
    if (fstatat(dir, name, &st, AT_SYMLINK_NOFOLLOW) < 0 || !S_ISREG(st.st_mode))
        return 0;
    if (!CKPT_ROOM_FOR_ONE(l->steps, l->count, l->room))
        return -ENOMEM;
    snprintf(pin, sizeof pin, "%s.pin", step);
    char *copy = strdup(step);
    if (!copy)
        return -ENOMEM;
    l->steps[l->count++] = (struct ckpt_store_step){
        .name = copy,
        .number = number,
        .pinned = there(dir, pin),
        .mtime_ns = ckpt_timespec_ns(&st.st_mtim),
        .ino = st.st_ino,
        .dev = st.st_dev,
    };
    return 0;
}

static int by_number(const void *a, const void *b)
{
    const struct ckpt_store_step *x = a, *y = b;
    if (x->number != y->number)
        return x->number < y->number ? -1 : 1;
    return strcmp(x->name, y->name);
}

/* A step that went meanwhile is left out; one that cannot be read stays, without an id. */
static void read_heads(struct list *l)
{
    size_t kept = 0;
    for (size_t i = 0; i < l->count; i++) {
        struct ckpt_store_step *step = &l->steps[i];
        struct ckpt_manifest_info info = {0};
        struct ckpt_file *file;
        int r = ckpt_store_manifest(l->store, step->name, &file, NULL);
        if (r == -ENOENT) {
            free(step->name);
            continue;
        }
        if (r == 0) {
            r = ckpt_manifest_info(file, &info, NULL);
            ckpt_file_unref(file);
        }
        if (r == 0) {
            memcpy(step->id, info.id, sizeof step->id);
            step->time_ns = info.time_ns;
            ckpt_manifest_info_clear(&info);
        }
        l->steps[kept++] = *step;
    }
    l->count = kept;
}

int ckpt_store_step_is(struct ckpt_store *s, const char *step, const char *id)
{
    struct ckpt_manifest_info info = {0};
    struct ckpt_file *manifest;
    int r = ckpt_store_manifest(s, step, &manifest, NULL);
    if (r < 0)
        return r == -ENOENT ? 0 : r;
    r = ckpt_manifest_info(manifest, &info, NULL);
    ckpt_file_unref(manifest);
    if (r < 0) {
        bool damaged = r == -EUCLEAN || r == -EBADMSG || r == -EOPNOTSUPP;
        return damaged ? 0 : r; /* what is damaged is not the one that was read */
    }
    bool same = !strcmp(info.id, id);
    ckpt_manifest_info_clear(&info);
    return same;
}

/* Do the last bytes of a file, NUL-terminated, have a manifest's last line, and end with it? */
static bool is_last_line(const char *end, size_t len)
{
    const char *last = strstr(end, "\n],\"count\":");
    if (!last || !strstr(last, ",\"xxh3\":\""))
        return false;
    return !strcmp(end + len - strlen("\"}\n"), "\"}\n");
}

bool ckpt_store_step_is_whole(struct ckpt_store *s, const char *step)
{
    struct ckpt_manifest_info info = {0};
    struct ckpt_file *manifest;
    char end[128];
    if (ckpt_store_manifest(s, step, &manifest, NULL) < 0)
        return false;
    uint64_t size = manifest->st.size, off = size > sizeof end - 1 ? size - (sizeof end - 1) : 0;
    ssize_t n = ckpt_file_read(manifest, end, sizeof end - 1, off);
    end[CKPT_MAX(n, 0)] = 0;
    bool whole = is_last_line(end, (size_t)CKPT_MAX(n, 0)) && ckpt_manifest_info(manifest, &info, NULL) == 0;
    ckpt_manifest_info_clear(&info);
    ckpt_file_unref(manifest);
    return whole;
}

int ckpt_store_steps(struct ckpt_store *s, bool heads, struct ckpt_store_step **ret, size_t *ret_count,
                     struct ckpt_err *err)
{
    struct list l = {.store = s};
    int r = ckpt_names_each(s->dir, "steps", add_step, &l);
    if (r < 0) {
        ckpt_store_steps_free(l.steps, l.count);
        return ckpt_fail(err, -r, "%s: the steps cannot be listed: %s", s->path, strerror(-r));
    }
    if (heads)
        read_heads(&l);
    if (l.count)
        qsort(l.steps, l.count, sizeof *l.steps, by_number);
    *ret = l.steps;
    *ret_count = l.count;
    return 0;
}

void ckpt_store_steps_free(struct ckpt_store_step *steps, size_t count)
{
    for (size_t i = 0; i < count; i++)
        free(steps[i].name);
    free(steps);
}

/* --- deletion --- */

/* Away with the manifest, under a name in the trash that nobody else has. */
static int to_trash(struct ckpt_store *s, const char *file)
{
    int r = -EEXIST;
    for (int i = 0; r == -EEXIST && i < RANDOM_TRIES; i++) {
        char random[9], trash[CKPT_STEP_FILE + 16];
        ckpt_random_hex(random, 4);
        snprintf(trash, sizeof trash, "steps/%s.%s", file, random);
        r = there(s->trash, trash) ? -EEXIST : ckpt_disk_rename(s->steps, file, s->trash, trash, 0);
    }
    return r;
}

int ckpt_store_delete_locked(struct ckpt_store *s, const char *name, struct ckpt_err *err)
{
    char file[CKPT_STEP_FILE], pin[CKPT_STEP_FILE];
    int r = step_file(name, ".json", file, err);
    if (r < 0)
        return r;
    step_file(name, ".pin", pin, NULL);
    r = to_trash(s, file);
    if (r == 0 && there(s->steps, pin))
        r = ckpt_disk_unlink(s->steps, pin, 0);
    if (r == 0)
        r = ckpt_disk_fsync(s->steps);
    return r < 0 ? fail(s, name, r, "cannot be deleted", err) : 0;
}

static int lock(struct ckpt_store *s, bool exclusive, struct ckpt_err *err)
{
    int fd = ckpt_store_lock(s, exclusive);
    return fd < 0 ? ckpt_fail(err, -fd, "%s: the lock cannot be taken: %s", s->path, strerror(-fd)) : fd;
}

int ckpt_store_delete(struct ckpt_store *s, const char *name, const char *id, struct ckpt_err *err)
{
    CKPT_AUTOFD int held = lock(s, id != NULL, err); /* alone: what was looked at stays what it is */
    if (held < 0)
        return held;
    char file[CKPT_STEP_FILE];
    int r = id ? step_file(name, ".json", file, err) : 0;
    if (r < 0)
        return r;
    int same = id && there(s->steps, file) ? ckpt_store_step_is(s, name, id) : 1;
    if (same < 0)
        return fail(s, name, same, "cannot be deleted", err);
    if (!same)
        return ckpt_fail(err, ESTALE, "%s: another mount has made a new step of that name", name);
    return ckpt_store_delete_locked(s, name, err);
}

/* --- renaming --- */

/* Some network file systems have no rename that spares what is there; a link does, and for a moment both names are
 * there. */
static int rename_manifest(struct ckpt_store *s, const char *from, const char *to, bool overwrite)
{
    if (overwrite)
        return ckpt_disk_rename(s->steps, from, s->steps, to, 0);
    int r = ckpt_disk_rename(s->steps, from, s->steps, to, RENAME_NOREPLACE);
    if (r != -EINVAL && r != -ENOSYS)
        return r;
    r = ckpt_disk_link(s->steps, from, s->steps, to);
    return r < 0 ? r : ckpt_disk_unlink(s->steps, from, 0);
}

static int make_pin(struct ckpt_store *s, const char *pin)
{
    CKPT_AUTOFD int fd = ckpt_disk_open(s->steps, pin, O_WRONLY | O_CREAT | O_NOFOLLOW | O_CLOEXEC, 0666);
    if (fd >= 0)
        ckpt_store_give(s, s->steps, pin);
    return fd < 0 ? fd : 0;
}

static int drop_pin(struct ckpt_store *s, const char *pin)
{
    int r = there(s->steps, pin) ? ckpt_disk_unlink(s->steps, pin, 0) : 0;
    return r == -ENOENT ? 0 : r;
}

/* A pinned step has a pin at every moment. */
static int move(struct ckpt_store *s, const char *from, const char *to, bool overwrite)
{
    char file[2][CKPT_STEP_FILE], pin[2][CKPT_STEP_FILE];
    const char *const names[] = {from, to};
    for (int i = 0; i < 2; i++) {
        step_file(names[i], ".json", file[i], NULL);
        step_file(names[i], ".pin", pin[i], NULL);
    }
    if (!there(s->steps, file[0]))
        return -ENOENT;
    bool replaced = there(s->steps, file[1]), pinned = there(s->steps, pin[0]);
    if (replaced && !overwrite)
        return -EEXIST;
    int r = 0;
    if (pinned)
        r = make_pin(s, pin[1]);
    else if (!replaced) /* one that a crash has left there; that of a step is dropped when it is replaced */
        r = drop_pin(s, pin[1]);
    if (r == 0)
        r = rename_manifest(s, file[0], file[1], overwrite);
    if (r == 0)
        r = drop_pin(s, pinned ? pin[0] : pin[1]);
    if (r < 0)
        return r;
    r = ckpt_disk_fsync(s->steps);
    if (r == 0 || replaced) /* what was replaced is in nobody's way any more, so that stays */
        return r;
    /* Whoever gets the error finds the step where it was. */
    int back = rename_manifest(s, file[1], file[0], false);
    if (back == 0 && pinned && make_pin(s, pin[0]) == 0)
        (void)!drop_pin(s, pin[1]);
    return r;
}

int ckpt_store_rename(struct ckpt_store *s, const char *from, const char *to, bool overwrite, struct ckpt_err *err)
{
    char file[CKPT_STEP_FILE];
    int r = step_file(from, ".json", file, err);
    if (r == 0)
        r = step_file(to, ".json", file, err);
    if (r == 0)
        r = ckpt_store_allow_name(s, to, err);
    if (r < 0)
        return r;
    CKPT_AUTOFD int held = lock(s, false, err);
    if (held < 0)
        return held;
    if (!strcmp(from, to))
        return there(s->steps, file) ? 0 : fail(s, from, -ENOENT, "cannot be renamed", err);
    r = move(s, from, to, overwrite);
    if (r == -EEXIST)
        return ckpt_fail(err, EEXIST, "%s: there is a step %s already", s->path, to);
    return r < 0 ? fail(s, from, r, "cannot be renamed", err) : 0;
}

/* --- pins --- */

int ckpt_store_pin(struct ckpt_store *s, const char *name, bool pinned, struct ckpt_err *err)
{
    char file[CKPT_STEP_FILE], pin[CKPT_STEP_FILE];
    int r = step_file(name, ".json", file, err);
    if (r < 0)
        return r;
    step_file(name, ".pin", pin, NULL);
    CKPT_AUTOFD int held = lock(s, false, err);
    if (held < 0)
        return held;
    if (!there(s->steps, file))
        return fail(s, name, -ENOENT, "cannot be pinned", err);
    if (there(s->steps, pin) == pinned)
        return 0;
    r = pinned ? make_pin(s, pin) : drop_pin(s, pin);
    if (r == 0)
        r = ckpt_disk_fsync(s->steps);
    return r < 0 ? fail(s, name, r, pinned ? "cannot be pinned" : "cannot be unpinned", err) : 0;
}

static int drop_if_stale(void *arg, int dir, const char *name)
{
    struct ckpt_store *s = arg;
    char file[CKPT_STEP_FILE];
    size_t n = strlen(name);
    if (n < 5 || n - 4 > CKPT_STEP_NAME || strcmp(name + n - 4, ".pin"))
        return 0;
    snprintf(file, sizeof file, "%.*s.json", (int)(n - 4), name);
    return there(dir, file) ? 0 : drop_pin(s, name);
}

int ckpt_store_drop_stale_pins(struct ckpt_store *s)
{
    return ckpt_names_each(s->dir, "steps", drop_if_stale, s);
}
