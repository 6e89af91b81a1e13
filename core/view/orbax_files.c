/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The layout is that of a single save with OCDBT: `_METADATA` has the tree, one database all arrays as Zarr 2. The
 * elements of all of them make one data file, array after array; the B+tree says where in it each chunk lies, so a
 * large array has many chunks without being many files, and keys of any kind are possible. Chunks are not compressed,
 * and split an array along one dimension only, so that one after another they are its elements in C order.
 */
#include "core/view/orbax_private.h"

#include "core/base/util.h"
#include "core/io/json.h"
#include "core/view/ocdbt_writer.h"

#include <stdio.h>
#include <xxhash.h>

#define CHUNK     ((uint64_t)16 << 20) /* a chunk has at most so many bytes, unless there would be very many */
#define CHUNKS    65536                /* or about so many */
#define ALIGN     ((uint64_t)64)       /* of the beginning of an array in the data file */
#define MAX_PARAM 60000                /* bytes of a name; a database's keys have at most 65,535 */
#define NODES     "d/0f8b4c1d2e6a49578cb3a1d07e52f964"
#define DATA      "d/7c21e9f05b3d4a8e96f1c8d2b40a6e35"

int ckpt_orbax_maker_no_memory(const struct maker *m)
{
    return ckpt_fail(m->err, ENOMEM, "out of memory");
}

/* Room for one more. */
static int grow(const struct maker *m, void *items, size_t size, size_t count, size_t *cap)
{
    void **p = items;
    if (count < *cap)
        return 0;
    size_t more = *cap ? *cap + *cap / 2 : 64;
    void *q = realloc(*p, more * size);
    if (!q)
        return ckpt_orbax_maker_no_memory(m);
    *p = q;
    *cap = more;
    return 0;
}

/* --- names --- */

/* The keys from the top down to a node: the number of nodes in path, the node itself first. */
unsigned ckpt_orbax_maker_path(const struct maker *m, uint32_t node, uint32_t path[CKPT_MAX_DEPTH])
{
    unsigned n = 0;
    for (uint32_t at = node; at != m->top && n < CKPT_MAX_DEPTH; at = m->tree->nodes[at].parent)
        path[n++] = at;
    return m->bare ? 0 : n;
}

/* The same joined with dots: the name of an array. */
static void add_param(const struct maker *m, uint32_t node, struct ckpt_buf *out)
{
    uint32_t path[CKPT_MAX_DEPTH];
    size_t len;
    for (unsigned n = ckpt_orbax_maker_path(m, node, path); n-- > 0;) {
        const char *key = ckpt_tree_text(m->tree, m->tree->nodes[path[n]].key, &len);
        ckpt_buf_add(out, key, len);
        if (n)
            ckpt_buf_addc(out, '.');
    }
}

void ckpt_orbax_maker_tell(struct maker *m, uint32_t node, const char *why)
{
    struct ckpt_buf name = CKPT_BUF_INIT;
    m->fates[node] = OUT;
    add_param(m, node, &name);
    CKPT_AUTOFREE char *path = ckpt_buf_steal(&name, NULL);
    if (m->left_out)
        m->left_out(m->arg, path ? path : "", why);
}

/* A key of the database: of an array, or of one of its chunks. */
static void add_stem(struct ckpt_buf *out, const char *param, size_t len)
{
    ckpt_buf_add(out, param, len);
    if (len && param[len - 1] != '/')
        ckpt_buf_addc(out, '/');
}

/* --- what becomes of each leaf --- */

/* As TensorStore's Zarr driver calls it; NULL: it does not have it. */
static const char *zarr_type(enum ckpt_dtype dtype)
{
    switch (dtype) {
    case CKPT_DT_C32:
    case CKPT_DT_F8_E4M3:
    case CKPT_DT_F6_E2M3FN:
    case CKPT_DT_F6_E3M2FN:
    case CKPT_DT_U4:
    case CKPT_DT_U2:
    case CKPT_DT_U1:
    case CKPT_DT_I1:
    case CKPT_DT_OTHER:
        return NULL;
    default:
        break;
    }
    const struct ckpt_dtype_info *info = ckpt_dtype_info(dtype);
    return dtype <= CKPT_DT_C128 && dtype != CKPT_DT_BF16 ? info->descr : info->name;
}

