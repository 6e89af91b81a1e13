/* SPDX-License-Identifier: Apache-2.0 */
#include "core/source/source.h"

#include "core/base/util.h"

#include <limits.h>
#include <stdio.h>
#include <sys/stat.h>
#include <time.h>

#define TREE_BYTES ((uint64_t)56 << 20) /* of trees in memory; more are closed, and opened again from their pinned files */
#define KEPT_FILES 256 /* plain files that are kept open */
#define INSIDE ((uint64_t)1 << 40)

static uint64_t hash_text(uint64_t h, const char *p)
{
    h ^= 0xcbf29ce484222325;
    for (; *p; p++)
        h = (h ^ (uint8_t)*p) * 0x100000001b3;
    return ckpt_mix(h);
}

/* --- nodes: under src->lock --- */

static struct node **id_bucket(struct ckpt_source *src, uint64_t id)
{
    return &src->by_id[id % CKPT_BUCKETS];
}
static struct node **name_bucket(struct ckpt_source *src, uint64_t parent, const char *name)
{
    return &src->by_name[hash_text(parent, name) % CKPT_BUCKETS];
}
static struct node **serial_bucket(struct ckpt_source *src, uint32_t serial)
{
    return &src->by_serial[serial % CKPT_BUCKETS];
}

static struct node *find_id(struct ckpt_source *src, uint64_t id)
{
    struct node *n = *id_bucket(src, id);
    while (n && n->id != id)
        n = n->next_id;
    return n;
}

static struct node *find_serial(struct ckpt_source *src, uint32_t serial)
{
    struct node *n = *serial_bucket(src, serial);
    while (n && n->serial != serial)
        n = n->next_serial;
    return n;
}

static struct node *find_name(struct ckpt_source *src, uint64_t parent, const char *name)
{
    struct node *n = *name_bucket(src, parent, name);
    while (n && (n->parent != parent || strcmp(n->name, name)))
        n = n->next_name;
    return n;
}

static void unname(struct ckpt_source *src, struct node *n)
{
    if (!n->named)
        return;
    struct node **link = name_bucket(src, n->parent, n->name);
    while (*link != n)
        link = &(*link)->next_name;
    *link = n->next_name;
    n->named = false;
}

static void node_free(struct ckpt_source *src, struct node *n)
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

