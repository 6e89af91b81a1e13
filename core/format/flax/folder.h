/* SPDX-License-Identifier: Apache-2.0 */
/* Private to the Flax reader: a folder of shards that BASE.msgpack.index.json joins to one tree, as transformers saves
 * it. */
#ifndef CKPT_FORMAT_FLAX_FOLDER_H
#define CKPT_FORMAT_FLAX_FOLDER_H

#include "core/format/format.h"

#define FLAX_INDEX ".msgpack.index.json"

int ckpt_flax_folder_open(const struct ckpt_opening *o, struct ckpt_tree **ret, struct ckpt_err *err) CKPT_MUST_USE;

#endif
