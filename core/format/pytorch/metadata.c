/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Three tables by the name of a leaf: what it is, where it goes (from planner_data, since names are joined with dots
 * and may have some of their own), and where each of its pieces is. The tree is first made of branches, then of the
 * graph's own dicts and lists.
 */
#include "core/format/pytorch/metadata.h"

#include "core/base/util.h"
#include "core/format/pytorch/branch.h"
#include "core/format/pytorch/pickle.h"
#include "core/format/pytorch/record.h"

#include <xxhash.h>

#define MAX_NAME  65535
#define MAX_DIMS  64     /* that PyTorch allows */
#define MAX_BOXES 100000 /* beyond the values of the pickle: what it has in several places */

/* --- tables --- */

/* By a name, and the offsets of a piece, which are a tuple or TORCH_NOTHING. */
struct entry {
    torch_value name, offsets, value;
};

struct table {
    struct entry *entries;
    uint32_t count, size; /* size: of the slots, a power of two */
    uint32_t *slots;      /* 1 + number of an entry; 0: free */
};

struct loader {
    struct torch_graph g;
    struct ckpt_tree *tree;
    struct ckpt_buf *records;
    struct table paths, places;
    struct torch_branches branches;
    uint64_t boxes_left;
    struct ckpt_err *err;
};

static int malformed(struct loader *l, const char *what)
{
    return ckpt_fail(l->err, EUCLEAN, ".metadata is malformed: %s", what);
}

static int memory(struct loader *l)
{
    return ckpt_no_memory(l->err);
}

/* A string that can be a name or part of one. */
static bool is_name(const struct torch_graph *g, torch_value v)
{
    size_t len;
    if (v == TORCH_NOTHING || ckpt_torch_kind(g, v) != TORCH_STR)
        return false;
    ckpt_torch_str(g, v, &len);
    return len <= MAX_NAME;
}

/* A tuple of integers, be it a plain one or a Size; TORCH_NOTHING: it is none, or longer than that of any tensor. */
static torch_value as_tuple(const struct torch_graph *g, torch_value v)
{
    if (ckpt_torch_is(g, v, TORCH_CALL, TORCH_IS_SIZE))
        v = ckpt_torch_item(g, ckpt_torch_args(g, v), 0);
    if (v == TORCH_NOTHING || ckpt_torch_kind(g, v) != TORCH_TUPLE || ckpt_torch_count(g, v) > MAX_DIMS)
        return TORCH_NOTHING;
    for (uint32_t i = 0; i < ckpt_torch_count(g, v); i++)
        if (ckpt_torch_kind(g, ckpt_torch_item(g, v, i)) != TORCH_INT)
            return TORCH_NOTHING;
    return v;
}

static uint64_t hash_of(const struct torch_graph *g, torch_value name, torch_value offsets)
{
    size_t len;
    const char *text = ckpt_torch_str(g, name, &len);
    uint64_t h = XXH3_64bits(text, len);
    for (uint32_t i = 0; offsets != TORCH_NOTHING && i < ckpt_torch_count(g, offsets); i++) {
        int64_t n;
        if (!ckpt_torch_int(g, ckpt_torch_item(g, offsets, i), &n))
            n = -1;
        h = (h ^ (uint64_t)n) * 0x9e3779b97f4a7c15;
    }
    return h ^ h >> 32;
}

static bool same_offsets(const struct torch_graph *g, torch_value a, torch_value b)
{
    if (a == TORCH_NOTHING || b == TORCH_NOTHING)
        return a == b;
    if (ckpt_torch_count(g, a) != ckpt_torch_count(g, b))
        return false;
    for (uint32_t i = 0; i < ckpt_torch_count(g, a); i++) {
        int64_t n, m;
        if (!ckpt_torch_int(g, ckpt_torch_item(g, a, i), &n) || !ckpt_torch_int(g, ckpt_torch_item(g, b, i), &m) ||
            n != m)
            return false;
    }
    return true;
}

