/* SPDX-License-Identifier: Apache-2.0 */
#include "core/tree/tree.h"

#include "core/base/grow.h"
#include "core/base/hash.h"
#include "core/base/util.h"
#include "core/codec/stream.h"
#include "core/tree/key.h"

#define MAX_SPLIT                                                                                                      \
    (5u << 19) /* nodes from which on keys stay whole: one of 65,535 bytes could become hundreds of containers */
#define MAX_LAYOUTS (1u << 16) /* that are kept: some 400 bytes each where no two leaves are alike */

/* Hash sets of numbers, open addressing, for the builder: strings by content, containers by (parent, key). */
struct set {
    uint32_t *slots;
    uint32_t size, count;
};

struct builder {
    struct set strings, dirs, names; /* names: of nodes, by parent and listed name */
    bool note_names;
    uint8_t *depth_of_dir; /* not kept for leaves: 0..CKPT_MAX_DEPTH-1, by node */
    uint32_t depth_cap;
};

static atomic_uint_fast64_t next_id = 1;

static uint64_t hash_bytes(uint64_t h, const char *p, size_t len)
{
    return ckpt_mix(ckpt_fnv(h ^ CKPT_FNV_BEGIN, p, len));
}

static int set_grow(struct set *s, uint64_t (*hash)(void *, uint32_t), void *arg)
{
    if (s->count * 4ull < s->size * 3ull)
        return 0;
    uint32_t size = s->size ? s->size * 2 : 64;
    uint32_t *slots = malloc(size * sizeof *slots);
    if (!slots)
        return -ENOMEM;
    memset(slots, 0xff, size * sizeof *slots);
    for (uint32_t i = 0; i < s->size; i++)
        if (s->slots[i] != CKPT_NO_NODE) {
            uint32_t at = (uint32_t)hash(arg, s->slots[i]) & (size - 1);
            while (slots[at] != CKPT_NO_NODE)
                at = (at + 1) & (size - 1);
            slots[at] = s->slots[i];
        }
    free(s->slots);
    s->slots = slots;
    s->size = size;
    return 0;
}

const char *ckpt_tree_text(const struct ckpt_tree *t, uint32_t string, size_t *ret_len)
{
    const char *p = t->strings + string;
    *ret_len = ckpt_le32(p);
    return p + 4;
}

static uint64_t hash_string(void *arg, uint32_t string)
{
    size_t len;
    const char *p = ckpt_tree_text(arg, string, &len);
    return hash_bytes(0, p, len);
}

static uint64_t hash_dir(void *arg, uint32_t node)
{
    const struct ckpt_node *n = &((struct ckpt_tree *)arg)->nodes[node];
    return ckpt_mix((uint64_t)n->parent << 32 | n->key);
}

int ckpt_tree_string(struct ckpt_tree *t, const char *text, size_t len, uint32_t *ret)
{
    struct set *s = &((struct builder *)t->builder)->strings;
    if (set_grow(s, hash_string, t) < 0)
        return -ENOMEM;
    uint32_t at = (uint32_t)hash_bytes(0, text, len) & (s->size - 1);
    for (; s->slots[at] != CKPT_NO_NODE; at = (at + 1) & (s->size - 1)) {
        size_t n;
        const char *p = ckpt_tree_text(t, s->slots[at], &n);
        if (n == len && !memcmp(p, text, len)) {
            *ret = s->slots[at];
            return 0;
        }
    }
    if (len > (1u << 30) || t->strings_len + len + 5 > UINT32_MAX / 2)
        return -EFBIG;
    if (t->strings_len + len + 5 > t->strings_cap) {
        uint32_t cap = CKPT_MAX((uint32_t)(t->strings_len + len + 5), t->strings_cap + t->strings_cap / 2 + 256);
        char *p = realloc(t->strings, cap);
        if (!p)
            return -ENOMEM;
        t->strings = p;
        t->strings_cap = cap;
    }
    uint32_t n32 = (uint32_t)len;
    *ret = t->strings_len;
    memcpy(t->strings + t->strings_len, &n32, 4);
    memcpy(t->strings + t->strings_len + 4, text, len);
    t->strings[t->strings_len + 4 + len] = 0;
    t->strings_len += n32 + 5;
    s->slots[at] = *ret;
    s->count++;
    return 0;
}

