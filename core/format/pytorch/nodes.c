/* SPDX-License-Identifier: Apache-2.0 */
#include "core/format/pytorch/nodes.h"

#include "core/base/util.h"
#include "core/format/pytorch/numpy.h"
#include "core/format/pytorch/text.h"
#include "core/format/pytorch/torch.h"
#include "core/format/pytorch/walk.h"

#include <stdio.h>

#define MAX_SHARED 100000                /* nodes beyond the values of the pickle: what it has in several places */
#define MAX_AGAIN  100000                /* nodes of objects that were shown before */
#define MAX_PIECES ((uint64_t)128 << 20) /* bytes of all objects that are pieces of their own */
#define MAX_KEY    65535

static int add_value(struct torch_nodes_walk *w, const struct torch_graph *g, torch_value v,
                     const struct torch_place *p);
static int add_call(struct torch_nodes_walk *w, const struct torch_graph *g, torch_value v,
                    const struct torch_place *p);

/* --- containers --- */

/* Is it what the walk is in? */
static bool is_inside(const struct torch_nodes_walk *w, torch_value v)
{
    for (unsigned i = 0; i < w->in->depth; i++)
        if (w->in->path[i] == v)
            return true;
    return false;
}

static int enter(struct torch_nodes_walk *w, torch_value v)
{
    if (w->in->depth == sizeof w->in->path / sizeof *w->in->path)
        return ckpt_fail(w->err, EUCLEAN, "its objects are nested too deeply");
    w->in->path[w->in->depth++] = v;
    return 0;
}

static int add_sequence(struct torch_nodes_walk *w, const struct torch_graph *g, torch_value v, uint32_t node)
{
    struct torch_walk items;
    torch_value item;
    char key[16];
    int r = 0;
    ckpt_torch_walk_init(&items, g, v);
    for (uint32_t i = 0; r == 0 && ckpt_torch_walk_next(&items, &item); i++) {
        int len = snprintf(key, sizeof key, "%u", i);
        r = add_value(w, g, item, &(struct torch_place){node, key, (size_t)len, .index = true});
    }
    return r;
}

static bool has_dot(const struct torch_nodes_walk *w, const struct torch_graph *g, torch_value key)
{
    size_t len;
    if (w->n->flat || ckpt_torch_kind(g, key) != TORCH_STR)
        return false;
    const char *text = ckpt_torch_str(g, key, &len);
    return memchr(text, '.', len);
}

/* A key that is a tensor or an object is known by its place in the dict. */
static int key_text(struct torch_nodes_walk *w, const struct torch_graph *g, torch_value key, uint32_t place,
                    struct ckpt_buf *text)
{
    text->len = 0;
    if (!ckpt_torch_add_str(g, key, text))
        ckpt_buf_addf(text, " #%u", place);
    if (ckpt_buf_error(text) == -ENOMEM)
        return ckpt_torch_node_memory(w);
    if (ckpt_buf_error(text) || text->len > MAX_KEY)
        return ckpt_fail(w->err, EOPNOTSUPP, "a dict has a key of more than %d bytes, which are not shown", MAX_KEY);
    return 0;
}

static bool is_wanted(const struct torch_nodes_walk *w, const struct ckpt_buf *key)
{
    const char *text = key->len ? (char *)key->data : "";
    return !w->n->wanted || w->n->wanted(w->n->wanted_arg, text, key->len);
}

/* Keys without a dot and what is in them come first: those with one give way to them. */
static int add_dict(struct torch_nodes_walk *w, const struct torch_graph *g, torch_value v, uint32_t node)
{
    struct ckpt_buf text = CKPT_BUF_INIT;
    int r = 0;
    for (int dotted = 0; dotted < 2 && r == 0; dotted++) {
        struct torch_walk items;
        torch_value key, value;
        ckpt_torch_walk_init(&items, g, v);
        for (uint32_t i = 0; r == 0 && ckpt_torch_walk_next(&items, &key) && ckpt_torch_walk_next(&items, &value);
             i++) {
            if (has_dot(w, g, key) != dotted)
                continue;
            r = key_text(w, g, key, i, &text);
            if (r == 0 && !node && !is_wanted(w, &text))
                continue;
            if (r == 0)
                r = add_value(
                    w, g, value,
                    &(struct torch_place){node, text.len ? (char *)text.data : "", text.len, .dotted = dotted});
        }
    }
    ckpt_buf_clear(&text);
    return r;
}

static int add_items(struct torch_nodes_walk *w, const struct torch_graph *g, torch_value v, uint32_t node)
{
    enum torch_kind kind = ckpt_torch_kind(g, v);
    w->n->tree->nodes[node].container = kind == TORCH_DICT ? CKPT_DICT : kind == TORCH_LIST ? CKPT_LIST : CKPT_TUPLE;
    if (is_inside(w, v)) /* it contains itself: that place stays empty */
        return 0;
    int r = enter(w, v);
    if (r < 0)
        return r;
    r = kind == TORCH_DICT ? add_dict(w, g, v, node) : add_sequence(w, g, v, node);
    w->in->depth--;
    return r;
}

