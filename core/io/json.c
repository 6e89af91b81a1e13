/* SPDX-License-Identifier: Apache-2.0 */
#include "core/io/json.h"

#include "core/base/util.h"

#include <math.h>

#define WINDOW      ((size_t)128 << 10)
#define MAX_NESTING 1000

struct ckpt_json_reader {
    struct ckpt_file *file;
    uint64_t off; /* of the window's end in the file */
    size_t at, end;
    int error;
    bool first; /* nothing of the innermost container has been taken yet */
    uint8_t window[WINDOW];
};

int ckpt_json_open(struct ckpt_file *file, struct ckpt_json_reader **ret)
{
    struct ckpt_json_reader *r = malloc(sizeof *r);
    if (!r)
        return -ENOMEM;
    memset(r, 0, offsetof(struct ckpt_json_reader, window));
    r->file = file;
    *ret = r;
    return 0;
}

void ckpt_json_close(struct ckpt_json_reader *r)
{
    free(r);
}

void ckpt_json_seek(struct ckpt_json_reader *r, uint64_t off)
{
    r->off = off;
    r->at = r->end = 0;
}

/* The next byte, not taken; -1 at the end or after an error. */
static int peek(struct ckpt_json_reader *r)
{
    if (r->at == r->end) {
        ssize_t n = r->error ? 0 : ckpt_file_read(r->file, r->window, WINDOW, r->off);
        if (n <= 0) {
            r->error = n < 0 ? (int)n : r->error;
            return -1;
        }
        r->off += (uint64_t)n;
        r->at = 0;
        r->end = (size_t)n;
    }
    return r->window[r->at];
}

static int skip_space(struct ckpt_json_reader *r)
{
    int c;
    while ((c = peek(r)) == ' ' || c == '\n' || c == '\t' || c == '\r')
        r->at++;
    return c;
}

static int bad(struct ckpt_json_reader *r, const char *what, struct ckpt_err *err)
{
    if (r->error)
        return ckpt_fail(err, -r->error, "%s", strerror(-r->error));
    return ckpt_fail(err, EUCLEAN, "not valid JSON at byte %llu: %s", (unsigned long long)(r->off - (r->end - r->at)),
                     what);
}

static int enter(struct ckpt_json_reader *r, int open, struct ckpt_err *err)
{
    if (skip_space(r) != open)
        return bad(r, open == '{' ? "an object is missing" : "an array is missing", err);
    r->at++;
    r->first = true;
    return 0;
}

int ckpt_json_enter_object(struct ckpt_json_reader *r, struct ckpt_err *err)
{
    return enter(r, '{', err);
}

int ckpt_json_enter_array(struct ckpt_json_reader *r, struct ckpt_err *err)
{
    return enter(r, '[', err);
}

int ckpt_json_element(struct ckpt_json_reader *r, struct ckpt_err *err)
{
    int c = skip_space(r);
    if (c == ']' || c == '}') {
        r->at++;
        r->first = false;
        return 0;
    }
    if (!r->first) {
        if (c != ',')
            return bad(r, "a comma is missing", err);
        r->at++;
    }
    r->first = false;
    return skip_space(r) < 0 ? bad(r, "it ends too early", err) : 1;
}

int ckpt_json_peek(struct ckpt_json_reader *r)
{
    return skip_space(r);
}

/* Take a string literal, quotes and all. */
static int take_string(struct ckpt_json_reader *r, struct ckpt_buf *text, struct ckpt_err *err)
{
    bool escaped = false;
    for (int quotes = 0; quotes < 2; r->at++) {
        int c = peek(r);
        if (c < 0)
            return bad(r, "a string does not end", err);
        if (text)
            ckpt_buf_addc(text, (char)c);
        if (escaped)
            escaped = false;
        else if (c == '\\')
            escaped = true;
        else if (c == '"')
            quotes++;
    }
    return 0;
}

