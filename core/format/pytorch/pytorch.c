/* SPDX-License-Identifier: Apache-2.0 */
/* A checkpoint that torch.save or torch.jit.save wrote, as a file. */
#include "core/format/pytorch/pytorch.h"

#include "core/base/util.h"
#include "core/format/pytorch/content.h"
#include "core/format/pytorch/folder.h"
#include "core/format/pytorch/nodes.h"
#include "core/format/pytorch/script.h"
#include "core/format/pytorch/torch.h"

/* Files of these names are of PyTorch, if they are checkpoints. */
static const char *const suffixes[] = {".pt", ".pth", ".pth.tar", ".th", ".pyth", ".jit", NULL};

static unsigned begins(const struct ckpt_content *c)
{
    switch (ckpt_torch_content(c->file)) {
    case TORCH_CONTENT_ZIP:
    case TORCH_CONTENT_STREAM:
        return 64;
    case TORCH_CONTENT_TAR:
        return 32;
    default:
        return 0;
    }
}

/* An archive of something else, or a file that was cut to nothing. */
static bool is_damaged(const struct ckpt_content *c)
{
    return !c->len || (c->len >= 2 && !memcmp(c->head, "PK", 2));
}

static int pytorch_verify(struct ckpt_tree *t, void (*progress)(void *arg, uint64_t bytes), void *arg,
                          struct ckpt_err *err)
{
    return ckpt_torch_archive_verify(&((struct torch *)t->priv)->archive, progress, arg, err);
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
    r = ckpt_torch_archive_open_file(f, &torch->archive, err);
    ckpt_file_unref(f);
    if (r == 0)
        r = ckpt_torch_archive_load(&torch->archive, &torch->records, 0, &g, err);
    if (r < 0)
        return r;
    r = ckpt_torch_nodes_add(&(struct torch_nodes){.tree = t, .records = &torch->records, .flat = o->flat}, &g, err);
    ckpt_torch_graph_clear(&g);
    if (r == 0)
        r = ckpt_torch_script_add(t, o->flat, err);
    return r < 0 ? r : ckpt_tree_finish(t, err);
}

static int probe_folder(struct ckpt_backend *dir, struct ckpt_probe *ret)
{
    bool has_index;
    int r = ckpt_shards_probe(dir, TORCH_INDEX, ".bin", &has_index);
    ret->bits = r == 0 && has_index ? 8 : 0; /* the same in safetensors files counts more */
    return r;
}

static int pytorch_open(const struct ckpt_opening *o, struct ckpt_tree **ret, struct ckpt_err *err)
{
    struct ckpt_tree *t;
    if (!*o->name)
        return ckpt_torch_folder_open(o, ret, err);
    int r = ckpt_torch_tree_new(&pytorch_ops, o->pins, &t, err);
    if (r < 0)
        return r;
    ((struct torch *)t->priv)->cache = o->cache;
    r = load(t, o, err);
    return ckpt_tree_give(t, r, ret);
}

const struct ckpt_format ckpt_pytorch_format = {
    .name = "pytorch",
    .suffixes = suffixes,
    .begins = begins,
    .is_damaged = is_damaged,
    .probe = probe_folder,
    .open = pytorch_open,
};
