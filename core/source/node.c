/* SPDX-License-Identifier: Apache-2.0 */
/* The table of nodes: by id, by parent and name, and those of checkpoints by their serials. All under the source's lock. */
#include "core/base/util.h"
#include "core/format/store/manifest.h"
#include "core/source/source.h"
#include "core/tree/key.h"

#include <stdio.h>

static uint64_t hash_text(uint64_t h, const char *p)
{
    h ^= 0xcbf29ce484222325;
    for (; *p; p++)
        h = (h ^ (uint8_t)*p) * 0x100000001b3;
    return ckpt_mix(h);
}

static struct node **id_bucket(struct node_table *t, uint64_t id)
{
    return &t->by_id[id % NODE_BUCKETS];
}

static struct node **name_bucket(struct node_table *t, uint64_t parent, const char *name)
{
    return &t->by_name[hash_text(parent, name) % NODE_BUCKETS];
}

static struct node **serial_bucket(struct node_table *t, uint32_t serial)
{
    return &t->by_serial[serial % NODE_BUCKETS];
}

struct node *node_by_id(struct node_table *t, uint64_t id)
{
    struct node *n = *id_bucket(t, id);
    while (n && n->id != id)
        n = n->next_id;
    return n;
}

static struct node *by_serial(struct node_table *t, uint32_t serial)
{
    struct node *n = *serial_bucket(t, serial);
    while (n && n->serial != serial)
        n = n->next_serial;
    return n;
}

struct node *node_of_id(struct node_table *t, uint64_t id)
{
    return id < NODE_INSIDE ? node_by_id(t, id) : by_serial(t, (uint32_t)(id >> 40));
}

static struct node *by_name(struct node_table *t, uint64_t parent, const char *name)
{
    struct node *n = *name_bucket(t, parent, name);
    while (n && (n->parent != parent || strcmp(n->name, name)))
        n = n->next_name;
    return n;
}

static void give_name(struct node_table *t, struct node *n)
{
    struct node **b = name_bucket(t, n->parent, n->name);
    n->next_name = *b;
    *b = n;
    n->named = true;
}

void node_unname(struct node_table *t, struct node *n)
{
    if (!n->named)
        return;
    struct node **link = name_bucket(t, n->parent, n->name);
    while (*link != n)
        link = &(*link)->next_name;
    *link = n->next_name;
    n->named = false;
}

void node_insert(struct node_table *t, struct node *n, uint64_t id)
{
    n->id = id ? id : t->next_id++;
    struct node **b = id_bucket(t, n->id);
    n->next_id = *b;
    *b = n;
    give_name(t, n);
    if (n->kind == NODE_TREE) {
        do
            t->next_serial = (t->next_serial + 1) & 0x7fffff; /* bit 63 of an id is of staged steps */
        while (!t->next_serial || by_serial(t, t->next_serial));
        n->serial = t->next_serial;
        b = serial_bucket(t, n->serial);
        n->next_serial = *b;
        *b = n;
    }
}

static void take_out(struct node_table *t, struct node *n)
{
    node_unname(t, n);
    struct node **link = id_bucket(t, n->id);
    while (*link != n)
        link = &(*link)->next_id;
    *link = n->next_id;
    if (n->serial) {
        link = serial_bucket(t, n->serial);
        while (*link != n)
            link = &(*link)->next_serial;
        *link = n->next_serial;
    }
}

/* --- nodes --- */

void node_free(struct ckpt_source *src, struct node *n)
{
    if (n->tree) {
        ckpt_cache_drop_tree(src->cache, n->tree->id);
        ckpt_tree_unref(n->tree);
    }
    source_forget_removal(src, n);
    ckpt_backend_unref(n->files);
    ckpt_pins_unref(n->pins);
    ckpt_listing_unref(n->listing);
    for (uint32_t i = 0; i < n->slice_count; i++)
        if (n->slices[i]) {
            free(n->slices[i]->text);
            free(n->slices[i]);
        }
    ckpt_file_unref(n->file);
    ckpt_backend_unref(n->blob);
    pthread_mutex_destroy(&n->load);
    free(n->slices);
    ckpt_stages_close(n->stages);
    ckpt_store_close(n->store);
    free(n->link);
    free(n->dir);
    free(n->manifest);
    for (size_t i = 0; i < n->old_count; i++)
        free(n->old[i]);
    free(n->old);
    free(n->content);
    free(n->path);
    free(n->name);
    free(n);
}

