/* SPDX-License-Identifier: Apache-2.0 */
#include "fs/commands/diff_private.h"

#include "core/base/util.h"

#include <math.h>

const char *fs_diff_suffix(const char *kind)
{
    if (!kind)
        return "";
    if (!strcmp(kind, "array"))
        return ".npy";
    return !strcmp(kind, "value") ? ".json" : "";
}

/* A key: the listed name without the suffix that its kind gives it. */
static char *key_of(const char *path, const char *kind)
{
    const char *suffix = fs_diff_suffix(kind);
    size_t n = strlen(path), end = strlen(suffix);
    bool has_suffix = n > end && !strcmp(path + n - end, suffix);
    return strndup(path, has_suffix ? n - end : n);
}

static void begin(struct fs_diff *d, const char *type, const char *path, const char *kind)
{
    CKPT_AUTOFREE char *key = key_of(path, kind);
    const char *shown = key ? key : path;
    fs_progress_clear(&d->progress);
    if (d->json) {
        fputs(d->told ? ",\n" : "\n", stdout);
        fs_json_pair(stdout, "{", "type", type);
        fs_json_pair(stdout, ",", "path", shown);
        fs_json_pair(stdout, ",", "file", path);
    } else {
        printf("%s: ", type);
        fs_put_name(stdout, *shown ? shown : ".");
    }
    d->told++;
    d->differences++;
}

static void end(struct fs_diff *d)
{
    fputs(d->json ? "}" : "\n", stdout);
}

void fs_diff_tell_only(struct fs_diff *d, int side, const char *path, const char *kind)
{
    begin(d, side ? "only in B" : "only in A", path, kind);
    end(d);
}

void fs_diff_tell_texts(struct fs_diff *d, const char *type, const struct fs_pair *p, const char *a, const char *b)
{
    begin(d, type, p->path, p->kind[0]);
    if (d->json) {
        fs_json_pair(stdout, ",", "a", a);
        fs_json_pair(stdout, ",", "b", b);
    } else {
        putchar(' ');
        fs_put_name(stdout, a);
        putchar(' ');
        fs_put_name(stdout, b);
    }
    end(d);
}

static void put_json(const char *key, const cJSON *value)
{
    CKPT_AUTOFREE char *text = cJSON_PrintUnformatted(value);
    printf(",\"%s\":%s", key, text ? text : "null");
}

void fs_diff_tell_json(struct fs_diff *d, const char *type, const struct fs_pair *p, const cJSON *a, const cJSON *b)
{
    begin(d, type, p->path, p->kind[0]);
    put_json("a", a);
    put_json("b", b);
    end(d);
}

void fs_diff_tell_values(struct fs_diff *d, const struct fs_pair *p, const struct fs_compare *c, uint64_t count,
                         const char *unit)
{
    unsigned long long different = c->different, of = count;
    bool has_max = c->dtype != CKPT_DT_OTHER;
    begin(d, "value", p->path, p->kind[0]);
    if (d->json) {
        printf(",\"different\":%llu,\"%s\":%llu", different, unit, of);
        if (has_max && isfinite(c->max)) /* JSON has no other numbers */
            printf(",\"max\":%.17g", c->max);
    } else {
        printf(" %llu of %llu %s", different, of, unit);
        if (has_max)
            printf(", max |d| %.12g", c->max);
    }
    end(d);
}

void fs_diff_tell_error(struct fs_diff *d, int side, const char *path, int error, const struct ckpt_err *err)
{
    fs_progress_clear(&d->progress);
    if (d->json) {
        fputs(d->told ? ",\n" : "\n", stdout);
        fs_json_pair(stdout, "{", "type", "error");
        fs_json_pair(stdout, ",", "file", path);
        fs_json_pair(stdout, ",", "side", side ? "b" : "a");
        fputs(",\"error\":", stdout);
        fs_json_error(stdout, error, err);
        putchar('}');
        d->told++;
    }
    fflush(stdout);
    fprintf(stderr, "ckptfs diff: %c: ", side ? 'B' : 'A');
    fs_put_name(stderr, *path ? path : ".");
    fputs(": ", stderr);
    fs_put_name(stderr, fs_reason(error, err));
    fputc('\n', stderr);
    if (!d->status)
        d->status = fs_status(error) == FS_INTEGRITY ? FS_INTEGRITY : FS_PARTLY;
}
