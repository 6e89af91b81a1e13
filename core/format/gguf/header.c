/* SPDX-License-Identifier: Apache-2.0 */
#include "core/format/gguf/header.h"

#include "core/base/util.h"
#include "core/format/named.h"

#define WINDOW        ((size_t)64 << 10)
#define SMALL_WINDOW  ((size_t)512) /* for one tensor */
#define MAX_NESTING   8             /* of arrays */
#define PAIR_BYTES    13            /* the least that a key-value pair takes, and a tensor */
#define TENSOR_BYTES  25
#define DEFAULT_ALIGN 32
#define MAX_ELEMENTS  ((uint64_t)1 << 59)

/* The numbers that are left out were given to types which are gone. Q8_1 is never stored: what writes it disagrees
 * about its size. */
static const struct gguf_type types[] = {
    [0] = {"F32", 1, 4, CKPT_DT_F32},
    [1] = {"F16", 1, 2, CKPT_DT_F16},
    [2] = {"Q4_0", 32, 18, CKPT_DT_OTHER},
    [3] = {"Q4_1", 32, 20, CKPT_DT_OTHER},
    [6] = {"Q5_0", 32, 22, CKPT_DT_OTHER},
    [7] = {"Q5_1", 32, 24, CKPT_DT_OTHER},
    [8] = {"Q8_0", 32, 34, CKPT_DT_OTHER},
    [9] = {"Q8_1", 0, 0, CKPT_DT_OTHER},
    [10] = {"Q2_K", 256, 84, CKPT_DT_OTHER},
    [11] = {"Q3_K", 256, 110, CKPT_DT_OTHER},
    [12] = {"Q4_K", 256, 144, CKPT_DT_OTHER},
    [13] = {"Q5_K", 256, 176, CKPT_DT_OTHER},
    [14] = {"Q6_K", 256, 210, CKPT_DT_OTHER},
    [15] = {"Q8_K", 256, 292, CKPT_DT_OTHER},
    [16] = {"IQ2_XXS", 256, 66, CKPT_DT_OTHER},
    [17] = {"IQ2_XS", 256, 74, CKPT_DT_OTHER},
    [18] = {"IQ3_XXS", 256, 98, CKPT_DT_OTHER},
    [19] = {"IQ1_S", 256, 50, CKPT_DT_OTHER},
    [20] = {"IQ4_NL", 32, 18, CKPT_DT_OTHER},
    [21] = {"IQ3_S", 256, 110, CKPT_DT_OTHER},
    [22] = {"IQ2_S", 256, 82, CKPT_DT_OTHER},
    [23] = {"IQ4_XS", 256, 136, CKPT_DT_OTHER},
    [24] = {"I8", 1, 1, CKPT_DT_I8},
    [25] = {"I16", 1, 2, CKPT_DT_I16},
    [26] = {"I32", 1, 4, CKPT_DT_I32},
    [27] = {"I64", 1, 8, CKPT_DT_I64},
    [28] = {"F64", 1, 8, CKPT_DT_F64},
    [29] = {"IQ1_M", 256, 56, CKPT_DT_OTHER},
    [30] = {"BF16", 1, 2, CKPT_DT_BF16},
    [34] = {"TQ1_0", 256, 54, CKPT_DT_OTHER},
    [35] = {"TQ2_0", 256, 66, CKPT_DT_OTHER},
    [39] = {"MXFP4", 32, 17, CKPT_DT_OTHER},
    [40] = {"NVFP4", 64, 36, CKPT_DT_OTHER},
    [41] = {"Q1_0", 128, 18, CKPT_DT_OTHER},
};

enum value { U8, I8, U16, I16, U32, I32, F32, BOOL, STRING, ARRAY, U64, I64, F64, VALUES };

/* size: of the value; of a string and an array the least that they take. */
static const struct {
    const char *name;
    unsigned size;
} values[VALUES] = {
    [U8] = {"uint8", 1},      [I8] = {"int8", 1},      [U16] = {"uint16", 2},  [I16] = {"int16", 2},
    [U32] = {"uint32", 4},    [I32] = {"int32", 4},    [F32] = {"float32", 4}, [BOOL] = {"bool", 1},
    [STRING] = {"string", 8}, [ARRAY] = {"array", 12}, [U64] = {"uint64", 8},  [I64] = {"int64", 8},
    [F64] = {"float64", 8},
};

