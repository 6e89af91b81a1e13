/* SPDX-License-Identifier: Apache-2.0 */
#include "core/format/msgpack.h"

#include "core/base/util.h"

void ckpt_mp_init(struct ckpt_mp *mp, struct ckpt_file *file, uint64_t off, uint64_t end)
{
    mp->file = file;
    mp->at = off;
    mp->end = end;
    mp->window_off = off;
    mp->window_len = 0;
    mp->ahead = sizeof mp->window;
}

static int truncated(struct ckpt_err *err)
{
    return ckpt_fail(err, EBADMSG, "the msgpack data end too early");
}

/* n bytes (at most 16) at the cursor, which moves on. */
static int take(struct ckpt_mp *mp, void *buf, size_t n, struct ckpt_err *err)
{
    if (mp->end - mp->at < n)
        return truncated(err);
    if (mp->at < mp->window_off || mp->at + n > mp->window_off + mp->window_len) {
        ssize_t got = ckpt_file_read(mp->file, mp->window, mp->ahead, mp->at);
        if (got < 0)
            return ckpt_fail(err, (int)-got, "%s", strerror((int)-got));
        mp->window_off = mp->at;
        mp->window_len = (size_t)got;
        if ((size_t)got < n)
            return truncated(err);
    }
    memcpy(buf, mp->window + (mp->at - mp->window_off), n);
    mp->at += n;
    return 0;
}

/* A big-endian number of n bytes. */
static int number(struct ckpt_mp *mp, size_t n, uint64_t *ret, struct ckpt_err *err)
{
    uint8_t b[8];
    int r = take(mp, b, n, err);
    if (r < 0)
        return r;
    *ret = 0;
    for (size_t i = 0; i < n; i++)
        *ret = *ret << 8 | b[i];
    return 0;
}

static int payload(struct ckpt_mp *mp, struct ckpt_mp_token *t, enum ckpt_mp_type type, uint64_t len,
                   struct ckpt_err *err)
{
    t->type = type;
    t->len = len;
    t->off = mp->at;
    if (len > mp->end - mp->at)
        return truncated(err);
    mp->at += len;
    return 0;
}

static int extension(struct ckpt_mp *mp, struct ckpt_mp_token *t, uint64_t len, struct ckpt_err *err)
{
    uint8_t type = 0;
    int r = take(mp, &type, 1, err);
    if (r < 0)
        return r;
    t->ext = (int8_t)type;
    return payload(mp, t, CKPT_MP_EXT, len, err);
}

static int sized(struct ckpt_mp *mp, struct ckpt_mp_token *t, enum ckpt_mp_type type, size_t width,
                 struct ckpt_err *err)
{
    uint64_t len;
    int r = number(mp, width, &len, err);
    if (r < 0)
        return r;
    if (type == CKPT_MP_EXT)
        return extension(mp, t, len, err);
    if (type == CKPT_MP_ARRAY || type == CKPT_MP_MAP) {
        t->type = type;
        t->len = len;
        return 0;
    }
    return payload(mp, t, type, len, err);
}

static int scalar(struct ckpt_mp *mp, struct ckpt_mp_token *t, uint8_t c, struct ckpt_err *err)
{
    uint64_t v;
    int r;
    if (c == 0xca || c == 0xcb) {
        if ((r = number(mp, c == 0xca ? 4 : 8, &v, err)) < 0)
            return r;
        t->type = CKPT_MP_FLOAT;
        if (c == 0xca) {
            uint32_t bits = (uint32_t)v;
            float f;
            memcpy(&f, &bits, 4);
            t->f = (double)f;
        } else
            memcpy(&t->f, &v, 8);
        return 0;
    }
    size_t width = (size_t)1 << (c & 3); /* 0xcc..0xcf unsigned, 0xd0..0xd3 signed: 1, 2, 4, 8 bytes */
    if ((r = number(mp, width, &v, err)) < 0)
        return r;
    t->type = CKPT_MP_UINT;
    t->u = v;
    if (c >= 0xd0 && width < 8 && v >> (8 * width - 1))
        v |= ~(uint64_t)0 << (8 * width);
    if (c >= 0xd0 && (int64_t)v < 0) {
        t->type = CKPT_MP_INT;
        t->i = (int64_t)v;
    }
    return 0;
}

