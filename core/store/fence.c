/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Version 0.1.0 does not know all names of steps, and its collection would take the objects of a step that it does not
 * know for garbage. So before the first such step, durably:
 *
 *   1. store.json requires "step_names": 0.1.0 refuses to open the store, to commit and to prune.
 *   2. `lock` becomes a directory, and the lock is `lock2`, the same file: what 0.1.0 does in a store that it has open
 *      already (it collects without a look at store.json) fails, since it cannot open `lock`.
 *
 * Both happen with the lock held exclusively. Whoever had the lock's file open by then, and waits for it, gets it
 * before the step is committed. A crash between the two leaves a store that 0.1.0 does not open, and the next such step
 * does the rest.
 */
#include "core/store/internal.h"

#include "core/base/util.h"
#include "core/io/disk.h"

#include <fcntl.h>
#include <linux/fs.h>
#include <stdio.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <time.h>

#define DIR_MODE 0777 /* the umask decides */
#define TRIES    10
#define ROUNDS   5 /* of letting those go first who wait for the lock */
#define ROUND_NS 20000000l

enum what { NOTHING, FILE_THERE, DIR_THERE };

static enum what look(const struct ckpt_store *s, const char *name)
{
    struct stat st;
    if (fstatat(s->dir, name, &st, AT_SYMLINK_NOFOLLOW) < 0)
        return NOTHING;
    return S_ISDIR(st.st_mode) ? DIR_THERE : FILE_THERE;
}

static int remove_second(struct ckpt_store *s)
{
    enum what what = look(s, CKPT_STORE_LOCK_2);
    if (what == NOTHING)
        return 0;
    return ckpt_disk_unlink(s->dir, CKPT_STORE_LOCK_2, what == DIR_THERE ? AT_REMOVEDIR : 0);
}

static int make_dir(struct ckpt_store *s, const char *name)
{
    int r = ckpt_disk_mkdir(s->dir, name, DIR_MODE);
    if (r == 0)
        ckpt_store_give(s, s->dir, name);
    return r;
}

/* An older program may have made a lock anew, and have it. */
static int remove_new_lock(struct ckpt_store *s)
{
    CKPT_AUTOFD int fd = openat(s->dir, "lock", O_RDWR | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0)
        return -errno;
    while (flock(fd, LOCK_EX) < 0)
        if (errno != EINTR)
            return -errno;
    return ckpt_disk_unlink(s->dir, "lock", 0);
}

/* Where two names cannot be exchanged: network file systems. */
static int move_by_links(struct ckpt_store *s)
{
    int r = remove_second(s);
    if (r == 0)
        r = ckpt_disk_link(s->dir, "lock", s->dir, CKPT_STORE_LOCK_2);
    if (r == 0)
        r = ckpt_disk_unlink(s->dir, "lock", 0);
    if (r == 0)
        r = make_dir(s, "lock");
    for (int i = 0; r == -EEXIST && i < TRIES; i++) {
        r = remove_new_lock(s);
        if (r == 0)
            r = make_dir(s, "lock");
    }
    return r;
}

static int move_lock(struct ckpt_store *s)
{
    if (look(s, "lock") == NOTHING)
        return make_dir(s, "lock");
    int r = look(s, CKPT_STORE_LOCK_2) == FILE_THERE ? remove_second(s) : 0;
    if (r == 0 && look(s, CKPT_STORE_LOCK_2) == NOTHING)
        r = make_dir(s, CKPT_STORE_LOCK_2);
    if (r == 0)
        r = ckpt_disk_rename(s->dir, CKPT_STORE_LOCK_2, s->dir, "lock", RENAME_EXCHANGE);
    return r == -EINVAL || r == -ENOSYS || r == -EOPNOTSUPP ? move_by_links(s) : r;
}

static bool is_fenced(const struct ckpt_store *s)
{
    return look(s, "lock") == DIR_THERE && look(s, CKPT_STORE_LOCK_2) == FILE_THERE;
}

/* The lock is held exclusively. */
static int fence(struct ckpt_store *s, struct ckpt_err *err)
{
    int r = ckpt_store_require_names(s, err);
    if (r < 0)
        return r;
    r = is_fenced(s) ? 0 : move_lock(s);
    if (r == 0)
        r = ckpt_disk_fsync(s->dir);
    return r < 0 ? ckpt_fail(err, -r, "%s: the lock cannot be moved: %s", s->path, strerror(-r)) : 0;
}

/* Those who wait for the lock go first. */
static int let_others_go(int lock)
{
    for (int i = 0; i < ROUNDS; i++) {
        flock(lock, LOCK_UN);
        nanosleep(&(struct timespec){.tv_nsec = ROUND_NS}, NULL);
        while (flock(lock, LOCK_EX) < 0)
            if (errno != EINTR)
                return -errno;
    }
    return 0;
}

int ckpt_store_allow_name(struct ckpt_store *s, const char *name, struct ckpt_err *err)
{
    struct ckpt_store_config config;
    if (!ckpt_step_needs_mark(name))
        return 0;
    int r = ckpt_store_config_read(s, &config, err);
    if (r < 0)
        return r;
    if (config.step_names && is_fenced(s))
        return 0;
    CKPT_AUTOFD int lock = ckpt_store_lock(s, true);
    if (lock < 0)
        return ckpt_fail(err, -lock, "%s: the lock cannot be taken: %s", s->path, strerror(-lock));
    r = fence(s, err);
    if (r < 0)
        return r;
    r = let_others_go(lock);
    return r < 0 ? ckpt_fail(err, -r, "%s: the lock cannot be taken: %s", s->path, strerror(-r)) : 0;
}
