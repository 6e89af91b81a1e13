/* SPDX-License-Identifier: Apache-2.0 */
#include "core/format/gguf/gguf.h"

const struct ckpt_reader ckpt_gguf_reader = {.name = "gguf"};
