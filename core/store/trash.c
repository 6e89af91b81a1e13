/* SPDX-License-Identifier: Apache-2.0 */
/*
 * trash/: what was deleted and may still have readers, who found its name before it went. Moving a file there sets the
 * time of its last change of status, and that time says when it has been there for long enough. Nothing here needs to
 * be durable: what a crash undoes is done again. Only what goes back to objects/ is fsynced.
 */
#include "core/store/internal.h"

#include "core/base/util.h"
#include "core/io/disk.h"

#include <fcntl.h>
#include <stdio.h>
#include <sys/file.h>
#include <sys/stat.h>

#define SUMS         ".sums"
#define STAGING_KEEP 1u /* seconds, at least */

bool ckpt_object_name(const char *name, uint8_t ret[CKPT_SHA256], bool *ret_sums)
{
    char hex[CKPT_HEX];
    size_t n = strlen(name);
    *ret_sums = ckpt_has_suffix(name, SUMS);
    if (*ret_sums)
        n -= strlen(SUMS);
    if (n != CKPT_HEX - 1)
        return false;
    snprintf(hex, sizeof hex, "%.*s", (int)n, name);
    return ckpt_hash_parse(hex, ret);
}

uint64_t ckpt_size_at(int dir, const char *path)
{
    struct stat st;
    return fstatat(dir, path, &st, AT_SYMLINK_NOFOLLOW) == 0 ? (uint64_t)st.st_size : 0;
}

static int64_t ctime_ns(const struct stat *st)
{
    return ckpt_timespec_ns(&st->st_ctim);
}

static int fail(struct ckpt_store *s, const char *name, int error, const char *what, struct ckpt_err *err)
{
    return ckpt_fail(err, -error, "%s: %s %s: %s", s->path, name, what, strerror(-error));
}

/* --- objects --- */

/* Where an object's file is in objects/ and in the trash; suffix: "" or ".sums". */
struct paths {
    char object[CKPT_OBJECT_PATH + 8], trash[CKPT_OBJECT_PATH + 16];
};

static void paths_of(const uint8_t hash[CKPT_SHA256], const char *suffix, struct paths *ret)
{
    char path[CKPT_OBJECT_PATH], hex[CKPT_HEX];
    ckpt_object_path(hash, path);
    ckpt_hash_hex(hash, hex);
    snprintf(ret->object, sizeof ret->object, "%s%s", path, suffix);
    snprintf(ret->trash, sizeof ret->trash, "objects/%s%s", hex, suffix);
}

/* 1: it was there. rename does nothing where both names are links to one file, as they are when an object was taken out
 * of the trash. */
static int move_away(struct ckpt_store *s, const struct paths *p)
{
    struct stat from, to;
    if (fstatat(s->objects, p->object, &from, AT_SYMLINK_NOFOLLOW) < 0)
        return errno == ENOENT ? 0 : -errno;
    bool there = fstatat(s->trash, p->trash, &to, AT_SYMLINK_NOFOLLOW) == 0;
    bool linked = there && to.st_dev == from.st_dev && to.st_ino == from.st_ino;
    int r;
    if (linked)
        r = ckpt_disk_unlink(s->objects, p->object, 0);
    else
        r = ckpt_disk_rename(s->objects, p->object, s->trash, p->trash, 0);
    return r < 0 ? r : 1;
}

/* The sums go last, so that no object in objects/ is without its sums. */
int ckpt_trash_object(struct ckpt_store *s, const uint8_t hash[CKPT_SHA256], struct ckpt_gc_result *ret,
                      struct ckpt_err *err)
{
    struct paths object, sums;
    paths_of(hash, "", &object);
    paths_of(hash, SUMS, &sums);
    uint64_t bytes = ckpt_size_at(s->objects, object.object) + ckpt_size_at(s->objects, sums.object);
    int r = move_away(s, &object);
    if (r == 1)
        ret->objects++;
    if (r >= 0)
        r = move_away(s, &sums);
    if (r < 0)
        return fail(s, object.object, r, "cannot be moved to the trash", err);
    ret->bytes += bytes;
    return 0;
}

struct restoring {
    struct ckpt_store *store;
    const struct ckpt_hashes *named;
    struct ckpt_err *err;
};

static int put_back(struct ckpt_store *s, const uint8_t hash[CKPT_SHA256], const char *suffix)
{
    struct paths p;
    char folder[3];
    paths_of(hash, suffix, &p);
    snprintf(folder, sizeof folder, "%.2s", p.object);
    if (faccessat(s->trash, p.trash, F_OK, AT_SYMLINK_NOFOLLOW) < 0)
        return 0;
    int r = ckpt_disk_mkdir(s->objects, folder, 0777);
    if (r == 0)
        ckpt_store_give(s, s->objects, folder);
    if (r == 0)
        r = ckpt_disk_fsync(s->objects);
    if (r < 0 && r != -EEXIST)
        return r;
    r = ckpt_disk_rename(s->trash, p.trash, s->objects, p.object, 0);
    return r < 0 ? r : ckpt_disk_fsync_dir(s->objects, folder);
}

