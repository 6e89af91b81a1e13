/* SPDX-License-Identifier: Apache-2.0 */
/* Objects written and read back, of every codec and size; what is damaged, cut off or forged; what several readers
 * share. */
#include "tests/unit/objects.h"

#include "core/base/log.h"

#define KIB ((uint64_t)1 << 10)
#define MIB ((uint64_t)1 << 20)

static uint64_t seed = 11;

static struct ckpt_file *open_object(struct test_objects *o, struct ckpt_pins *pins, const struct test_object *t)
{
    struct ckpt_file *f = NULL;
    struct ckpt_err err = {0};
    if (ckpt_object_open(pins, o->cache, t->sha256, t->size, &f, &err) < 0)
        fprintf(stderr, "%s\n", err.text);
    CHECK(f && f->st.size == t->size && f->st.type == CKPT_FT_FILE);
    return f;
}

static void check_read(struct ckpt_file *f, const struct test_object *t, uint64_t off, size_t len)
{
    CKPT_AUTOFREE uint8_t *buf = malloc(len + 1);
    buf[len] = 0xee;
    size_t want = off >= t->size ? 0 : (size_t)CKPT_MIN((uint64_t)len, t->size - off);
    CHECK(ckpt_file_read(f, buf, len, off) == (ssize_t)want);
    CHECK(memcmp(buf, t->data + CKPT_MIN(off, (uint64_t)t->size), want) == 0 && buf[len] == 0xee);
}

/* --- names --- */

static void test_names(void)
{
    uint8_t sha[CKPT_SHA256], back[CKPT_SHA256];
    char hex[CKPT_HEX], path[CKPT_OBJECT_PATH], bad[CKPT_HEX + 1];
    for (unsigned i = 0; i < CKPT_SHA256; i++)
        sha[i] = (uint8_t)(i * 37 + 9);
    ckpt_hash_hex(sha, hex);
    CHECK(strlen(hex) == 64 && !strncmp(hex, "092e53", 6));
    CHECK(ckpt_hash_parse(hex, back) && !memcmp(sha, back, sizeof sha));
    ckpt_object_path(sha, path);
    CHECK(strlen(path) == 67 && !strncmp(path, "09/092e53", 9));
    for (unsigned i = 0; i < 64; i++) { /* too short, or a wrong digit */
        static const char wrong[] = {'\0', 'A', 'g', '/', ':', '`', ' '};
        for (unsigned k = 0; k < sizeof wrong; k++) {
            memcpy(bad, hex, sizeof hex);
            bad[i] = wrong[k];
            CHECK(!ckpt_hash_parse(bad, back));
        }
    }
    snprintf(bad, sizeof bad, "%s0", hex);
    CHECK(!ckpt_hash_parse(bad, back));
    CHECK(!memcmp(sha, back, sizeof sha));

    enum ckpt_object_codec codec;
    for (unsigned i = 0; i < CKPT_OBJECT_CODECS; i++)
        CHECK(ckpt_object_codec_by_name(ckpt_object_codec_name((enum ckpt_object_codec)i), &codec) && codec == i);
    CHECK(ckpt_object_codec_by_name("auto", &codec) && codec == CKPT_OBJECT_AUTO);
    CHECK_STR(ckpt_object_codec_name(CKPT_OBJECT_AUTO), "auto");
    CHECK_STR(ckpt_object_codec_name((enum ckpt_object_codec)77), "?");
    CHECK(!ckpt_object_codec_by_name("zstd", &codec) && !ckpt_object_codec_by_name("", &codec));
}

/* --- hashes --- */

static void test_hash(void)
{
    static const size_t sizes[] = {0, 1, 127 * 1024, 128 * 1024, MIB - 1, MIB, MIB + 1, 3 * MIB + 5};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        size_t size = sizes[i];
        uint8_t *data = test_weights(size + 7, 3), sha[CKPT_SHA256], want[CKPT_SHA256];
        CKPT_AUTOFD int fd = test_memory_file(data, size + 7);
        struct ckpt_buf sums = CKPT_BUF_INIT;
        struct ckpt_err err = {0};
        atomic_bool cancel = false;
        CHECK(EVP_Digest(data + 7, size, want, NULL, EVP_sha256(), NULL));
        ckpt_buf_addc(&sums, 'x'); /* what is there stays */
        CHECK(ckpt_object_hash(fd, 7, size, &cancel, sha, &sums, &err) == 0 && !memcmp(sha, want, sizeof sha));
        CHECK(sums.len == 1 + (size + MIB - 1) / MIB * 8);
        for (size_t k = 0; k * MIB < size; k++)
            CHECK(ckpt_le64(sums.data + 1 + k * 8) == XXH3_64bits(data + 7 + k * MIB, CKPT_MIN(size - k * MIB, MIB)));
        CHECK(ckpt_object_hash(fd, 7, size, NULL, sha, NULL, &err) == 0 && !memcmp(sha, want, sizeof sha));
        CHECK(ckpt_object_hash(fd, 7, size + 1, NULL, sha, NULL, &err) == -EBADMSG && err.text[0]);
        cancel = true;
        CHECK(ckpt_object_hash(fd, 7, size, &cancel, sha, NULL, &err) == (size ? -ECANCELED : 0));
        ckpt_buf_clear(&sums);
        free(data);
    }
}

