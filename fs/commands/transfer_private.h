/* SPDX-License-Identifier: Apache-2.0 */
/* What the files of a transfer share: where it stands, the bytes of one file, and what is kept beside them. */
#ifndef FS_COMMANDS_TRANSFER_PRIVATE_H
#define FS_COMMANDS_TRANSFER_PRIVATE_H

#include "fs/commands/transfer.h"

/* A directory that is being copied into. */
struct fs_into {
    struct fs_transfer *t;
    struct ckpt_err *err;
    uint8_t *block;           /* FS_TRANSFER_BLOCK bytes */
    struct ckpt_files *files; /* NULL: files of the source; else the ids are numbers of these */
    uint64_t from;            /* the directory in the source */
    const char *path;         /* the same, for messages */
    int dir;
    unsigned depth;
};

#define FS_TRANSFER_BLOCK ((size_t)4 << 20)

/* The error of a destination. error: negative. */
int fs_unwritable(const struct fs_into *in, const char *path, int error) CKPT_MUST_USE;
/* A fault of the source. 1: it is told, and left out. */
int fs_left_out(const struct fs_into *in, const char *path, int error) CKPT_MUST_USE;

/* The bytes of a file, id, into fd, which is empty. 1: left out. *ret_unclear: an array of which its .npy header may
 * not tell all; false when attributes are not kept. */
int fs_copy_bytes(const struct fs_into *in, uint64_t id, const char *path, int fd, bool *ret_unclear) CKPT_MUST_USE;

/* What the bytes of a leaf and its name do not tell. unclear: as above. */
int fs_keep_told(const struct fs_into *in, const struct ckpt_attr *at, const char *path, int fd,
                 bool unclear) CKPT_MUST_USE;
/* user.ckpt.kind of a list, a tuple or a named tuple. */
int fs_keep_kind(const struct fs_into *in, uint64_t id, const char *path, int fd) CKPT_MUST_USE;
int fs_keep_own_attributes(const struct fs_into *in, uint64_t id, const char *path, int fd) CKPT_MUST_USE;
int fs_keep_time(const struct fs_into *in, const struct ckpt_attr *at, const char *path, int fd) CKPT_MUST_USE;

#endif
