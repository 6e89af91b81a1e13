/* SPDX-License-Identifier: Apache-2.0 */
#include "core/format/pytorch/nodes.h"

#include "core/base/util.h"
#include "core/format/pytorch/record.h"
#include "core/format/pytorch/text.h"

#include <stdio.h>

#define MAX_NODES  (1u << 21)
#define MAX_SHARED 100000                /* nodes beyond the values of the pickle: what it has in several places */
#define PER_NODE   256                   /* bytes of text that count as one more */
#define MAX_PIECES ((uint64_t)128 << 20) /* bytes of all objects that are pieces of their own */
#define MAX_KEY    65535
#define MAX_TEXT   ((size_t)4 << 20) /* of a value that is shown */

struct walk {
    const struct torch_nodes *n;
    uint64_t
        left; /* nodes that may be added, with their text: a small pickle may put one long string in a million places */
    uint64_t pieces_left;
    struct ckpt_err *err;
};

/* Where a node goes. */
struct place {
    uint32_t parent;
    const char *key;
    size_t len;
    bool index, dotted;
};

static int memory(struct walk *w)
{
    return ckpt_no_memory(w->err);
}

static int spend(struct walk *w, uint64_t nodes)
{
    if (nodes > w->left)
        return ckpt_fail(w->err, EUCLEAN,
                         "its objects contain each other so often that they are more than can be shown");
    w->left -= nodes;
    return 0;
}

