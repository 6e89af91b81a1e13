/* SPDX-License-Identifier: Apache-2.0 */
/* Who asks for something: the process and the user for whom a file is made or changed. */
#ifndef CKPT_BASE_CALLER_H
#define CKPT_BASE_CALLER_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

/* What a mount shows instead of the owner, group and mode that something has. */
struct ckpt_shown {
    bool set_uid, set_gid;
    uint32_t uid, gid, umask;
};

struct ckpt_caller {
    pid_t pid; /* a thread's; 0: nobody whose end could be waited for */
    uid_t uid;
    gid_t gid;
    const struct ckpt_shown *shown; /* what the rights of this caller follow from; NULL: from what things have */
    atomic_bool
        *interrupted; /* set by another thread when nobody waits for the answer any more; NULL: that is not known */
};

#endif
