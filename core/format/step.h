/* SPDX-License-Identifier: Apache-2.0 */
/* Names of steps. */
#ifndef CKPT_FORMAT_STEP_H
#define CKPT_FORMAT_STEP_H

#include <stdbool.h>

/* The number in a step's name ("7", "step_0007"): all digits, behind a prefix and '_' if there is one; with `any` also
 * what flax.training writes (sign, fraction, exponent). */
bool ckpt_step_number(const char *name, bool any, double *ret);

#endif
