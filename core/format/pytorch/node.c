/* SPDX-License-Identifier: Apache-2.0 */
#include "core/format/pytorch/walk.h"

#include "core/base/util.h"
#include "core/format/pytorch/numpy.h"
#include "core/format/pytorch/text.h"
#include "core/format/pytorch/torch.h"

#define MAX_NODES (1u << 21)
#define MAX_TEXT  ((size_t)4 << 20) /* of a value that is shown */

int ckpt_torch_node_memory(struct torch_nodes_walk *w)
{
    return ckpt_no_memory(w->err);
}

int ckpt_torch_node_spend(struct torch_nodes_walk *w, uint64_t nodes)
{
    if (nodes > w->left)
        return ckpt_fail(w->err, EUCLEAN,
                         "its objects contain each other so often that they are more than can be shown");
    w->left -= nodes;
    return 0;
}

int ckpt_torch_node_add(struct torch_nodes_walk *w, const struct torch_place *p, enum ckpt_node_kind kind,
                        uint32_t *ret)
{
    struct ckpt_tree *t = w->n->tree;
    int r = ckpt_torch_node_spend(w, 1 + p->len / TORCH_PER_NODE);
    if (r < 0)
        return r;
    if (t->count >= MAX_NODES)
        return ckpt_fail(w->err, EUCLEAN, "more than %u leaves and containers", MAX_NODES);
    uint32_t before = t->count;
    r = p->dotted ? ckpt_tree_add_dotted(t, p->parent, p->key, p->len, kind, ret, w->err)
                  : ckpt_tree_add(t, p->parent, p->key, p->len, p->index, kind, ret, w->err);
    if (r == 0 && *ret < before) /* a container that was there: that of another key with the same str() */
        r = ckpt_tree_add_other(t, p->parent, p->key, p->len, ret, w->err);
    return r;
}

/* A leaf whose content is in the tree's strings: in `text` that of a value, in `ref` that of a blob. */
static int add_text(struct torch_nodes_walk *w, const struct torch_place *p, enum ckpt_node_kind kind,
                    struct ckpt_buf *content)
{
    uint32_t node, string;
    if (ckpt_buf_error(content))
        return ckpt_torch_node_memory(w);
    int r = ckpt_torch_node_add(w, p, kind, &node);
    if (r < 0)
        return r;
    r = ckpt_tree_string(w->n->tree, content->len ? (char *)content->data : "", content->len, &string);
    if (r < 0)
        return r == -EFBIG ? ckpt_fail(w->err, EUCLEAN, "its strings are longer than a tree may hold")
                           : ckpt_torch_node_memory(w);
    if (kind == CKPT_NODE_VALUE)
        w->n->tree->nodes[node].text = string;
    else
        w->n->tree->nodes[node].ref = string;
    return 0;
}

int ckpt_torch_node_record(struct torch_nodes_walk *w, const struct torch_place *p, enum ckpt_node_kind kind,
                           size_t record)
{
    uint32_t node;
    if (ckpt_buf_error(w->n->records))
        return ckpt_torch_node_memory(w);
    int r = ckpt_torch_node_add(w, p, kind, &node);
    if (r == 0)
        w->n->tree->nodes[node].ref = (uint32_t)record;
    return r;
}

static int add_complex(struct torch_nodes_walk *w, const struct torch_graph *g, torch_value v,
                       const struct torch_place *p)
{
    torch_value re = ckpt_torch_item(g, ckpt_torch_args(g, v), 0), im = ckpt_torch_item(g, ckpt_torch_args(g, v), 1);
    return ckpt_torch_node_record(
        w, p, CKPT_NODE_ARRAY, ckpt_torch_add_complex(w->n->records, ckpt_torch_float(g, re), ckpt_torch_float(g, im)));
}

/* What it takes to make the text of a literal, in nodes. */
static uint64_t literal_cost(const struct torch_graph *g, torch_value v)
{
    size_t len = 0;
    enum torch_kind kind = ckpt_torch_kind(g, v);
    if (kind == TORCH_STR)
        ckpt_torch_str(g, v, &len);
    else if (kind == TORCH_BYTES)
        (void)ckpt_torch_bytes(g, v, &len);
    else if (kind == TORCH_INT)
        len = CKPT_MIN(ckpt_torch_int_width(g, v), TORCH_MAX_INT) * 8;
    return len / TORCH_PER_NODE;
}

