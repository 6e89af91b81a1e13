/* SPDX-License-Identifier: Apache-2.0 */
#include "core/format/zip.h"

#include "tests/unit/zips.h"

/* An archive in memory. */
struct opened {
    struct ckpt_backend *b;
    struct ckpt_file *file;
    struct ckpt_zip *zip;
    struct ckpt_err err;
};

static int zip_open(struct opened *o, const void *data, size_t len, uint64_t off, uint64_t size)
{
    *o = (struct opened){.b = ckpt_backend_new_memory()};
    CHECK(ckpt_backend_memory_add(o->b, "z", data, len) == 0 && ckpt_backend_open(o->b, "z", &o->file) == 0);
    int r = ckpt_zip_open(o->file, off, size, &o->zip, &o->err);
    CHECK(r == -o->err.code && (r == 0) == !*o->err.text);
    return r;
}

static void zip_close(struct opened *o)
{
    ckpt_zip_unref(o->zip);
    ckpt_file_unref(o->file);
    ckpt_backend_unref(o->b);
}

static void expect_member(struct ckpt_zip *z, const char *name, const void *data, size_t len, bool deflated)
{
    uint32_t i = ckpt_zip_find(z, name, strlen(name));
    CHECK(i < ckpt_zip_count(z));
    struct ckpt_zip_member m = ckpt_zip_member(z, i);
    CHECK_STR(m.name, name);
    CHECK(m.name_len == strlen(name) && m.size == len && m.deflated == deflated && m.crc == crc32_z(0, data, len));
    uint8_t *all;
    size_t n;
    CHECK(ckpt_zip_read_all(z, i, len, &all, &n, NULL) == 0 && n == len && !memcmp(all, data, len) && !all[len]);
    free(all);
    CHECK(!len || ckpt_zip_read_all(z, i, len - 1, &all, &n, NULL) == -EFBIG);
    CHECK(ckpt_zip_verify(z, i, NULL, NULL, NULL) == 0);
    struct ckpt_extent e;
    struct ckpt_codec_chain c;
    CHECK(ckpt_zip_payload(z, i, &e, &c, NULL) == 0 && e.len == m.stored && c.count == (deflated ? 2 : 0));
    if (!deflated) {
        uint8_t byte;
        CHECK(e.len == len &&
              (!len || (ckpt_extent_read(&e, &byte, 1, len - 1) == 0 && byte == ((const uint8_t *)data)[len - 1])));
    }
    ckpt_extent_clear(&e);
}

static const char *const names[] = {"a.npy", "archive/data/0", "archive/.data/serialization_id", "\xc3\xa4\xe2\x82\xac",
                                    "x/"};

/* Every way to write a member, in every kind of archive. */
static void test_members(void)
{
    static char content[5][100000];
    size_t lens[] = {100000, 1, 12345, 64, 0};
    for (unsigned i = 0; i < 5; i++)
        for (size_t k = 0; k < lens[i]; k++)
            content[i][k] = (char)(k * k >> (i + 3));
    for (unsigned how = 0; how < 32; how++)
        for (unsigned kind = 0; kind < 4; kind++) {
            struct zip_maker m = {0};
            struct opened o;
            for (unsigned i = 0; i < 5; i++)
                zip_add(&m, names[i], content[i], lens[i], how);
            zip_end(&m, kind & 1,
                    kind & 2 ? "PK\5\6 is how a comment might begin, that is long enough to be an end" : "");
            CHECK(zip_open(&o, m.all.data, m.all.len, 0, m.all.len) == 0 && ckpt_zip_count(o.zip) == 5);
            for (unsigned i = 0; i < 5; i++) {
                CHECK(ckpt_zip_find(o.zip, names[i], strlen(names[i])) == i);
                expect_member(o.zip, names[i], content[i], lens[i], how & ZIP_DEFLATE);
            }
            CHECK(ckpt_zip_find(o.zip, "a.np", 4) == CKPT_ZIP_NONE &&
                  ckpt_zip_find(o.zip, "a.npy\0b", 7) == CKPT_ZIP_NONE);
            CHECK(ckpt_zip_memory(o.zip) > 100 && ckpt_zip_memory(o.zip) < 4096);
            zip_close(&o);
            zip_maker_clear(&m);
        }
}

