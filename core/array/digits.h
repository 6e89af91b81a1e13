/* SPDX-License-Identifier: Apache-2.0 */
/* The shortest decimal digits of a binary float: what Python's repr() and NumPy's printing start from. */
#ifndef CKPT_ARRAY_DIGITS_H
#define CKPT_ARRAY_DIGITS_H

enum ckpt_digits_width { CKPT_DIGITS_F16, CKPT_DIGITS_F32, CKPT_DIGITS_F64 };

/* The number is text[0].text[1]text[2]... * 10^exp10. No trailing zeros; zero is "0" with exponent 0. */
struct ckpt_digits {
    char text[20]; /* NUL-terminated */
    int len, exp10;
};

/* Of |value|, which is finite and exactly representable in that width: the fewest digits that read back as it and of
 * those the nearest; a tie goes to the even digit. */
void ckpt_digits_shortest(struct ckpt_digits *ret, double value, enum ckpt_digits_width width);
/* The same with at most n digits (1 to 17), which need not read back: the nearest. */
void ckpt_digits_fixed(struct ckpt_digits *ret, double value, enum ckpt_digits_width width, int n);
/* The nearest float16 of a number (beyond the largest, not infinity but a larger number). */
double ckpt_nearest_f16(double value);

#endif
