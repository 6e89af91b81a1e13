/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One Blosc-1 buffer: a header, then blocks that are compressed each by itself, in any order. As a stream the
 * compressed bytes are held (see ckpt_stage_whole) and decoded block by block. Only the library's calls that keep
 * their state in the call are used, so threads do not wait for each other.
 */
#include "core/codec/codec.h"

#include "core/base/util.h"

#include <blosc.h>

#define HEADER       BLOSC_MIN_HEADER_LENGTH
#define INPUT_MAX    ((uint64_t)BLOSC_MAX_BUFFERSIZE + BLOSC_MAX_OVERHEAD)
#define LZ_FORMATS   5
#define FLAGS_FORMAT 5 /* shift */
#define FLAGS_FUTURE 0x08

struct blosc_info {
    size_t nbytes, blocksize, typesize;
    bool stored; /* the bytes follow the header as they are */
    bool parts;  /* can be decoded in blocks */
};

struct blosc_state {
    struct ckpt_whole in;
    struct blosc_info info;
    uint64_t pos;
    uint8_t *block; /* decoded bytes [block_pos, block_pos + block_len) */
    size_t block_pos, block_len;
};

/* The library says so on stderr when it lacks a format; so it is asked before. */
static bool format_known(unsigned format)
{
    static const char *const names[LZ_FORMATS] = {
        BLOSC_BLOSCLZ_COMPNAME, BLOSC_LZ4_COMPNAME, BLOSC_SNAPPY_COMPNAME, BLOSC_ZLIB_COMPNAME, BLOSC_ZSTD_COMPNAME,
    };
    return format < LZ_FORMATS && blosc_compname_to_compcode(names[format]) >= 0;
}

static int blosc_check(const uint8_t *src, size_t len, uint64_t expect, struct blosc_info *ret, struct ckpt_err *err)
{
    if (len < HEADER)
        return ckpt_codec_fail_truncated(err, "blosc");
    uint8_t version = src[0], flags = src[2];
    uint32_t nbytes = ckpt_le32(src + 4), blocksize = ckpt_le32(src + 8), cbytes = ckpt_le32(src + 12);
    if (version != BLOSC_VERSION_FORMAT)
        return ckpt_fail(err, EOPNOTSUPP, "blosc: format version %u", version);
    if (flags & FLAGS_FUTURE)
        return ckpt_fail(err, EOPNOTSUPP, "blosc: flags %02x", flags);
    bool stored = flags & BLOSC_MEMCPYED;
    if (!stored && !format_known(flags >> FLAGS_FORMAT))
        return ckpt_fail(err, EOPNOTSUPP, "blosc: the library lacks compressor %u", flags >> FLAGS_FORMAT);
    if (cbytes > len)
        return ckpt_codec_fail_truncated(err, "blosc");
    if (cbytes < len)
        return ckpt_codec_fail_leftover(err, "blosc");
    if (expect != CKPT_DECODED_UNKNOWN && nbytes > expect)
        return ckpt_codec_fail_longer(err, "blosc", expect);
    if (expect != CKPT_DECODED_UNKNOWN && nbytes < expect)
        return ckpt_codec_fail_shorter(err, "blosc", nbytes, expect);
    size_t valid;
    if (blosc_cbuffer_validate(src, len, &valid) < 0 || valid != nbytes || !src[3] ||
        (nbytes && (!blocksize || blocksize > nbytes)) || (stored && nbytes != cbytes - HEADER))
        return ckpt_fail(err, EBADMSG, "blosc: malformed header");
    *ret = (struct blosc_info){
        .nbytes = nbytes,
        .blocksize = blocksize,
        .typesize = src[3],
        .stored = stored,
        .parts = nbytes > blocksize && nbytes % src[3] == 0 && blocksize % src[3] == 0,
    };
    return 0;
}

static int blosc_all(const uint8_t *src, const struct blosc_info *info, uint8_t *dst, struct ckpt_err *err)
{
    if (!info->nbytes)
        return 0;
    if (info->stored) {
        memcpy(dst, src + HEADER, info->nbytes);
        return 0;
    }
    int n = blosc_decompress_ctx(src, dst, info->nbytes, 1);
    return n >= 0 && (size_t)n == info->nbytes ? 0 : ckpt_fail(err, EBADMSG, "blosc: damaged data");
}

