/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The msgpack file `checkpoint` of Orbax before 0.5.16: maps, arrays, values, arrays in extension types (flax.serialization), and
 * strings "PLACEHOLDER://NAME" for arrays that are stored elsewhere under that name.
 */
#include "core/format/orbax/item.h"

#include "core/base/util.h"
#include "core/format/msgpack.h"

#include <stdio.h>

#define PLACEHOLDER "PLACEHOLDER://"
#define MAX_KEY 65535

/* What a node's ref names: an array in this file, or the name of one elsewhere. */
struct place {
    char tag; /* 'A' or 'P'; after a 'P' the name follows at once */
    uint8_t dtype, ndim;
    uint64_t off, len;
    uint64_t shape[CKPT_MAX_DIMS];
};

struct walk {
    struct ckpt_tree *tree;
    struct ckpt_mp *mp;
    struct ckpt_err *err;
};

static int add_value(struct walk *w, uint32_t parent, const char *key, size_t len, bool index, const char *json, size_t json_len)
{
    uint32_t node, string;
    int r = ckpt_tree_add(w->tree, parent, key, len, index, CKPT_NODE_VALUE, &node, w->err);
    if (r == 0)
        r = ckpt_tree_string(w->tree, json, json_len, &string);
    if (r == 0)
        w->tree->nodes[node].text = string;
    return r;
}

static int add_place(struct walk *w, uint32_t parent, const char *key, size_t len, bool index, enum ckpt_node_kind kind, const void *place,
                     size_t size)
{
    uint32_t node, string;
    int r = ckpt_tree_add(w->tree, parent, key, len, index, kind, &node, w->err);
    if (r == 0)
        r = ckpt_tree_string(w->tree, place, size, &string);
    if (r == 0)
        w->tree->nodes[node].ref = string;
    return r;
}

static int add_string(struct walk *w, uint32_t parent, const char *key, size_t len, bool index, const struct ckpt_mp_token *tok)
{
    struct ckpt_buf text = {.max = 64 << 20}, json = CKPT_BUF_INIT;
    int r = ckpt_mp_bytes(w->mp, tok, &text, w->err);
    size_t skip = strlen(PLACEHOLDER);
    if (r == 0 && text.len >= skip && !memcmp(text.data, PLACEHOLDER, skip)) {
        text.data[skip - 1] = 'P'; /* a place: the tag, then the name */
        r = add_place(w, parent, key, len, index, CKPT_NODE_ARRAY, text.data + skip - 1, text.len - skip + 1);
    } else if (r == 0) {
        ckpt_buf_add_json_string(&json, (char *)text.data, text.len);
        r = ckpt_buf_error(&json);
        if (r == 0)
            r = add_value(w, parent, key, len, index, (char *)json.data, json.len);
    }
    ckpt_buf_clear(&text);
    ckpt_buf_clear(&json);
    return r;
}

