/* SPDX-License-Identifier: Apache-2.0 */
#include "fs/commands/interrupt.h"
#include "fs/commands/transfer_private.h"

#include "core/array/npy.h"
#include "core/base/util.h"
#include "core/io/disk.h"

#define HOLE ((size_t)64 << 10) /* zeros of this many bytes are not written */

static bool all_zero(const uint8_t *p, size_t len)
{
    return !p[0] && !memcmp(p, p + 1, len - 1);
}

/* How many bytes there are from p on that are all zeros, or have none of them in a hole's length. */
static size_t alike(const uint8_t *p, size_t len, bool *ret_zero)
{
    size_t end = CKPT_MIN(len, HOLE);
    *ret_zero = all_zero(p, end);
    while (end < len) {
        size_t n = CKPT_MIN(len - end, HOLE);
        if (all_zero(p + end, n) != *ret_zero)
            break;
        end += n;
    }
    return end;
}

/* What is not zeros, in pieces as long as possible. */
static int write_block(int fd, const uint8_t *p, size_t len, uint64_t off)
{
    size_t n;
    for (size_t begin = 0; begin < len; begin += n) {
        bool zero;
        n = alike(p + begin, len - begin, &zero);
        int r = zero ? 0 : ckpt_disk_write(fd, p + begin, n, off + begin);
        if (r < 0)
            return r;
    }
    return 0;
}

static ssize_t read_block(const struct fs_into *in, uint64_t id, uint64_t off)
{
    if (in->files)
        return ckpt_files_read(in->files, id, in->block, FS_TRANSFER_BLOCK, off, in->err);
    return ckpt_read(in->t->src, id, in->block, FS_TRANSFER_BLOCK, off, in->err);
}

/* Where the next bytes are that may be other than zeros. */
static uint64_t skip_hole(const struct fs_into *in, uint64_t id, uint64_t off)
{
    uint64_t end;
    bool may_ask = !in->files && off; /* most files are one block, and are not asked about */
    return may_ask && ckpt_run(in->t->src, id, off, &end, NULL) == 0 ? end : off;
}

/* Of the others the type need not be asked, which takes longer than a small one's copy. uint32 may be random keys. */
static bool is_unclear(const uint8_t *data, size_t len)
{
    struct ckpt_npy npy;
    if (ckpt_npy_parse(data, len, &npy, NULL) < 0)
        return false;
    bool is_opaque = strchr(npy.descr, 'V'), may_be_keys = npy.dtype == CKPT_DT_U32 && npy.ndim;
    return is_opaque || may_be_keys || (npy.itemsize == 1 && npy.dtype != CKPT_DT_BOOL);
}

int fs_copy_bytes(const struct fs_into *in, uint64_t id, const char *path, int fd, bool *ret_unclear)
{
    struct fs_transfer *t = in->t;
    uint64_t off = 0;
    *ret_unclear = false;
    for (ssize_t n = 1; n > 0; off += (uint64_t)n) {
        if (fs_interrupted())
            return ckpt_fail(in->err, EINTR, "%s: interrupted", path);
        uint64_t begin = skip_hole(in, id, off);
        fs_progress_add(&t->progress, path, begin - off);
        off = begin;
        n = read_block(in, id, off);
        if (n < 0)
            return fs_left_out(in, path, (int)n);
        if (!off && t->attributes)
            *ret_unclear = is_unclear(in->block, (size_t)n);
        int r = write_block(fd, in->block, (size_t)n, off);
        if (r < 0)
            return fs_unwritable(in, path, r);
        fs_progress_add(&t->progress, path, (uint64_t)n);
    }
    int r = ckpt_disk_truncate(fd, off);
    if (r < 0)
        return fs_unwritable(in, path, r);
    t->bytes += off;
    return 0;
}