/* In the middle of a file, with other bytes around it. */
static void test_piece(void)
{
    struct zip_maker m = {0};
    struct opened o;
    zip_add(&m, "a", "first", 5, ZIP_ALIGN);
    zip_add(&m, "b", "second", 6, ZIP_DEFLATE | ZIP_DESCRIPTOR);
    zip_end(&m, true, "");
    size_t len = m.all.len;
    CKPT_AUTOFREE uint8_t *file = malloc(len + 300);
    memset(file, 'P', len + 300);
    memcpy(file + 100, m.all.data, len);
    CHECK(zip_open(&o, file, len + 300, 100, len) == 0);
    expect_member(o.zip, "a", "first", 5, false);
    expect_member(o.zip, "b", "second", 6, true);
    zip_close(&o);
    CHECK(zip_open(&o, file, len + 300, 0, len + 300) == -EUCLEAN);
    zip_close(&o);
    CHECK(zip_open(&o, file, len + 300, 100, len + 201) == -EBADMSG);
    zip_close(&o);
    CHECK(zip_open(&o, file, len + 300, UINT64_MAX - 5, len) == -EBADMSG);
    zip_close(&o);
    zip_maker_clear(&m);
}

static void test_empty(void)
{
    struct zip_maker m = {0};
    struct opened o;
    zip_end(&m, false, "");
    CHECK(m.all.len == 22 && zip_open(&o, m.all.data, 22, 0, 22) == 0 && ckpt_zip_count(o.zip) == 0);
    CHECK(ckpt_zip_find(o.zip, "a", 1) == CKPT_ZIP_NONE);
    zip_close(&o);
    zip_maker_clear(&m);
}

/* Cut anywhere it is refused, and for what it is. */
static void test_cut(void)
{
    struct zip_maker m = {0};
    struct opened o;
    zip_add(&m, "a.npy", "0123456789", 10, ZIP_WIDE_LOCAL);
    zip_end(&m, true, "a comment");
    for (size_t cut = 0; cut < m.all.len; cut++) {
        CKPT_AUTOFREE uint8_t *exact = malloc(cut ? cut : 1); /* so that reading beyond is seen */
        memcpy(exact, m.all.data, cut);
        CHECK(zip_open(&o, exact, cut, 0, cut) == -EBADMSG);
        zip_close(&o);
    }
    CHECK(zip_open(&o, "\x93NUMPY and more than 22 bytes of it", 34, 0, 34) == -EUCLEAN);
    zip_close(&o);
    zip_maker_clear(&m);
}

/* One change of an archive of "aa" (stored, 10 bytes, at 0, payload at 32), "bb" (deflated, at 42). */
struct change {
    char where; /* 'l'ocal header of aa, 'c'entral entry of aa or b'C' of bb, 'e'nd record, 'z'ip64 end record, 'p': its
                   locator */
    unsigned at, bytes;
    uint64_t value;
    int open, payload; /* errors that are expected; payload: of aa, where it opens */
};

