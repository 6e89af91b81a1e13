/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Ranges of random selections of random arrays, in random chunks and orders of dimensions, against a copy made element
 * by element: of whole elements through ckpt_gather, and of any bytes through ckpt_read_array.
 */
#include "core/array/gather.h"

#include "core/base/util.h"
#include "core/codec/crc32c.h"
#include "core/tree/array_reader.h"
#include "tests/unit/check.h"
#include "tests/unit/random.h"

#define ROUNDS   3000
#define MAX_DIM  4
#define MAX_SIDE 7

static uint64_t seed = 20240229;

static uint64_t below(uint64_t n)
{
    return test_below(&seed, n);
}

/* An array, its decoded chunks one after another, and a selection with the bytes that it must give. */
struct sample {
    struct ckpt_array *a;
    uint8_t *chunks;
    bool stored[4096]; /* else the chunk is missing */
    struct ckpt_selection sel;
    uint8_t *want;
    uint64_t count;
};

/* Byte k of the element with that index in C order; never 0. */
static uint8_t element_byte(uint64_t index, unsigned k)
{
    return (uint8_t)(1 + (index * 31 + k * 7 + index / 251) % 255);
}

static struct ckpt_array *random_array(void)
{
    static const enum ckpt_dtype types[] = {CKPT_DT_U8, CKPT_DT_U16, CKPT_DT_F32, CKPT_DT_F64, CKPT_DT_C128};
    uint64_t shape[MAX_DIM];
    unsigned n = (unsigned)below(MAX_DIM + 1), order[MAX_DIM];
    for (unsigned i = 0; i < n; i++) {
        shape[i] = below(20) ? 1 + below(MAX_SIDE) : 0;
        order[i] = i;
    }
    struct ckpt_array *a = ckpt_array_new(types[below(5)], n, shape);
    CHECK(a);
    for (unsigned i = 0; i < n; i++)
        a->chunk[i] = 1 + below(MAX_SIDE + 1);
    unsigned style = (unsigned)below(3); /* C, F, any */
    for (unsigned i = n; style && i-- > 1;) {
        unsigned j = style == 1 ? n - 1 - i : (unsigned)below(i + 1), swap = order[i];
        if (style == 1 && j >= i)
            break;
        order[i] = order[j];
        order[j] = swap;
    }
    CHECK(ckpt_array_settle(a, order) == 0);
    memset(a->fill, 0, sizeof a->fill);
    if (below(2))
        a->codecs = (struct ckpt_codec_chain){1, {CKPT_CODEC_CRC32C}};
    if (below(2)) {
        a->start = below(3) * a->itemsize;
        a->chunk_bytes += a->start;
        a->big_endian = below(2);
        a->flip = (uint8_t)below(4);
    }
    return a;
}

/* Put every element where the layout says that it is. */
static void fill_chunks(struct sample *s)
{
    struct ckpt_array *a = s->a;
    s->chunks = malloc(a->nchunks * a->chunk_bytes + 1);
    memset(s->chunks, 0xee, a->nchunks * a->chunk_bytes + 1);
    for (uint64_t e = 0; e < a->nbytes / a->itemsize; e++) {
        uint64_t rest = e, chunk = 0, at = a->start, index[MAX_DIM];
        for (unsigned d = a->ndim; d-- > 0; rest /= a->shape[d])
            index[d] = rest % a->shape[d];
        for (unsigned d = 0; d < a->ndim; d++) {
            chunk = chunk * a->grid[d] + index[d] / a->chunk[d];
            at += index[d] % a->chunk[d] * (uint64_t)a->stride[d];
        }
        CHECK(chunk < a->nchunks && at + a->itemsize <= a->chunk_bytes);
        for (unsigned k = 0; k < a->itemsize; k++) {
            uint8_t *p = s->chunks + chunk * a->chunk_bytes + at + k;
            CHECK(*p == 0xee); /* no two elements in one place */
            *p = element_byte(e, k) == 0xee ? 0xed : element_byte(e, k);
        }
    }
}

static void random_selection(struct sample *s)
{
    struct ckpt_array *a = s->a;
    s->sel = (struct ckpt_selection){.ndim = a->ndim};
    for (unsigned d = 0; d < a->ndim; d++) {
        uint64_t n = a->shape[d];
        s->sel.step[d] = 1;
        if (!n || !below(30))
            continue; /* nothing of it */
        int64_t step = (int64_t)(1 + below(3)) * (below(3) ? 1 : -1);
        uint64_t start = below(3) ? (step > 0 ? 0 : n - 1) : below(n);
        uint64_t room = (step > 0 ? n - 1 - start : start) / (uint64_t)llabs(step) + 1;
        s->sel.start[d] = start;
        s->sel.count[d] = below(3) ? room : 1 + below(room);
        s->sel.step[d] = step;
        s->sel.dropped[d] = s->sel.count[d] == 1 && below(2);
    }
}

