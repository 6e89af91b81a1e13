/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A committed step as a tree. Names and kinds are in the tree; the rest of a leaf is read from its record in the
 * manifest when it is asked for, so that a million leaves take little memory.
 */
#include "core/format/native.h"

#include "core/base/grow.h"
#include "core/base/util.h"
#include "core/format/native_private.h"
#include "core/tree/key.h"

#include <stdio.h>

#define MAX_PLACE ((uint64_t)1 << 44)

/* --- records --- */

static int open_manifest(struct ckpt_tree *t, struct ckpt_file **ret, struct ckpt_err *err)
{
    struct store *s = t->priv;
    int r = ckpt_pins_open(t->pins, s->name, ret);
    if (r < 0)
        return ckpt_fail(err, r == -ENOENT ? ESTALE : -r, r == -ENOENT ? "the step has been deleted" : "%s",
                         strerror(-r));
    const struct ckpt_stat *st = &(*ret)->st;
    if (st->ino == s->st.ino && st->dev == s->st.dev && st->size == s->st.size)
        return 0;
    ckpt_file_unref(*ret);
    return ckpt_fail(err, ESTALE, "the step has been replaced");
}

int ckpt_store_record(struct ckpt_tree *t, uint32_t node, struct ckpt_manifest_node *ret, struct ckpt_err *err)
{
    const struct store *s = t->priv;
    struct ckpt_file *f;
    int r = open_manifest(t, &f, err);
    if (r < 0)
        return r;
    r = ckpt_manifest_record(f, s->places[node] >> 20, (uint32_t)(s->places[node] & 0xfffff) + 1, ret, err);
    ckpt_file_unref(f);
    bool other = r == -EUCLEAN || r == -EOPNOTSUPP; /* it was right when it was opened */
    if (r == 0 && ret->check != t->nodes[node].ref) {
        ckpt_manifest_node_clear(ret);
        other = true;
    }
    return other ? ckpt_fail(err, EBADMSG, "the manifest was changed since it was opened") : r;
}

static struct ckpt_leaf_attrs attrs_of(const struct ckpt_manifest_node *n)
{
    return (struct ckpt_leaf_attrs){.mode = n->mode, .uid = n->uid, .gid = n->gid, .mtime_ns = n->mtime_ns};
}

static struct store_leaf leaf_of(uint32_t node, const struct ckpt_manifest_node *n)
{
    struct store_leaf l = {
        .node = node,
        .size = n->size,
        .stored = n->kind == CKPT_NODE_VALUE ? n->size : n->stored,
        .span = {.off = n->offset, .len = n->size},
        .attrs = attrs_of(n),
    };
    memcpy(l.sha256, n->sha256, CKPT_SHA256);
    memcpy(l.span.object, n->object, CKPT_SHA256);
    l.span.whole = !n->offset && !memcmp(n->object, n->sha256, CKPT_SHA256);
    return l;
}

/* What the head says of the step's own directory. */
static int top_record(struct ckpt_tree *t, struct ckpt_manifest_node *ret, struct ckpt_err *err)
{
    struct ckpt_manifest_info info;
    struct ckpt_file *f;
    int r = open_manifest(t, &f, err);
    if (r < 0)
        return r;
    r = ckpt_manifest_info(f, &info, err);
    ckpt_file_unref(f);
    if (r < 0)
        return r;
    *ret = info.top;
    info.top = (struct ckpt_manifest_node){0};
    ckpt_manifest_info_clear(&info);
    return 0;
}

int ckpt_store_tree_record(struct ckpt_tree *tree, uint32_t node, struct ckpt_manifest_node *ret, struct ckpt_err *err)
{
    return node ? ckpt_store_record(tree, node, ret, err) : top_record(tree, ret, err);
}

const char *ckpt_store_tree_id(const struct ckpt_tree *tree)
{
    return ((const struct store *)tree->priv)->id;
}

