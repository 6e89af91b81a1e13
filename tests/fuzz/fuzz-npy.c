/* SPDX-License-Identifier: Apache-2.0 */
/* Input: the beginning of an .npy file. What is taken of it must hold together, and be the same when it is written
 * anew. */
#include "core/array/npy.h"
#include "core/base/util.h"

#include <stdio.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check(bool ok, const char *what)
{
    if (!ok) {
        fprintf(stderr, "%s\n", what);
        abort();
    }
}

static void check_written(const struct ckpt_npy *a)
{
    struct ckpt_npy b;
    struct ckpt_buf buf = CKPT_BUF_INIT;
    ckpt_npy_add_header(&buf, a->descr, a->ndim, a->shape);
    check(!ckpt_buf_error(&buf) && ckpt_npy_parse(buf.data, buf.len, &b, NULL) == 0, "what was written is not read");
    check(b.header == buf.len && !strcmp(a->descr, b.descr) && a->dtype == b.dtype && a->itemsize == b.itemsize,
          "another type is read");
    check(a->big_endian == b.big_endian && a->nbytes == b.nbytes && a->ndim == b.ndim, "another array is read");
    check(!memcmp(a->shape, b.shape, a->ndim * sizeof *a->shape), "another shape is read");
    ckpt_buf_clear(&buf);
    check(ckpt_npy_parse_descr(a->descr, &b, NULL) == 0 && !strcmp(a->descr, b.descr) && a->itemsize == b.itemsize,
          "a descr is not read");
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct ckpt_npy a;
    struct ckpt_err err = {0};
    int r = ckpt_npy_parse(data, size, &a, &err);
    if (r < 0) {
        check(err.code == -r && *err.text, "no reason");
        return 0;
    }
    uint64_t bytes = a.itemsize;
    check(a.header <= size && a.ndim <= CKPT_MAX_DIMS && strlen(a.descr) < sizeof a.descr, "out of bounds");
    for (unsigned i = 0; i < a.ndim; i++)
        bytes *= a.shape[i];
    check(bytes == a.nbytes && bytes <= (uint64_t)1 << 62, "wrong bytes");
    check(a.dtype == CKPT_DT_OTHER || a.itemsize == ckpt_dtype_info(a.dtype)->size, "wrong size of an element");
    if (strlen(a.descr) < 400) /* it may be written with more bytes than it came with */
        check_written(&a);
    char text[600];
    size_t n = CKPT_MIN(size, sizeof text - 1);
    memcpy(text, data, n);
    text[n] = 0;
    (void)!ckpt_npy_parse_descr(text, &a, NULL);
    return 0;
}
