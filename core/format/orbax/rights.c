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

/* How far below an item's directory its own files are; whole: and those of its arrays. */
static unsigned item_levels(const struct orbax_item *item, bool whole)
{
    if (whole || item->sub_count)
        return ITEM_LEVELS + ARRAY_LEVELS;
    return item->db ? ITEM_LEVELS : 1;
}

static int item_rights(struct ckpt_tree *t, struct orbax_item *item, bool whole, struct ckpt_rights *ret)
{
    CKPT_AUTOFREE char *path = strdup(item->dir);
    bool *known = whole ? &item->all_known : &item->rights_known;
    struct ckpt_rights *kept = whole ? &item->all : &item->rights;
    if (!path)
        return -ENOMEM;
    CKPT_GUARD(&t->rights_lock);
    if (!*known) {
        *kept = everybody(t);
        int r = join_path(t, path, kept);
        if (r == 0)
            r = ckpt_rights_below(ckpt_pins_dir(t->pins), path, item_levels(item, whole), kept);
        if (r < 0)
            return r;
        *known = true;
    }
    *ret = *kept;
    return 0;
}

/* A plain array is a directory of its own. */
static int array_rights(struct ckpt_tree *t, struct orbax_item *item, uint32_t node, struct ckpt_rights *ret)
{
    CKPT_AUTOBUF struct ckpt_buf path = CKPT_BUF_INIT;
    ckpt_buf_adds(&path, item->dir);
    if (*item->dir)
        ckpt_buf_addc(&path, '/');
    ckpt_orbax_param(t, node, &path);
    ckpt_buf_addc(&path, 0);
    int r = ckpt_buf_error(&path);
    return r < 0 ? r : ckpt_rights_below(ckpt_pins_dir(t->pins), (char *)path.data, ARRAY_LEVELS, ret);
}

/* The keys that lead to a directory, as a path. */
static void add_dir_path(struct ckpt_tree *t, uint32_t node, struct ckpt_buf *path)
{
    uint32_t chain[CKPT_MAX_DEPTH];
    unsigned n = 0;
    size_t len;
    for (uint32_t at = node; at && n < CKPT_MAX_DEPTH; at = t->nodes[at].parent)
        chain[n++] = at;
    while (n--) {
        ckpt_buf_adds(path, ckpt_tree_text(t, t->nodes[chain[n]].key, &len));
        if (n)
            ckpt_buf_addc(path, '/');
    }
}

/* A file or directory beside the items, where it lies. */
static int other_rights(struct ckpt_tree *t, uint32_t node, struct ckpt_rights *ret)
{
    CKPT_AUTOBUF struct ckpt_buf path = CKPT_BUF_INIT;
    size_t len;
    if (t->nodes[node].ref) /* a blob, or a folder of others */
        ckpt_buf_adds(&path, ckpt_tree_text(t, t->nodes[node].ref, &len));
    else
        add_dir_path(t, node, &path);
    ckpt_buf_addc(&path, 0);
    int r = ckpt_buf_error(&path);
    *ret = everybody(t);
    return r < 0 ? r : join_path(t, (char *)path.data, ret);
}

/* A leaf whose array is a directory of its own. */
static bool is_apart(const struct ckpt_tree *t, const struct orbax_item *item, uint32_t node)
{
    const struct ckpt_node *n = &t->nodes[node];
    if (n->kind == CKPT_NODE_DIR || item->db || item->sub_count || ckpt_flax_state_has(t, node))
        return false;
    bool text = n->kind == CKPT_NODE_VALUE && n->text; /* it is in the tree itself */
    return !text;
}

/* The item that a node is in, or NULL. *ret_top: its top node; 0 also without one. */
static struct orbax_item *item_around(const struct ckpt_tree *t, uint32_t node, uint32_t *ret_top)
{
    struct orbax *o = t->priv;
    while (node && !t->nodes[node].mark)
        node = t->nodes[node].parent;
    *ret_top = node;
    return t->nodes[node].mark ? &o->items[t->nodes[node].mark - 1] : NULL;
}

/* A folder of others, within an item or beside it. */
static bool is_folder(const struct ckpt_tree *t, uint32_t node)
{
    return t->nodes[node].kind == CKPT_NODE_DIR && t->nodes[node].ref;
}

static int rights_of_node(struct ckpt_tree *t, struct orbax_item *item, uint32_t node, bool whole,
                          struct ckpt_rights *ret)
{
    bool file = t->nodes[node].kind == CKPT_NODE_BLOB && !ckpt_flax_state_has(t, node);
    bool dir = t->nodes[node].kind == CKPT_NODE_DIR;
    if (!item || file || is_folder(t, node))
        return other_rights(t, node, ret);
    int r = item_rights(t, item, whole && dir, ret);
    if (r == 0 && is_apart(t, item, node))
        r = array_rights(t, item, node, ret);
    return r;
}

int ckpt_orbax_rights(struct ckpt_tree *t, uint32_t node, bool whole, struct ckpt_rights *ret, struct ckpt_err *err)
{
    uint32_t top;
    struct orbax_item *item = item_around(t, node, &top);
    bool dir = t->nodes[node].kind == CKPT_NODE_DIR;
    if (whole && dir && (!top || is_folder(t, node))) /* items may be anywhere below it, and files beside them */
        return ckpt_rights_of_folder(t, node, whole, ret, err);
    int r = rights_of_node(t, item, node, whole, ret);
    return r < 0 ? ckpt_fail(err, -r, "who may read its files cannot be told: %s", strerror(-r)) : 0;
}
