/* SPDX-License-Identifier: Apache-2.0 */
/* gzip, zlib and bare deflate: one algorithm in three wrappers. */
#include "core/codec/codec.h"

#include "core/base/util.h"

#include <zlib.h>

#define PIECE ((size_t)1 << 30) /* zlib counts in unsigned int */

#define BITS_GZIP    (15 + 16)
#define BITS_ZLIB    15
#define BITS_DEFLATE (-15)

struct zlib_state {
    z_stream z;
    bool begun; /* z is initialised */
    bool members;
    bool ended; /* the last member has, and the input too */
};

static int zlib_fail(struct ckpt_err *err, const char *name, const z_stream *z, int code)
{
    switch (code) {
    case Z_MEM_ERROR:
        return ckpt_no_memory(err);
    case Z_NEED_DICT:
        return ckpt_fail(err, EOPNOTSUPP, "%s: the data need a dictionary", name);
    default:
        return ckpt_fail(err, EBADMSG, "%s: %s", name, z->msg ? z->msg : "damaged data");
    }
}

static int zlib_begin(struct zlib_state *s, int bits, bool members, struct ckpt_err *err)
{
    int r = inflateInit2(&s->z, bits);
    if (r != Z_OK)
        return ckpt_fail(err, r == Z_MEM_ERROR ? ENOMEM : EOPNOTSUPP, "cannot set up zlib");
    s->begun = true;
    s->members = members;
    return 0;
}

static int zlib_open_as(struct ckpt_stage *stage, int bits, bool members, struct ckpt_err *err)
{
    struct zlib_state *s = calloc(1, sizeof *s);
    stage->state = s;
    stage->checks_at_end = bits != BITS_DEFLATE;
    return s ? zlib_begin(s, bits, members, err) : ckpt_no_memory(err);
}

static int gzip_open(struct ckpt_stage *stage, struct ckpt_err *err)
{
    return zlib_open_as(stage, BITS_GZIP, true, err);
}

static int zlib_open(struct ckpt_stage *stage, struct ckpt_err *err)
{
    return zlib_open_as(stage, BITS_ZLIB, false, err);
}

static int deflate_open(struct ckpt_stage *stage, struct ckpt_err *err)
{
    return zlib_open_as(stage, BITS_DEFLATE, false, err);
}

static void zlib_close(struct ckpt_stage *stage)
{
    struct zlib_state *s = stage->state;
    if (s && s->begun)
        inflateEnd(&s->z);
    free(s);
}

static ssize_t zlib_read(struct ckpt_stage *stage, void *buf, size_t len, struct ckpt_err *err)
{
    struct zlib_state *s = stage->state;
    const char *name = stage->ops->name;
    size_t done = 0;
    while (done < len && !s->ended) {
        s->z.next_in = (Bytef *)stage->in;
        s->z.avail_in = (uInt)CKPT_MIN(stage->in_len, PIECE);
        s->z.next_out = (Bytef *)buf + done;
        s->z.avail_out = (uInt)CKPT_MIN(len - done, PIECE);
        uInt in = s->z.avail_in, out = s->z.avail_out;
        int r = inflate(&s->z, Z_NO_FLUSH);
        in -= s->z.avail_in;
        out -= s->z.avail_out;
        stage->in += in;
        stage->in_len -= in;
        done += out;
        if (r == Z_STREAM_END) {
            int f = ckpt_stage_fill(stage, err);
            if (f < 0)
                return f;
            if (f == 0)
                s->ended = true;
            else if (!s->members)
                return ckpt_codec_fail_leftover(err, name);
            else if (inflateReset(&s->z) != Z_OK)
                return ckpt_fail(err, EBADMSG, "%s: cannot go on with the next member", name);
        } else if (r != Z_OK && r != Z_BUF_ERROR) {
            return zlib_fail(err, name, &s->z, r);
        } else if (!out && !stage->in_len) {
            int f = ckpt_stage_fill(stage, err);
            if (f < 0)
                return f;
            if (f == 0)
                return ckpt_codec_fail_truncated(err, name);
        } else if (!out && !in) {
            return zlib_fail(err, name, &s->z, Z_DATA_ERROR); /* room and input, and no step forward */
        }
    }
    return (ssize_t)done;
}

/* From memory: the same loop over a stage whose input is all there. */
static int zlib_decode_as(const struct ckpt_codec_ops *ops, const uint8_t *src, size_t src_len, uint8_t *dst,
                          size_t dst_len, struct ckpt_err *err)
{
    const struct ckpt_extent nothing = {0};
    struct ckpt_stage stage = {.ops = ops, .extent = &nothing, .in_len = src_len, .expect = dst_len};
    stage.in = src ? src : (const uint8_t *)"";
    uint8_t more;
    int r = ops->open(&stage, err);
    ssize_t n = 0;
    if (r == 0 && dst_len) {
        n = zlib_read(&stage, dst, dst_len, err);
        if (n < 0)
            r = (int)n;
        else if ((size_t)n < dst_len)
            r = ckpt_codec_fail_shorter(err, ops->name, (uint64_t)n, dst_len);
    }
    if (r == 0) {
        n = zlib_read(&stage, &more, 1, err);
        if (n < 0)
            r = (int)n;
        else if (n > 0)
            r = ckpt_codec_fail_longer(err, ops->name, dst_len);
    }
    zlib_close(&stage);
    return r;
}

static int gzip_decode(const uint8_t *src, size_t src_len, uint8_t *dst, size_t dst_len, struct ckpt_err *err)
{
    return zlib_decode_as(&ckpt_codec_gzip, src, src_len, dst, dst_len, err);
}

static int zlib_decode(const uint8_t *src, size_t src_len, uint8_t *dst, size_t dst_len, struct ckpt_err *err)
{
    return zlib_decode_as(&ckpt_codec_zlib, src, src_len, dst, dst_len, err);
}

static int deflate_decode(const uint8_t *src, size_t src_len, uint8_t *dst, size_t dst_len, struct ckpt_err *err)
{
    return zlib_decode_as(&ckpt_codec_deflate, src, src_len, dst, dst_len, err);
}

const struct ckpt_codec_ops ckpt_codec_gzip = {
    .name = "gzip",
    .open = gzip_open,
    .read = zlib_read,
    .close = zlib_close,
    .decode = gzip_decode,
};

const struct ckpt_codec_ops ckpt_codec_zlib = {
    .name = "zlib",
    .open = zlib_open,
    .read = zlib_read,
    .close = zlib_close,
    .decode = zlib_decode,
};

const struct ckpt_codec_ops ckpt_codec_deflate = {
    .name = "deflate",
    .open = deflate_open,
    .read = zlib_read,
    .close = zlib_close,
    .decode = deflate_decode,
};
