/* SPDX-License-Identifier: Apache-2.0 */
/* PyTorch: torch.save's zip files, and the folders of torch.distributed.checkpoint. */
#ifndef CKPT_FORMAT_PYTORCH_PYTORCH_H
#define CKPT_FORMAT_PYTORCH_PYTORCH_H

#include "core/format/format.h"

extern const struct ckpt_format ckpt_pytorch_format;
extern const struct ckpt_format ckpt_dcp_format;

#endif