static int new_node(struct ckpt_tree *t, uint32_t *ret)
{
    struct builder *b = t->builder;
    if (!CKPT_ROOM_FOR_ONE(t->nodes, t->count, t->cap))
        return -ENOMEM;
    if (t->count >= b->depth_cap) {
        uint8_t *depth = realloc(b->depth_of_dir, t->cap);
        if (!depth)
            return -ENOMEM;
        b->depth_of_dir = depth;
        b->depth_cap = t->cap;
    }
    t->nodes[t->count] = (struct ckpt_node){.next = CKPT_NO_NODE};
    b->depth_of_dir[t->count] = 0;
    *ret = t->count++;
    return 0;
}

int ckpt_tree_new(const struct ckpt_tree_ops *ops, struct ckpt_pins *pins, struct ckpt_tree **ret)
{
    struct ckpt_tree *t = calloc(1, sizeof *t);
    uint32_t empty, top;
    if (!t)
        return -ENOMEM;
    atomic_init(&t->refs, 1);
    t->ops = ops;
    t->pins = ckpt_pins_ref(pins);
    t->id = atomic_fetch_add(&next_id, 1);
    pthread_mutex_init(&t->lock, NULL);
    pthread_mutex_init(&t->rights_lock, NULL);
    t->builder = calloc(1, sizeof(struct builder));
    if (!t->builder || ckpt_tree_string(t, "", 0, &empty) < 0 || new_node(t, &top) < 0) {
        ckpt_tree_unref(t);
        return -ENOMEM;
    }
    t->nodes[0].parent = CKPT_NO_NODE;
    t->nodes[0].kind = CKPT_NODE_DIR;
    t->nodes[0].first = t->nodes[0].last = CKPT_NO_NODE;
    *ret = t;
    return 0;
}

static int note_name(struct ckpt_tree *t, uint32_t node);

int ckpt_tree_add(struct ckpt_tree *t, uint32_t parent, const char *key, size_t len, bool index,
                  enum ckpt_node_kind kind, uint32_t *ret, struct ckpt_err *err)
{
    struct builder *b = t->builder;
    uint32_t string, node;
    int r = ckpt_tree_string(t, key, len, &string);
    if (r == -EFBIG)
        return ckpt_fail(err, EUCLEAN, "the keys are longer than a tree may hold");
    if (r < 0 || set_grow(&b->dirs, hash_dir, t) < 0)
        return ckpt_no_memory(err);
    uint32_t at = 0;
    if (kind == CKPT_NODE_DIR && !t->exact) {
        at = (uint32_t)ckpt_mix((uint64_t)parent << 32 | string) & (b->dirs.size - 1);
        for (; b->dirs.slots[at] != CKPT_NO_NODE; at = (at + 1) & (b->dirs.size - 1)) {
            const struct ckpt_node *n = &t->nodes[b->dirs.slots[at]];
            if (n->parent == parent && n->key == string) {
                *ret = b->dirs.slots[at];
                return 0;
            }
        }
    }
    if (t->count >= CKPT_MAX_NODES)
        return ckpt_fail(err, EUCLEAN, "more than %u leaves and containers", CKPT_MAX_NODES);
    if (b->depth_of_dir[parent] + 1 >= CKPT_MAX_DEPTH)
        return ckpt_fail(err, EUCLEAN, "nested deeper than %d", CKPT_MAX_DEPTH);
    if (new_node(t, &node) < 0)
        return ckpt_no_memory(err);
    struct ckpt_node *n = &t->nodes[node], *p = &t->nodes[parent];
    n->parent = parent;
    n->key = string;
    n->kind = (uint8_t)kind;
    n->index = index;
    if (kind == CKPT_NODE_DIR) {
        n->first = n->last = CKPT_NO_NODE;
        b->depth_of_dir[node] = b->depth_of_dir[parent] + 1;
        if (!t->exact) {
            b->dirs.slots[at] = node;
            b->dirs.count++;
        }
    }
    if (p->first == CKPT_NO_NODE)
        p->first = node;
    else
        t->nodes[p->last].next = node;
    p->last = node;
    if (b->note_names && note_name(t, node) < 0)
        return ckpt_no_memory(err);
    *ret = node;
    return 0;
}

uint32_t ckpt_tree_find_dir(struct ckpt_tree *t, uint32_t parent, const char *key, size_t len)
{
    const struct set *s = &((struct builder *)t->builder)->dirs;
    uint32_t string;
    if (!s->size || ckpt_tree_string(t, key, len, &string) < 0)
        return CKPT_NO_NODE;
    uint32_t at = (uint32_t)ckpt_mix((uint64_t)parent << 32 | string) & (s->size - 1);
    for (; s->slots[at] != CKPT_NO_NODE; at = (at + 1) & (s->size - 1)) {
        const struct ckpt_node *n = &t->nodes[s->slots[at]];
        if (n->parent == parent && n->key == string)
            return s->slots[at];
    }
    return CKPT_NO_NODE;
}

