/* SPDX-License-Identifier: Apache-2.0 */
#include "core/array/layout.h"

#include "core/base/util.h"

#include <stdarg.h>
#include <stdio.h>

#define MAX_BYTES ((uint64_t)1 << 62)
#define MAX_ITEM  ((uint32_t)16 << 20) /* bytes of an element of which parts are shown */

struct ckpt_array *ckpt_array_new(enum ckpt_dtype dtype, unsigned ndim, const uint64_t *shape)
{
    struct ckpt_array *a = calloc(1, sizeof *a + ndim * 4 * sizeof(uint64_t));
    if (!a)
        return NULL;
    atomic_init(&a->refs, 1);
    a->dtype = dtype;
    a->itemsize = ckpt_dtype_info(dtype)->size;
    a->ndim = ndim;
    a->shape = (uint64_t *)(a + 1);
    a->chunk = a->shape + ndim;
    a->grid = a->chunk + ndim;
    a->stride = (int64_t *)(a->grid + ndim);
    for (unsigned i = 0; i < ndim; i++) {
        a->shape[i] = shape[i];
        a->chunk[i] = CKPT_MAX(shape[i], (uint64_t)1);
    }
    strcpy(a->codec_text, "none");
    return a;
}

int ckpt_array_settle(struct ckpt_array *a, const unsigned *order)
{
    a->nbytes = a->chunk_bytes = a->itemsize;
    a->nchunks = 1;
    bool empty = false;
    for (unsigned i = 0; i < a->ndim; i++) {
        if (!a->chunk[i])
            return -EUCLEAN;
        if (!a->shape[i])
            empty = true;
        a->grid[i] = a->shape[i] / a->chunk[i] + (a->shape[i] % a->chunk[i] != 0);
        /* Overflow is looked for as if no dimension were empty, so that partial products stay sane. */
        bool large = ckpt_mul(a->nbytes, CKPT_MAX(a->shape[i], (uint64_t)1), &a->nbytes);
        large |= ckpt_mul(a->nchunks, CKPT_MAX(a->grid[i], (uint64_t)1), &a->nchunks);
        if (large || a->nbytes > MAX_BYTES)
            return -EUCLEAN;
    }
    if (empty)
        a->nbytes = a->nchunks = 0;
    for (unsigned i = a->ndim; i-- > 0;) {
        unsigned d = order ? order[i] : i;
        a->stride[d] = (int64_t)a->chunk_bytes;
        bool large = ckpt_mul(a->chunk_bytes, a->chunk[d], &a->chunk_bytes);
        if (large || a->chunk_bytes > MAX_BYTES)
            return -EUCLEAN;
    }
    return 0;
}

void ckpt_array_refuse(struct ckpt_array *a, const char *fmt, ...)
{
    va_list ap;
    if (a->unsupported)
        return;
    a->unsupported = EOPNOTSUPP;
    va_start(ap, fmt);
    vsnprintf(a->why, sizeof a->why, fmt, ap);
    va_end(ap);
}

int ckpt_array_of_npy(const struct ckpt_npy *npy, struct ckpt_array **ret)
{
    unsigned order[CKPT_MAX_DIMS];
    struct ckpt_array *a = ckpt_array_new(npy->dtype, npy->ndim, npy->shape);
    if (!a)
        return -ENOMEM;
    a->itemsize = npy->itemsize;
    a->big_endian = npy->big_endian;
    a->word = npy->word;
    a->origin = npy->header;
    if (npy->dtype == CKPT_DT_OTHER) {
        a->descr = strdup(npy->descr);
        if (!a->descr) {
            ckpt_array_unref(a);
            return -ENOMEM;
        }
        if (ckpt_array_swap(a) > 1) /* it is shown little-endian */
            *a->descr = '<';
    }
    for (unsigned i = 0; i < a->ndim; i++)
        order[i] = a->ndim - 1 - i;
    if (!a->itemsize || a->itemsize > MAX_ITEM)
        ckpt_array_refuse(a, "parts of arrays whose elements have %u bytes are not shown", a->itemsize);
    int r = ckpt_array_settle(a, npy->fortran ? order : NULL);
    if (r < 0)
        ckpt_array_unref(a);
    else
        *ret = a;
    return r;
}

unsigned ckpt_array_swap(const struct ckpt_array *a)
{
    if (!a->big_endian || a->as_shown)
        return 0;
    return a->dtype == CKPT_DT_OTHER ? a->word : ckpt_dtype_info(a->dtype)->swap;
}

const char *ckpt_array_descr(const struct ckpt_array *a)
{
    return a->descr ? a->descr : ckpt_dtype_info(a->dtype)->descr;
}

const char *ckpt_array_type(const struct ckpt_array *a)
{
    return a->descr ? a->descr : ckpt_dtype_info(a->dtype)->name;
}

struct ckpt_array *ckpt_array_ref(struct ckpt_array *a)
{
    atomic_fetch_add_explicit(&a->refs, 1, memory_order_relaxed);
    return a;
}

void ckpt_array_unref(struct ckpt_array *a)
{
    if (!a || atomic_fetch_sub(&a->refs, 1) != 1)
        return;
    if (a->free_priv)
        a->free_priv(a->priv);
    free(a->descr);
    free(a);
}
