/* SPDX-License-Identifier: Apache-2.0 */
/* A pickle of the number 0x1950a86a20f9469cfc6c, by whatever protocol. */
#include "core/format/pytorch/magic.h"

#include <string.h>

enum { PROTO = 0x80, PROTO_BYTES = 2, FRAME = 0x95, FRAME_BYTES = 9 };

size_t ckpt_torch_magic(const uint8_t *head, size_t len)
{
    static const uint8_t magic[] = {0x8a, 0x0a, 0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19, 0x2e};
    static const char as_text[] = "L119547037146038801333356L\n.";
    size_t text = strlen(as_text), at = PROTO_BYTES;
    if (len >= text && !memcmp(head, as_text, text))
        return text;
    if (len < PROTO_BYTES || head[0] != PROTO || head[1] > 5)
        return 0;
    if (len > at && head[at] == FRAME)
        at += FRAME_BYTES;
    if (len < at + sizeof magic || memcmp(head + at, magic, sizeof magic) != 0)
        return 0;
    return at + sizeof magic;
}
