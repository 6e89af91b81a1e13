/* SPDX-License-Identifier: Apache-2.0 */
#include "core/tree/array_reader.h"

#include "core/array/gather.h"
#include "core/base/util.h"

#define HINT_CHUNK ((uint64_t)64 << 10) /* smaller chunks are not worth another thread */
#define HINTS      4
#define LOOK_AHEAD ((uint64_t)4 << 20)

struct job {
    struct ckpt_array_reader *state;
    struct ckpt_tree *tree;
    uint32_t node;
    const struct ckpt_array *a;
    uint8_t *buf;
    bool sequential;
    struct ckpt_chunk *chunk; /* the one in use */
    uint64_t index;           /* its number; UINT64_MAX = none yet */
    bool fill;                /* it is not stored */
    struct ckpt_run run;      /* what is known of a part of it */
    uint64_t highest;         /* of the piece at hand */
    uint64_t hinted[HINTS];
    unsigned hints;
    struct ckpt_err *err;
};

static int locate(void *arg, const struct ckpt_chunk_key *key, struct ckpt_chunk_source *ret, struct ckpt_err *err)
{
    struct job *j = arg;
    int r = j->tree->ops->chunk(j->tree, j->node, j->a, key->index, &ret->extent, err);
    if (r < 0)
        return r;
    ret->missing = r == 1;
    ret->codecs = j->a->codecs;
    ret->size = j->a->chunk_bytes;
    ret->dtype = j->a->as_shown ? CKPT_DT_OTHER : j->a->dtype;
    ret->swap = (uint8_t)ckpt_array_swap(j->a);
    ret->flip = j->a->as_shown ? 0 : j->a->flip;
    return 0;
}

static int get_chunk(struct job *j, uint64_t index, struct ckpt_chunk **ret)
{
    struct ckpt_chunk_key key = {.tree = j->tree->id, .index = index, .node = j->node};
    return ckpt_cache_get(j->state->cache, &key, locate, j, ret, j->err);
}

/* Start the decoding of a chunk in the background. */
static int hint_piece(void *arg, const struct ckpt_piece *p)
{
    struct job *j = arg;
    struct ckpt_chunk *chunk;
    for (unsigned i = 0; i < j->hints; i++)
        if (j->hinted[i] == p->chunk)
            return 0;
    if (j->hints == HINTS)
        return 1;
    j->hinted[j->hints++] = p->chunk;
    struct ckpt_err *err = CKPT_STEAL(j->err); /* whoever reads it will see the error */
    int r = get_chunk(j, p->chunk, &chunk);
    j->err = err;
    if (r == 0) {
        ckpt_chunk_prefetch(j->state->cache, chunk, p->highest);
        ckpt_chunk_put(j->state->cache, chunk);
    }
    return 0;
}

/* All of it is in a hole; what is found out holds for the job. */
static bool is_zeros(struct job *j, uint64_t off, uint64_t end)
{
    if (off < j->run.begin || off >= j->run.end)
        ckpt_chunk_run(j->chunk, off, j->highest, &j->run);
    return j->run.zeros && end <= j->run.end;
}

static int read_chunk(void *arg, void *buf, size_t len, uint64_t off)
{
    struct job *j = arg;
    if (is_zeros(j, off, off + len)) {
        memset(buf, 0, len);
        return 0;
    }
    return ckpt_chunk_read(j->state->cache, j->chunk, buf, len, off, j->sequential, j->err);
}

static int take_piece(void *arg, const struct ckpt_piece *p)
{
    struct job *j = arg;
    const struct ckpt_array *a = j->a;
    if (j->index != p->chunk) {
        ckpt_chunk_put(j->state->cache, j->chunk);
        j->chunk = NULL;
        j->index = UINT64_MAX;
        int r = get_chunk(j, p->chunk, &j->chunk);
        if (r < 0)
            return r;
        j->fill = r == 1;
        j->run = (struct ckpt_run){0};
        j->index = p->chunk;
    }
    if (j->fill) {
        ckpt_piece_fill(p, a->itemsize, a->fill, j->buf);
        return 0;
    }
    const uint8_t *data;
    int r = ckpt_chunk_map(j->state->cache, j->chunk, p->lowest, p->highest - p->lowest, j->sequential, &data, j->err);
    if (r < 0)
        return r;
    static const uint8_t zero[sizeof a->fill];
    j->highest = p->highest;
    if (!data && a->itemsize <= sizeof zero && is_zeros(j, p->lowest, p->highest)) {
        ckpt_piece_fill(p, a->itemsize, zero, j->buf);
        return 0;
    }
    if (!data) {
        r = ckpt_piece_fetch(p, a->itemsize, read_chunk, j, j->buf);
        return r == -ENOMEM ? ckpt_no_memory(j->err) : r;
    }
    ckpt_piece_copy(p, a->itemsize, data - p->lowest, j->buf);
    return 0;
}

