/* SPDX-License-Identifier: Apache-2.0 */
/* ckptfs diff: two trees, leaf by leaf. Nothing is held but the two blocks that are being compared. */
#include "fs/commands/cli.h"
#include "fs/commands/commands.h"
#include "fs/commands/compare.h"
#include "fs/commands/elements.h"
#include "fs/commands/resolve.h"

#include "core/base/path.h"
#include "core/base/util.h"

#include <getopt.h>
#include <math.h>

#define BLOCK     ((size_t)4 << 20)
#define SHOWN     60 /* bytes of a value */
#define MAX_DEPTH 1024
/* --rtol alone: nothing is near zero by its own size, so NumPy's allclose has this too. */
#define ZERO_TOLERANCE 1e-8

struct diff {
    struct fs_place side[2];
    bool json, meta;
    double rtol, atol;
    uint8_t *block[2];
    uint64_t told, differences;
    int status; /* of the first thing that could not be compared */
    struct fs_progress progress;
};

/* --- telling --- */

/* A key: the listed name without the suffix that its kind gives it. */
static char *key_of(const char *path, const char *kind)
{
    const char *suffix = !kind ? "" : !strcmp(kind, "array") ? ".npy" : !strcmp(kind, "value") ? ".json" : "";
    size_t n = strlen(path), s = strlen(suffix);
    return n > s && !strcmp(path + n - s, suffix) ? strndup(path, n - s) : strdup(path);
}

static void begin(struct diff *d, const char *type, const char *path, const char *kind)
{
    CKPT_AUTOFREE char *key = key_of(path, kind);
    fs_progress_clear(&d->progress);
    if (d->json) {
        fputs(d->told ? ",\n" : "\n", stdout);
        fs_json_pair(stdout, "{", "type", type);
        fs_json_pair(stdout, ",", "path", key ? key : path);
        fs_json_pair(stdout, ",", "file", path);
    } else {
        printf("%s: ", type);
        fs_put_name(stdout, key && *key ? key : ".");
    }
    d->told++;
    d->differences++;
}

static void end(struct diff *d)
{
    fputs(d->json ? "}" : "\n", stdout);
}

static void tell_only(struct diff *d, int side, const char *path, const char *kind)
{
    begin(d, side ? "only in B" : "only in A", path, kind);
    end(d);
}