/* Extension 1 (array) and 3 (numpy scalar): [shape, dtype name, data], again in msgpack. */
static int add_ndarray(struct walk *w, uint32_t parent, const char *key, size_t len, bool index, const struct ckpt_mp_token *ext)
{
    struct ckpt_mp in;
    struct ckpt_mp_token t;
    struct place place;
    enum ckpt_dtype dt;
    memset(&place, 0, sizeof place); /* its bytes are compared and kept */
    place.tag = 'A';
    ckpt_mp_init(&in, w->mp->file, ext->off, ext->off + ext->len);
    int r = ckpt_mp_next(&in, &t, w->err);
    if (r == 0 && (t.type != CKPT_MP_ARRAY || t.len != 3))
        r = ckpt_fail(w->err, EUCLEAN, "an array is not [shape, dtype, data]");
    if (r == 0)
        r = ckpt_mp_next(&in, &t, w->err);
    if (r == 0 && (t.type != CKPT_MP_ARRAY || t.len > CKPT_MAX_DIMS))
        r = ckpt_fail(w->err, EUCLEAN, "the shape of an array is malformed");
    place.ndim = (uint8_t)t.len;
    uint64_t bytes = 1;
    for (unsigned i = 0; r == 0 && i < place.ndim; i++) {
        r = ckpt_mp_next(&in, &t, w->err);
        if (r == 0 && (t.type != CKPT_MP_UINT || ckpt_mul(bytes, t.u, &bytes)))
            r = ckpt_fail(w->err, EUCLEAN, "the shape of an array is malformed");
        place.shape[i] = t.u;
    }
    struct ckpt_buf name = {.max = 256};
    if (r == 0)
        r = ckpt_mp_next(&in, &t, w->err);
    if (r == 0 && t.type != CKPT_MP_STR)
        r = ckpt_fail(w->err, EUCLEAN, "the dtype of an array is malformed");
    if (r == 0)
        r = ckpt_mp_bytes(&in, &t, &name, w->err);
    ckpt_buf_addc(&name, 0);
    if (r == 0 && (ckpt_buf_error(&name) || !ckpt_dtype_by_name((char *)name.data, &dt)))
        r = ckpt_fail(w->err, EUCLEAN, "the dtype of an array is not known");
    ckpt_buf_clear(&name);
    if (r == 0)
        r = ckpt_mp_next(&in, &t, w->err);
    if (r < 0)
        return r;
    place.dtype = (uint8_t)dt;
    place.off = t.off;
    place.len = t.len;
    if (t.type != CKPT_MP_BIN || ckpt_mul(bytes, ckpt_dtype_info(dt)->size, &bytes) || bytes != t.len)
        return ckpt_fail(w->err, EBADMSG, "the data of an array have %llu bytes, not %llu", (unsigned long long)t.len,
                         (unsigned long long)bytes);
    enum ckpt_dtype_class klass = ckpt_dtype_info(dt)->klass;
    bool value = ext->ext == 3 && klass != CKPT_DC_COMPLEX && klass != CKPT_DC_OTHER && !place.ndim;
    return add_place(w, parent, key, len, index, value ? CKPT_NODE_VALUE : CKPT_NODE_ARRAY, &place, sizeof place);
}

static int walk_value(struct walk *w, uint32_t parent, const char *key, size_t len, bool index);

static int walk_sequence(struct walk *w, uint32_t node, uint64_t count)
{
    for (uint64_t i = 0; i < count; i++) {
        char name[24];
        int n = snprintf(name, sizeof name, "%llu", (unsigned long long)i);
        int r = walk_value(w, node, name, (size_t)n, true);
        if (r < 0)
            return r;
    }
    return 0;
}

static int walk_map(struct walk *w, uint32_t node, uint64_t count)
{
    struct ckpt_buf key = {.max = MAX_KEY};
    int r = 0;
    for (uint64_t i = 0; i < count && r == 0; i++) {
        struct ckpt_mp_token t;
        key.len = 0;
        r = ckpt_mp_next(w->mp, &t, w->err);
        if (r == 0 && t.type == CKPT_MP_STR)
            r = ckpt_mp_bytes(w->mp, &t, &key, w->err);
        else if (r == 0 && t.type == CKPT_MP_UINT)
            ckpt_buf_addf(&key, "%llu", (unsigned long long)t.u);
        else if (r == 0 && t.type == CKPT_MP_INT)
            ckpt_buf_addf(&key, "%lld", (long long)t.i);
        else if (r == 0)
            r = ckpt_fail(w->err, EUCLEAN, "a map has a key that is no string");
        if (r == 0)
            r = ckpt_buf_error(&key);
        if (r == 0)
            r = walk_value(w, node, (char *)key.data, key.len, false);
    }
    ckpt_buf_clear(&key);
    return r;
}

/* Extension 4 (tuple): an array, and 2 (complex): [re, im], in msgpack of their own. */
static int walk_nested(struct walk *w, uint32_t parent, const char *key, size_t len, bool index, const struct ckpt_mp_token *ext)
{
    struct ckpt_mp in, *outer = w->mp;
    struct ckpt_mp_token t;
    uint32_t node;
    ckpt_mp_init(&in, outer->file, ext->off, ext->off + ext->len);
    int r = ckpt_mp_next(&in, &t, w->err);
    if (r == 0 && t.type != CKPT_MP_ARRAY)
        r = ckpt_fail(w->err, EUCLEAN, "extension type %d does not hold an array", ext->ext);
    if (r == 0)
        r = ckpt_tree_add(w->tree, parent, key, len, index, CKPT_NODE_DIR, &node, w->err);
    if (r < 0)
        return r;
    w->tree->nodes[node].container = CKPT_TUPLE;
    w->mp = &in;
    r = walk_sequence(w, node, t.len);
    w->mp = outer;
    return r;
}