int ckpt_store_tree_manifest(struct ckpt_tree *tree, struct ckpt_file **ret, struct ckpt_err *err)
{
    return open_manifest(tree, ret, err);
}

static int get_leaf(struct ckpt_tree *t, uint32_t node, struct store_leaf *ret, struct ckpt_err *err)
{
    struct store *s = t->priv;
    struct store_leaf *slot = &s->leaves[node % STORE_LEAVES];
    struct ckpt_manifest_node n;
    pthread_mutex_lock(&s->lock);
    *ret = *slot;
    pthread_mutex_unlock(&s->lock);
    if (ret->node == node)
        return 0;
    int r = ckpt_store_record(t, node, &n, err);
    if (r < 0)
        return r;
    *ret = leaf_of(node, &n);
    ckpt_manifest_node_clear(&n);
    CKPT_GUARD(&s->lock);
    *slot = *ret;
    return 0;
}

/* --- layouts --- */

/* All that a layout depends on. */
static int layout_key(const struct ckpt_manifest_node *n, struct ckpt_buf *buf)
{
    const struct ckpt_npy *a = &n->npy;
    uint8_t head[5] = {(uint8_t)a->dtype, a->fortran, (uint8_t)n->codec, (uint8_t)a->ndim, a->big_endian};
    ckpt_buf_add(buf, head, sizeof head);
    ckpt_buf_add(buf, &a->header, sizeof a->header);
    ckpt_buf_add(buf, a->shape, a->ndim * sizeof *a->shape);
    if (a->dtype == CKPT_DT_OTHER)
        ckpt_buf_adds(buf, a->descr);
    return ckpt_buf_error(buf);
}

static int make_layout(const struct ckpt_manifest_node *n, struct ckpt_array **ret)
{
    int r = ckpt_array_of_npy(&n->npy, ret);
    if (r == 0)
        snprintf((*ret)->codec_text, sizeof(*ret)->codec_text, "%s",
                 n->codec == CKPT_OBJECT_AUTO ? "unknown" : ckpt_object_codec_name(n->codec));
    return r;
}

static int find_layout(struct store *s, const struct ckpt_buf *key, const struct ckpt_manifest_node *n,
                       struct ckpt_array **ret)
{
    uint32_t hash = 2166136261u;
    for (size_t i = 0; i < key->len; i++)
        hash = (hash ^ key->data[i]) * 16777619u;
    struct store_layout **bucket = &s->layouts[(hash ^ hash >> 16) % STORE_LAYOUT_BUCKETS];
    CKPT_GUARD(&s->lock);
    for (struct store_layout *l = *bucket; l; l = l->next)
        if (l->len == key->len && !memcmp(l->key, key->data, key->len)) {
            *ret = ckpt_array_ref(l->array);
            return 0;
        }
    struct store_layout *l = malloc(sizeof *l + key->len);
    int r = l ? make_layout(n, ret) : -ENOMEM;
    if (r < 0) {
        free(l);
        return r;
    }
    *l = (struct store_layout){.next = *bucket, .array = ckpt_array_ref(*ret), .len = key->len};
    memcpy(l->key, key->data, key->len);
    *bucket = l;
    s->layout_bytes += sizeof *l + key->len;
    return 0;
}

static int store_layout(struct ckpt_tree *t, uint32_t node, struct ckpt_array **ret, struct ckpt_err *err)
{
    struct ckpt_manifest_node n;
    struct ckpt_buf key = CKPT_BUF_INIT;
    int r = ckpt_store_record(t, node, &n, err);
    if (r < 0)
        return r;
    r = layout_key(&n, &key);
    if (r == 0)
        r = find_layout(t->priv, &key, &n, ret);
    ckpt_buf_clear(&key);
    ckpt_manifest_node_clear(&n);
    if (r == -EUCLEAN)
        return ckpt_fail(err, EUCLEAN, "an array has an impossible shape");
    return r < 0 ? ckpt_no_memory(err) : 0;
}

/* --- bytes --- */

