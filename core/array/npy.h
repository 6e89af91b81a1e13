/* SPDX-License-Identifier: Apache-2.0 */
/* The .npy header: NumPy's format.py, versions 1.0 to 3.0. */
#ifndef CKPT_ARRAY_NPY_H
#define CKPT_ARRAY_NPY_H

#include "core/array/dtype.h"
#include "core/base/buf.h"
#include "core/base/err.h"

#define CKPT_MAX_DIMS       32
#define CKPT_NPY_HEADER_MAX ((size_t)1 << 20) /* bytes of a header that is read */

/* Append the whole header (magic to newline, padded with spaces so that data begin at a multiple of 64; version 1.0,
 * 2.0 when the text is 65536 bytes or more, 3.0 when a field's name is not Latin-1). descr is UTF-8. Byte for byte what
 * np.save writes: {'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }. */
void ckpt_npy_add_header(struct ckpt_buf *buf, const char *descr, unsigned ndim, const uint64_t *shape);

/* What a header says. */
struct ckpt_npy {
    enum ckpt_dtype dtype; /* CKPT_DT_OTHER for strings, structures, datetimes: known by descr and itemsize alone */
    bool big_endian, fortran;
    uint8_t
        word; /* bytes that big_endian reverses as a unit; 1: none, as of structures, whose fields stay as they are */
    uint32_t itemsize; /* bytes of an element */
    uint32_t header;   /* bytes before the data */
    unsigned ndim;
    uint64_t shape[CKPT_MAX_DIMS];
    uint64_t nbytes; /* of the data: the file has header + nbytes bytes */
    char descr[512]; /* as np.save would write it, in UTF-8; bare, be it a string or a list */
};

/*
 * From the first bytes of a file: all there are, or at least CKPT_NPY_HEADER_MAX + 12. -EUCLEAN: not an .npy file, or a
 * malformed one; -EBADMSG: it ends within the header (what is there could be the beginning of one); -EOPNOTSUPP:
 * objects (dtype 'O'), a version beyond 3.0, a descr or header longer than the maxima.
 */
int ckpt_npy_parse(const uint8_t *data, size_t len, struct ckpt_npy *ret, struct ckpt_err *err) CKPT_MUST_USE;
/* What descr says, into dtype, big_endian, word, itemsize and descr. */
int ckpt_npy_parse_descr(const char *descr, struct ckpt_npy *ret, struct ckpt_err *err) CKPT_MUST_USE;
/* nbytes from shape and itemsize; -EUCLEAN beyond 2^62. */
int ckpt_npy_settle(struct ckpt_npy *npy, struct ckpt_err *err) CKPT_MUST_USE;

#endif
