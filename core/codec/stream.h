/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Decoders as a chain of pull streams: each reads from the one below, the lowest from an extent. Memory is
 * bounded by the codec's window, whatever the length of the data. A stream belongs to one thread at a time.
 */
#ifndef CKPT_CODEC_STREAM_H
#define CKPT_CODEC_STREAM_H

#include "core/base/err.h"
#include "core/io/extent.h"

enum ckpt_codec_id {
    CKPT_CODEC_ZSTD,    /* one or more zstd frames, content size in the header or not */
    CKPT_CODEC_GZIP,    /* RFC 1952, members one after another */
    CKPT_CODEC_ZLIB,    /* RFC 1950 */
    CKPT_CODEC_DEFLATE, /* RFC 1951, bare */
    CKPT_CODEC_BZ2,
    CKPT_CODEC_BLOSC,  /* one Blosc-1 buffer, any inner codec and shuffle that c-blosc knows */
    CKPT_CODEC_LZ4,    /* numcodecs lz4: u32le decoded size, then one LZ4 block */
    CKPT_CODEC_CRC32C, /* data, then the u32le crc32c of it: checked and taken off */
    CKPT_CODEC_XXH3,   /* data, then the u64le XXH3-64 of it: checked and taken off */
    CKPT_CODEC_CRC32,  /* data as they are, of which the chain has the CRC-32 (of zip) */
    CKPT_CODEC_COUNT
};

/* Decoders in the order in which they are applied when decoding (the outermost encoding first). */
struct ckpt_codec_chain {
    unsigned count;
    enum ckpt_codec_id id[8];
    uint32_t crc32;
};

const char *ckpt_codec_name(enum ckpt_codec_id id); /* "zstd", "gzip", ... */

struct ckpt_stream;

/* As decoded_max: only the data know. When fewer bytes come than were asked for, they ended and all checks held. */
#define CKPT_DECODED_UNKNOWN (UINT64_MAX / 2)

/*
 * A stream of the decoded bytes of *extent, which the stream copies (with a reference of its own).
 * decoded_max: the length the data must have; more than that is an error and is never produced, and less is an
 * error (-EBADMSG) when the end is met.
 * Errors: -EBADMSG damaged data, -EOPNOTSUPP a variant the library lacks, -ENOMEM, and what reading the extent gives.
 */
int ckpt_stream_open(const struct ckpt_codec_chain *chain, const struct ckpt_extent *extent, uint64_t decoded_max,
                     struct ckpt_stream **ret, struct ckpt_err *err) CKPT_MUST_USE;
/*
 * The next bytes: exactly len of them unless the data end (then fewer; 0 at the end). When the last byte
 * allowed by decoded_max is produced, the ends of all streams below are checked too (trailing checksums, left-over
 * input is -EBADMSG) before the call returns, so whoever has read decoded_max bytes without an error has checked
 * all the checks that the encoding has.
 */
ssize_t ckpt_stream_read(struct ckpt_stream *s, void *buf, size_t len, struct ckpt_err *err) CKPT_MUST_USE;
/*
 * Before the first read: all reads will go to consecutive places of this buffer of decoded_max bytes, which nobody
 * changes until the stream is closed. Saves decoders with a window a copy.
 */
void ckpt_stream_set_output(struct ckpt_stream *s, void *output);
/* True if the encoding carries a checksum of its content that is known only at its end, so that bytes read so far are
 * not proven yet. Valid after the first successful read. */
bool ckpt_stream_checks_at_end(const struct ckpt_stream *s);
void ckpt_stream_close(struct ckpt_stream *s);

/*
 * Decode the whole extent into buf in one call: exactly len bytes, all checks made. The fast way when the data
 * fit in memory (one-shot library calls where the codec has them).
 */
int ckpt_decode(const struct ckpt_codec_chain *chain, const struct ckpt_extent *extent, void *buf, size_t len,
                struct ckpt_err *err) CKPT_MUST_USE;

#endif
