/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Each shard is a state dict of its own, with a part of the leaves. The index names them by their keys joined with '/'.
 * The shards' nodes are added shard by shard, so that the number of a leaf says which one it lies in.
 */
#include "core/format/flax/folder.h"

#include "core/base/util.h"
#include "core/format/beside.h"
#include "core/format/flax/state.h"
#include "core/format/safetensors/header.h"
#include "core/format/safetensors/index.h"
#include "core/format/shards.h"
#include "core/tree/rights.h"

#define KEPT_OPEN 64 /* shards; others are opened for each read */
#define FOUND     1  /* the place of an entry: its leaf is there */
#define FILE_MARK 1  /* of blobs that are files of the folder: the ref is their path */
#define LOST_MARK 2  /* of arrays that their shard does not have: the ref is an entry */

struct folder {
    struct ckpt_shards shards;
    struct part {
        uint32_t first;           /* its first node */
        struct flax_state *state; /* NULL: it is not kept open */
    } * parts;                    /* of the shards */
};

/* --- leaves --- */

/* The state of the shard that a leaf is in; *ret_own: to be freed. */
static int state_of(struct ckpt_tree *t, uint32_t node, struct flax_state **ret, struct flax_state **ret_own,
                    struct ckpt_err *err)
{
    const struct folder *f = t->priv;
    struct ckpt_file *file;
    uint32_t lo = 0, hi = f->shards.count;
    *ret_own = NULL;
    if (t->nodes[node].mark == LOST_MARK)
        return ckpt_shards_check(&f->shards, &f->shards.entries[t->nodes[node].ref], err);
    while (hi - lo > 1) { /* the last one that begins no later */
        uint32_t mid = lo + (hi - lo) / 2;
        *(f->parts[mid].first <= node ? &lo : &hi) = mid;
    }
    *ret = f->parts[lo].state;
    if (*ret)
        return 0;
    int r = ckpt_shard_reopen(&f->shards, lo, &file, err);
    if (r < 0)
        return r;
    r = ckpt_flax_state_new(file, ret);
    ckpt_file_unref(file);
    *ret_own = *ret;
    return r < 0 ? ckpt_no_memory(err) : 0;
}

static int folder_layout(struct ckpt_tree *t, uint32_t node, struct ckpt_array **ret, struct ckpt_err *err)
{
    struct flax_state *s, *own;
    int r = state_of(t, node, &s, &own, err);
    if (r == 0)
        r = ckpt_flax_state_layout(s, t, node, ret, err);
    ckpt_flax_state_free(own);
    return r;
}

static int folder_chunk(struct ckpt_tree *t, uint32_t node, const struct ckpt_array *a, uint64_t index,
                        struct ckpt_extent *ret, struct ckpt_err *err)
{
    struct flax_state *s, *own;
    int r = state_of(t, node, &s, &own, err);
    if (r == 0)
        r = ckpt_flax_state_elements(s, t, node, ret, err);
    ckpt_flax_state_free(own);
    return r;
}

static int folder_stored(struct ckpt_tree *t, uint32_t node, const struct ckpt_array *a, uint64_t *ret,
                         struct ckpt_err *err)
{
    *ret = a->nbytes;
    return 0;
}

static int folder_blob(struct ckpt_tree *t, uint32_t node, struct ckpt_extent *ret, struct ckpt_err *err)
{
    struct flax_state *s, *own;
    struct ckpt_file *file;
    size_t len;
    int r;
    if (t->nodes[node].mark == FILE_MARK) {
        const char *path = ckpt_tree_text(t, t->nodes[node].ref, &len);
        r = ckpt_pins_open(t->pins, path, &file);
        if (r < 0)
            return ckpt_fail(err, -r, "%s: %s", path, strerror(-r));
        *ret = (struct ckpt_extent){.file = file, .len = file->st.size};
        return 0;
    }
    r = state_of(t, node, &s, &own, err);
    if (r == 0)
        r = ckpt_flax_state_blob(s, t, node, ret, err);
    ckpt_flax_state_free(own);
    return r;
}

static void folder_pin(struct ckpt_tree *t, uint32_t node)
{
    struct flax_state *s, *own = NULL;
    struct ckpt_extent e;
    const struct ckpt_node *n = &t->nodes[node];
    if (n->mark == FILE_MARK) {
        if (folder_blob(t, node, &e, NULL) == 0)
            ckpt_extent_clear(&e);
    } else if (n->kind != CKPT_NODE_DIR && state_of(t, node, &s, &own, NULL) == 0)
        ckpt_flax_state_free(own);
}

