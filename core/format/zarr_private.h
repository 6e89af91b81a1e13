/* SPDX-License-Identifier: Apache-2.0 */
/* Private to Zarr: how an array is cut into objects. zarr.c parses it, zarr_chunk.c finds chunks by it. */
#ifndef CKPT_FORMAT_ZARR_PRIVATE_H
#define CKPT_FORMAT_ZARR_PRIVATE_H

#include "core/format/zarr.h"

/* One sharding_indexed codec: the chunk of this level is cut into a grid of inner ones. */
struct level {
    uint64_t chunk[CKPT_MAX_DIMS]; /* elements of the shard, in the array's dimensions */
    uint64_t inner[CKPT_MAX_DIMS]; /* of its inner chunks */
    unsigned order[CKPT_MAX_DIMS]; /* the i-th dimension as the shard counts is the array's order[i] */
    struct ckpt_codec_chain outer; /* what the shard as a whole is encoded with */
    uint64_t count;                /* inner chunks */
    bool index_crc, index_first, index_big;
};

struct zarr {
    char separator;
    bool c_prefix; /* keys are c/0/1 */
    bool fill_known;
    unsigned levels;
    struct level level[];
};

#endif