struct node *node_reap(struct ckpt_source *src, struct node *n)
{
    if (n->refs || n->inner || n->uses || n == src->root)
        return NULL;
    src->kept_files -= n->kind == NODE_FILE && n->file;
    take_out(&src->nodes, n);
    return n;
}

/* Another object under the same name is another inode; so is a checkpoint that was changed. */
static uint64_t node_ino(const struct node *n)
{
    /* The manifest of a store's step has the time of the step's own directory. */
    int64_t time = n->manifest && n->st.btime_ns ? n->st.btime_ns : n->st.mtime_ns;
    uint64_t ino = ckpt_mix(hash_text(n->st.dev * 31 + n->st.ino, n->path) ^ (n->kind == NODE_TREE ? (uint64_t)time : (uint64_t)n->kind)) >> 1;
    return ino < 16 ? ino + 16 : ino;
}

struct node *node_new(uint64_t parent, const char *path, const char *name, enum node_kind kind, const struct ckpt_stat *st)
{
    struct node *n = calloc(1, sizeof *n);
    if (!n || !(n->path = strdup(path)) || !(n->name = strdup(name))) {
        if (n)
            free(n->path);
        free(n);
        return NULL;
    }
    n->kind = kind;
    n->parent = parent;
    n->st = *st;
    n->inside = "";
    pthread_mutex_init(&n->load, NULL);
    n->ino = node_ino(n);
    return n;
}

/* --- nodes by name --- */

/* A step that is read from the store of its root: the manifest's path below the root. */
static int set_inside(struct node *n, const struct node *dir, const char *file)
{
    size_t store = strlen(CKPT_STORE_DIR);
    n->dir = malloc(strlen(dir->path) + store + 2);
    n->manifest = malloc(strlen(dir->path) + strlen(file) + 2);
    if (!n->dir || !n->manifest)
        return -ENOMEM;
    sprintf(n->dir, "%s%s" CKPT_STORE_DIR, dir->path, *dir->path ? "/" : "");
    sprintf(n->manifest, "%s%s%s", dir->path, *dir->path ? "/" : "", file);
    n->inside = n->manifest + strlen(n->dir) + 1;
    return 0;
}

int node_set_file(struct node *n, const struct node *dir)
{
    n->dir = strdup(dir->path);
    const char *slash = strrchr(n->path, '/');
    n->inside = slash ? slash + 1 : n->path;
    return n->dir ? 0 : -ENOMEM;
}

void node_keep(struct ckpt_source *src, struct node *fresh, const struct ckpt_entry *e, struct node **ret)
{
    struct node *dead = NULL;
    fresh->ino = node_ino(fresh);
    pthread_mutex_lock(&src->lock);
    struct node *n = by_name(&src->nodes, fresh->parent, fresh->name);
    if (n && (n->ino != fresh->ino || n->kind != fresh->kind || (fresh->link && strcmp(n->link, fresh->link)))) {
        node_unname(&src->nodes, n); /* what was known under this name has been replaced */
        n = NULL;
    }
    /* A checkpoint that is known stays as it is: what is read of it is read without the lock. */
    if (e && (!n || n->is_step != e->is_step)) {
        struct node *told = n ? n : fresh;
        told->reader = e->reader;
        told->is_step = e->is_step;
        told->number = e->number;
        told->writable = fresh->writable;
    }
    if (n) {
        dead = fresh;
        if (fresh->kind != NODE_TREE && !n->files)
            n->st = fresh->st;
    } else {
        n = fresh;
        node_insert(&src->nodes, n, NODE_NEXT);
    }
    n->refs++;
    pthread_mutex_unlock(&src->lock);
    if (dead)
        node_free(src, dead);
    *ret = n;
}

/* A step of the store: its own directory is told by its manifest, whose file is the root owner's. Of one that cannot be read, by that file. */
static void read_top(struct ckpt_source *src, const char *manifest, struct ckpt_stat *st)
{
    struct ckpt_manifest_info info = {0};
    struct ckpt_file *file;
    if (ckpt_backend_open(src->backend, manifest, &file) < 0)
        return;
    if (file->st.ino == st->ino && file->st.dev == st->dev && ckpt_manifest_info(file, &info, NULL) == 0) {
        st->mode = info.top.mode & 01777; /* set-id bits are of use while it is staged */
        st->uid = info.top.uid;
        st->gid = info.top.gid;
        ckpt_manifest_info_clear(&info);
    }
    ckpt_file_unref(file);
}