static int walk_value(struct walk *w, uint32_t parent, const char *key, size_t len, bool index)
{
    struct ckpt_mp_token t;
    struct ckpt_buf json = CKPT_BUF_INIT;
    uint32_t node;
    int r = ckpt_mp_next(w->mp, &t, w->err);
    if (r < 0)
        return r;
    switch (t.type) {
    case CKPT_MP_MAP:
    case CKPT_MP_ARRAY:
        r = ckpt_tree_add(w->tree, parent, key, len, index, CKPT_NODE_DIR, &node, w->err);
        if (r < 0)
            return r;
        w->tree->nodes[node].container = t.type == CKPT_MP_MAP ? CKPT_DICT : CKPT_LIST;
        return t.type == CKPT_MP_MAP ? walk_map(w, node, t.len) : walk_sequence(w, node, t.len);
    case CKPT_MP_STR:
        return add_string(w, parent, key, len, index, &t);
    case CKPT_MP_EXT:
        if (t.ext == 1 || t.ext == 3)
            return add_ndarray(w, parent, key, len, index, &t);
        if (t.ext == 4 || t.ext == 2)
            return walk_nested(w, parent, key, len, index, &t);
        return ckpt_fail(w->err, EOPNOTSUPP, "extension type %d is not known", t.ext);
    case CKPT_MP_BIN:
        return ckpt_fail(w->err, EOPNOTSUPP, "a leaf of raw bytes is not supported");
    case CKPT_MP_NIL:
        ckpt_buf_adds(&json, "null");
        break;
    case CKPT_MP_BOOL:
        ckpt_buf_adds(&json, t.boolean ? "true" : "false");
        break;
    case CKPT_MP_UINT:
        ckpt_buf_addf(&json, "%llu", (unsigned long long)t.u);
        break;
    case CKPT_MP_INT:
        ckpt_buf_addf(&json, "%lld", (long long)t.i);
        break;
    case CKPT_MP_FLOAT:
        ckpt_add_json_double(&json, t.f);
        break;
    }
    r = ckpt_buf_error(&json);
    if (r == 0)
        r = add_value(w, parent, key, len, index, (char *)json.data, json.len);
    ckpt_buf_clear(&json);
    return r;
}

int orbax_aggregate_load(struct ckpt_tree *t, uint32_t root, struct ckpt_file *file, struct ckpt_err *err)
{
    struct ckpt_mp mp;
    struct ckpt_mp_token top;
    struct walk w = {t, &mp, err};
    ckpt_mp_init(&mp, file, 0, file->st.size);
    int r = ckpt_mp_next(&mp, &top, err);
    if (r < 0)
        return r;
    if (top.type == CKPT_MP_MAP)
        r = walk_map(&w, root, top.len);
    else if (top.type == CKPT_MP_ARRAY) {
        t->nodes[root].container = CKPT_LIST;
        r = walk_sequence(&w, root, top.len);
    } else { /* one bare leaf */
        ckpt_mp_init(&mp, file, 0, file->st.size);
        r = walk_value(&w, root, "", 0, false);
    }
    if (r == 0 && mp.at != mp.end)
        r = ckpt_fail(err, EUCLEAN, "%llu bytes follow the tree", (unsigned long long)(mp.end - mp.at));
    return r;
}

bool orbax_aggregate_array(const struct ckpt_tree *t, uint32_t node, struct ckpt_array **ret, uint64_t *ret_off, uint64_t *ret_len)
{
    struct place place;
    size_t len;
    const char *text = ckpt_tree_text(t, t->nodes[node].ref, &len);
    if (!t->nodes[node].ref || len != sizeof place || *text != 'A')
        return false;
    memcpy(&place, text, sizeof place);
    if (ret) {
        *ret = ckpt_array_new((enum ckpt_dtype)place.dtype, place.ndim, place.shape);
        if (*ret && ckpt_array_settle(*ret, NULL) < 0) {
            ckpt_array_unref(*ret);
            *ret = NULL;
        }
    }
    *ret_off = place.off;
    *ret_len = place.len;
    return true;
}

bool orbax_aggregate_param(const struct ckpt_tree *t, uint32_t node, const char **ret, size_t *ret_len)
{
    const char *text = ckpt_tree_text(t, t->nodes[node].ref, ret_len);
    if (!t->nodes[node].ref || *text != 'P')
        return false;
    *ret = text + 1;
    --*ret_len;
    return true;
}
