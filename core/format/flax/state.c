/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a node's ref names is a string of the tree: 0 and 8 bytes, the offset in the file where the leaf's value begins;
 * or 'E' and a name, for an array that is elsewhere. All else about the leaf is read again from there when it is
 * wanted, so that a million leaves take little memory.
 */
#include "core/format/flax/state.h"

#include "core/base/util.h"
#include "core/format/flax/array.h"
#include "core/format/flax/spec.h"

#include <inttypes.h>
#include <stdio.h>

#define MAX_KEY    65535
#define MAX_STRING ((uint64_t)4 << 20) /* bytes of a string that is shown */
#define MAX_TREE                                                                                                       \
    ((uint64_t)128 << 20) /* of memory for nodes, keys and values, while the tree is built about twice that */
#define PLACE      9
#define LEAF_AHEAD 512 /* bytes that are fetched of a leaf at once: what is told before its data is mostly less */
#define LOOKED_FOR 256 /* specifications, to find out where the checkpoint was written */
#define RECENT     256

struct flax_state {
    struct ckpt_file *file;
    pthread_mutex_t lock;
    struct ckpt_array *recent[RECENT]; /* layouts, by hash */
};

int ckpt_flax_state_new(struct ckpt_file *file, struct flax_state **ret)
{
    struct flax_state *s = calloc(1, sizeof *s);
    if (!s)
        return -ENOMEM;
    s->file = ckpt_file_ref(file);
    pthread_mutex_init(&s->lock, NULL);
    *ret = s;
    return 0;
}

void ckpt_flax_state_free(struct flax_state *s)
{
    if (!s)
        return;
    for (unsigned i = 0; i < RECENT; i++)
        ckpt_array_unref(s->recent[i]);
    ckpt_file_unref(s->file);
    pthread_mutex_destroy(&s->lock);
    free(s);
}

size_t ckpt_flax_state_memory(const struct flax_state *s)
{
    return sizeof *s;
}

/* --- loading: one pass. Recursion ends where the tree's nesting does --- */

struct walk {
    struct ckpt_tree *tree;
    const struct flax_dialect *dialect;
    uint32_t first;        /* the nodes before are not of this file */
    struct ckpt_buf keys;  /* of a map, to find double ones */
    struct ckpt_buf specs; /* the nodes of specifications, u32 */
    struct ckpt_err *err;
    struct ckpt_mp mp;
};

/* Where a value goes. */
struct spot {
    uint32_t parent;
    const char *key;
    size_t len;
    bool index;
};

static int no_memory(struct walk *w)
{
    return ckpt_no_memory(w->err);
}

static int add_node(struct walk *w, const struct spot *at, enum ckpt_node_kind kind, uint32_t *ret)
{
    const struct ckpt_tree *t = w->tree;
    int r = ckpt_tree_add(w->tree, at->parent, at->key, at->len, at->index, kind, ret, w->err);
    if (r == 0 && t->strings_len + t->count * sizeof *t->nodes > MAX_TREE)
        return ckpt_fail(w->err, EOPNOTSUPP, "the tree would take more than %" PRIu64 " MiB of memory", MAX_TREE >> 20);
    return r;
}

static int add_ref(struct walk *w, const struct spot *at, enum ckpt_node_kind kind, const void *ref, size_t len)
{
    uint32_t node;
    int r = add_node(w, at, kind, &node);
    if (r == 0 && ckpt_tree_string(w->tree, ref, len, &w->tree->nodes[node].ref) < 0)
        return no_memory(w);
    return r;
}

/* A leaf that stays in the file, where its value begins at off. */
static int add_place(struct walk *w, const struct spot *at, enum ckpt_node_kind kind, uint64_t off)
{
    char place[PLACE] = {0};
    memcpy(place + 1, &off, sizeof off);
    return add_ref(w, at, kind, place, sizeof place);
}

