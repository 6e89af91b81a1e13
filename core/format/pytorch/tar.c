/* SPDX-License-Identifier: Apache-2.0 */
#include "core/format/pytorch/tar.h"

#include "core/base/util.h"

#define TAR_BLOCK   512
#define TAR_HEADERS 8 /* that may come before the first file */

static uint64_t octal(const uint8_t *p, size_t len)
{
    uint64_t v = 0;
    for (size_t i = 0; i < len && p[i] >= '0' && p[i] <= '7'; i++)
        v = v * 8 + (uint64_t)(p[i] - '0');
    return v;
}

bool ckpt_torch_is_tar(struct ckpt_file *file)
{
    static const char *const names[] = {"sys_info", "pickle", "storages", "tensors"};
    uint8_t h[TAR_BLOCK];
    uint64_t at = 0;
    for (unsigned i = 0; i < TAR_HEADERS; i++) {
        if (ckpt_file_read(file, h, sizeof h, at) != sizeof h || memcmp(h + 257, "ustar", 5) != 0)
            return false;
        bool describes_next = h[156] == 'x' || h[156] == 'g';
        if (!describes_next) {
            for (size_t n = 0; n < sizeof names / sizeof *names; n++)
                if (!strcmp((char *)h, names[n]))
                    return true;
            return false;
        }
        at += TAR_BLOCK + (octal(h + 124, 12) + TAR_BLOCK - 1) / TAR_BLOCK * TAR_BLOCK;
    }
    return false;
}
