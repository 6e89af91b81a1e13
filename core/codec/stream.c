/* SPDX-License-Identifier: Apache-2.0 */
#include "core/codec/codec.h"

#include "core/base/util.h"

static const struct ckpt_codec_ops *const codecs[CKPT_CODEC_COUNT] = {
    [CKPT_CODEC_ZSTD] = &ckpt_codec_zstd,       [CKPT_CODEC_GZIP] = &ckpt_codec_gzip,
    [CKPT_CODEC_ZLIB] = &ckpt_codec_zlib,       [CKPT_CODEC_DEFLATE] = &ckpt_codec_deflate,
    [CKPT_CODEC_BZ2] = &ckpt_codec_bz2,         [CKPT_CODEC_BLOSC] = &ckpt_codec_blosc,
    [CKPT_CODEC_LZ4] = &ckpt_codec_lz4,         [CKPT_CODEC_CRC32C] = &ckpt_codec_crc32c_check,
    [CKPT_CODEC_XXH3] = &ckpt_codec_xxh3_check, [CKPT_CODEC_CRC32] = &ckpt_codec_crc32_check,
};

#define STAGES_MAX 8

struct ckpt_stream {
    struct ckpt_codec_chain chain;
    struct ckpt_extent extent;
    struct ckpt_stage stages[STAGES_MAX + 1]; /* [0] reads the extent; one more for the raw bytes of an empty chain */
    unsigned count;
    uint64_t produced, decoded_max;
    bool ended;            /* the ends of all stages have been checked */
    struct ckpt_err error; /* sticks */
};

const char *ckpt_codec_name(enum ckpt_codec_id id)
{
    return (unsigned)id < CKPT_CODEC_COUNT ? codecs[id]->name : "?";
}

/* Refuses lengths that the file cannot have, before anything is allocated for them. */
static int extent_check(const struct ckpt_extent *e, struct ckpt_err *err)
{
    uint64_t end;
    if (e->file && (ckpt_add(e->off, e->len, &end) || end > e->file->st.size))
        return ckpt_fail(err, EBADMSG, "the file ends before the stored data do (%llu bytes at offset %llu)",
                         (unsigned long long)e->len, (unsigned long long)e->off);
    return 0;
}

static ssize_t raw_read(struct ckpt_stage *stage, void *buf, size_t len, struct ckpt_err *err)
{
    return ckpt_stage_pull(stage, buf, len, err);
}

static const struct ckpt_codec_ops codec_raw = {
    .name = "raw",
    .read = raw_read,
};

static int chain_check(const struct ckpt_codec_chain *chain, struct ckpt_err *err)
{
    if (chain->count > STAGES_MAX)
        return ckpt_fail(err, EOPNOTSUPP, "a chain of %u codecs", chain->count);
    for (unsigned i = 0; i < chain->count; i++)
        if ((unsigned)chain->id[i] >= CKPT_CODEC_COUNT)
            return ckpt_fail(err, EINVAL, "no codec has the number %d", (int)chain->id[i]);
    return 0;
}

/* A chain without codecs has its length in plain sight. */
static int raw_check(const struct ckpt_extent *e, uint64_t len, struct ckpt_err *err)
{
    if (e->len != len)
        return ckpt_fail(err, EBADMSG, "%llu bytes are stored, %llu belong there", (unsigned long long)e->len,
                         (unsigned long long)len);
    return 0;
}

static int extent_copy(const struct ckpt_extent *from, struct ckpt_extent *ret)
{
    *ret = *from;
    if (from->file) {
        ret->bytes = NULL;
        ckpt_file_ref(from->file);
        return 0;
    }
    ret->bytes = malloc(from->len ? from->len : 1);
    if (!ret->bytes)
        return -ENOMEM;
    if (from->len)
        memcpy(ret->bytes, from->bytes, from->len);
    return 0;
}

int ckpt_stream_open(const struct ckpt_codec_chain *chain, const struct ckpt_extent *extent, uint64_t decoded_max,
                     struct ckpt_stream **ret, struct ckpt_err *err)
{
    int r = chain_check(chain, err);
    if (r == 0)
        r = extent_check(extent, err);
    if (r == 0 && chain->count == 0 && decoded_max != CKPT_DECODED_UNKNOWN)
        r = raw_check(extent, decoded_max, err);
    if (r < 0)
        return r;

    struct ckpt_stream *s = calloc(1, sizeof *s);
    if (!s || extent_copy(extent, &s->extent) < 0) {
        free(s);
        return ckpt_no_memory(err);
    }
    s->chain = *chain;
    s->decoded_max = decoded_max;
    unsigned count = chain->count ? chain->count : 1;
    for (unsigned i = 0; i < count; i++) {
        struct ckpt_stage *stage = &s->stages[i];
        stage->ops = chain->count ? codecs[chain->id[i]] : &codec_raw;
        stage->below = i ? &s->stages[i - 1] : NULL;
        stage->extent = &s->extent;
        stage->in = (const uint8_t *)""; /* never NULL, so that it can be counted on from */
        stage->expect = i + 1 == count ? decoded_max : CKPT_DECODED_UNKNOWN;
        stage->crc32 = chain->crc32;
        s->count = i + 1;
        r = stage->ops->open ? stage->ops->open(stage, err) : 0;
        if (r < 0) {
            ckpt_stream_close(s);
            return r;
        }
    }
    *ret = s;
    return 0;
}

