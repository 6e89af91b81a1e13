/* SPDX-License-Identifier: Apache-2.0 */
/* The metadata of Zarr arrays, versions 2 and 3, as layouts. */
#include "core/format/zarr_private.h"

#include "core/base/util.h"
#include "core/io/json.h"

#include <math.h>
#include <stdio.h>

#define COUNTED_OBJECTS 1024 /* asked for their size: of more, an estimate will do */
#define MAX_LEVELS      4
#define MAX_INDEX       ((uint64_t)1 << 20) /* inner chunks of a shard */
#define MAX_OPAQUE      65536               /* bytes of an element that only NumPy knows */

struct parse {
    struct ckpt_array *a;
    struct zarr *z;
    unsigned order[CKPT_MAX_DIMS]; /* as in struct level, at this point of the chain */
    struct ckpt_err *err;
};

static int malformed(struct ckpt_err *err, const char *what)
{
    return ckpt_fail(err, EUCLEAN, "malformed array metadata: %s", what);
}

static int get_shape(const cJSON *item, uint64_t *shape, unsigned *ret_ndim)
{
    if (!cJSON_IsArray(item))
        return -EUCLEAN;
    unsigned n = 0;
    const cJSON *e;
    cJSON_ArrayForEach(e, item)
    {
        if (n == CKPT_MAX_DIMS || !ckpt_json_u64(e, &shape[n]))
            return -EUCLEAN;
        n++;
    }
    *ret_ndim = n;
    return 0;
}

/* Into a->chunk, which has room for as many numbers as the array has dimensions. */
static int get_chunk_shape(struct ckpt_array *a, const cJSON *item)
{
    uint64_t shape[CKPT_MAX_DIMS];
    unsigned n;
    if (get_shape(item, shape, &n) < 0 || n != a->ndim)
        return -EUCLEAN;
    memcpy(a->chunk, shape, n * sizeof *shape);
    return 0;
}

/* The element of a float type nearest to a value, by trying all of them: done once an array, and only for odd fill
 * values. False: the type has no such infinity or NaN. */
static bool nearest_small_float(enum ckpt_dtype dt, double v, uint8_t *element)
{
    unsigned size = ckpt_dtype_info(dt)->size;
    uint32_t nearest = 0, nan = 0, nans = 0;
    double best = INFINITY;
    for (uint32_t bits = 0; bits < 1u << (8 * size); bits++) {
        uint8_t e[4];
        memcpy(e, &bits, 4);
        double got = ckpt_dtype_to_double(dt, e);
        if (isnan(got)) {
            nan = nans ? nan : bits;
            nans += bits == nan + nans;
        } else if (got == v && signbit(got) == signbit(v)) {
            memcpy(element, e, size);
            return true;
        } else if (fabs(got - v) < best) {
            best = fabs(got - v);
            nearest = bits;
        }
    }
    /* Of a run of NaNs the middle one has the highest bit of the fraction alone: the quiet NaN that everybody writes.
     */
    uint32_t bits = isnan(v) ? nan + nans / 2 : nearest;
    memcpy(element, &bits, size);
    return isnan(v) ? nans > 0 : isfinite(v);
}

static bool fill_float(enum ckpt_dtype dt, const cJSON *item, uint8_t *element)
{
    double v;
    unsigned size = ckpt_dtype_info(dt)->size;
    if (cJSON_IsNumber(item))
        v = item->valuedouble;
    else if (!cJSON_IsString(item))
        return false;
    else if (!strcmp(item->valuestring, "NaN"))
        v = NAN;
    else if (!strcmp(item->valuestring, "Infinity"))
        v = INFINITY;
    else if (!strcmp(item->valuestring, "-Infinity"))
        v = -INFINITY;
    else if (!strncmp(item->valuestring, "0x", 2) && strlen(item->valuestring) == 2 + 2 * size) {
        uint64_t bits = strtoull(item->valuestring + 2, NULL, 16);
        memcpy(element, &bits, size);
        return strspn(item->valuestring + 2, "0123456789abcdefABCDEF") == 2 * size;
    } else
        return false;
    if (dt == CKPT_DT_F64)
        memcpy(element, &v, 8);
    else if (dt == CKPT_DT_F32) {
        float f = (float)v;
        memcpy(element, &f, 4);
    } else
        return nearest_small_float(dt, v, element);
    return true;
}

