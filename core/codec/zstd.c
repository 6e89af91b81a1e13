/* SPDX-License-Identifier: Apache-2.0 */
#include "core/codec/codec.h"
#include "core/codec/zstd.h"

#include "core/base/util.h"

#include <zstd.h>
#include <zstd_errors.h>

#define WINDOW_LOG_MAX 27

/* A frame's first bytes: enough for any header. */
#define FRAME_MAGIC   0xFD2FB528u
#define HEAD_LEN      18
#define HEAD_CHECKSUM 0x04 /* in byte 4 */

struct zstd_state {
    ZSTD_DStream *ds;
    uint64_t frames; /* begun */
    bool in_frame;
    uint64_t frame_out; /* decoded of this frame */
    uint8_t head[HEAD_LEN];
    unsigned head_len;
    bool stable;      /* decodes straight into stage->output */
    uint64_t written; /* bytes there, of which `given` have been counted as read */
    uint64_t given;
};

/* One context a thread: making one costs as much as decoding a small chunk. */
static pthread_key_t dctx_key;
static pthread_once_t dctx_once = PTHREAD_ONCE_INIT;
static bool dctx_key_made;

static void dctx_free(void *dctx)
{
    ZSTD_freeDCtx(dctx);
}

static void dctx_init(void)
{
    dctx_key_made = pthread_key_create(&dctx_key, dctx_free) == 0;
}

/* This thread's context, or a fresh one in *ret_own, which the caller frees. */
static ZSTD_DCtx *dctx_get(ZSTD_DCtx **ret_own)
{
    *ret_own = NULL;
    pthread_once(&dctx_once, dctx_init);
    ZSTD_DCtx *dctx = dctx_key_made ? pthread_getspecific(dctx_key) : NULL;
    if (dctx)
        return dctx;
    dctx = ZSTD_createDCtx();
    if (dctx && (!dctx_key_made || pthread_setspecific(dctx_key, dctx) != 0))
        *ret_own = dctx;
    return dctx;
}

static int zstd_fail(struct ckpt_err *err, size_t code)
{
    int e;
    switch (ZSTD_getErrorCode(code)) {
    case ZSTD_error_version_unsupported:
    case ZSTD_error_frameParameter_unsupported:
    case ZSTD_error_frameParameter_windowTooLarge:
    case ZSTD_error_dictionary_wrong:
        e = EOPNOTSUPP;
        break;
    case ZSTD_error_memory_allocation:
        e = ENOMEM;
        break;
    default:
        e = EBADMSG;
    }
    return ckpt_fail(err, e, "zstd: %s", ZSTD_getErrorName(code));
}

static int zstd_open(struct ckpt_stage *stage, struct ckpt_err *err)
{
    struct zstd_state *z = calloc(1, sizeof *z);
    stage->state = z;
    if (!z || !(z->ds = ZSTD_createDStream()))
        return ckpt_no_memory(err);
    size_t r = ZSTD_DCtx_setParameter(z->ds, ZSTD_d_windowLogMax, WINDOW_LOG_MAX);
    return ZSTD_isError(r) ? zstd_fail(err, r) : 0;
}

static void zstd_close(struct ckpt_stage *stage)
{
    struct zstd_state *z = stage->state;
    if (z)
        ZSTD_freeDStream(z->ds);
    free(z);
}

/* The library's call for the header is not in its stable part; one bit of one byte is all that is needed. */
static void zstd_see_head(struct ckpt_stage *stage, const uint8_t *in, size_t len)
{
    struct zstd_state *z = stage->state;
    while (len-- && z->head_len < HEAD_LEN)
        z->head[z->head_len++] = *in++;
    if (z->head_len > 4 && ckpt_le32(z->head) == FRAME_MAGIC && (z->head[4] & HEAD_CHECKSUM))
        stage->checks_at_end = true;
}