static int add_text(struct walk *w, const struct spot *at, struct ckpt_buf *json)
{
    uint32_t node;
    if (ckpt_buf_error(json))
        return no_memory(w);
    int r = add_node(w, at, CKPT_NODE_VALUE, &node);
    if (r == 0 && ckpt_tree_string(w->tree, (char *)json->data, json->len, &w->tree->nodes[node].text) < 0)
        return no_memory(w);
    return r;
}

static int add_string(struct walk *w, const struct spot *at, const struct ckpt_mp_token *t, uint64_t off)
{
    const char *elsewhere = w->dialect->elsewhere;
    size_t skip = elsewhere ? strlen(elsewhere) : 0;
    struct ckpt_buf text = CKPT_BUF_INIT, json = CKPT_BUF_INIT;
    if (t->len > MAX_STRING)
        return add_place(w, at, CKPT_NODE_VALUE, off);
    int r = ckpt_mp_bytes(&w->mp, t, &text, w->err);
    if (r == 0 && !ckpt_utf8(text.data, text.len))
        r = ckpt_fail(w->err, EUCLEAN, "a string is not UTF-8");
    if (r == 0 && elsewhere && text.len >= skip && !memcmp(text.data, elsewhere, skip)) {
        text.data[skip - 1] = 'E';
        r = add_ref(w, at, CKPT_NODE_ARRAY, text.data + skip - 1, text.len - skip + 1);
    } else if (r == 0) {
        ckpt_buf_add_json_string(&json, (char *)text.data, text.len);
        r = add_text(w, at, &json);
    }
    ckpt_buf_clear(&text);
    ckpt_buf_clear(&json);
    return r;
}

static int add_number(struct walk *w, const struct spot *at, const struct ckpt_mp_token *t)
{
    struct ckpt_buf json = CKPT_BUF_INIT;
    switch (t->type) {
    case CKPT_MP_BOOL:
        ckpt_buf_adds(&json, t->boolean ? "true" : "false");
        break;
    case CKPT_MP_UINT:
        ckpt_buf_addf(&json, "%" PRIu64, t->u);
        break;
    case CKPT_MP_INT:
        ckpt_buf_addf(&json, "%" PRId64, t->i);
        break;
    case CKPT_MP_FLOAT:
        ckpt_add_json_double(&json, t->f);
        break;
    default:
        ckpt_buf_adds(&json, "null");
    }
    int r = add_text(w, at, &json);
    ckpt_buf_clear(&json);
    return r;
}

/* NumPy's scalars are values where JSON has such numbers. */
static int add_array(struct walk *w, const struct spot *at, const struct ckpt_mp_token *t, uint64_t off)
{
    struct ckpt_array *a;
    int r = ckpt_flax_array(&w->mp, t, &a, NULL, w->err);
    if (r < 0)
        return r;
    enum ckpt_dtype_class klass = ckpt_dtype_info(a->dtype)->klass;
    bool value = t->type == CKPT_MP_EXT && t->ext == FLAX_EXT_SCALAR && klass != CKPT_DC_COMPLEX &&
                 klass != CKPT_DC_OTHER;
    ckpt_array_unref(a);
    return add_place(w, at, value ? CKPT_NODE_VALUE : CKPT_NODE_ARRAY, off);
}

static int walk_value(struct walk *w, const struct spot *at);

static int walk_sequence(struct walk *w, uint32_t node, uint64_t count)
{
    if (count > w->mp.end - w->mp.at)
        return ckpt_fail(w->err, EBADMSG, "the msgpack data end too early");
    int r = 0;
    for (uint64_t i = 0; i < count && r == 0; i++) {
        char name[24];
        int n = snprintf(name, sizeof name, "%" PRIu64, i);
        r = walk_value(w, &(struct spot){node, name, (size_t)n, true});
    }
    return r;
}

