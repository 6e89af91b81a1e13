/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The header of a GGUF file: counts, key-value pairs, and a list of tensors. It is scanned through a window, and
 * strings are skipped rather than kept, since vocabularies have tens of megabytes. A single tensor is read again where
 * it lies (its place). One thread.
 */
#ifndef CKPT_FORMAT_GGUF_HEADER_H
#define CKPT_FORMAT_GGUF_HEADER_H

#include "core/array/dtype.h"
#include "core/base/buf.h"
#include "core/io/backend.h"

#define GGUF_MAX_HEADER   ((uint64_t)1 << 30)
#define GGUF_MAX_PAIRS    ((uint64_t)1 << 20)
#define GGUF_MAX_TENSORS  ((uint64_t)1 << 21)
#define GGUF_MAX_NAME     ((size_t)65535)
#define GGUF_MAX_DIMS     8
#define GGUF_MAX_VALUE    ((size_t)64 << 10) /* bytes of JSON; longer values are told by type and size */
#define GGUF_MAX_METADATA ((size_t)4 << 20)  /* of all of them; what comes then is left out */

struct gguf_type {
    const char *name;
    uint32_t block, bytes; /* elements of a block and its bytes; 0: not known */
    enum ckpt_dtype dtype; /* CKPT_DT_OTHER: blocks of their own kind */
};

struct gguf_tensor {
    const struct gguf_type *type; /* NULL: none that is known */
    uint32_t type_number;
    unsigned ndim;
    uint64_t shape[GGUF_MAX_DIMS]; /* in C order: the file has it the other way round */
    uint64_t off, len;             /* of the data, from where all begin; len 0 where the size is not known */
};

struct gguf_header {
    struct ckpt_file *file; /* borrowed */
    bool big_endian;
    uint64_t tensors; /* how many */
    uint64_t infos;   /* where the list of tensors begins */
    uint64_t data;    /* where the data begin */
    /* the scan */
    struct ckpt_err *err;
    uint8_t *window;
    size_t size, at, len;
    uint64_t base;
};

/*
 * Reads and checks all of it; *metadata gets the key-value pairs as a JSON object. -EBADMSG: the file ends too early
 * for what it says; -EUCLEAN: malformed; -EOPNOTSUPP: another version, or beyond a maximum.
 */
int ckpt_gguf_header_open(struct ckpt_file *file, struct gguf_header *ret, struct ckpt_buf *metadata,
                          struct ckpt_err *err) CKPT_MUST_USE;
void ckpt_gguf_header_close(struct gguf_header *h);
/* place: of the tensor's entry in the file. Returning below 0 stops the walk. */
typedef int gguf_visit(void *arg, const struct ckpt_buf *name, uint64_t place, const struct gguf_tensor *tensor);
int ckpt_gguf_header_each(struct gguf_header *h, gguf_visit *visit, void *arg) CKPT_MUST_USE;
/* One of them again. *name is cleared first. */
int ckpt_gguf_header_tensor(struct ckpt_file *file, bool big_endian, uint64_t place, struct ckpt_buf *name,
                            struct gguf_tensor *ret, struct ckpt_err *err) CKPT_MUST_USE;

#endif
