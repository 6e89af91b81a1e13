/* SPDX-License-Identifier: Apache-2.0 */
#include "core/format/pytorch/content.h"

#include "core/base/util.h"
#include "core/format/pytorch/archive.h"
#include "core/format/pytorch/opcode.h"

#define HEAD         ((size_t)4096)
#define LOOKED_AT    32 /* opcodes */
#define TAR_BLOCK    512
#define TAR_HEADERS  8 /* that may come before the first file */
#define LOCAL_HEADER 30

/* --- zip --- */

/* The first member of an archive whose directory is damaged, by its own header. */
static bool begins_with_pickle(const uint8_t *head, size_t len)
{
    static const char name[] = "/data.pkl";
    size_t suffix = strlen(name);
    if (len < LOCAL_HEADER)
        return false;
    size_t name_len = ckpt_le16(head + 26);
    return name_len > suffix && LOCAL_HEADER + name_len <= len &&
           !memcmp(head + LOCAL_HEADER + name_len - suffix, name, suffix);
}

static bool is_zip(struct ckpt_file *file, const uint8_t *head, size_t len)
{
    if (len < 4 || memcmp(head, "PK\3\4", 4) != 0)
        return false;
    return ckpt_torch_archive_probe(file) || begins_with_pickle(head, len);
}

/* --- tar --- */

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

/* --- pickles --- */

/* The first opcodes are ones. *ret_end: where they end, behind STOP or not. */
static bool has_opcodes(const uint8_t *head, size_t len, bool all, unsigned *ret_count, bool *ret_stop)
{
    struct torch_op op = {0};
    size_t at = 0;
    *ret_stop = false;
    for (*ret_count = 0; *ret_count < LOOKED_AT && !*ret_stop; ++*ret_count) {
        int r = ckpt_torch_op_next(head, len, &at, &op, NULL);
        bool cut = r == -EBADMSG || (r == -EUCLEAN && len - at < HEAD / 4);
        if (r < 0) /* one that is only refused is one nevertheless */
            return r == -EOPNOTSUPP || (cut && !all);
        *ret_stop = op.code == OP_STOP;
    }
    return true;
}

static bool ends_with_stop(struct ckpt_file *file)
{
    uint8_t last;
    return ckpt_file_read(file, &last, 1, file->st.size - 1) == 1 && last == OP_STOP;
}

static enum torch_content pickle_content(struct ckpt_file *file, const uint8_t *head, size_t len)
{
    unsigned count;
    bool stop;
    if (len < 2 || !has_opcodes(head, len, len == file->st.size, &count, &stop))
        return TORCH_CONTENT_NONE;
    if (head[0] == OP_PROTO)
        return head[1] >= 2 && head[1] <= 5 ? TORCH_CONTENT_PICKLE : TORCH_CONTENT_NONE;
    bool enough = stop ? count > 1 : count == LOOKED_AT;
    return enough && ends_with_stop(file) ? TORCH_CONTENT_TEXT : TORCH_CONTENT_NONE;
}

enum torch_content ckpt_torch_content(struct ckpt_file *file)
{
    CKPT_AUTOFREE uint8_t *head = malloc(HEAD);
    ssize_t n = head ? ckpt_file_read(file, head, HEAD, 0) : -ENOMEM;
    if (n <= 0)
        return TORCH_CONTENT_NONE;
    if (is_zip(file, head, (size_t)n))
        return TORCH_CONTENT_ZIP;
    if (ckpt_torch_stream_probe(file))
        return TORCH_CONTENT_STREAM;
    if (ckpt_torch_is_tar(file))
        return TORCH_CONTENT_TAR;
    return pickle_content(file, head, (size_t)n);
}
