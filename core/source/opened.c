/* SPDX-License-Identifier: Apache-2.0 */
/* What is opened of a node: a directory's listing, a checkpoint's files and its tree. It is closed again where there is
 * too much of it. */
#include "core/base/util.h"
#include "core/format/below.h"
#include "core/source/source.h"

#include <stdio.h>
#include <sys/stat.h>

#define TREE_BYTES                                                                                                     \
    ((uint64_t)56 << 20) /* of trees in memory; more are closed, and opened again from their pinned files */

char *ckpt_source_disk_path(const struct ckpt_source *src, const struct node *n)
{
    char *path = malloc(strlen(src->path) + strlen(n->path) + 2);
    if (path)
        sprintf(path, "%s%s%s", src->path, *n->path ? "/" : "", n->path);
    return path;
}

/* The name of the best step of a native root, to be freed; NULL. */
static char *best_step(struct ckpt_source *src, struct node *n)
{
    CKPT_AUTOFREE char *path = ckpt_source_disk_path(src, n);
    struct ckpt_store *store = n->store;
    char name[CKPT_STEP_NAME + 1];
    struct ckpt_err err = {0};
    int r = path ? 0 : -ENOMEM;
    if (r == 0 && !store)
        r = ckpt_store_open(path, &store, &err);
    if (r == 0)
        r = ckpt_store_best(store, name, &err);
    if (r < 0)
        ckpt_log(CKPT_LOG_WARN, "%s: which step is best cannot be told: %s", path ? path : "", err.text);
    if (store != n->store)
        ckpt_store_close(store);
    return r == 1 ? strdup(name) : NULL;
}

int ckpt_source_listing(struct ckpt_source *src, struct node *n, struct ckpt_listing **ret, struct ckpt_err *err)
{
    NODE_LOADING(src, n);
    pthread_mutex_lock(&src->lock);
    struct opened *o = ckpt_node_opened(n);
    pthread_mutex_unlock(&src->lock);
    if (!o)
        return ckpt_fail(err, ENOMEM, "out of memory");
    int64_t now = ckpt_monotonic_ns();
    bool fresh = n->checked_ns && now - n->checked_ns < (int64_t)(src->opt.refresh * 1e9);
    if (o->listing && fresh) {
        *ret = ckpt_listing_ref(o->listing);
        return 0;
    }
    if (o->listing && ckpt_listing_current(src->backend, n->path, o->listing)) {
        n->checked_ns = now;
        *ret = ckpt_listing_ref(o->listing);
        return 0;
    }
    struct ckpt_listing *l;
    n->checked_ns = 0;
    if (o->listing)
        ckpt_listing_shrink(o->listing);
    int r = ckpt_listing_make(src->backend, n->path, o->listing, &l);
    if (r < 0)
        return ckpt_fail(err, -r, "%s/%s: %s", src->path, n->path, strerror(-r));
    if (l->native && !ckpt_listing_find(l, "best"))
        l->best = best_step(src, n);
    ckpt_listing_unref(o->listing);
    o->listing = l;
    n->checked_ns = now;
    *ret = ckpt_listing_ref(l);
    return 0;
}

/* --- checkpoints that have pins, by their last use --- */

static void used_now(struct ckpt_source *src, struct opened *o)
{
    if (!o->pins || src->newest == o)
        return;
    ckpt_source_unlink_opened(src, o);
    o->older = src->newest;
    *(o->older ? &o->older->newer : &src->oldest) = o;
    src->newest = o;
}

/* Close the trees that were used longest ago until the rest is within bounds: their numbers of nodes stay what they are
 * when they are opened again, from files that are still pinned. */
