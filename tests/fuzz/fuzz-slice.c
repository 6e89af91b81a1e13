/* SPDX-License-Identifier: Apache-2.0 */
/* The first byte: number of dimensions; a byte for each; the rest is the text. Whatever is accepted lies in the
 * array. */
#include "core/array/slice.h"

#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check(int ok)
{
    if (!ok)
        abort();
}

/* Small dimensions, and a few as large as they come. */
static uint64_t dimension(uint8_t byte)
{
    static const uint64_t large[] = {INT64_MAX, (uint64_t)INT64_MAX + 1, UINT64_MAX, 1u << 31};
    return byte < 252 ? byte : large[byte - 252];
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    uint64_t shape[CKPT_MAX_DIMS], result[CKPT_MAX_DIMS];
    struct ckpt_selection sel;
    unsigned ndim = size ? data[0] % (CKPT_MAX_DIMS + 1) : 0;
    if (size < 1 + ndim)
        return 0;
    for (unsigned i = 0; i < ndim; i++)
        shape[i] = dimension(data[1 + i]);
    data += 1 + ndim;
    size -= 1 + ndim;
    if (ckpt_slice_parse((const char *)data, size, ndim, shape, &sel) < 0)
        return 0;

    check(sel.ndim == ndim);
    for (unsigned i = 0; i < ndim; i++) {
        check(sel.step[i] != 0 && sel.count[i] <= shape[i]);
        check(!sel.dropped[i] || sel.count[i] == 1);
        if (!sel.count[i])
            continue;
        __int128 last = sel.start[i] + (__int128)sel.step[i] * (sel.count[i] - 1);
        check(sel.start[i] < shape[i] && last >= 0 && last < (__int128)shape[i]);
    }
    check(ckpt_selection_shape(&sel, result) <= ndim);
    ckpt_selection_elements(&sel);
    return 0;
}
