/* SPDX-License-Identifier: Apache-2.0 */
/* The end of a commit: what is held gets its place in objects/, then the manifest its name in steps/. commit.c tells
 * the order. */
#include "core/commit/private.h"

#include "core/base/log.h"
#include "core/io/disk.h"
#include "core/store/internal.h"

#include <fcntl.h>
#include <stdio.h>
#include <time.h>

#define TEMP_OBJECT "object.tmp"
#define TEMP_STEP   "replaced.tmp"
#define FOLDERS     256
#define SYNCERS     8u  /* threads */
#define SETTLED     600 /* seconds after which a folder of objects is on the disk, whoever changed it */

static bool look_up(int dir, const char *name, struct stat *ret)
{
    return fstatat(dir, name, ret, AT_SYMLINK_NOFOLLOW) == 0;
}

/* --- objects --- */

/* Something goes into its folder of objects/, which may have to be made. */
static int link_into(struct commit *c, int from_dir, const char *from, const char *path)
{
    char folder[3];
    int r = ckpt_disk_link(from_dir, from, c->store->objects, path);
    if (r != -ENOENT)
        return r == -EEXIST ? 0 : r;
    snprintf(folder, sizeof folder, "%.2s", path);
    r = ckpt_disk_mkdir(c->store->objects, folder, 0777);
    if (r < 0 && r != -EEXIST)
        return r;
    if (r == 0)
        ckpt_store_give(c->store, c->store->objects, folder);
    r = ckpt_disk_link(from_dir, from, c->store->objects, path);
    return r == -EEXIST ? 0 : r;
}

/* An object and its sums, which are there before it is. Only what is stored as it is has any. */
static int link_object(struct commit *c, int dir, const char *object, const char *sums, const char *path)
{
    char sums_path[CKPT_OBJECT_PATH + 8];
    struct stat st;
    snprintf(sums_path, sizeof sums_path, "%s.sums", path);
    int r = look_up(dir, sums, &st) ? link_into(c, dir, sums, sums_path) : 0;
    return r < 0 ? r : link_into(c, dir, object, path);
}

/* What has the object's name may be something else by now: ours takes its place. */
static int replace_object(struct commit *c, const char *held, const char *sums, const char *path)
{
    char sums_path[CKPT_OBJECT_PATH + 8];
    struct stat st;
    int r = look_up(c->in->work, TEMP_OBJECT, &st) ? ckpt_disk_unlink(c->in->work, TEMP_OBJECT, 0) : 0;
    snprintf(sums_path, sizeof sums_path, "%s.sums", path);
    if (r == 0 && look_up(c->hold.dir, sums, &st))
        r = link_into(c, c->hold.dir, sums, sums_path);
    if (r == 0)
        r = ckpt_disk_link(c->hold.dir, held, c->in->work, TEMP_OBJECT);
    return r < 0 ? r : ckpt_disk_rename(c->in->work, TEMP_OBJECT, c->store->objects, path, 0);
}

/* Before it is found there: see seal.c. */
static int seal(struct commit *c, int dir, const char *object, const char *sums, mode_t mode)
{
    int r = ckpt_seal_object(c->store, dir, sums, mode);
    return r < 0 ? r : ckpt_seal_object(c->store, dir, object, mode);
}

static int seal_live(struct commit *c, const char *path, mode_t mode)
{
    char sums[CKPT_OBJECT_PATH + 8];
    snprintf(sums, sizeof sums, "%s.sums", path);
    return seal(c, c->store->objects, path, sums, mode);
}

static int put_from_trash(struct commit *c, const uint8_t sha256[CKPT_SHA256], const char *path, mode_t mode)
{
    char object[2 * CKPT_HEX], sums[2 * CKPT_HEX], name[HOLD_NAME];
    ckpt_hold_name(sha256, "", name);
    snprintf(object, sizeof object, "objects/%s", name);
    snprintf(sums, sizeof sums, "objects/%s.sums", name);
    int r = seal(c, c->store->trash, object, sums, mode);
    return r < 0 ? r : link_object(c, c->store->trash, object, sums, path);
}

/* An object has its place in objects/, put there from hold/ if it must; then *ret_touched is set. -ENOENT: it is
 * nowhere. */
