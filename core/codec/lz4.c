/* SPDX-License-Identifier: Apache-2.0 */
/* numcodecs' lz4: the decoded size in four bytes, then one LZ4 block, which cannot be decoded in parts. */
#include "core/codec/codec.h"

#include "core/base/util.h"

#include <lz4.h>

#define HEADER    4
#define RATIO_MAX 255 /* no LZ4 block decodes to more a byte */

struct lz4_state {
    uint8_t *data;
    size_t len, pos;
};

/* The decoded size, held against what the input and the caller allow. */
static int lz4_size(const uint8_t *src, size_t src_len, uint64_t expect, size_t *ret, struct ckpt_err *err)
{
    if (src_len < HEADER)
        return ckpt_codec_fail_truncated(err, "lz4");
    uint32_t size = ckpt_le32(src);
    if (expect != CKPT_DECODED_UNKNOWN && size > expect)
        return ckpt_codec_fail_longer(err, "lz4", expect);
    if (expect != CKPT_DECODED_UNKNOWN && size < expect)
        return ckpt_codec_fail_shorter(err, "lz4", size, expect);
    if (size > LZ4_MAX_INPUT_SIZE || src_len - HEADER > (size_t)LZ4_compressBound(LZ4_MAX_INPUT_SIZE))
        return ckpt_fail(err, EOPNOTSUPP, "lz4: a block of %u bytes", size);
    if (size > (uint64_t)(src_len - HEADER) * RATIO_MAX)
        return ckpt_fail(err, EBADMSG, "lz4: %zu bytes cannot hold %u", src_len - HEADER, size);
    *ret = size;
    return 0;
}

static int lz4_decode(const uint8_t *src, size_t src_len, uint8_t *dst, size_t dst_len, struct ckpt_err *err)
{
    size_t size = 0;
    int r = lz4_size(src, src_len, dst_len, &size, err);
    if (r < 0)
        return r;
    uint8_t none;
    if (!dst)
        dst = &none; /* the library takes no NULL, also for nothing */
    int n = LZ4_decompress_safe((const char *)src + HEADER, (char *)dst, (int)(src_len - HEADER), (int)size);
    if (n < 0)
        return ckpt_fail(err, EBADMSG, "lz4: damaged data");
    return (size_t)n == size ? 0 : ckpt_codec_fail_shorter(err, "lz4", (uint64_t)n, size);
}

static int lz4_open(struct ckpt_stage *stage, struct ckpt_err *err)
{
    if (stage->expect != CKPT_DECODED_UNKNOWN && stage->expect > CKPT_CODEC_WHOLE_MAX)
        return ckpt_fail(err, EOPNOTSUPP, "lz4: a block of %llu bytes is too large to be decoded in memory",
                         (unsigned long long)stage->expect);
    return 0;
}

static int lz4_load(struct ckpt_stage *stage, struct ckpt_err *err)
{
    struct ckpt_whole in;
    int r = ckpt_stage_whole(stage, HEADER + (uint64_t)LZ4_compressBound((int)CKPT_CODEC_WHOLE_MAX), &in, err);
    if (r < 0)
        return r;
    struct lz4_state *s = calloc(1, sizeof *s);
    stage->state = s;
    if (!s)
        r = ckpt_no_memory(err);
    if (r == 0)
        r = lz4_size(in.data, in.len, stage->expect, &s->len, err);
    if (r == 0 && s->len > CKPT_CODEC_WHOLE_MAX)
        r = ckpt_fail(err, EOPNOTSUPP, "lz4: a block of %zu bytes is too large to be decoded in memory", s->len);
    if (r == 0 && !(s->data = malloc(s->len ? s->len : 1)))
        r = ckpt_no_memory(err);
    if (r == 0)
        r = lz4_decode(in.data, in.len, s->data, s->len, err);
    ckpt_whole_clear(&in);
    return r;
}

static ssize_t lz4_read(struct ckpt_stage *stage, void *buf, size_t len, struct ckpt_err *err)
{
    if (!stage->state) {
        int r = lz4_load(stage, err);
        if (r < 0)
            return r;
    }
    struct lz4_state *s = stage->state;
    size_t n = CKPT_MIN(len, s->len - s->pos);
    memcpy(buf, s->data + s->pos, n);
    s->pos += n;
    return (ssize_t)n;
}

static void lz4_close(struct ckpt_stage *stage)
{
    struct lz4_state *s = stage->state;
    if (s)
        free(s->data);
    free(s);
}

const struct ckpt_codec_ops ckpt_codec_lz4 = {
    .name = "lz4",
    .open = lz4_open,
    .read = lz4_read,
    .close = lz4_close,
    .decode = lz4_decode,
};