static void close_old_trees(struct ckpt_source *src, struct node *keep)
{
    for (;;) {
        struct opened *oldest = NULL;
        uint64_t bytes = 0, trees = 0;
        pthread_mutex_lock(&src->lock);
        for (struct opened *o = src->newest; o; o = o->older) {
            if (!o->tree)
                continue;
            trees++;
            bytes += ckpt_tree_memory(o->tree); /* it grows while it is used */
            if (o->node != keep)
                oldest = o;
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

/* When descriptors run short: close the files of the checkpoints that were used longest ago. They are opened again by
 * name. */
static void close_old_files(struct ckpt_source *src, struct node *keep)
{
    while (ckpt_pins_scarce()) {
        pthread_mutex_lock(&src->lock);
        struct opened *o = src->oldest;
        while (o && (o->node == keep || o->node == src->root || o->node->uses))
            o = o->newer;
        if (!o) {
            pthread_mutex_unlock(&src->lock);
            return;
        }
        ckpt_source_unlink_opened(src, o);
        struct ckpt_tree *tree = CKPT_STEAL(o->tree);
        struct ckpt_pins *pins = CKPT_STEAL(o->pins);
        struct ckpt_file *file = CKPT_STEAL(o->file);
        pthread_mutex_unlock(&src->lock);
        ckpt_file_unref(file);
        if (tree)
            ckpt_cache_drop_tree(src->cache, tree->id);
        ckpt_tree_unref(tree);
        ckpt_pins_unref(pins);
    }
}

/* Another step of the store has its name: whoever looks it up again, which -ESTALE makes the kernel do, shall find
 * that. */
static int replaced_meanwhile(struct ckpt_source *src, struct node *n)
{
    pthread_mutex_lock(&src->lock);
    struct node *root = ckpt_node_by_id(&src->nodes, n->parent);
    if (root)
        root->uses++;
    pthread_mutex_unlock(&src->lock);
    if (!root)
        return -ENOENT;
    {
        NODE_LOADING(src, root);
        root->checked_ns = 0;
    }
    ckpt_node_release(src, root);
    return -ESTALE;
}

/* Where a checkpoint is: its directory in the source, and its name in there ("": it is the directory). */
struct tree_file {
    char dir[NODE_PATH], inside[NODE_PATH];
};

static void tree_file_of(struct ckpt_source *src, const struct node *n, struct tree_file *ret)
{
    CKPT_GUARD(&src->lock); /* it may be renamed */
    const char *end = n->path + strlen(n->path);
    if (n->stored)
        end = n->name;
    else if (n->st.type == CKPT_FT_FILE)
        end = strrchr(n->path, '/');
    snprintf(ret->dir, sizeof ret->dir, "%.*s%s", end ? (int)(end - n->path) : 0, n->path,
             n->stored ? CKPT_STORE_DIR : "");
    snprintf(ret->inside, sizeof ret->inside, "%s", n->inside);
    if (n->stored)
        ckpt_node_manifest(n, true, ret->inside);
}

/* The files of a node's checkpoint; unref them. */
static int node_pins(struct ckpt_source *src, struct node *n, struct opened *o, const struct tree_file *at,
                     struct ckpt_pins **ret)
{
    pthread_mutex_lock(&src->lock);
    *ret = o->pins ? ckpt_pins_ref(o->pins) : NULL;
    pthread_mutex_unlock(&src->lock);
    if (*ret)
        return 0;
    close_old_files(src, n);
    struct ckpt_backend *dir;
    struct ckpt_stat st;
    int r = node_blob(n) ? ckpt_backend_sub(node_blob(n), "", &dir) : ckpt_backend_sub(src->backend, at->dir, &dir);
    if (r < 0)
        return r;
    r = ckpt_backend_stat(dir, at->inside, &st);
    if (r == 0 && (st.ino != n->st.ino || st.dev != n->st.dev || st.btime_ns != n->st.btime_ns))
        r = n->stored ? replaced_meanwhile(src, n) : -ENOENT; /* it was replaced since it was looked up */
    if (r == 0)
        r = ckpt_pins_new(dir, ret);
    ckpt_backend_unref(dir);
    if (r == 0) {
        CKPT_GUARD(&src->lock);
        o->pins = ckpt_pins_ref(*ret);
        used_now(src, o);
    }
    return r;
}

/* A checkpoint that is a file is kept open, to see whether it is changed in place. */
static int keep_file(struct ckpt_source *src, struct node *n, struct opened *o, const struct tree_file *at,
                     struct ckpt_pins *pins)
{
    struct ckpt_file *f;
    if (n->st.type != CKPT_FT_FILE)
        return 0;
    int r = ckpt_pins_open(pins, at->inside, &f);
    if (r < 0)
        return r;
    bool same_inode = f->st.ino == n->st.ino && f->st.dev == n->st.dev;
    bool same = same_inode && f->st.mtime_ns == n->st.mtime_ns && f->st.size == n->st.size;
    pthread_mutex_lock(&src->lock);
    struct ckpt_file *old = o->file;
    o->file = same ? f : NULL;
    pthread_mutex_unlock(&src->lock);
    ckpt_file_unref(old);
    if (!same)
        ckpt_file_unref(f);
    return same ? 0 : -ESTALE;
}

static bool is_as_known(const struct stat *st, const struct node *n)
{
    int64_t mtime_ns = st->st_mtim.tv_sec * 1000000000ll + st->st_mtim.tv_nsec;
    return mtime_ns == n->st.mtime_ns && (uint64_t)st->st_size == n->st.size;
}

int ckpt_source_unchanged(struct ckpt_source *src, const struct node *n, struct ckpt_err *err)
{
    struct stat st;
    if (n->st.type != CKPT_FT_FILE)
        return 0;
    pthread_mutex_lock(&src->lock);
    struct ckpt_file *f = n->opened && n->opened->file ? ckpt_file_ref(n->opened->file) : NULL;
    pthread_mutex_unlock(&src->lock);
    int fd = f ? ckpt_file_fd(f) : -1;
    bool same = fd < 0 || (fstat(fd, &st) == 0 && is_as_known(&st, n));
    ckpt_file_unref(f);
    if (!same)
        return ckpt_fail(err, ESTALE, "the file is not what it was when it was opened: it was written to in place");
    return 0;
}

static int open_tree(struct ckpt_source *src, struct node *n, struct opened *o, struct ckpt_tree **ret,
                     struct ckpt_err *err)
{
    struct ckpt_pins *pins;
    unsigned shortages = ckpt_shortages();
    struct tree_file at;
    tree_file_of(src, n, &at);
    int r = source_absent(node_pins(src, n, o, &at, &pins), shortages);
    if (r < 0)
        return ckpt_fail(err, -r, "%s", strerror(-r));
    r = keep_file(src, n, o, &at, pins);
    if (r == 0)
        r = n->format->open(&(struct ckpt_opening){pins, at.inside, src->cache, src->opt.flat, ckpt_below}, ret, err);
    ckpt_pins_unref(pins);
    if (shortages == ckpt_shortages())
        return r;
    if (r == 0) /* something may be missing in it */
        ckpt_tree_unref(*ret);
    return ckpt_fail(err, EMFILE, "%s", strerror(EMFILE));
}

/* Why it did not open, when that was tried last; nothing is known against a step that was deleted, or for which there
 * were no descriptors. */
static void note_error(struct ckpt_source *src, struct opened *o, int r, const struct ckpt_err *err)
{
    bool its_own = r < 0 && r != -ENOENT && r != -EMFILE && r != -ENFILE;
    struct ckpt_err *note = its_own ? malloc(sizeof *note) : NULL;
    if (note)
        *note = *err;
    CKPT_GUARD(&src->lock);
    free(o->err);
    o->err = note;
    o->err_ns = ckpt_monotonic_ns();
}

/* The tree, if it is open; with a reference. */
static struct ckpt_tree *open_already(struct ckpt_source *src, struct node *n, struct opened **ret)
{
    CKPT_GUARD(&src->lock);
    struct opened *o = *ret = ckpt_node_opened(n);
    if (!o)
        return NULL;
    used_now(src, o);
    return o->tree ? ckpt_tree_ref(o->tree) : NULL;
}

/* What failed is not tried at every call. */
static bool failed_lately(const struct ckpt_source *src, const struct opened *o)
{
    int64_t wait_ns = (int64_t)(CKPT_MAX(src->opt.refresh, 0.5) * 1e9);
    return o->err && ckpt_monotonic_ns() - o->err_ns <= wait_ns;
}

static int try_open(struct ckpt_source *src, struct node *n, struct opened *o, struct ckpt_tree **ret,
                    struct ckpt_err *err)
{
    struct ckpt_err own = {0};
    int r = open_tree(src, n, o, ret, &own);
    if (r < 0 && !own.code)
        ckpt_fail(&own, -r, "%s", strerror(-r));
    if (r < 0 && r != -ENOENT)
        ckpt_log(CKPT_LOG_WARN, "%s%s%s: %s", src->path, *n->path ? "/" : "", n->path, own.text);
    note_error(src, o, r, &own);
    if (r < 0 && err)
        *err = own;
    return r;
}

/* True: there may be too many trees now. Counting them all takes as long as opening a few, so they are counted when
 * this one may have passed the bound. */
static bool keep_tree(struct ckpt_source *src, struct opened *o, struct ckpt_tree *tree)
{
    CKPT_GUARD(&src->lock);
    o->tree = ckpt_tree_ref(tree);
    src->trees++;
    src->tree_bytes += ckpt_tree_memory(tree);
    bool full = src->tree_bytes > TREE_BYTES || ++src->since_count >= 64;
    if (full)
        src->since_count = 0;
    return full;
}

int ckpt_source_tree(struct ckpt_source *src, struct node *n, struct ckpt_tree **ret, struct ckpt_err *err)
{
    struct opened *o;
    if (node_absence(n))
        return ckpt_fail(err, ENOENT, "%s", node_absence(n));
    *ret = open_already(src, n, &o);
    if (*ret)
        return 0;
    NODE_LOADING(src, n);
    *ret = open_already(src, n, &o); /* another thread may have opened it meanwhile */
    if (*ret)
        return 0;
    if (!o)
        return ckpt_fail(err, ENOMEM, "out of memory");
    if (failed_lately(src, o)) {
        if (err)
            *err = *o->err;
        return -o->err->code;
    }
    int r = try_open(src, n, o, ret, err);
    if (r < 0)
        return r;
    if (keep_tree(src, o, *ret))
        close_old_trees(src, n);
    return 0;
}
