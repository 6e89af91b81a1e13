/* SPDX-License-Identifier: Apache-2.0 */
/* Zarr metadata: what is understood, what is refused and how, and fill values bit by bit. Chunks are in
 * test-zarr-chunks.c. */
#include "core/format/zarr.h"

#include "core/base/util.h"
#include "tests/unit/check.h"

#define V2                                                                                                             \
    "{\"chunks\":[2,3],\"compressor\":{\"id\":\"zstd\",\"level\":1},\"dimension_separator\":\".\",\"dtype\":\"<f4\","  \
    "\"fill_value\":null,"                                                                                             \
    "\"filters\":null,\"order\":\"C\",\"shape\":[5,3],\"zarr_format\":2}"
#define V3                                                                                                             \
    "{\"chunk_grid\":{\"configuration\":{\"chunk_shape\":[4,4]},\"name\":\"regular\"},\"chunk_key_encoding\":{"        \
    "\"name\":\"default\"},"                                                                                           \
    "\"codecs\":[{\"name\":\"sharding_indexed\",\"configuration\":{\"chunk_shape\":[4,4],"                             \
    "\"codecs\":[{\"name\":\"bytes\",\"configuration\":{\"endian\":\"little\"}},"                                      \
    "{\"name\":\"zstd\",\"configuration\":{\"checksum\":false,\"level\":3}}],"                                         \
    "\"index_codecs\":[{\"name\":\"bytes\",\"configuration\":{\"endian\":\"little\"}},{\"name\":\"crc32c\"}]}}],"      \
    "\"data_type\":\"float32\",\"fill_value\":0.0,\"node_type\":\"array\",\"shape\":[16,8],\"zarr_format\":3}"
#define SHARD "{\"name\":\"sharding_indexed\",\"configuration\":{\"chunk_shape\":[4,4],"

static int parse(const char *text, int version, struct ckpt_array **ret)
{
    /* Without a NUL behind it: the length is what counts. */
    CKPT_AUTOFREE char *exact = malloc(strlen(text) + 1);
    memcpy(exact, text, strlen(text));
    exact[strlen(text)] = 'x';
    struct ckpt_err err = {0};
    int r = ckpt_zarr_parse(exact, strlen(text), version, ret, &err);
    CHECK((r == 0) == !err.code && (r == 0 || err.code == -r));
    return r;
}

/* The text with its first `from` replaced. */
static char *replaced(const char *text, const char *from, const char *to)
{
    const char *p = strstr(text, from);
    CHECK(p);
    char *s = malloc(strlen(text) + strlen(to) + 1);
    sprintf(s, "%.*s%s%s", (int)(p - text), text, to, p + strlen(from));
    return s;
}

static void test_examples(void)
{
    struct ckpt_array *a;
    CHECK(parse(V2, 2, &a) == 0);
    CHECK(a->dtype == CKPT_DT_F32 && a->ndim == 2 && a->shape[0] == 5 && a->shape[1] == 3 && a->chunk[0] == 2 &&
          a->chunk[1] == 3);
    CHECK(a->grid[0] == 3 && a->grid[1] == 1 && a->nchunks == 3 && a->chunk_bytes == 24 && a->nbytes == 60 &&
          !a->unsupported);
    CHECK(a->codecs.count == 1 && a->codecs.id[0] == CKPT_CODEC_ZSTD && a->stride[0] == 12 && a->stride[1] == 4);
    CHECK_STR(a->codec_text, "zstd");
    ckpt_array_unref(a);
    CHECK(parse(V3, 3, &a) == 0);
    CHECK(a->shape[0] == 16 && a->shape[1] == 8 && a->chunk[0] == 4 && a->nchunks == 8 && ckpt_zarr_objects(a) == 8 &&
          a->codecs.count == 1);
    ckpt_array_unref(a);
    CHECK(parse(V2, 3, &a) == -EUCLEAN && parse(V3, 2, &a) == -EUCLEAN); /* the version must be the expected one */
}

