/* SPDX-License-Identifier: Apache-2.0 */
#include "core/format/pytorch/storages.h"

#include "core/base/util.h"
#include "core/format/pytorch/graph.h"

int ckpt_torch_storages_add(struct torch_storages *s, uint64_t key)
{
    if (s->count == s->cap) {
        uint32_t cap = s->cap ? s->cap + s->cap / 2 : 64;
        struct torch_stored *p = realloc(s->all, cap * sizeof *p);
        if (!p)
            return -ENOMEM;
        s->all = p;
        s->cap = cap;
    }
    s->all[s->count] = (struct torch_stored){.key = key, .order = s->count};
    s->count++;
    return 0;
}

static int by_key(const void *pa, const void *pb)
{
    const struct torch_stored *a = pa, *b = pb;
    return (a->key > b->key) - (a->key < b->key);
}

bool ckpt_torch_storages_sort(struct torch_storages *s)
{
    if (s->count)
        qsort(s->all, s->count, sizeof *s->all, by_key);
    for (uint32_t i = 1; i < s->count; i++)
        if (s->all[i].key == s->all[i - 1].key)
            return false;
    return true;
}

static struct torch_stored *find(const struct torch_storages *s, uint64_t key)
{
    struct torch_stored wanted = {.key = key};
    return s->count ? bsearch(&wanted, s->all, s->count, sizeof wanted, by_key) : NULL;
}

const struct torch_stored *ckpt_torch_storages_find(const struct torch_storages *s, uint64_t key)
{
    return find(s, key);
}

void ckpt_torch_storages_note(struct torch_storages *s, const struct torch_storage *id)
{
    struct torch_stored *stored = id->fault ? NULL : find(s, id->key);
    if (!stored)
        return;
    /* Of packed types, whose size is not in the table, a storage counts bytes. */
    uint8_t itemsize = CKPT_MAX(ckpt_torch_global(id->global)->itemsize, (uint8_t)1);
    stored->odd |= stored->itemsize && (stored->itemsize != itemsize || stored->size != id->size);
    stored->itemsize = itemsize;
    stored->size = id->size;
}

void ckpt_torch_storages_clear(struct torch_storages *s)
{
    free(s->all);
    *s = (struct torch_storages){0};
}
