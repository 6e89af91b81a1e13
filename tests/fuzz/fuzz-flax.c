/* SPDX-License-Identifier: Apache-2.0 */
/* Input: a file of flax.serialization. Opened as a tree, looked at as a mount would, and taken for what its first bytes
 * say. */
#include "core/format/flax/flax.h"
#include "tests/fuzz/look.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const char *const names[] = {"f.msgpack", "run/checkpoint_0.5", "run/checkpoint_tmp", "run/mine_tmp",
                                        "run/mine_1"};
    struct ckpt_backend *b = ckpt_backend_new_memory();
    look_expect(b, "no memory");
    for (unsigned i = 0; i < sizeof names / sizeof *names; i++)
        look_expect(ckpt_backend_memory_add(b, names[i], data, size) == 0, "no memory");
    for (unsigned i = 0; i < sizeof names / sizeof *names; i++) {
        struct ckpt_probe probe = {.settled = true};
        const struct ckpt_format *format;
        look_expect(ckpt_probe_file(b, names[i], true, &format, &probe) == 0, "a probe fails");
        look_expect(!*probe.unfinished || probe.bits, "unfinished, but no checkpoint");
    }
    look_at(&ckpt_flax_format, b, names[0]);
    ckpt_backend_unref(b);
    return 0;
}
