/* SPDX-License-Identifier: Apache-2.0 */
/* CRC-32C (Castagnoli, reflected, init and final xor 0xFFFFFFFF). "123456789" gives 0xE3069283. */
#ifndef CKPT_CODEC_CRC32C_H
#define CKPT_CODEC_CRC32C_H

#include <stddef.h>
#include <stdint.h>

/* crc of what came before (0 to start), then len more bytes. */
uint32_t ckpt_crc32c(uint32_t crc, const void *data, size_t len);
/* The same without the processor's instruction; for tests. */
uint32_t ckpt_crc32c_portable(uint32_t crc, const void *data, size_t len);

#endif
