/* SPDX-License-Identifier: Apache-2.0 */
/*
 * .txt: a leaf for people. Statistics come from the whole array where it has at most 48 MiB, else from its beginning;
 * the values are printed as NumPy prints them. No more than 64 MiB of elements are ever read.
 */
#include "core/array/gather.h"
#include "core/array/print.h"
#include "core/base/util.h"
#include "core/view/rendering.h"

#include <math.h>

#define SAMPLE ((uint64_t)48 << 20)
#define BLOCK  ((size_t)256 << 10)
#define NEAR   ((uint64_t)1 << 20) /* bytes of chunks of which several may be decoded for a few elements */
#define FLAT   6                   /* elements that are shown of others */

struct statistics {
    double min, max, sum;
    uint64_t count, nans;
};

static void take_elements(struct statistics *s, enum ckpt_dtype dt, const uint8_t *p, size_t n)
{
    size_t size = ckpt_dtype_info(dt)->size;
    for (size_t i = 0; i < n; i++, p += size) {
        double v;
        if (dt == CKPT_DT_F32) { /* by far the most common */
            float f;
            memcpy(&f, p, 4);
            v = (double)f;
        } else
            v = ckpt_dtype_to_double(dt, p);
        if (isnan(v)) {
            s->nans++;
            continue;
        }
        s->min = s->count ? fmin(s->min, v) : v;
        s->max = s->count ? fmax(s->max, v) : v;
        s->sum += v;
        s->count++;
    }
}

struct element_source {
    struct ckpt_views *views;
    const struct ckpt_viewed *file;
    const struct ckpt_array *array;
    struct ckpt_selection all;
    struct ckpt_err *err;
};

static int read_elements(struct element_source *s, void *buf, size_t len, uint64_t off)
{
    const struct ckpt_selected what = {s->file->tree, s->file->node, s->array, &s->all};
    return ckpt_read_array(&s->views->reader, &what, buf, len, off, s->err);
}

static int get_element(void *arg, const uint64_t *index, void *element)
{
    struct element_source *s = arg;
    uint64_t at = 0;
    for (unsigned d = 0; d < s->array->ndim; d++)
        at = at * s->array->shape[d] + index[d];
    return read_elements(s, element, s->array->itemsize, at * s->array->itemsize);
}

static void add_number(struct ckpt_buf *out, const char *label, double v, bool whole)
{
    if (isnan(v)) /* without the sign that printf may give it */
        ckpt_buf_addf(out, "%snan\n", label);
    else
        ckpt_buf_addf(out, whole && fabs(v) < 1e15 ? "%s%.0f\n" : "%s%.9g\n", label, v);
}

static void add_shape(struct ckpt_buf *out, const struct ckpt_array *a)
{
    ckpt_buf_adds(out, "shape  (");
    for (unsigned d = 0; d < a->ndim; d++)
        ckpt_buf_addf(out, "%s%llu", d ? ", " : "", (unsigned long long)a->shape[d]);
    ckpt_buf_adds(out, a->ndim == 1 ? ",)\n" : ")\n");
}

static int print_values(struct element_source *s, struct ckpt_buf *out)
{
    const struct ckpt_array *a = s->array;
    int r = ckpt_print_array(out, a->dtype, a->ndim, a->shape, get_element, s);
    if (r == -EFBIG) { /* so many dimensions that even the corners are too many */
        ckpt_buf_adds(out, "...\n");
        r = 0;
    }
    return r;
}

/* Of the first bytes. */
static int sample_elements(struct element_source *s, uint64_t bytes, struct statistics *st)
{
    const struct ckpt_array *a = s->array;
    bool has_order = ckpt_dtype_info(a->dtype)->klass != CKPT_DC_COMPLEX; /* so that there is a least one */
    size_t step = BLOCK - BLOCK % a->itemsize;
    CKPT_AUTOFREE uint8_t *block = malloc(BLOCK);
    if (!block)
        return ckpt_no_memory(s->err);
    for (uint64_t off = 0; off < bytes; off += step) {
        size_t n = (size_t)CKPT_MIN((uint64_t)step, bytes - off);
        int r = read_elements(s, block, n, off);
        if (r < 0)
            return r;
        if (has_order)
            take_elements(st, a->dtype, block, n / a->itemsize);
    }
    return 0;
}

