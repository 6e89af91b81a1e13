/* SPDX-License-Identifier: Apache-2.0 */
/* .meta.json of one leaf, and .tree.json of a whole subtree. */
#include "core/base/util.h"
#include "core/view/rendering.h"

static void add_numbers(struct ckpt_buf *out, unsigned n, const uint64_t *v)
{
    ckpt_buf_addc(out, '[');
    for (unsigned i = 0; i < n; i++)
        ckpt_buf_addf(out, "%s%llu", i ? "," : "", (unsigned long long)v[i]);
    ckpt_buf_addc(out, ']');
}

/* The keys from `top` down to a node: strings, and integers for the elements of sequences. Returns how many there are.
 */
static unsigned path_of(const struct ckpt_tree *t, uint32_t top, uint32_t node, uint32_t *path)
{
    unsigned n = 0, i = 0;
    for (uint32_t at = node; at != top && at != CKPT_NO_NODE && n < CKPT_MAX_DEPTH; at = t->nodes[at].parent)
        path[n++] = at;
    for (; i < n / 2; i++) {
        uint32_t swap = path[i];
        path[i] = path[n - 1 - i];
        path[n - 1 - i] = swap;
    }
    return n;
}

static void add_path(const struct ckpt_tree *t, uint32_t top, uint32_t node, struct ckpt_buf *out)
{
    uint32_t path[CKPT_MAX_DEPTH];
    unsigned n = path_of(t, top, node, path);
    ckpt_buf_addc(out, '[');
    for (unsigned i = 0; i < n; i++) {
        size_t len;
        const char *key = ckpt_tree_text(t, t->nodes[path[i]].key, &len);
        if (i)
            ckpt_buf_addc(out, ',');
        if (t->nodes[path[i]].index && len && strspn(key, "0123456789") == len && (len == 1 || *key != '0'))
            ckpt_buf_add(out, key, len);
        else
            ckpt_buf_add_json_string(out, key, len);
    }
    ckpt_buf_addc(out, ']');
}

static void add_file(const struct ckpt_tree *t, uint32_t top, uint32_t node, struct ckpt_buf *out)
{
    uint32_t path[CKPT_MAX_DEPTH];
    unsigned n = path_of(t, top, node, path);
    struct ckpt_buf file = CKPT_BUF_INIT;
    for (unsigned i = 0; i < n; i++) {
        if (i)
            ckpt_buf_addc(&file, '/');
        ckpt_tree_name(t, path[i], &file);
    }
    ckpt_buf_add_json_string(out, (char *)file.data, file.len);
    ckpt_buf_clear(&file);
}

static const char *kind_name(const struct ckpt_node *n)
{
    static const char *const containers[CKPT_CONTAINERS] = {"dict", "list", "tuple", "namedtuple", "object"};
    static const char *const kinds[CKPT_NODE_KINDS] = {
        [CKPT_NODE_ARRAY] = "array", [CKPT_NODE_VALUE] = "value", [CKPT_NODE_BLOB] = "blob"};
    return n->kind == CKPT_NODE_DIR ? containers[n->container] : kinds[n->kind];
}

static void add_array(const struct ckpt_array *a, struct ckpt_buf *out)
{
    const char *type = ckpt_array_type(a);
    ckpt_buf_adds(out, ",\"dtype\":");
    ckpt_buf_add_json_string(out, type, strlen(type));
    ckpt_buf_adds(out, ",\"shape\":");
    add_numbers(out, a->ndim, a->shape);
    ckpt_buf_addf(out, ",\"bytes\":%llu", (unsigned long long)a->nbytes);
}

/* A leaf whose metadata cannot be read is told with its error, and does not spoil the rest. */
static void add_error(struct ckpt_buf *out, const struct ckpt_err *err)
{
    ckpt_buf_adds(out, ",\"error\":");
    ckpt_buf_add_json_string(out, err->text, strlen(err->text));
}

static void add_value(struct ckpt_tree *t, uint32_t node, struct ckpt_buf *out)
{
    struct ckpt_buf json = CKPT_BUF_INIT;
    struct ckpt_value value;
    struct ckpt_err err = {0};
    if (ckpt_tree_value(t, node, &json, &value, &err) < 0)
        add_error(out, &err);
    else {
        if (value.dtype != CKPT_DT_OTHER)
            ckpt_buf_addf(out, ",\"dtype\":\"%s\",\"shape\":[],\"bytes\":%u", ckpt_dtype_info(value.dtype)->name,
                          ckpt_dtype_info(value.dtype)->size);
        ckpt_buf_adds(out, ",\"value\":");
        ckpt_buf_add(out, json.data, json.len);
    }
    ckpt_buf_clear(&json);
}

