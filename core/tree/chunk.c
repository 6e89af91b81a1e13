/* SPDX-License-Identifier: Apache-2.0 */
/*
 * How chunks are decoded and read. MEMORY and SPILL chunks have a decoder that stands still at `frontier`, the bytes
 * decoded so far. A reader that needs more moves it on, unless another thread is doing so (`busy`). Encodings with a
 * checksum at their end are not shown before the end has been checked.
 *
 * A SPILL chunk keeps its last decoded bytes in a small ring in memory, which is all that reading in order needs. The
 * first read that goes back behind it begins anew, and from then on all that is decoded is also kept in a spill file, a
 * ring too if it must.
 */
#include "core/tree/chunk_private.h"

#include "core/base/log.h"
#include "core/base/temporary.h"
#include "core/base/util.h"

#include <unistd.h>

#define BLOCK CKPT_CHUNK_BLOCK

/* --- the decoder: chunk->lock is held on entry and exit, `busy` keeps others off in between --- */

/* Decoded bytes are not yet the elements that readers get. */
static bool changes_elements(const struct ckpt_chunk_source *s)
{
    return s->swap > 1 || s->flip || (s->dtype != CKPT_DT_OTHER && ckpt_dtype_info(s->dtype)->bits < 8);
}

/* Another block of a SPILL chunk has been decoded into the ring in memory: keep it in the file too, where there is one.
 */
static void keep_block(struct ckpt_cache *c, struct ckpt_chunk *chunk, size_t len)
{
    uint64_t off = chunk->decoded;
    const uint8_t *block = chunk->mem + off % chunk->window; /* the window is a multiple of BLOCK: it does not wrap */
    for (size_t done = 0; done < len;) {
        uint64_t at = (off + done) % chunk->ring;
        size_t n = (size_t)CKPT_MIN((uint64_t)(len - done), chunk->ring - at);
        int r = ckpt_pwrite(chunk->fd, block + done, n, at);
        if (r < 0) {
            /* Less is kept, so random reads decode again; sequential ones do not notice. */
            ckpt_log(CKPT_LOG_WARN, "%s: no room for decoded data (%s); reading large chunks at random will be slow",
                     c->opt.spill_dir, strerror(-r));
            close(chunk->fd);
            chunk->fd = -1;
            chunk->no_file = true;
            return;
        }
        done += n;
    }
}

enum kept { NOT_KEPT, KEPT_IN_MEMORY, KEPT_IN_FILE };

/* Where bytes from off on are still kept. The next block may be on its way into the places of the oldest. The lock is
 * held. */
static enum kept kept_in(const struct ckpt_chunk *chunk, uint64_t off)
{
    uint64_t ahead = chunk->decoded + (chunk->decoded < chunk->src.size ? BLOCK : 0);
    if (chunk->mem && off + chunk->window >= ahead)
        return KEPT_IN_MEMORY;
    bool whole = chunk->ring == chunk->src.size;
    if (chunk->fd >= 0 && (whole || off + chunk->ring >= ahead))
        return KEPT_IN_FILE;
    return NOT_KEPT;
}

/* What is wanted is no longer kept: decode from the beginning, and keep more this time. The decoder is held (`busy`),
 * the lock is not. */
static void begin_anew(struct ckpt_cache *c, struct ckpt_chunk *chunk, uint64_t off)
{
    ckpt_stream_close(chunk->stream);
    chunk->stream = NULL;
    if (!off || chunk->fd >= 0 || chunk->no_file) /* from the top in order: nothing more is needed */
        return;
    uint64_t ring = CKPT_MIN(chunk->src.size, c->opt.spill & ~(uint64_t)(BLOCK - 1));
    bool room = ckpt_cache_charge_spill(c, chunk, ring);
    int fd = room ? ckpt_temporary(c->opt.spill_dir) : -ENOSPC;
    pthread_mutex_lock(&chunk->lock);
    chunk->ring = ring;
    chunk->fd = fd < 0 ? -1 : fd;
    chunk->no_file = fd < 0;
    pthread_mutex_unlock(&chunk->lock);
    if (fd < 0)
        ckpt_log(CKPT_LOG_WARN, "%s: no file for decoded data (%s); reading large chunks at random will be slow",
                 c->opt.spill_dir, strerror(-fd));
}

