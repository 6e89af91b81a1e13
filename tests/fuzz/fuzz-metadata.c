/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Input: four u16le lengths, then so many bytes of `_METADATA`, of `_strings.json`, of the metadata that every array
 * has, and of `checkpoint`; the rest is what every chunk holds. A file of length 0 is not there.
 */
#include "tests/fuzz/look.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum part { METADATA, STRINGS, ARRAY, AGGREGATE, CHUNK, PARTS };

/* A backend that has any name below a folder: which arrays there are follows from the input. */
struct answers {
    struct ckpt_backend base;
    const uint8_t *data[PARTS];
    size_t len[PARTS];
};

struct answer {
    struct ckpt_file base;
    const uint8_t *data;
};

static const struct ckpt_backend_ops ops;
static const struct ckpt_file_ops file_ops;

static bool ends_with(const char *path, const char *end)
{
    size_t n = strlen(path), m = strlen(end);
    return n >= m && !strcmp(path + n - m, end);
}

static int part_of(const struct answers *b, const char *path)
{
    static const char *const names[] = {
        [METADATA] = "_METADATA", [STRINGS] = "_strings.json", [AGGREGATE] = "checkpoint"};
    int part = -1;
    for (int i = 0; i <= AGGREGATE; i++)
        if (names[i] && !strcmp(path, names[i]))
            part = i;
    if (part < 0 && (ends_with(path, "/.zarray") || ends_with(path, "/zarr.json") || !strcmp(path, ".zarray") ||
                     !strcmp(path, "zarr.json")))
        part = ARRAY;
    if (part < 0 && *path && strchr("0123456789c", path[strlen(path) - 1]))
        part = CHUNK;
    return part >= 0 && b->len[part] ? part : -ENOENT;
}

static int answers_stat(struct ckpt_backend *base, const char *path, struct ckpt_stat *ret)
{
    int part = *path ? part_of((struct answers *)base, path) : PARTS;
    if (part < 0)
        return part;
    *ret = (struct ckpt_stat){.type = part == PARTS ? CKPT_FT_DIR : CKPT_FT_FILE, .ino = (uint64_t)part + 1};
    if (part < PARTS)
        ret->size = ret->stored = ((struct answers *)base)->len[part];
    return 0;
}

static int answers_list(struct ckpt_backend *base, const char *path, ckpt_list_fn *visit, void *arg)
{
    static const char *const names[] = {"_METADATA", "_strings.json", "checkpoint"};
    int r = *path ? -ENOENT : 0;
    for (unsigned i = 0; i < 3 && r == 0; i++)
        if (part_of((struct answers *)base, names[i]) >= 0)
            r = visit(arg, names[i], CKPT_FT_FILE);
    return r == 0 ? visit(arg, "a.b", CKPT_FT_DIR) : r;
}

static int answers_open(struct ckpt_backend *base, const char *path, struct ckpt_file **ret)
{
    struct answers *b = (struct answers *)base;
    int part = part_of(b, path);
    if (part < 0)
        return part;
    struct answer *f = calloc(1, sizeof *f);
    look_expect(f && answers_stat(base, path, &f->base.st) == 0, "no file");
    f->base.ops = &file_ops;
    atomic_init(&f->base.refs, 1);
    f->data = b->data[part];
    *ret = &f->base;
    return 0;
}

static int answers_sub(struct ckpt_backend *base, const char *path, struct ckpt_backend **ret)
{
    return -ENOENT;
}

static ssize_t answer_read(struct ckpt_file *base, void *buf, size_t len, uint64_t off)
{
    if (off >= base->st.size)
        return 0;
    len = (size_t)CKPT_MIN((uint64_t)len, base->st.size - off);
    memcpy(buf, ((struct answer *)base)->data + off, len);
    return (ssize_t)len;
}

static void answer_close(struct ckpt_file *base)
{
    free(base);
}

static void answers_free(struct ckpt_backend *base)
{
    free(base);
}

static const struct ckpt_backend_ops ops = {
    .name = "answers",
    .stat = answers_stat,
    .list = answers_list,
    .open = answers_open,
    .sub = answers_sub,
    .free = answers_free,
};

static const struct ckpt_file_ops file_ops = {
    .name = "answers",
    .read = answer_read,
    .close = answer_close,
};

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size < 8)
        return 0;
    struct answers *b = calloc(1, sizeof *b);
    look_expect(b, "no memory");
    b->base.ops = &ops;
    atomic_init(&b->base.refs, 1);
    const uint8_t *p = data + 8, *end = data + size;
    for (int i = 0; i < PARTS; i++) {
        b->data[i] = p;
        b->len[i] = i == CHUNK ? (size_t)(end - p) : CKPT_MIN((size_t)ckpt_le16(data + 2 * i), (size_t)(end - p));
        p += b->len[i];
    }
    look_at_tree(&b->base);
    ckpt_backend_unref(&b->base);
    return 0;
}
