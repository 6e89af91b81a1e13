/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The tree as callers see it, and the cache of its nodes. The lock covers the cache's table only: reading and
 * decoding a node happen outside of it, by one thread, while others that want the same node wait.
 */
#include "core/format/orbax/ocdbt.h"
#include "core/format/orbax/ocdbt_node.h"

#include "core/base/util.h"

#include <stdio.h>

#define MANIFEST_MAX ((size_t)256 << 20)
#define CACHE_BYTES  ((size_t)48 << 20)
#define BUCKETS      256
#define DEPTH_MAX    256 /* heights are 0..255, each below its parent's */

/* One node that is cached, or on its way. */
struct slot {
    struct ckpt_ocdbt_ref ref;
    struct ckpt_ocdbt_node *node; /* NULL: being read */
    struct slot *chain;
    struct slot *newer, *older; /* only with a node */
};

struct ckpt_ocdbt {
    struct ckpt_pins *pins;
    char *dir;
    struct ckpt_ocdbt_manifest manifest;

    pthread_mutex_t lock; /* all below */
    pthread_cond_t arrived;
    struct slot *buckets[BUCKETS];
    struct slot *newest, *oldest;
    size_t bytes, max;
};

static char *path_join(const char *dir, const char *name)
{
    char *path;
    return asprintf(&path, "%s%s%s", dir, *dir ? "/" : "", name) < 0 ? NULL : path;
}

static int data_open(struct ckpt_ocdbt *db, const char *name, struct ckpt_file **ret)
{
    CKPT_AUTOFREE char *path = path_join(db->dir, name);
    return path ? ckpt_pins_open(db->pins, path, ret) : -ENOMEM;
}

/* ---- open ---- */

/* Numbered manifests are manifest.%016x, the generation in lower-case hex; the highest is the newest. */
#define NUMBERED_PREFIX "manifest."
#define NUMBERED_DIGITS 16

static int numbered_visit(void *arg, const char *name, enum ckpt_ftype type)
{
    char *best = arg;
    size_t skip = strlen(NUMBERED_PREFIX);
    if (strncmp(name, NUMBERED_PREFIX, skip) != 0 || strlen(name) != skip + NUMBERED_DIGITS ||
        strspn(name + skip, "0123456789abcdef") != NUMBERED_DIGITS)
        return 0;
    if (strcmp(name, best) > 0)
        strcpy(best, name);
    return 0;
}

static int manifest_read(struct ckpt_ocdbt *db, const char *name, struct ckpt_err *err)
{
    CKPT_AUTOFREE uint8_t *data = NULL;
    CKPT_AUTOFREE char *path = path_join(db->dir, name);
    size_t len;
    if (!path)
        return ckpt_fail(err, ENOMEM, "out of memory");
    int r = ckpt_backend_read_all(ckpt_pins_dir(db->pins), path, MANIFEST_MAX, &data, &len);
    if (r == -EFBIG)
        return ckpt_fail(err, EUCLEAN, "%s: too large for a manifest", path);
    if (r < 0)
        return ckpt_fail(err, -r, "%s: cannot be read: %s", path, strerror(-r));
    r = ckpt_ocdbt_manifest_parse(data, len, &db->manifest, err);
    return r < 0 ? ckpt_fail_in(err, -r, "%s", path) : 0;
}

static int manifest_load(struct ckpt_ocdbt *db, struct ckpt_err *err)
{
    int r = manifest_read(db, "manifest.ocdbt", err);
    if (r < 0 || !db->manifest.numbered)
        return r;
    char name[sizeof NUMBERED_PREFIX + NUMBERED_DIGITS] = "";
    r = ckpt_backend_list(ckpt_pins_dir(db->pins), db->dir, numbered_visit, name);
    if (r < 0)
        return ckpt_fail(err, -r, "cannot look for numbered manifests: %s", strerror(-r));
    if (!*name)
        return ckpt_fail(err, EUCLEAN, "manifest.ocdbt: its numbered manifests are missing");
    r = manifest_read(db, name, err);
    if (r == 0 && db->manifest.numbered)
        r = ckpt_fail(err, EUCLEAN, "%s: points to numbered manifests again", name);
    return r;
}

