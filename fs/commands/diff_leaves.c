/* SPDX-License-Identifier: Apache-2.0 */
/* Two leaves of one kind, block by block. */
#include "fs/commands/diff_private.h"
#include "fs/commands/elements.h"

#include "core/base/util.h"

#include <math.h>

#define SHOWN  60    /* bytes of a value */
#define PARSED 65536 /* bytes of a value whose text is looked into */

/* --- bytes --- */

/* One block of both; the bytes of it, 0 at the end, or -1 when that was told. */
static ssize_t read_both(struct fs_diff *d, const struct fs_pair *p, size_t len, uint64_t off)
{
    ssize_t n[2];
    for (int i = 0; i < 2; i++) {
        struct ckpt_err err = {0};
        n[i] = ckpt_read(d->side[i].src, p->at[i].id, d->block[i], len, off, &err);
        if (n[i] < 0) {
            fs_diff_tell_error(d, i, p->path, (int)n[i], &err);
            return -1;
        }
    }
    fs_progress_add(&d->progress, p->path, (uint64_t)n[0]);
    return CKPT_MIN(n[0], n[1]);
}

/* Where the zeros end that both have at off, and that need not be read; off: there are none. */
static uint64_t skip_zeros(struct fs_diff *d, const struct fs_pair *p, uint64_t off)
{
    uint64_t end[2];
    for (int i = 0; i < 2; i++)
        if (ckpt_run(d->side[i].src, p->at[i].id, off, &end[i], NULL) != 0)
            return off;
    return CKPT_MIN(end[0], end[1]);
}

/* Two files of one size. False: an error was told. */
static bool compare_bytes(struct fs_diff *d, const struct fs_pair *p, struct fs_compare *c)
{
    uint64_t off = 0;
    for (;;) {
        ssize_t n = read_both(d, p, FS_DIFF_BLOCK, off);
        if (n <= 0)
            return n == 0;
        fs_compare_block(c, d->block[0], d->block[1], (size_t)n, off);
        off = skip_zeros(d, p, off + (uint64_t)n);
    }
}

/* An array that is compared as a file is told under its whole name. */
static struct fs_pair as_file(const struct fs_pair *p)
{
    struct fs_pair file = *p;
    file.kind[0] = file.kind[1] = NULL;
    return file;
}

void fs_diff_files(struct fs_diff *d, const struct fs_pair *p)
{
    struct fs_compare c = {.dtype = CKPT_DT_OTHER, .itemsize = 1};
    struct fs_pair file = as_file(p);
    if (p->at[0].size != p->at[1].size) {
        char a[32], b[32];
        snprintf(a, sizeof a, "%llu", (unsigned long long)p->at[0].size);
        snprintf(b, sizeof b, "%llu", (unsigned long long)p->at[1].size);
        fs_diff_tell_texts(d, "size", &file, a, b);
        return;
    }
    if (d->meta || !compare_bytes(d, p, &c))
        return;
    if (c.different)
        fs_diff_tell_values(d, &file, &c, p->at[0].size, "bytes");
}

/* --- types and shapes --- */

/* What an .npy file says of the type, where the type's name is known. */
static const char *descr_of(const char *dtype)
{
    enum ckpt_dtype known;
    bool has_descr = ckpt_dtype_by_name(dtype, &known) && known != CKPT_DT_OTHER;
    return has_descr ? ckpt_dtype_info(known)->descr : dtype;
}

static bool is_real_number(const char *dtype, enum ckpt_dtype *ret)
{
    if (!ckpt_dtype_by_name(dtype, ret) || *ret == CKPT_DT_OTHER)
        return false;
    return ckpt_dtype_info(*ret)->klass != CKPT_DC_COMPLEX;
}

/* Of the two sides; "" where none is known. */
static void get_dtypes(const struct fs_pair *p, const char *ret[2])
{
    for (int i = 0; i < 2; i++) {
        const char *dtype = cJSON_GetStringValue(ckpt_json_get(p->meta[i], "dtype"));
        ret[i] = dtype ? dtype : "";
    }
}

static bool is_plain(const struct fs_pair *p)
{
    return p->is_plain[0] || p->is_plain[1];
}

/* Types that share a descr are one where a plain .npy file is a side, since it can say no more. */
static bool is_same_dtype(const struct fs_pair *p, const char *const dtype[2])
{
    if (!strcmp(dtype[0], dtype[1]))
        return true;
    return is_plain(p) && !strcmp(descr_of(dtype[0]), descr_of(dtype[1]));
}

static void tell_dtypes(struct fs_diff *d, const struct fs_pair *p, const char *const dtype[2])
{
    const char *shown[2];
    for (int i = 0; i < 2; i++)
        shown[i] = *dtype[i] ? dtype[i] : "none";
    fs_diff_tell_texts(d, "dtype", p, shown[0], shown[1]);
}

