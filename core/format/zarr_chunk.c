/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Where the chunks of a Zarr array lie: an object of the store, or part of one. A shard has an index of its inner
 * chunks, and shards may be in shards; indices that were read lately are kept.
 */
#include "core/format/zarr_private.h"

#include "core/array/gather.h"
#include "core/base/util.h"
#include "core/codec/crc32c.h"

#define UNWRAPPED ((size_t)64 << 10) /* bytes decoded at once of a shard that is compressed as a whole */
#define ABSENT    UINT64_MAX         /* offset and length of an inner chunk that is not stored */

/* --- shard indices --- */

#define CACHE_SLOTS 64

struct shard_index {
    uint32_t array;
    unsigned level;
    uint64_t shard; /* number of the shard's first inner chunk, in the array's whole grid */
    uint64_t count;
    uint64_t *pairs; /* offset, length */
    uint64_t used;   /* the cache's clock when it was */
};

struct ckpt_zarr_cache {
    pthread_mutex_t lock;
    uint64_t clock;
    struct shard_index slots[CACHE_SLOTS];
};

struct ckpt_zarr_cache *ckpt_zarr_cache_new(void)
{
    struct ckpt_zarr_cache *c = calloc(1, sizeof *c);
    if (c)
        pthread_mutex_init(&c->lock, NULL);
    return c;
}

void ckpt_zarr_cache_free(struct ckpt_zarr_cache *c)
{
    if (!c)
        return;
    for (unsigned i = 0; i < CACHE_SLOTS; i++)
        free(c->slots[i].pairs);
    pthread_mutex_destroy(&c->lock);
    free(c);
}

static bool index_find(struct ckpt_zarr_cache *c, uint32_t array, unsigned level, uint64_t shard, uint64_t inner,
                       uint64_t *pair)
{
    CKPT_GUARD(&c->lock);
    for (unsigned i = 0; i < CACHE_SLOTS; i++) {
        struct shard_index *s = &c->slots[i];
        if (s->pairs && s->array == array && s->level == level && s->shard == shard && inner < s->count) {
            s->used = ++c->clock;
            memcpy(pair, s->pairs + 2 * inner, 16);
            return true;
        }
    }
    return false;
}

/* Takes `pairs` over. */
static void index_add(struct ckpt_zarr_cache *c, uint32_t array, unsigned level, uint64_t shard, uint64_t count,
                      uint64_t *pairs)
{
    CKPT_GUARD(&c->lock);
    struct shard_index *oldest = &c->slots[0];
    for (unsigned i = 1; i < CACHE_SLOTS; i++)
        if (c->slots[i].used < oldest->used)
            oldest = &c->slots[i];
    free(oldest->pairs);
    *oldest = (struct shard_index){array, level, shard, count, pairs, ++c->clock};
}

static int index_read(const struct level *l, const struct ckpt_extent *shard, uint64_t **ret, struct ckpt_err *err)
{
    uint64_t size = l->count * 16 + (l->index_crc ? 4 : 0);
    if (shard->len < size)
        return ckpt_fail(err, EBADMSG, "a shard of %llu bytes is too short for its index",
                         (unsigned long long)shard->len);
    CKPT_AUTOFREE uint8_t *data = malloc(size);
    if (!data)
        return ckpt_fail(err, ENOMEM, "out of memory");
    int r = ckpt_extent_read(shard, data, size, l->index_first ? 0 : shard->len - size);
    if (r < 0)
        return ckpt_fail(err, -r, "the index of a shard: %s", strerror(-r));
    if (l->index_crc && ckpt_crc32c(0, data, l->count * 16) != ckpt_le32(data + l->count * 16))
        return ckpt_fail(err, EBADMSG, "the checksum of a shard's index is wrong");
    uint64_t *pairs = (uint64_t *)(void *)CKPT_STEAL(data);
    for (uint64_t i = 0; l->index_big && i < 2 * l->count; i++)
        pairs[i] = __builtin_bswap64(pairs[i]);
    *ret = pairs;
    return 0;
}

/* All that a stream gives. */
static int read_stream(struct ckpt_stream *s, struct ckpt_buf *ret, struct ckpt_err *err)
{
    for (;;) {
        if (ckpt_buf_reserve(ret, UNWRAPPED) < 0)
            return ckpt_fail(err, EOPNOTSUPP, "a shard that is compressed as a whole is larger than 256 MiB");
        ssize_t n = ckpt_stream_read(s, ret->data + ret->len, UNWRAPPED, err);
        if (n <= 0)
            return (int)n;
        ret->len += (size_t)n;
    }
}

/* Decode a whole shard that is compressed as one; its length is known to the data alone. */
static int unwrap_shard(const struct level *l, struct ckpt_extent *shard, struct ckpt_err *err)
{
    struct ckpt_stream *s;
    CKPT_AUTOBUF struct ckpt_buf buf = {.max = (size_t)256 << 20};
    size_t len;
    int r = ckpt_stream_open(&l->outer, shard, UINT64_MAX / 2, &s, err);
    if (r < 0)
        return r;
    r = read_stream(s, &buf, err);
    ckpt_stream_close(s);
    if (r < 0)
        return r;
    ckpt_extent_clear(shard);
    shard->bytes = ckpt_buf_steal(&buf, &len);
    shard->len = len;
    return shard->bytes ? 0 : -ENOMEM;
}

