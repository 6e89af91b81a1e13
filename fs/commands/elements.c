/* SPDX-License-Identifier: Apache-2.0 */
#include "fs/commands/elements.h"

#include "core/base/util.h"

#include <stdio.h>

#define FIRST_READ ((size_t)4096) /* most headers are shorter */

static int read_header(struct ckpt_source *src, uint64_t id, uint64_t size, struct ckpt_npy *ret, struct ckpt_err *err)
{
    size_t longest = CKPT_NPY_HEADER_MAX + 12;
    CKPT_AUTOFREE uint8_t *head = malloc(longest);
    if (!head)
        return ckpt_no_memory(err);
    int r = -EBADMSG;
    for (size_t want = FIRST_READ; r == -EBADMSG; want = longest) {
        ssize_t n = ckpt_read(src, id, head, CKPT_MIN(want, longest), 0, err);
        if (n < 0)
            return (int)n;
        r = ckpt_npy_parse(head, (size_t)n, ret, err);
        if ((size_t)n < want || want == longest)
            break;
    }
    if (r == 0 && (ret->nbytes > size || ret->header != size - ret->nbytes))
        r = ckpt_fail(err, EUCLEAN, "the file has not the length that its header says");
    return r;
}

/* "a/w.npy" is all of itself, in C order, as "a/w@:.npy". */
static int look_up_slice(struct fs_elements *e, uint64_t top, const char *path, struct ckpt_attr *ret,
                         struct ckpt_err *err)
{
    static const char suffix[] = ".npy";
    if (!ckpt_has_suffix(path, suffix))
        return ckpt_fail(err, EOPNOTSUPP, "an array in Fortran order that is no .npy file by its name");
    CKPT_AUTOFREE char *slice = malloc(strlen(path) + 3);
    if (!slice)
        return ckpt_no_memory(err);
    sprintf(slice, "%.*s@:%s", (int)(strlen(path) - strlen(suffix)), path, suffix);
    return ckpt_walk(e->src, top, slice, ret, err);
}

int fs_elements_open(struct ckpt_source *src, uint64_t top, const char *path, const struct ckpt_attr *at,
                     struct fs_elements *ret, struct ckpt_err *err)
{
    struct fs_elements e = {.src = src, .id = at->id};
    int r = read_header(src, at->id, at->size, &e.npy, err);
    if (r < 0)
        return r;
    bool is_turned = e.npy.fortran && e.npy.ndim > 1;
    if (is_turned) {
        struct ckpt_attr slice;
        r = look_up_slice(&e, top, path, &slice, err);
        if (r < 0)
            return r;
        e.id = slice.id;
        e.owned = true;
        r = read_header(src, slice.id, slice.size, &e.npy, err);
    }
    e.count = e.npy.itemsize ? e.npy.nbytes / e.npy.itemsize : 0;
    if (r < 0)
        fs_elements_close(&e);
    else
        *ret = e;
    return r;
}

void fs_elements_close(struct fs_elements *e)
{
    if (e->owned)
        ckpt_forget(e->src, e->id, 1);
    *e = (struct fs_elements){0};
}

ssize_t fs_elements_read(const struct fs_elements *e, uint8_t *buf, size_t len, uint64_t first, struct ckpt_err *err)
{
    size_t size = e->npy.itemsize;
    uint64_t left = first < e->count ? e->count - first : 0;
    if (!left)
        return 0;
    len = CKPT_MIN((uint64_t)(len / size), left) * size;
    ssize_t n = ckpt_read(e->src, e->id, buf, len, e->npy.header + first * size, err);
    if (n < 0)
        return n;
    if ((size_t)n < len)
        return ckpt_fail(err, EBADMSG, "the file ended before its last element");
    if (e->npy.big_endian)
        ckpt_swap_words(buf, len, e->npy.word);
    return n;
}

uint64_t fs_elements_skip(const struct fs_elements *e, uint64_t first)
{
    uint64_t end, begin = e->npy.header + first * e->npy.itemsize;
    if (ckpt_run(e->src, e->id, begin, &end, NULL) != 0)
        return first;
    return first + (end - begin) / e->npy.itemsize;
}
