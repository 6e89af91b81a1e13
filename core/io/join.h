/* SPDX-License-Identifier: Apache-2.0 */
/* Ranges of a file, one after another, as a file of their own. */
#ifndef CKPT_IO_JOIN_H
#define CKPT_IO_JOIN_H

#include "core/io/backend.h"

struct ckpt_range {
    uint64_t off, len;
};

/* `file` is referenced, `ranges` (malloced) taken over, also on failure. -EUCLEAN: together they are longer than 2^62
 * bytes. */
int ckpt_file_join(struct ckpt_file *file, struct ckpt_range *ranges, size_t count,
                   struct ckpt_file **ret) CKPT_MUST_USE;

#endif
