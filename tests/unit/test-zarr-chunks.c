/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Zarr chunks: arrays that are encoded here, by the letter of the specification, with random chains of transposes,
 * shards (nested, index at either end, compressed as a whole) and codecs, must come back element by element. And shards
 * that are damaged.
 */
#include "core/format/zarr.h"

#include "core/array/gather.h"
#include "core/base/util.h"
#include "core/codec/crc32c.h"
#include "core/tree/array_reader.h"
#include "tests/unit/check.h"
#include "tests/unit/random.h"

#include <zlib.h>
#include <zstd.h>

#define DIMS 3
#define FILL 7

static uint64_t seed = 42;

/* One level of codecs. */
struct chain {
    bool transpose;
    unsigned order[DIMS];
    uint64_t inner[DIMS]; /* of a shard, in the order behind the transpose; used when `deeper` */
    struct chain *deeper;
    bool index_first, index_crc;
    bool big;
    bool zstd, gzip, crc; /* in this order */
};

struct block {
    uint64_t shape[DIMS];
    uint16_t *data;
};

static uint64_t volume(unsigned n, const uint64_t *shape)
{
    uint64_t v = 1;
    for (unsigned i = 0; i < n; i++)
        v *= shape[i];
    return v;
}

/* Part of a block: out[i] = in[begin + i], as far as there is one; the rest is fill. order: out's dimension d is in's
 * order[d]. */
static struct block cut(unsigned n, const struct block *in, const uint64_t *begin, const uint64_t *shape,
                        const unsigned *order)
{
    struct block out;
    memcpy(out.shape, shape, sizeof out.shape);
    uint64_t count = volume(n, shape);
    out.data = malloc(count * 2 + 1);
    for (uint64_t i = 0; i < count; i++) {
        uint64_t rest = i, at[DIMS], index = 0;
        bool inside = true;
        for (unsigned d = n; d-- > 0; rest /= shape[d]) {
            unsigned from = order ? order[d] : d;
            at[from] = begin[from] + rest % shape[d];
            inside &= at[from] < in->shape[from];
        }
        for (unsigned d = 0; d < n; d++)
            index = index * in->shape[d] + at[d];
        out.data[i] = inside ? in->data[index] : FILL;
    }
    return out;
}

static bool all_fill(unsigned n, const struct block *b)
{
    for (uint64_t i = 0; i < volume(n, b->shape); i++)
        if (b->data[i] != FILL)
            return false;
    return true;
}

static void add_u64(struct ckpt_buf *b, uint64_t v)
{
    ckpt_buf_add(b, &v, 8);
}

static void add_crc(struct ckpt_buf *b, size_t from)
{
    uint32_t crc = ckpt_crc32c(0, b->data + from, b->len - from);
    ckpt_buf_add(b, &crc, 4);
}

static void compress_zstd(struct ckpt_buf *b)
{
    size_t cap = ZSTD_compressBound(b->len);
    uint8_t *z = malloc(cap);
    size_t n = ZSTD_compress(z, cap, b->data, b->len, 1);
    b->len = 0;
    ckpt_buf_add(b, z, n);
    free(z);
}

static void compress_gzip(struct ckpt_buf *b)
{
    uint8_t out[1 << 16];
    z_stream z = {.next_in = b->data, .avail_in = (uInt)b->len, .next_out = out, .avail_out = sizeof out};
    CHECK(deflateInit2(&z, 1, Z_DEFLATED, 15 + 16, 8, Z_DEFAULT_STRATEGY) == Z_OK &&
          deflate(&z, Z_FINISH) == Z_STREAM_END);
    b->len = 0;
    ckpt_buf_add(b, out, z.total_out);
    deflateEnd(&z);
}

static void encode(unsigned n, const struct chain *c, const struct block *block, struct ckpt_buf *out);