static int take_key(struct walk *w, struct ckpt_buf *key)
{
    struct ckpt_mp_token t;
    int r = ckpt_mp_next(&w->mp, &t, w->err);
    if (r < 0)
        return r;
    if (t.type == CKPT_MP_UINT)
        ckpt_buf_addf(key, "%" PRIu64, t.u);
    else if (t.type == CKPT_MP_INT)
        ckpt_buf_addf(key, "%" PRId64, t.i);
    else if (t.type != CKPT_MP_STR)
        return ckpt_fail(w->err, EUCLEAN, "a map has a key that is neither a string nor an integer");
    else if ((r = ckpt_mp_bytes(&w->mp, &t, key, w->err)) == 0 && !ckpt_utf8(key->data, key->len))
        return ckpt_fail(w->err, EUCLEAN, "a key is not UTF-8");
    return r < 0 ? r : ckpt_buf_error(key) ? no_memory(w) : 0;
}

static int compare_keys(const void *a, const void *b)
{
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return (x > y) - (x < y);
}

static int key_twice(struct walk *w, uint32_t string)
{
    size_t len;
    const char *key = ckpt_tree_text(w->tree, string, &len);
    return ckpt_fail(w->err, EUCLEAN, "a map has the key %.200s twice", key);
}

/* Flax keeps the last of equal keys; which one its writer meant nobody knows. last: the last child before the map. */
static int check_keys(struct walk *w, uint32_t node, uint32_t last)
{
    const struct ckpt_node *nodes = w->tree->nodes;
    w->keys.len = 0;
    for (uint32_t n = last == CKPT_NO_NODE ? nodes[node].first : nodes[last].next; n != CKPT_NO_NODE; n = nodes[n].next)
        ckpt_buf_add(&w->keys, &nodes[n].key, sizeof nodes[n].key);
    if (ckpt_buf_error(&w->keys))
        return no_memory(w);
    uint32_t *keys = (uint32_t *)(void *)w->keys.data;
    size_t count = w->keys.len / sizeof *keys;
    if (count < 2)
        return 0;
    qsort(keys, count, sizeof *keys, compare_keys);
    for (size_t i = 1; i < count; i++)
        if (keys[i] == keys[i - 1])
            return key_twice(w, keys[i]);
    return 0;
}

static int walk_map(struct walk *w, uint32_t node, uint64_t count)
{
    struct ckpt_buf key = {.max = MAX_KEY};
    uint32_t last = w->tree->nodes[node].last;
    int r = count > (w->mp.end - w->mp.at) / 2 ? ckpt_fail(w->err, EBADMSG, "the msgpack data end too early") : 0;
    for (uint64_t i = 0; i < count && r == 0; i++) {
        key.len = 0;
        r = take_key(w, &key);
        if (r == 0 && key.len == strlen(FLAX_CHUNKED) && !memcmp(key.data, FLAX_CHUNKED, key.len))
            r = ckpt_fail(w->err, EUCLEAN, "a map has the mark of an array in pieces, but not as its first key");
        if (r == 0)
            r = walk_value(w, &(struct spot){node, key.len ? (char *)key.data : "", key.len, false});
    }
    ckpt_buf_clear(&key);
    return r < 0 ? r : check_keys(w, node, last);
}

/* A map that stands for an array in pieces: its first key is read then. */
static int is_pieced(struct walk *w, const struct ckpt_mp_token *map, bool *ret)
{
    struct ckpt_mp_token t;
    uint64_t begin = w->mp.at;
    struct ckpt_buf key = CKPT_BUF_INIT;
    *ret = false;
    if (map->type != CKPT_MP_MAP || !map->len)
        return 0;
    int r = ckpt_mp_next(&w->mp, &t, w->err);
    if (r == 0 && t.type == CKPT_MP_STR && t.len == strlen(FLAX_CHUNKED)) {
        r = ckpt_mp_bytes(&w->mp, &t, &key, w->err);
        *ret = r == 0 && !memcmp(key.data, FLAX_CHUNKED, t.len);
    }
    ckpt_buf_clear(&key);
    if (!*ret)
        w->mp.at = begin;
    return r;
}

