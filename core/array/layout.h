/* SPDX-License-Identifier: Apache-2.0 */
/*
 * How an array is stored: element type, shape, a regular grid of chunks, and how a decoded chunk is laid out.
 * Immutable once built; refcounted, since thousands of leaves share one.
 */
#ifndef CKPT_ARRAY_LAYOUT_H
#define CKPT_ARRAY_LAYOUT_H

#include "core/array/dtype.h"
#include "core/array/npy.h"
#include "core/codec/stream.h"

#include <stdatomic.h>

struct ckpt_array {
    atomic_uint refs;
    enum ckpt_dtype dtype;
    char *descr;       /* NumPy's, of CKPT_DT_OTHER; NULL of other types. Freed with it */
    bool big_endian;   /* stored elements are */
    uint8_t word;      /* bytes that are then reversed as a unit, of CKPT_DT_OTHER; others have their own */
    bool as_shown;     /* chunks decode to elements as the mount shows them: never swapped or extended */
    uint8_t flip;      /* CKPT_FLIP_*: parts of each element whose sign is turned when they are read */
    uint32_t itemsize; /* bytes */
    unsigned ndim;
    uint64_t *shape; /* elements */
    uint64_t *chunk; /* elements; never 0 */
    uint64_t *grid;  /* chunks in each dimension: ceil(shape / chunk) */
    int64_t *stride; /* bytes between neighbours of each dimension in a decoded chunk */
    uint64_t start;  /* byte of the first element in a decoded chunk */
    uint64_t nbytes; /* of the whole array */
    uint64_t nchunks;
    uint64_t chunk_bytes; /* of a decoded chunk; edge chunks are whole too */
    struct ckpt_codec_chain codecs;
    uint8_t fill[16]; /* one element, little-endian */
    int unsupported;  /* EOPNOTSUPP: known, but cannot be decoded; `why` says what */
    char why[96];
    char codec_text[48]; /* "zstd", "blosc/lz4", "none", for people */
    uint64_t origin;     /* the format's: where the data begin in what holds them, be it a file with a header */
    void *priv;          /* the format's, freed with free_priv */
    void (*free_priv)(void *);
};

/* A layout of one uncompressed C-order chunk, to be changed by the format before it is shared: grid, strides and sizes
 * follow from shape and chunk by ckpt_array_settle. NULL when out of memory. */
struct ckpt_array *ckpt_array_new(enum ckpt_dtype dtype, unsigned ndim, const uint64_t *shape);
/* Compute what follows from shape and chunk (C order when `order` is NULL; else order[i] is the logical dimension
 * stored i-th outermost). -EUCLEAN for a zero chunk or sizes beyond 2^62. */
int ckpt_array_settle(struct ckpt_array *a, const unsigned *order) CKPT_MUST_USE;
/* It is known, but cannot be decoded (EOPNOTSUPP), and why, in `why`. The first reason stays. */
void ckpt_array_refuse(struct ckpt_array *a, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
/*
 * The layout of what follows an .npy header: one uncompressed chunk, and the header's length as origin. Elements of no
 * bytes, or of very many, are not supported.
 */
int ckpt_array_of_npy(const struct ckpt_npy *npy, struct ckpt_array **ret) CKPT_MUST_USE;
/* Bytes of the words that are stored the other way round; 0 or 1: none are. */
unsigned ckpt_array_swap(const struct ckpt_array *a);
/* The type in an .npy header, and for people. */
const char *ckpt_array_descr(const struct ckpt_array *a);
const char *ckpt_array_type(const struct ckpt_array *a);
struct ckpt_array *ckpt_array_ref(struct ckpt_array *a);
void ckpt_array_unref(struct ckpt_array *a);

static inline void ckpt_cleanup_array(struct ckpt_array **a)
{
    ckpt_array_unref(*a);
}
/* Gives the reference back at the end of its scope. */
#define CKPT_AUTOARRAY __attribute__((cleanup(ckpt_cleanup_array)))

#endif
