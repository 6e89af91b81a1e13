/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Arrays that were written in pieces: X@0:4,0:8.npy, X@4:8,0:8.npy and so on. A piece's box is what its slice says, a
 * dimension at a time; what the slice leaves out at the end is as long as the piece is there. The array is the box that
 * they fill, without a hole or an overlap.
 */
#include "core/commit/pieces.h"

#include <stdio.h>

#define JOINED_MAX  ((uint64_t)1 << 44) /* bytes of an array that is joined of pieces */
#define ELEMENT_MAX ((uint32_t)64 << 20)

/* --- names --- */

/* "-"? digits, as Python writes them: 1 and the digits, 0 there are none, -1 it is none. */
static int take_number(const char **p, const char *last)
{
    const char *at = *p + (*p < last && **p == '-');
    size_t n = 0;
    while (at + n < last && ckpt_is_digit(at[n]))
        n++;
    if (!n)
        return at == *p ? 0 : -1;
    if (n > 1 && *at == '0')
        return -1;
    *p = at + n;
    return 1;
}

static bool take(const char **p, const char *last, const char *token)
{
    size_t n = strlen(token);
    if ((size_t)(last - *p) < n || memcmp(*p, token, n))
        return false;
    *p += n;
    return true;
}

/* Is it the text of a slice, of whatever array? */
static bool is_slice(const char *p, const char *last)
{
    unsigned dots = 0;
    do {
        if (take(&p, last, "...")) {
            dots++;
            continue;
        }
        int first = take_number(&p, last);
        if (first < 0)
            return false;
        bool range = take(&p, last, ":");
        if (!range && !first)
            return false;
        if (range && take_number(&p, last) < 0)
            return false;
        if (range && take(&p, last, ":") && take_number(&p, last) < 0)
            return false;
    } while (take(&p, last, ",") && p < last);
    return p == last && dots < 2;
}

size_t ckpt_pieces_stem(const char *name)
{
    const char *at = strrchr(name, '@');
    if (!at || at == name || !ckpt_has_suffix(at, ".npy") || !is_slice(at + 1, name + strlen(name) - 4))
        return 0;
    return (size_t)(at - name);
}

/* What a slice says, dimension by dimension. */
struct slice {
    unsigned ndim;
    uint64_t begin[CKPT_MAX_DIMS], end[CKPT_MAX_DIMS];
    bool dropped[CKPT_MAX_DIMS];
    bool open[CKPT_MAX_DIMS]; /* it ends where the piece does */
};

static bool take_index(const char **p, uint64_t *ret)
{
    uint64_t n = 0;
    const char *first = *p;
    for (; ckpt_is_digit(**p); ++*p)
        if (ckpt_mul(n, 10, &n) || ckpt_add(n, (uint64_t)(**p - '0'), &n) || n > INT64_MAX)
            return false;
    *ret = n;
    return *p > first;
}

/* Of a slice whose text is one. NULL, or what is wrong with it. */
static const char *read_slice(const char *p, struct slice *ret)
{
    static const char *const malformed = "its slice must be of numbers that are not negative, without an ellipsis";
    ret->ndim = 0;
    do {
        unsigned d = ret->ndim;
        if (d == CKPT_MAX_DIMS)
            return "its slice has too many dimensions";
        bool has_begin = take_index(&p, &ret->begin[d]);
        ret->open[d] = false;
        ret->dropped[d] = has_begin && *p != ':';
        if (!has_begin)
            ret->begin[d] = 0;
        if (!ret->dropped[d]) {
            if (*p++ != ':')
                return malformed;
            ret->open[d] = !take_index(&p, &ret->end[d]);
            if (*p == ':' && *++p != ',' && *p != '.' && (*p++ != '1' || ckpt_is_digit(*p)))
                return "its slice has a step other than 1";
        } else
            ret->end[d] = ret->begin[d] + 1;
        if (!ret->open[d] && ret->end[d] < ret->begin[d])
            return "its slice ends before it begins";
        ret->ndim++;
    } while (*p == ',' && *++p != '.');
    return strcmp(p, ".npy") ? malformed : NULL;
}