int ckpt_tree_add_other(struct ckpt_tree *t, uint32_t parent, const char *key, size_t len, uint32_t *ret,
                        struct ckpt_err *err)
{
    bool exact = t->exact;
    t->exact = true;
    int r = ckpt_tree_add(t, parent, key, len, false, CKPT_NODE_DIR, ret, err);
    t->exact = exact;
    return r;
}

/* --- keys that are joined with dots --- */

static uint64_t hash_name(uint32_t parent, const char *name, size_t len, const char *suffix, size_t suffix_len);

static uint64_t hash_noted(void *arg, uint32_t node)
{
    struct ckpt_tree *t = arg;
    struct ckpt_buf name = CKPT_BUF_INIT;
    ckpt_tree_name(t, node, &name);
    uint64_t h = hash_name(t->nodes[node].parent, (char *)name.data, name.len, "", 0);
    ckpt_buf_clear(&name);
    return h;
}

/* The node of a listed name, or CKPT_NO_NODE. *ret_slot: where it is, or would be. */
static uint32_t find_noted(struct ckpt_tree *t, uint32_t parent, const struct ckpt_buf *name, uint32_t *ret_slot)
{
    struct set *s = &((struct builder *)t->builder)->names;
    struct ckpt_buf other = CKPT_BUF_INIT;
    uint32_t found = CKPT_NO_NODE,
             at = (uint32_t)hash_name(parent, (char *)name->data, name->len, "", 0) & (s->size - 1);
    for (; s->slots[at] != CKPT_NO_NODE && found == CKPT_NO_NODE; at = (at + 1) & (s->size - 1)) {
        if (t->nodes[s->slots[at]].parent != parent)
            continue;
        other.len = 0;
        ckpt_tree_name(t, s->slots[at], &other);
        if (other.len == name->len && !memcmp(other.data, name->data, name->len))
            found = s->slots[at];
    }
    ckpt_buf_clear(&other);
    *ret_slot = at;
    return found;
}

/* A second node of one name is not noted: it will get another. */
static int note_name(struct ckpt_tree *t, uint32_t node)
{
    struct set *s = &((struct builder *)t->builder)->names;
    struct ckpt_buf name = CKPT_BUF_INIT;
    uint32_t slot;
    ckpt_tree_name(t, node, &name);
    int r = ckpt_buf_error(&name) < 0 || set_grow(s, hash_noted, t) < 0 ? -ENOMEM : 0;
    if (r == 0 && find_noted(t, t->nodes[node].parent, &name, &slot) == CKPT_NO_NODE) {
        s->slots[slot] = node;
        s->count++;
    }
    ckpt_buf_clear(&name);
    return r;
}

void ckpt_tree_note_names(struct ckpt_tree *t)
{
    ((struct builder *)t->builder)->note_names = true;
}

/* What has the listed name of a key in a container; CKPT_NO_NODE: nothing. */
static int named_so(struct ckpt_tree *t, uint32_t parent, const char *key, size_t len, const char *suffix,
                    uint32_t *ret)
{
    struct ckpt_buf name = CKPT_BUF_INIT;
    uint32_t slot;
    ckpt_key_escape(&name, key, len, suffix);
    int r = ckpt_buf_error(&name);
    if (r == 0)
        r = set_grow(&((struct builder *)t->builder)->names, hash_noted, t);
    if (r == 0)
        *ret = find_noted(t, parent, &name, &slot);
    ckpt_buf_clear(&name);
    return r;
}

/* Can the key be split? Nothing is added for finding out. */
static int can_split(struct ckpt_tree *t, uint32_t parent, const char *key, size_t len, enum ckpt_node_kind kind)
{
    const char *suffix = ckpt_node_suffix(&(struct ckpt_node){.kind = (uint8_t)kind}), *end = key + len;
    unsigned depth = ((struct builder *)t->builder)->depth_of_dir[parent];
    if (t->count >= MAX_SPLIT)
        return 0;
    for (const char *p = key, *dot; p <= end; p = dot + 1) {
        dot = memchr(p, '.', (size_t)(end - p));
        dot = dot ? dot : end;
        if (dot == p || ++depth >= CKPT_MAX_DEPTH)
            return 0;
        if (parent == CKPT_NO_NODE) /* inside of what would be new */
            continue;
        uint32_t there = CKPT_NO_NODE;
        int r = named_so(t, parent, p, (size_t)(dot - p), dot == end ? suffix : "", &there);
        if (r < 0)
            return r;
        if (there != CKPT_NO_NODE && (dot == end || t->nodes[there].kind != CKPT_NODE_DIR))
            return 0;
        parent = there;
    }
    return 1;
}