static int decoder_open(struct ckpt_cache *c, struct ckpt_chunk *chunk, struct ckpt_err *err)
{
    enum ckpt_chunk_kind kind = ckpt_chunk_kind(chunk);
    if (!chunk->mem) {
        chunk->mem = malloc(kind == MEMORY ? CKPT_MAX(chunk->src.size, (uint64_t)1) : chunk->window);
        if (!chunk->mem)
            return ckpt_no_memory(err);
    }
    atomic_fetch_add_explicit(&c->decoded, 1, memory_order_relaxed);
    if (kind == MEMORY && chunk->src.size <= BLOCK * 4)
        return 0; /* decoded in one go */
    int r = ckpt_stream_open(&chunk->src.codecs, &chunk->src.extent, chunk->src.size, &chunk->stream, err);
    if (r == 0 && kind == MEMORY && !changes_elements(&chunk->src))
        ckpt_stream_set_output(chunk->stream, chunk->mem);
    return r;
}

static void finish_elements(const struct ckpt_chunk_source *s, uint8_t *p, size_t len)
{
    if (!changes_elements(s))
        return;
    ckpt_swap_words(p, len, s->swap);
    ckpt_dtype_extend(s->dtype, p, len); /* of elements of one byte, if at all */
    if (s->flip)
        ckpt_dtype_flip(s->dtype, s->flip, p, len / ckpt_dtype_info(s->dtype)->size);
}

/* Small chunks are decoded in one go. */
static ssize_t decode_whole(struct ckpt_chunk *chunk, struct ckpt_err *err)
{
    const struct ckpt_chunk_source *s = &chunk->src;
    int r = ckpt_decode(&s->codecs, &s->extent, chunk->mem, s->size, err);
    if (r < 0)
        return r;
    finish_elements(s, chunk->mem, s->size);
    return (ssize_t)s->size;
}

/* Decode the next block; the lock is not held. Returns bytes or an error. */
static ssize_t decode_block(struct ckpt_cache *c, struct ckpt_chunk *chunk, struct ckpt_err *err)
{
    int r = chunk->stream ? 0 : decoder_open(c, chunk, err);
    if (r < 0)
        return r;
    if (!chunk->stream)
        return decode_whole(chunk, err);
    const struct ckpt_chunk_source *s = &chunk->src;
    bool spill = ckpt_chunk_kind(chunk) == SPILL;
    size_t len = (size_t)CKPT_MIN((uint64_t)BLOCK, s->size - chunk->decoded);
    uint8_t *to = chunk->mem + (spill ? chunk->decoded % chunk->window : chunk->decoded);
    ssize_t n = ckpt_stream_read(chunk->stream, to, len, err);
    if (n < 0)
        return n;
    if ((size_t)n != len)
        return ckpt_fail(err, EBADMSG, "the chunk decodes to %llu bytes, not %llu",
                         (unsigned long long)(chunk->decoded + (uint64_t)n), (unsigned long long)s->size);
    finish_elements(s, to, len);
    if (spill && chunk->fd >= 0)
        keep_block(c, chunk, len);
    return n;
}

/* The decoder has produced n bytes more, or failed. The lock is held. */
static void note_progress(struct ckpt_cache *c, struct ckpt_chunk *chunk, ssize_t n, const struct ckpt_err *err)
{
    if (n < 0) {
        chunk->err = err->code ? *err : (struct ckpt_err){.code = (int)-n};
        atomic_store(&chunk->failed, true);
        return;
    }
    atomic_fetch_add_explicit(&c->decoded_bytes, (uint64_t)n, memory_order_relaxed);
    chunk->decoded += (uint64_t)n;
    bool at_end = chunk->decoded == chunk->src.size;
    chunk->verified |= at_end;
    /* Where the check comes after more than the ring keeps, all is decoded once for the check alone, and a second time
     * for the readers. */
    bool checked_late = chunk->stream && ckpt_stream_checks_at_end(chunk->stream);
    if (chunk->verified || !checked_late)
        chunk->frontier = chunk->decoded;
    if (at_end) {
        ckpt_stream_close(chunk->stream);
        chunk->stream = NULL;
    }
}