static int blosc_decode(const uint8_t *src, size_t src_len, uint8_t *dst, size_t dst_len, struct ckpt_err *err)
{
    struct blosc_info info = {0};
    int r = blosc_check(src, src_len, dst_len, &info, err);
    return r < 0 ? r : blosc_all(src, &info, dst, err);
}

static int blosc_load(struct ckpt_stage *stage, struct ckpt_err *err)
{
    struct blosc_state *s = calloc(1, sizeof *s);
    stage->state = s;
    if (!s)
        return ckpt_no_memory(err);
    int r = ckpt_stage_whole(stage, INPUT_MAX, &s->in, err);
    if (r == 0)
        r = blosc_check(s->in.data, s->in.len, stage->expect, &s->info, err);
    if (r < 0 || s->info.stored)
        return r;
    size_t block = s->info.parts ? s->info.blocksize : s->info.nbytes;
    if (block > CKPT_CODEC_WHOLE_MAX)
        return ckpt_fail(err, EOPNOTSUPP, "blosc: a block of %zu bytes is too large to be decoded in memory", block);
    s->block = malloc(block ? block : 1);
    if (!s->block)
        return ckpt_no_memory(err);
    if (!s->info.parts) {
        s->block_len = block;
        return blosc_all(s->in.data, &s->info, s->block, err);
    }
    return 0;
}

/* Bytes [pos, pos + len), both multiples of the type's size. */
static int blosc_range(const struct blosc_state *s, size_t pos, size_t len, uint8_t *dst, struct ckpt_err *err)
{
    size_t type = s->info.typesize;
    int n = blosc_getitem(s->in.data, (int)(pos / type), (int)(len / type), dst);
    return n >= 0 && (size_t)n == len ? 0 : ckpt_fail(err, EBADMSG, "blosc: damaged data");
}

static ssize_t blosc_read(struct ckpt_stage *stage, void *buf, size_t len, struct ckpt_err *err)
{
    if (!stage->state) {
        int r = blosc_load(stage, err);
        if (r < 0)
            return r;
    }
    struct blosc_state *s = stage->state;
    uint8_t *out = buf;
    size_t done = 0;
    len = CKPT_MIN(len, (size_t)(s->info.nbytes - s->pos));
    if (s->info.stored) {
        memcpy(out, s->in.data + HEADER + s->pos, len);
        s->pos += len;
        return (ssize_t)len;
    }
    while (done < len) {
        size_t left = len - done;
        if (s->pos >= s->block_pos && s->pos - s->block_pos < s->block_len) {
            size_t at = (size_t)(s->pos - s->block_pos), n = CKPT_MIN(left, s->block_len - at);
            memcpy(out + done, s->block + at, n);
            s->pos += n;
            done += n;
            continue;
        }
        /* At the start of a block: whole blocks go straight to the caller. */
        size_t pos = (size_t)s->pos;
        size_t whole = left == s->info.nbytes - pos ? left : left - left % s->info.blocksize;
        if (whole) {
            int r = blosc_range(s, pos, whole, out + done, err);
            if (r < 0)
                return r;
            s->pos += whole;
            done += whole;
            continue;
        }
        size_t n = CKPT_MIN(s->info.blocksize, s->info.nbytes - pos);
        s->block_len = 0;
        int r = blosc_range(s, pos, n, s->block, err);
        if (r < 0)
            return r;
        s->block_pos = pos;
        s->block_len = n;
    }
    return (ssize_t)done;
}

static void blosc_close(struct ckpt_stage *stage)
{
    struct blosc_state *s = stage->state;
    if (s) {
        ckpt_whole_clear(&s->in);
        free(s->block);
    }
    free(s);
}

const struct ckpt_codec_ops ckpt_codec_blosc = {
    .name = "blosc",
    .read = blosc_read,
    .close = blosc_close,
    .decode = blosc_decode,
};