static bool fill_element(enum ckpt_dtype dt, const cJSON *item, uint8_t *element)
{
    const struct ckpt_dtype_info *info = ckpt_dtype_info(dt);
    memset(element, 0, 16);
    if (!item || cJSON_IsNull(item))
        return true;
    switch (info->klass) {
    case CKPT_DC_BOOL:
        element[0] = cJSON_IsTrue(item) || (cJSON_IsNumber(item) && item->valuedouble != 0);
        return cJSON_IsBool(item) || cJSON_IsNumber(item);
    case CKPT_DC_INT:
    case CKPT_DC_UINT: {
        /* Beyond 2^53 the parser has lost digits; such a value is then not known rather than wrong. */
        if (!cJSON_IsNumber(item) || fabs(item->valuedouble) > 9007199254740992.0)
            return false;
        int64_t v = (int64_t)item->valuedouble;
        memcpy(element, &v, info->size);
        return true;
    }
    case CKPT_DC_FLOAT:
        return fill_float(dt, item, element);
    case CKPT_DC_COMPLEX: {
        enum ckpt_dtype part = dt == CKPT_DT_C128 ? CKPT_DT_F64 : dt == CKPT_DT_C64 ? CKPT_DT_F32 : CKPT_DT_F16;
        if (cJSON_IsNumber(item))
            return fill_float(part, item, element);
        return cJSON_GetArraySize(item) == 2 && fill_float(part, cJSON_GetArrayItem(item, 0), element) &&
               fill_float(part, cJSON_GetArrayItem(item, 1), element + info->size / 2);
    }
    default:
        return cJSON_IsNumber(item) && item->valuedouble == 0;
    }
}

static int push_codec(struct ckpt_codec_chain *chain, enum ckpt_codec_id id)
{
    /* The last to encode is the first to decode. */
    if (chain->count == sizeof chain->id / sizeof *chain->id)
        return -EUCLEAN;
    memmove(chain->id + 1, chain->id, chain->count * sizeof *chain->id);
    chain->id[0] = id;
    chain->count++;
    return 0;
}

/* A bytes -> bytes codec by name; false: not one that we have. */
static bool codec_by_name(const char *name, enum ckpt_codec_id *ret)
{
    static const struct {
        const char *name;
        enum ckpt_codec_id id;
    } known[] = {{"zstd", CKPT_CODEC_ZSTD},    {"gzip", CKPT_CODEC_GZIP},   {"zlib", CKPT_CODEC_ZLIB},
                 {"bz2", CKPT_CODEC_BZ2},      {"blosc", CKPT_CODEC_BLOSC}, {"lz4", CKPT_CODEC_LZ4},
                 {"crc32c", CKPT_CODEC_CRC32C}};
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (!strcmp(known[i].name, name)) {
            *ret = known[i].id;
            return true;
        }
    return false;
}

static void name_codec(struct ckpt_array *a, const char *name, const cJSON *config)
{
    const cJSON *cname = ckpt_json_get(config, "cname");
    size_t n = strcmp(a->codec_text, "none") ? strlen(a->codec_text) : 0;
    snprintf(a->codec_text + n, sizeof a->codec_text - n, "%s%s%s%s", n ? "+" : "", name,
             cJSON_IsString(cname) ? "/" : "", cJSON_IsString(cname) ? cname->valuestring : "");
}

/* Types that NumPy alone knows: strings, dates, bytes. What is not as long as a fill value may be has none. */
static bool set_opaque(struct ckpt_array *a, const char *descr)
{
    struct ckpt_npy npy;
    bool opaque = ckpt_npy_parse_descr(descr, &npy, NULL) == 0 && npy.dtype == CKPT_DT_OTHER;
    if (!opaque || !npy.itemsize || npy.itemsize > MAX_OPAQUE)
        return false;
    a->descr = strdup(npy.descr);
    if (!a->descr)
        return false;
    a->dtype = CKPT_DT_OTHER;
    a->big_endian = npy.big_endian;
    a->word = npy.word;
    a->itemsize = npy.itemsize;
    if (ckpt_array_swap(a) > 1)
        *a->descr = '<';
    return true;
}

static int set_dtype(struct ckpt_array *a, const char *descr)
{
    enum ckpt_dtype dt;
    bool big;
    if (!ckpt_dtype_by_descr(descr, &dt, &big)) {
        a->dtype = CKPT_DT_U8;
        ckpt_array_refuse(a, "the element type %.60s is not supported", descr);
        a->itemsize = 1;
        return 0;
    }
    a->dtype = dt;
    a->big_endian = big;
    a->itemsize = ckpt_dtype_info(dt)->size;
    return 0;
}

