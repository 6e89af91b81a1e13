/* SPDX-License-Identifier: Apache-2.0 */
#include "core/format/flax/array.h"

#include "core/base/util.h"
#include "core/io/join.h"

#include <inttypes.h>
#include <stdio.h>

#define MAX_NDIM   64 /* NumPy's */
#define MAX_BYTES  ((uint64_t)1 << 62)
#define MAX_PIECES (1u << 20)
#define MAX_DTYPE  64 /* bytes of a name */

void ckpt_flax_enter(struct ckpt_mp *mp, const struct ckpt_mp_token *ext, uint64_t *saved)
{
    *saved = mp->end;
    mp->at = ext->off;
    mp->end = ext->off + ext->len;
}

int ckpt_flax_leave(struct ckpt_mp *mp, uint64_t saved, struct ckpt_err *err)
{
    uint64_t left = mp->end - mp->at;
    mp->end = saved;
    return left ? ckpt_fail(err, EUCLEAN, "%" PRIu64 " bytes follow what an extension holds", left) : 0;
}

/* A token that must be of a type; what: of what it is said to be. */
static int take(struct ckpt_mp *mp, enum ckpt_mp_type type, const char *what, struct ckpt_mp_token *ret,
                struct ckpt_err *err)
{
    int r = ckpt_mp_next(mp, ret, err);
    return r == 0 && ret->type != type ? ckpt_fail(err, EUCLEAN, "%s is of another msgpack type than it must be", what)
                                       : r;
}

/* --- dtypes: NumPy would take much more for one, so this is a closed list --- */

struct type {
    enum ckpt_dtype dtype;
    uint32_t itemsize;
    char descr[MAX_DTYPE]; /* of OTHER */
    bool lost;             /* Flax cannot load it itself */
};

static bool same_type(const struct type *a, const struct type *b)
{
    return a->dtype == b->dtype && a->itemsize == b->itemsize && !strcmp(a->descr, b->descr);
}

static int time_type(const char *name, struct type *ret)
{
    static const struct {
        const char *name, *code;
    } times[] = {{"datetime64", "<M8"}, {"timedelta64", "<m8"}};
    struct ckpt_npy npy;
    for (size_t i = 0; i < sizeof times / sizeof *times; i++) {
        size_t n = strlen(times[i].name);
        if (strncmp(name, times[i].name, n))
            continue;
        snprintf(ret->descr, sizeof ret->descr, "%s%s", times[i].code, name + n); /* shorter than the name */
        ret->itemsize = 8;
        return ckpt_npy_parse_descr(ret->descr, &npy, NULL) == 0 && npy.itemsize == 8;
    }
    return false;
}

/* "str64" and the like, which are NumPy's names for types of so many bits. */
static bool sized_type(const char *name, struct type *ret)
{
    static const struct {
        const char *name;
        unsigned bits;
        char code;
    } kinds[] = {{"str", 32, 'U'}, {"bytes", 8, 'S'}, {"void", 8, 'V'}};
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) {
        size_t n = strlen(kinds[i].name), digits = strspn(name + CKPT_MIN(n, strlen(name)), "0123456789");
        if (strncmp(name, kinds[i].name, n) || !digits || digits > 9 || name[n + digits] || name[n] == '0')
            continue;
        unsigned long bits = strtoul(name + n, NULL, 10);
        if (bits % kinds[i].bits)
            return false;
        ret->itemsize = (uint32_t)(bits / 8);
        ret->lost = true;
        snprintf(ret->descr, sizeof ret->descr, "%c%c%lu", kinds[i].code == 'U' ? '<' : '|', kinds[i].code,
                 bits / kinds[i].bits);
        return true;
    }
    return false;
}

