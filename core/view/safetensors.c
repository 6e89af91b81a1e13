/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A subtree as one safetensors file: u64 length of the header, the header in JSON, then the data
 * (github.com/huggingface/safetensors, "Format"). The header is made on the first look; data are read from the leaves.
 * Leaves with the largest elements come first, so that every tensor is aligned to its element size. `__metadata__`, a
 * map of strings to strings, says what is no tensor, beside the members of the checkpoint's own metadata.
 */
#include "core/base/grow.h"
#include "core/base/util.h"
#include "core/io/json.h"
#include "core/view/rendering.h"

#include <xxhash.h>

#define MAX_HEADER  ((uint64_t)100000000) /* more is refused by the library */
#define MAX_MEMBERS 4096                  /* of the checkpoint's metadata that are passed on */
#define LEFT_OUT    "left out: "

struct leaf {
    uint32_t node;
    uint32_t size; /* bytes of an element; 0: no tensor */
};

struct maker {
    struct ckpt_tree *tree;
    uint32_t top;
    struct leaf *leaves; /* tensors first, then the others */
    size_t tensors, count, cap;
    uint64_t *hashes; /* of the names: of the tensors sorted, of the others sorted */
    size_t members;   /* of __metadata__ that are written */
    struct ckpt_rendering *out;
    struct ckpt_err *err;
};

static int no_memory(const struct maker *m)
{
    return ckpt_no_memory(m->err);
}

/* --- which leaves there are --- */

/* The keys from the top of the file down to a node, joined with dots, as a JSON string. */
static void add_name(const struct maker *m, uint32_t node, struct ckpt_buf *out)
{
    uint32_t path[CKPT_MAX_DEPTH];
    unsigned n = 0;
    struct ckpt_buf name = CKPT_BUF_INIT;
    for (uint32_t at = node; at != m->top && n < CKPT_MAX_DEPTH; at = m->tree->nodes[at].parent)
        path[n++] = at;
    while (n-- > 0) {
        size_t len;
        const char *key = ckpt_tree_text(m->tree, m->tree->nodes[path[n]].key, &len);
        ckpt_buf_add(&name, key, len);
        if (n)
            ckpt_buf_addc(&name, '.');
    }
    ckpt_buf_add_json_string(out, name.data ? (char *)name.data : "", name.len);
    if (ckpt_buf_error(&name))
        out->error = ckpt_buf_error(&name);
    ckpt_buf_clear(&name);
}

/* OTHER: it cannot be decoded; add_other() says why. */
static int array_dtype(struct maker *m, uint32_t node, enum ckpt_dtype *ret)
{
    struct ckpt_array *a;
    int r = ckpt_tree_layout(m->tree, node, &a, m->err);
    if (r == -EOPNOTSUPP)
        return 0;
    if (r < 0)
        return r;
    if (!a->unsupported)
        *ret = a->dtype;
    ckpt_array_unref(a);
    return 0;
}

static int value_dtype(struct maker *m, uint32_t node, enum ckpt_dtype *ret)
{
    CKPT_AUTOBUF struct ckpt_buf json = CKPT_BUF_INIT;
    struct ckpt_value value;
    int r = ckpt_tree_value(m->tree, node, &json, &value, m->err);
    if (r == 0)
        *ret = value.dtype;
    return r;
}

/* How large its elements are as a tensor. */
static int tensor_size(struct maker *m, uint32_t node, uint32_t *ret)
{
    enum ckpt_dtype dtype = CKPT_DT_OTHER;
    int r = 0;
    switch (m->tree->nodes[node].kind) {
    case CKPT_NODE_ARRAY:
        r = array_dtype(m, node, &dtype);
        break;
    case CKPT_NODE_VALUE:
        r = value_dtype(m, node, &dtype);
        break;
    default:
        break;
    }
    const struct ckpt_dtype_info *info = ckpt_dtype_info(dtype);
    *ret = info->safetensors ? info->size : 0;
    return r;
}

static int collect_leaf(struct maker *m, uint32_t node)
{
    uint32_t size;
    if (m->tree->nodes[node].kind == CKPT_NODE_DIR)
        return 0;
    int r = tensor_size(m, node, &size);
    if (r < 0)
        return r;
    if (!CKPT_ROOM_FOR_ONE(m->leaves, m->count, m->cap))
        return no_memory(m);
    m->leaves[m->count++] = (struct leaf){node, size};
    m->tensors += size > 0;
    return 0;
}

static int by_size(const void *pa, const void *pb)
{
    const struct leaf *a = pa, *b = pb;
    if (a->size != b->size)
        return a->size < b->size ? 1 : -1;
    return (a->node > b->node) - (a->node < b->node);
}

