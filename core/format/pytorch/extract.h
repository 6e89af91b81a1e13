/* SPDX-License-Identifier: Apache-2.0 */
/* A pickle that lies somewhere in a file, and ends where its STOP is. No state, any thread. */
#ifndef CKPT_FORMAT_PYTORCH_EXTRACT_H
#define CKPT_FORMAT_PYTORCH_EXTRACT_H

#include "core/format/pytorch/graph.h"
#include "core/io/backend.h"

/* Bytes that were left out of a pickle, sorted by their place in what is left of it. */
struct torch_fars {
    struct torch_far *all; /* malloced */
    uint32_t count, cap;
};

/*
 * The pickle that begins at `off`, which must end before `end`; malloced. *ret_next: of the byte behind it. Its opcodes
 * are looked at to find the end, and nothing else. fars (NULL: not wanted; zeroed): long strings of bytes stay in the
 * file, and so do those that PyTorch saved storages in; a pickle that has them in memory would be as long as its
 * arrays. In their place is a NEXT_BUFFER, which reads as a buffer that is elsewhere. Frames are left out, too.
 * -EBADMSG: there is no end; -EUCLEAN, -EOPNOTSUPP: of ckpt_torch_op_next, or longer than TORCH_MAX_PICKLE.
 */
int ckpt_torch_extract(struct ckpt_file *file, uint64_t off, uint64_t end, uint8_t **ret, size_t *ret_len,
                       uint64_t *ret_next, struct torch_fars *fars, struct ckpt_err *err) CKPT_MUST_USE;

#endif