static bool type_by_name(const char *name, struct type *ret)
{
    static const struct {
        const char *name, *descr;
        uint32_t itemsize;
    } others[] = {{"float128", "<f16", 16}, {"complex256", "<c32", 32}, {"bcomplex32", "<V4", 4}};
    *ret = (struct type){.dtype = CKPT_DT_OTHER};
    if (ckpt_dtype_by_name(name, &ret->dtype)) {
        ret->itemsize = ckpt_dtype_info(ret->dtype)->size;
        return true;
    }
    ret->dtype = CKPT_DT_OTHER;
    for (size_t i = 0; i < sizeof others / sizeof *others; i++)
        if (!strcmp(name, others[i].name)) {
            strcpy(ret->descr, others[i].descr);
            ret->itemsize = others[i].itemsize;
            return true;
        }
    return time_type(name, ret) || sized_type(name, ret);
}

static int take_type(struct ckpt_mp *mp, struct type *ret, struct ckpt_err *err)
{
    struct ckpt_mp_token t;
    struct ckpt_buf name = {.max = 4 * MAX_DTYPE};
    int r = take(mp, CKPT_MP_STR, "the dtype of an array", &t, err);
    if (r == 0 && t.len >= MAX_DTYPE)
        r = ckpt_fail(err, EOPNOTSUPP, "the dtype of an array has a name of %" PRIu64 " bytes", t.len);
    if (r == 0)
        r = ckpt_mp_bytes(mp, &t, &name, err);
    ckpt_buf_addc(&name, 0);
    if (r == 0 && ckpt_buf_error(&name))
        r = ckpt_no_memory(err);
    if (r == 0 && (strlen((char *)name.data) != t.len || !type_by_name((char *)name.data, ret)))
        r = ckpt_fail(err, EOPNOTSUPP, "an array has the dtype %.64s, which is not known", (char *)name.data);
    ckpt_buf_clear(&name);
    return r;
}

/* --- shapes --- */

struct shape {
    unsigned ndim;
    uint64_t dims[MAX_NDIM];
};

static int take_ndim(struct ckpt_mp *mp, enum ckpt_mp_type type, struct shape *ret, struct ckpt_err *err)
{
    struct ckpt_mp_token t;
    int r = take(mp, type, "the shape of an array", &t, err);
    if (r == 0 && t.len > MAX_NDIM)
        r = ckpt_fail(err, EUCLEAN, "an array has %" PRIu64 " dimensions", t.len);
    ret->ndim = r == 0 ? (unsigned)t.len : 0;
    return r;
}

static int take_dim(struct ckpt_mp *mp, uint64_t *ret, struct ckpt_err *err)
{
    struct ckpt_mp_token t;
    int r = take(mp, CKPT_MP_UINT, "a dimension of an array", &t, err);
    if (r == 0)
        *ret = t.u;
    return r;
}

/* Overflow is looked for as if no dimension were empty. */
static int count_bytes(const struct shape *s, uint32_t itemsize, uint64_t *ret, struct ckpt_err *err)
{
    uint64_t bytes = itemsize;
    bool empty = false;
    for (unsigned i = 0; i < s->ndim; i++) {
        empty |= !s->dims[i];
        if (ckpt_mul(bytes, CKPT_MAX(s->dims[i], (uint64_t)1), &bytes) || bytes > MAX_BYTES)
            return ckpt_fail(err, EUCLEAN, "the shape of an array is beyond all bounds");
    }
    *ret = empty ? 0 : bytes;
    return 0;
}

static int make_array(const struct type *type, const struct shape *shape, struct ckpt_array **ret, struct ckpt_err *err)
{
    bool shown = shape->ndim <= CKPT_MAX_DIMS;
    struct ckpt_array *a = ckpt_array_new(type->dtype, shown ? shape->ndim : 0, shape->dims);
    if (!a || (*type->descr && !(a->descr = strdup(type->descr)))) {
        ckpt_array_unref(a);
        return ckpt_no_memory(err);
    }
    a->itemsize = type->itemsize;
    if (!shown)
        ckpt_array_refuse(a, "arrays of more than %d dimensions are not shown", CKPT_MAX_DIMS);
    else if (type->lost)
        ckpt_array_refuse(a, "Flax does not read arrays of this type back, so what it means is not known for sure");
    if (ckpt_array_settle(a, NULL) < 0) {
        ckpt_array_unref(a);
        return ckpt_fail(err, EUCLEAN, "the shape of an array is beyond all bounds");
    }
    *ret = a;
    return 0;
}