static uint32_t *slot_of(const struct torch_graph *g, const struct table *t, torch_value name, torch_value offsets)
{
    uint32_t at = (uint32_t)hash_of(g, name, offsets) & (t->size - 1);
    for (; t->slots[at]; at = (at + 1) & (t->size - 1)) {
        const struct entry *e = &t->entries[t->slots[at] - 1];
        if (ckpt_torch_same_str(g, e->name, name) && same_offsets(g, e->offsets, offsets))
            break;
    }
    return &t->slots[at];
}

static int table_init(struct loader *l, struct table *t, uint32_t entries)
{
    t->size = 16;
    while (t->size < 2 * entries)
        t->size *= 2;
    t->entries = malloc((entries + 1) * sizeof *t->entries);
    t->slots = calloc(t->size, sizeof *t->slots);
    return t->entries && t->slots ? 0 : memory(l);
}

/* Of equal ones the last one counts, as in Python's dicts. */
static void table_add(const struct torch_graph *g, struct table *t, const struct entry *e)
{
    uint32_t *slot = slot_of(g, t, e->name, e->offsets);
    if (!*slot)
        *slot = ++t->count;
    t->entries[*slot - 1] = *e;
}

static torch_value table_get(const struct torch_graph *g, const struct table *t, torch_value name, torch_value offsets)
{
    if (!t->size)
        return TORCH_NOTHING;
    uint32_t slot = *slot_of(g, t, name, offsets);
    return slot ? t->entries[slot - 1].value : TORCH_NOTHING;
}

static void table_clear(struct table *t)
{
    free(t->entries);
    free(t->slots);
}

/* --- what the pickle holds --- */

/* The state of an object; TORCH_NOTHING: it is none, or has no such state. Classes are known by what is in them: others
 * than PyTorch have their own, which are those with more in them. */
static torch_value state_of(const struct torch_graph *g, torch_value v, enum torch_kind kind)
{
    if (v == TORCH_NOTHING || ckpt_torch_kind(g, v) != TORCH_OBJECT)
        return TORCH_NOTHING;
    torch_value state = ckpt_torch_state(g, v);
    return state != TORCH_NOTHING && ckpt_torch_kind(g, state) == kind ? state : TORCH_NOTHING;
}

/* A value of the state of an object that has one. */
static torch_value member(const struct torch_graph *g, torch_value object, const char *name)
{
    torch_value state = state_of(g, object, TORCH_DICT);
    return state == TORCH_NOTHING ? TORCH_NOTHING : ckpt_torch_get(g, state, name);
}

static bool absent(const struct torch_graph *g, torch_value v)
{
    return v == TORCH_NOTHING || ckpt_torch_kind(g, v) == TORCH_NONE;
}

static int load_paths(struct loader *l, torch_value planner)
{
    const struct torch_graph *g = &l->g;
    struct torch_walk w;
    struct entry e = {.offsets = TORCH_NOTHING};
    if (planner == TORCH_NOTHING || ckpt_torch_kind(g, planner) != TORCH_DICT) /* a planner may keep what it likes */
        return 0;
    int r = table_init(l, &l->paths, ckpt_torch_count(g, planner));
    ckpt_torch_walk_init(&w, g, planner);
    while (r == 0 && ckpt_torch_walk_next(&w, &e.name) && ckpt_torch_walk_next(&w, &e.value)) {
        if (!is_name(g, e.name) || ckpt_torch_kind(g, e.value) != TORCH_TUPLE || !ckpt_torch_count(g, e.value))
            return malformed(l, "planner_data has what is no path");
        table_add(g, &l->paths, &e);
    }
    return r;
}

