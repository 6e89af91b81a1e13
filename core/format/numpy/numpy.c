/* SPDX-License-Identifier: Apache-2.0 */
#include "core/format/numpy/numpy.h"

const struct ckpt_reader ckpt_npy_reader = {.name = "npy"};
const struct ckpt_reader ckpt_npz_reader = {.name = "npz"};