int ckpt_ocdbt_open(struct ckpt_pins *pins, const char *dir, struct ckpt_ocdbt **ret, struct ckpt_err *err)
{
    struct ckpt_ocdbt *db = calloc(1, sizeof *db);
    if (!db)
        return ckpt_fail(err, ENOMEM, "out of memory");
    pthread_mutex_init(&db->lock, NULL);
    pthread_cond_init(&db->arrived, NULL);
    db->pins = pins;
    db->max = CACHE_BYTES;
    db->dir = strdup(dir);
    int r = db->dir ? manifest_load(db, err) : ckpt_fail(err, ENOMEM, "out of memory");
    if (r < 0) {
        ckpt_ocdbt_close(db);
        return r;
    }
    *ret = db;
    return 0;
}

void ckpt_ocdbt_close(struct ckpt_ocdbt *db)
{
    if (!db)
        return;
    for (size_t i = 0; i < BUCKETS; i++) {
        for (struct slot *s = db->buckets[i], *next; s; s = next) {
            next = s->chain;
            ckpt_ocdbt_node_unref(s->node);
            ckpt_ocdbt_ref_clear(&s->ref);
            free(s);
        }
    }
    ckpt_ocdbt_ref_clear(&db->manifest.root);
    pthread_cond_destroy(&db->arrived);
    pthread_mutex_destroy(&db->lock);
    free(db->dir);
    free(db);
}

/* ---- nodes ---- */

static int node_read(struct ckpt_ocdbt *db, const struct ckpt_ocdbt_ref *ref, struct ckpt_ocdbt_node **ret,
                     struct ckpt_err *err)
{
    struct ckpt_file *file = NULL;
    CKPT_AUTOFREE uint8_t *data = NULL;
    uint8_t *body;
    size_t body_len;
    int r = data_open(db, ref->path, &file);
    if (r < 0) {
        ckpt_fail(err, -r, "cannot be opened: %s", strerror(-r));
    } else if (ref->len > CKPT_OCDBT_BODY_MAX) {
        r = ckpt_fail(err, EUCLEAN, "%llu bytes are too many", (unsigned long long)ref->len);
    } else if (ref->off > file->st.size || ref->len > file->st.size - ref->off) {
        r = ckpt_fail(err, EBADMSG, "the file has %llu bytes and is truncated", (unsigned long long)file->st.size);
    } else if (!(data = malloc(ref->len ? ref->len : 1))) {
        r = ckpt_fail(err, ENOMEM, "out of memory");
    } else {
        ssize_t n = ckpt_file_read(file, data, ref->len, ref->off);
        if (n < 0)
            r = ckpt_fail(err, (int)-n, "cannot be read: %s", strerror((int)-n));
        else if ((uint64_t)n < ref->len)
            r = ckpt_fail(err, EBADMSG, "the file is truncated");
    }
    ckpt_file_unref(file);
    if (r == 0)
        r = ckpt_ocdbt_envelope(data, ref->len, CKPT_OCDBT_NODE, &body, &body_len, err);
    if (r == 0) {
        free(CKPT_STEAL(data)); /* not to be held beside the decoded body */
        r = ckpt_ocdbt_node_parse(ref, body, body_len, ret, err);
    }
    if (r < 0)
        ckpt_fail_in(err, -r, "%s%s%.200s: B+tree node at offset %llu", db->dir, *db->dir ? "/" : "", ref->path,
                     (unsigned long long)ref->off);
    return r;
}

static struct slot **slot_find(struct ckpt_ocdbt *db, const struct ckpt_ocdbt_ref *ref)
{
    struct slot **at = &db->buckets[ckpt_ocdbt_ref_hash(ref) % BUCKETS];
    while (*at && !ckpt_ocdbt_ref_same(&(*at)->ref, ref))
        at = &(*at)->chain;
    return at;
}

static void lru_unlink(struct ckpt_ocdbt *db, struct slot *s)
{
    *(s->newer ? &s->newer->older : &db->newest) = s->older;
    *(s->older ? &s->older->newer : &db->oldest) = s->newer;
    s->newer = s->older = NULL;
}

