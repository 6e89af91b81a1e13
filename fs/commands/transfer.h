/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What is in a source, written to a directory of the disk as a mount would show it: what cp, import and export do.
 * Holes stay holes, and modification times are kept. Below the directory no link is followed: directories are entered
 * by descriptors, one name at a time. Ends early when fs_interrupted(). One thread.
 */
#ifndef FS_COMMANDS_TRANSFER_H
#define FS_COMMANDS_TRANSFER_H

#include "fs/commands/cli.h"

#include <sys/types.h>

/* Something of the source cannot be copied. */
typedef void fs_transfer_fault(void *arg, const char *path, int error, const struct ckpt_err *err);

struct fs_transfer {
    struct ckpt_source *src;
    const char *shown; /* stands before the paths in messages; NULL: nothing */
    /* The name of each file until it is whole. Then it takes the place of what has its own name, and directories may be
     * there already. NULL: nothing is there, and the caller clears away what is half done. */
    const char *temporary;
    unsigned max_depth; /* of directories in each other */
    mode_t file_mode;   /* what files may besides what they may in the source */
    bool links;         /* are copied too; else one is an error */
    bool times;         /* it is an error when one cannot be kept */
    bool attributes; /* the kinds of containers, and dtypes that a .npy file does not tell, go along as user.ckpt.kind
                        and .dtype */
    bool own_attributes; /* those of the user too */
    bool durable;        /* everything is fsynced */
    /* Told of each fault of the source, which is left out; the rest is copied. NULL: the first one ends it. */
    fs_transfer_fault *fault;
    void *arg;

    /* results */
    uint64_t files, bytes; /* what is whole */
    bool unwritable;       /* the error is the destination's */
    struct fs_progress progress;
};

/* Directories that ckpt_disk_remove_tree can take away again. */
#define FS_REMOVABLE_DEPTH 300

/* What is in a directory of the source, into `dir`. -EINTR: fs_interrupted() was true. */
int fs_transfer_contents(struct fs_transfer *t, const struct ckpt_attr *from, int dir,
                         struct ckpt_err *err) CKPT_MUST_USE;
/* A file, or a directory with all that is in it, under this name in `dir`. */
int fs_transfer_entry(struct fs_transfer *t, const struct ckpt_attr *from, int dir, const char *name,
                      struct ckpt_err *err) CKPT_MUST_USE;
/* All of ckpt_files_open's, below dir, which is empty. */
int fs_transfer_files(struct fs_transfer *t, struct ckpt_files *files, int dir, struct ckpt_err *err) CKPT_MUST_USE;

#endif