static int collect(struct maker *m)
{
    struct ckpt_tree *t = m->tree;
    for (uint32_t node = m->top;;) {
        const struct ckpt_node *n = &t->nodes[node];
        int r = collect_leaf(m, node);
        if (r < 0)
            return r;
        bool goes_down = n->kind == CKPT_NODE_DIR && n->first != CKPT_NO_NODE;
        if (goes_down) {
            node = n->first;
            continue;
        }
        while (node != m->top && t->nodes[node].next == CKPT_NO_NODE)
            node = t->nodes[node].parent;
        if (node == m->top)
            break;
        node = t->nodes[node].next;
    }
    if (m->count)
        qsort(m->leaves, m->count, sizeof *m->leaves, by_size);
    return 0;
}

/* --- names that come twice --- */

struct named {
    uint64_t hash;
    uint32_t node;
};

static int by_hash(const void *pa, const void *pb)
{
    const struct named *a = pa, *b = pb;
    if (a->hash != b->hash)
        return a->hash < b->hash ? -1 : 1;
    return (a->node > b->node) - (a->node < b->node);
}

static int check_twins(const struct maker *m, const struct named *a, const struct named *b)
{
    struct ckpt_buf x = CKPT_BUF_INIT, y = CKPT_BUF_INIT;
    add_name(m, a->node, &x);
    add_name(m, b->node, &y);
    int r = 0;
    if (x.len == y.len && !memcmp(x.data, y.data, x.len))
        r = ckpt_fail(m->err, EOPNOTSUPP, "two leaves would have the safetensors name %.*s",
                      (int)CKPT_MIN(x.len, (size_t)200), (char *)x.data);
    ckpt_buf_clear(&x);
    ckpt_buf_clear(&y);
    return r;
}

static bool is_reserved(const struct ckpt_buf *name)
{
    static const char reserved[] = "\"__metadata__\"";
    return name->len == strlen(reserved) && !memcmp(name->data, reserved, name->len);
}

/* Of leaves [first, end). */
static int hash_names(struct maker *m, size_t first, size_t end, struct named *ret)
{
    CKPT_AUTOBUF struct ckpt_buf name = CKPT_BUF_INIT;
    for (size_t i = first; i < end; i++) {
        bool is_tensor = i < m->tensors;
        name.len = 0;
        add_name(m, m->leaves[i].node, &name);
        if (ckpt_buf_error(&name))
            return no_memory(m);
        if (is_tensor && is_reserved(&name))
            return ckpt_fail(m->err, EOPNOTSUPP,
                             "a leaf has the name __metadata__, which safetensors files use themselves");
        ret[i - first] = (struct named){XXH3_64bits(name.data, name.len), m->leaves[i].node};
    }
    return 0;
}

/* Joined names can collide ({"a.b": x} beside {"a": {"b": y}}): such a tree has no safetensors form. Leaves [first,
 * end). */
static int check_names(struct maker *m, size_t first, size_t end)
{
    CKPT_AUTOFREE struct named *names = malloc((end - first + 1) * sizeof *names);
    if (!names)
        return no_memory(m);
    int r = hash_names(m, first, end, names);
    if (r < 0)
        return r;
    if (end > first)
        qsort(names, end - first, sizeof *names, by_hash);
    for (size_t i = first; i < end && r == 0; i++) {
        m->hashes[i] = names[i - first].hash;
        bool may_be_twins = i > first && m->hashes[i] == m->hashes[i - 1];
        if (may_be_twins)
            r = check_twins(m, &names[i - first], &names[i - first - 1]);
    }
    return r;
}

/* Is there a leaf of this name among those that are told in the metadata? Its place there is taken. */
static bool is_other(const struct maker *m, uint64_t hash)
{
    size_t lo = m->tensors, hi = m->count;
    while (lo < hi) {
        size_t mid = lo + (hi - lo) / 2;
        if (m->hashes[mid] == hash)
            return true;
        if (m->hashes[mid] < hash)
            lo = mid + 1;
        else
            hi = mid;
    }
    return false;
}

/* --- the header --- */

static void add_text(struct maker *m, const struct ckpt_buf *name, const char *text, size_t len)
{
    struct ckpt_buf *out = &m->out->text;
    if (m->members)
        ckpt_buf_addc(out, ',');
    m->members++;
    ckpt_buf_add(out, name->data, name->len);
    ckpt_buf_addc(out, ':');
    ckpt_buf_add_json_string(out, text, len);
}

/* One of the checkpoint's own: a string as it is, anything else as its JSON. The first of its name, and only where no
 * leaf has that. */
