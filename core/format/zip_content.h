/* SPDX-License-Identifier: Apache-2.0 */
/* The content of a zip archive's members as bytes of a file, whether they are stored or deflated. Any thread. */
#ifndef CKPT_FORMAT_ZIP_CONTENT_H
#define CKPT_FORMAT_ZIP_CONTENT_H

#include "core/format/zip.h"
#include "core/tree/chunk.h"

/*
 * A stored member lies in the archive's file. A deflated one is inflated into the chunk cache, in one pass and as far
 * as it is read, as the chunk of this key; the file that *ret is of may be read while the reader holds a chunk that
 * takes no memory, but no other. The caller clears *ret.
 */
int ckpt_zip_content(struct ckpt_zip *z, uint32_t i, struct ckpt_cache *cache, const struct ckpt_chunk_key *key,
                     struct ckpt_extent *ret, struct ckpt_err *err) CKPT_MUST_USE;

#endif