static int put_object(struct commit *c, const uint8_t sha256[CKPT_SHA256], mode_t mode, bool *ret_touched)
{
    char path[CKPT_OBJECT_PATH], full[2 * CKPT_OBJECT_PATH], name[HOLD_NAME], sums[HOLD_NAME];
    struct ckpt_object_info info;
    struct stat held, live;
    ckpt_object_path(sha256, path);
    snprintf(full, sizeof full, "objects/%s", path);
    ckpt_hold_name(sha256, ".sums", sums);
    ckpt_hold_name(sha256, "", name);
    bool is_held = look_up(c->hold.dir, name, &held);
    if (!is_held) {
        ckpt_hold_name(sha256, CKPT_ALIAS_SUFFIX, name);
        is_held = look_up(c->hold.dir, name, &held);
    }
    bool is_live = look_up(c->store->objects, path, &live);
    int r;
    if (is_live) {
        mode &= live.st_mode | 0400; /* it may be taken for ours, or ours for it */
        r = seal_live(c, path, mode);
        if (r < 0)
            return r;
        bool is_ours = is_held && held.st_ino == live.st_ino && held.st_dev == live.st_dev;
        if (is_ours || !is_held)
            return 0;
        r = ckpt_hold_trusted(c->store->files, full, sha256, UINT64_MAX, &info);
        if (r != 0)
            return CKPT_MIN(r, 0);
    }
    *ret_touched = true;
    if (!is_held)
        return put_from_trash(c, sha256, path, mode);
    r = seal(c, c->hold.dir, name, sums, mode);
    if (r < 0)
        return r;
    return is_live ? replace_object(c, name, sums, path) : link_object(c, c->hold.dir, name, sums, path);
}

/* --- their folders, each of which is a number of two hexadecimal digits --- */

static void folder_name(unsigned folder, char ret[3])
{
    static const char digits[] = "0123456789abcdef";
    ret[0] = digits[folder >> 4];
    ret[1] = digits[folder & 15];
    ret[2] = 0;
}

/* Another commit may have put something there just now that we have found, and not have made it durable yet. */
static bool is_young(const struct ckpt_store *s, unsigned folder)
{
    char name[3];
    struct stat st;
    folder_name(folder, name);
    return !look_up(s->objects, name, &st) || time(NULL) - st.st_mtime < SETTLED;
}

struct syncing {
    const struct ckpt_store *store;
    const bool *wanted;
    atomic_uint next; /* folder */
    atomic_int error;
};

static void *fsync_some(void *arg)
{
    struct syncing *s = arg;
    while (!atomic_load(&s->error)) {
        unsigned i = atomic_fetch_add(&s->next, 1);
        if (i >= FOLDERS)
            break;
        if (!s->wanted[i])
            continue;
        char name[3];
        int none = 0;
        folder_name(i, name);
        int r = ckpt_disk_fsync_dir(s->store->objects, name);
        if (r < 0)
            atomic_compare_exchange_strong(&s->error, &none, r);
    }
    return NULL;
}

/*
 * Those that are wanted, and the directory that they are in. All of them have been changed before the first is synced:
 * where there is a journal that one fsync writes all of it, and elsewhere the disk is asked by several threads at once
 * to flush, which it does once for all.
 */
static int fsync_folders(const struct ckpt_store *store, const bool wanted[FOLDERS])
{
    struct syncing s = {.store = store, .wanted = wanted};
    pthread_t threads[SYNCERS - 1];
    unsigned count = 0, running = 0;
    for (unsigned i = 0; i < FOLDERS; i++)
        count += wanted[i];
    while (running + 1 < CKPT_MIN(count, SYNCERS) && pthread_create(&threads[running], NULL, fsync_some, &s) == 0)
        running++;
    fsync_some(&s);
    while (running)
        pthread_join(threads[--running], NULL);
    int r = atomic_load(&s.error);
    return r == 0 && count ? ckpt_disk_fsync(store->objects) : r;
}

struct named {
    const uint8_t *sha256;
    mode_t mode; /* that it may have */
};

static int by_hash(const void *a, const void *b)
{
    return memcmp(((const struct named *)a)->sha256, ((const struct named *)b)->sha256, CKPT_SHA256);
}