static void check_keys(const char *text, int version, const char *const *want, unsigned n)
{
    struct ckpt_array *a;
    struct ckpt_buf key = CKPT_BUF_INIT;
    CHECK(parse(text, version, &a) == 0 && ckpt_zarr_objects(a) == n);
    for (unsigned i = 0; i < n; i++) {
        key.len = 0;
        ckpt_zarr_object_key(a, i, &key);
        CHECK(key.len == strlen(want[i]));
        CHECK_STR((char *)key.data, want[i]);
    }
    ckpt_buf_clear(&key);
    ckpt_array_unref(a);
}

static void test_keys(void)
{
#define GRID(shape, chunk, encoding)                                                                                   \
    "{\"zarr_format\":3,\"shape\":" shape                                                                              \
    ",\"data_type\":\"int8\",\"chunk_grid\":{\"name\":\"regular\",\"configuration\":"                                  \
    "{\"chunk_shape\":" chunk "}},\"chunk_key_encoding\":" encoding ",\"fill_value\":0,\"codecs\":[\"bytes\"]}"
    check_keys(V2, 2, (const char *const[]){"0.0", "1.0", "2.0"}, 3);
    CKPT_AUTOFREE char *slash = replaced(V2, "\"dimension_separator\":\".\"", "\"dimension_separator\":\"/\"");
    check_keys(slash, 2, (const char *const[]){"0/0", "1/0", "2/0"}, 3);
    CKPT_AUTOFREE char *absent = replaced(V2, "\"dimension_separator\":\".\",", "");
    check_keys(absent, 2, (const char *const[]){"0.0", "1.0", "2.0"}, 3);
    check_keys(GRID("[3,2]", "[2,2]", "{\"name\":\"default\"}"), 3, (const char *const[]){"c/0/0", "c/1/0"}, 2);
    check_keys(GRID("[3,2]", "[2,2]", "\"default\""), 3, (const char *const[]){"c/0/0", "c/1/0"}, 2);
    check_keys(GRID("[3,2]", "[3,1]", "{\"name\":\"default\",\"configuration\":{\"separator\":\".\"}}"), 3,
               (const char *const[]){"c.0.0", "c.0.1"}, 2);
    check_keys(GRID("[3]", "[2]", "{\"name\":\"v2\"}"), 3, (const char *const[]){"0", "1"}, 2);
    check_keys(GRID("[3,1]", "[2,1]", "{\"name\":\"v2\",\"configuration\":{\"separator\":\"/\"}}"), 3,
               (const char *const[]){"0/0", "1/0"}, 2);
    check_keys(GRID("[]", "[]", "{\"name\":\"default\"}"), 3, (const char *const[]){"c"}, 1);
    check_keys(GRID("[]", "[]", "{\"name\":\"v2\"}"), 3, (const char *const[]){"0"}, 1);
    check_keys(GRID("[3,0,2]", "[3,1,2]", "\"default\""), 3, NULL, 0);
}

#define MANY "1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1"

