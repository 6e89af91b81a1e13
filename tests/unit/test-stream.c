/* SPDX-License-Identifier: Apache-2.0 */
#include "core/codec/crc32c.h"
#include "core/codec/stream.h"

#include "core/base/util.h"
#include "tests/unit/check.h"

#include <blosc.h>
#include <bzlib.h>
#include <lz4.h>
#include <xxhash.h>
#include <zlib.h>
#include <zstd.h>

struct bytes {
    uint8_t *data;
    size_t len;
};

static struct bytes bytes_new(size_t len)
{
    struct bytes b = {malloc(len ? len : 1), len};
    CHECK(b.data);
    return b;
}

static struct bytes bytes_cat(struct bytes a, struct bytes b)
{
    struct bytes r = bytes_new(a.len + b.len);
    memcpy(r.data, a.data, a.len);
    memcpy(r.data + a.len, b.data, b.len);
    free(a.data);
    free(b.data);
    return r;
}

/* Half of it repeats, half does not: floats of a kind. */
static struct bytes sample(size_t len)
{
    struct bytes b = bytes_new(len);
    uint32_t x = 12345;
    for (size_t i = 0; i < len; i++) {
        x = x * 1664525 + 1013904223;
        b.data[i] = i % 4 < 2 ? (uint8_t)(i >> 12) : (uint8_t)(x >> 24) & 0x3f;
    }
    return b;
}

static struct bytes encode_zstd(const uint8_t *p, size_t len, bool checksum, bool size)
{
    ZSTD_CCtx *c = ZSTD_createCCtx();
    ZSTD_CCtx_setParameter(c, ZSTD_c_checksumFlag, checksum);
    ZSTD_CCtx_setParameter(c, ZSTD_c_contentSizeFlag, size);
    struct bytes b = bytes_new(ZSTD_compressBound(len));
    b.len = ZSTD_compress2(c, b.data, b.len, p, len);
    CHECK(!ZSTD_isError(b.len));
    ZSTD_freeCCtx(c);
    return b;
}

static struct bytes encode_zlib(const uint8_t *p, size_t len, int bits)
{
    z_stream z = {0};
    CHECK(deflateInit2(&z, 6, Z_DEFLATED, bits, 8, Z_DEFAULT_STRATEGY) == Z_OK);
    struct bytes b = bytes_new(deflateBound(&z, len) + 64);
    z.next_in = (Bytef *)p;
    z.avail_in = (uInt)len;
    z.next_out = b.data;
    z.avail_out = (uInt)b.len;
    CHECK(deflate(&z, Z_FINISH) == Z_STREAM_END);
    b.len = z.total_out;
    deflateEnd(&z);
    return b;
}

static struct bytes encode_bz2(const uint8_t *p, size_t len)
{
    struct bytes b = bytes_new(len + len / 50 + 1000);
    unsigned n = (unsigned)b.len;
    CHECK(BZ2_bzBuffToBuffCompress((char *)b.data, &n, (char *)p, (unsigned)len, 1, 0, 0) == BZ_OK);
    b.len = n;
    return b;
}

static struct bytes encode_blosc(const uint8_t *p, size_t len, const char *name, int shuffle, size_t type,
                                 size_t blocksize)
{
    struct bytes b = bytes_new(len + BLOSC_MAX_OVERHEAD);
    int n = blosc_compress_ctx(5, shuffle, type, len, p, b.data, b.len, name, blocksize, 1);
    CHECK(n > 0);
    b.len = (size_t)n;
    return b;
}

static struct bytes encode_lz4(const uint8_t *p, size_t len)
{
    struct bytes b = bytes_new(4 + (size_t)LZ4_compressBound((int)len));
    uint32_t size = (uint32_t)len;
    memcpy(b.data, &size, 4);
    int n = LZ4_compress_default((const char *)p, (char *)b.data + 4, (int)len, (int)b.len - 4);
    CHECK(n > 0);
    b.len = 4 + (size_t)n;
    return b;
}

