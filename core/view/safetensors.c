/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A subtree as one safetensors file: u64 length of the header, the header in JSON, then the data
 * (github.com/huggingface/safetensors, "Format"). The header is made on the first look; data are read from the leaves.
 * Leaves with the largest elements come first, so that every tensor is aligned to its element size.
 */
#include "core/base/util.h"
#include "core/view/rendering.h"

#include <stdio.h>

struct tensor {
    uint32_t node;
    const struct ckpt_dtype_info *info;
    struct ckpt_array *array; /* NULL: a number */
};

struct maker {
    struct ckpt_tree *tree;
    uint32_t top;
    struct tensor *tensors;
    size_t count, cap;
    struct ckpt_buf others; /* members of __metadata__: leaves that are no tensors */
};

static void add_name(const struct maker *m, uint32_t node, struct ckpt_buf *out)
{
    uint32_t path[CKPT_MAX_DEPTH];
    unsigned n = 0;
    for (uint32_t at = node; at != m->top && n < CKPT_MAX_DEPTH; at = m->tree->nodes[at].parent)
        path[n++] = at;
    while (n-- > 0) {
        size_t len;
        const char *key = ckpt_tree_text(m->tree, m->tree->nodes[path[n]].key, &len);
        ckpt_buf_add(out, key, len);
        if (n)
            ckpt_buf_addc(out, '.');
    }
}

static void add_json_name(const struct maker *m, uint32_t node, struct ckpt_buf *out)
{
    struct ckpt_buf name = CKPT_BUF_INIT;
    add_name(m, node, &name);
    ckpt_buf_add_json_string(out, name.data ? (char *)name.data : "", name.len);
    ckpt_buf_clear(&name);
}

/* The format's metadata is a map of strings to strings. */
static void add_other(struct maker *m, uint32_t node, const char *text, size_t len)
{
    ckpt_buf_addc(&m->others, ',');
    add_json_name(m, node, &m->others);
    ckpt_buf_addc(&m->others, ':');
    ckpt_buf_add_json_string(&m->others, text, len);
}

static int add_tensor(struct maker *m, uint32_t node, enum ckpt_dtype dt, struct ckpt_array *array)
{
    if (m->count == m->cap) {
        size_t cap = m->cap ? m->cap * 2 : 64;
        struct tensor *p = realloc(m->tensors, cap * sizeof *p);
        if (!p)
            return -ENOMEM;
        m->tensors = p;
        m->cap = cap;
    }
    m->tensors[m->count++] = (struct tensor){node, ckpt_dtype_info(dt), array};
    return 0;
}

static int collect_array(struct maker *m, uint32_t node, struct ckpt_err *err)
{
    struct ckpt_array *a;
    struct ckpt_err own = {0};
    char text[600];
    int r = ckpt_tree_layout(m->tree, node, &a, &own), n;
    if (r < 0 && r != -EOPNOTSUPP)
        return ckpt_fail(err, -r, "%s", own.text);
    if (r == 0 && !a->unsupported && ckpt_dtype_info(a->dtype)->safetensors) {
        r = add_tensor(m, node, a->dtype, ckpt_array_ref(a));
        ckpt_array_unref(a);
        return r;
    }
    if (r < 0)
        n = snprintf(text, sizeof text, "left out: %s", own.text);
    else {
        n = snprintf(text, sizeof text, "left out: safetensors has no type for %s", ckpt_array_type(a));
        ckpt_array_unref(a);
    }
    add_other(m, node, text, (size_t)n);
    return 0;
}

static int collect_leaf(struct maker *m, uint32_t node, struct ckpt_err *err)
{
    struct ckpt_tree *t = m->tree;
    int r = 0;
    if (t->nodes[node].kind == CKPT_NODE_ARRAY)
        return collect_array(m, node, err);
    if (t->nodes[node].kind == CKPT_NODE_VALUE) {
        struct ckpt_buf json = CKPT_BUF_INIT;
        struct ckpt_value value;
        r = ckpt_tree_value(t, node, &json, &value, err);
        if (r == 0 && value.dtype != CKPT_DT_OTHER && ckpt_dtype_info(value.dtype)->safetensors)
            r = add_tensor(m, node, value.dtype, NULL);
        else if (r == 0)
            add_other(m, node, (char *)json.data, json.len);
        ckpt_buf_clear(&json);
    }
    return r;
}

static int by_size(const void *pa, const void *pb)
{
    const struct tensor *a = pa, *b = pb;
    if (a->info->size != b->info->size)
        return a->info->size < b->info->size ? 1 : -1;
    return a->node < b->node ? -1 : a->node > b->node;
}

struct named {
    uint64_t hash;
    size_t i;
};

static int by_hash(const void *pa, const void *pb)
{
    const struct named *a = pa, *b = pb;
    return a->hash != b->hash ? (a->hash < b->hash ? -1 : 1) : a->i < b->i ? -1 : a->i > b->i;
}