static bool compare_shapes(struct fs_diff *d, const struct fs_pair *p)
{
    const cJSON *a = ckpt_json_get(p->meta[0], "shape"), *b = ckpt_json_get(p->meta[1], "shape");
    char shown[2][256];
    if (cJSON_Compare(a, b, true))
        return true;
    if (d->json)
        fs_diff_tell_json(d, "shape", p, a, b);
    else
        fs_diff_tell_texts(d, "shape", p, fs_shape(a, shown[0]), fs_shape(b, shown[1]));
    return false;
}

/* --- arrays --- */

/* One block of both, from element `first` on: the elements in it, 0 at the end, -1 when an error was told. */
static int64_t read_elements(struct fs_diff *d, const struct fs_pair *p, struct fs_elements *e, uint64_t first)
{
    uint64_t room = FS_DIFF_BLOCK / CKPT_MAX(e[0].npy.itemsize, e[1].npy.itemsize);
    for (int i = 0; i < 2; i++) {
        struct ckpt_err err = {0};
        ssize_t n = fs_elements_read(&e[i], d->block[i], room * e[i].npy.itemsize, first, &err);
        if (n < 0) {
            fs_diff_tell_error(d, i, p->path, (int)n, &err);
            return -1;
        }
        room = (uint64_t)n / e[i].npy.itemsize;
    }
    fs_progress_add(&d->progress, p->path, room * e[0].npy.itemsize);
    return (int64_t)room;
}

static void compare_elements(struct fs_diff *d, const struct fs_pair *p, struct fs_elements *e, struct fs_compare *c)
{
    uint64_t first = 0;
    int64_t n = read_elements(d, p, e, first);
    while (n > 0) {
        if (c->is_mixed)
            fs_compare_mixed(c, d->block[0], d->block[1], (size_t)n);
        else
            fs_compare_block(c, d->block[0], d->block[1], (size_t)n * c->itemsize, first * c->itemsize);
        first += (uint64_t)n;
        uint64_t a = fs_elements_skip(&e[0], first), b = fs_elements_skip(&e[1], first);
        first = CKPT_MIN(a, b);
        n = read_elements(d, p, e, first);
    }
    if (n == 0 && c->different)
        fs_diff_tell_values(d, p, c, e[0].count, "elements");
}

/* Objects, and strings that are larger than a block, cannot be told apart: such an array is compared as a file. */
static bool are_elements(const struct fs_elements *e, const struct fs_compare *c)
{
    for (int i = 0; i < 2; i++)
        if (!e[i].npy.itemsize || e[i].npy.itemsize > FS_DIFF_BLOCK)
            return false;
    if (e[0].count != e[1].count)
        return false;
    return c->is_mixed || e[0].npy.itemsize == e[1].npy.itemsize;
}

/* The bytes are not those of an array; as a file they can be compared. */
static bool is_no_array(int r)
{
    return r == -EUCLEAN || r == -EBADMSG || r == -EOPNOTSUPP;
}

/* 0, or the error that ends the comparison, which was told; 1: it is to be compared as a file. */
static int open_elements(struct fs_diff *d, const struct fs_pair *p, struct fs_elements *e)
{
    for (int i = 0; i < 2; i++) {
        struct ckpt_err err = {0};
        int r = fs_elements_open(d->side[i].src, d->side[i].at.id, p->path, &p->at[i], &e[i], &err);
        if (is_no_array(r))
            return 1;
        if (r < 0) {
            fs_diff_tell_error(d, i, p->path, r, &err);
            return r;
        }
    }
    return 0;
}

static void close_elements(struct fs_elements *e)
{
    for (int i = 0; i < 2; i++)
        if (e[i].src)
            fs_elements_close(&e[i]);
}

static void compare_contents(struct fs_diff *d, const struct fs_pair *p, const char *const dtype[2],
                             struct fs_compare *c)
{
    struct fs_elements e[2] = {0};
    int r = open_elements(d, p, e);
    if (r == 0 && are_elements(e, c)) {
        c->itemsize = e[0].npy.itemsize;
        bool is_known = ckpt_dtype_by_name(dtype[0], &c->dtype) && ckpt_dtype_info(c->dtype)->size == c->itemsize;
        if (!is_known)
            c->dtype = CKPT_DT_OTHER;
        if (!c->is_mixed)
            c->other = c->dtype;
        compare_elements(d, p, e, c);
    } else if (r >= 0)
        fs_diff_files(d, p);
    close_elements(e);
}

static bool has_tolerance(const struct fs_diff *d)
{
    return d->rtol > 0 || d->atol > 0;
}

