/* SPDX-License-Identifier: Apache-2.0 */
/* FNV-1a in 64 bits, for hash tables whose keys are short. It does not withstand keys that are chosen to collide; mix a
 * secret in first where that matters. */
#ifndef CKPT_BASE_HASH_H
#define CKPT_BASE_HASH_H

#include <stddef.h>
#include <stdint.h>

#define CKPT_FNV_BEGIN 0xcbf29ce484222325u

/* Goes on from h: CKPT_FNV_BEGIN, or the hash of what came before. */
static inline uint64_t ckpt_fnv(uint64_t h, const void *data, size_t len)
{
    const uint8_t *p = data;
    for (size_t i = 0; i < len; i++)
        h = (h ^ p[i]) * 0x100000001b3u;
    return h;
}

#endif
