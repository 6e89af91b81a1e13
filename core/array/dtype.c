/* SPDX-License-Identifier: Apache-2.0 */
#include "core/array/dtype.h"

#include "core/array/digits.h"
#include "core/base/util.h"

#include <inttypes.h>
#include <math.h>

/*
 * Names are NumPy's and ml_dtypes'. The descr of a type that NumPy has no code for is a void of its size, so that
 * np.load(f).view(ml_dtypes.bfloat16) works (np.save writes "<V2" itself, but "<f1", which no np.load takes, for
 * float8_e5m2); the small integers are widened instead, so that they load as numbers. safetensors' F8_E4M3 is the
 * "fn" variant; its F4 and F6 are packed, hence no name for the unpacked types.
 */
static const struct ckpt_dtype_info infos[CKPT_DT_COUNT] = {
    [CKPT_DT_BOOL] = {"bool", "|b1", "BOOL", 1, 1, 8, CKPT_DC_BOOL},
    [CKPT_DT_I8] = {"int8", "|i1", "I8", 1, 1, 8, CKPT_DC_INT},
    [CKPT_DT_I16] = {"int16", "<i2", "I16", 2, 2, 16, CKPT_DC_INT},
    [CKPT_DT_I32] = {"int32", "<i4", "I32", 4, 4, 32, CKPT_DC_INT},
    [CKPT_DT_I64] = {"int64", "<i8", "I64", 8, 8, 64, CKPT_DC_INT},
    [CKPT_DT_U8] = {"uint8", "|u1", "U8", 1, 1, 8, CKPT_DC_UINT},
    [CKPT_DT_U16] = {"uint16", "<u2", "U16", 2, 2, 16, CKPT_DC_UINT},
    [CKPT_DT_U32] = {"uint32", "<u4", "U32", 4, 4, 32, CKPT_DC_UINT},
    [CKPT_DT_U64] = {"uint64", "<u8", "U64", 8, 8, 64, CKPT_DC_UINT},
    [CKPT_DT_F16] = {"float16", "<f2", "F16", 2, 2, 16, CKPT_DC_FLOAT},
    [CKPT_DT_F32] = {"float32", "<f4", "F32", 4, 4, 32, CKPT_DC_FLOAT},
    [CKPT_DT_F64] = {"float64", "<f8", "F64", 8, 8, 64, CKPT_DC_FLOAT},
    [CKPT_DT_BF16] = {"bfloat16", "<V2", "BF16", 2, 2, 16, CKPT_DC_FLOAT},
    [CKPT_DT_C32] = {"complex32", "<V4", NULL, 4, 2, 32, CKPT_DC_COMPLEX},
    [CKPT_DT_C64] = {"complex64", "<c8", "C64", 8, 4, 64, CKPT_DC_COMPLEX},
    [CKPT_DT_C128] = {"complex128", "<c16", NULL, 16, 8, 128, CKPT_DC_COMPLEX},
    [CKPT_DT_F8_E4M3FN] = {"float8_e4m3fn", "|V1", "F8_E4M3", 1, 1, 8, CKPT_DC_FLOAT},
    [CKPT_DT_F8_E4M3FNUZ] = {"float8_e4m3fnuz", "|V1", "F8_E4M3FNUZ", 1, 1, 8, CKPT_DC_FLOAT},
    [CKPT_DT_F8_E4M3B11FNUZ] = {"float8_e4m3b11fnuz", "|V1", NULL, 1, 1, 8, CKPT_DC_FLOAT},
    [CKPT_DT_F8_E5M2] = {"float8_e5m2", "|V1", "F8_E5M2", 1, 1, 8, CKPT_DC_FLOAT},
    [CKPT_DT_F8_E5M2FNUZ] = {"float8_e5m2fnuz", "|V1", "F8_E5M2FNUZ", 1, 1, 8, CKPT_DC_FLOAT},
    [CKPT_DT_F8_E3M4] = {"float8_e3m4", "|V1", NULL, 1, 1, 8, CKPT_DC_FLOAT},
    [CKPT_DT_F8_E4M3] = {"float8_e4m3", "|V1", NULL, 1, 1, 8, CKPT_DC_FLOAT},
    [CKPT_DT_F8_E8M0FNU] = {"float8_e8m0fnu", "|V1", "F8_E8M0", 1, 1, 8, CKPT_DC_FLOAT},
    [CKPT_DT_F4_E2M1FN] = {"float4_e2m1fn", "|V1", NULL, 1, 1, 8, CKPT_DC_FLOAT},
    [CKPT_DT_F6_E2M3FN] = {"float6_e2m3fn", "|V1", NULL, 1, 1, 8, CKPT_DC_FLOAT},
    [CKPT_DT_F6_E3M2FN] = {"float6_e3m2fn", "|V1", NULL, 1, 1, 8, CKPT_DC_FLOAT},
    [CKPT_DT_I4] = {"int4", "|i1", NULL, 1, 1, 4, CKPT_DC_INT},
    [CKPT_DT_U4] = {"uint4", "|u1", NULL, 1, 1, 4, CKPT_DC_UINT},
    [CKPT_DT_I2] = {"int2", "|i1", NULL, 1, 1, 2, CKPT_DC_INT},
    [CKPT_DT_U2] = {"uint2", "|u1", NULL, 1, 1, 2, CKPT_DC_UINT},
    [CKPT_DT_I1] = {"int1", "|i1", NULL, 1, 1, 1, CKPT_DC_INT},
    [CKPT_DT_U1] = {"uint1", "|u1", NULL, 1, 1, 1, CKPT_DC_UINT},
    [CKPT_DT_OTHER] = {"other", "", NULL, 0, 1, 0, CKPT_DC_OTHER},
};

