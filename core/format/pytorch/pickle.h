/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Reads a pickle as plain data: a machine of the few opcodes and names that torch.save and distributed checkpoints use,
 * which builds a graph. It never imports, looks up or calls anything; what it does not know refuses the pickle, and the
 * opcode or name is told.
 */
#ifndef CKPT_FORMAT_PYTORCH_PICKLE_H
#define CKPT_FORMAT_PYTORCH_PICKLE_H

#include "core/format/pytorch/graph.h"
#include "core/format/pytorch/storages.h"

/*
 * The graph of a pickle (malloced, taken over in any case). Records of its tensors are appended; `archive` is what they
 * have as their archive. -EBADMSG: it ends too early; -EUCLEAN: malformed, or beyond the maxima; -EOPNOTSUPP: it asks
 * for what is not read.
 */
int ckpt_torch_pickle_load(uint8_t *pickle, size_t len, enum torch_dialect dialect, struct ckpt_buf *records,
                           uint64_t archive, struct torch_graph *ret, struct ckpt_err *err) CKPT_MUST_USE;
/* The same of a pickle by itself, some bytes of which are elsewhere in its file (malloced, taken over in any case). */
int ckpt_torch_pickle_load_plain(uint8_t *pickle, size_t len, struct torch_far *fars, uint32_t far_count,
                                 struct ckpt_buf *records, struct torch_graph *ret, struct ckpt_err *err) CKPT_MUST_USE;
/* The same; each persistent id is noted in `storages` (NULL: nowhere). */
int ckpt_torch_pickle_load_noting(uint8_t *pickle, size_t len, enum torch_dialect dialect, struct ckpt_buf *records,
                                  uint64_t archive, struct torch_storages *storages, struct torch_graph *ret,
                                  struct ckpt_err *err) CKPT_MUST_USE;

#endif
