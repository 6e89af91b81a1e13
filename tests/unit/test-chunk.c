/* SPDX-License-Identifier: Apache-2.0 */
/* One chunk at a time: every size and encoding, damage, what is kept and what is given back. Threads are in
 * test-chunk-threads.c. */
#include "core/base/log.h"
#include "tests/unit/chunks.h"
#include "tests/unit/files.h"

#include <sys/syscall.h>

static uint64_t seed = 7;

/* --- a disk that fills up: the library's writes to spill files come through here --- */

static atomic_llong room_left = INT64_MAX;

ssize_t pwrite(int fd, const void *buf, size_t len, off_t off)
{
    if (atomic_fetch_sub(&room_left, (long long)len) < (long long)len) {
        errno = ENOSPC;
        return -1;
    }
    return syscall(SYS_pwrite64, fd, buf, len, off);
}

/* In order, then anywhere, then all at once. */
static void read_all_ways(struct test_cache *c, struct test_store *s, uint64_t index)
{
    struct test_chunk *t = &s->chunks[index];
    struct ckpt_chunk *chunk = test_get(c, s, 1, index);
    size_t piece = CKPT_MAX(t->size / 23, (uint64_t)1) | 1;
    for (uint64_t off = 0; off < t->size; off += piece)
        CHECK(test_read(c, chunk, t, off, (size_t)CKPT_MIN((uint64_t)piece, t->size - off), true) == 0);
    for (unsigned i = 0; i < (t->size > 4 * MIB ? 10 : 40); i++) {
        uint64_t off = test_below(&seed, t->size + 1);
        CHECK(test_read(c, chunk, t, off, (size_t)test_below(&seed, CKPT_MIN(t->size - off, (uint64_t)3 * MIB) + 1),
                        false) == 0);
    }
    CHECK(test_read(c, chunk, t, 0, t->size, true) == 0);
    CHECK(test_read(c, chunk, t, t->size, 0, false) == 0);
    uint8_t byte;
    CHECK(ckpt_chunk_read(c->cache, chunk, &byte, 1, t->size, false, NULL) == -EINVAL);
    CHECK(ckpt_chunk_read(c->cache, chunk, &byte, 1, UINT64_MAX, false, NULL) == -EINVAL);
    ckpt_chunk_put(c->cache, chunk);
}

static void test_sizes(const char *dir)
{
    static const uint64_t sizes[] = {4, 1000, MIB / 4, MIB, MIB + 4, 3 * MIB, 11 * MIB + 8};
    struct test_chunk t[2];
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
        for (enum encoding e = 0; e < ENC_COUNT; e++) {
            if (sizes[i] > 4 * MIB && (e == ENC_ZLIB || e == ENC_BZ2))
                continue; /* slow, and nothing new */
            struct test_cache c = test_cache(8 * MIB, i % 2 ? 64 * MIB : 8 * MIB, dir);
            struct test_store s;
            test_chunk_init(&t[0], sizes[i], i, e, false);
            test_chunk_init(&t[1], sizes[i], i + 100, e, true);
            test_store_init(&s, t, 2);
            read_all_ways(&c, &s, 0);
            read_all_ways(&c, &s, 1);
            test_store_clear(&s);
            test_cache_free(&c);
        }
}