/* --- round trips --- */

struct kind {
    enum ckpt_object_codec codec;
    unsigned typesize;
};
static const struct kind kinds[] = {{CKPT_OBJECT_NONE, 0},  {CKPT_OBJECT_LZ4, 0},   {CKPT_OBJECT_BLOSC, 4},
                                    {CKPT_OBJECT_BLOSC, 2}, {CKPT_OBJECT_BLOSC, 1}, {CKPT_OBJECT_BLOSC, 3},
                                    {CKPT_OBJECT_BLOSC, 16}};
#define KINDS (sizeof kinds / sizeof *kinds)

static void check_object(struct test_objects *o, const struct test_object *t, const struct kind *kind)
{
    struct ckpt_pins *pins = test_object_store(t);
    struct ckpt_file *f = open_object(o, pins, t), *stored;
    struct ckpt_object_info info;
    struct ckpt_err err = {0};
    int fd;
    for (int i = 0; i < 30; i++) {
        uint64_t off = test_below(&seed, t->size + 10);
        check_read(f, t, off, (size_t)test_below(&seed, t->size + 10));
        check_read(f, t, off, (size_t)test_below(&seed, 100));
    }
    check_read(f, t, 0, t->size);
    check_read(f, t, 0, t->size + 1);
    check_read(f, t, t->size, 1);
    check_read(f, t, UINT64_MAX, 5);
    check_read(f, t, 0, 0);
    CHECK(!ckpt_object_raw_fd(f, &fd)); /* not of a plain file */
    ckpt_file_unref(f);

    CHECK(ckpt_pins_open(pins, t->path, &stored) == 0);
    CHECK(ckpt_object_stat(stored, t->sha256, UINT64_MAX, &info, &err) == 0);
    CHECK(info.size == t->size && info.stored == t->stored_len && info.codec == kind->codec);
    CHECK(!memcmp(info.sha256, t->sha256, CKPT_SHA256));
    CHECK(ckpt_object_stat(stored, t->sha256, t->size + 1, &info, &err) == -EBADMSG);
    CHECK(ckpt_object_open(pins, o->cache, t->sha256, t->size + 1, &f, &err) == -EBADMSG &&
          strstr(err.text, t->path + 11));
    CHECK(ckpt_object_open(pins, o->cache, t->sha256, UINT64_MAX, &f, &err) == 0);
    check_read(f, t, 0, t->size);
    ckpt_file_unref(f);
    ckpt_file_unref(stored);
    ckpt_pins_unref(pins);
}

static void test_round_trips(void)
{
    static const uint64_t chunks[] = {4 * KIB, 64 * KIB, MIB};
    struct test_objects o = test_objects_begin(16 * MIB);
    for (size_t k = 0; k < KINDS; k++)
        for (size_t c = 0; c < 3; c++) {
            uint64_t n = chunks[c];
            uint64_t sizes[] = {0, 1, 95, 96, 100, n - 1, n, n + 1, 2 * n, 5 * n + 1234};
            if (kinds[k].codec == CKPT_OBJECT_NONE && n != MIB)
                continue;
            for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
                struct test_object t;
                test_object_init(&t, test_weights(sizes[i], i + 1), sizes[i], kinds[k].codec, kinds[k].typesize, n);
                CHECK(kinds[k].codec != CKPT_OBJECT_BLOSC || kinds[k].typesize != 4 || sizes[i] < 64 * KIB ||
                      t.stored_len < sizes[i] * 8 / 10);
                check_object(&o, &t, &kinds[k]);
                test_object_clear(&t);
            }
        }
    test_objects_end(&o);
}

/* Bytes that no codec makes smaller, and a part of a file. */
static void test_encode(void)
{
    struct test_objects o = test_objects_begin(16 * MIB);
    struct ckpt_err err = {0};
    struct test_object t;
    uint64_t stored;
    for (size_t k = 0; k < KINDS; k++) {
        size_t size = 200001;
        uint8_t *data = malloc(size);
        for (size_t i = 0; i < size; i++)
            data[i] = (uint8_t)(test_random(&seed) >> 33);
        test_object_init(&t, data, size, kinds[k].codec, kinds[k].typesize, 64 * KIB);
        CHECK(t.stored_len < size + 2000);
        check_object(&o, &t, &kinds[k]);
        CKPT_AUTOFD int in = test_memory_file(data, size), out = memfd_create("out", 0);
        atomic_bool cancel = true;
        enum ckpt_object_codec codec = kinds[k].codec ? kinds[k].codec : CKPT_OBJECT_LZ4;
        CHECK(test_object_encode(in, 0, size + 1, codec, 4, 64 * KIB, t.sha256, out, NULL, &stored, &err) == -EBADMSG);
        CHECK(test_object_encode(in, 0, size, codec, 4, 64 * KIB, t.sha256, out, &cancel, &stored, &err) == -ECANCELED);
        CHECK(test_object_encode(in, 0, size, codec, 4, 65000, t.sha256, out, NULL, &stored, &err) == -EINVAL);
        CHECK(test_object_encode(in, 0, size, CKPT_OBJECT_NONE, 4, 64 * KIB, t.sha256, out, NULL, &stored, &err) ==
              -EINVAL);
        CHECK(test_object_encode(in, 0, size, codec, 4, 64 * KIB, t.sha256, -1, NULL, &stored, &err) == -EBADF &&
              err.text[0]);
        CHECK(ftruncate(out, 0) == 0 &&
              test_object_encode(in, 1000, 100000, codec, 4, 64 * KIB, t.sha256, out, NULL, &stored, &err) == 0);
        test_object_clear(&t);
    }
    test_objects_end(&o);
}