/* Move the decoder on until `end` bytes can be seen. */
static void advance(struct ckpt_cache *c, struct ckpt_chunk *chunk, uint64_t end)
{
    chunk->busy = true;
    while (chunk->frontier < end && !chunk->err.code) {
        struct ckpt_err err = {0};
        pthread_mutex_unlock(&chunk->lock);
        ssize_t n = decode_block(c, chunk, &err);
        pthread_mutex_lock(&chunk->lock);
        note_progress(c, chunk, n, &err);
        pthread_cond_broadcast(&chunk->moved);
        if (chunk->decoded == chunk->src.size)
            break;
    }
    chunk->busy = false;
    pthread_cond_broadcast(&chunk->moved);
}

/* Wait until [off, end) can be read; the lock is held. */
static int await(struct ckpt_cache *c, struct ckpt_chunk *chunk, uint64_t off, uint64_t end, struct ckpt_err *err)
{
    bool spill = ckpt_chunk_kind(chunk) == SPILL;
    while (!chunk->err.code) {
        bool gone = spill && off < chunk->decoded && !kept_in(chunk, off);
        if (!gone && chunk->frontier >= end)
            return 0;
        if (chunk->busy) {
            pthread_cond_wait(&chunk->moved, &chunk->lock);
            continue;
        }
        if (gone) {
            chunk->busy = true;
            chunk->decoded = chunk->frontier = chunk->target = 0; /* before others can see the file, which is empty */
            pthread_mutex_unlock(&chunk->lock);
            begin_anew(c, chunk, off);
            pthread_mutex_lock(&chunk->lock);
        }
        advance(c, chunk, end);
    }
    if (err)
        *err = chunk->err;
    return -chunk->err.code;
}

struct ahead {
    struct ckpt_cache *cache;
    struct ckpt_chunk *chunk;
};

static void run_ahead(void *arg)
{
    struct ahead *a = arg;
    struct ckpt_chunk *chunk = a->chunk;
    pthread_mutex_lock(&chunk->lock);
    while (!chunk->busy && !chunk->err.code && chunk->frontier < chunk->target) {
        uint64_t end = CKPT_MIN(chunk->frontier + BLOCK, chunk->target);
        advance(a->cache, chunk, end);
    }
    chunk->ahead = false;
    pthread_mutex_unlock(&chunk->lock);
    ckpt_chunk_put(a->cache, chunk);
    free(a);
}

/* With the chunk's lock held: see that the pool decodes on to `end`. Returns a task to submit once the lock is let go.
 */
static struct ahead *plan_ahead(struct ckpt_cache *c, struct ckpt_chunk *chunk, uint64_t end)
{
    chunk->target = CKPT_MAX(chunk->target, CKPT_MIN(end, chunk->src.size));
    if (chunk->ahead || chunk->busy || chunk->err.code || chunk->frontier >= chunk->target)
        return NULL;
    struct ahead *a = malloc(sizeof *a);
    if (!a)
        return NULL;
    *a = (struct ahead){c, chunk};
    chunk->ahead = true;
    return a;
}

static void submit_ahead(struct ahead *a)
{
    if (!a)
        return;
    ckpt_chunk_ref(a->cache, a->chunk);
    if (ckpt_pool_submit(a->cache->pool, run_ahead, a) == 0)
        return;
    pthread_mutex_lock(&a->chunk->lock);
    a->chunk->ahead = false;
    pthread_mutex_unlock(&a->chunk->lock);
    ckpt_chunk_put(a->cache, a->chunk);
    free(a);
}