static void lru_push(struct ckpt_ocdbt *db, struct slot *s)
{
    s->older = db->newest;
    *(s->older ? &s->older->newer : &db->oldest) = s;
    db->newest = s;
}

static void slot_remove(struct ckpt_ocdbt *db, struct slot *s)
{
    *slot_find(db, &s->ref) = s->chain;
    if (s->node) {
        lru_unlink(db, s);
        db->bytes -= s->node->bytes;
        ckpt_ocdbt_node_unref(s->node);
    }
    ckpt_ocdbt_ref_clear(&s->ref);
    free(s);
}

/* A node through the cache; the caller unrefs it. */
static int node_get(struct ckpt_ocdbt *db, const struct ckpt_ocdbt_ref *ref, struct ckpt_ocdbt_node **ret,
                    struct ckpt_err *err)
{
    pthread_mutex_lock(&db->lock);
    struct slot *s;
    while ((s = *slot_find(db, ref))) {
        if (s->node) {
            lru_unlink(db, s);
            lru_push(db, s);
            *ret = ckpt_ocdbt_node_ref(s->node);
            pthread_mutex_unlock(&db->lock);
            return 0;
        }
        /* When it failed for the other thread its slot is gone, and this one tries for itself. */
        pthread_cond_wait(&db->arrived, &db->lock);
    }
    s = calloc(1, sizeof *s);
    if (!s || ckpt_ocdbt_ref_copy(&s->ref, ref) < 0) {
        pthread_mutex_unlock(&db->lock);
        free(s);
        return ckpt_fail(err, ENOMEM, "out of memory");
    }
    *slot_find(db, ref) = s;
    pthread_mutex_unlock(&db->lock);

    struct ckpt_ocdbt_node *node = NULL;
    int r = node_read(db, ref, &node, err);

    pthread_mutex_lock(&db->lock);
    if (r < 0) {
        slot_remove(db, s);
    } else {
        s->node = ckpt_ocdbt_node_ref(node);
        lru_push(db, s);
        db->bytes += node->bytes;
        while (db->bytes > db->max && db->oldest != s)
            slot_remove(db, db->oldest);
        *ret = node;
    }
    pthread_cond_broadcast(&db->arrived);
    pthread_mutex_unlock(&db->lock);
    return r;
}

/* a ++ b against c. */
static int compare_joined(const uint8_t *a, size_t a_len, const uint8_t *b, size_t b_len, const uint8_t *c,
                          size_t c_len)
{
    if (c_len <= a_len) {
        int r = memcmp(a, c, c_len);
        return r ? r : a_len + b_len > c_len;
    }
    int r = memcmp(a, c, a_len);
    return r ? r : ckpt_ocdbt_compare(b, b_len, c + a_len, c_len - a_len);
}

/* That a child's keys lie where its parent says; otherwise a lookup would go astray without a word. */
static int child_check(const struct ckpt_ocdbt_node *parent, uint32_t i, const struct ckpt_ocdbt_node *child,
                       struct ckpt_err *err)
{
    size_t low_len, high_len, key_len, common = parent->common[i];
    const uint8_t *low = ckpt_ocdbt_key(parent, i, &low_len);
    const uint8_t *key = ckpt_ocdbt_key(child, 0, &key_len);
    bool good = ckpt_ocdbt_compare(key, key_len, low + common, low_len - common) >= 0;
    if (good && i + 1 < parent->count) {
        const uint8_t *high = ckpt_ocdbt_key(parent, i + 1, &high_len);
        key = ckpt_ocdbt_key(child, child->count - 1, &key_len);
        good = compare_joined(low, common, key, key_len, high, high_len) < 0;
    }
    if (good)
        return 0;
    return ckpt_fail(err, EUCLEAN, "%.200s: B+tree node at offset %llu: its keys are not between those of its parent",
                     child->ref.path, (unsigned long long)child->ref.off);
}

typedef int node_fn(struct ckpt_ocdbt *db, const struct ckpt_ocdbt_ref *ref, struct ckpt_ocdbt_node **ret,
                    struct ckpt_err *err);

