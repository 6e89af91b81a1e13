/* SPDX-License-Identifier: Apache-2.0 */
#include "core/tree/key.h"

#include "core/base/util.h"

#include <errno.h>
#include <openssl/evp.h>

#define MARK_BYTES 18 /* "%~" and 16 hex digits */

/* The bytes of the character at p; a byte that is not part of valid UTF-8 is one by itself. */
static size_t char_length(const uint8_t *p, size_t left)
{
    size_t n = ckpt_utf8_length(p, left);
    return n ? n : 1;
}

static bool must_escape(uint8_t byte)
{
    return byte < 0x20 || byte == 0x7f || byte == '/' || byte == '%';
}

/* Write the digest's first 8 bytes in hex after "%~". */
static int add_mark(char *mark, const char *key, size_t len)
{
    uint8_t digest[EVP_MAX_MD_SIZE];
    if (EVP_Digest(key, len, digest, NULL, EVP_sha256(), NULL) != 1)
        return -ENOMEM;
    mark[0] = '%';
    mark[1] = '~';
    for (unsigned i = 0; i < 16; i++)
        mark[2 + i] = "0123456789abcdef"[digest[i / 2] >> (i % 2 ? 0 : 4) & 15];
    return 0;
}

void ckpt_key_escape_first(struct ckpt_buf *buf, const char *key, size_t len, unsigned chars, const char *suffix)
{
    char name[CKPT_NAME_MAX + 1];
    size_t room = CKPT_NAME_MAX - CKPT_MIN(strlen(suffix), (size_t)(CKPT_NAME_MAX - MARK_BYTES));
    size_t used = 0, kept = 0; /* kept: how much of name stays if it must be cut */
    bool dots = (len == 1 || len == 2) && !memcmp(key, "..", len);

    if (!len)
        name[used++] = '%';
    for (size_t at = 0, n; at < len; at += n) {
        const uint8_t *p = (const uint8_t *)key + at;
        n = char_length(p, len - at);
        bool escaped = dots || chars > 0 || must_escape(p[0]);
        chars -= chars > 0;
        if (used + (escaped ? 3 * n : n) > room) {
            if (add_mark(name + kept, key, len) < 0) {
                buf->error = buf->error ? buf->error : -ENOMEM;
                return;
            }
            used = kept + MARK_BYTES;
            break;
        }
        for (size_t i = 0; i < n; i++) {
            if (!escaped) {
                name[used++] = (char)p[i];
                continue;
            }
            name[used++] = '%';
            name[used++] = "0123456789ABCDEF"[p[i] >> 4];
            name[used++] = "0123456789ABCDEF"[p[i] & 15];
        }
        if (used <= room - MARK_BYTES)
            kept = used;
    }
    ckpt_buf_add(buf, name, used);
    ckpt_buf_adds(buf, suffix);
}

void ckpt_key_escape(struct ckpt_buf *buf, const char *key, size_t len, const char *suffix)
{
    ckpt_key_escape_first(buf, key, len, 0, suffix);
}