static int walk_container(struct walk *w, const struct spot *at, enum ckpt_container kind, uint64_t count)
{
    uint32_t node, before = w->tree->count;
    int r = add_node(w, at, CKPT_NODE_DIR, &node);
    if (r == 0 && node < before && node >= w->first)
        r = key_twice(w, w->tree->nodes[node].key);
    if (r < 0)
        return r;
    w->tree->nodes[node].container = (uint8_t)kind;
    return kind == CKPT_DICT ? walk_map(w, node, count) : walk_sequence(w, node, count);
}

/* A map, or the array that it stands for. */
static int walk_dict(struct walk *w, const struct spot *at, const struct ckpt_mp_token *map)
{
    CKPT_AUTOBUF struct ckpt_buf path = CKPT_BUF_INIT;
    uint32_t node = w->tree->count;
    ckpt_buf_addc(&path, 'E');
    int r = w->dialect->folder ? ckpt_flax_spec(&w->mp, map, &path, w->err) : 0;
    if (r == 0)
        return walk_container(w, at, CKPT_DICT, map->len);
    if (r > 0)
        r = add_ref(w, at, CKPT_NODE_ARRAY, path.data, path.len);
    if (r == 0)
        ckpt_buf_add(&w->specs, &node, sizeof node);
    return r;
}

static int walk_tuple(struct walk *w, const struct spot *at, const struct ckpt_mp_token *ext)
{
    struct ckpt_mp_token t;
    uint64_t saved;
    ckpt_flax_enter(&w->mp, ext, &saved);
    int r = ckpt_mp_next(&w->mp, &t, w->err);
    if (r == 0 && t.type != CKPT_MP_ARRAY)
        r = ckpt_fail(w->err, EUCLEAN, "a tuple does not hold an array");
    if (r == 0)
        r = walk_container(w, at, CKPT_TUPLE, t.len);
    return r == 0 ? ckpt_flax_leave(&w->mp, saved, w->err) : r;
}

static int walk_value(struct walk *w, const struct spot *at)
{
    struct ckpt_mp_token t;
    uint64_t off = w->mp.at;
    bool pieced = false;
    int r = ckpt_mp_next(&w->mp, &t, w->err);
    if (r == 0)
        r = is_pieced(w, &t, &pieced);
    if (r < 0)
        return r;
    switch (t.type) {
    case CKPT_MP_MAP:
        return pieced ? add_array(w, at, &t, off) : walk_dict(w, at, &t);
    case CKPT_MP_ARRAY:
        return walk_container(w, at, CKPT_LIST, t.len);
    case CKPT_MP_STR:
        return add_string(w, at, &t, off);
    case CKPT_MP_BIN:
        return add_place(w, at, CKPT_NODE_BLOB, off);
    case CKPT_MP_EXT:
        if (t.ext == FLAX_EXT_NDARRAY || t.ext == FLAX_EXT_COMPLEX || t.ext == FLAX_EXT_SCALAR)
            return add_array(w, at, &t, off);
        return t.ext == FLAX_EXT_TUPLE && w->dialect->tuples ? walk_tuple(w, at, &t)
                                                             : add_place(w, at, CKPT_NODE_BLOB, off);
    default:
        return add_number(w, at, &t);
    }
}

/* The top's container is there already; anything else is one bare leaf in it. */
static int walk_top(struct walk *w, uint32_t top)
{
    struct ckpt_mp_token t;
    bool pieced = false;
    int r = ckpt_mp_next(&w->mp, &t, w->err);
    if (r == 0)
        r = is_pieced(w, &t, &pieced);
    if (r < 0)
        return r;
    if (t.type == CKPT_MP_MAP && !pieced)
        return walk_map(w, top, t.len);
    if (t.type == CKPT_MP_ARRAY) {
        w->tree->nodes[top].container = CKPT_LIST;
        return walk_sequence(w, top, t.len);
    }
    w->mp.at = 0;
    return walk_value(w, &(struct spot){top, "", 0, false});
}

/* --- specifications: those of a checkpoint that was written to /a/b may all name /a/b/ARRAY --- */

static const char *spec_path(const struct walk *w, uint32_t i)
{
    size_t len;
    uint32_t node = ((const uint32_t *)(const void *)w->specs.data)[i];
    return ckpt_flax_state_elsewhere(w->tree, node, &len);
}

