/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What becomes of each leaf in an Orbax checkpoint: an array, a number, a string, nothing, or left out because Orbax
 * has no place for it. Names decide too: Orbax joins keys with dots, and finds strings with JSON pointers.
 */
#include "core/view/orbax_private.h"

#include "core/base/grow.h"
#include "core/base/util.h"
#include "core/io/json.h"

#include <stdio.h>
#include <xxhash.h>

#define MAX_PARAM 60000 /* bytes of a name; a database's keys have at most 65,535 */

int ckpt_orbax_maker_no_memory(const struct maker *m)
{
    return ckpt_no_memory(m->err);
}

int ckpt_orbax_maker_grow(const struct maker *m, void *items, size_t size, size_t count, size_t *cap)
{
    void **p = items;
    void *moved = ckpt_grow(*p, size, count, cap, SIZE_MAX);
    if (!moved)
        return ckpt_orbax_maker_no_memory(m);
    *p = moved;
    return 0;
}

/* --- names --- */

unsigned ckpt_orbax_maker_path(const struct maker *m, uint32_t node, uint32_t path[CKPT_MAX_DEPTH])
{
    unsigned n = 0;
    for (uint32_t at = node; at != m->top && n < CKPT_MAX_DEPTH; at = m->tree->nodes[at].parent)
        path[n++] = at;
    return m->bare ? 0 : n;
}

/* The name of an array: its keys joined with dots. */
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

/* --- arrays and values --- */

const char *ckpt_orbax_zarr_type(enum ckpt_dtype dtype)
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
    bool numpy_has_it = dtype <= CKPT_DT_C128 && dtype != CKPT_DT_BF16;
    return numpy_has_it ? info->descr : info->name;
}

void ckpt_orbax_maker_key_impl(const struct maker *m, uint32_t node, const struct ckpt_array *a, struct ckpt_buf *ret)
{
    CKPT_AUTOBUF struct ckpt_buf json = CKPT_BUF_INIT;
    ret->len = 0;
    bool may_be_keys = a->dtype == CKPT_DT_U32 && a->ndim;
    if (!may_be_keys || !m->tree->ops->describe)
        return;
    ckpt_buf_adds(&json, "{\"\":0");
    m->tree->ops->describe(m->tree, node, &json);
    ckpt_buf_addc(&json, '}');
    if (ckpt_buf_error(&json))
        return;
    CKPT_AUTOCJSON cJSON *root = ckpt_json_parse((char *)json.data, json.len);
    const cJSON *impl = ckpt_json_get(root, "prng_impl");
    if (cJSON_IsString(impl))
        ckpt_buf_adds(ret, impl->valuestring);
}

static int note_part(struct maker *m, const struct part *part)
{
    struct ckpt_orbax_files *f = m->out;
    if (ckpt_orbax_maker_grow(m, &f->parts, sizeof *f->parts, f->part_count, &f->part_cap) < 0)
        return -ENOMEM;
    f->parts[f->part_count++] = *part;
    return 0;
}

static int note_string(struct maker *m, const struct string *string)
{
    if (ckpt_orbax_maker_grow(m, &m->strings, sizeof *m->strings, m->string_count, &m->string_cap) < 0)
        return -ENOMEM;
    m->strings[m->string_count++] = *string;
    return 0;
}

static int judge_array(struct maker *m, uint32_t node, enum ckpt_dtype *ret)
{
    CKPT_AUTOARRAY struct ckpt_array *a = NULL;
    CKPT_AUTOBUF struct ckpt_buf impl = CKPT_BUF_INIT;
    struct ckpt_err own = {0};
    char why[128];
    int r = ckpt_tree_layout(m->tree, node, &a, &own);
    if (r == -EOPNOTSUPP) {
        ckpt_orbax_maker_tell(m, node, own.text);
        return 0;
    }
    if (r < 0)
        return ckpt_fail(m->err, -r, "%s", own.text);
    *ret = a->dtype;
    if (a->unsupported) {
        ckpt_orbax_maker_tell(m, node, a->why);
        return 0;
    }
    if (!ckpt_orbax_zarr_type(a->dtype)) {
        snprintf(why, sizeof why, "Orbax has no type for %s", ckpt_array_type(a));
        ckpt_orbax_maker_tell(m, node, why);
        return 0;
    }
    ckpt_orbax_maker_key_impl(m, node, a, &impl);
    m->fates[node] = impl.len ? KEY_ARRAY : ARRAY;
    m->keys |= impl.len > 0;
    return 0;
}

/* By the first letter of its JSON text. */
static enum fate fate_of_value(const struct ckpt_buf *json)
{
    switch (*json->data) {
    case '"':
        return STRING;
    case 'n':
        return NONE;
    default:
        return SCALAR;
    }
}

