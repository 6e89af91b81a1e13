/* SPDX-License-Identifier: Apache-2.0 */
/* The pointers of Git LFS in a source: files of a clone that were not fetched. */
#ifndef FS_COMMANDS_POINTERS_H
#define FS_COMMANDS_POINTERS_H

#include "fs/commands/cli.h"

/* Calls visit with the path, from where the search begins, of each pointer at and below a directory; with `trees` of
 * those too that are files of checkpoints, which are opened. What cannot be listed has none. */
int fs_each_pointer(struct ckpt_source *src, uint64_t id, bool trees, void (*visit)(void *arg, const char *path),
                    void *arg);

#endif
