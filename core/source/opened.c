/* SPDX-License-Identifier: Apache-2.0 */
/* What is opened of a node: a directory's listing, a checkpoint's files and its tree. It is closed again where there is too much of it. */
#include "core/base/util.h"
#include "core/source/source.h"

#include <sys/stat.h>

#define TREE_BYTES ((uint64_t)56 << 20) /* of trees in memory; more are closed, and opened again from their pinned files */

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
        for (unsigned i = 0; i < NODE_BUCKETS; i++)
            for (struct node *n = src->nodes.by_serial[i]; n; n = n->next_serial) {
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
        for (unsigned i = 0; i < NODE_BUCKETS; i++)
            for (struct node *n = src->nodes.by_serial[i]; n; n = n->next_serial)
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
    struct node *root = node_by_id(&src->nodes, n->parent);
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