static bool is_any_there(const struct walk *w, unsigned parts)
{
    size_t count = CKPT_MIN(w->specs.len / sizeof(uint32_t), (size_t)LOOKED_FOR);
    for (uint32_t i = 0; i < count; i++) {
        const char *path = ckpt_flax_spec_tail(spec_path(w, i), parts);
        if (ckpt_flax_spec_is_there(w->tree->pins, w->dialect->folder, path))
            return true;
    }
    return false;
}

/* The same number of parts is left out of all paths: so no array is taken for another one that is gone. */
static int place_specs(struct walk *w)
{
    struct ckpt_tree *t = w->tree;
    const uint32_t *nodes = (const uint32_t *)(const void *)w->specs.data;
    unsigned parts = 0;
    if (ckpt_buf_error(&w->specs))
        return no_memory(w);
    while (parts < CKPT_FLAX_SPEC_PARTS && !is_any_there(w, parts))
        parts++;
    if (!parts || parts == CKPT_FLAX_SPEC_PARTS)
        return 0;
    for (uint32_t i = 0; i < w->specs.len / sizeof *nodes; i++) {
        CKPT_AUTOBUF struct ckpt_buf ref = CKPT_BUF_INIT;
        ckpt_buf_addc(&ref, 'E');
        ckpt_buf_adds(&ref, ckpt_flax_spec_tail(spec_path(w, i), parts));
        if (ckpt_buf_error(&ref) || ckpt_tree_string(t, (char *)ref.data, ref.len, &t->nodes[nodes[i]].ref) < 0)
            return no_memory(w);
    }
    return 0;
}

int ckpt_flax_state_load(struct flax_state *s, const struct flax_dialect *dialect, struct ckpt_tree *t, uint32_t top,
                         struct ckpt_err *err)
{
    struct walk w = {.tree = t, .dialect = dialect, .first = t->count, .err = err};
    ckpt_mp_init(&w.mp, s->file, 0, s->file->st.size);
    int r = walk_top(&w, top);
    if (r == 0 && w.mp.at != w.mp.end)
        r = ckpt_fail(err, EUCLEAN, "%" PRIu64 " bytes follow the tree", w.mp.end - w.mp.at);
    if (r == 0 && w.specs.len)
        r = place_specs(&w);
    ckpt_buf_clear(&w.keys);
    ckpt_buf_clear(&w.specs);
    return r;
}

/* --- leaves --- */

static bool place_of(const struct ckpt_tree *t, uint32_t node, uint64_t *ret)
{
    size_t len;
    const char *place = ckpt_tree_text(t, t->nodes[node].ref, &len);
    if (len != PLACE || *place)
        return false;
    *ret = ckpt_le64(place + 1);
    return true;
}

bool ckpt_flax_state_has(const struct ckpt_tree *t, uint32_t node)
{
    uint64_t off;
    return t->nodes[node].kind != CKPT_NODE_DIR && place_of(t, node, &off);
}

const char *ckpt_flax_state_elsewhere(const struct ckpt_tree *t, uint32_t node, size_t *ret_len)
{
    size_t len;
    const char *name = ckpt_tree_text(t, t->nodes[node].ref, &len);
    if (t->nodes[node].kind != CKPT_NODE_ARRAY || !len || *name != 'E')
        return NULL;
    *ret_len = len - 1;
    return name + 1;
}

/* A cursor behind a leaf's first token: of an array in pieces behind its first key. */
static int seek(struct flax_state *s, const struct ckpt_tree *t, uint32_t node, struct ckpt_mp *ret,
                struct ckpt_mp_token *ret_token, struct ckpt_err *err)
{
    struct ckpt_mp_token key;
    uint64_t off;
    if (!place_of(t, node, &off))
        return ckpt_fail(err, EUCLEAN, "the leaf is not in the file");
    ckpt_mp_init(ret, s->file, off, s->file->st.size);
    ret->ahead = LEAF_AHEAD;
    int r = ckpt_mp_next(ret, ret_token, err);
    return r == 0 && ret_token->type == CKPT_MP_MAP ? ckpt_mp_next(ret, &key, err) : r;
}

