/* SPDX-License-Identifier: Apache-2.0 */
/* GGUF files. */
#ifndef CKPT_FORMAT_GGUF_GGUF_H
#define CKPT_FORMAT_GGUF_GGUF_H

#include "core/format/format.h"

extern const struct ckpt_format ckpt_gguf_format;

#endif