const struct ckpt_dtype_info *ckpt_dtype_info(enum ckpt_dtype dt)
{
    return &infos[(unsigned)dt < CKPT_DT_COUNT ? dt : CKPT_DT_OTHER];
}

/* --- by name */

bool ckpt_dtype_by_name(const char *name, enum ckpt_dtype *ret)
{
    for (enum ckpt_dtype dt = 0; dt < CKPT_DT_OTHER; dt++)
        if (!strcmp(name, infos[dt].name)) {
            *ret = dt;
            return true;
        }
    return false;
}

bool ckpt_dtype_by_safetensors(const char *name, enum ckpt_dtype *ret)
{
    for (enum ckpt_dtype dt = 0; dt < CKPT_DT_OTHER; dt++)
        if (infos[dt].safetensors && !strcmp(name, infos[dt].safetensors)) {
            *ret = dt;
            return true;
        }
    return false;
}

/*
 * A type string is an optional byte order and a kind with a size ("f4"), as np.dtype() reads it: '=' and '|' and none
 * mean native, and '?' is "b1". V1, V2 and V4 name no type for sure (whoever knows that a V2 is bfloat16 says so),
 * nor do "|i1" and "|u1" the small integers. Zarr 2 as TensorStore and Orbax write it has the types NumPy lacks as
 * bare names, without a byte order; these are little-endian.
 */
bool ckpt_dtype_by_descr(const char *descr, enum ckpt_dtype *ret, bool *ret_big)
{
    bool has_order = *descr && strchr("<>=|", *descr), is_big = *descr == '>';
    const char *code = descr + has_order;
    if (!strcmp(code, "?"))
        code = "b1";
    for (enum ckpt_dtype dt = 0; *code != 'V' && dt <= CKPT_DT_C128; dt++) {
        if (strcmp(code, infos[dt].descr + 1) != 0)
            continue;
        *ret = dt;
        *ret_big = is_big && infos[dt].swap > 1;
        return true;
    }
    *ret_big = false;
    return !has_order && ckpt_dtype_by_name(descr, ret);
}

/* --- stored bytes to shown bytes */

void ckpt_swap_words(void *data, size_t len, unsigned word)
{
    uint8_t *p = data;
    for (uint8_t *end = p + (word > 1 ? len : 0); p < end; p += word) {
        if (word == 2) {
            uint16_t v = __builtin_bswap16(ckpt_le16(p));
            memcpy(p, &v, sizeof v);
        } else if (word == 4) {
            uint32_t v = __builtin_bswap32(ckpt_le32(p));
            memcpy(p, &v, sizeof v);
        } else if (word == 8) {
            uint64_t v = __builtin_bswap64(ckpt_le64(p));
            memcpy(p, &v, sizeof v);
        } else
            for (unsigned i = 0; i < word / 2; i++) {
                uint8_t byte = p[i];
                p[i] = p[word - 1 - i];
                p[word - 1 - i] = byte;
            }
    }
}

void ckpt_dtype_swap(enum ckpt_dtype dt, void *data, size_t n)
{
    const struct ckpt_dtype_info *info = ckpt_dtype_info(dt);
    ckpt_swap_words(data, n * info->size, info->swap);
}

