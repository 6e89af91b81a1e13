/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Each shard is what torch.save wrote of a part of a state dict, so its pickle is read when the folder is opened, and
 * its tensors go into the one tree. A tensor that the index does not have, or has in another shard, is not shown. One
 * that its shard does not have, or whose shard cannot be read, is an array that fails.
 */
#include "core/format/pytorch/folder.h"

#include "core/base/util.h"
#include "core/format/beside.h"
#include "core/format/named.h"
#include "core/format/pytorch/nodes.h"
#include "core/format/safetensors/header.h"
#include "core/format/safetensors/index.h"
#include "core/tree/rights.h"

#define KEPT_OPEN 64 /* shards; others are opened for each read */
#define FOUND     1  /* the place of an entry: its tensor is known */

struct folder {
    struct ckpt_tree *tree;
    struct torch *torch;
    struct ckpt_file *index;
    bool flat;
    ckpt_below_fn *below;
    enum ckpt_name_round round;
    struct ckpt_err *err;
};

/* --- the shards --- */

struct loading {
    struct torch *torch;
    uint32_t shard;
};

static bool is_wanted(void *arg, const char *key, size_t len)
{
    const struct loading *l = arg;
    struct ckpt_shard_entry *e = ckpt_shards_find(&l->torch->shards, key, len);
    if (!e || e->shard != l->shard)
        return false;
    e->place = FOUND;
    return true;
}

/* *ret is to be cleared. */
static int load_graph(struct torch *torch, uint32_t shard, struct torch_graph *ret, struct ckpt_err *err)
{
    struct torch_archive *archive = &torch->archives[shard];
    struct ckpt_file *file;
    int r = ckpt_shard_open(&torch->shards, shard, &file, err);
    if (r < 0)
        return r;
    r = ckpt_torch_archive_open_file(file, archive, err);
    ckpt_file_unref(file);
    if (r == 0)
        r = ckpt_torch_archive_load(archive, &torch->records, TORCH_SHARD + shard, ret, err);
    if (r < 0 || ckpt_torch_kind(ret, ret->top) == TORCH_DICT)
        return r;
    ckpt_torch_graph_clear(ret);
    return ckpt_fail(err, EUCLEAN, "it does not hold a dict of tensors");
}

static int load_shard(struct folder *f, uint32_t shard)
{
    struct torch *torch = f->torch;
    struct loading l = {torch, shard};
    struct torch_graph g;
    struct ckpt_err why = {0};
    int r = load_graph(torch, shard, &g, &why);
    if (r < 0) {
        ckpt_torch_archive_close(&torch->archives[shard]);
        return ckpt_shard_spoil(&torch->shards, shard, r, &why, f->err);
    }
    struct torch_nodes nodes = {
        .tree = f->tree, .records = &torch->records, .flat = f->flat, .wanted = is_wanted, .wanted_arg = &l};
    r = ckpt_torch_nodes_add(&nodes, &g, f->err);
    ckpt_torch_graph_clear(&g);
    if (shard >= KEPT_OPEN && torch->archives[shard].zip)
        ckpt_torch_archive_close(&torch->archives[shard]);
    return r < 0 ? ckpt_fail_in(f->err, -r, "%s", ckpt_shard_name(&torch->shards, shard)) : 0;
}

static int load_shards(struct folder *f)
{
    struct torch *torch = f->torch;
    torch->archives = calloc(torch->shards.count + 1, sizeof *torch->archives);
    if (!torch->archives)
        return ckpt_no_memory(f->err);
    int r = 0;
    for (uint32_t i = 0; i < torch->shards.count && r == 0; i++)
        r = load_shard(f, i);
    return r;
}

int ckpt_torch_folder_archive(struct ckpt_tree *t, uint32_t shard, struct torch_archive *ret, struct ckpt_err *err)
{
    const struct torch *torch = t->priv;
    const struct torch_archive *kept = &torch->archives[shard];
    struct ckpt_file *f;
    if (kept->zip || kept->stream) {
        *ret = ckpt_torch_archive_ref(kept);
        return 0;
    }
    int r = ckpt_shard_reopen(&torch->shards, shard, &f, err);
    if (r < 0)
        return r;
    r = ckpt_torch_archive_open_file(f, ret, err);
    ckpt_file_unref(f);
    return r < 0 ? ckpt_fail_in(err, -r, "%s", ckpt_shard_name(&torch->shards, shard)) : 0;
}

/* --- what is not there --- */

int ckpt_torch_folder_lost(struct ckpt_tree *t, uint32_t entry, struct ckpt_err *err)
{
    const struct torch *torch = t->priv;
    int r = ckpt_shards_check(&torch->shards, &torch->shards.entries[entry], err);
    return r < 0 ? r : ckpt_fail(err, ESTALE, "it could not be read when the folder was opened");
}

