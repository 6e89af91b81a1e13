/* SPDX-License-Identifier: Apache-2.0 */
/* A checksum behind the data, which are as they were: checked, and taken off. Zarr v3 has CRC-32C, the store XXH3-64.
 */
#include "core/codec/codec.h"
#include "core/codec/crc32c.h"

#include "core/base/util.h"

#include <xxhash.h>

#define TAIL_MAX 8

struct sum_state {
    uint8_t tail[TAIL_MAX]; /* the last bytes seen: they may be the checksum */
    bool begun, ended;
    uint32_t crc; /* of what was handed out; one of the two */
    XXH3_state_t *xxh;
};

static int sum_open(struct ckpt_stage *stage, struct ckpt_err *err)
{
    struct sum_state *s = stage->state = calloc(1, sizeof *s);
    stage->checks_at_end = true;
    if (s && stage->ops == &ckpt_codec_xxh3_check) {
        s->xxh = XXH3_createState();
        if (s->xxh)
            XXH3_64bits_reset(s->xxh);
    }
    return s && (s->xxh || stage->ops != &ckpt_codec_xxh3_check) ? 0 : ckpt_no_memory(err);
}

static void sum_close(struct ckpt_stage *stage)
{
    struct sum_state *s = stage->state;
    if (s)
        XXH3_freeState(s->xxh);
    free(s);
}

static void sum_update(struct sum_state *s, const uint8_t *data, size_t len)
{
    if (s->xxh)
        XXH3_64bits_update(s->xxh, data, len);
    else
        s->crc = ckpt_crc32c(s->crc, data, len);
}

static int crc_compare(uint32_t got, const uint8_t *stored, struct ckpt_err *err)
{
    uint32_t want = ckpt_le32(stored);
    return got == want ? 0 : ckpt_fail(err, EBADMSG, "the crc32c is %08x, not %08x as stored", got, want);
}

static int xxh_compare(uint64_t got, const uint8_t *stored, struct ckpt_err *err)
{
    uint64_t want = ckpt_le64(stored);
    return got == want ? 0
                       : ckpt_fail(err, EBADMSG, "the XXH3-64 is %016llx, not %016llx as stored",
                                   (unsigned long long)got, (unsigned long long)want);
}

/* The input ended: the tail is the checksum. */
static int sum_end(struct sum_state *s, struct ckpt_err *err)
{
    s->ended = true;
    return s->xxh ? xxh_compare(XXH3_64bits_digest(s->xxh), s->tail, err) : crc_compare(s->crc, s->tail, err);
}

/* Into *tail as much as is there; fewer than asked for is the end. */
static ssize_t sum_read(struct ckpt_stage *stage, void *buf, size_t len, struct ckpt_err *err)
{
    struct sum_state *s = stage->state;
    size_t tail = stage->ops->tail;
    if (s->ended)
        return 0;
    if (!s->begun) {
        ssize_t n = ckpt_stage_pull(stage, s->tail, tail, err);
        if (n < 0)
            return n;
        if ((size_t)n < tail)
            return ckpt_codec_fail_truncated(err, stage->ops->name);
        s->begun = true;
    }

    /* What comes out is the old tail and then the input, but for its last bytes, which are the new tail. */
    uint8_t *out = buf;
    uint8_t next[2 * TAIL_MAX];
    size_t made;
    ssize_t n;
    if (len <= tail) {
        memcpy(next, s->tail, tail);
        n = ckpt_stage_pull(stage, next + tail, len, err);
        if (n < 0)
            return n;
        made = (size_t)n;
        memcpy(out, next, made);
        memcpy(s->tail, next + made, tail);
    } else {
        memcpy(out, s->tail, tail);
        n = ckpt_stage_pull(stage, out + tail, len - tail, err);
        if (n < 0)
            return n;
        size_t have = tail + (size_t)n, last = 0;
        if (have == len) {
            n = ckpt_stage_pull(stage, next, tail, err);
            if (n < 0)
                return n;
            last = (size_t)n;
        }
        made = have + last - tail;
        memcpy(s->tail, out + made, tail - last);
        memcpy(s->tail + tail - last, next, last);
    }
    sum_update(s, out, made);
    if (made < len) {
        int r = sum_end(s, err);
        if (r < 0)
            return r;
    }
    return (ssize_t)made;
}

/* Whether src is dst_len bytes and a checksum. */
static int sum_lengths(const struct ckpt_codec_ops *ops, size_t src_len, size_t dst_len, struct ckpt_err *err)
{
    if (src_len < ops->tail)
        return ckpt_codec_fail_truncated(err, ops->name);
    if (src_len - ops->tail > dst_len)
        return ckpt_codec_fail_longer(err, ops->name, dst_len);
    if (src_len - ops->tail < dst_len)
        return ckpt_codec_fail_shorter(err, ops->name, src_len - ops->tail, dst_len);
    return 0;
}

/* dst NULL: checked only. */
static int crc_decode(const uint8_t *src, size_t src_len, uint8_t *dst, size_t dst_len, struct ckpt_err *err)
{
    int r = sum_lengths(&ckpt_codec_crc32c_check, src_len, dst_len, err);
    if (r == 0)
        r = crc_compare(ckpt_crc32c(0, src, dst_len), src + dst_len, err);
    if (r == 0 && dst)
        memcpy(dst, src, dst_len);
    return r;
}

static int xxh_decode(const uint8_t *src, size_t src_len, uint8_t *dst, size_t dst_len, struct ckpt_err *err)
{
    int r = sum_lengths(&ckpt_codec_xxh3_check, src_len, dst_len, err);
    if (r == 0)
        r = xxh_compare(XXH3_64bits(src, dst_len), src + dst_len, err);
    if (r == 0 && dst)
        memcpy(dst, src, dst_len);
    return r;
}

const struct ckpt_codec_ops ckpt_codec_crc32c_check = {
    .name = "crc32c",
    .tail = 4,
    .open = sum_open,
    .read = sum_read,
    .close = sum_close,
    .decode = crc_decode,
};

const struct ckpt_codec_ops ckpt_codec_xxh3_check = {
    .name = "xxh3",
    .tail = 8,
    .open = sum_open,
    .read = sum_read,
    .close = sum_close,
    .decode = xxh_decode,
};