static int parse_v2(struct parse *p, const cJSON *root)
{
    struct ckpt_array *a = p->a;
    const cJSON *order = ckpt_json_get(root, "order"), *filters = ckpt_json_get(root, "filters");
    const cJSON *compressor = ckpt_json_get(root, "compressor"), *dtype = ckpt_json_get(root, "dtype");
    const cJSON *separator = ckpt_json_get(root, "dimension_separator");
    if (get_chunk_shape(a, ckpt_json_get(root, "chunks")) < 0)
        return malformed(p->err, "chunks");
    if (!cJSON_IsString(order) || (strcmp(order->valuestring, "C") && strcmp(order->valuestring, "F")))
        return malformed(p->err, "order");
    p->z->separator = '.';
    if (separator && !cJSON_IsNull(separator)) {
        if (!cJSON_IsString(separator) || (strcmp(separator->valuestring, ".") && strcmp(separator->valuestring, "/")))
            return malformed(p->err, "dimension_separator");
        p->z->separator = separator->valuestring[0];
    }
    if (cJSON_IsString(dtype)) {
        if (!set_opaque(a, dtype->valuestring))
            set_dtype(a, dtype->valuestring);
    } else if (cJSON_IsArray(dtype)) {
        set_dtype(a, "structured");
    } else
        return malformed(p->err, "dtype");
    if (order->valuestring[0] == 'F')
        for (unsigned i = 0; i < a->ndim; i++)
            p->order[i] = a->ndim - 1 - i;
    if (filters && !cJSON_IsNull(filters) && cJSON_GetArraySize(filters))
        ckpt_array_refuse(a, "filters are not supported");
    if (cJSON_IsObject(compressor)) {
        const cJSON *id = ckpt_json_get(compressor, "id");
        enum ckpt_codec_id codec;
        if (!cJSON_IsString(id))
            return malformed(p->err, "compressor");
        name_codec(a, id->valuestring, compressor);
        if (!codec_by_name(id->valuestring, &codec))
            ckpt_array_refuse(a, "the compressor %.60s is not supported", id->valuestring);
        else if (push_codec(&a->codecs, codec) < 0)
            return malformed(p->err, "compressor");
    } else if (compressor && !cJSON_IsNull(compressor))
        return malformed(p->err, "compressor");
    p->z->fill_known = a->itemsize <= sizeof a->fill &&
                       fill_element(a->dtype, ckpt_json_get(root, "fill_value"), a->fill);
    return 0;
}

static int parse_transpose(struct parse *p, const cJSON *config)
{
    uint64_t order[CKPT_MAX_DIMS];
    unsigned n, composed[CKPT_MAX_DIMS];
    bool seen[CKPT_MAX_DIMS] = {false};
    if (get_shape(ckpt_json_get(config, "order"), order, &n) < 0 || n != p->a->ndim)
        return malformed(p->err, "the order of a transpose");
    for (unsigned i = 0; i < n; i++) {
        if (order[i] >= n || seen[order[i]])
            return malformed(p->err, "the order of a transpose");
        seen[order[i]] = true;
        composed[i] = p->order[order[i]];
    }
    memcpy(p->order, composed, n * sizeof *composed);
    return 0;
}

static bool is_big(const cJSON *config)
{
    const cJSON *endian = ckpt_json_get(config, "endian");
    return cJSON_IsString(endian) && !strcmp(endian->valuestring, "big");
}

static int parse_sharding(struct parse *p, const cJSON *config, struct level **ret)
{
    struct ckpt_array *a = p->a;
    uint64_t inner[CKPT_MAX_DIMS];
    unsigned n;
    if (p->z->levels == MAX_LEVELS)
        return malformed(p->err, "shards are nested too deeply");
    struct level *l = &p->z->level[p->z->levels++];
    if (get_shape(ckpt_json_get(config, "chunk_shape"), inner, &n) < 0 || n != a->ndim)
        return malformed(p->err, "the chunk_shape of sharding_indexed");
    l->count = 1;
    for (unsigned i = 0; i < n; i++) {
        unsigned d = l->order[i] = p->order[i];
        l->chunk[d] = a->chunk[d];
        if (!inner[i] || !a->chunk[d] || a->chunk[d] % inner[i])
            return malformed(p->err, "inner chunks do not divide their shard");
        a->chunk[d] = l->inner[d] = inner[i];
        if (ckpt_mul(l->count, l->chunk[d] / inner[i], &l->count) || l->count > MAX_INDEX)
            return malformed(p->err, "a shard has more than 2^20 inner chunks");
    }
    const cJSON *location = ckpt_json_get(config, "index_location"), *codecs = ckpt_json_get(config, "index_codecs"),
                *e;
    l->index_first = cJSON_IsString(location) && !strcmp(location->valuestring, "start");
    if (!cJSON_IsArray(codecs))
        return malformed(p->err, "index_codecs");
    cJSON_ArrayForEach(e, codecs)
    {
        const cJSON *name = cJSON_IsString(e) ? e : ckpt_json_get(e, "name");
        if (!cJSON_IsString(name))
            return malformed(p->err, "index_codecs");
        if (!strcmp(name->valuestring, "crc32c") && !l->index_crc)
            l->index_crc = true;
        else if (!strcmp(name->valuestring, "bytes"))
            l->index_big = is_big(ckpt_json_get(e, "configuration"));
        else
            ckpt_array_refuse(a, "the index codec %.60s is not supported", name->valuestring);
    }
    *ret = l;
    return 0;
}

