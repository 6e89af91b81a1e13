/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The layout is that of a single save with OCDBT: `_METADATA` has the tree, one database all arrays as Zarr 2. The
 * elements of all of them make one data file, array after array; the B+tree says where in it each chunk lies, so a
 * large array has many chunks without being many files, and keys of any kind are possible. Chunks are not compressed,
 * and split an array along one dimension only, so that one after another they are its elements in C order.
 */
#include "core/view/orbax_private.h"

#include "core/base/util.h"
#include "core/view/ocdbt_writer.h"

#include <stdio.h>

#define CHUNK    ((uint64_t)16 << 20) /* a chunk has at most so many bytes, unless there would be very many */
#define CHUNKS   65536                /* or about so many */
#define ALIGN    ((uint64_t)64)       /* of the beginning of an array in the data file */
#define MAX_DATA ((uint64_t)1 << 62)  /* bytes of the data file */
#define NODES    "d/0f8b4c1d2e6a49578cb3a1d07e52f964"
#define DATA     "d/7c21e9f05b3d4a8e96f1c8d2b40a6e35"

/* A key of the database: of an array, or of one of its chunks. */
static void add_stem(struct ckpt_buf *out, const char *param, size_t len)
{
    ckpt_buf_add(out, param, len);
    if (len && param[len - 1] != '/')
        ckpt_buf_addc(out, '/');
}

static void make_grid(struct grid *g, unsigned ndim, const uint64_t *shape, uint32_t itemsize)
{
    uint64_t row = itemsize, all = itemsize; /* bytes of what lies below a dimension, and of the array */
    for (unsigned d = 0; d < ndim; d++)
        all *= shape[d];
    uint64_t max = CKPT_MAX(CHUNK, all / CHUNKS);
    *g = (struct grid){.rows = 1, .cuts = 1, .runs = 1};
    for (unsigned d = ndim; d-- > 0;) {
        g->axis = d;
        g->rows = shape[d];
        bool fits = shape[d] && row <= max / shape[d];
        if (!fits) /* this dimension is the one to cut */
            break;
        if (d)
            row *= shape[d];
    }
    if (!g->rows)
        return;
    uint64_t count = g->rows, most = CKPT_MAX(max / row, (uint64_t)1), cuts = 1;
    while ((count + cuts - 1) / cuts > most) /* a power of two, which most often cuts evenly */
        cuts *= 2;
    g->rows = (count + cuts - 1) / cuts;
    g->cuts = (count + g->rows - 1) / g->rows;
    for (unsigned d = 0; d < g->axis; d++)
        g->runs *= shape[d];
    g->piece = g->rows * row;
    g->run = count * row;
    g->padded = g->cuts * g->piece;
}

static void grid_of(const struct part *p, const struct ckpt_array *a, struct grid *g)
{
    if (a)
        make_grid(g, a->ndim, a->shape, a->itemsize);
    else
        make_grid(g, 0, NULL, ckpt_dtype_info(p->dtype)->size);
}

int ckpt_orbax_maker_layout(const struct maker *m, const struct part *p, struct ckpt_array **ret)
{
    *ret = NULL;
    return m->tree->nodes[p->node].kind == CKPT_NODE_ARRAY ? ckpt_tree_layout(m->tree, p->node, ret, m->err) : 0;
}

/* --- the data file --- */

static void add_chunk_key(const struct grid *g, unsigned ndim, const uint64_t *shape, uint64_t chunk,
                          struct ckpt_buf *out)
{
    uint64_t index[CKPT_MAX_DIMS] = {0}, run = chunk / g->cuts;
    if (ndim)
        index[g->axis] = chunk % g->cuts;
    for (unsigned d = g->axis; d-- > 0;) {
        index[d] = run % shape[d];
        run /= shape[d];
    }
    ckpt_buf_addf(out, "%llu", (unsigned long long)index[0]);
    for (unsigned d = 1; d < ndim; d++)
        ckpt_buf_addf(out, ".%llu", (unsigned long long)index[d]);
}

static int add_entry_key(const struct maker *m, const struct entry *e, struct ckpt_buf *out)
{
    const struct part *p = &m->out->parts[e->part];
    struct ckpt_array *a;
    add_stem(out, (char *)m->names.data + p->name, p->name_len);
    if (!e->chunk) {
        ckpt_buf_adds(out, ".zarray");
        return 0;
    }
    int r = ckpt_orbax_maker_layout(m, p, &a);
    if (r < 0)
        return r;
    struct grid g;
    grid_of(p, a, &g);
    add_chunk_key(&g, a ? a->ndim : 0, a ? a->shape : NULL, e->chunk - 1, out);
    ckpt_array_unref(a);
    return 0;
}