static int store_file(struct ckpt_tree *t, uint32_t node, struct ckpt_extent *ret, struct ckpt_err *err)
{
    struct store *s = t->priv;
    if (t->nodes[node].kind == CKPT_NODE_VALUE) {
        struct ckpt_manifest_node n;
        int r = ckpt_store_record(t, node, &n, err);
        if (r < 0)
            return r;
        *ret = (struct ckpt_extent){.len = n.size, .bytes = (uint8_t *)CKPT_STEAL(n.text)};
        ckpt_manifest_node_clear(&n);
        return 0;
    }
    struct store_leaf l;
    struct ckpt_file *f;
    int r = get_leaf(t, node, &l, err);
    if (r == 0)
        r = ckpt_opened_get(s->opened, &l.span, &f, err);
    if (r == 0)
        *ret = (struct ckpt_extent){.file = f, .off = l.span.off, .len = l.span.len};
    return r;
}

/* All elements are one chunk. */
static int store_chunk(struct ckpt_tree *t, uint32_t node, const struct ckpt_array *a, uint64_t index,
                       struct ckpt_extent *ret, struct ckpt_err *err)
{
    struct store *s = t->priv;
    struct store_leaf l;
    struct ckpt_file *object, *f;
    int r = get_leaf(t, node, &l, err);
    if (r == 0)
        r = ckpt_opened_get(s->opened, &l.span, &object,
                            err); /* what is wrong with it is told here, where there are words for it */
    if (r < 0)
        return r;
    ckpt_file_unref(object);
    l.span.off += a->origin;
    l.span.len = a->nbytes;
    l.span.whole = false;
    r = ckpt_opened_file(s->opened, &l.span, &f);
    if (r < 0)
        return ckpt_no_memory(err);
    *ret = (struct ckpt_extent){.file = f, .len = a->nbytes};
    return 0;
}

static int store_stored(struct ckpt_tree *t, uint32_t node, const struct ckpt_array *a, uint64_t *ret,
                        struct ckpt_err *err)
{
    struct store_leaf l;
    int r = get_leaf(t, node, &l, err);
    if (r == 0)
        *ret = l.stored;
    return r;
}

static void store_pin(struct ckpt_tree *t, uint32_t node)
{
    struct store *s = t->priv;
    struct store_leaf l;
    struct ckpt_file *f;
    if (t->nodes[node].kind != CKPT_NODE_ARRAY && t->nodes[node].kind != CKPT_NODE_BLOB)
        return;
    if (get_leaf(t, node, &l, NULL) == 0 && ckpt_opened_get(s->opened, &l.span, &f, NULL) == 0)
        ckpt_file_unref(f);
}

/* --- what is known of a node --- */

static int store_attrs(struct ckpt_tree *t, uint32_t node, struct ckpt_leaf_attrs *ret, struct ckpt_err *err)
{
    const struct store *s = t->priv;
    struct store_leaf l = {.attrs = s->top};
    int r = node ? get_leaf(t, node, &l, err) : 0;
    if (r == 0)
        *ret = l.attrs;
    return r;
}

static int store_rights(struct ckpt_tree *t, uint32_t node, bool whole, struct ckpt_rights *ret, struct ckpt_err *err)
{
    const struct store *s = t->priv;
    struct ckpt_leaf_attrs own;
    if (whole) {
        *ret = s->rights[t->nodes[node].mark];
        return 0;
    }
    int r = store_attrs(t, node, &own, err);
    if (r == 0)
        *ret = ckpt_rights_of(own.mode, own.uid, own.gid, t->nodes[node].kind == CKPT_NODE_DIR);
    return r;
}

