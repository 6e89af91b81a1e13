/* SPDX-License-Identifier: Apache-2.0 */
#include "core/tree/key.h"

#include "tests/unit/check.h"

static void check_name(const char *want, const char *key, size_t len, unsigned chars, const char *suffix)
{
    struct ckpt_buf buf = CKPT_BUF_INIT;
    size_t got_len;
    char *exact = malloc(len ? len : 1); /* of its exact length, so that a sanitizer sees a read beyond it */
    CHECK(exact);
    memcpy(exact, key, len);
    ckpt_key_escape_first(&buf, exact, len, chars, suffix);
    free(exact);
    char *got = ckpt_buf_steal(&buf, &got_len);
    CHECK(got && got_len == strlen(got) && got_len <= CKPT_NAME_MAX);
    CHECK_STR(got, want);
    free(got);
}

static void check_short(void)
{
    static const struct {
        const char *key;
        unsigned chars;
        const char *suffix, *want;
    } cases[] = {
        {"kernel", 0, ".npy", "kernel.npy"},
        {"", 0, ".npy", "%.npy"},
        {"", 0, "", "%"},
        {"", 3, ".json", "%.json"},
        {".", 0, "", "%2E"},
        {"..", 0, ".npy", "%2E%2E.npy"},
        {"..", 1, "", "%2E%2E"},
        {"...", 0, "", "..."},
        {"a.b", 0, "", "a.b"},
        {"a/b%c", 0, "", "a%2Fb%25c"},
        {"\x01\x1f\x7f\n ", 0, "", "%01%1F%7F%0A "},
        {"h\xc3\xa9 \xe6\xbc\xa2 \xf0\x9f\x98\x80", 0, "", "h\xc3\xa9 \xe6\xbc\xa2 \xf0\x9f\x98\x80"},
        {"\xff\xc3", 0, "", "\xff\xc3"},

        {".ckptfs", 1, "", "%2Eckptfs"},
        {"abc", 1, ".npy", "%61bc.npy"},
        {"abc", 2, ".npy", "%61%62c.npy"},
        {"abc", 9, ".npy", "%61%62%63.npy"},
        {"/a", 1, "", "%2Fa"},
        {"/a", 2, "", "%2F%61"},
        {"\xc3\xa9x", 1, "", "%C3%A9x"},
        {"\xe6\xbc\xa2x", 2, "", "%E6%BC%A2%78"},
        {"\xf0\x9f\x98\x80x", 1, "", "%F0%9F%98%80x"},
        {"\xffz", 1, "", "%FFz"},                       /* each bad byte is a character: */
        {"\xc3z", 1, "", "%C3z"},                       /* cut short */
        {"\xc3", 1, "", "%C3"},                         /* cut short at the end */
        {"\xe6\xbc", 1, "", "%E6\xbc"},                 /* likewise */
        {"\xc0\x80z", 1, "", "%C0\x80z"},               /* overlong */
        {"\xe0\x9f\xbfz", 1, "", "%E0\x9f\xbfz"},       /* overlong */
        {"\xed\xa0\x80z", 1, "", "%ED\xa0\x80z"},       /* a surrogate */
        {"\xf4\x90\x80\x80", 1, "", "%F4\x90\x80\x80"}, /* beyond U+10FFFF */
        {"\xed\x9f\xbfz", 1, "", "%ED%9F%BFz"},
        {"\xf4\x8f\xbf\xbfz", 1, "", "%F4%8F%BF%BFz"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++)
        check_name(cases[i].want, cases[i].key, strlen(cases[i].key), cases[i].chars, cases[i].suffix);
    check_name("a%00b.npy", "a\0b", 3, 0, ".npy");
}

static void repeat(char *to, const char *head, const char *unit, int n, const char *tail)
{
    to += sprintf(to, "%s", head);
    while (n-- > 0)
        to += sprintf(to, "%s", unit);
    strcpy(to, tail);
}

/* The digests are those of sha256sum. */
static void check_long(void)
{
    static const struct {
        const char *head, *unit;
        int n;
        const char *suffix, *want_head, *want_unit;
        int want_n;
        const char *want_tail;
    } cases[] = {
        {"", "a", 251, ".npy", "", "a", 251, ".npy"}, /* 255 bytes: fits */
        {"", "a", 255, "", "", "a", 255, ""},
        {"", "a", 252, ".npy", "", "a", 233, "%~03aaf5773717feae.npy"},
        {"", "a", 300, ".npy", "", "a", 233, "%~9835fa6bf4e20a9b.npy"},
        {"", "\xc3\xa9", 128, "", "", "\xc3\xa9", 118, "%~e42dd264fd5cf1bc"},
        {"x", "\xc3\xa9", 130, ".json", "x", "\xc3\xa9", 115, "%~297c20097a2661ec.json"},
        {"", "\xe6\xbc\xa2", 90, ".npy", "", "\xe6\xbc\xa2", 77, "%~cb2607eb0580a1ee.npy"},
        {"", "/", 100, ".npy", "", "%2F", 77, "%~4aaecdd8a94cb7ab.npy"}, /* long only when escaped */
        {"ab", "/", 85, ".npy", "ab", "%2F", 77, "%~c4a700c118e513a2.npy"},
    };
    char key[512], want[512];
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        repeat(key, cases[i].head, cases[i].unit, cases[i].n, "");
        repeat(want, cases[i].want_head, cases[i].want_unit, cases[i].want_n, cases[i].want_tail);
        check_name(want, key, strlen(key), 0, cases[i].suffix);
    }
    /* the digest stays that of the key when the first character is escaped */
    repeat(key, "", "a", 300, "");
    repeat(want, "%61", "a", 230, "%~9835fa6bf4e20a9b.npy");
    check_name(want, key, strlen(key), 1, ".npy");
}

int main(void)
{
    check_short();
    check_long();
    struct ckpt_buf buf = CKPT_BUF_INIT;
    ckpt_buf_adds(&buf, "dir/"); /* appended, not assigned */
    ckpt_key_escape(&buf, "a/b", 3, ".npy");
    char *got = ckpt_buf_steal(&buf, NULL);
    CHECK(got);
    CHECK_STR(got, "dir/a%2Fb.npy");
    free(got);
    return 0;
}
