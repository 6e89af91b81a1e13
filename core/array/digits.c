/* SPDX-License-Identifier: Apache-2.0 */
#include "core/array/digits.h"

#include "core/base/util.h"

#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Digits that always suffice: 17 for float64 (IEEE 754), fewer for the others. */
#define MOST_DIGITS 17

/* The nearest float16, ties to even: 11 bits down to 2^-14, then steps of 2^-24. */
double ckpt_nearest_f16(double value)
{
    int exp;
    frexp(value, &exp);
    exp = (exp - 1 < -14 ? -14 : exp - 1) - 10;
    return ldexp(rint(ldexp(value, -exp)), exp);
}

/* What text reads as. float32 is read in one rounding: through a double there would be two. */
static bool reads_back(const char *text, double value, enum ckpt_digits_width width)
{
    if (width == CKPT_DIGITS_F32)
        return strtof(text, NULL) == (float)value;
    double got = strtod(text, NULL);
    return (width == CKPT_DIGITS_F16 ? ckpt_nearest_f16(got) : got) == value;
}

/* Add one in the last place. */
static void next_up(struct ckpt_digits *d)
{
    int i = d->len;
    while (i > 0 && d->text[i - 1] == '9')
        i--;
    if (i == 0) {
        d->exp10++;
        d->text[i++] = '1';
    } else
        d->text[i - 1]++;
    d->len = i;
    d->text[i] = 0;
}

static void trim_zeros(struct ckpt_digits *d)
{
    while (d->len > 1 && d->text[d->len - 1] == '0')
        d->len--;
    d->text[d->len] = 0;
}

/* As an integer and an exponent, which strtod reads alike in every locale. */
static bool digits_read_back(const struct ckpt_digits *d, double value, enum ckpt_digits_width width)
{
    char text[48];
    snprintf(text, sizeof text, "%se%d", d->text, d->exp10 - (d->len - 1));
    return reads_back(text, value, width);
}

/* True if they read back as value. */
static bool try_digits(struct ckpt_digits *ret, double value, enum ckpt_digits_width width, int n)
{
    char text[48];
    snprintf(text, sizeof text, "%.*e", n - 1, value);
    char *exp = strchr(text, 'e');
    ret->len = 0;
    for (const char *p = text; p < exp; p++) /* the decimal point is the locale's: not a digit, skipped */
        if (ckpt_is_digit(*p) && ret->len < MOST_DIGITS)
            ret->text[ret->len++] = *p;
    ret->text[ret->len] = 0;
    ret->exp10 = atoi(exp + 1);
    if (digits_read_back(ret, value, width))
        return true;
    struct ckpt_digits up = *ret;
    next_up(&up);
    if (!digits_read_back(&up, value, width))
        return false;
    *ret = up;
    return true;
}

/*
 * printf gives the nearest decimal of a length. That is enough, except at a power of two: its lower neighbour is
 * nearer than its upper one, so that the nearest decimal, below, may read back as the neighbour when the next one,
 * above, does not. Python and NumPy take the latter (2^-44 is 5.684341886080802e-14), hence the second try above.
 */
void ckpt_digits_fixed(struct ckpt_digits *ret, double value, enum ckpt_digits_width width, int n)
{
    *ret = (struct ckpt_digits){.text = "0", .len = 1};
    if (value == 0)
        return;
    try_digits(ret, fabs(value), width, n);
    trim_zeros(ret);
}

void ckpt_digits_shortest(struct ckpt_digits *ret, double value, enum ckpt_digits_width width)
{
    *ret = (struct ckpt_digits){.text = "0", .len = 1};
    if (value == 0)
        return;
    for (int n = 1; n <= MOST_DIGITS && !try_digits(ret, fabs(value), width, n); n++)
        ;
    trim_zeros(ret);
}
