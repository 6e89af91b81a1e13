/* SPDX-License-Identifier: Apache-2.0 */
/* Every form of the msgpack specification, whole and cut off at each byte. */
#include "core/format/msgpack.h"

#include "core/base/util.h"
#include "tests/unit/check.h"

struct open_bytes {
    struct ckpt_backend *backend;
    struct ckpt_file *file;
    struct ckpt_mp mp;
};

static void open_bytes(struct open_bytes *o, const void *data, size_t len)
{
    CHECK((o->backend = ckpt_backend_new_memory()));
    CHECK(ckpt_backend_memory_add(o->backend, "f", data, len) == 0);
    CHECK(ckpt_backend_open(o->backend, "f", &o->file) == 0);
    ckpt_mp_init(&o->mp, o->file, 0, len);
}

static void close_bytes(struct open_bytes *o)
{
    ckpt_file_unref(o->file);
    ckpt_backend_unref(o->backend);
}

#define B(text) text, sizeof text - 1

static const struct {
    const char *bytes;
    size_t len; /* of the token; payloads follow */
    struct ckpt_mp_token want;
} tokens[] = {
    {B("\x00"), {CKPT_MP_UINT, .u = 0}},
    {B("\x7f"), {CKPT_MP_UINT, .u = 127}},
    {B("\xe0"), {CKPT_MP_INT, .i = -32}},
    {B("\xff"), {CKPT_MP_INT, .i = -1}},
    {B("\xc0"), {CKPT_MP_NIL}},
    {B("\xc2"), {CKPT_MP_BOOL, .boolean = false}},
    {B("\xc3"), {CKPT_MP_BOOL, .boolean = true}},
    {B("\xcc\xff"), {CKPT_MP_UINT, .u = 255}},
    {B("\xcd\x12\x34"), {CKPT_MP_UINT, .u = 0x1234}},
    {B("\xce\xff\xff\xff\xff"), {CKPT_MP_UINT, .u = 0xffffffff}},
    {B("\xcf\xff\xff\xff\xff\xff\xff\xff\xff"), {CKPT_MP_UINT, .u = UINT64_MAX}},
    {B("\xd0\x80"), {CKPT_MP_INT, .i = -128}},
    {B("\xd0\x05"), {CKPT_MP_UINT, .u = 5}},
    {B("\xd1\x80\x00"), {CKPT_MP_INT, .i = -32768}},
    {B("\xd2\xff\xff\xff\xfe"), {CKPT_MP_INT, .i = -2}},
    {B("\xd3\x80\x00\x00\x00\x00\x00\x00\x00"), {CKPT_MP_INT, .i = INT64_MIN}},
    {B("\xd3\x00\x00\x00\x00\x00\x00\x00\x07"), {CKPT_MP_UINT, .u = 7}},
    {B("\xca\x3f\xc0\x00\x00"), {CKPT_MP_FLOAT, .f = 1.5}},
    {B("\xcb\xbf\xf8\x00\x00\x00\x00\x00\x00"), {CKPT_MP_FLOAT, .f = -1.5}},
    {B("\xa0"), {CKPT_MP_STR, .len = 0, .off = 1}},
    {B("\xa3xyz"), {CKPT_MP_STR, .len = 3, .off = 1}},
    {B("\xd9\x02xy"), {CKPT_MP_STR, .len = 2, .off = 2}},
    {B("\xda\x00\x02xy"), {CKPT_MP_STR, .len = 2, .off = 3}},
    {B("\xdb\x00\x00\x00\x02xy"), {CKPT_MP_STR, .len = 2, .off = 5}},
    {B("\xc4\x01x"), {CKPT_MP_BIN, .len = 1, .off = 2}},
    {B("\xc5\x00\x01x"), {CKPT_MP_BIN, .len = 1, .off = 3}},
    {B("\xc6\x00\x00\x00\x01x"), {CKPT_MP_BIN, .len = 1, .off = 5}},
    {B("\xc7\x02\x05xy"), {CKPT_MP_EXT, .len = 2, .off = 3, .ext = 5}},
    {B("\xc8\x00\x02\xffxy"), {CKPT_MP_EXT, .len = 2, .off = 4, .ext = -1}},
    {B("\xc9\x00\x00\x00\x02\x01xy"), {CKPT_MP_EXT, .len = 2, .off = 6, .ext = 1}},
    {B("\xd4\x01x"), {CKPT_MP_EXT, .len = 1, .off = 2, .ext = 1}},
    {B("\xd5\x01xx"), {CKPT_MP_EXT, .len = 2, .off = 2, .ext = 1}},
    {B("\xd6\x01xxxx"), {CKPT_MP_EXT, .len = 4, .off = 2, .ext = 1}},
    {B("\xd7\x01xxxxxxxx"), {CKPT_MP_EXT, .len = 8, .off = 2, .ext = 1}},
    {B("\xd8\x80xxxxxxxxxxxxxxxx"), {CKPT_MP_EXT, .len = 16, .off = 2, .ext = -128}},
    {B("\x90"), {CKPT_MP_ARRAY, .len = 0}},
    {B("\x9f"), {CKPT_MP_ARRAY, .len = 15}},
    {B("\xdc\x01\x00"), {CKPT_MP_ARRAY, .len = 256}},
    {B("\xdd\x00\x01\x00\x00"), {CKPT_MP_ARRAY, .len = 65536}},
    {B("\x80"), {CKPT_MP_MAP, .len = 0}},
    {B("\x8f"), {CKPT_MP_MAP, .len = 15}},
    {B("\xde\xff\xff"), {CKPT_MP_MAP, .len = 65535}},
    {B("\xdf\xff\xff\xff\xff"), {CKPT_MP_MAP, .len = 0xffffffff}},
};