static void test_malformed(void)
{
    static const struct {
        int version;
        const char *from, *to;
    } bad[] = {
        {2, "\"zarr_format\":2", "\"zarr_format\":1"},
        {2, "\"zarr_format\":2", "\"zarr_format\":\"2\""},
        {2, "\"shape\":[5,3],", ""},
        {2, "[5,3]", "[5]"},
        {2, "[5,3]", "[5,-3]"},
        {2, "[5,3]", "[5,1.5]"},
        {2, "[5,3]", "[5,\"3\"]"},
        {2, "[5,3]", "5"},
        {2, "[5,3]", "[" MANY "," MANY "]"},
        {2, "[5,3]", "[9007199254740992,9007199254740992]"},
        {2, "[2,3]", "[2]"},
        {2, "[2,3]", "[2,3,4]"},
        {2, "[2,3]", "[2," MANY "]"},
        {2, "[2,3]", "[2,0]"},
        {2, "[2,3]", "[9007199254740992,9007199254740992]"},
        {2, "\"order\":\"C\"", "\"order\":\"K\""},
        {2, "\"order\":\"C\",", ""},
        {2, "\"dtype\":\"<f4\"", "\"dtype\":4"},
        {2, "\"dtype\":\"<f4\",", ""},
        {2, "\"compressor\":{\"id\":\"zstd\",\"level\":1}", "\"compressor\":\"zstd\""},
        {2, "\"id\":\"zstd\"", "\"id\":7"},
        {2, "\"id\":\"zstd\",", ""},
        {2, "\"dimension_separator\":\".\"", "\"dimension_separator\":\"-\""},
        {2, "\"dimension_separator\":\".\"", "\"dimension_separator\":\"\""},
        {2, V2, "[]"},
        {2, V2, "{}"},
        {2, V2, "x"},
        {2, V2, V2 "x"},
        {2, V2, ""},
        {3, "\"zarr_format\":3", "\"zarr_format\":2"},
        {3, "\"regular\"", "\"odd\""},
        {3, "\"chunk_shape\":[4,4]},\"name\"", "\"chunk_shape\":[4]},\"name\""},
        {3, "\"chunk_shape\":[4,4]},\"name\"", "\"chunk_shape\":[4,4," MANY "]},\"name\""},
        {3, "\"chunk_shape\":[4,4]},\"name\"", "\"chunk_shape\":[0,4]},\"name\""},
        {3, "\"chunk_grid\"", "\"grid\""},
        {3, "{\"name\":\"default\"}", "{\"name\":\"odd\"}"},
        {3, "{\"name\":\"default\"}", "{\"name\":\"default\",\"configuration\":{\"separator\":\"-\"}}"},
        {3, SHARD, "{\"name\":\"sharding_indexed\",\"configuration\":{\"chunk_shape\":[3,4],"},
        {3, SHARD, "{\"name\":\"sharding_indexed\",\"configuration\":{\"chunk_shape\":[0,4],"},
        {3, SHARD, "{\"name\":\"sharding_indexed\",\"configuration\":{\"chunk_shape\":[8,4],"},
        {3, SHARD, "{\"name\":\"sharding_indexed\",\"configuration\":{\"chunk_shape\":[4,4," MANY "],"},
        {3, SHARD, "{\"name\":\"sharding_indexed\",\"configuration\":{"},
        {3, "\"codecs\":[{\"name\":\"bytes\"", "\"kodecs\":[{\"name\":\"bytes\""},
        {3, "\"codecs\":[{\"name\":\"sharding_indexed\"", "\"codecs\":[{\"nam\":\"sharding_indexed\""},
        {3, "\"codecs\":[{\"name\":\"sharding_indexed\"", "\"codecs\":[{\"name\":\"zstd\""},
        {3, "\"codecs\":[{\"name\":\"bytes\"",
         "\"codecs\":[{\"name\":\"transpose\",\"configuration\":{\"order\":[0,0]}},{\"name\":\"bytes\""},
        {3, "\"codecs\":[{\"name\":\"bytes\"",
         "\"codecs\":[{\"name\":\"transpose\",\"configuration\":{\"order\":[0,2]}},{\"name\":\"bytes\""},
        {3, "\"codecs\":[{\"name\":\"bytes\"",
         "\"codecs\":[{\"name\":\"transpose\",\"configuration\":{\"order\":[0]}},{\"name\":\"bytes\""},
        {3, "\"codecs\":[{\"name\":\"bytes\"", "\"codecs\":[{\"name\":\"transpose\"},{\"name\":\"bytes\""},
        {3, "\"index_codecs\":[", "\"index_codecs\":[7,"},
        {3, "\"index_codecs\"", "\"no_codecs\""},
        {3,
         "\"codecs\":[{\"name\":\"bytes\",\"configuration\":{\"endian\":\"little\"}},{\"name\":\"zstd\","
         "\"configuration\":{\"checksum\":false,\"level\":3}}]",
         "\"codecs\":[]"},
        {3, "{\"checksum\":false,\"level\":3}}",
         "{}},\"zstd\",\"zstd\",\"zstd\",\"zstd\",\"zstd\",\"zstd\",\"zstd\",\"zstd\""},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct ckpt_array *a;
        CKPT_AUTOFREE char *text = replaced(bad[i].version == 2 ? V2 : V3, bad[i].from, bad[i].to);
        int r = parse(text, bad[i].version, &a);
        if (r != -EUCLEAN) {
            fprintf(stderr, "%d for %s\n", r, text);
            exit(1);
        }
    }
    /* Cut off anywhere. */
    for (size_t n = 0; n < strlen(V3); n++) {
        struct ckpt_array *a;
        CHECK(ckpt_zarr_parse(V3, n, 3, &a, NULL) == -EUCLEAN);
    }
}

