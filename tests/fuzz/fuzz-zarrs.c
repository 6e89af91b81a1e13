/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Input: files, each a byte that chooses its folder (low nibble) and name (high nibble), a u16le length, and so many
 * bytes. They are a folder, which is probed, and opened as one of Zarr arrays whatever the probe says.
 */
#include "core/format/zarrs/zarrs.h"
#include "tests/fuzz/look.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static const char *const folders[16] = {
    "",           "a/", "a/b/", "a/b/c/0/", "0/", "c/",     "a/0/", "a/c/0/", "ocdbt.process_0/",
    "process_1/", "d/", "a/d/", "a/b.c/",   "%/", "x/y/z/", "w/"};
static const char *const names[16] = {".zarray", "zarr.json", ".zgroup",        ".zattrs", "0",     "0.0",
                                      "1.0",     "c",         "manifest.ocdbt", "r",       "index", "metadata.json",
                                      "README",  "_METADATA", "checkpoint",     "w.npy"};

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct ckpt_backend *b = ckpt_backend_new_memory();
    struct ckpt_probe probe = {.settled = true};
    look_expect(b, "no memory");
    for (unsigned files = 0; size >= 3 && files < 64; files++) {
        char path[64];
        size_t len = CKPT_MIN((size_t)ckpt_le16(data + 1), size - 3);
        snprintf(path, sizeof path, "%s%s", folders[*data & 15], names[*data >> 4]);
        (void)!ckpt_backend_memory_add(b, path, data + 3, len); /* it may be there */
        data += 3 + len;
        size -= 3 + len;
    }
    int r = ckpt_zarrs_format.probe(b, &probe);
    look_expect(r <= 0 && (r == 0 || !probe.bits), "a probe fails");
    look_at(&ckpt_zarrs_format, b, "");
    ckpt_backend_unref(b);
    return 0;
}