int ckpt_tree_add_dotted(struct ckpt_tree *t, uint32_t parent, const char *key, size_t len, enum ckpt_node_kind kind,
                         uint32_t *ret, struct ckpt_err *err)
{
    int r = memchr(key, '.', len) ? can_split(t, parent, key, len, kind) : 0;
    if (r < 0)
        return ckpt_no_memory(err);
    for (const char *dot; r == 1 && (dot = memchr(key, '.', len));) {
        int added = ckpt_tree_add(t, parent, key, (size_t)(dot - key), false, CKPT_NODE_DIR, &parent, err);
        if (added < 0)
            return added;
        len -= (size_t)(dot + 1 - key);
        key = dot + 1;
    }
    return ckpt_tree_add(t, parent, key, len, false, kind, ret, err);
}

int ckpt_tree_set_name(struct ckpt_tree *t, uint32_t node, const char *name, size_t len, struct ckpt_err *err)
{
    int r = ckpt_tree_string(t, name, len, &t->nodes[node].name);
    return r < 0 ? ckpt_fail(err, r == -EFBIG ? EUCLEAN : ENOMEM,
                             r == -EFBIG ? "the names are longer than a tree may hold" : "out of memory")
                 : 0;
}

const char *ckpt_node_suffix(const struct ckpt_node *n)
{
    return n->kind == CKPT_NODE_ARRAY ? ".npy" : n->kind == CKPT_NODE_VALUE ? ".json" : "";
}

void ckpt_tree_name(const struct ckpt_tree *t, uint32_t node, struct ckpt_buf *buf)
{
    const struct ckpt_node *n = &t->nodes[node];
    size_t len;
    const char *text;
    if (n->name) {
        text = ckpt_tree_text(t, n->name, &len);
        ckpt_buf_add(buf, text, len);
        return;
    }
    text = ckpt_tree_text(t, n->key, &len);
    ckpt_key_escape(buf, text, len, ckpt_node_suffix(n));
}

static uint64_t hash_name(uint32_t parent, const char *name, size_t len, const char *suffix, size_t suffix_len)
{
    uint64_t begin = (uint64_t)parent * 0x9e3779b97f4a7c15 ^ CKPT_FNV_BEGIN;
    return ckpt_mix(ckpt_fnv(ckpt_fnv(begin, name, len), suffix, suffix_len));
}

uint32_t ckpt_tree_lookup_suffix(const struct ckpt_tree *t, uint32_t parent, const char *name, size_t len,
                                 const char *suffix)
{
    size_t suffix_len = strlen(suffix);
    struct ckpt_buf buf = CKPT_BUF_INIT;
    uint32_t mask = t->table_size - 1, found = CKPT_NO_NODE;
    uint32_t at = (uint32_t)hash_name(parent, name, len, suffix, suffix_len) & mask;
    for (; t->table[at] != CKPT_NO_NODE && found == CKPT_NO_NODE; at = (at + 1) & mask) {
        uint32_t node = t->table[at];
        if (t->nodes[node].parent != parent)
            continue;
        buf.len = 0;
        ckpt_tree_name(t, node, &buf);
        if (buf.len == len + suffix_len && !memcmp(buf.data, name, len) && !memcmp(buf.data + len, suffix, suffix_len))
            found = node;
    }
    ckpt_buf_clear(&buf);
    return found;
}

uint32_t ckpt_tree_lookup(const struct ckpt_tree *t, uint32_t parent, const char *name, size_t len)
{
    return ckpt_tree_lookup_suffix(t, parent, name, len, "");
}

