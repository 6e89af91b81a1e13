/* SPDX-License-Identifier: Apache-2.0 */
/* BASE.safetensors.index.json: which tensor is in which file of a folder. */
#ifndef CKPT_FORMAT_SAFETENSORS_INDEX_H
#define CKPT_FORMAT_SAFETENSORS_INDEX_H

#include "core/format/safetensors/tokens.h"

#define SAFETENSORS_INDEX ".safetensors.index.json"

/* shard: a plain name of a file. Returning below 0 stops the walk. */
typedef int safetensors_index_visit(void *arg, const struct ckpt_buf *tensor, const char *shard);
/* All of its map; *metadata (NULL: not wanted) becomes the index's own, a JSON object or nothing. The whole text is
 * checked. */
int ckpt_safetensors_index_each(struct ckpt_file *file, safetensors_index_visit *visit, void *arg,
                                struct ckpt_buf *metadata, struct ckpt_err *err) CKPT_MUST_USE;

#endif