static const struct change changes[] = {
    {'e', 4, 2, 1, -EOPNOTSUPP, 0},
    {'e', 6, 2, 1, -EOPNOTSUPP, 0},
    {'e', 8, 2, 1, -EOPNOTSUPP, 0},
    {'e', 10, 2, 1, -EOPNOTSUPP, 0},
    {'e', 8, 4, 1 | 1 << 16, -EUCLEAN, 0}, /* fewer entries than there are */
    {'e', 8, 4, 3 | 3 << 16, -EUCLEAN, 0}, /* more */
    {'e', 8, 4, 60000 | 60000u << 16, -EUCLEAN, 0},
    {'e', 12, 4, 95, -EUCLEAN, 0}, /* a directory that ends too early, or too late */
    {'e', 12, 4, 97, -EBADMSG, 0},
    {'e', 16, 4, 1, -EUCLEAN, 0},
    {'e', 16, 4, 0x7fffffff, -EBADMSG, 0},
    {'z', 0, 4, 0, -EUCLEAN, 0},
    {'z', 4, 8, 45, -EUCLEAN, 0},
    {'z', 16, 4, 1, -EOPNOTSUPP, 0},
    {'z', 24, 8, 1, -EOPNOTSUPP, 0},
    {'z', 40, 8, UINT64_MAX, -EBADMSG, 0},
    {'z', 48, 8, UINT64_MAX - 4, -EBADMSG, 0},
    {'z', 48, 8, 0, -EUCLEAN, 0},
    {'p', 4, 4, 1, -EOPNOTSUPP, 0},
    {'p', 8, 8, UINT64_MAX, -EUCLEAN, 0},
    {'p', 8, 8, 5, -EUCLEAN, 0},
    {'p', 16, 4, 2, -EOPNOTSUPP, 0},
    {'c', 0, 4, 0x02014b51, -EUCLEAN, 0},
    {'c', 8, 2, 1, -EOPNOTSUPP, 0}, /* encrypted */
    {'c', 8, 2, 1 << 6, -EOPNOTSUPP, 0},
    {'c', 10, 2, 12, -EOPNOTSUPP, 0}, /* bzip2 */
    {'c', 10, 2, 99, -EOPNOTSUPP, 0},
    {'c', 34, 2, 1, -EOPNOTSUPP, 0}, /* another disk */
    {'c', 20, 4, 11, -EUCLEAN, 0},   /* stored with two sizes */
    {'c', 24, 4, 9, -EUCLEAN, 0},
    {'c', 20, 4, UINT32_MAX, -EUCLEAN, 0}, /* zip64 without its field */
    {'c', 42, 4, UINT32_MAX, -EUCLEAN, 0},
    {'c', 42, 4, 1 << 30, -EUCLEAN, 0}, /* beyond the directory */
    {'c', 42, 4, 42, -EUCLEAN, 0},      /* where bb is */
    {'c', 42, 4, 2, -EUCLEAN, 0},       /* into bb */
    {'c', 28, 2, 0, -EUCLEAN, 0},       /* no name */
    {'c', 28, 2, UINT16_MAX, -EUCLEAN, 0},
    {'c', 30, 2, UINT16_MAX, -EUCLEAN, 0},
    {'c', 32, 2, UINT16_MAX, -EUCLEAN, 0},
    {'c', 46, 2, 'b' | 'b' << 8, -EUCLEAN, 0}, /* the same name twice */
    {'c', 46, 2, 'a', -EUCLEAN, 0},            /* a NUL */
    {'c', 46, 2, 0xff | 'a' << 8, -EUCLEAN, 0},
    {'C', 24, 4, 0x7fffffff, -EUCLEAN, 0},     /* more than deflate can do */
    {'c', 46, 2, 'a' | 'x' << 8, 0, -EUCLEAN}, /* another name than the member's own */
    {'l', 0, 4, 0, 0, -EUCLEAN},
    {'l', 6, 2, 1, 0, -EUCLEAN},
    {'l', 8, 2, 8, 0, -EUCLEAN},
    {'l', 26, 2, 3, 0, -EUCLEAN},
    {'l', 28, 2, 1, 0, -EUCLEAN}, /* into bb */
    {'l', 28, 2, UINT16_MAX, 0, -EUCLEAN},
    {'l', 14, 4, 77, 0, 0}, /* what the directory says counts */
    {'l', 18, 8, 0x7700000077, 0, 0},
};

static void test_refused(void)
{
    for (size_t i = 0; i < sizeof changes / sizeof *changes; i++) {
        const struct change *c = &changes[i];
        struct zip_maker m = {0};
        struct opened o;
        zip_add(&m, "aa", "0123456789", 10, 0);
        zip_add(&m, "bb", "0123456789", 10, ZIP_DEFLATE);
        zip_end(&m, c->where == 'z' || c->where == 'p', "");
        size_t end = m.all.len - 22;
        size_t base = c->where == 'e'   ? end
                      : c->where == 'p' ? end - 20
                      : c->where == 'z' ? end - 76
                      : c->where == 'l' ? 0
                                        : m.central;
        memcpy(m.all.data + base + c->at + (c->where == 'C' ? 48 : 0), &c->value, c->bytes);
        int r = zip_open(&o, m.all.data, m.all.len, 0, m.all.len);
        if (r != c->open) {
            fprintf(stderr, "change %zu ('%c' at %u): %d %s\n", i, c->where, c->at, r, o.err.text);
            exit(1);
        }
        if (r == 0) {
            struct ckpt_extent e = {0};
            struct ckpt_codec_chain chain;
            struct ckpt_err err = {0};
            for (int twice = 0; twice < 2; twice++) {
                CHECK(ckpt_zip_payload(o.zip, 0, &e, &chain, &err) == c->payload && (!c->payload || *err.text));
                ckpt_extent_clear(&e);
            }
            CHECK(ckpt_zip_verify(o.zip, 1, NULL, NULL, NULL) == 0);
        }
        zip_close(&o);
        zip_maker_clear(&m);
    }
}