static int load_places(struct loader *l, torch_value storage)
{
    const struct torch_graph *g = &l->g;
    struct torch_walk w;
    torch_value index;
    struct entry e;
    if (absent(g, storage))
        return 0;
    if (ckpt_torch_kind(g, storage) != TORCH_DICT)
        return malformed(l, "storage_data is no dict");
    int r = table_init(l, &l->places, ckpt_torch_count(g, storage));
    ckpt_torch_walk_init(&w, g, storage);
    while (r == 0 && ckpt_torch_walk_next(&w, &index) && ckpt_torch_walk_next(&w, &e.value)) {
        torch_value state = state_of(g, index, TORCH_DICT);
        e.name = state == TORCH_NOTHING ? TORCH_NOTHING : ckpt_torch_get(g, state, "fqn");
        if (!is_name(g, e.name))
            return malformed(l, "storage_data has a key that is no index");
        e.offsets = as_tuple(g, ckpt_torch_get(g, state, "offset"));
        table_add(g, &l->places, &e);
    }
    return r;
}

/* --- leaves --- */

/* A number from a state, not negative. */
static bool number(const struct torch_graph *g, torch_value state, const char *name, uint64_t *ret)
{
    torch_value v = ckpt_torch_get(g, state, name);
    int64_t n;
    if (v == TORCH_NOTHING || ckpt_torch_kind(g, v) != TORCH_INT || !ckpt_torch_int(g, v, &n) || n < 0)
        return false;
    *ret = (uint64_t)n;
    return true;
}

/* Where a piece is. It has no length if that is not said. */
static int load_piece(struct loader *l, torch_value name, torch_value offsets, struct torch_piece *ret,
                      enum torch_fault *fault)
{
    const struct torch_graph *g = &l->g;
    torch_value info = table_get(g, &l->places, name, offsets);
    *ret = (struct torch_piece){0};
    if (info == TORCH_NOTHING)
        return 0;
    torch_value state = state_of(g, info, TORCH_DICT);
    torch_value path = state == TORCH_NOTHING ? state : ckpt_torch_get(g, state, "relative_path");
    size_t len;
    if (!is_name(g, path))
        return malformed(l, "storage_data does not say where a piece is");
    if (!number(g, state, "offset", &ret->off) || !number(g, state, "length", &ret->len) || !ret->len)
        *fault = TORCH_BAD_NUMBER;
    if (!absent(g, ckpt_torch_get(g, state, "transform_descriptors")))
        *fault = TORCH_TRANSFORMED;
    const char *text = ckpt_torch_str(g, path, &len);
    return ckpt_tree_string(l->tree, text, len, &ret->file) < 0 ? memory(l) : 0;
}

/* The numbers of a Size, at most CKPT_MAX_DIMS of them. False: there are others than `ndim`. */
static bool numbers(const struct torch_graph *g, torch_value size, unsigned ndim, uint64_t *ret,
                    enum torch_fault *fault)
{
    torch_value tuple = as_tuple(g, size);
    if (tuple == TORCH_NOTHING || ckpt_torch_count(g, tuple) != ndim)
        return false;
    for (unsigned i = 0; i < ndim && i < CKPT_MAX_DIMS; i++) {
        int64_t n;
        if (!ckpt_torch_int(g, ckpt_torch_item(g, tuple, i), &n) || n < 0)
            *fault = TORCH_BAD_NUMBER;
        else
            ret[i] = (uint64_t)n;
    }
    return true;
}

/* (dtype, layout, requires_grad, ...) */
static int load_properties(struct loader *l, torch_value properties, struct torch_sharded *s)
{
    const struct torch_graph *g = &l->g;
    torch_value state = state_of(g, properties, TORCH_TUPLE);
    if (state == TORCH_NOTHING || ckpt_torch_count(g, state) < 2 ||
        !ckpt_torch_is(g, ckpt_torch_item(g, state, 0), TORCH_GLOBAL, TORCH_IS_DTYPE))
        return malformed(l, "a tensor has no type");
    torch_value layout = ckpt_torch_item(g, state, 1);
    s->dtype = (enum ckpt_dtype)ckpt_torch_global_of(g, ckpt_torch_item(g, state, 0))->dtype;
    s->type = ckpt_torch_global_number(g, ckpt_torch_item(g, state, 0));
    if (!ckpt_torch_is(g, layout, TORCH_CALL, TORCH_IS_LAYOUT) ||
        !ckpt_torch_str_is(g, ckpt_torch_item(g, ckpt_torch_args(g, layout), 0), "torch.strided"))
        s->fault = TORCH_SPARSE;
    else if (s->dtype == CKPT_DT_OTHER)
        s->fault = TORCH_ODD_TYPE;
    return 0;
}

