/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A sharded tensor as a file of its own, in C order: each range of it is put together from the boxes that it meets,
 * whose pieces are opened when they are first read. Its elements are looked at as one more dimension of bytes, so that
 * ranges may begin anywhere. It holds no descriptor, since a checkpoint may have more files than a process may open;
 * the pins do.
 */
#include "core/array/gather.h"
#include "core/base/log.h"
#include "core/base/util.h"
#include "core/format/pytorch/torch.h"

#define MAX_PAIRS ((uint64_t)1 << 22) /* of boxes that are compared, to see whether they overlap */

static uint64_t itemsize_of(const struct torch_sharded *s)
{
    return ckpt_dtype_info(s->dtype)->size;
}

/* --- do the boxes tile the tensor? --- */

struct bounds {
    uint64_t first, end; /* in the dimension that they are sorted by */
    size_t at;           /* of the box in the records */
};

static int by_first(const void *pa, const void *pb)
{
    const struct bounds *a = pa, *b = pb;
    return a->first < b->first ? -1 : a->first > b->first;
}

/* In elements; false: it is empty, or not inside of the tensor (*ret_inside). */
static bool volume(const struct torch_sharded *s, const struct torch_box *box, bool *ret_inside, uint64_t *ret)
{
    *ret_inside = true;
    *ret = 1;
    for (unsigned d = 0; d < s->ndim; d++) {
        *ret_inside &= box->low[d] <= s->shape[d] && box->size[d] <= s->shape[d] - box->low[d];
        *ret *= box->size[d]; /* at most the tensor's, once it is known to be inside */
    }
    return *ret_inside && *ret;
}

static bool overlap(const struct torch_box *a, const struct torch_box *b, unsigned ndim)
{
    for (unsigned d = 0; d < ndim; d++)
        if (a->low[d] + a->size[d] <= b->low[d] || b->low[d] + b->size[d] <= a->low[d])
            return false;
    return true;
}

static int check_overlaps(const struct torch *torch, const struct torch_sharded *s, struct bounds *bounds,
                          uint32_t count, struct ckpt_err *err)
{
    uint64_t pairs = 0;
    if (count)
        qsort(bounds, count, sizeof *bounds, by_first);
    for (uint32_t i = 0; i < count; i++) {
        struct torch_box a, b;
        size_t at = bounds[i].at;
        if (i + 1 < count && bounds[i + 1].first < bounds[i].end)
            ckpt_torch_box_next(&torch->records, s->ndim, &at, &a);
        for (uint32_t j = i + 1; j < count && bounds[j].first < bounds[i].end; j++) {
            if (++pairs > MAX_PAIRS)
                return ckpt_fail(err, EOPNOTSUPP, "it is in more pieces than can be checked");
            at = bounds[j].at;
            ckpt_torch_box_next(&torch->records, s->ndim, &at, &b);
            if (overlap(&a, &b, s->ndim))
                return ckpt_fail(err, EUCLEAN, "its pieces overlap");
        }
    }
    return 0;
}

/* The dimension that is cut most often, by how much of it the boxes have together. */
static unsigned cut_dimension(const struct torch *torch, const struct torch_sharded *s, size_t at)
{
    double share[CKPT_MAX_DIMS] = {0};
    unsigned best = 0;
    struct torch_box box;
    for (uint32_t i = 0; i < s->boxes; i++) {
        ckpt_torch_box_next(&torch->records, s->ndim, &at, &box);
        for (unsigned d = 0; d < s->ndim; d++)
            share[d] += (double)box.size[d] / (double)s->shape[d];
    }
    for (unsigned d = 1; d < s->ndim; d++)
        if (share[d] < share[best])
            best = d;
    return best;
}

