/* SPDX-License-Identifier: Apache-2.0 */
/* The tar archives that the first releases of PyTorch wrote, which are only recognised. No state, any thread. */
#ifndef CKPT_FORMAT_PYTORCH_TAR_H
#define CKPT_FORMAT_PYTORCH_TAR_H

#include "core/io/backend.h"

bool ckpt_torch_is_tar(struct ckpt_file *file);

#endif
