/* SPDX-License-Identifier: Apache-2.0 */
/* A file that is one state dict: by the suffix of its name, or by the name of a step and its first bytes. */
#include "core/format/flax/flax.h"

#include "core/base/util.h"
#include "core/format/flax/folder.h"
#include "core/format/flax/probe.h"
#include "core/format/flax/state.h"
#include "core/format/shards.h"

static int flax_layout(struct ckpt_tree *t, uint32_t node, struct ckpt_array **ret, struct ckpt_err *err)
{
    return ckpt_flax_state_layout(t->priv, t, node, ret, err);
}

static int flax_chunk(struct ckpt_tree *t, uint32_t node, const struct ckpt_array *a, uint64_t index,
                      struct ckpt_extent *ret, struct ckpt_err *err)
{
    return ckpt_flax_state_elements(t->priv, t, node, ret, err);
}

static int flax_stored(struct ckpt_tree *t, uint32_t node, const struct ckpt_array *a, uint64_t *ret,
                       struct ckpt_err *err)
{
    *ret = a->nbytes;
    return 0;
}

static int flax_blob(struct ckpt_tree *t, uint32_t node, struct ckpt_extent *ret, struct ckpt_err *err)
{
    return ckpt_flax_state_blob(t->priv, t, node, ret, err);
}

static void flax_describe(struct ckpt_tree *t, uint32_t node, struct ckpt_buf *json)
{
    ckpt_flax_state_describe(t->priv, t, node, json);
}

static size_t flax_memory(const struct ckpt_tree *t)
{
    return ckpt_flax_state_memory(t->priv);
}

static void flax_close(struct ckpt_tree *t)
{
    ckpt_flax_state_free(t->priv);
}

/* There is no checksum to verify: what can be checked without one is checked at the opening. */
static const struct ckpt_tree_ops flax_ops = {
    .name = "flax-msgpack",
    .layout = flax_layout,
    .chunk = flax_chunk,
    .stored = flax_stored,
    .blob = flax_blob,
    .describe = flax_describe,
    .memory = flax_memory,
    .close = flax_close,
};

static int flax_probe(struct ckpt_backend *dir, struct ckpt_probe *ret)
{
    bool has_index;
    int r = ckpt_shards_probe(dir, FLAX_INDEX, ".msgpack", &has_index);
    ret->bits = r == 0 && has_index ? 4 : 0; /* the same in files of PyTorch or safetensors counts more */
    return r;
}

static int flax_open(const struct ckpt_opening *o, struct ckpt_tree **ret, struct ckpt_err *err)
{
    struct ckpt_file *f;
    struct flax_state *s;
    struct ckpt_tree *t;
    if (!*o->name)
        return ckpt_flax_folder_open(o, ret, err);
    int r = ckpt_pins_open(o->pins, o->name, &f);
    if (r < 0)
        return ckpt_fail(err, -r, "%s", strerror(-r));
    r = ckpt_flax_state_new(f, &s);
    ckpt_file_unref(f);
    if (r == 0 && (r = ckpt_tree_new(&flax_ops, o->pins, &t)) < 0)
        ckpt_flax_state_free(s);
    if (r < 0)
        return ckpt_fail(err, -r, "out of memory");
    t->priv = s;
    r = ckpt_flax_state_load(s, &(struct flax_dialect){0}, t, 0, err);
    if (r == 0)
        r = ckpt_tree_finish(t, err);
    return ckpt_tree_give(t, r, ret);
}

const struct ckpt_format ckpt_flax_format = {
    .name = "flax-msgpack",
    .suffixes = ckpt_flax_suffixes,
    .begins = ckpt_flax_begins,
    .is_damaged = ckpt_flax_is_damaged,
    .probe = flax_probe,
    .probe_file = ckpt_flax_probe_file,
    .open = flax_open,
    .plain_name = ckpt_flax_plain_name,
};