/* By the whole keys; entries whose keys cannot be told are equal. */
static int compare_keys(const struct maker *m, const struct entry *a, const struct entry *b)
{
    CKPT_AUTOBUF struct ckpt_buf x = CKPT_BUF_INIT, y = CKPT_BUF_INIT;
    if (add_entry_key(m, a, &x) < 0 || add_entry_key(m, b, &y) < 0)
        return 0;
    if (ckpt_buf_error(&x) || ckpt_buf_error(&y))
        return 0;
    int c = memcmp(x.data, y.data, CKPT_MIN(x.len, y.len));
    if (c)
        return c;
    return (x.len > y.len) - (x.len < y.len);
}

/* The names decide in most cases; where one begins with the other, the whole keys do. */
static int by_key(const void *pa, const void *pb, void *arg)
{
    const struct maker *m = arg;
    const struct entry *a = pa, *b = pb;
    const struct part *x = &m->out->parts[a->part], *y = &m->out->parts[b->part];
    bool same_part = a->part == b->part;
    if (same_part && (!a->chunk || !b->chunk))
        return (a->chunk != 0) - (b->chunk != 0);
    int c = 0;
    if (!same_part)
        c = memcmp(m->names.data + x->name, m->names.data + y->name, CKPT_MIN(x->name_len, y->name_len));
    if (c == 0)
        c = compare_keys(m, a, b);
    if (c == 0)
        c = (x->node > y->node) - (x->node < y->node);
    return c;
}

static void sort_entries(struct maker *m)
{
    if (m->entry_count)
        qsort_r(m->entries, m->entry_count, sizeof *m->entries, by_key, m);
}

static int add_entry(struct maker *m, size_t part, uint64_t chunk)
{
    if (ckpt_orbax_maker_grow(m, &m->entries, sizeof *m->entries, m->entry_count, &m->entry_cap) < 0)
        return -ENOMEM;
    m->entries[m->entry_count++] = (struct entry){(uint32_t)part, chunk};
    return 0;
}

/* Joined names may be equal ({"a.b": x} beside {"a": {"b": y}}): the first in the tree is kept. */
static int drop_equal_names(struct maker *m)
{
    CKPT_AUTOBUF struct ckpt_buf last = CKPT_BUF_INIT, key = CKPT_BUF_INIT;
    int r = 0;
    m->entry_count = 0;
    for (size_t i = 0; i < m->out->part_count && r == 0; i++)
        if (m->fates[m->out->parts[i].node] != OUT)
            r = add_entry(m, i, 0);
    sort_entries(m);
    for (size_t i = 0; i < m->entry_count && r == 0; i++) {
        key.len = 0;
        r = add_entry_key(m, &m->entries[i], &key);
        if (r < 0)
            return r;
        if (ckpt_buf_error(&last) || ckpt_buf_error(&key))
            return ckpt_orbax_maker_no_memory(m);
        bool equal = i && last.len == key.len && !memcmp(last.data, key.data, key.len);
        if (equal)
            ckpt_orbax_maker_tell(m, m->out->parts[m->entries[i].part].node, "another array has the same joined name");
        struct ckpt_buf swap = last;
        last = key;
        key = swap;
    }
    return r;
}

/* The next array of the data file: where it lies, and its keys in the database. */
static int lay_out_part(struct maker *m, size_t index)
{
    struct ckpt_orbax_files *f = m->out;
    struct part *p = &f->parts[index];
    CKPT_AUTOARRAY struct ckpt_array *a = NULL;
    struct grid g;
    int r = ckpt_orbax_maker_layout(m, p, &a);
    if (r < 0)
        return r;
    grid_of(p, a, &g);
    p->run = g.run;
    p->padded = g.padded;
    p->off = f->data;
    bool overflow = ckpt_mul(g.runs, g.padded, &p->size) || ckpt_add(f->data, p->size, &f->data) ||
                    ckpt_add(f->data, ALIGN, &f->data);
    if (overflow || f->data > MAX_DATA)
        return ckpt_fail(m->err, EFBIG, "the arrays have 2^62 bytes or more");
    f->data = (f->data - 1) / ALIGN * ALIGN; /* the next one's place */
    r = add_entry(m, index, 0);
    uint64_t chunks = p->size ? g.runs * g.cuts : 0;
    for (uint64_t chunk = 0; chunk < chunks && r == 0; chunk++)
        r = add_entry(m, index, chunk + 1);
    return r;
}

