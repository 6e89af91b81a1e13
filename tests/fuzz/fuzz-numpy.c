/* SPDX-License-Identifier: Apache-2.0 */
/* Input: an .npy file, or (by its first byte) an .npz archive. Opened as a tree, and all looked at. */
#include "core/format/numpy/numpy.h"
#include "tests/fuzz/look.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct ckpt_backend *b = ckpt_backend_new_memory();
    bool archive = size && *data == 'P';
    const char *name = archive ? "dir/x.npz" : "x.npy";
    look_expect(b && ckpt_backend_memory_add(b, name, data, size) == 0, "no file");
    look_at(archive ? &ckpt_npz_format : &ckpt_npy_format, b, name);
    ckpt_backend_unref(b);
    return 0;
}