static int restore_one(void *arg, int dir, const char *name)
{
    struct restoring *r = arg;
    uint8_t hash[CKPT_SHA256];
    struct paths p;
    bool sums;
    if (!ckpt_object_name(name, hash, &sums) || sums)
        return 0;
    if (!ckpt_hashes_has(r->named, hash))
        return 0;
    paths_of(hash, "", &p);
    if (faccessat(r->store->objects, p.object, F_OK, AT_SYMLINK_NOFOLLOW) == 0)
        return 0;
    int e = put_back(r->store, hash, SUMS);
    if (e == 0)
        e = put_back(r->store, hash, "");
    return e < 0 ? fail(r->store, p.trash, e, "is needed again and cannot be put back", r->err) : 0;
}

int ckpt_trash_restore(struct ckpt_store *s, const struct ckpt_hashes *named, struct ckpt_err *err)
{
    struct restoring r = {s, named, err};
    struct ckpt_err none = {0};
    if (err)
        *err = none;
    int e = ckpt_names_each(s->trash, "objects", restore_one, &r);
    bool told = !err || err->code;
    return e < 0 && !told ? fail(s, "trash/objects", e, "cannot be listed", err) : e;
}

/* --- staging directories --- */

static int not_empty(void *arg, int dir, const char *name)
{
    return 1;
}

/* Between making one and locking it, its owner has no lock. */
static bool is_young(const struct stat *st, unsigned keep)
{
    return ckpt_realtime_ns() - ctime_ns(st) < CKPT_MAX(keep, STAGING_KEEP) * 1000000000ll;
}

/* The lock of a staging directory that nobody owns, held; -1 if somebody does. */
static int lock_unowned(int staging, const char *id)
{
    char path[300];
    snprintf(path, sizeof path, "%s/lock", id);
    int fd = openat(staging, path, O_RDWR | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
    if (fd < 0 && errno == ENOENT) /* it was cut short before it had one */
        return openat(staging, id, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (fd >= 0 && flock(fd, LOCK_EX | LOCK_NB) < 0) {
        close(fd);
        return -1;
    }
    return fd;
}

/* Without files nothing is lost; without a name it can never become a step: what made it has died. */
static bool holds_nothing(int staging, const char *id)
{
    char path[300];
    snprintf(path, sizeof path, "%s/name", id);
    if (faccessat(staging, path, F_OK, AT_SYMLINK_NOFOLLOW) < 0 && errno == ENOENT)
        return true;
    snprintf(path, sizeof path, "%s/tree", id);
    int r = ckpt_names_each(staging, path, not_empty, NULL);
    return r == 0 || r == -ENOENT;
}

static int clear_staging(void *arg, int dir, const char *id)
{
    struct ckpt_store *s = arg;
    char trash[300];
    struct stat st;
    if (strlen(id) > 240 || fstatat(dir, id, &st, AT_SYMLINK_NOFOLLOW) < 0)
        return 0;
    if (!S_ISDIR(st.st_mode) || is_young(&st, s->trash_keep))
        return 0;
    CKPT_AUTOFD int lock = lock_unowned(dir, id);
    if (lock < 0 || !holds_nothing(dir, id))
        return 0;
    snprintf(trash, sizeof trash, "staging-%s", id);
    int r = ckpt_disk_rename(s->staging, id, s->trash, trash, 0);
    return r == -ENOENT ? 0 : r;
}

int ckpt_trash_staging(struct ckpt_store *s, struct ckpt_err *err)
{
    int r = ckpt_names_each(s->dir, "staging", clear_staging, s);
    return r < 0 ? fail(s, "staging", r, "cannot be cleared", err) : 0;
}

/* --- for good --- */

struct purging {
    struct ckpt_store *store;
    struct ckpt_gc_result *ret;
    int64_t before_ns; /* what has not changed since */
    bool dry, objects;
};

static bool is_old(const struct purging *p, int dir, const char *name, struct stat *st)
{
    return fstatat(dir, name, st, AT_SYMLINK_NOFOLLOW) == 0 && ctime_ns(st) <= p->before_ns;
}

static int purge_file(void *arg, int dir, const char *name)
{
    struct purging *p = arg;
    uint8_t hash[CKPT_SHA256];
    struct stat st;
    bool sums;
    if (!is_old(p, dir, name, &st) || !S_ISREG(st.st_mode))
        return 0;
    int r = p->dry ? 0 : ckpt_disk_unlink(dir, name, 0);
    if (r < 0)
        return r == -ENOENT ? 0 : r;
    p->ret->purged_bytes += (uint64_t)st.st_size;
    bool is_object = p->objects && ckpt_object_name(name, hash, &sums) && !sums;
    p->ret->purged += is_object;
    return 0;
}

static int purge_staging(void *arg, int dir, const char *name)
{
    struct purging *p = arg;
    struct stat st;
    if (p->dry || strncmp(name, "staging-", strlen("staging-")))
        return 0;
    if (!is_old(p, dir, name, &st) || !S_ISDIR(st.st_mode))
        return 0;
    int r = ckpt_disk_remove_tree(dir, name);
    return r == -ENOENT ? 0 : r;
}

int ckpt_trash_purge(struct ckpt_store *s, bool dry, struct ckpt_gc_result *ret, struct ckpt_err *err)
{
    struct purging p = {s, ret, ckpt_realtime_ns() - s->trash_keep * 1000000000ll, dry, false};
    int r = ckpt_names_each(s->trash, "steps", purge_file, &p);
    p.objects = true;
    if (r == 0)
        r = ckpt_names_each(s->trash, "objects", purge_file, &p);
    if (r == 0)
        r = ckpt_names_each(s->trash, ".", purge_staging, &p);
    return r < 0 ? fail(s, "trash", r, "cannot be emptied", err) : 0;
}