static void fill_want(struct sample *s)
{
    struct ckpt_array *a = s->a;
    s->count = ckpt_selection_elements(&s->sel);
    s->want = malloc(s->count * a->itemsize + 1);
    for (uint64_t i = 0; i < s->count; i++) {
        uint64_t rest = i, e = 0, chunk = 0, index[MAX_DIM];
        for (unsigned d = a->ndim; d-- > 0; rest /= s->sel.count[d])
            index[d] = s->sel.start[d] + (uint64_t)s->sel.step[d] * (rest % s->sel.count[d]);
        for (unsigned d = 0; d < a->ndim; d++) {
            e = e * a->shape[d] + index[d];
            chunk = chunk * a->grid[d] + index[d] / a->chunk[d];
        }
        for (unsigned k = 0; k < a->itemsize; k++) {
            uint8_t b = element_byte(e, k) == 0xee ? 0xed : element_byte(e, k);
            s->want[i * a->itemsize + k] = s->stored[chunk] ? b : 0;
        }
    }
}

static void sample_init(struct sample *s, bool missing_chunks)
{
    memset(s, 0, sizeof *s);
    do {
        ckpt_array_unref(s->a);
        s->a = random_array();
    } while (s->a->nchunks > 4096);
    for (unsigned i = 0; i < s->a->nchunks; i++)
        s->stored[i] = !missing_chunks || below(4);
    fill_chunks(s);
    random_selection(s);
    fill_want(s);
}

static void sample_clear(struct sample *s)
{
    ckpt_array_unref(s->a);
    free(s->chunks);
    free(s->want);
}

/* --- whole elements --- */

struct taking {
    const struct sample *s;
    uint8_t *buf;
    uint64_t elements;
};

static int take(void *arg, const struct ckpt_piece *p)
{
    struct taking *t = arg;
    const struct ckpt_array *a = t->s->a;
    uint64_t n = 1;
    CHECK(p->chunk < a->nchunks && p->lowest < p->highest && p->highest <= a->chunk_bytes);
    for (unsigned i = 0; i < p->ndim; i++) {
        CHECK(p->dim[i].count > 1);
        n *= p->dim[i].count;
    }
    t->elements += n;
    if (!t->s->stored[p->chunk]) {
        ckpt_piece_fill(p, a->itemsize, a->fill, t->buf);
        return 0;
    }
    /* Only the bytes that the piece says it meets, so that the sanitizer sees any other. */
    CKPT_AUTOFREE uint8_t *met = malloc(p->highest - p->lowest);
    memcpy(met, t->s->chunks + p->chunk * a->chunk_bytes + p->lowest, p->highest - p->lowest);
    ckpt_piece_copy(p, a->itemsize, met - p->lowest, t->buf);
    return 0;
}

static void test_elements(void)
{
    for (unsigned round = 0; round < ROUNDS; round++) {
        struct sample s;
        sample_init(&s, round % 2);
        for (unsigned i = 0; i < 4; i++) {
            uint64_t first = i ? below(s.count + 1) : 0, count = i ? below(s.count - first + 1) : s.count;
            size_t size = s.a->itemsize;
            uint8_t *buf = malloc(count * size + 1);
            memset(buf, 0xee, count * size + 1);
            struct taking t = {&s, buf, 0};
            CHECK(ckpt_gather(s.a, &s.sel, first, count, take, &t) == 0);
            CHECK(t.elements == count);
            CHECK(!memcmp(buf, s.want + first * size, count * size));
            free(buf);
        }
        sample_clear(&s);
    }
}

static int stop(void *arg, const struct ckpt_piece *p)
{
    return ++*(int *)arg == 2 ? -42 : 0;
}

static void test_stops(void)
{
    struct ckpt_array *a = ckpt_array_new(CKPT_DT_U8, 1, (uint64_t[]){10});
    struct ckpt_selection sel;
    int calls = 0;
    a->chunk[0] = 2;
    CHECK(ckpt_array_settle(a, NULL) == 0);
    ckpt_selection_all(&sel, 1, a->shape);
    CHECK(ckpt_gather(a, &sel, 0, 10, stop, &calls) == -42 && calls == 2);
    ckpt_array_unref(a);
}