/* --- what they are --- */

static int piece_fail(const struct pieces *ps, const char *name, struct ckpt_err *err, int code, const char *what)
{
    return ckpt_fail(err, code, "%s: the piece %s %s", ps->path, name, what);
}

/* The piece's shape is its slice's; dimensions that the slice leaves out follow. */
static const char *fit_shape(struct slice *s, const struct ckpt_npy *npy)
{
    unsigned n = 0;
    for (unsigned d = 0; d < s->ndim; d++) {
        if (s->dropped[d])
            continue;
        if (n < npy->ndim && s->open[d] && ckpt_add(s->begin[d], npy->shape[n], &s->end[d]))
            return "ends beyond what an array can have";
        if (n == npy->ndim || npy->shape[n++] != s->end[d] - s->begin[d])
            return "has another shape than its slice";
    }
    for (; n < npy->ndim; n++, s->ndim++) {
        if (s->ndim == CKPT_MAX_DIMS)
            return "has too many dimensions";
        s->begin[s->ndim] = 0;
        s->end[s->ndim] = npy->shape[n];
        s->dropped[s->ndim] = false;
    }
    return NULL;
}

/* With at most one dimension that is longer than 1 both orders are the same. */
static bool is_fortran(const struct ckpt_npy *npy)
{
    unsigned longer = 0;
    for (unsigned d = 0; d < npy->ndim; d++)
        longer += npy->shape[d] > 1;
    return npy->fortran && longer > 1 && npy->nbytes;
}

static int read_piece(struct pieces *ps, const char *name, struct ckpt_npy *npy, struct slice *slice,
                      struct ckpt_err *err)
{
    struct leaf_file f;
    struct ckpt_err own = {0};
    const char *wrong = read_slice(strrchr(name, '@') + 1, slice);
    if (wrong)
        return ckpt_fail(err, EOPNOTSUPP, "%s: %s: %s", ps->path, name, wrong);
    int r = ckpt_leaf_open(ps->dir, name, &f, &own);
    if (r < 0)
        return piece_fail(ps, name, err, -r, own.text);
    r = ckpt_leaf_array(ps->commit, &f, npy, &own);
    ckpt_leaf_close(&f);
    if (r <= 0)
        return piece_fail(ps, name, err, r < 0 ? -r : EUCLEAN, r < 0 ? own.text : "is not a NumPy file");
    if (npy->big_endian)
        return piece_fail(ps, name, err, EOPNOTSUPP,
                          "is big-endian: write it with a.astype(a.dtype.newbyteorder('<'))");
    if (is_fortran(npy))
        return piece_fail(ps, name, err, EOPNOTSUPP, "is in Fortran order: write it with np.ascontiguousarray(a)");
    if (npy->itemsize > ELEMENT_MAX)
        return piece_fail(ps, name, err, EOPNOTSUPP, "has elements that are too large");
    wrong = fit_shape(slice, npy);
    return wrong ? piece_fail(ps, name, err, EUCLEAN, wrong) : 0;
}

/* bfloat16 is written as '<V2' and as '|V2'. */
static bool same_type(const struct ckpt_npy *a, const struct ckpt_npy *b)
{
    return a->dtype == b->dtype && a->itemsize == b->itemsize &&
           (a->dtype != CKPT_DT_OTHER || !strcmp(a->descr, b->descr));
}

