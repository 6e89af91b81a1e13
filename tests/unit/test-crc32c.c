/* SPDX-License-Identifier: Apache-2.0 */
#include "core/codec/crc32c.h"

#include "tests/unit/check.h"

int main(void)
{
    CHECK(ckpt_crc32c(0, "", 0) == 0);
    CHECK(ckpt_crc32c(0, "123456789", 9) == 0xE3069283);
    CHECK(ckpt_crc32c_portable(0, "123456789", 9) == 0xE3069283);

    /* RFC 3720, B.4 */
    uint8_t data[32];
    memset(data, 0, sizeof data);
    CHECK(ckpt_crc32c(0, data, 32) == 0x8A9136AA);
    memset(data, 0xff, sizeof data);
    CHECK(ckpt_crc32c(0, data, 32) == 0x62A8AB43);
    for (unsigned i = 0; i < 32; i++)
        data[i] = (uint8_t)i;
    CHECK(ckpt_crc32c(0, data, 32) == 0x46DD794E);

    /* Both ways agree at all lengths and alignments, and a sum can be continued. */
    static uint8_t big[4096 + 64];
    uint32_t x = 1;
    for (size_t i = 0; i < sizeof big; i++)
        big[i] = (uint8_t)((x = x * 1664525 + 1013904223) >> 24);
    for (size_t off = 0; off < 16; off++) {
        for (size_t len = 0; len < 200; len++) {
            uint32_t crc = ckpt_crc32c(0, big + off, len);
            CHECK(crc == ckpt_crc32c_portable(0, big + off, len));
            CHECK(ckpt_crc32c(ckpt_crc32c(0, big + off, len / 3), big + off + len / 3, len - len / 3) == crc);
        }
    }
    CHECK(ckpt_crc32c(7, big, 4096) == ckpt_crc32c_portable(7, big, 4096));
    return 0;
}
