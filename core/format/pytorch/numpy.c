/* SPDX-License-Identifier: Apache-2.0 */
#include "core/format/pytorch/numpy.h"

#include "core/base/util.h"
#include "core/format/pytorch/text.h"

#include <stdio.h>

#define MAX_LEVELS 4  /* of types in a type */
#define MAX_FIELDS 64 /* of a structure */

struct type {
    enum ckpt_dtype dtype;
    bool big_endian, object;
    uint32_t itemsize;
    char descr[512];
};

/* What BUILD gives a type: (version, order, subtype, names, fields, size, alignment, flags[, metadata]). */
enum { T_VERSION, T_ORDER, T_SUBTYPE, T_NAMES, T_FIELDS, T_SIZE, T_ALIGNMENT, T_FLAGS, T_METADATA };

static bool read_type(const struct torch_graph *g, torch_value v, struct type *ret, unsigned level);

static enum torch_kind kind_of(const struct torch_graph *g, torch_value v)
{
    return v == TORCH_NOTHING ? TORCH_NONE : ckpt_torch_kind(g, v);
}

static bool is_object_of(const struct torch_graph *g, torch_value v, enum torch_meaning meaning)
{
    return v != TORCH_NOTHING && ckpt_torch_is(g, v, TORCH_OBJECT, meaning);
}

/* TORCH_NOTHING: there are not so many. */
static torch_value item(const struct torch_graph *g, torch_value tuple, uint32_t i)
{
    return kind_of(g, tuple) == TORCH_TUPLE && i < ckpt_torch_count(g, tuple) ? ckpt_torch_item(g, tuple, i)
                                                                              : TORCH_NOTHING;
}

