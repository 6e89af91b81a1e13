/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Specifications of TensorStore in the place of arrays, as T5X writes them (t5x/checkpoints.py): a map of the driver
 * "zarr", a key-value store and metadata, which stands for a Zarr array in the folder of the msgpack file. Where the
 * store was does not matter, only which folder below the checkpoint it names.
 */
#ifndef CKPT_FORMAT_FLAX_SPEC_H
#define CKPT_FORMAT_FLAX_SPEC_H

#include "core/format/msgpack.h"
#include "core/io/pins.h"

/*
 * Is the map whose token was taken last a specification? 1: the cursor is behind it, and *path has the path that it
 * names (appended), its empty parts and those that are "." left out. 0: it is not, and the cursor stands where it was.
 */
int ckpt_flax_spec(struct ckpt_mp *mp, const struct ckpt_mp_token *map, struct ckpt_buf *path,
                   struct ckpt_err *err) CKPT_MUST_USE;

/* How many parts of the paths, from the front, are of the place where the checkpoint was written. */
#define CKPT_FLAX_SPEC_PARTS 64
/* A path without its first parts; at least one part stays. */
const char *ckpt_flax_spec_tail(const char *path, unsigned parts);
/* Is there a Zarr array at a path in a folder of pins? */
bool ckpt_flax_spec_is_there(struct ckpt_pins *pins, const char *folder, const char *path);

#endif
