/* SPDX-License-Identifier: Apache-2.0 */
/* A checkpoint that torch.save wrote, as a file. */
#include "core/format/pytorch/pytorch.h"

#include "core/base/util.h"
#include "core/format/pytorch/nodes.h"
#include "core/format/pytorch/torch.h"

static int probe_file(struct ckpt_backend *dir, const char *path, struct ckpt_probe *ret)
{
    struct ckpt_file *f;
    if (ckpt_has_suffix(path, ".pt") || ckpt_has_suffix(path, ".pth")) {
        ret->bits = 32;
        return 0;
    }
    if (!ckpt_has_suffix(path, ".bin") && !ckpt_has_suffix(path, ".ckpt"))
        return 0;
    int r = ckpt_backend_open(dir, path, &f);
    if (r < 0)
        return r;
    if (ckpt_torch_archive_probe(f))
        ret->bits = 64;
    ckpt_file_unref(f);
    return 0;
}

/* Every member's CRC-32, of those too that no leaf shows. */
static int pytorch_verify(struct ckpt_tree *t, void (*progress)(void *arg, uint64_t bytes), void *arg,
                          struct ckpt_err *err)
{
    struct torch *torch = t->priv;
    struct ckpt_zip *zip = torch->archive.zip;
    int r = 0;
    for (uint32_t i = 0, n = ckpt_zip_count(zip); i < n && r == 0; i++)
        r = ckpt_zip_verify(zip, i, progress, arg, err);
    return r;
}

static const struct ckpt_tree_ops pytorch_ops = {
    .name = "pytorch",
    .framework = "pt",
    .layout = ckpt_torch_layout,
    .chunk = ckpt_torch_chunk,
    .stored = ckpt_torch_stored,
    .blob = ckpt_torch_blob,
    .describe = ckpt_torch_describe,
    .verify = pytorch_verify,
    .memory = ckpt_torch_memory,
    .close = ckpt_torch_close,
};

static int load(struct ckpt_tree *t, const struct ckpt_opening *o, struct ckpt_err *err)
{
    struct torch *torch = t->priv;
    struct torch_graph g;
    struct ckpt_file *f;
    int r = ckpt_pins_open(o->pins, o->name, &f);
    if (r < 0)
        return ckpt_fail(err, -r, "%s", strerror(-r));
    r = ckpt_torch_archive_open(f, 0, f->st.size, &torch->archive, err);
    ckpt_file_unref(f);
    if (r == 0)
        r = ckpt_torch_archive_load(&torch->archive, &torch->records, 0, &g, err);
    if (r < 0)
        return r;
    r = ckpt_torch_nodes_add(&(struct torch_nodes){.tree = t, .records = &torch->records, .flat = o->flat}, &g, err);
    ckpt_torch_graph_clear(&g);
    return r < 0 ? r : ckpt_tree_finish(t, err);
}

static int pytorch_open(const struct ckpt_opening *o, struct ckpt_tree **ret, struct ckpt_err *err)
{
    struct ckpt_tree *t;
    int r = ckpt_torch_tree_new(&pytorch_ops, o->pins, &t, err);
    if (r < 0)
        return r;
    r = load(t, o, err);
    return ckpt_tree_give(t, r, ret);
}

const struct ckpt_format ckpt_pytorch_format = {
    .name = "pytorch",
    .probe_file = probe_file,
    .open = pytorch_open,
};