/* Two types of numbers, which a tolerance can compare. */
static bool is_mixed(const struct fs_diff *d, const char *const dtype[2], enum ckpt_dtype *ret_other)
{
    enum ckpt_dtype first;
    if (d->meta || !has_tolerance(d))
        return false;
    return is_real_number(dtype[0], &first) && is_real_number(dtype[1], ret_other);
}

void fs_diff_arrays(struct fs_diff *d, const struct fs_pair *p)
{
    struct fs_compare c = {.dtype = CKPT_DT_OTHER, .rtol = d->rtol, .atol = d->atol};
    const char *dtype[2];
    get_dtypes(p, dtype);
    bool is_same_shape = compare_shapes(d, p), is_same = is_same_dtype(p, dtype);
    c.is_mixed = !is_same && is_mixed(d, dtype, &c.other);
    bool can_compare = is_same || c.is_mixed;
    if (!can_compare)
        tell_dtypes(d, p, dtype);
    if (can_compare && is_same_shape && !d->meta)
        compare_contents(d, p, dtype, &c);
}

/* --- values --- */

static bool parse_whole(const char *text, double *ret)
{
    char *end;
    *ret = strtod(text, &end);
    return end != text && !*end;
}

static bool is_near(const struct fs_diff *d, char text[2][SHOWN + 4])
{
    double x, y;
    if (!has_tolerance(d) || !parse_whole(text[0], &x) || !parse_whole(text[1], &y))
        return false;
    bool are_nan = isnan(x) && isnan(y);
    return are_nan || fabs(x - y) <= d->atol + d->rtol * fabs(y);
}

/* The text of a value without the white space around it; its length, 0 when it is too long to be looked into. */
static size_t read_trimmed(const struct fs_diff *d, const struct fs_pair *p, int side, char *buf, char **ret)
{
    static const char space[] = " \t\r\n";
    *ret = buf;
    if (p->at[side].size > PARSED)
        return 0;
    ssize_t n = ckpt_read(d->side[side].src, p->at[side].id, buf, PARSED, 0, NULL);
    while (n > 0 && strchr(space, buf[n - 1]))
        n--;
    while (n > 0 && strchr(space, **ret)) {
        (*ret)++;
        n--;
    }
    return (size_t)CKPT_MAX(n, 0);
}

static bool is_same_string(char *const text[2], const size_t len[2])
{
    if (*text[0] != '"' || *text[1] != '"')
        return false;
    cJSON *a = ckpt_json_parse(text[0], len[0]), *b = ckpt_json_parse(text[1], len[1]);
    bool are_strings = cJSON_IsString(a) && cJSON_IsString(b);
    bool is_same = are_strings && !strcmp(a->valuestring, b->valuestring);
    cJSON_Delete(a);
    cJSON_Delete(b);
    return is_same;
}

/* Values that were written with other white space, or as strings with other escapes, are the same. */
static bool is_same_json(const struct fs_diff *d, const struct fs_pair *p)
{
    char *text[2];
    size_t len[2];
    CKPT_AUTOFREE char *buf = malloc(2 * PARSED);
    if (!buf)
        return false;
    for (int i = 0; i < 2; i++)
        len[i] = read_trimmed(d, p, i, buf + i * PARSED, &text[i]);
    if (!len[0] || !len[1])
        return false;
    if (len[0] == len[1] && !memcmp(text[0], text[1], len[0]))
        return true;
    return is_same_string(text, len);
}

/* The begin of a value, for people. False: an error was told. */
static bool read_shown(struct fs_diff *d, const struct fs_pair *p, int side, char ret[SHOWN + 4])
{
    struct ckpt_err err = {0};
    ssize_t n = ckpt_read(d->side[side].src, p->at[side].id, ret, SHOWN, 0, &err);
    if (n < 0) {
        fs_diff_tell_error(d, side, p->path, (int)n, &err);
        return false;
    }
    if (n && ret[n - 1] == '\n')
        n--;
    strcpy(ret + n, p->at[side].size > SHOWN ? "..." : "");
    return true;
}

void fs_diff_values(struct fs_diff *d, const struct fs_pair *p)
{
    struct fs_compare c = {.dtype = CKPT_DT_OTHER, .itemsize = 1};
    const char *dtype[2];
    char shown[2][SHOWN + 4];
    get_dtypes(p, dtype);
    bool is_same = is_plain(p) || !strcmp(dtype[0], dtype[1]);
    if (!is_same)
        tell_dtypes(d, p, dtype);
    if (!is_same || d->meta)
        return;
    if (p->at[0].size == p->at[1].size) {
        bool is_told = !compare_bytes(d, p, &c);
        if (is_told || !c.different)
            return;
    }
    if (is_same_json(d, p) || !read_shown(d, p, 0, shown[0]) || !read_shown(d, p, 1, shown[1]))
        return;
    if (!is_near(d, shown))
        fs_diff_tell_texts(d, "value", p, shown[0], shown[1]);
}
