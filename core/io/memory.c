/* SPDX-License-Identifier: Apache-2.0 */
/* A table of named byte ranges as a backend. Directories are the prefixes of names. */
#include "core/io/backend.h"

#include "core/base/util.h"

struct entry {
    char *path;
    const void *data;
    size_t len;
};

struct memory_backend {
    struct ckpt_backend base;
    struct memory_backend *top; /* of a sub-backend: who holds the table */
    char *prefix;               /* "" or "dir/" */
    struct entry *entries;
    size_t count;
};

struct memory_file {
    struct ckpt_file base;
    const uint8_t *data;
};

static const struct ckpt_backend_ops memory_ops;
static const struct ckpt_file_ops memory_file_ops;

static struct memory_backend *top_of(struct memory_backend *b)
{
    return b->top ? b->top : b;
}

static char *full_path(struct memory_backend *b, const char *path)
{
    char *full = malloc(strlen(b->prefix) + strlen(path) + 1);
    if (full)
        strcat(strcpy(full, b->prefix), path);
    return full;
}

static int memory_stat(struct ckpt_backend *base, const char *path, struct ckpt_stat *ret)
{
    struct memory_backend *b = (struct memory_backend *)base, *top = top_of(b);
    CKPT_AUTOFREE char *full = full_path(b, path);
    if (!full)
        return -ENOMEM;
    size_t n = strlen(full);
    if (n && full[n - 1] == '/')
        full[--n] = 0;
    if (!n) {
        *ret = (struct ckpt_stat){.type = CKPT_FT_DIR};
        return 0;
    }
    for (size_t i = 0; i < top->count; i++) {
        const struct entry *e = &top->entries[i];
        if (!strcmp(e->path, full)) {
            *ret = (struct ckpt_stat){.type = CKPT_FT_FILE, .size = e->len, .stored = e->len, .ino = i + 2};
            return 0;
        }
        if (!strncmp(e->path, full, n) && e->path[n] == '/') {
            *ret = (struct ckpt_stat){.type = CKPT_FT_DIR, .ino = 1};
            return 0;
        }
    }
    return -ENOENT;
}

static int memory_list(struct ckpt_backend *base, const char *path, ckpt_list_fn *visit, void *arg)
{
    struct memory_backend *b = (struct memory_backend *)base, *top = top_of(b);
    struct ckpt_stat st;
    int r = memory_stat(base, path, &st);
    if (r < 0 || st.type != CKPT_FT_DIR)
        return r < 0 ? r : -ENOTDIR;
    CKPT_AUTOFREE char *full = full_path(b, path);
    if (!full)
        return -ENOMEM;
    size_t n = strlen(full);
    bool slash = n && full[n - 1] != '/';
    for (size_t i = 0; i < top->count && r == 0; i++) {
        const char *p = top->entries[i].path;
        if (strncmp(p, full, n) || (slash && p[n] != '/'))
            continue;
        p += n + slash;
        size_t len = strcspn(p, "/");
        bool seen = false;
        for (size_t j = 0; j < i && !seen; j++) {
            const char *q = top->entries[j].path;
            seen = !strncmp(q, full, n) && (!slash || q[n] == '/') && !strncmp(q + n + slash, p, len) &&
                   (q[n + slash + len] == '/' || !q[n + slash + len]);
        }
        char name[256];
        if (seen || len >= sizeof name)
            continue;
        memcpy(name, p, len);
        name[len] = 0;
        r = visit(arg, name, p[len] ? CKPT_FT_DIR : CKPT_FT_FILE);
    }
    return r;
}

static int memory_open(struct ckpt_backend *base, const char *path, struct ckpt_file **ret)
{
    struct memory_backend *b = (struct memory_backend *)base, *top = top_of(b);
    struct ckpt_stat st;
    int r = memory_stat(base, path, &st);
    if (r < 0)
        return r;
    if (st.type != CKPT_FT_FILE)
        return -EISDIR;
    struct memory_file *f = calloc(1, sizeof *f);
    if (!f)
        return -ENOMEM;
    f->base.ops = &memory_file_ops;
    f->base.st = st;
    atomic_init(&f->base.refs, 1);
    f->data = top->entries[st.ino - 2].data;
    *ret = &f->base;
    return 0;
}

static int memory_sub(struct ckpt_backend *base, const char *path, struct ckpt_backend **ret)
{
    struct memory_backend *b = (struct memory_backend *)base;
    struct ckpt_stat st;
    int r = memory_stat(base, path, &st);
    if (r < 0 || st.type != CKPT_FT_DIR)
        return r < 0 ? r : -ENOTDIR;
    struct memory_backend *sub = calloc(1, sizeof *sub);
    if (!sub || !(sub->prefix = malloc(strlen(b->prefix) + strlen(path) + 2))) {
        free(sub);
        return -ENOMEM;
    }
    sub->base.ops = &memory_ops;
    atomic_init(&sub->base.refs, 1);
    strcat(strcpy(sub->prefix, b->prefix), path);
    if (*path)
        strcat(sub->prefix, "/");
    sub->top = top_of(b);
    ckpt_backend_ref(&sub->top->base);
    *ret = &sub->base;
    return 0;
}

static ssize_t memory_read(struct ckpt_file *base, void *buf, size_t len, uint64_t off)
{
    struct memory_file *f = (struct memory_file *)base;
    if (off >= base->st.size)
        return 0;
    len = (size_t)CKPT_MIN((uint64_t)len, base->st.size - off);
    memcpy(buf, f->data + off, len);
    return (ssize_t)len;
}

static void memory_close(struct ckpt_file *base)
{
    free(base);
}

static void memory_free(struct ckpt_backend *base)
{
    struct memory_backend *b = (struct memory_backend *)base;
    if (b->top)
        ckpt_backend_unref(&b->top->base);
    for (size_t i = 0; i < b->count; i++)
        free(b->entries[i].path);
    free(b->entries);
    free(b->prefix);
    free(b);
}

struct ckpt_backend *ckpt_backend_new_memory(void)
{
    struct memory_backend *b = calloc(1, sizeof *b);
    if (!b || !(b->prefix = strdup(""))) {
        free(b);
        return NULL;
    }
    b->base.ops = &memory_ops;
    atomic_init(&b->base.refs, 1);
    return &b->base;
}

int ckpt_backend_memory_add(struct ckpt_backend *base, const char *path, const void *data, size_t len)
{
    struct memory_backend *b = (struct memory_backend *)base;
    struct entry *entries = realloc(b->entries, (b->count + 1) * sizeof *entries);
    if (!entries)
        return -ENOMEM;
    b->entries = entries;
    char *copy = strdup(path);
    if (!copy)
        return -ENOMEM;
    entries[b->count++] = (struct entry){copy, data, len};
    return 0;
}

static const struct ckpt_backend_ops memory_ops = {
    .name = "memory",
    .stat = memory_stat,
    .list = memory_list,
    .open = memory_open,
    .sub = memory_sub,
    .free = memory_free,
};

static const struct ckpt_file_ops memory_file_ops = {
    .name = "memory",
    .read = memory_read,
    .close = memory_close,
};