/* A chunk whose checksum at the end is wrong: no byte of it is ever shown, whatever is asked for first. */
static void test_checksums(const char *dir)
{
    static const uint64_t sizes[] = {1000, 2 * MIB, 12 * MIB};
    static const enum encoding checked[] = {ENC_ZSTD_CHECK, ENC_GZIP, ENC_ZLIB, ENC_BZ2, ENC_CRC32C, ENC_ZSTD_CRC32C};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
        for (size_t k = 0; k < sizeof checked / sizeof *checked; k++) {
            struct test_chunk t;
            struct test_store s;
            if (sizes[i] > 4 * MIB && (checked[k] == ENC_BZ2 || checked[k] == ENC_ZLIB))
                continue; /* slow, and nothing new */
            struct test_cache c = test_cache(8 * MIB, 64 * MIB, dir);
            test_chunk_init(&t, sizes[i], 3, checked[k], false);
            t.data[t.len - (checked[k] == ENC_GZIP ? 6 : 2)] ^= 1; /* gzip: the CRC is before the length */
            test_store_init(&s, &t, 1);
            for (unsigned round = 0; round < 3; round++) {
                uint64_t off = round == 0 ? 0 : round == 1 ? t.size / 2 : t.size - 1;
                struct ckpt_chunk *chunk = test_get(&c, &s, 1, 0);
                CHECK(test_read(&c, chunk, &t, off, 1, false) == -EBADMSG);
                CHECK(test_read(&c, chunk, &t, 0, 1, false) == -EBADMSG); /* it stays so for this reader */
                ckpt_chunk_put(c.cache, chunk);
            }
            CHECK(t.located == 3); /* failed chunks are not kept */
            struct ckpt_chunk *chunk = test_get(&c, &s, 1, 0);
            CHECK(test_read(&c, chunk, &t, 0, t.size, true) == -EBADMSG);
            ckpt_chunk_put(c.cache, chunk);
            test_store_clear(&s);
            test_cache_free(&c);
        }
}

/* Without a checksum, what comes before the damage is right and is shown; cut-off and overlong data are errors. */
static void test_damage(const char *dir)
{
    struct test_chunk t;
    for (unsigned kind = 0; kind < 3; kind++) {
        struct test_cache c = test_cache(8 * MIB, 64 * MIB, dir);
        struct test_store s;
        test_chunk_init(&t, 12 * MIB, 3, kind == 2 ? ENC_RAW : ENC_ZSTD, false);
        t.len -= kind == 0 ? t.len / 2 : kind == 2;
        t.size -= kind == 1 ? 4 : 0;
        test_store_init(&s, &t, 1);
        struct ckpt_chunk *chunk = test_get(&c, &s, 1, 0);
        CHECK(test_read(&c, chunk, &t, 0, 100000, false) == (kind == 2 ? -EBADMSG : 0));
        CHECK(test_read(&c, chunk, &t, t.size - 10, 10, false) == -EBADMSG);
        ckpt_chunk_put(c.cache, chunk);
        test_store_clear(&s);
        test_cache_free(&c);
    }
}

static void test_spill_trouble(const char *dir)
{
    static const enum encoding kinds[] = {ENC_ZSTD, ENC_ZSTD_CHECK};
    char missing[256];
    snprintf(missing, sizeof missing, "%s/missing", dir);
    for (size_t k = 0; k < 2; k++)
        for (unsigned trouble = 0; trouble < 4; trouble++) {
            struct test_cache c = test_cache(8 * MIB, trouble == 3 ? 0 : 64 * MIB, trouble == 0 ? missing : dir);
            struct test_chunk t;
            struct test_store s;
            test_chunk_init(&t, 20 * MIB, 9, kinds[k], false);
            test_store_init(&s, &t, 1);
            atomic_store(&room_left, trouble == 1 ? 0 : trouble == 2 ? (long long)(13 * MIB) : INT64_MAX);
            read_all_ways(&c, &s, 0);
            atomic_store(&room_left, INT64_MAX);
            struct ckpt_cache_stats st;
            ckpt_cache_stats(c.cache, &st);
            CHECK(st.memory <= 8 * MIB && st.spilled <= (trouble == 3 ? 0 : 64 * MIB));
            test_store_clear(&s);
            test_cache_free(&c);
        }
}

/* Reading in order decodes once, however large the chunk and however little room there is. */
static void test_in_order(const char *dir)
{
    for (unsigned small_ring = 0; small_ring < 2; small_ring++) {
        struct test_cache c = test_cache(8 * MIB, small_ring ? 0 : 64 * MIB, dir);
        struct test_chunk t;
        struct test_store s;
        struct ckpt_cache_stats st;
        test_chunk_init(&t, 40 * MIB, 1, ENC_ZSTD, false);
        test_store_init(&s, &t, 1);
        for (uint64_t off = 0; off < t.size; off += 100004) {
            struct ckpt_chunk *chunk = test_get(&c, &s, 1, 0);
            CHECK(test_read(&c, chunk, &t, off, (size_t)CKPT_MIN((uint64_t)100004, t.size - off), true) == 0);
            ckpt_chunk_put(c.cache, chunk);
        }
        ckpt_cache_stats(c.cache, &st);
        CHECK(st.decoded == 1 && st.decoded_bytes == t.size && t.located == 1);
        test_store_clear(&s);
        test_cache_free(&c);
    }
}