static void test_sample(void)
{
    static const size_t sizes[] = {1, 1000, 64 * 1024, 100000, 3 * MIB, 9 * MIB + 1};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        uint8_t *data = test_weights(sizes[i], 5);
        CKPT_AUTOFD int fd = test_memory_file(data, sizes[i]);
        enum ckpt_object_codec got = ckpt_object_sample(fd, 0, sizes[i], CKPT_OBJECT_BLOSC, 4);
        CHECK(got == CKPT_OBJECT_BLOSC || sizes[i] <= 1000); /* so little is not made smaller */
        CHECK(ckpt_object_sample(fd, 0, sizes[i], CKPT_OBJECT_NONE, 4) == CKPT_OBJECT_NONE);
        CHECK(ckpt_object_sample(fd, 0, sizes[i] + 1, CKPT_OBJECT_LZ4, 1) == CKPT_OBJECT_NONE); /* cannot be read */
        for (size_t k = 0; k < sizes[i]; k++)
            data[k] = (uint8_t)(test_random(&seed) >> 20);
        CHECK(pwrite(fd, data, sizes[i], 0) == (ssize_t)sizes[i]);
        CHECK(ckpt_object_sample(fd, 0, sizes[i], CKPT_OBJECT_BLOSC, 4) == CKPT_OBJECT_NONE);
        CHECK(ckpt_object_sample(fd, 0, sizes[i], CKPT_OBJECT_LZ4, 1) == CKPT_OBJECT_NONE);
        free(data);
    }
}

/* --- damage --- */

/* All of it, in one read and in small ones; returns the first error, or 0 if every byte is right. Wrong bytes end the
 * test. */
static int read_damaged(struct test_objects *o, const struct test_object *t, uint64_t size)
{
    struct ckpt_pins *pins = test_object_store(t);
    struct ckpt_file *f;
    struct ckpt_err err = {0};
    uint8_t buf[16384];
    int r = ckpt_object_open(pins, o->cache, t->sha256, size, &f, &err);
    CHECK(r == 0 || (r == -err.code && err.text[0]));
    ckpt_pins_unref(pins);
    if (r < 0)
        return r;
    CHECK(t->size <= sizeof buf && f->st.size == t->size);
    for (int way = 0; way < 2; way++)
        for (size_t off = 0, step = way ? 777 : t->size; off < t->size; off += step) {
            size_t want = CKPT_MIN(step, t->size - off);
            memset(buf, 0xee, sizeof buf);
            ssize_t n = ckpt_file_read(f, buf, want, off);
            CHECK(n < 0 || (n == (ssize_t)want && !memcmp(buf, t->data + off, want)));
            r = n < 0 && r == 0 ? (int)n : r;
        }
    ckpt_file_unref(f);
    CHECK(r == 0 || r == -EBADMSG || r == -EUCLEAN || r == -EOPNOTSUPP);
    return r;
}

static void test_flips(void)
{
    struct test_objects o = test_objects_begin(16 * MIB);
    for (size_t k = 0; k < 3; k++)
        for (unsigned file = 0; file < (kinds[k].codec ? 1 : 2); file++) {
            struct test_object t;
            test_object_init(&t, test_weights(9001, 8), 9001, kinds[k].codec, kinds[k].typesize, 4 * KIB);
            CHECK(read_damaged(&o, &t, t.size) == 0);
            uint8_t *bytes = file ? t.sums : t.stored;
            size_t len = file ? t.sums_len : t.stored_len;
            for (size_t i = 0; i < len; i++) {
                static const uint8_t flips[] = {0x01, 0x80, 0xff};
                for (unsigned b = 0; b < 3; b++) {
                    bytes[i] ^= flips[b];
                    CHECK(read_damaged(&o, &t, b == 1 ? UINT64_MAX : t.size) < 0); /* every byte is under some check */
                    bytes[i] ^= flips[b];
                }
            }
            test_object_clear(&t);
        }
    test_objects_end(&o);
}

