/* SPDX-License-Identifier: Apache-2.0 */
/* Private to the PyTorch readers: a folder of shards that BASE.bin.index.json joins to one state dict. */
#ifndef CKPT_FORMAT_PYTORCH_FOLDER_H
#define CKPT_FORMAT_PYTORCH_FOLDER_H

#include "core/format/pytorch/torch.h"

#define TORCH_INDEX ".bin.index.json"

int ckpt_torch_folder_open(const struct ckpt_opening *o, struct ckpt_tree **ret, struct ckpt_err *err) CKPT_MUST_USE;
/* The archive of a shard; to be closed. */
int ckpt_torch_folder_archive(struct ckpt_tree *t, uint32_t shard, struct torch_archive *ret,
                              struct ckpt_err *err) CKPT_MUST_USE;
/* Why a tensor of the index cannot be read. */
int ckpt_torch_folder_lost(struct ckpt_tree *t, uint32_t entry, struct ckpt_err *err);

#endif
