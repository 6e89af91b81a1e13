/* SPDX-License-Identifier: Apache-2.0 */
#include "core/base/util.h"
#include "core/format/pytorch/machine.h"

#define MAX_KEY_DEPTH 8 /* of tuples in a key */

int ckpt_machine_new_container(struct torch_machine *m, enum torch_kind kind, bool ordered, uint32_t start)
{
    torch_value v;
    int r = ckpt_machine_made(m, ckpt_torch_new_container(&m->g, kind, ordered, &v));
    return r < 0 ? r : ckpt_machine_push_from(m, v, start);
}

/* Where the words ended before the entries from `from` on were made. */
static uint32_t start_of(const struct torch_machine *m, uint32_t from)
{
    return from < m->depth ? m->stack[from].start : m->g.count;
}

int ckpt_machine_tuple(struct torch_machine *m, uint32_t from)
{
    uint32_t count = m->depth - from, start = start_of(m, from);
    torch_value tuple;
    int r = ckpt_machine_made(m, ckpt_torch_new_tuple(&m->g, count, &tuple));
    if (r < 0)
        return r;
    for (uint32_t i = 0; i < count; i++)
        ckpt_torch_set_item(&m->g, tuple, i, m->stack[from + i].value);
    m->depth = from;
    return ckpt_machine_push_from(m, tuple, start);
}

/* What Python could hash. */
static bool is_key(struct torch_machine *m, torch_value v, unsigned depth)
{
    const struct torch_graph *g = &m->g;
    enum torch_kind kind = ckpt_torch_kind(g, v);
    if (kind == TORCH_LIST || kind == TORCH_DICT)
        return false;
    if (kind != TORCH_TUPLE)
        return true;
    if (depth == MAX_KEY_DEPTH || !ckpt_machine_look(m, ckpt_torch_count(g, v)))
        return false;
    for (uint32_t i = 0; i < ckpt_torch_count(g, v); i++)
        if (!is_key(m, ckpt_torch_item(g, v, i), depth + 1))
            return false;
    return true;
}

static int check_keys(struct torch_machine *m, uint32_t from)
{
    if ((m->depth - from) % 2)
        return ckpt_machine_malformed(m, "a key has no value");
    for (uint32_t i = from; i < m->depth; i += 2)
        if (!is_key(m, m->stack[i].value, 0))
            return ckpt_fail(m->err, EUCLEAN, "a dict has a key that cannot be one, such as a list");
    return 0;
}

static int append(struct torch_machine *m, torch_value container, uint32_t from)
{
    torch_value items[256];
    for (uint32_t at = from; at < m->depth;) {
        uint32_t n = 0;
        while (at < m->depth && n < sizeof items / sizeof *items)
            items[n++] = m->stack[at++].value;
        int r = ckpt_machine_made(m, ckpt_torch_append(&m->g, container, items, n));
        if (r < 0)
            return r;
    }
    m->depth = from;
    m->floor = m->g.count;
    return 0;
}

/* The list of a set that EMPTY_SET made. */
static torch_value list_of_set(const struct torch_graph *g, torch_value v)
{
    if (!ckpt_torch_is(g, v, TORCH_CALL, TORCH_IS_SET) || !ckpt_torch_count(g, ckpt_torch_args(g, v)))
        return TORCH_NOTHING;
    torch_value list = ckpt_torch_item(g, ckpt_torch_args(g, v), 0);
    return ckpt_torch_kind(g, list) == TORCH_LIST ? list : TORCH_NOTHING;
}

/* What an object is filled with is a part of it. */
static int part_of(struct torch_machine *m, torch_value object, enum torch_kind kind, torch_value *ret)
{
    enum torch_part part = kind == TORCH_DICT ? TORCH_ENTRIES : TORCH_ITEMS;
    *ret = ckpt_torch_part(&m->g, object, part);
    if (*ret != TORCH_NOTHING)
        return 0;
    int r = ckpt_torch_new_container(&m->g, kind == TORCH_DICT ? TORCH_DICT : TORCH_LIST, false, ret);
    if (r == 0)
        r = ckpt_torch_set_part(&m->g, object, part, *ret);
    return ckpt_machine_made(m, r);
}

