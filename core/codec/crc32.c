/* SPDX-License-Identifier: Apache-2.0 */
/* The CRC-32 of zip, which is kept apart from the data: they pass as they are, and are checked where they end. */
#include "core/codec/codec.h"

#include "core/base/util.h"

#include <zlib.h>

static int crc_open(struct ckpt_stage *stage, struct ckpt_err *err)
{
    stage->state = calloc(1, sizeof(uint32_t));
    /* More than a reader could be made to wait for is shown before its end has been seen. */
    stage->checks_at_end = stage->expect <= CKPT_CODEC_HELD;
    return stage->state ? 0 : ckpt_no_memory(err);
}

static ssize_t crc_read(struct ckpt_stage *stage, void *buf, size_t len, struct ckpt_err *err)
{
    uint32_t *crc = stage->state;
    ssize_t n = ckpt_stage_pull(stage, buf, len, err);
    if (n < 0)
        return n;
    *crc = (uint32_t)crc32_z(*crc, buf, (size_t)n);
    if ((size_t)n < len && *crc != stage->crc32)
        return ckpt_fail(err, EBADMSG, "the CRC-32 is %08x, not %08x as stored", *crc, stage->crc32);
    return n;
}

static void crc_close(struct ckpt_stage *stage)
{
    free(stage->state);
}

const struct ckpt_codec_ops ckpt_codec_crc32_check = {
    .name = "crc32",
    .open = crc_open,
    .read = crc_read,
    .close = crc_close,
};
