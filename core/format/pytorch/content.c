/* SPDX-License-Identifier: Apache-2.0 */
#include "core/format/pytorch/content.h"

#include "core/base/util.h"
#include "core/format/pytorch/archive.h"
#include "core/format/pytorch/opcode.h"
#include "core/format/pytorch/tar.h"

#define HEAD         ((size_t)4096)
#define LOOKED_AT    32 /* opcodes */
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
