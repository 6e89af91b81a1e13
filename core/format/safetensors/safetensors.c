/* SPDX-License-Identifier: Apache-2.0 */
#include "core/format/safetensors/safetensors.h"

const struct ckpt_reader ckpt_safetensors_reader = {.name = "safetensors"};