static void test_least_recently_used(const char *dir)
{
    enum { COUNT = 12 };
    struct test_cache c = test_cache(8 * MIB, 64 * MIB, dir);
    struct test_chunk t[COUNT];
    struct test_store s;
    for (unsigned i = 0; i < COUNT; i++)
        test_chunk_init(&t[i], MIB, i, ENC_ZSTD, false);
    test_store_init(&s, t, COUNT);
    for (unsigned i = 0; i < COUNT; i++)
        for (unsigned back = 0; back < 2; back++) { /* chunk 0 is used again and again */
            struct ckpt_chunk *chunk = test_get(&c, &s, 1, back ? 0 : i);
            CHECK(test_read(&c, chunk, &t[back ? 0 : i], 0, MIB, false) == 0);
            ckpt_chunk_put(c.cache, chunk);
        }
    struct ckpt_cache_stats st;
    ckpt_cache_stats(c.cache, &st);
    CHECK(t[0].located == 1 && st.decoded == COUNT && st.memory <= 8 * MIB && st.misses == COUNT && st.hits == COUNT);
    struct ckpt_chunk *chunk = test_get(&c, &s, 1, 1); /* gone long ago */
    CHECK(t[1].located == 2);
    ckpt_chunk_put(c.cache, chunk);
    CHECK(ckpt_cache_get(c.cache, &(struct ckpt_chunk_key){1, COUNT, 5}, test_locate, &s, &chunk, NULL) ==
          1); /* missing */
    test_store_clear(&s);
    test_cache_free(&c);
}

/* Rows of chunks that are read piece by piece in turn, as a matrix in columns of chunks is: none is decoded twice. */
static void test_moved_out(const char *dir)
{
    enum { COUNT = 12 };
    struct test_cache c = test_cache(8 * MIB, 64 * MIB, dir);
    struct test_chunk t[COUNT];
    struct test_store s;
    for (unsigned i = 0; i < COUNT; i++)
        test_chunk_init(&t[i], 2 * MIB, i, ENC_ZSTD, i % 2);
    test_store_init(&s, t, COUNT);
    for (uint64_t off = 0; off < 2 * MIB; off += MIB / 2)
        for (unsigned i = 0; i < COUNT; i++) {
            struct ckpt_chunk *chunk = test_get(&c, &s, 1, i);
            CHECK(test_read(&c, chunk, &t[i], off, MIB / 2, true) == 0);
            ckpt_chunk_put(c.cache, chunk);
        }
    struct ckpt_cache_stats st;
    ckpt_cache_stats(c.cache, &st);
    CHECK(st.memory <= 8 * MIB && st.spilled <= 64 * MIB && st.decoded <= COUNT + COUNT / 2);
    test_store_clear(&s);
    test_cache_free(&c);
}

static void test_map(const char *dir)
{
    struct test_cache c = test_cache(8 * MIB, 64 * MIB, dir);
    struct test_chunk t[3];
    struct test_store s;
    const uint8_t *p;
    test_chunk_init(&t[0], 2 * MIB, 0, ENC_ZSTD, true);
    test_chunk_init(&t[1], 2 * MIB, 1, ENC_RAW, false);
    test_chunk_init(&t[2], 20 * MIB, 2, ENC_ZSTD, false);
    test_store_init(&s, t, 3);
    for (unsigned i = 0; i < 3; i++) {
        struct ckpt_chunk *chunk = test_get(&c, &s, 1, i);
        CHECK(ckpt_chunk_map(c.cache, chunk, MIB, 1000, i, &p, NULL) == 0);
        CHECK(i ? !p : chunk_bytes_right(p, 1000, MIB, 0)); /* neither of a file nor of what does not fit */
        ckpt_chunk_put(c.cache, chunk);
    }
    test_store_clear(&s);
    test_cache_free(&c);
}

