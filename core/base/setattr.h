/* SPDX-License-Identifier: Apache-2.0 */
/* Which members of a struct stat a call sets. */
#ifndef CKPT_BASE_SETATTR_H
#define CKPT_BASE_SETATTR_H

enum {
    CKPT_ATTR_MODE = 1,
    CKPT_ATTR_UID = 2,
    CKPT_ATTR_GID = 4,
    CKPT_ATTR_SIZE = 8,
    CKPT_ATTR_ATIME = 16,
    CKPT_ATTR_MTIME = 32
};

#endif
