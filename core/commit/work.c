/* SPDX-License-Identifier: Apache-2.0 */
/*
 * It is made in the trash and moved to staging/ when it has its lock, so that nobody finds it there without an owner;
 * and it goes back to the trash in one call before it is taken apart.
 */
#include "core/commit/work.h"

#include "core/base/util.h"
#include "core/io/disk.h"
#include "core/store/internal.h"

#include <fcntl.h>
#include <stdio.h>
#include <sys/file.h>

static void trash_name(const struct ckpt_work *w, char ret[64])
{
    snprintf(ret, 64, "staging-%s", w->id);
}

static int open_dir(struct ckpt_work *w, const char *name, int *ret)
{
    int r = ckpt_disk_mkdir(w->dir, name, 0777);
    if (r < 0)
        return r;
    ckpt_store_give(w->store, w->dir, name);
    *ret = openat(w->dir, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    return *ret < 0 ? -errno : 0;
}

static int make(struct ckpt_work *w)
{
    char trash[64];
    trash_name(w, trash);
    int r = ckpt_disk_mkdir(w->store->trash, trash, 0700);
    if (r < 0)
        return r;
    ckpt_store_give(w->store, w->store->trash, trash);
    w->dir = openat(w->store->trash, trash, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (w->dir < 0)
        return -errno;
    w->lock = ckpt_disk_open(w->dir, "lock", O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
    if (w->lock < 0)
        return w->lock;
    ckpt_store_give(w->store, w->dir, "lock");
    if (flock(w->lock, LOCK_EX | LOCK_NB) < 0)
        return -errno;
    r = open_dir(w, "tree", &w->tree);
    if (r == 0)
        r = open_dir(w, "hold", &w->hold);
    return r < 0 ? r : ckpt_disk_rename(w->store->trash, trash, w->store->staging, w->id, 0);
}

int ckpt_work_begin(struct ckpt_store *s, struct ckpt_work *ret, struct ckpt_err *err)
{
    struct ckpt_work w = {.store = s, .dir = -1, .tree = -1, .hold = -1, .lock = -1};
    ckpt_random_hex(w.id, 16);
    int r = make(&w);
    if (r < 0) {
        ckpt_work_end(&w);
        return ckpt_fail(err, -r, "%s: a staging directory cannot be made: %s", s->path, strerror(-r));
    }
    *ret = w;
    return 0;
}

void ckpt_work_end(struct ckpt_work *w)
{
    char trash[64];
    const int fds[] = {w->tree, w->hold, w->dir};
    trash_name(w, trash);
    if (faccessat(w->store->staging, w->id, F_OK, AT_SYMLINK_NOFOLLOW) == 0)
        (void)!ckpt_disk_rename(w->store->staging, w->id, w->store->trash, trash, 0); /* else gc does it */
    (void)!ckpt_disk_remove_tree(w->store->trash, trash);
    for (size_t i = 0; i < sizeof fds / sizeof *fds; i++)
        if (fds[i] >= 0)
            close(fds[i]);
    if (w->lock >= 0)
        close(w->lock);
}
