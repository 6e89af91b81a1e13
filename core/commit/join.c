/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Pieces that tile an array become its file, a stripe at a time: a part of the array that is contiguous in its file and
 * fits in memory. What a piece has of it is contiguous in the piece's file.
 */
#include "core/commit/pieces.h"

#include "core/io/disk.h"

#define STRIPE ((uint64_t)4 << 20) /* bytes */

/* --- their files --- */

void ckpt_pieces_close_files(struct pieces *ps)
{
    for (size_t i = 0; ps->open && i < PIECES_OPEN; i++)
        ckpt_leaf_close(&ps->open[i]);
    free(ps->open);
    ps->open = NULL;
}

/* The file of a piece. One that is not among those that are open takes the place of another. */
static int piece_file(struct pieces *ps, size_t i, struct leaf_file **ret, struct ckpt_err *err)
{
    size_t place = i % PIECES_OPEN;
    if (!ps->open) {
        if (!(ps->open = malloc(PIECES_OPEN * sizeof *ps->open)))
            return ckpt_no_memory(err);
        for (size_t j = 0; j < PIECES_OPEN; j++) {
            ps->open[j] = (struct leaf_file)LEAF_FILE_INIT;
            ps->opened[j] = NULL;
        }
    }
    if (ps->opened[place] != ps->list[i]) {
        ckpt_leaf_close(&ps->open[place]);
        ps->opened[place] = NULL;
        int r = ckpt_leaf_open(ps->dir, ps->list[i]->name, &ps->open[place], err);
        if (r < 0)
            return r;
        ps->opened[place] = ps->list[i];
    }
    *ret = &ps->open[place];
    return 0;
}

static int read_data(struct pieces *ps, size_t i, void *buf, size_t len, uint64_t off, struct ckpt_err *err)
{
    struct leaf_file *f = NULL;
    int r = piece_file(ps, i, &f, err);
    if (r == 0)
        r = ckpt_leaf_read(ps->commit, f, buf, len, ps->list[i]->header + off, err);
    return r < 0 ? ckpt_fail_in(err, -r, "%s: the piece %s", ps->path, ps->list[i]->name) : 0;
}

/* Are all of these bytes of a hole? 1, 0. */
static int is_hole(struct pieces *ps, size_t i, uint64_t len, uint64_t off, struct ckpt_err *err)
{
    struct leaf_file *f = NULL;
    int r = piece_file(ps, i, &f, err);
    if (r == 0)
        r = ckpt_leaf_hole(ps->commit, f, ps->list[i]->header + off, len, err);
    return r < 0 ? ckpt_fail_in(err, -r, "%s: the piece %s", ps->path, ps->list[i]->name) : r;
}

/* --- joining --- */

/* Repeats must be equal; one of each stays. */
static int drop_repeats(struct pieces *ps, uint8_t *a, uint8_t *b, struct ckpt_err *err)
{
    size_t kept = 1;
    for (size_t i = 1; i < ps->count; i++) {
        struct piece *p = ps->list[i];
        if (!piece_same_box(ps, p, ps->list[kept - 1])) {
            ps->list[i] = ps->list[kept];
            ps->list[kept++] = p;
            continue;
        }
        uint64_t bytes = (uint64_t)piece_elements(ps, p) * ps->npy.itemsize;
        for (uint64_t off = 0; off < bytes; off += STRIPE) {
            size_t n = (size_t)CKPT_MIN(STRIPE, bytes - off);
            int r = is_hole(ps, kept - 1, n, off, err);
            if (r == 1 && (r = is_hole(ps, i, n, off, err)) == 1)
                continue;
            if (r == 0)
                r = read_data(ps, kept - 1, a, n, off, err);
            if (r == 0)
                r = read_data(ps, i, b, n, off, err);
            if (r < 0)
                return r;
            if (memcmp(a, b, n))
                return ckpt_fail(err, EEXIST, "%s: its pieces %s and %s are of the same place and differ", ps->path,
                                 ps->list[kept - 1]->name, p->name);
        }
    }
    ckpt_pieces_close_files(ps);
    for (size_t i = kept; i < ps->count; i++)
        free(ps->list[i]);
    ps->count = kept;
    return 0;
}

/* Part of the array: all of the dimensions behind `split`, [from, to) of that one, and one index of each before. */
struct stripe {
    unsigned split;
    uint64_t from, to;
    uint64_t index[CKPT_MAX_DIMS];
    uint64_t step; /* bytes of one index of `split` */
    uint8_t *data, *room;
    bool zero;    /* nothing but holes has come into it */
    bool skipped; /* holes have, and data has not the zeros yet */
};

/* Copy a piece's box of dimensions [d, ndim), first of which is [from, to), into the stripe; src is contiguous. */
static const uint8_t *scatter(const struct pieces *ps, const struct piece *p, unsigned d, uint64_t from, uint64_t to,
                              const uint8_t *src, uint8_t *dst)
{
    uint64_t item = ps->npy.itemsize, step = item; /* bytes of one index in the stripe */
    bool whole = true;                             /* the piece is as long as the array in all dimensions behind d */
    for (unsigned e = d + 1; e < ps->ndim; e++) {
        step *= ps->npy.shape[e];
        whole &= piece_extent(ps, p, e) == ps->npy.shape[e];
    }
    if (whole) {
        size_t n = (size_t)((to - from) * step);
        memcpy(dst + from * step, src, n);
        return src + n;
    }
    for (uint64_t i = from; i < to; i++)
        src = scatter(ps, p, d + 1, piece_begin(p, d + 1), piece_end(ps, p, d + 1), src, dst + i * step);
    return src;
}

