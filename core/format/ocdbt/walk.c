/* SPDX-License-Identifier: Apache-2.0 */
/* Walks over all keys, or those of a prefix: to list them, and to check all that the tree says. */
#include "core/format/ocdbt/private.h"

#include "core/base/util.h"

#define DEPTH_MAX 256 /* heights are 0..255, each below its parent's */

/* True if one is a prefix of the other. */
static bool agrees(const uint8_t *a, size_t a_len, const uint8_t *b, size_t b_len)
{
    return memcmp(a, b, CKPT_MIN(a_len, b_len)) == 0;
}

/* Places of nodes that a walk has been at. A tree has each once; sharing them could make it endless. */
struct seen {
    uint64_t *slots; /* 0: free */
    size_t cap, count;
};

static bool seen_put(struct seen *seen, uint64_t hash)
{
    size_t i = hash & (seen->cap - 1);
    while (seen->slots[i] && seen->slots[i] != hash)
        i = (i + 1) & (seen->cap - 1);
    if (seen->slots[i])
        return false;
    seen->slots[i] = hash;
    seen->count++;
    return true;
}

static int seen_add(struct seen *seen, const struct ckpt_ocdbt_ref *ref, struct ckpt_err *err)
{
    if (seen->count * 2 >= seen->cap) {
        struct seen more = {.cap = seen->cap ? seen->cap * 2 : 64};
        more.slots = calloc(more.cap, sizeof *more.slots);
        if (!more.slots)
            return ckpt_fail(err, ENOMEM, "out of memory");
        for (size_t i = 0; i < seen->cap; i++)
            if (seen->slots[i])
                seen_put(&more, seen->slots[i]);
        free(seen->slots);
        *seen = more;
    }
    uint64_t hash = ckpt_ocdbt_ref_hash(ref);
    if (seen_put(seen, hash ? hash : 1))
        return 0;
    return ckpt_fail(err, EUCLEAN, "%.200s: B+tree node at offset %llu: is in the tree twice", ref->path,
                     (unsigned long long)ref->off);
}

struct walk {
    struct ckpt_ocdbt *db;
    const uint8_t *prefix;
    size_t prefix_len;
    ckpt_ocdbt_node_fn *get;
    int (*leaf)(struct walk *w, const struct ckpt_ocdbt_node *leaf, uint32_t from, struct ckpt_err *err);
    void (*entered)(struct walk *w, const struct ckpt_ocdbt_node *node); /* may be NULL */

    struct {
        struct ckpt_ocdbt_node *node;
        uint32_t next;
    } stack[DEPTH_MAX];
    unsigned depth;
    struct seen seen;
    uint8_t *last; /* the last key seen, whole; CKPT_OCDBT_KEY_MAX bytes */
    size_t last_len;
    bool begun;

    ckpt_ocdbt_fn *visit;
    void (*progress)(void *arg, uint64_t bytes);
    void *arg;
};

/* The part of the wanted prefix that is to be found in the node's own keys. */
static const uint8_t *walk_rest(const struct walk *w, const struct ckpt_ocdbt_node *node, size_t *ret_len)
{
    size_t skip = CKPT_MIN(w->prefix_len, (size_t)node->ref.prefix_len);
    *ret_len = w->prefix_len - skip;
    return w->prefix + skip;
}

static int walk_push(struct walk *w, struct ckpt_ocdbt_node *node, struct ckpt_err *err)
{
    size_t rest_len;
    const uint8_t *rest = walk_rest(w, node, &rest_len);
    w->stack[w->depth].node = node;
    uint32_t i = ckpt_ocdbt_lower_bound(node, rest, rest_len);
    /* Keys with the prefix may also be in the child before the first bound that is not below it. */
    w->stack[w->depth].next = node->ref.height && i ? i - 1 : i;
    w->depth++;
    int r = seen_add(&w->seen, &node->ref, err);
    if (r == 0 && w->entered)
        w->entered(w, node);
    return r;
}

/* One step: the next child of the topmost node, or all of a leaf. */
static int walk_step(struct walk *w, struct ckpt_err *err)
{
    struct ckpt_ocdbt_node *node = w->stack[w->depth - 1].node;
    uint32_t i = w->stack[w->depth - 1].next++;
    size_t rest_len, key_len;
    const uint8_t *rest = walk_rest(w, node, &rest_len);
    if (!node->ref.height || i >= node->count) {
        int r = node->ref.height ? 0 : w->leaf(w, node, i, err);
        w->depth--;
        ckpt_ocdbt_node_unref(node);
        return r;
    }
    const uint8_t *key = ckpt_ocdbt_key(node, i, &key_len);
    if (!ckpt_ocdbt_begins_with(key, key_len, rest, rest_len) && ckpt_ocdbt_compare(key, key_len, rest, rest_len) > 0) {
        w->stack[w->depth - 1].next = node->count; /* beyond the prefix, and so are the rest */
        return 0;
    }
    if (!agrees(key, node->common[i], rest, rest_len))
        return 0;
    struct ckpt_ocdbt_node *child;
    int r = ckpt_ocdbt_child_get(w->db, node, i, w->get, &child, err);
    return r < 0 ? r : walk_push(w, child, err);
}