/* A value's type is told with its number. */
static void describe_told(const struct ckpt_manifest_node *n, struct ckpt_buf *json)
{
    if (n->kind == CKPT_NODE_BLOB && n->type) {
        ckpt_buf_adds(json, ",\"dtype\":");
        ckpt_buf_add_json_string(json, n->type, strlen(n->type));
    }
    if (n->shaped) {
        ckpt_buf_adds(json, ",\"shape\":[");
        for (unsigned i = 0; i < n->npy.ndim; i++)
            ckpt_buf_addf(json, "%s%llu", i ? "," : "", (unsigned long long)n->npy.shape[i]);
        ckpt_buf_addc(json, ']');
    }
    if (n->prng_impl) {
        ckpt_buf_adds(json, ",\"prng_impl\":");
        ckpt_buf_add_json_string(json, n->prng_impl, strlen(n->prng_impl));
    }
}

static void store_describe(struct ckpt_tree *t, uint32_t node, struct ckpt_buf *json)
{
    struct ckpt_manifest_node n;
    char hex[CKPT_HEX];
    if (t->nodes[node].kind == CKPT_NODE_DIR || ckpt_store_record(t, node, &n, NULL) < 0)
        return;
    if (n.kind == CKPT_NODE_BLOB) /* of an array it is told anyway */
        ckpt_buf_addf(json, ",\"codec\":\"%s\"",
                      n.codec == CKPT_OBJECT_AUTO ? "unknown" : ckpt_object_codec_name(n.codec));
    describe_told(&n, json);
    ckpt_hash_hex(n.sha256, hex);
    if (!ckpt_manifest_is_sparse(&n))
        ckpt_buf_addf(json, ",\"sha256\":\"%s\"", hex);
    ckpt_manifest_node_clear(&n);
}

void ckpt_store_path(const struct ckpt_tree *t, uint32_t node, char *buf, size_t len)
{
    struct ckpt_buf name = CKPT_BUF_INIT;
    size_t at = len - 1;
    buf[at] = 0;
    for (bool last = true; node; node = t->nodes[node].parent, last = false) {
        name.len = 0;
        ckpt_tree_name(t, node, &name);
        if (!last)
            ckpt_buf_addc(&name, '/');
        if (ckpt_buf_error(&name) || name.len > at)
            break;
        at -= name.len;
        memcpy(buf + at, name.data, name.len);
    }
    ckpt_buf_clear(&name);
    memmove(buf, buf + at, len - at);
}

static size_t store_memory(const struct ckpt_tree *t)
{
    struct store *s = t->priv;
    CKPT_GUARD(&s->lock);
    return sizeof *s + s->cap * sizeof *s->places + STORE_RIGHTS * sizeof *s->rights + s->layout_bytes + 4096;
}

static void store_close(struct ckpt_tree *t)
{
    struct store *s = t->priv;
    ckpt_opened_close(s->opened);
    for (unsigned i = 0; i < STORE_LAYOUT_BUCKETS; i++)
        for (struct store_layout *l = s->layouts[i], *next; l; l = next) {
            next = l->next;
            ckpt_array_unref(l->array);
            free(l);
        }
    pthread_mutex_destroy(&s->lock);
    free(s->places);
    free(s->rights);
    free(s->name);
    free(s);
}

static const struct ckpt_tree_ops store_ops;

/* --- opening --- */

struct builder {
    struct ckpt_tree *tree;
    struct store *store;
    struct ckpt_buf key, name;
    struct ckpt_err *err;
};

static int hex_digit(char c)
{
    return c >= '0' && c <= '9' ? c - '0' : c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
}

/* The key that a listed name stands for, into b->key; false: the name is not that of any key. */
static bool take_key(struct builder *b, const char *name, const char *suffix)
{
    size_t len = strlen(name), end = strlen(suffix);
    if (len < end || memcmp(name + len - end, suffix, end))
        return false;
    len -= end;
    b->key.len = b->name.len = 0;
    for (size_t i = 0; i < len && (len > 1 || *name != '%'); i++) {
        int high = name[i] == '%' && len - i > 2 ? hex_digit(name[i + 1]) : -1,
            low = high < 0 ? -1 : hex_digit(name[i + 2]);
        ckpt_buf_addc(&b->key, low < 0 ? name[i] : (char)(high << 4 | low));
        i += low < 0 ? 0 : 2;
    }
    ckpt_key_escape(&b->name, b->key.len ? (char *)b->key.data : "", b->key.len, suffix);
    return !ckpt_buf_error(&b->name) && b->name.len == len + end && !memcmp(b->name.data, name, len + end);
}