static int parse_codecs(struct parse *p, const cJSON *codecs)
{
    struct ckpt_array *a = p->a;
    /* A shard's own codecs come inside of it: each pass of this loop is one level. */
    while (codecs) {
        const cJSON *e, *deeper = NULL;
        struct ckpt_codec_chain *chain = NULL; /* set by the array -> bytes codec */
        if (!cJSON_IsArray(codecs))
            return malformed(p->err, "codecs");
        cJSON_ArrayForEach(e, codecs)
        {
            const cJSON *name = cJSON_IsString(e) ? e : ckpt_json_get(e, "name"),
                        *config = ckpt_json_get(e, "configuration");
            enum ckpt_codec_id id;
            int r = 0;
            if (!cJSON_IsString(name))
                return malformed(p->err, "a codec has no name");
            if (!chain && !strcmp(name->valuestring, "transpose"))
                r = parse_transpose(p, config);
            else if (!chain && !strcmp(name->valuestring, "bytes")) {
                a->big_endian = is_big(config);
                chain = &a->codecs;
            } else if (!chain && !strcmp(name->valuestring, "sharding_indexed")) {
                struct level *l = NULL;
                r = parse_sharding(p, config, &l);
                if (r == 0) {
                    chain = &l->outer;
                    deeper = ckpt_json_get(config, "codecs");
                    if (!deeper)
                        return malformed(p->err, "sharding_indexed has no codecs");
                }
            } else if (codec_by_name(name->valuestring, &id)) {
                if (!chain)
                    return malformed(p->err, "a compressor comes before the bytes codec");
                name_codec(a, name->valuestring, config);
                r = push_codec(chain, id) < 0 ? malformed(p->err, "too many codecs") : 0;
            } else {
                name_codec(a, name->valuestring, NULL);
                ckpt_array_refuse(a, "the codec %.60s is not supported", name->valuestring);
                chain = chain ? chain : &a->codecs;
            }
            if (r < 0)
                return r;
        }
        if (!chain)
            return malformed(p->err, "there is no bytes codec");
        codecs = deeper;
    }
    return 0;
}

static const cJSON *named(const cJSON *item, const char **ret_name)
{
    const cJSON *name = cJSON_IsString(item) ? item : ckpt_json_get(item, "name");
    *ret_name = cJSON_IsString(name) ? name->valuestring : "";
    return ckpt_json_get(item, "configuration");
}

static int parse_v3(struct parse *p, const cJSON *root)
{
    struct ckpt_array *a = p->a;
    const cJSON *type = ckpt_json_get(root, "data_type"), *transformers = ckpt_json_get(root, "storage_transformers");
    const char *grid, *keys;
    const cJSON *grid_config = named(ckpt_json_get(root, "chunk_grid"), &grid);
    const cJSON *key_config = named(ckpt_json_get(root, "chunk_key_encoding"), &keys);
    if (strcmp(grid, "regular") || get_chunk_shape(a, ckpt_json_get(grid_config, "chunk_shape")) < 0)
        return malformed(p->err, "chunk_grid");
    p->z->c_prefix = !strcmp(keys, "default");
    if (!p->z->c_prefix && strcmp(keys, "v2"))
        return malformed(p->err, "chunk_key_encoding");
    const cJSON *separator = ckpt_json_get(key_config, "separator");
    p->z->separator = cJSON_IsString(separator) ? separator->valuestring[0] : p->z->c_prefix ? '/' : '.';
    if (p->z->separator != '/' && p->z->separator != '.')
        return malformed(p->err, "the separator of chunk_key_encoding");
    const char *type_name;
    named(type, &type_name);
    enum ckpt_dtype dt;
    if (ckpt_dtype_by_name(type_name, &dt)) {
        a->dtype = dt;
        a->itemsize = ckpt_dtype_info(dt)->size;
    } else
        set_dtype(a, type_name);
    if (cJSON_GetArraySize(transformers))
        ckpt_array_refuse(a, "storage transformers are not supported");
    p->z->fill_known = fill_element(a->dtype, ckpt_json_get(root, "fill_value"), a->fill);
    const cJSON *codecs = ckpt_json_get(root, "codecs");
    return codecs ? parse_codecs(p, codecs) : malformed(p->err, "codecs");
}

