/* SPDX-License-Identifier: Apache-2.0 */
#include "core/format/zarrs/zarrs.h"

#include "core/base/util.h"
#include "core/format/zarrs/zarrs_private.h"
#include "core/tree/rights.h"

static const struct ckpt_tree_ops zarrs_ops;

static int tree_new(struct ckpt_pins *pins, struct ckpt_tree **ret, struct ckpt_err *err)
{
    struct ckpt_tree *t;
    int r = ckpt_tree_new(&zarrs_ops, pins, &t);
    if (r < 0)
        return ckpt_no_memory(err);
    struct zarrs *z = t->priv = calloc(1, sizeof *z);
    if (z) {
        *z = (struct zarrs){.tree = t,
                            .opened_ns = ckpt_realtime_ns(),
                            .shards = ckpt_zarr_cache_new(),
                            .layouts = ckpt_zarr_layouts_new()};
        *ret = t;
        if (z->shards && z->layouts)
            return 0;
    }
    ckpt_tree_unref(t);
    return ckpt_no_memory(err);
}

/* Those of the folder itself are the user's metadata. */
static int take_attributes(struct ckpt_tree *t)
{
    static const char *const files[] = {".zattrs", "zarr.json"};
    for (int v = 0; v < 2 && !t->metadata; v++) {
        CKPT_AUTOFILE struct ckpt_file *f = NULL;
        int r = ckpt_pins_open(t->pins, files[v], &f);
        if (r == -ENOMEM)
            return r;
        if (r == 0)
            t->metadata = ckpt_zarrs_attributes(&(struct ckpt_extent){.file = f, .len = f->st.size}, v);
    }
    return 0;
}

static int load(struct zarrs *z, struct ckpt_err *err)
{
    int r = ckpt_zarrs_add_folder(z, err);
    if (r == 0 && take_attributes(z->tree) < 0)
        r = ckpt_no_memory(err);
    return r < 0 ? r : ckpt_tree_finish(z->tree, err);
}

static int zarrs_open(const struct ckpt_opening *o, struct ckpt_tree **ret, struct ckpt_err *err)
{
    struct ckpt_tree *t = NULL;
    int r = tree_new(o->pins, &t, err);
    if (r < 0)
        return r;
    struct zarrs *z = t->priv;
    z->apart = o->below;
    return ckpt_tree_give(t, load(z, err), ret);
}

static int zarrs_verify(struct ckpt_tree *t, void (*progress)(void *arg, uint64_t bytes), void *arg,
                        struct ckpt_err *err)
{
    struct zarrs *z = t->priv;
    int r = 0;
    for (uint32_t i = 0; i < z->base_count; i++)
        for (unsigned part = 0; part < z->bases[i].count && r == 0; part++)
            r = ckpt_ocdbt_verify(z->bases[i].parts[part], progress, arg, err);
    return r;
}

static size_t zarrs_memory(const struct ckpt_tree *t)
{
    const struct zarrs *z = t->priv;
    size_t n = sizeof *z;
    for (uint32_t i = 0; i < z->base_count; i++)
        for (unsigned part = 0; part < z->bases[i].count; part++)
            n += ckpt_ocdbt_memory(z->bases[i].parts[part]);
    return n;
}

static void zarrs_close(struct ckpt_tree *t)
{
    struct zarrs *z = t->priv;
    if (!z)
        return;
    for (uint32_t i = 0; i < z->base_count; i++)
        ckpt_zarrs_base_close(&z->bases[i]);
    free(z->bases);
    ckpt_zarr_layouts_free(z->layouts);
    ckpt_zarr_cache_free(z->shards);
    free(z);
}

static const struct ckpt_tree_ops zarrs_ops = {
    .name = "zarr",
    .layout = ckpt_zarrs_layout,
    .chunk = ckpt_zarrs_chunk,
    .stored = ckpt_zarrs_stored,
    .blob = ckpt_zarrs_blob,
    .rights = ckpt_rights_of_folder,
    .pin = ckpt_zarrs_pin,
    .describe = ckpt_zarrs_describe,
    .verify = zarrs_verify,
    .memory = zarrs_memory,
    .close = zarrs_close,
};

const struct ckpt_format ckpt_zarrs_format = {
    .name = "zarr",
    .probe = ckpt_zarrs_probe,
    .open = zarrs_open,
};
