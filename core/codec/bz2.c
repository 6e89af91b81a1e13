/* SPDX-License-Identifier: Apache-2.0 */
#include "core/codec/codec.h"

#include "core/base/util.h"

#include <bzlib.h>

#define PIECE ((size_t)1 << 30) /* libbz2 counts in unsigned int */

struct bz2_state {
    bz_stream z;
    bool begun; /* z is initialised: inside a stream */
    uint64_t streams;
    bool ended;
};

static int bz2_open(struct ckpt_stage *stage, struct ckpt_err *err)
{
    stage->checks_at_end = true;
    stage->state = calloc(1, sizeof(struct bz2_state));
    return stage->state ? 0 : ckpt_no_memory(err);
}

static void bz2_close(struct ckpt_stage *stage)
{
    struct bz2_state *s = stage->state;
    if (s && s->begun)
        BZ2_bzDecompressEnd(&s->z);
    free(s);
}

/* Begins the next of the concatenated streams, or notes the end. */
static int bz2_next(struct ckpt_stage *stage, struct ckpt_err *err)
{
    struct bz2_state *s = stage->state;
    int f = ckpt_stage_fill(stage, err);
    if (f < 0)
        return f;
    if (f == 0) {
        if (!s->streams)
            return ckpt_codec_fail_truncated(err, "bz2");
        s->ended = true;
        return 0;
    }
    s->z = (bz_stream){0};
    if (BZ2_bzDecompressInit(&s->z, 0, 0) != BZ_OK)
        return ckpt_no_memory(err);
    s->begun = true;
    s->streams++;
    return 0;
}

static ssize_t bz2_read(struct ckpt_stage *stage, void *buf, size_t len, struct ckpt_err *err)
{
    struct bz2_state *s = stage->state;
    size_t done = 0;
    while (done < len && !s->ended) {
        if (!s->begun) {
            int r = bz2_next(stage, err);
            if (r < 0)
                return r;
            continue;
        }
        s->z.next_in = (char *)stage->in;
        s->z.avail_in = (unsigned)CKPT_MIN(stage->in_len, PIECE);
        s->z.next_out = (char *)buf + done;
        s->z.avail_out = (unsigned)CKPT_MIN(len - done, PIECE);
        unsigned in = s->z.avail_in, out = s->z.avail_out;
        int r = BZ2_bzDecompress(&s->z);
        in -= s->z.avail_in;
        out -= s->z.avail_out;
        stage->in += in;
        stage->in_len -= in;
        done += out;
        if (r == BZ_STREAM_END) {
            BZ2_bzDecompressEnd(&s->z);
            s->begun = false;
        } else if (r == BZ_MEM_ERROR) {
            return ckpt_no_memory(err);
        } else if (r != BZ_OK) {
            return ckpt_fail(err, EBADMSG, "bz2: damaged data");
        } else if (!out && !stage->in_len) {
            int f = ckpt_stage_fill(stage, err);
            if (f < 0)
                return f;
            if (f == 0)
                return ckpt_codec_fail_truncated(err, "bz2");
        } else if (!out && !in) {
            return ckpt_fail(err, EBADMSG, "bz2: damaged data");
        }
    }
    return (ssize_t)done;
}

const struct ckpt_codec_ops ckpt_codec_bz2 = {
    .name = "bz2",
    .open = bz2_open,
    .read = bz2_read,
    .close = bz2_close,
};
