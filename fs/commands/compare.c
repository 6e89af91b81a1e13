/* SPDX-License-Identifier: Apache-2.0 */
#include "fs/commands/compare.h"

#include "core/base/util.h"

#include <math.h>

/* Beyond 2^53 doubles would make different integers equal. */
static double distance64(bool is_signed, const uint8_t *a, const uint8_t *b)
{
    uint64_t x = ckpt_le64(a), y = ckpt_le64(b);
    bool less = is_signed ? (int64_t)x < (int64_t)y : x < y;
    return (double)(less ? y - x : x - y);
}

static enum ckpt_dtype part_of(enum ckpt_dtype complex)
{
    return complex == CKPT_DT_C32 ? CKPT_DT_F16 : complex == CKPT_DT_C64 ? CKPT_DT_F32 : CKPT_DT_F64;
}

/* |a - b|, and |b|. */
static double distance(enum ckpt_dtype dt, const uint8_t *a, const uint8_t *b, double *ret_size)
{
    const struct ckpt_dtype_info *info = ckpt_dtype_info(dt);
    double x = ckpt_dtype_to_double(dt, a), y = ckpt_dtype_to_double(dt, b);
    *ret_size = fabs(y);
    if (info->klass == CKPT_DC_COMPLEX) {
        enum ckpt_dtype part = part_of(dt);
        size_t half = info->size / 2;
        double xi = ckpt_dtype_to_double(part, a + half), yi = ckpt_dtype_to_double(part, b + half);
        *ret_size = hypot(y, yi);
        return hypot(x - y, xi - yi);
    }
    if ((info->klass == CKPT_DC_INT || info->klass == CKPT_DC_UINT) && info->size == 8)
        return distance64(info->klass == CKPT_DC_INT, a, b);
    if (isnan(x) && isnan(y))
        return 0;
    return x == y ? 0 : fabs(x - y); /* equal infinities have no distance */
}

static void compare_element(struct fs_compare *c, const uint8_t *a, const uint8_t *b)
{
    double size, d;
    if (c->dtype == CKPT_DT_OTHER) {
        c->max = NAN;
        c->different++;
        return;
    }
    d = distance(c->dtype, a, b, &size);
    if ((c->rtol > 0 || c->atol > 0) && d <= c->atol + c->rtol * size)
        return;
    c->different++;
    if (isnan(d) || d > c->max)
        c->max = d;
}

/* Elements larger than a block, of types without numbers: byte by byte. */
static void compare_bytes(struct fs_compare *c, const uint8_t *a, const uint8_t *b, size_t len, uint64_t off)
{
    c->max = NAN;
    for (size_t i = 0; i < len; i++) {
        uint64_t element = (off + i) / c->itemsize;
        if (a[i] == b[i] || element + 1 == c->last)
            continue;
        c->last = element + 1;
        c->different++;
    }
}

void fs_compare_block(struct fs_compare *c, const uint8_t *a, const uint8_t *b, size_t len, uint64_t off)
{
    if (!memcmp(a, b, len))
        return;
    if (len % c->itemsize || off % c->itemsize) {
        compare_bytes(c, a, b, len, off);
        return;
    }
    for (size_t i = 0; i < len; i += c->itemsize)
        if (memcmp(a + i, b + i, c->itemsize))
            compare_element(c, a + i, b + i);
}

void fs_compare_mixed(struct fs_compare *c, const uint8_t *a, const uint8_t *b, size_t n)
{
    size_t step = ckpt_dtype_info(c->dtype)->size, other_step = ckpt_dtype_info(c->other)->size;
    for (size_t i = 0; i < n; i++) {
        double x = ckpt_dtype_to_double(c->dtype, a + i * step), y = ckpt_dtype_to_double(c->other, b + i * other_step);
        bool is_equal = x == y || (isnan(x) && isnan(y));
        double d = fabs(x - y);
        if (is_equal || d <= c->atol + c->rtol * fabs(y))
            continue;
        c->different++;
        if (isnan(d) || d > c->max)
            c->max = d;
    }
}