static void add_statistics(struct ckpt_buf *out, enum ckpt_dtype_class klass, const struct statistics *st)
{
    bool is_whole = klass == CKPT_DC_INT || klass == CKPT_DC_UINT;
    if (!st->count && !st->nans)
        return;
    if (klass == CKPT_DC_BOOL) {
        ckpt_buf_addf(out, "true   %.0f\n", st->sum);
        return;
    }
    if (st->count) {
        add_number(out, "min    ", st->min, is_whole);
        add_number(out, "max    ", st->max, is_whole);
        add_number(out, "mean   ", st->sum / (double)st->count, false);
    }
    if (klass == CKPT_DC_FLOAT)
        ckpt_buf_addf(out, "nan    %llu\n", (unsigned long long)st->nans);
}

/* Of an array whose corners lie behind more encoded data than may be read: its first elements, flat. */
static int print_beginning(struct element_source *s, struct ckpt_buf *out)
{
    const struct ckpt_array *a = s->array;
    uint8_t elements[FLAT * sizeof a->fill];
    int r = read_elements(s, elements, FLAT * a->itemsize, 0);
    if (r < 0)
        return r;
    ckpt_buf_adds(out, "begins with (in C order)\n");
    for (size_t i = 0; i < FLAT; i++) {
        const uint8_t *element = elements + i * a->itemsize;
        ckpt_buf_addc(out, ' ');
        if (!ckpt_dtype_add_json(out, a->dtype, element)) /* a complex number: its real part */
            ckpt_buf_addf(out, "%.9g", ckpt_dtype_to_double(a->dtype, element));
    }
    ckpt_buf_adds(out, " ...\n");
    return 0;
}

static int describe_array(struct element_source *s, struct ckpt_buf *out)
{
    const struct ckpt_array *a = s->array;
    const struct ckpt_dtype_info *info = ckpt_dtype_info(a->dtype);
    ckpt_buf_addf(out, "dtype  %s\n", ckpt_array_type(a));
    add_shape(out, a);
    ckpt_buf_addf(out, "bytes  %llu\n", (unsigned long long)a->nbytes);
    if (info->klass == CKPT_DC_OTHER) {
        ckpt_buf_adds(out, "\nvalues of this type are not printed\n");
        return 0;
    }
    uint64_t sampled = CKPT_MIN(a->nbytes, SAMPLE);
    struct statistics st = {0};
    sampled -= sampled % a->itemsize;
    int r = sample_elements(s, sampled, &st);
    if (r < 0)
        return r;
    add_statistics(out, info->klass, &st);
    if (sampled < a->nbytes)
        ckpt_buf_addf(out, "sample the first %llu of %llu elements\n", (unsigned long long)(sampled / a->itemsize),
                      (unsigned long long)(a->nbytes / a->itemsize));
    ckpt_buf_addc(out, '\n');
    bool corners_are_near = a->chunk_bytes <= NEAR || !a->codecs.count;
    bool can_print = sampled == a->nbytes || corners_are_near;
    return can_print ? print_values(s, out) : print_beginning(s, out);
}

int ckpt_render_text(struct ckpt_views *v, const struct ckpt_viewed *f, struct ckpt_rendering *r, struct ckpt_err *err)
{
    struct ckpt_buf *out = &r->text;
    int e;
    if (f->tree->nodes[f->node].kind == CKPT_NODE_VALUE) {
        struct ckpt_value value;
        struct ckpt_buf json = CKPT_BUF_INIT;
        e = ckpt_tree_value(f->tree, f->node, &json, &value, err);
        if (e == 0) {
            if (value.dtype != CKPT_DT_OTHER)
                ckpt_buf_addf(out, "dtype  %s\n\n", ckpt_dtype_info(value.dtype)->name);
            ckpt_buf_add(out, json.data, json.len);
            ckpt_buf_addc(out, '\n');
        }
        ckpt_buf_clear(&json);
    } else {
        struct ckpt_err own = {0};
        struct element_source s = {.views = v, .file = f, .err = err ? err : &own};
        struct ckpt_array *a;
        e = ckpt_tree_layout(f->tree, f->node, &a, err);
        if (e < 0)
            return e;
        s.array = a;
        ckpt_selection_all(&s.all, a->ndim, a->shape);
        e = a->unsupported ? ckpt_fail(err, a->unsupported, "%s", a->why) : describe_array(&s, out);
        ckpt_array_unref(a);
    }
    return e < 0 ? e : ckpt_rendering_finish(r);
}