void ckpt_chunk_prefetch(struct ckpt_cache *c, struct ckpt_chunk *chunk, uint64_t end)
{
    if (ckpt_chunk_kind(chunk) == DIRECT)
        return;
    pthread_mutex_lock(&chunk->lock);
    struct ahead *a = plan_ahead(c, chunk, end);
    pthread_mutex_unlock(&chunk->lock);
    submit_ahead(a);
}

/* How far to decode beyond a read that ends at `end`: all that fits in memory, a little of what does not. */
static uint64_t ahead_of(const struct ckpt_chunk *chunk, uint64_t end)
{
    return ckpt_chunk_kind(chunk) == MEMORY ? chunk->src.size : end + chunk->window / 8;
}

int ckpt_chunk_map(struct ckpt_cache *c, struct ckpt_chunk *chunk, uint64_t off, uint64_t len, bool sequential,
                   const uint8_t **ret, struct ckpt_err *err)
{
    *ret = NULL;
    if (ckpt_chunk_kind(chunk) != MEMORY)
        return 0;
    pthread_mutex_lock(&chunk->lock);
    struct ahead *a = NULL;
    if (sequential) {
        chunk->sequential = true;
        a = plan_ahead(c, chunk, ahead_of(chunk, off + len));
    }
    if (a) { /* let the pool begin, then wait with it */
        pthread_mutex_unlock(&chunk->lock);
        submit_ahead(a);
        pthread_mutex_lock(&chunk->lock);
    }
    int r = await(c, chunk, off, off + len, err);
    chunk->served += len;
    /* The pool's task gives way to a reader who decodes. A chunk that were left half decoded could not be moved out. */
    a = sequential && r == 0 ? plan_ahead(c, chunk, chunk->target) : NULL;
    pthread_mutex_unlock(&chunk->lock);
    submit_ahead(a);
    if (r == 0)
        *ret = chunk->mem + off;
    return r;
}

static int file_read(struct ckpt_chunk *chunk, int fd, uint8_t *buf, size_t len, uint64_t off)
{
    for (size_t done = 0; done < len;) {
        uint64_t at = (off + done) % chunk->ring;
        size_t want = (size_t)CKPT_MIN((uint64_t)(len - done), chunk->ring - at);
        ssize_t n = pread(fd, buf + done, want, (off_t)at);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return n < 0 ? -errno : -EIO;
        done += (size_t)n;
    }
    return 0;
}

static void window_read(const struct ckpt_chunk *chunk, uint8_t *buf, size_t len, uint64_t off)
{
    for (size_t done = 0; done < len;) {
        uint64_t at = (off + done) % chunk->window;
        size_t n = (size_t)CKPT_MIN((uint64_t)(len - done), chunk->window - at);
        memcpy(buf + done, chunk->mem + at, n);
        done += n;
    }
}

/* Copies [off, off + len) of the file. The decoder may come round the ring meanwhile, or begin anew: 1: it has not, the
 * bytes are good; 0: once more. */
static int spill_file_read(struct ckpt_cache *c, struct ckpt_chunk *chunk, int fd, uint8_t *buf, size_t len,
                           uint64_t off, struct ckpt_err *err)
{
    int r = file_read(chunk, fd, buf, len, off);
    if (r < 0)
        return ckpt_fail(err, -r, "%s: %s", c->opt.spill_dir, strerror(-r));
    CKPT_GUARD(&chunk->lock);
    return kept_in(chunk, off) != NOT_KEPT && chunk->frontier >= off + len;
}

