/* SPDX-License-Identifier: Apache-2.0 */
/* Items of Orbax without metadata, told from folders of arrays that are not its. */
#ifndef CKPT_FORMAT_ORBAX_LEGACY_H
#define CKPT_FORMAT_ORBAX_LEGACY_H

#include "core/io/backend.h"

/* Is the msgpack file `checkpoint` in a directory? */
bool ckpt_orbax_has_aggregate(struct ckpt_backend *dir, const char *sub);
/* Nothing but directories that are arrays, with names that are joined with dots, and Orbax's own files. */
bool ckpt_orbax_is_bare_item(struct ckpt_backend *dir);

#endif
