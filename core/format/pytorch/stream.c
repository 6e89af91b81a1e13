/* SPDX-License-Identifier: Apache-2.0 */
#include "core/format/pytorch/stream.h"

#include "core/base/util.h"
#include "core/format/pytorch/extract.h"
#include "core/format/pytorch/magic.h"
#include "core/format/pytorch/pickle.h"
#include "core/format/pytorch/rebuild.h"
#include "core/format/pytorch/storages.h"

#include <stdatomic.h>

#define VERSION     1001
#define COUNT_BYTES 8
#define READ_BYTES  ((size_t)1 << 20)

struct torch_stream {
    struct ckpt_file *file;
    uint64_t off, end; /* in the file */
    uint8_t *pickle;   /* of the objects, until they are loaded */
    size_t len;
    uint64_t data; /* where the storages begin */
    struct torch_storages storages;
    atomic_uint refs;
};

static size_t read_magic(struct ckpt_file *file, uint64_t off)
{
    uint8_t head[64];
    ssize_t n = ckpt_file_read(file, head, sizeof head, off);
    return n > 0 ? ckpt_torch_magic(head, (size_t)n) : 0;
}

bool ckpt_torch_stream_probe(struct ckpt_file *file)
{
    return read_magic(file, 0) > 0;
}

/* --- the pickles --- */

/* A pickle without storages and tensors. */
static int load_small(struct torch_stream *s, uint64_t *at, struct torch_graph *ret, struct ckpt_err *err)
{
    struct ckpt_buf records = CKPT_BUF_INIT;
    uint8_t *pickle;
    size_t len;
    int r = ckpt_torch_extract(s->file, *at, s->end, &pickle, &len, at, NULL, err);
    if (r == 0)
        r = ckpt_torch_pickle_load(pickle, len, TORCH_SAVE, &records, 0, ret, err);
    ckpt_buf_clear(&records);
    return r;
}

static int check_version(struct torch_stream *s, uint64_t *at, struct ckpt_err *err)
{
    struct torch_graph g;
    int64_t version;
    int r = load_small(s, at, &g, err);
    if (r < 0)
        return r;
    bool known = ckpt_torch_kind(&g, g.top) == TORCH_INT && ckpt_torch_int(&g, g.top, &version) && version == VERSION;
    ckpt_torch_graph_clear(&g);
    return known ? 0
                 : ckpt_fail(err, EOPNOTSUPP,
                             "of a version that is not known: only %d of the format before PyTorch 1.6 is", VERSION);
}

/* What the machine was like that wrote it. The storages are little-endian on any. */
static int skip_pickle(struct torch_stream *s, uint64_t *at, struct ckpt_err *err)
{
    uint8_t *pickle;
    size_t len;
    int r = ckpt_torch_extract(s->file, *at, s->end, &pickle, &len, at, NULL, err);
    if (r == 0)
        free(pickle);
    return r;
}

static int add_keys(struct torch_stream *s, const struct torch_graph *g, struct ckpt_err *err)
{
    struct torch_walk w;
    torch_value v;
    if (ckpt_torch_kind(g, g->top) != TORCH_LIST)
        return ckpt_fail(err, EUCLEAN, "it has no list of storages behind its objects");
    ckpt_torch_walk_init(&w, g, g->top);
    while (ckpt_torch_walk_next(&w, &v)) {
        size_t len = 0;
        uint64_t key;
        const char *text = ckpt_torch_kind(g, v) == TORCH_STR ? ckpt_torch_str(g, v, &len) : NULL;
        if (!text || !ckpt_torch_digits(text, len, &key))
            return ckpt_fail(err, EUCLEAN, "the key of a storage is no number");
        if (ckpt_torch_storages_add(&s->storages, key) < 0)
            return ckpt_no_memory(err);
    }
    return ckpt_torch_storages_sort(&s->storages) ? 0 : ckpt_fail(err, EUCLEAN, "two storages have the same key");
}

static int load_keys(struct torch_stream *s, uint64_t *at, struct ckpt_err *err)
{
    struct torch_graph g;
    int r = load_small(s, at, &g, err);
    if (r < 0)
        return r;
    r = add_keys(s, &g, err);
    ckpt_torch_graph_clear(&g);
    return r;
}

/* --- the storages --- */

static int by_order(const void *pa, const void *pb)
{
    const struct torch_stored *a = *(struct torch_stored *const *)pa, *b = *(struct torch_stored *const *)pb;
    return (a->order > b->order) - (a->order < b->order);
}

/* *at: behind it. */
static int place_storage(const struct torch_stream *s, struct torch_stored *stored, uint64_t *at, struct ckpt_err *err)
{
    unsigned long long key = (unsigned long long)stored->key;
    uint8_t count[COUNT_BYTES];
    if (!stored->itemsize || stored->odd)
        return ckpt_fail(err, EUCLEAN, "%s of storage %llu, so that it is not known where those after it are",
                         stored->odd ? "its objects disagree on the size" : "none of its objects says the size", key);
    ssize_t n = ckpt_file_read(s->file, count, sizeof count, *at);
    if (n < 0)
        return ckpt_fail(err, (int)-n, "%s", strerror((int)-n));
    if (n < COUNT_BYTES)
        return ckpt_fail(err, EBADMSG, "the file ends before storage %llu does", key);
    if (ckpt_le64(count) != stored->size / stored->itemsize)
        return ckpt_fail(err, EUCLEAN, "storage %llu has %llu elements, not %llu", key,
                         (unsigned long long)ckpt_le64(count), (unsigned long long)(stored->size / stored->itemsize));
    stored->off = *at + COUNT_BYTES;
    if (stored->off > s->end || stored->size > s->end - stored->off)
        return ckpt_fail(err, EBADMSG, "the file ends before storage %llu does", key);
    *at = stored->off + stored->size;
    return 0;
}