/* Copies [off, off + len), less than the window holds. 1: done; 0: the bytes went away meanwhile, once more. */
static int spill_read_piece(struct ckpt_cache *c, struct ckpt_chunk *chunk, uint8_t *buf, size_t len, uint64_t off,
                            bool sequential, struct ckpt_err *err)
{
    struct ahead *a = NULL;
    enum kept where = NOT_KEPT;
    CKPT_AUTOFD int fd = -1;
    pthread_mutex_lock(&chunk->lock);
    int r = await(c, chunk, off, off + len, err);
    if (r == 0) {
        if (sequential)
            a = plan_ahead(c, chunk, ahead_of(chunk, off + len));
        where = kept_in(chunk, off);
    }
    if (where == KEPT_IN_MEMORY) /* the lock keeps the decoder from coming round */
        window_read(chunk, buf, len, off);
    if (where == KEPT_IN_FILE) {
        fd = dup(chunk->fd); /* the chunk's own may be closed while it is read */
        if (fd < 0)
            r = ckpt_fail(err, errno, "no descriptor for decoded data: %s", strerror(errno));
    }
    pthread_mutex_unlock(&chunk->lock);
    submit_ahead(a);
    if (r < 0)
        return r;
    if (where == KEPT_IN_FILE)
        return spill_file_read(c, chunk, fd, buf, len, off, err);
    return where == KEPT_IN_MEMORY;
}

static int spill_read(struct ckpt_cache *c, struct ckpt_chunk *chunk, uint8_t *buf, size_t len, uint64_t off,
                      bool sequential, struct ckpt_err *err)
{
    while (len) {
        size_t n = CKPT_MIN(len, BLOCK * 4);
        int r = spill_read_piece(c, chunk, buf, n, off, sequential, err);
        if (r < 0)
            return r;
        if (r == 0)
            continue;
        buf += n;
        off += n;
        len -= n;
    }
    return 0;
}

/* Words, or elements whose signs turn, are changed as a whole: what is wanted of one in part is read aside. */
static int direct_read(const struct ckpt_chunk_source *s, void *buf, size_t len, uint64_t off, struct ckpt_err *err)
{
    if (s->extent.len != s->size)
        return ckpt_fail(err, EBADMSG, "the chunk has %llu bytes, not %llu", (unsigned long long)s->extent.len,
                         (unsigned long long)s->size);
    size_t unit = CKPT_MAX(s->flip ? ckpt_dtype_info(s->dtype)->size : s->swap, (uint8_t)1);
    size_t before = (size_t)(off % unit), whole = (before + len + unit - 1) / unit * unit;
    CKPT_AUTOFREE uint8_t *aside = whole == len ? NULL : malloc(whole);
    uint8_t *to = whole == len ? buf : aside;
    if (!to)
        return ckpt_no_memory(err);
    int r = ckpt_extent_read(&s->extent, to, whole, off - before);
    if (r < 0)
        return ckpt_fail(err, -r, "%s", r == -EBADMSG ? "the file is shorter than its chunk" : strerror(-r));
    finish_elements(s, to, whole);
    if (aside)
        memcpy(buf, aside + before, len);
    return 0;
}

void ckpt_chunk_run(const struct ckpt_chunk *chunk, uint64_t off, uint64_t end, struct ckpt_run *ret)
{
    const struct ckpt_chunk_source *s = &chunk->src;
    *ret = (struct ckpt_run){.begin = off, .end = end};
    if (ckpt_chunk_kind(chunk) != DIRECT || s->flip || !s->extent.file || s->extent.len != s->size || end > s->size)
        return;
    ckpt_file_run(s->extent.file, s->extent.off + off, s->extent.off + end, ret);
    ret->begin -= s->extent.off;
    ret->end -= s->extent.off;
}

int ckpt_chunk_read(struct ckpt_cache *c, struct ckpt_chunk *chunk, void *buf, size_t len, uint64_t off,
                    bool sequential, struct ckpt_err *err)
{
    if (off > chunk->src.size || len > chunk->src.size - off)
        return ckpt_fail(err, EINVAL, "read beyond the end of a chunk");
    switch (ckpt_chunk_kind(chunk)) {
    case DIRECT:
        return direct_read(&chunk->src, buf, len, off, err);
    case MEMORY: {
        const uint8_t *p;
        int r = ckpt_chunk_map(c, chunk, off, len, sequential, &p, err);
        if (r == 0)
            memcpy(buf, p, len);
        return r;
    }
    default:
        return spill_read(c, chunk, buf, len, off, sequential, err);
    }
}
