/* SPDX-License-Identifier: Apache-2.0 */
#include "core/format/flax/flax.h"

const struct ckpt_reader ckpt_flax_reader = {.name = "flax-msgpack"};