static void encode_shard(unsigned n, const struct chain *c, const struct block *b, struct ckpt_buf *out)
{
    struct ckpt_buf index = CKPT_BUF_INIT, data = CKPT_BUF_INIT;
    uint64_t grid[DIMS], count = 1, none[1] = {0};
    for (unsigned d = 0; d < n; d++)
        count *= grid[d] = b->shape[d] / c->inner[d];
    size_t index_len = count * 16 + (c->index_crc ? 4 : 0);
    for (uint64_t i = 0; i < count; i++) {
        uint64_t rest = i, begin[DIMS];
        for (unsigned d = n; d-- > 0; rest /= grid[d])
            begin[d] = rest % grid[d] * c->inner[d];
        struct block part = cut(n, b, n ? begin : none, c->inner, NULL);
        size_t before = data.len;
        if (all_fill(n, &part)) {
            add_u64(&index, UINT64_MAX);
            add_u64(&index, UINT64_MAX);
        } else {
            encode(n, c->deeper, &part, &data);
            add_u64(&index, before + (c->index_first ? index_len : 0));
            add_u64(&index, data.len - before);
        }
        free(part.data);
    }
    if (c->index_crc)
        add_crc(&index, 0);
    ckpt_buf_add(out, c->index_first ? index.data : data.data, c->index_first ? index.len : data.len);
    ckpt_buf_add(out, c->index_first ? data.data : index.data, c->index_first ? data.len : index.len);
    ckpt_buf_clear(&index);
    ckpt_buf_clear(&data);
}

static void encode(unsigned n, const struct chain *c, const struct block *block, struct ckpt_buf *out)
{
    struct ckpt_buf own = CKPT_BUF_INIT;
    uint64_t shape[DIMS] = {0}, zero[DIMS] = {0};
    for (unsigned d = 0; d < n; d++)
        shape[d] = block->shape[c->transpose ? c->order[d] : d];
    struct block b = cut(n, block, zero, shape, c->transpose ? c->order : NULL);
    if (c->deeper)
        encode_shard(n, c, &b, &own);
    else
        for (uint64_t i = 0; i < volume(n, b.shape); i++) {
            uint16_t v = c->big ? __builtin_bswap16(b.data[i]) : b.data[i];
            ckpt_buf_add(&own, &v, 2);
        }
    if (c->zstd)
        compress_zstd(&own);
    if (c->gzip)
        compress_gzip(&own);
    if (c->crc)
        add_crc(&own, 0);
    ckpt_buf_add(out, own.data, own.len);
    ckpt_buf_clear(&own);
    free(b.data);
}

static void add_numbers(struct ckpt_buf *json, unsigned n, const uint64_t *v)
{
    ckpt_buf_addc(json, '[');
    for (unsigned i = 0; i < n; i++)
        ckpt_buf_addf(json, "%s%llu", i ? "," : "", (unsigned long long)v[i]);
    ckpt_buf_addc(json, ']');
}

static void describe(unsigned n, const struct chain *c, struct ckpt_buf *json)
{
    ckpt_buf_addc(json, '[');
    if (c->transpose) {
        uint64_t order[DIMS];
        for (unsigned d = 0; d < n; d++)
            order[d] = c->order[d];
        ckpt_buf_adds(json, "{\"name\":\"transpose\",\"configuration\":{\"order\":");
        add_numbers(json, n, order);
        ckpt_buf_adds(json, "}},");
    }
    if (c->deeper) {
        ckpt_buf_adds(json, "{\"name\":\"sharding_indexed\",\"configuration\":{\"chunk_shape\":");
        add_numbers(json, n, c->inner);
        ckpt_buf_adds(json, ",\"codecs\":");
        describe(n, c->deeper, json);
        ckpt_buf_addf(json,
                      ",\"index_codecs\":[{\"name\":\"bytes\",\"configuration\":{\"endian\":\"little\"}}%s],\"index_"
                      "location\":\"%s\"}}",
                      c->index_crc ? ",{\"name\":\"crc32c\"}" : "", c->index_first ? "start" : "end");
    } else
        ckpt_buf_addf(json, "{\"name\":\"bytes\",\"configuration\":{\"endian\":\"%s\"}}", c->big ? "big" : "little");
    ckpt_buf_addf(json, "%s%s%s]", c->zstd ? ",{\"name\":\"zstd\",\"configuration\":{\"level\":1}}" : "",
                  c->gzip ? ",{\"name\":\"gzip\",\"configuration\":{\"level\":1}}" : "", c->crc ? ",\"crc32c\"" : "");
}

/* A random chain for chunks of that shape; what is inside of shards divides them. */
static struct chain *random_chain(unsigned n, const uint64_t *shape, unsigned depth)
{
    struct chain *c = calloc(1, sizeof *c);
    c->transpose = test_below(&seed, 3) == 0;
    for (unsigned i = 0; i < n; i++) {
        unsigned j = (unsigned)test_below(&seed, i + 1);
        c->order[i] = c->order[j];
        c->order[j] = i;
    }
    c->big = test_below(&seed, 4) == 0;
    c->zstd = test_below(&seed, depth ? 8 : 2) == 0; /* rarely around a shard */
    c->gzip = test_below(&seed, 8) == 0;
    c->crc = test_below(&seed, 4) == 0;
    c->index_first = test_below(&seed, 2);
    c->index_crc = test_below(&seed, 2);
    if (!depth)
        return c;
    for (unsigned d = 0; d < n; d++) {
        uint64_t size = shape[c->transpose ? c->order[d] : d];
        do
            c->inner[d] = 1 + test_below(&seed, size);
        while (size % c->inner[d]);
    }
    c->deeper = random_chain(n, c->inner, depth - 1);
    return c;
}

