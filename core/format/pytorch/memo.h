/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The memo of a pickle: values by number, which may be any. Only those are kept that will be fetched, which must be
 * told beforehand. One thread.
 */
#ifndef CKPT_FORMAT_PYTORCH_MEMO_H
#define CKPT_FORMAT_PYTORCH_MEMO_H

#include "core/format/pytorch/graph.h"

struct torch_memo {
    uint32_t *keys;
    torch_value *values; /* TORCH_NOTHING: not put yet */
    uint8_t *used;
    uint32_t size, count; /* size: of the table, a power of two */
};

/* This number will be fetched. -ENOMEM, and -EFBIG beyond the maximum. */
int ckpt_torch_memo_expect(struct torch_memo *m, uint32_t key) CKPT_MUST_USE;
/* False: nobody will fetch it, so it is not kept. */
bool ckpt_torch_memo_put(struct torch_memo *m, uint32_t key, torch_value value);
/* Of a number that was expected; TORCH_NOTHING: nothing was put there. */
torch_value ckpt_torch_memo_get(const struct torch_memo *m, uint32_t key);
void ckpt_torch_memo_clear(struct torch_memo *m);

#endif