static void tell_texts(struct diff *d, const char *type, const char *path, const char *kind, const char *a,
                       const char *b)
{
    begin(d, type, path, kind);
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

static void tell_values(struct diff *d, const char *path, const char *kind, const struct fs_compare *c,
                        uint64_t elements, const char *unit)
{
    begin(d, "value", path, kind);
    if (d->json)
        printf(",\"different\":%llu,\"%s\":%llu", (unsigned long long)c->different, unit, (unsigned long long)elements);
    else
        printf(" %llu of %llu %s", (unsigned long long)c->different, (unsigned long long)elements, unit);
    if (c->dtype != CKPT_DT_OTHER && d->json && isfinite(c->max))
        printf(",\"max\":%.17g", c->max);
    else if (c->dtype != CKPT_DT_OTHER && !d->json)
        printf(", max |d| %.12g", c->max);
    end(d);
}

static void tell_error(struct diff *d, int side, const char *path, int error, const struct ckpt_err *err)
{
    fs_progress_clear(&d->progress);
    if (d->json) {
        fputs(d->told++ ? ",\n" : "\n", stdout);
        fs_json_pair(stdout, "{", "type", "error");
        fs_json_pair(stdout, ",", "file", path);
        fs_json_pair(stdout, ",", "side", side ? "b" : "a");
        fputs(",\"error\":", stdout);
        fs_json_error(stdout, error, err);
        putchar('}');
    }
    fflush(stdout);
    fprintf(stderr, "ckptfs diff: %c: ", side ? 'B' : 'A');
    fs_put_name(stderr, *path ? path : ".");
    fputs(": ", stderr);
    fs_put_name(stderr, err->code == -error && *err->text ? err->text : strerror(-error));
    fputc('\n', stderr);
    if (!d->status)
        d->status = fs_status(error) == FS_INTEGRITY ? FS_INTEGRITY : FS_PARTLY;
}

/* --- bytes --- */

struct pair {
    const char *path;
    struct ckpt_attr at[2];
    cJSON *meta[2];
    const char *kind[2];
    bool is_plain[2]; /* a file of a plain folder: what it is, its name and its first bytes say */
};

/* One block of both; the bytes of it, 0 at the end, or -1 when that was told. */
static ssize_t read_both(struct diff *d, const struct pair *p, size_t len, uint64_t off)
{
    ssize_t n[2];
    for (int i = 0; i < 2; i++) {
        struct ckpt_err err = {0};
        n[i] = ckpt_read(d->side[i].src, p->at[i].id, d->block[i], len, off, &err);
        if (n[i] < 0) {
            tell_error(d, i, p->path, (int)n[i], &err);
            return -1;
        }
    }
    fs_progress_add(&d->progress, p->path, (uint64_t)n[0]);
    return CKPT_MIN(n[0], n[1]);
}

/* Where the zeros end that both have at off, and that need not be read; off: there are none. */
static uint64_t skip_zeros(struct diff *d, const struct pair *p, uint64_t off)
{
    uint64_t end[2];
    for (int i = 0; i < 2; i++)
        if (ckpt_run(d->side[i].src, p->at[i].id, off, &end[i], NULL) != 0)
            return off;
    return CKPT_MIN(end[0], end[1]);
}

/* Two files of one size. False: an error was told. */
static bool compare_bytes(struct diff *d, const struct pair *p, struct fs_compare *c)
{
    ssize_t n;
    for (uint64_t off = 0; (n = read_both(d, p, BLOCK, off)) > 0;) {
        fs_compare_block(c, d->block[0], d->block[1], (size_t)n, off);
        off = skip_zeros(d, p, off + (uint64_t)n);
    }
    return n == 0;
}

static void compare_files(struct diff *d, const struct pair *p)
{
    struct fs_compare c = {.dtype = CKPT_DT_OTHER, .itemsize = 1};
    char a[32], b[32];
    snprintf(a, sizeof a, "%llu", (unsigned long long)p->at[0].size);
    snprintf(b, sizeof b, "%llu", (unsigned long long)p->at[1].size);
    if (p->at[0].size != p->at[1].size)
        tell_texts(d, "size", p->path, NULL, a, b);
    else if (!d->meta && compare_bytes(d, p, &c) && c.different)
        tell_values(d, p->path, NULL, &c, p->at[0].size, "bytes");
}

/* --- leaves --- */

/* What an .npy file says of the type, where the type's name is known. */
static const char *descr_of(const char *dtype)
{
    enum ckpt_dtype known;
    return ckpt_dtype_by_name(dtype, &known) && known != CKPT_DT_OTHER ? ckpt_dtype_info(known)->descr : dtype;
}

static bool is_real_number(const char *dtype, enum ckpt_dtype *ret)
{
    if (!ckpt_dtype_by_name(dtype, ret) || *ret == CKPT_DT_OTHER)
        return false;
    return ckpt_dtype_info(*ret)->klass != CKPT_DC_COMPLEX;
}

/* Of the two sides; "" where none is known. */
static void get_dtypes(const struct pair *p, const char *ret[2])
{
    for (int i = 0; i < 2; i++) {
        const char *dtype = cJSON_GetStringValue(ckpt_json_get(p->meta[i], "dtype"));
        ret[i] = dtype ? dtype : "";
    }
}

/* Types that share a descr are one where a plain .npy file is a side, since it can say no more. */
static bool is_same_dtype(const struct pair *p, const char *const dtype[2])
{
    bool plain = p->is_plain[0] || p->is_plain[1];
    return !strcmp(dtype[0], dtype[1]) || (plain && !strcmp(descr_of(dtype[0]), descr_of(dtype[1])));
}

static void tell_dtypes(struct diff *d, const struct pair *p, const char *const dtype[2])
{
    tell_texts(d, "dtype", p->path, p->kind[0], *dtype[0] ? dtype[0] : "none", *dtype[1] ? dtype[1] : "none");
}

static bool compare_shapes(struct diff *d, const struct pair *p)
{
    const cJSON *a = ckpt_json_get(p->meta[0], "shape"), *b = ckpt_json_get(p->meta[1], "shape");
    char ta[256], tb[256];
    if (cJSON_Compare(a, b, true))
        return true;
    if (!d->json) {
        tell_texts(d, "shape", p->path, p->kind[0], fs_shape(a, ta), fs_shape(b, tb));
        return false;
    }
    CKPT_AUTOFREE char *ja = cJSON_PrintUnformatted(a), *jb = cJSON_PrintUnformatted(b);
    begin(d, "shape", p->path, p->kind[0]);
    printf(",\"a\":%s,\"b\":%s", ja ? ja : "null", jb ? jb : "null");
    end(d);
    return false;
}

/* One block of both, from element `first` on: the elements in it, 0 at the end, -1 when an error was told. */
static int64_t read_elements(struct diff *d, const struct pair *p, struct fs_elements *e, uint64_t first)
{
    uint64_t room = BLOCK / CKPT_MAX(e[0].npy.itemsize, e[1].npy.itemsize);
    for (int i = 0; i < 2; i++) {
        struct ckpt_err err = {0};
        ssize_t n = fs_elements_read(&e[i], d->block[i], room * e[i].npy.itemsize, first, &err);
        if (n < 0) {
            tell_error(d, i, p->path, (int)n, &err);
            return -1;
        }
        room = (uint64_t)n / e[i].npy.itemsize;
    }
    fs_progress_add(&d->progress, p->path, room * e[0].npy.itemsize);
    return (int64_t)room;
}

static void compare_elements(struct diff *d, const struct pair *p, struct fs_elements *e, struct fs_compare *c)
{
    int64_t n;
    for (uint64_t first = 0; (n = read_elements(d, p, e, first)) > 0;) {
        if (c->is_mixed)
            fs_compare_mixed(c, d->block[0], d->block[1], (size_t)n);
        else
            fs_compare_block(c, d->block[0], d->block[1], (size_t)n * c->itemsize, first * c->itemsize);
        first += (uint64_t)n;
        uint64_t a = fs_elements_skip(&e[0], first), b = fs_elements_skip(&e[1], first);
        first = CKPT_MIN(a, b);
    }
    if (n == 0 && c->different)
        tell_values(d, p->path, p->kind[0], c, e[0].count, "elements");
}

/* An array whose elements cannot be told apart (objects, strings that are larger than a block) is compared as a file.
 */
static bool are_elements(const struct fs_elements *e, const struct fs_compare *c)
{
    for (int i = 0; i < 2; i++)
        if (!e[i].npy.itemsize || e[i].npy.itemsize > BLOCK)
            return false;
    return e[0].count == e[1].count && (c->is_mixed || e[0].npy.itemsize == e[1].npy.itemsize);
}

/* 0, or the error that ends the comparison, which was told; 1: it is to be compared as a file. */
static int open_elements(struct diff *d, const struct pair *p, struct fs_elements *e)
{
    for (int i = 0; i < 2; i++) {
        struct ckpt_err err = {0};
        int r = fs_elements_open(d->side[i].src, d->side[i].at.id, p->path, &p->at[i], &e[i], &err);
        if (r == -EUCLEAN || r == -EBADMSG || r == -EOPNOTSUPP)
            return 1;
        if (r < 0) {
            tell_error(d, i, p->path, r, &err);
            return r;
        }
    }
    return 0;
}

static void compare_arrays(struct diff *d, const struct pair *p)
{
    struct fs_compare c = {.dtype = CKPT_DT_OTHER, .rtol = d->rtol, .atol = d->atol};
    struct fs_elements e[2] = {0};
    enum ckpt_dtype known[2];
    const char *dtype[2];
    get_dtypes(p, dtype);
    bool same_shape = compare_shapes(d, p), same_dtype = is_same_dtype(p, dtype);
    bool has_tolerance = !d->meta && (d->rtol > 0 || d->atol > 0);
    c.is_mixed = !same_dtype && has_tolerance && is_real_number(dtype[0], &known[0]) &&
                 is_real_number(dtype[1], &known[1]);
    if (!same_dtype && !c.is_mixed)
        tell_dtypes(d, p, dtype);
    if (!same_shape || d->meta || !(same_dtype || c.is_mixed))
        return;
    int r = open_elements(d, p, e);
    if (r == 0 && are_elements(e, &c)) {
        c.itemsize = e[0].npy.itemsize;
        bool is_known = ckpt_dtype_by_name(dtype[0], &c.dtype) && ckpt_dtype_info(c.dtype)->size == c.itemsize;
        if (!is_known)
            c.dtype = CKPT_DT_OTHER;
        c.other = c.is_mixed ? known[1] : c.dtype;
        compare_elements(d, p, e, &c);
    } else if (r >= 0)
        compare_files(d, p);
    for (int i = 0; i < 2; i++)
        if (e[i].src)
            fs_elements_close(&e[i]);
}

/* Texts of values, shortened; true when they are numbers that are near enough. */
static bool near_enough(const struct diff *d, char *text[2])
{
    char *end[2];
    double x = strtod(text[0], &end[0]), y = strtod(text[1], &end[1]);
    if (end[0] == text[0] || *end[0] || end[1] == text[1] || *end[1])
        return false;
    return (d->rtol > 0 || d->atol > 0) && (fabs(x - y) <= d->atol + d->rtol * fabs(y) || (isnan(x) && isnan(y)));
}

#define PARSED 65536 /* bytes of a value whose text is looked into */

/* Values that were written with other white space, or as strings with other escapes, are the same. */
static bool same_json(const struct diff *d, const struct pair *p)
{
    cJSON *value[2] = {NULL, NULL};
    CKPT_AUTOFREE char *text = malloc(2 * PARSED);
    char *begin[2] = {text, text + PARSED};
    size_t len[2] = {0, 0};
    for (int i = 0; text && i < 2; i++) {
        ssize_t n = p->at[i].size > PARSED ? 0 : ckpt_read(d->side[i].src, p->at[i].id, begin[i], PARSED, 0, NULL);
        while (n > 0 && strchr(" \t\r\n", begin[i][n - 1]))
            n--;
        for (; n > 0 && strchr(" \t\r\n", *begin[i]); begin[i]++)
            n--;
        len[i] = n > 0 ? (size_t)n : 0;
        value[i] = len[i] && *begin[i] == '"' ? ckpt_json_parse(begin[i], len[i]) : NULL;
    }
    bool same = len[0] && len[0] == len[1] && !memcmp(begin[0], begin[1], len[0]);
    if (cJSON_IsString(value[0]) && cJSON_IsString(value[1]))
        same = !strcmp(value[0]->valuestring, value[1]->valuestring);
    cJSON_Delete(value[0]);
    cJSON_Delete(value[1]);
    return same;
}

static void compare_values(struct diff *d, const struct pair *p)
{
    struct fs_compare c = {.dtype = CKPT_DT_OTHER, .itemsize = 1};
    const char *dtype[2];
    char shown[2][SHOWN + 4], *text[2] = {shown[0], shown[1]};
    get_dtypes(p, dtype);
    bool same_dtype = p->is_plain[0] || p->is_plain[1] || !strcmp(dtype[0], dtype[1]);
    if (!same_dtype)
        tell_dtypes(d, p, dtype);
    if (!same_dtype || d->meta)
        return;
    if (p->at[0].size == p->at[1].size && (!compare_bytes(d, p, &c) || !c.different))
        return;
    if (same_json(d, p))
        return;
    for (int i = 0; i < 2; i++) {
        struct ckpt_err err = {0};
        ssize_t n = ckpt_read(d->side[i].src, p->at[i].id, shown[i], SHOWN, 0, &err);
        if (n < 0) {
            tell_error(d, i, p->path, (int)n, &err);
            return;
        }
        n -= n && shown[i][n - 1] == '\n';
        strcpy(shown[i] + n, p->at[i].size > SHOWN ? "..." : "");
    }
    if (!near_enough(d, text))
        tell_texts(d, "value", p->path, p->kind[0], shown[0], shown[1]);
}

static int compare_dirs(struct diff *d, const struct pair *p, unsigned depth);

static const char *class_of(const struct pair *p, int side)
{
    const char *kind = p->kind[side];
    if (p->at[side].type == CKPT_DIR)
        return "container";
    return kind && (!strcmp(kind, "array") || !strcmp(kind, "value")) ? kind : "file";
}

/* An .npy file of a plain folder is the array that its header tells. NULL: it is none, or cannot be read. */
static cJSON *describe_plain(struct diff *d, const struct pair *p, int side)
{
    struct fs_elements e;
    if (!ckpt_has_suffix(p->path, ".npy") ||
        fs_elements_open(d->side[side].src, d->side[side].at.id, p->path, &p->at[side], &e, NULL) < 0)
        return NULL;
    cJSON *meta = cJSON_CreateObject(), *shape = cJSON_AddArrayToObject(meta, "shape");
    bool is_known = e.npy.dtype != CKPT_DT_OTHER;
    cJSON_AddStringToObject(meta, "dtype", is_known ? ckpt_dtype_info(e.npy.dtype)->name : e.npy.descr);
    cJSON_AddStringToObject(meta, "kind", "array");
    for (unsigned i = 0; i < e.npy.ndim; i++)
        cJSON_AddItemToArray(shape, cJSON_CreateNumber((double)e.npy.shape[i]));
    fs_elements_close(&e);
    return meta;
}

static bool describe(struct diff *d, struct pair *p, int side)
{
    struct ckpt_err err = {0};
    uint64_t bytes;
    if (p->at[side].type == CKPT_DIR)
        return true;
    cJSON_Delete(CKPT_STEAL(p->meta[side])); /* of an earlier look at this side alone */
    int r = fs_describe(d->side[side].src, p->at[side].id, &p->meta[side], &err);
    if (r < 0 && r != -ENODATA)
        tell_error(d, side, p->path, r, &err);
    p->is_plain[side] = r == -ENODATA;
    if (p->is_plain[side])
        p->meta[side] = describe_plain(d, p, side);
    if (p->at[side].view &&
        !(ckpt_json_u64(ckpt_json_get(p->meta[side], "bytes"), &bytes) && bytes == p->at[side].size))
        return r == 0; /* not the elements, but a slice or a text: to be compared as it is */
    p->kind[side] = cJSON_GetStringValue(ckpt_json_get(p->meta[side], "kind"));
    return r == 0 || r == -ENODATA;
}

static void compare_pair(struct diff *d, struct pair *p, unsigned depth)
{
    if (!describe(d, p, 0) || !describe(d, p, 1))
        return;
    const char *a = class_of(p, 0), *b = class_of(p, 1);
    bool is_json = ckpt_has_suffix(p->path, ".json");
    if (is_json && *a == 'v' && p->is_plain[1] && *b == 'f') /* values are files in a plain folder */
        b = a;
    else if (is_json && *b == 'v' && p->is_plain[0] && *a == 'f')
        a = b;
    if (strcmp(a, b))
        tell_texts(d, "kind", p->path, p->kind[0], a, b);
    else if (p->at[0].type == CKPT_DIR) {
        if (depth < MAX_DEPTH)
            compare_dirs(d, p, depth);
    } else
        (*a == 'a' ? compare_arrays : *a == 'v' ? compare_values : compare_files)(d, p);
}

static void pair_clear(struct pair *p)
{
    cJSON_Delete(p->meta[0]);
    cJSON_Delete(p->meta[1]);
}

/* --- directories --- */

struct walk {
    struct diff *d;
    const struct pair *dirs;
    int side; /* whose entries are visited */
    unsigned depth;
};

/* A listed entry of that name; views do not count. */
static int find_listed(struct diff *d, const struct pair *dirs, int side, const char *name, struct ckpt_attr *ret,
                       struct ckpt_err *err)
{
    int r = ckpt_lookup(d->side[side].src, dirs->at[side].id, name, ret, err);
    if (r == 0 && (ret->view || ret->type == CKPT_LINK)) {
        ckpt_forget(d->side[side].src, ret->id, 1);
        r = -ENOENT;
    }
    return r == -ENAMETOOLONG ? -ENOENT : r;
}

/* The entry of the same key that is of another kind, and so has another suffix; one that is a partner of its own does
 * not count. */
static bool find_other_kind(struct walk *w, const char *name, const char *kind, struct ckpt_attr *ret)
{
    static const char *const suffixes[] = {".npy", ".json", ""};
    const char *own = kind && !strcmp(kind, "array") ? ".npy" : kind && !strcmp(kind, "value") ? ".json" : "";
    size_t n = strlen(name) - strlen(own);
    for (size_t i = 0; i < 3; i++) {
        char other[512];
        struct ckpt_attr at;
        snprintf(other, sizeof other, "%.*s%s", (int)n, name, suffixes[i]);
        if (!strcmp(suffixes[i], own) || find_listed(w->d, w->dirs, !w->side, other, ret, NULL) < 0)
            continue;
        if (find_listed(w->d, w->dirs, w->side, other, &at, NULL) < 0)
            return true;
        ckpt_forget(w->d->side[w->side].src, at.id, 1);
        ckpt_forget(w->d->side[!w->side].src, ret->id, 1);
    }
    return false;
}

/* What one side has and the other does not have under this name. */
static void without_partner(struct walk *w, struct pair *p)
{
    struct diff *d = w->d;
    if (!describe(d, p, w->side))
        return;
    const char *name = strrchr(p->path, '/');
    if (!find_other_kind(w, name ? name + 1 : p->path, p->kind[w->side], &p->at[!w->side]))
        tell_only(d, w->side, p->path, p->kind[w->side]);
    else {
        if (w->side == 0) /* once */
            compare_pair(d, p, w->depth);
        ckpt_forget(d->side[!w->side].src, p->at[!w->side].id, 1);
    }
}

static int visit(void *arg, const struct ckpt_dirent *e)
{
    struct walk *w = arg;
    struct diff *d = w->d;
    struct ckpt_err err[2] = {0};
    CKPT_AUTOFREE char *path = ckpt_path_join(w->dirs->path, e->name);
    struct pair p = {.path = path};
    int own = w->side, other = !w->side;
    if (!path)
        return -ENOMEM;
    if (e->type == CKPT_LINK) /* what it points to is compared where it is */
        return 0;
    int r = ckpt_lookup(d->side[own].src, w->dirs->at[own].id, e->name, &p.at[own], &err[own]);
    if (r < 0 && r != -ENOENT)
        tell_error(d, own, path, r, &err[own]);
    if (r < 0)
        return 0;
    r = find_listed(d, w->dirs, other, e->name, &p.at[other], &err[other]);
    if (r == -ENOENT)
        without_partner(w, &p);
    else if (r < 0)
        tell_error(d, other, path, r, &err[other]);
    else {
        if (own == 0)
            compare_pair(d, &p, w->depth + 1);
        ckpt_forget(d->side[other].src, p.at[other].id, 1);
    }
    ckpt_forget(d->side[own].src, p.at[own].id, 1);
    pair_clear(&p);
    return 0;
}

static int compare_dirs(struct diff *d, const struct pair *p, unsigned depth)
{
    int r = 0;
    for (int i = 0; i < 2; i++) { /* both must open, or all of one would be missing in the other */
        struct ckpt_dir *dir;
        struct ckpt_err err = {0};
        bool immutable;
        int e = ckpt_opendir(d->side[i].src, p->at[i].id, &dir, &immutable, &err);
        if (e == 0)
            ckpt_closedir(dir);
        else
            tell_error(d, i, p->path, r = e, &err);
    }
    for (int i = 0; i < 2 && r == 0; i++) {
        struct walk w = {d, p, i, depth};
        struct ckpt_err err = {0};
        r = fs_each_entry(d->side[i].src, p->at[i].id, visit, &w, &err);
        if (r < 0)
            tell_error(d, i, p->path, r, &err);
    }
    return r;
}

/* --- the command --- */

static int run(struct diff *d, char **specs)
{
    struct pair top = {.path = ""};
    for (int i = 0; i < 2; i++) {
        struct ckpt_err err = {0};
        int r = fs_resolve(specs[i], &d->side[i], &err);
        d->block[i] = malloc(BLOCK);
        if (r == 0 && !d->block[i])
            r = -ENOMEM;
        if (r < 0)
            return fs_fail("diff", d->json, r, &err);
        top.at[i] = d->side[i].at;
    }
    if (top.at[0].type == CKPT_FILE)
        top.path = strrchr(specs[0], '/') ? strrchr(specs[0], '/') + 1 : specs[0];
    fs_progress_begin(&d->progress);
    if (d->json) {
        fs_json_pair(stdout, "{", "a", specs[0]);
        fs_json_pair(stdout, ",", "b", specs[1]);
        fputs(",\"differences\":[", stdout);
    }
    compare_pair(d, &top, 0);
    pair_clear(&top);
    fs_progress_clear(&d->progress);
    if (d->json)
        printf("%s],\"equal\":%s}\n", d->told ? "\n" : "", d->told ? "false" : "true");
    return fs_finish("diff", d->status ? d->status : d->differences ? FS_DIFFERS : FS_OK);
}

static bool parse_tolerance(const char *text, double *ret)
{
    char *end;
    *ret = strtod(text, &end);
    return end != text && !*end && *ret >= 0 && isfinite(*ret);
}

int fs_diff_main(int argc, char **argv)
{
    static const struct option options[] = {{"json", no_argument, NULL, 'j'},
                                            {"meta", no_argument, NULL, 'm'},
                                            {"rtol", required_argument, NULL, 'r'},
                                            {"atol", required_argument, NULL, 'a'},
                                            {0}};
    struct diff d = {0};
    bool good = true, has_atol = false;
    opterr = 0;
    for (int o; good && (o = getopt_long(argc, argv, "", options, NULL)) != -1;)
        switch (o) {
        case 'j':
            d.json = true;
            break;
        case 'm':
            d.meta = true;
            break;
        case 'r':
            good = parse_tolerance(optarg, &d.rtol);
            break;
        case 'a':
            good = has_atol = parse_tolerance(optarg, &d.atol);
            break;
        default:
            return fs_bad_option("diff", argv);
        }
    if (!good)
        return fs_usage("diff", "%s: not a tolerance", optarg);
    bool only_relative = d.rtol > 0 && !has_atol;
    if (only_relative)
        d.atol = ZERO_TOLERANCE;
    if (argc - optind != 2)
        return fs_usage("diff", "two trees are wanted");
    int status = run(&d, argv + optind);
    for (int i = 0; i < 2; i++) {
        fs_place_clear(&d.side[i]);
        free(d.block[i]);
    }
    return status;
}
