/* SPDX-License-Identifier: Apache-2.0 */
/* Pointers of Git LFS: what a clone has in the place of a file that was not fetched. */
#ifndef CKPT_FORMAT_LFS_H
#define CKPT_FORMAT_LFS_H

#include "core/io/backend.h"

#define CKPT_LFS_HINT "a Git LFS pointer, not the file itself: type `git lfs pull` in the clone"

#define CKPT_LFS_HEAD 64   /* bytes that say it */
#define CKPT_LFS_MOST 1024 /* bytes of a pointer: the specification's own limit */

bool ckpt_lfs_begins(const void *head, size_t len);
bool ckpt_lfs_is_pointer(struct ckpt_file *file);

#endif
