/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Checkpoints that Orbax wrote, of every generation (docs/orbax.md): a directory that is an item, or a step with items,
 * as a tree.
 */
#ifndef CKPT_FORMAT_ORBAX_ORBAX_H
#define CKPT_FORMAT_ORBAX_ORBAX_H

#include "core/format/format.h"

extern const struct ckpt_format ckpt_orbax_format;

#endif
