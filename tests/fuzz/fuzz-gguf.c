/* SPDX-License-Identifier: Apache-2.0 */
/* Input: a GGUF file. */
#include "core/format/gguf/gguf.h"
#include "tests/fuzz/look.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct ckpt_backend *b = ckpt_backend_new_memory();
    look_expect(b && ckpt_backend_memory_add(b, "x.gguf", data, size) == 0, "no memory");
    look_at(&ckpt_gguf_format, b, "x.gguf");
    ckpt_backend_unref(b);
    return 0;
}
