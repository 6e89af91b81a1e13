/* SPDX-License-Identifier: Apache-2.0 */
#include "core/format/zarr_layouts.h"

#include "core/base/util.h"

#include <xxhash.h>

#define BUCKETS 1024

struct layout {
    struct layout *next;
    struct ckpt_array *array;
    size_t len;
    char text[];
};

struct ckpt_zarr_layouts {
    pthread_mutex_t lock;
    struct layout *buckets[BUCKETS];
};

struct ckpt_zarr_layouts *ckpt_zarr_layouts_new(void)
{
    struct ckpt_zarr_layouts *l = calloc(1, sizeof *l);
    if (l)
        pthread_mutex_init(&l->lock, NULL);
    return l;
}

void ckpt_zarr_layouts_free(struct ckpt_zarr_layouts *l)
{
    if (!l)
        return;
    for (unsigned i = 0; i < BUCKETS; i++)
        for (struct layout *e = l->buckets[i], *next; e; e = next) {
            next = e->next;
            ckpt_array_unref(e->array);
            free(e);
        }
    pthread_mutex_destroy(&l->lock);
    free(l);
}

static struct ckpt_array *find(const struct layout *bucket, const void *text, size_t len)
{
    for (const struct layout *e = bucket; e; e = e->next)
        if (e->len == len && !memcmp(e->text, text, len))
            return ckpt_array_ref(e->array);
    return NULL;
}

int ckpt_zarr_layouts_get(struct ckpt_zarr_layouts *l, const void *text, size_t len, int version,
                          struct ckpt_array **ret, struct ckpt_err *err)
{
    struct layout **bucket = &l->buckets[XXH3_64bits_withSeed(text, len, (uint64_t)version) % BUCKETS];
    {
        CKPT_GUARD(&l->lock);
        *ret = find(*bucket, text, len);
        if (*ret)
            return 0;
    }
    int r = ckpt_zarr_parse(text, len, version, ret, err);
    struct layout *e = r == 0 ? malloc(sizeof *e + len) : NULL;
    if (!e) /* it is made again the next time */
        return r;
    *e = (struct layout){.len = len, .array = ckpt_array_ref(*ret)};
    memcpy(e->text, text, len);
    CKPT_GUARD(&l->lock);
    e->next = *bucket;
    *bucket = e;
    return 0;
}