static void test_truncation(void)
{
    struct test_objects o = test_objects_begin(16 * MIB);
    for (size_t k = 0; k < 3; k++)
        for (unsigned file = 0; file < (kinds[k].codec ? 1 : 2); file++)
            for (unsigned known = 0; known < 2; known++) {
                struct test_object t;
                test_object_init(&t, test_weights(5000, 8), 5000, kinds[k].codec, kinds[k].typesize, 4 * KIB);
                size_t *len = file ? &t.sums_len : &t.stored_len, whole = *len;
                for (*len = 0; *len < whole; ++*len)
                    CHECK(read_damaged(&o, &t, known ? t.size : UINT64_MAX) < 0);
                CHECK(read_damaged(&o, &t, t.size) == 0);
                test_object_clear(&t);
            }
    test_objects_end(&o);
}

/* A footer and an index whose checksums are right, and whose numbers are not. */
struct forgery {
    uint32_t footer; /* offset of a number in the footer, or 0 */
    bool wide;       /* of 8 bytes */
    int word;        /* of the index, or -1 */
    uint64_t value;
    int code;
};

static void forge(struct test_object *t, const struct forgery *f)
{
    uint8_t *footer = t->stored + t->stored_len - CKPT_OBJECT_FOOTER;
    uint64_t index = ckpt_le64(footer + 40), chunks = ckpt_le64(footer + 32), sum;
    if (f->footer)
        memcpy(footer + f->footer, &f->value, f->wide ? 8 : 4);
    if (f->word >= 0)
        memcpy(t->stored + index + (size_t)f->word * 8, &f->value, 8);
    sum = XXH3_64bits(t->stored + index, (chunks + 1) * 8);
    memcpy(t->stored + index + (chunks + 1) * 8, &sum, 8);
    sum = XXH3_64bits(footer, 88);
    memcpy(footer + 88, &sum, 8);
}

static void test_forgeries(void)
{
    static const struct forgery forgeries[] = {
        {0, 0, -1, 0, 0},
        {8, 0, -1, 2, -EOPNOTSUPP},  /* version */
        {12, 0, -1, 0, -EOPNOTSUPP}, /* codec */
        {12, 0, -1, 3, -EOPNOTSUPP}, /* sparse, of chunks that are too small */
        {12, 0, -1, 4, -EOPNOTSUPP},
        {12, 0, -1, 1, -EBADMSG},    /* blosc is not lz4 */
        {16, 0, -1, 0, -EOPNOTSUPP}, /* log2 of a chunk */
        {16, 0, -1, 25, -EOPNOTSUPP},
        {16, 0, -1, 0xffffffff, -EOPNOTSUPP},
        {16, 0, -1, 13, -EUCLEAN},
        {20, 0, -1, 0, -EUCLEAN}, /* typesize */
        {20, 0, -1, 256, -EUCLEAN},
        {24, 1, -1, 10001, -EBADMSG}, /* decoded size: of the last chunk */
        {24, 1, -1, 9000, -EBADMSG},
        {24, 1, -1, 20000, -EUCLEAN},
        {24, 1, -1, UINT64_MAX, -EUCLEAN},
        {24, 1, -1, (uint64_t)INT64_MAX + 1, -EUCLEAN},
        {32, 1, -1, 2, -EUCLEAN}, /* chunks */
        {32, 1, -1, UINT64_MAX, -EUCLEAN},
        {40, 1, -1, 0, -EUCLEAN}, /* where the index is */
        {40, 1, -1, UINT64_MAX, -EUCLEAN},
        {40, 1, -1, UINT64_MAX - 100, -EUCLEAN},
        {80, 1, -1, 1, -EOPNOTSUPP}, /* reserved */
        {0, 0, 0, 1, -EUCLEAN},      /* the index */
        {0, 0, 1, 0, -EUCLEAN},
        {0, 0, 1, 8, -EUCLEAN},
        {0, 0, 1, 9, -EUCLEAN}, /* then the second is too long */
        {0, 0, 2, UINT64_MAX, -EUCLEAN},
        {0, 0, 2, 4000, -EUCLEAN},
        {0, 0, 3, 0, -EUCLEAN},
        {0, 0, 3, 12000, -EUCLEAN},
    };
    struct test_objects o = test_objects_begin(16 * MIB);
    for (size_t i = 0; i < sizeof forgeries / sizeof *forgeries; i++) {
        struct test_object t;
        uint8_t *data = malloc(10000);
        for (size_t k = 0; k < 10000; k++)
            data[k] = (uint8_t)(test_random(&seed) >> 30);
        test_object_init(&t, data, 10000, CKPT_OBJECT_BLOSC, 4, 4 * KIB);
        forge(&t, &forgeries[i]);
        uint64_t size = forgeries[i].footer == 24 ? forgeries[i].value : 10000;
        struct ckpt_pins *pins = test_object_store(&t);
        struct ckpt_file *f;
        struct ckpt_err err = {0};
        int r = ckpt_object_open(pins, o.cache, t.sha256, size, &f, &err);
        if (r == 0) { /* a chunk will show it */
            uint8_t buf[20000];
            ssize_t n = ckpt_file_read(f, buf, sizeof buf, 0);
            r = n < 0 ? (int)n : 0;
            ckpt_file_unref(f);
        }
        CHECK(r == forgeries[i].code);
        ckpt_pins_unref(pins);
        test_object_clear(&t);
    }
    test_objects_end(&o);
}