/* A short text of plain letters and digits. */
static bool take_word(const struct torch_graph *g, torch_value v, char *ret, size_t room)
{
    struct ckpt_buf text = {.max = room};
    size_t len;
    if (kind_of(g, v) == TORCH_STR) {
        const char *p = ckpt_torch_str(g, v, &len);
        ckpt_buf_add(&text, p, CKPT_MIN(len, room));
    } else if (v != TORCH_NOTHING && ckpt_torch_is_bytes(g, v))
        ckpt_torch_add_bytes(g, v, &text);
    bool fits = !ckpt_buf_error(&text) && text.len && text.len < room;
    for (size_t i = 0; fits && i < text.len; i++) {
        uint8_t c = text.data[i];
        bool is_plain = (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
        ret[i] = (char)c;
        fits = is_plain;
    }
    if (fits)
        ret[text.len] = 0;
    ckpt_buf_clear(&text);
    return fits;
}

static bool small_int(const struct torch_graph *g, torch_value v, int64_t max, int64_t *ret)
{
    return kind_of(g, v) == TORCH_INT && ckpt_torch_int(g, v, ret) && *ret >= 0 && *ret <= max;
}

/* --- types --- */

static char order_of(const struct torch_graph *g, torch_value state)
{
    torch_value order = item(g, state, T_ORDER);
    size_t len;
    if (kind_of(g, order) != TORCH_STR)
        return '<';
    const char *p = ckpt_torch_str(g, order, &len);
    return len == 1 && *p == '>' ? '>' : '<';
}

/* [25us]: the unit of a time, from ({}, (unit, how many, 1, 1)). Nothing for a time without one. */
static bool add_unit(const struct torch_graph *g, torch_value state, char *unit, size_t room)
{
    torch_value metadata = item(g, state, T_METADATA), data = item(g, metadata, 1);
    char word[16];
    int64_t count;
    *unit = 0;
    if (metadata == TORCH_NOTHING || kind_of(g, metadata) == TORCH_NONE)
        return true;
    if (!take_word(g, item(g, data, 0), word, sizeof word) || !small_int(g, item(g, data, 1), 1000000000, &count))
        return false;
    if (!strcmp(word, "generic"))
        return true;
    if (count == 1)
        snprintf(unit, room, "[%s]", word);
    else
        snprintf(unit, room, "[%lld%s]", (long long)count, word);
    return true;
}

static bool type_of_descr(const char *descr, struct type *ret)
{
    struct ckpt_npy npy;
    if (strlen(descr) >= sizeof ret->descr || ckpt_npy_parse_descr(descr, &npy, NULL) < 0)
        return false;
    ret->dtype = npy.dtype;
    ret->big_endian = npy.big_endian;
    ret->itemsize = npy.itemsize;
    snprintf(ret->descr, sizeof ret->descr, "%s", npy.descr);
    return true;
}

/* "f4" and the like. */
static bool plain_type(const struct torch_graph *g, const char *code, torch_value state, struct type *ret)
{
    char descr[96], unit[48] = "";
    bool is_time = *code == 'M' || *code == 'm', is_bytes = strchr("SVab", *code) || !strcmp(code + 1, "1");
    if (*code == 'O') {
        ret->object = true;
        return true;
    }
    if (is_time && !add_unit(g, state, unit, sizeof unit))
        return false;
    snprintf(descr, sizeof descr, "%c%s%s", is_bytes ? '|' : order_of(g, state), code, unit);
    return type_of_descr(descr, ret);
}

/* A class for each type, as ml_dtypes has them. */
static bool class_type(const struct torch_graph *g, torch_value class, torch_value state, struct type *ret)
{
    char name[128];
    struct ckpt_buf text = {.max = sizeof name};
    ckpt_torch_add_name(g, class, &text);
    ckpt_buf_addc(&text, 0);
    bool fits = !ckpt_buf_error(&text);
    if (fits)
        memcpy(name, text.data, text.len);
    ckpt_buf_clear(&text);
    const char *dot = fits ? strrchr(name, '.') : NULL;
    if (!dot || !ckpt_dtype_by_name(dot + 1, &ret->dtype))
        return false;
    ret->big_endian = order_of(g, state) == '>';
    ret->itemsize = ckpt_dtype_info(ret->dtype)->size;
    snprintf(ret->descr, sizeof ret->descr, "%s", dot + 1);
    return true;
}

/* (2, 3), as a tuple in a type. */
static bool add_shape(const struct torch_graph *g, torch_value shape, struct ckpt_buf *descr)
{
    int64_t n;
    uint32_t count = kind_of(g, shape) == TORCH_TUPLE ? ckpt_torch_count(g, shape) : 0;
    if (!count || count > CKPT_MAX_DIMS)
        return false;
    ckpt_buf_addc(descr, '(');
    for (uint32_t i = 0; i < count; i++) {
        if (!small_int(g, ckpt_torch_item(g, shape, i), INT32_MAX, &n))
            return false;
        ckpt_buf_addf(descr, "%lld%s", (long long)n, i + 1 < count ? ", " : count == 1 ? "," : "");
    }
    ckpt_buf_addc(descr, ')');
    return true;
}

/* A type as it stands in a structure's: 'f4', [...], or either of them with a shape. *ret: its bytes. */
static bool add_field_type(const struct torch_graph *g, torch_value v, struct ckpt_buf *descr, uint64_t *ret,
                           unsigned level)
{
    struct type type = {0};
    torch_value state = is_object_of(g, v, TORCH_IS_NP_DTYPE) ? ckpt_torch_state(g, v) : TORCH_NOTHING;
    torch_value subtype = item(g, state, T_SUBTYPE), shape = item(g, subtype, 1);
    int64_t size;
    bool is_array = kind_of(g, subtype) == TORCH_TUPLE;
    if (!read_type(g, is_array ? item(g, subtype, 0) : v, &type, level + 1) || type.object)
        return false;
    bool is_list = *type.descr == '[';
    ckpt_buf_addf(descr, is_list ? "%s" : "'%s'", type.descr);
    *ret = type.itemsize;
    if (!is_array || ckpt_buf_error(descr))
        return !ckpt_buf_error(descr);
    ckpt_buf_adds(descr, ", ");
    return add_shape(g, shape, descr) && small_int(g, item(g, state, T_SIZE), INT32_MAX, &size) &&
           ((*ret = (uint64_t)size), true);
}

static bool add_field(const struct torch_graph *g, torch_value name, torch_value fields, struct ckpt_buf *descr,
                      uint64_t *at, unsigned level)
{
    struct torch_walk w;
    torch_value key, value, field = TORCH_NOTHING;
    size_t len;
    int64_t offset;
    uint64_t bytes;
    if (kind_of(g, name) != TORCH_STR)
        return false;
    const char *text = ckpt_torch_str(g, name, &len);
    for (size_t i = 0; i < len; i++)
        if ((uint8_t)text[i] < 0x20 || text[i] == '\'' || text[i] == '\\' || text[i] == '"')
            return false;
    ckpt_torch_walk_init(&w, g, fields);
    while (ckpt_torch_walk_next(&w, &key) && ckpt_torch_walk_next(&w, &value))
        if (ckpt_torch_kind(g, key) == TORCH_STR && ckpt_torch_same_str(g, key, name))
            field = value;
    if (!small_int(g, item(g, field, 1), INT32_MAX, &offset) || (uint64_t)offset < *at)
        return false;
    if ((uint64_t)offset > *at) /* bytes of no field */
        ckpt_buf_addf(descr, "('', '|V%llu'), ", (unsigned long long)((uint64_t)offset - *at));
    ckpt_buf_addf(descr, "('%.*s', ", (int)CKPT_MIN(len, (size_t)512), text);
    if (!add_field_type(g, item(g, field, 0), descr, &bytes, level))
        return false;
    ckpt_buf_adds(descr, "), ");
    *at = (uint64_t)offset + bytes;
    return true;
}

static bool structured_type(const struct torch_graph *g, torch_value state, struct type *ret, unsigned level)
{
    torch_value names = item(g, state, T_NAMES), fields = item(g, state, T_FIELDS);
    struct ckpt_buf descr = {.max = sizeof ret->descr + 64};
    uint64_t at = 0;
    int64_t size;
    bool fits = kind_of(g, fields) == TORCH_DICT && ckpt_torch_count(g, fields) <= MAX_FIELDS &&
                ckpt_torch_count(g, names) <= MAX_FIELDS && ckpt_torch_count(g, names);
    ckpt_buf_addc(&descr, '[');
    for (uint32_t i = 0; fits && i < ckpt_torch_count(g, names); i++)
        fits = add_field(g, ckpt_torch_item(g, names, i), fields, &descr, &at, level);
    fits = fits && small_int(g, item(g, state, T_SIZE), INT32_MAX, &size) && (uint64_t)size >= at;
    if (fits && (uint64_t)size > at)
        ckpt_buf_addf(&descr, "('', '|V%llu'), ", (unsigned long long)((uint64_t)size - at));
    fits = fits && !ckpt_buf_error(&descr) && descr.len > 2;
    if (fits) {
        descr.len -= 2;
        ckpt_buf_adds(&descr, "]");
        ckpt_buf_addc(&descr, 0);
        fits = !ckpt_buf_error(&descr) && type_of_descr((char *)descr.data, ret) && ret->itemsize == (uint64_t)size;
    }
    ckpt_buf_clear(&descr);
    return fits;
}

static bool read_type(const struct torch_graph *g, torch_value v, struct type *ret, unsigned level)
{
    char code[32];
    *ret = (struct type){.dtype = CKPT_DT_OTHER};
    if (level == MAX_LEVELS || !is_object_of(g, v, TORCH_IS_NP_DTYPE))
        return false;
    torch_value state = ckpt_torch_state(g, v), spec = item(g, ckpt_torch_args(g, v), 0);
    if (kind_of(g, item(g, state, T_NAMES)) == TORCH_TUPLE)
        return structured_type(g, state, ret, level);
    if (kind_of(g, item(g, state, T_SUBTYPE)) == TORCH_TUPLE)
        return false;
    if (kind_of(g, spec) == TORCH_GLOBAL)
        return class_type(g, spec, state, ret);
    return take_word(g, spec, code, sizeof code) && plain_type(g, code, state, ret);
}

bool ckpt_torch_np_type(const struct torch_graph *g, torch_value v, char ret[512])
{
    struct type type;
    if (!read_type(g, v, &type, 0))
        return false;
    snprintf(ret, sizeof type.descr, "%s",
             type.object                   ? "object"
             : type.dtype == CKPT_DT_OTHER ? type.descr
                                           : ckpt_dtype_info(type.dtype)->name);
    return true;
}

/* --- arrays --- */

static void set_type(const struct type *type, struct torch_np *ret)
{
    ret->array.dtype = type->dtype;
    ret->array.big_endian = type->big_endian;
    if (type->dtype == CKPT_DT_OTHER)
        memcpy(ret->descr, type->descr, sizeof ret->descr);
}

static void set_shape(const struct torch_graph *g, torch_value shape, const struct type *type, struct torch_np *ret)
{
    int64_t n;
    uint32_t count = ckpt_torch_count(g, shape);
    ret->nbytes = type->itemsize;
    if (count > CKPT_MAX_DIMS) {
        ret->fault = TORCH_MANY_DIMS;
        return;
    }
    ret->array.ndim = count;
    for (uint32_t i = 0; i < count; i++) {
        if (!small_int(g, ckpt_torch_item(g, shape, i), INT64_MAX, &n) ||
            ckpt_mul(ret->nbytes, (uint64_t)n, &ret->nbytes)) {
            ret->fault = TORCH_BAD_NUMBER;
            return;
        }
        ret->array.shape[i] = (uint64_t)n;
        ret->array.order[i] = (uint8_t)i;
    }
}

static void reverse_order(struct torch_numpy *a)
{
    for (unsigned i = 0; i < a->ndim; i++)
        a->order[i] = (uint8_t)(a->ndim - 1 - i);
}

/* The array that was stored has its dimensions exchanged: the i-th is the axes[i]-th of what was stored. */
static void set_axes(const struct torch_graph *g, torch_value axes, struct torch_np *ret)
{
    struct torch_numpy stored = ret->array;
    bool seen[CKPT_MAX_DIMS] = {0};
    int64_t n;
    if (kind_of(g, axes) != TORCH_TUPLE || ckpt_torch_count(g, axes) != stored.ndim) {
        ret->fault = TORCH_BAD_NUMBER;
        return;
    }
    for (uint32_t i = 0; i < stored.ndim; i++) {
        if (!small_int(g, ckpt_torch_item(g, axes, i), (int64_t)stored.ndim - 1, &n) || seen[n]) {
            ret->fault = TORCH_BAD_NUMBER;
            return;
        }
        seen[n] = true;
        ret->array.shape[i] = stored.shape[n];
        ret->array.order[n] = (uint8_t)i;
    }
}

/* Of a type that an .npy file cannot have, or of data elsewhere, that is all there is to say. */
static bool settle(const struct torch_graph *g, bool has_type, struct torch_np *ret)
{
    bool elsewhere = ckpt_torch_kind(g, ret->data) == TORCH_BYTES && !ckpt_torch_is_bytes(g, ret->data) &&
                     !ckpt_torch_far(g, ret->data);
    if (elsewhere)
        ret->fault = TORCH_ELSEWHERE;
    else if (!has_type)
        ret->fault = TORCH_ODD_ARRAY;
    return true;
}

/* State: ([version, ]shape, type, in Fortran's order, data). */
static bool read_array(const struct torch_graph *g, torch_value state, struct torch_np *ret)
{
    uint32_t count = kind_of(g, state) == TORCH_TUPLE ? ckpt_torch_count(g, state) : 0;
    struct type type;
    if (count != 4 && count != 5)
        return false;
    torch_value shape = item(g, state, count - 4), fortran = item(g, state, count - 2);
    ret->data = item(g, state, count - 1);
    bool is_buffer = ckpt_torch_kind(g, ret->data) == TORCH_BYTES || ckpt_torch_is_bytes(g, ret->data);
    if (kind_of(g, shape) != TORCH_TUPLE || !is_object_of(g, item(g, state, count - 3), TORCH_IS_NP_DTYPE) ||
        !is_buffer)
        return false;
    bool has_type = read_type(g, item(g, state, count - 3), &type, 0) && !type.object;
    set_type(&type, ret);
    set_shape(g, shape, &type, ret);
    int64_t n = 0;
    bool is_fortran = kind_of(g, fortran) == TORCH_BOOL ? ckpt_torch_truth(g, fortran)
                                                        : small_int(g, fortran, 1, &n) && n;
    if (is_fortran && !ret->fault)
        reverse_order(&ret->array);
    return settle(g, has_type, ret);
}

/* (buffer, type, shape, order[, axes]) */
static bool read_buffer(const struct torch_graph *g, torch_value args, struct torch_np *ret)
{
    torch_value type_value = item(g, args, 1), shape = item(g, args, 2), order = item(g, args, 3),
                axes = item(g, args, 4);
    struct type type;
    ret->data = item(g, args, 0);
    if (order == TORCH_NOTHING || kind_of(g, shape) != TORCH_TUPLE || !is_object_of(g, type_value, TORCH_IS_NP_DTYPE))
        return false;
    if (ckpt_torch_kind(g, ret->data) != TORCH_BYTES && !ckpt_torch_is_bytes(g, ret->data))
        return false;
    bool has_type = read_type(g, type_value, &type, 0) && !type.object;
    set_type(&type, ret);
    set_shape(g, shape, &type, ret);
    if (!ret->fault && ckpt_torch_str_is(g, order, "F"))
        reverse_order(&ret->array);
    else if (!ret->fault && axes != TORCH_NOTHING && kind_of(g, axes) != TORCH_NONE)
        set_axes(g, axes, ret);
    return settle(g, has_type, ret);
}

/* (type, data), or with any object as its data. */
static bool read_scalar(const struct torch_graph *g, torch_value args, struct torch_np *ret)
{
    struct type type;
    ret->data = item(g, args, 1);
    if (ret->data == TORCH_NOTHING || !is_object_of(g, item(g, args, 0), TORCH_IS_NP_DTYPE))
        return false;
    bool has_type = read_type(g, item(g, args, 0), &type, 0);
    if (has_type && type.object) {
        ret->kind = TORCH_NP_OTHER;
        return true;
    }
    if (!ckpt_torch_is_bytes(g, ret->data) && ckpt_torch_kind(g, ret->data) != TORCH_BYTES)
        return false;
    set_type(&type, ret);
    ret->nbytes = type.itemsize;
    enum ckpt_dtype_class klass = ckpt_dtype_info(type.dtype)->klass;
    if (has_type && klass != CKPT_DC_COMPLEX && klass != CKPT_DC_OTHER)
        ret->kind = TORCH_NP_NUMBER;
    else if (has_type && (type.descr[1] == 'U' || type.descr[1] == 'S'))
        ret->kind = type.descr[1] == 'U' ? TORCH_NP_TEXT : TORCH_NP_BYTES;
    return settle(g, has_type, ret);
}

bool ckpt_torch_np_read(const struct torch_graph *g, torch_value v, struct torch_np *ret)
{
    *ret = (struct torch_np){.array.dtype = CKPT_DT_OTHER, .data = TORCH_NOTHING};
    const struct torch_global *class = ckpt_torch_global_of(g, v);
    if (ckpt_torch_kind(g, v) != TORCH_OBJECT || !class)
        return false;
    switch (class->meaning) {
    case TORCH_IS_NP_ARRAY:
        return read_array(g, ckpt_torch_state(g, v), ret);
    case TORCH_IS_NP_BUFFER:
        return read_buffer(g, ckpt_torch_args(g, v), ret);
    case TORCH_IS_NP_SCALAR:
        return read_scalar(g, ckpt_torch_args(g, v), ret);
    default:
        return false;
    }
}