/* Where each array lies, and which keys the database has. */
static int lay_out_data(struct maker *m)
{
    struct ckpt_orbax_files *f = m->out;
    size_t kept = 0;
    int r = 0;
    for (size_t i = 0; i < f->part_count; i++)
        if (m->fates[f->parts[i].node] != OUT)
            f->parts[kept++] = f->parts[i];
    f->part_count = kept;
    m->entry_count = 0;
    for (size_t i = 0; i < kept && r == 0; i++)
        r = lay_out_part(m, i);
    if (r < 0)
        return r;
    if (kept)
        f->data = f->parts[kept - 1].off + f->parts[kept - 1].size;
    sort_entries(m);
    return 0;
}

/* As Orbax writes it. */
static int add_zarray(const struct maker *m, const struct part *p, struct ckpt_buf *out)
{
    CKPT_AUTOARRAY struct ckpt_array *a = NULL;
    struct grid g;
    int r = ckpt_orbax_maker_layout(m, p, &a);
    if (r < 0)
        return r;
    grid_of(p, a, &g);
    unsigned ndim = a ? a->ndim : 0;
    const char *type = ckpt_orbax_zarr_type(p->dtype);
    ckpt_buf_adds(out, "{\"chunks\":[");
    for (unsigned d = 0; d < ndim; d++) {
        uint64_t rows = a->shape[d];
        if (d < g.axis)
            rows = 1;
        else if (d == g.axis)
            rows = g.rows;
        ckpt_buf_addf(out, "%s%llu", d ? "," : "", (unsigned long long)CKPT_MAX(rows, (uint64_t)1));
    }
    ckpt_buf_addf(out,
                  "],\"compressor\":null,\"dimension_separator\":\".\",\"dtype\":\"%s\",\"fill_value\":null,"
                  "\"filters\":null,\"order\":\"C\",\"shape\":[",
                  type ? type : "");
    for (unsigned d = 0; d < ndim; d++)
        ckpt_buf_addf(out, "%s%llu", d ? "," : "", (unsigned long long)a->shape[d]);
    ckpt_buf_adds(out, "],\"zarr_format\":2}");
    return ckpt_buf_error(out) ? ckpt_orbax_maker_no_memory(m) : 0;
}

static int write_entry(struct maker *m, struct ckpt_ocdbt_writer *w, const struct entry *e, struct ckpt_buf *key,
                       struct ckpt_buf *value)
{
    const struct part *p = &m->out->parts[e->part];
    struct ckpt_array *a;
    struct grid g;
    key->len = value->len = 0;
    int r = add_entry_key(m, e, key);
    if (r < 0)
        return r;
    if (!e->chunk) {
        r = add_zarray(m, p, value);
        if (r < 0)
            return r;
        r = ckpt_ocdbt_write(w, key, value->data, value->len, 0);
    } else {
        r = ckpt_orbax_maker_layout(m, p, &a);
        if (r < 0)
            return r;
        grid_of(p, a, &g);
        ckpt_array_unref(a);
        r = ckpt_ocdbt_write(w, key, NULL, g.piece, p->off + (e->chunk - 1) * g.piece);
    }
    return r < 0 ? ckpt_fail(m->err, -r, "%s", strerror(-r)) : 0;
}

/* --- the files --- */

static struct ckpt_rendering *add_file(struct maker *m, const char *path)
{
    struct ckpt_orbax_files *f = m->out;
    struct ckpt_rendering *text = ckpt_rendering_new(f->views->spill_dir);
    if (text)
        f->files[f->count++] = (struct file){path, text};
    else
        (void)ckpt_orbax_maker_no_memory(m);
    return text;
}

static int finish_file(const struct maker *m, struct ckpt_rendering *text)
{
    int r = ckpt_rendering_finish(text);
    return r < 0 ? ckpt_fail(m->err, -r, "%s: %s", text->spill_dir, strerror(-r)) : 0;
}

static int make_text(struct maker *m, const char *path, int (*write)(struct maker *m, struct ckpt_rendering *out))
{
    struct ckpt_rendering *text = add_file(m, path);
    int r = text ? write(m, text) : -ENOMEM;
    return r < 0 ? r : finish_file(m, text);
}

