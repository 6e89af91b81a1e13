/* SPDX-License-Identifier: Apache-2.0 */
/* What is in a checkpoint as the files of another library. */
#include "core/source/source.h"
#include "core/view/orbax_files.h"

#include <stdlib.h>

struct ckpt_files {
    struct ckpt_source *src;
    struct target target;
    uint32_t node;
    struct ckpt_orbax_files *orbax;
};

int ckpt_files_open(struct ckpt_source *src, uint64_t id, ckpt_left_out_fn *left_out, void *arg,
                    struct ckpt_files **ret, struct ckpt_err *err)
{
    struct ckpt_files *f = calloc(1, sizeof *f);
    uint32_t node = 0;
    if (!f)
        return ckpt_fail(err, ENOMEM, "out of memory");
    int r = ckpt_source_target(src, id, &f->target, err);
    if (r < 0) {
        free(f);
        return r;
    }
    f->src = src;
    if (!f->target.tree && f->target.node->kind != NODE_TREE)
        r = ckpt_fail(err, ENODATA, "not a checkpoint, nor a part of one");
    else if ((r = ckpt_source_enter(src, &f->target, &node, err)) == 0) {
        if (f->target.tree->nodes[node].kind != CKPT_NODE_DIR)
            r = ckpt_fail(err, ENOTDIR, "a single leaf");
        else
            r = ckpt_orbax_files_new(&src->views, f->target.tree, node, f->target.node->st.mtime_ns, left_out, arg,
                                     &f->orbax, err);
    }
    f->node = node;
    if (r < 0)
        ckpt_files_close(f);
    else
        *ret = f;
    return r;
}

int ckpt_source_files_rights(const struct ckpt_files *f, struct ckpt_rights *ret, struct ckpt_err *err)
{
    return ckpt_source_rights(&f->target, f->node, true, ret, err);
}

void ckpt_files_close(struct ckpt_files *f)
{
    if (!f)
        return;
    ckpt_orbax_files_free(f->orbax);
    ckpt_source_done(f->src, &f->target);
    free(f);
}

bool ckpt_files_get(const struct ckpt_files *f, size_t index, const char **ret_path, uint64_t *ret_size)
{
    return ckpt_orbax_file(f->orbax, index, ret_path, ret_size);
}

ssize_t ckpt_files_read(struct ckpt_files *f, size_t index, void *buf, size_t len, uint64_t off, struct ckpt_err *err)
{
    ssize_t n = ckpt_orbax_file_read(f->orbax, index, buf, len, off, err);
    int r = n < 0 ? 0 : ckpt_source_unchanged(f->src, f->target.node, err);
    return r < 0 ? r : n;
}
