/* SPDX-License-Identifier: Apache-2.0 */
/* PyTorch: torch.save's files, and the folders of torch.distributed.checkpoint; pickles by themselves. */
#ifndef CKPT_FORMAT_PYTORCH_PYTORCH_H
#define CKPT_FORMAT_PYTORCH_PYTORCH_H

#include "core/format/format.h"

extern const struct ckpt_format ckpt_pytorch_format;
extern const struct ckpt_format ckpt_dcp_format;
extern const struct ckpt_format ckpt_pickle_format;

#endif
