/* SPDX-License-Identifier: Apache-2.0 */
#include "core/object/object_file.h"

#include "core/base/util.h"

#include <blosc.h>
#include <lz4.h>
#include <stdio.h>
#include <xxhash.h>

#define VERSION      1
#define FOOTER_MAGIC "CKPTOBJ1"
#define SUMS_MAGIC   "CKPTSUM1"

/* --- names --- */

static const char *const codec_names[CKPT_OBJECT_CODECS] = {"none", "lz4", "blosc", "sparse"};

const char *ckpt_object_codec_name(enum ckpt_object_codec codec)
{
    return codec == CKPT_OBJECT_AUTO ? "auto" : (unsigned)codec < CKPT_OBJECT_CODECS ? codec_names[codec] : "?";
}

bool ckpt_object_codec_by_name(const char *name, enum ckpt_object_codec *ret)
{
    for (unsigned i = 0; i < CKPT_OBJECT_CODECS; i++)
        if (!strcmp(name, codec_names[i])) {
            *ret = (enum ckpt_object_codec)i;
            return true;
        }
    if (strcmp(name, "auto"))
        return false;
    *ret = CKPT_OBJECT_AUTO;
    return true;
}

bool ckpt_object_codec_choice(const char *name, enum ckpt_object_codec *ret)
{
    return strcmp(name, ckpt_object_codec_name(CKPT_OBJECT_SPARSE)) && ckpt_object_codec_by_name(name, ret);
}

void ckpt_hash_hex(const uint8_t sha256[CKPT_SHA256], char ret[CKPT_HEX])
{
    static const char digits[] = "0123456789abcdef";
    for (unsigned i = 0; i < CKPT_SHA256; i++) {
        ret[2 * i] = digits[sha256[i] >> 4];
        ret[2 * i + 1] = digits[sha256[i] & 15];
    }
    ret[CKPT_HEX - 1] = 0;
}

