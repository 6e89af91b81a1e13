/* SPDX-License-Identifier: Apache-2.0 */
/* A folder that torch.distributed.checkpoint wrote: .metadata and files of pieces. Others of its files are blobs. */
#include "core/base/util.h"
#include "core/format/beside.h"
#include "core/format/pytorch/metadata.h"
#include "core/format/pytorch/nodes.h"
#include "core/format/pytorch/torch.h"
#include "core/tree/rights.h"

#include <stdio.h>

static bool is_file(struct ckpt_backend *dir, const char *name)
{
    struct ckpt_stat st;
    return ckpt_backend_stat(dir, name, &st) == 0 && st.type == CKPT_FT_FILE;
}

/* .metadata is written last, under another name first. */
static int dcp_probe(struct ckpt_backend *dir, struct ckpt_probe *ret)
{
    if (is_file(dir, ".metadata") || is_file(dir, "__0.metadata"))
        ret->bits = 48;
    else if (is_file(dir, ".metadata.tmp") || is_file(dir, "__0_0.distcp")) {
        ret->bits = 48;
        snprintf(ret->unfinished, sizeof ret->unfinished,
                 "not finished: a distributed checkpoint without .metadata, which is written last");
    }
    return 0;
}

/* A piece that cannot be opened is told when its leaf is read, which comes next; the others are looked at here. */
static int verify_piece(struct ckpt_tree *t, const struct torch_piece *p, void (*progress)(void *arg, uint64_t bytes),
                        void *arg, struct ckpt_err *err)
{
    struct torch_archive a;
    size_t len;
    if (!p->len || ckpt_torch_piece_open(t, p, &a, NULL) < 0)
        return 0;
    int r = 0;
    for (uint32_t i = 0; r == 0 && i < ckpt_zip_count(a.zip); i++)
        r = ckpt_zip_verify(a.zip, i, progress, arg, err);
    ckpt_torch_archive_close(&a);
    return r < 0 ? ckpt_fail_in(err, -r, "%.200s", ckpt_tree_text(t, p->file, &len)) : 0;
}

/* Every member's CRC-32 in the pieces of a leaf. *ret: the first error. */
static void verify_leaf(struct ckpt_tree *t, uint32_t node, void (*progress)(void *arg, uint64_t bytes), void *arg,
                        int *ret, struct ckpt_err *err)
{
    const struct torch *torch = t->priv;
    struct torch_sharded s;
    struct torch_box box;
    size_t at;
    if (t->nodes[node].kind != CKPT_NODE_ARRAY ||
        ckpt_torch_record_kind(&torch->records, t->nodes[node].ref) != TORCH_R_SHARDED)
        return;
    ckpt_torch_get_sharded(&torch->records, t->nodes[node].ref, &s, &at);
    for (uint32_t i = 0; i < s.boxes; i++) {
        ckpt_torch_box_next(&torch->records, s.ndim, &at, &box);
        int r = verify_piece(t, &box.piece, progress, arg, *ret < 0 ? NULL : err);
        if (*ret == 0)
            *ret = r;
    }
}

static int dcp_verify(struct ckpt_tree *t, void (*progress)(void *arg, uint64_t bytes), void *arg, struct ckpt_err *err)
{
    int r = 0;
    for (uint32_t node = 1; node < t->count; node++)
        verify_leaf(t, node, progress, arg, &r, err);
    return r;
}

/* The files of a tensor's pieces. */
static void dcp_pin(struct ckpt_tree *t, uint32_t node)
{
    const struct torch *torch = t->priv;
    struct torch_sharded s;
    struct torch_box box;
    struct ckpt_extent e;
    struct ckpt_file *f;
    size_t at;
    if (t->nodes[node].kind == CKPT_NODE_BLOB && ckpt_torch_blob(t, node, &e, NULL) == 0)
        ckpt_extent_clear(&e);
    if (t->nodes[node].kind != CKPT_NODE_ARRAY ||
        ckpt_torch_record_kind(&torch->records, t->nodes[node].ref) != TORCH_R_SHARDED)
        return;
    ckpt_torch_get_sharded(&torch->records, t->nodes[node].ref, &s, &at);
    for (uint32_t i = 0; i < s.boxes && i < 65536; i++) {
        ckpt_torch_box_next(&torch->records, s.ndim, &at, &box);
        if (ckpt_torch_piece_file(t, &box.piece, &f, NULL) == 0)
            ckpt_file_unref(f);
    }
}

static const struct ckpt_tree_ops dcp_ops = {
    .name = "torch-dcp",
    .framework = "pt",
    .layout = ckpt_torch_layout,
    .chunk = ckpt_torch_chunk,
    .stored = ckpt_torch_stored,
    .blob = ckpt_torch_blob,
    .rights = ckpt_rights_of_folder,
    .pin = dcp_pin,
    .describe = ckpt_torch_describe,
    .verify = dcp_verify,
    .memory = ckpt_torch_memory,
    .close = ckpt_torch_close,
};

static int open_piece(void *arg, size_t record, struct torch_graph *ret, uint64_t *ret_cost, struct ckpt_err *err)
{
    return ckpt_torch_piece_load(arg, record, ret, ret_cost, err);
}

static int add_leaves(struct ckpt_tree *t, bool flat, struct ckpt_err *err)
{
    struct torch *torch = t->priv;
    struct torch_graph g;
    struct ckpt_file *f;
    uint8_t *pickle;
    size_t len;
    int r = ckpt_pins_open(t->pins, ".metadata", &f);
    if (r == -ENOENT)
        return ckpt_fail(
            err, EOPNOTSUPP,
            "saved with metadata for each rank (__0.metadata and so on) instead of .metadata, which is not supported");
    if (r < 0)
        return ckpt_fail(err, -r, ".metadata: %s", strerror(-r));
    r = ckpt_file_read_all(f, TORCH_MAX_PICKLE, &pickle, &len);
    ckpt_file_unref(f);
    if (r < 0)
        return ckpt_fail(err, r == -EFBIG ? EUCLEAN : -r, ".metadata: %s", strerror(-r));
    r = ckpt_torch_metadata_load(pickle, len, t, &torch->records, &g, err);
    if (r < 0)
        return r;
    struct torch_nodes nodes = {.tree = t, .records = &torch->records, .flat = flat, .piece = open_piece, .arg = t};
    r = ckpt_torch_nodes_add(&nodes, &g, err);
    ckpt_torch_graph_clear(&g);
    return r;
}

static bool is_own(void *arg, const char *name)
{
    return !strncmp(name, ".metadata", 9) || ckpt_has_suffix(name, ".distcp") ||
           (!strncmp(name, "__", 2) && strstr(name, ".metadata"));
}

static int dcp_open(const struct ckpt_opening *o, struct ckpt_tree **ret, struct ckpt_err *err)
{
    struct ckpt_tree *t;
    int r = ckpt_torch_tree_new(&dcp_ops, o->pins, &t, err);
    if (r < 0)
        return r;
    r = add_leaves(t, o->flat, err);
    if (r == 0)
        r = ckpt_add_beside(&(struct ckpt_beside){.tree = t, .is_own = is_own, .mark = TORCH_FILE_MARK}, err);
    if (r == 0)
        r = ckpt_tree_finish(t, err);
    return ckpt_tree_give(t, r, ret);
}

const struct ckpt_format ckpt_dcp_format = {
    .name = "torch-dcp",
    .probe = dcp_probe,
    .open = dcp_open,
};
