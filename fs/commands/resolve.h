/* SPDX-License-Identifier: Apache-2.0 */
/* A path on disk that goes on inside of a checkpoint (/data/run/7/params): which source it is, and what in it. One
 * thread. */
#ifndef FS_COMMANDS_RESOLVE_H
#define FS_COMMANDS_RESOLVE_H

#include "core/ckpt.h"

/* A source, given by a path that may go on inside of it: "run/latest/params" is the source "run/7", if 7 is its latest
 * step, and *ret_inside "params", to be freed. What is not there is an error of the source; what is not there inside is
 * left to the caller. */
int fs_open_inside(const char *path, struct ckpt_source **ret, char **ret_inside, struct ckpt_err *err) CKPT_MUST_USE;

struct fs_place {
    struct ckpt_source *src;
    struct ckpt_attr at; /* referenced */
};

int fs_resolve(const char *path, struct fs_place *ret, struct ckpt_err *err) CKPT_MUST_USE;
void fs_place_clear(struct fs_place *place);

#endif