/* --- extension types 1 and 3: [shape, dtype, data] --- */

static int take_ndarray(struct ckpt_mp *mp, const struct ckpt_mp_token *ext, struct shape *ret_shape,
                        struct type *ret_type, struct ckpt_range *ret_data, struct ckpt_err *err)
{
    struct ckpt_mp_token t;
    uint64_t saved, bytes = 0;
    ckpt_flax_enter(mp, ext, &saved);
    int r = take(mp, CKPT_MP_ARRAY, "what an array is made of", &t, err);
    if (r == 0 && t.len != 3)
        r = ckpt_fail(err, EUCLEAN, "an array is not made of shape, dtype and data");
    if (r == 0)
        r = take_ndim(mp, CKPT_MP_ARRAY, ret_shape, err);
    for (unsigned i = 0; r == 0 && i < ret_shape->ndim; i++)
        r = take_dim(mp, &ret_shape->dims[i], err);
    if (r == 0)
        r = take_type(mp, ret_type, err);
    if (r == 0)
        r = take(mp, CKPT_MP_BIN, "the data of an array", &t, err);
    if (r == 0)
        r = count_bytes(ret_shape, ret_type->itemsize, &bytes, err);
    if (r == 0 && bytes != t.len)
        r = ckpt_fail(err, EUCLEAN, "the data of an array have %" PRIu64 " bytes, not %" PRIu64, t.len, bytes);
    if (r == 0)
        *ret_data = (struct ckpt_range){t.off, t.len};
    return r == 0 ? ckpt_flax_leave(mp, saved, err) : r;
}

static int plain_array(struct ckpt_mp *mp, const struct ckpt_mp_token *ext, struct ckpt_array **ret,
                       struct ckpt_extent *ret_where, struct ckpt_err *err)
{
    struct shape shape;
    struct type type;
    struct ckpt_range data;
    int r = take_ndarray(mp, ext, &shape, &type, &data, err);
    if (r == 0 && ext->ext == FLAX_EXT_SCALAR && shape.ndim)
        r = ckpt_fail(err, EUCLEAN, "a scalar has %u dimensions", shape.ndim);
    if (r == 0)
        r = make_array(&type, &shape, ret, err);
    if (r == 0 && ret_where)
        *ret_where = (struct ckpt_extent){.file = ckpt_file_ref(mp->file), .off = data.off, .len = data.len};
    return r;
}

/* --- extension type 2: [real, imaginary], in msgpack's byte order --- */

static int complex_number(struct ckpt_mp *mp, const struct ckpt_mp_token *ext, struct ckpt_array **ret,
                          struct ckpt_extent *ret_where, struct ckpt_err *err)
{
    static const struct type type = {.dtype = CKPT_DT_C128, .itemsize = 16};
    struct ckpt_mp_token t;
    double parts[2];
    uint64_t saved;
    ckpt_flax_enter(mp, ext, &saved);
    int r = take(mp, CKPT_MP_ARRAY, "what a complex number is made of", &t, err);
    if (r == 0 && t.len != 2)
        r = ckpt_fail(err, EUCLEAN, "a complex number is not made of two parts");
    for (unsigned i = 0; r == 0 && i < 2; i++)
        if ((r = take(mp, CKPT_MP_FLOAT, "a part of a complex number", &t, err)) == 0)
            parts[i] = t.f;
    if (r == 0)
        r = ckpt_flax_leave(mp, saved, err);
    uint8_t *bytes = r == 0 && ret_where ? malloc(sizeof parts) : NULL;
    if (r == 0 && ret_where && !bytes)
        r = ckpt_no_memory(err);
    if (r == 0)
        r = make_array(&type, &(struct shape){0}, ret, err);
    if (r < 0 || !ret_where) {
        free(bytes);
        return r;
    }
    memcpy(bytes, parts, sizeof parts);
    *ret_where = (struct ckpt_extent){.len = sizeof parts, .bytes = bytes};
    return 0;
}

