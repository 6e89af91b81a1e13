/* SPDX-License-Identifier: Apache-2.0 */
#include "core/view/rendering.h"

#include "core/base/temporary.h"
#include "core/base/util.h"

#define IN_MEMORY ((size_t)1 << 20)

struct ckpt_rendering *ckpt_rendering_new(const char *spill_dir)
{
    struct ckpt_rendering *r = calloc(1, sizeof *r);
    if (!r)
        return NULL;
    atomic_init(&r->refs, 1);
    r->fd = -1;
    r->spill_dir = spill_dir;
    return r;
}

void ckpt_rendering_unref(struct ckpt_rendering *r)
{
    if (!r || atomic_fetch_sub(&r->refs, 1) != 1)
        return;
    if (r->fd >= 0)
        close(r->fd);
    ckpt_buf_clear(&r->text);
    free(r->parts);
    free(r);
}

static void move_to_file(struct ckpt_rendering *r)
{
    if (r->error || !r->text.len)
        return;
    if (r->fd < 0) {
        int fd = ckpt_temporary(r->spill_dir);
        if (fd < 0) {
            r->error = fd;
            return;
        }
        r->fd = fd;
    }
    r->error = ckpt_pwrite(r->fd, r->text.data, r->text.len, r->moved);
    if (r->error)
        return;
    r->moved += r->text.len;
    r->text.len = 0;
}

void ckpt_rendering_flush(struct ckpt_rendering *r)
{
    if (r->text.len >= IN_MEMORY)
        move_to_file(r);
}

int ckpt_rendering_finish(struct ckpt_rendering *r)
{
    if (r->fd >= 0)
        move_to_file(r);
    if (!r->error)
        r->error = ckpt_buf_error(&r->text);
    r->size = ckpt_rendering_text_size(r);
    return r->error;
}

int ckpt_rendering_patch(struct ckpt_rendering *r, const void *data, size_t len, uint64_t off)
{
    if (r->fd >= 0)
        return ckpt_pwrite(r->fd, data, len, off);
    memcpy(r->text.data + off, data, len);
    return 0;
}

uint64_t ckpt_rendering_text_size(const struct ckpt_rendering *r)
{
    return r->moved + r->text.len;
}

ssize_t ckpt_rendering_read(const struct ckpt_rendering *r, void *buf, size_t len, uint64_t off)
{
    uint64_t size = ckpt_rendering_text_size(r);
    if (off >= size)
        return 0;
    len = (size_t)CKPT_MIN((uint64_t)len, size - off);
    if (r->fd < 0) {
        memcpy(buf, r->text.data + off, len);
        return (ssize_t)len;
    }
    ssize_t n = ckpt_pread(r->fd, buf, len, off);
    return n < 0 || (size_t)n == len ? n : -EIO;
}
