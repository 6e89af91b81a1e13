/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The folder as a tree, in the order of names: a directory that is an array is a leaf, one that is a database has its
 * keys below it, others are directories. Files that are neither Zarr's nor the database's are blobs. Links are followed
 * to files that are inside of the source.
 */
#include "core/format/zarrs/zarrs_private.h"

#include "core/base/log.h"
#include "core/base/util.h"

#include <stdio.h>

#define MAX_ENTRIES (1u << 22) /* files and directories, chunks not counted */
#define MAX_BASES   4096
#define MAX_PATH    4096

/* Names of a directory, each after its type. */
struct names {
    char **names;
    size_t count, cap;
    bool in_array;            /* chunks are left out */
    bool manifest, processes; /* it is a database; those of processes are in it */
};

struct walk {
    struct zarrs *z;
    char path[MAX_PATH];
    uint32_t count;
    struct ckpt_err *err;
};

static void names_clear(struct names *n)
{
    for (size_t i = 0; i < n->count; i++)
        free(n->names[i]);
    free(n->names);
}

#define AUTO_NAMES __attribute__((cleanup(names_clear)))

static int add_name(void *arg, const char *name, enum ckpt_ftype type)
{
    struct names *n = arg;
    size_t len = strlen(name);
    n->manifest |= type == CKPT_FT_FILE && !strcmp(name, "manifest.ocdbt");
    n->processes |= type == CKPT_FT_DIR && ckpt_zarrs_is_process(name);
    bool dir = type == CKPT_FT_DIR, chunk = n->in_array && ckpt_zarrs_is_chunk(name, len);
    if (type == CKPT_FT_OTHER || chunk || (!dir && ckpt_zarrs_is_own(name, len)))
        return 0;
    if (n->count == MAX_ENTRIES)
        return -E2BIG;
    if (n->count == n->cap) {
        size_t cap = n->cap ? n->cap * 2 : 16;
        char **p = realloc(n->names, cap * sizeof *p);
        if (!p)
            return -ENOMEM;
        n->names = p;
        n->cap = cap;
    }
    char *copy = malloc(len + 2);
    if (!copy)
        return -ENOMEM;
    *copy = (char)type;
    memcpy(copy + 1, name, len + 1);
    n->names[n->count++] = copy;
    return 0;
}

static int by_name(const void *a, const void *b)
{
    return strcmp(*(char *const *)a + 1, *(char *const *)b + 1);
}

static int too_many(struct walk *w)
{
    return ckpt_fail(w->err, EOPNOTSUPP, "more than %u files and directories", MAX_ENTRIES);
}

static int list(struct walk *w, struct names *n)
{
    int r = ckpt_backend_list(ckpt_pins_dir(w->z->tree->pins), w->path, add_name, n);
    if (r == -E2BIG)
        return too_many(w);
    if (r < 0)
        return ckpt_fail(w->err, -r, "%s%s%s", w->path, *w->path ? ": " : "", strerror(-r));
    if (n->count)
        qsort(n->names, n->count, sizeof *n->names, by_name);
    return 0;
}

/* --- databases --- */

static int new_base(struct walk *w, uint32_t top, struct zarrs_base **ret)
{
    struct zarrs *z = w->z;
    if (z->base_count == MAX_BASES)
        return ckpt_fail(w->err, EOPNOTSUPP, "more than %d databases", MAX_BASES);
    struct zarrs_base *p = realloc(z->bases, (z->base_count + 1) * sizeof *p);
    if (!p)
        return ckpt_no_memory(w->err);
    z->bases = p;
    *ret = &p[z->base_count++];
    **ret = (struct zarrs_base){.top = top};
    return 0;
}

static int open_part(struct walk *w, struct zarrs_base *b)
{
    struct ckpt_ocdbt **p = realloc(b->parts, (b->count + 1) * sizeof *p);
    if (!p)
        return ckpt_no_memory(w->err);
    b->parts = p;
    int r = ckpt_ocdbt_open(w->z->tree->pins, w->path, &p[b->count], w->err);
    b->count += r == 0;
    return r == -ENOENT ? ckpt_fail(w->err, EUCLEAN, "%s: its manifest.ocdbt is missing", w->path) : r;
}

