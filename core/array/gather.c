/* SPDX-License-Identifier: Apache-2.0 */
#include "core/array/gather.h"

#include "core/base/util.h"

#define DENSE_SPAN ((uint64_t)4 << 20) /* bytes of a chunk that are fetched at once to pick elements from */
#define CHEAP_SPAN 65536               /* bytes that take no longer than a few */
#define PAGE       4096                /* a medium gives no less */

void ckpt_chunk_index(const struct ckpt_array *a, uint64_t chunk, uint64_t *index)
{
    for (unsigned d = a->ndim; d-- > 0;) {
        index[d] = chunk % a->grid[d];
        chunk /= a->grid[d];
    }
}

/* The elements of one dimension of a box that lie in one chunk. */
struct span {
    uint64_t grid;  /* chunk index */
    uint64_t first; /* selection index of the first */
    uint64_t count;
    uint64_t local; /* element within the chunk of the first */
};

/* The span that begins with selection index i; the box ends before `end`. */
static struct span span_at(const struct ckpt_array *a, const struct ckpt_selection *sel, unsigned d, uint64_t i,
                           uint64_t end)
{
    int64_t step = sel->step[d];
    uint64_t at = sel->start[d] + (uint64_t)step * i; /* wraps as intended for negative steps */
    struct span s = {.grid = at / a->chunk[d], .first = i, .local = at % a->chunk[d]};
    uint64_t room = step > 0 ? (a->chunk[d] - 1 - s.local) / (uint64_t)step : s.local / (uint64_t)-step;
    s.count = CKPT_MIN(room + 1, end - i);
    return s;
}

struct box {
    uint64_t lo[CKPT_MAX_DIMS], end[CKPT_MAX_DIMS]; /* selection indices */
    uint64_t dst;                                   /* byte of the box's first element in the buffer */
};

static int visit_chunks(const struct ckpt_array *a, const struct ckpt_selection *sel, const struct box *box,
                        const uint64_t *out_stride, int (*visit)(void *, const struct ckpt_piece *), void *arg)
{
    struct span span[CKPT_MAX_DIMS];
    unsigned n = a->ndim;
    for (unsigned d = 0; d < n; d++)
        span[d] = span_at(a, sel, d, box->lo[d], box->end[d]);
    for (;;) {
        struct ckpt_piece p = {.src = a->start, .dst = box->dst};
        for (unsigned d = 0; d < n; d++) {
            p.chunk = p.chunk * a->grid[d] + span[d].grid;
            p.src += span[d].local * (uint64_t)a->stride[d];
            p.dst += (span[d].first - box->lo[d]) * out_stride[d];
        }
        p.lowest = p.highest = p.src;
        for (unsigned d = 0; d < n; d++) {
            int64_t src = a->stride[d] * sel->step[d];
            uint64_t count = span[d].count;
            if (count == 1)
                continue;
            if (src > 0)
                p.highest += (uint64_t)src * (count - 1);
            else
                p.lowest -= (uint64_t)-src * (count - 1);
            struct ckpt_piece_dim *last = p.ndim ? &p.dim[p.ndim - 1] : NULL;
            int64_t dst = (int64_t)out_stride[d];
            if (last && last->src == src * (int64_t)count && last->dst == dst * (int64_t)count)
                *last = (struct ckpt_piece_dim){last->count * count, src, dst};
            else
                p.dim[p.ndim++] = (struct ckpt_piece_dim){count, src, dst};
        }
        p.highest += a->itemsize;
        int r = visit(arg, &p);
        if (r)
            return r;
        unsigned d = n;
        while (d > 0) { /* the next chunk, last dimension first */
            struct span *s = &span[d - 1];
            if (s->first + s->count < box->end[d - 1]) {
                *s = span_at(a, sel, d - 1, s->first + s->count, box->end[d - 1]);
                break;
            }
            *s = span_at(a, sel, d - 1, box->lo[d - 1], box->end[d - 1]);
            d--;
        }
        if (d == 0)
            return 0;
    }
}

int ckpt_gather(const struct ckpt_array *a, const struct ckpt_selection *sel, uint64_t first, uint64_t count,
                int (*visit)(void *arg, const struct ckpt_piece *piece), void *arg)
{
    unsigned n = a->ndim;
    uint64_t inner[CKPT_MAX_DIMS + 1], out_stride[CKPT_MAX_DIMS]; /* elements in one step of dimension d; bytes */
    inner[n] = 1;
    for (unsigned d = n; d-- > 0;) {
        out_stride[d] = inner[d + 1] * a->itemsize;
        inner[d] = inner[d + 1] * sel->count[d];
    }
    for (uint64_t pos = first, end = first + count; pos < end;) {
        /* The largest box that begins at pos: whole below dimension d, a run of indices in d, one index above. */
        unsigned d = 0;
        while (d < n && (pos % inner[d + 1] != 0 || end - pos < inner[d + 1]))
            d++;
        struct box box = {.dst = (pos - first) * a->itemsize};
        uint64_t taken = 1;
        for (unsigned i = 0; i < n; i++) {
            uint64_t at = pos / inner[i + 1] % sel->count[i];
            if (i > d) {
                box.end[i] = sel->count[i];
                continue;
            }
            box.lo[i] = at;
            box.end[i] = at + 1;
            if (i == d) {
                box.end[i] = CKPT_MIN(sel->count[i], at + (end - pos) / inner[i + 1]);
                taken = (box.end[i] - at) * inner[i + 1];
            }
        }
        int r = visit_chunks(a, sel, &box, out_stride, visit, arg);
        if (r)
            return r;
        pos += taken;
    }
    return 0;
}

