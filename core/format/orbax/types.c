/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What `value_metadata_tree` of _METADATA says: which containers are tuples and named tuples. It is JSON within a
 * string, a tree of the same shape as the item's: objects are dicts, arrays are lists, and objects with a `category`
 * are all the rest. It is read in one pass, beside the tree that there is already.
 */
#include "core/format/orbax/item.h"

#include "core/base/util.h"
#include "core/object/record.h"

#include <stdio.h>

struct types {
    struct ckpt_tree *tree;
    struct ckpt_scan scan;
    struct ckpt_buf key;
    unsigned depth;
};

static int read_node(struct types *y, uint32_t node);

static void set_container(struct types *y, uint32_t node, enum ckpt_container container)
{
    if (node != CKPT_NO_NODE)
        y->tree->nodes[node].container = (uint8_t)container;
}

static uint32_t child_of(struct types *y, uint32_t node, const char *key, size_t len)
{
    return node == CKPT_NO_NODE ? node : ckpt_tree_find_dir(y->tree, node, key, len);
}

/* Behind the bracket: nodes with the keys 0, 1, ... */
static int read_sequence(struct types *y, uint32_t node)
{
    char key[16];
    for (unsigned i = 0; !ckpt_scan_take(&y->scan, ']'); i++) {
        if (i && !ckpt_scan_take(&y->scan, ','))
            return ckpt_scan_fail(&y->scan, "a comma is missing");
        int len = snprintf(key, sizeof key, "%u", i);
        int r = read_node(y, child_of(y, node, key, (size_t)len));
        if (r < 0)
            return r;
    }
    return 0;
}

/* {"key": NAME, "value": NODE} */
static int read_field(struct types *y, uint32_t node)
{
    uint32_t child = CKPT_NO_NODE;
    bool first = true;
    if (!ckpt_scan_take(&y->scan, '{'))
        return ckpt_scan_fail(&y->scan, "a field of a named tuple is missing");
    for (;;) {
        int r = ckpt_scan_member(&y->scan, &first, &y->key);
        if (r <= 0)
            return r;
        const char *name = (char *)y->key.data;
        if (!strcmp(name, "key")) {
            r = ckpt_scan_string(&y->scan, &y->key);
            child = r < 0 ? child : child_of(y, node, (char *)y->key.data, y->key.len);
        } else
            r = strcmp(name, "value") ? ckpt_scan_value(&y->scan, NULL) : read_node(y, child);
        if (r < 0)
            return r;
    }
}

static int read_fields(struct types *y, uint32_t node)
{
    for (bool first = true; !ckpt_scan_take(&y->scan, ']'); first = false) {
        if (!first && !ckpt_scan_take(&y->scan, ','))
            return ckpt_scan_fail(&y->scan, "a comma is missing");
        int r = read_field(y, node);
        if (r < 0)
            return r;
    }
    return 0;
}

/* What the members of an object have said so far. */
struct object {
    bool special, named, tuple;
};

static int read_entries(struct types *y, uint32_t node, const struct object *o)
{
    bool known = o->named || o->tuple;
    if (!known || !ckpt_scan_take(&y->scan, '['))
        return ckpt_scan_value(&y->scan, NULL);
    set_container(y, node, o->named ? CKPT_NAMEDTUPLE : CKPT_TUPLE);
    return o->named ? read_fields(y, node) : read_sequence(y, node);
}

/* A member of a node that has a category: it comes before the others, and `clazz` before `entries`. */
static int read_special(struct types *y, uint32_t node, struct object *o)
{
    const char *name = (char *)y->key.data;
    if (!strcmp(name, "entries"))
        return read_entries(y, node, o);
    if (strcmp(name, "clazz"))
        return ckpt_scan_value(&y->scan, NULL);
    int r = ckpt_scan_string(&y->scan, &y->key);
    if (r == 0)
        o->tuple = !o->named && !strcmp((char *)y->key.data, "tuple");
    return r;
}

static bool is_text_next(struct ckpt_scan *s)
{
    while (s->p < s->end && strchr(" \t\r\n", *s->p))
        s->p++;
    return s->p < s->end && *s->p == '"';
}

static int read_member(struct types *y, uint32_t node, struct object *o)
{
    if (o->special)
        return read_special(y, node, o);
    if (strcmp((char *)y->key.data, "category") || !is_text_next(&y->scan)) /* a dict may have such a key, too */
        return read_node(y, child_of(y, node, (char *)y->key.data, y->key.len));
    int r = ckpt_scan_string(&y->scan, &y->key);
    o->special = true;
    if (r == 0)
        o->named = !strcmp((char *)y->key.data, "namedtuple");
    return r;
}

static int read_object(struct types *y, uint32_t node)
{
    struct object o = {0};
    bool first = true;
    for (;;) {
        int r = ckpt_scan_member(&y->scan, &first, &y->key);
        if (r == 0 && !o.special)
            set_container(y, node, CKPT_DICT);
        if (r > 0)
            r = read_member(y, node, &o);
        else
            return r;
        if (r < 0)
            return r;
    }
}

/* CKPT_NO_NODE: it is a leaf, or not in the tree. */
static int read_node(struct types *y, uint32_t node)
{
    if (y->depth == 2 * CKPT_MAX_DEPTH)
        return ckpt_scan_fail(&y->scan, "it is nested too deeply");
    y->depth++;
    int r;
    if (ckpt_scan_take(&y->scan, '[')) {
        set_container(y, node, CKPT_LIST);
        r = read_sequence(y, node);
    } else if (ckpt_scan_take(&y->scan, '{'))
        r = read_object(y, node);
    else
        r = ckpt_scan_value(&y->scan, NULL);
    y->depth--;
    return r;
}

int ckpt_orbax_types_apply(struct ckpt_tree *t, uint32_t root, const char *text, size_t len, struct ckpt_err *err)
{
    struct types y = {.tree = t, .scan = {text, text + len, err}};
    int r = read_node(&y, root);
    ckpt_buf_clear(&y.key);
    return r;
}