static void free_chain(struct chain *c)
{
    if (c)
        free_chain(c->deeper);
    free(c);
}

/* --- reading --- */

struct object {
    struct ckpt_buf key, data;
};

struct stored {
    struct object objects[512];
    unsigned count;
    struct ckpt_zarr_cache *cache;
    bool fill_missing;
    struct ckpt_backend *backend; /* every second array is read from files, the others from bytes */
};

static int get(void *arg, const char *key, struct ckpt_extent *ret, struct ckpt_err *err)
{
    struct stored *s = arg;
    if (s->backend) {
        int r = ckpt_backend_open(s->backend, key, &ret->file);
        if (r == 0)
            ret->len = ret->file->st.size;
        return r;
    }
    for (unsigned i = 0; i < s->count; i++)
        if (!strcmp((char *)s->objects[i].key.data, key)) {
            *ret = (struct ckpt_extent){.len = s->objects[i].data.len, .bytes = malloc(s->objects[i].data.len + 1)};
            if (ret->len)
                memcpy(ret->bytes, s->objects[i].data.data, ret->len);
            return 0;
        }
    return -ENOENT;
}

static int stored_chunk(struct ckpt_tree *t, uint32_t node, const struct ckpt_array *a, uint64_t index,
                        struct ckpt_extent *ret, struct ckpt_err *err)
{
    struct stored *s = t->priv;
    struct ckpt_zarr_store store = {get, s, s->fill_missing, s->cache, node};
    return ckpt_zarr_chunk(a, index, &store, ret, err);
}

static void stored_close(struct ckpt_tree *t)
{
}

static const struct ckpt_tree_ops stored_ops = {.name = "stored", .chunk = stored_chunk, .close = stored_close};

static struct ckpt_array_reader state;
static struct ckpt_pins *pins;

static int read_whole(struct stored *s, struct ckpt_array *a, void *buf, struct ckpt_err *err)
{
    struct ckpt_tree *t;
    struct ckpt_selection all;
    CHECK(ckpt_tree_new(&stored_ops, pins, &t) == 0);
    t->priv = s;
    ckpt_selection_all(&all, a->ndim, a->shape);
    int r = ckpt_read_array(&state, &(struct ckpt_selected){t, 0, a, &all}, buf, a->nbytes, 0, err);
    ckpt_cache_drop_tree(state.cache, t->id);
    ckpt_tree_unref(t);
    return r;
}

static void store_array(struct stored *s, unsigned n, const struct block *b, const uint64_t *chunk,
                        const struct chain *c)
{
    uint64_t grid[DIMS], count = 1;
    for (unsigned d = 0; d < n; d++)
        count *= grid[d] = (b->shape[d] + chunk[d] - 1) / chunk[d];
    CHECK(count <= 512);
    for (uint64_t i = 0; i < count; i++) {
        uint64_t rest = i, at[DIMS] = {0};
        struct object *o = &s->objects[s->count];
        for (unsigned d = n; d-- > 0; rest /= grid[d])
            at[d] = rest % grid[d];
        ckpt_buf_adds(&o->key, "c");
        for (unsigned d = 0; d < n; d++) {
            ckpt_buf_addf(&o->key, "/%llu", (unsigned long long)at[d]);
            at[d] *= chunk[d];
        }
        ckpt_buf_addc(&o->key, 0);
        struct block part = cut(n, b, at, chunk, NULL);
        if (all_fill(n, &part))
            ckpt_buf_clear(&o->key); /* not stored at all */
        else {
            encode(n, c, &part, &o->data);
            s->count++;
        }
        free(part.data);
    }
}

static void stored_clear(struct stored *s)
{
    for (unsigned i = 0; i < s->count; i++) {
        ckpt_buf_clear(&s->objects[i].key);
        ckpt_buf_clear(&s->objects[i].data);
    }
    ckpt_zarr_cache_free(s->cache);
    ckpt_backend_unref(s->backend);
}

