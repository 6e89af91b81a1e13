/* SPDX-License-Identifier: Apache-2.0 */
/* The walk through large JSON files, against cJSON where both can read a text. */
#include "core/io/json.h"

#include "core/base/util.h"
#include "tests/unit/check.h"

struct open_text {
    struct ckpt_backend *backend;
    struct ckpt_file *file;
    struct ckpt_json_reader *json;
};

static struct open_text open_text(const char *text, size_t len)
{
    struct open_text o;
    CHECK((o.backend = ckpt_backend_new_memory()));
    CHECK(ckpt_backend_memory_add(o.backend, "f", text, len) == 0);
    CHECK(ckpt_backend_open(o.backend, "f", &o.file) == 0);
    CHECK(ckpt_json_open(o.file, &o.json) == 0);
    return o;
}

static void close_text(struct open_text *o)
{
    ckpt_json_close(o->json);
    ckpt_file_unref(o->file);
    ckpt_backend_unref(o->backend);
}

static void test_walk(void)
{
    static const char text[] =
        " { \"a\" : 1 ,\n\t\"b\\u00e9\\n\":[ true, {\"x\":[1, 2]}, \"s ]}\\\"\" ], \"c\":{ } , \"\":null}\r\n ";
    struct open_text o = open_text(text, sizeof text - 1);
    struct ckpt_buf key = CKPT_BUF_INIT, value = CKPT_BUF_INIT;
    CHECK(ckpt_json_enter_object(o.json, NULL) == 0);
    CHECK(ckpt_json_member(o.json, &key, NULL) == 1);
    CHECK_STR((char *)key.data, "a");
    CHECK(ckpt_json_peek(o.json) == '1');
    CHECK(ckpt_json_value(o.json, &value, NULL) == 0 && value.len == 1 && value.data[0] == '1');
    CHECK(ckpt_json_member(o.json, &key, NULL) == 1);
    CHECK_STR((char *)key.data, "b\xc3\xa9\n");
    CHECK(ckpt_json_enter_array(o.json, NULL) == 0);
    CHECK(ckpt_json_element(o.json, NULL) == 1);
    CHECK(ckpt_json_value(o.json, NULL, NULL) == 0); /* stepped over */
    CHECK(ckpt_json_element(o.json, NULL) == 1);
    CHECK(ckpt_json_value(o.json, &value, NULL) == 0);
    CHECK(value.len == 11 && !memcmp(value.data, "{\"x\":[1,2]}", 11));
    CHECK(ckpt_json_element(o.json, NULL) == 1);
    CHECK(ckpt_json_value(o.json, &value, NULL) == 0);
    CHECK(value.len == 8 && !memcmp(value.data, "\"s ]}\\\"\"", 8));
    CHECK(ckpt_json_element(o.json, NULL) == 0);
    CHECK(ckpt_json_member(o.json, &key, NULL) == 1);
    CHECK(ckpt_json_enter_object(o.json, NULL) == 0);
    CHECK(ckpt_json_member(o.json, &key, NULL) == 0);
    CHECK(ckpt_json_member(o.json, &key, NULL) == 1 && key.len == 0);
    CHECK(ckpt_json_value(o.json, &value, NULL) == 0 && !memcmp(value.data, "null", 4));
    CHECK(ckpt_json_member(o.json, &key, NULL) == 0);
    CHECK(ckpt_json_end(o.json, NULL) == 0);
    ckpt_buf_clear(&key);
    ckpt_buf_clear(&value);
    close_text(&o);
}

/* Take a whole text as an object of values: 0, or the error. */
static int walk(const char *text, size_t len, bool keep)
{
    struct open_text o = open_text(text, len);
    struct ckpt_buf key = CKPT_BUF_INIT, value = CKPT_BUF_INIT;
    struct ckpt_err err = {0};
    int r = ckpt_json_enter_object(o.json, &err);
    while (r == 0 && (r = ckpt_json_member(o.json, &key, &err)) == 1) {
        r = ckpt_json_value(o.json, keep ? &value : NULL, &err);
        cJSON *parsed = r == 0 && keep ? ckpt_json_parse((char *)value.data, value.len) : NULL;
        if (r == 0 && keep && !parsed)
            r = -EUCLEAN;
        cJSON_Delete(parsed);
    }
    if (r == 0)
        r = ckpt_json_end(o.json, &err);
    CHECK(r <= 0 && (r == 0 || !err.code || err.code == -r));
    ckpt_buf_clear(&key);
    ckpt_buf_clear(&value);
    close_text(&o);
    return r;
}