static int add_member(struct maker *m, uint64_t *hashes, const struct ckpt_buf *key, const char *text, size_t len)
{
    struct ckpt_buf name = CKPT_BUF_INIT;
    ckpt_buf_add_json_string(&name, (char *)key->data, key->len);
    if (ckpt_buf_error(&name))
        return no_memory(m);
    uint64_t hash = XXH3_64bits(name.data, name.len);
    bool taken = is_other(m, hash);
    for (size_t i = 0; i < m->members && !taken; i++)
        taken = hashes[i] == hash;
    if (!taken) {
        hashes[m->members] = hash;
        add_text(m, &name, text, len);
    }
    ckpt_buf_clear(&name);
    return 0;
}

static int add_value(struct maker *m, uint64_t *hashes, const struct ckpt_buf *key, const struct ckpt_buf *json)
{
    if (*json->data != '"')
        return add_member(m, hashes, key, (char *)json->data, json->len);
    cJSON *string = ckpt_json_parse((char *)json->data, json->len);
    const char *text = cJSON_GetStringValue(string);
    /* What another file left out is not left out of this one. */
    bool is_kept = text && strncmp(text, LEFT_OUT, strlen(LEFT_OUT)) != 0;
    int r = is_kept ? add_member(m, hashes, key, text, strlen(text)) : 0;
    cJSON_Delete(string);
    return r;
}

static int add_members(struct maker *m, uint64_t *hashes, struct ckpt_json_reader *json)
{
    struct ckpt_buf key = CKPT_BUF_INIT, value = CKPT_BUF_INIT;
    int r = ckpt_json_enter_object(json, NULL);
    while (r == 0 && m->members < MAX_MEMBERS) {
        if (ckpt_json_member(json, &key, NULL) != 1)
            break;
        if (ckpt_json_value(json, &value, NULL) != 0)
            break;
        r = add_value(m, hashes, &key, &value);
    }
    ckpt_buf_clear(&key);
    ckpt_buf_clear(&value);
    return r == -ENOMEM ? r : 0;
}

/* The checkpoint's own metadata, whose numbers keep all their digits; and what wrote it, unless they say that
 * themselves. */
static int add_own_metadata(struct maker *m)
{
    const struct ckpt_tree_ops *ops = m->tree->ops;
    const char *text = m->tree->metadata ? m->tree->metadata : "{}";
    const char *format = ops->framework ? ops->framework : ops->name;
    struct ckpt_buf key = CKPT_BUF_INIT;
    CKPT_AUTOFREE uint64_t *hashes = malloc((MAX_MEMBERS + 1) * sizeof *hashes);
    struct ckpt_backend *b = ckpt_backend_new_memory();
    struct ckpt_file *file = NULL;
    struct ckpt_json_reader *json = NULL;
    int r = hashes && b ? ckpt_backend_memory_add(b, "metadata", text, strlen(text)) : -ENOMEM;
    if (r == 0)
        r = ckpt_backend_open(b, "metadata", &file);
    if (r == 0)
        r = ckpt_json_open(file, &json);
    if (r == 0)
        r = add_members(m, hashes, json);
    ckpt_json_close(json);
    ckpt_file_unref(file);
    ckpt_backend_unref(b);
    ckpt_buf_adds(&key, "format");
    if (r == 0)
        r = add_member(m, hashes, &key, format, strlen(format));
    ckpt_buf_clear(&key);
    return r < 0 ? no_memory(m) : 0;
}

/* A leaf that is no tensor. */
static int add_other(struct maker *m, uint32_t node)
{
    struct ckpt_tree *t = m->tree;
    struct ckpt_buf text = CKPT_BUF_INIT, name = CKPT_BUF_INIT;
    struct ckpt_array *a;
    struct ckpt_err own = {0};
    int r = 0;
    switch (t->nodes[node].kind) {
    case CKPT_NODE_VALUE:
        r = ckpt_tree_value(t, node, &text, NULL, m->err);
        break;
    case CKPT_NODE_ARRAY:
        r = ckpt_tree_layout(t, node, &a, &own);
        if (r == -EOPNOTSUPP) {
            ckpt_buf_addf(&text, LEFT_OUT "%s", own.text);
            r = 0;
            break;
        }
        if (r < 0) {
            ckpt_fail(m->err, -r, "%s", own.text);
            break;
        }
        ckpt_buf_addf(&text, LEFT_OUT "safetensors has no type for %s", ckpt_array_type(a));
        ckpt_array_unref(a);
        break;
    default:
        ckpt_buf_adds(&text, LEFT_OUT "a blob");
    }
    add_name(m, node, &name);
    if (r == 0)
        r = ckpt_buf_error(&text) || ckpt_buf_error(&name) ? no_memory(m) : 0;
    if (r == 0)
        add_text(m, &name, (char *)text.data, text.len);
    ckpt_buf_clear(&name);
    ckpt_buf_clear(&text);
    return r;
}