int ckpt_view_meta(struct ckpt_tree *t, uint32_t node, struct ckpt_buf *out, struct ckpt_err *err)
{
    const struct ckpt_node *n = &t->nodes[node];
    ckpt_buf_adds(out, "{\"path\":");
    add_path(t, 0, node, out);
    ckpt_buf_addf(out, ",\"kind\":\"%s\",\"format\":\"%s\"", kind_name(n), t->ops->name);
    if (n->kind == CKPT_NODE_ARRAY) {
        struct ckpt_array *a;
        uint64_t stored;
        int r = ckpt_tree_layout(t, node, &a, err);
        if (r < 0)
            return r;
        add_array(a, out);
        if (t->ops->stored(t, node, a, &stored, NULL) == 0)
            ckpt_buf_addf(out, ",\"stored\":%llu", (unsigned long long)stored);
        ckpt_buf_adds(out, ",\"codec\":");
        ckpt_buf_add_json_string(out, a->codec_text, strlen(a->codec_text));
        ckpt_buf_adds(out, ",\"chunks\":");
        add_numbers(out, a->ndim, a->chunk);
        if (a->unsupported) {
            ckpt_buf_adds(out, ",\"unsupported\":");
            ckpt_buf_add_json_string(out, a->why, strlen(a->why));
        }
        ckpt_array_unref(a);
    } else if (n->kind == CKPT_NODE_VALUE)
        add_value(t, node, out);
    else if (n->kind == CKPT_NODE_BLOB) {
        struct ckpt_extent e = {0};
        int r = t->ops->blob(t, node, &e, err);
        if (r < 0)
            return r;
        uint64_t stored = e.len;
        if (t->ops->file && t->ops->stored(t, node, NULL, &stored, NULL) < 0)
            stored = e.len;
        ckpt_buf_addf(out, ",\"bytes\":%llu,\"stored\":%llu", (unsigned long long)e.len, (unsigned long long)stored);
        ckpt_extent_clear(&e);
    }
    if (t->ops->describe)
        t->ops->describe(t, node, out);
    ckpt_buf_adds(out, "}\n");
    return ckpt_buf_error(out);
}

int ckpt_render_meta(struct ckpt_views *v, const struct ckpt_viewed *f, struct ckpt_rendering *r, struct ckpt_err *err)
{
    int e = ckpt_view_meta(f->tree, f->node, &r->text, err);
    return e < 0 ? e : ckpt_rendering_finish(r);
}

static void add_leaf(struct ckpt_tree *t, uint32_t top, uint32_t node, struct ckpt_buf *out)
{
    const struct ckpt_node *n = &t->nodes[node];
    struct ckpt_err err = {0};
    ckpt_buf_adds(out, "{\"path\":");
    add_path(t, top, node, out);
    ckpt_buf_adds(out, ",\"file\":");
    add_file(t, top, node, out);
    ckpt_buf_addf(out, ",\"kind\":\"%s\"", kind_name(n));
    if (n->kind == CKPT_NODE_ARRAY) {
        struct ckpt_array *a;
        if (ckpt_tree_layout(t, node, &a, &err) < 0)
            add_error(out, &err);
        else {
            add_array(a, out);
            ckpt_array_unref(a);
        }
    } else if (n->kind == CKPT_NODE_VALUE)
        add_value(t, node, out);
    else {
        struct ckpt_extent e = {0};
        if (t->ops->blob(t, node, &e, &err) < 0)
            add_error(out, &err);
        else
            ckpt_buf_addf(out, ",\"bytes\":%llu", (unsigned long long)e.len);
        ckpt_extent_clear(&e);
    }
    ckpt_buf_addc(out, '}');
}

/* The node that follows in a walk of the subtree of `top`, top itself first. */
static uint32_t next_node(const struct ckpt_tree *t, uint32_t top, uint32_t node)
{
    if (t->nodes[node].kind == CKPT_NODE_DIR && t->nodes[node].first != CKPT_NO_NODE)
        return t->nodes[node].first;
    while (node != top) {
        if (t->nodes[node].next != CKPT_NO_NODE)
            return t->nodes[node].next;
        node = t->nodes[node].parent;
    }
    return CKPT_NO_NODE;
}

int ckpt_render_tree(struct ckpt_views *v, const struct ckpt_viewed *f, struct ckpt_rendering *r, struct ckpt_err *err)
{
    struct ckpt_tree *t = f->tree;
    struct ckpt_buf *out = &r->text;
    ckpt_buf_addf(out, "{\"format\":\"%s\",\"metadata\":%s,\"containers\":[", t->ops->name,
                  t->metadata ? t->metadata : "{}");
    for (int leaves = 0; leaves < 2; leaves++) {
        const char *comma = "\n";
        for (uint32_t node = f->node; node != CKPT_NO_NODE; node = next_node(t, f->node, node)) {
            bool is_leaf = t->nodes[node].kind != CKPT_NODE_DIR;
            if (is_leaf != leaves)
                continue;
            ckpt_buf_adds(out, comma);
            comma = ",\n";
            if (is_leaf)
                add_leaf(t, f->node, node, out);
            else {
                ckpt_buf_adds(out, "{\"path\":");
                add_path(t, f->node, node, out);
                ckpt_buf_addf(out, ",\"kind\":\"%s\"", kind_name(&t->nodes[node]));
                if (t->nodes[node].container == CKPT_OBJECT && t->ops->describe)
                    t->ops->describe(t, node, out);
                ckpt_buf_addc(out, '}');
            }
            ckpt_rendering_flush(r);
        }
        ckpt_buf_adds(out, leaves ? "\n]}\n" : "],\n\"leaves\":[");
    }
    return ckpt_rendering_finish(r);
}