/* --- the scan --- */

static uint64_t place_of(const struct gguf_header *h)
{
    return h->base + h->at;
}

static uint64_t left(const struct gguf_header *h)
{
    return h->file->st.size - place_of(h);
}

static int too_short(const struct gguf_header *h)
{
    return ckpt_fail(h->err, EBADMSG, "the file ends within its header");
}

static void seek(struct gguf_header *h, uint64_t off)
{
    if (off >= h->base && off - h->base <= h->len)
        h->at = (size_t)(off - h->base);
    else {
        h->base = off;
        h->at = h->len = 0;
    }
}

static int skip(struct gguf_header *h, uint64_t n)
{
    if (n > left(h))
        return too_short(h);
    seek(h, place_of(h) + n);
    return 0;
}

static int fill(struct gguf_header *h)
{
    h->base += h->len;
    h->at = h->len = 0;
    if (h->base > GGUF_MAX_HEADER)
        return ckpt_fail(h->err, EOPNOTSUPP, "a header of more than %llu bytes", (unsigned long long)GGUF_MAX_HEADER);
    ssize_t n = ckpt_file_read(h->file, h->window, h->size, h->base);
    if (n <= 0)
        return n < 0 ? ckpt_fail(h->err, (int)-n, "%s", strerror((int)-n)) : too_short(h);
    h->len = (size_t)n;
    return 0;
}

static int take(struct gguf_header *h, void *buf, size_t n)
{
    for (size_t done = 0; done < n;) {
        int r = h->at == h->len ? fill(h) : 0;
        if (r < 0)
            return r;
        size_t part = CKPT_MIN(n - done, h->len - h->at);
        memcpy((uint8_t *)buf + done, h->window + h->at, part);
        h->at += part;
        done += part;
    }
    return 0;
}

static int take_u32(struct gguf_header *h, uint32_t *ret)
{
    int r = take(h, ret, sizeof *ret);
    if (r == 0 && h->big_endian)
        *ret = __builtin_bswap32(*ret);
    return r;
}

static int take_u64(struct gguf_header *h, uint64_t *ret)
{
    int r = take(h, ret, sizeof *ret);
    if (r == 0 && h->big_endian)
        *ret = __builtin_bswap64(*ret);
    return r;
}

static int take_length(struct gguf_header *h, uint64_t *ret)
{
    int r = take_u64(h, ret);
    return r == 0 && *ret > left(h) ? too_short(h) : r;
}

/* A key or the name of a tensor. */
static int take_name(struct gguf_header *h, struct ckpt_buf *name)
{
    uint64_t n;
    int r = take_length(h, &n);
    name->len = 0;
    if (r == 0 && n > GGUF_MAX_NAME)
        return ckpt_fail(h->err, EOPNOTSUPP, "a name of %llu bytes: more than %zu", (unsigned long long)n,
                         GGUF_MAX_NAME);
    if (r == 0 && ckpt_buf_reserve(name, (size_t)n) < 0)
        return ckpt_no_memory(h->err);
    if (r == 0)
        r = take(h, name->data, (size_t)n);
    if (r < 0)
        return r;
    name->len = (size_t)n;
    return ckpt_utf8((char *)name->data, name->len) ? 0 : ckpt_fail(h->err, EUCLEAN, "a name is not UTF-8");
}

/* --- key-value pairs, as JSON. What does not fit in the buffer is skipped, not rendered --- */

static int take_string(struct gguf_header *h, struct ckpt_buf *json, uint64_t *ret_bytes)
{
    int r = take_length(h, ret_bytes);
    if (r < 0)
        return r;
    if (json->error || *ret_bytes > GGUF_MAX_VALUE) {
        json->error = json->error ? json->error : -EFBIG;
        return skip(h, *ret_bytes);
    }
    CKPT_AUTOFREE char *text = malloc((size_t)*ret_bytes + 1);
    if (!text)
        return ckpt_no_memory(h->err);
    r = take(h, text, (size_t)*ret_bytes);
    if (r == 0)
        ckpt_buf_add_json_string(json, text, (size_t)*ret_bytes);
    return r;
}

