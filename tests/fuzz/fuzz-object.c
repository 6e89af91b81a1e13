/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Input: a byte of flags, then two bytes, then an object's file. With flag 1 the last bytes, as many as the two say,
 * are its sums. With flag 2 checksums are put right first, so that what is behind them is reached. The object is stored
 * under the hash that its footer, or the header of its sums, has. It opens and is read, or fails with a reason; the
 * same range reads the same twice.
 */
#include "core/base/log.h"
#include "core/base/util.h"
#include "core/object/object_file.h"

#include <stdio.h>
#include <xxhash.h>

#define READ_MAX ((uint64_t)1 << 20)

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void expect(bool ok, const char *what)
{
    if (!ok) {
        fprintf(stderr, "%s\n", what);
        abort();
    }
}

static void put_sum(uint8_t *from, uint8_t *at)
{
    uint64_t sum = XXH3_64bits(from, (size_t)(at - from));
    memcpy(at, &sum, sizeof sum);
}

/* Of the footer, the index and the chunks, as far as they are where they say. */
static void mend_object(uint8_t *p, size_t len)
{
    if (len < CKPT_OBJECT_FOOTER + 8)
        return;
    uint8_t *footer = p + len - CKPT_OBJECT_FOOTER, *index_sum = footer - 8;
    put_sum(footer, footer + 88);
    uint64_t index = ckpt_le64(footer + 40);
    if (index >= (uint64_t)(index_sum - p) || ((uint64_t)(index_sum - p) - index) % 8)
        return;
    put_sum(p + index, index_sum);
    for (uint8_t *w = p + index; w + 16 <= index_sum; w += 8) {
        uint64_t begin = ckpt_le64(w), end = ckpt_le64(w + 8);
        if (begin < end && end <= index && end - begin > 8)
            put_sum(p + begin, p + end - 8);
    }
}

static void look_at(struct ckpt_file *f, const uint8_t *raw)
{
    uint64_t size = f->st.size, n = CKPT_MIN(size, READ_MAX);
    uint8_t *all = malloc(n + 1), part[100];
    expect(all, "no memory");
    ssize_t got = ckpt_file_read(f, all, n, 0);
    expect(got < 0 || (uint64_t)got == n, "a read is short");
    if (raw && got > 0)
        expect(!memcmp(all, raw, n), "a raw object reads as something else");
    for (uint64_t i = 0; i < 8; i++) {
        uint64_t off = size / 8 * i + i;
        ssize_t want = off >= size ? 0 : (ssize_t)CKPT_MIN((uint64_t)sizeof part, size - off);
        ssize_t more = ckpt_file_read(f, part, sizeof part, off);
        expect(more < 0 || more == want, "a read is short");
        if (got > 0 && more > 0 && off + (uint64_t)more <= n)
            expect(!memcmp(all + off, part, (size_t)more), "a range reads differently");
    }
    free(all);
}

static void open_and_look(struct ckpt_backend *b, const uint8_t sha256[CKPT_SHA256], const uint8_t *stored,
                          size_t stored_len)
{
    static struct ckpt_pool *pool; /* threads are slow to make */
    struct ckpt_pins *pins = NULL;
    struct ckpt_cache *cache;
    struct ckpt_file *f;
    struct ckpt_err err = {0};
    expect((pool || ckpt_pool_new(1, &pool) == 0) && ckpt_pins_new(b, &pins) == 0, "no threads");
    expect(ckpt_cache_new(&(struct ckpt_cache_options){8 << 20, 0, "/tmp"}, pool, &cache) == 0, "no cache");
    int r = ckpt_object_open(pins, cache, sha256, UINT64_MAX, &f, &err);
    expect(r == 0 || (err.code == -r && *err.text), "an object fails without a reason");
    if (r == 0) {
        look_at(f, !strcmp(f->ops->name, "raw object") ? stored : NULL);
        expect(strcmp(f->ops->name, "raw object") || f->st.size == stored_len, "a raw object has another length");
        ckpt_file_unref(f);
    }
    struct ckpt_cache_stats st; /* what is decoded ahead holds its chunk: wait for it */
    do
        ckpt_cache_stats(cache, &st);
    while (st.memory && usleep(100) == 0);
    ckpt_cache_free(cache);
    ckpt_pins_unref(pins);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size < 3)
        return 0;
    bool raw = data[0] & 1, mend = data[0] & 2;
    size_t sums_len = raw ? CKPT_MIN((size_t)ckpt_le16(data + 1), size - 3) : 0, len = size - 3 - sums_len;
    uint8_t sha256[CKPT_SHA256] = {0}, *stored = malloc(len + 1), *sums = malloc(sums_len + 1);
    char path[CKPT_OBJECT_PATH], name[2 * CKPT_OBJECT_PATH];
    struct ckpt_backend *b = ckpt_backend_new_memory();
    expect(stored && sums && b, "no memory");
    memcpy(stored, data + 3, len);
    memcpy(sums, data + 3 + len, sums_len);
    if (mend)
        mend_object(stored, len);
    if (mend && sums_len >= 8)
        put_sum(sums, sums + sums_len - 8);
    if (raw && sums_len >= CKPT_SUMS_HEADER)
        memcpy(sha256, sums + 24, CKPT_SHA256);
    else if (len >= CKPT_OBJECT_FOOTER)
        memcpy(sha256, stored + len - CKPT_OBJECT_FOOTER + 48, CKPT_SHA256);
    ckpt_log_setup(CKPT_LOG_ERROR, 0);
    ckpt_object_path(sha256, path);
    snprintf(name, sizeof name, "objects/%s", path);
    expect(ckpt_backend_memory_add(b, name, stored, len) == 0, "no memory");
    snprintf(name, sizeof name, "objects/%s.sums", path);
    expect(!raw || ckpt_backend_memory_add(b, name, sums, sums_len) == 0, "no memory");
    open_and_look(b, sha256, stored, len);
    ckpt_backend_unref(b);
    free(stored);
    free(sums);
    return 0;
}