static uint8_t extend_small(const struct ckpt_dtype_info *info, uint8_t byte)
{
    unsigned sign = info->klass == CKPT_DC_INT ? 1u << (info->bits - 1) : 0;
    unsigned low = byte & ((1u << info->bits) - 1);
    return (uint8_t)((low ^ sign) - sign);
}

void ckpt_dtype_extend(enum ckpt_dtype dt, void *data, size_t n)
{
    const struct ckpt_dtype_info *info = ckpt_dtype_info(dt);
    uint8_t *p = data;
    if (info->klass == CKPT_DC_OTHER || info->bits >= 8)
        return;
    for (size_t i = 0; i < n; i++)
        p[i] = extend_small(info, p[i]);
}

void ckpt_dtype_flip(enum ckpt_dtype dt, unsigned parts, void *data, size_t n)
{
    const struct ckpt_dtype_info *info = ckpt_dtype_info(dt);
    bool complex = info->klass == CKPT_DC_COMPLEX;
    if (!complex && info->klass != CKPT_DC_FLOAT)
        return;
    for (uint8_t *p = data, *end = p + n * info->size; p < end; p += info->size) {
        if (parts & CKPT_FLIP_REAL)
            p[info->swap - 1] ^= 0x80;
        if (complex && parts & CKPT_FLIP_IMAG)
            p[info->size - 1] ^= 0x80;
    }
}

/* --- numbers */

/*
 * The small float formats, as ml_dtypes defines them (float8.h, mxfloat.h). A name says what is missing: "f" no
 * infinity, "n" one NaN pattern instead of the IEEE ones, "u" unsigned, "uz" no negative zero (its pattern is the
 * NaN).
 */
enum specials {
    IEEE,     /* all-ones exponent: infinity, or NaN */
    LAST_NAN, /* all-ones exponent and mantissa: NaN, of either sign */
    ZERO_NAN, /* the pattern of negative zero: NaN */
    FINITE,
};
static const struct small_float {
    uint8_t exp_bits, man_bits;
    int8_t bias;
    enum specials specials;
} small_floats[CKPT_DT_COUNT] = {
    [CKPT_DT_F16] = {5, 10, 15, IEEE},           [CKPT_DT_F8_E4M3FN] = {4, 3, 7, LAST_NAN},
    [CKPT_DT_F8_E4M3FNUZ] = {4, 3, 8, ZERO_NAN}, [CKPT_DT_F8_E4M3B11FNUZ] = {4, 3, 11, ZERO_NAN},
    [CKPT_DT_F8_E5M2] = {5, 2, 15, IEEE},        [CKPT_DT_F8_E5M2FNUZ] = {5, 2, 16, ZERO_NAN},
    [CKPT_DT_F8_E3M4] = {3, 4, 3, IEEE},         [CKPT_DT_F8_E4M3] = {4, 3, 7, IEEE},
    [CKPT_DT_F4_E2M1FN] = {2, 1, 1, FINITE},     [CKPT_DT_F6_E2M3FN] = {2, 3, 1, FINITE},
    [CKPT_DT_F6_E3M2FN] = {3, 2, 3, FINITE},
};

static double small_to_double(const struct small_float *f, unsigned bits)
{
    unsigned man_mask = (1u << f->man_bits) - 1, exp_mask = (1u << f->exp_bits) - 1;
    unsigned man = bits & man_mask, exp = bits >> f->man_bits & exp_mask;
    bool negative = bits >> (f->man_bits + f->exp_bits) & 1;
    double value;

    bool is_negative_zero = negative && !exp && !man, is_last = exp == exp_mask && man == man_mask;
    if (f->specials == ZERO_NAN && is_negative_zero)
        return NAN;
    if (f->specials == LAST_NAN && is_last)
        return NAN;
    if (f->specials == IEEE && exp == exp_mask)
        value = man ? NAN : INFINITY;
    else if (exp)
        value = ldexp(man + man_mask + 1, (int)exp - f->bias - f->man_bits);
    else
        value = ldexp(man, 1 - f->bias - f->man_bits);
    return negative ? -value : value;
}

