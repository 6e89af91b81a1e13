/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The header of a safetensors file: a JSON object with a member a tensor. It is walked as often as it is needed, and a
 * single member is read again where it lies (its place, a byte of the file), so that nothing of it has to be kept. One
 * thread.
 */
#ifndef CKPT_FORMAT_SAFETENSORS_HEADER_H
#define CKPT_FORMAT_SAFETENSORS_HEADER_H

#include "core/array/npy.h"
#include "core/format/safetensors/tokens.h"

#define SAFETENSORS_MAX_HEADER   ((uint64_t)100000000) /* the library's own limit */
#define SAFETENSORS_MAX_NAME     ((size_t)65535)
#define SAFETENSORS_MAX_METADATA ((size_t)4 << 20) /* bytes of JSON that are kept */

struct safetensors_tensor {
    char type[16]; /* as the format calls it */
    bool packed;   /* elements of less than a byte: no dtype */
    enum ckpt_dtype dtype;
    uint64_t ndim;
    uint64_t shape[CKPT_MAX_DIMS]; /* the first ones, where there are more */
    uint64_t off, len;             /* of the data in the file */
};

struct safetensors_header {
    struct ckpt_file *file; /* borrowed */
    uint64_t data;          /* where they begin in the file */
    struct tokens tokens;
};

/* -EBADMSG: the file is too short for what it says; -EUCLEAN. */
int ckpt_safetensors_header_open(struct ckpt_file *file, struct safetensors_header *ret,
                                 struct ckpt_err *err) CKPT_MUST_USE;
void ckpt_safetensors_header_close(struct safetensors_header *h);

/* place: of the member in the file. Returning below 0 stops the walk. */
typedef int safetensors_visit(void *arg, const struct ckpt_buf *name, uint64_t place,
                              const struct safetensors_tensor *tensor);
/* Each tensor in the order of the header, which is checked member by member; -EOPNOTSUPP for a name beyond its maximum.
 */
int ckpt_safetensors_header_each(struct safetensors_header *h, safetensors_visit *visit, void *arg,
                                 struct ckpt_err *err) CKPT_MUST_USE;
/* All that the format demands of a file: also that no name comes twice, and that the tensors cover the data without
 * hole or overlap. *metadata gets the members of `__metadata__` as a JSON object, as many as fit; NULL: they are not
 * wanted. */
int ckpt_safetensors_header_check(struct safetensors_header *h, struct ckpt_buf *metadata,
                                  struct ckpt_err *err) CKPT_MUST_USE;
/* One member again. *name (cleared first) may be NULL. */
int ckpt_safetensors_header_tensor(struct ckpt_file *file, uint64_t place, struct ckpt_buf *name,
                                   struct safetensors_tensor *ret, struct ckpt_err *err) CKPT_MUST_USE;

#endif