static int child_get(struct ckpt_ocdbt *db, const struct ckpt_ocdbt_node *parent, uint32_t i, node_fn *get,
                     struct ckpt_ocdbt_node **ret, struct ckpt_err *err)
{
    size_t key_len;
    const uint8_t *key = ckpt_ocdbt_key(parent, i, &key_len);
    uint32_t file = parent->file[i];
    struct ckpt_ocdbt_ref ref;
    int r = ckpt_ocdbt_ref_init(&ref, ckpt_ocdbt_path(&parent->files, file), parent->files.base[file], parent->pos[i],
                                parent->len[i], parent->ref.height - 1, parent->ref.prefix, parent->ref.prefix_len, key,
                                parent->common[i]);
    if (r < 0)
        return ckpt_fail(err, ENOMEM, "out of memory");
    struct ckpt_ocdbt_node *child;
    r = get(db, &ref, &child, err);
    ckpt_ocdbt_ref_clear(&ref);
    if (r < 0)
        return r;
    r = child_check(parent, i, child, err);
    if (r < 0) {
        ckpt_ocdbt_node_unref(child);
        return r;
    }
    *ret = child;
    return 0;
}

/* ---- lookups ---- */

/* True if one is a prefix of the other. */
static bool agrees(const uint8_t *a, size_t a_len, const uint8_t *b, size_t b_len)
{
    return memcmp(a, b, CKPT_MIN(a_len, b_len)) == 0;
}

static bool begins_with(const uint8_t *key, size_t len, const uint8_t *prefix, size_t prefix_len)
{
    return len >= prefix_len && memcmp(key, prefix, prefix_len) == 0;
}

static int no_key(struct ckpt_err *err, const void *key, size_t len)
{
    return ckpt_fail(err, ENOENT, "there is no key \"%.*s\"", (int)CKPT_MIN(len, (size_t)200), (const char *)key);
}

static int value_get(struct ckpt_ocdbt *db, const struct ckpt_ocdbt_node *leaf, uint32_t i, struct ckpt_extent *ret,
                     struct ckpt_err *err)
{
    struct ckpt_extent e = {.off = leaf->pos[i], .len = leaf->len[i]};
    if (leaf->file[i] == CKPT_OCDBT_INLINE) {
        e.off = 0;
        e.bytes = malloc(e.len ? e.len : 1);
        if (!e.bytes)
            return ckpt_fail(err, ENOMEM, "out of memory");
        if (e.len)
            memcpy(e.bytes, leaf->values + leaf->pos[i], e.len);
        *ret = e;
        return 0;
    }
    const char *path = ckpt_ocdbt_path(&leaf->files, leaf->file[i]);
    int r = data_open(db, path, &e.file);
    if (r < 0)
        return ckpt_fail(err, r == -ENOENT ? EIO : -r, "%s%s%.200s: data file cannot be opened: %s", db->dir,
                         *db->dir ? "/" : "", path, strerror(-r));
    if (e.off + e.len > e.file->st.size) {
        r = ckpt_fail(err, EBADMSG, "%s%s%.200s: the data file has %llu bytes and is truncated", db->dir,
                      *db->dir ? "/" : "", path, (unsigned long long)e.file->st.size);
        ckpt_file_unref(e.file);
        return r;
    }
    *ret = e;
    return 0;
}

int ckpt_ocdbt_get(struct ckpt_ocdbt *db, const void *key, size_t key_len, struct ckpt_extent *ret,
                   struct ckpt_err *err)
{
    if (db->manifest.empty || key_len > CKPT_OCDBT_KEY_MAX)
        return no_key(err, key, key_len);
    struct ckpt_ocdbt_node *node;
    int r = node_get(db, &db->manifest.root, &node, err);
    while (r == 0) {
        /* Only children that agree with the key are descended into, so the prefix is there. */
        const uint8_t *rest = (const uint8_t *)key + node->ref.prefix_len;
        size_t rest_len = key_len - node->ref.prefix_len, found_len = 0;
        uint32_t i = ckpt_ocdbt_lower_bound(node, rest, rest_len);
        const uint8_t *found = i < node->count ? ckpt_ocdbt_key(node, i, &found_len) : NULL;
        bool exact = found && found_len == rest_len && memcmp(found, rest, rest_len) == 0;
        if (!node->ref.height) {
            r = exact ? value_get(db, node, i, ret, err) : no_key(err, key, key_len);
            ckpt_ocdbt_node_unref(node);
            return r;
        }
        if (!exact)
            i--; /* the child before; there is none below the first */
        if (i < node->count)
            found = ckpt_ocdbt_key(node, i, &found_len);
        struct ckpt_ocdbt_node *child = NULL;
        if (i >= node->count || !begins_with(rest, rest_len, found, node->common[i]))
            r = no_key(err, key, key_len);
        else
            r = child_get(db, node, i, node_get, &child, err);
        ckpt_ocdbt_node_unref(node);
        node = child;
    }
    return r;
}

