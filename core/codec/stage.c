/* SPDX-License-Identifier: Apache-2.0 */
/* How a decoder gets its input: in windows, past the window, or whole. */
#include "core/codec/codec.h"

#include "core/base/buf.h"
#include "core/base/temporary.h"
#include "core/base/util.h"

#include <sys/mman.h>

ssize_t ckpt_stage_pull(struct ckpt_stage *stage, void *buf, size_t len, struct ckpt_err *err)
{
    if (stage->below)
        return len ? stage->below->ops->read(stage->below, buf, len, err) : 0;
    const struct ckpt_extent *e = stage->extent;
    uint64_t left = e->len - stage->extent_pos;
    len = len < left ? len : (size_t)left;
    if (len == 0)
        return 0;
    int r = ckpt_extent_read(e, buf, len, stage->extent_pos);
    if (r < 0)
        return ckpt_fail(err, -r, "cannot read %zu stored bytes", len);
    stage->extent_pos += len;
    return (ssize_t)len;
}

int ckpt_stage_fill(struct ckpt_stage *stage, struct ckpt_err *err)
{
    if (stage->in_len)
        return 1;
    if (!stage->below && !stage->extent->file) {
        const struct ckpt_extent *e = stage->extent;
        if (e->len == stage->extent_pos)
            return 0;
        stage->in = e->bytes + stage->extent_pos;
        stage->in_len = (size_t)(e->len - stage->extent_pos);
        stage->extent_pos = e->len;
        return 1;
    }
    if (!stage->window) {
        stage->window = malloc(CKPT_CODEC_WINDOW);
        if (!stage->window)
            return ckpt_no_memory(err);
    }
    ssize_t n = ckpt_stage_pull(stage, stage->window, CKPT_CODEC_WINDOW, err);
    if (n <= 0)
        return (int)n;
    stage->in = stage->window;
    stage->in_len = (size_t)n;
    return 1;
}

void ckpt_whole_clear(struct ckpt_whole *whole)
{
    free(whole->heap);
    if (whole->map)
        munmap(whole->map, whole->len);
    *whole = (struct ckpt_whole){0};
}

static int temp_file(struct ckpt_err *err)
{
    const char *dir = getenv("TMPDIR");
    if (!dir || !*dir)
        dir = "/var/tmp"; /* /tmp is often memory, which is what is to be saved */
    int fd = ckpt_temporary(dir);
    return fd < 0 ? ckpt_fail(err, -fd, "cannot make a temporary file in %s: %s", dir, strerror(-fd)) : fd;
}

/*
 * The rest of the input, after what is in *head, to an unlinked file, and that mapped. Every page is written, so
 * allocated, before it is mapped: a full disk is an error here and never a signal later.
 */
static int whole_spill(struct ckpt_stage *stage, struct ckpt_buf *head, uint64_t max, struct ckpt_whole *ret,
                       struct ckpt_err *err)
{
    CKPT_AUTOFD int fd = temp_file(err);
    if (fd < 0)
        return fd;
    CKPT_AUTOFREE uint8_t *piece = malloc(CKPT_CODEC_WINDOW);
    if (!piece)
        return ckpt_no_memory(err);
    uint64_t total = head->len;
    int r = ckpt_pwrite(fd, head->data, head->len, 0);
    ckpt_buf_clear(head);
    while (r == 0) {
        ssize_t n = ckpt_stage_pull(stage, piece, CKPT_CODEC_WINDOW, err);
        if (n < 0)
            return (int)n;
        if (n == 0)
            break;
        if (total + (size_t)n > max)
            return ckpt_codec_fail_longer(err, stage->ops->name, max);
        r = ckpt_pwrite(fd, piece, (size_t)n, total);
        total += (size_t)n;
    }
    if (r < 0)
        return ckpt_fail(err, -r, "cannot write to a temporary file: %s", strerror(-r));
    void *map = mmap(NULL, total, PROT_READ, MAP_PRIVATE, fd, 0);
    if (map == MAP_FAILED)
        return ckpt_fail(err, errno, "cannot map a temporary file: %m");
    *ret = (struct ckpt_whole){.data = map, .len = total, .map = map};
    return 0;
}

int ckpt_stage_whole(struct ckpt_stage *stage, uint64_t max, struct ckpt_whole *ret, struct ckpt_err *err)
{
    const struct ckpt_extent *e = stage->extent;
    *ret = (struct ckpt_whole){0};
    if (!stage->below && e->len > max)
        return ckpt_codec_fail_longer(err, stage->ops->name, max);
    if (!stage->below && !e->file) {
        *ret = (struct ckpt_whole){.data = e->bytes, .len = (size_t)e->len};
        return 0;
    }
    struct ckpt_buf buf = CKPT_BUF_INIT;
    buf.max = CKPT_CODEC_HELD + CKPT_CODEC_WINDOW;
    int r = 0;
    bool spill = !stage->below && e->len > CKPT_CODEC_HELD;
    if (!stage->below && !spill)
        r = ckpt_buf_reserve(&buf, (size_t)e->len);
    while (r == 0 && !spill) {
        r = ckpt_buf_reserve(&buf, CKPT_CODEC_WINDOW);
        if (r < 0)
            break;
        ssize_t n = ckpt_stage_pull(stage, buf.data + buf.len, CKPT_CODEC_WINDOW, err);
        if (n < 0) {
            ckpt_buf_clear(&buf);
            return (int)n;
        }
        if (n == 0)
            break;
        buf.len += (size_t)n;
        if (buf.len > max) {
            ckpt_buf_clear(&buf);
            return ckpt_codec_fail_longer(err, stage->ops->name, max);
        }
        spill = buf.len >= CKPT_CODEC_HELD;
    }
    if (r < 0)
        ckpt_fail(err, -r, "out of memory");
    else if (spill)
        r = whole_spill(stage, &buf, max, ret, err);
    else {
        *ret = (struct ckpt_whole){.len = buf.len, .heap = buf.data, .data = buf.data};
        return 0;
    }
    ckpt_buf_clear(&buf);
    return r;
}

int ckpt_codec_fail_truncated(struct ckpt_err *err, const char *name)
{
    return ckpt_fail(err, EBADMSG, "%s data end too early", name);
}

int ckpt_codec_fail_leftover(struct ckpt_err *err, const char *name)
{
    return ckpt_fail(err, EBADMSG, "bytes follow the end of the %s data", name);
}

int ckpt_codec_fail_longer(struct ckpt_err *err, const char *name, uint64_t max)
{
    return ckpt_fail(err, EBADMSG, "%s data are longer than the %llu bytes that belong there", name,
                     (unsigned long long)max);
}

int ckpt_codec_fail_shorter(struct ckpt_err *err, const char *name, uint64_t got, uint64_t want)
{
    return ckpt_fail(err, EBADMSG, "%s data end after %llu of %llu bytes", name, (unsigned long long)got,
                     (unsigned long long)want);
}