/* A node that is known stays as it is, so what it is made of need not be read. */
static bool is_known(struct ckpt_source *src, const struct node *fresh)
{
    CKPT_GUARD(&src->lock);
    const struct node *n = by_name(&src->nodes, fresh->parent, fresh->name);
    return n && n->kind == fresh->kind && n->ino == node_ino(fresh);
}

int node_take(struct ckpt_source *src, struct node *dir, const char *name, const char *key, enum node_kind kind,
              const struct ckpt_stat *st, const struct ckpt_entry *e, const char *link, struct node **ret)
{
    char path[4096];
    if (snprintf(path, sizeof path, "%s%s%s", dir->path, *dir->path ? "/" : "", name) >= (int)sizeof path)
        return -ENAMETOOLONG;
    struct node *fresh = node_new(dir->id, path, key, kind, st);
    if (!fresh)
        return -ENOMEM;
    if ((link && !(fresh->link = strdup(link))) || (e && e->file && set_inside(fresh, dir, e->file) < 0) ||
        (kind == NODE_TREE && st->type == CKPT_FT_FILE && node_set_file(fresh, dir) < 0)) {
        node_free(src, fresh);
        return -ENOMEM;
    }
    if (fresh->manifest && !is_known(src, fresh))
        read_top(src, fresh->manifest, &fresh->st);
    fresh->writable = dir->writable && (kind == NODE_LINK || (e && e->file));
    node_keep(src, fresh, e, ret);
    return 0;
}

static void make_stale(struct ckpt_source *src, struct node *n)
{
    atomic_store(&n->stale, true);
    node_unname(&src->nodes, n);
    source_forget_removal(src, n);
}

/* The same file, made at the same time: a manifest has its inode number to itself as long as it has a name somewhere. */
static bool is_manifest(const struct node *n, const struct ckpt_stat *st)
{
    return n->st.ino == st->ino && n->st.dev == st->dev && n->st.btime_ns == st->btime_ns;
}

void node_replaced(struct ckpt_source *src, struct node *root, const char *name)
{
    struct ckpt_stat st;
    char path[4096];
    bool there = snprintf(path, sizeof path, "%s%s" CKPT_STORE_DIR "/steps/%s.json", root->path, *root->path ? "/" : "", name) < (int)sizeof path &&
                 ckpt_backend_stat(src->backend, path, &st) == 0;
    struct node *dead = NULL;
    pthread_mutex_lock(&src->lock);
    struct node *n = by_name(&src->nodes, root->id, name);
    if (n && n->kind == NODE_TREE && !(there && is_manifest(n, &st))) {
        make_stale(src, n);
        dead = node_reap(src, n);
    }
    pthread_mutex_unlock(&src->lock);
    if (dead)
        node_free(src, dead);
}

/* What it will be called; the fields are to be freed. */
static int new_names(struct ckpt_source *src, const struct node *root, const char *name, struct node *now)
{
    const char *slash = *root->path ? "/" : "";
    char file[CKPT_NAME_MAX + 32], path[4096];
    snprintf(file, sizeof file, CKPT_STORE_DIR "/steps/%s.json", name);
    if (snprintf(path, sizeof path, "%s%s%s", root->path, slash, name) >= (int)sizeof path)
        return -ENAMETOOLONG;
    now->path = strdup(path);
    now->name = strdup(name);
    if (!now->path || !now->name || set_inside(now, root, file) < 0)
        return -ENOMEM;
    int r = ckpt_backend_stat(src->backend, now->manifest, &now->st);
    if (r == 0)
        read_top(src, now->manifest, &now->st);
    return r;
}

/* What it was called may still be looked at by somebody. */
static void take_names(struct node *n, struct node *now, char **old)
{
    old[n->old_count++] = n->path;
    old[n->old_count++] = n->name;
    old[n->old_count++] = n->manifest;
    n->old = old;
    n->path = CKPT_STEAL(now->path);
    n->name = CKPT_STEAL(now->name);
    n->manifest = CKPT_STEAL(now->manifest);
    n->inside = n->manifest + strlen(n->dir) + 1;
    n->st = now->st;
    n->st.type = CKPT_FT_DIR;
    ckpt_step_name(n->name, &n->number);
    n->ino = node_ino(n);
}