static struct bytes encode_crc(const uint8_t *p, size_t len)
{
    struct bytes b = bytes_new(len + 4);
    if (len)
        memcpy(b.data, p, len);
    uint32_t crc = ckpt_crc32c(0, p, len);
    memcpy(b.data + len, &crc, 4);
    return b;
}

static struct bytes encode_xxh3(const uint8_t *p, size_t len)
{
    struct bytes b = bytes_new(len + 8);
    if (len)
        memcpy(b.data, p, len);
    uint64_t sum = XXH3_64bits(p, len);
    memcpy(b.data + len, &sum, 8);
    return b;
}

static struct bytes encode(enum ckpt_codec_id id, const uint8_t *p, size_t len)
{
    switch (id) {
    case CKPT_CODEC_ZSTD:
        return encode_zstd(p, len, true, true);
    case CKPT_CODEC_GZIP:
        return encode_zlib(p, len, 31);
    case CKPT_CODEC_ZLIB:
        return encode_zlib(p, len, 15);
    case CKPT_CODEC_DEFLATE:
        return encode_zlib(p, len, -15);
    case CKPT_CODEC_BZ2:
        return encode_bz2(p, len);
    case CKPT_CODEC_BLOSC:
        return encode_blosc(p, len, "lz4", BLOSC_SHUFFLE, 4, 0);
    case CKPT_CODEC_LZ4:
        return encode_lz4(p, len);
    case CKPT_CODEC_XXH3:
        return encode_xxh3(p, len);
    case CKPT_CODEC_CRC32: {
        struct bytes b = bytes_new(len);
        if (len)
            memcpy(b.data, p, len);
        return b;
    }
    default:
        return encode_crc(p, len);
    }
}

/* All ways to decode give `want`, or all give `code`. */
static void expect(const struct ckpt_codec_chain *chain, struct bytes enc, const uint8_t *want, size_t len, int code)
{
    static const size_t steps[] = {1, 7, 4096, 100000, SIZE_MAX};
    struct ckpt_backend *b = ckpt_backend_new_memory();
    struct bytes padded = bytes_new(enc.len + 6);
    memcpy(padded.data + 3, enc.data, enc.len);
    CHECK(b && ckpt_backend_memory_add(b, "f", padded.data, padded.len) == 0);
    struct ckpt_extent ext[2] = {{.bytes = enc.data, .len = enc.len}, {.off = 3, .len = enc.len}};
    CHECK(ckpt_backend_open(b, "f", &ext[1].file) == 0);
    uint8_t *got = malloc(len + 1);
    struct ckpt_err err;

    for (int e = 0; e < 2; e++) {
        memset(got, 0xee, len + 1);
        err.code = 0;
        int r = ckpt_decode(chain, &ext[e], got, len, &err);
        CHECK(r == code && got[len] == 0xee);
        CHECK(r == 0 ? memcmp(got, want, len) == 0 : err.code == -code && err.text[0]);
        for (size_t s = 0; s < sizeof steps / sizeof *steps; s++) {
            if (steps[s] == 1 && len > 100000)
                continue;
            struct ckpt_stream *stream = NULL;
            size_t done = 0;
            ssize_t n = ckpt_stream_open(chain, &ext[e], len, &stream, &err);
            if (n == 0) {
                do {
                    size_t ask = CKPT_MIN(steps[s], len + 1 - done);
                    n = ckpt_stream_read(stream, got + done, ask, &err);
                    if (n > 0)
                        done += (size_t)n;
                } while (n > 0 && done < len);
                if (n >= 0) { /* what was read is proven now; after it there is nothing */
                    CHECK(done == len);
                    n = ckpt_stream_read(stream, got, 1, &err);
                }
            }
            if (n < 0 && stream)
                CHECK(ckpt_stream_read(stream, got, 1, NULL) == n); /* it sticks */
            CHECK(n == code);
            CHECK(n == 0 ? done == len : err.code == -code && err.text[0]);
            ckpt_stream_close(stream);
        }
    }
    if (code == 0) { /* and without being told the length */
        struct ckpt_stream *stream;
        CHECK(ckpt_stream_open(chain, &ext[1], CKPT_DECODED_UNKNOWN, &stream, &err) == 0);
        size_t done = 0, ask;
        ssize_t n;
        do {
            ask = CKPT_MIN(len + 1 - done, (size_t)50000);
            n = ckpt_stream_read(stream, got + done, ask, &err);
            CHECK(n >= 0);
            done += (size_t)n;
        } while ((size_t)n == ask);
        CHECK(done == len && memcmp(got, want, len) == 0);
        CHECK(ckpt_stream_read(stream, got, 1, &err) == 0);
        ckpt_stream_close(stream);
    }
    ckpt_file_unref(ext[1].file);
    ckpt_backend_unref(b);
    free(padded.data);
    free(got);
}