static void copy_row(uint8_t *dst, const uint8_t *src, uint64_t count, int64_t ds, int64_t ss, uint32_t size)
{
    if (ds == size && ss == size) {
        memcpy(dst, src, count * size);
        return;
    }
#define ROW(type)                                                                                                      \
    for (uint64_t i = 0; i < count; i++, dst += ds, src += ss)                                                         \
    memcpy(dst, src, sizeof(type))
    switch (size) {
    case 1:
        ROW(uint8_t);
        break;
    case 2:
        ROW(uint16_t);
        break;
    case 4:
        ROW(uint32_t);
        break;
    case 8:
        ROW(uint64_t);
        break;
    default:
        for (uint64_t i = 0; i < count; i++, dst += ds, src += ss)
            memcpy(dst, src, size);
    }
#undef ROW
}

/* Rows of the innermost dimension, one after another; ss = 0 strides make a fill of a copy. */
static void copy_rows(const struct ckpt_piece *p, uint32_t size, const uint8_t *src, uint8_t *dst, bool fill)
{
    unsigned n = p->ndim;
    if (!n) {
        memcpy(dst, src, size);
        return;
    }
    uint64_t at[CKPT_MAX_DIMS] = {0};
    const struct ckpt_piece_dim *last = &p->dim[n - 1];
    for (;;) {
        copy_row(dst, src, last->count, last->dst, fill ? 0 : last->src, size);
        unsigned d = n - 1;
        while (d > 0) {
            const struct ckpt_piece_dim *dim = &p->dim[d - 1];
            dst += dim->dst;
            src += fill ? 0 : dim->src;
            if (++at[d - 1] < dim->count)
                break;
            dst -= dim->dst * (int64_t)dim->count;
            src -= fill ? 0 : dim->src * (int64_t)dim->count;
            at[d - 1] = 0;
            d--;
        }
        if (d == 0)
            return;
    }
}

void ckpt_piece_copy(const struct ckpt_piece *piece, uint32_t itemsize, const uint8_t *chunk, uint8_t *buf)
{
    copy_rows(piece, itemsize, chunk + piece->src, buf + piece->dst, false);
}

/* Whether it is better to fetch a span of bytes at once than each of the elements that are wanted of it. */
static bool is_dense(uint64_t span, uint64_t elements, uint32_t size)
{
    if (span <= CHEAP_SPAN)
        return true;
    bool wants_much = span / 16 <= elements * size;
    bool wants_all_pages = span / PAGE <= elements;
    return span <= DENSE_SPAN && (wants_much || wants_all_pages);
}

/* How many of the dimension that has the longest steps are fetched at once, each of them with `inner` elements in
 * `span` bytes. */
static uint64_t batch(const struct ckpt_piece_dim *outer, uint64_t inner, uint64_t span, uint32_t size)
{
    uint64_t step = (uint64_t)llabs(outer->src);
    if (span > DENSE_SPAN || step > DENSE_SPAN)
        return 1;
    uint64_t count = CKPT_MIN(outer->count, (DENSE_SPAN - span) / step + 1);
    return is_dense((count - 1) * step + span, count * inner, size) ? count : 1;
}

int ckpt_piece_fetch(const struct ckpt_piece *p, uint32_t size, ckpt_piece_read_fn *read, void *arg, uint8_t *buf)
{
    if (p->ndim == 0 || (p->ndim == 1 && p->dim[0].src == size && p->dim[0].dst == size))
        return read(arg, buf + p->dst, p->highest - p->lowest, p->src);
    uint64_t span = p->highest - p->lowest, elements = 1;
    for (unsigned i = 0; i < p->ndim; i++)
        elements *= p->dim[i].count;
    if (is_dense(span, elements, size)) {
        CKPT_AUTOFREE uint8_t *data = malloc(span);
        int r = data ? read(arg, data, span, p->lowest) : -ENOMEM;
        if (r == 0)
            ckpt_piece_copy(p, size, data - p->lowest, buf);
        return r;
    }
    /* Too spread out to be fetched in one go: some at a time of the dimension with the longest steps, which is the
     * outermost one in the file though not always in the result. Depth: twice the array's dimensions. */
    struct ckpt_piece part = *p;
    const struct ckpt_piece_dim *outer = &p->dim[0];
    for (unsigned i = 1; i < p->ndim; i++)
        if (llabs(p->dim[i].src) > llabs(outer->src))
            outer = &p->dim[i];
    struct ckpt_piece_dim *some = &part.dim[outer - p->dim];
    uint64_t step = (uint64_t)llabs(outer->src), inner = span - step * (outer->count - 1);
    uint64_t count = batch(outer, elements / outer->count, inner, size);
    if (count == 1) {
        part.ndim--;
        memmove(some, outer + 1, (size_t)(p->dim + part.ndim - outer) * sizeof *some);
    }
    for (uint64_t i = 0; i < outer->count; i += count) {
        uint64_t n = CKPT_MIN(count, outer->count - i);
        if (count > 1)
            some->count = n;
        part.src = p->src + (uint64_t)outer->src * i;
        part.dst = p->dst + (uint64_t)outer->dst * i;
        part.lowest = p->lowest + (outer->src > 0 ? step * i : step * (outer->count - i - n));
        part.highest = part.lowest + step * (n - 1) + inner;
        int r = ckpt_piece_fetch(&part, size, read, arg, buf);
        if (r < 0)
            return r;
    }
    return 0;
}

void ckpt_piece_fill(const struct ckpt_piece *piece, uint32_t itemsize, const uint8_t *element, uint8_t *buf)
{
    copy_rows(piece, itemsize, element, buf + piece->dst, true);
}