static void test_round(unsigned round)
{
    unsigned n = (unsigned)test_below(&seed, DIMS + 1);
    struct block b = {{0}, NULL};
    uint64_t chunk[DIMS] = {0};
    for (unsigned d = 0; d < n; d++) {
        b.shape[d] = 1 + test_below(&seed, 12);
        chunk[d] = 1 + test_below(&seed, 12);
    }
    uint64_t count = volume(n, b.shape);
    b.data = malloc(count * 2);
    unsigned fills = (unsigned)test_below(&seed, 3) * 2;
    for (uint64_t i = 0; i < count; i++)
        b.data[i] = fills && test_below(&seed, 2 * fills) ? FILL : (uint16_t)(i + 100);
    struct chain *c = random_chain(n, chunk, (unsigned)test_below(&seed, 4));
    struct stored s = {.cache = ckpt_zarr_cache_new(), .fill_missing = true};
    store_array(&s, n, &b, chunk, c);
    if (round % 2) {
        s.backend = ckpt_backend_new_memory();
        for (unsigned i = 0; i < s.count; i++)
            CHECK(ckpt_backend_memory_add(s.backend, (char *)s.objects[i].key.data, s.objects[i].data.data,
                                          s.objects[i].data.len) == 0);
    }
    struct ckpt_buf json = CKPT_BUF_INIT;
    ckpt_buf_adds(&json, "{\"zarr_format\":3,\"node_type\":\"array\",\"data_type\":\"uint16\",\"fill_value\":7,\"chunk_"
                         "key_encoding\":\"default\",\"shape\":");
    add_numbers(&json, n, b.shape);
    ckpt_buf_adds(&json, ",\"chunk_grid\":{\"name\":\"regular\",\"configuration\":{\"chunk_shape\":");
    add_numbers(&json, n, chunk);
    ckpt_buf_adds(&json, "}},\"codecs\":");
    describe(n, c, &json);
    ckpt_buf_addc(&json, '}');
    struct ckpt_array *a;
    struct ckpt_err err = {0};
    uint16_t *got = malloc(count * 2);
    if (ckpt_zarr_parse((char *)json.data, json.len, 3, &a, &err) < 0 || read_whole(&s, a, got, &err) < 0 ||
        memcmp(got, b.data, count * 2)) {
        fprintf(stderr, "round %u: %s\n%.*s\n", round, err.text, (int)json.len, (char *)json.data);
        exit(1);
    }
    ckpt_array_unref(a);
    free(got);
    free(b.data);
    free_chain(c);
    ckpt_buf_clear(&json);
    stored_clear(&s);
}

/* --- byte for byte --- */

#define INT4                                                                                                           \
    "{\"zarr_format\":3,\"shape\":[4],\"data_type\":\"int4\",\"chunk_grid\":{\"name\":\"regular\",\"configuration\":{" \
    "\"chunk_shape\":[4]}},"                                                                                           \
    "\"chunk_key_encoding\":{\"name\":\"default\"},\"fill_value\":-8,\"codecs\":[{\"name\":\"sharding_indexed\","      \
    "\"configuration\":{\"chunk_shape\":[4],"                                                                          \
    "\"codecs\":[{\"name\":\"bytes\"},{\"name\":\"zstd\",\"configuration\":{\"level\":3}}],\"index_codecs\":[{"        \
    "\"name\":\"bytes\",\"configuration\":"                                                                            \
    "{\"endian\":\"little\"}},{\"name\":\"crc32c\"}]}}]}"

/* The 33 bytes that TensorStore writes for [-8, -1, 0, 7]. */
static const uint8_t int4[33] =
    "\x28\xb5\x2f\xfd\x20\x04\x21\x00\x00\x08\x0f\x00\x07\0\0\0\0\0\0\0\0\x0d\0\0\0\0\0\0\0\x7a\x61\x6a\x68";

static int read_int4(const void *data, size_t len, int8_t *got)
{
    struct stored s = {.cache = ckpt_zarr_cache_new(), .fill_missing = data == NULL, .count = data != NULL};
    struct ckpt_array *a;
    struct ckpt_err err = {0};
    if (data) {
        ckpt_buf_add(&s.objects[0].key, "c/0", 4);
        ckpt_buf_add(&s.objects[0].data, data, len);
    }
    CHECK(ckpt_zarr_parse(INT4, strlen(INT4), 3, &a, NULL) == 0);
    int r = read_whole(&s, a, got, &err);
    CHECK((r == 0) == !err.code);
    ckpt_array_unref(a);
    stored_clear(&s);
    return r;
}

