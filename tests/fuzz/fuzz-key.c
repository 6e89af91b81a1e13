/* SPDX-License-Identifier: Apache-2.0 */
/* The first byte: how many characters to escape and the suffix; the rest is the key. What comes out is a file name. */
#include "core/tree/key.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check(int ok)
{
    if (!ok)
        abort();
}

static int upper_hex(uint8_t c)
{
    return c >= '0' && c <= '9' ? c - '0' : c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
}

/* Undo the escapes of a name without its suffix; ret has room for it. False at "%~": it was cut, the rest is a
 * digest. */
static int unescape(const uint8_t *name, size_t len, uint8_t *ret, size_t *ret_len)
{
    *ret_len = 0;
    for (size_t i = 0; i < len; i++) {
        check(name[i] >= 0x20 && name[i] != 0x7f && name[i] != '/');
        if (name[i] != '%') {
            ret[(*ret_len)++] = name[i];
            continue;
        }
        if (i + 1 < len && name[i + 1] == '~') {
            check(len - i == 18);
            return 0;
        }
        if (len == 1) /* the empty key */
            return 1;
        check(i + 2 < len && upper_hex(name[i + 1]) >= 0 && upper_hex(name[i + 2]) >= 0);
        ret[(*ret_len)++] = (uint8_t)(upper_hex(name[i + 1]) << 4 | upper_hex(name[i + 2]));
        i += 2;
    }
    return 1;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const char *const suffixes[] = {"", ".npy", ".json", ".tree.json"};
    struct ckpt_buf buf = CKPT_BUF_INIT;
    uint8_t back[CKPT_NAME_MAX];
    size_t len, back_len;
    if (!size)
        return 0;
    const char *suffix = suffixes[data[0] & 3];
    ckpt_key_escape_first(&buf, (const char *)data + 1, size - 1, data[0] >> 2, suffix);
    uint8_t *name = ckpt_buf_steal(&buf, &len);
    check(name && len > 0 && len <= CKPT_NAME_MAX);
    check(strcmp((char *)name, ".") && strcmp((char *)name, ".."));
    check(!strcmp((char *)name + len - strlen(suffix), suffix));
    if (unescape(name, len - strlen(suffix), back, &back_len))
        check(back_len == size - 1);
    check(!memcmp(back, data + 1, back_len)); /* of a cut name: a prefix */
    free(name);
    return 0;
}