/* And that of a value: of its arguments, of which the first may be a sequence, or bytes that are a call themselves. */
static uint64_t cost(const struct torch_graph *g, torch_value v)
{
    if (ckpt_torch_kind(g, v) != TORCH_CALL || !ckpt_torch_count(g, ckpt_torch_args(g, v)))
        return literal_cost(g, v);
    torch_value args = ckpt_torch_args(g, v), first = ckpt_torch_item(g, args, 0);
    enum torch_kind kind = ckpt_torch_kind(g, first);
    uint64_t sum = ckpt_torch_count(g, args);
    for (uint32_t i = 0; i < ckpt_torch_count(g, args); i++)
        sum += literal_cost(g, ckpt_torch_item(g, args, i));
    if (kind == TORCH_TUPLE || kind == TORCH_LIST)
        sum += ckpt_torch_count(g, first);
    else if (kind == TORCH_CALL && ckpt_torch_count(g, ckpt_torch_args(g, first)))
        sum += literal_cost(g, ckpt_torch_item(g, ckpt_torch_args(g, first), 0));
    return sum;
}

static int add_fault(struct torch_nodes_walk *w, const struct torch_place *p, enum ckpt_node_kind kind,
                     enum torch_fault fault)
{
    return ckpt_torch_node_record(w, p, kind,
                                  ckpt_torch_add_tensor(w->n->records, &(struct torch_tensor){.fault = fault}));
}

/* Bytes that stay in the file. */
static int add_range(struct torch_nodes_walk *w, const struct torch_far *far, const struct torch_place *p)
{
    uint32_t node;
    size_t record = ckpt_torch_add_range(w->n->records, far->off, far->len);
    if (ckpt_buf_error(w->n->records))
        return ckpt_torch_node_memory(w);
    int r = ckpt_torch_node_add(w, p, CKPT_NODE_BLOB, &node);
    if (r < 0)
        return r;
    w->n->tree->nodes[node].ref = (uint32_t)record;
    w->n->tree->nodes[node].mark = TORCH_RANGE_MARK;
    return 0;
}

int ckpt_torch_node_value(struct torch_nodes_walk *w, const struct torch_graph *g, torch_value v,
                          const struct torch_place *p)
{
    struct ckpt_buf content = CKPT_BUF_INIT;
    int r = ckpt_torch_node_spend(w, cost(g, v));
    if (r < 0)
        return r;
    if (ckpt_torch_is(g, v, TORCH_CALL, TORCH_IS_COMPLEX))
        return add_complex(w, g, v, p);
    if (ckpt_torch_is_bytes(g, v)) {
        ckpt_torch_add_bytes(g, v, &content);
        r = add_text(w, p, CKPT_NODE_BLOB, &content);
        ckpt_buf_clear(&content);
        return r;
    }
    const struct torch_far *far = ckpt_torch_far(g, v);
    if (far)
        return add_range(w, far, p);
    if (ckpt_torch_kind(g, v) == TORCH_BYTES)
        return add_fault(w, p, CKPT_NODE_ARRAY, TORCH_ELSEWHERE);
    content.max = MAX_TEXT;
    if (!ckpt_torch_add_json(g, v, &content))
        r = 1;
    else if (ckpt_buf_error(&content) == -EFBIG)
        r = add_fault(w, p, CKPT_NODE_VALUE, TORCH_LONG);
    else
        r = add_text(w, p, CKPT_NODE_VALUE, &content);
    ckpt_buf_clear(&content);
    return r;
}

/* --- NumPy --- */

int ckpt_torch_node_intern(struct torch_nodes_walk *w, const void *text, size_t len, uint32_t *ret)
{
    int r = ckpt_tree_string(w->n->tree, len ? text : "", len, ret);
    if (r == -EFBIG)
        return ckpt_fail(w->err, EUCLEAN, "its strings are longer than a tree may hold");
    return r < 0 ? ckpt_torch_node_memory(w) : 0;
}

