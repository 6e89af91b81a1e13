/* SPDX-License-Identifier: Apache-2.0 */
/* The FUSE daemon and the commands: what they share. */
#ifndef FS_FS_H
#define FS_FS_H

#include "core/ckpt.h"

#include <stdio.h>

/* Exit statuses of every command (docs/reference.md, "Commands"). */
enum fs_exit { FS_OK, FS_USAGE, FS_MOUNT_FAILED, FS_UNREACHABLE, FS_INTEGRITY, FS_PARTLY, FS_DIFFERS };

struct fs_command {
    const char *name;
    const char *synopsis;              /* what follows the name */
    const char *summary;               /* one line */
    const char *help;                  /* the options, and what they mean; may be NULL */
    int (*run)(int argc, char **argv); /* argv[0] is the command's name; returns an enum fs_exit */
    bool reads;                        /* a source: it takes --follow */
};

extern const struct fs_command fs_commands[]; /* ends with a NULL name */

extern bool fs_follow; /* --follow was given */

/* The absolute path of a source, to be freed; NULL with errno. A link to a file goes by its own name. */
char *fs_source_path(const char *path);

/* "Usage: ckptfs NAME SYNOPSIS" and the reason, to stderr; returns FS_USAGE. */
int fs_usage(const char *command, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
void fs_help(const struct fs_command *command, FILE *out);

#endif
