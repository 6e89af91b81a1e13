/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The files that a tree shows: each leaf under its listed name, and other renderings of leaves and directories under
 * names that are looked up but never listed (docs/using.md, "Views").
 */
#ifndef CKPT_VIEW_VIEW_H
#define CKPT_VIEW_VIEW_H

#include "core/tree/array_reader.h"

#include <sys/uio.h>

enum ckpt_view {
    CKPT_VIEW_LISTED,      /* KEY.npy, KEY.json, a blob, a directory */
    CKPT_VIEW_RAW,         /* KEY: elements alone, or the JSON value */
    CKPT_VIEW_NPY,         /* KEY.npy of a number */
    CKPT_VIEW_TEXT,        /* KEY.txt */
    CKPT_VIEW_META,        /* KEY.meta.json */
    CKPT_VIEW_TREE,        /* DIR/.tree.json */
    CKPT_VIEW_SAFETENSORS, /* DIR.safetensors */
    CKPT_VIEW_SLICE_NPY,   /* KEY@SLICE.npy */
    CKPT_VIEW_SLICE,       /* KEY@SLICE */
    CKPT_VIEWS
};

/* One file: a node, how it is rendered, and for the slices which elements. */
struct ckpt_viewed {
    struct ckpt_tree *tree;
    uint32_t node;
    enum ckpt_view view;
    const struct ckpt_selection *sel;
};

/* Finished renderings that are kept for the next read; internally locked. */
struct ckpt_renderings;

struct ckpt_views {
    struct ckpt_array_reader reader;
    struct ckpt_renderings *renderings;
    const char *spill_dir;
};

int ckpt_views_init(struct ckpt_views *v, struct ckpt_cache *cache, const char *spill_dir);
void ckpt_views_clear(struct ckpt_views *v);

/*
 * What a name in a container means: the listed one first, then views. For slices *ret_slice is the text of the slice in
 * name. -ENOENT; -ENAMETOOLONG for a name over 255 bytes.
 */
int ckpt_view_lookup(const struct ckpt_tree *t, uint32_t parent, const char *name, uint32_t *ret_node,
                     enum ckpt_view *ret_view, const char **ret_slice, size_t *ret_slice_len) CKPT_MUST_USE;
/* The selection of a slice of an array; -ENOENT if it is not one. */
int ckpt_view_select(struct ckpt_tree *t, uint32_t node, const char *slice, size_t len, struct ckpt_selection *ret,
                     struct ckpt_err *err) CKPT_MUST_USE;
bool ckpt_viewed_is_dir(const struct ckpt_viewed *f);
/* Bytes of the file, and bytes it takes in the source (0 for renderings). */
int ckpt_view_size(struct ckpt_views *v, const struct ckpt_viewed *f, uint64_t *ret_size, uint64_t *ret_stored,
                   struct ckpt_err *err) CKPT_MUST_USE;
/* Bytes read, fewer than len only at the end. */
ssize_t ckpt_view_read(struct ckpt_views *v, const struct ckpt_viewed *f, void *buf, size_t len, uint64_t off,
                       struct ckpt_err *err) CKPT_MUST_USE;
/* Are there data at off, or zeros that need not be read? Either way up to *ret_end, or longer. 1, 0. */
int ckpt_view_run(struct ckpt_views *v, const struct ckpt_viewed *f, uint64_t off, uint64_t *ret_end,
                  struct ckpt_err *err) CKPT_MUST_USE;

/* The same, handed to give(arg, iov, count) where the bytes lie. What give returns below 0 is returned. */
typedef int ckpt_give_fn(void *arg, const struct iovec *iov, int count);
ssize_t ckpt_view_give(struct ckpt_views *v, const struct ckpt_viewed *f, size_t len, uint64_t off, ckpt_give_fn *give,
                       void *arg, struct ckpt_err *err) CKPT_MUST_USE;

/* The JSON of .meta.json and, for a container, of .tree.json without the views' machinery: for the commands. */
int ckpt_view_meta(struct ckpt_tree *t, uint32_t node, struct ckpt_buf *out, struct ckpt_err *err) CKPT_MUST_USE;

#endif
