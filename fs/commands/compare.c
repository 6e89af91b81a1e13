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

/* NaN is NaN, and equal infinities have no distance. */
static bool is_same_number(double x, double y)
{
    return x == y || (isnan(x) && isnan(y));
}

/* |a - b|, and |b|. */
static double distance(enum ckpt_dtype dt, const uint8_t *a, const uint8_t *b, double *ret_size)
{
    const struct ckpt_dtype_info *info = ckpt_dtype_info(dt);
    double x = ckpt_dtype_to_double(dt, a), y = ckpt_dtype_to_double(dt, b);
    *ret_size = fabs(y);
    if (info->klass == CKPT_DC_COMPLEX) {
        enum ckpt_dtype part = ckpt_dtype_part(dt);
        size_t half = info->size / 2;
        double xi = ckpt_dtype_to_double(part, a + half), yi = ckpt_dtype_to_double(part, b + half);
        *ret_size = hypot(y, yi);
        return hypot(x - y, xi - yi);
    }
    bool is_signed = info->klass == CKPT_DC_INT, is_integer = is_signed || info->klass == CKPT_DC_UINT;
    if (is_integer && info->size == 8)
        return distance64(is_signed, a, b);
    return is_same_number(x, y) ? 0 : fabs(x - y);
}

static void count_different(struct fs_compare *c, double d)
{
    c->different++;
    if (isnan(d) || d > c->max)
        c->max = d;
}

static void compare_element(struct fs_compare *c, const uint8_t *a, const uint8_t *b)
{
    double size;
    if (c->dtype == CKPT_DT_OTHER) {
        count_different(c, NAN);
        return;
    }
    double d = distance(c->dtype, a, b, &size);
    bool has_tolerance = c->rtol > 0 || c->atol > 0; /* without one, -0.0 is not 0.0 */
    if (has_tolerance && d <= c->atol + c->rtol * size)
        return;
    count_different(c, d);
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
        double d = fabs(x - y);
        if (is_same_number(x, y) || d <= c->atol + c->rtol * fabs(y))
            continue;
        count_different(c, d);
    }
}
