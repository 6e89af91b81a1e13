/* SPDX-License-Identifier: Apache-2.0 */
/* Input: a zip archive. What it opens as must hold together: members that are found by name and lie apart, in the file.
 */
#include "core/base/util.h"
#include "core/format/zip.h"

#include <stdio.h>

#define CONTENT ((size_t)1 << 20)

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check(bool ok, const char *what)
{
    if (!ok) {
        fprintf(stderr, "%s\n", what);
        abort();
    }
}

static void check_member(struct ckpt_zip *z, uint32_t i, size_t size, uint64_t *total)
{
    struct ckpt_zip_member m = ckpt_zip_member(z, i);
    struct ckpt_extent e;
    struct ckpt_codec_chain chain;
    struct ckpt_err err = {0};
    uint8_t *all;
    size_t n;
    check(m.name_len && strlen(m.name) == m.name_len && ckpt_zip_find(z, m.name, m.name_len) == i,
          "a member is not found by its name");
    int r = ckpt_zip_payload(z, i, &e, &chain, &err);
    check(r == -err.code, "no reason");
    if (r == 0) {
        check(e.off <= size && e.len <= size - e.off && e.len == m.stored, "a member lies outside of the file");
        check(m.deflated ? chain.count == 2 : chain.count == 0 && m.size == m.stored,
              "a member is decoded in another way");
        *total += e.len;
        ckpt_extent_clear(&e);
    }
    if (m.size > CONTENT)
        return;
    int v = ckpt_zip_verify(z, i, NULL, NULL, &err);
    r = ckpt_zip_read_all(z, i, CONTENT, &all, &n, NULL);
    check(r == v, "verifying is not reading");
    if (r == 0) {
        check(n == m.size, "a member has another size");
        free(all);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct ckpt_backend *b = ckpt_backend_new_memory();
    struct ckpt_file *f = NULL;
    struct ckpt_zip *z;
    struct ckpt_err err = {0};
    uint64_t total = 0;
    check(b && ckpt_backend_memory_add(b, "z", data, size) == 0 && ckpt_backend_open(b, "z", &f) == 0, "no file");
    int r = ckpt_zip_open(f, 0, size, &z, &err);
    check(r == -err.code && (r == 0 || *err.text), "no reason");
    if (r == 0) {
        for (uint32_t i = 0; i < CKPT_MIN(ckpt_zip_count(z), 100u); i++)
            check_member(z, i, size, &total);
        check(total <= size, "members share bytes");
        ckpt_zip_unref(z);
    }
    ckpt_file_unref(f);
    ckpt_backend_unref(b);
    return 0;
}
