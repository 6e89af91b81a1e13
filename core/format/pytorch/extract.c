/* SPDX-License-Identifier: Apache-2.0 */
/*
 * How long a pickle is only its opcodes tell. They are looked at through a window, which grows to the longest of them.
 */
#include "core/format/pytorch/extract.h"

#include "core/base/grow.h"
#include "core/base/util.h"
#include "core/format/pytorch/magic.h"
#include "core/format/pytorch/opcode.h"

#define FIRST_WINDOW ((size_t)64 << 10)
#define MAX_WINDOW   (TORCH_MAX_PICKLE + 64)
#define FAR_BYTES    ((uint64_t)64 << 10) /* the least that is left in the file */
#define FAR_STRING   ((uint64_t)4 << 20)  /* and of what may be text: more than is shown of one */
#define MAX_FARS     (1u << 21)

struct extract {
    struct ckpt_file *file;
    uint64_t base, end; /* of the window in the file; of what may be read */
    uint8_t *window;
    size_t at, len, cap; /* in the window; what has been read; its size */
    struct ckpt_buf out;
    struct torch_fars *fars;
    struct ckpt_err *err;
};

/* --- the window --- */

static bool has_all(const struct extract *x)
{
    return x->base + x->len >= x->end;
}

/* What was looked at goes; more is read behind the rest. */
static int read_more(struct extract *x)
{
    x->len -= x->at;
    if (x->len)
        memmove(x->window, x->window + x->at, x->len);
    x->base += x->at;
    x->at = 0;
    if (x->len == x->cap) {
        size_t cap = CKPT_MIN(CKPT_MAX(x->cap * 2, FIRST_WINDOW), MAX_WINDOW);
        uint8_t *p = realloc(x->window, cap);
        if (!p)
            return ckpt_no_memory(x->err);
        x->window = p;
        x->cap = cap;
    }
    size_t want = (size_t)CKPT_MIN(x->end - x->base - x->len, (uint64_t)(x->cap - x->len));
    ssize_t n = ckpt_file_read(x->file, x->window + x->len, want, x->base + x->len);
    if (n < 0)
        return ckpt_fail(x->err, (int)-n, "%s", strerror((int)-n));
    x->len += (size_t)n;
    if ((size_t)n < want)
        x->end = x->base + x->len; /* it has become shorter */
    return 0;
}

static void go_to(struct extract *x, uint64_t off)
{
    if (off - x->base <= x->len)
        x->at = (size_t)(off - x->base);
    else {
        x->base = off;
        x->at = x->len = 0;
    }
}

/* --- long bytes --- */

/* The bytes of the length that an opcode begins with; 0: it has no bytes that may stay in the file. */
static size_t length_bytes(uint8_t code)
{
    switch (code) {
    case OP_SHORT_BINBYTES:
        return 1;
    case OP_BINBYTES:
    case OP_BINSTRING:
        return 4;
    case OP_BINBYTES8:
    case OP_BYTEARRAY8:
        return 8;
    default:
        return 0;
    }
}

static int add_far(struct extract *x, uint64_t off, uint64_t len)
{
    struct torch_fars *f = x->fars;
    if (f->count == MAX_FARS)
        return ckpt_fail(x->err, EUCLEAN, "the pickle has more than %u long strings of bytes", MAX_FARS);
    if (!CKPT_ROOM_FOR_ONE(f->all, f->count, f->cap))
        return ckpt_no_memory(x->err);
    f->all[f->count++] = (struct torch_far){.at = x->out.len, .off = off, .len = len};
    ckpt_buf_addc(&x->out, (char)OP_NEXT_BUFFER);
    return 0;
}

/* 1: the opcode's bytes are long; they are left out, and the window is behind them. */
static int leave_out(struct extract *x)
{
    size_t left = x->len - x->at;
    if (!x->fars || !left)
        return 0;
    const uint8_t *p = x->window + x->at;
    size_t n = length_bytes(*p);
    if (!n || left <= n)
        return 0;
    uint64_t len = n == 1 ? p[1] : n == 4 ? ckpt_le32(p + 1) : ckpt_le64(p + 1), off = x->base + x->at + 1 + n;
    bool is_stream = ckpt_torch_magic(p + 1 + n, (size_t)CKPT_MIN((uint64_t)(left - 1 - n), len));
    if (len < (*p == OP_BINSTRING ? FAR_STRING : FAR_BYTES) && !is_stream)
        return 0;
    if (len > x->end - off)
        return ckpt_fail(x->err, EBADMSG, "the pickle ends in the middle of %llu bytes", (unsigned long long)len);
    int r = add_far(x, off, len);
    go_to(x, off + len);
    return r < 0 ? r : 1;
}

/* --- all of it --- */

static int too_long(struct extract *x)
{
    return ckpt_fail(x->err, EUCLEAN, "a pickle of more than %zu bytes", TORCH_MAX_PICKLE);
}

/* The next opcode goes to the output; *ret: its code. 1: the window has not all of it. */
static int take(struct extract *x, uint8_t *ret)
{
    struct torch_op op;
    size_t before = x->at;
    int r = leave_out(x);
    if (r != 0)
        return r < 0 ? r : 0;
    bool last = has_all(x);
    r = before < x->len ? ckpt_torch_op_next(x->window, x->len, &x->at, &op, last ? x->err : NULL) : -EBADMSG;
    if (r < 0 && !last) /* whatever is wrong, it may only be that the opcode is not all there */
        return x->len - x->at == MAX_WINDOW ? too_long(x) : 1;
    if (r < 0)
        return before < x->len ? r
                               : ckpt_fail(x->err, EBADMSG,
                                           x->out.len ? "the pickle ends without STOP"
                                                      : "the file ends where a pickle should begin");
    *ret = op.code;
    if (op.code != OP_FRAME || !x->fars)
        ckpt_buf_add(&x->out, x->window + before, x->at - before);
    return 0;
}

static int find_stop(struct extract *x)
{
    uint8_t code = 0;
    int r = 0;
    while (r == 0 && code != OP_STOP) {
        r = take(x, &code);
        if (r == 1)
            r = read_more(x);
        if (r == 0 && ckpt_buf_error(&x->out))
            r = ckpt_buf_error(&x->out) == -ENOMEM ? ckpt_no_memory(x->err) : too_long(x);
    }
    return r;
}

int ckpt_torch_extract(struct ckpt_file *file, uint64_t off, uint64_t end, uint8_t **ret, size_t *ret_len,
                       uint64_t *ret_next, struct torch_fars *fars, struct ckpt_err *err)
{
    struct extract x = {.file = file,
                        .base = off,
                        .end = CKPT_MAX(off, end),
                        .out = {.max = TORCH_MAX_PICKLE},
                        .fars = fars,
                        .err = err};
    int r = find_stop(&x);
    *ret_next = x.base + x.at;
    *ret_len = x.out.len;
    *ret = r == 0 ? (uint8_t *)ckpt_buf_steal(&x.out, NULL) : NULL;
    if (r == 0 && !*ret)
        r = ckpt_no_memory(err);
    ckpt_buf_clear(&x.out);
    free(x.window);
    return r;
}
