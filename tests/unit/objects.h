/* SPDX-License-Identifier: Apache-2.0 */
/* Stored objects for the tests: made of bytes in memory, kept in memory or in a folder. */
#ifndef CKPT_TESTS_OBJECTS_H
#define CKPT_TESTS_OBJECTS_H

#include "core/base/util.h"
#include "core/object/object_file.h"
#include "tests/unit/check.h"
#include "tests/unit/files.h"
#include "tests/unit/random.h"

#include <openssl/evp.h>
#include <sys/mman.h>
#include <xxhash.h>

/* An object's files. */
struct test_object {
    uint8_t *data; /* decoded */
    size_t size;
    uint8_t sha256[CKPT_SHA256];
    uint8_t *stored, *sums; /* sums NULL: it is encoded */
    size_t stored_len, sums_len;
    char path[128], sums_path[128];
};

/* Elements whose high bytes repeat, as those of weights do. */
static inline uint8_t *test_weights(size_t size, uint64_t seed)
{
    uint8_t *p = malloc(size + 1);
    CHECK(p);
    for (size_t i = 0; i < size; i++)
        p[i] = i % 4 == 3   ? 0x3c
               : i % 4 == 2 ? (uint8_t)(test_random(&seed) >> 40) & 7
                            : (uint8_t)(test_random(&seed) >> 40);
    return p;
}

static inline int test_memory_file(const void *data, size_t len)
{
    int fd = memfd_create("ckptfs-test", 0);
    CHECK(fd >= 0 && write(fd, data, len) == (ssize_t)len);
    return fd;
}

static inline uint8_t *test_file_bytes(int fd, size_t *ret_len)
{
    struct stat st;
    CHECK(fstat(fd, &st) == 0);
    uint8_t *p = malloc((size_t)st.st_size + 1);
    CHECK(p && pread(fd, p, (size_t)st.st_size, 0) == st.st_size);
    *ret_len = (size_t)st.st_size;
    return p;
}

static inline int test_object_encode(int fd, uint64_t off, uint64_t len, enum ckpt_object_codec codec,
                                     unsigned typesize, uint64_t chunk, const uint8_t *sha256, int out,
                                     const atomic_bool *cancel, uint64_t *ret_stored, struct ckpt_err *err)
{
    struct ckpt_object_input in = {.fd = fd,
                                   .off = off,
                                   .len = len,
                                   .codec = codec,
                                   .typesize = typesize,
                                   .chunk_bytes = chunk,
                                   .sha256 = sha256,
                                   .cancel = cancel};
    return ckpt_object_encode(&in, out, ret_stored, err);
}

/* data is taken over. */
static inline void test_object_init(struct test_object *t, uint8_t *data, size_t size, enum ckpt_object_codec codec,
                                    unsigned typesize, uint64_t chunk)
{
    char path[CKPT_OBJECT_PATH];
    struct ckpt_err err = {0};
    struct ckpt_buf sums = CKPT_BUF_INIT;
    CKPT_AUTOFD int in = test_memory_file(data, size), out = memfd_create("ckptfs-test", 0);
    *t = (struct test_object){.data = data, .size = size};
    CHECK(ckpt_object_hash(in, 0, size, NULL, t->sha256, &sums, &err) == 0);
    if (codec == CKPT_OBJECT_NONE) {
        CHECK(ckpt_object_write_sums(out, size, t->sha256, &sums, &err) == 0);
        t->sums = test_file_bytes(out, &t->sums_len);
        t->stored = test_file_bytes(in, &t->stored_len);
    } else {
        uint64_t stored;
        CHECK(test_object_encode(in, 0, size, codec, typesize, chunk, t->sha256, out, NULL, &stored, &err) == 0);
        t->stored = test_file_bytes(out, &t->stored_len);
        CHECK(t->stored_len == stored);
    }
    ckpt_buf_clear(&sums);
    ckpt_object_path(t->sha256, path);
    snprintf(t->path, sizeof t->path, "objects/%s", path);
    snprintf(t->sums_path, sizeof t->sums_path, "objects/%s.sums", path);
}

static inline void test_object_clear(struct test_object *t)
{
    free(t->data);
    free(t->stored);
    free(t->sums);
}

/* The object alone in a store in memory. Bytes are borrowed. */
static inline struct ckpt_pins *test_object_store(const struct test_object *t)
{
    struct ckpt_backend *b = ckpt_backend_new_memory();
    struct ckpt_pins *pins;
    CHECK(b && ckpt_backend_memory_add(b, t->path, t->stored, t->stored_len) == 0);
    CHECK(!t->sums || ckpt_backend_memory_add(b, t->sums_path, t->sums, t->sums_len) == 0);
    CHECK(ckpt_pins_new(b, &pins) == 0);
    ckpt_backend_unref(b);
    return pins;
}

/* In a store on disk. */
static inline void test_object_write(const struct test_object *t, const char *top)
{
    file_write_bytes(top, t->path, t->stored, t->stored_len);
    if (t->sums)
        file_write_bytes(top, t->sums_path, t->sums, t->sums_len);
}

static inline struct ckpt_pins *test_object_pins(const char *top)
{
    struct ckpt_backend *b;
    struct ckpt_pins *pins;
    CHECK(ckpt_backend_open_posix(top, &b, NULL) == 0 && ckpt_pins_new(b, &pins) == 0);
    ckpt_backend_unref(b);
    return pins;
}

struct test_objects {
    struct ckpt_pool *pool;
    struct ckpt_cache *cache;
};

static inline struct test_objects test_objects_begin(uint64_t memory)
{
    struct test_objects t;
    CHECK(ckpt_pool_new(2, &t.pool) == 0);
    CHECK(ckpt_cache_new(&(struct ckpt_cache_options){memory, 0, "/tmp"}, t.pool, &t.cache) == 0);
    return t;
}

/* Nothing of any object is left once those are closed. */
static inline void test_objects_end(struct test_objects *t)
{
    struct ckpt_cache_stats st;
    ckpt_pool_free(t->pool); /* what is decoded ahead holds its chunk */
    ckpt_cache_stats(t->cache, &st);
    CHECK(st.memory == 0);
    ckpt_cache_free(t->cache);
}

#endif
