/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Input: a byte that picks the chain, three bytes of decoded length, one of step size, then the encoded bytes.
 * A chain decodes in one call and as a stream to the same bytes, or fails both ways (but see below of zstd).
 */
#include "core/codec/stream.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define HEAD        5
#define DECODED_MAX ((size_t)1 << 20)

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static const struct ckpt_codec_chain chains[] = {
    {1, {CKPT_CODEC_ZSTD}},
    {1, {CKPT_CODEC_GZIP}},
    {1, {CKPT_CODEC_ZLIB}},
    {1, {CKPT_CODEC_DEFLATE}},
    {1, {CKPT_CODEC_BZ2}},
    {1, {CKPT_CODEC_BLOSC}},
    {1, {CKPT_CODEC_LZ4}},
    {1, {CKPT_CODEC_CRC32C}},
    {0, {0}},
    {2, {CKPT_CODEC_CRC32C, CKPT_CODEC_ZSTD}},
    {2, {CKPT_CODEC_ZSTD, CKPT_CODEC_CRC32C}},
    {2, {CKPT_CODEC_ZSTD, CKPT_CODEC_BLOSC}},
    {2, {CKPT_CODEC_GZIP, CKPT_CODEC_LZ4}},
    {3, {CKPT_CODEC_CRC32C, CKPT_CODEC_GZIP, CKPT_CODEC_CRC32C}},
    {1, {CKPT_CODEC_XXH3}},
    {2, {CKPT_CODEC_XXH3, CKPT_CODEC_BLOSC}},
    {2, {CKPT_CODEC_XXH3, CKPT_CODEC_LZ4}},
    {2, {CKPT_CODEC_DEFLATE, CKPT_CODEC_CRC32}},
};

/* One byte first, so that the stream cannot take the way of the one call. */
static int decode_stepwise(const struct ckpt_codec_chain *chain, const struct ckpt_extent *e, uint8_t *buf, size_t len,
                           size_t step)
{
    struct ckpt_stream *s;
    int r = ckpt_stream_open(chain, e, len, &s, NULL);
    if (r < 0)
        return r;
    size_t done = 0, ask = 1;
    ssize_t n;
    do {
        n = ckpt_stream_read(s, buf + done, ask < len - done ? ask : len - done, NULL);
        if (n > 0)
            done += (size_t)n;
        ask = step;
    } while (n > 0 && done < len);
    if (n >= 0) {
        uint8_t more;
        n = ckpt_stream_read(s, &more, 1, NULL);
        if (n > 0)
            abort();
    }
    ckpt_stream_close(s);
    if (n == 0 && done != len)
        abort();
    return (int)n;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size < HEAD)
        return 0;
    const struct ckpt_codec_chain *chain = &chains[data[0] % (sizeof chains / sizeof *chains)];
    size_t len = ((size_t)data[1] | (size_t)data[2] << 8 | (size_t)data[3] << 16) & (DECODED_MAX - 1);
    size_t step = ((size_t)data[4] + 1) * 37;
    uint8_t *one = malloc(len + 1), *two = malloc(len + 1), *src = malloc(size - HEAD + 1);
    if (!one || !two || !src)
        abort();
    memcpy(src, data + HEAD, size - HEAD);
    struct ckpt_extent mem = {.bytes = src, .len = size - HEAD}, file = {.off = HEAD, .len = size - HEAD};
    struct ckpt_backend *b = ckpt_backend_new_memory();
    if (!b || ckpt_backend_memory_add(b, "f", data, size) < 0 || ckpt_backend_open(b, "f", &file.file) < 0)
        abort();
    int r1 = ckpt_decode(chain, &file, one, len, NULL);
    int r2 = decode_stepwise(chain, &mem, two, len, step);
    /* Of zstd frames that break their own window's rules libzstd minds some only when it streams. */
    bool zstd = false;
    for (unsigned i = 0; i < chain->count; i++)
        zstd |= chain->id[i] == CKPT_CODEC_ZSTD;
    if ((r1 == 0) != (r2 == 0) && !(zstd && r1 == 0))
        abort();
    if (r1 == 0 && r2 == 0 && memcmp(one, two, len) != 0)
        abort();
    ckpt_extent_clear(&file);
    ckpt_backend_unref(b);
    free(one);
    free(two);
    free(src);
    return 0;
}
