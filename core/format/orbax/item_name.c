/* SPDX-License-Identifier: Apache-2.0 */
/* How an item's files and parameters are named, and where they are. */
#include "core/format/orbax/item.h"

#include "core/base/util.h"

#include <stdio.h>

char *ckpt_orbax_path(const struct orbax_item *item, const char *name)
{
    char *path = malloc(strlen(item->dir) + strlen(name) + 2);
    if (path)
        sprintf(path, "%s%s%s", item->dir, *item->dir && *name ? "/" : "", name);
    return path;
}

struct orbax_item *ckpt_orbax_item_of(const struct ckpt_tree *t, uint32_t node)
{
    struct orbax *o = t->priv;
    while (node && !t->nodes[node].mark)
        node = t->nodes[node].parent;
    return &o->items[t->nodes[node].mark - 1];
}

void ckpt_orbax_param(const struct ckpt_tree *t, uint32_t node, struct ckpt_buf *buf)
{
    uint32_t path[CKPT_MAX_DEPTH];
    unsigned n = 0;
    size_t len;
    const char *text = ckpt_flax_state_elsewhere(t, node, &len);
    if (text) {
        ckpt_buf_add(buf, text, len);
        return;
    }
    for (uint32_t at = node; at && !t->nodes[at].mark && n < CKPT_MAX_DEPTH; at = t->nodes[at].parent)
        path[n++] = at;
    for (unsigned i = n; i-- > 0;) {
        text = ckpt_tree_text(t, t->nodes[path[i]].key, &len);
        ckpt_buf_add(buf, text, len);
        if (i)
            ckpt_buf_addc(buf, '.');
    }
}

int ckpt_orbax_open_in_item(struct orbax *o, struct orbax_item *item, const char *name, struct ckpt_file **ret)
{
    CKPT_AUTOFREE char *path = ckpt_orbax_path(item, name);
    return path ? ckpt_pins_open(o->tree->pins, path, ret) : -ENOMEM;
}

bool ckpt_orbax_is_apart(const struct ckpt_tree *t, uint32_t node)
{
    const struct ckpt_node *n = &t->nodes[node];
    bool number = n->kind == CKPT_NODE_VALUE && !n->text;
    return (n->kind == CKPT_NODE_ARRAY || number) && !ckpt_flax_state_has(t, node);
}