/* The boxes are appended to `ret` while it is not known yet whether they are all well. */
static int load_boxes(struct loader *l, torch_value name, torch_value chunks, struct torch_sharded *s,
                      struct ckpt_buf *ret)
{
    const struct torch_graph *g = &l->g;
    struct torch_walk w;
    torch_value chunk;
    ckpt_torch_walk_init(&w, g, chunks);
    while (ckpt_torch_walk_next(&w, &chunk)) {
        struct torch_box box;
        if (!l->boxes_left--)
            return malformed(l, "the tensors have more pieces than it describes");
        torch_value state = state_of(g, chunk, TORCH_DICT);
        torch_value offsets = state == TORCH_NOTHING ? state : ckpt_torch_get(g, state, "offsets");
        if (state == TORCH_NOTHING || !numbers(g, offsets, s->ndim, box.low, &s->fault) ||
            !numbers(g, ckpt_torch_get(g, state, "sizes"), s->ndim, box.size, &s->fault))
            return malformed(l, "a piece of a tensor has no place in it");
        int r = load_piece(l, name, as_tuple(g, offsets), &box.piece, &s->fault);
        if (r < 0)
            return r;
        ckpt_torch_add_box(ret, s->ndim, &box);
        s->boxes++;
    }
    return ckpt_buf_error(ret) ? memory(l) : 0;
}

static int load_tensor(struct loader *l, torch_value name, torch_value state, torch_value *ret)
{
    const struct torch_graph *g = &l->g;
    struct torch_sharded s = {0};
    struct ckpt_buf boxes = CKPT_BUF_INIT;
    torch_value size = as_tuple(g, ckpt_torch_get(g, state, "size")), chunks = ckpt_torch_get(g, state, "chunks");
    if (size == TORCH_NOTHING || chunks == TORCH_NOTHING || ckpt_torch_kind(g, chunks) != TORCH_LIST)
        return malformed(l, "a tensor has no size, or no list of pieces");
    int r = load_properties(l, ckpt_torch_get(g, state, "properties"), &s);
    if (r < 0)
        return r;
    s.ndim = (unsigned)ckpt_torch_count(g, size);
    numbers(g, size, s.ndim, s.shape, &s.fault);
    if (s.ndim > CKPT_MAX_DIMS) {
        s.fault = TORCH_MANY_DIMS;
        s.ndim = 0;
    } else
        r = load_boxes(l, name, chunks, &s, &boxes);
    if (s.fault)
        s.boxes = 0;
    if (r == 0)
        *ret = ckpt_torch_tensor_value(ckpt_torch_add_sharded(l->records, &s));
    if (r == 0 && !s.fault && boxes.len)
        ckpt_buf_add(l->records, boxes.data, boxes.len);
    ckpt_buf_clear(&boxes);
    return r;
}

static int load_leaf(struct loader *l, torch_value name, torch_value metadata, torch_value *ret)
{
    const struct torch_graph *g = &l->g;
    struct torch_piece piece;
    struct torch_tensor faulty = {0};
    if (!is_name(g, name))
        return malformed(l, "the name of a leaf is no string, or a very long one");
    if (member(g, metadata, "chunks") != TORCH_NOTHING)
        return load_tensor(l, name, ckpt_torch_state(g, metadata), ret);
    if (ckpt_torch_kind(g, metadata) != TORCH_OBJECT)
        return malformed(l, "a leaf is neither a tensor nor bytes");
    int r = load_piece(l, name, TORCH_NOTHING, &piece, &faulty.fault);
    if (r < 0)
        return r;
    if (!faulty.fault && !piece.len)
        faulty.fault = TORCH_BAD_NUMBER;
    *ret = ckpt_torch_tensor_value(faulty.fault ? ckpt_torch_add_tensor(l->records, &faulty)
                                                : ckpt_torch_add_piece(l->records, &piece));
    return 0;
}

