/* SPDX-License-Identifier: Apache-2.0 */
/* The -o options of a mount: ours taken apart, FUSE's own passed on. */
#ifndef FS_MOUNT_OPTIONS_H
#define FS_MOUNT_OPTIONS_H

#include "core/ckpt.h"

struct fs_mount_options {
    const char *source, *mountpoint;
    bool foreground, debug, single_thread;
    bool read_only, read_write; /* as said; neither: as the source allows */
    char codec[16];
    bool passthrough; /* for reading too */
    struct ckpt_options core;
    bool set_writers, set_writer;
    struct ckpt_shown shown;
    char *fuse; /* comma-separated, for libfuse; may be NULL */
};

/* argv as of `ckptfs mount`. A negative result: *err says what is wrong. */
int fs_mount_options_parse(int argc, char **argv, struct fs_mount_options *ret, struct ckpt_err *err);
void fs_mount_options_clear(struct fs_mount_options *o);

#endif