static int check_boxes(const struct torch *torch, const struct torch_sharded *s, size_t at, uint64_t elements,
                       struct ckpt_err *err)
{
    unsigned cut = cut_dimension(torch, s, at);
    uint64_t covered = 0, own;
    uint32_t count = 0;
    CKPT_AUTOFREE struct bounds *bounds = malloc((s->boxes + 1) * sizeof *bounds);
    if (!bounds)
        return ckpt_no_memory(err);
    for (uint32_t i = 0; i < s->boxes; i++) {
        struct torch_box box;
        bool inside;
        size_t begin = at;
        ckpt_torch_box_next(&torch->records, s->ndim, &at, &box);
        bool some = volume(s, &box, &inside, &own);
        if (!inside)
            return ckpt_fail(err, EUCLEAN, "a piece of it lies outside of its shape");
        if (!some)
            continue;
        if (!box.piece.len)
            return ckpt_fail(err, ENODATA, "the checkpoint does not say where a piece of it is");
        if (ckpt_add(covered, own, &covered) || covered > elements)
            return ckpt_fail(err, EUCLEAN, "its pieces overlap");
        bounds[count++] = (struct bounds){s->ndim ? box.low[cut] : 0, s->ndim ? box.low[cut] + box.size[cut] : 1,
                                          begin};
    }
    int r = check_overlaps(torch, s, bounds, count, err);
    if (r == 0 && covered != elements)
        r = ckpt_fail(err, ENODATA, "its pieces have %llu of %llu elements", (unsigned long long)covered,
                      (unsigned long long)elements);
    return r;
}

int ckpt_torch_boxes_layout(struct ckpt_tree *t, size_t record, struct ckpt_array **ret, struct ckpt_err *err)
{
    const struct torch *torch = t->priv;
    struct torch_sharded s;
    size_t at;
    ckpt_torch_get_sharded(&torch->records, record, &s, &at);
    if (s.fault)
        return ckpt_torch_fault_layout(s.fault, s.type, ret, err);
    struct ckpt_array *a = ckpt_array_new(s.dtype, s.ndim, s.shape);
    if (!a)
        return ckpt_no_memory(err);
    int r = ckpt_array_settle(a, NULL) < 0 ? ckpt_fail(err, EUCLEAN, "its shape is impossible") : 0;
    if (r == 0 && a->nbytes)
        r = check_boxes(torch, &s, at, a->nbytes / a->itemsize, err);
    if (r < 0)
        ckpt_array_unref(a);
    else
        *ret = a;
    return r;
}

/* --- the piece of a box --- */

/* How the elements of a box are stored. */
struct stored {
    struct ckpt_array *layout; /* NULL: one after another, as they are shown */
    struct ckpt_extent extent; /* of the layout's chunk, or of the elements */
};

static void stored_clear(struct stored *p)
{
    ckpt_array_unref(CKPT_STEAL(p->layout)); /* both who failed to open it and who reads it clear it */
    ckpt_extent_clear(&p->extent);
}

static uint64_t box_elements(const struct torch_sharded *s, const struct torch_box *box)
{
    uint64_t n = 1;
    for (unsigned d = 0; d < s->ndim; d++)
        n *= box->size[d];
    return n;
}

static struct torch_payload *payload_of(struct torch *torch, size_t box)
{
    return &torch->payloads[box * 0x9e3779b97f4a7c15 >> 32 & (TORCH_PAYLOADS - 1)];
}

/* The only object in a piece must be a tensor of the box's type and size. */
static int load_tensor(const struct torch_archive *archive, const struct torch_sharded *s, const struct torch_box *box,
                       struct torch_tensor *ret, struct ckpt_err *err)
{
    struct ckpt_buf records = CKPT_BUF_INIT;
    struct torch_graph g;
    int r = ckpt_torch_archive_load(archive, &records, 0, &g, err);
    if (r < 0)
        return r;
    bool tensor = ckpt_torch_kind(&g, g.top) == TORCH_TENSOR;
    if (tensor)
        ckpt_torch_get_tensor(&records, ckpt_torch_record_of(g.top), ret);
    ckpt_torch_graph_clear(&g);
    ckpt_buf_clear(&records);
    if (!tensor)
        return ckpt_fail(err, EUCLEAN, "a piece of it is no tensor");
    if (ret->fault) {
        struct ckpt_array *a;
        r = ckpt_torch_fault_layout(ret->fault, ret->type, &a, err);
        if (r == 0) {
            r = ckpt_fail(err, a->unsupported, "%s", a->why);
            ckpt_array_unref(a);
        }
        return r;
    }
    if (ret->dtype != s->dtype || ret->ndim != s->ndim || memcmp(ret->shape, box->size, s->ndim * sizeof *ret->shape))
        return ckpt_fail(err, EUCLEAN, "a piece of it has another type or shape than the checkpoint's metadata say");
    return 0;
}

static bool is_plain(const struct ckpt_array *a)
{
    uint64_t stride = a->itemsize;
    for (unsigned d = a->ndim; d-- > 0; stride *= a->shape[d])
        if (a->stride[d] != (int64_t)stride)
            return false;
    return !a->flip && (!a->big_endian || ckpt_dtype_info(a->dtype)->swap == 1);
}