/* --- sparse objects --- */

#define SPARSE_SIZE (3 * 1024ull * MIB + 5)

/* Data at a few places of a file of 3 GiB; the rest is a hole, but where zeros are written. */
static void write_sparse(int fd, bool zeros)
{
    static const uint64_t places[] = {0, 5 * MIB + 7, 6 * MIB - 2, 2000 * MIB, SPARSE_SIZE - 3};
    CHECK(ftruncate(fd, SPARSE_SIZE) == 0);
    for (size_t i = 0; i < sizeof places / sizeof *places; i++)
        CHECK(pwrite(fd, "abc", 3, (off_t)places[i]) == 3);
    CKPT_AUTOFREE uint8_t *none = calloc(1, 3 * MIB);
    CHECK(!zeros || pwrite(fd, none, 3 * MIB, 100 * MIB) == 3 * MIB);
}

static struct ckpt_file *open_sparse(struct test_objects *o, const char *top, const uint8_t name[CKPT_SHA256],
                                     struct ckpt_pins **ret)
{
    struct ckpt_file *f;
    struct ckpt_err err = {0};
    *ret = test_object_pins(top);
    CHECK(ckpt_object_open(*ret, o->cache, name, SPARSE_SIZE, &f, &err) == 0 && f->st.size == SPARSE_SIZE);
    return f;
}

/* Its bytes are those of the file, and its holes are told. */
static void check_sparse(struct ckpt_file *f, int in)
{
    CKPT_AUTOFREE uint8_t *a = malloc(2 * MIB), *b = malloc(2 * MIB);
    for (int i = 0; i < 300; i++) {
        uint64_t off = i % 2 ? test_below(&seed, SPARSE_SIZE) : test_below(&seed, 8 * MIB);
        size_t len = (size_t)test_below(&seed, 2 * MIB);
        ssize_t n = ckpt_file_read(f, a, len, off);
        CHECK(n == pread(in, b, len, (off_t)off) && (n <= 0 || !memcmp(a, b, (size_t)n)));
    }
    uint64_t end = 0, data = 0, runs = 0;
    for (uint64_t off = 0; off < SPARSE_SIZE; off = end, runs++) {
        bool is_data = ckpt_file_data(f, off, &end);
        CHECK(end > off && end <= SPARSE_SIZE);
        data += is_data ? end - off : 0;
    }
    CHECK(runs == 8 && data == 4 * MIB + 5);
}

static void check_sparse_forgeries(struct test_objects *o, int out, uint64_t stored, const uint8_t name[CKPT_SHA256],
                                   const char *top)
{
    static const struct {
        unsigned word;
        uint64_t value;
        int code;
    } forgeries[] = {{6, 0, 0}, {6, 5, -EUCLEAN}, {7, 0, -EUCLEAN}, {10, 3073, -EUCLEAN}, {10, UINT64_MAX, -EUCLEAN},
                     {7, 1, 0}};
    for (size_t i = 0; i < sizeof forgeries / sizeof *forgeries; i++) {
        CKPT_AUTOFREE uint8_t *all = malloc(stored);
        CHECK(pread(out, all, stored, 0) == (ssize_t)stored);
        uint8_t *index = all + ckpt_le64(all + stored - CKPT_OBJECT_FOOTER + 40),
                *end = all + stored - CKPT_OBJECT_FOOTER - 8;
        CHECK(end - index == 11 * 8); /* of five chunks: six offsets, and five numbers */
        memcpy(index + 8 * forgeries[i].word, &forgeries[i].value, 8);
        uint64_t sum = XXH3_64bits(index, (size_t)(end - index));
        memcpy(end, &sum, 8);
        char path[CKPT_OBJECT_PATH], full[128];
        ckpt_object_path(name, path);
        snprintf(full, sizeof full, "forged/objects/%s", path);
        file_write_bytes(top, full, all, stored);
        struct ckpt_pins *pins = test_object_pins(file_path(top, "forged"));
        struct ckpt_file *f;
        struct ckpt_err err = {0};
        int r = ckpt_object_open(pins, o->cache, name, SPARSE_SIZE, &f, &err);
        CHECK(r == forgeries[i].code && (r == 0 || *err.text));
        if (r == 0)
            ckpt_file_unref(f);
        ckpt_pins_unref(pins);
    }
}