/* The library compares the size in the header when it decodes at once, but not always when it streams. */
static int zstd_end_frame(struct zstd_state *z, struct ckpt_err *err)
{
    unsigned long long said = ZSTD_getFrameContentSize(z->head, z->head_len);
    z->in_frame = false;
    if (said == ZSTD_CONTENTSIZE_UNKNOWN || said == z->frame_out)
        return 0;
    return ckpt_fail(err, EBADMSG, "zstd: a frame of %llu bytes says that it has %llu",
                     (unsigned long long)z->frame_out, said);
}

static ssize_t zstd_stream(struct ckpt_stage *stage, ZSTD_outBuffer out, size_t until, struct ckpt_err *err)
{
    struct zstd_state *z = stage->state;
    while (out.pos < until) {
        if (!z->in_frame) {
            int r = ckpt_stage_fill(stage, err);
            if (r < 0)
                return r;
            if (r == 0) {
                if (!z->frames)
                    return ckpt_codec_fail_truncated(err, "zstd");
                break;
            }
            z->in_frame = true;
            z->frames++;
            z->head_len = 0;
            z->frame_out = 0;
        }
        /* Inside a frame a call without input is fine: output may wait in the window. */
        ZSTD_inBuffer in = {stage->in, stage->in_len, 0};
        size_t before = out.pos;
        size_t r = ZSTD_decompressStream(z->ds, &out, &in);
        if (ZSTD_isError(r))
            return zstd_fail(err, r);
        zstd_see_head(stage, stage->in, in.pos);
        stage->in += in.pos;
        stage->in_len -= in.pos;
        z->frame_out += out.pos - before;
        if (r == 0) {
            int f = zstd_end_frame(z, err);
            if (f < 0)
                return f;
        } else if (out.pos == before && !stage->in_len) {
            int f = ckpt_stage_fill(stage, err);
            if (f < 0)
                return f;
            if (f == 0)
                return ckpt_codec_fail_truncated(err, "zstd");
        }
    }
    return (ssize_t)out.pos;
}

/* Stable output: the library writes on as far as its input goes; what is beyond `len` waits in its place for the next
 * read. */
static ssize_t zstd_read_stable(struct ckpt_stage *stage, size_t len, struct ckpt_err *err)
{
    struct zstd_state *z = stage->state;
    if (z->given < stage->expect) {
        if (z->written < z->given + len) {
            ssize_t n = zstd_stream(stage, (ZSTD_outBuffer){stage->output, stage->expect, z->written}, z->given + len,
                                    err);
            if (n < 0)
                return n;
            z->written = (uint64_t)n;
        }
        size_t n = (size_t)CKPT_MIN((uint64_t)len, z->written - z->given);
        z->given += n;
        return (ssize_t)n;
    }
    /* Only the ends are left to be checked: of this frame, then of the data; frames that follow must be empty. */
    ssize_t n = zstd_stream(stage, (ZSTD_outBuffer){stage->output, stage->expect, stage->expect}, SIZE_MAX, err);
    return n < 0 ? n : 0;
}

static ssize_t zstd_read(struct ckpt_stage *stage, void *buf, size_t len, struct ckpt_err *err)
{
    struct zstd_state *z = stage->state;
    if (stage->output && !z->frames && stage->expect != CKPT_DECODED_UNKNOWN)
        /* In the library's header it has this name only for those who link statically; its meaning has not changed
         * since 1.4.0. */
        z->stable = !ZSTD_isError(ZSTD_DCtx_setParameter(z->ds, ZSTD_d_experimentalParam2, 1));
    return z->stable ? zstd_read_stable(stage, len, err) : zstd_stream(stage, (ZSTD_outBuffer){buf, len, 0}, len, err);
}

static int zstd_decode(const uint8_t *src, size_t src_len, uint8_t *dst, size_t dst_len, struct ckpt_err *err)
{
    if (!src_len)
        return ckpt_codec_fail_truncated(err, "zstd");
    ZSTD_DCtx *own, *dctx = dctx_get(&own);
    if (!dctx)
        return ckpt_no_memory(err);
    size_t n = ZSTD_decompressDCtx(dctx, dst, dst_len, src, src_len);
    ZSTD_freeDCtx(own);
    if (ZSTD_isError(n)) {
        if (ZSTD_getErrorCode(n) == ZSTD_error_dstSize_tooSmall)
            return ckpt_codec_fail_longer(err, "zstd", dst_len);
        if (ZSTD_getErrorCode(n) == ZSTD_error_srcSize_wrong)
            return ckpt_codec_fail_truncated(err, "zstd");
        return zstd_fail(err, n);
    }
    return n == dst_len ? 0 : ckpt_codec_fail_shorter(err, "zstd", n, dst_len);
}