static int open_stored(struct ckpt_tree *t, const struct torch_sharded *s, const struct torch_box *box, size_t at,
                       struct stored *ret, struct ckpt_err *err)
{
    struct torch *torch = t->priv;
    struct torch_payload known;
    struct torch_archive archive;
    struct torch_tensor tensor;
    *ret = (struct stored){0};
    pthread_mutex_lock(&torch->lock);
    known = *payload_of(torch, at);
    pthread_mutex_unlock(&torch->lock);
    if (known.box == at) {
        ret->extent = (struct ckpt_extent){.off = known.off, .len = box_elements(s, box) * itemsize_of(s)};
        return ckpt_torch_piece_file(t, &box->piece, &ret->extent.file, err);
    }
    int r = ckpt_torch_piece_open(t, &box->piece, &archive, err);
    if (r < 0)
        return r;
    r = load_tensor(&archive, s, box, &tensor, err);
    if (r == 0)
        r = ckpt_torch_archive_layout(&archive, &tensor, &ret->layout, err);
    if (r == 0 && ret->layout->codecs.count)
        r = ckpt_fail(err, EOPNOTSUPP, "a piece of it is compressed, which is not supported");
    if (r == 0)
        r = ckpt_torch_archive_chunk(&archive, &tensor, &ret->extent, err);
    ckpt_torch_archive_close(&archive);
    if (r == 0 && is_plain(ret->layout)) {
        ckpt_array_unref(CKPT_STEAL(ret->layout));
        pthread_mutex_lock(&torch->lock);
        *payload_of(torch, at) = (struct torch_payload){at, ret->extent.off};
        pthread_mutex_unlock(&torch->lock);
    }
    if (r < 0)
        stored_clear(ret);
    return r;
}

static int read_extent(void *arg, void *buf, size_t len, uint64_t off)
{
    return ckpt_extent_read(arg, buf, len, off);
}

struct fetching {
    struct stored *p;
    uint8_t *buf;
};

static int fetch(void *arg, const struct ckpt_piece *piece)
{
    struct fetching *f = arg;
    return ckpt_piece_fetch(piece, f->p->layout->itemsize, read_extent, &f->p->extent, f->buf);
}

/* Bytes [off, off + len) of the box's elements in C order. */
static int read_stored(struct stored *p, uint8_t *buf, size_t len, uint64_t off)
{
    const struct ckpt_array *a = p->layout;
    if (!a)
        return ckpt_extent_read(&p->extent, buf, len, off);
    struct ckpt_selection all;
    uint64_t first = off / a->itemsize, count = (off + len + a->itemsize - 1) / a->itemsize - first;
    CKPT_AUTOFREE uint8_t *whole = malloc(count * a->itemsize);
    if (!whole)
        return -ENOMEM;
    ckpt_selection_all(&all, a->ndim, a->shape);
    int r = ckpt_gather(a, &all, first, count, fetch, &(struct fetching){p, whole});
    if (r < 0)
        return r;
    if (a->big_endian)
        ckpt_dtype_swap(a->dtype, whole, count);
    ckpt_dtype_flip(a->dtype, a->flip, whole, count);
    memcpy(buf, whole + (off - first * a->itemsize), len);
    return 0;
}

/* --- the tensor as a file --- */

struct boxes_file {
    struct ckpt_file base;
    struct ckpt_tree *tree; /* referenced */
    size_t record;
};

/* A box as rows, each of which lies together in the tensor. All in bytes. */
struct rows {
    unsigned outer;               /* dimensions that are not in a row */
    uint64_t count, bytes;        /* rows, and of each */
    uint64_t step[CKPT_MAX_DIMS]; /* in the tensor, of the outer dimensions */
    uint64_t first;               /* where the first row begins in the tensor */
};

static void find_rows(const struct torch_sharded *s, const struct torch_box *box, struct rows *ret)
{
    uint64_t step = itemsize_of(s);
    unsigned d = s->ndim;
    *ret = (struct rows){.count = 1, .bytes = step};
    bool whole = true; /* what is in the dimensions within */
    while (d-- > 0) {
        ret->first += box->low[d] * step;
        if (whole)
            ret->bytes *= box->size[d];
        else {
            ret->outer = CKPT_MAX(ret->outer, d + 1);
            ret->count *= box->size[d];
        }
        whole &= box->size[d] == s->shape[d];
        ret->step[d] = step;
        step *= s->shape[d];
    }
}