static int take_number(struct gguf_header *h, uint32_t type, struct ckpt_buf *json)
{
    static const enum ckpt_dtype dtypes[VALUES] = {
        [U8] = CKPT_DT_U8,   [I8] = CKPT_DT_I8,   [U16] = CKPT_DT_U16, [I16] = CKPT_DT_I16,
        [U32] = CKPT_DT_U32, [I32] = CKPT_DT_I32, [F32] = CKPT_DT_F32, [BOOL] = CKPT_DT_BOOL,
        [U64] = CKPT_DT_U64, [I64] = CKPT_DT_I64, [F64] = CKPT_DT_F64,
    };
    uint8_t element[8];
    int r = take(h, element, values[type].size);
    if (r < 0)
        return r;
    if (type == BOOL && element[0] > 1)
        return ckpt_fail(h->err, EUCLEAN, "a bool that is neither 0 nor 1");
    if (h->big_endian)
        ckpt_dtype_swap(dtypes[type], element, 1);
    ckpt_dtype_add_json(json, dtypes[type], element);
    return 0;
}

static int take_value(struct gguf_header *h, uint32_t type, unsigned depth, struct ckpt_buf *json, uint32_t *ret_of,
                      uint64_t *ret_count);

static int take_array(struct gguf_header *h, unsigned depth, struct ckpt_buf *json, uint32_t *ret_of,
                      uint64_t *ret_count)
{
    uint32_t of, inner_of;
    uint64_t count, inner_count;
    int r = take_u32(h, &of);
    if (r == 0)
        r = take_u64(h, &count);
    if (r < 0)
        return r;
    if (of >= VALUES || depth >= MAX_NESTING)
        return ckpt_fail(h->err, EUCLEAN,
                         of >= VALUES ? "an array of a type that does not exist" : "arrays that are nested too deeply");
    if (count > left(h) / values[of].size)
        return too_short(h);
    *ret_of = of;
    *ret_count = count;
    ckpt_buf_addc(json, '[');
    for (uint64_t i = 0; i < count && r == 0; i++) {
        if (json->error && of != STRING && of != ARRAY && of != BOOL)
            return skip(h, (count - i) * values[of].size);
        if (i)
            ckpt_buf_addc(json, ',');
        r = take_value(h, of, depth + 1, json, &inner_of, &inner_count);
    }
    ckpt_buf_addc(json, ']');
    return r;
}

/* *ret_of and *ret_count: of an array, and of a string its bytes. */
static int take_value(struct gguf_header *h, uint32_t type, unsigned depth, struct ckpt_buf *json, uint32_t *ret_of,
                      uint64_t *ret_count)
{
    if (type >= VALUES)
        return ckpt_fail(h->err, EUCLEAN, "a value of type %u, which does not exist", type);
    if (type == ARRAY)
        return take_array(h, depth, json, ret_of, ret_count);
    return type == STRING ? take_string(h, json, ret_count) : take_number(h, type, json);
}

static int take_alignment(struct gguf_header *h, uint32_t type, struct ckpt_buf *json, uint64_t *ret)
{
    uint32_t align;
    if (type != U32)
        return ckpt_fail(h->err, EUCLEAN, "general.alignment is not a uint32");
    int r = take_u32(h, &align);
    if (r == 0 && (!align || (align & (align - 1))))
        return ckpt_fail(h->err, EUCLEAN, "general.alignment is %u, not a power of two", align);
    ckpt_buf_addf(json, "%u", align);
    *ret = align;
    return r;
}

static int take_pair(struct gguf_header *h, struct ckpt_buf *key, struct ckpt_buf *json, uint64_t *ret_align)
{
    static const char alignment[] = "general.alignment";
    uint32_t type = 0, of = 0;
    uint64_t count = 0;
    int r = take_name(h, key);
    if (r == 0)
        r = take_u32(h, &type);
    if (r < 0)
        return r;
    json->len = 0;
    json->error = 0;
    if (key->len == strlen(alignment) && !memcmp(key->data, alignment, key->len))
        return take_alignment(h, type, json, ret_align);
    r = take_value(h, type, 0, json, &of, &count);
    if (r < 0 || !json->error)
        return r;
    json->len = 0;
    json->error = 0;
    if (type == STRING)
        ckpt_buf_addf(json, "{\"type\":\"string\",\"bytes\":%llu}", (unsigned long long)count);
    else
        ckpt_buf_addf(json, "{\"type\":\"array\",\"of\":\"%s\",\"count\":%llu}", values[of].name,
                      (unsigned long long)count);
    return 0;
}