static double float_to_double(enum ckpt_dtype dt, const void *element)
{
    const uint8_t *p = element;
    float f;
    double d;
    switch (dt) {
    case CKPT_DT_F64:
        memcpy(&d, p, sizeof d);
        return d;
    case CKPT_DT_F32:
        memcpy(&f, p, sizeof f);
        return (double)f;
    case CKPT_DT_BF16: { /* the upper half of a float32 */
        uint32_t bits = (uint32_t)ckpt_le16(p) << 16;
        memcpy(&f, &bits, sizeof f);
        return (double)f;
    }
    case CKPT_DT_F8_E8M0FNU: /* an exponent alone */
        return p[0] == 0xff ? NAN : ldexp(1, p[0] - 127);
    case CKPT_DT_F16:
        return small_to_double(&small_floats[dt], ckpt_le16(p));
    default:
        return small_to_double(&small_floats[dt], p[0]);
    }
}

static int64_t to_int64(const struct ckpt_dtype_info *info, const void *element)
{
    switch (info->size) {
    case 1:
        return (int8_t)extend_small(info, *(const uint8_t *)element);
    case 2:
        return (int16_t)ckpt_le16(element);
    case 4:
        return (int32_t)ckpt_le32(element);
    default:
        return (int64_t)ckpt_le64(element);
    }
}

static uint64_t to_uint64(const struct ckpt_dtype_info *info, const void *element)
{
    switch (info->size) {
    case 1:
        return extend_small(info, *(const uint8_t *)element);
    case 2:
        return ckpt_le16(element);
    case 4:
        return ckpt_le32(element);
    default:
        return ckpt_le64(element);
    }
}

enum ckpt_dtype ckpt_dtype_part(enum ckpt_dtype complex)
{
    switch (complex) {
    case CKPT_DT_C32:
        return CKPT_DT_F16;
    case CKPT_DT_C64:
        return CKPT_DT_F32;
    default:
        return CKPT_DT_F64;
    }
}

double ckpt_dtype_to_double(enum ckpt_dtype dt, const void *element)
{
    const struct ckpt_dtype_info *info = ckpt_dtype_info(dt);
    switch (info->klass) {
    case CKPT_DC_BOOL:
        return *(const uint8_t *)element != 0;
    case CKPT_DC_INT:
        return (double)to_int64(info, element);
    case CKPT_DC_UINT:
        return (double)to_uint64(info, element);
    case CKPT_DC_FLOAT:
        return float_to_double(dt, element);
    case CKPT_DC_COMPLEX:
        return float_to_double(ckpt_dtype_part(dt), element);
    default:
        return NAN;
    }
}

/* --- JSON */

/* Python's float_repr: an exponent below 1e-4 and from 1e16, of at least two digits; else a point with a digit after
 * it. */
void ckpt_add_json_double(struct ckpt_buf *buf, double value)
{
    struct ckpt_digits d;
    if (isnan(value)) {
        ckpt_buf_adds(buf, "NaN");
        return;
    }
    if (signbit(value))
        ckpt_buf_addc(buf, '-');
    if (isinf(value)) {
        ckpt_buf_adds(buf, "Infinity");
        return;
    }
    ckpt_digits_shortest(&d, value, CKPT_DIGITS_F64);
    if (d.exp10 < -4 || d.exp10 >= 16) {
        ckpt_buf_addc(buf, d.text[0]);
        if (d.len > 1)
            ckpt_buf_addf(buf, ".%s", d.text + 1);
        ckpt_buf_addf(buf, "e%c%02d", d.exp10 < 0 ? '-' : '+', abs(d.exp10));
        return;
    }
    for (int at = CKPT_MIN(d.exp10, 0); at <= CKPT_MAX(d.exp10 + 1, d.len - 1); at++) {
        bool is_known = at >= 0 && at < d.len;
        if (at == d.exp10 + 1)
            ckpt_buf_addc(buf, '.');
        ckpt_buf_addc(buf, is_known ? d.text[at] : '0');
    }
}

void ckpt_add_json_number(struct ckpt_buf *buf, double value)
{
    if (value == rint(value) && fabs(value) < 0x1p63)
        ckpt_buf_addf(buf, "%.0f", value);
    else
        ckpt_add_json_double(buf, value);
}

bool ckpt_dtype_add_json(struct ckpt_buf *buf, enum ckpt_dtype dt, const void *element)
{
    const struct ckpt_dtype_info *info = ckpt_dtype_info(dt);
    switch (info->klass) {
    case CKPT_DC_BOOL:
        ckpt_buf_adds(buf, *(const uint8_t *)element ? "true" : "false");
        return true;
    case CKPT_DC_INT:
        ckpt_buf_addf(buf, "%" PRId64, to_int64(info, element));
        return true;
    case CKPT_DC_UINT:
        ckpt_buf_addf(buf, "%" PRIu64, to_uint64(info, element));
        return true;
    case CKPT_DC_FLOAT:
        ckpt_add_json_double(buf, float_to_double(dt, element));
        return true;
    default:
        return false;
    }
}