static void test_malformed(void)
{
    static const char *const bad[] = {
        "",
        " ",
        "x",
        "[]",
        "{",
        "{\"",
        "{\"a",
        "{\"a\"",
        "{\"a\":",
        "{\"a\":1",
        "{\"a\":1,",
        "{\"a\":1,}",
        "{\"a\" 1}",
        "{a:1}",
        "{1:2}",
        "{\"a\":}",
        "{\"a\":]}",
        "{\"a\":,}",
        "{\"a\":[}",
        "{\"a\":[1 2]}",
        "{\"a\":tr ue}",
        "{\"a\":1 2}",
        "{\"a\":\"x\" \"y\"}",
        "{\"a\":[\"x\" 1]}",
        "{\"a\":[1 \"x\"]}",
        "{\"a\":1}}",
        "{\"a\":1} x",
        "{\"a\":\"\\q\"}",
        "{\"a\\u0000b\":1}",
        "{\"a\":1 \"b\":2}",
        "{,\"a\":1}",
        "{\"a\":\x01}",
        "{\"a\":[\x01]}",
        "{\"a\":[1,\x7f]}",
        "{\"a\":[-]}",
        "{\"a\":[\x02 1]}",
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        if (walk(bad[i], strlen(bad[i]), true) != -EUCLEAN) {
            fprintf(stderr, "taken for JSON: %s\n", bad[i]);
            exit(1);
        }
    CHECK(walk("{\"a\":[\0]}", 9, true) == -EUCLEAN);
    CHECK(walk("{\"a\":\0}", 7, true) == -EUCLEAN);
    /* What is stepped over is looked at less closely, but its end is still found, or missed with an error. */
    CHECK(walk("{\"a\":[\x01]}", 9, false) == -EUCLEAN);
    CHECK(walk("{\"a\":[[[[", 9, false) == -EUCLEAN);
}

static void test_nesting(void)
{
    char text[8192];
    for (unsigned depth = 1; depth < 3000; depth += 499) {
        size_t n = (size_t)sprintf(text, "{\"a\":");
        memset(text + n, '[', depth);
        memset(text + n + depth, ']', depth);
        text[n + 2 * depth] = '}';
        int r = walk(text, n + 2 * depth + 1, true);
        CHECK(depth <= 1000 ? r == 0 : r == -EUCLEAN);
    }
}

/* Longer than the reader's window, so that tokens lie across its end at every place. */
static void test_windows(void)
{
    enum { COUNT = 40000 };
    struct ckpt_buf text = CKPT_BUF_INIT, key = CKPT_BUF_INIT, value = CKPT_BUF_INIT;
    char want[80];
    ckpt_buf_addc(&text, '{');
    for (unsigned i = 0; i < COUNT; i++)
        ckpt_buf_addf(&text, "%s\"key-%u\" : [%u, \"%0*u\"]", i ? " ,\n" : "", i, i, (int)(i % 13 + 1), i);
    ckpt_buf_addc(&text, '}');
    struct open_text o = open_text((char *)text.data, text.len);
    CHECK(ckpt_json_enter_object(o.json, NULL) == 0);
    for (unsigned i = 0; i < COUNT; i++) {
        CHECK(ckpt_json_member(o.json, &key, NULL) == 1);
        sprintf(want, "key-%u", i);
        CHECK_STR((char *)key.data, want);
        CHECK(ckpt_json_value(o.json, &value, NULL) == 0);
        int n = sprintf(want, "[%u,\"%0*u\"]", i, (int)(i % 13 + 1), i);
        CHECK(value.len == (size_t)n && !memcmp(value.data, want, value.len));
    }
    CHECK(ckpt_json_member(o.json, &key, NULL) == 0 && ckpt_json_end(o.json, NULL) == 0);
    close_text(&o);
    ckpt_buf_clear(&text);
    ckpt_buf_clear(&key);
    ckpt_buf_clear(&value);
}

static void test_limit(void)
{
    static const char text[] = "{\"a\":\"0123456789\"}";
    for (size_t max = 11; max < 14; max++) {
        struct open_text o = open_text(text, sizeof text - 1);
        struct ckpt_buf key = CKPT_BUF_INIT, value = {.max = max};
        CHECK(ckpt_json_enter_object(o.json, NULL) == 0 && ckpt_json_member(o.json, &key, NULL) == 1);
        CHECK(ckpt_json_value(o.json, &value, NULL) == (max < 12 ? -EUCLEAN : 0));
        ckpt_buf_clear(&key);
        ckpt_buf_clear(&value);
        close_text(&o);
    }
}

static void test_parse(void)
{
    static const char *const bad[] = {"",    "1 2", "{} x", "\"\\u0000\"", "{\"a\\u0000\":1}", "[\"\\\\\\u0000\"]",
                                      "tru", "nan"};
    static const char *const good[] = {
        "1", " 1 ", "\"\\\\u0000\"", "[]\n", "{\"a\":{\"b\":[null,true,\"\\ud83d\\ude00\"]}}", "-1e5"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        CHECK(!ckpt_json_parse(bad[i], strlen(bad[i])));
    for (size_t i = 0; i < sizeof good / sizeof *good; i++) {
        cJSON *item = ckpt_json_parse(good[i], strlen(good[i]));
        CHECK(item);
        cJSON_Delete(item);
    }
    CHECK(!ckpt_json_parse("1\0", 2));
}

static void test_u64(void)
{
    static const struct {
        const char *text;
        bool ok;
        uint64_t value;
    } cases[] = {{"0", true, 0},
                 {"17", true, 17},
                 {"9007199254740992", true, 9007199254740992},
                 {"9007199254740994", false, 0},
                 {"-1", false, 0},
                 {"1.5", false, 0},
                 {"1e3", true, 1000},
                 {"\"1\"", false, 0},
                 {"null", false, 0},
                 {"1e400", false, 0}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        cJSON *item = ckpt_json_parse(cases[i].text, strlen(cases[i].text));
        uint64_t v = 0;
        CHECK(ckpt_json_u64(item, &v) == cases[i].ok && v == cases[i].value);
        cJSON_Delete(item);
    }
    CHECK(!ckpt_json_u64(NULL, &(uint64_t){0}));
}

int main(void)
{
    test_walk();
    test_malformed();
    test_nesting();
    test_windows();
    test_limit();
    test_parse();
    test_u64();
    return 0;
}