/* Joined names can collide ({"a.b": x} beside {"a": {"b": y}}): such a tree has no safetensors form. */
static int check_names(const struct maker *m, struct ckpt_err *err)
{
    CKPT_AUTOFREE struct named *names = malloc((m->count + 1) * sizeof *names);
    struct ckpt_buf a = CKPT_BUF_INIT, b = CKPT_BUF_INIT;
    int r = names ? 0 : -ENOMEM;
    for (size_t i = 0; i < m->count && r == 0; i++) {
        a.len = 0;
        add_name(m, m->tensors[i].node, &a);
        if (a.len == 12 && !memcmp(a.data, "__metadata__", 12))
            r = ckpt_fail(err, EOPNOTSUPP, "a leaf has the name __metadata__, which safetensors files use themselves");
        uint64_t h = 0xcbf29ce484222325;
        for (size_t j = 0; j < a.len; j++)
            h = (h ^ a.data[j]) * 0x100000001b3;
        names[i] = (struct named){h, i};
    }
    if (r == 0 && m->count)
        qsort(names, m->count, sizeof *names, by_hash);
    for (size_t i = 1; i < m->count && r == 0; i++) {
        if (names[i].hash != names[i - 1].hash)
            continue;
        a.len = b.len = 0;
        add_name(m, m->tensors[names[i].i].node, &a);
        add_name(m, m->tensors[names[i - 1].i].node, &b);
        if (a.len == b.len && (!a.len || !memcmp(a.data, b.data, a.len)))
            r = ckpt_fail(err, EOPNOTSUPP, "two leaves would have the safetensors name %.*s", (int)CKPT_MIN(a.len, (size_t)200), (char *)a.data);
    }
    ckpt_buf_clear(&a);
    ckpt_buf_clear(&b);
    return r;
}

static int write_header(const struct maker *m, struct ckpt_rendering *r)
{
    struct ckpt_buf *out = &r->text;
    uint64_t off = 0;
    out->len = 0;
    ckpt_buf_add(out, "\0\0\0\0\0\0\0\0", 8); /* the length, when it is known */
    ckpt_buf_addf(out, "{\"__metadata__\":{\"format\":\"%s\"", m->tree->format->name);
    ckpt_buf_add(out, m->others.data, m->others.len);
    ckpt_buf_addc(out, '}');
    for (size_t i = 0; i < m->count; i++) {
        const struct tensor *t = &m->tensors[i];
        uint64_t bytes = t->array ? t->array->nbytes : t->info->size;
        ckpt_buf_addc(out, ',');
        add_json_name(m, t->node, out);
        ckpt_buf_addf(out, ":{\"dtype\":\"%s\",\"shape\":[", t->info->safetensors);
        for (unsigned d = 0; t->array && d < t->array->ndim; d++)
            ckpt_buf_addf(out, "%s%llu", d ? "," : "", (unsigned long long)t->array->shape[d]);
        ckpt_buf_addf(out, "],\"data_offsets\":[%llu,%llu]}", (unsigned long long)off, (unsigned long long)(off + bytes));
        r->parts[i] = (struct ckpt_rendering_part){off, t->node};
        if (__builtin_add_overflow(off, bytes, &off))
            return -EFBIG;
    }
    ckpt_buf_addc(out, '}');
    while (out->len % 64)
        ckpt_buf_addc(out, ' ');
    if (ckpt_buf_error(out))
        return ckpt_buf_error(out);
    uint64_t header = out->len - 8;
    memcpy(out->data, &header, 8);
    for (size_t i = 0; i < m->count; i++)
        r->parts[i].off += out->len;
    r->part_count = m->count;
    int e = ckpt_rendering_finish(r);
    r->size += off;
    return e;
}

int ckpt_render_safetensors(struct ckpt_views *v, const struct ckpt_viewed *f, struct ckpt_rendering *r, struct ckpt_err *err)
{
    struct ckpt_tree *t = f->tree;
    struct maker m = {.tree = t, .top = f->node};
    int e = 0;
    for (uint32_t node = f->node; e == 0;) {
        e = collect_leaf(&m, node, err);
        if (t->nodes[node].kind == CKPT_NODE_DIR && t->nodes[node].first != CKPT_NO_NODE) {
            node = t->nodes[node].first;
            continue;
        }
        while (node != f->node && t->nodes[node].next == CKPT_NO_NODE)
            node = t->nodes[node].parent;
        if (node == f->node)
            break;
        node = t->nodes[node].next;
    }
    if (e == 0)
        e = check_names(&m, err);
    if (e == 0) {
        if (m.count)
            qsort(m.tensors, m.count, sizeof *m.tensors, by_size);
        r->parts = malloc((m.count + 1) * sizeof *r->parts);
        e = r->parts ? write_header(&m, r) : -ENOMEM;
        if (e < 0)
            ckpt_fail(err, -e, "%s", strerror(-e));
    }
    for (size_t i = 0; i < m.count; i++)
        ckpt_array_unref(m.tensors[i].array);
    free(m.tensors);
    ckpt_buf_clear(&m.others);
    return e;
}