/* All objects that the manifest names, by folders; some are there twice. */
static int list_objects(struct commit *c, struct named **ret, size_t *ret_count)
{
    struct named *list = malloc((c->leaf_count + c->object_count + 1) * sizeof *list);
    size_t n = 0;
    if (!list)
        return -ENOMEM;
    for (size_t i = 0; i < c->leaf_count; i++) {
        const struct commit_leaf *leaf = &c->leaves[i];
        bool has_own = leaf->object == COMMIT_OWN && leaf->codec != COMMIT_VALUE;
        if (has_own)
            list[n++] = (struct named){leaf->sha256, leaf->mode};
    }
    for (uint32_t i = 0; i < c->object_count; i++)
        if (c->objects[i].used)
            list[n++] = (struct named){c->objects[i].sha256, c->objects[i].mode};
    if (n)
        qsort(list, n, sizeof *list, by_hash);
    *ret = list;
    *ret_count = n;
    return 0;
}

/* All of them have their places, durably, with no more than the mode allowed. *ret_missing: the one that is nowhere. */
static int put_objects(struct commit *c, const struct named *list, size_t count, mode_t allowed,
                       const uint8_t **ret_missing)
{
    bool named[FOLDERS] = {false}, touched[FOLDERS] = {false};
    int r = 0;
    for (size_t i = 0; i < count && r == 0;) {
        const uint8_t *sha256 = list[i].sha256;
        mode_t mode = allowed | 0400;
        for (; i < count && !memcmp(list[i].sha256, sha256, CKPT_SHA256); i++)
            mode &= list[i].mode;
        named[sha256[0]] = true;
        r = put_object(c, sha256, mode, &touched[sha256[0]]);
        if (r == -ENOENT)
            *ret_missing = sha256;
    }
    for (unsigned i = 0; i < FOLDERS; i++)
        touched[i] |= named[i] && is_young(c->store, i);
    return r == 0 ? fsync_folders(c->store, touched) : r;
}

static int publish_objects(struct commit *c, mode_t allowed, struct ckpt_err *err)
{
    CKPT_AUTOFREE struct named *list = NULL;
    const uint8_t *missing = NULL;
    size_t count = 0;
    int r = list_objects(c, &list, &count);
    if (r == 0)
        r = put_objects(c, list, count, allowed, &missing);
    if (missing) {
        char hex[CKPT_HEX];
        ckpt_hash_hex(missing, hex);
        return ckpt_fail(err, EIO, "%s: content that the step shares is missing from the store (object %s)",
                         c->in->name, hex);
    }
    return r < 0 ? ckpt_fail(err, -r, "%s: its objects cannot be put into the store: %s", c->in->name, strerror(-r))
                 : 0;
}

/* --- the manifest --- */

static void step_file(const struct commit *c, char ret[CKPT_STEP_FILE])
{
    snprintf(ret, CKPT_STEP_FILE, "%s.json", c->in->name);
}

int ckpt_commit_allowed(struct commit *c, struct ckpt_err *err)
{
    char file[CKPT_STEP_FILE];
    struct ckpt_manifest_info info = {0};
    struct ckpt_file *manifest;
    struct stat st;
    step_file(c, file);
    if (c->in->overwrite || !look_up(c->store->steps, file, &st))
        return 0;
    if (!c->in->base_id)
        return ckpt_fail(err, EEXIST, "there is a step %s already", c->in->name);
    int r = ckpt_store_manifest(c->store, c->in->name, &manifest, err);
    if (r < 0)
        return r == -ENOENT ? 0 : r;
    r = ckpt_manifest_info(manifest, &info, NULL);
    bool same = r == 0 && !strcmp(info.id, c->in->base_id);
    if (r == 0)
        ckpt_manifest_info_clear(&info);
    ckpt_file_unref(manifest);
    if (same)
        return 0;
    return ckpt_fail(err, EEXIST, "step %s was changed by another mount since it was opened for changes here",
                     c->in->name);
}

/* The manifest has its name, and that is not durable: the name goes, or is again what it was. */
static int take_back(struct commit *c, const char *file, bool replaced)
{
    int r;
    if (replaced)
        r = ckpt_disk_rename(c->in->work, TEMP_STEP, c->store->steps, file, 0);
    else
        r = ckpt_disk_unlink(c->store->steps, file, 0);
    if (r == 0)
        r = ckpt_disk_fsync(c->store->steps);
    if (r < 0)
        ckpt_log(CKPT_LOG_ERROR, "%s: step %s may be there, though its commit failed: %s", c->store->path, c->in->name,
                 strerror(-r));
    return r;
}

