/* SPDX-License-Identifier: Apache-2.0 */
/* Encoded chunks for the tests of the chunk cache: numbers that tell where they belong, in any of the encodings. */
#ifndef CKPT_TESTS_CHUNKS_H
#define CKPT_TESTS_CHUNKS_H

#include "core/base/util.h"
#include "core/codec/crc32c.h"
#include "core/tree/chunk.h"
#include "tests/unit/check.h"
#include "tests/unit/random.h"

#include <bzlib.h>
#include <stdatomic.h>
#include <zlib.h>
#include <zstd.h>

#define MIB ((size_t)1 << 20)

/* Byte i of chunk `salt`, as the reader gets it. */
static inline uint8_t chunk_byte(uint64_t i, uint64_t salt)
{
    uint64_t v = i / 4 * 2654435761u + salt * 97;
    return (uint8_t)(v >> (8 * (i % 4)));
}

static inline bool chunk_bytes_right(const uint8_t *p, size_t len, uint64_t off, uint64_t salt)
{
    for (size_t i = 0; i < len; i++)
        if (p[i] != chunk_byte(off + i, salt))
            return false;
    return true;
}

enum encoding {
    ENC_RAW,
    ENC_ZSTD,
    ENC_ZSTD_CHECK,
    ENC_GZIP,
    ENC_ZLIB,
    ENC_BZ2,
    ENC_CRC32C,
    ENC_ZSTD_CRC32C,
    ENC_COUNT
};

/* A chunk as it is stored. */
struct test_chunk {
    uint64_t size, salt;
    bool big_endian; /* stored as big-endian float32 */
    uint8_t *data;
    size_t len;
    struct ckpt_codec_chain codecs;
    atomic_uint located; /* times that it was looked for */
};

static inline void chunk_compress_zstd(struct test_chunk *t, bool check)
{
    ZSTD_CCtx *z = ZSTD_createCCtx();
    size_t cap = ZSTD_compressBound(t->len);
    uint8_t *out = malloc(cap);
    ZSTD_CCtx_setParameter(z, ZSTD_c_compressionLevel, 1);
    ZSTD_CCtx_setParameter(z, ZSTD_c_checksumFlag, check);
    size_t n = ZSTD_compress2(z, out, cap, t->data, t->len);
    CHECK(!ZSTD_isError(n));
    ZSTD_freeCCtx(z);
    free(t->data);
    t->data = out;
    t->len = n;
}

static inline void chunk_compress_zlib(struct test_chunk *t, int bits)
{
    z_stream z = {.next_in = t->data, .avail_in = (uInt)t->len};
    CHECK(deflateInit2(&z, 1, Z_DEFLATED, bits, 8, Z_DEFAULT_STRATEGY) == Z_OK);
    size_t cap = deflateBound(&z, t->len);
    uint8_t *out = malloc(cap);
    z.next_out = out;
    z.avail_out = (uInt)cap;
    CHECK(deflate(&z, Z_FINISH) == Z_STREAM_END);
    free(t->data);
    t->data = out;
    t->len = z.total_out;
    deflateEnd(&z);
}

static inline void chunk_compress_bz2(struct test_chunk *t)
{
    unsigned n = (unsigned)(t->len + t->len / 50 + 1000);
    uint8_t *out = malloc(n);
    CHECK(BZ2_bzBuffToBuffCompress((char *)out, &n, (char *)t->data, (unsigned)t->len, 1, 0, 0) == BZ_OK);
    free(t->data);
    t->data = out;
    t->len = n;
}

static inline void chunk_add_crc(struct test_chunk *t)
{
    uint32_t crc = ckpt_crc32c(0, t->data, t->len);
    t->data = realloc(t->data, t->len + 4);
    memcpy(t->data + t->len, &crc, 4);
    t->len += 4;
}