static int take_pairs(struct gguf_header *h, uint64_t count, struct ckpt_buf *metadata, uint64_t *ret_align)
{
    struct ckpt_buf key = CKPT_BUF_INIT, json = {.max = GGUF_MAX_VALUE};
    struct ckpt_name_set keys = {0};
    int r = 0;
    *ret_align = DEFAULT_ALIGN;
    for (uint64_t i = 0; i < count && r == 0; i++) {
        r = take_pair(h, &key, &json, ret_align);
        if (r == 0 && ckpt_name_set_add(&keys, ckpt_name_hash((char *)key.data, key.len)) < 0)
            r = ckpt_no_memory(h->err);
        if (r < 0 || metadata->len + 6 * key.len + json.len + 8 > GGUF_MAX_METADATA)
            continue;
        ckpt_buf_addc(metadata, metadata->len ? ',' : '{');
        ckpt_buf_add_json_string(metadata, (char *)key.data, key.len);
        ckpt_buf_addc(metadata, ':');
        ckpt_buf_add(metadata, json.data, json.len);
    }
    if (metadata->len)
        ckpt_buf_addc(metadata, '}');
    if (r == 0 && ckpt_name_set_has_twice(&keys))
        r = ckpt_fail(h->err, EUCLEAN, "a key is there twice");
    ckpt_name_set_clear(&keys);
    ckpt_buf_clear(&key);
    ckpt_buf_clear(&json);
    return r;
}

/* --- tensors --- */

static int settle_tensor(const struct gguf_header *h, struct gguf_tensor *t)
{
    uint64_t row = t->ndim ? t->shape[t->ndim - 1] : 1, product = 1, end;
    bool empty = false;
    for (unsigned i = 0; i < t->ndim;
         i++) { /* as if no dimension were 0, so that what is computed of the shape later cannot overflow */
        empty |= !t->shape[i];
        if (ckpt_mul(product, CKPT_MAX(t->shape[i], (uint64_t)1), &product) || product > MAX_ELEMENTS)
            return ckpt_fail(h->err, EUCLEAN, "a tensor has too many elements");
    }
    t->len = 0;
    if (!t->type || !t->type->block)
        return 0;
    if (row % t->type->block)
        return ckpt_fail(h->err, EUCLEAN, "a row of %llu elements is no whole number of blocks of %s",
                         (unsigned long long)row, t->type->name);
    if (!empty && ckpt_mul(product / t->type->block, t->type->bytes, &t->len))
        return ckpt_fail(h->err, EUCLEAN, "a tensor has too many elements");
    return ckpt_add(t->off, t->len, &end) ? ckpt_fail(h->err, EUCLEAN, "a tensor lies beyond 2^64 bytes") : 0;
}

static int take_tensor(struct gguf_header *h, struct ckpt_buf *name, struct gguf_tensor *ret)
{
    uint32_t ndim = 0;
    int r = take_name(h, name);
    if (r == 0)
        r = take_u32(h, &ndim);
    if (r == 0 && ndim > GGUF_MAX_DIMS)
        return ckpt_fail(h->err, EUCLEAN, "a tensor has %u dimensions", ndim);
    for (unsigned i = 0; r == 0 && i < ndim; i++)
        r = take_u64(h, &ret->shape[ndim - 1 - i]);
    if (r == 0)
        r = take_u32(h, &ret->type_number);
    if (r == 0)
        r = take_u64(h, &ret->off);
    if (r < 0)
        return r;
    const struct gguf_type *type = ret->type_number < sizeof types / sizeof *types ? &types[ret->type_number] : NULL;
    ret->type = type && type->name ? type : NULL;
    ret->ndim = ndim;
    return settle_tensor(h, ret);
}

int ckpt_gguf_header_each(struct gguf_header *h, gguf_visit *visit, void *arg)
{
    struct ckpt_buf name = CKPT_BUF_INIT;
    struct gguf_tensor tensor;
    int r = 0;
    seek(h, h->infos);
    for (uint64_t i = 0; i < h->tensors && r == 0; i++) {
        uint64_t place = place_of(h);
        r = take_tensor(h, &name, &tensor);
        if (r == 0)
            r = visit(arg, &name, place, &tensor);
    }
    ckpt_buf_clear(&name);
    return r;
}