void ckpt_orbax_maker_key_impl(const struct maker *m, uint32_t node, const struct ckpt_array *a, struct ckpt_buf *ret)
{
    struct ckpt_buf json = CKPT_BUF_INIT;
    ret->len = 0;
    if (!m->tree->ops->describe || a->dtype != CKPT_DT_U32 || !a->ndim)
        return;
    ckpt_buf_adds(&json, "{\"\":0");
    m->tree->ops->describe(m->tree, node, &json);
    ckpt_buf_addc(&json, '}');
    cJSON *root = ckpt_buf_error(&json) ? NULL : ckpt_json_parse((char *)json.data, json.len);
    const cJSON *impl = ckpt_json_get(root, "prng_impl");
    if (cJSON_IsString(impl))
        ckpt_buf_adds(ret, impl->valuestring);
    cJSON_Delete(root);
    ckpt_buf_clear(&json);
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
        if (!shape[d] || row > max / shape[d]) /* this dimension does not fit in a chunk: it is the one to cut */
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

static int note_part(struct maker *m, uint32_t node, enum ckpt_dtype dtype, uint64_t name, uint32_t name_len)
{
    struct ckpt_orbax_files *f = m->out;
    if (grow(m, &f->parts, sizeof *f->parts, f->part_count, &f->part_cap) < 0)
        return -ENOMEM;
    f->parts[f->part_count++] =
        (struct part){.node = node, .dtype = (uint8_t)dtype, .name = name, .name_len = name_len};
    return 0;
}

static int note_string(struct maker *m, uint32_t node, uint64_t name, uint32_t name_len)
{
    if (grow(m, &m->strings, sizeof *m->strings, m->string_count, &m->string_cap) < 0)
        return -ENOMEM;
    m->strings[m->string_count++] = (struct string){node, name_len, name};
    return 0;
}

static int judge_array(struct maker *m, uint32_t node, enum ckpt_dtype *ret)
{
    struct ckpt_array *a;
    struct ckpt_err own = {0};
    struct ckpt_buf impl = CKPT_BUF_INIT;
    char why[128];
    int r = ckpt_tree_layout(m->tree, node, &a, &own);
    if (r == -EOPNOTSUPP) {
        ckpt_orbax_maker_tell(m, node, own.text);
        return 0;
    }
    if (r < 0)
        return ckpt_fail(m->err, -r, "%s", own.text);
    *ret = a->dtype;
    m->fates[node] = ARRAY;
    if (a->unsupported)
        ckpt_orbax_maker_tell(m, node, a->why);
    else if (!zarr_type(a->dtype)) {
        snprintf(why, sizeof why, "Orbax has no type for %s", ckpt_array_type(a));
        ckpt_orbax_maker_tell(m, node, why);
    } else {
        ckpt_orbax_maker_key_impl(m, node, a, &impl);
        if (impl.len)
            m->fates[node] = KEY_ARRAY;
        m->keys |= impl.len > 0;
    }
    ckpt_buf_clear(&impl);
    ckpt_array_unref(a);
    return 0;
}

static int judge_value(struct maker *m, uint32_t node, enum ckpt_dtype *ret)
{
    struct ckpt_buf json = CKPT_BUF_INIT;
    struct ckpt_value value;
    int r = ckpt_tree_value(m->tree, node, &json, &value, m->err);
    if (r == 0 && (r = ckpt_buf_error(&json)) < 0)
        r = ckpt_orbax_maker_no_memory(m);
    if (r == 0) {
        *ret = value.dtype;
        m->fates[node] = *json.data == '"' ? STRING : *json.data == 'n' ? NONE : SCALAR;
        if (m->fates[node] == SCALAR && !zarr_type(value.dtype))
            ckpt_orbax_maker_tell(
                m, node, value.dtype == CKPT_DT_OTHER ? "an integer of more than 64 bits" : "Orbax has no type for it");
    }
    ckpt_buf_clear(&json);
    return r;
}

/* What a name must be like, be it of an array or of a string. NULL: it is. */
static const char *why_not(const char *name, size_t len, enum fate fate)
{
    if (len > MAX_PARAM)
        return "its keys are too long";
    if (!ckpt_utf8(name, len) || memchr(name, 0, len))
        return "its keys are not UTF-8 text";
    for (size_t i = 0; i < len && fate == STRING; i++) /* Orbax finds strings with a JSON pointer */
        if (name[i] == '~' && (i + 1 == len || (name[i + 1] != '0' && name[i + 1] != '1')))
            return "a string whose keys have a ~";
    return NULL;
}

static int judge_leaf(struct maker *m, uint32_t node)
{
    enum ckpt_dtype dtype = CKPT_DT_OTHER;
    uint64_t name = m->names.len;
    int r = 0;
    add_param(m, node, &m->names);
    if (ckpt_buf_error(&m->names))
        return ckpt_orbax_maker_no_memory(m);
    size_t len = m->names.len - name;
    if (m->tree->nodes[node].kind == CKPT_NODE_ARRAY)
        r = judge_array(m, node, &dtype);
    else if (m->tree->nodes[node].kind == CKPT_NODE_VALUE)
        r = judge_value(m, node, &dtype);
    else
        ckpt_orbax_maker_tell(m, node, "a blob");
    enum fate fate = m->fates[node];
    const char *why = r < 0 || fate == OUT ? NULL : why_not((char *)m->names.data + name, len, fate);
    if (why)
        ckpt_orbax_maker_tell(m, node, why);
    if (r < 0 || why || fate == OUT || fate == NONE) {
        m->names.len = name;
        return r;
    }
    return fate == STRING ? note_string(m, node, name, (uint32_t)len) : note_part(m, node, dtype, name, (uint32_t)len);
}

/* The next node of a walk, or the top when it is over. */
static uint32_t next_node(const struct maker *m, uint32_t node)
{
    const struct ckpt_node *nodes = m->tree->nodes;
    if (nodes[node].kind == CKPT_NODE_DIR && nodes[node].first != CKPT_NO_NODE)
        return nodes[node].first;
    while (node != m->top && nodes[node].next == CKPT_NO_NODE)
        node = nodes[node].parent;
    return node == m->top ? node : nodes[node].next;
}

static int judge(struct maker *m)
{
    const struct ckpt_node *top = &m->tree->nodes[m->top];
    if (top->first != CKPT_NO_NODE && top->first == top->last) {
        const struct ckpt_node *only = &m->tree->nodes[top->first];
        size_t len;
        ckpt_tree_text(m->tree, only->key, &len);
        m->bare = !len && !m->top && only->kind != CKPT_NODE_DIR && only->kind != CKPT_NODE_BLOB;
    }
    int r = 0;
    for (uint32_t node = next_node(m, m->top); node != m->top && r == 0; node = next_node(m, node))
        if (m->tree->nodes[node].kind != CKPT_NODE_DIR)
            r = judge_leaf(m, node);
    return r;
}

/* --- two of one name --- */

struct sibling {
    uint64_t hash; /* of parent and key */
    uint32_t node;
};

static int by_hash(const void *pa, const void *pb)
{
    const struct sibling *a = pa, *b = pb;
    return a->hash != b->hash ? (a->hash < b->hash ? -1 : 1) : a->node < b->node ? -1 : a->node > b->node;
}

static bool same_key(const struct maker *m, uint32_t a, uint32_t b)
{
    size_t la, lb;
    const char *ka = ckpt_tree_text(m->tree, m->tree->nodes[a].key, &la),
               *kb = ckpt_tree_text(m->tree, m->tree->nodes[b].key, &lb);
    return m->tree->nodes[a].parent == m->tree->nodes[b].parent && la == lb && !memcmp(ka, kb, la);
}

/* A store may have a leaf beside a directory, or another leaf, of the same key. */
static int drop_twins(struct maker *m)
{
    const struct ckpt_node *nodes = m->tree->nodes;
    CKPT_AUTOFREE struct sibling *all = malloc(((size_t)m->tree->count + 1) * sizeof *all);
    size_t n = 0, len;
    if (!all)
        return ckpt_orbax_maker_no_memory(m);
    for (uint32_t node = next_node(m, m->top); node != m->top; node = next_node(m, node)) {
        if (nodes[node].kind != CKPT_NODE_DIR && m->fates[node] == OUT)
            continue;
        const char *key = ckpt_tree_text(m->tree, nodes[node].key, &len);
        all[n++] = (struct sibling){XXH3_64bits_withSeed(key, len, nodes[node].parent), node};
    }
    qsort(all, n, sizeof *all, by_hash);
    for (size_t i = 1; i < n; i++) {
        uint32_t a = all[i - 1].node, b = all[i].node;
        if (all[i].hash != all[i - 1].hash || !same_key(m, a, b))
            continue;
        uint32_t out = nodes[b].kind != CKPT_NODE_DIR ? b : a;
        if (nodes[out].kind != CKPT_NODE_DIR)
            ckpt_orbax_maker_tell(m, out, "something else has the same key");
        if (out == b)
            all[i].node = a; /* what a third one is compared with */
    }
    return 0;
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

/* The names decide in most cases; where one begins with the other, the whole keys do. */
static int by_key(const void *pa, const void *pb, void *arg)
{
    const struct maker *m = arg;
    const struct entry *a = pa, *b = pb;
    const struct part *x = &m->out->parts[a->part], *y = &m->out->parts[b->part];
    if (a->part == b->part && (!a->chunk || !b->chunk))
        return (a->chunk != 0) - (b->chunk != 0);
    int c = a->part == b->part
                ? 0
                : memcmp(m->names.data + x->name, m->names.data + y->name, CKPT_MIN(x->name_len, y->name_len));
    if (c)
        return c;
    struct ckpt_buf ka = CKPT_BUF_INIT, kb = CKPT_BUF_INIT;
    int r = add_entry_key(m, a, &ka);
    if (r == 0)
        r = add_entry_key(m, b, &kb);
    if (r == 0 && !ckpt_buf_error(&ka) && !ckpt_buf_error(&kb)) {
        c = memcmp(ka.data, kb.data, CKPT_MIN(ka.len, kb.len));
        c = c ? c : (ka.len > kb.len) - (ka.len < kb.len);
    }
    ckpt_buf_clear(&ka);
    ckpt_buf_clear(&kb);
    return c ? c : (x->node > y->node) - (x->node < y->node);
}

static void sort_entries(struct maker *m)
{
    if (m->entry_count)
        qsort_r(m->entries, m->entry_count, sizeof *m->entries, by_key, m);
}

static int add_entry(struct maker *m, size_t part, uint64_t chunk)
{
    if (grow(m, &m->entries, sizeof *m->entries, m->entry_count, &m->entry_cap) < 0)
        return -ENOMEM;
    m->entries[m->entry_count++] = (struct entry){(uint32_t)part, chunk};
    return 0;
}

/* Joined names may be equal ({"a.b": x} beside {"a": {"b": y}}): the first in the tree is kept. */
static int drop_equal_names(struct maker *m)
{
    struct ckpt_buf a = CKPT_BUF_INIT, b = CKPT_BUF_INIT;
    int r = 0;
    m->entry_count = 0;
    for (size_t i = 0; i < m->out->part_count && r == 0; i++)
        if (m->fates[m->out->parts[i].node] != OUT)
            r = add_entry(m, i, 0);
    sort_entries(m);
    for (size_t i = 0; i < m->entry_count && r == 0; i++) {
        b.len = 0;
        r = add_entry_key(m, &m->entries[i], &b);
        if (r == 0 && (ckpt_buf_error(&a) || ckpt_buf_error(&b)))
            r = ckpt_orbax_maker_no_memory(m);
        if (r == 0 && i && a.len == b.len && !memcmp(a.data, b.data, a.len))
            ckpt_orbax_maker_tell(m, m->out->parts[m->entries[i].part].node, "another array has the same joined name");
        struct ckpt_buf swap = a;
        a = b;
        b = swap;
    }
    ckpt_buf_clear(&a);
    ckpt_buf_clear(&b);
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
    for (size_t i = 0; i < kept && r == 0; i++) {
        struct part *p = &f->parts[i];
        struct ckpt_array *a;
        struct grid g;
        r = ckpt_orbax_maker_layout(m, p, &a);
        if (r < 0)
            break;
        grid_of(p, a, &g);
        p->run = g.run;
        p->padded = g.padded;
        p->off = f->data;
        ckpt_array_unref(a);
        if (ckpt_mul(g.runs, g.padded, &p->size) || ckpt_add(f->data, p->size, &f->data) ||
            ckpt_add(f->data, ALIGN, &f->data) || f->data > (uint64_t)1 << 62)
            return ckpt_fail(m->err, EFBIG, "the arrays have 2^62 bytes or more");
        f->data = (f->data - 1) / ALIGN * ALIGN; /* the next one's place */
        r = add_entry(m, i, 0);
        for (uint64_t chunk = 0; p->size && chunk < g.runs * g.cuts && r == 0; chunk++)
            r = add_entry(m, i, chunk + 1);
    }
    if (kept && r == 0)
        f->data = f->parts[kept - 1].off + f->parts[kept - 1].size;
    sort_entries(m);
    return r;
}

/* As Orbax writes it. */
static int add_zarray(const struct maker *m, const struct part *p, struct ckpt_buf *out)
{
    struct ckpt_array *a;
    struct grid g;
    int r = ckpt_orbax_maker_layout(m, p, &a);
    if (r < 0)
        return r;
    grid_of(p, a, &g);
    unsigned ndim = a ? a->ndim : 0;
    const char *type = zarr_type(p->dtype);
    ckpt_buf_adds(out, "{\"chunks\":[");
    for (unsigned d = 0; d < ndim; d++) {
        uint64_t rows = d < g.axis ? 1 : d == g.axis ? g.rows : a->shape[d];
        ckpt_buf_addf(out, "%s%llu", d ? "," : "", (unsigned long long)CKPT_MAX(rows, (uint64_t)1));
    }
    ckpt_buf_addf(out,
                  "],\"compressor\":null,\"dimension_separator\":\".\",\"dtype\":\"%s\",\"fill_value\":null,"
                  "\"filters\":null,\"order\":\"C\",\"shape\":[",
                  type ? type : "");
    for (unsigned d = 0; d < ndim; d++)
        ckpt_buf_addf(out, "%s%llu", d ? "," : "", (unsigned long long)a->shape[d]);
    ckpt_buf_adds(out, "],\"zarr_format\":2}");
    ckpt_array_unref(a);
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

static int make_database(struct maker *m)
{
    struct ckpt_orbax_files *f = m->out;
    struct ckpt_buf key = CKPT_BUF_INIT, value = CKPT_BUF_INIT;
    struct ckpt_rendering *nodes = add_file(m, NODES), *manifest = nodes ? add_file(m, "manifest.ocdbt") : NULL;
    struct ckpt_ocdbt_writer w = {.nodes = nodes, .nodes_path = NODES, .data_path = DATA};
    int r = manifest ? 0 : -ENOMEM;
    for (size_t i = 0; i < m->entry_count && r == 0; i++)
        r = write_entry(m, &w, &m->entries[i], &key, &value);
    if (r == 0) {
        r = ckpt_ocdbt_write_manifest(&w, (uint64_t)CKPT_MAX(m->time_ns, (int64_t)0), &manifest->text);
        if (r < 0)
            r = ckpt_fail(m->err, -r, "%s", strerror(-r));
    }
    if (r == 0)
        r = finish_file(m, nodes);
    if (r == 0)
        r = finish_file(m, manifest);
    if (r == 0)
        f->files[f->count++] = (struct file){DATA, NULL};
    ckpt_ocdbt_writer_clear(&w);
    ckpt_buf_clear(&key);
    ckpt_buf_clear(&value);
    return r;
}

static int make_files(struct maker *m)
{
    int r = make_text(m, "_CHECKPOINT_METADATA", ckpt_orbax_text_checkpoint_metadata);
    if (r == 0)
        r = make_text(m, "_METADATA", ckpt_orbax_text_metadata);
    if (r == 0 && m->string_count)
        r = make_text(m, "_strings.json", ckpt_orbax_text_strings);
    if (r == 0 && m->keys)
        r = make_text(m, "_sharding", ckpt_orbax_text_shardings);
    if (r == 0 && m->keys)
        r = make_text(m, "array_metadatas/process_0", ckpt_orbax_text_array_metadatas);
    if (r == 0 && m->out->part_count)
        r = make_database(m);
    return r == 0 ? make_text(m, "commit_success.txt", ckpt_orbax_text_success) : r;
}

static int make(struct maker *m)
{
    m->names.max = SIZE_MAX / 2;
    m->fates = calloc(m->tree->count, 1);
    if (!m->fates || ckpt_buf_reserve(&m->names, 1) < 0)
        return ckpt_orbax_maker_no_memory(m);
    int r = judge(m);
    if (r == 0)
        r = drop_twins(m);
    if (r == 0)
        r = drop_equal_names(m);
    if (r < 0)
        return r;
    ckpt_orbax_text_drop_strings(m);
    r = lay_out_data(m);
    return r == 0 ? make_files(m) : r;
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

/* Bytes of an array's elements. Integers of less than 8 bits are without the extension of their sign, as TensorStore
 * writes them. */
static int read_elements(struct ckpt_orbax_files *f, const struct part *p, uint8_t *buf, size_t len, uint64_t off,
                         struct ckpt_err *err)
{
    int r;
    if (f->tree->nodes[p->node].kind == CKPT_NODE_VALUE) {
        struct ckpt_buf json = CKPT_BUF_INIT;
        struct ckpt_value value;
        r = ckpt_tree_value(f->tree, p->node, &json, &value, err);
        ckpt_buf_clear(&json);
        if (r == 0)
            memcpy(buf, value.element + off, len);
    } else {
        struct ckpt_array *a;
        struct ckpt_selection all;
        r = ckpt_tree_layout(f->tree, p->node, &a, err);
        if (r < 0)
            return r;
        ckpt_selection_all(&all, a->ndim, a->shape);
        r = ckpt_read_array(&f->views->reader, f->tree, p->node, a, &all, buf, len, off, err);
        ckpt_array_unref(a);
    }
    const struct ckpt_dtype_info *info = ckpt_dtype_info(p->dtype);
    for (size_t i = 0; i < len && r == 0 && info->klass == CKPT_DC_INT && info->bits < 8; i++)
        buf[i] &= (uint8_t)((1u << info->bits) - 1);
    return r;
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
    size_t n = (size_t)CKPT_MIN((uint64_t)len, p->padded - in),
           have = in < p->run ? (size_t)CKPT_MIN((uint64_t)n, p->run - in) : 0;
    int r = have ? read_elements(f, p, buf, have, run * p->run + in, err) : 0;
    memset(buf + have, 0, n - have);
    return r < 0 ? r : (ssize_t)n;
}

static ssize_t read_data(struct ckpt_orbax_files *f, uint8_t *buf, size_t len, uint64_t off, struct ckpt_err *err)
{
    size_t lo = 0, hi = f->part_count, done = 0;
    if (off >= f->data)
        return 0;
    len = (size_t)CKPT_MIN((uint64_t)len, f->data - off);
    while (hi - lo > 1) { /* the last array that begins at or before off */
        size_t mid = lo + (hi - lo) / 2;
        if (f->parts[mid].off <= off)
            lo = mid;
        else
            hi = mid;
    }
    for (size_t i = lo; done < len;) {
        uint64_t end = i + 1 < f->part_count ? f->parts[i + 1].off : f->data, at = off + done;
        if (at >= end) {
            i++;
            continue;
        }
        ssize_t n = read_run(f, &f->parts[i], buf + done, (size_t)CKPT_MIN((uint64_t)(len - done), end - at),
                             at - f->parts[i].off, err);
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
