/* SPDX-License-Identifier: Apache-2.0 */
/* Elements of two arrays, compared block by block. Caller locks. */
#ifndef FS_COMMANDS_COMPARE_H
#define FS_COMMANDS_COMPARE_H

#include "core/array/dtype.h"

struct fs_compare {
    enum ckpt_dtype dtype;
    bool is_mixed; /* the second array is of type `other`; both of real numbers */
    enum ckpt_dtype other;
    uint64_t itemsize;  /* bytes an element */
    double rtol, atol;  /* both 0: elements are equal when their bits are */
    uint64_t different; /* elements so far */
    double max;         /* of |a - b|; NaN: one side is NaN, or the type has no numbers */
    uint64_t last;      /* 1 + the last element that differs */
};

/* len bytes of both, which lie at byte off of the elements. */
void fs_compare_block(struct fs_compare *c, const uint8_t *a, const uint8_t *b, size_t len, uint64_t off);
/* n elements of two types, as numbers: within the tolerances. */
void fs_compare_mixed(struct fs_compare *c, const uint8_t *a, const uint8_t *b, size_t n);

#endif
