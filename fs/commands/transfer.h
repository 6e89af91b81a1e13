/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The files of a source's directory, written below a directory of the disk: all of them, or an error. What import and
 * export do. One thread.
 */
#ifndef FS_COMMANDS_TRANSFER_H
#define FS_COMMANDS_TRANSFER_H

#include "fs/commands/cli.h"

struct fs_transfer {
    struct ckpt_source *src;
    bool attributes; /* the kinds of containers, and dtypes that a .npy file does not tell, go along as user.ckpt.kind
                        and .dtype */
    bool own_attributes; /* those of the user too */
    bool durable;        /* everything is fsynced */
    uint64_t files, bytes;
    bool unwritable; /* the error is the destination's */
    struct fs_progress progress;
};

/* from: a directory. -EINTR: fs_interrupted() was true. */
int fs_transfer_run(struct fs_transfer *t, const struct ckpt_attr *from, int dir, struct ckpt_err *err) CKPT_MUST_USE;
/* from: a file, which gets this name. */
int fs_transfer_file(struct fs_transfer *t, const struct ckpt_attr *from, int dir, const char *name,
                     struct ckpt_err *err) CKPT_MUST_USE;

/* All of ckpt_files_open's, below dir, which is empty. */
int fs_transfer_files(struct fs_transfer *t, struct ckpt_files *files, int dir, struct ckpt_err *err) CKPT_MUST_USE;

/* From now on SIGINT and SIGTERM are kept until fs_interrupt_end, so that what is half done can be cleared away. */
void fs_interrupt_begin(void);
bool fs_interrupted(void);
/* Ends the program as the signal would have, if there was one. */
void fs_interrupt_end(void);

#endif
