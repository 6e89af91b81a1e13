/* SPDX-License-Identifier: Apache-2.0 */
#include "core/io/extent.h"

#include "core/base/util.h"

void ckpt_extent_clear(struct ckpt_extent *e)
{
    ckpt_file_unref(e->file);
    free(e->bytes);
    *e = (struct ckpt_extent){0};
}

int ckpt_extent_read(const struct ckpt_extent *e, void *buf, size_t len, uint64_t off)
{
    if (off > e->len || len > e->len - off)
        return -EBADMSG;
    if (!e->file) {
        if (len)
            memcpy(buf, e->bytes + off, len);
        return 0;
    }
    ssize_t n = ckpt_file_read(e->file, buf, len, e->off + off);
    if (n < 0)
        return (int)n;
    return (size_t)n == len ? 0 : -EBADMSG;
}

bool ckpt_extent_run(const struct ckpt_extent *e, uint64_t off, uint64_t *ret_end)
{
    uint64_t end = e->len;
    bool data = !e->file || ckpt_file_data(e->file, e->off + off, &end);
    *ret_end = e->file ? CKPT_MIN(end - e->off, e->len) : e->len;
    return data;
}
