/* SPDX-License-Identifier: Apache-2.0 */
#include "core/format/pytorch/machine.h"

#include "core/base/util.h"

#define MAX_STACK (1u << 21)
#define MAX_MARKS (1u << 20)
#define MAX_LOOKS (1u << 28)

int ckpt_machine_malformed(struct torch_machine *m, const char *what)
{
    return ckpt_fail(m->err, EUCLEAN, "the pickle is malformed: %s", what);
}

int ckpt_machine_made(struct torch_machine *m, int r)
{
    if (r == -EFBIG)
        return ckpt_fail(m->err, EUCLEAN, "the pickle describes more than is read of one");
    return r < 0 ? ckpt_no_memory(m->err) : 0;
}

int ckpt_machine_push_from(struct torch_machine *m, torch_value value, uint32_t start)
{
    if (m->depth == m->stack_cap) {
        uint32_t cap = m->stack_cap ? m->stack_cap * 2 : 256;
        struct torch_entry *p = cap > MAX_STACK ? NULL : realloc(m->stack, cap * sizeof *p);
        if (!p)
            return ckpt_machine_made(m, cap > MAX_STACK ? -EFBIG : -ENOMEM);
        m->stack = p;
        m->stack_cap = cap;
    }
    m->stack[m->depth++] = (struct torch_entry){value, start};
    m->g.values++;
    return 0;
}

int ckpt_machine_push(struct torch_machine *m, torch_value value)
{
    return ckpt_machine_push_from(m, value, m->g.count);
}

uint32_t ckpt_machine_bottom(const struct torch_machine *m)
{
    return m->mark_count ? m->marks[m->mark_count - 1] : 0;
}

int ckpt_machine_need(struct torch_machine *m, uint32_t count)
{
    return m->depth - ckpt_machine_bottom(m) < count
               ? ckpt_machine_malformed(m, "something is taken from an empty stack")
               : 0;
}

int ckpt_machine_mark(struct torch_machine *m)
{
    if (m->mark_count == m->mark_cap) {
        uint32_t cap = m->mark_cap ? m->mark_cap * 2 : 64;
        uint32_t *p = cap > MAX_MARKS ? NULL : realloc(m->marks, cap * sizeof *p);
        if (!p)
            return ckpt_machine_made(m, cap > MAX_MARKS ? -EFBIG : -ENOMEM);
        m->marks = p;
        m->mark_cap = cap;
    }
    m->marks[m->mark_count++] = m->depth;
    return 0;
}

int ckpt_machine_unmark(struct torch_machine *m, uint32_t *ret)
{
    if (!m->mark_count)
        return ckpt_machine_malformed(m, "no mark where one should be");
    *ret = m->marks[--m->mark_count];
    return 0;
}

void ckpt_machine_give_back(struct torch_machine *m, uint32_t start)
{
    if (m->floor <= start)
        m->g.count = start;
}

bool ckpt_machine_look(struct torch_machine *m, uint32_t items)
{
    if (items > MAX_LOOKS - m->looks)
        return false;
    m->looks += items;
    return true;
}
