/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A pickle by itself, as pickle.dump writes it: of Haiku's parameters, Brax's networks, Grok's arrays. Long strings of
 * bytes, which are the elements of arrays, stay in the file. Several pickles in one file are a list of them.
 */
#include "core/base/util.h"
#include "core/format/pytorch/content.h"
#include "core/format/pytorch/extract.h"
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

/* The pickle at *at, which is moved behind it. */
static int load_graph(struct torch *torch, uint64_t *at, struct torch_graph *ret, struct ckpt_err *err)
{
    struct torch_fars fars = {0};
    uint8_t *pickle;
    size_t len;
    int r = ckpt_torch_extract(torch->file, *at, torch->file->st.size, &pickle, &len, at, &fars, err);
    if (r == 0)
        r = ckpt_torch_pickle_load(pickle, len, TORCH_SAVE, &torch->records, 0, ret, err);
    if (r < 0) {
        free(fars.all);
        return r;
    }
    ret->fars = fars.all;
    ret->far_count = fars.count;
    return 0;
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
