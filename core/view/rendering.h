/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A text made from a tree: in memory while it is small, in an unlinked file beyond. Written by one thread, then
 * immutable and refcounted. A safetensors file has data behind its header, which stay in the checkpoint: `parts` says
 * where.
 */
#ifndef CKPT_VIEW_RENDERING_H
#define CKPT_VIEW_RENDERING_H

#include "core/view/view.h"

struct ckpt_rendering_part {
    uint64_t off; /* in the file */
    uint32_t node;
};

struct ckpt_rendering {
    atomic_uint refs;
    struct ckpt_buf text; /* what has not been moved to the file */
    int fd;               /* -1: all is in text */
    uint64_t moved;       /* bytes in the file */
    int error;
    const char *spill_dir;
    struct ckpt_rendering_part *parts; /* by offset; the first begins where the text ends */
    size_t part_count;
    uint64_t size; /* of the whole file, parts included */
};

struct ckpt_rendering *ckpt_rendering_new(const char *spill_dir);
void ckpt_rendering_unref(struct ckpt_rendering *r);
/* To be called now and then while text is appended to r->text: moves it to the file when there is much of it. */
void ckpt_rendering_flush(struct ckpt_rendering *r);
/* No more text follows. */
int ckpt_rendering_finish(struct ckpt_rendering *r);
/* Write over bytes of the finished text. */
int ckpt_rendering_patch(struct ckpt_rendering *r, const void *data, size_t len, uint64_t off);
ssize_t ckpt_rendering_read(const struct ckpt_rendering *r, void *buf, size_t len, uint64_t off); /* of the text */
uint64_t ckpt_rendering_text_size(const struct ckpt_rendering *r);

/* The kept rendering of a node, or a new one made by `make`. The caller unrefs. */
int ckpt_rendering_get(struct ckpt_views *v, const struct ckpt_viewed *f, struct ckpt_rendering **ret,
                       struct ckpt_err *err) CKPT_MUST_USE;

/* The makers, one a view. */
int ckpt_render_text(struct ckpt_views *v, const struct ckpt_viewed *f, struct ckpt_rendering *r, struct ckpt_err *err);
int ckpt_render_meta(struct ckpt_views *v, const struct ckpt_viewed *f, struct ckpt_rendering *r, struct ckpt_err *err);
int ckpt_render_tree(struct ckpt_views *v, const struct ckpt_viewed *f, struct ckpt_rendering *r, struct ckpt_err *err);
int ckpt_render_safetensors(struct ckpt_views *v, const struct ckpt_viewed *f, struct ckpt_rendering *r,
                            struct ckpt_err *err);

#endif