/* --- all of it --- */

static int step(struct loader *l, uint32_t parent, torch_value key, uint32_t *ret, bool *ret_new)
{
    if (!is_name(&l->g, key) && ckpt_torch_kind(&l->g, key) != TORCH_INT)
        return malformed(l, "planner_data has a path of other things than strings and integers");
    if (l->branches.all[parent].value != TORCH_NOTHING)
        return malformed(l, "one leaf lies within another");
    return ckpt_torch_branch_step(&l->branches, &l->g, parent, key, ret, ret_new) < 0 ? memory(l) : 0;
}

static int add_leaf(struct loader *l, torch_value name, torch_value leaf)
{
    const struct torch_graph *g = &l->g;
    torch_value path = table_get(g, &l->paths, name, TORCH_NOTHING);
    uint32_t at = 0;
    bool new = false;
    int r = 0;
    if (path == TORCH_NOTHING)
        r = step(l, 0, name, &at, &new);
    for (uint32_t i = 0; path != TORCH_NOTHING && r == 0 && i < ckpt_torch_count(g, path); i++) {
        if (i == CKPT_MAX_DEPTH)
            return malformed(l, "a path in planner_data is too long");
        r = step(l, at, ckpt_torch_item(g, path, i), &at, &new);
    }
    if (r == 0 && !new)
        return malformed(l, "two leaves have the same place");
    if (r == 0)
        l->branches.all[at].value = leaf;
    return r;
}

static int load_leaves(struct loader *l, torch_value leaves)
{
    struct torch_walk w;
    torch_value name, metadata, leaf = TORCH_NOTHING;
    int r = ckpt_torch_branches_init(&l->branches) < 0 ? memory(l) : 0;
    ckpt_torch_walk_init(&w, &l->g, leaves);
    while (r == 0 && ckpt_torch_walk_next(&w, &name) && ckpt_torch_walk_next(&w, &metadata)) {
        r = load_leaf(l, name, metadata, &leaf);
        if (r == 0)
            r = add_leaf(l, name, leaf);
    }
    if (r == 0 && ckpt_buf_error(l->records))
        r = memory(l);
    if (r < 0)
        return r;
    r = ckpt_torch_branches_make(&l->branches, &l->g, &l->g.top);
    return r == -EFBIG ? ckpt_fail(l->err, EUCLEAN, ".metadata describes more than is read of one")
           : r < 0     ? memory(l)
                       : 0;
}

static int load(struct loader *l)
{
    const struct torch_graph *g = &l->g;
    torch_value state = state_of(g, g->top, TORCH_DICT);
    torch_value leaves = state == TORCH_NOTHING ? state : ckpt_torch_get(g, state, "state_dict_metadata");
    if (leaves == TORCH_NOTHING || ckpt_torch_kind(g, leaves) != TORCH_DICT)
        return ckpt_fail(l->err, EUCLEAN, ".metadata is not that of a distributed checkpoint");
    int r = load_paths(l, ckpt_torch_get(g, state, "planner_data"));
    if (r == 0)
        r = load_places(l, ckpt_torch_get(g, state, "storage_data"));
    return r < 0 ? r : load_leaves(l, leaves);
}

int ckpt_torch_metadata_load(uint8_t *pickle, size_t len, struct ckpt_tree *tree, struct ckpt_buf *records,
                             struct torch_graph *ret, struct ckpt_err *err)
{
    struct loader l = {.tree = tree, .records = records, .err = err};
    int r = ckpt_torch_pickle_load(pickle, len, TORCH_META, records, 0, &l.g, err);
    if (r < 0)
        return r;
    l.boxes_left = l.g.values + MAX_BOXES;
    r = load(&l);
    table_clear(&l.paths);
    table_clear(&l.places);
    ckpt_torch_branches_clear(&l.branches);
    if (r < 0)
        ckpt_torch_graph_clear(&l.g);
    else
        *ret = l.g;
    return r;
}