static void rename_known(struct ckpt_source *src, struct node *root, const char *from, const char *to, struct node *now)
{
    struct node_table *t = &src->nodes;
    struct node *n = by_name(t, root->id, from), *there = by_name(t, root->id, to);
    if (there && there->kind == NODE_TREE)
        make_stale(src, there);
    if (!n)
        return;
    if (n->kind != NODE_TREE || n->st.ino != now->st.ino || n->st.dev != now->st.dev) {
        make_stale(src, n); /* it was changed before, and this is the step as it was */
        return;
    }
    char **old = realloc(n->old, (n->old_count + 3) * sizeof *old);
    if (!old)
        return;
    node_unname(t, n);
    take_names(n, now, old);
    give_name(t, n);
}

void node_rename_step(struct ckpt_source *src, struct node *root, const char *from, const char *to)
{
    struct node now = {0};
    if (new_names(src, root, to, &now) == 0) {
        CKPT_GUARD(&src->lock);
        rename_known(src, root, from, to, &now);
    }
    free(now.path);
    free(now.name);
    free(now.dir);
    free(now.manifest);
}

/* --- slices --- */

static struct slice **slice_bucket(struct node_table *t, const struct node *n, uint32_t node, const char *text)
{
    return &t->slices[hash_text((uint64_t)n->serial << 32 | node, text) % NODE_BUCKETS];
}

/* A number that no slice has. */
static int free_number(struct node *n, uint32_t *ret)
{
    while (n->slice_free < n->slice_count && n->slices[n->slice_free])
        n->slice_free++;
    if (n->slice_free == n->slice_count) {
        uint32_t count = CKPT_MAX(n->slice_count * 2, 16u);
        struct slice **p = realloc(n->slices, count * sizeof *p);
        if (!p)
            return -ENOMEM;
        memset(p + n->slice_count, 0, (count - n->slice_count) * sizeof *p);
        n->slices = p;
        n->slice_count = count;
    }
    *ret = n->slice_free;
    return 0;
}

static struct slice *slice_new(const struct node *n, uint32_t node, bool npy, const char *text, const struct ckpt_selection *sel)
{
    struct slice *s = calloc(1, sizeof *s);
    if (!s || !(s->text = strdup(text))) {
        free(s);
        return NULL;
    }
    s->of = n;
    s->node = node;
    s->npy = npy;
    s->sel = *sel;
    s->ino = hash_text(source_inner_ino(n, node, npy ? CKPT_VIEW_SLICE_NPY : CKPT_VIEW_SLICE), text) >> 1 | 16;
    return s;
}

int node_take_slice(struct ckpt_source *src, struct node *n, uint32_t node, bool npy, const char *text, const struct ckpt_selection *sel,
                    struct slice *ret)
{
    CKPT_GUARD(&src->lock);
    struct slice **bucket = slice_bucket(&src->nodes, n, node, text), *s = *bucket;
    while (s && (s->of != n || s->node != node || s->npy != npy || strcmp(s->text, text)))
        s = s->next;
    if (!s) {
        uint32_t number;
        int r = free_number(n, &number);
        if (r < 0)
            return r;
        s = slice_new(n, node, npy, text, sel);
        if (!s)
            return -ENOMEM;
        s->number = number;
        s->next = *bucket;
        *bucket = s;
        n->slices[number] = s;
    }
    s->refs++;
    n->inner++;
    *ret = *s;
    return 0;
}

const struct slice *node_slice(const struct node *n, uint32_t number)
{
    return number < n->slice_count ? n->slices[number] : NULL;
}

void node_put_slice(struct node_table *t, struct node *n, uint32_t number, uint64_t count)
{
    struct slice *s = number < n->slice_count ? n->slices[number] : NULL;
    if (!s || (s->refs -= CKPT_MIN(s->refs, count)) > 0)
        return;
    struct slice **link = slice_bucket(t, n, s->node, s->text);
    while (*link != s)
        link = &(*link)->next;
    *link = s->next;
    n->slices[number] = NULL;
    n->slice_free = CKPT_MIN(n->slice_free, number);
    free(s->text);
    free(s);
}