/* Appends a name to the path; *ret_old is its length before. */
static bool enter(struct walk *w, const char *name, size_t *ret_old)
{
    *ret_old = strlen(w->path);
    size_t left = sizeof w->path - *ret_old;
    return snprintf(w->path + *ret_old, left, "%s%s", *ret_old ? "/" : "", name) < (int)left;
}

/* A directory of a process, whose database is joined with the one above, or is a part of it. */
static bool is_part(struct walk *w, const char *entry)
{
    size_t old;
    bool named = *entry == (char)CKPT_FT_DIR && ckpt_zarrs_is_process(entry + 1);
    if (!named)
        return false;
    bool part = enter(w, entry + 1, &old) &&
                ckpt_zarrs_look(ckpt_pins_dir(w->z->tree->pins), w->path) == ZARRS_DATABASE;
    w->path[old] = 0;
    return part;
}

static int add_parts(struct walk *w, const struct names *n, struct zarrs_base *b)
{
    int r = 0;
    for (size_t i = 0; i < n->count && r == 0; i++) {
        size_t old = strlen(w->path);
        if (!is_part(w, n->names[i]))
            continue;
        if (enter(w, n->names[i] + 1, &old))
            r = open_part(w, b);
        w->path[old] = 0;
    }
    return r;
}

static bool has_parts(struct walk *w, const struct names *n)
{
    for (size_t i = 0; n->processes && i < n->count; i++)
        if (is_part(w, n->names[i]))
            return true;
    return false;
}

static void keep_files(struct ckpt_ocdbt *db)
{
    struct ckpt_err err = {0};
    if (ckpt_ocdbt_pin(db, &err) < 0) /* the leaves that it concerns will say so */
        ckpt_log(CKPT_LOG_DEBUG, "%s", err.text);
    ckpt_ocdbt_share_cache(db, MAX_BASES); /* there may be many: what each may keep is known later */
}

/* The database of a directory, or those of its processes where nobody has joined them. */
static int add_base(struct walk *w, uint32_t node, const struct names *n)
{
    struct zarrs_base *b = NULL;
    int r = new_base(w, node, &b);
    if (r == 0)
        r = n->manifest ? open_part(w, b) : add_parts(w, n, b);
    if (r == 0)
        r = ckpt_zarrs_add_keys(w->z, w->z->base_count - 1, w->err);
    for (unsigned i = 0; r == 0 && i < b->count; i++)
        keep_files(b->parts[i]);
    return r;
}

/* manifest.ocdbt, manifest.0000000000000001, d/ */
static bool is_of_base(const char *entry)
{
    const char *name = entry + 1;
    if (*entry == (char)CKPT_FT_DIR)
        return !strcmp(name, "d");
    if (!strcmp(name, "manifest.ocdbt"))
        return true;
    const char *digits = strncmp(name, "manifest.", 9) ? "" : name + 9;
    return strlen(digits) == 16 && strspn(digits, "0123456789abcdef") == 16;
}

/* --- directories --- */

static int add_entries(struct walk *w, uint32_t node, const struct names *n);

static int add_blob(struct walk *w, uint32_t parent, const char *name, enum ckpt_ftype type)
{
    struct ckpt_stat st;
    uint32_t node;
    if (type == CKPT_FT_LINK) { /* one that leads to nothing, out, or to a directory, is not shown */
        bool file = ckpt_backend_stat(ckpt_pins_dir(w->z->tree->pins), w->path, &st) == 0 && st.type == CKPT_FT_FILE;
        if (!file)
            return 0;
    }
    return ckpt_tree_add(w->z->tree, parent, name, strlen(name), false, CKPT_NODE_BLOB, &node, w->err);
}