static void folder_describe(struct ckpt_tree *t, uint32_t node, struct ckpt_buf *json)
{
    struct flax_state *s, *own = NULL;
    const struct ckpt_node *n = &t->nodes[node];
    bool in_shard = n->kind == CKPT_NODE_BLOB && n->mark != FILE_MARK;
    if (in_shard && state_of(t, node, &s, &own, NULL) == 0)
        ckpt_flax_state_describe(s, t, node, json);
    ckpt_flax_state_free(own);
}

static size_t folder_memory(const struct ckpt_tree *t)
{
    const struct folder *f = t->priv;
    size_t sum = sizeof *f + ckpt_shards_memory(&f->shards);
    for (uint32_t i = 0; f->parts && i < f->shards.count; i++)
        sum += sizeof *f->parts + (f->parts[i].state ? ckpt_flax_state_memory(f->parts[i].state) : 0);
    return sum;
}

static void folder_close(struct ckpt_tree *t)
{
    struct folder *f = t->priv;
    for (uint32_t i = 0; f->parts && i < f->shards.count; i++)
        ckpt_flax_state_free(f->parts[i].state);
    free(f->parts);
    ckpt_shards_clear(&f->shards);
    free(f);
}

static const struct ckpt_tree_ops folder_ops = {
    .name = "flax-msgpack",
    .layout = folder_layout,
    .chunk = folder_chunk,
    .stored = folder_stored,
    .blob = folder_blob,
    .rights = ckpt_rights_of_folder,
    .pin = folder_pin,
    .describe = folder_describe,
    .memory = folder_memory,
    .close = folder_close,
};

/* --- the shards --- */

static void close_nothing(struct ckpt_tree *t)
{
}

static const struct ckpt_tree_ops draft_ops = {.name = "flax-msgpack", .close = close_nothing};

/* Is the shard whole? A tree of its own tells, so that the real one gets all of it or nothing. */
static int check_shard(struct ckpt_tree *t, struct flax_state *s, struct ckpt_err *err)
{
    struct ckpt_tree *draft;
    if (ckpt_tree_new(&draft_ops, t->pins, &draft) < 0)
        return ckpt_no_memory(err);
    int r = ckpt_flax_state_load(s, &(struct flax_dialect){0}, draft, 0, err);
    if (r == 0 && draft->nodes[0].container != CKPT_DICT)
        r = ckpt_fail(err, EUCLEAN, "it does not hold a map");
    ckpt_tree_unref(draft);
    return r;
}

static int open_shard(struct ckpt_tree *t, uint32_t shard, struct flax_state **ret, struct ckpt_err *err)
{
    struct folder *f = t->priv;
    struct ckpt_file *file;
    int r = ckpt_shard_open(&f->shards, shard, &file, err);
    if (r < 0)
        return r;
    r = ckpt_flax_state_new(file, ret);
    ckpt_file_unref(file);
    if (r < 0)
        return ckpt_no_memory(err);
    r = check_shard(t, *ret, err);
    if (r < 0)
        ckpt_flax_state_free(*ret);
    return r;
}

static int load_shard(struct ckpt_tree *t, uint32_t shard, struct ckpt_err *err)
{
    struct folder *f = t->priv;
    struct flax_state *s;
    struct ckpt_err why = {0};
    f->parts[shard].first = t->count;
    int r = open_shard(t, shard, &s, &why);
    if (r < 0)
        return ckpt_shard_spoil(&f->shards, shard, r, &why, err);
    r = ckpt_flax_state_load(s, &(struct flax_dialect){0}, t, 0, err);
    if (r < 0 || shard >= KEPT_OPEN)
        ckpt_flax_state_free(s);
    else
        f->parts[shard].state = s;
    return r < 0 ? ckpt_fail_in(err, -r, "%s", ckpt_shard_name(&f->shards, shard)) : 0;
}

/* --- what the index says of them --- */

/* The keys of a leaf, joined with '/'; appended. Recurses as deep as the tree is. */
static void add_path(const struct ckpt_tree *t, uint32_t node, struct ckpt_buf *path)
{
    size_t len;
    const char *key = ckpt_tree_text(t, t->nodes[node].key, &len);
    if (t->nodes[node].parent) {
        add_path(t, t->nodes[node].parent, path);
        ckpt_buf_addc(path, '/');
    }
    ckpt_buf_add(path, key, len);
}