/* --- arrays in pieces: {FLAX_CHUNKED: true, 'shape': {'0': 3, ...}, 'chunks': {'0': ndarray, ...}} --- */

struct pieces {
    struct shape shape;
    struct type type;
    struct ckpt_range *ranges; /* by number */
    uint64_t count;            /* 0: they have not been met yet */
    uint64_t bytes;
    bool has_shape;
};

/* One of the keys '0' to 'count - 1'. */
static int take_number(struct ckpt_mp *mp, uint64_t count, uint64_t *ret, struct ckpt_err *err)
{
    struct ckpt_mp_token t;
    struct ckpt_buf key = {.max = 64};
    int r = take(mp, CKPT_MP_STR, "a key of an array in pieces", &t, err);
    if (r == 0 && t.len <= 9)
        r = ckpt_mp_bytes(mp, &t, &key, err);
    ckpt_buf_addc(&key, 0);
    if (r == 0 && ckpt_buf_error(&key))
        r = ckpt_no_memory(err);
    size_t digits = r == 0 ? strspn((char *)key.data, "0123456789") : 0;
    bool number = digits && digits == t.len && (digits == 1 || *key.data != '0');
    *ret = number ? strtoul((char *)key.data, NULL, 10) : 0;
    if (r == 0 && (!number || *ret >= count))
        r = ckpt_fail(err, EUCLEAN, "the parts of an array in pieces are not numbered from 0");
    ckpt_buf_clear(&key);
    return r;
}

static int twice(struct ckpt_err *err)
{
    return ckpt_fail(err, EUCLEAN, "a part of an array in pieces is there twice");
}

static int take_piece_shape(struct ckpt_mp *mp, struct pieces *p, struct ckpt_err *err)
{
    bool seen[MAX_NDIM] = {0};
    if (p->has_shape)
        return twice(err);
    p->has_shape = true;
    int r = take_ndim(mp, CKPT_MP_MAP, &p->shape, err);
    for (unsigned i = 0; r == 0 && i < p->shape.ndim; i++) {
        uint64_t n;
        if ((r = take_number(mp, p->shape.ndim, &n, err)) < 0)
            return r;
        if (seen[n])
            return twice(err);
        seen[n] = true;
        r = take_dim(mp, &p->shape.dims[n], err);
    }
    return r;
}

static int take_piece(struct ckpt_mp *mp, struct pieces *p, bool first, struct ckpt_err *err)
{
    struct ckpt_mp_token t;
    struct shape shape;
    struct type type;
    uint64_t n;
    int r = take_number(mp, p->count, &n, err);
    if (r == 0 && p->ranges[n].off)
        r = twice(err);
    if (r == 0)
        r = take(mp, CKPT_MP_EXT, "a piece of an array", &t, err);
    if (r == 0 && t.ext != FLAX_EXT_NDARRAY)
        r = ckpt_fail(err, EUCLEAN, "a piece of an array is no array");
    if (r == 0)
        r = take_ndarray(mp, &t, &shape, &type, &p->ranges[n], err);
    if (r < 0)
        return r;
    if (shape.ndim != 1 || (!first && !same_type(&type, &p->type)))
        return ckpt_fail(err, EUCLEAN, "the pieces of an array do not fit together");
    p->type = type;
    p->bytes += p->ranges[n].len; /* in all less than the file has */
    return 0;
}

