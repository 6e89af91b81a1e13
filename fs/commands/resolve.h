/* SPDX-License-Identifier: Apache-2.0 */
/* A path on disk that goes on inside of a checkpoint (/data/run/7/params): which source it is, and what in it. One
 * thread. */
#ifndef FS_COMMANDS_RESOLVE_H
#define FS_COMMANDS_RESOLVE_H

#include "core/ckpt.h"

struct fs_place {
    struct ckpt_source *src;
    struct ckpt_attr at; /* referenced */
};

int fs_resolve(const char *path, struct fs_place *ret, struct ckpt_err *err) CKPT_MUST_USE;
void fs_place_clear(struct fs_place *place);

#endif
