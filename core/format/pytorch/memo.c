/* SPDX-License-Identifier: Apache-2.0 */
#include "core/format/pytorch/memo.h"

#include "core/base/util.h"

#define MAX_EXPECTED (1u << 21)

static uint32_t slot_of(const struct torch_memo *m, uint32_t key)
{
    uint32_t at = (key * 2654435761u) >> 8 & (m->size - 1);
    while (m->used[at] && m->keys[at] != key)
        at = (at + 1) & (m->size - 1);
    return at;
}

void ckpt_torch_memo_clear(struct torch_memo *m)
{
    free(m->keys);
    free(m->values);
    free(m->used);
    *m = (struct torch_memo){0};
}

static int grow(struct torch_memo *m)
{
    struct torch_memo new = {.size = m->size ? m->size * 2 : 256, .count = m->count};
    new.keys = malloc(new.size * sizeof *new.keys);
    new.values = malloc(new.size * sizeof *new.values);
    new.used = calloc(new.size, 1);
    if (!new.keys || !new.values || !new.used) {
        ckpt_torch_memo_clear(&new);
        return -ENOMEM;
    }
    for (uint32_t i = 0; i < m->size; i++)
        if (m->used[i]) {
            uint32_t at = slot_of(&new, m->keys[i]);
            new.used[at] = 1;
            new.keys[at] = m->keys[i];
            new.values[at] = m->values[i];
        }
    ckpt_torch_memo_clear(m);
    *m = new;
    return 0;
}

int ckpt_torch_memo_expect(struct torch_memo *m, uint32_t key)
{
    if (m->count >= m->size / 2 && grow(m) < 0)
        return -ENOMEM;
    uint32_t at = slot_of(m, key);
    if (m->used[at])
        return 0;
    if (m->count == MAX_EXPECTED)
        return -EFBIG;
    m->used[at] = 1;
    m->keys[at] = key;
    m->values[at] = TORCH_NOTHING;
    m->count++;
    return 0;
}

bool ckpt_torch_memo_put(struct torch_memo *m, uint32_t key, torch_value value)
{
    if (!m->count)
        return false;
    uint32_t at = slot_of(m, key);
    if (!m->used[at])
        return false;
    m->values[at] = value;
    return true;
}

torch_value ckpt_torch_memo_get(const struct torch_memo *m, uint32_t key)
{
    return m->values[slot_of(m, key)];
}
