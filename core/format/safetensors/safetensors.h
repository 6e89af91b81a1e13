/* SPDX-License-Identifier: Apache-2.0 */
/* safetensors: single files, and folders of shards with an index. */
#ifndef CKPT_FORMAT_SAFETENSORS_SAFETENSORS_H
#define CKPT_FORMAT_SAFETENSORS_SAFETENSORS_H

#include "core/format/format.h"

extern const struct ckpt_format ckpt_safetensors_format;

#endif