static int add_piece(struct pieces *ps, const char *name, struct ckpt_err *err)
{
    struct ckpt_npy npy;
    struct slice s;
    int r = read_piece(ps, name, &npy, &s, err);
    if (r < 0)
        return r;
    if (!ps->count) {
        ps->npy = npy;
        ps->npy.fortran = false;
        ps->npy.ndim = ps->ndim = s.ndim;
        memset(ps->npy.shape, 0, sizeof ps->npy.shape);
    }
    if (s.ndim != ps->ndim)
        return piece_fail(ps, name, err, EUCLEAN, "has another number of dimensions than others");
    if (!same_type(&npy, &ps->npy))
        return piece_fail(ps, name, err, EUCLEAN, "has another type than others");
    struct piece *p = malloc(sizeof *p + 2 * s.ndim * sizeof *p->box);
    if (!p)
        return ckpt_no_memory(err);
    *p = (struct piece){name, npy.header};
    memcpy(p->box, s.begin, s.ndim * sizeof *p->box);
    memcpy(p->box + s.ndim, s.end, s.ndim * sizeof *p->box);
    for (unsigned d = 0; d < s.ndim; d++)
        ps->npy.shape[d] = CKPT_MAX(ps->npy.shape[d], s.end[d]);
    ps->list[ps->count++] = p;
    return 0;
}

static int by_box(const void *x, const void *y, void *arg)
{
    const struct piece *a = *(struct piece *const *)x, *b = *(struct piece *const *)y;
    const struct pieces *ps = arg;
    for (unsigned i = 0; i < 2 * ps->ndim; i++)
        if (a->box[i] != b->box[i])
            return a->box[i] < b->box[i] ? -1 : 1;
    return strcmp(a->name, b->name);
}

/* The header that the array will have. */
static int settle(struct pieces *ps, struct ckpt_err *err)
{
    struct ckpt_buf head = CKPT_BUF_INIT;
    int r = ckpt_npy_settle(&ps->npy, err);
    if (r < 0)
        return ckpt_fail_in(err, -r, "%s", ps->path);
    ckpt_npy_add_header(&head, ps->npy.descr, ps->ndim, ps->npy.shape);
    r = ckpt_buf_error(&head);
    ps->npy.header = (uint32_t)head.len;
    ckpt_buf_clear(&head);
    return r < 0 ? ckpt_fail(err, -r, "%s: its header cannot be made", ps->path) : 0;
}

int ckpt_pieces_open(struct commit *c, const struct walk_at *at, struct pieces **ret, struct ckpt_err *err)
{
    struct pieces *ps = calloc(1, sizeof *ps);
    if (!ps)
        return ckpt_no_memory(err);
    ps->commit = c;
    ps->dir = at->dir;
    ps->path = at->path;
    ps->list = calloc(at->piece_count, sizeof *ps->list);
    int r = ps->list ? 0 : ckpt_no_memory(err);
    for (size_t i = 0; i < at->piece_count && r == 0; i++)
        r = add_piece(ps, at->pieces[i], err);
    if (r == 0) {
        qsort_r(ps->list, ps->count, sizeof *ps->list, by_box, ps);
        r = settle(ps, err);
    }
    if (r < 0) {
        ckpt_pieces_close(ps);
        return r;
    }
    *ret = ps;
    return 0;
}

void ckpt_pieces_close(struct pieces *ps)
{
    if (!ps)
        return;
    ckpt_pieces_close_files(ps);
    for (size_t i = 0; i < ps->count; i++)
        free(ps->list[i]);
    free(ps->list);
    free(ps);
}

const struct ckpt_npy *ckpt_pieces_npy(const struct pieces *ps)
{
    return &ps->npy;
}

int ckpt_pieces_first(struct pieces *ps, struct stat *ret, struct ckpt_err *err)
{
    struct leaf_file f;
    int r = ckpt_leaf_open(ps->dir, ps->list[0]->name, &f, err);
    if (r < 0)
        return r;
    int fd = f.fd;
    f.fd = -1;
    *ret = f.st;
    ckpt_leaf_close(&f);
    return fd;
}

/* --- do they tile? --- */

static bool is_empty(const struct pieces *ps, const struct piece *p)
{
    for (unsigned d = 0; d < ps->ndim; d++)
        if (!piece_extent(ps, p, d))
            return true;
    return false;
}

