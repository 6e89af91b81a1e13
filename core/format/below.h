/* SPDX-License-Identifier: Apache-2.0 */
/* Checkpoints below a directory. No state, any thread. */
#ifndef CKPT_FORMAT_BELOW_H
#define CKPT_FORMAT_BELOW_H

#include "core/format/format.h"

#define CKPT_MAX_BELOW        4096 /* entries that are looked at */
#define CKPT_MAX_BELOW_LEVELS 8

/* A ckpt_below_fn. What cannot be read has none. */
int ckpt_below(struct ckpt_backend *folder, const char *dir) CKPT_MUST_USE;

#endif