/* UTF-32, in which NumPy pads strings with zeros. */
static void add_utf32(const struct ckpt_buf *data, bool big_endian, struct ckpt_buf *json)
{
    struct ckpt_buf text = CKPT_BUF_INIT;
    size_t end = data->len / 4 * 4;
    while (end && !ckpt_le32(data->data + end - 4))
        end -= 4;
    for (size_t i = 0; i < end; i += 4) {
        uint32_t c = ckpt_le32(data->data + i);
        ckpt_torch_add_character(&text, big_endian ? __builtin_bswap32(c) : c);
    }
    ckpt_buf_add_json_string(json, text.len ? (char *)text.data : "", text.len);
    if (ckpt_buf_error(&text))
        json->error = ckpt_buf_error(&text);
    ckpt_buf_clear(&text);
}

static int add_numpy_record(struct torch_nodes_walk *w, struct torch_np *np, const struct ckpt_buf *data,
                            const struct torch_place *p)
{
    int r = ckpt_torch_node_intern(w, data->data, data->len, &np->array.data);
    if (r == 0)
        r = ckpt_torch_node_intern(w, np->descr, strlen(np->descr), &np->array.descr);
    if (r < 0)
        return r;
    return ckpt_torch_node_record(w, p, np->kind == TORCH_NP_NUMBER ? CKPT_NODE_VALUE : CKPT_NODE_ARRAY,
                                  ckpt_torch_add_numpy(w->n->records, &np->array));
}

/* The same of elements that stay in the file. */
static int add_numpy_far(struct torch_nodes_walk *w, struct torch_np *np, const struct torch_far *far,
                         const struct torch_place *p)
{
    if (far->len != np->nbytes)
        return add_fault(w, p, CKPT_NODE_ARRAY, TORCH_BAD_DATA);
    if (np->kind == TORCH_NP_BYTES)
        return add_range(w, far, p);
    if (np->kind != TORCH_NP_ARRAY) /* a text */
        return add_fault(w, p, CKPT_NODE_VALUE, TORCH_LONG);
    np->array.off = far->off;
    return add_numpy_record(w, np, &(struct ckpt_buf){0}, p);
}

static int add_numpy_data(struct torch_nodes_walk *w, const struct torch_graph *g, struct torch_np *np,
                          const struct torch_place *p)
{
    struct ckpt_buf data = CKPT_BUF_INIT, json = {.max = MAX_TEXT};
    int r = ckpt_torch_node_spend(w, cost(g, np->data));
    if (r < 0)
        return r;
    ckpt_torch_add_bytes(g, np->data, &data);
    if (ckpt_buf_error(&data))
        r = ckpt_torch_node_memory(w);
    else if (data.len != np->nbytes)
        r = add_fault(w, p, CKPT_NODE_ARRAY, TORCH_BAD_DATA);
    else if (np->kind == TORCH_NP_BYTES)
        r = add_text(w, p, CKPT_NODE_BLOB, &data);
    else if (np->kind == TORCH_NP_TEXT) {
        add_utf32(&data, *np->descr == '>' || np->array.big_endian, &json);
        r = ckpt_buf_error(&json) == -EFBIG ? add_fault(w, p, CKPT_NODE_VALUE, TORCH_LONG)
                                            : add_text(w, p, CKPT_NODE_VALUE, &json);
    } else
        r = add_numpy_record(w, np, &data, p);
    ckpt_buf_clear(&data);
    ckpt_buf_clear(&json);
    return r;
}

int ckpt_torch_node_numpy(struct torch_nodes_walk *w, const struct torch_graph *g, torch_value v,
                          const struct torch_place *p)
{
    struct torch_np np;
    char type[512];
    int r;
    if (ckpt_torch_is(g, v, TORCH_OBJECT, TORCH_IS_NP_DTYPE) && ckpt_torch_np_type(g, v, type)) {
        struct ckpt_buf json = CKPT_BUF_INIT;
        ckpt_buf_add_json_string(&json, type, strlen(type));
        r = add_text(w, p, CKPT_NODE_VALUE, &json);
        ckpt_buf_clear(&json);
        return r;
    }
    if (!ckpt_torch_np_read(g, v, &np) || np.kind == TORCH_NP_OTHER)
        return 1;
    if (np.fault)
        return add_fault(w, p, CKPT_NODE_ARRAY, np.fault);
    const struct torch_far *far = ckpt_torch_far(g, np.data);
    return far ? add_numpy_far(w, &np, far, p) : add_numpy_data(w, g, &np, p);
}
