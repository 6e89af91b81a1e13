/* SPDX-License-Identifier: Apache-2.0 */
/* Where stored bytes lie: a range of a file, or bytes in memory (a value inside a B+tree node). */
#ifndef CKPT_IO_EXTENT_H
#define CKPT_IO_EXTENT_H

#include "core/io/backend.h"

struct ckpt_extent {
    struct ckpt_file *file; /* referenced; NULL: `bytes` holds them */
    uint64_t off, len;
    uint8_t *bytes; /* malloced, len bytes; NULL when file is set */
};

void ckpt_extent_clear(struct ckpt_extent *e);
/* Clears an extent at the end of its scope. */
#define CKPT_AUTOEXTENT __attribute__((cleanup(ckpt_extent_clear)))
/* Exactly `len` bytes from `off` of the extent; a file that ends too early is -EBADMSG. */
int ckpt_extent_read(const struct ckpt_extent *e, void *buf, size_t len, uint64_t off) CKPT_MUST_USE;
/* As ckpt_file_data. */
bool ckpt_extent_run(const struct ckpt_extent *e, uint64_t off, uint64_t *ret_end);

#endif
