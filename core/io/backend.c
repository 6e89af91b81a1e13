/* SPDX-License-Identifier: Apache-2.0 */
#include "core/io/backend.h"

#include "core/base/util.h"

static atomic_uint_fast64_t read_bytes, read_calls;

bool ckpt_stat_same(const struct ckpt_stat *a, const struct ckpt_stat *b)
{
    return a->type == b->type && a->dev == b->dev && a->ino == b->ino && a->size == b->size &&
           a->mtime_ns == b->mtime_ns && a->ctime_ns == b->ctime_ns;
}

bool ckpt_path_safe(const char *path, size_t len)
{
    if (!len)
        return false;
    for (size_t at = 0; at <= len;) {
        const char *slash = memchr(path + at, '/', len - at);
        size_t end = slash ? (size_t)(slash - path) : len, n = end - at;
        if (!n || memchr(path + at, 0, n) || (n == 1 && path[at] == '.') ||
            (n == 2 && path[at] == '.' && path[at + 1] == '.'))
            return false;
        at = end + 1;
    }
    return true;
}

struct ckpt_backend *ckpt_backend_ref(struct ckpt_backend *b)
{
    atomic_fetch_add(&b->refs, 1);
    return b;
}

void ckpt_backend_unref(struct ckpt_backend *b)
{
    if (b && atomic_fetch_sub(&b->refs, 1) == 1)
        b->ops->free(b);
}

static bool path_ok(const char *path)
{
    return !*path || ckpt_path_safe(path, strlen(path));
}

int ckpt_backend_stat(struct ckpt_backend *b, const char *path, struct ckpt_stat *ret)
{
    return path_ok(path) ? b->ops->stat(b, path, ret) : -ENOENT;
}

int ckpt_backend_list(struct ckpt_backend *b, const char *path, ckpt_list_fn *visit, void *arg)
{
    return path_ok(path) ? b->ops->list(b, path, visit, arg) : -ENOENT;
}

int ckpt_backend_open(struct ckpt_backend *b, const char *path, struct ckpt_file **ret)
{
    return path_ok(path) ? b->ops->open(b, path, ret) : -ENOENT;
}

int ckpt_backend_sub(struct ckpt_backend *b, const char *path, struct ckpt_backend **ret)
{
    if (!b->ops->sub)
        return -EOPNOTSUPP;
    return path_ok(path) ? b->ops->sub(b, path, ret) : -ENOENT;
}

int ckpt_backend_readlink(struct ckpt_backend *b, const char *path, char *buf, size_t len)
{
    if (!path_ok(path))
        return -ENOENT;
    return b->ops->readlink ? b->ops->readlink(b, path, buf, len) : -EINVAL;
}

static _Thread_local unsigned shortages;

unsigned ckpt_shortages(void)
{
    return shortages;
}

void ckpt_count_shortage(int r)
{
    shortages += r == -EMFILE || r == -ENFILE;
}

struct ckpt_file *ckpt_file_ref(struct ckpt_file *f)
{
    atomic_fetch_add(&f->refs, 1);
    return f;
}

void ckpt_file_unref(struct ckpt_file *f)
{
    if (f && atomic_fetch_sub(&f->refs, 1) == 1)
        f->ops->close(f);
}

ssize_t ckpt_file_read(struct ckpt_file *f, void *buf, size_t len, uint64_t off)
{
    ssize_t n = f->ops->read(f, buf, len, off);
    if (f->ops->derived)
        return n;
    if (n > 0)
        atomic_fetch_add_explicit(&read_bytes, (uint64_t)n, memory_order_relaxed);
    atomic_fetch_add_explicit(&read_calls, 1, memory_order_relaxed);
    return n;
}

void ckpt_file_run(struct ckpt_file *f, uint64_t off, uint64_t end, struct ckpt_run *ret)
{
    *ret = (struct ckpt_run){.begin = off, .end = end};
    if (f->ops->run && off < end)
        f->ops->run(f, off, end, ret);
}

bool ckpt_file_data(struct ckpt_file *f, uint64_t off, uint64_t *ret_end)
{
    struct ckpt_run run;
    ckpt_file_run(f, off, CKPT_MAX(f->st.size, off), &run);
    *ret_end = run.end;
    return !run.zeros;
}

int ckpt_file_fd(struct ckpt_file *f)
{
    return f->ops->fd ? f->ops->fd(f) : -1;
}

int ckpt_file_read_all(struct ckpt_file *f, size_t max, uint8_t **ret, size_t *ret_len)
{
    uint64_t size = f->st.size;
    if (size > max)
        return -EFBIG;
    CKPT_AUTOFREE uint8_t *data = malloc((size_t)size + 1);
    if (!data)
        return -ENOMEM;
    ssize_t n = ckpt_file_read(f, data, (size_t)size, 0);
    if (n < 0)
        return (int)n;
    data[n] = 0;
    *ret_len = (size_t)n;
    *ret = CKPT_STEAL(data);
    return 0;
}

int ckpt_backend_read_all(struct ckpt_backend *b, const char *path, size_t max, uint8_t **ret, size_t *ret_len)
{
    struct ckpt_file *f;
    int r = ckpt_backend_open(b, path, &f);
    if (r < 0)
        return r;
    r = ckpt_file_read_all(f, max, ret, ret_len);
    ckpt_file_unref(f);
    return r;
}

void ckpt_io_counters(uint64_t *ret_bytes, uint64_t *ret_reads)
{
    *ret_bytes = atomic_load_explicit(&read_bytes, memory_order_relaxed);
    *ret_reads = atomic_load_explicit(&read_calls, memory_order_relaxed);
}