static int find_container(struct torch_machine *m, enum torch_kind kind, torch_value v, torch_value *ret)
{
    enum torch_kind own = ckpt_torch_kind(&m->g, v);
    if (own == TORCH_OBJECT)
        return part_of(m, v, kind, ret);
    *ret = kind == TORCH_CALL ? list_of_set(&m->g, v) : own == kind ? v : TORCH_NOTHING;
    if (*ret != TORCH_NOTHING)
        return 0;
    return ckpt_machine_malformed(m, kind == TORCH_LIST   ? "something is appended to what is no list"
                                     : kind == TORCH_DICT ? "a key is set in what is no dict"
                                                          : "something is added to what is no set");
}

int ckpt_machine_fill(struct torch_machine *m, enum torch_kind kind, uint32_t from)
{
    torch_value container;
    if (from <= ckpt_machine_bottom(m))
        return ckpt_machine_malformed(m, "something is taken from an empty stack");
    int r = find_container(m, kind, m->stack[from - 1].value, &container);
    if (r == 0 && kind == TORCH_DICT)
        r = check_keys(m, from);
    return r < 0 ? r : append(m, container, from);
}

int ckpt_machine_list(struct torch_machine *m, uint32_t from)
{
    uint32_t start = start_of(m, from);
    torch_value list;
    int r = ckpt_machine_made(m, ckpt_torch_new_container(&m->g, TORCH_LIST, false, &list));
    if (r == 0)
        r = append(m, list, from);
    return r < 0 ? r : ckpt_machine_push_from(m, list, start);
}

int ckpt_machine_dict(struct torch_machine *m, uint32_t from)
{
    uint32_t start = start_of(m, from);
    torch_value dict;
    int r = check_keys(m, from);
    if (r == 0)
        r = ckpt_machine_made(m, ckpt_torch_new_container(&m->g, TORCH_DICT, false, &dict));
    if (r == 0)
        r = append(m, dict, from);
    return r < 0 ? r : ckpt_machine_push_from(m, dict, start);
}

/* A call of the class with a list. */
int ckpt_machine_set(struct torch_machine *m, const char *class, uint32_t from)
{
    uint32_t start = start_of(m, from);
    torch_value callee = ckpt_torch_global_value(ckpt_torch_global_find("builtins", 8, class, strlen(class)));
    torch_value args, set;
    int r = ckpt_machine_list(m, from);
    if (r == 0)
        r = ckpt_machine_tuple(m, m->depth - 1);
    if (r < 0)
        return r;
    args = m->stack[--m->depth].value;
    r = ckpt_machine_made(m, ckpt_torch_new_call(&m->g, callee, args, &set));
    return r < 0 ? r : ckpt_machine_push_from(m, set, start);
}

/* --- dicts of pairs --- */

/* The two halves of a pair. */
static bool is_pair(const struct torch_graph *g, torch_value v, torch_value ret[2])
{
    struct torch_walk w;
    enum torch_kind kind = ckpt_torch_kind(g, v);
    if ((kind != TORCH_TUPLE && kind != TORCH_LIST) || ckpt_torch_count(g, v) != 2)
        return false;
    ckpt_torch_walk_init(&w, g, v);
    return ckpt_torch_walk_next(&w, &ret[0]) && ckpt_torch_walk_next(&w, &ret[1]);
}

bool ckpt_machine_are_pairs(struct torch_machine *m, torch_value v)
{
    const struct torch_graph *g = &m->g;
    struct torch_walk w;
    torch_value pair, halves[2];
    enum torch_kind kind = ckpt_torch_kind(g, v);
    if ((kind != TORCH_TUPLE && kind != TORCH_LIST) || !ckpt_machine_look(m, ckpt_torch_count(g, v)))
        return false;
    ckpt_torch_walk_init(&w, g, v);
    while (ckpt_torch_walk_next(&w, &pair))
        if (!is_pair(g, pair, halves) || !is_key(m, halves[0], 0))
            return false;
    return true;
}

int ckpt_machine_add_pairs(struct torch_machine *m, torch_value dict, torch_value pairs)
{
    torch_value pair, halves[2];
    struct torch_walk w;
    int r = 0;
    ckpt_torch_walk_init(&w, &m->g, pairs);
    while (r == 0 && ckpt_torch_walk_next(&w, &pair) && is_pair(&m->g, pair, halves))
        r = ckpt_torch_append(&m->g, dict, halves, 2);
    m->floor = m->g.count;
    return ckpt_machine_made(m, r);
}