/* An array, and what else the user has in its directory. */
static int add_array(struct walk *w, uint32_t parent, const char *name, enum zarrs_kind kind, bool bare)
{
    AUTO_NAMES struct names n = {.in_array = true};
    struct ckpt_tree *t = w->z->tree;
    uint32_t node = parent;
    int r = ckpt_tree_add(t, parent, name, strlen(name), false, CKPT_NODE_ARRAY, &node, w->err);
    if (r < 0)
        return r;
    t->nodes[node].mark = (uint8_t)((bare ? ZARRS_BARE : 0) | (kind == ZARRS_ARRAY3 ? ZARRS_VERSION3 : 0));
    r = list(w, &n);
    if (r < 0 || !n.count)
        return r;
    node = parent;
    if (!bare)
        r = ckpt_tree_add(t, parent, name, strlen(name), false, CKPT_NODE_DIR, &node, w->err);
    return r < 0 ? r : add_entries(w, node, &n);
}

static int add_dir(struct walk *w, uint32_t parent, const char *name)
{
    AUTO_NAMES struct names n = {0};
    uint32_t node;
    enum zarrs_kind kind = ckpt_zarrs_look(ckpt_pins_dir(w->z->tree->pins), w->path);
    if (ckpt_zarrs_is_array(kind))
        return add_array(w, parent, name, kind, false);
    struct ckpt_tree *t = w->z->tree;
    int r = ckpt_tree_add(t, parent, name, strlen(name), false, CKPT_NODE_DIR, &node, w->err);
    bool may_be_apart = r == 0 && !parent && w->z->apart;
    if (may_be_apart && ckpt_zarrs_is_foreign(ckpt_pins_dir(t->pins), w->path)) {
        t->nodes[node].mark = CKPT_BELOW_MARK;
        return 0;
    }
    if (r == 0)
        r = list(w, &n);
    return r < 0 ? r : add_entries(w, node, &n);
}

static int add_entry(struct walk *w, uint32_t node, const char *entry)
{
    enum ckpt_ftype type = (enum ckpt_ftype) * entry;
    size_t old;
    if (++w->count > MAX_ENTRIES)
        return too_many(w);
    if (!enter(w, entry + 1, &old))
        return ckpt_fail(w->err, EOPNOTSUPP, "%.200s...: a path of more than %d bytes", w->path, MAX_PATH - 1);
    int r = type == CKPT_FT_DIR ? add_dir(w, node, entry + 1) : add_blob(w, node, entry + 1, type);
    w->path[old] = 0;
    return r;
}

/* What the current directory, which is no array or has something beside it, adds to a node. */
static int add_entries(struct walk *w, uint32_t node, const struct names *n)
{
    bool base = n->manifest || has_parts(w, n);
    int r = base ? add_base(w, node, n) : 0;
    for (size_t i = 0; i < n->count && r == 0; i++) {
        const char *entry = n->names[i];
        bool own = base && (is_of_base(entry) || is_part(w, entry));
        if (!own)
            r = add_entry(w, node, entry);
    }
    return r;
}

/* Each database may keep its share of what one alone would. */
static void share_caches(struct zarrs *z)
{
    unsigned count = 0;
    for (uint32_t i = 0; i < z->base_count; i++)
        count += z->bases[i].count;
    for (uint32_t i = 0; i < z->base_count; i++)
        for (unsigned part = 0; part < z->bases[i].count; part++)
            ckpt_ocdbt_share_cache(z->bases[i].parts[part], count);
}

int ckpt_zarrs_add_folder(struct zarrs *z, struct ckpt_err *err)
{
    struct walk w = {.z = z, .err = err};
    AUTO_NAMES struct names n = {0};
    enum zarrs_kind kind = ckpt_zarrs_look(ckpt_pins_dir(z->tree->pins), "");
    int r = 0;
    if (ckpt_zarrs_is_array(kind))
        r = add_array(&w, 0, "", kind, true);
    else {
        r = list(&w, &n);
        if (r == 0)
            r = add_entries(&w, 0, &n);
    }
    share_caches(z);
    return r;
}