/* ---- walks ---- */

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
    node_fn *get;
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
    if (!begins_with(key, key_len, rest, rest_len) && ckpt_ocdbt_compare(key, key_len, rest, rest_len) > 0) {
        w->stack[w->depth - 1].next = node->count; /* beyond the prefix, and so are the rest */
        return 0;
    }
    if (!agrees(key, node->common[i], rest, rest_len))
        return 0;
    struct ckpt_ocdbt_node *child;
    int r = child_get(w->db, node, i, w->get, &child, err);
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
    if (w->begun && compare_joined(ref->prefix, ref->prefix_len, key, len, w->last, w->last_len) <= 0)
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
        if (!begins_with(key, len, rest, rest_len))
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
                     .get = node_get,
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
            r = value_get(w->db, leaf, i, &e, err);
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
                     .get = node_read,
                     .leaf = verify_leaf,
                     .entered = verify_entered,
                     .progress = progress,
                     .arg = arg};
    return walk_run(&w, err);
}

/* ---- pinning ---- */

static int pin_files(struct ckpt_ocdbt *db, const struct ckpt_ocdbt_node *node, struct ckpt_err *err)
{
    int missing = 0;
    for (uint32_t i = 0; i < node->files.count; i++) {
        const char *path = ckpt_ocdbt_path(&node->files, i);
        struct ckpt_file *file;
        if (!*path) /* what a database without a root refers to */
            continue;
        int r = data_open(db, path, &file);
        if (r == -ENOENT) { /* the others are pinned all the same */
            missing = ckpt_fail(err, ENOENT, "%.200s: the data file is missing", path);
            continue;
        }
        if (r < 0)
            return ckpt_fail(err, -r, "%.200s: data file cannot be opened: %s", path, strerror(-r));
        ckpt_file_unref(file);
    }
    return missing;
}

void ckpt_ocdbt_share_cache(struct ckpt_ocdbt *db, unsigned count)
{
    CKPT_GUARD(&db->lock);
    db->max = CACHE_BYTES / CKPT_MAX(count, 1u);
    while (db->bytes > db->max && db->oldest)
        slot_remove(db, db->oldest);
}

size_t ckpt_ocdbt_memory(struct ckpt_ocdbt *db)
{
    CKPT_GUARD(&db->lock);
    return db->bytes;
}

int ckpt_ocdbt_pin(struct ckpt_ocdbt *db, struct ckpt_err *err)
{
    if (db->manifest.empty)
        return 0;
    struct ckpt_ocdbt_node *root;
    int r = node_get(db, &db->manifest.root, &root, err);
    if (r < 0)
        return r;
    ckpt_ocdbt_node_unref(root);

    /* The cached nodes are collected first: opening files is not for under the lock. */
    struct ckpt_ocdbt_node **nodes = NULL;
    size_t count = 0;
    pthread_mutex_lock(&db->lock);
    for (struct slot *s = db->newest; s; s = s->older)
        count++;
    nodes = calloc(count + 1, sizeof *nodes);
    count = 0;
    for (struct slot *s = db->newest; nodes && s; s = s->older)
        nodes[count++] = ckpt_ocdbt_node_ref(s->node);
    pthread_mutex_unlock(&db->lock);
    if (!nodes)
        return ckpt_fail(err, ENOMEM, "out of memory");
    for (size_t i = 0; i < count; i++) {
        int e = pin_files(db, nodes[i], err);
        r = r ? r : e;
        ckpt_ocdbt_node_unref(nodes[i]);
    }
    free(nodes);
    return r;
}
