/* SPDX-License-Identifier: Apache-2.0 */
/*
 * NumPy basic slices as text, "0:4,:,-1" or "::2": parsed against a shape into a selection. What NumPy's
 * a[...] with the same text gives, an ellipsis "..." included; newaxis is not.
 */
#ifndef CKPT_ARRAY_SLICE_H
#define CKPT_ARRAY_SLICE_H

#include "core/array/npy.h"

#include <stdbool.h>
#include <stdint.h>

/* Of each dimension of the array: elements start, start+step, ... (count of them). A dimension that an integer picked
 * has count 1 and is absent from the result's shape. */
struct ckpt_selection {
    unsigned ndim;
    uint64_t start[CKPT_MAX_DIMS];
    int64_t step[CKPT_MAX_DIMS]; /* never 0 */
    uint64_t count[CKPT_MAX_DIMS];
    bool dropped[CKPT_MAX_DIMS];
};

void ckpt_selection_all(struct ckpt_selection *sel, unsigned ndim, const uint64_t *shape);
/* text need not be NUL-terminated; spaces are not allowed, "+1" and "1_0" are not. -ENOENT for anything that NumPy
 * refuses (an index out of range, too many indices, a zero step) and for text that is not a slice. Fewer indices than
 * dimensions: the rest is whole. Empty text is -ENOENT. A bare "..." is whole. */
int ckpt_slice_parse(const char *text, size_t len, unsigned ndim, const uint64_t *shape, struct ckpt_selection *ret);
/* The shape of the result: returns its number of dimensions. */
unsigned ckpt_selection_shape(const struct ckpt_selection *sel, uint64_t *shape);
uint64_t ckpt_selection_elements(const struct ckpt_selection *sel);

#endif