static int add_node(struct walk *w, const struct place *p, enum ckpt_node_kind kind, uint32_t *ret)
{
    struct ckpt_tree *t = w->n->tree;
    int r = spend(w, 1 + p->len / PER_NODE);
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
static int add_text(struct walk *w, const struct place *p, enum ckpt_node_kind kind, struct ckpt_buf *content)
{
    uint32_t node, string;
    if (ckpt_buf_error(content))
        return memory(w);
    int r = add_node(w, p, kind, &node);
    if (r < 0)
        return r;
    r = ckpt_tree_string(w->n->tree, content->len ? (char *)content->data : "", content->len, &string);
    if (r < 0)
        return r == -EFBIG ? ckpt_fail(w->err, EUCLEAN, "its strings are longer than a tree may hold") : memory(w);
    if (kind == CKPT_NODE_VALUE)
        w->n->tree->nodes[node].text = string;
    else
        w->n->tree->nodes[node].ref = string;
    return 0;
}

static int add_record(struct walk *w, const struct place *p, enum ckpt_node_kind kind, size_t record)
{
    uint32_t node;
    if (ckpt_buf_error(w->n->records))
        return memory(w);
    int r = add_node(w, p, kind, &node);
    if (r == 0)
        w->n->tree->nodes[node].ref = (uint32_t)record;
    return r;
}

static int add_complex(struct walk *w, const struct torch_graph *g, torch_value v, const struct place *p)
{
    torch_value re = ckpt_torch_item(g, ckpt_torch_args(g, v), 0), im = ckpt_torch_item(g, ckpt_torch_args(g, v), 1);
    return add_record(w, p, CKPT_NODE_ARRAY,
                      ckpt_torch_add_complex(w->n->records, ckpt_torch_float(g, re), ckpt_torch_float(g, im)));
}

/* What it takes to make the text of a value, in nodes. */
static uint64_t cost(const struct torch_graph *g, torch_value v)
{
    size_t len = 0;
    if (ckpt_torch_kind(g, v) == TORCH_STR) {
        ckpt_torch_str(g, v, &len);
        return len / PER_NODE;
    }
    if (ckpt_torch_kind(g, v) != TORCH_CALL || !ckpt_torch_count(g, ckpt_torch_args(g, v)))
        return 0;
    torch_value first = ckpt_torch_item(g, ckpt_torch_args(g, v), 0);
    enum torch_kind kind = ckpt_torch_kind(g, first);
    return kind == TORCH_TUPLE || kind == TORCH_LIST ? ckpt_torch_count(g, first)
           : kind == TORCH_STR || kind == TORCH_CALL ? cost(g, first)
                                                     : 0;
}

static int add_json(struct walk *w, const struct torch_graph *g, torch_value v, const struct place *p)
{
    struct ckpt_buf json = {.max = MAX_TEXT};
    int r;
    if (!ckpt_torch_add_json(g, v, &json))
        r = ckpt_fail(w->err, EOPNOTSUPP, "%.*s: an object of a kind that is not shown",
                      (int)CKPT_MIN(p->len, (size_t)200), p->key);
    else if (ckpt_buf_error(&json) == -EFBIG)
        r = add_record(w, p, CKPT_NODE_VALUE,
                       ckpt_torch_add_tensor(w->n->records, &(struct torch_tensor){.fault = TORCH_LONG}));
    else
        r = add_text(w, p, CKPT_NODE_VALUE, &json);
    ckpt_buf_clear(&json);
    return r;
}

static int add_other(struct walk *w, const struct torch_graph *g, torch_value v, const struct place *p)
{
    struct ckpt_buf bytes = CKPT_BUF_INIT;
    int r = spend(w, cost(g, v));
    if (r < 0)
        return r;
    if (ckpt_torch_is(g, v, TORCH_CALL, TORCH_IS_COMPLEX))
        return add_complex(w, g, v, p);
    r = ckpt_torch_add_bytes(g, v, &bytes) ? add_text(w, p, CKPT_NODE_BLOB, &bytes) : add_json(w, g, v, p);
    ckpt_buf_clear(&bytes);
    return r;
}
static int add_value(struct walk *w, const struct torch_graph *g, torch_value v, const struct place *p);

static int add_sequence(struct walk *w, const struct torch_graph *g, torch_value v, uint32_t node)
{
    struct torch_walk items;
    torch_value item;
    char key[16];
    int r = 0;
    ckpt_torch_walk_init(&items, g, v);
    for (uint32_t i = 0; r == 0 && ckpt_torch_walk_next(&items, &item); i++) {
        int len = snprintf(key, sizeof key, "%u", i);
        r = add_value(w, g, item, &(struct place){node, key, (size_t)len, .index = true});
    }
    return r;
}

static bool has_dot(const struct walk *w, const struct torch_graph *g, torch_value key)
{
    size_t len;
    if (w->n->flat || ckpt_torch_kind(g, key) != TORCH_STR)
        return false;
    const char *text = ckpt_torch_str(g, key, &len);
    return memchr(text, '.', len);
}

/* Keys without a dot and what is in them come first: those with one give way to them. */
static int add_dict(struct walk *w, const struct torch_graph *g, torch_value v, uint32_t node)
{
    struct ckpt_buf text = CKPT_BUF_INIT;
    int r = 0;
    for (int dotted = 0; dotted < 2 && r == 0; dotted++) {
        struct torch_walk items;
        torch_value key, value;
        ckpt_torch_walk_init(&items, g, v);
        while (r == 0 && ckpt_torch_walk_next(&items, &key) && ckpt_torch_walk_next(&items, &value)) {
            if (has_dot(w, g, key) != dotted)
                continue;
            text.len = 0;
            ckpt_torch_add_str(g, key, &text);
            r = ckpt_buf_error(&text) ? memory(w) : 0;
            if (r == 0 && text.len > MAX_KEY)
                r = ckpt_fail(w->err, EOPNOTSUPP, "a dict has a key of %zu bytes; at most %d are shown", text.len,
                              MAX_KEY);
            if (r == 0)
                r = add_value(w, g, value,
                              &(struct place){node, text.len ? (char *)text.data : "", text.len, .dotted = dotted});
        }
    }
    ckpt_buf_clear(&text);
    return r;
}

static int add_items(struct walk *w, const struct torch_graph *g, torch_value v, uint32_t node)
{
    enum torch_kind kind = ckpt_torch_kind(g, v);
    w->n->tree->nodes[node].container = kind == TORCH_DICT ? CKPT_DICT : kind == TORCH_LIST ? CKPT_LIST : CKPT_TUPLE;
    return kind == TORCH_DICT ? add_dict(w, g, v, node) : add_sequence(w, g, v, node);
}

/* What is in the piece takes its place. */
static int add_piece(struct walk *w, size_t record, const struct place *p)
{
    struct torch_graph piece = {0};
    uint64_t bytes = 0;
    int r = w->n->piece(w->n->arg, record, &piece, &bytes, w->err);
    if (r == -ENOMEM)
        return r;
    if (bytes > w->pieces_left) {
        ckpt_torch_graph_clear(&piece);
        return ckpt_fail(w->err, EUCLEAN, "its objects have more than %llu MiB",
                         (unsigned long long)(MAX_PIECES >> 20));
    }
    w->pieces_left -= bytes;
    if (r < 0) {
        if (w->err)
            *w->err = (struct ckpt_err){0};
        return add_record(w, p, CKPT_NODE_ARRAY, record);
    }
    w->left += piece.values + piece.len / PER_NODE;
    r = add_value(w, &piece, piece.top, p);
    ckpt_torch_graph_clear(&piece);
    return r;
}

/* A storage by itself is the array of its elements. */
static int add_storage(struct walk *w, const struct torch_graph *g, torch_value v, const struct place *p)
{
    struct torch_storage s;
    ckpt_torch_storage_of(g, v, &s);
    const struct torch_global *class = ckpt_torch_global(s.global);
    struct torch_tensor t = {
        .fault = (enum torch_fault)s.fault, .dtype = (enum ckpt_dtype) class->dtype, .archive = g->archive, .ndim = 1};
    t.key = s.key;
    t.size = s.size;
    if (!t.fault && t.dtype == CKPT_DT_OTHER) {
        t.fault = TORCH_ODD_TYPE;
        t.type = s.global;
    } else if (!t.fault)
        t.shape[0] = s.len / class->itemsize;
    t.offset = class->itemsize ? s.start / class->itemsize : 0;
    t.stride[0] = 1;
    return add_record(w, p, CKPT_NODE_ARRAY, ckpt_torch_add_tensor(w->n->records, &t));
}

static int add_value(struct walk *w, const struct torch_graph *g, torch_value v, const struct place *p)
{
    uint32_t node;
    int r;
    switch (ckpt_torch_kind(g, v)) {
    case TORCH_TUPLE:
    case TORCH_LIST:
    case TORCH_DICT:
        r = add_node(w, p, CKPT_NODE_DIR, &node);
        return r < 0 ? r : add_items(w, g, v, node); /* deeper than a tree may be fails there; so do cycles */
    case TORCH_TENSOR:
        if (ckpt_torch_record_kind(w->n->records, ckpt_torch_record_of(v)) == TORCH_R_PIECE)
            return add_piece(w, ckpt_torch_record_of(v), p);
        return add_record(w, p, CKPT_NODE_ARRAY, ckpt_torch_record_of(v));
    case TORCH_STORAGE:
        return add_storage(w, g, v, p);
    default:
        return add_other(w, g, v, p);
    }
}

int ckpt_torch_nodes_add(const struct torch_nodes *n, const struct torch_graph *g, struct ckpt_err *err)
{
    struct walk w = {.n = n, .left = g->values + g->len / PER_NODE + MAX_SHARED, .pieces_left = MAX_PIECES, .err = err};
    enum torch_kind kind = ckpt_torch_kind(g, g->top);
    if (!n->flat)
        ckpt_tree_note_names(n->tree);
    if (kind == TORCH_TUPLE || kind == TORCH_LIST || kind == TORCH_DICT)
        return add_items(&w, g, g->top, 0);
    return add_value(&w, g, g->top, &(struct place){.key = ""}); /* one bare leaf */
}

int ckpt_torch_nodes_add_under(const struct torch_nodes *n, const struct torch_graph *g, const char *key,
                               struct ckpt_err *err)
{
    struct walk w = {.n = n, .left = g->values + g->len / PER_NODE + MAX_SHARED, .pieces_left = MAX_PIECES, .err = err};
    return add_value(&w, g, g->top, &(struct place){.key = key, .len = strlen(key)});
}