/* --- from JSON text --- */

static bool is_whole(const char *text)
{
    return *text && strspn(text, "-0123456789") == strlen(text);
}

static bool is_float(const char *text)
{
    return *text && strchr("-0123456789NI", *text) && !is_whole(text);
}

static bool is_word(const char *text)
{
    return !strcmp(text, "true") || !strcmp(text, "false");
}

enum ckpt_dtype ckpt_dtype_for_json(const char *text)
{
    uint8_t element[16];
    if (is_word(text))
        return CKPT_DT_BOOL;
    if (is_float(text))
        return CKPT_DT_F64;
    if (!is_whole(text))
        return CKPT_DT_OTHER;
    if (ckpt_dtype_of_json(CKPT_DT_I64, text, element))
        return CKPT_DT_I64;
    return ckpt_dtype_of_json(CKPT_DT_U64, text, element) ? CKPT_DT_U64 : CKPT_DT_OTHER;
}

static bool integer_of_json(const struct ckpt_dtype_info *info, const char *text, void *ret)
{
    bool is_signed = info->klass == CKPT_DC_INT;
    char *end;
    if (!is_whole(text) || (*text == '-' && !is_signed))
        return false;
    errno = 0;
    uint64_t n = is_signed ? (uint64_t)strtoll(text, &end, 10) : strtoull(text, &end, 10);
    if (errno || *end)
        return false;
    bool negative = is_signed && (int64_t)n < 0;
    uint64_t magnitude = negative ? ~n : n; /* of a negative number as of the positive one before its opposite */
    unsigned room = is_signed ? info->bits - 1u : info->bits;
    if (room < 64 && magnitude >> room)
        return false;
    memcpy(ret, &n, info->size); /* little-endian, as everything is kept */
    return true;
}

/* NaN is equal to NaN, and 0 is not to -0. */
static bool same_number(double a, double b)
{
    if (isnan(a) || isnan(b))
        return isnan(a) && isnan(b);
    return a == b && !signbit(a) == !signbit(b);
}

/* All numbers of 8 bits are tried. */
static bool byte_of_double(enum ckpt_dtype dt, double want, uint8_t *ret)
{
    for (unsigned code = 0; code < 256; code++) {
        *ret = (uint8_t)code;
        if (same_number(ckpt_dtype_to_double(dt, ret), want))
            return true;
    }
    return false;
}

/* Codes of 16 bits without the sign stand in the order of their numbers, up to infinity; NaN comes last. */
static bool half_of_double(enum ckpt_dtype dt, double want, uint8_t *ret)
{
    uint16_t low = 0, high = 0x7fff;
    while (low < high) {
        uint16_t middle = (uint16_t)(low + (high - low) / 2);
        double have = ckpt_dtype_to_double(dt, &middle);
        bool below = have < fabs(want) || (isnan(want) && !isnan(have));
        low = below ? (uint16_t)(middle + 1) : low;
        high = below ? high : middle;
    }
    low |= signbit(want) && !isnan(want) ? 0x8000 : 0;
    memcpy(ret, &low, sizeof low);
    return same_number(ckpt_dtype_to_double(dt, &low), want);
}

static bool float_of_json(enum ckpt_dtype dt, const char *text, uint8_t *ret)
{
    char *end;
    if (!is_float(text))
        return false;
    double d = strtod(text, &end);
    float f = (float)d;
    if (*end)
        return false;
    switch (ckpt_dtype_info(dt)->size) {
    case 1:
        return byte_of_double(dt, d, ret);
    case 2:
        return half_of_double(dt, d, ret);
    case 4:
        memcpy(ret, &f, sizeof f);
        return same_number(f, d);
    default:
        memcpy(ret, &d, sizeof d);
        return true;
    }
}

bool ckpt_dtype_of_json(enum ckpt_dtype dt, const char *text, void *ret_element)
{
    const struct ckpt_dtype_info *info = ckpt_dtype_info(dt);
    switch (info->klass) {
    case CKPT_DC_BOOL:
        *(uint8_t *)ret_element = *text == 't';
        return is_word(text);
    case CKPT_DC_INT:
    case CKPT_DC_UINT:
        return integer_of_json(info, text, ret_element);
    case CKPT_DC_FLOAT:
        return float_of_json(dt, text, ret_element);
    default:
        return false;
    }
}
