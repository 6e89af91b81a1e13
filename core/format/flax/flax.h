/* SPDX-License-Identifier: Apache-2.0 */
/* The msgpack files of flax.training.checkpoints and flax.serialization.to_bytes. */
#ifndef CKPT_FORMAT_FLAX_FLAX_H
#define CKPT_FORMAT_FLAX_FLAX_H

#include "core/format/format.h"

extern const struct ckpt_format ckpt_flax_format;

#endif