struct check {
    struct ckpt_name_set names;
    uint64_t end; /* of the data, from where they begin */
};

static int check_tensor(void *arg, const struct ckpt_buf *name, uint64_t place, const struct gguf_tensor *tensor)
{
    struct check *c = arg;
    c->end = CKPT_MAX(c->end, tensor->off + tensor->len);
    return ckpt_name_set_add(&c->names, ckpt_name_hash((char *)name->data, name->len));
}

static int check_tensors(struct gguf_header *h, uint64_t align)
{
    struct check c = {0};
    uint64_t end;
    int r = ckpt_gguf_header_each(h, check_tensor, &c);
    if (r == -ENOMEM)
        r = ckpt_no_memory(h->err);
    h->data = (place_of(h) + align - 1) / align * align;
    if (r == 0 && ckpt_name_set_has_twice(&c.names))
        r = ckpt_fail(h->err, EUCLEAN, "two tensors have the same name");
    ckpt_name_set_clear(&c.names);
    if (r < 0 || !h->tensors)
        return r;
    if (ckpt_add(h->data, c.end, &end) || end > h->file->st.size)
        return ckpt_fail(h->err, EBADMSG, "the file ends within its data");
    return 0;
}

/* --- all of it --- */

static int take_head(struct gguf_header *h, uint64_t *ret_pairs)
{
    char magic[4];
    uint32_t version;
    int r = take(h, magic, sizeof magic);
    if (r == 0 && memcmp(magic, "GGUF", sizeof magic))
        return ckpt_fail(h->err, EUCLEAN, "it does not begin with GGUF");
    if (r == 0)
        r = take_u32(h, &version);
    if (r == 0 && !(version & 0xffff)) {
        h->big_endian = true;
        version = __builtin_bswap32(version);
    }
    if (r == 0 && version != 2 && version != 3)
        return ckpt_fail(h->err, EOPNOTSUPP, "version %u of the format; 2 and 3 can be read", version);
    if (r == 0)
        r = take_u64(h, &h->tensors);
    if (r == 0)
        r = take_u64(h, ret_pairs);
    if (r < 0)
        return r;
    if (*ret_pairs > left(h) / PAIR_BYTES || h->tensors > left(h) / TENSOR_BYTES)
        return too_short(h);
    if (*ret_pairs > GGUF_MAX_PAIRS || h->tensors > GGUF_MAX_TENSORS)
        return ckpt_fail(h->err, EOPNOTSUPP, "more than %llu key-value pairs, or %llu tensors",
                         (unsigned long long)GGUF_MAX_PAIRS, (unsigned long long)GGUF_MAX_TENSORS);
    return 0;
}

int ckpt_gguf_header_open(struct ckpt_file *file, struct gguf_header *ret, struct ckpt_buf *metadata,
                          struct ckpt_err *err)
{
    uint64_t pairs, align;
    *ret = (struct gguf_header){.file = file, .err = err, .window = malloc(WINDOW), .size = WINDOW};
    if (!ret->window)
        return ckpt_no_memory(err);
    int r = take_head(ret, &pairs);
    if (r == 0)
        r = take_pairs(ret, pairs, metadata, &align);
    ret->infos = place_of(ret);
    if (r == 0)
        r = check_tensors(ret, align);
    if (r < 0)
        ckpt_gguf_header_close(ret);
    return r;
}

void ckpt_gguf_header_close(struct gguf_header *h)
{
    free(h->window);
}

int ckpt_gguf_header_tensor(struct ckpt_file *file, bool big_endian, uint64_t place, struct ckpt_buf *name,
                            struct gguf_tensor *ret, struct ckpt_err *err)
{
    struct gguf_header h = {.file = file,
                            .err = err,
                            .big_endian = big_endian,
                            .base = place,
                            .window = malloc(SMALL_WINDOW),
                            .size = SMALL_WINDOW};
    if (!h.window)
        return ckpt_no_memory(err);
    int r = take_tensor(&h, name, ret);
    ckpt_gguf_header_close(&h);
    return r;
}
