/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Input: a selector byte, then bytes.
 *  bits 0-1: 0 the bytes are a manifest as it is; 1 they are a manifest's body; 2 they are the file with the root
 *            node, as it is; 3 they are a body of the root node.
 *  bits 2-4: for 2 and 3, the height that the manifest says the root has (5 and above: 1).
 *  bit 5:    for 1 and 3, the body is zstd-compressed.
 *  bit 6:    for 3, the body is preceded by a second one: a u16le length, that many bytes of a leaf node, which lies
 *            in front of the root in the same file, so that interior nodes have something to refer to.
 * The database is looked at by itself, and then as a tree of its keys. Bodies get a true length and checksum, or
 * nothing would come past those.
 */
#include "core/format/ocdbt/ocdbt.h"

#include "core/base/buf.h"
#include "core/codec/crc32c.h"
#include "core/format/zarrs/zarrs.h"
#include "tests/fuzz/look.h"

#include <zstd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void seal(struct ckpt_buf *out, uint32_t magic, const uint8_t *body, size_t len, bool zstd)
{
    size_t begin = out->len;
    uint32_t be = __builtin_bswap32(magic);
    ckpt_buf_add(out, &be, 4);
    ckpt_buf_add(out, "\0\0\0\0\0\0\0\0", 8);
    ckpt_buf_addc(out, 0);
    ckpt_buf_addc(out, zstd);
    if (zstd) {
        size_t cap = ZSTD_compressBound(len);
        CKPT_AUTOFREE uint8_t *z = malloc(cap);
        ckpt_buf_add(out, z, ZSTD_compress(z, cap, body, len, 1));
    } else {
        ckpt_buf_add(out, body, len);
    }
    uint64_t total = out->len - begin + 4;
    memcpy(out->data + begin + 4, &total, 8);
    uint32_t crc = ckpt_crc32c(0, out->data + begin, out->len - begin);
    ckpt_buf_add(out, &crc, 4);
}

static void put_varint(struct ckpt_buf *b, uint64_t v)
{
    for (; v >= 0x80; v >>= 7)
        ckpt_buf_addc(b, (char)(v | 0x80));
    ckpt_buf_addc(b, (char)v);
}

/* The manifest of one version whose root is those bytes of d/r. */
static void manifest_for(struct ckpt_buf *out, unsigned height, uint64_t off, uint64_t len)
{
    struct ckpt_buf b = CKPT_BUF_INIT;
    ckpt_buf_add(&b, "0123456789abcdef\0\0\0\4\0\1\3\0d/r\1\1", 16 + 4 + 1 + 1 + 2 + 3 + 2);
    ckpt_buf_addc(&b, (char)height);
    put_varint(&b, 0);
    put_varint(&b, off);
    put_varint(&b, len);
    ckpt_buf_add(&b, "\0\0\0\0\0\0\0\0\0\0\0\0", 12); /* statistics, time, no version tree */
    seal(out, 0x0cdb3a2a, b.data, b.len, false);
    ckpt_buf_clear(&b);
}

struct seen {
    struct ckpt_ocdbt *db;
    unsigned count;
};

static int visit(void *arg, const void *key, size_t key_len, uint64_t value_len)
{
    struct seen *seen = arg;
    struct ckpt_extent e;
    if (ckpt_ocdbt_get(seen->db, key, key_len, &e, NULL) == 0) {
        uint8_t buf[64];
        if (e.len != value_len || ckpt_extent_read(&e, buf, CKPT_MIN(e.len, (uint64_t)sizeof buf), 0) < 0)
            abort();
        ckpt_extent_clear(&e);
    }
    return ++seen->count > 200;
}

static void use(struct ckpt_backend *b)
{
    struct ckpt_pins *pins;
    struct ckpt_ocdbt *db;
    struct ckpt_err err;
    if (ckpt_pins_new(b, &pins) < 0)
        abort();
    if (ckpt_ocdbt_open(pins, "", &db, &err) == 0) {
        static const char *const keys[] = {"", "a/.zarray", "params.dense.kernel/0.0", "\xff"};
        struct seen seen = {db, 0};
        struct ckpt_extent e;
        if (ckpt_ocdbt_pin(db, &err) < 0 && (!err.code || !*err.text))
            abort();
        for (size_t i = 0; i < sizeof keys / sizeof *keys; i++)
            if (ckpt_ocdbt_get(db, keys[i], strlen(keys[i]), &e, &err) == 0)
                ckpt_extent_clear(&e);
        if (ckpt_ocdbt_each(db, "", 0, visit, &seen, &err) == 0 && ckpt_ocdbt_each(db, "p", 1, visit, &seen, &err) < 0)
            abort(); /* a part of what was read whole */
        if (ckpt_ocdbt_verify(db, NULL, NULL, &err) < 0 && (!err.code || !*err.text))
            abort();
        ckpt_ocdbt_close(db);
    }
    ckpt_pins_unref(pins);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size < 1)
        return 0;
    unsigned select = data[0], mode = select & 3, height = select >> 2 & 7;
    bool zstd = select & 0x20;
    struct ckpt_buf manifest = CKPT_BUF_INIT, file = CKPT_BUF_INIT;
    data++;
    size--;
    if (height > 4)
        height = 1;
    if (mode == 0) {
        ckpt_buf_add(&manifest, data, size);
    } else if (mode == 1) {
        seal(&manifest, 0x0cdb3a2a, data, size, zstd);
    } else if (mode == 2) {
        ckpt_buf_add(&file, data, size);
        manifest_for(&manifest, height, 0, size);
    } else {
        size_t first = size >= 2 ? ckpt_le16(data) : 0;
        if ((select & 0x40) && size >= 2 && first <= size - 2) {
            seal(&file, 0x0cdb20de, data + 2, first, false);
            data += 2 + first;
            size -= 2 + first;
        }
        size_t off = file.len;
        seal(&file, 0x0cdb20de, data, size, zstd);
        manifest_for(&manifest, height, off, file.len - off);
    }
    struct ckpt_backend *b = ckpt_backend_new_memory();
    if (!b ||
        ckpt_backend_memory_add(b, "manifest.ocdbt", manifest.data ? manifest.data : (uint8_t *)"", manifest.len) < 0 ||
        ckpt_backend_memory_add(b, "manifest.0000000000000001", manifest.data ? manifest.data : (uint8_t *)"",
                                manifest.len) < 0 ||
        ckpt_backend_memory_add(b, "d/r", file.data ? file.data : (uint8_t *)"", file.len) < 0)
        abort();
    use(b);
    look_at(&ckpt_zarrs_format, b, "");
    ckpt_backend_unref(b);
    ckpt_buf_clear(&manifest);
    ckpt_buf_clear(&file);
    return 0;
}