static void test_sparse(const char *top)
{
    struct test_objects o = test_objects_begin(16 * MIB);
    struct ckpt_buf present = CKPT_BUF_INIT, other = CKPT_BUF_INIT;
    struct ckpt_err err = {0};
    struct ckpt_pins *pins;
    uint8_t name[CKPT_SHA256], again[CKPT_SHA256];
    uint64_t stored;
    char path[CKPT_OBJECT_PATH], full[128];
    file_write(top, "sparse", "");
    file_write(top, "zeros", "");
    CKPT_AUTOFD int in = open(file_path(top, "sparse"), O_RDWR), zeros = open(file_path(top, "zeros"), O_RDWR);
    write_sparse(in, false);
    write_sparse(zeros, true);
    CHECK(ckpt_object_wants_sparse(SPARSE_SIZE, 5 * MIB) && !ckpt_object_wants_sparse(1024 * MIB, 4096) &&
          !ckpt_object_wants_sparse(5, 4096));
    CHECK(ckpt_object_hash_sparse(in, SPARSE_SIZE, NULL, name, &present, &err) == 0 && present.len == 5 * 16);
    CHECK(ckpt_object_hash_sparse(zeros, SPARSE_SIZE, NULL, again, &other, &err) == 0 &&
          !memcmp(name, again, sizeof name));
    CHECK(other.len == present.len && !memcmp(other.data, present.data, other.len));
    CHECK(ckpt_object_hash_sparse(in, SPARSE_SIZE - 1, NULL, again, &other, &err) == 0 &&
          memcmp(name, again, sizeof name));
    struct ckpt_object_input sparse = {
        .fd = in, .len = SPARSE_SIZE, .typesize = 4, .sha256 = name, .present = &present};
    atomic_bool cancel = true;
    CHECK(ckpt_object_hash_sparse(in, SPARSE_SIZE, &cancel, again, &other, &err) == -ECANCELED);

    ckpt_object_path(name, path);
    snprintf(full, sizeof full, "objects/%s", path);
    file_parents(top, full);
    CKPT_AUTOFD int out = open(file_path(top, full), O_RDWR | O_CREAT, 0644);
    CHECK(ckpt_object_encode_sparse(&sparse, out, &stored, &err) == 0 && stored < 100 * KIB);
    struct ckpt_file *f = open_sparse(&o, top, name, &pins);
    check_sparse(f, in);
    ckpt_file_unref(f);
    ckpt_pins_unref(pins);
    check_sparse_forgeries(&o, out, stored, name, top);

    CHECK(pwrite(in, "x", 1, 2000 * MIB) == 1); /* it is not what was hashed any more */
    CHECK(ckpt_object_encode_sparse(&sparse, out, &stored, &err) == -EBUSY);
    ckpt_buf_clear(&present);
    ckpt_buf_clear(&other);
    test_objects_end(&o);
}

/* --- files and readers --- */

static void test_places(const char *top)
{
    struct test_objects o = test_objects_begin(16 * MIB);
    struct test_object t;
    struct ckpt_file *f;
    struct ckpt_err err = {0};
    for (size_t k = 0; k < 2; k++) {
        char trash[160];
        test_object_init(&t, test_weights(3 * MIB + 5, k + 40), 3 * MIB + 5, kinds[k].codec, 4, MIB);
        struct ckpt_pins *pins = test_object_pins(top), *late = test_object_pins(top);
        CHECK(ckpt_object_open(pins, o.cache, t.sha256, t.size, &f, &err) == -ENOENT && strstr(err.text, t.path + 11));
        test_object_write(&t, top);
        f = open_object(&o, pins, &t);
        check_read(f, &t, 5, 10);
        struct ckpt_file *again = open_object(&o, late,
                                              &t); /* the same object: what one has read, the other need not */
        CHECK(again == f);
        ckpt_file_unref(again);
        ckpt_pins_unref(late);
        CHECK(ckpt_object_open(pins, o.cache, t.sha256, 7, &again, &err) == -EBADMSG);
        int fd = -1;
        CHECK(ckpt_object_raw_fd(f, &fd) == (k == 0) && (k || lseek(fd, 0, SEEK_END) == (off_t)t.size));

        /* Moved to the trash: found there. Gone: who has it open keeps it. */
        snprintf(trash, sizeof trash, "trash/objects/%.64s", t.path + 11);
        file_parents(top, trash);
        file_move(top, t.path, trash);
        if (t.sums) {
            char sums[200];
            snprintf(sums, sizeof sums, "%s.sums", trash);
            file_move(top, t.sums_path, sums);
            late = test_object_pins(top);
            again = open_object(&o, late, &t);
            check_read(again, &t, 0, t.size);
            ckpt_file_unref(again);
            ckpt_pins_unref(late);
            file_remove(top, sums);
        }
        file_remove(top, trash);
        check_read(f, &t, 0, t.size);
        ckpt_file_unref(f);
        f = open_object(&o, pins, &t); /* still pinned */
        check_read(f, &t, MIB, MIB);
        ckpt_file_unref(f);
        ckpt_pins_unref(pins);
        late = test_object_pins(top);
        CHECK(ckpt_object_open(late, o.cache, t.sha256, t.size, &f, &err) == -ENOENT);
        ckpt_pins_unref(late);
        test_object_clear(&t);
    }
    test_objects_end(&o);
}

