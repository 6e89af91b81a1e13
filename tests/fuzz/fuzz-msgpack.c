/* SPDX-License-Identifier: Apache-2.0 */
/* Input: the msgpack file `checkpoint` of an old Orbax item. Read token by token, stepped over, and opened as the
 * item's tree. */
#include "core/format/msgpack.h"
#include "tests/fuzz/look.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* All values of the file as tokens: their number, or an error. */
static int64_t count_tokens(struct ckpt_file *f)
{
    struct ckpt_mp mp;
    struct ckpt_mp_token t;
    struct ckpt_buf bytes = {.max = 1 << 16};
    int64_t count = 0;
    int r = 0;
    ckpt_mp_init(&mp, f, 0, f->st.size);
    uint64_t left = 1;
    for (; left && (r = ckpt_mp_next(&mp, &t, NULL)) == 0; left--, count++) {
        left += t.type == CKPT_MP_ARRAY ? t.len : t.type == CKPT_MP_MAP ? 2 * t.len : 0;
        if (t.type == CKPT_MP_STR && ckpt_mp_bytes(&mp, &t, &bytes, NULL) == 0)
            look_expect(bytes.len >= t.len, "a string is short");
        bytes.len = 0;
        bytes.error = 0;
    }
    ckpt_buf_clear(&bytes);
    return r < 0 ? r : count;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct ckpt_backend *b = ckpt_backend_new_memory();
    struct ckpt_file *f = NULL;
    struct ckpt_mp mp;
    look_expect(b && ckpt_backend_memory_add(b, "checkpoint", data, size) == 0 &&
                    ckpt_backend_open(b, "checkpoint", &f) == 0,
                "no file");
    ckpt_mp_init(&mp, f, 0, size);
    look_expect((count_tokens(f) >= 0) == (ckpt_mp_skip(&mp, NULL) == 0), "stepping over a value is not reading it");
    ckpt_file_unref(f);
    look_at_tree(b);
    ckpt_backend_unref(b);
    return 0;
}