static int judge_value(struct maker *m, uint32_t node, enum ckpt_dtype *ret)
{
    CKPT_AUTOBUF struct ckpt_buf json = CKPT_BUF_INIT;
    struct ckpt_value value;
    int r = ckpt_tree_value(m->tree, node, &json, &value, m->err);
    if (r < 0)
        return r;
    if (ckpt_buf_error(&json))
        return ckpt_orbax_maker_no_memory(m);
    *ret = value.dtype;
    m->fates[node] = fate_of_value(&json);
    if (m->fates[node] != SCALAR || ckpt_orbax_zarr_type(value.dtype))
        return 0;
    bool large = value.dtype == CKPT_DT_OTHER;
    ckpt_orbax_maker_tell(m, node, large ? "an integer of more than 64 bits" : "Orbax has no type for it");
    return 0;
}

/* --- leaves --- */

/* Orbax finds strings with a JSON pointer, where a ~ must begin an escape. */
static bool has_bad_escape(const char *name, size_t len)
{
    for (size_t i = 0; i < len; i++) {
        bool escape = i + 1 < len && (name[i + 1] == '0' || name[i + 1] == '1');
        if (name[i] == '~' && !escape)
            return true;
    }
    return false;
}

/* Why Orbax cannot hold something of this name; NULL: it can. */
static const char *why_not(const char *name, size_t len, enum fate fate)
{
    if (len > MAX_PARAM)
        return "its keys are too long";
    if (!ckpt_utf8(name, len) || memchr(name, 0, len))
        return "its keys are not UTF-8 text";
    if (fate == STRING && has_bad_escape(name, len))
        return "a string whose keys have a ~";
    return NULL;
}

static int judge_kind(struct maker *m, uint32_t node, enum ckpt_dtype *ret)
{
    switch (m->tree->nodes[node].kind) {
    case CKPT_NODE_ARRAY:
        return judge_array(m, node, ret);
    case CKPT_NODE_VALUE:
        return judge_value(m, node, ret);
    default:
        ckpt_orbax_maker_tell(m, node, "a blob");
        return 0;
    }
}

static int judge_leaf(struct maker *m, uint32_t node)
{
    enum ckpt_dtype dtype = CKPT_DT_OTHER;
    uint64_t name = m->names.len;
    add_param(m, node, &m->names);
    if (ckpt_buf_error(&m->names))
        return ckpt_orbax_maker_no_memory(m);
    uint32_t len = (uint32_t)(m->names.len - name);
    int r = judge_kind(m, node, &dtype);
    if (r == 0 && m->fates[node] != OUT) {
        const char *why = why_not((char *)m->names.data + name, m->names.len - name, m->fates[node]);
        if (why)
            ckpt_orbax_maker_tell(m, node, why);
    }
    enum fate fate = m->fates[node];
    if (r < 0 || fate == OUT || fate == NONE) {
        m->names.len = name; /* nobody asks for it again */
        return r;
    }
    if (fate == STRING)
        return note_string(m, &(struct string){.node = node, .name = name, .name_len = len});
    return note_part(m, &(struct part){.node = node, .dtype = (uint8_t)dtype, .name = name, .name_len = len});
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

/* Is all of the tree one leaf without a key? */
static bool is_bare(const struct maker *m)
{
    const struct ckpt_node *top = &m->tree->nodes[m->top];
    size_t len;
    if (m->top || top->first == CKPT_NO_NODE || top->first != top->last)
        return false;
    const struct ckpt_node *only = &m->tree->nodes[top->first];
    ckpt_tree_text(m->tree, only->key, &len);
    return !len && only->kind != CKPT_NODE_DIR && only->kind != CKPT_NODE_BLOB;
}

/* --- two of one name --- */

struct sibling {
    uint64_t hash; /* of parent and key */
    uint32_t node;
};

static int by_hash(const void *pa, const void *pb)
{
    const struct sibling *a = pa, *b = pb;
    if (a->hash != b->hash)
        return a->hash < b->hash ? -1 : 1;
    return (a->node > b->node) - (a->node < b->node);
}

static bool same_key(const struct maker *m, uint32_t a, uint32_t b)
{
    const struct ckpt_node *x = &m->tree->nodes[a], *y = &m->tree->nodes[b];
    size_t x_len, y_len;
    const char *x_key = ckpt_tree_text(m->tree, x->key, &x_len), *y_key = ckpt_tree_text(m->tree, y->key, &y_len);
    return x->parent == y->parent && x_len == y_len && !memcmp(x_key, y_key, x_len);
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

/* --- all of them --- */

int ckpt_orbax_maker_judge(struct maker *m)
{
    m->bare = is_bare(m);
    for (uint32_t node = next_node(m, m->top); node != m->top; node = next_node(m, node)) {
        int r = m->tree->nodes[node].kind == CKPT_NODE_DIR ? 0 : judge_leaf(m, node);
        if (r < 0)
            return r;
    }
    return drop_twins(m);
}