/* --- objects --- */

/* The list of an array of objects that has one dimension. */
static torch_value object_list(const struct torch_graph *g, torch_value v)
{
    torch_value state = ckpt_torch_state(g, v);
    if (!ckpt_torch_is(g, v, TORCH_OBJECT, TORCH_IS_NP_ARRAY) || state == TORCH_NOTHING ||
        ckpt_torch_kind(g, state) != TORCH_TUPLE || ckpt_torch_count(g, state) != 5)
        return TORCH_NOTHING;
    torch_value shape = ckpt_torch_item(g, state, 1), data = ckpt_torch_item(g, state, 4);
    bool one = ckpt_torch_kind(g, shape) == TORCH_TUPLE && ckpt_torch_count(g, shape) == 1;
    return one && ckpt_torch_kind(g, data) == TORCH_LIST ? data : TORCH_NOTHING;
}

/* What stands for an object: the list of an array of objects, the object in a scalar; else itself. */
static torch_value stand_in(const struct torch_graph *g, torch_value v)
{
    torch_value list = object_list(g, v);
    struct torch_np np;
    if (list != TORCH_NOTHING)
        return list;
    bool wraps = ckpt_torch_is(g, v, TORCH_OBJECT, TORCH_IS_NP_SCALAR) && ckpt_torch_np_read(g, v, &np) &&
                 np.kind == TORCH_NP_OTHER;
    return wraps ? np.data : v;
}

static int add_member(struct torch_nodes_walk *w, const struct torch_graph *g, torch_value v, uint32_t node,
                      const char *key)
{
    return v == TORCH_NOTHING ? 0 : add_value(w, g, v, &(struct torch_place){node, key, strlen(key)});
}

/* The state of a class with slots: its attributes and those in slots, either of which may be None. */
static bool is_pair_of_states(const struct torch_graph *g, torch_value state)
{
    unsigned dicts = 0, nones = 0;
    if (ckpt_torch_kind(g, state) != TORCH_TUPLE || ckpt_torch_count(g, state) != 2)
        return false;
    for (uint32_t i = 0; i < 2; i++) {
        dicts += ckpt_torch_kind(g, ckpt_torch_item(g, state, i)) == TORCH_DICT;
        nones += ckpt_torch_kind(g, ckpt_torch_item(g, state, i)) == TORCH_NONE;
    }
    return dicts && dicts + nones == 2;
}

static int add_state(struct torch_nodes_walk *w, const struct torch_graph *g, torch_value state, uint32_t node)
{
    int r = 0;
    if (state == TORCH_NOTHING || ckpt_torch_kind(g, state) == TORCH_NONE)
        return 0;
    if (ckpt_torch_kind(g, state) == TORCH_DICT)
        return add_dict(w, g, state, node);
    if (!is_pair_of_states(g, state))
        return add_member(w, g, state, node, "state");
    for (uint32_t i = 0; i < 2 && r == 0; i++)
        if (ckpt_torch_kind(g, ckpt_torch_item(g, state, i)) == TORCH_DICT)
            r = add_dict(w, g, ckpt_torch_item(g, state, i), node);
    return r;
}

/* Of an object, or of a call that is no value after all. */
static int set_class(struct torch_nodes_walk *w, const struct torch_graph *g, torch_value class, uint32_t node)
{
    struct ckpt_buf name = CKPT_BUF_INIT;
    uint32_t string = 0;
    ckpt_torch_add_class(g, class, &name);
    int r = ckpt_buf_error(&name) ? ckpt_torch_node_memory(w) : ckpt_torch_node_intern(w, name.data, name.len, &string);
    if (r == 0)
        r = ckpt_torch_node_spend(w, name.len / TORCH_PER_NODE);
    ckpt_buf_clear(&name);
    w->n->tree->nodes[node].container = CKPT_OBJECT;
    w->n->tree->nodes[node].ref = string;
    return r;
}

/* Of an array that NumPy would make, the class is the one that it is of. */
static torch_value shown_class(const struct torch_graph *g, torch_value v)
{
    torch_value args = ckpt_torch_args(g, v);
    if (!ckpt_torch_is(g, v, TORCH_OBJECT, TORCH_IS_NP_ARRAY) || args == TORCH_NOTHING || !ckpt_torch_count(g, args) ||
        ckpt_torch_kind(g, ckpt_torch_item(g, args, 0)) != TORCH_GLOBAL)
        return ckpt_torch_class(g, v);
    return ckpt_torch_item(g, args, 0);
}