/* Notes where this read ends, and says whether it goes on where the last one ended, or near (requests overtake each
 * other). */
static bool track(struct ckpt_array_reader *s, const struct ckpt_tree *t, uint32_t node, uint64_t off, uint64_t len)
{
    atomic_uint_fast64_t *slot =
        &s->track[(t->id * 0x9e3779b97f4a7c15 ^ node * 0xbf58476d1ce4e5b9) >> 32 & (CKPT_ARRAY_READER_TRACKS - 1)];
    uint64_t last = atomic_exchange_explicit(slot, off + len, memory_order_relaxed);
    return !off || (off + LOOK_AHEAD >= last && off <= last + LOOK_AHEAD);
}

int ckpt_read_array(struct ckpt_array_reader *s, struct ckpt_tree *t, uint32_t node, const struct ckpt_array *a,
                    const struct ckpt_selection *sel, void *buf, size_t len, uint64_t off, struct ckpt_err *err)
{
    if (a->unsupported)
        return ckpt_fail(err, a->unsupported, "%s", a->why);
    struct job j = {.state = s, .tree = t, .node = node, .a = a, .buf = buf, .index = UINT64_MAX, .err = err};
    uint64_t size = a->itemsize, first = off / size, end = off + len;
    uint64_t total = ckpt_selection_elements(sel);
    j.sequential = track(s, t, node, off, len);
    int r = 0;
    if (a->nchunks > 1 && a->chunk_bytes >= HINT_CHUNK) {
        /* Its own chunks at once, and the next ones of an array that is read in order. */
        uint64_t last = CKPT_MIN(total, (end + size - 1) / size + (j.sequential ? LOOK_AHEAD / size : 0));
        r = ckpt_gather(a, sel, first, last - first, hint_piece, &j);
        if (r < 0)
            return r;
    }
    if (off % size == 0 && len % size == 0)
        r = ckpt_gather(a, sel, first, len / size, take_piece, &j);
    else { /* whole elements aside, then the part that was asked for */
        uint64_t count = (end + size - 1) / size - first;
        CKPT_AUTOFREE uint8_t *whole = malloc(count * size);
        if (!whole)
            return ckpt_no_memory(err);
        j.buf = whole;
        r = ckpt_gather(a, sel, first, count, take_piece, &j);
        if (r == 0)
            memcpy(buf, whole + (off - first * size), len);
    }
    ckpt_chunk_put(s->cache, j.chunk);
    return r;
}

/* Keeps the first piece in `arg`, and stops at a second one. */
static int only_piece(void *arg, const struct ckpt_piece *p)
{
    struct ckpt_piece *only = arg;
    if (only->highest)
        return 1;
    *only = *p;
    return 0;
}

int ckpt_map_array(struct ckpt_array_reader *s, struct ckpt_tree *t, uint32_t node, const struct ckpt_array *a,
                   const struct ckpt_selection *sel, size_t len, uint64_t off, const void **ret,
                   struct ckpt_chunk **ret_hold, struct ckpt_err *err)
{
    uint32_t size = a->itemsize;
    struct job j = {.state = s, .tree = t, .node = node, .a = a, .err = err};
    struct ckpt_piece only = {0};
    *ret = NULL;
    *ret_hold = NULL;
    /* Where there are several chunks, the copying way also starts the decoding of the next ones. */
    if (a->unsupported || a->nchunks != 1 || !len || off % size || len % size)
        return 0;
    if (ckpt_gather(a, sel, off / size, len / size, only_piece, &only) != 0 || only.highest - only.lowest != len ||
        only.ndim > 1 || (only.ndim == 1 && only.dim[0].src != size))
        return 0;
    int r = get_chunk(&j, only.chunk, ret_hold);
    if (r != 0)
        return r < 0 ? r : 0;
    const uint8_t *data;
    r = ckpt_chunk_map(s->cache, *ret_hold, only.lowest, len, track(s, t, node, off, len), &data, err);
    if (r < 0 || !data) {
        ckpt_chunk_put(s->cache, *ret_hold);
        *ret_hold = NULL;
        return r;
    }
    *ret = data;
    return 0;
}
