/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Input: a byte of flags (bit 0: version 3; bit 1: stored objects come as files, not as bytes; bit 2: every second one
 * is missing), a u16le length, so many bytes of metadata, and the rest: what is stored under every key.
 */
#include "core/array/gather.h"
#include "core/base/util.h"
#include "core/format/zarr.h"

#define SMALL ((uint64_t)1 << 20)

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

struct stored {
    const uint8_t *data;
    size_t len;
    struct ckpt_backend *backend; /* NULL: bytes */
    bool gaps;
};

static int get(void *arg, const char *key, struct ckpt_extent *ret, struct ckpt_err *err)
{
    struct stored *s = arg;
    if (s->gaps && strlen(key) && key[strlen(key) - 1] % 2)
        return -ENOENT;
    if (s->backend) {
        if (ckpt_backend_open(s->backend, "f", &ret->file) < 0)
            abort();
        ret->len = s->len;
        return 0;
    }
    *ret = (struct ckpt_extent){.len = s->len, .bytes = malloc(s->len + 1)};
    if (s->len)
        memcpy(ret->bytes, s->data, s->len);
    return 0;
}

static void decode(const struct ckpt_array *a, const struct ckpt_extent *e)
{
    uint64_t len = CKPT_MIN(a->chunk_bytes, SMALL);
    CKPT_AUTOFREE uint8_t *buf = malloc(len + 1);
    struct ckpt_stream *s;
    if (a->chunk_bytes == len && ckpt_decode(&a->codecs, e, buf, len, NULL) == 0) {
        ckpt_dtype_swap(a->dtype, buf, len / a->itemsize);
        ckpt_dtype_extend(a->dtype, buf, len / a->itemsize);
    }
    if (ckpt_stream_open(&a->codecs, e, a->chunk_bytes, &s, NULL) == 0) {
        if (ckpt_stream_read(s, buf, len, NULL) > (ssize_t)len)
            abort();
        ckpt_stream_close(s);
    }
}

static int check_piece(void *arg, const struct ckpt_piece *p)
{
    const struct ckpt_array *a = arg;
    if (p->chunk >= a->nchunks || p->lowest >= p->highest || p->highest > a->chunk_bytes)
        abort();
    return 0;
}

static void use(const struct ckpt_array *a, struct stored *stored)
{
    struct ckpt_zarr_cache *cache = ckpt_zarr_cache_new();
    struct ckpt_zarr_store store = {get, stored, false, cache, 1};
    struct ckpt_selection all;
    uint64_t objects = ckpt_zarr_objects(a), elements = a->nbytes / a->itemsize;
    struct ckpt_buf key = CKPT_BUF_INIT;
    if (!cache || (objects == 0) != (a->nchunks == 0) || objects > a->nchunks)
        abort();
    uint64_t look[] = {0, 1, a->nchunks / 2, a->nchunks - 1};
    for (unsigned i = 0; i < 8; i++) {
        uint64_t index = look[i % 4];
        struct ckpt_extent e = {0};
        struct ckpt_err err = {0};
        if (index >= a->nchunks)
            continue;
        store.fill_missing = i / 4;
        int r = ckpt_zarr_chunk(a, index, &store, &e, &err);
        if (r == 0)
            decode(a, &e);
        if (r < 0 ? err.code != -r || !*err.text : r > 1)
            abort();
        ckpt_extent_clear(&e);
        ckpt_zarr_object_key(a, index % objects, &key);
    }
    ckpt_selection_all(&all, a->ndim, a->shape);
    if (elements && ckpt_gather(a, &all, elements / 2, CKPT_MIN(elements - elements / 2, (uint64_t)1000), check_piece,
                                (void *)a) < 0)
        abort();
    ckpt_buf_clear(&key);
    ckpt_zarr_cache_free(cache);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size < 3)
        return 0;
    size_t text = CKPT_MIN((size_t)ckpt_le16(data + 1), size - 3);
    struct stored stored = {.data = data + 3 + text, .len = size - 3 - text, .gaps = data[0] & 4};
    struct ckpt_array *a;
    struct ckpt_err err = {0};
    if (data[0] & 2) {
        stored.backend = ckpt_backend_new_memory();
        if (!stored.backend || ckpt_backend_memory_add(stored.backend, "f", stored.data, stored.len) < 0)
            abort();
    }
    int r = ckpt_zarr_parse((const char *)data + 3, text, data[0] & 1 ? 3 : 2, &a, &err);
    if (r < 0 && (r != -EUCLEAN || err.code != EUCLEAN || !*err.text))
        abort();
    if (r == 0) {
        if (!a->unsupported)
            use(a, &stored);
        ckpt_array_unref(a);
    }
    ckpt_backend_unref(stored.backend);
    return 0;
}
