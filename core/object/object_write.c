/* SPDX-License-Identifier: Apache-2.0 */
/* Encodes files as objects, in one thread; several files can be encoded at once. */
#include "core/object/object_file.h"

#include "core/base/util.h"
#include "core/io/disk.h"

#include <blosc.h>
#include <lz4.h>
#include <xxhash.h>

#define BATCH        ((size_t)1 << 20)  /* written at once, or a chunk more; larger ones gain nothing */
#define BLOSC_BLOCK  ((size_t)32 << 10) /* encodes as fast as larger ones, decodes faster */
#define BLOSC_LEVEL  5
#define SAMPLE       ((size_t)64 << 10)
#define SAMPLE_EVERY ((uint64_t)512 << 10)
#define SAMPLES_MIN  2
#define SAMPLES_MAX  8

int ckpt_input_read(int fd, void *buf, size_t len, uint64_t off, struct ckpt_err *err)
{
    ssize_t n = ckpt_pread(fd, buf, len, off);
    if (n < 0)
        return ckpt_fail(err, (int)-n, "cannot read the file: %s", strerror((int)-n));
    return (size_t)n < len ? ckpt_fail(err, EBADMSG, "the file became shorter while it was read") : 0;
}

/* The codec's bytes alone. dst has room for ckpt_object_bound(). */
static int encode(enum ckpt_object_codec codec, unsigned typesize, const uint8_t *src, size_t len, uint8_t *dst,
                  size_t room)
{
    if (codec == CKPT_OBJECT_LZ4) {
        uint32_t size = (uint32_t)len;
        int n = LZ4_compress_default((const char *)src, (char *)dst + 4, (int)len, (int)room - 4);
        memcpy(dst, &size, 4);
        return n > 0 ? n + 4 : -EIO;
    }
    int n = blosc_compress_ctx(BLOSC_LEVEL, BLOSC_BITSHUFFLE, typesize, len, src, dst, room, BLOSC_LZ4_COMPNAME,
                               BLOSC_BLOCK, 1);
    return n > 0 ? n : -EIO;
}

static unsigned typesize_of(enum ckpt_object_codec codec, unsigned typesize)
{
    return codec != CKPT_OBJECT_LZ4 && typesize && typesize <= CKPT_OBJECT_TYPESIZE_MAX ? typesize : 1;
}

enum ckpt_object_codec ckpt_object_sample(int fd, uint64_t off, uint64_t len, enum ckpt_object_codec codec,
                                          unsigned typesize)
{
    if ((codec != CKPT_OBJECT_LZ4 && codec != CKPT_OBJECT_BLOSC) || !len)
        return CKPT_OBJECT_NONE;
    size_t piece = (size_t)CKPT_MIN((uint64_t)SAMPLE, len), room = (size_t)ckpt_object_bound(codec, piece);
    uint64_t count = CKPT_MAX(CKPT_MIN(len / SAMPLE_EVERY, (uint64_t)SAMPLES_MAX), (uint64_t)SAMPLES_MIN);
    uint64_t step = (len - piece) / (count - 1) & ~(uint64_t)4095, plain = 0, encoded = 0;
    CKPT_AUTOFREE uint8_t *buf = malloc(piece + room);
    if (!buf)
        return CKPT_OBJECT_NONE;
    for (uint64_t i = 0; i < (step ? count : 1); i++) {
        int n = ckpt_input_read(fd, buf, piece, off + i * step, NULL);
        if (n == 0)
            n = encode(codec, typesize_of(codec, typesize), buf, piece, buf + piece, room);
        if (n < 0)
            return CKPT_OBJECT_NONE;
        plain += piece;
        encoded += (unsigned)n;
    }
    return encoded * 10 > plain * 9 ? CKPT_OBJECT_NONE : codec;
}

struct encoder {
    const struct ckpt_object_input *in;
    struct ckpt_object_footer f;
    int out;
    uint64_t chunk_bytes;
    const struct ckpt_buf *sums;    /* of the input's chunks, when it was hashed; NULL: not compared */
    const struct ckpt_buf *present; /* of a sparse object: number and sum of each chunk that there is; NULL: all are */
    size_t room;                    /* that a chunk may take */
    uint8_t *src, *batch;           /* a chunk; what is not written yet */
    size_t batched, batch_room;
    uint64_t written;
    struct ckpt_buf index;
};