static struct ckpt_codec_chain one(enum ckpt_codec_id id)
{
    return (struct ckpt_codec_chain){1, {id}};
}

static void test_each_codec(void)
{
    static const size_t sizes[] = {1, 3, 5, 1000, 300001, 3000000};
    for (unsigned id = 0; id < CKPT_CODEC_COUNT; id++) {
        struct ckpt_codec_chain chain = one(id);
        CHECK(strlen(ckpt_codec_name(id)) >= 3);
        for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
            struct bytes plain = sample(sizes[i]), enc = encode(id, plain.data, plain.len);
            chain.crc32 = (uint32_t)crc32_z(0, plain.data, plain.len);
            expect(&chain, enc, plain.data, plain.len, 0);
            if (sizes[i] == 1000 || sizes[i] == 300001) {
                expect(&chain, enc, plain.data, plain.len - 1, -EBADMSG);
                struct bytes longer = sample(sizes[i] + 1);
                expect(&chain, enc, longer.data, longer.len, -EBADMSG);
                free(longer.data);
                expect(&chain, (struct bytes){enc.data, enc.len - 1}, plain.data, plain.len, -EBADMSG);
                expect(&chain, (struct bytes){enc.data, enc.len / 2}, plain.data, plain.len, -EBADMSG);
                expect(&chain, (struct bytes){enc.data, 3}, plain.data, plain.len, -EBADMSG);
                expect(&chain, (struct bytes){enc.data, 0}, plain.data, plain.len, -EBADMSG);
                struct bytes extra = bytes_new(enc.len + 1);
                memcpy(extra.data, enc.data, enc.len);
                extra.data[enc.len] = 'x';
                expect(&chain, extra, plain.data, plain.len, -EBADMSG);
                free(extra.data);
            }
            free(plain.data);
            free(enc.data);
        }
    }
}

static void test_nothing(void)
{
    struct ckpt_codec_chain raw = {0};
    struct bytes plain = sample(1000);
    expect(&raw, plain, plain.data, 1000, 0);
    expect(&raw, plain, plain.data, 999, -EBADMSG);
    expect(&raw, (struct bytes){plain.data, 999}, plain.data, 1000, -EBADMSG);
    expect(&raw, (struct bytes){plain.data, 0}, plain.data, 0, 0);
    free(plain.data);
    for (unsigned id = 0; id < CKPT_CODEC_COUNT; id++) {
        struct ckpt_codec_chain chain = one(id);
        if (id != CKPT_CODEC_BLOSC && id != CKPT_CODEC_LZ4) {
            struct bytes enc = encode(id, (const uint8_t *)"", 0);
            expect(&chain, enc, (const uint8_t *)"", 0, 0);
            free(enc.data);
        }
        chain.crc32 = 1; /* which nothing has not */
        expect(&chain, (struct bytes){(uint8_t *)"", 0}, (const uint8_t *)"", 0, -EBADMSG);
    }
}

static bool checks_at_end(enum ckpt_codec_id id, struct bytes enc, size_t len)
{
    struct ckpt_codec_chain chain = one(id);
    struct ckpt_extent e = {.bytes = enc.data, .len = enc.len};
    struct ckpt_stream *s;
    uint8_t byte;
    CHECK(ckpt_stream_open(&chain, &e, len, &s, NULL) == 0);
    CHECK(ckpt_stream_read(s, &byte, 1, NULL) == 1);
    bool r = ckpt_stream_checks_at_end(s);
    ckpt_stream_close(s);
    return r;
}

