/* SPDX-License-Identifier: Apache-2.0 */
/* Values as NumPy prints them, for the .txt view. */
#ifndef CKPT_ARRAY_PRINT_H
#define CKPT_ARRAY_PRINT_H

#include "core/array/dtype.h"
#include "core/array/npy.h"

#define CKPT_PRINT_MAX (1u << 20)

/*
 * Appends what numpy's str() gives for an array of this type and shape with the default print options (summarised
 * with "..." when it has more than 1000 elements: 3 at each edge), and a newline. bfloat16, float8 and other
 * ml_dtypes types print as NumPy prints the float32 of the same value. `get(arg, index, element)` fetches the element
 * at a C-order index (little-endian) and returns 0 or a negative errno, which ends the print and is returned.
 * -EOPNOTSUPP for CKPT_DT_OTHER, -EFBIG when more than CKPT_PRINT_MAX elements would be printed: NumPy shortens
 * dimensions over 6 only, so that many dimensions make a long text.
 */
int ckpt_print_array(struct ckpt_buf *buf, enum ckpt_dtype dt, unsigned ndim, const uint64_t *shape,
                     int (*get)(void *arg, const uint64_t *index, void *element), void *arg);

#endif
