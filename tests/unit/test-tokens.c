/* SPDX-License-Identifier: Apache-2.0 */
/* The strict tokenizer: what it takes, what it refuses, and that neither depends on where the window ends. */
#include "core/format/safetensors/tokens.h"

#include "core/base/util.h"
#include "tests/unit/check.h"

static struct ckpt_backend *backend; /* of the text that is being read */

/* Begin to read a text. */
static struct tokens begin(const char *text, size_t len, size_t window, struct ckpt_err *err)
{
    static uint8_t bytes[64];
    struct ckpt_file *f;
    backend = ckpt_backend_new_memory();
    CHECK(backend && window <= sizeof bytes && ckpt_backend_memory_add(backend, "t", text, len) == 0 &&
          ckpt_backend_open(backend, "t", &f) == 0);
    return (struct tokens){.file = f, .end = len, .window = bytes, .size = window, .err = err};
}

static void finish(struct tokens *t)
{
    ckpt_file_unref(t->file);
    ckpt_backend_unref(backend);
}

/* Takes one value that is all of the text; want: what it is without white space, NULL: it must be refused. */
static void check_value(const char *text, const char *want)
{
    static const size_t windows[] = {1, 2, 3, 7, 64};
    for (size_t i = 0; i < sizeof windows / sizeof *windows; i++) {
        struct ckpt_err err = {0};
        struct ckpt_buf out = CKPT_BUF_INIT;
        struct tokens t = begin(text, strlen(text), windows[i], &err);
        int r = ckpt_tokens_value(&t, &out);
        if (r == 0)
            r = ckpt_tokens_end(&t);
        ckpt_buf_addc(&out, 0);
        if (r != (want ? 0 : -EUCLEAN))
            fprintf(stderr, "%s: %d %s\n", text, r, err.text);
        CHECK(r == (want ? 0 : -EUCLEAN) && err.code == -r && !ckpt_buf_error(&out));
        if (want)
            CHECK_STR((char *)out.data, want);
        ckpt_buf_clear(&out);
        finish(&t);
    }
}

static void test_values(void)
{
    check_value("{ \"a\" : [ 1 , -0.5e+3, true,\tfalse, null, {}, [ ] ], \"b\":\r\n\"x\" } ",
                "{\"a\":[1,-0.5e+3,true,false,null,{},[]],\"b\":\"x\"}");
    check_value("  [[[[]]],{\"\":{}}]", "[[[[]]],{\"\":{}}]");
    check_value("0", "0");
    check_value("-0", "-0");
    check_value("1E5", "1E5");
    check_value("\"\\u0041\\u00e9\\ud83d\\ude00\\n\\/\\b\"", "\"A\xc3\xa9\xf0\x9f\x98\x80\\n/\\u0008\"");
    static const char *const bad[] = {
        "",
        " ",
        "{",
        "[",
        "\"",
        "]",
        "}",
        ",",
        ":",
        "[1,]",
        "[,1]",
        "[1 2]",
        "{\"a\"}",
        "{\"a\":}",
        "{\"a\":1,}",
        "{,}",
        "{a:1}",
        "{'a':1}",
        "{1:2}",
        "[1}",
        "{\"a\":1]",
        "01",
        "-",
        "1.",
        ".5",
        "1e",
        "1e+",
        "+1",
        "--1",
        "NaN",
        "Infinity",
        "tru",
        "truex",
        "nul",
        "1 1",
        "[] x",
        "\"\\x\"",
        "\"\\u12\"",
        "\"\\u12g4\"",
        "\"\\ud800\"",
        "\"\\ud800x\"",
        "\"\\ud800\\n\"",
        "\"\\ud800\\ud800\"",
        "\"\\udc00\"",
        "\"a\nb\"",
        "\"\x01\"",
        "\"\xff\"",
        "\"\xc0\x80\"",
        "\"\xe0\x80\x80\"",
        "\"\xed\xa0\x80\"",
        "\"\xf4\x90\x80\x80\"",
        "\"\xc3\"",
        "\"\xc3\x28\"",
        "\xef\xbb\xbf[]",
        "[]\v",
        "// x\n1",
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        check_value(bad[i], NULL);
}

static void test_nesting(void)
{
    char text[300];
    for (unsigned depth = 124; depth <= 126; depth++) {
        memset(text, '[', depth);
        memset(text + depth, ']', depth);
        text[2 * depth] = 0;
        check_value(text, depth <= 125 ? text : NULL);
    }
}

static void test_numbers(void)
{
    static const struct {
        const char *text;
        bool ok;
        uint64_t value;
    } cases[] = {
        {"0 ", true, 0},
        {"18446744073709551615", true, UINT64_MAX},
        {"18446744073709551616", false, 0},
        {"99999999999999999999", false, 0},
        {"00", false, 0},
        {"01", false, 0},
        {"-1", false, 0},
        {"-0", false, 0},
        {"1.0", false, 0},
        {"1e0", false, 0},
        {"1E0", false, 0},
        {"", false, 0},
        {"\"1\"", false, 0},
        {"null", false, 0},
        {"9007199254740993", true, 9007199254740993u},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        for (size_t window = 1; window < 30; window += 9) {
            struct ckpt_err err = {0};
            uint64_t value = 0;
            struct tokens t = begin(cases[i].text, strlen(cases[i].text), window, &err);
            int r = ckpt_tokens_u64(&t, &value);
            CHECK((r == 0) == cases[i].ok && err.code == -r && value == cases[i].value);
            finish(&t);
        }
}

/* Names with NUL bytes, what does not fit, and going back. */
static void test_strings(void)
{
    static const char text[] = "\"a\\u0000b\" \"0123456789\" 7";
    for (size_t window = 1; window < 40; window++) {
        struct ckpt_err err = {0};
        struct ckpt_buf out = {.max = 5};
        uint64_t seven;
        struct tokens t = begin(text, strlen(text), window, &err);
        CHECK(ckpt_tokens_place(&t) == 0 && ckpt_tokens_string(&t, &out) == 0 && out.len == 3 &&
              !memcmp(out.data, "a\0b", 3));
        CHECK(ckpt_tokens_place(&t) == 11 && ckpt_tokens_string(&t, &out) == 0 && ckpt_buf_error(&out) == -EFBIG);
        CHECK(ckpt_tokens_u64(&t, &seven) == 0 && seven == 7 && ckpt_tokens_end(&t) == 0);
        ckpt_buf_clear(&out);
        ckpt_tokens_seek(&t, 0);
        CHECK(ckpt_tokens_string(&t, &out) == 0 && out.len == 3);
        ckpt_tokens_seek(&t, 11);
        CHECK(ckpt_tokens_peek(&t) == '"' && ckpt_tokens_string(&t, NULL) == 0);
        ckpt_buf_clear(&out);
        finish(&t);
    }
}

int main(void)
{
    test_values();
    test_nesting();
    test_numbers();
    test_strings();
    return 0;
}