static int place_storages(struct torch_stream *s, struct ckpt_err *err)
{
    uint32_t count = s->storages.count;
    CKPT_AUTOFREE struct torch_stored **ordered = malloc(CKPT_MAX(count, 1u) * sizeof *ordered);
    uint64_t at = s->data;
    int r = 0;
    if (!ordered)
        return ckpt_no_memory(err);
    for (uint32_t i = 0; i < count; i++)
        ordered[i] = &s->storages.all[i];
    qsort(ordered, count, sizeof *ordered, by_order);
    for (uint32_t i = 0; i < count && r == 0; i++)
        r = place_storage(s, ordered[i], &at, err);
    return r;
}

bool ckpt_torch_stream_storage(const struct torch_stream *s, uint64_t key, struct ckpt_extent *ret)
{
    const struct torch_stored *stored = ckpt_torch_storages_find(&s->storages, key);
    if (!stored)
        return false;
    *ret = (struct ckpt_extent){.file = ckpt_file_ref(s->file), .off = stored->off, .len = stored->size};
    return true;
}

static int read_storage(struct torch_stream *s, const struct torch_stored *stored, uint8_t *buf,
                        void (*progress)(void *arg, uint64_t bytes), void *arg, struct ckpt_err *err)
{
    for (uint64_t done = 0; done < stored->size;) {
        size_t want = (size_t)CKPT_MIN(stored->size - done, (uint64_t)READ_BYTES);
        ssize_t n = ckpt_file_read(s->file, buf, want, stored->off + done);
        if (n <= 0)
            return ckpt_fail(err, n < 0 ? (int)-n : EBADMSG, "storage %llu: %s", (unsigned long long)stored->key,
                             n < 0 ? strerror((int)-n) : "the file ends within it");
        done += (uint64_t)n;
        if (progress)
            progress(arg, (uint64_t)n);
    }
    return 0;
}

int ckpt_torch_stream_verify(struct torch_stream *s, void (*progress)(void *arg, uint64_t bytes), void *arg,
                             struct ckpt_err *err)
{
    CKPT_AUTOFREE uint8_t *buf = malloc(READ_BYTES);
    int r = 0;
    if (!buf)
        return ckpt_no_memory(err);
    for (uint32_t i = 0; i < s->storages.count && r == 0; i++)
        r = read_storage(s, &s->storages.all[i], buf, progress, arg, err);
    return r;
}

/* --- all of it --- */

static int read_head(struct torch_stream *s, struct ckpt_err *err)
{
    size_t magic = read_magic(s->file, s->off);
    uint64_t at = s->off + magic;
    if (!magic)
        return ckpt_fail(err, EUCLEAN, "it does not begin with PyTorch's magic number");
    int r = check_version(s, &at, err);
    if (r == 0)
        r = skip_pickle(s, &at, err);
    if (r == 0)
        r = ckpt_torch_extract(s->file, at, s->end, &s->pickle, &s->len, &at, NULL, err);
    if (r == 0)
        r = load_keys(s, &at, err);
    s->data = at;
    return r;
}

int ckpt_torch_stream_open(struct ckpt_file *file, uint64_t off, uint64_t end, struct torch_stream **ret,
                           struct ckpt_err *err)
{
    struct torch_stream *s = calloc(1, sizeof *s);
    if (!s)
        return ckpt_no_memory(err);
    atomic_init(&s->refs, 1);
    s->file = ckpt_file_ref(file);
    s->off = off;
    s->end = end;
    int r = read_head(s, err);
    if (r < 0)
        ckpt_torch_stream_unref(s);
    else
        *ret = s;
    return r;
}

struct torch_stream *ckpt_torch_stream_ref(struct torch_stream *s)
{
    atomic_fetch_add(&s->refs, 1);
    return s;
}

void ckpt_torch_stream_unref(struct torch_stream *s)
{
    if (!s || atomic_fetch_sub(&s->refs, 1) != 1)
        return;
    ckpt_file_unref(s->file);
    ckpt_torch_storages_clear(&s->storages);
    free(s->pickle);
    free(s);
}

int ckpt_torch_stream_load(struct torch_stream *s, struct ckpt_buf *records, uint64_t number, struct torch_graph *ret,
                           struct ckpt_err *err)
{
    int r = ckpt_torch_pickle_load_noting(CKPT_STEAL(s->pickle), s->len, TORCH_SAVE, records, number, &s->storages, ret,
                                          err);
    if (r < 0)
        return r;
    r = place_storages(s, err);
    if (r < 0)
        ckpt_torch_graph_clear(ret);
    return r;
}

size_t ckpt_torch_stream_memory(const struct torch_stream *s)
{
    return sizeof *s + s->storages.cap * sizeof *s->storages.all;
}