/* The step that had the name stays at hand until the new one is durable. */
static int replace_manifest(struct commit *c, const char *manifest, const char *file)
{
    struct stat st;
    int r = look_up(c->in->work, TEMP_STEP, &st) ? ckpt_disk_unlink(c->in->work, TEMP_STEP, 0) : 0;
    if (r == 0)
        r = ckpt_disk_link(c->store->steps, file, c->in->work, TEMP_STEP);
    return r < 0 ? r : ckpt_disk_rename(c->in->work, manifest, c->store->steps, file, 0);
}

static int name_manifest(struct commit *c, const char *manifest)
{
    char file[CKPT_STEP_FILE];
    struct stat st;
    step_file(c, file);
    bool may_replace = c->in->overwrite || c->in->base_id;
    bool replaces = may_replace && look_up(c->store->steps, file, &st);
    int r = replaces ? -EEXIST : ckpt_disk_link(c->in->work, manifest, c->store->steps, file);
    if (r == -EEXIST && (replaces || c->in->overwrite)) {
        replaces = true;
        r = replace_manifest(c, manifest, file);
    }
    if (r < 0)
        return r;
    r = ckpt_disk_fsync(c->store->steps);
    if (r < 0 && take_back(c, file, replaces) < 0)
        c->doubtful = true;
    return r;
}

/* --- all of it --- */

int ckpt_commit_publish(struct commit *c, const char *manifest, mode_t allowed, struct ckpt_err *err)
{
    int allows = c->in->put ? 0 : ckpt_store_allow_name(c->store, c->in->name, err);
    if (allows < 0)
        return allows;
    /* Two that change one step must not both find that it is still what they changed. */
    CKPT_AUTOFD int lock = ckpt_store_lock(c->store, c->in->base_id && !c->in->overwrite);
    if (lock < 0)
        return ckpt_fail(err, -lock, "%s: the lock cannot be taken: %s", c->store->path, strerror(-lock));
    int r = ckpt_commit_allowed(c, err);
    if (r == 0)
        r = publish_objects(c, allowed & OBJECT_MODE, err);
    if (r == 0 && c->in->put) {
        r = c->in->put(c->in->put_arg, c->in->work, manifest, err);
        c->doubtful = r < 0;
        return r;
    }
    if (r < 0)
        return r;
    r = name_manifest(c, manifest);
    if (r == -EEXIST)
        return ckpt_fail(err, EEXIST, "there is a step %s already", c->in->name);
    return r < 0 ? ckpt_fail(err, -r, "step %s cannot be published: %s", c->in->name, strerror(-r)) : 0;
}

/* An object that is a staged file is no object any more. With the lock held exclusively: nobody else puts one in its
 * place meanwhile. */
static int take_out(struct commit *c, int dir, const char *name)
{
    uint8_t sha256[CKPT_SHA256];
    char hex[CKPT_HEX], path[CKPT_OBJECT_PATH];
    struct stat held, live;
    bool sums;
    snprintf(hex, sizeof hex, "%s", name);
    if (!ckpt_object_name(hex, sha256, &sums) || !look_up(dir, name, &held))
        return 0;
    ckpt_object_path(sha256, path);
    if (!look_up(c->store->objects, path, &live))
        return 0;
    bool is_this = live.st_ino == held.st_ino && live.st_dev == held.st_dev;
    return is_this ? ckpt_disk_unlink(c->store->objects, path, 0) : 0;
}

static int give_back_one(void *arg, int dir, const char *name)
{
    struct commit *c = arg;
    if (!ckpt_has_suffix(name, CKPT_ALIAS_SUFFIX))
        return 0;
    int r = ckpt_seal_matters(dir, name) ? take_out(c, dir, name) : 0;
    if (r < 0)
        ckpt_log(CKPT_LOG_WARN, "%s: a staged file keeps the mode and owner of an object until the next mount: %s",
                 c->store->path, strerror(-r));
    else
        (void)!ckpt_seal_undo(dir, name);
    return 0;
}

/* The step stays staged, and its files are their maker's again: those that this gives more rights cannot stay objects.
 */
void ckpt_commit_give_back(struct commit *c)
{
    if (c->doubtful || ckpt_names_each(c->hold.dir, ".", ckpt_hold_is_alias, NULL) == 0)
        return;
    CKPT_AUTOFD int lock = ckpt_store_lock(c->store, true);
    if (lock < 0 || ckpt_names_each(c->hold.dir, ".", give_back_one, c) < 0)
        ckpt_log(CKPT_LOG_WARN, "%s: staged files of step %s keep the mode and owner of objects until the next mount",
                 c->store->path, c->in->name);
}