static void count_bytes(void *arg, uint64_t bytes)
{
    *(uint64_t *)arg += bytes;
}

/* What only the whole of a member shows. */
static void test_damaged(void)
{
    static char data[1000000];
    for (size_t i = 0; i < sizeof data; i++)
        data[i] = (char)(i * i >> 9);
    static const struct {
        unsigned how;
        int patch; /* 1: a byte of the payload, 2: the CRC, 3: a size one too large, 4: one too small, 0: nothing */
        int want;
    } cases[] = {{0, 0, 0},        {ZIP_DEFLATE, 0, 0},        {0, 1, -EBADMSG},           {ZIP_DEFLATE, 1, -EBADMSG},
                 {0, 2, -EBADMSG}, {ZIP_DEFLATE, 2, -EBADMSG}, {ZIP_DEFLATE, 3, -EBADMSG}, {ZIP_DEFLATE, 4, -EBADMSG}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct zip_maker m = {0};
        struct opened o;
        struct ckpt_err err = {0};
        uint64_t bytes = 0;
        uint8_t *all;
        size_t n;
        zip_add(&m, "w", data, sizeof data, cases[i].how);
        zip_end(&m, false, "");
        uint32_t size = (uint32_t)(sizeof data + (cases[i].patch == 3) - (cases[i].patch == 4));
        m.all.data[300] ^= cases[i].patch == 1;
        m.all.data[m.central + 16] ^= cases[i].patch == 2;
        memcpy(m.all.data + m.central + 24, &size, 4);
        CHECK(zip_open(&o, m.all.data, m.all.len, 0, m.all.len) == 0);
        CHECK(ckpt_zip_verify(o.zip, 0, count_bytes, &bytes, &err) == cases[i].want);
        CHECK(cases[i].want ? strstr(err.text, "w: ") == err.text : bytes == sizeof data);
        int r = ckpt_zip_read_all(o.zip, 0, 1 << 20, &all, &n, &err);
        CHECK(r == cases[i].want);
        if (r == 0) {
            CHECK(n == sizeof data && !memcmp(all, data, n));
            free(all);
        }
        zip_close(&o);
        zip_maker_clear(&m);
    }
}

/* Names that collide in a table as likely as not, in an order that is not that of the file. */
static void test_many(void)
{
    enum { COUNT = 70000 };
    struct zip_maker m = {0};
    struct opened o;
    char name[32];
    for (unsigned i = 0; i < COUNT; i++) {
        snprintf(name, sizeof name, "archive/data/%u", i * 7919 % COUNT);
        zip_add(&m, name, &i, sizeof i, 0);
    }
    zip_end(&m, true, "");
    CHECK(zip_open(&o, m.all.data, m.all.len, 0, m.all.len) == 0 && ckpt_zip_count(o.zip) == COUNT);
    for (uint32_t i = 0; i < COUNT; i++) {
        struct ckpt_extent e;
        struct ckpt_codec_chain c;
        uint32_t got;
        snprintf(name, sizeof name, "archive/data/%u", i * 7919 % COUNT);
        CHECK(ckpt_zip_find(o.zip, name, strlen(name)) == i && ckpt_zip_payload(o.zip, i, &e, &c, NULL) == 0);
        CHECK(ckpt_extent_read(&e, &got, sizeof got, 0) == 0 && got == i);
        ckpt_extent_clear(&e);
    }
    CHECK(ckpt_zip_memory(o.zip) < 100 * COUNT);
    zip_close(&o);
    zip_maker_clear(&m);
}

int main(void)
{
    test_members();
    test_piece();
    test_empty();
    test_cut();
    test_refused();
    test_damaged();
    test_many();
    return 0;
}
