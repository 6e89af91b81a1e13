/* SPDX-License-Identifier: Apache-2.0 */
/* A database as callers see it: its manifest, its values, and which of its files are kept open. */
#include "core/format/ocdbt/private.h"

#include "core/base/util.h"

#include <stdio.h>

#define MANIFEST_MAX ((size_t)256 << 20)

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
    CKPT_AUTOFREE char *path = ckpt_ocdbt_join(db->dir, name);
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
    db->max = CKPT_OCDBT_CACHE_BYTES;
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
    ckpt_ocdbt_cache_clear(db);
    ckpt_ocdbt_ref_clear(&db->manifest.root);
    pthread_cond_destroy(&db->arrived);
    pthread_mutex_destroy(&db->lock);
    free(db->dir);
    free(db);
}

/* ---- lookups ---- */

static int no_key(struct ckpt_err *err, const void *key, size_t len)
{
    return ckpt_fail(err, ENOENT, "there is no key \"%.*s\"", (int)CKPT_MIN(len, (size_t)200), (const char *)key);
}

int ckpt_ocdbt_value_get(struct ckpt_ocdbt *db, const struct ckpt_ocdbt_node *leaf, uint32_t i, struct ckpt_extent *ret,
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
    int r = ckpt_ocdbt_data_open(db, path, &e.file);
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
    int r = ckpt_ocdbt_node_get(db, &db->manifest.root, &node, err);
    while (r == 0) {
        /* Only children that agree with the key are descended into, so the prefix is there. */
        const uint8_t *rest = (const uint8_t *)key + node->ref.prefix_len;
        size_t rest_len = key_len - node->ref.prefix_len, found_len = 0;
        uint32_t i = ckpt_ocdbt_lower_bound(node, rest, rest_len);
        const uint8_t *found = i < node->count ? ckpt_ocdbt_key(node, i, &found_len) : NULL;
        bool exact = found && found_len == rest_len && memcmp(found, rest, rest_len) == 0;
        if (!node->ref.height) {
            r = exact ? ckpt_ocdbt_value_get(db, node, i, ret, err) : no_key(err, key, key_len);
            ckpt_ocdbt_node_unref(node);
            return r;
        }
        if (!exact)
            i--; /* the child before; there is none below the first */
        if (i < node->count)
            found = ckpt_ocdbt_key(node, i, &found_len);
        struct ckpt_ocdbt_node *child = NULL;
        if (i >= node->count || !ckpt_ocdbt_begins_with(rest, rest_len, found, node->common[i]))
            r = no_key(err, key, key_len);
        else
            r = ckpt_ocdbt_child_get(db, node, i, ckpt_ocdbt_node_get, &child, err);
        ckpt_ocdbt_node_unref(node);
        node = child;
    }
    return r;
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
        int r = ckpt_ocdbt_data_open(db, path, &file);
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

int ckpt_ocdbt_pin(struct ckpt_ocdbt *db, struct ckpt_err *err)
{
    if (db->manifest.empty)
        return 0;
    struct ckpt_ocdbt_node *root;
    int r = ckpt_ocdbt_node_get(db, &db->manifest.root, &root, err);
    if (r < 0)
        return r;
    ckpt_ocdbt_node_unref(root);

    /* The cached nodes are collected first: opening files is not for under the lock. */
    struct ckpt_ocdbt_node **nodes;
    size_t count;
    if (ckpt_ocdbt_cached(db, &nodes, &count) < 0)
        return ckpt_no_memory(err);
    for (size_t i = 0; i < count; i++) {
        int e = pin_files(db, nodes[i], err);
        r = r ? r : e;
        ckpt_ocdbt_node_unref(nodes[i]);
    }
    free(nodes);
    return r;
}