static int take_pieces(struct ckpt_mp *mp, struct pieces *p, struct ckpt_err *err)
{
    struct ckpt_mp_token t;
    if (p->ranges)
        return twice(err);
    int r = take(mp, CKPT_MP_MAP, "what an array in pieces is made of", &t, err);
    if (r < 0)
        return r;
    if (!t.len)
        return ckpt_fail(err, EUCLEAN, "an array in pieces has none");
    if (t.len > (mp->end - mp->at) / 2)
        return ckpt_fail(err, EBADMSG, "the msgpack data end too early");
    if (t.len > MAX_PIECES)
        return ckpt_fail(err, EOPNOTSUPP, "an array in %" PRIu64 " pieces: there may be %u", t.len, MAX_PIECES);
    p->count = t.len;
    p->ranges = calloc(p->count, sizeof *p->ranges); /* none begins at 0 */
    if (!p->ranges)
        return ckpt_no_memory(err);
    for (uint64_t i = 0; r == 0 && i < p->count; i++)
        r = take_piece(mp, p, !i, err);
    return r;
}

static int take_parts(struct ckpt_mp *mp, struct pieces *p, struct ckpt_err *err)
{
    struct ckpt_buf key = {.max = 64};
    struct ckpt_mp_token t;
    int r = ckpt_mp_skip(mp, err); /* what the marker says: Flax goes by its presence */
    for (unsigned i = 0; r == 0 && i < 2; i++) {
        key.len = 0;
        r = take(mp, CKPT_MP_STR, "a key of an array in pieces", &t, err);
        if (r == 0 && t.len <= strlen("chunks"))
            r = ckpt_mp_bytes(mp, &t, &key, err);
        if (r < 0)
            break;
        if (key.len == 5 && !memcmp(key.data, "shape", 5))
            r = take_piece_shape(mp, p, err);
        else if (key.len == 6 && !memcmp(key.data, "chunks", 6))
            r = take_pieces(mp, p, err);
        else
            r = ckpt_fail(err, EUCLEAN, "an array in pieces has other keys than shape and chunks");
    }
    ckpt_buf_clear(&key);
    return r;
}

static int pieced_array(struct ckpt_mp *mp, const struct ckpt_mp_token *map, struct ckpt_array **ret,
                        struct ckpt_extent *ret_where, struct ckpt_err *err)
{
    struct pieces p = {0};
    struct ckpt_file *joined = NULL;
    uint64_t bytes = 0;
    int r = map->len == 3 ? take_parts(mp, &p, err)
                          : ckpt_fail(err, EUCLEAN, "an array in pieces has other keys than shape and chunks");
    if (r == 0)
        r = count_bytes(&p.shape, p.type.itemsize, &bytes, err);
    if (r == 0 && bytes != p.bytes)
        r = ckpt_fail(err, EUCLEAN, "the pieces of an array have %" PRIu64 " bytes, not %" PRIu64, p.bytes, bytes);
    if (r == 0 && ret_where && (r = ckpt_file_join(mp->file, CKPT_STEAL(p.ranges), p.count, &joined)) < 0)
        ckpt_fail(err, -r, "%s", strerror(-r));
    if (r == 0)
        r = make_array(&p.type, &p.shape, ret, err);
    if (r == 0 && ret_where)
        *ret_where = (struct ckpt_extent){.file = CKPT_STEAL(joined), .len = bytes};
    ckpt_file_unref(joined);
    free(p.ranges);
    return r;
}

int ckpt_flax_array(struct ckpt_mp *mp, const struct ckpt_mp_token *t, struct ckpt_array **ret,
                    struct ckpt_extent *ret_where, struct ckpt_err *err)
{
    if (t->type == CKPT_MP_MAP)
        return pieced_array(mp, t, ret, ret_where, err);
    if (t->type != CKPT_MP_EXT) /* in a file that was written to since it was loaded anything may be there */
        return ckpt_fail(err, EUCLEAN, "what was an array is none");
    return t->ext == FLAX_EXT_COMPLEX ? complex_number(mp, t, ret, ret_where, err)
                                      : plain_array(mp, t, ret, ret_where, err);
}