static int digit(char c)
{
    return c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

bool ckpt_hash_parse(const char *hex, uint8_t ret[CKPT_SHA256])
{
    uint8_t sha256[CKPT_SHA256];
    for (unsigned i = 0; i < CKPT_SHA256; i++) {
        int high = digit(hex[2 * i]), low = high < 0 ? -1 : digit(hex[2 * i + 1]);
        if (low < 0)
            return false;
        sha256[i] = (uint8_t)(high << 4 | low);
    }
    if (hex[CKPT_HEX - 1])
        return false;
    memcpy(ret, sha256, sizeof sha256);
    return true;
}

void ckpt_object_path(const uint8_t sha256[CKPT_SHA256], char ret[CKPT_OBJECT_PATH])
{
    char hex[CKPT_HEX];
    ckpt_hash_hex(sha256, hex);
    snprintf(ret, CKPT_OBJECT_PATH, "%.2s/%s", hex, hex);
}

/* --- the footer of an encoded object --- */

uint64_t ckpt_chunk_count(uint64_t size, uint32_t chunk_log2)
{
    return (size >> chunk_log2) + ((size & (((uint64_t)1 << chunk_log2) - 1)) != 0);
}

uint64_t ckpt_object_bound(enum ckpt_object_codec codec, uint64_t chunk_bytes)
{
    return CKPT_OBJECT_SUM + (codec == CKPT_OBJECT_LZ4 ? 4 + (uint64_t)LZ4_compressBound((int)chunk_bytes)
                                                       : chunk_bytes + BLOSC_MAX_OVERHEAD);
}

static uint8_t *put32(uint8_t *p, uint32_t v)
{
    memcpy(p, &v, sizeof v);
    return p + sizeof v;
}

static uint8_t *put64(uint8_t *p, uint64_t v)
{
    memcpy(p, &v, sizeof v);
    return p + sizeof v;
}

void ckpt_object_footer_make(const struct ckpt_object_footer *f, uint8_t ret[CKPT_OBJECT_FOOTER])
{
    memcpy(ret, FOOTER_MAGIC, 8);
    uint8_t *p = put32(ret + 8, VERSION);
    p = put32(p, f->codec);
    p = put32(p, f->chunk_log2);
    p = put32(p, f->typesize);
    p = put64(p, f->size);
    p = put64(p, f->chunks);
    p = put64(p, f->index);
    memcpy(p, f->sha256, CKPT_SHA256);
    p = put64(p + CKPT_SHA256, 0);
    put64(p, XXH3_64bits(ret, (size_t)(p - ret)));
}

/* Exactly len bytes. */
static int read_exactly(struct ckpt_file *file, void *buf, size_t len, uint64_t off, struct ckpt_err *err)
{
    ssize_t n = ckpt_file_read(file, buf, len, off);
    if (n < 0)
        return ckpt_fail(err, (int)-n, "cannot read a stored object: %s", strerror((int)-n));
    return (size_t)n == len ? 0 : ckpt_fail(err, EBADMSG, "a stored object ends too early");
}

uint64_t ckpt_object_index_words(const struct ckpt_object_footer *f)
{
    return f->chunks + 1 + (f->codec == CKPT_OBJECT_SPARSE ? f->chunks : 0);
}

/* The numbers of a footer whose checksum is right. */
static int footer_check(const struct ckpt_object_footer *f, uint64_t stored, struct ckpt_err *err)
{
    bool sparse = f->codec == CKPT_OBJECT_SPARSE;
    if (f->chunk_log2 < (sparse ? CKPT_SPARSE_LOG2 : CKPT_CHUNK_LOG2_MIN) || f->chunk_log2 > CKPT_CHUNK_LOG2_MAX)
        return ckpt_fail(err, EOPNOTSUPP, "the object's chunks have 2^%u bytes", f->chunk_log2);
    if ((f->codec == CKPT_OBJECT_BLOSC || sparse) && (!f->typesize || f->typesize > CKPT_OBJECT_TYPESIZE_MAX))
        return ckpt_fail(err, EUCLEAN, "the object's elements have %u bytes", f->typesize);
    uint64_t all = ckpt_chunk_count(f->size, f->chunk_log2);
    if (f->size > CKPT_OBJECT_SIZE_MAX || (sparse ? f->chunks > all : f->chunks != all))
        return ckpt_fail(err, EUCLEAN, "the object has %llu bytes in %llu chunks of 2^%u", (unsigned long long)f->size,
                         (unsigned long long)f->chunks, f->chunk_log2);
    uint64_t tail = CKPT_OBJECT_SUM + CKPT_OBJECT_FOOTER; /* chunks are at most 2^51 */
    if (stored < tail || f->index > stored - tail || ckpt_object_index_words(f) * 8 != stored - tail - f->index)
        return ckpt_fail(err, EUCLEAN, "the object's index is not where its footer says");
    return 0;
}

int ckpt_object_footer_read(struct ckpt_file *file, const uint8_t sha256[CKPT_SHA256], struct ckpt_object_footer *ret,
                            struct ckpt_err *err)
{
    uint8_t b[CKPT_OBJECT_FOOTER];
    uint64_t stored = file->st.size;
    if (stored < sizeof b)
        return 0;
    int r = read_exactly(file, b, sizeof b, stored - sizeof b, err);
    if (r < 0)
        return r;
    /* Bytes that contain their own SHA-256 do not exist, so this is an encoded object, be its footer whole or not. */
    if (memcmp(b, FOOTER_MAGIC, 8) != 0 || memcmp(b + 48, sha256, CKPT_SHA256) != 0)
        return 0;
    if (ckpt_le64(b + 88) != XXH3_64bits(b, 88))
        return ckpt_fail(err, EBADMSG, "the object's footer is damaged");
    uint32_t version = ckpt_le32(b + 8), codec = ckpt_le32(b + 12);
    if (version != VERSION || ckpt_le64(b + 80))
        return ckpt_fail(err, EOPNOTSUPP, "the object has format version %u, which is newer than this program",
                         version);
    if (codec == CKPT_OBJECT_NONE || codec >= CKPT_OBJECT_CODECS)
        return ckpt_fail(err, EOPNOTSUPP, "the object has codec %u, which this program does not know", codec);
    struct ckpt_object_footer f = {
        .codec = (enum ckpt_object_codec)codec,
        .chunk_log2 = ckpt_le32(b + 16),
        .typesize = ckpt_le32(b + 20),
        .size = ckpt_le64(b + 24),
        .chunks = ckpt_le64(b + 32),
        .index = ckpt_le64(b + 40),
    };
    memcpy(f.sha256, sha256, CKPT_SHA256);
    r = footer_check(&f, stored, err);
    if (r < 0)
        return r;
    *ret = f;
    return 1;
}

int ckpt_object_stat(struct ckpt_file *file, const uint8_t sha256[CKPT_SHA256], uint64_t size,
                     struct ckpt_object_info *ret, struct ckpt_err *err)
{
    struct ckpt_object_footer f = {.codec = CKPT_OBJECT_NONE, .size = file->st.size};
    int r = ckpt_object_footer_read(file, sha256, &f, err);
    if (r < 0)
        return r;
    if (size != UINT64_MAX && size != f.size)
        return ckpt_fail(err, EBADMSG, "the object has %llu bytes, not %llu", (unsigned long long)f.size,
                         (unsigned long long)size);
    memmove(ret->sha256, sha256, CKPT_SHA256); /* which may be this one */
    ret->size = f.size;
    ret->stored = file->st.size;
    ret->codec = f.codec;
    return 0;
}

/* --- the header of a sums file --- */

void ckpt_sums_header_make(uint64_t size, const uint8_t sha256[CKPT_SHA256], uint8_t ret[CKPT_SUMS_HEADER])
{
    memcpy(ret, SUMS_MAGIC, 8);
    uint8_t *p = put32(ret + 8, VERSION);
    p = put32(p, (uint32_t)__builtin_ctzll(CKPT_OBJECT_CHUNK));
    p = put64(p, size);
    memcpy(p, sha256, CKPT_SHA256);
}

int ckpt_sums_header_read(struct ckpt_file *file, uint64_t size, const uint8_t sha256[CKPT_SHA256],
                          uint32_t *ret_chunk_log2, struct ckpt_err *err)
{
    uint8_t b[CKPT_SUMS_HEADER];
    if (file->st.size < sizeof b)
        return ckpt_fail(err, EBADMSG, "the object's sums end too early");
    int r = read_exactly(file, b, sizeof b, 0, err);
    if (r < 0)
        return r;
    uint32_t version = ckpt_le32(b + 8), log2 = ckpt_le32(b + 12);
    if (memcmp(b, SUMS_MAGIC, 8) != 0)
        return ckpt_fail(err, EUCLEAN, "the object's sums are no sums");
    if (version != VERSION)
        return ckpt_fail(err, EOPNOTSUPP, "the object's sums have format version %u, which is newer than this program",
                         version);
    if (log2 < CKPT_CHUNK_LOG2_MIN || log2 > CKPT_CHUNK_LOG2_MAX)
        return ckpt_fail(err, EOPNOTSUPP, "the object's sums are of chunks of 2^%u bytes", log2);
    if (memcmp(b + 24, sha256, CKPT_SHA256) != 0)
        return ckpt_fail(err, EUCLEAN, "the object's sums are those of another object");
    if (ckpt_le64(b + 16) != size)
        return ckpt_fail(err, EBADMSG, "the object has %llu bytes, not %llu", (unsigned long long)size,
                         (unsigned long long)ckpt_le64(b + 16));
    if (ckpt_chunk_count(size, log2) * 8 + CKPT_OBJECT_SUM + sizeof b != file->st.size)
        return ckpt_fail(err, EBADMSG, "the object's sums have %llu bytes", (unsigned long long)file->st.size);
    *ret_chunk_log2 = log2;
    return 0;
}