/* Room for the array and all levels that there may be. */
static int parse_begin(struct parse *p, unsigned ndim, const uint64_t *shape)
{
    p->a = ckpt_array_new(CKPT_DT_U8, ndim, shape);
    if (!p->a)
        return ckpt_fail(p->err, ENOMEM, "out of memory");
    p->z = calloc(1, sizeof *p->z + MAX_LEVELS * sizeof(struct level));
    if (!p->z)
        return ckpt_fail(p->err, ENOMEM, "out of memory");
    p->a->priv = p->z;
    p->a->free_priv = free;
    for (unsigned i = 0; i < ndim; i++)
        p->order[i] = i;
    return 0;
}

/* Gives back the levels that are not used. */
static void parse_trim(struct parse *p)
{
    struct zarr *z = realloc(p->z, sizeof *z + p->z->levels * sizeof(struct level));
    if (z)
        p->a->priv = z;
}

static int parse_root(struct parse *p, const cJSON *root, int version)
{
    uint64_t shape[CKPT_MAX_DIMS], format;
    unsigned ndim;
    if (!ckpt_json_u64(ckpt_json_get(root, "zarr_format"), &format) || format != (uint64_t)version)
        return malformed(p->err, "zarr_format");
    if (get_shape(ckpt_json_get(root, "shape"), shape, &ndim) < 0)
        return malformed(p->err, "shape");
    int r = parse_begin(p, ndim, shape);
    if (r < 0)
        return r;
    r = version == 2 ? parse_v2(p, root) : parse_v3(p, root);
    if (r < 0)
        return r;
    if (ckpt_array_settle(p->a, p->order) < 0)
        return malformed(p->err, "an impossible shape or chunk shape");
    if (p->a->unsupported)
        p->a->codecs.count = 0;
    parse_trim(p);
    return 0;
}

int ckpt_zarr_parse(const char *text, size_t len, int version, struct ckpt_array **ret, struct ckpt_err *err)
{
    CKPT_AUTOCJSON cJSON *root = ckpt_json_parse(text, len);
    struct parse p = {.err = err};
    if (!root)
        return malformed(err, "not valid JSON");
    int r = parse_root(&p, root, version);
    if (r < 0)
        ckpt_array_unref(p.a);
    else
        *ret = p.a;
    return r;
}

/* --- what they take --- */

int ckpt_zarr_stored(const struct ckpt_array *a, ckpt_zarr_length_fn *length, void *arg, uint64_t *ret,
                     struct ckpt_err *err)
{
    CKPT_AUTOBUF struct ckpt_buf key = CKPT_BUF_INIT;
    uint64_t objects = ckpt_zarr_objects(a), counted = CKPT_MIN(objects, (uint64_t)COUNTED_OBJECTS);
    *ret = 0;
    for (uint64_t i = 0; i < counted; i++) {
        uint64_t len = 0;
        key.len = 0;
        ckpt_zarr_object_key(a, i, &key);
        int r = ckpt_buf_error(&key) ? ckpt_no_memory(err) : length(arg, (char *)key.data, &len, err);
        if (r < 0)
            return r;
        *ret += len;
    }
    if (counted < objects)
        *ret = (uint64_t)((double)*ret / (double)counted * (double)objects);
    return 0;
}

static bool is_last_part(const char *key, size_t len, const char *name)
{
    size_t n = strlen(name);
    bool ends_so = len >= n && !memcmp(key + len - n, name, n);
    return ends_so && (len == n || key[len - n - 1] == '/');
}

int ckpt_zarr_add_length(void *arg, const void *key, size_t key_len, uint64_t value_len)
{
    uint64_t *sum = arg;
    bool metadata = is_last_part(key, key_len, ".zarray") || is_last_part(key, key_len, "zarr.json");
    if (!metadata)
        *sum += value_len;
    return 0;
}