static int add_members(struct torch_nodes_walk *w, const struct torch_graph *g, torch_value v, uint32_t node)
{
    torch_value class = ckpt_torch_class(g, v), args = ckpt_torch_args(g, v);
    torch_value items = ckpt_torch_part(g, v, TORCH_ITEMS), entries = ckpt_torch_part(g, v, TORCH_ENTRIES);
    int r = set_class(w, g, shown_class(g, v), node);
    if (r == 0 && ckpt_torch_kind(g, class) == TORCH_OBJECT)
        r = add_member(w, g, class, node, "class");
    if (r == 0 && args != TORCH_NOTHING && ckpt_torch_count(g, args))
        r = add_member(w, g, args, node, "args");
    if (r == 0)
        r = add_member(w, g, ckpt_torch_part(g, v, TORCH_KWARGS), node, "kwargs");
    if (r == 0 && items != TORCH_NOTHING)
        r = add_sequence(w, g, items, node);
    if (r == 0 && entries != TORCH_NOTHING)
        r = add_dict(w, g, entries, node);
    return r < 0 ? r : add_state(w, g, ckpt_torch_state(g, v), node);
}

/* The first place of an object has all of it, and so have others while that is not too much. */
static int fill_object(struct torch_nodes_walk *w, const struct torch_graph *g, torch_value v, uint32_t node)
{
    struct torch_seen *seen = &w->in->seen[ckpt_torch_object_number(g, v)];
    bool too_much = seen->node && seen->spent > w->again_left;
    if (is_inside(w, v) || too_much) {
        w->n->tree->nodes[node].container = CKPT_OBJECT;
        w->n->tree->nodes[node].mark = TORCH_SAME_MARK;
        w->n->tree->nodes[node].ref = seen->node - 1;
        return 0;
    }
    bool first = !seen->node;
    if (first)
        seen->node = node + 1;
    else {
        w->again_left -= seen->spent;
        w->left += seen->spent;
    }
    uint64_t before = w->left;
    int r = enter(w, v);
    if (r < 0)
        return r;
    r = add_members(w, g, v, node);
    w->in->depth--;
    if (first)
        seen->spent = (uint32_t)CKPT_MIN(before - w->left + 1, (uint64_t)UINT32_MAX);
    return r;
}

static int add_object(struct torch_nodes_walk *w, const struct torch_graph *g, torch_value v,
                      const struct torch_place *p)
{
    uint32_t node;
    torch_value other = stand_in(g, v);
    if (other != v)
        return ckpt_torch_kind(g, other) == TORCH_OBJECT ? add_call(w, g, v, p) : add_value(w, g, other, p);
    int r = ckpt_torch_node_numpy(w, g, v, p);
    if (r != 1)
        return r;
    r = ckpt_torch_node_add(w, p, CKPT_NODE_DIR, &node);
    return r < 0 ? r : fill_object(w, g, v, node);
}

/* What is no value after all: a set of tensors, say. */
static int add_call(struct torch_nodes_walk *w, const struct torch_graph *g, torch_value v, const struct torch_place *p)
{
    uint32_t node;
    torch_value args = ckpt_torch_args(g, v);
    bool is_set = ckpt_torch_is(g, v, TORCH_CALL, TORCH_IS_SET) && ckpt_torch_count(g, args);
    int r = ckpt_torch_node_add(w, p, CKPT_NODE_DIR, &node);
    if (r == 0)
        r = set_class(w, g, ckpt_torch_class(g, v), node);
    if (r < 0 || is_inside(w, v))
        return r;
    r = enter(w, v);
    if (r < 0)
        return r;
    r = is_set ? add_sequence(w, g, ckpt_torch_item(g, args, 0), node) : add_member(w, g, args, node, "args");
    w->in->depth--;
    return r;
}

/* --- all kinds --- */

/* An object that is the whole checkpoint is its top; what is a leaf is a bare one. */
static int add_top_object(struct torch_nodes_walk *w, const struct torch_graph *g)
{
    const struct torch_place bare = {.key = ""};
    torch_value other = stand_in(g, g->top);
    if (other != g->top) {
        enum torch_kind kind = ckpt_torch_kind(g, other);
        return kind == TORCH_LIST ? add_items(w, g, other, 0) : add_object(w, g, g->top, &bare);
    }
    int r = ckpt_torch_node_numpy(w, g, g->top, &bare);
    return r == 1 ? fill_object(w, g, g->top, 0) : r;
}

