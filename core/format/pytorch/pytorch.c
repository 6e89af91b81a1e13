/* SPDX-License-Identifier: Apache-2.0 */
#include "core/format/pytorch/pytorch.h"

const struct ckpt_reader ckpt_pytorch_reader = {.name = "pytorch"};
const struct ckpt_reader ckpt_dcp_reader = {.name = "torch-dcp"};
