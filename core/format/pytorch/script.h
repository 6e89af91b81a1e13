/* SPDX-License-Identifier: Apache-2.0 */
/*
 * TorchScript: an archive of torch.jit.save has, beside what torch.save writes, tensors that its program mentions
 * (constants.pkl, and their storages under constants/), the program (code/) and files of the user (extra/).
 */
#ifndef CKPT_FORMAT_PYTORCH_SCRIPT_H
#define CKPT_FORMAT_PYTORCH_SCRIPT_H

#include "core/format/pytorch/torch.h"

/* Adds what is not in data.pkl to the tree of an archive that has it; of another nothing. */
int ckpt_torch_script_add(struct ckpt_tree *t, bool flat, struct ckpt_err *err) CKPT_MUST_USE;
/* The bytes of a node with TORCH_MEMBER_MARK. */
int ckpt_torch_script_blob(struct ckpt_tree *t, uint32_t node, struct ckpt_extent *ret,
                           struct ckpt_err *err) CKPT_MUST_USE;

#endif
