/* SPDX-License-Identifier: Apache-2.0 */
/* Input: an index, a byte 0, and what the shard s.safetensors holds; t.safetensors is whole, and any other is missing.
 */
#include "core/format/safetensors/index.h"
#include "core/format/safetensors/safetensors.h"
#include "tests/fuzz/look.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const char whole[] =
        "\x3a\0\0\0\0\0\0\0{\"b.c\":{\"dtype\":\"I16\",\"shape\":[1,2],\"data_offsets\":[0,4]}}data";
    const uint8_t *end = memchr(data, 0, size), *shard = end ? end + 1 : data + size;
    struct ckpt_backend *b = ckpt_backend_new_memory();
    look_expect(b && ckpt_backend_memory_add(b, "x" SAFETENSORS_INDEX, data, end ? (size_t)(end - data) : size) == 0 &&
                    ckpt_backend_memory_add(b, "s.safetensors", shard, (size_t)(data + size - shard)) == 0 &&
                    ckpt_backend_memory_add(b, "t.safetensors", whole, sizeof whole - 1) == 0 &&
                    ckpt_backend_memory_add(b, "config.json", "{}", 2) == 0,
                "no memory");
    look_at(&ckpt_safetensors_format, b, "");
    ckpt_backend_unref(b);
    return 0;
}
