/* SPDX-License-Identifier: Apache-2.0 */
/* The table of nodes: by id, by parent and name, and those of checkpoints by their serials. All under the source's
 * lock. */
#include "core/base/util.h"
#include "core/object/manifest.h"
#include "core/source/source.h"
#include "core/tree/key.h"

#include <stdio.h>

int ckpt_source_join(const char *dir, const char *name, char ret[SOURCE_PATH])
{
    const char *slash = *dir ? "/" : "";
    return snprintf(ret, SOURCE_PATH, "%s%s%s", dir, slash, name) < SOURCE_PATH ? 0 : -ENAMETOOLONG;
}

int ckpt_source_manifest_path(const char *root, const char *step, char ret[SOURCE_PATH])
{
    const char *slash = *root ? "/" : "";
    int n = snprintf(ret, SOURCE_PATH, "%s%s" CKPT_STORE_DIR "/steps/%s.json", root, slash, step);
    return n < SOURCE_PATH ? 0 : -ENAMETOOLONG;
}

static uint64_t hash_text(uint64_t h, const char *p)
{
    h ^= 0xcbf29ce484222325;
    for (; *p; p++)
        h = (h ^ (uint8_t)*p) * 0x100000001b3;
    return ckpt_mix(h);
}

static uint64_t usable_ino(uint64_t ino)
{
    return ino < 16 ? ino + 16 : ino; /* the others are the mount's own */
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

struct node *ckpt_node_by_id(struct node_table *t, uint64_t id)
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

struct node *ckpt_node_of_id(struct node_table *t, uint64_t id)
{
    return id < NODE_INSIDE ? ckpt_node_by_id(t, id) : by_serial(t, (uint32_t)(id >> 40));
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

void ckpt_node_unname(struct node_table *t, struct node *n)
{
    if (!n->named)
        return;
    struct node **link = name_bucket(t, n->parent, n->name);
    while (*link != n)
        link = &(*link)->next_name;
    *link = n->next_name;
    n->named = false;
}

void ckpt_node_insert(struct node_table *t, struct node *n, uint64_t id)
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

static void take_id(struct node_table *t, struct node *n)
{
    struct node **link = id_bucket(t, n->id);
    while (*link != n)
        link = &(*link)->next_id;
    *link = n->next_id;
}

static void take_out(struct node_table *t, struct node *n)
{
    ckpt_node_unname(t, n);
    take_id(t, n);
    if (n->serial) {
        struct node **link = serial_bucket(t, n->serial);
        while (*link != n)
            link = &(*link)->next_serial;
        *link = n->next_serial;
    }
}

/* --- nodes --- */

static void opened_free(struct ckpt_source *src, struct opened *o)
{
    if (!o)
        return;
    pthread_mutex_lock(&src->lock);
    ckpt_source_unlink_opened(src, o);
    pthread_mutex_unlock(&src->lock);
    if (o->tree) {
        ckpt_cache_drop_tree(src->cache, o->tree->id);
        ckpt_tree_unref(o->tree);
    }
    ckpt_pins_unref(o->pins);
    ckpt_listing_unref(o->listing);
    ckpt_file_unref(o->file);
    for (uint32_t i = 0; i < o->slice_count; i++)
        if (o->slices[i]) {
            free(o->slices[i]->text);
            free(o->slices[i]);
        }
    ckpt_backend_unref(o->blob);
    for (uint32_t i = 0; i < o->renamed_count; i++)
        free(o->renamed[i]);
    free(o->renamed);
    free(o->slices);
    free(o->err);
    free(o);
}

void ckpt_node_free(struct ckpt_source *src, struct node *n)
{
    ckpt_source_forget_removal(src, n);
    ckpt_backend_unref(n->files);
    opened_free(src, n->opened);
    ckpt_stages_close(n->stages);
    ckpt_store_close(n->store);
    free(n->content);
    free(n);
}

struct opened *ckpt_node_opened(struct node *n)
{
    if (n->opened)
        return n->opened;
    n->opened = calloc(1, sizeof *n->opened);
    if (n->opened)
        n->opened->node = n;
    return n->opened;
}

struct loading ckpt_node_load(struct ckpt_source *src, struct node *n)
{
    CKPT_GUARD(&src->lock);
    while (n->loading)
        pthread_cond_wait(&src->loaded, &src->lock);
    n->loading = true;
    return (struct loading){src, n};
}

void ckpt_node_loaded(struct loading *l)
{
    CKPT_GUARD(&l->src->lock);
    l->node->loading = false;
    pthread_cond_broadcast(&l->src->loaded);
}

void ckpt_node_release(struct ckpt_source *src, struct node *n)
{
    pthread_mutex_lock(&src->lock);
    n->uses--;
    struct node *dead = ckpt_node_reap(src, n);
    pthread_mutex_unlock(&src->lock);
    if (dead)
        ckpt_node_free(src, dead);
}

struct node *ckpt_node_reap(struct ckpt_source *src, struct node *n)
{
    if (n->refs || n->inner || n->uses || n == src->root)
        return NULL;
    src->kept_files -= n->kind == NODE_FILE && n->opened && n->opened->file;
    take_out(&src->nodes, n);
    return n;
}

struct node *ckpt_node_replace_top(struct ckpt_source *src, struct node *fresh)
{
    struct node_table *t = &src->nodes;
    struct node *old = src->root;
    ckpt_node_unname(t, old);
    take_id(t, old);
    old->id = t->next_id++;
    struct node **b = id_bucket(t, old->id);
    old->next_id = *b;
    *b = old;
    ckpt_node_insert(t, fresh, CKPT_ROOT);
    src->root = fresh;
    fresh->uses++; /* never reaped, as long as it is the top */
    old->uses--;
    return ckpt_node_reap(src, old);
}

/* Another object under the same name is another inode; so is a checkpoint that was changed. */
static uint64_t make_ino(const struct ckpt_stat *st, const char *path, enum node_kind kind, bool stored)
{
    /* The manifest of a store's step has the time of the step's own directory. */
    int64_t time = stored && st->btime_ns ? st->btime_ns : st->mtime_ns;
    uint64_t what = kind == NODE_TREE ? (uint64_t)time : (uint64_t)kind;
    return usable_ino(ckpt_mix(hash_text(st->dev * 31 + st->ino, path) ^ what) >> 1);
}

/* Where a name ends a path, it is part of it; else NULL. */
static const char *end_of(const char *path, const char *name)
{
    size_t all = strlen(path), len = strlen(name);
    return len <= all && !strcmp(path + all - len, name) ? path + all - len : NULL;
}

struct node *ckpt_node_new(uint64_t parent, const char *path, const char *name, enum node_kind kind,
                           const struct ckpt_stat *st)
{
    size_t len = strlen(path) + 1;
    bool ends = end_of(path, name);
    size_t name_room = ends ? 0 : strlen(name) + 1;
    struct node *n = calloc(1, sizeof *n + len + name_room);
    if (!n)
        return NULL;
    n->path = memcpy(n->own, path, len);
    n->name = ends ? end_of(n->path, name) : strcpy(n->own + len, name);
    n->kind = (uint8_t)kind;
    n->parent = parent;
    n->st = *st;
    n->inside = "";
    n->ino = make_ino(st, path, kind, false);
    return n;
}

/* --- nodes by name --- */

void ckpt_node_manifest(const struct node *n, bool below_store, char ret[NODE_PATH])
{
    int root = below_store ? 0 : (int)(n->name - n->path); /* of a step's path its name is the end */
    snprintf(ret, NODE_PATH,
             "%.*s%s"
             "steps/%s.json",
             root, n->path, below_store ? "" : CKPT_STORE_DIR "/", n->name);
}

void ckpt_node_set_file(struct node *n)
{
    const char *slash = strrchr(n->path, '/');
    n->inside = slash ? slash + 1 : n->path;
}

/* The node of a name, where it is the same still; with a reference more. Under the lock. A checkpoint that is known
 * stays as it is: what is read of it is read without the lock. */
static struct node *known_node(struct node_table *t, uint64_t parent, const char *name, uint64_t ino,
                               enum node_kind kind, const char *link, const struct ckpt_stat *st)
{
    struct node *n = by_name(t, parent, name);
    if (!n)
        return NULL;
    bool replaced = n->ino != ino || n->kind != kind;
    if (!replaced && link)
        replaced = strcmp(n->content, link);
    if (replaced) {
        ckpt_node_unname(t, n);
        return NULL;
    }
    if (kind != NODE_TREE && !n->files)
        n->st = *st;
    n->refs++;
    return n;
}

static void describe_node(struct node *n, const struct ckpt_entry *e, bool writable)
{
    n->format = e->format;
    n->is_step = e->is_step;
    n->writable = writable;
}

void ckpt_node_keep(struct ckpt_source *src, struct node *fresh, const struct ckpt_entry *e, struct node **ret)
{
    fresh->ino = make_ino(&fresh->st, fresh->path, fresh->kind, fresh->stored);
    pthread_mutex_lock(&src->lock);
    const char *link = fresh->kind == NODE_LINK ? fresh->content : NULL;
    struct node *n = known_node(&src->nodes, fresh->parent, fresh->name, fresh->ino, fresh->kind, link, &fresh->st);
    if (e && (!n || n->is_step != e->is_step))
        describe_node(n ? n : fresh, e, fresh->writable);
    *ret = n ? n : fresh;
    if (!n) {
        ckpt_node_insert(&src->nodes, fresh, NODE_NEXT);
        fresh->refs++;
    }
    pthread_mutex_unlock(&src->lock);
    if (n)
        ckpt_node_free(src, fresh);
}

/* A step of the store: its own directory is told by its manifest, whose file is the root owner's. Of one that cannot be
 * read, by that file. */
static void read_top(struct ckpt_source *src, const char *manifest, struct ckpt_stat *st, bool *ret_attributes)
{
    struct ckpt_manifest_info info = {0};
    struct ckpt_file *file;
    if (ckpt_backend_open(src->backend, manifest, &file) < 0)
        return;
    if (file->st.ino == st->ino && file->st.dev == st->dev && ckpt_manifest_info(file, &info, NULL) == 0) {
        st->mode = info.top.mode & 01777; /* set-id bits are of use while it is staged */
        st->uid = info.top.uid;
        st->gid = info.top.gid;
        *ret_attributes = info.top.xattrs != NULL;
        ckpt_manifest_info_clear(&info);
    }
    ckpt_file_unref(file);
}

int ckpt_node_take(struct ckpt_source *src, struct node *dir, const char *name, const char *key, enum node_kind kind,
                   const struct ckpt_stat *st, const struct ckpt_entry *e, const char *link, struct node **ret)
{
    char path[SOURCE_PATH];
    int r = ckpt_source_join(dir->path, name, path);
    if (r < 0)
        return r;
    bool stored = e && e->stored;
    pthread_mutex_lock(&src->lock); /* mostly it is there: no fresh one is made only to be compared with it */
    *ret = known_node(&src->nodes, dir->id, key, make_ino(st, path, kind, stored), kind, link, st);
    bool writable = dir->writable && (kind == NODE_LINK || stored);
    if (*ret && e && (*ret)->is_step != e->is_step)
        describe_node(*ret, e, writable);
    pthread_mutex_unlock(&src->lock);
    if (*ret)
        return 0;
    struct node *fresh = ckpt_node_new(dir->id, path, key, kind, st);
    if (!fresh)
        return -ENOMEM;
    if (link) {
        fresh->content = strdup(link);
        if (!fresh->content) {
            free(fresh);
            return -ENOMEM;
        }
        fresh->content_len = (uint32_t)strlen(link);
    }
    fresh->stored = stored;
    fresh->writable = writable;
    if (kind == NODE_TREE && st->type == CKPT_FT_FILE)
        ckpt_node_set_file(fresh);
    if (stored) {
        char manifest[NODE_PATH];
        ckpt_node_manifest(fresh, false, manifest);
        read_top(src, manifest, &fresh->st, &fresh->top_attributes);
    }
    ckpt_node_keep(src, fresh, e, ret);
    return 0;
}

static void make_stale(struct ckpt_source *src, struct node *n)
{
    atomic_store(&n->stale, true);
    ckpt_node_unname(&src->nodes, n);
    ckpt_source_forget_removal(src, n);
}

/* The same file, made at the same time: a manifest has its inode number to itself as long as it has a name somewhere.
 */
static bool is_manifest(const struct node *n, const struct ckpt_stat *st)
{
    return n->st.ino == st->ino && n->st.dev == st->dev && n->st.btime_ns == st->btime_ns;
}

void ckpt_node_replaced(struct ckpt_source *src, struct node *root, const char *name)
{
    struct ckpt_stat st;
    char path[SOURCE_PATH];
    int r = ckpt_source_manifest_path(root->path, name, path);
    if (r == 0)
        r = ckpt_backend_stat(src->backend, path, &st);
    struct node *dead = NULL;
    pthread_mutex_lock(&src->lock);
    struct node *n = by_name(&src->nodes, root->id, name);
    bool same = r == 0 && n && is_manifest(n, &st);
    if (n && n->kind == NODE_TREE && !same) {
        make_stale(src, n);
        dead = ckpt_node_reap(src, n);
    }
    pthread_mutex_unlock(&src->lock);
    if (dead)
        ckpt_node_free(src, dead);
}

/* What it was called may still be looked at by somebody. */
static void take_path(struct node *n, char *path, const struct ckpt_stat *st)
{
    const char *slash = strrchr(path, '/');
    n->opened->renamed[n->opened->renamed_count++] = path;
    n->path = path;
    n->name = slash ? slash + 1 : path;
    n->st = *st;
    n->st.type = CKPT_FT_DIR;
    n->ino = make_ino(&n->st, n->path, n->kind, n->stored);
}

/* `path` is taken over. */
static void rename_known(struct ckpt_source *src, struct node *root, const char *from, const char *to, char *path,
                         const struct ckpt_stat *st)
{
    struct node_table *t = &src->nodes;
    struct node *n = by_name(t, root->id, from), *there = by_name(t, root->id, to);
    if (there && there->kind == NODE_TREE)
        make_stale(src, there);
    bool same = n && n->kind == NODE_TREE && n->st.ino == st->ino && n->st.dev == st->dev;
    if (n && !same)
        make_stale(src, n); /* it was changed before, and this is the step as it was */
    struct opened *o = same ? ckpt_node_opened(n) : NULL;
    char **renamed = o ? realloc(o->renamed, (o->renamed_count + 1) * sizeof *renamed) : NULL;
    if (!renamed) {
        free(path);
        return;
    }
    o->renamed = renamed;
    ckpt_node_unname(t, n);
    take_path(n, path, st);
    give_name(t, n);
}

void ckpt_node_rename_step(struct ckpt_source *src, struct node *root, const char *from, const char *to)
{
    char manifest[NODE_PATH];
    const char *slash = *root->path ? "/" : "";
    struct ckpt_stat st;
    bool attributes; /* which a renaming leaves as they are */
    size_t n = strlen(root->path) + strlen(to) + 2;
    char *path = malloc(n);
    snprintf(manifest, sizeof manifest, "%s%s" CKPT_STORE_DIR "/steps/%s.json", root->path, slash, to);
    if (!path || ckpt_backend_stat(src->backend, manifest, &st) < 0) {
        free(path);
        return;
    }
    read_top(src, manifest, &st, &attributes);
    snprintf(path, n, "%s%s%s", root->path, slash, to);
    CKPT_GUARD(&src->lock);
    rename_known(src, root, from, to, path, &st);
}

/* --- slices --- */

static struct slice **slice_bucket(struct node_table *t, const struct node *n, uint32_t node, const char *text)
{
    return &t->slices[hash_text((uint64_t)n->serial << 32 | node, text) % NODE_BUCKETS];
}

/* A number that no slice has. */
static int free_number(struct opened *n, uint32_t *ret)
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

static struct slice *slice_new(const struct node *n, uint32_t node, bool npy, const char *text,
                               const struct ckpt_selection *sel)
{
    struct slice *s = calloc(1, sizeof *s);
    if (!s)
        return NULL;
    s->text = strdup(text);
    if (!s->text) {
        free(s);
        return NULL;
    }
    s->of = n;
    s->node = node;
    s->npy = npy;
    s->sel = *sel;
    s->ino = hash_text(ckpt_source_inner_ino(n, node, npy ? CKPT_VIEW_SLICE_NPY : CKPT_VIEW_SLICE), text) >> 1 | 16;
    return s;
}

int ckpt_node_take_slice(struct ckpt_source *src, struct node *n, uint32_t node, bool npy, const char *text,
                         const struct ckpt_selection *sel, struct slice *ret)
{
    CKPT_GUARD(&src->lock);
    struct slice **bucket = slice_bucket(&src->nodes, n, node, text), *s = *bucket;
    while (s && (s->of != n || s->node != node || s->npy != npy || strcmp(s->text, text)))
        s = s->next;
    if (!s) {
        struct opened *o = ckpt_node_opened(n);
        uint32_t number;
        int r = o ? free_number(o, &number) : -ENOMEM;
        if (r < 0)
            return r;
        s = slice_new(n, node, npy, text, sel);
        if (!s)
            return -ENOMEM;
        s->number = number;
        s->next = *bucket;
        *bucket = s;
        o->slices[number] = s;
    }
    s->refs++;
    n->inner++;
    *ret = *s;
    return 0;
}

const struct slice *ckpt_node_slice(const struct node *n, uint32_t number)
{
    const struct opened *o = n->opened;
    return o && number < o->slice_count ? o->slices[number] : NULL;
}

void ckpt_node_put_slice(struct node_table *t, struct node *n, uint32_t number, uint64_t count)
{
    struct opened *o = n->opened;
    struct slice *s = o && number < o->slice_count ? o->slices[number] : NULL;
    if (!s)
        return;
    s->refs -= CKPT_MIN(s->refs, count);
    if (s->refs)
        return;
    struct slice **link = slice_bucket(t, n, s->node, s->text);
    while (*link != s)
        link = &(*link)->next;
    *link = s->next;
    o->slices[number] = NULL;
    o->slice_free = CKPT_MIN(o->slice_free, number);
    free(s->text);
    free(s);
}

uint64_t ckpt_source_inner_ino(const struct node *n, uint32_t node, enum ckpt_view view)
{
    return usable_ino(ckpt_mix(n->ino * 0x9e3779b97f4a7c15 + ((uint64_t)view << 32 | node)) >> 1);
}

void ckpt_source_unlink_opened(struct ckpt_source *src, struct opened *o)
{
    if (src->newest != o && !o->newer)
        return; /* it is not among them */
    *(o->older ? &o->older->newer : &src->oldest) = o->newer;
    *(o->newer ? &o->newer->older : &src->newest) = o->older;
    o->newer = o->older = NULL;
}
