/* SPDX-License-Identifier: Apache-2.0 */
/*
 * How long a pickle is only its opcodes tell, so as much of the file is read as it takes to find STOP: twice as much
 * each time.
 */
#include "core/format/pytorch/extract.h"

#include "core/base/util.h"
#include "core/format/pytorch/opcode.h"

#define FIRST_READ ((size_t)64 << 10)

struct extract {
    struct ckpt_file *file;
    uint64_t off;
    uint8_t *bytes;
    size_t len, all; /* what has been read, and what may be */
    struct ckpt_err *err;
};

static int read_more(struct extract *x)
{
    size_t want = CKPT_MIN(CKPT_MAX(x->len * 2, FIRST_READ), x->all);
    uint8_t *p = realloc(x->bytes, want);
    if (!p)
        return ckpt_no_memory(x->err);
    x->bytes = p;
    while (x->len < want) {
        ssize_t n = ckpt_file_read(x->file, x->bytes + x->len, want - x->len, x->off + x->len);
        if (n < 0)
            return ckpt_fail(x->err, (int)-n, "%s", strerror((int)-n));
        if (n == 0) {
            x->all = x->len; /* it has become shorter */
            break;
        }
        x->len += (size_t)n;
    }
    return 0;
}

/* *at: behind the opcodes that were looked at, in the end behind STOP. */
static int find_stop(struct extract *x, size_t *at)
{
    struct torch_op op = {0};
    while (op.code != OP_STOP) {
        bool all = x->len == x->all;
        int r = x->len ? ckpt_torch_op_next(x->bytes, x->len, at, &op, all ? x->err : NULL) : -EBADMSG;
        if (r == 0)
            continue;
        if (all)
            return x->len ? r : ckpt_fail(x->err, EBADMSG, "the file ends where a pickle should begin");
        r = read_more(x); /* whatever is wrong, it may only be that the opcode is not all there */
        if (r < 0)
            return r;
    }
    return 0;
}

int ckpt_torch_extract(struct ckpt_file *file, uint64_t off, uint64_t end, uint8_t **ret, size_t *ret_len,
                       uint64_t *ret_next, struct ckpt_err *err)
{
    uint64_t left = end > off ? end - off : 0;
    struct extract x = {.file = file, .off = off, .all = (size_t)CKPT_MIN(left, TORCH_MAX_PICKLE), .err = err};
    size_t at = 0;
    int r = find_stop(&x, &at);
    if (r == -EBADMSG && x.all == TORCH_MAX_PICKLE)
        r = ckpt_fail(err, EUCLEAN, "a pickle of more than %zu bytes", TORCH_MAX_PICKLE);
    if (r < 0) {
        free(x.bytes);
        return r;
    }
    *ret = x.bytes;
    *ret_len = at;
    *ret_next = off + at;
    return 0;
}
