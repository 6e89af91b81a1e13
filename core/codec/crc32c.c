/* SPDX-License-Identifier: Apache-2.0 */
#include "core/codec/crc32c.h"

#include "core/base/util.h"

#define POLY 0x82F63B78u /* 0x1EDC6F41, bits reversed */

/* Slicing-by-8: table[k][b] is the effect of byte b that k more bytes follow. Filled once, then constant. */
static uint32_t table[8][256];
static pthread_once_t table_once = PTHREAD_ONCE_INIT;

static void table_fill(void)
{
    for (unsigned b = 0; b < 256; b++) {
        uint32_t crc = b;
        for (int bit = 0; bit < 8; bit++)
            crc = crc & 1 ? (crc >> 1) ^ POLY : crc >> 1;
        table[0][b] = crc;
    }
    for (unsigned b = 0; b < 256; b++)
        for (unsigned k = 1; k < 8; k++)
            table[k][b] = (table[k - 1][b] >> 8) ^ table[0][table[k - 1][b] & 0xff];
}

static uint32_t crc_table(uint32_t crc, const uint8_t *p, size_t len)
{
    pthread_once(&table_once, table_fill);
    for (; len >= 8; p += 8, len -= 8) {
        uint64_t v = ckpt_le64(p) ^ crc;
        crc = table[7][v & 0xff] ^ table[6][v >> 8 & 0xff] ^ table[5][v >> 16 & 0xff] ^ table[4][v >> 24 & 0xff] ^
              table[3][v >> 32 & 0xff] ^ table[2][v >> 40 & 0xff] ^ table[1][v >> 48 & 0xff] ^ table[0][v >> 56];
    }
    for (; len; p++, len--)
        crc = (crc >> 8) ^ table[0][(crc ^ *p) & 0xff];
    return crc;
}

#if defined(__x86_64__)
__attribute__((target("sse4.2"))) static uint32_t crc_sse42(uint32_t crc, const uint8_t *p, size_t len)
{
    uint64_t wide = crc;
    for (; len >= 32; p += 32, len -= 32) {
        wide = __builtin_ia32_crc32di(wide, ckpt_le64(p));
        wide = __builtin_ia32_crc32di(wide, ckpt_le64(p + 8));
        wide = __builtin_ia32_crc32di(wide, ckpt_le64(p + 16));
        wide = __builtin_ia32_crc32di(wide, ckpt_le64(p + 24));
    }
    for (; len >= 8; p += 8, len -= 8)
        wide = __builtin_ia32_crc32di(wide, ckpt_le64(p));
    crc = (uint32_t)wide;
    for (; len; p++, len--)
        crc = __builtin_ia32_crc32qi(crc, *p);
    return crc;
}
#endif

uint32_t ckpt_crc32c_portable(uint32_t crc, const void *data, size_t len)
{
    return ~crc_table(~crc, data, len);
}

uint32_t ckpt_crc32c(uint32_t crc, const void *data, size_t len)
{
#if defined(__x86_64__)
    if (__builtin_cpu_supports("sse4.2"))
        return ~crc_sse42(~crc, data, len);
#endif
    return ckpt_crc32c_portable(crc, data, len);
}
