/* SPDX-License-Identifier: Apache-2.0 */
/* Private to pieces.c and join.c. */
#ifndef CKPT_COMMIT_PIECES_H
#define CKPT_COMMIT_PIECES_H

#include "core/commit/private.h"

#define PIECES_OPEN 64 /* files of pieces at once */

struct piece {
    const char *name;
    uint32_t header;
    uint64_t box[]; /* of each dimension where it begins, then of each where it ends */
};

struct pieces {
    struct commit *commit;
    int dir;
    const char *path; /* of the array, borrowed */
    unsigned ndim;
    struct ckpt_npy npy; /* of the array; its header is not known before it is joined */
    struct piece **list; /* by their boxes */
    size_t count;
    struct leaf_file *open;                  /* PIECES_OPEN of them, or NULL */
    const struct piece *opened[PIECES_OPEN]; /* whose they are */
};

static inline uint64_t piece_begin(const struct piece *p, unsigned d)
{
    return p->box[d];
}

static inline uint64_t piece_end(const struct pieces *ps, const struct piece *p, unsigned d)
{
    return p->box[ps->ndim + d];
}

static inline uint64_t piece_extent(const struct pieces *ps, const struct piece *p, unsigned d)
{
    return piece_end(ps, p, d) - piece_begin(p, d);
}

static inline bool piece_same_box(const struct pieces *ps, const struct piece *a, const struct piece *b)
{
    return !memcmp(a->box, b->box, 2 * ps->ndim * sizeof *a->box);
}

static inline __uint128_t piece_elements(const struct pieces *ps, const struct piece *p)
{
    __uint128_t n = 1; /* bounded by the file that has them */
    for (unsigned d = 0; d < ps->ndim; d++)
        n *= piece_extent(ps, p, d);
    return n;
}

void ckpt_pieces_close_files(struct pieces *ps);

#endif