static void test_tokens(void)
{
    for (size_t i = 0; i < sizeof tokens / sizeof *tokens; i++) {
        const struct ckpt_mp_token *want = &tokens[i].want;
        for (size_t cut = 0; cut <= tokens[i].len; cut++) {
            CKPT_AUTOFREE char *exact = malloc(cut ? cut : 1); /* so that reading beyond is seen */
            memcpy(exact, tokens[i].bytes, cut);
            struct open_bytes o;
            struct ckpt_mp_token t;
            open_bytes(&o, exact, cut);
            int r = ckpt_mp_next(&o.mp, &t, NULL);
            if (cut < tokens[i].len)
                CHECK(r == -EBADMSG);
            else {
                CHECK(r == 0 && t.type == want->type && t.len == want->len && t.off == want->off && t.ext == want->ext);
                CHECK(want->type == CKPT_MP_BOOL ? t.boolean == want->boolean : t.u == want->u);
                CHECK(o.mp.at == cut);
                CHECK(ckpt_mp_next(&o.mp, &t, NULL) == -EBADMSG);
            }
            close_bytes(&o);
        }
    }
}

static void test_never_used(void)
{
    struct open_bytes o;
    struct ckpt_mp_token t;
    open_bytes(&o, "\xc1", 1);
    CHECK(ckpt_mp_next(&o.mp, &t, NULL) == -EUCLEAN);
    close_bytes(&o);
}

