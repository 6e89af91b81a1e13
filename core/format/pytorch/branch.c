/* SPDX-License-Identifier: Apache-2.0 */
#include "core/format/pytorch/branch.h"

#include "core/base/util.h"

#include <xxhash.h>

#define NONE UINT32_MAX

static int new_branch(struct torch_branches *b, uint32_t parent, torch_value key, uint32_t *ret)
{
    if (b->count == b->cap) {
        uint32_t cap = b->cap ? b->cap + b->cap / 2 : 64;
        struct torch_branch *p = realloc(b->all, cap * sizeof *p);
        if (!p)
            return -ENOMEM;
        b->all = p;
        b->cap = cap;
    }
    *ret = b->count++;
    b->all[*ret] = (struct torch_branch){parent, NONE, NONE, NONE, key, TORCH_NOTHING};
    if (parent == NONE)
        return 0;
    struct torch_branch *p = &b->all[parent];
    if (p->first == NONE)
        p->first = *ret;
    else
        b->all[p->last].next = *ret;
    p->last = *ret;
    return 0;
}

int ckpt_torch_branches_init(struct torch_branches *b)
{
    uint32_t root;
    *b = (struct torch_branches){0};
    return new_branch(b, NONE, TORCH_NOTHING, &root);
}

void ckpt_torch_branches_clear(struct torch_branches *b)
{
    free(b->all);
    free(b->slots);
}

static uint64_t hash_of(const struct torch_graph *g, uint32_t parent, torch_value key)
{
    size_t len;
    int64_t n;
    const char *text = ckpt_torch_kind(g, key) == TORCH_STR ? ckpt_torch_str(g, key, &len) : NULL;
    uint64_t h = text ? XXH3_64bits(text, len) : ckpt_torch_int(g, key, &n) ? (uint64_t)n + 1 : 0;
    h = (h ^ (uint64_t)parent << 32 ^ parent) * 0x9e3779b97f4a7c15;
    return h ^ h >> 32;
}

static bool same_key(const struct torch_graph *g, torch_value a, torch_value b)
{
    int64_t n, m;
    if (ckpt_torch_kind(g, a) != ckpt_torch_kind(g, b))
        return false;
    return ckpt_torch_kind(g, a) == TORCH_STR ? ckpt_torch_same_str(g, a, b)
                                              : ckpt_torch_int(g, a, &n) && ckpt_torch_int(g, b, &m) && n == m;
}

static uint32_t *slot_of(const struct torch_branches *b, const struct torch_graph *g, uint32_t parent, torch_value key)
{
    uint32_t at = (uint32_t)hash_of(g, parent, key) & (b->size - 1);
    for (; b->slots[at]; at = (at + 1) & (b->size - 1)) {
        const struct torch_branch *there = &b->all[b->slots[at] - 1];
        if (there->parent == parent && same_key(g, there->key, key))
            break;
    }
    return &b->slots[at];
}

static int grow_slots(struct torch_branches *b, const struct torch_graph *g)
{
    if (b->count * 2ull < b->size)
        return 0;
    uint32_t size = b->size ? b->size * 2 : 256, *slots = calloc(size, sizeof *slots);
    if (!slots)
        return -ENOMEM;
    free(b->slots);
    b->slots = slots;
    b->size = size;
    for (uint32_t i = 1; i < b->count; i++)
        *slot_of(b, g, b->all[i].parent, b->all[i].key) = i + 1;
    return 0;
}

int ckpt_torch_branch_step(struct torch_branches *b, const struct torch_graph *g, uint32_t parent, torch_value key,
                           uint32_t *ret, bool *ret_new)
{
    int r = grow_slots(b, g);
    if (r < 0)
        return r;
    uint32_t *slot = slot_of(b, g, parent, key);
    *ret_new = !*slot;
    if (!*slot) {
        r = new_branch(b, parent, key, ret);
        if (r == 0)
            *slot = *ret + 1;
    } else
        *ret = *slot - 1;
    return r;
}

/* The values in order, if the keys are the integers from 0 on; 0: they are not. */
static int sequence(const struct torch_branches *b, const struct torch_graph *g, uint32_t branch, uint32_t count,
                    torch_value **ret)
{
    int64_t n;
    if (!count || ckpt_torch_kind(g, b->all[b->all[branch].first].key) != TORCH_INT)
        return 0;
    torch_value *items = malloc(count * sizeof *items);
    if (!items)
        return -ENOMEM;
    for (uint32_t at = b->all[branch].first; at != NONE; at = b->all[at].next) {
        torch_value key = b->all[at].key;
        if (ckpt_torch_kind(g, key) != TORCH_INT || !ckpt_torch_int(g, key, &n) || n < 0 || n >= count) {
            free(items);
            return 0;
        }
        items[n] = b->all[at].value; /* no two have the same key, so all are set in the end */
    }
    *ret = items;
    return 1;
}

static int make_container(struct torch_branches *b, struct torch_graph *g, uint32_t branch)
{
    CKPT_AUTOFREE torch_value *items = NULL;
    torch_value made;
    uint32_t count = 0;
    for (uint32_t at = b->all[branch].first; at != NONE; at = b->all[at].next)
        count++;
    int list = sequence(b, g, branch, count, &items);
    if (list < 0)
        return list;
    int r = ckpt_torch_new_container(g, list ? TORCH_LIST : TORCH_DICT, false, &made);
    if (r == 0 && list)
        r = ckpt_torch_append(g, made, items, count);
    for (uint32_t at = b->all[branch].first; !list && r == 0 && at != NONE; at = b->all[at].next)
        r = ckpt_torch_append(g, made, (torch_value[]){b->all[at].key, b->all[at].value}, 2);
    if (r == 0)
        b->all[branch].value = made;
    return r;
}

int ckpt_torch_branches_make(struct torch_branches *b, struct torch_graph *g, torch_value *ret)
{
    int r = 0;
    for (uint32_t i = b->count; r == 0 && i-- > 0;) /* what is in a branch has a higher number */
        if (b->all[i].value == TORCH_NOTHING)
            r = make_container(b, g, i);
    if (r == 0)
        *ret = b->all[0].value;
    return r;
}
