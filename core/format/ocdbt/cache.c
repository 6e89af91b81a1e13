/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Nodes, and the cache of them. The lock covers the cache's table only: reading and decoding a node happen outside of
 * it, by one thread, while others that want the same node wait.
 */
#include "core/format/ocdbt/private.h"

#include "core/base/util.h"

#include <stdio.h>

char *ckpt_ocdbt_join(const char *dir, const char *name)
{
    char *path;
    return asprintf(&path, "%s%s%s", dir, *dir ? "/" : "", name) < 0 ? NULL : path;
}

int ckpt_ocdbt_data_open(struct ckpt_ocdbt *db, const char *name, struct ckpt_file **ret)
{
    CKPT_AUTOFREE char *path = ckpt_ocdbt_join(db->dir, name);
    return path ? ckpt_pins_open(db->pins, path, ret) : -ENOMEM;
}

int ckpt_ocdbt_node_read(struct ckpt_ocdbt *db, const struct ckpt_ocdbt_ref *ref, struct ckpt_ocdbt_node **ret,
                         struct ckpt_err *err)
{
    struct ckpt_file *file = NULL;
    CKPT_AUTOFREE uint8_t *data = NULL;
    uint8_t *body;
    size_t body_len;
    int r = ckpt_ocdbt_data_open(db, ref->path, &file);
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

static struct ckpt_ocdbt_slot **slot_find(struct ckpt_ocdbt *db, const struct ckpt_ocdbt_ref *ref)
{
    struct ckpt_ocdbt_slot **at = &db->buckets[ckpt_ocdbt_ref_hash(ref) % CKPT_OCDBT_BUCKETS];
    while (*at && !ckpt_ocdbt_ref_same(&(*at)->ref, ref))
        at = &(*at)->chain;
    return at;
}

static void lru_unlink(struct ckpt_ocdbt *db, struct ckpt_ocdbt_slot *s)
{
    *(s->newer ? &s->newer->older : &db->newest) = s->older;
    *(s->older ? &s->older->newer : &db->oldest) = s->newer;
    s->newer = s->older = NULL;
}

static void lru_push(struct ckpt_ocdbt *db, struct ckpt_ocdbt_slot *s)
{
    s->older = db->newest;
    *(s->older ? &s->older->newer : &db->oldest) = s;
    db->newest = s;
}

static void slot_remove(struct ckpt_ocdbt *db, struct ckpt_ocdbt_slot *s)
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

int ckpt_ocdbt_node_get(struct ckpt_ocdbt *db, const struct ckpt_ocdbt_ref *ref, struct ckpt_ocdbt_node **ret,
                        struct ckpt_err *err)
{
    pthread_mutex_lock(&db->lock);
    struct ckpt_ocdbt_slot *s;
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
    int r = ckpt_ocdbt_node_read(db, ref, &node, err);

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
        good = ckpt_ocdbt_compare_joined(low, common, key, key_len, high, high_len) < 0;
    }
    if (good)
        return 0;
    return ckpt_fail(err, EUCLEAN, "%.200s: B+tree node at offset %llu: its keys are not between those of its parent",
                     child->ref.path, (unsigned long long)child->ref.off);
}

int ckpt_ocdbt_child_get(struct ckpt_ocdbt *db, const struct ckpt_ocdbt_node *parent, uint32_t i,
                         ckpt_ocdbt_node_fn *get, struct ckpt_ocdbt_node **ret, struct ckpt_err *err)
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

void ckpt_ocdbt_share_cache(struct ckpt_ocdbt *db, unsigned count)
{
    CKPT_GUARD(&db->lock);
    db->max = CKPT_OCDBT_CACHE_BYTES / CKPT_MAX(count, 1u);
    while (db->bytes > db->max && db->oldest)
        slot_remove(db, db->oldest);
}

size_t ckpt_ocdbt_memory(struct ckpt_ocdbt *db)
{
    CKPT_GUARD(&db->lock);
    return db->bytes;
}

int ckpt_ocdbt_cached(struct ckpt_ocdbt *db, struct ckpt_ocdbt_node ***ret, size_t *ret_count)
{
    CKPT_GUARD(&db->lock);
    size_t count = 0;
    for (struct ckpt_ocdbt_slot *s = db->newest; s; s = s->older)
        count++;
    struct ckpt_ocdbt_node **nodes = calloc(count + 1, sizeof *nodes);
    if (!nodes)
        return -ENOMEM;
    count = 0;
    for (struct ckpt_ocdbt_slot *s = db->newest; s; s = s->older)
        nodes[count++] = ckpt_ocdbt_node_ref(s->node);
    *ret = nodes;
    *ret_count = count;
    return 0;
}

void ckpt_ocdbt_cache_clear(struct ckpt_ocdbt *db)
{
    for (size_t i = 0; i < CKPT_OCDBT_BUCKETS; i++)
        for (struct ckpt_ocdbt_slot *s = db->buckets[i], *next; s; s = next) {
            next = s->chain;
            ckpt_ocdbt_node_unref(s->node);
            ckpt_ocdbt_ref_clear(&s->ref);
            free(s);
        }
}
