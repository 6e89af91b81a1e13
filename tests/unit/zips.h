/* SPDX-License-Identifier: Apache-2.0 */
/* Zip archives for tests, made member by member, with all that other writers do differently. */
#ifndef CKPT_TESTS_ZIPS_H
#define CKPT_TESTS_ZIPS_H

#include "core/base/buf.h"
#include "core/base/util.h"
#include "tests/unit/check.h"

#include <zlib.h>

enum zip_how {
    ZIP_DEFLATE = 1,
    ZIP_WIDE_LOCAL = 2,   /* sizes in the zip64 field of the local header, as NumPy writes them */
    ZIP_WIDE_CENTRAL = 4, /* and in that of the directory */
    ZIP_DESCRIPTOR = 8,   /* sizes behind the data */
    ZIP_ALIGN = 16,       /* the payload at a multiple of 64, as PyTorch has it */
};

struct zip_maker {
    struct ckpt_buf all, directory;
    unsigned count;
    uint64_t central; /* set by zip_end: where the directory is */
};

static inline void zip_put(struct ckpt_buf *b, uint64_t value, unsigned bytes)
{
    ckpt_buf_add(b, &value, bytes);
}

static inline void *zip_deflate(const void *data, size_t len, size_t *ret_len)
{
    z_stream z = {.next_in = (Bytef *)(uintptr_t)data, .avail_in = (uInt)len};
    CHECK(deflateInit2(&z, 6, Z_DEFLATED, -15, 8, Z_DEFAULT_STRATEGY) == Z_OK);
    uint8_t *out = malloc(z.avail_out = (uInt)deflateBound(&z, len));
    z.next_out = out;
    CHECK(deflate(&z, Z_FINISH) == Z_STREAM_END);
    *ret_len = z.total_out;
    deflateEnd(&z);
    return out;
}

static inline void zip_add(struct zip_maker *m, const char *name, const void *data, size_t len, unsigned how)
{
    size_t stored = len, name_len = strlen(name), at = m->all.len, local_extra = how & ZIP_WIDE_LOCAL ? 20 : 0;
    CKPT_AUTOFREE void *packed = how & ZIP_DEFLATE ? zip_deflate(data, len, &stored) : NULL;
    uint32_t crc = (uint32_t)crc32_z(0, data, len);
    unsigned flags = how & ZIP_DESCRIPTOR ? 8 : 0, method = how & ZIP_DEFLATE ? 8 : 0;
    size_t pad = how & ZIP_ALIGN ? 64 - (at + 30 + name_len + local_extra + 4) % 64 : 0;
    bool none = how & ZIP_DESCRIPTOR;
    zip_put(&m->all, 0x04034b50, 4);
    zip_put(&m->all, 45, 2);
    zip_put(&m->all, flags, 2);
    zip_put(&m->all, method, 2);
    zip_put(&m->all, 0, 4);
    zip_put(&m->all, none ? 0 : crc, 4);
    zip_put(&m->all, how & ZIP_WIDE_LOCAL ? UINT32_MAX : none ? 0 : stored, 4);
    zip_put(&m->all, how & ZIP_WIDE_LOCAL ? UINT32_MAX : none ? 0 : len, 4);
    zip_put(&m->all, name_len, 2);
    zip_put(&m->all, local_extra + (pad ? 4 + pad : 0), 2);
    ckpt_buf_add(&m->all, name, name_len);
    if (local_extra) {
        zip_put(&m->all, 1 | 16 << 16, 4);
        zip_put(&m->all, none ? 0 : len, 8);
        zip_put(&m->all, none ? 0 : stored, 8);
    }
    if (pad) {
        zip_put(&m->all, 0x4246 | pad << 16, 4);
        ckpt_buf_addf(&m->all, "%*s", (int)pad, "");
    }
    ckpt_buf_add(&m->all, packed ? packed : data, stored);
    if (none) {
        zip_put(&m->all, 0x08074b50, 4);
        zip_put(&m->all, crc, 4);
        zip_put(&m->all, stored, 4);
        zip_put(&m->all, len, 4);
    }
    bool wide = how & ZIP_WIDE_CENTRAL;
    zip_put(&m->directory, 0x02014b50, 4);
    zip_put(&m->directory, 45 | 45 << 16, 4);
    zip_put(&m->directory, flags, 2);
    zip_put(&m->directory, method, 2);
    zip_put(&m->directory, 0, 4);
    zip_put(&m->directory, crc, 4);
    zip_put(&m->directory, wide ? UINT32_MAX : stored, 4);
    zip_put(&m->directory, wide ? UINT32_MAX : len, 4);
    zip_put(&m->directory, name_len, 2);
    zip_put(&m->directory, wide ? 33 : 0, 2);
    zip_put(&m->directory, wide ? 3 : 0, 2); /* a comment */
    zip_put(&m->directory, 0, 8);
    zip_put(&m->directory, wide ? UINT32_MAX : at, 4);
    ckpt_buf_add(&m->directory, name, name_len);
    if (wide) {
        zip_put(&m->directory, 0x7777 | 1 << 16, 4); /* of somebody else */
        zip_put(&m->directory, 1, 1);
        zip_put(&m->directory, 1 | 24 << 16, 4);
        zip_put(&m->directory, len, 8);
        zip_put(&m->directory, stored, 8);
        zip_put(&m->directory, at, 8);
        ckpt_buf_adds(&m->directory, "hey");
    }
    m->count++;
}

/* The directory and the end records. */
static inline void zip_end(struct zip_maker *m, bool wide, const char *comment)
{
    uint64_t begin = m->central = m->all.len, size = m->directory.len, end;
    ckpt_buf_add(&m->all, m->directory.data, size);
    end = m->all.len;
    if (wide) {
        zip_put(&m->all, 0x06064b50, 4);
        zip_put(&m->all, 44, 8);
        zip_put(&m->all, 45 | 45 << 16, 4);
        zip_put(&m->all, 0, 8);
        zip_put(&m->all, m->count, 8);
        zip_put(&m->all, m->count, 8);
        zip_put(&m->all, size, 8);
        zip_put(&m->all, begin, 8);
        zip_put(&m->all, 0x07064b50, 4);
        zip_put(&m->all, 0, 4);
        zip_put(&m->all, end, 8);
        zip_put(&m->all, 1, 4);
    }
    zip_put(&m->all, 0x06054b50, 4);
    zip_put(&m->all, 0, 4);
    zip_put(&m->all, wide ? UINT16_MAX : m->count, 2);
    zip_put(&m->all, wide ? UINT16_MAX : m->count, 2);
    zip_put(&m->all, wide ? UINT32_MAX : size, 4);
    zip_put(&m->all, wide ? UINT32_MAX : begin, 4);
    zip_put(&m->all, strlen(comment), 2);
    ckpt_buf_adds(&m->all, comment);
    CHECK(!ckpt_buf_error(&m->all));
    ckpt_buf_clear(&m->directory);
}

static inline void zip_maker_clear(struct zip_maker *m)
{
    ckpt_buf_clear(&m->all);
    ckpt_buf_clear(&m->directory);
}

#endif