/* A graph is walked as a whole, with `add` into a place or into the top of the tree. */
static int walk_graph(struct torch_nodes_walk *w, const struct torch_graph *g, const struct torch_place *p)
{
    enum torch_kind kind = ckpt_torch_kind(g, g->top);
    struct torch_inside *before = w->in;
    w->in = calloc(1, sizeof *w->in);
    if (w->in)
        w->in->seen = calloc(g->objects + 1, sizeof *w->in->seen);
    int r = !w->in || !w->in->seen ? ckpt_torch_node_memory(w) : 0;
    if (r == 0 && !p && (kind == TORCH_TUPLE || kind == TORCH_LIST || kind == TORCH_DICT))
        r = add_items(w, g, g->top, 0);
    else if (r == 0 && !p && kind == TORCH_OBJECT)
        r = add_top_object(w, g);
    else if (r == 0)
        r = add_value(w, g, g->top, p ? p : &(struct torch_place){.key = ""}); /* one bare leaf */
    if (w->in)
        free(w->in->seen);
    free(w->in);
    w->in = before;
    return r;
}

/* What is in the piece takes its place. */
static int add_piece(struct torch_nodes_walk *w, size_t record, const struct torch_place *p)
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
        return ckpt_torch_node_record(w, p, CKPT_NODE_ARRAY, record);
    }
    w->left += piece.values + piece.len / TORCH_PER_NODE;
    r = walk_graph(w, &piece, p);
    ckpt_torch_graph_clear(&piece);
    return r;
}

/* A storage by itself is the array of its elements. */
static int add_storage(struct torch_nodes_walk *w, const struct torch_graph *g, torch_value v,
                       const struct torch_place *p)
{
    struct torch_storage s;
    ckpt_torch_storage_of(g, v, &s);
    const struct torch_global *class = s.global == TORCH_NO_GLOBAL ? NULL : ckpt_torch_global(s.global);
    struct torch_tensor t = {.fault = (enum torch_fault)s.fault,
                             .dtype = class ? (enum ckpt_dtype) class->dtype : CKPT_DT_OTHER,
                             .archive = g->archive,
                             .ndim = 1};
    t.key = s.key;
    t.size = s.size;
    if (!t.fault && t.dtype == CKPT_DT_OTHER) {
        t.fault = TORCH_ODD_TYPE;
        t.type = s.global;
    } else if (!t.fault)
        t.shape[0] = s.len / class->itemsize;
    t.offset = class && class->itemsize ? s.start / class->itemsize : 0;
    t.stride[0] = 1;
    return ckpt_torch_node_record(w, p, CKPT_NODE_ARRAY, ckpt_torch_add_tensor(w->n->records, &t));
}

static int add_value(struct torch_nodes_walk *w, const struct torch_graph *g, torch_value v,
                     const struct torch_place *p)
{
    uint32_t node;
    int r;
    switch (ckpt_torch_kind(g, v)) {
    case TORCH_TUPLE:
    case TORCH_LIST:
    case TORCH_DICT:
        r = ckpt_torch_node_add(w, p, CKPT_NODE_DIR, &node);
        return r < 0 ? r : add_items(w, g, v, node); /* deeper than a tree may be fails there; so do cycles */
    case TORCH_TENSOR:
        if (ckpt_torch_record_kind(w->n->records, ckpt_torch_record_of(v)) == TORCH_R_PIECE)
            return add_piece(w, ckpt_torch_record_of(v), p);
        return ckpt_torch_node_record(w, p, CKPT_NODE_ARRAY, ckpt_torch_record_of(v));
    case TORCH_STORAGE:
        return add_storage(w, g, v, p);
    case TORCH_OBJECT:
        return add_object(w, g, v, p);
    default:
        r = ckpt_torch_node_value(w, g, v, p);
        return r == 1 ? add_call(w, g, v, p) : r;
    }
}

static int walk_tree(const struct torch_nodes *n, const struct torch_graph *g, const struct torch_place *p,
                     struct ckpt_err *err)
{
    struct torch_nodes_walk w = {.n = n,
                                 .left = g->values + g->len / TORCH_PER_NODE + MAX_SHARED,
                                 .again_left = MAX_AGAIN,
                                 .pieces_left = MAX_PIECES,
                                 .err = err};
    return walk_graph(&w, g, p);
}

int ckpt_torch_nodes_add(const struct torch_nodes *n, const struct torch_graph *g, struct ckpt_err *err)
{
    if (!n->flat)
        ckpt_tree_note_names(n->tree);
    return walk_tree(n, g, NULL, err);
}

int ckpt_torch_nodes_add_under(const struct torch_nodes *n, const struct torch_graph *g, const char *key,
                               struct ckpt_err *err)
{
    return walk_tree(n, g, &(struct torch_place){.key = key, .len = strlen(key)}, err);
}

int ckpt_torch_nodes_add_item(const struct torch_nodes *n, const struct torch_graph *g, const char *key,
                              struct ckpt_err *err)
{
    return walk_tree(n, g, &(struct torch_place){.key = key, .len = strlen(key), .index = true}, err);
}