static int add_place(struct builder *b, uint32_t node, uint64_t off, uint32_t len)
{
    struct store *s = b->store;
    if (off + len >= MAX_PLACE)
        return ckpt_fail(b->err, EUCLEAN, "the manifest is too large");
    if (!CKPT_ROOM_FOR_ONE(s->places, node, s->cap))
        return ckpt_no_memory(b->err);
    s->places[node] = off << 20 | (len - 1);
    return 0;
}

/* Few steps have more than a handful of owners and modes. Of one that has more, the rest is nobody's but root's. */
static uint8_t number_of_rights(struct store *s, const struct ckpt_rights *r)
{
    for (unsigned i = s->right_count; i-- > 0;)
        if (ckpt_rights_same(&s->rights[i], r))
            return (uint8_t)i;
    if (s->right_count == STORE_RIGHTS)
        return STORE_RIGHTS - 1;
    bool full = s->right_count == STORE_RIGHTS - 1;
    s->rights[s->right_count] = full ? (struct ckpt_rights){0} : *r;
    return (uint8_t)s->right_count++;
}

static uint8_t rights_of_node(struct store *s, const struct ckpt_manifest_node *m, bool dir)
{
    struct ckpt_rights r = ckpt_rights_of(m->mode, m->uid, m->gid, dir);
    return number_of_rights(s, &r);
}

/* What is in a directory has higher numbers than it: so each directory's rights are all joined before they are its
 * parent's. */
static void join_rights(struct ckpt_tree *t, struct store *s)
{
    uint8_t a = 0, b = 0, both = 0; /* mostly what was joined last */
    for (uint32_t node = t->count; node-- > 1;) {
        uint8_t *up = &t->nodes[t->nodes[node].parent].mark, own = t->nodes[node].mark;
        if (*up == own)
            continue;
        if (*up != a || own != b) {
            struct ckpt_rights r = ckpt_rights_join(&s->rights[*up], &s->rights[own]);
            a = *up;
            b = own;
            both = number_of_rights(s, &r);
        }
        *up = both;
    }
}

/* A value's JSON without the white space around it. */
static int set_text(struct builder *b, struct ckpt_node *n, const char *text)
{
    static const char space[] = " \t\r\n";
    text += strspn(text, space);
    size_t len = strlen(text);
    while (len && strchr(space, text[len - 1]))
        len--;
    return ckpt_tree_string(b->tree, text, len, &n->text) < 0 ? ckpt_no_memory(b->err) : 0;
}

static uint8_t dtype_of(const char *type)
{
    enum ckpt_dtype dtype;
    return ckpt_dtype_by_name(type, &dtype) ? (uint8_t)(dtype + 1) : 0;
}