static void test_zstd(void)
{
    struct bytes plain = sample(700000);
    struct ckpt_codec_chain chain = one(CKPT_CODEC_ZSTD);
    struct bytes sum = encode_zstd(plain.data, plain.len, true, false),
                 bare = encode_zstd(plain.data, plain.len, false, true);
    expect(&chain, sum, plain.data, plain.len, 0);
    CHECK(checks_at_end(CKPT_CODEC_ZSTD, sum, plain.len));
    CHECK(!checks_at_end(CKPT_CODEC_ZSTD, bare, plain.len));
    sum.data[sum.len - 1] ^= 1; /* only the checksum is wrong */
    expect(&chain, sum, plain.data, plain.len, -EBADMSG);

    /* Skippable, frame without a size, frame, skippable. */
    struct bytes skip = bytes_new(11), skip2 = bytes_new(11);
    memcpy(skip.data, "\x50\x2a\x4d\x18\x03\0\0\0abc", 11);
    memcpy(skip2.data, skip.data, 11);
    struct bytes all = bytes_cat(bytes_cat(skip, encode_zstd(plain.data, 400000, false, false)),
                                 bytes_cat(encode_zstd(plain.data + 400000, 300000, true, true), skip2));
    expect(&chain, all, plain.data, plain.len, 0);
    expect(&chain, (struct bytes){all.data, all.len - 1}, plain.data, plain.len, -EBADMSG);
    free(all.data);

    /* A frame that wants a dictionary, and one with a window above what is taken. */
    static uint8_t dict[] = {0x28, 0xb5, 0x2f, 0xfd, 0x01, 0x00, 0x07, 0x01, 0x00, 0x00};
    expect(&chain, (struct bytes){dict, sizeof dict}, plain.data, 1, -EOPNOTSUPP);
    struct bytes junk = sample(100);
    expect(&chain, junk, plain.data, 100, -EBADMSG);
    free(junk.data);
    free(sum.data);
    free(bare.data);
    free(plain.data);
}

static void test_members(void)
{
    struct bytes plain = sample(50000);
    struct ckpt_codec_chain gzip = one(CKPT_CODEC_GZIP), zlib = one(CKPT_CODEC_ZLIB), bz2 = one(CKPT_CODEC_BZ2);
    struct bytes two = bytes_cat(encode_zlib(plain.data, 20000, 31), encode_zlib(plain.data + 20000, 30000, 31));
    expect(&gzip, two, plain.data, plain.len, 0);
    free(two.data);
    two = bytes_cat(encode_zlib(plain.data, 20000, 15), encode_zlib(plain.data + 20000, 30000, 15));
    expect(&zlib, two, plain.data, plain.len, -EBADMSG);
    expect(&zlib, two, plain.data, 20000, -EBADMSG);
    free(two.data);
    two = bytes_cat(encode_bz2(plain.data, 20000), encode_bz2(plain.data + 20000, 30000));
    expect(&bz2, two, plain.data, plain.len, 0);
    free(two.data);
    free(plain.data);
}