static inline void test_chunk_init(struct test_chunk *t, uint64_t size, uint64_t salt, enum encoding e, bool big_endian)
{
    *t = (struct test_chunk){
        .size = size, .salt = salt, .big_endian = big_endian, .len = size, .data = malloc(size + 1)};
    for (uint64_t i = 0; i < size; i++)
        t->data[big_endian ? i ^ 3 : i] = chunk_byte(i, salt);
    static const struct ckpt_codec_chain chains[ENC_COUNT] = {
        [ENC_ZSTD] = {1, {CKPT_CODEC_ZSTD}},
        [ENC_ZSTD_CHECK] = {1, {CKPT_CODEC_ZSTD}},
        [ENC_GZIP] = {1, {CKPT_CODEC_GZIP}},
        [ENC_ZLIB] = {1, {CKPT_CODEC_ZLIB}},
        [ENC_BZ2] = {1, {CKPT_CODEC_BZ2}},
        [ENC_CRC32C] = {1, {CKPT_CODEC_CRC32C}},
        [ENC_ZSTD_CRC32C] = {2, {CKPT_CODEC_CRC32C, CKPT_CODEC_ZSTD}},
    };
    t->codecs = chains[e];
    if (e == ENC_ZSTD || e == ENC_ZSTD_CHECK || e == ENC_ZSTD_CRC32C)
        chunk_compress_zstd(t, e == ENC_ZSTD_CHECK);
    if (e == ENC_GZIP || e == ENC_ZLIB)
        chunk_compress_zlib(t, e == ENC_GZIP ? 15 + 16 : 15);
    if (e == ENC_BZ2)
        chunk_compress_bz2(t);
    if (e == ENC_CRC32C || e == ENC_ZSTD_CRC32C)
        chunk_add_crc(t);
}

static inline void test_chunk_clear(struct test_chunk *t)
{
    free(t->data);
}

/* arg: an array of chunks, in which key->index counts. Their bytes are served from a file in memory. */
struct test_store {
    struct test_chunk *chunks;
    unsigned count;
    struct ckpt_backend *backend;
};

static inline int test_locate(void *arg, const struct ckpt_chunk_key *key, struct ckpt_chunk_source *ret,
                              struct ckpt_err *err)
{
    struct test_store *s = arg;
    char name[32];
    if (key->index >= s->count) {
        ret->missing = true;
        return 0;
    }
    struct test_chunk *t = &s->chunks[key->index];
    atomic_fetch_add(&t->located, 1);
    snprintf(name, sizeof name, "%llu", (unsigned long long)key->index);
    CHECK(ckpt_backend_open(s->backend, name, &ret->extent.file) == 0);
    ret->extent.len = t->len;
    ret->codecs = t->codecs;
    ret->size = t->size;
    ret->dtype = CKPT_DT_F32;
    ret->swap = t->big_endian ? 4 : 0;
    return 0;
}

static inline void test_store_init(struct test_store *s, struct test_chunk *chunks, unsigned count)
{
    *s = (struct test_store){chunks, count, ckpt_backend_new_memory()};
    for (unsigned i = 0; i < count; i++) {
        char name[32];
        snprintf(name, sizeof name, "%u", i);
        CHECK(ckpt_backend_memory_add(s->backend, name, chunks[i].data, chunks[i].len) == 0);
    }
}

static inline void test_store_clear(struct test_store *s)
{
    ckpt_backend_unref(s->backend);
    for (unsigned i = 0; i < s->count; i++)
        test_chunk_clear(&s->chunks[i]);
}

/* A cache with its pool. */
struct test_cache {
    struct ckpt_cache *cache;
    struct ckpt_pool *pool;
};

static inline struct test_cache test_cache(uint64_t memory, uint64_t spill, const char *dir)
{
    struct test_cache c;
    CHECK(ckpt_pool_new(3, &c.pool) == 0);
    CHECK(ckpt_cache_new(&(struct ckpt_cache_options){memory, spill, dir}, c.pool, &c.cache) == 0);
    return c;
}

static inline void test_cache_free(struct test_cache *c)
{
    ckpt_pool_free(c->pool); /* its tasks hold chunks */
    struct ckpt_cache_stats st;
    ckpt_cache_stats(c->cache, &st);
    ckpt_cache_free(c->cache);
}

static inline struct ckpt_chunk *test_get(struct test_cache *c, struct test_store *s, uint64_t tree, uint64_t index)
{
    struct ckpt_chunk *chunk = NULL;
    CHECK(ckpt_cache_get(c->cache, &(struct ckpt_chunk_key){tree, index, 5}, test_locate, s, &chunk, NULL) == 0);
    return chunk;
}

/* Read and compare; the error otherwise. */
static inline int test_read(struct test_cache *c, struct ckpt_chunk *chunk, const struct test_chunk *t, uint64_t off,
                            size_t len, bool sequential)
{
    struct ckpt_err err = {0};
    uint8_t *buf = malloc(len + 1);
    int r = ckpt_chunk_read(c->cache, chunk, buf, len, off, sequential, &err);
    CHECK(r == 0 ? !err.code : err.code == -r);
    CHECK(r < 0 || chunk_bytes_right(buf, len, off, t->salt));
    free(buf);
    return r;
}

#endif