/* A tree is closed while its chunks are in use: readers finish, nobody new finds them. */
static void test_drop_tree(const char *dir)
{
    struct test_cache c = test_cache(32 * MIB, 64 * MIB, dir); /* room for all that one thread holds here */
    struct test_chunk t[2];
    struct test_store s;
    test_chunk_init(&t[0], 2 * MIB, 0, ENC_ZSTD, false);
    test_chunk_init(&t[1], 20 * MIB, 1, ENC_ZSTD, false);
    test_store_init(&s, t, 2);
    struct ckpt_chunk *small = test_get(&c, &s, 1, 0), *large = test_get(&c, &s, 1, 1), *other = test_get(&c, &s, 2, 0);
    CHECK(test_read(&c, small, &t[0], 0, 10, true) == 0 && test_read(&c, large, &t[1], 0, 10, true) == 0);
    CHECK(test_read(&c, other, &t[0], 0, 10, false) == 0);
    ckpt_chunk_put(c.cache, other);
    ckpt_cache_drop_tree(c.cache, 1);
    CHECK(test_read(&c, small, &t[0], 0, t[0].size, true) == 0 && test_read(&c, large, &t[1], 0, t[1].size, true) == 0);
    struct ckpt_chunk *again = test_get(&c, &s, 1, 0);
    CHECK(again != small && t[0].located == 3);
    ckpt_chunk_put(c.cache, small);
    ckpt_chunk_put(c.cache, large);
    ckpt_chunk_put(c.cache, again);
    other = test_get(&c, &s, 2, 0);
    CHECK(t[0].located == 3); /* of another tree: still there */
    ckpt_chunk_put(c.cache, other);
    ckpt_cache_drop_tree(c.cache, 1);
    ckpt_cache_drop_tree(c.cache, 2);
    ckpt_pool_free(c.pool); /* what it decoded ahead was let go */
    struct ckpt_cache_stats st;
    ckpt_cache_stats(c.cache, &st);
    CHECK(st.memory == 0 && st.spilled == 0);
    test_store_clear(&s);
    ckpt_cache_free(c.cache);
}

/* What is stored as it is but for the byte order: any bytes of it, straight from the file. */
static void test_other_order(void)
{
    struct test_chunk t;
    struct test_store s;
    struct test_cache c = test_cache(64 * MIB, 0, "/tmp");
    struct ckpt_cache_stats st;
    uint64_t before, bytes, reads;
    test_chunk_init(&t, 40 * MIB, 9, ENC_RAW, true);
    test_store_init(&s, &t, 1);
    struct ckpt_chunk *chunk = test_get(&c, &s, 1, 0);
    ckpt_io_counters(&before, &reads);
    for (size_t off = 0; off < 9; off++)
        for (size_t len = 0; len < 12; len++)
            CHECK(test_read(&c, chunk, &t, 30 * MIB + off, len, false) == 0);
    CHECK(test_read(&c, chunk, &t, 40 * MIB - 3, 3, false) == 0 && test_read(&c, chunk, &t, 0, 100, false) == 0);
    ckpt_io_counters(&bytes, &reads);
    CHECK(bytes - before < 2000);
    CHECK(test_read(&c, chunk, &t, 5, 39 * MIB, true) == 0);
    ckpt_chunk_put(c.cache, chunk);
    ckpt_cache_stats(c.cache, &st);
    CHECK(st.memory < 10000 && !st.decoded);
    test_cache_free(&c);
    test_store_clear(&s);
}

int main(void)
{
    char top[] = FILES_TEMPLATE;
    ckpt_log_setup(CKPT_LOG_ERROR, 0); /* a spill folder that fails is warned of */
    files_begin(top);
    test_sizes(top);
    test_checksums(top);
    test_damage(top);
    test_spill_trouble(top);
    test_in_order(top);
    test_least_recently_used(top);
    test_moved_out(top);
    test_map(top);
    test_drop_tree(top);
    CHECK(rmdir(top) == 0); /* spill files have no names */
    test_other_order();
    return 0;
}