static int find_leaves(struct ckpt_tree *t, uint32_t shard, struct ckpt_err *err)
{
    struct folder *f = t->priv;
    struct ckpt_buf path = CKPT_BUF_INIT;
    for (uint32_t node = f->parts[shard].first; node < t->count; node++) {
        if (t->nodes[node].kind == CKPT_NODE_DIR)
            continue;
        path.len = 0;
        add_path(t, node, &path);
        struct ckpt_shard_entry *e = ckpt_shards_find(&f->shards, path.len ? (char *)path.data : "", path.len);
        if (e && e->shard == shard)
            e->place = FOUND;
    }
    int r = ckpt_buf_error(&path);
    ckpt_buf_clear(&path);
    return r < 0 ? ckpt_no_memory(err) : 0;
}

struct adding {
    struct ckpt_tree *tree;
    struct ckpt_err *err;
};

/* An array that fails, in the place of a leaf that its shard does not have. */
static int add_lost(void *arg, const struct ckpt_buf *leaf, const char *shard)
{
    const struct adding *a = arg;
    const struct folder *f = a->tree->priv;
    const char *key = leaf->data ? (char *)leaf->data : "", *end = key + leaf->len, *slash;
    const struct ckpt_shard_entry *e = ckpt_shards_find(&f->shards, key, leaf->len);
    uint32_t node = 0;
    int r = 0;
    if (!e)
        return ckpt_fail(a->err, ESTALE, "the index is being changed");
    if (e->place)
        return 0;
    while (r == 0 && (slash = memchr(key, '/', (size_t)(end - key)))) {
        r = ckpt_tree_add(a->tree, node, key, (size_t)(slash - key), false, CKPT_NODE_DIR, &node, a->err);
        key = slash + 1;
    }
    if (r == 0)
        r = ckpt_tree_add(a->tree, node, key, (size_t)(end - key), false, CKPT_NODE_ARRAY, &node, a->err);
    if (r < 0)
        return r;
    a->tree->nodes[node].ref = (uint32_t)(e - f->shards.entries);
    a->tree->nodes[node].mark = LOST_MARK;
    return 0;
}

/* --- opening --- */

static int load(struct ckpt_tree *t, struct ckpt_file *index, ckpt_below_fn *below, struct ckpt_err *err)
{
    struct folder *f = t->priv;
    struct ckpt_buf metadata = {.max = SAFETENSORS_MAX_METADATA};
    int r = ckpt_shards_read(&f->shards, index, &metadata, err);
    if (r == 0 && metadata.len && !ckpt_buf_error(&metadata)) {
        t->metadata = ckpt_buf_steal(&metadata, NULL);
        r = t->metadata ? 0 : ckpt_no_memory(err);
    }
    ckpt_buf_clear(&metadata);
    if (r < 0)
        return r;
    f->parts = calloc(f->shards.count + 1, sizeof *f->parts);
    if (!f->parts)
        return ckpt_no_memory(err);
    for (uint32_t i = 0; i < f->shards.count && r == 0; i++) {
        r = load_shard(t, i, err);
        if (r == 0)
            r = find_leaves(t, i, err);
    }
    if (r == 0)
        r = ckpt_safetensors_index_each(index, add_lost, &(struct adding){t, err}, NULL, err);
    if (r == 0)
        r = ckpt_add_beside(&(struct ckpt_beside){t, ckpt_shards_own, &f->shards, FILE_MARK, below}, err);
    return r < 0 ? r : ckpt_tree_finish(t, err);
}

int ckpt_flax_folder_open(const struct ckpt_opening *o, struct ckpt_tree **ret, struct ckpt_err *err)
{
    struct folder *f = calloc(1, sizeof *f);
    struct ckpt_file *index;
    struct ckpt_tree *t;
    char index_name[256];
    if (!f || ckpt_tree_new(&folder_ops, o->pins, &t) < 0) {
        free(f);
        return ckpt_no_memory(err);
    }
    t->priv = f;
    f->shards.tree = t;
    int r = ckpt_shards_choose(ckpt_pins_dir(o->pins), "flax_model", FLAX_INDEX, index_name);
    strcpy(f->shards.index_name, index_name);
    r = r < 0 ? ckpt_fail(err, -r, "%s", strerror(-r)) : ckpt_shards_open_index(&f->shards, o->pins, &index, err);
    if (r == 0) {
        r = load(t, index, o->below, err);
        r = r < 0 ? ckpt_fail_in(err, -r, "%s", index_name) : 0;
        ckpt_file_unref(index);
    }
    return ckpt_tree_give(t, r, ret);
}
