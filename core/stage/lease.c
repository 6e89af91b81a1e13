/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Leases. The kernel may write to a file by itself, and does so, where it is mapped, also after the last close. A file
 * that it was once given is therefore believed to be at rest only when a lease on it shows that nobody else has it
 * open.
 */
#include "core/stage/private.h"

/* Waits, the first of 100 µs, each twice as long as the one before: the kernel ends the use of a file a little after
 * its close. */
#define STRAGGLES 8

int ckpt_stage_try_lease(int fd, int type)
{
    for (unsigned i = 0;; i++) {
        if (fcntl(fd, F_SETLEASE, type) == 0)
            return fcntl(fd, F_SETLEASE, F_UNLCK) < 0 ? -errno : 0;
        if (errno != EAGAIN || i == STRAGGLES)
            return -errno;
        nanosleep(&(struct timespec){.tv_nsec = 100000l << i}, NULL);
    }
}

bool ckpt_stage_has_leases(int dir)
{
    CKPT_AUTOFD int fd = openat(dir, "store.json", O_RDONLY | O_CLOEXEC);
    return fd >= 0 && ckpt_stage_try_lease(fd, F_RDLCK) == 0;
}