static int write_database(struct maker *m, struct ckpt_ocdbt_writer *w, struct ckpt_rendering *manifest)
{
    CKPT_AUTOBUF struct ckpt_buf key = CKPT_BUF_INIT, value = CKPT_BUF_INIT;
    for (size_t i = 0; i < m->entry_count; i++) {
        int r = write_entry(m, w, &m->entries[i], &key, &value);
        if (r < 0)
            return r;
    }
    int r = ckpt_ocdbt_write_manifest(w, (uint64_t)CKPT_MAX(m->time_ns, (int64_t)0), &manifest->text);
    return r < 0 ? ckpt_fail(m->err, -r, "%s", strerror(-r)) : 0;
}

static int make_database(struct maker *m)
{
    struct ckpt_orbax_files *f = m->out;
    struct ckpt_rendering *nodes = add_file(m, NODES);
    struct ckpt_rendering *manifest = nodes ? add_file(m, "manifest.ocdbt") : NULL;
    if (!manifest)
        return -ENOMEM;
    struct ckpt_ocdbt_writer w = {.nodes = nodes, .nodes_path = NODES, .data_path = DATA};
    int r = write_database(m, &w, manifest);
    ckpt_ocdbt_writer_clear(&w);
    if (r < 0)
        return r;
    r = finish_file(m, nodes);
    if (r < 0)
        return r;
    r = finish_file(m, manifest);
    if (r < 0)
        return r;
    f->files[f->count++] = (struct file){DATA, NULL};
    return 0;
}

/* In this order: the file that says that all is there comes last. */
static int make_files(struct maker *m)
{
    bool strings = m->string_count, keys = m->keys, arrays = m->out->part_count;
    int r = make_text(m, "_CHECKPOINT_METADATA", ckpt_orbax_text_checkpoint_metadata);
    if (r == 0)
        r = make_text(m, "_METADATA", ckpt_orbax_text_metadata);
    if (r == 0 && strings)
        r = make_text(m, "_strings.json", ckpt_orbax_text_strings);
    if (r == 0 && keys)
        r = make_text(m, "_sharding", ckpt_orbax_text_shardings);
    if (r == 0 && keys)
        r = make_text(m, "array_metadatas/process_0", ckpt_orbax_text_array_metadatas);
    if (r == 0 && arrays)
        r = make_database(m);
    if (r == 0)
        r = make_text(m, "commit_success.txt", ckpt_orbax_text_success);
    return r;
}

static int make(struct maker *m)
{
    m->names.max = SIZE_MAX / 2;
    m->fates = calloc(m->tree->count, 1);
    if (!m->fates || ckpt_buf_reserve(&m->names, 1) < 0)
        return ckpt_orbax_maker_no_memory(m);
    int r = ckpt_orbax_maker_judge(m);
    if (r < 0)
        return r;
    r = drop_equal_names(m);
    if (r < 0)
        return r;
    ckpt_orbax_text_drop_strings(m);
    r = lay_out_data(m);
    return r < 0 ? r : make_files(m);
}

int ckpt_orbax_files_new(struct ckpt_views *v, struct ckpt_tree *tree, uint32_t top, int64_t time_ns,
                         ckpt_left_out_fn *left_out, void *arg, struct ckpt_orbax_files **ret, struct ckpt_err *err)
{
    struct maker m = {.tree = tree, .top = top, .time_ns = time_ns, .left_out = left_out, .arg = arg, .err = err};
    m.out = calloc(1, sizeof *m.out);
    if (!m.out)
        return ckpt_orbax_maker_no_memory(&m);
    m.out->views = v;
    m.out->tree = tree;
    int r = make(&m);
    free(m.fates);
    free(m.entries);
    free(m.strings);
    ckpt_buf_clear(&m.names);
    if (r < 0)
        ckpt_orbax_files_free(m.out);
    else
        *ret = m.out;
    return r;
}

void ckpt_orbax_files_free(struct ckpt_orbax_files *f)
{
    if (!f)
        return;
    for (size_t i = 0; i < f->count; i++)
        ckpt_rendering_unref(f->files[i].text);
    free(f->parts);
    free(f);
}

/* --- reading --- */

bool ckpt_orbax_file(const struct ckpt_orbax_files *f, size_t index, const char **ret_path, uint64_t *ret_size)
{
    if (index >= f->count)
        return false;
    *ret_path = f->files[index].path;
    *ret_size = f->files[index].text ? f->files[index].text->size : f->data;
    return true;
}

