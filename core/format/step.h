/* SPDX-License-Identifier: Apache-2.0 */
/* Names of steps. */
#ifndef CKPT_FORMAT_STEP_H
#define CKPT_FORMAT_STEP_H

#include <stdbool.h>
#include <stddef.h>

/* The number in a step's name: "7", "step_0007", "checkpoint-500", "epoch=3-step=1000". All digits, behind a prefix
 * that ends in '_', '-' or '=' if there is one. With `any` also what flax.training writes behind a '_' (sign, fraction,
 * exponent); else no name with a dot has one. */
bool ckpt_step_number(const char *name, bool any, double *ret);

/* The same of letters and digits, "global_step500": so is many a name that means no step, so it is for directories that
 * are checkpoints. */
bool ckpt_step_number_glued(const char *name, double *ret);

/* Is it a step's name where nothing else tells: digits, or behind a '_'? */
bool ckpt_step_is_plain(const char *name);

/* Bytes of the name before its number; what is no step's name is all prefix. */
size_t ckpt_step_prefix(const char *name);

#endif
