/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The elements of an array leaf as numbers, whatever its file stores: in C order, little-endian. An array in Fortran
 * order is read through its slice of everything, which the source turns round. One thread.
 */
#ifndef FS_COMMANDS_ELEMENTS_H
#define FS_COMMANDS_ELEMENTS_H

#include "core/array/npy.h"
#include "core/ckpt.h"

struct fs_elements {
    struct ckpt_source *src;
    uint64_t id; /* of the file that is read */
    bool owned;  /* a reference to it is held */
    struct ckpt_npy npy;
    uint64_t count; /* elements */
};

/* path: from the node `top`, of the file that `at` is. -EUCLEAN, -EBADMSG, -EOPNOTSUPP: it is no .npy file whose length
 * is the one that its header says. */
int fs_elements_open(struct ckpt_source *src, uint64_t top, const char *path, const struct ckpt_attr *at,
                     struct fs_elements *ret, struct ckpt_err *err) CKPT_MUST_USE;
void fs_elements_close(struct fs_elements *e);
/* Whole elements from number `first` on, at most `len` bytes of them: bytes read, 0 at the end. -EBADMSG: the file
 * ended within an element. */
ssize_t fs_elements_read(const struct fs_elements *e, uint8_t *buf, size_t len, uint64_t first,
                         struct ckpt_err *err) CKPT_MUST_USE;
/* The number of the element behind the zeros that are at `first` and need not be read; first: there are none. */
uint64_t fs_elements_skip(const struct fs_elements *e, uint64_t first);

#endif
