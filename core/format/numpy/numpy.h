/* SPDX-License-Identifier: Apache-2.0 */
/* NumPy's .npy and .npz files. */
#ifndef CKPT_FORMAT_NUMPY_NUMPY_H
#define CKPT_FORMAT_NUMPY_NUMPY_H

#include "core/format/format.h"

extern const struct ckpt_format ckpt_npy_format;
extern const struct ckpt_format ckpt_npz_format;

#endif