/* --- bytes --- */

static int sample_chunk(struct ckpt_tree *t, uint32_t node, const struct ckpt_array *a, uint64_t index,
                        struct ckpt_extent *ret, struct ckpt_err *err)
{
    const struct sample *s = t->priv;
    if (!s->stored[index])
        return 1;
    *ret = (struct ckpt_extent){.len = a->chunk_bytes, .bytes = malloc(a->chunk_bytes + 4)};
    memcpy(ret->bytes, s->chunks + index * a->chunk_bytes, a->chunk_bytes);
    ckpt_dtype_flip(a->dtype, a->flip, ret->bytes, a->chunk_bytes / a->itemsize); /* as it is stored */
    if (a->big_endian)
        ckpt_dtype_swap(a->dtype, ret->bytes, a->chunk_bytes / a->itemsize);
    if (a->codecs.count) {
        uint32_t crc = ckpt_crc32c(0, ret->bytes, a->chunk_bytes);
        memcpy(ret->bytes + a->chunk_bytes, &crc, 4);
        ret->len += 4;
    }
    return 0;
}

static void sample_close(struct ckpt_tree *t)
{
}

static struct ckpt_pins *no_files(void)
{
    struct ckpt_backend *b = ckpt_backend_new_memory();
    struct ckpt_pins *pins;
    CHECK(b && ckpt_pins_new(b, &pins) == 0);
    ckpt_backend_unref(b);
    return pins;
}

/* The same bytes without a copy, where they lie together. */
static unsigned check_mapped(struct ckpt_array_reader *state, struct ckpt_tree *t, const struct sample *s, size_t len,
                             uint64_t off)
{
    struct ckpt_mapped mapped;
    CHECK(ckpt_map_array(state, &(struct ckpt_selected){t, 0, s->a, &s->sel}, len, off, &mapped, NULL) == 0);
    if (!mapped.data)
        return 0;
    CHECK(!memcmp(mapped.data, s->want + off, len));
    ckpt_chunk_put(state->cache, mapped.hold);
    return 1;
}

static const struct ckpt_tree_ops sample_ops = {.name = "sample", .chunk = sample_chunk, .close = sample_close};

static void test_bytes(void)
{
    struct ckpt_pool *pool;
    struct ckpt_array_reader state = {0};
    struct ckpt_pins *pins = no_files();
    unsigned mapped = 0;
    CHECK(ckpt_pool_new(2, &pool) == 0);
    CHECK(ckpt_cache_new(&(struct ckpt_cache_options){4 << 20, 8 << 20, "/tmp"}, pool, &state.cache) == 0);
    for (unsigned round = 0; round < ROUNDS / 4; round++) {
        struct sample s;
        struct ckpt_tree *t;
        sample_init(&s, round % 2);
        CHECK(ckpt_tree_new(&sample_ops, pins, &t) == 0);
        t->priv = &s;
        uint64_t bytes = s.count * s.a->itemsize;
        for (unsigned i = 0; i < 6; i++) {
            uint64_t off = i ? below(bytes + 1) : 0, len = i ? below(bytes - off + 1) : bytes;
            uint8_t *buf = malloc(len + 1);
            CHECK(ckpt_read_array(&state, &(struct ckpt_selected){t, 0, s.a, &s.sel}, buf, len, off, NULL) == 0);
            CHECK(!memcmp(buf, s.want + off, len));
            free(buf);
            if (len)
                mapped += check_mapped(&state, t, &s, len, off);
        }
        ckpt_cache_drop_tree(state.cache, t->id);
        ckpt_tree_unref(t);
        sample_clear(&s);
    }
    CHECK(mapped);
    ckpt_pool_free(pool);
    ckpt_cache_free(state.cache);
    ckpt_pins_unref(pins);
}