void ckpt_stream_close(struct ckpt_stream *s)
{
    if (!s)
        return;
    for (unsigned i = s->count; i-- > 0;) {
        if (s->stages[i].ops->close)
            s->stages[i].ops->close(&s->stages[i]);
        free(s->stages[i].window);
    }
    ckpt_extent_clear(&s->extent);
    free(s);
}

/* In one call: -ENOSYS when the chain or the size asks for a stream. */
static int decode_whole(const struct ckpt_codec_chain *chain, const struct ckpt_extent *e, void *buf, size_t len,
                        struct ckpt_err *err)
{
    if (e->len > CKPT_CODEC_HELD && e->file)
        return -ENOSYS;
    /* Checksums over the encoded bytes come off first; what is left must be one codec. */
    unsigned first = 0;
    while (first < chain->count && codecs[chain->id[first]]->tail)
        first++;
    if (first + 1 != chain->count || !codecs[chain->id[first]]->decode)
        return -ENOSYS;

    CKPT_AUTOFREE uint8_t *heap = NULL;
    const uint8_t *src = e->bytes;
    size_t src_len = e->len;
    if (e->file) {
        heap = malloc(src_len ? src_len : 1);
        if (!heap)
            return ckpt_no_memory(err);
        int r = ckpt_extent_read(e, heap, src_len, 0);
        if (r < 0)
            return ckpt_fail(err, -r, "cannot read %zu stored bytes", src_len);
        src = heap;
    }
    for (unsigned i = 0; i < first; i++) {
        const struct ckpt_codec_ops *sum = codecs[chain->id[i]];
        if (src_len < sum->tail)
            return ckpt_codec_fail_truncated(err, sum->name);
        src_len -= sum->tail;
        int r = sum->decode(src, src_len + sum->tail, NULL, src_len, err);
        if (r < 0)
            return r;
    }
    return codecs[chain->id[first]]->decode(src, src_len, buf, len, err);
}

static int stream_fail(struct ckpt_stream *s, int code, struct ckpt_err *err)
{
    if (!s->error.code) /* ran into by ourselves, without a text */
        ckpt_fail(&s->error, -code, "decoding failed");
    if (err)
        *err = s->error;
    return -s->error.code;
}

ssize_t ckpt_stream_read(struct ckpt_stream *s, void *buf, size_t len, struct ckpt_err *err)
{
    if (s->error.code)
        return stream_fail(s, -s->error.code, err);
    struct ckpt_stage *top = &s->stages[s->count - 1];
    uint64_t left = s->decoded_max - s->produced;
    size_t want = len < left ? len : (size_t)left;

    if (want && want == s->decoded_max) {
        /* All of it at the first call: the library's one-shot functions save a copy. */
        int r = decode_whole(&s->chain, &s->extent, buf, want, &s->error);
        if (r == 0) {
            s->produced = want;
            s->ended = true;
            return (ssize_t)want;
        }
        if (r != -ENOSYS)
            return stream_fail(s, r, err);
    }
    if (want) {
        ssize_t n = top->ops->read(top, buf, want, &s->error);
        if (n < 0)
            return stream_fail(s, (int)n, err);
        s->produced += (size_t)n;
        if ((size_t)n < want && s->decoded_max == CKPT_DECODED_UNKNOWN)
            return n;
        if ((size_t)n < want)
            return stream_fail(s, ckpt_codec_fail_shorter(&s->error, top->ops->name, s->produced, s->decoded_max), err);
    }
    if (s->produced == s->decoded_max && !s->ended && (len || !s->decoded_max)) {
        uint8_t more;
        ssize_t n = top->ops->read(top, &more, 1, &s->error);
        if (n > 0)
            n = ckpt_codec_fail_longer(&s->error, top->ops->name, s->decoded_max);
        if (n < 0)
            return stream_fail(s, (int)n, err);
        s->ended = true;
    }
    return (ssize_t)want;
}

void ckpt_stream_set_output(struct ckpt_stream *s, void *output)
{
    s->stages[s->count - 1].output = output;
}

bool ckpt_stream_checks_at_end(const struct ckpt_stream *s)
{
    for (unsigned i = 0; i < s->count; i++)
        if (s->stages[i].checks_at_end)
            return true;
    return false;
}

int ckpt_decode(const struct ckpt_codec_chain *chain, const struct ckpt_extent *extent, void *buf, size_t len,
                struct ckpt_err *err)
{
    int r = chain_check(chain, err);
    if (r == 0)
        r = extent_check(extent, err);
    if (r < 0)
        return r;
    if (chain->count == 0) {
        r = raw_check(extent, len, err);
        if (r == 0) {
            r = ckpt_extent_read(extent, buf, len, 0);
            if (r < 0)
                ckpt_fail(err, -r, "cannot read %zu stored bytes", len);
        }
        return r;
    }
    r = decode_whole(chain, extent, buf, len, err);
    if (r != -ENOSYS)
        return r;

    struct ckpt_stream *s;
    r = ckpt_stream_open(chain, extent, len, &s, err);
    if (r < 0)
        return r;
    ssize_t n = ckpt_stream_read(s, buf, len, err);
    ckpt_stream_close(s);
    return n < 0 ? (int)n : 0;
}