static int add_node(void *arg, uint32_t number, const struct ckpt_manifest_node *m, uint64_t off, uint32_t len)
{
    struct builder *b = arg;
    struct ckpt_tree *t = b->tree;
    const char *suffix = ckpt_node_suffix(&(struct ckpt_node){.kind = (uint8_t)m->kind});
    if (t->nodes[m->parent].kind != CKPT_NODE_DIR)
        return ckpt_fail(b->err, EUCLEAN, "%.200s is in a leaf", m->name);
    enum ckpt_container in = t->nodes[m->parent].container;
    bool known = take_key(b, m->name, suffix);
    size_t bare = strlen(m->name) - strlen(suffix); /* what is no key stands for itself */
    const char *key = known && b->key.len ? (char *)b->key.data : known ? "" : m->name;
    uint32_t node;
    int r = ckpt_buf_error(&b->name) ? ckpt_no_memory(b->err) : 0;
    if (r == 0)
        r = ckpt_tree_add(t, m->parent, key, known ? b->key.len : bare, in == CKPT_LIST || in == CKPT_TUPLE, m->kind,
                          &node, b->err);
    if (r == 0 && !known)
        r = ckpt_tree_set_name(t, node, m->name, strlen(m->name), b->err);
    if (r == 0)
        r = add_place(b, node, off, len);
    if (r == 0 && m->kind == CKPT_NODE_VALUE)
        r = set_text(b, &t->nodes[node], m->text);
    if (r < 0)
        return r;
    t->nodes[node].ref = m->check;
    t->nodes[node].mark = rights_of_node(b->store, m, m->kind == CKPT_NODE_DIR);
    if (m->kind == CKPT_NODE_DIR)
        t->nodes[node].container = (uint8_t)m->container;
    if (m->kind == CKPT_NODE_VALUE && m->type)
        t->nodes[node].dtype = dtype_of(m->type);
    return 0;
}

static int load(struct ckpt_tree *t, struct store *s, struct ckpt_err *err)
{
    struct ckpt_file *f;
    int r = ckpt_pins_open(t->pins, s->name, &f);
    if (r < 0)
        return ckpt_fail(err, -r, "%s", strerror(-r));
    struct builder b = {.tree = t, .store = s, .err = err};
    struct ckpt_manifest_info info;
    s->st = f->st;
    r = ckpt_manifest_each(f, &info, add_node, &b, err);
    ckpt_file_unref(f);
    ckpt_buf_clear(&b.key);
    ckpt_buf_clear(&b.name);
    if (r < 0)
        return r;
    s->top = attrs_of(&info.top);
    snprintf(s->id, sizeof s->id, "%s", info.id);
    t->nodes[0].mark = rights_of_node(s, &info.top, true);
    join_rights(t, s);
    t->nodes[0].container = (uint8_t)info.top.container;
    t->metadata = CKPT_STEAL(info.metadata);
    ckpt_manifest_info_clear(&info);
    uint64_t *places = realloc(s->places, t->count * sizeof *places);
    if (places) {
        s->places = places;
        s->cap = t->count;
    }
    return ckpt_tree_finish(t, err);
}

static int store_open(const struct ckpt_opening *o, struct ckpt_tree **ret, struct ckpt_err *err)
{
    struct ckpt_tree *t;
    struct store *s = calloc(1, sizeof *s);
    if (!s || ckpt_tree_new(&store_ops, o->pins, &t) < 0) {
        free(s);
        return ckpt_no_memory(err);
    }
    pthread_mutex_init(&s->lock, NULL);
    t->priv = s;
    t->exact = true;
    s->name = strdup(o->name);
    s->rights = malloc(STORE_RIGHTS * sizeof *s->rights);
    int r = s->name && s->rights ? ckpt_opened_new(o->pins, o->cache, &s->opened) : -ENOMEM;
    r = r < 0 ? ckpt_no_memory(err) : load(t, s, err);
    if (r < 0) {
        ckpt_tree_unref(t);
        return ckpt_fail_in(err, -r, "%s", o->name);
    }
    *ret = t;
    return 0;
}

/* No directory is one by itself: a root's steps are told by its listing. */
static int store_probe(struct ckpt_backend *dir, struct ckpt_probe *ret)
{
    return 0;
}

static const struct ckpt_tree_ops store_ops = {
    .name = "ckptfs",
    .layout = store_layout,
    .chunk = store_chunk,
    .stored = store_stored,
    .blob = store_file,
    .file = store_file,
    .attrs = store_attrs,
    .rights = store_rights,
    .pin = store_pin,
    .describe = store_describe,
    .verify = ckpt_store_verify,
    .memory = store_memory,
    .close = store_close,
};

const struct ckpt_format ckpt_store_format = {
    .name = "ckptfs",
    .probe = store_probe,
    .open = store_open,
};
