/* SPDX-License-Identifier: Apache-2.0 */
/* A pickle that lies somewhere in a file, and ends where its STOP is. No state, any thread. */
#ifndef CKPT_FORMAT_PYTORCH_EXTRACT_H
#define CKPT_FORMAT_PYTORCH_EXTRACT_H

#include "core/format/pytorch/graph.h"
#include "core/io/backend.h"

/*
 * The pickle that begins at `off`, which must end before `end`; malloced. *ret_next: of the byte behind it. Its opcodes
 * are looked at to find the end, and nothing else. -EBADMSG: there is no end; -EUCLEAN, -EOPNOTSUPP: of
 * ckpt_torch_op_next, or longer than TORCH_MAX_PICKLE.
 */
int ckpt_torch_extract(struct ckpt_file *file, uint64_t off, uint64_t end, uint8_t **ret, size_t *ret_len,
                       uint64_t *ret_next, struct ckpt_err *err) CKPT_MUST_USE;

#endif