static int read_value(struct ckpt_orbax_files *f, const struct part *p, uint8_t *buf, size_t len, uint64_t off,
                      struct ckpt_err *err)
{
    CKPT_AUTOBUF struct ckpt_buf json = CKPT_BUF_INIT;
    struct ckpt_value value;
    int r = ckpt_tree_value(f->tree, p->node, &json, &value, err);
    if (r == 0)
        memcpy(buf, value.element + off, len);
    return r;
}

static int read_array(struct ckpt_orbax_files *f, const struct part *p, uint8_t *buf, size_t len, uint64_t off,
                      struct ckpt_err *err)
{
    CKPT_AUTOARRAY struct ckpt_array *a = NULL;
    struct ckpt_selection all;
    int r = ckpt_tree_layout(f->tree, p->node, &a, err);
    if (r < 0)
        return r;
    ckpt_selection_all(&all, a->ndim, a->shape);
    const struct ckpt_selected what = {f->tree, p->node, a, &all};
    return ckpt_read_array(&f->views->reader, &what, buf, len, off, err);
}

/* Bytes of an array's elements. Integers of less than 8 bits are without the extension of their sign, as TensorStore
 * writes them. */
static int read_elements(struct ckpt_orbax_files *f, const struct part *p, uint8_t *buf, size_t len, uint64_t off,
                         struct ckpt_err *err)
{
    bool value = f->tree->nodes[p->node].kind == CKPT_NODE_VALUE;
    int r = value ? read_value(f, p, buf, len, off, err) : read_array(f, p, buf, len, off, err);
    if (r < 0)
        return r;
    const struct ckpt_dtype_info *info = ckpt_dtype_info(p->dtype);
    bool extended = info->klass == CKPT_DC_INT && info->bits < 8;
    for (size_t i = 0; extended && i < len; i++)
        buf[i] &= (uint8_t)((1u << info->bits) - 1);
    return 0;
}

/* The part of an array that begins at `at` of its place in the data file, up to the end of the run at most: its length.
 */
static ssize_t read_run(struct ckpt_orbax_files *f, const struct part *p, uint8_t *buf, size_t len, uint64_t at,
                        struct ckpt_err *err)
{
    if (at >= p->size) { /* between two arrays */
        memset(buf, 0, len);
        return (ssize_t)len;
    }
    uint64_t run = at / p->padded, in = at % p->padded;
    size_t n = (size_t)CKPT_MIN((uint64_t)len, p->padded - in), have = 0; /* behind the elements it is padded */
    if (in < p->run)
        have = (size_t)CKPT_MIN((uint64_t)n, p->run - in);
    int r = have ? read_elements(f, p, buf, have, run * p->run + in, err) : 0;
    memset(buf + have, 0, n - have);
    return r < 0 ? r : (ssize_t)n;
}

/* The last array that begins at or before off. */
static size_t part_at(const struct ckpt_orbax_files *f, uint64_t off)
{
    size_t lo = 0, hi = f->part_count;
    while (hi - lo > 1) {
        size_t mid = lo + (hi - lo) / 2;
        if (f->parts[mid].off <= off)
            lo = mid;
        else
            hi = mid;
    }
    return lo;
}

static ssize_t read_data(struct ckpt_orbax_files *f, uint8_t *buf, size_t len, uint64_t off, struct ckpt_err *err)
{
    size_t done = 0;
    if (off >= f->data)
        return 0;
    len = (size_t)CKPT_MIN((uint64_t)len, f->data - off);
    for (size_t i = part_at(f, off); done < len;) {
        uint64_t end = i + 1 < f->part_count ? f->parts[i + 1].off : f->data, at = off + done;
        if (at >= end) {
            i++;
            continue;
        }
        size_t want = (size_t)CKPT_MIN((uint64_t)(len - done), end - at);
        ssize_t n = read_run(f, &f->parts[i], buf + done, want, at - f->parts[i].off, err);
        if (n < 0)
            return n;
        done += (size_t)n;
    }
    return (ssize_t)done;
}

ssize_t ckpt_orbax_file_read(struct ckpt_orbax_files *f, size_t index, void *buf, size_t len, uint64_t off,
                             struct ckpt_err *err)
{
    if (!f->files[index].text)
        return read_data(f, buf, len, off, err);
    ssize_t n = ckpt_rendering_read(f->files[index].text, buf, len, off);
    return n < 0 ? ckpt_fail(err, (int)-n, "%s", strerror((int)-n)) : n;
}