static void test_skip(void)
{
    static const struct {
        const char *bytes;
        size_t len;
        int want;
    } cases[] = {
        {B("\x92\x81\xa1x\x93\x01\x02\x03\xc0|"), 0},
        {B("\x80|"), 0},
        {B("\xd9\x01x|"), 0},
        {B("\x92\x01"), -EBADMSG},
        {B("\x81\xa1x"), -EBADMSG},
        {B("\xdd\xff\xff\xff\xff\x01"), -EBADMSG}, /* more elements than bytes */
        {B("\xdf\xff\xff\xff\xff\x01"), -EBADMSG},
        {B("\x91\xc1"), -EUCLEAN},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct open_bytes o;
        open_bytes(&o, cases[i].bytes, cases[i].len);
        CHECK(ckpt_mp_skip(&o.mp, NULL) == cases[i].want);
        CHECK(cases[i].want || o.mp.at + 1 == o.mp.end);
        close_bytes(&o);
    }
    /* Nesting costs no stack. */
    struct open_bytes o;
    char *deep = malloc(1 << 20);
    memset(deep, 0x91, 1 << 20);
    deep[(1 << 20) - 1] = 0;
    open_bytes(&o, deep, 1 << 20);
    CHECK(ckpt_mp_skip(&o.mp, NULL) == 0 && o.mp.at == o.mp.end);
    close_bytes(&o);
    free(deep);
}

/* Strings in and across the reader's window. */
static void test_bytes(void)
{
    enum { PAD = 8180 };
    char *data = malloc(PAD + 64);
    memset(data, 0xc0, PAD); /* nil */
    memcpy(data + PAD,
           "\xa3"
           "abc"
           "\xd9\x20"
           "0123456789abcdef0123456789abcdef"
           "\xc4\x00",
           4 + 34 + 2);
    struct open_bytes o;
    struct ckpt_mp_token t;
    struct ckpt_buf buf = CKPT_BUF_INIT;
    open_bytes(&o, data, PAD + 40);
    for (unsigned i = 0; i < PAD; i++)
        CHECK(ckpt_mp_next(&o.mp, &t, NULL) == 0 && t.type == CKPT_MP_NIL);
    CHECK(ckpt_mp_next(&o.mp, &t, NULL) == 0 && ckpt_mp_bytes(&o.mp, &t, &buf, NULL) == 0);
    CHECK(buf.len == 3 && !memcmp(buf.data, "abc", 3));
    CHECK(ckpt_mp_next(&o.mp, &t, NULL) == 0 && ckpt_mp_bytes(&o.mp, &t, &buf, NULL) == 0);
    CHECK(buf.len == 35 && !memcmp(buf.data, "abc0123456789abcdef0123456789abcdef", 35));
    CHECK(ckpt_mp_next(&o.mp, &t, NULL) == 0 && ckpt_mp_bytes(&o.mp, &t, &buf, NULL) == 0 && buf.len == 35);
    ckpt_buf_clear(&buf);
    buf.max = 31; /* longer than the caller wants */
    t = (struct ckpt_mp_token){.type = CKPT_MP_STR, .off = PAD + 6, .len = 32};
    CHECK(ckpt_mp_bytes(&o.mp, &t, &buf, NULL) == -EUCLEAN);
    ckpt_buf_clear(&buf);
    close_bytes(&o);
    free(data);
}

/* The range ends before the file does, as for the payload of an extension. */
static void test_range(void)
{
    struct open_bytes o;
    struct ckpt_mp_token t;
    open_bytes(&o, B("\xcd\x12\x34\xa3xyz"));
    ckpt_mp_init(&o.mp, o.file, 0, 2);
    CHECK(ckpt_mp_next(&o.mp, &t, NULL) == -EBADMSG);
    ckpt_mp_init(&o.mp, o.file, 3, 6);
    CHECK(ckpt_mp_next(&o.mp, &t, NULL) == -EBADMSG);
    ckpt_mp_init(&o.mp, o.file, 3, 7);
    CHECK(ckpt_mp_next(&o.mp, &t, NULL) == 0 && t.len == 3 && t.off == 4);
    ckpt_mp_init(&o.mp, o.file, 3, 70); /* a file that was cut off after its size was taken */
    CHECK(ckpt_mp_next(&o.mp, &t, NULL) == 0);
    CHECK(ckpt_mp_next(&o.mp, &t, NULL) == -EBADMSG);
    close_bytes(&o);
}

int main(void)
{
    test_tokens();
    test_never_used();
    test_skip();
    test_bytes();
    test_range();
    return 0;
}
