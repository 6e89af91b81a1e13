/* SPDX-License-Identifier: Apache-2.0 */
/* Input: a safetensors file. */
#include "core/format/safetensors/safetensors.h"
#include "tests/fuzz/look.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct ckpt_backend *b = ckpt_backend_new_memory();
    look_expect(b && ckpt_backend_memory_add(b, "x.safetensors", data, size) == 0, "no memory");
    look_at(&ckpt_safetensors_format, b, "x.safetensors");
    ckpt_backend_unref(b);
    return 0;
}