static void test_blosc(void)
{
    static const char *const names[] = {"blosclz", "lz4", "lz4hc", "zlib", "zstd"};
    struct ckpt_codec_chain chain = one(CKPT_CODEC_BLOSC);
    struct bytes plain = sample(600008);
    for (unsigned n = 0; n < 5; n++) {
        for (int shuffle = 0; shuffle < 3; shuffle++) {
            static const size_t types[] = {1, 2, 4, 8, 7, 16};
            for (size_t t = 0; t < 6; t++) { /* 7 does not divide the length */
                struct bytes enc = encode_blosc(plain.data, plain.len, names[n], shuffle, types[t], t % 2 ? 65536 : 0);
                expect(&chain, enc, plain.data, plain.len, 0);
                free(enc.data);
            }
        }
    }
    struct bytes stored = bytes_new(plain.len + BLOSC_MAX_OVERHEAD);
    int n = blosc_compress_ctx(0, 0, 4, plain.len, plain.data, stored.data, stored.len, "lz4", 0, 1);
    CHECK(n == (int)plain.len + 16);
    expect(&chain, (struct bytes){stored.data, (size_t)n}, plain.data, plain.len, 0);
    stored.data[0] = 9;
    expect(&chain, (struct bytes){stored.data, (size_t)n}, plain.data, plain.len, -EOPNOTSUPP);
    stored.data[0] = BLOSC_VERSION_FORMAT;
    stored.data[2] = 7 << 5; /* no such compressor */
    expect(&chain, (struct bytes){stored.data, (size_t)n}, plain.data, plain.len, -EOPNOTSUPP);
    free(stored.data);
    free(plain.data);
}

/* The checksum of an encoded chunk, as the store has it. */
static void test_sums(void)
{
    static const enum ckpt_codec_id under[] = {CKPT_CODEC_BLOSC, CKPT_CODEC_LZ4, CKPT_CODEC_XXH3};
    struct bytes plain = sample(123457);
    for (unsigned i = 0; i < 3; i++) {
        struct bytes in = encode(under[i], plain.data, plain.len), enc = encode_xxh3(in.data, in.len);
        struct ckpt_codec_chain c = {2, {CKPT_CODEC_XXH3, under[i]}};
        expect(&c, enc, plain.data, plain.len, 0);
        static const size_t from_end[] = {1, 8, 9, 1000};
        for (unsigned k = 0; k < 4; k++) {
            enc.data[enc.len - from_end[k]] ^= 4;
            expect(&c, enc, plain.data, plain.len, -EBADMSG);
            expect(&c, (struct bytes){enc.data, k * 3}, plain.data, plain.len, -EBADMSG);
            enc.data[enc.len - from_end[k]] ^= 4;
        }
        CHECK(i || checks_at_end(CKPT_CODEC_XXH3, enc, in.len));
        free(in.data);
        free(enc.data);
    }
    free(plain.data);
}

static void test_chains(void)
{
    struct bytes plain = sample(123457);
    struct bytes z = encode_zstd(plain.data, plain.len, false, true), zc = encode_crc(z.data, z.len);
    struct ckpt_codec_chain c = {2, {CKPT_CODEC_CRC32C, CKPT_CODEC_ZSTD}};
    expect(&c, zc, plain.data, plain.len, 0);
    zc.data[zc.len / 2] ^= 1;
    expect(&c, zc, plain.data, plain.len, -EBADMSG);
    free(zc.data);

    struct bytes inner = encode_crc(plain.data, plain.len), cz = encode_zstd(inner.data, inner.len, false, true);
    c = (struct ckpt_codec_chain){2, {CKPT_CODEC_ZSTD, CKPT_CODEC_CRC32C}};
    expect(&c, cz, plain.data, plain.len, 0);
    free(inner.data);
    free(cz.data);

    /* As many as a chain can have, on top of each other. */
    struct ckpt_codec_chain all = {8, {0}};
    struct bytes b = sample(50000), first = sample(50000);
    for (unsigned i = 0; i < 8; i++) {
        enum ckpt_codec_id id = i + (i >= CKPT_CODEC_DEFLATE); /* that one is left out */
        struct bytes next = encode(id, b.data, b.len);
        free(b.data);
        b = next;
        all.id[7 - i] = id;
    }
    expect(&all, b, first.data, first.len, 0);
    expect(&all, (struct bytes){b.data, b.len - 1}, first.data, first.len, -EBADMSG);
    all.count = 9;
    struct ckpt_stream *s;
    struct ckpt_extent e = {.bytes = b.data, .len = b.len};
    CHECK(ckpt_stream_open(&all, &e, 1, &s, NULL) == -EOPNOTSUPP);
    free(first.data);
    free(b.data);
    free(z.data);
    free(plain.data);
}

