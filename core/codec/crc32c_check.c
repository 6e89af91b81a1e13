/* SPDX-License-Identifier: Apache-2.0 */
/* The checksum that Zarr v3 puts after the data: checked, and taken off. */
#include "core/codec/codec.h"
#include "core/codec/crc32c.h"

#include "core/base/util.h"

#define TAIL 4

struct crc_state {
    uint8_t tail[TAIL]; /* the last bytes seen: they may be the checksum */
    bool begun, ended;
    uint32_t crc; /* of what was handed out */
};

static int crc_open(struct ckpt_stage *stage, struct ckpt_err *err)
{
    stage->checks_at_end = true;
    stage->state = calloc(1, sizeof(struct crc_state));
    return stage->state ? 0 : ckpt_fail(err, ENOMEM, "out of memory");
}

static void crc_close(struct ckpt_stage *stage)
{
    free(stage->state);
}

static int crc_fail(struct ckpt_err *err, uint32_t got, uint32_t want)
{
    return ckpt_fail(err, EBADMSG, "the crc32c is %08x, not %08x as stored", got, want);
}

/* The input ended: the tail is the checksum. */
static int crc_end(struct crc_state *s, struct ckpt_err *err)
{
    s->ended = true;
    return s->crc == ckpt_le32(s->tail) ? 0 : crc_fail(err, s->crc, ckpt_le32(s->tail));
}

/* Into *tail as much as is there; fewer than asked for is the end. */
static ssize_t crc_read(struct ckpt_stage *stage, void *buf, size_t len, struct ckpt_err *err)
{
    struct crc_state *s = stage->state;
    if (s->ended)
        return 0;
    if (!s->begun) {
        ssize_t n = ckpt_stage_pull(stage, s->tail, TAIL, err);
        if (n < 0)
            return n;
        if (n < TAIL)
            return ckpt_codec_fail_truncated(err, "crc32c");
        s->begun = true;
    }

    /* What comes out is the old tail and then the input, but for its last four bytes, which are the new tail. */
    uint8_t *out = buf;
    uint8_t next[2 * TAIL];
    size_t made;
    ssize_t n;
    if (len <= TAIL) {
        memcpy(next, s->tail, TAIL);
        n = ckpt_stage_pull(stage, next + TAIL, len, err);
        if (n < 0)
            return n;
        made = (size_t)n;
        memcpy(out, next, made);
        memcpy(s->tail, next + made, TAIL);
    } else {
        memcpy(out, s->tail, TAIL);
        n = ckpt_stage_pull(stage, out + TAIL, len - TAIL, err);
        if (n < 0)
            return n;
        size_t have = TAIL + (size_t)n, last = 0;
        if (have == len) {
            n = ckpt_stage_pull(stage, next, TAIL, err);
            if (n < 0)
                return n;
            last = (size_t)n;
        }
        made = have + last - TAIL;
        memcpy(s->tail, out + made, TAIL - last);
        memcpy(s->tail + TAIL - last, next, last);
    }
    s->crc = ckpt_crc32c(s->crc, out, made);
    if (made < len) {
        int r = crc_end(s, err);
        if (r < 0)
            return r;
    }
    return (ssize_t)made;
}

/* src is dst_len bytes and the checksum; dst NULL: checked only. */
static int crc_decode(const uint8_t *src, size_t src_len, uint8_t *dst, size_t dst_len, struct ckpt_err *err)
{
    if (src_len < TAIL)
        return ckpt_codec_fail_truncated(err, "crc32c");
    src_len -= TAIL;
    if (src_len > dst_len)
        return ckpt_codec_fail_longer(err, "crc32c", dst_len);
    if (src_len < dst_len)
        return ckpt_codec_fail_shorter(err, "crc32c", src_len, dst_len);
    uint32_t crc = ckpt_crc32c(0, src, src_len);
    if (crc != ckpt_le32(src + src_len))
        return crc_fail(err, crc, ckpt_le32(src + src_len));
    if (dst)
        memcpy(dst, src, src_len);
    return 0;
}

const struct ckpt_codec_ops ckpt_codec_crc32c_check = {
    .name = "crc32c",
    .open = crc_open,
    .read = crc_read,
    .close = crc_close,
    .decode = crc_decode,
};