static int write_batch(struct encoder *e, struct ckpt_err *err)
{
    int r = ckpt_disk_write(e->out, e->batch, e->batched, e->written);
    if (r < 0)
        return ckpt_fail(err, -r, "cannot write an object: %s", strerror(-r));
    e->written += e->batched;
    e->batched = 0;
    return 0;
}

/* Is the i-th chunk what it was when it was hashed? */
static bool is_unchanged(const struct encoder *e, uint64_t i, size_t len)
{
    if (!e->sums && !e->present)
        return true;
    const struct ckpt_buf *sums = e->present ? e->present : e->sums;
    uint64_t at = e->present ? 16 * i + 8 : 8 * i;
    return sums->len >= at + 8 && ckpt_le64(sums->data + at) == XXH3_64bits(e->src, len);
}

static int encode_chunk(struct encoder *e, uint64_t i, struct ckpt_err *err)
{
    uint64_t chunk = e->present ? ckpt_le64(e->present->data + 16 * i) : i;
    uint64_t begin = chunk * e->chunk_bytes, at = e->written + e->batched;
    size_t len = (size_t)CKPT_MIN(e->chunk_bytes, e->f.size - begin);
    int r = ckpt_input_read(e->in->fd, e->src, len, e->in->off + begin, err);
    if (r < 0)
        return r;
    /* What is encoded under a hash is what was hashed: somebody may have written to the file meanwhile. */
    if (!is_unchanged(e, i, len))
        return ckpt_fail(err, EBUSY, "it was changed while it was stored");
    uint8_t *dst = e->batch + e->batched;
    int n = encode(e->f.codec, e->f.typesize, e->src, len, dst, e->room - CKPT_OBJECT_SUM);
    if (n < 0)
        return ckpt_fail(err, EIO, "%s cannot encode", ckpt_object_codec_name(e->f.codec));
    uint64_t sum = XXH3_64bits(dst, (size_t)n);
    memcpy(dst + n, &sum, CKPT_OBJECT_SUM);
    e->batched += (size_t)n + CKPT_OBJECT_SUM;
    ckpt_buf_add(&e->index, &at, sizeof at);
    return e->batched + e->room > e->batch_room ? write_batch(e, err) : 0;
}

/* The index and the footer. */
static int encode_end(struct encoder *e, struct ckpt_err *err)
{
    struct ckpt_object_footer *f = &e->f;
    uint8_t footer[CKPT_OBJECT_FOOTER];
    f->index = e->written + e->batched;
    ckpt_buf_add(&e->index, &f->index, sizeof f->index);
    for (uint64_t i = 0; e->present && i < f->chunks; i++)
        ckpt_buf_add(&e->index, e->present->data + 16 * i, sizeof(uint64_t));
    uint64_t sum = XXH3_64bits(e->index.data, e->index.len);
    ckpt_buf_add(&e->index, &sum, sizeof sum);
    ckpt_object_footer_make(f, footer);
    ckpt_buf_add(&e->index, footer, sizeof footer);
    if (ckpt_buf_error(&e->index) < 0)
        return ckpt_fail(err, -ckpt_buf_error(&e->index), "out of memory");
    int r = e->batched ? write_batch(e, err) : 0;
    if (r < 0)
        return r;
    r = ckpt_disk_write(e->out, e->index.data, e->index.len, e->written);
    e->written += e->index.len;
    return r < 0 ? ckpt_fail(err, -r, "cannot write an object: %s", strerror(-r)) : 0;
}

static int encode_all(struct encoder *e, struct ckpt_err *err)
{
    const atomic_bool *cancel = e->in->cancel;
    if (!e->src || !e->batch)
        return ckpt_no_memory(err);
    for (uint64_t i = 0; i < e->f.chunks; i++) {
        if (cancel && atomic_load_explicit(cancel, memory_order_relaxed))
            return ckpt_fail(err, ECANCELED, "cancelled");
        int r = encode_chunk(e, i, err);
        if (r < 0)
            return r;
    }
    return encode_end(e, err);
}

