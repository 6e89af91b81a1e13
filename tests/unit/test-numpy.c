/* SPDX-License-Identifier: Apache-2.0 */
#include "core/format/numpy/numpy.h"

#include "core/format/zip_content.h"
#include "core/tree/array_reader.h"
#include "tests/unit/zips.h"

#define MIB ((size_t)1 << 20)

/* A tree over one file in memory. */
struct opened {
    struct ckpt_backend *b;
    struct ckpt_pins *pins;
    struct ckpt_pool *pool;
    struct ckpt_array_reader reader;
    struct ckpt_tree *tree;
    struct ckpt_err err;
};

static int tree_open_with(struct opened *o, uint64_t memory, const struct ckpt_format *format, const char *name,
                          const void *data, size_t len)
{
    *o = (struct opened){.b = ckpt_backend_new_memory()};
    CHECK(ckpt_backend_memory_add(o->b, name, data, len) == 0 && ckpt_pins_new(o->b, &o->pins) == 0 &&
          ckpt_pool_new(1, &o->pool) == 0);
    CHECK(ckpt_cache_new(&(struct ckpt_cache_options){memory, 0, "/tmp"}, o->pool, &o->reader.cache) == 0);
    int r = format->open(&(struct ckpt_opening){o->pins, name, o->reader.cache, false}, &o->tree, &o->err);
    CHECK(r == -o->err.code && (r == 0) == !*o->err.text);
    return r;
}

static int tree_open(struct opened *o, const struct ckpt_format *format, const char *name, const void *data, size_t len)
{
    return tree_open_with(o, 64 * MIB, format, name, data, len);
}

static void tree_close(struct opened *o)
{
    ckpt_pool_free(o->pool); /* its tasks hold chunks */
    if (o->tree)
        ckpt_cache_drop_tree(o->reader.cache, o->tree->id);
    ckpt_tree_unref(o->tree);
    ckpt_cache_free(o->reader.cache);
    ckpt_pins_unref(o->pins);
    ckpt_backend_unref(o->b);
}

static uint64_t bytes_read(void)
{
    uint64_t bytes, reads;
    ckpt_io_counters(&bytes, &reads);
    return bytes;
}

/* An .npy file of n bytes that count; the caller frees. */
static uint8_t *npy_file(uint64_t n, size_t *ret_len)
{
    struct ckpt_buf b = CKPT_BUF_INIT;
    ckpt_npy_add_header(&b, "|u1", 1, &n);
    size_t header = b.len;
    CHECK(ckpt_buf_reserve(&b, n) == 0);
    for (uint64_t i = 0; i < n; i++)
        b.data[header + i] = (uint8_t)(i * 7 + (i >> 8));
    b.len += n;
    return ckpt_buf_steal(&b, ret_len);
}

static struct ckpt_array *layout_of(struct opened *o, const char *name)
{
    struct ckpt_array *a;
    uint32_t node = ckpt_tree_lookup(o->tree, 0, name, strlen(name));
    CHECK(node != CKPT_NO_NODE && ckpt_tree_layout(o->tree, node, &a, NULL) == 0);
    return a;
}

/* Element `off` on, without the header. */
static void read_elements(struct opened *o, const char *name, void *buf, size_t len, uint64_t off)
{
    struct ckpt_array *a = layout_of(o, name);
    struct ckpt_selection sel;
    ckpt_selection_all(&sel, a->ndim, a->shape);
    uint32_t node = ckpt_tree_lookup(o->tree, 0, name, strlen(name));
    CHECK(ckpt_read_array(&o->reader, &(struct ckpt_selected){o->tree, node, a, &sel}, buf, len, off, NULL) == 0);
    ckpt_array_unref(a);
}

/* Nothing is read but what is asked for; leaves that are laid out alike share a layout. */
static void test_lazy(void)
{
    struct opened o;
    struct zip_maker m = {0};
    size_t len;
    CKPT_AUTOFREE uint8_t *file = npy_file(8 * MIB, &len);
    zip_add(&m, "a.npy", file, len, ZIP_WIDE_LOCAL);
    zip_add(&m, "b.npy", file, len, ZIP_ALIGN);
    zip_add(&m, "c.npy", file, len, ZIP_DEFLATE);
    zip_add(&m, "d.npy", file, len, ZIP_DEFLATE | ZIP_DESCRIPTOR);
    zip_end(&m, true, "");
    uint64_t before = bytes_read();
    CHECK(tree_open(&o, &ckpt_npz_format, "x.npz", m.all.data, m.all.len) == 0);
    CHECK(bytes_read() - before < 4096);
    uint8_t buf[1000];
    before = bytes_read();
    read_elements(&o, "b.npy", buf, sizeof buf, 7 * MIB);
    CHECK(!memcmp(buf, file + (len - 8 * MIB) + 7 * MIB, sizeof buf) && bytes_read() - before < 4096);
    before = bytes_read();
    struct ckpt_array *a = layout_of(&o, "a.npy"), *b = layout_of(&o, "b.npy"), *c = layout_of(&o, "c.npy"),
                      *d = layout_of(&o, "d.npy");
    CHECK(a == b && c == d && a != c && a->origin == len - 8 * MIB);
    CHECK_STR(a->codec_text, "none");
    CHECK_STR(c->codec_text, "deflate");
    CHECK(bytes_read() - before < MIB); /* deflated ones in windows of 256 KiB */
    ckpt_array_unref(a);
    ckpt_array_unref(b);
    ckpt_array_unref(c);
    ckpt_array_unref(d);
    /* The file and the elements of a deflated member are one chunk. */
    struct ckpt_cache_stats st;
    struct ckpt_extent e;
    uint32_t node = ckpt_tree_lookup(o.tree, 0, "c.npy", 5);
    read_elements(&o, "c.npy", buf, sizeof buf, 3 * MIB);
    CHECK(!memcmp(buf, file + (len - 8 * MIB) + 3 * MIB, sizeof buf));
    CHECK(o.tree->ops->file(o.tree, node, &e, NULL) == 0 && e.len == len &&
          ckpt_extent_read(&e, buf, sizeof buf, 0) == 0);
    CHECK(!memcmp(buf, file, sizeof buf));
    ckpt_extent_clear(&e);
    ckpt_cache_stats(o.reader.cache, &st);
    CHECK(st.decoded == 1);
    uint64_t stored;
    CHECK(o.tree->ops->stored(o.tree, node, NULL, &stored, NULL) == 0 && stored < MIB &&
          ckpt_tree_memory(o.tree) < 10000);
    CHECK(o.tree->ops->verify(o.tree, NULL, NULL, NULL) == 0);
    tree_close(&o);
    zip_maker_clear(&m);
}

