/* SPDX-License-Identifier: Apache-2.0 */
#include "core/array/share.h"

#include "core/base/util.h"

#include <xxhash.h>

struct ckpt_layouts {
    pthread_mutex_t lock;
    struct ckpt_array **slots;
    uint32_t size, count; /* size: a power of two */
    size_t bytes;
};

/* What follows the struct: shape, chunk, grid, stride. */
static size_t dims_bytes(const struct ckpt_array *a)
{
    return a->ndim * 4 * sizeof *a->shape;
}

static uint64_t hash_of(const struct ckpt_array *a)
{
    return XXH3_64bits_withSeed(a->shape, dims_bytes(a),
                                a->start ^ a->chunk_bytes << 8 ^ (uint64_t)a->dtype ^ a->codecs.crc32);
}

static bool has_same_elements(const struct ckpt_array *a, const struct ckpt_array *b)
{
    return a->dtype == b->dtype && a->word == b->word && a->itemsize == b->itemsize && a->big_endian == b->big_endian &&
           a->as_shown == b->as_shown && a->flip == b->flip && !memcmp(a->fill, b->fill, sizeof a->fill);
}

static bool has_same_dims(const struct ckpt_array *a, const struct ckpt_array *b)
{
    return a->ndim == b->ndim && !memcmp(a->shape, b->shape, dims_bytes(a)) && a->origin == b->origin &&
           a->start == b->start && a->chunk_bytes == b->chunk_bytes;
}

static bool has_same_codecs(const struct ckpt_array *a, const struct ckpt_array *b)
{
    return a->codecs.count == b->codecs.count && a->codecs.crc32 == b->codecs.crc32 &&
           !memcmp(a->codecs.id, b->codecs.id, a->codecs.count * sizeof *a->codecs.id) &&
           !strcmp(a->codec_text, b->codec_text);
}

static bool is_same_layout(const struct ckpt_array *a, const struct ckpt_array *b)
{
    bool is_shown_alike = a->unsupported == b->unsupported && !strcmp(a->why, b->why);
    return is_shown_alike && has_same_elements(a, b) && has_same_dims(a, b) && has_same_codecs(a, b);
}

struct ckpt_layouts *ckpt_layouts_new(void)
{
    struct ckpt_layouts *l = calloc(1, sizeof *l);
    if (l)
        pthread_mutex_init(&l->lock, NULL);
    return l;
}

void ckpt_layouts_free(struct ckpt_layouts *l)
{
    if (!l)
        return;
    for (uint32_t i = 0; i < l->size; i++)
        ckpt_array_unref(l->slots[i]);
    pthread_mutex_destroy(&l->lock);
    free(l->slots);
    free(l);
}

static uint32_t slot_of(const struct ckpt_layouts *l, const struct ckpt_array *a)
{
    uint32_t at = (uint32_t)hash_of(a) & (l->size - 1);
    while (l->slots[at] && !is_same_layout(l->slots[at], a))
        at = (at + 1) & (l->size - 1);
    return at;
}

static int grow_slots(struct ckpt_layouts *l)
{
    struct ckpt_layouts new = {.size = l->size ? l->size * 2 : 64};
    new.slots = calloc(new.size, sizeof(struct ckpt_array *));
    if (!new.slots)
        return -ENOMEM;
    for (uint32_t i = 0; i < l->size; i++)
        if (l->slots[i])
            new.slots[slot_of(&new, l->slots[i])] = l->slots[i];
    free(l->slots);
    l->slots = new.slots;
    l->size = new.size;
    return 0;
}

struct ckpt_array *ckpt_layouts_share(struct ckpt_layouts *l, struct ckpt_array *a)
{
    if (a->descr || a->priv) /* these are of one array */
        return a;
    CKPT_GUARD(&l->lock);
    bool is_full = l->count >= l->size / 2;
    if (is_full && grow_slots(l) < 0) /* it is not shared, which only costs memory */
        return a;
    struct ckpt_array **slot = &l->slots[slot_of(l, a)];
    if (*slot)
        ckpt_array_unref(a);
    else {
        *slot = a;
        l->count++;
        l->bytes += sizeof *a + dims_bytes(a);
    }
    return ckpt_array_ref(*slot);
}

size_t ckpt_layouts_memory(struct ckpt_layouts *l)
{
    CKPT_GUARD(&l->lock);
    return sizeof *l + l->size * sizeof(struct ckpt_array *) + l->bytes;
}