static bool overlap(const struct pieces *ps, const struct piece *a, const struct piece *b)
{
    for (unsigned d = 0; d < ps->ndim; d++)
        if (piece_begin(a, d) >= piece_end(ps, b, d) || piece_begin(b, d) >= piece_end(ps, a, d))
            return false;
    return true;
}

struct sweep {
    const struct pieces *ps;
    unsigned d;
};

static int by_begin(const void *x, const void *y, void *arg)
{
    const struct sweep *s = arg;
    uint64_t a = piece_begin(*(struct piece *const *)x, s->d), b = piece_begin(*(struct piece *const *)y, s->d);
    return (a > b) - (a < b);
}

/* The dimension with the most different beginnings: the fewest pieces lie side by side along it. Leaves the list sorted
 * by it. */
static unsigned sweep_dimension(const struct pieces *ps, struct piece **list, size_t count)
{
    struct sweep s = {ps, 0};
    size_t most = 0;
    unsigned best = 0;
    for (; s.d < ps->ndim; s.d++) {
        size_t different = 1;
        qsort_r(list, count, sizeof *list, by_begin, &s);
        for (size_t i = 1; i < count; i++)
            different += piece_begin(list[i], s.d) != piece_begin(list[i - 1], s.d);
        if (different > most) {
            most = different;
            best = s.d;
        }
    }
    s.d = best;
    qsort_r(list, count, sizeof *list, by_begin, &s);
    return best;
}

/* Two pieces that overlap, or none. Each is compared with those that have begun before it and not ended. */
static bool find_overlap(const struct pieces *ps, struct piece **list, size_t count, const struct piece **ret)
{
    unsigned d = sweep_dimension(ps, list, count);
    size_t active = 0; /* list[0..active) are under the sweep; what is done with makes room for them */
    for (size_t i = 0; i < count; i++) {
        size_t kept = 0;
        for (size_t j = 0; j < active; j++) {
            if (piece_end(ps, list[j], d) <= piece_begin(list[i], d))
                continue;
            if (overlap(ps, list[j], list[i])) {
                ret[0] = list[j];
                ret[1] = list[i];
                return true;
            }
            list[kept++] = list[j];
        }
        list[kept++] = list[i];
        active = kept;
    }
    return false;
}

int ckpt_pieces_check(struct pieces *ps, struct ckpt_err *err)
{
    __uint128_t all = 1, have = 0;
    size_t count = 0;
    CKPT_AUTOFREE struct piece **list = malloc(ps->count * sizeof *list);
    const struct piece *two[2];
    if (ps->npy.nbytes > JOINED_MAX)
        return ckpt_fail(
            err, EFBIG,
            "%s: its pieces are of an array of %llu bytes, and of pieces at most %llu are made: write it as one file",
            ps->path, (unsigned long long)ps->npy.nbytes, (unsigned long long)JOINED_MAX);
    if (!list)
        return ckpt_no_memory(err);
    for (size_t i = 0; i < ps->count; i++) {
        const struct piece *p = ps->list[i];
        if (is_empty(ps, p) || (i && piece_same_box(ps, p, ps->list[i - 1])))
            continue;
        list[count++] = ps->list[i];
        have += piece_elements(ps, p);
    }
    bool empty = false;
    for (unsigned d = 0; d < ps->ndim; d++)
        empty |= !ps->npy.shape[d];
    for (unsigned d = 0; d < ps->ndim && !empty; d++)
        all *= ps->npy.shape[d]; /* settle() has bounded it, but for elements of no bytes */
    all = empty ? 0 : all;
    if (have < all)
        return ckpt_fail(err, ENODATA, "%s: its pieces leave a hole: they have %llu of %llu elements", ps->path,
                         (unsigned long long)have, (unsigned long long)all);
    if (count && find_overlap(ps, list, count, two))
        return ckpt_fail(err, ENODATA, "%s: its pieces %s and %s overlap", ps->path, two[0]->name, two[1]->name);
    return 0;
}