#define CROWD 12

struct reader {
    struct opened *o;
    const uint8_t *file[2]; /* of members of even and odd number, behind their headers */
    unsigned number;
};

static void *read_much(void *arg)
{
    struct reader *r = arg;
    uint8_t buf[5000];
    for (unsigned i = 0; i < 30; i++) {
        char name[16];
        unsigned member = (r->number + i * 5) % 6;
        uint64_t off = (i * 7919 + r->number * 104729) % (2 * MIB - sizeof buf);
        snprintf(name, sizeof name, "m%u.npy", member);
        read_elements(r->o, name, buf, sizeof buf, off);
        CHECK(!memcmp(buf, r->file[member % 2] + off, sizeof buf));
    }
    return NULL;
}

/* More readers than the cache has room for, of members that fit and of such that do not: nobody waits for ever. */
static void test_crowd(void)
{
    struct opened o;
    struct zip_maker m = {0};
    struct reader readers[CROWD];
    pthread_t threads[CROWD];
    size_t len[2];
    uint8_t *file[2] = {npy_file(2 * MIB, &len[0]), npy_file(4 * MIB, &len[1])};
    for (unsigned i = 0; i < 6; i++) {
        char name[16];
        snprintf(name, sizeof name, "m%u.npy", i);
        zip_add(&m, name, file[i % 2], len[i % 2], ZIP_DEFLATE);
    }
    zip_end(&m, false, "");
    CHECK(tree_open_with(&o, 8 * MIB, &ckpt_npz_format, "x.npz", m.all.data, m.all.len) == 0);
    for (unsigned i = 0; i < CROWD; i++) {
        readers[i] = (struct reader){&o, {file[0] + (len[0] - 2 * MIB), file[1] + (len[1] - 4 * MIB)}, i};
        CHECK(pthread_create(&threads[i], NULL, read_much, &readers[i]) == 0);
    }
    for (unsigned i = 0; i < CROWD; i++)
        pthread_join(threads[i], NULL);
    tree_close(&o);
    zip_maker_clear(&m);
    free(file[0]);
    free(file[1]);
}

/* One readable array is enough, among those that are tried. */
static void test_which_open(void)
{
    static const struct {
        unsigned bad, good, blobs;
        int want;
    } cases[] = {{0, 0, 0, 0},         {0, 0, 3, 0},  {1, 0, 3, -EUCLEAN}, {3, 1, 0, 0},
                 {63, 0, 0, -EUCLEAN}, {63, 1, 0, 0}, {64, 0, 0, 0},       {200, 1, 1, 0}};
    size_t len;
    CKPT_AUTOFREE uint8_t *file = npy_file(3, &len);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct opened o;
        struct zip_maker m = {0};
        char name[32];
        for (unsigned k = 0; k < cases[i].bad; k++) {
            snprintf(name, sizeof name, "bad%u.npy", k);
            zip_add(&m, name, "text", 4, 0);
        }
        for (unsigned k = 0; k < cases[i].blobs; k++) {
            snprintf(name, sizeof name, "blob%u", k);
            zip_add(&m, name, "text", 4, ZIP_DEFLATE);
        }
        for (unsigned k = 0; k < cases[i].good; k++)
            zip_add(&m, "good.npy", file, len, 0);
        zip_end(&m, false, "");
        CHECK(tree_open(&o, &ckpt_npz_format, "dir/x.npz", m.all.data, m.all.len) == cases[i].want);
        CHECK(cases[i].want || o.tree->count == 1 + cases[i].bad + cases[i].good + cases[i].blobs);
        CHECK(!cases[i].want || strstr(o.err.text, "bad0.npy: "));
        tree_close(&o);
        zip_maker_clear(&m);
    }
}

/* A bare file is one leaf of its own name, of which every byte must be there. */
static void test_npy(void)
{
    struct opened o;
    size_t len;
    CKPT_AUTOFREE uint8_t *file = npy_file(1000, &len);
    uint8_t buf[10];
    CHECK(tree_open(&o, &ckpt_npy_format, "some/a%b.npy", file, len) == 0 && o.tree->count == 2);
    read_elements(&o, "a%b.npy", buf, sizeof buf, 990);
    CHECK(!memcmp(buf, file + len - 10, 10));
    tree_close(&o);
    for (size_t cut = 0; cut < len; cut += 7) {
        CHECK(tree_open(&o, &ckpt_npy_format, "w.npy", file, cut) == -EBADMSG);
        tree_close(&o);
    }
}

int main(void)
{
    test_lazy();
    test_crowd();
    test_which_open();
    test_npy();
    return 0;
}
