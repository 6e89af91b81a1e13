/* SPDX-License-Identifier: Apache-2.0 */
/* The .npy header: NumPy's format.py, versions 1.0 to 3.0. */
#ifndef CKPT_ARRAY_NPY_H
#define CKPT_ARRAY_NPY_H

#include "core/base/buf.h"

#define CKPT_MAX_DIMS 32

/* Append the whole header (magic to newline, padded with spaces so that data begin at a multiple of 64; version 1.0,
 * or 2.0 when the text is 65536 bytes or more). Byte for byte what np.save writes: {'descr': '<f4', 'fortran_order':
 * False, 'shape': (2, 3), }. */
void ckpt_npy_add_header(struct ckpt_buf *buf, const char *descr, unsigned ndim, const uint64_t *shape);

#endif
