/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Private to core/codec: what a decoder is, and what it may ask of the layer below it. A stage is one decoder of a
 * chain; its input is the stage below, or the extent. Stages belong to one stream, so to one thread at a time.
 */
#ifndef CKPT_CODEC_CODEC_H
#define CKPT_CODEC_CODEC_H

#include "core/codec/stream.h"

#define CKPT_CODEC_WINDOW    ((size_t)256 << 10)   /* input that a stage reads at once */
#define CKPT_CODEC_HELD      ((size_t)64 << 20)    /* whole inputs above this go to a temporary file */
#define CKPT_CODEC_WHOLE_MAX ((uint64_t)256 << 20) /* decoded at most for codecs that cannot be decoded in parts */
#define CKPT_CODEC_UNKNOWN   CKPT_DECODED_UNKNOWN

struct ckpt_stage {
    const struct ckpt_codec_ops *ops;
    struct ckpt_stage *below;         /* NULL: the extent */
    const struct ckpt_extent *extent; /* borrowed from the stream */
    uint64_t extent_pos;
    const uint8_t *in; /* input not used yet, in the window or in the extent's own bytes */
    size_t in_len;
    uint8_t *window;
    uint64_t expect;    /* length that the output must have, or CKPT_DECODED_UNKNOWN */
    uint32_t crc32;     /* the chain's */
    uint8_t *output;    /* where all that is read will lie, or NULL */
    bool checks_at_end; /* as ckpt_stream_checks_at_end() says */
    void *state;
};

struct ckpt_codec_ops {
    const char *name;
    size_t tail; /* bytes of a checksum behind the data, which are as they were; 0: this is another kind of encoding */
    /* Sets stage->state; the first read has not happened. NULL: nothing to do. */
    int (*open)(struct ckpt_stage *stage, struct ckpt_err *err);
    /* Exactly len bytes, len > 0; fewer only when the data ended and all checks of their end held. */
    ssize_t (*read)(struct ckpt_stage *stage, void *buf, size_t len, struct ckpt_err *err);
    void (*close)(struct ckpt_stage *stage); /* NULL: nothing to do; also after a failed open */
    /* From memory to memory, exactly dst_len bytes, all checks made. dst NULL: of a checksum, checked only. NULL: only
     * as a stream. */
    int (*decode)(const uint8_t *src, size_t src_len, uint8_t *dst, size_t dst_len, struct ckpt_err *err);
};

extern const struct ckpt_codec_ops ckpt_codec_zstd, ckpt_codec_gzip, ckpt_codec_zlib, ckpt_codec_deflate,
    ckpt_codec_bz2, ckpt_codec_blosc, ckpt_codec_lz4, ckpt_codec_crc32c_check, ckpt_codec_xxh3_check,
    ckpt_codec_crc32_check;

/* Makes stage->in_len > 0; returns 1, or 0 at the end of the input, or an error. */
int ckpt_stage_fill(struct ckpt_stage *stage, struct ckpt_err *err) CKPT_MUST_USE;
/* The next bytes of the input, past the window: exactly len, fewer at its end. Not mixed with fill. */
ssize_t ckpt_stage_pull(struct ckpt_stage *stage, void *buf, size_t len, struct ckpt_err *err) CKPT_MUST_USE;

/* The whole of a stage's input, for codecs that need it at once. */
struct ckpt_whole {
    const uint8_t *data;
    size_t len;
    uint8_t *heap; /* one of the two, or neither: the extent's own bytes */
    void *map;
};
/* At most max bytes, else -EBADMSG. On failure *ret is cleared too. */
int ckpt_stage_whole(struct ckpt_stage *stage, uint64_t max, struct ckpt_whole *ret,
                     struct ckpt_err *err) CKPT_MUST_USE;
void ckpt_whole_clear(struct ckpt_whole *whole);

/* The messages that all codecs share. */
int ckpt_codec_fail_truncated(struct ckpt_err *err, const char *name);
int ckpt_codec_fail_leftover(struct ckpt_err *err, const char *name);
int ckpt_codec_fail_longer(struct ckpt_err *err, const char *name, uint64_t max);
int ckpt_codec_fail_shorter(struct ckpt_err *err, const char *name, uint64_t got, uint64_t want);

#endif