/* The output doubles as it fills. A context of its own: its window is not to stay with the thread. */
static int zstd_grow(const uint8_t *src, size_t src_len, size_t max, uint8_t **ret, size_t *ret_len,
                     struct ckpt_err *err)
{
    ZSTD_DStream *ds = ZSTD_createDStream();
    size_t cap = CKPT_MAX(CKPT_MIN(src_len < max / 4 ? src_len * 4 + 4096 : max, max), (size_t)1);
    uint8_t *out = malloc(cap);
    ZSTD_inBuffer in = {src, src_len, 0};
    ZSTD_outBuffer o = {out, cap, 0};
    int r = ds && out ? 0 : ckpt_no_memory(err);
    if (r == 0 && ZSTD_isError(ZSTD_DCtx_setParameter(ds, ZSTD_d_windowLogMax, WINDOW_LOG_MAX)))
        r = ckpt_fail(err, EOPNOTSUPP, "zstd: cannot set the window's limit");
    while (r == 0) {
        size_t n = ZSTD_decompressStream(ds, &o, &in);
        if (ZSTD_isError(n)) {
            r = zstd_fail(err, n);
        } else if (n == 0) {
            break;
        } else if (o.pos < o.size) {
            r = ckpt_codec_fail_truncated(err, "zstd"); /* room left, and all input was there */
        } else if (cap >= max) {
            r = ckpt_codec_fail_longer(err, "zstd", max);
        } else {
            cap = cap > max / 2 ? max : cap * 2;
            uint8_t *grown = realloc(out, cap);
            if (!grown) {
                r = ckpt_no_memory(err);
                break;
            }
            o.dst = out = grown;
            o.size = cap;
        }
    }
    ZSTD_freeDStream(ds);
    if (r < 0) {
        free(out);
        return r;
    }
    *ret = out;
    *ret_len = o.pos;
    return 0;
}

/* What a frame's header says is believed as far as it is a likely ratio; beyond that the output grows as it comes. */
#define LIKELY_RATIO 64

int ckpt_zstd_frame(const uint8_t *src, size_t src_len, size_t max, uint8_t **ret, size_t *ret_len,
                    struct ckpt_err *err)
{
    size_t frame = ZSTD_findFrameCompressedSize(src, src_len);
    if (ZSTD_isError(frame))
        return ZSTD_getErrorCode(frame) == ZSTD_error_srcSize_wrong ? ckpt_codec_fail_truncated(err, "zstd")
                                                                    : zstd_fail(err, frame);
    if (frame != src_len)
        return ckpt_codec_fail_leftover(err, "zstd");
    unsigned long long said = ZSTD_getFrameContentSize(src, src_len);
    if (said == ZSTD_CONTENTSIZE_ERROR)
        return ckpt_fail(err, EBADMSG, "zstd: not a frame");
    bool known = said != ZSTD_CONTENTSIZE_UNKNOWN;
    if (known && said > max)
        return ckpt_codec_fail_longer(err, "zstd", max);

    if (known && said / LIKELY_RATIO <= src_len) {
        uint8_t *out = malloc(said ? (size_t)said : 1);
        if (!out)
            return ckpt_no_memory(err);
        int r = zstd_decode(src, src_len, out, (size_t)said, err);
        if (r < 0) {
            free(out);
            return r;
        }
        *ret = out;
        *ret_len = (size_t)said;
        return 0;
    }
    return zstd_grow(src, src_len, max, ret, ret_len, err);
}

const struct ckpt_codec_ops ckpt_codec_zstd = {
    .name = "zstd",
    .open = zstd_open,
    .read = zstd_read,
    .close = zstd_close,
    .decode = zstd_decode,
};