int ckpt_json_value(struct ckpt_json_reader *r, struct ckpt_buf *text, struct ckpt_err *err)
{
    unsigned depth = 0;
    bool ended = false; /* a string or a word has: without a comma the next one would become part of it in *text */
    if (text)
        text->len = 0;
    r->first = false;
    for (;;) {
        int c = depth ? skip_space(r) : ckpt_json_peek(r);
        if (c < 0)
            return bad(r, "it ends too early", err);
        if (c == '"') {
            if (ended)
                return bad(r, "a comma is missing", err);
            int e = take_string(r, text, err);
            if (e < 0)
                return e;
            ended = true;
        } else if (c == '{' || c == '[' || c == '}' || c == ']' || c == ',' || c == ':') {
            if (c == '{' || c == '[') {
                if (++depth > MAX_NESTING)
                    return bad(r, "nested too deeply", err);
            } else if (!depth)
                return bad(r, "a value is missing", err);
            else if (c == '}' || c == ']')
                depth--;
            if (text)
                ckpt_buf_addc(text, (char)c);
            r->at++;
            ended = c == '}' || c == ']';
        } else { /* a number or a word */
            if (ended || c < ' ')
                return bad(r, ended ? "a comma is missing" : "a control character", err);
            ended = true;
            while ((c = peek(r)) > ' ' && !strchr(",:]}[{\"", c)) {
                if (text)
                    ckpt_buf_addc(text, (char)c);
                r->at++;
            }
        }
        if (text && ckpt_buf_error(text))
            return ckpt_fail(err, ckpt_buf_error(text) == -EFBIG ? EUCLEAN : ENOMEM, "a JSON value is too large");
        if (!depth)
            return 0;
    }
}

int ckpt_json_member(struct ckpt_json_reader *r, struct ckpt_buf *key, struct ckpt_err *err)
{
    int n = ckpt_json_element(r, err);
    if (n <= 0)
        return n;
    if (peek(r) != '"')
        return bad(r, "a member's name is missing", err);
    key->len = 0;
    int e = take_string(r, key, err);
    if (e < 0)
        return e;
    cJSON *s = ckpt_buf_error(key) ? NULL : ckpt_json_parse((char *)key->data, key->len);
    if (!s || !cJSON_IsString(s)) {
        cJSON_Delete(s);
        return bad(r, "a member's name is not a string", err);
    }
    key->len = 0;
    ckpt_buf_adds(key, s->valuestring);
    ckpt_buf_addc(key, 0);
    key->len--;
    cJSON_Delete(s);
    if (ckpt_buf_error(key))
        return ckpt_no_memory(err);
    if (skip_space(r) != ':')
        return bad(r, "a colon is missing", err);
    r->at++;
    return 1;
}

int ckpt_json_end(struct ckpt_json_reader *r, struct ckpt_err *err)
{
    return skip_space(r) < 0 && !r->error ? 0 : bad(r, "something follows its end", err);
}

cJSON *ckpt_json_parse(const char *text, size_t len)
{
    const char *end;
    for (const char *p = text; (p = memmem(p, (size_t)(text + len - p), "\\u0000", 6)); p += 6) {
        size_t slashes = 0;
        while (p - slashes > text && p[-1 - (ptrdiff_t)slashes] == '\\')
            slashes++;
        if (slashes % 2 == 0)
            return NULL;
    }
    if (!len || memchr(text, 0, len))
        return NULL;
    cJSON *item = cJSON_ParseWithLengthOpts(text, len, &end, false);
    while (item && end < text + len && strchr(" \n\t\r", *end))
        end++;
    if (item && end != text + len) {
        cJSON_Delete(item);
        item = NULL;
    }
    return item;
}

void ckpt_json_tame(char *text)
{
    static const char *const odd[] = {"\"value\":NaN", "\"value\":Infinity", "\"value\":-Infinity"};
    for (char *p = text; (p = strchr(p, '\\')) && p[1]; p += 2)
        if (!strncmp(p, "\\u0000", 6))
            memcpy(p, "\\uFFFD", 6);
    for (size_t i = 0; i < sizeof odd / sizeof *odd; i++) {
        char *p = strstr(text, odd[i]); /* inside of a string its quotes would be escaped */
        if (p) {
            memset(p + strlen("\"value\":"), ' ', strlen(odd[i]) - strlen("\"value\":"));
            p[strlen("\"value\":")] = '0';
        }
    }
}

const cJSON *ckpt_json_get(const cJSON *object, const char *key)
{
    return cJSON_GetObjectItemCaseSensitive(object, key);
}

bool ckpt_json_u64(const cJSON *item, uint64_t *ret)
{
    if (!cJSON_IsNumber(item) || !(item->valuedouble >= 0) || item->valuedouble > 9007199254740992.0 ||
        item->valuedouble != floor(item->valuedouble))
        return false;
    *ret = (uint64_t)item->valuedouble;
    return true;
}
