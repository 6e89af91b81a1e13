/* SPDX-License-Identifier: Apache-2.0 */
/* Private to the Flax reader: what a name, and if need be the first bytes of a file, say. */
#ifndef CKPT_FORMAT_FLAX_PROBE_H
#define CKPT_FORMAT_FLAX_PROBE_H

#include "core/format/format.h"

extern const char *const ckpt_flax_suffixes[];
unsigned ckpt_flax_begins(const struct ckpt_content *c);
bool ckpt_flax_is_damaged(const struct ckpt_content *c);
int ckpt_flax_probe_file(struct ckpt_backend *dir, const char *path, struct ckpt_probe *ret);
bool ckpt_flax_plain_name(const char *name);

#endif