static int encode_object(struct encoder *e, uint64_t *ret_stored, struct ckpt_err *err)
{
    const struct ckpt_object_footer *f = &e->f;
    uint64_t before_last = f->chunks ? f->chunks - 1 : 0;
    e->room = (size_t)ckpt_object_bound(f->codec, e->chunk_bytes);
    e->batch_room = (size_t)CKPT_MIN((uint64_t)BATCH, before_last * e->room) + e->room;
    e->src = malloc((size_t)CKPT_MIN(e->chunk_bytes, f->size) + 1);
    e->batch = malloc(e->batch_room);
    int r = encode_all(e, err);
    free(e->src);
    free(e->batch);
    ckpt_buf_clear(&e->index);
    if (r < 0)
        return r;
    *ret_stored = e->written;
    return 0;
}

/* Is there a format for it? */
static bool can_encode(const struct ckpt_object_input *in)
{
    bool codec = in->codec == CKPT_OBJECT_LZ4 || in->codec == CKPT_OBJECT_BLOSC;
    if (!codec || !in->chunk_bytes || in->len > CKPT_OBJECT_SIZE_MAX)
        return false;
    uint32_t log2 = (uint32_t)__builtin_ctzll(in->chunk_bytes);
    bool power_of_two = in->chunk_bytes == (uint64_t)1 << log2;
    return power_of_two && log2 >= CKPT_CHUNK_LOG2_MIN && log2 <= CKPT_CHUNK_LOG2_MAX;
}

int ckpt_object_encode(const struct ckpt_object_input *in, int out, uint64_t *ret_stored, struct ckpt_err *err)
{
    if (!can_encode(in))
        return ckpt_fail(err, EINVAL, "no object can have %llu bytes of codec %d in chunks of %llu",
                         (unsigned long long)in->len, (int)in->codec, (unsigned long long)in->chunk_bytes);
    uint32_t log2 = (uint32_t)__builtin_ctzll(in->chunk_bytes);
    struct encoder e = {.in = in, .out = out, .chunk_bytes = in->chunk_bytes};
    e.f = (struct ckpt_object_footer){
        .codec = in->codec,
        .chunk_log2 = log2,
        .typesize = typesize_of(in->codec, in->typesize),
        .size = in->len,
        .chunks = ckpt_chunk_count(in->len, log2),
    };
    memcpy(e.f.sha256, in->sha256, CKPT_SHA256);
    if (in->chunk_bytes == CKPT_OBJECT_CHUNK) /* the sums are of such chunks */
        e.sums = in->sums;
    return encode_object(&e, ret_stored, err);
}

int ckpt_object_encode_sparse(const struct ckpt_object_input *in, int out, uint64_t *ret_stored, struct ckpt_err *err)
{
    struct encoder e = {.in = in, .out = out, .chunk_bytes = CKPT_OBJECT_CHUNK, .present = in->present};
    e.f = (struct ckpt_object_footer){
        .codec = CKPT_OBJECT_SPARSE,
        .chunk_log2 = (uint32_t)__builtin_ctzll(CKPT_OBJECT_CHUNK),
        .typesize = typesize_of(CKPT_OBJECT_SPARSE, in->typesize),
        .size = in->len,
        .chunks = in->present->len / 16,
    };
    memcpy(e.f.sha256, in->sha256, CKPT_SHA256);
    return encode_object(&e, ret_stored, err);
}

int ckpt_object_write_sums(int out, uint64_t size, const uint8_t sha256[CKPT_SHA256], const struct ckpt_buf *sums,
                           struct ckpt_err *err)
{
    if (sums->len != ckpt_chunk_count(size, (uint32_t)__builtin_ctzll(CKPT_OBJECT_CHUNK)) * 8)
        return ckpt_fail(err, EINVAL, "%zu bytes of sums for %llu", sums->len, (unsigned long long)size);
    struct ckpt_buf file = CKPT_BUF_INIT;
    uint8_t header[CKPT_SUMS_HEADER];
    ckpt_sums_header_make(size, sha256, header);
    ckpt_buf_add(&file, header, sizeof header);
    ckpt_buf_add(&file, sums->data, sums->len);
    if (ckpt_buf_error(&file) == 0) {
        uint64_t sum = XXH3_64bits(file.data, file.len);
        ckpt_buf_add(&file, &sum, sizeof sum);
    }
    int r = ckpt_buf_error(&file);
    if (r == 0)
        r = ckpt_disk_write(out, file.data, file.len, 0);
    ckpt_buf_clear(&file);
    return r < 0 ? ckpt_fail(err, -r, "cannot write the sums of an object: %s", strerror(-r)) : 0;
}
