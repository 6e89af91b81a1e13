/* SPDX-License-Identifier: Apache-2.0 */
#include "core/io/join.h"

#include "core/base/util.h"

#define MAX_BYTES ((uint64_t)1 << 62)

struct joined {
    struct ckpt_file base;
    struct ckpt_file *file;
    struct ckpt_range *parts; /* `len` is where a part ends in the joined file */
    size_t count;
};

/* The first part that ends beyond off. */
static size_t part_at(const struct joined *j, uint64_t off)
{
    size_t lo = 0, hi = j->count;
    while (lo < hi) {
        size_t mid = lo + (hi - lo) / 2;
        if (j->parts[mid].len <= off)
            lo = mid + 1;
        else
            hi = mid;
    }
    return lo;
}

static ssize_t joined_read(struct ckpt_file *base, void *buf, size_t len, uint64_t off)
{
    struct joined *j = (struct joined *)base;
    size_t done = 0;
    for (size_t i = part_at(j, off); i < j->count && done < len; i++) {
        uint64_t begin = i ? j->parts[i - 1].len : 0, at = off + done;
        size_t n = (size_t)CKPT_MIN((uint64_t)(len - done), j->parts[i].len - at);
        ssize_t r = ckpt_file_read(j->file, (uint8_t *)buf + done, n, j->parts[i].off + (at - begin));
        if (r < 0)
            return r;
        done += (size_t)r;
        if ((size_t)r < n)
            break;
    }
    return (ssize_t)done;
}

static void joined_close(struct ckpt_file *base)
{
    struct joined *j = (struct joined *)base;
    ckpt_file_unref(j->file);
    free(j->parts);
    free(j);
}

static const struct ckpt_file_ops joined_ops = {
    .name = "parts of a file",
    .derived = true,
    .read = joined_read,
    .close = joined_close,
};

int ckpt_file_join(struct ckpt_file *file, struct ckpt_range *ranges, size_t count, struct ckpt_file **ret)
{
    CKPT_AUTOFREE struct ckpt_range *parts = ranges;
    uint64_t size = 0;
    for (size_t i = 0; i < count; i++) {
        if (ckpt_add(size, parts[i].len, &size) || size > MAX_BYTES)
            return -EUCLEAN;
        parts[i].len = size;
    }
    struct joined *j = calloc(1, sizeof *j);
    if (!j)
        return -ENOMEM;
    j->base = (struct ckpt_file){.ops = &joined_ops, .st = file->st};
    j->base.st.size = j->base.st.stored = size;
    atomic_init(&j->base.refs, 1);
    j->file = ckpt_file_ref(file);
    j->parts = CKPT_STEAL(parts);
    j->count = count;
    *ret = &j->base;
    return 0;
}