static void test_unsupported(void)
{
    static const struct {
        int version;
        const char *from, *to;
    } cases[] = {
        {2, "\"<f4\"", "\"|O\""},
        {2, "\"<f4\"", "[[\"a\",\"<i4\"]]"},
        {2, "\"<f4\"", "\"<r8\""},
        {2, "\"zstd\"", "\"lzma\""},
        {2, "\"filters\":null", "\"filters\":[{\"id\":\"delta\"}]"},
        {3, "\"float32\"", "\"r24\""},
        {3, "\"float32\"", "{\"name\":\"string\"}"},
        {3, "\"name\":\"zstd\"", "\"name\":\"unheard-of\""},
        {3, "{\"name\":\"crc32c\"}", "{\"name\":\"gzip\"}"},
        {3, "\"data_type\"", "\"storage_transformers\":[{\"name\":\"x\"}],\"data_type\""},
        {3, "{\"name\":\"sharding_indexed\"", "\"vlen\",{\"name\":\"sharding_indexed\""},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct ckpt_array *a;
        CKPT_AUTOFREE char *text = replaced(cases[i].version == 2 ? V2 : V3, cases[i].from, cases[i].to);
        CHECK(parse(text, cases[i].version, &a) == 0);
        CHECK(a->unsupported == EOPNOTSUPP && *a->why && a->ndim == 2 && a->itemsize);
        ckpt_array_unref(a);
    }
}

static void test_types_of_numpy(void)
{
    static const struct {
        const char *dtype, *descr;
        unsigned itemsize, swap;
    } cases[] = {{"\"|S5\"", "|S5", 5, 0}, {"\">U3\"", "<U3", 12, 4}, {"\">M8[ns]\"", "<M8[ns]", 8, 8}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct ckpt_array *a;
        CKPT_AUTOFREE char *text = replaced(V2, "\"<f4\"", cases[i].dtype);
        CHECK(parse(text, 2, &a) == 0);
        CHECK(!a->unsupported && a->dtype == CKPT_DT_OTHER && a->itemsize == cases[i].itemsize);
        CHECK(!strcmp(a->descr, cases[i].descr) && ckpt_array_swap(a) == cases[i].swap);
        ckpt_array_unref(a);
    }
}

static int nothing(void *arg, const char *key, struct ckpt_extent *ret, struct ckpt_err *err)
{
    return -ENOENT;
}

/* What a missing chunk of that type and fill value holds; NULL: it is not known, so reading it fails. */
static void check_fill(const char *dtype, const char *fill, const char *want)
{
    static const char form[] =
        "{\"zarr_format\":3,\"shape\":[],\"data_type\":\"%s\",\"chunk_grid\":{\"name\":\"regular\",\"configuration\":"
        "{\"chunk_shape\":[]}},\"chunk_key_encoding\":\"default\",\"fill_value\":%s,\"codecs\":[\"bytes\"]}";
    char text[512], hex[64] = "";
    struct ckpt_array *a;
    struct ckpt_extent e = {0};
    snprintf(text, sizeof text, form, dtype, fill);
    CHECK(parse(text, 3, &a) == 0 && !a->unsupported);
    struct ckpt_zarr_cache *cache = ckpt_zarr_cache_new();
    struct ckpt_zarr_store store = {nothing, NULL, true, cache, 0};
    int r = ckpt_zarr_chunk(a, 0, &store, &e, NULL);
    for (unsigned i = a->itemsize; i-- > 0;) /* as a number, highest byte first */
        sprintf(hex + strlen(hex), "%02x", a->fill[i]);
    if (want ? r != 1 || strcmp(hex, want) : r != -EOPNOTSUPP) {
        fprintf(stderr, "%s %s: %d %s, not %s\n", dtype, fill, r, hex, want);
        exit(1);
    }
    store.fill_missing = false;
    CHECK(ckpt_zarr_chunk(a, 0, &store, &e, NULL) == -ENODATA);
    ckpt_zarr_cache_free(cache);
    ckpt_array_unref(a);
}