static bool same_layout(const struct ckpt_array *a, const struct ckpt_array *b)
{
    return a->dtype == b->dtype && a->ndim == b->ndim && !memcmp(a->shape, b->shape, a->ndim * sizeof *a->shape) &&
           !strcmp(a->descr ? a->descr : "", b->descr ? b->descr : "") && !strcmp(a->why, b->why);
}

/* The same layout as before if it is still known; takes a reference, and gives one. */
static struct ckpt_array *share_layout(struct flax_state *s, struct ckpt_array *a)
{
    uint64_t hash = a->dtype;
    for (unsigned i = 0; i < a->ndim; i++)
        hash = (hash ^ a->shape[i]) * 0x9e3779b97f4a7c15;
    CKPT_GUARD(&s->lock);
    struct ckpt_array **slot = &s->recent[hash >> 32 & (RECENT - 1)];
    if (*slot && same_layout(*slot, a)) {
        ckpt_array_unref(a);
        return ckpt_array_ref(*slot);
    }
    ckpt_array_unref(*slot);
    *slot = ckpt_array_ref(a);
    return a;
}

/* A value that is not kept in the tree, and is no array either. */
static int long_string(const struct ckpt_mp_token *t, struct ckpt_array **ret, struct ckpt_err *err)
{
    *ret = ckpt_array_new(CKPT_DT_OTHER, 0, NULL);
    if (!*ret)
        return ckpt_no_memory(err);
    ckpt_array_refuse(*ret, "a string of %" PRIu64 " bytes: those over %" PRIu64 " MiB are not shown", t->len,
                      MAX_STRING >> 20);
    return 0;
}

int ckpt_flax_state_layout(struct flax_state *s, const struct ckpt_tree *t, uint32_t node, struct ckpt_array **ret,
                           struct ckpt_err *err)
{
    struct ckpt_mp mp;
    struct ckpt_mp_token token;
    struct ckpt_array *a;
    int r = seek(s, t, node, &mp, &token, err);
    if (r == 0 && token.type == CKPT_MP_STR)
        return long_string(&token, ret, err);
    if (r == 0)
        r = ckpt_flax_array(&mp, &token, &a, NULL, err);
    if (r == 0)
        *ret = share_layout(s, a);
    return r;
}

int ckpt_flax_state_elements(struct flax_state *s, const struct ckpt_tree *t, uint32_t node, struct ckpt_extent *ret,
                             struct ckpt_err *err)
{
    struct ckpt_mp mp;
    struct ckpt_mp_token token;
    struct ckpt_array *a;
    int r = seek(s, t, node, &mp, &token, err);
    if (r == 0)
        r = ckpt_flax_array(&mp, &token, &a, ret, err);
    if (r == 0)
        ckpt_array_unref(a);
    return r;
}

int ckpt_flax_state_blob(struct flax_state *s, const struct ckpt_tree *t, uint32_t node, struct ckpt_extent *ret,
                         struct ckpt_err *err)
{
    struct ckpt_mp mp;
    struct ckpt_mp_token token;
    int r = seek(s, t, node, &mp, &token, err);
    if (r == 0)
        *ret = (struct ckpt_extent){.file = ckpt_file_ref(s->file), .off = token.off, .len = token.len};
    return r;
}

void ckpt_flax_state_describe(struct flax_state *s, const struct ckpt_tree *t, uint32_t node, struct ckpt_buf *json)
{
    struct ckpt_mp mp;
    struct ckpt_mp_token token;
    if (t->nodes[node].kind == CKPT_NODE_BLOB && ckpt_flax_state_has(t, node) &&
        seek(s, t, node, &mp, &token, NULL) == 0 && token.type == CKPT_MP_EXT)
        ckpt_buf_addf(json, ",\"ext\":%d", token.ext);
}