/* Strides so wide that the reader takes the elements one by one, and rows that it takes together. */
static void test_sparse(void)
{
    struct sample s = {.stored = {true}};
    struct ckpt_tree *t;
    struct ckpt_pool *pool;
    struct ckpt_array_reader state = {0};
    struct ckpt_pins *pins = no_files();
    CHECK(ckpt_pool_new(1, &pool) == 0);
    CHECK(ckpt_cache_new(&(struct ckpt_cache_options){4 << 20, 8 << 20, "/tmp"}, pool, &state.cache) == 0);
    s.a = ckpt_array_new(CKPT_DT_F32, 2, (uint64_t[]){64, 4096});
    CHECK(ckpt_array_settle(s.a, NULL) == 0);
    fill_chunks(&s);
    s.sel = (struct ckpt_selection){.ndim = 2, .start = {63, 4095}, .step = {-7, -301}, .count = {10, 14}};
    fill_want(&s);
    CHECK(ckpt_tree_new(&sample_ops, pins, &t) == 0);
    t->priv = &s;
    for (uint64_t off = 0; off < s.count * 4; off += 3) {
        uint8_t buf[700];
        size_t len = (size_t)CKPT_MIN((uint64_t)sizeof buf, s.count * 4 - off);
        CHECK(ckpt_read_array(&state, &(struct ckpt_selected){t, 0, s.a, &s.sel}, buf, len, off, NULL) == 0);
        CHECK(!memcmp(buf, s.want + off, len));
    }
    ckpt_tree_unref(t);
    sample_clear(&s);
    ckpt_pool_free(pool);
    ckpt_cache_free(state.cache);
    ckpt_pins_unref(pins);
}

/* --- what is fetched of a chunk that is not in memory --- */

#define CHUNK ((uint64_t)24 << 20)

struct medium {
    const uint8_t *bytes;
    uint64_t reads, fetched, lowest, highest;
};

static int read_medium(void *arg, void *buf, size_t len, uint64_t off)
{
    struct medium *m = arg;
    CHECK(off >= m->lowest && off + len <= m->highest);
    memcpy(buf, m->bytes + off, len);
    m->reads++;
    m->fetched += len;
    return 0;
}

/* A piece of a chunk of CHUNK bytes with up to 3 dimensions, as ckpt_gather would give it. */
static struct ckpt_piece random_piece(uint32_t size)
{
    struct ckpt_piece p = {.ndim = 1 + (unsigned)below(3)};
    uint64_t room = CHUNK / size, most = 1 << 18, dst = size;
    for (unsigned i = p.ndim; i-- > 0;) {
        uint64_t step = 1 + below(below(2) ? 40 : 3000), count = 1 + below(below(3) ? 30 : 4000);
        count = CKPT_MIN(CKPT_MIN(count, most), (room - 1) / step + 1);
        uint64_t span = step * (count - 1);
        p.dim[i] = (struct ckpt_piece_dim){count, (int64_t)(step * size) * (below(4) ? 1 : -1), (int64_t)dst};
        p.src += p.dim[i].src < 0 ? span * size : 0;
        p.highest += span * size;
        dst *= count;
        room -= span;
        most /= count;
    }
    p.highest += size;
    return p;
}

static void test_fetch(void)
{
    static const uint32_t sizes[] = {1, 2, 4, 8, 12};
    uint8_t *bytes = malloc(CHUNK);
    for (uint64_t i = 0; i < CHUNK; i++)
        bytes[i] = (uint8_t)(i * 31 + i / 251 + i / 65521);
    for (unsigned round = 0; round < 400; round++) {
        uint32_t size = sizes[below(5)];
        struct ckpt_piece p = random_piece(size);
        uint64_t elements = 1;
        for (unsigned i = 0; i < p.ndim; i++)
            elements *= p.dim[i].count;
        struct medium m = {.bytes = bytes, .lowest = p.lowest, .highest = p.highest};
        uint8_t *want = malloc(elements * size), *got = malloc(elements * size);
        ckpt_piece_copy(&p, size, bytes, want);
        CHECK(ckpt_piece_fetch(&p, size, read_medium, &m, got) == 0);
        CHECK(!memcmp(got, want, elements * size));
        CHECK(m.reads <= elements);
        free(want);
        free(got);
    }
    /* A column: many elements a read where they lie on the same or the next page, one where they do not. */
    for (unsigned step = 64; step <= 16384; step *= 2) {
        struct ckpt_piece p = {.ndim = 1, .dim = {{CHUNK / step, step, 4}}, .highest = CHUNK - step + 4};
        struct medium m = {.bytes = bytes, .highest = p.highest};
        uint8_t *got = malloc(p.dim[0].count * 4);
        CHECK(ckpt_piece_fetch(&p, 4, read_medium, &m, got) == 0);
        CHECK(step > 4096 ? m.fetched == p.dim[0].count * 4 : m.reads <= CHUNK / (4 << 20) + 1);
        free(got);
    }
    free(bytes);
}

int main(void)
{
    test_elements();
    test_stops();
    test_bytes();
    test_sparse();
    test_fetch();
    return 0;
}
