/* SPDX-License-Identifier: Apache-2.0 */
#include "core/format/named.h"

#include "core/base/grow.h"
#include "core/base/util.h"

#include <xxhash.h>

uint64_t ckpt_name_hash(const char *name, size_t len)
{
    return XXH3_64bits(name, len);
}

int ckpt_name_set_add(struct ckpt_name_set *s, uint64_t hash)
{
    if (!CKPT_ROOM_FOR_ONE(s->hashes, s->count, s->cap))
        return -ENOMEM;
    s->hashes[s->count++] = hash;
    return 0;
}

static int by_value(const void *pa, const void *pb)
{
    uint64_t a = *(const uint64_t *)pa, b = *(const uint64_t *)pb;
    return a < b ? -1 : a > b;
}

void ckpt_name_set_sort(struct ckpt_name_set *s)
{
    if (s->count)
        qsort(s->hashes, s->count, sizeof *s->hashes, by_value);
}

bool ckpt_name_set_has(const struct ckpt_name_set *s, uint64_t hash)
{
    return s->count && bsearch(&hash, s->hashes, s->count, sizeof *s->hashes, by_value);
}

bool ckpt_name_set_has_twice(struct ckpt_name_set *s)
{
    bool twice = false;
    ckpt_name_set_sort(s);
    for (size_t i = 1; i < s->count; i++)
        twice |= s->hashes[i] == s->hashes[i - 1];
    return twice;
}

void ckpt_name_set_clear(struct ckpt_name_set *s)
{
    free(s->hashes);
    *s = (struct ckpt_name_set){0};
}

/* --- nodes --- */

int ckpt_tree_add_named(struct ckpt_tree *t, const char *name, size_t len, bool flat, enum ckpt_name_round round,
                        enum ckpt_node_kind kind, uint32_t *ret, struct ckpt_err *err)
{
    bool dotted = !flat && memchr(name, '.', len);
    if (dotted != (round == CKPT_NAMES_DOTTED))
        return 0;
    int r = dotted ? ckpt_tree_add_dotted(t, 0, name, len, kind, ret, err)
                   : ckpt_tree_add(t, 0, name, len, false, kind, ret, err);
    return r < 0 ? r : 1;
}

bool ckpt_tree_is_named(const struct ckpt_tree *t, uint32_t node, const char *name, size_t len)
{
    for (bool last = true;; last = false) { /* from the end to the front */
        size_t n;
        const char *key = ckpt_tree_text(t, t->nodes[node].key, &n);
        if (!last && (!len || name[--len] != '.'))
            return false;
        if (n > len || memcmp(name + len - n, key, n))
            return false;
        len -= n;
        node = t->nodes[node].parent;
        if (!node)
            return !len;
    }
}

/* --- layouts --- */

void ckpt_recent_layouts_init(struct ckpt_recent_layouts *l)
{
    *l = (struct ckpt_recent_layouts){0};
    pthread_mutex_init(&l->lock, NULL);
}

void ckpt_recent_layouts_clear(struct ckpt_recent_layouts *l)
{
    for (size_t i = 0; i < sizeof l->slots / sizeof *l->slots; i++)
        ckpt_array_unref(l->slots[i]);
    pthread_mutex_destroy(&l->lock);
}

static bool is_like(const struct ckpt_array *a, enum ckpt_dtype dtype, unsigned ndim, const uint64_t *shape)
{
    return a && a->dtype == dtype && a->ndim == ndim && (!ndim || !memcmp(a->shape, shape, ndim * sizeof *shape));
}

int ckpt_recent_layouts_get(struct ckpt_recent_layouts *l, enum ckpt_dtype dtype, bool big_endian, unsigned ndim,
                            const uint64_t *shape, struct ckpt_array **ret, struct ckpt_err *err)
{
    uint64_t hash = XXH3_64bits_withSeed(shape, ndim * sizeof *shape, (uint64_t)dtype << 8 | ndim);
    struct ckpt_array **slot = &l->slots[hash % (sizeof l->slots / sizeof *l->slots)];
    CKPT_GUARD(&l->lock);
    if (is_like(*slot, dtype, ndim, shape) && (*slot)->big_endian == big_endian) {
        *ret = ckpt_array_ref(*slot);
        return 0;
    }
    struct ckpt_array *a = ckpt_array_new(dtype, ndim, shape);
    if (!a)
        return ckpt_no_memory(err);
    a->big_endian = big_endian;
    if (ckpt_array_settle(a, NULL) < 0) {
        ckpt_array_unref(a);
        return ckpt_fail(err, EUCLEAN, "a tensor has an impossible shape");
    }
    ckpt_array_unref(*slot);
    *slot = ckpt_array_ref(a);
    *ret = a;
    return 0;
}

int ckpt_layout_unsupported(const char *type, unsigned ndim, const uint64_t *shape, const char *why,
                            struct ckpt_array **ret, struct ckpt_err *err)
{
    struct ckpt_array *a = ckpt_array_new(CKPT_DT_OTHER, ndim, shape);
    if (!a || !(a->descr = strdup(type))) {
        ckpt_array_unref(a);
        return ckpt_no_memory(err);
    }
    ckpt_array_refuse(a, "%s", why);
    if (ckpt_array_settle(a, NULL) < 0) {
        ckpt_array_unref(a);
        return ckpt_fail(err, EUCLEAN, "a tensor has an impossible shape");
    }
    *ret = a;
    return 0;
}