/* A CRC-32 that is kept elsewhere, of what comes out of another codec. */
static void test_crc32(void)
{
    struct bytes plain = sample(300001), enc = encode(CKPT_CODEC_DEFLATE, plain.data, plain.len);
    struct ckpt_codec_chain c = {
        2, {CKPT_CODEC_DEFLATE, CKPT_CODEC_CRC32}, (uint32_t)crc32_z(0, plain.data, plain.len)};
    expect(&c, enc, plain.data, plain.len, 0);
    c.crc32 ^= 1;
    expect(&c, enc, plain.data, plain.len, -EBADMSG);
    free(plain.data);
    free(enc.data);
}

/* A blosc buffer above what is held in memory goes through a temporary file. */
static void test_spill(void)
{
    size_t len = (size_t)80 << 20;
    struct bytes plain = sample(len), enc = bytes_new(len + BLOSC_MAX_OVERHEAD);
    int n = blosc_compress_ctx(1, 0, 4, len, plain.data, enc.data, enc.len, "blosclz", 0, 1);
    CHECK(n > 0 && (size_t)n > (size_t)66 << 20);
    struct ckpt_backend *b = ckpt_backend_new_memory();
    CHECK(ckpt_backend_memory_add(b, "f", enc.data, (size_t)n) == 0);
    struct ckpt_extent e = {.len = (size_t)n};
    CHECK(ckpt_backend_open(b, "f", &e.file) == 0);
    struct ckpt_codec_chain chain = one(CKPT_CODEC_BLOSC);
    struct ckpt_stream *s;
    CHECK(ckpt_stream_open(&chain, &e, len, &s, NULL) == 0);
    static uint8_t buf[1000003];
    size_t done = 0;
    while (done < len) {
        ssize_t got = ckpt_stream_read(s, buf, sizeof buf, NULL);
        CHECK(got > 0 && memcmp(buf, plain.data + done, (size_t)got) == 0);
        done += (size_t)got;
    }
    CHECK(ckpt_stream_read(s, buf, 1, NULL) == 0);
    ckpt_stream_close(s);
    ckpt_extent_clear(&e);
    ckpt_backend_unref(b);
    free(enc.data);
    free(plain.data);
}

/* Sizes that the file or the codec cannot have are refused before anything is allocated for them. */
static void test_lies(void)
{
    struct ckpt_backend *b = ckpt_backend_new_memory();
    CHECK(ckpt_backend_memory_add(b, "f", "1234567890", 10) == 0);
    struct ckpt_extent e = {.off = 5, .len = 6};
    CHECK(ckpt_backend_open(b, "f", &e.file) == 0);
    struct ckpt_codec_chain raw = {0}, zstd = one(CKPT_CODEC_ZSTD), lz4 = one(CKPT_CODEC_LZ4);
    uint8_t buf[16];
    struct ckpt_stream *s;
    CHECK(ckpt_decode(&raw, &e, buf, 6, NULL) == -EBADMSG);
    CHECK(ckpt_stream_open(&zstd, &e, 6, &s, NULL) == -EBADMSG);
    e.off = UINT64_MAX - 2;
    CHECK(ckpt_decode(&zstd, &e, buf, 6, NULL) == -EBADMSG);
    ckpt_extent_clear(&e);
    ckpt_backend_unref(b);

    uint8_t big[8] = {0xff, 0xff, 0xff, 0x0f};
    e = (struct ckpt_extent){.bytes = big, .len = sizeof big};
    CHECK(ckpt_stream_open(&lz4, &e, 0x0fffffff, &s, NULL) == 0);
    CHECK(ckpt_stream_read(s, buf, 1, NULL) == -EBADMSG);
    ckpt_stream_close(s);
    CHECK(ckpt_stream_open(&lz4, &e, (uint64_t)1 << 40, &s, NULL) == -EOPNOTSUPP);
}

int main(void)
{
    test_each_codec();
    test_nothing();
    test_zstd();
    test_members();
    test_blosc();
    test_sums();
    test_chains();
    test_crc32();
    test_spill();
    test_lies();
    return 0;
}