static uint64_t row_begin(const struct rows *rows, const struct torch_box *box, uint64_t row)
{
    uint64_t at = rows->first;
    for (unsigned d = rows->outer; d-- > 0; row /= box->size[d])
        at += row % box->size[d] * rows->step[d];
    return at;
}

/* What the box has of bytes [off, off + len) of the tensor. */
static int read_box(struct ckpt_tree *t, const struct torch_sharded *s, const struct torch_box *box, size_t at,
                    uint8_t *buf, size_t len, uint64_t off, struct ckpt_err *err)
{
    struct rows rows;
    struct stored p = {0};
    find_rows(s, box, &rows);
    if (rows.first >= off + len)
        return 0;
    uint64_t lo = 0, hi = rows.count;
    while (lo < hi) { /* the first row that ends beyond off */
        uint64_t mid = lo + (hi - lo) / 2;
        if (row_begin(&rows, box, mid) + rows.bytes <= off)
            lo = mid + 1;
        else
            hi = mid;
    }
    int r = 0;
    bool open = false;
    for (uint64_t row = lo, begin; r == 0 && row < rows.count && (begin = row_begin(&rows, box, row)) < off + len;
         row++) {
        uint64_t from = CKPT_MAX(begin, off), to = CKPT_MIN(begin + rows.bytes, off + len);
        if (!open && (r = open_stored(t, s, box, at, &p, err)) < 0)
            break;
        open = true;
        r = read_stored(&p, buf + (from - off), (size_t)(to - from), row * rows.bytes + (from - begin));
        if (r < 0)
            ckpt_fail(err, -r, "%s", r == -EBADMSG ? "the file is shorter than its piece" : strerror(-r));
    }
    stored_clear(&p);
    return r;
}

static ssize_t boxes_read(struct ckpt_file *base, void *buf, size_t len, uint64_t off)
{
    struct boxes_file *f = (struct boxes_file *)base;
    const struct torch *torch = f->tree->priv;
    struct torch_sharded s;
    struct torch_box box;
    size_t at;
    if (off >= base->st.size)
        return 0;
    len = (size_t)CKPT_MIN((uint64_t)len, base->st.size - off);
    ckpt_torch_get_sharded(&torch->records, f->record, &s, &at);
    for (uint32_t i = 0; i < s.boxes; i++) {
        size_t begin = at;
        ckpt_torch_box_next(&torch->records, s.ndim, &at, &box);
        if (!box_elements(&s, &box))
            continue;
        struct ckpt_err err = {0};
        int r = read_box(f->tree, &s, &box, begin, buf, len, off, &err);
        if (r < 0) {
            ckpt_log(CKPT_LOG_WARN, "a piece of a tensor cannot be read: %s", err.text);
            return r;
        }
    }
    return (ssize_t)len;
}

static void boxes_close(struct ckpt_file *base)
{
    struct boxes_file *f = (struct boxes_file *)base;
    ckpt_tree_unref(f->tree);
    free(f);
}

static const struct ckpt_file_ops boxes_ops = {
    .name = "pieces of a tensor",
    .derived = true,
    .read = boxes_read,
    .close = boxes_close,
};

int ckpt_torch_boxes_chunk(struct ckpt_tree *t, size_t record, struct ckpt_extent *ret, struct ckpt_err *err)
{
    const struct torch *torch = t->priv;
    struct torch_sharded s;
    size_t at;
    ckpt_torch_get_sharded(&torch->records, record, &s, &at);
    uint64_t size = itemsize_of(&s);
    for (unsigned d = 0; d < s.ndim; d++)
        size *= s.shape[d];
    if (s.boxes == 1) { /* what is wrong with it is told here, where there are words for it */
        struct torch_box box;
        struct stored p;
        size_t begin = at;
        ckpt_torch_box_next(&torch->records, s.ndim, &at, &box);
        int r = open_stored(t, &s, &box, begin, &p, err);
        if (r < 0)
            return r;
        stored_clear(&p);
    }
    struct boxes_file *f = calloc(1, sizeof *f);
    if (!f)
        return ckpt_no_memory(err);
    f->base = (struct ckpt_file){.ops = &boxes_ops, .st = {.type = CKPT_FT_FILE, .size = size}};
    atomic_init(&f->base.refs, 1);
    f->tree = ckpt_tree_ref(t);
    f->record = record;
    *ret = (struct ckpt_extent){.file = &f->base, .len = size};
    return 0;
}