int ckpt_mp_next(struct ckpt_mp *mp, struct ckpt_mp_token *t, struct ckpt_err *err)
{
    uint8_t c = 0;
    int r = take(mp, &c, 1, err);
    *t = (struct ckpt_mp_token){0};
    if (r < 0)
        return r;
    if (c < 0x80) {
        t->type = CKPT_MP_UINT;
        t->u = c;
        return 0;
    }
    if (c >= 0xe0) {
        t->type = CKPT_MP_INT;
        t->i = (int8_t)c;
        return 0;
    }
    if (c < 0x90 || c < 0xa0) {
        t->type = c < 0x90 ? CKPT_MP_MAP : CKPT_MP_ARRAY;
        t->len = c & 15;
        return 0;
    }
    if (c < 0xc0)
        return payload(mp, t, CKPT_MP_STR, c & 31, err);
    switch (c) {
    case 0xc0:
        t->type = CKPT_MP_NIL;
        return 0;
    case 0xc2:
    case 0xc3:
        t->type = CKPT_MP_BOOL;
        t->boolean = c == 0xc3;
        return 0;
    case 0xc4 ... 0xc6:
        return sized(mp, t, CKPT_MP_BIN, (size_t)1 << (c - 0xc4), err);
    case 0xc7 ... 0xc9:
        return sized(mp, t, CKPT_MP_EXT, (size_t)1 << (c - 0xc7), err);
    case 0xca ... 0xd3:
        return scalar(mp, t, c, err);
    case 0xd4 ... 0xd8:
        return extension(mp, t, (uint64_t)1 << (c - 0xd4), err);
    case 0xd9 ... 0xdb:
        return sized(mp, t, CKPT_MP_STR, (size_t)1 << (c - 0xd9), err);
    case 0xdc:
    case 0xdd:
        return sized(mp, t, CKPT_MP_ARRAY, c == 0xdc ? 2 : 4, err);
    case 0xde:
    case 0xdf:
        return sized(mp, t, CKPT_MP_MAP, c == 0xde ? 2 : 4, err);
    default:
        return ckpt_fail(err, EUCLEAN, "not msgpack: byte 0x%02x", c);
    }
}

int ckpt_mp_skip(struct ckpt_mp *mp, struct ckpt_err *err)
{
    /* Values still to come, of all levels together: no stack is needed to step over them. */
    for (uint64_t left = 1; left; left--) {
        struct ckpt_mp_token t;
        int r = ckpt_mp_next(mp, &t, err);
        if (r < 0)
            return r;
        uint64_t more = t.type == CKPT_MP_ARRAY ? t.len : t.type == CKPT_MP_MAP ? 2 * t.len : 0;
        if (more > mp->end - mp->at) /* each takes a byte at least */
            return truncated(err);
        left += more;
    }
    return 0;
}

int ckpt_mp_bytes(struct ckpt_mp *mp, const struct ckpt_mp_token *tok, struct ckpt_buf *buf, struct ckpt_err *err)
{
    if (ckpt_buf_reserve(buf, tok->len) < 0)
        return ckpt_fail(err, EUCLEAN, "a msgpack string of %llu bytes is too long", (unsigned long long)tok->len);
    ssize_t n = 0;
    if (tok->off >= mp->window_off && tok->off + tok->len <= mp->window_off + mp->window_len) {
        memcpy(buf->data + buf->len, mp->window + (tok->off - mp->window_off), tok->len);
        n = (ssize_t)tok->len;
    } else
        n = ckpt_file_read(mp->file, buf->data + buf->len, tok->len, tok->off);
    if (n < 0)
        return ckpt_fail(err, (int)-n, "%s", strerror((int)-n));
    if ((uint64_t)n != tok->len)
        return truncated(err);
    buf->len += tok->len;
    return 0;
}