static void test_fills(void)
{
    static const char *const cases[][3] = {
        {"bool", "true", "01"},
        {"bool", "false", "00"},
        {"bool", "null", "00"},
        {"bool", "\"x\"", NULL},
        {"int8", "-1", "ff"},
        {"int16", "-2", "fffe"},
        {"int32", "-2147483648", "80000000"},
        {"int64", "-9007199254740992", "ffe0000000000000"},
        {"int64", "9223372036854775807", NULL},
        {"uint8", "255", "ff"},
        {"uint16", "513", "0201"},
        {"uint32", "4294967295", "ffffffff"},
        {"uint64", "7", "0000000000000007"},
        {"uint64", "18446744073709551615", NULL},
        {"int8", "\"1\"", NULL},
        {"int4", "-8", "f8"},
        {"int2", "-1", "ff"},
        {"uint4", "15", "0f"},
        {"uint2", "3", "03"},
        {"float16", "1.5", "3e00"},
        {"float16", "\"NaN\"", "7e00"},
        {"float16", "\"Infinity\"", "7c00"},
        {"float16", "\"-Infinity\"", "fc00"},
        {"float16", "\"0x7e01\"", "7e01"},
        {"float16", "-0.0", "8000"},
        {"float32", "-0.5", "bf000000"},
        {"float32", "0.1", "3dcccccd"},
        {"float32", "\"NaN\"", "7fc00000"},
        {"float32", "\"-Infinity\"", "ff800000"},
        {"float32", "\"0x7fc00001\"", "7fc00001"},
        {"float32", "\"0x7fc0\"", NULL},
        {"float32", "\"0x7fc0000g\"", NULL},
        {"float32", "\"0x -7fc00\"", NULL},
        {"float32", "\"nan\"", NULL},
        {"float32", "[1]", NULL},
        {"float64", "1e300", "7e37e43c8800759c"},
        {"float64", "\"NaN\"", "7ff8000000000000"},
        {"float64", "\"0x7ff8000000000001\"", "7ff8000000000001"},
        {"bfloat16", "1.0", "3f80"},
        {"bfloat16", "\"NaN\"", "7fc0"},
        {"bfloat16", "\"Infinity\"", "7f80"},
        {"bfloat16", "\"0x3f80\"", "3f80"},
        {"complex64", "[1.0,-2.0]", "c00000003f800000"},
        {"complex64", "[\"NaN\",\"Infinity\"]", "7f8000007fc00000"},
        {"complex64", "1", "000000003f800000"},
        {"complex64", "[1]", NULL},
        {"complex64", "[1,2,3]", NULL},
        {"complex64", "[\"0x3f800000\",0]", "000000003f800000"},
        {"complex128", "[1.0,0.5]", "3fe00000000000003ff0000000000000"},
        {"float8_e4m3fn", "1.0", "38"},
        {"float8_e4m3fn", "\"NaN\"", "7f"},
        {"float8_e4m3fn", "\"Infinity\"", NULL},
        {"float8_e4m3fn", "\"0x38\"", "38"},
        {"float8_e5m2", "1.0", "3c"},
        {"float8_e5m2", "\"NaN\"", "7e"},
        {"float8_e5m2", "\"-Infinity\"", "fc"},
        {"float8_e4m3fnuz", "\"NaN\"", "80"},
        {"float8_e5m2fnuz", "\"NaN\"", "80"},
        {"float8_e4m3b11fnuz", "\"NaN\"", "80"},
        {"float8_e3m4", "\"NaN\"", "78"},
        {"float8_e4m3", "\"NaN\"", "7c"},
        {"float8_e8m0fnu", "2.0", "80"},
        {"float8_e8m0fnu", "\"NaN\"", "ff"},
        {"float4_e2m1fn", "-6.0", "0f"},
        {"float4_e2m1fn", "\"NaN\"", NULL},
        {"float6_e2m3fn", "1.0", "08"},
        {"float6_e3m2fn", "1.0", "0c"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        check_fill(cases[i][0], cases[i][1], cases[i][2]);
}

int main(void)
{
    test_examples();
    test_keys();
    test_malformed();
    test_unsupported();
    test_types_of_numpy();
    test_fills();
    return 0;
}