/* Take a node that nothing refers to out of the tables; the caller frees it without the lock. */
static struct node *reap(struct ckpt_source *src, struct node *n)
{
    if (n->refs || n->inner || n->uses || n == src->root)
        return NULL;
    src->kept_files -= n->kind == NODE_FILE && n->file;
    unname(src, n);
    struct node **link = id_bucket(src, n->id);
    while (*link != n)
        link = &(*link)->next_id;
    *link = n->next_id;
    if (n->serial) {
        link = serial_bucket(src, n->serial);
        while (*link != n)
            link = &(*link)->next_serial;
        *link = n->next_serial;
    }
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

static struct node *node_new(struct ckpt_source *src, uint64_t parent, const char *path, const char *name, enum node_kind kind,
                             const struct ckpt_stat *st)
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

static void node_insert(struct ckpt_source *src, struct node *n, uint64_t id)
{
    n->id = id;
    struct node **b = id_bucket(src, id);
    n->next_id = *b;
    *b = n;
    b = name_bucket(src, n->parent, n->name);
    n->next_name = *b;
    *b = n;
    n->named = true;
    if (n->kind == NODE_TREE) {
        do
            src->next_serial = (src->next_serial + 1) & 0xffffff;
        while (!src->next_serial || find_serial(src, src->next_serial));
        n->serial = src->next_serial;
        b = serial_bucket(src, n->serial);
        n->next_serial = *b;
        *b = n;
    }
}

/* --- listings and trees --- */

int source_listing(struct ckpt_source *src, struct node *n, struct ckpt_listing **ret, struct ckpt_err *err)
{
    CKPT_GUARD(&n->load);
    int64_t now = ckpt_monotonic_ns();
    if (n->listing && now - n->checked_ns < (int64_t)(src->opt.refresh * 1e9)) {
        *ret = ckpt_listing_ref(n->listing);
        return 0;
    }
    if (n->listing && ckpt_listing_current(src->backend, n->path, n->listing)) {
        n->checked_ns = now;
        *ret = ckpt_listing_ref(n->listing);
        return 0;
    }
    struct ckpt_listing *l;
    int r = ckpt_listing_make(src->backend, n->path, n->listing, &l);
    if (r < 0)
        return ckpt_fail(err, -r, "%s/%s: %s", src->path, n->path, strerror(-r));
    if (l->native && !ckpt_listing_find(l, "best"))
        l->best = source_best_step(src, n);
    ckpt_listing_unref(n->listing);
    n->listing = l;
    n->checked_ns = now;
    *ret = ckpt_listing_ref(l);
    return 0;
}

/* Close the trees that were used longest ago until the rest is within bounds: their numbers of nodes stay what they are when they
 * are opened again, from files that are still pinned. */
static void close_old_trees(struct ckpt_source *src, struct node *keep)
{
    for (;;) {
        struct node *oldest = NULL;
        uint64_t bytes = 0, trees = 0;
        pthread_mutex_lock(&src->lock);
        for (unsigned i = 0; i < CKPT_BUCKETS; i++)
            for (struct node *n = src->by_serial[i]; n; n = n->next_serial) {
                if (!n->tree)
                    continue;
                trees++;
                bytes += ckpt_tree_memory(n->tree); /* it grows while it is used */
                if (n != keep && (!oldest || n->tree_used < oldest->tree_used))
                    oldest = n;
            }
        struct ckpt_tree *tree = oldest && bytes > TREE_BYTES ? CKPT_STEAL(oldest->tree) : NULL;
        src->trees = trees - (tree != NULL);
        src->tree_bytes = bytes;
        pthread_mutex_unlock(&src->lock);
        if (!tree)
            return;
        ckpt_cache_drop_tree(src->cache, tree->id);
        ckpt_tree_unref(tree);
    }
}

/* When descriptors run short: let go of the files of the checkpoints that were used longest ago. They are opened again by name. */
static void let_go_of_files(struct ckpt_source *src, struct node *keep)
{
    while (ckpt_pins_scarce()) {
        struct node *oldest = NULL;
        pthread_mutex_lock(&src->lock);
        for (unsigned i = 0; i < CKPT_BUCKETS; i++)
            for (struct node *n = src->by_serial[i]; n; n = n->next_serial)
                if (n->pins && n != keep && n != src->root && !n->uses && (!oldest || n->tree_used < oldest->tree_used))
                    oldest = n;
        struct ckpt_tree *tree = oldest ? CKPT_STEAL(oldest->tree) : NULL;
        struct ckpt_pins *pins = oldest ? CKPT_STEAL(oldest->pins) : NULL;
        struct ckpt_file *file = oldest ? CKPT_STEAL(oldest->file) : NULL;
        pthread_mutex_unlock(&src->lock);
        if (!pins)
            return;
        ckpt_file_unref(file);
        if (tree)
            ckpt_cache_drop_tree(src->cache, tree->id);
        ckpt_tree_unref(tree);
        ckpt_pins_unref(pins);
    }
}

/* Another step of the store has its name: whoever looks it up again, which -ESTALE makes the kernel do, shall find that. */
static int replaced_meanwhile(struct ckpt_source *src, struct node *n)
{
    pthread_mutex_lock(&src->lock);
    struct node *root = find_id(src, n->parent);
    if (root)
        root->uses++;
    pthread_mutex_unlock(&src->lock);
    if (!root)
        return -ENOENT;
    pthread_mutex_lock(&root->load);
    root->checked_ns = 0;
    pthread_mutex_unlock(&root->load);
    source_done(src, &(struct target){.node = root});
    return -ESTALE;
}

/* The files of a node's checkpoint; unref them. */
static int node_pins(struct ckpt_source *src, struct node *n, struct ckpt_pins **ret)
{
    pthread_mutex_lock(&src->lock);
    *ret = n->pins ? ckpt_pins_ref(n->pins) : NULL;
    pthread_mutex_unlock(&src->lock);
    if (*ret)
        return 0;
    let_go_of_files(src, n);
    struct ckpt_backend *dir;
    struct ckpt_stat st;
    int r = n->blob ? ckpt_backend_sub(n->blob, "", &dir) : ckpt_backend_sub(src->backend, n->dir ? n->dir : n->path, &dir);
    if (r < 0)
        return r;
    r = ckpt_backend_stat(dir, n->inside, &st);
    if (r == 0 && (st.ino != n->st.ino || st.dev != n->st.dev || st.btime_ns != n->st.btime_ns))
        r = n->manifest ? replaced_meanwhile(src, n) : -ENOENT; /* it was replaced since it was looked up */
    if (r == 0)
        r = ckpt_pins_new(dir, ret);
    ckpt_backend_unref(dir);
    if (r == 0) {
        pthread_mutex_lock(&src->lock);
        n->pins = ckpt_pins_ref(*ret);
        pthread_mutex_unlock(&src->lock);
    }
    return r;
}

/* A checkpoint that is a file is kept open, to see whether it is changed in place. */
static int keep_file(struct ckpt_source *src, struct node *n, struct ckpt_pins *pins)
{
    struct ckpt_file *f;
    if (n->st.type != CKPT_FT_FILE)
        return 0;
    int r = ckpt_pins_open(pins, n->inside, &f);
    if (r < 0)
        return r;
    bool same = f->st.ino == n->st.ino && f->st.dev == n->st.dev && f->st.mtime_ns == n->st.mtime_ns && f->st.size == n->st.size;
    pthread_mutex_lock(&src->lock);
    struct ckpt_file *old = n->file;
    n->file = same ? f : NULL;
    pthread_mutex_unlock(&src->lock);
    ckpt_file_unref(old);
    if (!same)
        ckpt_file_unref(f);
    return same ? 0 : -ESTALE;
}

int source_unchanged(struct ckpt_source *src, const struct node *n, struct ckpt_err *err)
{
    struct stat st;
    if (n->st.type != CKPT_FT_FILE)
        return 0;
    pthread_mutex_lock(&src->lock);
    struct ckpt_file *f = n->file ? ckpt_file_ref(n->file) : NULL;
    pthread_mutex_unlock(&src->lock);
    int fd = f ? ckpt_file_fd(f) : -1;
    bool same = fd < 0 || (fstat(fd, &st) == 0 && st.st_mtim.tv_sec * 1000000000ll + st.st_mtim.tv_nsec == n->st.mtime_ns &&
                           (uint64_t)st.st_size == n->st.size);
    ckpt_file_unref(f);
    return same ? 0 : ckpt_fail(err, ESTALE, "the file is not what it was when it was opened: it was written to in place");
}

static int open_tree(struct ckpt_source *src, struct node *n, struct ckpt_tree **ret, struct ckpt_err *err)
{
    struct ckpt_pins *pins;
    int r = node_pins(src, n, &pins);
    if (r < 0)
        return ckpt_fail(err, -r, "%s", strerror(-r));
    r = keep_file(src, n, pins);
    if (r == 0)
        r = n->reader->open(&(struct ckpt_opening){pins, n->inside, src->cache, src->opt.flat}, ret, err);
    ckpt_pins_unref(pins);
    return r;
}

int source_tree(struct ckpt_source *src, struct node *n, struct ckpt_tree **ret, struct ckpt_err *err)
{
    pthread_mutex_lock(&src->lock);
    n->tree_used = ++src->clock;
    *ret = n->tree ? ckpt_tree_ref(n->tree) : NULL;
    pthread_mutex_unlock(&src->lock);
    if (*ret)
        return 0;
    CKPT_GUARD(&n->load);
    pthread_mutex_lock(&src->lock);
    *ret = n->tree ? ckpt_tree_ref(n->tree) : NULL;
    pthread_mutex_unlock(&src->lock);
    if (*ret)
        return 0;
    struct ckpt_err own = {0};
    int r = -n->err.code;
    /* What failed is not tried at every call. */
    if (!r || ckpt_monotonic_ns() - n->err_ns > (int64_t)(CKPT_MAX(src->opt.refresh, 0.5) * 1e9)) {
        r = open_tree(src, n, ret, &own);
        if (r < 0 && !own.code)
            ckpt_fail(&own, -r, "%s", strerror(-r));
        if (r < 0 && r != -ENOENT)
            ckpt_log(CKPT_LOG_WARN, "%s%s%s: %s", src->path, *n->path ? "/" : "", n->path, own.text);
        n->err = r == -ENOENT ? (struct ckpt_err){0} : own;
        n->err_ns = ckpt_monotonic_ns();
    } else
        own = n->err;
    if (r < 0) {
        if (err)
            *err = own;
        return r;
    }
    pthread_mutex_lock(&src->lock);
    n->tree = ckpt_tree_ref(*ret);
    /* Counting them all takes as long as opening a few: the count is made anew when this one may have passed the bound. */
    src->trees++;
    src->tree_bytes += ckpt_tree_memory(n->tree);
    bool full = src->tree_bytes > TREE_BYTES || ++src->since_count >= 64;
    if (full)
        src->since_count = 0;
    pthread_mutex_unlock(&src->lock);
    if (full)
        close_old_trees(src, n);
    return 0;
}

/* --- what an id names --- */

int source_target(struct ckpt_source *src, uint64_t id, struct target *ret, struct ckpt_err *err)
{
    *ret = (struct target){0};
    pthread_mutex_lock(&src->lock);
    ret->node = id < INSIDE ? find_id(src, id) : find_serial(src, (uint32_t)(id >> 40));
    if (ret->node)
        ret->node->uses++;
    pthread_mutex_unlock(&src->lock);
    if (!ret->node)
        return ckpt_fail(err, ESTALE, "nothing is known under this number any more");
    if (id < INSIDE)
        return 0;
    int r = source_tree(src, ret->node, &ret->tree, err);
    uint32_t node = (uint32_t)id;
    enum ckpt_view view = (enum ckpt_view)(id >> 32 & 0xff);
    if (r == 0 && (view == CKPT_VIEW_SLICE || view == CKPT_VIEW_SLICE_NPY)) {
        pthread_mutex_lock(&src->lock);
        ret->slice = node < ret->node->slice_count ? ret->node->slices[node] : NULL;
        pthread_mutex_unlock(&src->lock);
        if (ret->slice)
            node = ret->slice->node;
        else
            r = ckpt_fail(err, ESTALE, "nothing is known under this number any more");
    }
    if (r == 0 && node >= ret->tree->count)
        r = ckpt_fail(err, ESTALE, "the checkpoint has changed");
    if (r < 0) {
        source_done(src, ret);
        return r;
    }
    ret->file = (struct ckpt_viewed){ret->tree, node, view, ret->slice ? &ret->slice->sel : NULL};
    return 0;
}

void source_done(struct ckpt_source *src, struct target *t)
{
    ckpt_tree_unref(t->tree);
    t->tree = NULL;
    if (!t->node)
        return;
    pthread_mutex_lock(&src->lock);
    t->node->uses--;
    struct node *dead = reap(src, t->node);
    pthread_mutex_unlock(&src->lock);
    t->node = NULL;
    if (dead)
        node_free(src, dead);
}

int source_enter(struct ckpt_source *src, struct target *t, uint32_t *ret_node, struct ckpt_err *err)
{
    if (!t->tree) {
        if (t->node->kind != NODE_TREE)
            return ckpt_fail(err, ENOTDIR, "not inside a checkpoint");
        int r = source_tree(src, t->node, &t->tree, err);
        if (r < 0)
            return r;
        t->file = (struct ckpt_viewed){t->tree, 0, CKPT_VIEW_LISTED, NULL};
    }
    *ret_node = t->file.node;
    return 0;
}

/* --- attributes --- */

uint64_t source_inner_ino(const struct node *n, uint32_t node, enum ckpt_view view)
{
    uint64_t ino = ckpt_mix(n->ino * 0x9e3779b97f4a7c15 + ((uint64_t)view << 32 | node)) >> 1;
    return ino < 16 ? ino + 16 : ino;
}

/* A file that is a checkpoint is shown as a directory: who may read it may enter. */
static uint32_t shown_mode(const struct node *n)
{
    uint32_t mode = n->st.mode & (n->writable ? 0777 : 0555);
    return n->kind == NODE_TREE && n->st.type == CKPT_FT_FILE ? mode | (mode & 0444) >> 2 : mode;
}

static void common_attr(const struct node *n, uint64_t id, struct ckpt_attr *ret)
{
    *ret = (struct ckpt_attr){.id = id, .nlink = CKPT_NLINK_UNKNOWN, .mtime_ns = n->st.mtime_ns, .uid = n->st.uid, .gid = n->st.gid};
    ret->mode = shown_mode(n);
    ret->atime_ns = ret->ctime_ns = ret->mtime_ns;
}

static void node_attr(const struct node *n, struct ckpt_attr *ret)
{
    common_attr(n, n->id, ret);
    ret->ino = n->ino;
    switch (n->kind) {
    case NODE_FILE:
        ret->type = CKPT_FILE;
        ret->size = n->st.size;
        ret->stored = n->st.stored;
        break;
    case NODE_LINK:
        ret->type = CKPT_LINK;
        ret->fleeting = n->writable; /* a commit may change it at any time */
        ret->size = strlen(n->link);
        break;
    case NODE_CONTROL:
        ret->type = CKPT_FILE;
        ret->size = n->content_len;
        ret->snapshot = true;
        break;
    default:
        ret->type = CKPT_DIR;
        ret->fleeting = n->kind == NODE_TREE && n->writable;
    }
}

/* What the checkpoint itself keeps of a leaf or directory, where it does. */
static int own_attr(const struct target *t, struct ckpt_attr *ret, struct ckpt_err *err)
{
    struct ckpt_leaf_attrs own;
    if (!t->tree->format->attrs)
        return 0;
    int r = t->tree->format->attrs(t->tree, t->file.node, &own, err);
    if (r < 0)
        return r;
    ret->mode = own.mode & (t->node->writable ? 07777 : 0555);
    ret->uid = own.uid;
    ret->gid = own.gid;
    ret->mtime_ns = ret->atime_ns = ret->ctime_ns = own.mtime_ns;
    return 0;
}

static int inner_attr(struct ckpt_source *src, const struct target *t, uint64_t id, struct ckpt_attr *ret, struct ckpt_err *err)
{
    const struct node *n = t->node;
    common_attr(n, id, ret);
    int r = own_attr(t, ret, err);
    if (r < 0)
        return r;
    ret->forever = true;
    ret->view = t->file.view != CKPT_VIEW_LISTED;
    ret->ino = t->slice ? t->slice->ino + (t->file.view == CKPT_VIEW_SLICE) : source_inner_ino(n, t->file.node, t->file.view);
    if (ckpt_viewed_is_dir(&t->file)) {
        ret->type = CKPT_DIR;
        source_removal_time(src, t->node, t->file.node, &ret->mtime_ns);
        return 0;
    }
    ret->type = CKPT_FILE;
    ret->mode &= n->writable && !ret->view ? 07777 : 0444;
    /* A leaf that cannot be read at all is listed, but not found by name: so opening it gives the error. */
    return ckpt_view_size(&src->views, &t->file, &ret->size, &ret->stored, err);
}

static int staged_attr(struct ckpt_source *src, uint64_t id, struct ckpt_attr *ret, struct ckpt_err *err)
{
    struct ckpt_stages *set = source_set(src, id);
    struct ckpt_stage_attr attr;
    int r = set ? ckpt_stage_getattr(set, id, &attr) : -ESTALE;
    if (r < 0)
        return ckpt_fail(err, -r, "the step is not staged any more");
    source_attr_of_stage(&attr, ret);
    return 0;
}

/* Where a committed step has a staged copy: mode, owner and times are the copy's. The bytes, and so the size, stay what readers have open. */
static void copied_attr(struct ckpt_source *src, const struct target *t, struct ckpt_attr *ret)
{
    struct ckpt_attr copy;
    uint64_t id;
    if (t->node->kind != NODE_TREE || t->node->stale || source_copied(src, t, &id) != 1)
        return;
    if (staged_attr(src, id, &copy, NULL) == 0) {
        ret->mode = copy.mode;
        ret->uid = copy.uid;
        ret->gid = copy.gid;
        ret->mtime_ns = copy.mtime_ns;
        ret->atime_ns = copy.atime_ns;
        ret->ctime_ns = copy.ctime_ns;
        ret->forever = false;
        ret->staged = true;
    }
    ckpt_forget(src, id, 1);
}

int ckpt_getattr(struct ckpt_source *src, uint64_t id, struct ckpt_attr *ret, struct ckpt_err *err)
{
    struct target t;
    atomic_fetch_add_explicit(&src->getattrs, 1, memory_order_relaxed);
    if (id & CKPT_STAGED)
        return staged_attr(src, id, ret, err);
    int r = source_target(src, id, &t, err);
    if (r < 0)
        return r;
    if (t.tree) {
        r = inner_attr(src, &t, id, ret, err);
        if (r == 0 && t.file.view == CKPT_VIEW_LISTED)
            copied_attr(src, &t, ret);
    } else {
        if ((t.node->kind == NODE_DIR || t.node->kind == NODE_FILE || t.node->kind == NODE_FACE) && !t.node->files) {
            struct ckpt_stat st;
            if (ckpt_backend_stat(src->backend, t.node->path, &st) == 0) {
                pthread_mutex_lock(&src->lock);
                if (st.ino == t.node->st.ino && st.dev == t.node->st.dev)
                    t.node->st = st;
                pthread_mutex_unlock(&src->lock);
            }
        }
        pthread_mutex_lock(&src->lock);
        node_attr(t.node, ret);
        pthread_mutex_unlock(&src->lock);
        source_removal_time(src, t.node, 0, &ret->mtime_ns);
        copied_attr(src, &t, ret);
    }
    source_done(src, &t);
    return r;
}

/* --- look-ups --- */

/* Names under the mount's top that belong to it are escaped where a checkpoint or the source has them. */
static const char *top_name(uint64_t parent, const char *name, char *buf)
{
    if (parent == CKPT_ROOT && (!strcmp(name, "%2Eckptfs") || !strcmp(name, "%2Efiles"))) {
        strcpy(buf, name + 2);
        buf[0] = '.';
        return buf;
    }
    return name;
}

bool source_is_reserved(uint64_t parent, const char *name)
{
    return parent == CKPT_ROOT && (!strcmp(name, ".ckptfs") || !strcmp(name, ".files"));
}

static int add_slice(struct ckpt_source *src, struct node *n, uint32_t node, bool npy, const char *text, size_t len,
                     const struct ckpt_selection *sel, uint32_t *ret)
{
    CKPT_GUARD(&src->lock);
    uint32_t free_slot = n->slice_count;
    for (uint32_t i = 0; i < n->slice_count; i++) {
        struct slice *s = n->slices[i];
        if (!s)
            free_slot = i;
        else if (s->node == node && s->npy == npy && strlen(s->text) == len && !memcmp(s->text, text, len)) {
            s->refs++;
            n->inner++;
            *ret = i;
            return 0;
        }
    }
    struct slice *s = calloc(1, sizeof *s);
    if (!s || !(s->text = strndup(text, len))) {
        free(s);
        return -ENOMEM;
    }
    if (free_slot == n->slice_count) {
        uint32_t count = CKPT_MAX(n->slice_count * 2, 16u);
        struct slice **p = realloc(n->slices, count * sizeof *p);
        if (!p) {
            free(s->text);
            free(s);
            return -ENOMEM;
        }
        memset(p + n->slice_count, 0, (count - n->slice_count) * sizeof *p);
        n->slices = p;
        n->slice_count = count;
    }
    s->node = node;
    s->npy = npy;
    s->refs = 1;
    s->sel = *sel;
    s->ino = hash_text(source_inner_ino(n, node, npy ? CKPT_VIEW_SLICE_NPY : CKPT_VIEW_SLICE), s->text) >> 1 | 16;
    n->slices[free_slot] = s;
    n->inner++;
    *ret = free_slot;
    return 0;
}

static int lookup_inner(struct ckpt_source *src, struct target *dir, const char *name, struct ckpt_attr *ret, struct ckpt_err *err)
{
    struct node *n = dir->node;
    uint32_t parent, number;
    const char *slice;
    size_t slice_len;
    struct target t = {.node = n};
    int r = source_enter(src, dir, &parent, err);
    if (r < 0)
        return r;
    if (!ckpt_viewed_is_dir(&dir->file))
        return -ENOTDIR;
    t.tree = dir->tree;
    t.file.tree = dir->tree;
    r = ckpt_view_lookup(dir->tree, parent, name, &t.file.node, &t.file.view, &slice, &slice_len);
    if (r == 0 && source_is_removed(src, n, t.file.node))
        r = -ENOENT;
    if (r < 0)
        return r;
    struct ckpt_selection sel;
    struct slice shown;
    if (slice) {
        r = ckpt_view_select(dir->tree, t.file.node, slice, slice_len, &sel, err);
        if (r < 0)
            return r;
        r = add_slice(src, n, t.file.node, t.file.view == CKPT_VIEW_SLICE_NPY, slice, slice_len, &sel, &number);
        if (r < 0)
            return r;
        pthread_mutex_lock(&src->lock);
        shown = *n->slices[number];
        pthread_mutex_unlock(&src->lock);
        t.slice = &shown;
        t.file.sel = &sel;
    } else {
        number = t.file.node;
        pthread_mutex_lock(&src->lock);
        n->inner++;
        pthread_mutex_unlock(&src->lock);
    }
    uint64_t id = (uint64_t)n->serial << 40 | (uint64_t)t.file.view << 32 | number;
    if (dir->tree->format->pin && t.file.view != CKPT_VIEW_META)
        dir->tree->format->pin(dir->tree, t.file.node);
    r = inner_attr(src, &t, id, ret, err);
    if (r < 0)
        ckpt_forget(src, id, 1);
    /* Directly under the mount's top nothing is for ever: the checkpoint that is the source may itself be replaced. */
    if (dir->node == src->root && parent == 0)
        ret->forever = false;
    return r;
}

/* A link is shown if following it, here and from the mount, stays inside. */
int source_link_target(struct ckpt_source *src, const char *path, char *buf, size_t len)
{
    struct ckpt_stat st;
    int r = ckpt_backend_readlink(src->backend, path, buf, len);
    if (r < 0)
        return r;
    if (*buf == '/' || ckpt_backend_stat(src->backend, path, &st) < 0)
        return -ENOENT;
    int depth = 0;
    for (const char *p = path; (p = strchr(p, '/')); p++)
        depth++;
    for (const char *p = buf; *p;) {
        size_t n = strcspn(p, "/");
        if (n == 2 && p[0] == '.' && p[1] == '.')
            depth--;
        else if (n && !(n == 1 && *p == '.'))
            depth++;
        if (depth < 0)
            return -ENOENT;
        p += n;
        p += strspn(p, "/");
    }
    return 0;
}

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

void source_replaced(struct ckpt_source *src, struct node *root, const char *name)
{
    CKPT_GUARD(&src->lock);
    struct node *n = find_name(src, root->id, name);
    if (!n || n->kind != NODE_TREE)
        return;
    n->stale = true;
    unname(src, n);
    source_forget_removal(src, n);
}

void source_rename_step(struct ckpt_source *src, struct node *root, const char *from, const char *to)
{
    char path[4096];
    struct ckpt_stat st;
    struct node now = {0};
    if (snprintf(path, sizeof path, "%s%s" CKPT_STORE_DIR "/steps/%s.json", root->path, *root->path ? "/" : "", to) >= (int)sizeof path ||
        ckpt_backend_stat(src->backend, path, &st) < 0 || set_inside(&now, root, path + strlen(root->path) + (*root->path != 0)) < 0)
        return;
    snprintf(path, sizeof path, "%s%s%s", root->path, *root->path ? "/" : "", to);
    now.path = strdup(path);
    now.name = strdup(to);
    pthread_mutex_lock(&src->lock);
    struct node *n = find_name(src, root->id, from), *there = find_name(src, root->id, to);
    if (there && there->kind == NODE_TREE) {
        there->stale = true;
        unname(src, there);
    }
    char **old = n ? realloc(n->old, (n->old_count + 3) * sizeof *old) : NULL;
    if (old)
        n->old = old;
    bool same = n && n->kind == NODE_TREE && n->st.ino == st.ino && n->st.dev == st.dev;
    if (n && !same) { /* it was changed before, and this is the step as it was */
        n->stale = true;
        unname(src, n);
    }
    if (old && same && n->kind == NODE_TREE && n->st.ino == st.ino && n->st.dev == st.dev && now.path && now.name) {
        unname(src, n);
        old[n->old_count++] = n->path;
        old[n->old_count++] = n->name;
        old[n->old_count++] = n->manifest;
        n->path = CKPT_STEAL(now.path);
        n->name = CKPT_STEAL(now.name);
        n->manifest = CKPT_STEAL(now.manifest);
        n->inside = n->manifest + strlen(n->dir) + 1;
        n->st = st;
        n->st.type = CKPT_FT_DIR;
        ckpt_step_name(n->name, &n->number);
        n->ino = node_ino(n);
        struct node **b = name_bucket(src, n->parent, n->name);
        n->next_name = *b;
        *b = n;
        n->named = true;
    }
    pthread_mutex_unlock(&src->lock);
    free(now.path);
    free(now.name);
    free(now.dir);
    free(now.manifest);
}

/* A checkpoint that is a file of this directory. */
static int set_file(struct node *n, const struct node *dir)
{
    n->dir = strdup(dir->path);
    const char *slash = strrchr(n->path, '/');
    n->inside = slash ? slash + 1 : n->path;
    return n->dir ? 0 : -ENOMEM;
}

/* The node that is known already where `fresh` would be, or that one; with a reference more. e: what is told of a TREE. */
static void keep_node(struct ckpt_source *src, struct node *fresh, const struct ckpt_entry *e, struct node **ret)
{
    struct node *dead = NULL;
    fresh->ino = node_ino(fresh);
    pthread_mutex_lock(&src->lock);
    struct node *n = find_name(src, fresh->parent, fresh->name);
    if (n && (n->ino != fresh->ino || n->kind != fresh->kind || (fresh->link && strcmp(n->link, fresh->link)))) {
        unname(src, n); /* what was known under this name has been replaced */
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
        if (fresh->kind != NODE_TREE)
            n->st = fresh->st;
    } else {
        n = fresh;
        node_insert(src, n, src->next_id++);
    }
    n->refs++;
    pthread_mutex_unlock(&src->lock);
    if (dead)
        node_free(src, dead);
    *ret = n;
}

/* The node of a name, found or made, with a reference more. key: what it is known by in its directory, where that is not its name. */
int source_take_node(struct ckpt_source *src, struct node *dir, const char *name, const char *key, enum node_kind kind,
                     const struct ckpt_stat *st, const struct ckpt_entry *e, const char *link, struct node **ret)
{
    char path[4096];
    if (snprintf(path, sizeof path, "%s%s%s", dir->path, *dir->path ? "/" : "", name) >= (int)sizeof path)
        return -ENAMETOOLONG;
    struct node *fresh = node_new(src, dir->id, path, key, kind, st);
    if (!fresh)
        return -ENOMEM;
    if ((link && !(fresh->link = strdup(link))) || (e && e->file && set_inside(fresh, dir, e->file) < 0) ||
        (kind == NODE_TREE && st->type == CKPT_FT_FILE && set_file(fresh, dir) < 0)) {
        node_free(src, fresh);
        return -ENOMEM;
    }
    fresh->writable = dir->writable && (kind == NODE_LINK || (e && e->file));
    keep_node(src, fresh, e, ret);
    return 0;
}

static int lookup_entry(struct ckpt_source *src, struct node *dir, const struct ckpt_listing *l, const char *name, struct node **ret)
{
    static const enum node_kind kinds[] = {
        [CKPT_ENTRY_FILE] = NODE_FILE, [CKPT_ENTRY_DIR] = NODE_DIR, [CKPT_ENTRY_TREE] = NODE_TREE, [CKPT_ENTRY_LINK] = NODE_LINK};
    const struct ckpt_entry *e = ckpt_listing_find(l, name);
    char link[4096];
    if (!e && !strcmp(name, "latest") && l->latest != SIZE_MAX) {
        struct ckpt_stat st = l->dir;
        st.ino = ~st.ino;
        return source_take_node(src, dir, name, name, NODE_LINK, &st, NULL, l->entries[l->latest].name, ret);
    }
    if (!e && l->best && !strcmp(name, "best")) {
        struct ckpt_stat st = l->store_dir;
        st.ino = ~st.ino;
        return source_take_node(src, dir, name, name, NODE_LINK, &st, NULL, l->best, ret);
    }
    if (!e || e->kind == CKPT_ENTRY_HIDDEN)
        return -ENOENT;
    if (e->kind != CKPT_ENTRY_LINK)
        return source_take_node(src, dir, name, name, kinds[e->kind], &e->st, e, NULL, ret);
    char path[4096];
    if (snprintf(path, sizeof path, "%s%s%s", dir->path, *dir->path ? "/" : "", name) >= (int)sizeof path)
        return -ENAMETOOLONG;
    int r = source_link_target(src, path, link, sizeof link);
    return r < 0 ? r : source_take_node(src, dir, name, name, NODE_LINK, &e->st, NULL, link, ret);
}

/* A view of what is in the checkpoint of a node, whose reference is given back. */
static int lookup_view(struct ckpt_source *src, struct node *node, const char *name, struct ckpt_attr *ret, struct ckpt_err *err)
{
    uint64_t id = node->id;
    struct target t;
    int r = source_target(src, id, &t, err);
    if (r == 0) {
        r = lookup_inner(src, &t, name, ret, err);
        source_done(src, &t);
    }
    ckpt_forget(src, id, 1);
    if (r == 0)
        ret->forever = false; /* its name goes with the checkpoint's */
    return r;
}

/* The .npy file of a directory that a name with this many bytes of a key could be a view of. */
static const struct ckpt_entry *npy_of_key(const struct ckpt_listing *l, const char *name, size_t len, char *file)
{
    if (!len || len > 255 - strlen(".npy"))
        return NULL;
    memcpy(file, name, len);
    strcpy(file + len, ".npy");
    const struct ckpt_entry *e = ckpt_listing_find(l, file);
    return e && e->kind == CKPT_ENTRY_FILE && e->reader ? e : NULL;
}

/* The node of an .npy file as a tree, which is found under a name that no file has. */
static int take_npy(struct ckpt_source *src, struct node *dir, const char *file, const struct ckpt_entry *e, struct node **ret)
{
    char key[257];
    snprintf(key, sizeof key, "%s/", file);
    return source_take_node(src, dir, file, key, NODE_TREE, &e->st, e, NULL, ret);
}

int source_npy(struct ckpt_source *src, struct node *file, struct target *ret, struct ckpt_err *err)
{
    struct ckpt_entry e = {.reader = file->reader};
    struct target dir;
    struct node *node;
    uint32_t top;
    if (file->kind != NODE_FILE || !file->reader)
        return -ENODATA;
    int r = source_target(src, file->parent, &dir, err);
    if (r < 0)
        return r;
    r = ckpt_backend_stat(src->backend, file->path, &e.st);
    if (r == 0)
        r = take_npy(src, dir.node, file->name, &e, &node);
    source_done(src, &dir);
    if (r < 0)
        return r;
    uint64_t id = node->id;
    r = source_target(src, id, ret, err);
    if (r == 0 && (r = source_enter(src, ret, &top, err)) < 0)
        source_done(src, ret);
    ckpt_forget(src, id, 1);
    return r;
}

/* KEY, KEY@SLICE, KEY.txt and the like beside a file KEY.npy. */
static int lookup_npy_view(struct ckpt_source *src, struct node *dir, const struct ckpt_listing *l, const char *name, struct ckpt_attr *ret,
                           struct ckpt_err *err)
{
    static const char *const suffixes[] = {"", ".txt", ".meta.json"};
    char file[256];
    const struct ckpt_entry *e = NULL;
    const char *at = strrchr(name, '@');
    struct node *node;
    for (size_t i = 0; i < sizeof suffixes / sizeof *suffixes && !e; i++)
        if (!*suffixes[i] || ckpt_has_suffix(name, suffixes[i]))
            e = npy_of_key(l, name, strlen(name) - strlen(suffixes[i]), file);
    if (!e && at)
        e = npy_of_key(l, name, (size_t)(at - name), file);
    if (!e)
        return -ENOENT;
    int r = take_npy(src, dir, file, e, &node);
    if (r == 0 && (r = lookup_view(src, node, name, ret, err)) < 0)
        r = -ENOENT; /* a malformed file has no views */
    return r;
}

/* Views beside a directory that is a checkpoint (DIR.safetensors), or beside an .npy file. */
static int lookup_beside(struct ckpt_source *src, struct node *dir, const struct ckpt_listing *l, const char *name, struct ckpt_attr *ret,
                         struct ckpt_err *err)
{
    size_t n = strlen(name), suffix = strlen(".safetensors");
    char base[256];
    struct node *node;
    if (n <= suffix || strcmp(name + n - suffix, ".safetensors"))
        return lookup_npy_view(src, dir, l, name, ret, err);
    memcpy(base, name, n - suffix);
    base[n - suffix] = 0;
    const struct ckpt_entry *e = ckpt_listing_find(l, base);
    if (!e || e->kind != CKPT_ENTRY_TREE)
        return -ENOENT;
    int r = lookup_entry(src, dir, l, base, &node);
    return r < 0 ? r : lookup_view(src, node, ".safetensors", ret, err);
}

/* The node of a blob, under its listed name in a directory of a tree, as the tree that it is a checkpoint of; with a reference. */
static int take_blob(struct ckpt_source *src, struct target *dir, const char *name, struct node **ret, struct ckpt_err *err)
{
    struct ckpt_attr at;
    struct ckpt_entry e = {0};
    uint32_t parent;
    char path[4096], key[32];
    int r = source_enter(src, dir, &parent, err);
    if (r < 0)
        return r;
    uint32_t leaf = ckpt_tree_lookup(dir->tree, parent, name, strlen(name));
    if (leaf == CKPT_NO_NODE || dir->tree->nodes[leaf].kind != CKPT_NODE_BLOB)
        return -ENOENT;
    if (snprintf(path, sizeof path, "%s%s%s", dir->node->path, *dir->node->path ? "/" : "", name) >= (int)sizeof path)
        return -ENAMETOOLONG;
    if ((r = lookup_inner(src, dir, name, &at, err)) < 0)
        return r;
    struct ckpt_stat st = {
        .type = CKPT_FT_FILE, .size = at.size, .stored = at.stored, .mtime_ns = at.mtime_ns, .ctime_ns = at.mtime_ns,
        .dev = dir->node->st.dev, .ino = at.ino, .mode = at.mode, .uid = at.uid, .gid = at.gid,
    };
    struct ckpt_backend *blob = source_blob(src, at.id, name, &st);
    if (!blob) {
        ckpt_forget(src, at.id, 1);
        return -ENOMEM;
    }
    r = ckpt_probe_file(blob, name, &e.reader, &e.probe);
    if (r == 0 && (!e.reader || e.probe.weak || *e.probe.unfinished))
        r = -ENOENT;
    snprintf(key, sizeof key, "%u/", leaf); /* no name has a slash */
    struct node *fresh = r == 0 ? node_new(src, dir->node->id, path, key, NODE_TREE, &st) : NULL;
    if (!fresh)
        ckpt_backend_unref(blob);
    if (r == 0 && !fresh)
        return -ENOMEM;
    if (r < 0)
        return r;
    fresh->blob = blob;
    if (set_file(fresh, dir->node) < 0) {
        node_free(src, fresh);
        return -ENOMEM;
    }
    keep_node(src, fresh, &e, ret);
    return 0;
}

/* BLOB.tree, and BLOB.tree.safetensors beside it. */
static int lookup_blob(struct ckpt_source *src, struct target *dir, const char *name, struct ckpt_attr *ret, struct ckpt_err *err)
{
    static const char *const suffixes[] = {".tree", ".tree.safetensors"};
    struct node *node;
    for (unsigned i = 0; i < 2; i++) {
        if (!ckpt_has_suffix(name, suffixes[i]))
            continue;
        CKPT_AUTOFREE char *base = strndup(name, strlen(name) - strlen(suffixes[i]));
        int r = base ? take_blob(src, dir, base, &node, err) : -ENOMEM;
        if (r < 0)
            return r;
        if (i)
            return lookup_view(src, node, ".safetensors", ret, err);
        pthread_mutex_lock(&src->lock);
        node_attr(node, ret);
        pthread_mutex_unlock(&src->lock);
        return 0;
    }
    return -ENOENT;
}

static int lookup_control(struct ckpt_source *src, const char *name, struct ckpt_attr *ret, struct ckpt_err *err)
{
    uint8_t *content;
    size_t len;
    struct ckpt_stat st = src->root->st;
    st.mode &= 0444;
    int r = source_control(src, name, &content, &len, err);
    if (r < 0)
        return r;
    st.mtime_ns = ckpt_realtime_ns();
    struct node *n = node_new(src, CKPT_CONTROL, name, name, NODE_CONTROL, &st);
    if (!n) {
        free(content);
        return -ENOMEM;
    }
    n->content = content;
    n->content_len = len;
    n->refs = 1;
    pthread_mutex_lock(&src->lock);
    node_insert(src, n, src->next_id++);
    unname(src, n); /* each look-up makes one of its own */
    node_attr(n, ret);
    pthread_mutex_unlock(&src->lock);
    return 0;
}

/* A step of the store in the files face of the root that is the source. */
static int lookup_step_files(struct ckpt_source *src, const char *name, struct ckpt_attr *ret)
{
    struct target face;
    struct node *n;
    int r = source_target(src, CKPT_FACE, &face, NULL);
    if (r < 0)
        return r;
    r = source_face_step(src, face.node, name, &n);
    if (r == 0) {
        CKPT_GUARD(&src->lock);
        node_attr(n, ret);
        ret->fleeting = true;
    }
    source_done(src, &face);
    return r;
}

static int lookup_staged(struct ckpt_source *src, uint64_t parent, const char *name, struct ckpt_attr *ret, struct ckpt_err *err)
{
    struct ckpt_stages *set = source_set(src, parent);
    struct ckpt_stage_attr attr;
    int r = set ? ckpt_stage_lookup(set, parent, name, &attr) : -ESTALE;
    if (r == -ENOENT && ckpt_stage_is_face(set, parent) && lookup_step_files(src, name, ret) == 0)
        return 0;
    if (r < 0)
        return ckpt_fail(err, -r, "%s: %s", name, strerror(-r));
    source_attr_of_stage(&attr, ret);
    return 0;
}

/* A staged step hides the committed one that it is a copy of. */
static int lookup_step(struct ckpt_source *src, struct node *root, const char *name, struct ckpt_attr *ret)
{
    struct ckpt_stage_attr attr;
    int r = ckpt_stage_find(root->stages, name, &attr);
    if (r == 0) {
        source_attr_of_stage(&attr, ret);
        ret->fleeting = true;
    }
    return r;
}

/* The files face: of a root that is written, its own directory. */
static int lookup_face(struct ckpt_source *src, struct ckpt_attr *ret, struct ckpt_err *err)
{
    struct ckpt_stages *stages;
    struct ckpt_stage_attr attr;
    if (!ckpt_source_writable(src))
        return ckpt_getattr(src, CKPT_FACE, ret, err);
    int r = source_stages(src, src->root, &stages, err);
    if (r < 0)
        return r;
    r = ckpt_stage_face(stages, &attr);
    if (r < 0)
        return ckpt_fail(err, -r, ".files: %s", strerror(-r));
    source_attr_of_stage(&attr, ret);
    return 0;
}

int ckpt_lookup(struct ckpt_source *src, uint64_t parent, const char *name, struct ckpt_attr *ret, struct ckpt_err *err)
{
    char buf[16];
    struct target t;
    atomic_fetch_add_explicit(&src->lookups, 1, memory_order_relaxed);
    if (strlen(name) > 255)
        return ckpt_fail(err, ENAMETOOLONG, "the name is longer than 255 bytes");
    if (source_is_reserved(parent, name))
        return strcmp(name, ".files") ? ckpt_getattr(src, CKPT_CONTROL, ret, err) : lookup_face(src, ret, err);
    if (parent & CKPT_STAGED)
        return lookup_staged(src, parent, name, ret, err);
    name = top_name(parent, name, buf);
    int r = source_target(src, parent, &t, err);
    if (r < 0)
        return r;
    uint64_t copy;
    if (t.node->stale)
        r = -ESTALE;
    else if (t.tree || t.node->kind == NODE_TREE) {
        r = source_copied(src, &t, &copy);
        if (r == 1) {
            r = lookup_staged(src, copy, name, ret, err);
            ckpt_forget(src, copy, 1);
        } else if (r == 0 && (r = lookup_inner(src, &t, name, ret, err)) == -ENOENT)
            r = lookup_blob(src, &t, name, ret, err);
    } else if (t.node->stages && lookup_step(src, t.node, name, ret) == 0)
        r = 0;
    else if (t.node->kind == NODE_CONTROL_DIR)
        r = lookup_control(src, name, ret, err);
    else if (t.node->kind == NODE_FACE) {
        struct node *n;
        r = source_face_lookup(src, t.node, name, &n);
        if (r == 0) {
            pthread_mutex_lock(&src->lock);
            node_attr(n, ret);
            pthread_mutex_unlock(&src->lock);
        }
    } else if (t.node->kind != NODE_DIR)
        r = -ENOTDIR;
    else {
        struct ckpt_listing *l;
        struct node *n;
        r = source_listing(src, t.node, &l, err);
        if (r == 0) {
            r = lookup_entry(src, t.node, l, name, &n);
            if (r == 0) {
                pthread_mutex_lock(&src->lock);
                node_attr(n, ret);
                pthread_mutex_unlock(&src->lock);
            } else if (r == -ENOENT)
                r = lookup_beside(src, t.node, l, name, ret, err);
            ckpt_listing_unref(l);
        }
    }
    source_done(src, &t);
    if (r < 0 && err && err->code != -r)
        ckpt_fail(err, -r, "%s: %s", name, strerror(-r));
    return r;
}

void ckpt_forget(struct ckpt_source *src, uint64_t id, uint64_t count)
{
    if (id == CKPT_ROOT || id == CKPT_CONTROL || id == CKPT_FACE)
        return;
    if (id & CKPT_STAGED) {
        struct ckpt_stages *set = source_set(src, id);
        if (set)
            ckpt_stage_forget(set, id, count);
        return;
    }
    struct slice *gone = NULL;
    pthread_mutex_lock(&src->lock);
    struct node *n = id < INSIDE ? find_id(src, id) : find_serial(src, (uint32_t)(id >> 40)), *dead = NULL;
    if (n) {
        uint64_t *refs = id < INSIDE ? &n->refs : &n->inner;
        enum ckpt_view view = (enum ckpt_view)(id >> 32 & 0xff);
        *refs -= CKPT_MIN(*refs, count);
        if (id >= INSIDE && (view == CKPT_VIEW_SLICE || view == CKPT_VIEW_SLICE_NPY) && (uint32_t)id < n->slice_count) {
            struct slice *s = n->slices[(uint32_t)id];
            if (s && (s->refs -= CKPT_MIN(s->refs, count)) == 0) {
                gone = s;
                n->slices[(uint32_t)id] = NULL;
            }
        }
        dead = reap(src, n);
    }
    pthread_mutex_unlock(&src->lock);
    if (gone) {
        free(gone->text);
        free(gone);
    }
    if (dead)
        node_free(src, dead);
}

/* Name by name; links are resolved here, at most 40 of them. */
static int walk_from(struct ckpt_source *src, uint64_t from, const char *path, int links, struct ckpt_attr *ret, struct ckpt_err *err)
{
    uint64_t chain[512];
    unsigned depth = 0;
    struct ckpt_attr at;
    int r = ckpt_getattr(src, from, &at, err);
    CKPT_AUTOFREE char *rest = strdup(path);
    if (r == 0 && !rest)
        r = -ENOMEM;
    for (char *p = rest; r == 0;) {
        p += strspn(p, "/");
        if (!*p)
            break;
        size_t n = strcspn(p, "/");
        char name[256], target[4096];
        if (n >= sizeof name) {
            r = ckpt_fail(err, ENAMETOOLONG, "a name is longer than 255 bytes");
            break;
        }
        memcpy(name, p, n);
        name[n] = 0;
        p += n;
        if (!strcmp(name, "."))
            continue;
        if (!strcmp(name, "..")) {
            if (depth) {
                depth--;
                ckpt_forget(src, chain[depth], 1);
                r = ckpt_getattr(src, depth ? chain[depth - 1] : from, &at, err);
            }
            continue;
        }
        uint64_t parent = depth ? chain[depth - 1] : from;
        r = ckpt_lookup(src, parent, name, &at, err);
        if (r < 0)
            break;
        if (at.type == CKPT_LINK) {
            r = links ? ckpt_readlink(src, at.id, target, sizeof target) : ckpt_fail(err, ELOOP, "too many links");
            ckpt_forget(src, at.id, 1);
            if (r < 0)
                break;
            /* What is left of the path follows the link's target. */
            char *joined = malloc(strlen(target) + strlen(p) + 2);
            if (!joined) {
                r = -ENOMEM;
                break;
            }
            sprintf(joined, "%s/%s", target, p);
            free(rest);
            rest = p = joined;
            links--;
            r = ckpt_getattr(src, parent, &at, err);
        } else if (depth == sizeof chain / sizeof *chain) {
            ckpt_forget(src, at.id, 1);
            r = ckpt_fail(err, ENAMETOOLONG, "the path is nested too deeply");
        } else
            chain[depth++] = at.id;
    }
    if (r == 0 && !depth && from != CKPT_ROOT)
        r = ckpt_fail(err, EINVAL, "an empty path");
    for (unsigned i = 0; i + (r == 0) < depth; i++)
        ckpt_forget(src, chain[i], 1);
    if (r == 0)
        *ret = at;
    return r;
}

int ckpt_walk(struct ckpt_source *src, uint64_t from, const char *path, struct ckpt_attr *ret, struct ckpt_err *err)
{
    return walk_from(src, from, path, 40, ret, err);
}

/* --- reading --- */

int ckpt_readlink(struct ckpt_source *src, uint64_t id, char *buf, size_t len)
{
    struct target t;
    int r = source_target(src, id, &t, NULL);
    if (r < 0)
        return r;
    if (t.tree || t.node->kind != NODE_LINK)
        r = -EINVAL;
    else
        snprintf(buf, len, "%s", t.node->link);
    source_done(src, &t);
    return r;
}

/* A file of the source that is shown as itself. It is kept open, so that a reader goes on when its name is gone. */
static ssize_t read_file(struct ckpt_source *src, struct node *n, void *buf, size_t len, uint64_t off)
{
    pthread_mutex_lock(&src->lock);
    struct ckpt_file *f = n->file ? ckpt_file_ref(n->file) : NULL;
    pthread_mutex_unlock(&src->lock);
    if (!f) {
        int r = n->files ? ckpt_backend_open(n->files, n->inside, &f) : ckpt_backend_open(src->backend, n->path, &f);
        if (r < 0)
            return r;
        pthread_mutex_lock(&src->lock);
        if (!n->file && src->kept_files < KEPT_FILES) {
            n->file = ckpt_file_ref(f);
            src->kept_files++;
        }
        pthread_mutex_unlock(&src->lock);
    }
    ssize_t r = ckpt_file_read(f, buf, len, off);
    ckpt_file_unref(f);
    return r;
}

static void log_leaf(struct ckpt_source *src, const struct target *t, const struct ckpt_err *err, int code)
{
    struct ckpt_buf name = CKPT_BUF_INIT;
    ckpt_tree_name(t->tree, t->file.node, &name);
    ckpt_log(CKPT_LOG_WARN, "%s%s%s: leaf %.*s: %s", src->path, *t->node->path ? "/" : "", t->node->path,
             (int)CKPT_MIN(name.len, (size_t)255), name.data ? (char *)name.data : "", err->code ? err->text : strerror(code));
    ckpt_buf_clear(&name);
}

/* What is not inside of a checkpoint. */
static ssize_t read_outer(struct ckpt_source *src, struct node *n, void *buf, size_t len, uint64_t off, struct ckpt_err *err)
{
    if (n->kind == NODE_FILE) {
        ssize_t r = read_file(src, n, buf, len, off);
        return r < 0 ? ckpt_fail(err, (int)-r, "%s/%s: %s", src->path, n->path, strerror((int)-r)) : r;
    }
    if (n->kind != NODE_CONTROL)
        return ckpt_fail(err, EISDIR, "a directory");
    len = off < n->content_len ? CKPT_MIN(len, n->content_len - (size_t)off) : 0;
    if (len)
        memcpy(buf, n->content + off, len);
    return (ssize_t)len;
}

/* Checks and counts before it hands on: who has its bytes may look at the figures at once. */
struct counted_give {
    struct ckpt_source *src;
    ckpt_give_fn *give;
    void *arg;
    const struct node *node; /* of what is read; NULL: not inside of a checkpoint */
    struct ckpt_err *err;
};

static int count_and_give(void *arg, const struct iovec *iov, int count)
{
    struct counted_give *g = arg;
    int r = g->node ? source_unchanged(g->src, g->node, g->err) : 0;
    if (r < 0)
        return r;
    for (int i = 0; i < count; i++)
        atomic_fetch_add_explicit(&g->src->bytes_read, iov[i].iov_len, memory_order_relaxed);
    return g->give(g->arg, iov, count);
}

/* With give: to it; else into buf. */
static ssize_t read_any(struct ckpt_source *src, uint64_t id, void *buf, size_t len, uint64_t off, struct counted_give *give,
                        struct ckpt_err *err)
{
    struct target t;
    struct ckpt_err own = {0};
    atomic_fetch_add_explicit(&src->reads, 1, memory_order_relaxed);
    ssize_t r = source_target(src, id, &t, err);
    if (r < 0)
        return r;
    if (t.tree && ckpt_viewed_is_dir(&t.file))
        r = ckpt_fail(err, EISDIR, "a directory");
    else if (t.tree) {
        if (give) {
            give->node = t.node;
            give->err = &own;
            r = ckpt_view_give(&src->views, &t.file, len, off, count_and_give, give, &own);
        } else {
            r = ckpt_view_read(&src->views, &t.file, buf, len, off, &own);
            int changed = r > 0 ? source_unchanged(src, t.node, &own) : 0;
            r = changed < 0 ? changed : r;
        }
        if (r < 0) {
            log_leaf(src, &t, &own, (int)-r);
            if (err)
                *err = own;
        }
    } else if (!give)
        r = read_outer(src, t.node, buf, len, off, err);
    else {
        CKPT_AUTOFREE uint8_t *own_buf = malloc(len ? len : 1);
        r = own_buf ? read_outer(src, t.node, own_buf, len, off, err) : -ENOMEM;
        if (r >= 0) {
            int g = count_and_give(give, &(struct iovec){own_buf, (size_t)r}, 1);
            r = g < 0 ? g : r;
        }
    }
    source_done(src, &t);
    if (r > 0 && !give)
        atomic_fetch_add_explicit(&src->bytes_read, (uint64_t)r, memory_order_relaxed);
    return r;
}

ssize_t ckpt_read(struct ckpt_source *src, uint64_t id, void *buf, size_t len, uint64_t off, struct ckpt_err *err)
{
    return read_any(src, id, buf, len, off, NULL, err);
}

ssize_t ckpt_read_to(struct ckpt_source *src, uint64_t id, size_t len, uint64_t off,
                     int (*give)(void *arg, const struct iovec *iov, int count), void *arg, struct ckpt_err *err)
{
    struct counted_give g = {.src = src, .give = give, .arg = arg};
    return read_any(src, id, NULL, len, off, &g, err);
}

/* --- life --- */

void ckpt_sweep(struct ckpt_source *src, void (*gone)(void *arg, uint64_t parent, const char *name), void *arg)
{
    struct held {
        uint64_t parent, ino, dev;
        int64_t btime_ns;
        char *path, *name;
    } *held = NULL;
    size_t count = 0, cap = 0;
    pthread_mutex_lock(&src->lock);
    for (unsigned i = 0; i < CKPT_BUCKETS; i++)
        for (struct node *n = src->by_serial[i]; n; n = n->next_serial) {
            if (!n->pins || n->blob || n == src->root)
                continue;
            if (count == cap) {
                cap = cap ? cap * 2 : 64;
                struct held *p = realloc(held, cap * sizeof *p);
                if (!p)
                    break;
                held = p;
            }
            held[count++] = (struct held){n->parent, n->st.ino, n->st.dev, n->st.btime_ns, strdup(n->manifest ? n->manifest : n->path), strdup(n->name)};
        }
    pthread_mutex_unlock(&src->lock);
    for (size_t i = 0; i < count; i++) {
        struct ckpt_stat st;
        if (held[i].path && held[i].name &&
            (ckpt_backend_stat(src->backend, held[i].path, &st) < 0 || st.ino != held[i].ino || st.dev != held[i].dev ||
             st.btime_ns != held[i].btime_ns))
            gone(arg, held[i].parent, held[i].name);
        free(held[i].path);
        free(held[i].name);
    }
    free(held);
}

/* file: the checkpoint's name in the backend; "": the backend's own top is the source. */
static int open_root(struct ckpt_source *src, const char *file, struct ckpt_err *err)
{
    struct ckpt_stat st, none = {.type = CKPT_FT_DIR};
    struct ckpt_probe probe;
    const struct ckpt_reader *reader;
    int r = ckpt_backend_stat(src->backend, file, &st);
    if (r == 0)
        r = *file ? ckpt_probe_file(src->backend, file, &reader, &probe) : ckpt_probe_dir(src->backend, &reader, &probe);
    if (r < 0)
        return ckpt_fail(err, -r, "%s: %s", src->path, strerror(-r));
    if (*file && !reader)
        return ckpt_fail(err, EOPNOTSUPP, "%s: neither a directory nor a checkpoint file: none of the formats that can be read begins or is named so", src->path);
    bool tree = reader && (*file || !probe.weak);
    if (tree && *probe.unfinished)
        return ckpt_fail(err, EUCLEAN, "%s: this checkpoint is %s", src->path, probe.unfinished);
    src->root = node_new(src, 0, "", "", tree ? NODE_TREE : NODE_DIR, &st);
    if (src->root && *file && !((src->root->dir = strdup("")) && (src->file = strdup(file))))
        return ckpt_fail(err, ENOMEM, "out of memory");
    if (src->root && src->file)
        src->root->inside = src->file;
    struct node *control = node_new(src, CKPT_ROOT, "", ".ckptfs", NODE_CONTROL_DIR, &none);
    if (!src->root || !control)
        return ckpt_fail(err, ENOMEM, "out of memory");
    control->refs = 1;
    control->st.mtime_ns = st.mtime_ns;
    control->st.mode = shown_mode(src->root);
    control->st.uid = st.uid;
    control->st.gid = st.gid;
    node_insert(src, src->root, CKPT_ROOT);
    node_insert(src, control, CKPT_CONTROL);
    none = st;
    none.mode = shown_mode(src->root);
    none.type = CKPT_FT_DIR;
    struct node *face = node_new(src, CKPT_ROOT, "", ".files", NODE_FACE, &none);
    if (!face)
        return ckpt_fail(err, ENOMEM, "out of memory");
    face->refs = 1;
    node_insert(src, face, CKPT_FACE);
    src->next_id = 16;
    src->root->reader = reader;
    src->root->uses = 1; /* never reaped */
    struct ckpt_tree *t;
    if (!tree)
        return 0;
    r = source_tree(src, src->root, &t, err);
    if (r == 0)
        ckpt_tree_unref(t);
    return r < 0 ? ckpt_fail_in(err, -r, "%s", src->path) : 0;
}

static int is_entry(void *arg, const char *name, enum ckpt_ftype type)
{
    return 1;
}

/* A source that may be written: what is staged there is taken over now; an empty one waits for its first step. */
static int open_for_writing(struct ckpt_source *src, struct ckpt_err *err)
{
    struct ckpt_stages *stages;
    struct ckpt_err own = {0};
    if (src->root->kind != NODE_DIR)
        return 0;
    if (ckpt_backend_list(src->backend, "", is_entry, NULL) == 0 && access(src->path, W_OK | X_OK) == 0) {
        src->lazy = src->root->writable = true;
        return 0;
    }
    int r = source_stages(src, src->root, &stages, &own);
    if (r == -EROFS || r == -EACCES || r == -EPERM)
        return 0;
    if (r < 0 && err)
        *err = own;
    return r;
}

/* Looking into the mount would ask the very process that looks. */
static int hide_mount(struct ckpt_source *src, const char *dir, struct ckpt_err *err)
{
    CKPT_AUTOFREE char *top = src->opt.hidden ? realpath(dir, NULL) : NULL, *hidden = top ? realpath(src->opt.hidden, NULL) : NULL;
    size_t n = hidden ? strlen(top) : 0;
    n -= n == 1; /* "/" */
    if (!hidden || strncmp(hidden, top, n) != 0 || hidden[n] != '/')
        return 0;
    return ckpt_backend_hide(src->backend, hidden + n + 1) < 0 ? ckpt_fail(err, ENOMEM, "out of memory") : 0;
}

/* The source, or the directory of the file that it is. A link to a file, as download caches have them, goes by its own name and is seen
 * from the top of all, since it may lead anywhere. */
static int open_backend(struct ckpt_source *src, bool is_dir, struct ckpt_err *err)
{
    struct stat st;
    char dir[PATH_MAX], file[PATH_MAX] = "";
    snprintf(dir, sizeof dir, "%s", src->path);
    char *slash = strrchr(dir, '/');
    const char *name = slash ? slash + 1 : src->path;
    if (!is_dir && lstat(src->path, &st) == 0 && S_ISLNK(st.st_mode)) {
        CKPT_AUTOFREE char *name_copy = strdup(name);
        if (slash)
            slash[slash == dir] = 0;
        CKPT_AUTOFREE char *real = realpath(slash ? dir : ".", NULL);
        if (!real || !name_copy || snprintf(file, sizeof file, "%s%s%s", real + 1, real[1] ? "/" : "", name_copy) >= (int)sizeof file)
            return ckpt_fail(err, ENAMETOOLONG, "%s: %s", src->path, strerror(ENAMETOOLONG));
        strcpy(dir, "/");
    } else if (!is_dir) {
        snprintf(file, sizeof file, "%s", name);
        if (slash)
            slash[slash == dir] = 0;
        else
            strcpy(dir, ".");
    }
    int r = ckpt_backend_open_posix(dir, &src->backend, err);
    if (r == 0 && is_dir)
        r = hide_mount(src, dir, err);
    return r < 0 ? r : open_root(src, file, err);
}

int ckpt_source_open(const char *path, const struct ckpt_options *options, struct ckpt_source **ret, struct ckpt_err *err)
{
    struct ckpt_source *src = calloc(1, sizeof *src);
    struct stat st;
    if (!src)
        return ckpt_fail(err, ENOMEM, "out of memory");
    src->opt = *options;
    pthread_mutex_init(&src->lock, NULL);
    const char *tmp = options->spill_dir ? options->spill_dir : getenv("TMPDIR");
    src->spill_dir = strdup(tmp && *tmp ? tmp : "/var/tmp");
    src->path = strdup(path);
    long cpus = sysconf(_SC_NPROCESSORS_ONLN);
    src->opt.threads = options->threads ? options->threads : cpus > 0 ? (unsigned)cpus : 1;
    struct ckpt_cache_options cache = {.memory = options->cache, .spill = options->spill, .spill_dir = src->spill_dir};
    int r = src->spill_dir && src->path ? 0 : -ENOMEM;
    size_t n = src->path ? strlen(src->path) : 0;
    while (n > 1 && src->path[n - 1] == '/')
        src->path[--n] = 0;
    if (r == 0)
        r = ckpt_pool_new(src->opt.threads, &src->pool);
    if (r == 0)
        r = ckpt_cache_new(&cache, src->pool, &src->cache);
    if (r == 0)
        r = ckpt_views_init(&src->views, src->cache, src->spill_dir);
    if (r < 0)
        ckpt_fail(err, -r, "%s", strerror(-r));
    else if (stat(path, &st) < 0)
        r = ckpt_fail(err, errno, "%s: %s", path, strerror(errno));
    else {
        r = open_backend(src, S_ISDIR(st.st_mode), err);
        if (r == 0 && src->opt.write)
            r = open_for_writing(src, err);
    }
    if (r < 0)
        ckpt_source_close(src);
    else
        *ret = src;
    return r;
}

void ckpt_source_close(struct ckpt_source *src)
{
    if (!src)
        return;
    for (unsigned i = 0; i < src->set_count; i++) {
        source_settle_removals(src, src->sets[i], 0);
        ckpt_stages_close(src->sets[i]->stages);
        src->sets[i]->stages = NULL;
    }
    ckpt_pool_free(src->pool); /* tasks under way use trees */
    src->closing = true;
    /* These hold others. */
    for (unsigned i = 0; i < CKPT_BUCKETS; i++)
        for (struct node *n = src->by_id[i]; n; n = n->next_id) {
            ckpt_file_unref(n->kind == NODE_FILE ? CKPT_STEAL(n->file) : NULL);
            ckpt_backend_unref(CKPT_STEAL(n->files));
        }
    for (unsigned i = 0; i < CKPT_BUCKETS; i++)
        for (struct node *n = src->by_id[i], *next; n; n = next) {
            next = n->next_id;
            node_free(src, n);
        }
    ckpt_views_clear(&src->views);
    ckpt_cache_free(src->cache);
    ckpt_backend_unref(src->backend);
    pthread_mutex_destroy(&src->lock);
    free(src->spill_dir);
    free(src->file);
    free(src->path);
    free(src);
}