/* Every stored byte is read once, and counted once. */
static void test_counts(const char *top)
{
    for (size_t k = 0; k < 3; k++) {
        struct test_objects o = test_objects_begin(32 * MIB);
        struct test_object t;
        struct ckpt_cache_stats st;
        uint64_t before, after, calls;
        test_object_init(&t, test_weights(9 * MIB + 5, k + 50), 9 * MIB + 5, kinds[k].codec, 4, MIB);
        test_object_write(&t, top);
        struct ckpt_pins *pins = test_object_pins(top);
        ckpt_io_counters(&before, &calls);
        struct ckpt_file *f = open_object(&o, pins, &t);
        for (uint64_t off = 0; off < t.size; off += 128 * KIB)
            check_read(f, &t, off, 128 * KIB);
        ckpt_io_counters(&after, &calls);
        CHECK(after - before <= t.stored_len + (k ? 1000 : t.size + 1000)); /* raw: for its check, and for the reader */
        ckpt_cache_stats(o.cache, &st);
        CHECK(st.decoded == (k ? 10 : 0));
        ckpt_io_counters(&before, &calls);
        check_read(f, &t, 0, t.size);
        ckpt_io_counters(&after, &calls);
        CHECK(after - before == (k ? 0 : t.size));
        ckpt_file_unref(f);
        f = open_object(&o, pins, &t); /* raw and whole: read once for both */
        ckpt_io_counters(&before, &calls);
        check_read(f, &t, 0, t.size);
        ckpt_io_counters(&after, &calls);
        CHECK(after - before <= t.stored_len);
        ckpt_file_unref(f);
        ckpt_pins_unref(pins);
        test_object_clear(&t);
        test_objects_end(&o);
    }
}

struct reader {
    struct test_objects *o;
    struct ckpt_pins *pins;
    const struct test_object *t;
    size_t count;
    uint64_t seed;
};

static void *run_reader(void *arg)
{
    struct reader *r = arg;
    for (int i = 0; i < 25; i++) {
        const struct test_object *t = &r->t[test_below(&r->seed, r->count)];
        struct ckpt_file *f = open_object(r->o, r->pins, t);
        uint64_t off = test_below(&r->seed, t->size);
        for (int k = 0; k < 20; k++) {
            check_read(f, t, off, (size_t)test_below(&r->seed, 300 * KIB));
            off = k % 3 ? off + 200 * KIB : test_below(&r->seed, t->size);
        }
        ckpt_file_unref(f);
    }
    return NULL;
}

static void test_threads(const char *top)
{
    struct test_objects o = test_objects_begin(4 * MIB); /* less than they would like */
    struct test_object t[3];
    struct ckpt_pins *pins = test_object_pins(top);
    pthread_t threads[6];
    struct reader readers[6];
    for (size_t k = 0; k < 3; k++) {
        size_t size = (size_t)(3 * k + 1) * MIB + 77;
        test_object_init(&t[k], test_weights(size, k + 60), size, kinds[k].codec, 4, k == 1 ? 64 * KIB : MIB);
        test_object_write(&t[k], top);
    }
    for (size_t i = 0; i < 6; i++) {
        readers[i] = (struct reader){&o, pins, t, 3, i + 100};
        CHECK(pthread_create(&threads[i], NULL, run_reader, &readers[i]) == 0);
    }
    for (size_t i = 0; i < 6; i++)
        pthread_join(threads[i], NULL);
    ckpt_pins_unref(pins);
    for (size_t k = 0; k < 3; k++)
        test_object_clear(&t[k]);
    test_objects_end(&o);
}

/* --- chunks of files that are made of chunks --- */

static int locate_in(void *arg, const struct ckpt_chunk_key *key, struct ckpt_chunk_source *ret, struct ckpt_err *err)
{
    struct ckpt_file *f = arg;
    *ret = (struct ckpt_chunk_source){
        .extent = {.file = ckpt_file_ref(f), .off = key->index * 1000, .len = 1004},
        .codecs = {1, {CKPT_CODEC_CRC32C}},
        .size = 1000,
        .dtype = CKPT_DT_OTHER,
    };
    return 0;
}

static int locate_large(void *arg, const struct ckpt_chunk_key *key, struct ckpt_chunk_source *ret,
                        struct ckpt_err *err)
{
    *ret = (struct ckpt_chunk_source){
        .extent = {.bytes = calloc(1, 4), .len = 4},
        .codecs = {1, {CKPT_CODEC_CRC32C}},
        .size = 3 * MIB / 2 - 4 * KIB,
        .dtype = CKPT_DT_OTHER,
    };
    return 0;
}

