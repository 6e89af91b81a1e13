/* SPDX-License-Identifier: Apache-2.0 */
/* The expected headers are np.save's (NumPy 2.4), without the padding. */
#include "core/array/npy.h"

#include "core/base/util.h"
#include "tests/unit/check.h"

static uint8_t *header(const char *descr, unsigned ndim, const uint64_t *shape, size_t *ret_len)
{
    struct ckpt_buf buf = CKPT_BUF_INIT;
    ckpt_npy_add_header(&buf, descr, ndim, shape);
    uint8_t *head = ckpt_buf_steal(&buf, ret_len);
    CHECK(head);
    CHECK(*ret_len % 64 == 0 && head[*ret_len - 1] == '\n' && !memcmp(head, "\x93NUMPY", 6));
    return head;
}

/* The dictionary, then spaces up to `total` bytes. */
static void check_header(const char *want, size_t total, const char *descr, unsigned ndim, const uint64_t *shape)
{
    size_t len, want_len = strlen(want);
    CKPT_AUTOFREE uint8_t *head = header(descr, ndim, shape, &len);
    CHECK(len == total && head[6] == 1 && head[7] == 0 && ckpt_le16(head + 8) + 10u == len);
    CHECK(!memcmp(head + 10, want, want_len));
    for (size_t i = 10 + want_len; i < len - 1; i++)
        CHECK(head[i] == ' ');
}

/* Lengths around a change of size: NumPy always pads with a space at least. */
static void check_long(void)
{
    static char descr[65700];
    const uint64_t shape[] = {3, 4};
    for (size_t n = 1; n < sizeof descr - 1; n += n == 200 ? 65100 : 1) {
        memset(descr, 'x', n);
        descr[n] = 0;
        size_t len, text = strlen("{'descr': '', 'fortran_order': False, 'shape': (3, 4), }") + n + 20;
        CKPT_AUTOFREE uint8_t *head = header(descr, 2, shape, &len);
        size_t prefix = head[6] == 1 ? 10 : 12;
        CHECK((prefix == 10 ? ckpt_le16(head + 8) : ckpt_le32(head + 8)) == len - prefix);
        CHECK((head[6] == 1) == ((10 + text + 1) / 64 * 64 + 64 - 10 <= 65535));
        CHECK(len == (prefix + text + 1) / 64 * 64 + 64);
    }
}

int main(void)
{
    check_header("{'descr': '<f4', 'fortran_order': False, 'shape': (), }", 128, "<f4", 0, NULL);
    check_header("{'descr': '<f4', 'fortran_order': False, 'shape': (3,), }", 128, "<f4", 1, (uint64_t[]){3});
    check_header("{'descr': '<V2', 'fortran_order': False, 'shape': (2, 3), }", 128, "<V2", 2, (uint64_t[]){2, 3});
    check_header("{'descr': '|i1', 'fortran_order': False, 'shape': (1000000000000000000, 0), }", 128, "|i1", 2,
                 (uint64_t[]){1000000000000000000, 0});
    check_header("{'descr': '<f4', 'fortran_order': False, 'shape': ("
                 "1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, "
                 "1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1), }",
                 192, "<f4", 32, (uint64_t[]){1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1,
                                              1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1});
    check_header("{'descr': [('a', '<i4'), ('b', '<f8', (2,))], 'fortran_order': False, 'shape': (5,), }", 128,
                 "[('a', '<i4'), ('b', '<f8', (2,))]", 1, (uint64_t[]){5});
    check_long();
    return 0;
}