static void test_shard_bytes(void)
{
    int8_t got[4];
    uint8_t bad[64];
    CHECK(read_int4(int4, sizeof int4, got) == 0 && got[0] == -8 && got[1] == -1 && got[2] == 0 && got[3] == 7);
    CHECK(read_int4(NULL, 0, got) == 0 && got[0] == -8 && got[3] == -8);
    for (size_t n = 0; n < sizeof int4; n++) /* cut off */
        CHECK(read_int4(int4, n, got) == -EBADMSG);
    for (size_t i = 13; i < sizeof int4; i++) { /* the index is checked, all of it */
        memcpy(bad, int4, sizeof int4);
        bad[i] ^= 0x40;
        CHECK(read_int4(bad, sizeof int4, got) == -EBADMSG);
    }
    static const uint64_t pairs[][2] = {{1, 33},         {0, UINT64_MAX}, {UINT64_MAX, 1}, {34, 0},
                                        {UINT64_MAX, 0}, {0, 12},         {0, 0},          {1, 12}};
    for (size_t i = 0; i < sizeof pairs / sizeof *pairs; i++) {
        memcpy(bad, int4, sizeof int4);
        memcpy(bad + 13, pairs[i], 16);
        uint32_t crc = ckpt_crc32c(0, bad + 13, 16);
        memcpy(bad + 29, &crc, 4);
        CHECK(read_int4(bad, sizeof int4, got) == -EBADMSG);
    }
    uint64_t absent[2] = {UINT64_MAX, UINT64_MAX};
    memcpy(bad + 13, absent, 16);
    uint32_t crc = ckpt_crc32c(0, bad + 13, 16);
    memcpy(bad + 29, &crc, 4);
    CHECK(read_int4(bad, sizeof int4, got) == 0 && got[0] == -8 && got[3] == -8);
}

/* Version 2: F order, big-endian, an edge chunk that hangs over. */
static void test_v2(void)
{
    static const char text[] =
        "{\"chunks\":[2,3],\"compressor\":null,\"dtype\":\">i2\",\"fill_value\":null,\"filters\":null,\"order\":\"F\","
        "\"shape\":[3,4],\"zarr_format\":2}";
    struct stored s = {.cache = ckpt_zarr_cache_new()};
    struct ckpt_array *a;
    struct ckpt_err err = {0};
    int16_t got[12];
    for (unsigned i = 0; i < 4; i++) {
        struct object *o = &s.objects[s.count++];
        ckpt_buf_addf(&o->key, "%u.%u", i / 2, i % 2);
        ckpt_buf_addc(&o->key, 0);
        for (unsigned k = 0; k < 6; k++) { /* first index fastest */
            unsigned row = i / 2 * 2 + k % 2, column = i % 2 * 3 + k / 2;
            uint16_t v = __builtin_bswap16(row < 3 && column < 4 ? (uint16_t)(row * 100 + column) : 0xdead);
            ckpt_buf_add(&o->data, &v, 2);
        }
    }
    CHECK(ckpt_zarr_parse(text, strlen(text), 2, &a, NULL) == 0);
    CHECK(read_whole(&s, a, got, &err) == 0);
    for (int i = 0; i < 12; i++)
        CHECK(got[i] == i / 4 * 100 + i % 4);
    s.objects[3].data.len--; /* fewer bytes than a chunk has, and more */
    CHECK(read_whole(&s, a, got, &err) == -EBADMSG);
    ckpt_buf_add(&s.objects[3].data, "xx", 2);
    CHECK(read_whole(&s, a, got, &err) == -EBADMSG);
    s.objects[3].data.len--;
    CHECK(read_whole(&s, a, got, &err) == 0);
    memcpy(s.objects[3].key.data, "9.9", 3); /* gone */
    CHECK(read_whole(&s, a, got, &err) == -ENODATA);
    s.fill_missing = true;
    CHECK(read_whole(&s, a, got, &err) == 0 && got[10] == 202 && got[11] == 0);
    ckpt_array_unref(a);
    stored_clear(&s);
}

int main(void)
{
    struct ckpt_pool *pool;
    struct ckpt_backend *b = ckpt_backend_new_memory();
    CHECK(ckpt_pins_new(b, &pins) == 0 && ckpt_pool_new(1, &pool) == 0);
    CHECK(ckpt_cache_new(&(struct ckpt_cache_options){4 << 20, 8 << 20, "/tmp"}, pool, &state.cache) == 0);
    for (unsigned round = 0; round < 600; round++)
        test_round(round);
    test_shard_bytes();
    test_v2();
    ckpt_pool_free(pool);
    ckpt_cache_free(state.cache);
    ckpt_pins_unref(pins);
    ckpt_backend_unref(b);
    return 0;
}