static int fill_from(struct pieces *ps, struct stripe *s, size_t i, struct ckpt_err *err)
{
    const struct piece *p = ps->list[i];
    uint64_t first = 0, step = ps->npy.itemsize;
    for (unsigned d = 0; d < s->split; d++) {
        if (s->index[d] < piece_begin(p, d) || s->index[d] >= piece_end(ps, p, d))
            return 0;
        first = first * piece_extent(ps, p, d) + (s->index[d] - piece_begin(p, d));
    }
    uint64_t from = CKPT_MAX(s->from, piece_begin(p, s->split)), to = CKPT_MIN(s->to, piece_end(ps, p, s->split));
    for (unsigned d = s->split + 1; d < ps->ndim; d++)
        step *= piece_extent(ps, p, d);
    if (from >= to || !step)
        return 0;
    first = (first * piece_extent(ps, p, s->split) + (from - piece_begin(p, s->split))) * step;
    size_t len = (size_t)((to - from) * step);
    int hole = is_hole(ps, i, len, first, err);
    if (hole < 0)
        return hole;
    if (hole && s->zero) {
        s->skipped = true;
        return 0;
    }
    if (s->skipped)
        memset(s->data, 0, (size_t)((s->to - s->from) * s->step));
    s->zero = s->skipped = false;
    bool direct = step == s->step; /* it lies in the stripe as it does in the piece */
    uint8_t *at = direct ? s->data + (from - s->from) * step : s->room;
    int r = read_data(ps, i, at, len, first, err);
    if (r == 0 && !direct)
        scatter(ps, p, s->split, from - s->from, to - s->from, s->room, s->data);
    return r;
}

static int write_stripe(struct pieces *ps, struct stripe *s, int out, uint64_t *off, struct ckpt_err *err)
{
    size_t len = (size_t)((s->to - s->from) * s->step);
    if (atomic_load(ps->commit->cancel))
        return -ECANCELED;
    s->zero = true;
    s->skipped = false;
    for (size_t i = 0; i < ps->count; i++) {
        int r = fill_from(ps, s, i, err);
        if (r < 0)
            return r;
    }
    int r = s->zero ? 0 : ckpt_disk_write(out, s->data, len, *off); /* the file has zeros already */
    *off += len;
    return r < 0 ? ckpt_fail(err, -r, "%s: its pieces cannot be joined: %s", ps->path, strerror(-r)) : 0;
}

/* The next index of the dimensions before `split`; false after the last. */
static bool next_index(const struct pieces *ps, struct stripe *s)
{
    for (unsigned d = s->split; d-- > 0;) {
        if (++s->index[d] < ps->npy.shape[d])
            return true;
        s->index[d] = 0;
    }
    return false;
}

static int write_stripes(struct pieces *ps, struct stripe *s, int out, uint64_t off, struct ckpt_err *err)
{
    s->step = ps->npy.itemsize;
    for (s->split = ps->ndim - 1; s->split > 0 && s->step * ps->npy.shape[s->split] <= STRIPE; s->split--)
        s->step *= ps->npy.shape[s->split];
    uint64_t length = ps->npy.shape[s->split], at_once = CKPT_MAX(STRIPE / s->step, (uint64_t)1);
    int r = 0;
    do {
        for (s->from = 0; s->from < length && r == 0; s->from = s->to) {
            s->to = s->from + CKPT_MIN(at_once, length - s->from);
            r = write_stripe(ps, s, out, &off, err);
        }
    } while (r == 0 && next_index(ps, s));
    return r;
}

int ckpt_pieces_join(struct pieces *ps, int out, uint64_t *ret_size, struct ckpt_err *err)
{
    size_t room = (size_t)CKPT_MAX(STRIPE, (uint64_t)ps->npy.itemsize);
    struct ckpt_buf head = CKPT_BUF_INIT;
    struct stripe s = {.data = malloc(room), .room = malloc(room)};
    ckpt_npy_add_header(&head, ps->npy.descr, ps->ndim, ps->npy.shape);
    int r = s.data && s.room && !ckpt_buf_error(&head) ? 0 : ckpt_no_memory(err);
    if (r == 0)
        r = drop_repeats(ps, s.data, s.room, err);
    if (r == 0 && (r = ckpt_disk_write(out, head.data, head.len, 0)) < 0)
        r = ckpt_fail(err, -r, "%s: its pieces cannot be joined: %s", ps->path, strerror(-r));
    if (r == 0 && ps->npy.nbytes)
        r = write_stripes(ps, &s, out, head.len, err);
    if (r == 0 && (r = ckpt_disk_truncate(out, head.len + ps->npy.nbytes)) < 0)
        r = ckpt_fail(err, -r, "%s: its pieces cannot be joined: %s", ps->path, strerror(-r));
    ckpt_pieces_close_files(ps);
    ckpt_buf_clear(&head);
    free(s.data);
    free(s.room);
    if (r == 0)
        *ret_size = ps->npy.header + ps->npy.nbytes;
    return r;
}