static int walk_run(struct walk *w, struct ckpt_err *err)
{
    if (w->db->manifest.empty)
        return 0;
    w->last = malloc(CKPT_OCDBT_KEY_MAX);
    if (!w->last)
        return ckpt_fail(err, ENOMEM, "out of memory");
    struct ckpt_ocdbt_node *root;
    int r = w->get(w->db, &w->db->manifest.root, &root, err);
    if (r == 0)
        r = walk_push(w, root, err);
    while (r == 0 && w->depth)
        r = walk_step(w, err);
    while (w->depth)
        ckpt_ocdbt_node_unref(w->stack[--w->depth].node);
    free(w->seen.slots);
    free(w->last);
    return r;
}

/*
 * Within a leaf keys rise; that they do from leaf to leaf is seen at each leaf's first one. The keys left in w->last
 * are whole keys.
 */
static int walk_order(struct walk *w, const struct ckpt_ocdbt_node *leaf, struct ckpt_err *err)
{
    size_t len;
    const uint8_t *key = ckpt_ocdbt_key(leaf, 0, &len);
    const struct ckpt_ocdbt_ref *ref = &leaf->ref;
    if (w->begun && ckpt_ocdbt_compare_joined(ref->prefix, ref->prefix_len, key, len, w->last, w->last_len) <= 0)
        return ckpt_fail(err, EUCLEAN, "%.200s: B+tree node at offset %llu: its keys are not above those before",
                         ref->path, (unsigned long long)ref->off);
    key = ckpt_ocdbt_key(leaf, leaf->count - 1, &len);
    w->begun = true;
    memcpy(w->last, ref->prefix, ref->prefix_len);
    memcpy(w->last + ref->prefix_len, key, len);
    w->last_len = ref->prefix_len + len;
    return 0;
}

static int each_leaf(struct walk *w, const struct ckpt_ocdbt_node *leaf, uint32_t from, struct ckpt_err *err)
{
    int r = walk_order(w, leaf, err);
    if (r < 0)
        return r;
    size_t rest_len, len, skip = leaf->ref.prefix_len;
    const uint8_t *rest = walk_rest(w, leaf, &rest_len);
    CKPT_AUTOFREE uint8_t *whole = malloc(CKPT_OCDBT_KEY_MAX);
    if (!whole)
        return ckpt_fail(err, ENOMEM, "out of memory");
    memcpy(whole, leaf->ref.prefix, skip);
    for (uint32_t i = from; r == 0 && i < leaf->count; i++) {
        const uint8_t *key = ckpt_ocdbt_key(leaf, i, &len);
        if (!ckpt_ocdbt_begins_with(key, len, rest, rest_len))
            break;
        memcpy(whole + skip, key, len);
        r = w->visit(w->arg, whole, skip + len, leaf->len[i]);
    }
    return r;
}

int ckpt_ocdbt_each(struct ckpt_ocdbt *db, const void *prefix, size_t prefix_len, ckpt_ocdbt_fn *visit, void *arg,
                    struct ckpt_err *err)
{
    struct walk w = {.db = db,
                     .prefix = prefix,
                     .prefix_len = prefix_len,
                     .get = ckpt_ocdbt_node_get,
                     .leaf = each_leaf,
                     .visit = visit,
                     .arg = arg};
    return walk_run(&w, err);
}

/* Every value that is in a file: is it inside? Its bytes have no checksum of their own here. */
static int verify_leaf(struct walk *w, const struct ckpt_ocdbt_node *leaf, uint32_t from, struct ckpt_err *err)
{
    int r = walk_order(w, leaf, err);
    if (r < 0 || !leaf->files.count)
        return r;
    CKPT_AUTOFREE uint64_t *size = calloc(leaf->files.count, sizeof *size); /* and one, so that 0 is not known yet */
    if (!size)
        return ckpt_fail(err, ENOMEM, "out of memory");
    for (uint32_t i = 0; i < leaf->count; i++) {
        uint32_t f = leaf->file[i];
        if (f == CKPT_OCDBT_INLINE)
            continue;
        if (!size[f]) {
            struct ckpt_extent e;
            r = ckpt_ocdbt_value_get(w->db, leaf, i, &e, err);
            if (r < 0)
                return r;
            size[f] = e.file->st.size + 1;
            ckpt_extent_clear(&e);
        }
        if (leaf->pos[i] + leaf->len[i] > size[f] - 1)
            return ckpt_fail(err, EBADMSG, "%.200s: the data file has %llu bytes and is truncated",
                             ckpt_ocdbt_path(&leaf->files, f), (unsigned long long)size[f] - 1);
    }
    return 0;
}

static void verify_entered(struct walk *w, const struct ckpt_ocdbt_node *node)
{
    if (w->progress)
        w->progress(w->arg, node->ref.len);
}

int ckpt_ocdbt_verify(struct ckpt_ocdbt *db, void (*progress)(void *arg, uint64_t bytes), void *arg,
                      struct ckpt_err *err)
{
    /* Past the cache: what is in it was right when it was read. */
    struct walk w = {.db = db,
                     .prefix = (const uint8_t *)"",
                     .get = ckpt_ocdbt_node_read,
                     .leaf = verify_leaf,
                     .entered = verify_entered,
                     .progress = progress,
                     .arg = arg};
    return walk_run(&w, err);
}
