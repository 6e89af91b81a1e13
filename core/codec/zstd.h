/* SPDX-License-Identifier: Apache-2.0 */
/* A single zstd frame in memory whose decoded size is not known beforehand. Not for chunks: see stream.h. */
#ifndef CKPT_CODEC_ZSTD_H
#define CKPT_CODEC_ZSTD_H

#include "core/base/err.h"

#include <stddef.h>
#include <stdint.h>

/*
 * Decodes src, which must be exactly one frame, into fresh memory for the caller to free: at most max bytes, and
 * never more memory than was decoded warrants, whatever the frame's header says.
 * -EBADMSG damaged, truncated or longer, -EOPNOTSUPP a window or a dictionary that is not supported.
 */
int ckpt_zstd_frame(const uint8_t *src, size_t src_len, size_t max, uint8_t **ret, size_t *ret_len,
                    struct ckpt_err *err) CKPT_MUST_USE;

#endif
