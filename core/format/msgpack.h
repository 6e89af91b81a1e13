/* SPDX-License-Identifier: Apache-2.0 */
/*
 * MessagePack (the msgpack specification, github.com/msgpack/msgpack/blob/master/spec.md) as a stream of tokens over a
 * range of a file. The bytes of strings, binaries and extensions are not fetched: a token tells where they lie. One
 * thread.
 */
#ifndef CKPT_FORMAT_MSGPACK_H
#define CKPT_FORMAT_MSGPACK_H

#include "core/base/buf.h"
#include "core/io/backend.h"

enum ckpt_mp_type {
    CKPT_MP_NIL,
    CKPT_MP_BOOL,
    CKPT_MP_INT,
    CKPT_MP_UINT,
    CKPT_MP_FLOAT,
    CKPT_MP_STR,
    CKPT_MP_BIN,
    CKPT_MP_ARRAY,
    CKPT_MP_MAP,
    CKPT_MP_EXT
};

struct ckpt_mp_token {
    enum ckpt_mp_type type;
    union {
        bool boolean;
        int64_t i;  /* INT: negative */
        uint64_t u; /* UINT */
        double f;
    };
    uint64_t len; /* STR, BIN, EXT: bytes; ARRAY: elements; MAP: pairs */
    uint64_t off; /* STR, BIN, EXT: where they begin in the file */
    int8_t ext;
};

struct ckpt_mp {
    struct ckpt_file *file;
    uint64_t at, end; /* next byte, and the end of the range */
    uint64_t window_off;
    size_t window_len, ahead; /* bytes that are there, and that are fetched at once: fewer where little is to be read */
    uint8_t window[8192];
};

void ckpt_mp_init(struct ckpt_mp *mp, struct ckpt_file *file, uint64_t off, uint64_t end);
/* The next token; strings, binaries and extensions are stepped over. -EBADMSG when the range ends too early, -EUCLEAN
 * for 0xc1. */
int ckpt_mp_next(struct ckpt_mp *mp, struct ckpt_mp_token *ret, struct ckpt_err *err) CKPT_MUST_USE;
/* Step over one whole value, whatever it nests. */
int ckpt_mp_skip(struct ckpt_mp *mp, struct ckpt_err *err) CKPT_MUST_USE;
/* Fetch the bytes of a STR, BIN or EXT token (appended). */
int ckpt_mp_bytes(struct ckpt_mp *mp, const struct ckpt_mp_token *tok, struct ckpt_buf *buf,
                  struct ckpt_err *err) CKPT_MUST_USE;

#endif
