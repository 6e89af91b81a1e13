/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What is kept of each array, one after another in a buffer: some twenty bytes, since a checkpoint may have a million.
 * A node's ref says where its record begins. Appended by one thread, then immutable.
 */
#ifndef CKPT_FORMAT_PYTORCH_RECORD_H
#define CKPT_FORMAT_PYTORCH_RECORD_H

#include "core/array/layout.h"

enum torch_record {
    TORCH_R_TENSOR,  /* a view of a storage */
    TORCH_R_COMPLEX, /* a Python complex number */
    TORCH_R_SHARDED, /* of a distributed checkpoint: boxes that tile it */
    TORCH_R_LOST,    /* of a folder with an index: nothing, since its shard does not have it */
    TORCH_R_PIECE,   /* of a distributed checkpoint: any object, as an archive of its own in a file */
    TORCH_R_BYTES,   /* a blob in the file of the pickle */
    TORCH_R_NUMPY,   /* an array or scalar of NumPy whose elements are in the pickle */
};

/* Why a tensor cannot be shown. */
enum torch_fault {
    TORCH_FINE,
    TORCH_BAD_KEY,
    TORCH_BAD_SIZE,
    TORCH_BAD_RANK,
    TORCH_BAD_NUMBER,
    TORCH_OUTSIDE,
    TORCH_MANY_DIMS,
    TORCH_ODD_TYPE,
    TORCH_SPARSE,
    TORCH_QUANTISED,
    TORCH_NEGATED,
    TORCH_TRANSFORMED,
    TORCH_LONG,        /* no tensor: a string, set or number */
    TORCH_ODD_STORAGE, /* of a class that is not known */
    TORCH_BAD_DATA,    /* an array with more or less data than it must have */
    TORCH_ELSEWHERE,   /* an array of a buffer that is not in the pickle */
    TORCH_ODD_ARRAY,   /* of a type that NumPy has, and an .npy file has not */
    TORCH_NO_STORAGE,  /* what a pickle by itself says of a storage */
    TORCH_FAULTS
};

/* Archives of tensors. */
#define TORCH_SHARD     ((uint64_t)1 << 40) /* and its number: of a folder with an index */
#define TORCH_RANGES    (UINT64_MAX - 1)    /* the file of a pickle by itself: the key of a storage is its offset */
#define TORCH_CONSTANTS UINT64_MAX          /* the checkpoint's own, under constants/ */

/* A strided view. Strides of dimensions with fewer than two elements mean nothing. */
struct torch_tensor {
    enum torch_fault fault; /* else what follows is meaningless, but for the type of TORCH_ODD_TYPE */
    uint32_t type;          /* TORCH_ODD_TYPE: its global */
    enum ckpt_dtype dtype;
    uint8_t flip;     /* CKPT_FLIP_* */
    uint64_t archive; /* 0, TORCH_CONSTANTS: the checkpoint's own; from TORCH_SHARD on: of a shard; else 1 + where the
                         record of the piece is that it lies in */
    uint64_t key;     /* of the storage */
    uint64_t size;    /* of the storage, in bytes */
    uint64_t offset;  /* of the first element, in elements */
    unsigned ndim;
    uint64_t shape[CKPT_MAX_DIMS], stride[CKPT_MAX_DIMS]; /* in elements */
};

static inline bool ckpt_torch_in_shard(const struct torch_tensor *t)
{
    return t->archive >= TORCH_SHARD && t->archive < TORCH_RANGES;
}

/* A range of a file. */
struct torch_piece {
    uint32_t file; /* its path, in the tree's strings */
    uint64_t off, len;
};

/* A part of a sharded tensor and where its elements are stored; len 0: nowhere. */
struct torch_box {
    uint64_t low[CKPT_MAX_DIMS], size[CKPT_MAX_DIMS];
    struct torch_piece piece;
};

/* The boxes follow, one call of ckpt_torch_box_next each. */
struct torch_sharded {
    enum torch_fault fault;
    uint32_t type;
    enum ckpt_dtype dtype;
    unsigned ndim;
    uint64_t shape[CKPT_MAX_DIMS];
    uint32_t boxes;
};

/* An array whose elements are kept in the tree's strings. */
struct torch_numpy {
    enum ckpt_dtype dtype;
    bool big_endian;
    uint32_t descr; /* of CKPT_DT_OTHER: NumPy's name of the type, in the tree's strings */
    uint32_t data;  /* the elements, in the tree's strings; there are none at 0 */
    uint64_t off;   /* or in the file of the pickle; 0: they are not */
    unsigned ndim;
    uint64_t shape[CKPT_MAX_DIMS];
    uint8_t order[CKPT_MAX_DIMS]; /* dimensions as they are stored, the outermost first */
};

/* Each appends a record, and returns where it begins. Whether there was room, the buffer tells. */
size_t ckpt_torch_add_tensor(struct ckpt_buf *records, const struct torch_tensor *t);
size_t ckpt_torch_add_complex(struct ckpt_buf *records, double re, double im);
size_t ckpt_torch_add_lost(struct ckpt_buf *records, uint32_t entry);              /* of the index */
size_t ckpt_torch_add_range(struct ckpt_buf *records, uint64_t off, uint64_t len); /* of TORCH_R_BYTES */
size_t ckpt_torch_add_piece(struct ckpt_buf *records, const struct torch_piece *p);
size_t ckpt_torch_add_numpy(struct ckpt_buf *records, const struct torch_numpy *a);
size_t ckpt_torch_add_sharded(struct ckpt_buf *records,
                              const struct torch_sharded *s); /* s->boxes of ckpt_torch_add_box follow */
void ckpt_torch_add_box(struct ckpt_buf *records, unsigned ndim, const struct torch_box *b);

/* For a tensor with a fault: a layout that says what is not supported, or the error of a malformed one. */
int ckpt_torch_fault_layout(enum torch_fault fault, uint32_t type, struct ckpt_array **ret,
                            struct ckpt_err *err) CKPT_MUST_USE;

enum torch_record ckpt_torch_record_kind(const struct ckpt_buf *records, size_t at);
void ckpt_torch_get_tensor(const struct ckpt_buf *records, size_t at, struct torch_tensor *ret);
void ckpt_torch_get_complex(const struct ckpt_buf *records, size_t at, uint8_t ret[16]); /* as complex128 */
void ckpt_torch_get_numpy(const struct ckpt_buf *records, size_t at, struct torch_numpy *ret);
uint32_t ckpt_torch_get_lost(const struct ckpt_buf *records, size_t at);
void ckpt_torch_get_range(const struct ckpt_buf *records, size_t at, uint64_t *ret_off, uint64_t *ret_len);
void ckpt_torch_get_piece(const struct ckpt_buf *records, size_t at, struct torch_piece *ret);
/* *ret_at: of the first box. */
void ckpt_torch_get_sharded(const struct ckpt_buf *records, size_t at, struct torch_sharded *ret, size_t *ret_at);
void ckpt_torch_box_next(const struct ckpt_buf *records, unsigned ndim, size_t *at, struct torch_box *ret);

#endif