/* Give a node whose name is taken another: its key with one more character escaped, until the name is free. */
static int rename_node(struct ckpt_tree *t, uint32_t node, struct ckpt_buf *buf)
{
    struct ckpt_node *n = &t->nodes[node];
    size_t len;
    for (unsigned chars = 1; chars <= 256; chars++) {
        const char *key = ckpt_tree_text(t, n->key, &len);
        buf->len = 0;
        ckpt_key_escape_first(buf, key, len, chars, ckpt_node_suffix(n));
        if (ckpt_tree_lookup(t, n->parent, (char *)buf->data, buf->len) == CKPT_NO_NODE)
            return ckpt_tree_string(t, (char *)buf->data, buf->len, &n->name);
        if (chars > len)
            break;
    }
    /* The same key more often than it has characters (the empty key twice, say): number the rest. */
    for (unsigned i = 2; i < 1000; i++) {
        const char *key = ckpt_tree_text(t, n->key, &len);
        struct ckpt_buf numbered = CKPT_BUF_INIT;
        ckpt_buf_add(&numbered, key, len);
        ckpt_buf_addf(&numbered, "%%%u", i);
        buf->len = 0;
        ckpt_key_escape(buf, (char *)numbered.data, numbered.len, ckpt_node_suffix(n));
        ckpt_buf_clear(&numbered);
        if (ckpt_tree_lookup(t, n->parent, (char *)buf->data, buf->len) == CKPT_NO_NODE)
            return ckpt_tree_string(t, (char *)buf->data, buf->len, &n->name);
    }
    return -EUCLEAN;
}

static int name_nodes(struct ckpt_tree *t, struct ckpt_buf *buf)
{
    for (uint32_t node = 1; node < t->count; node++) {
        struct ckpt_node *n = &t->nodes[node];
        buf->len = 0;
        ckpt_tree_name(t, node, buf);
        int r = ckpt_buf_error(buf);
        if (r == 0 && ckpt_tree_lookup(t, n->parent, (char *)buf->data, buf->len) != CKPT_NO_NODE)
            r = t->exact ? -EUCLEAN : rename_node(t, node, buf);
        if (r < 0)
            return r;
        uint32_t at = (uint32_t)hash_name(n->parent, (char *)buf->data, buf->len, "", 0) & (t->table_size - 1);
        while (t->table[at] != CKPT_NO_NODE)
            at = (at + 1) & (t->table_size - 1);
        t->table[at] = node;
    }
    return 0;
}

static void free_builder(struct ckpt_tree *t)
{
    struct builder *b = t->builder;
    if (!b)
        return;
    free(b->strings.slots);
    free(b->dirs.slots);
    free(b->names.slots);
    free(b->depth_of_dir);
    free(b);
    t->builder = NULL;
}

int ckpt_tree_finish(struct ckpt_tree *t, struct ckpt_err *err)
{
    t->table_size = 16;
    while (t->table_size < t->count + t->count / 2)
        t->table_size *= 2;
    t->table = malloc(t->table_size * sizeof *t->table);
    if (!t->table)
        return ckpt_no_memory(err);
    memset(t->table, 0xff, t->table_size * sizeof *t->table);
    struct ckpt_buf buf = CKPT_BUF_INIT;
    int r = name_nodes(t, &buf);
    ckpt_buf_clear(&buf);
    free_builder(t);
    if (r < 0)
        return ckpt_fail(err, -r, "%s",
                         r != -EUCLEAN ? strerror(-r)
                         : t->exact    ? "two nodes have the same name"
                                       : "too many leaves of the same name");
    struct ckpt_node *nodes = realloc(t->nodes, t->count * sizeof *nodes);
    if (nodes)
        t->nodes = nodes;
    char *strings = realloc(t->strings, t->strings_len);
    if (strings)
        t->strings = strings;
    t->strings_cap = t->strings_len;
    t->cap = t->count;
    return 0;
}

struct ckpt_tree *ckpt_tree_ref(struct ckpt_tree *t)
{
    atomic_fetch_add(&t->refs, 1);
    return t;
}

void ckpt_tree_unref(struct ckpt_tree *t)
{
    if (!t || atomic_fetch_sub(&t->refs, 1) != 1)
        return;
    if (t->priv)
        t->ops->close(t);
    ckpt_pins_unref(t->pins);
    free_builder(t);
    for (uint32_t i = 0; i < t->layout_count; i++)
        ckpt_array_unref(t->layouts[i]);
    free(t->layouts);
    free(t->nodes);
    free(t->strings);
    free(t->table);
    free(t->metadata);
    free(t->fault);
    pthread_mutex_destroy(&t->lock);
    pthread_mutex_destroy(&t->rights_lock);
    free(t);
}

int ckpt_tree_give(struct ckpt_tree *t, int r, struct ckpt_tree **ret)
{
    if (r < 0)
        ckpt_tree_unref(t);
    else
        *ret = t;
    return r;
}