static int add_lost(void *arg, const struct ckpt_buf *tensor, const char *shard)
{
    struct folder *f = arg;
    struct torch *torch = f->torch;
    const char *name = tensor->data ? (char *)tensor->data : "";
    const struct ckpt_shard_entry *e = ckpt_shards_find(&torch->shards, name, tensor->len);
    uint32_t node;
    if (!e)
        return ckpt_fail(f->err, ESTALE, "the index is being changed");
    if (e->place && !torch->shards.all[e->shard].error)
        return 0;
    size_t record = ckpt_torch_add_lost(&torch->records, (uint32_t)(e - torch->shards.entries));
    if (ckpt_buf_error(&torch->records))
        return ckpt_no_memory(f->err);
    int r = ckpt_tree_add_named(f->tree, name, tensor->len, f->flat, f->round, CKPT_NODE_ARRAY, &node, f->err);
    if (r == 1)
        f->tree->nodes[node].ref = (uint32_t)record;
    return r < 0 ? r : 0;
}

/* --- the tree --- */

static int folder_verify(struct ckpt_tree *t, void (*progress)(void *arg, uint64_t bytes), void *arg,
                         struct ckpt_err *err)
{
    const struct torch *torch = t->priv;
    struct torch_archive a;
    int r = 0;
    for (uint32_t i = 0; i < torch->shards.count && r == 0; i++) {
        if (torch->shards.all[i].error) /* its leaves say so */
            continue;
        r = ckpt_torch_folder_archive(t, i, &a, err);
        if (r < 0)
            return r;
        r = ckpt_torch_archive_verify(&a, progress, arg, err);
        ckpt_torch_archive_close(&a);
        if (r < 0)
            r = ckpt_fail_in(err, -r, "%s", ckpt_shard_name(&torch->shards, i));
    }
    return r;
}

/* The shard of a tensor, where it is not open anyway. */
static void folder_pin(struct ckpt_tree *t, uint32_t node)
{
    const struct torch *torch = t->priv;
    struct torch_tensor tensor;
    struct ckpt_extent e;
    struct ckpt_file *f;
    const struct ckpt_node *n = &t->nodes[node];
    if (n->kind == CKPT_NODE_BLOB && ckpt_torch_blob(t, node, &e, NULL) == 0)
        ckpt_extent_clear(&e);
    if (n->kind != CKPT_NODE_ARRAY || ckpt_torch_record_kind(&torch->records, n->ref) != TORCH_R_TENSOR)
        return;
    ckpt_torch_get_tensor(&torch->records, n->ref, &tensor);
    bool in_shard = !tensor.fault && ckpt_torch_in_shard(&tensor);
    if (in_shard && ckpt_shard_reopen(&torch->shards, (uint32_t)(tensor.archive - TORCH_SHARD), &f, NULL) == 0)
        ckpt_file_unref(f);
}

static const struct ckpt_tree_ops folder_ops = {
    .name = "pytorch",
    .framework = "pt",
    .layout = ckpt_torch_layout,
    .chunk = ckpt_torch_chunk,
    .stored = ckpt_torch_stored,
    .blob = ckpt_torch_blob,
    .rights = ckpt_rights_of_folder,
    .pin = folder_pin,
    .describe = ckpt_torch_describe,
    .verify = folder_verify,
    .memory = ckpt_torch_memory,
    .close = ckpt_torch_close,
};

static int load(struct folder *f)
{
    struct ckpt_buf metadata = {.max = SAFETENSORS_MAX_METADATA};
    int r = ckpt_shards_read(&f->torch->shards, f->index, &metadata, f->err);
    if (r == 0 && metadata.len && !ckpt_buf_error(&metadata)) {
        f->tree->metadata = ckpt_buf_steal(&metadata, NULL);
        r = f->tree->metadata ? 0 : ckpt_no_memory(f->err);
    }
    ckpt_buf_clear(&metadata);
    if (r == 0)
        r = load_shards(f);
    for (; f->round < CKPT_NAME_ROUNDS && r == 0; f->round++)
        r = ckpt_safetensors_index_each(f->index, add_lost, f, NULL, f->err);
    if (r == 0)
        r = ckpt_add_beside(
            &(struct ckpt_beside){f->tree, ckpt_shards_own, &f->torch->shards, TORCH_FILE_MARK, f->below}, f->err);
    return r < 0 ? r : ckpt_tree_finish(f->tree, f->err);
}

int ckpt_torch_folder_open(const struct ckpt_opening *o, struct ckpt_tree **ret, struct ckpt_err *err)
{
    struct folder f = {.flat = o->flat, .below = o->below, .err = err};
    char index_name[256];
    int r = ckpt_torch_tree_new(&folder_ops, o->pins, &f.tree, err);
    if (r < 0)
        return r;
    f.torch = f.tree->priv;
    f.torch->shards.tree = f.tree;
    if (!f.flat)
        ckpt_tree_note_names(f.tree);
    r = ckpt_shards_choose(ckpt_pins_dir(o->pins), "pytorch_model", TORCH_INDEX, index_name);
    strcpy(f.torch->shards.index_name, index_name);
    r = r < 0 ? ckpt_fail(err, -r, "%s", strerror(-r))
              : ckpt_shards_open_index(&f.torch->shards, o->pins, &f.index, err);
    if (r == 0) {
        r = load(&f);
        r = r < 0 ? ckpt_fail_in(err, -r, "%s", index_name) : 0;
        ckpt_file_unref(f.index);
    }
    return ckpt_tree_give(f.tree, r, ret);
}
