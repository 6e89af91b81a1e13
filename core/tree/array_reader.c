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

/* Start what elements from first to end need: their own chunks at once, and the next ones of an array that is read in
 * order. */
static int hint(struct job *j, const struct ckpt_selection *sel, uint64_t first, uint64_t end)
{
    const struct ckpt_array *a = j->a;
    bool is_worth_it = a->nchunks > 1 && a->chunk_bytes >= HINT_CHUNK;
    if (!is_worth_it)
        return 0;
    if (j->sequential)
        end += LOOK_AHEAD / a->itemsize;
    end = CKPT_MIN(ckpt_selection_elements(sel), end);
    return ckpt_gather(a, sel, first, end - first, hint_piece, j);
}

/* Whole elements aside, then the part that was asked for. */
static int read_unaligned(struct job *j, const struct ckpt_selection *sel, void *buf, size_t len, uint64_t off)
{
    uint64_t size = j->a->itemsize, first = off / size, count = (off + len + size - 1) / size - first;
    CKPT_AUTOFREE uint8_t *whole = malloc(count * size);
    if (!whole)
        return ckpt_no_memory(j->err);
    j->buf = whole;
    int r = ckpt_gather(j->a, sel, first, count, take_piece, j);
    if (r == 0)
        memcpy(buf, whole + (off - first * size), len);
    return r;
}

int ckpt_read_array(struct ckpt_array_reader *s, const struct ckpt_selected *what, void *buf, size_t len, uint64_t off,
                    struct ckpt_err *err)
{
    const struct ckpt_array *a = what->array;
    if (a->unsupported)
        return ckpt_fail(err, a->unsupported, "%s", a->why);
    struct job j = {.state = s, .tree = what->tree, .node = what->node, .a = a, .index = UINT64_MAX, .err = err};
    uint64_t size = a->itemsize, first = off / size, end = (off + len + size - 1) / size;
    j.buf = buf;
    j.sequential = track(s, what->tree, what->node, off, len);
    int r = hint(&j, what->sel, first, end);
    if (r < 0)
        return r;
    bool is_aligned = off % size == 0 && len % size == 0;
    if (is_aligned)
        r = ckpt_gather(a, what->sel, first, end - first, take_piece, &j);
    else
        r = read_unaligned(&j, what->sel, buf, len, off);
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

/* The bytes are one piece of the only chunk. Where there are several chunks, the copying way also starts the decoding
 * of the next ones. */
static bool is_together(const struct ckpt_selected *what, size_t len, uint64_t off, struct ckpt_piece *ret)
{
    const struct ckpt_array *a = what->array;
    uint32_t size = a->itemsize;
    bool may_be = !a->unsupported && a->nchunks == 1 && len;
    if (!may_be || off % size || len % size)
        return false;
    if (ckpt_gather(a, what->sel, off / size, len / size, only_piece, ret) != 0)
        return false;
    if (ret->highest - ret->lowest != len)
        return false;
    bool is_in_order = ret->ndim == 0 || (ret->ndim == 1 && ret->dim[0].src == size);
    return is_in_order;
}

int ckpt_map_array(struct ckpt_array_reader *s, const struct ckpt_selected *what, size_t len, uint64_t off,
                   struct ckpt_mapped *ret, struct ckpt_err *err)
{
    struct job j = {.state = s, .tree = what->tree, .node = what->node, .a = what->array, .err = err};
    struct ckpt_piece only = {0};
    struct ckpt_chunk *chunk;
    const uint8_t *data;
    *ret = (struct ckpt_mapped){0};
    if (!is_together(what, len, off, &only))
        return 0;
    int r = get_chunk(&j, only.chunk, &chunk);
    if (r != 0)
        return CKPT_MIN(r, 0); /* 1: it is not stored */
    bool sequential = track(s, what->tree, what->node, off, len);
    r = ckpt_chunk_map(s->cache, chunk, only.lowest, len, sequential, &data, err);
    if (r < 0 || !data) {
        ckpt_chunk_put(s->cache, chunk);
        return r;
    }
    *ret = (struct ckpt_mapped){data, chunk};
    return 0;
}