static void test_nested(void)
{
    struct test_objects o = test_objects_begin(4 * MIB);
    struct test_object t;
    test_object_init(&t, test_weights(5 * MIB, 70), 5 * MIB, CKPT_OBJECT_LZ4, 1, MIB);
    struct ckpt_pins *pins = test_object_store(&t);
    struct ckpt_file *f = open_object(&o, pins, &t);
    struct ckpt_chunk *held[2], *chunk;
    for (uint64_t i = 0; i < 2; i++) /* all of the memory is in use */
        CHECK(ckpt_cache_get(o.cache, &(struct ckpt_chunk_key){1, i, 1}, locate_large, NULL, &held[i], NULL) == 0);
    check_read(f, &t, 0, t.size); /* and yet */
    for (uint64_t i = 0; i < 2; i++)
        ckpt_chunk_put(o.cache, held[i]);

    /* The last who have it open are chunks: they are given up in turn, and the object with the last one. */
    uint8_t byte;
    for (uint64_t i = 0; i < 20; i++) {
        CHECK(ckpt_cache_get(o.cache, &(struct ckpt_chunk_key){2, i, 1}, locate_in, f, &chunk, NULL) == 0);
        CHECK(ckpt_chunk_read(o.cache, chunk, &byte, 1, 0, false, NULL) == -EBADMSG); /* there is no checksum there */
        ckpt_chunk_put(o.cache, chunk);
        CHECK(ckpt_cache_get(o.cache, &(struct ckpt_chunk_key){2, i, 1}, locate_in, f, &chunk, NULL) == 0);
        ckpt_chunk_put(o.cache, chunk);
    }
    ckpt_file_unref(f);
    ckpt_cache_drop_tree(o.cache, 2);
    ckpt_cache_drop_tree(o.cache, 1);
    f = open_object(&o, pins, &t);
    CHECK(ckpt_cache_get(o.cache, &(struct ckpt_chunk_key){2, 1, 1}, locate_in, f, &chunk, NULL) == 0);
    check_read(f, &t, 0, 10);
    ckpt_file_unref(f);
    ckpt_chunk_put(o.cache, chunk);
    ckpt_pins_unref(pins);
    test_object_clear(&t);
    ckpt_pool_free(o.pool);
    ckpt_cache_free(o.cache); /* the object goes with the cache */
}

/* An index that is too large to be kept. */
static void test_large_index(const char *top)
{
    struct test_objects o = test_objects_begin(16 * MIB);
    uint64_t size = 600 * MIB + 5, stored;
    struct test_object t = {.size = 16};
    struct ckpt_err err = {0};
    char path[CKPT_OBJECT_PATH];
    file_write(top, "large", "begin");
    CKPT_AUTOFD int in = open(file_path(top, "large"), O_RDWR);
    CHECK(in >= 0 && pwrite(in, "end", 3, (off_t)size - 3) == 3);
    memset(t.sha256, 7, sizeof t.sha256); /* who encodes is not the one who hashes */
    ckpt_object_path(t.sha256, path);
    snprintf(t.path, sizeof t.path, "objects/%s", path);
    file_parents(top, t.path);
    CKPT_AUTOFD int out = open(file_path(top, t.path), O_RDWR | O_CREAT, 0644);
    CHECK(test_object_encode(in, 0, size, CKPT_OBJECT_LZ4, 1, 4 * KIB, t.sha256, out, NULL, &stored, &err) == 0);
    CHECK(stored < 10 * MIB);
    struct ckpt_pins *pins = test_object_pins(top);
    struct ckpt_file *f;
    uint8_t buf[10000];
    CHECK(ckpt_object_open(pins, o.cache, t.sha256, size, &f, &err) == 0);
    CHECK(ckpt_file_read(f, buf, 9, 0) == 9 && !memcmp(buf, "begin\0\0\0", 9));
    CHECK(ckpt_file_read(f, buf, sizeof buf, size - 4) == 4 && !memcmp(buf, "\0end", 4));
    for (int i = 0; i < 200; i++) {
        CHECK(ckpt_file_read(f, buf, sizeof buf, 8192 + test_below(&seed, size - 30000)) == sizeof buf);
        CHECK(!buf[0] && !memcmp(buf, buf + 1, sizeof buf - 1));
    }
    ckpt_file_unref(f);
    ckpt_pins_unref(pins);

    /* Damage near its end is found when it is opened. */
    uint8_t byte;
    CHECK(pread(out, &byte, 1, (off_t)stored - 200) == 1);
    byte ^= 1;
    CHECK(pwrite(out, &byte, 1, (off_t)stored - 200) == 1);
    pins = test_object_pins(top);
    CHECK(ckpt_object_open(pins, o.cache, t.sha256, size, &f, &err) == -EBADMSG);
    ckpt_pins_unref(pins);
    test_objects_end(&o);
}

int main(void)
{
    char top[] = FILES_TEMPLATE;
    ckpt_log_setup(CKPT_LOG_ERROR, 0); /* damage is told there */
    files_begin(top);
    test_names();
    test_hash();
    test_round_trips();
    test_encode();
    test_sample();
    test_flips();
    test_truncation();
    test_forgeries();
    test_sparse(top);
    test_places(top);
    test_counts(top);
    test_threads(top);
    test_nested();
    test_large_index(top);
    files_end(top);
    return 0;
}