size_t ckpt_tree_memory(const struct ckpt_tree *t)
{
    return sizeof *t + t->cap * sizeof *t->nodes + t->strings_cap + t->table_size * sizeof *t->table +
           t->layout_cap * 8ull + t->layout_count * 400ull + t->ops->memory(t);
}

int ckpt_tree_layout(struct ckpt_tree *t, uint32_t node, struct ckpt_array **ret, struct ckpt_err *err)
{
    pthread_mutex_lock(&t->lock);
    uint32_t known = t->nodes[node].layout;
    if (known)
        *ret = ckpt_array_ref(t->layouts[known - 1]);
    pthread_mutex_unlock(&t->lock);
    if (known)
        return 0;
    struct ckpt_array *a;
    int r = t->ops->layout(t, node, &a, err);
    if (r < 0)
        return r;
    CKPT_GUARD(&t->lock);
    if (t->layout_count >= MAX_LAYOUTS) { /* the rest is worked out whenever it is asked for */
        *ret = a;
        return 0;
    }
    /* The format gives leaves that are stored alike the same object, mostly one after another. */
    uint32_t at = t->layout_count;
    for (uint32_t back = 1; back <= 64 && back <= t->layout_count; back++)
        if (t->layouts[t->layout_count - back] == a)
            at = t->layout_count - back;
    if (at == t->layout_count) {
        if (!CKPT_ROOM_FOR_ONE(t->layouts, t->layout_count, t->layout_cap)) {
            ckpt_array_unref(a);
            return ckpt_no_memory(err);
        }
        t->layouts[t->layout_count++] = ckpt_array_ref(a);
    }
    t->nodes[node].layout = at + 1;
    *ret = a;
    return 0;
}

/* The only element of an array that holds a value. Small, and metadata rather than data: it does not go through the
 * cache. */
static int read_element(struct ckpt_tree *t, uint32_t node, struct ckpt_value *ret, struct ckpt_err *err)
{
    struct ckpt_array *a;
    struct ckpt_extent extent = {0};
    int r = ckpt_tree_layout(t, node, &a, err);
    if (r < 0)
        return r;
    if (a->unsupported)
        r = ckpt_fail(err, a->unsupported, "%s", a->why);
    else if (a->nbytes != a->itemsize || a->chunk_bytes > 65536)
        r = ckpt_fail(err, EUCLEAN, "a scalar is stored as an array of %llu bytes", (unsigned long long)a->nbytes);
    else
        r = t->ops->chunk(t, node, a, 0, &extent, err);
    if (r == 1) {
        memcpy(ret->element, a->fill, a->itemsize);
        r = 0;
    } else if (r == 0) {
        CKPT_AUTOFREE uint8_t *data = malloc(a->chunk_bytes);
        r = data ? ckpt_decode(&a->codecs, &extent, data, a->chunk_bytes, err) : -ENOMEM;
        if (r == 0) {
            ckpt_swap_words(data, a->itemsize, ckpt_array_swap(a));
            ckpt_dtype_extend(a->dtype, data, 1);
            memcpy(ret->element, data, a->itemsize);
        }
    }
    ret->dtype = a->dtype;
    ckpt_extent_clear(&extent);
    ckpt_array_unref(a);
    return r;
}

/* A number in JSON text as the element of its type. */
static void element_of_text(const struct ckpt_node *n, const char *text, struct ckpt_value *ret)
{
    ret->dtype = n->dtype ? (enum ckpt_dtype)(n->dtype - 1) : ckpt_dtype_for_json(text);
    if (!ckpt_dtype_of_json(ret->dtype, text, ret->element))
        ret->dtype = CKPT_DT_OTHER;
}

int ckpt_tree_value(struct ckpt_tree *t, uint32_t node, struct ckpt_buf *json, struct ckpt_value *ret,
                    struct ckpt_err *err)
{
    struct ckpt_value value = {.dtype = CKPT_DT_OTHER};
    const struct ckpt_node *n = &t->nodes[node];
    int r = 0;
    if (n->text) {
        size_t len;
        const char *text = ckpt_tree_text(t, n->text, &len);
        ckpt_buf_add(json, text, len);
        if (len && *text != '"')
            element_of_text(n, text, &value);
    } else {
        r = read_element(t, node, &value, err);
        if (r == 0 && !ckpt_dtype_add_json(json, value.dtype, value.element))
            r = ckpt_fail(err, EOPNOTSUPP, "a scalar of type %s has no JSON form", ckpt_dtype_info(value.dtype)->name);
    }
    if (ret)
        *ret = value;
    return r < 0 ? r : ckpt_buf_error(json);
}
