/* SPDX-License-Identifier: Apache-2.0 */
/* What init, config, prune and gc share: the commands that treat a root with a store as a whole. */
#ifndef FS_COMMANDS_ROOT_OPTIONS_H
#define FS_COMMANDS_ROOT_OPTIONS_H

#include "fs/commands/cli.h"

#include "core/ckpt_store.h"

struct fs_root_options {
    bool json, dry;
    const char *trash_keep;
};

/* The options that `command` takes; its other arguments, at least one, begin at optind. 0, or the exit status of a
 * usage error. */
int fs_parse_root_options(const char *command, int argc, char **argv, struct fs_root_options *ret);
/* Opens the store of a root, for ckpt_store_close. 0, or an exit status: the fault has been printed. */
int fs_open_root(const char *command, const struct fs_root_options *o, const char *root, struct ckpt_store **ret);

#endif