/* *off: where its data begin; moved behind them. */
static int add_tensor(struct maker *m, uint32_t node, uint64_t *off)
{
    struct ckpt_buf *out = &m->out->text, json = CKPT_BUF_INIT;
    struct ckpt_array *a = NULL;
    struct ckpt_value value = {0};
    bool array = m->tree->nodes[node].kind == CKPT_NODE_ARRAY;
    int r = array ? ckpt_tree_layout(m->tree, node, &a, m->err) : ckpt_tree_value(m->tree, node, &json, &value, m->err);
    ckpt_buf_clear(&json);
    if (r < 0)
        return r;
    const struct ckpt_dtype_info *info = ckpt_dtype_info(array ? a->dtype : value.dtype);
    uint64_t begin = *off;
    ckpt_buf_addc(out, ',');
    add_name(m, node, out);
    ckpt_buf_addf(out, ":{\"dtype\":\"%s\",\"shape\":[", info->safetensors);
    for (unsigned d = 0; array && d < a->ndim; d++)
        ckpt_buf_addf(out, "%s%llu", d ? "," : "", (unsigned long long)a->shape[d]);
    if (ckpt_add(begin, array ? a->nbytes : info->size, off))
        r = ckpt_fail(m->err, EFBIG, "the tensors have 2^64 bytes or more");
    ckpt_buf_addf(out, "],\"data_offsets\":[%llu,%llu]}", (unsigned long long)begin, (unsigned long long)*off);
    ckpt_array_unref(a);
    return r;
}

static int check_length(struct maker *m)
{
    ckpt_rendering_flush(m->out);
    if (ckpt_rendering_text_size(m->out) - 8 <= MAX_HEADER)
        return 0;
    return ckpt_fail(m->err, EOPNOTSUPP, "the header would have more than %llu bytes, which no reader takes",
                     (unsigned long long)MAX_HEADER);
}

static int write_header(struct maker *m)
{
    struct ckpt_rendering *r = m->out;
    uint64_t off = 0;
    ckpt_buf_add(&r->text, "\0\0\0\0\0\0\0\0", 8); /* the length, when it is known */
    ckpt_buf_adds(&r->text, "{\"__metadata__\":{");
    int e = add_own_metadata(m);
    for (size_t i = m->tensors; i < m->count && e == 0; i++) {
        e = add_other(m, m->leaves[i].node);
        e = e < 0 ? e : check_length(m);
    }
    ckpt_buf_addc(&r->text, '}');
    for (size_t i = 0; i < m->tensors && e == 0; i++) {
        r->parts[i] = (struct ckpt_rendering_part){off, m->leaves[i].node};
        e = add_tensor(m, m->leaves[i].node, &off);
        e = e < 0 ? e : check_length(m);
    }
    ckpt_buf_addc(&r->text, '}');
    while (ckpt_rendering_text_size(r) % 64)
        ckpt_buf_addc(&r->text, ' ');
    if (e == 0)
        e = check_length(m);
    if (e == 0)
        e = ckpt_rendering_finish(r);
    uint64_t text = ckpt_rendering_text_size(r), header = text - 8;
    if (e == 0)
        e = ckpt_rendering_patch(r, &header, sizeof header, 0);
    if (e < 0)
        return m->err && m->err->code == -e ? e : ckpt_fail(m->err, -e, "%s", strerror(-e));
    for (size_t i = 0; i < m->tensors; i++)
        r->parts[i].off += text;
    r->part_count = m->tensors;
    r->size += off;
    return 0;
}

int ckpt_render_safetensors(struct ckpt_views *v, const struct ckpt_viewed *f, struct ckpt_rendering *r,
                            struct ckpt_err *err)
{
    struct maker m = {.tree = f->tree, .top = f->node, .out = r, .err = err};
    int e = collect(&m);
    if (e == 0) {
        r->parts = malloc((m.tensors + 1) * sizeof *r->parts);
        m.hashes = malloc((m.count + 1) * sizeof *m.hashes);
        bool has_room = r->parts && m.hashes;
        e = has_room ? check_names(&m, 0, m.tensors) : no_memory(&m);
    }
    if (e == 0)
        e = check_names(&m, m.tensors, m.count);
    if (e == 0)
        e = write_header(&m);
    free(m.leaves);
    free(m.hashes);
    return e;
}