/* Narrow an extent to part of itself. */
static int narrow(struct ckpt_extent *e, uint64_t off, uint64_t len, struct ckpt_err *err)
{
    if (off > e->len || len > e->len - off)
        return ckpt_fail(err, EBADMSG, "the index of a shard points outside of it");
    if (e->file)
        e->off += off;
    else
        memmove(e->bytes, e->bytes + off, len);
    e->len = len;
    return 0;
}

/* --- chunks --- */

/* Pieces that a dimension is cut into; the last one may stick out. */
static uint64_t pieces(uint64_t size, uint64_t piece)
{
    return size / piece + (size % piece != 0);
}

/* Elements of an object, in each dimension. */
static const uint64_t *object_shape(const struct ckpt_array *a)
{
    const struct zarr *z = a->priv;
    return z->levels ? z->level[0].chunk : a->chunk;
}

static void object_key(const struct zarr *z, unsigned ndim, const uint64_t *index, struct ckpt_buf *key)
{
    if (z->c_prefix)
        ckpt_buf_addc(key, 'c');
    else if (!ndim)
        ckpt_buf_addc(key, '0');
    for (unsigned i = 0; i < ndim; i++) {
        if (i || z->c_prefix)
            ckpt_buf_addc(key, z->separator);
        ckpt_buf_addf(key, "%llu", (unsigned long long)index[i]);
    }
    ckpt_buf_addc(key, 0);
    key->len--;
}

uint64_t ckpt_zarr_objects(const struct ckpt_array *a)
{
    const uint64_t *size = object_shape(a);
    uint64_t n = 1;
    for (unsigned i = 0; i < a->ndim; i++)
        n *= pieces(a->shape[i], size[i]);
    return n;
}

void ckpt_zarr_object_key(const struct ckpt_array *a, uint64_t object, struct ckpt_buf *key)
{
    const uint64_t *size = object_shape(a);
    uint64_t index[CKPT_MAX_DIMS];
    for (unsigned d = a->ndim; d-- > 0;) {
        uint64_t n = pieces(a->shape[d], size[d]);
        index[d] = object % n;
        object /= n;
    }
    object_key(a->priv, a->ndim, index, key);
}

/* From a shard to the inner chunk that holds element `at` of the array. */
static int enter_shard(const struct ckpt_array *a, unsigned level, const uint64_t *at,
                       const struct ckpt_zarr_store *store, struct ckpt_extent *e, struct ckpt_err *err)
{
    const struct zarr *z = a->priv;
    const struct level *l = &z->level[level];
    uint64_t inner = 0, shard = 0, pair[2];
    for (unsigned i = 0; i < a->ndim; i++) {
        unsigned d = l->order[i];
        inner = inner * (l->chunk[d] / l->inner[d]) + at[d] % l->chunk[d] / l->inner[d];
        shard = shard * pieces(a->shape[d], l->chunk[d]) + at[d] / l->chunk[d];
    }
    int r = l->outer.count ? unwrap_shard(l, e, err) : 0;
    if (r < 0)
        return r;
    if (!index_find(store->cache, store->array, level, shard, inner, pair)) {
        uint64_t *pairs = NULL;
        r = index_read(l, e, &pairs, err);
        if (r < 0)
            return r;
        memcpy(pair, pairs + 2 * inner, 16);
        index_add(store->cache, store->array, level, shard, l->count, pairs);
    }
    if (pair[0] == ABSENT && pair[1] == ABSENT)
        return 1;
    return narrow(e, pair[0], pair[1], err);
}

int ckpt_zarr_chunk(const struct ckpt_array *a, uint64_t chunk, const struct ckpt_zarr_store *store,
                    struct ckpt_extent *ret, struct ckpt_err *err)
{
    const struct zarr *z = a->priv;
    uint64_t at[CKPT_MAX_DIMS], index[CKPT_MAX_DIMS];
    const uint64_t *size = object_shape(a);
    ckpt_chunk_index(a, chunk, at);
    for (unsigned d = 0; d < a->ndim; d++) {
        at[d] *= a->chunk[d];
        index[d] = at[d] / size[d];
    }
    CKPT_AUTOBUF struct ckpt_buf key = CKPT_BUF_INIT;
    object_key(z, a->ndim, index, &key);
    int r = ckpt_buf_error(&key);
    if (r == 0)
        r = store->get(store->arg, (char *)key.data, ret, err);
    if (r == -ENOENT)
        r = store->fill_missing ? 1 : ckpt_fail(err, ENODATA, "chunk %s is missing", (char *)key.data);
    for (unsigned level = 0; r == 0 && level < z->levels; level++)
        r = enter_shard(a, level, at, store, ret, err);
    if (r == 0)
        return 0;
    ckpt_extent_clear(ret);
    if (r == -ENODATA) /* its text has the key already */
        return r;
    if (r < 0)
        return ckpt_fail_in(err, -r, "chunk %s", key.data ? (char *)key.data : "");
    if (!z->fill_known)
        return ckpt_fail(err, EOPNOTSUPP,
                         "chunk %s is not stored and its fill value is not one that can be read exactly",
                         (char *)key.data);
    return 1;
}
