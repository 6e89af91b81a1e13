/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Who may read what is in a checkpoint of Orbax. An item's leaves lie in files that it has for all of them, so they
 * have the rights of all of these; where arrays are directories of their own, those of their directory too. What else
 * is in a step has the rights of its own file.
 */
#include "core/format/orbax/item.h"

#include "core/base/util.h"
#include "core/tree/rights.h"

#define ITEM_LEVELS  4 /* ocdbt.process_0/d/FILE; PARAM/c/0/… are walked as the array's own */
#define ARRAY_LEVELS 33

/* The directories that lead to a path, from the checkpoint's own on, and what is there. */
static int join_path(struct ckpt_tree *t, char *path, struct ckpt_rights *ret)
{
    struct ckpt_backend *dir = ckpt_pins_dir(t->pins);
    int r = ckpt_rights_below(dir, "", 0, ret);
    for (char *slash = strchr(path, '/'); r == 0 && slash; slash = strchr(slash + 1, '/')) {
        *slash = 0;
        r = ckpt_rights_below(dir, path, 0, ret);
        *slash = '/';
    }
    return r < 0 || !*path ? r : ckpt_rights_below(dir, path, 0, ret);
}

static struct ckpt_rights everybody(struct ckpt_tree *t)
{
    struct ckpt_stat st;
    if (ckpt_backend_stat(ckpt_pins_dir(t->pins), "", &st) < 0)
        st = (struct ckpt_stat){.uid = geteuid(), .gid = getegid()};
    return (struct ckpt_rights){.mode = 0444, .uid = st.uid, .gid = st.gid};
}

static int item_rights(struct ckpt_tree *t, struct orbax_item *item, bool whole, struct ckpt_rights *ret)
{
    CKPT_AUTOFREE char *path = strdup(item->dir);
    bool *known = whole ? &item->all_known : &item->rights_known;
    struct ckpt_rights *kept = whole ? &item->all : &item->rights;
    int r = path ? 0 : -ENOMEM;
    CKPT_GUARD(&t->rights_lock);
    if (r == 0 && !*known) {
        *kept = everybody(t);
        r = join_path(t, path, kept);
        if (r == 0)
            r = ckpt_rights_below(ckpt_pins_dir(t->pins), path,
                                  whole      ? ITEM_LEVELS + ARRAY_LEVELS
                                  : item->db ? ITEM_LEVELS
                                             : 1,
                                  kept);
        *known = r == 0;
    }
    if (r == 0)
        *ret = *kept;
    return r;
}

/* A plain array is a directory of its own. */
static int array_rights(struct ckpt_tree *t, struct orbax_item *item, uint32_t node, struct ckpt_rights *ret)
{
    struct ckpt_buf path = CKPT_BUF_INIT;
    ckpt_buf_adds(&path, item->dir);
    if (*item->dir)
        ckpt_buf_addc(&path, '/');
    ckpt_orbax_param(t, node, &path);
    ckpt_buf_addc(&path, 0);
    int r = ckpt_buf_error(&path);
    if (r == 0)
        r = ckpt_rights_below(ckpt_pins_dir(t->pins), (char *)path.data, ARRAY_LEVELS, ret);
    ckpt_buf_clear(&path);
    return r;
}

/* A file or directory beside the items, where it lies. */
static int other_rights(struct ckpt_tree *t, uint32_t node, struct ckpt_rights *ret)
{
    struct ckpt_buf path = CKPT_BUF_INIT;
    uint32_t chain[CKPT_MAX_DEPTH];
    unsigned n = 0;
    size_t len;
    bool blob = t->nodes[node].kind == CKPT_NODE_BLOB;
    for (uint32_t at = node; at && !blob && n < CKPT_MAX_DEPTH; at = t->nodes[at].parent)
        chain[n++] = at;
    if (blob)
        ckpt_buf_adds(&path, ckpt_tree_text(t, t->nodes[node].ref, &len));
    while (n--) {
        ckpt_buf_adds(&path, ckpt_tree_text(t, t->nodes[chain[n]].key, &len));
        if (n)
            ckpt_buf_addc(&path, '/');
    }
    ckpt_buf_addc(&path, 0);
    int r = ckpt_buf_error(&path);
    *ret = everybody(t);
    if (r == 0)
        r = join_path(t, (char *)path.data, ret);
    ckpt_buf_clear(&path);
    return r;
}

static bool is_apart(const struct ckpt_tree *t, const struct orbax_item *item, uint32_t node)
{
    const struct ckpt_node *n = &t->nodes[node];
    return n->kind != CKPT_NODE_DIR && !item->db && !ckpt_flax_state_has(t, node) &&
           !(n->kind == CKPT_NODE_VALUE && n->text);
}

int ckpt_orbax_rights(struct ckpt_tree *t, uint32_t node, bool whole, struct ckpt_rights *ret, struct ckpt_err *err)
{
    struct orbax *o = t->priv;
    bool dir = t->nodes[node].kind == CKPT_NODE_DIR,
         file = t->nodes[node].kind == CKPT_NODE_BLOB && !ckpt_flax_state_has(t, node);
    uint32_t at = node;
    while (at && !t->nodes[at].mark)
        at = t->nodes[at].parent;
    struct orbax_item *item = t->nodes[at].mark ? &o->items[t->nodes[at].mark - 1] : NULL;
    int r;
    if (whole && dir && !at) /* items may be anywhere below it, and files beside them */
        return ckpt_rights_of_folder(t, node, whole, ret, err);
    if (!item || file)
        r = other_rights(t, node, ret);
    else {
        r = item_rights(t, item, whole && dir, ret);
        if (r == 0 && is_apart(t, item, node))
            r = array_rights(t, item, node, ret);
    }
    return r < 0 ? ckpt_fail(err, -r, "who may read its files cannot be told: %s", strerror(-r)) : 0;
}
