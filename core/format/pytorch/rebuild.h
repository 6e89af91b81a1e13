/* SPDX-License-Identifier: Apache-2.0 */
/* Storages and tensors from the tuples that a pickle describes them with. -EUCLEAN: torch.save does not write such;
 * what only makes the tensor impossible is noted as its fault. No state, any thread. */
#ifndef CKPT_FORMAT_PYTORCH_REBUILD_H
#define CKPT_FORMAT_PYTORCH_REBUILD_H

#include "core/format/pytorch/graph.h"
#include "core/format/pytorch/record.h"

/* The key of a storage. False: it is no number as PyTorch writes them, or has more digits than 64 bits hold for sure.
 */
bool ckpt_torch_digits(const char *p, size_t len, uint64_t *ret);
int ckpt_torch_rebuild_storage(const struct torch_graph *g, torch_value id, struct torch_storage *ret,
                               struct ckpt_err *err) CKPT_MUST_USE;
/* meaning: TORCH_IS_TENSOR_V1, V2 or V3. The first argument must be a storage. */
int ckpt_torch_rebuild_tensor(const struct torch_graph *g, torch_value args, enum torch_meaning meaning,
                              struct torch_tensor *ret, struct ckpt_err *err) CKPT_MUST_USE;

#endif
