/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A pickle by itself, as pickle.dump writes it: of Haiku's parameters, Brax's networks, Grok's arrays. Long strings of
 * bytes, which are the elements of arrays, stay in the file. Several pickles in one file are a list of them.
 */
#include "core/base/util.h"
#include "core/format/pytorch/content.h"
#include "core/format/pytorch/extract.h"
#include "core/format/pytorch/magic.h"
#include "core/format/pytorch/nodes.h"
#include "core/format/pytorch/pickle.h"
#include "core/format/pytorch/torch.h"

#include <stdio.h>

#define MAX_PICKLES 65536

static const char *const suffixes[] = {".pkl", ".pickle", NULL};

static unsigned begins(const struct ckpt_content *c)
{
    switch (ckpt_torch_content(c->file)) {
    case TORCH_CONTENT_PICKLE:
        return 16;
    case TORCH_CONTENT_TEXT:
        return 4;
    default:
        return 0;
    }
}

static const struct ckpt_tree_ops plain_ops = {
    .name = "pickle",
    .layout = ckpt_torch_layout,
    .chunk = ckpt_torch_chunk,
    .stored = ckpt_torch_stored,
    .blob = ckpt_torch_blob,
    .describe = ckpt_torch_describe,
    .memory = ckpt_torch_memory,
    .close = ckpt_torch_close,
};

/* What torch.save wrote of one storage, as pickle.dump asks it to. What is anything else stays bytes. */
static int look_for_storage(struct torch *torch, struct torch_far *far, struct ckpt_err *err)
{
    struct ckpt_buf records = CKPT_BUF_INIT;
    struct torch_storage storage;
    struct torch_stream *s;
    struct torch_graph g;
    struct ckpt_extent data;
    int r = ckpt_torch_stream_open(torch->file, far->off, far->off + far->len, &s, NULL);
    if (r < 0)
        return r == -ENOMEM ? ckpt_no_memory(err) : 0;
    r = ckpt_torch_stream_load(s, &records, 0, &g, NULL);
    if (r == 0 && ckpt_torch_kind(&g, g.top) == TORCH_STORAGE) {
        ckpt_torch_storage_of(&g, g.top, &storage);
        far->is_storage = !storage.fault && storage.global != TORCH_NO_GLOBAL && storage.len == storage.size &&
                          ckpt_torch_stream_storage(s, storage.key, &data);
    }
    if (r == 0)
        ckpt_torch_graph_clear(&g);
    if (far->is_storage) {
        far->global = storage.global;
        far->data = data.off;
        far->size = data.len;
        ckpt_extent_clear(&data);
    }
    ckpt_torch_stream_unref(s);
    ckpt_buf_clear(&records);
    return r == -ENOMEM ? ckpt_no_memory(err) : 0;
}

static int look_for_storages(struct torch *torch, struct torch_fars *fars, struct ckpt_err *err)
{
    uint8_t head[TORCH_MAGIC_BYTES];
    int r = 0;
    for (uint32_t i = 0; i < fars->count && r == 0; i++) {
        ssize_t n = ckpt_file_read(torch->file, head, sizeof head, fars->all[i].off);
        if (n > 0 && ckpt_torch_magic(head, (size_t)n))
            r = look_for_storage(torch, &fars->all[i], err);
    }
    return r;
}

/* The pickle at *at, which is moved behind it. */
static int load_graph(struct torch *torch, uint64_t *at, struct torch_graph *ret, struct ckpt_err *err)
{
    struct torch_fars fars = {0};
    uint8_t *pickle;
    size_t len;
    int r = ckpt_torch_extract(torch->file, *at, torch->file->st.size, &pickle, &len, at, &fars, err);
    if (r == 0) {
        r = look_for_storages(torch, &fars, err);
        if (r == 0)
            return ckpt_torch_pickle_load_plain(pickle, len, fars.all, fars.count, &torch->records, ret, err);
        free(pickle);
    }
    free(fars.all);
    return r;
}

/* Is there another pickle? Whatever else follows the first is nobody's. */
static bool goes_on(struct torch *torch, uint64_t at)
{
    uint8_t head[2];
    ssize_t n = ckpt_file_read(torch->file, head, sizeof head, at);
    return n == sizeof head && head[0] == 0x80 && head[1] <= 5;
}

static int load_more(struct ckpt_tree *t, const struct torch_nodes *nodes, struct torch_graph *first, uint64_t at,
                     struct ckpt_err *err)
{
    struct torch *torch = t->priv;
    char key[16];
    t->nodes[0].container = CKPT_LIST;
    int r = ckpt_torch_nodes_add_item(nodes, first, "0", err);
    for (uint32_t i = 1; r == 0 && goes_on(torch, at); i++) {
        struct torch_graph g;
        if (i == MAX_PICKLES)
            return ckpt_fail(err, EOPNOTSUPP, "more than %u pickles in one file", MAX_PICKLES);
        r = load_graph(torch, &at, &g, err);
        if (r < 0)
            return r;
        snprintf(key, sizeof key, "%u", i);
        r = ckpt_torch_nodes_add_item(nodes, &g, key, err);
        ckpt_torch_graph_clear(&g);
    }
    return r;
}

static int load(struct ckpt_tree *t, const struct ckpt_opening *o, struct ckpt_err *err)
{
    struct torch *torch = t->priv;
    struct torch_nodes nodes = {.tree = t, .records = &torch->records, .flat = o->flat};
    struct torch_graph g;
    uint64_t at = 0;
    int r = ckpt_pins_open(o->pins, o->name, &torch->file);
    if (r < 0)
        return ckpt_fail(err, -r, "%s", strerror(-r));
    r = load_graph(torch, &at, &g, err);
    if (r < 0)
        return r;
    r = goes_on(torch, at) ? load_more(t, &nodes, &g, at, err) : ckpt_torch_nodes_add(&nodes, &g, err);
    ckpt_torch_graph_clear(&g);
    return r < 0 ? r : ckpt_tree_finish(t, err);
}

static int plain_open(const struct ckpt_opening *o, struct ckpt_tree **ret, struct ckpt_err *err)
{
    struct ckpt_tree *t;
    int r = ckpt_torch_tree_new(&plain_ops, o->pins, &t, err);
    if (r < 0)
        return r;
    r = load(t, o, err);
    return ckpt_tree_give(t, r, ret);
}

const struct ckpt_format ckpt_pickle_format = {
    .name = "pickle",
    .suffixes = suffixes,
    .begins = begins,
    .open = plain_open,
};
