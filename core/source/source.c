/* SPDX-License-Identifier: Apache-2.0 */
/* The life of a source. */
#include "core/source/kind.h"
#include "core/source/top.h"

#include "core/base/util.h"
#include "core/format/lfs.h"

#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <sys/stat.h>

/* --- steps that have gone --- */

/* A checkpoint that is open, as it was when that was noted. */
struct held {
    uint64_t parent, ino, dev;
    int64_t btime_ns;
    char *path, *name;
};

/* The checkpoints that are held; the array and its texts are to be freed. */
static size_t note_held(struct ckpt_source *src, struct held **ret)
{
    struct held *held = NULL;
    size_t count = 0, cap = 0;
    CKPT_GUARD(&src->lock);
    for (struct opened *o = src->newest; o; o = o->older) {
        const struct node *n = o->node;
        char manifest[NODE_PATH];
        if (o->blob || node_is_top(n))
            continue;
        if (count == cap) {
            cap = cap ? cap * 2 : 64;
            struct held *p = realloc(held, cap * sizeof *p);
            if (!p)
                break;
            held = p;
        }
        if (n->stored)
            ckpt_node_manifest(n, false, manifest);
        char *path = strdup(n->stored ? manifest : n->path);
        held[count++] = (struct held){n->parent, n->st.ino, n->st.dev, n->st.btime_ns, path, strdup(n->name)};
    }
    *ret = held;
    return count;
}

/* False too if that cannot be told, for want of memory or descriptors. */
static bool has_gone(struct ckpt_source *src, const struct held *h)
{
    struct ckpt_stat st;
    if (!h->path || !h->name)
        return false;
    unsigned shortages = ckpt_shortages();
    int r = ckpt_backend_stat(src->backend, h->path, &st);
    if (shortages != ckpt_shortages())
        return false;
    return r < 0 || st.ino != h->ino || st.dev != h->dev || st.btime_ns != h->btime_ns;
}

void ckpt_sweep(struct ckpt_source *src, void (*gone)(void *arg, uint64_t parent, const char *name), void *arg)
{
    struct held *held;
    ckpt_source_look(src, true);
    ckpt_source_tell_former(src, gone, arg);
    size_t count = note_held(src, &held);
    for (size_t i = 0; i < count; i++) {
        if (has_gone(src, &held[i]))
            gone(arg, held[i].parent, held[i].name);
        free(held[i].path);
        free(held[i].name);
    }
    free(held);
}

/* --- opening --- */

/* The top and what is right below it; src->root is there. */
static int add_top_nodes(struct ckpt_source *src, const struct ckpt_stat *top, struct ckpt_err *err)
{
    struct ckpt_stat none = {.type = CKPT_FT_DIR}, shown = *top;
    shown.mode = ckpt_source_shown_mode(src->root);
    shown.type = CKPT_FT_DIR;
    struct node *control = ckpt_node_new(CKPT_ROOT, "", ".ckptfs", NODE_CONTROL_DIR, &none);
    if (!control)
        return ckpt_fail(err, ENOMEM, "out of memory");
    control->refs = 1;
    control->st.mtime_ns = top->mtime_ns;
    control->st.mode = shown.mode;
    control->st.uid = top->uid;
    control->st.gid = top->gid;
    ckpt_node_insert(&src->nodes, src->root, CKPT_ROOT);
    ckpt_node_insert(&src->nodes, control, CKPT_CONTROL);
    struct node *files_view = ckpt_node_new(CKPT_ROOT, "", ".files", NODE_FILES_VIEW, &shown);
    if (!files_view)
        return ckpt_fail(err, ENOMEM, "out of memory");
    files_view->refs = 1;
    ckpt_node_insert(&src->nodes, files_view, CKPT_FILES_VIEW);
    src->nodes.next_id = 16;
    return 0;
}

/* A source that is a checkpoint must open. */
static int open_root_tree(struct ckpt_source *src, struct ckpt_err *err)
{
    struct ckpt_tree *t;
    int r = ckpt_source_tree(src, src->root, &t, err);
    if (r < 0)
        return ckpt_fail_in(err, -r, "%s", src->path);
    ckpt_tree_unref(t);
    return ckpt_source_watch(src) < 0 ? ckpt_fail(err, ENOMEM, "out of memory") : 0;
}

/* Looking into the mount would ask the very process that looks. *ret: its path in a directory, to be freed; NULL: it
 * does not lie there. It may be the directory itself: *ret_over. */
static int mount_below(const struct ckpt_source *src, const char *dir, char **ret, bool *ret_over, struct ckpt_err *err)
{
    CKPT_AUTOFREE char *top = src->opt.hidden ? realpath(dir, NULL) : NULL,
                       *hidden = top ? realpath(src->opt.hidden, NULL) : NULL;
    size_t n = hidden ? strlen(top) : 0;
    *ret = NULL;
    *ret_over = hidden && !strcmp(hidden, top);
    n -= n == 1; /* "/" */
    if (!hidden || strncmp(hidden, top, n) != 0 || hidden[n] != '/')
        return 0;
    *ret = strdup(hidden + n + 1);
    return *ret ? 0 : ckpt_fail(err, ENOMEM, "out of memory");
}

/* The directory of a path, and the name in it. */
static void split_path(const char *path, char dir[PATH_MAX], char name[PATH_MAX])
{
    snprintf(dir, PATH_MAX, "%s", path);
    char *slash = strrchr(dir, '/');
    if (!slash) {
        snprintf(name, PATH_MAX, "%s", path);
        strcpy(dir, ".");
        return;
    }
    snprintf(name, PATH_MAX, "%s", slash + 1);
    if (slash == dir)
        slash++;
    *slash = 0;
}

/* A checkpoint that is a directory is found by its name from now on. One that is mounted over keeps the directory that
 * it is: its name leads to the mount. */
static int follow_name(struct ckpt_source *src, struct ckpt_err *err)
{
    CKPT_AUTOFREE char *real = NULL, *hidden = NULL;
    char dir[PATH_MAX], name[PATH_MAX];
    bool over;
    int r = mount_below(src, src->path, &hidden, &over, err);
    if (r < 0 || over)
        return r;
    split_path(src->path, dir, name);
    if (!strcmp(name, ".") || !strcmp(name, "..")) {
        real = realpath(src->path, NULL);
        split_path(real ? real : "", dir, name);
    }
    if (!*name) /* the top of all */
        return 0;
    CKPT_AUTOFREE char *mount = src->opt.hidden ? realpath(src->opt.hidden, NULL) : NULL;
    struct ckpt_bounds bounds = {.hidden = hidden, .follow = src->opt.follow, .never = mount};
    struct ckpt_backend *named;
    r = ckpt_backend_open_named(dir, name, &bounds, &named, NULL);
    if (r < 0) /* where its parent cannot be reached, it is not seen that it is replaced */
        return r == -ENOMEM ? ckpt_fail(err, ENOMEM, "out of memory") : 0;
    ckpt_backend_unref(src->backend);
    src->backend = named;
    return 0;
}

/* A file that begins like none. */
static int fail_to_know(struct ckpt_source *src, const char *file, struct ckpt_err *err)
{
    struct ckpt_file *f;
    bool is_pointer = false;
    if (ckpt_backend_open(src->backend, file, &f) == 0) {
        is_pointer = ckpt_lfs_is_pointer(f);
        ckpt_file_unref(f);
    }
    return ckpt_fail(err, EOPNOTSUPP, "%s: %s", src->path,
                     is_pointer ? CKPT_LFS_HINT
                                : "neither a directory nor a checkpoint file: no format that can be read begins so");
}

/* file: the checkpoint's name in the backend; "": the backend's own top is the source. */
static int open_root(struct ckpt_source *src, const char *file, struct ckpt_err *err)
{
    struct ckpt_stat st;
    struct ckpt_probe probe;
    const struct ckpt_format *format;
    int r = ckpt_backend_stat(src->backend, file, &st);
    if (r == 0)
        r = *file ? ckpt_probe_file(src->backend, file, true, &format, &probe)
                  : ckpt_probe_dir(src->backend, &format, &probe);
    if (r < 0)
        return ckpt_fail(err, -r, "%s: %s", src->path, strerror(-r));
    if (*file && !format)
        return fail_to_know(src, file, err);
    bool tree = format && (*file || !probe.weak);
    if (tree && *probe.unfinished)
        return ckpt_fail(err, EUCLEAN, "%s: this checkpoint is %s", src->path, probe.unfinished);
    src->root = ckpt_node_new(0, "", "", tree ? NODE_TREE : NODE_DIR, &st);
    if (!src->root)
        return ckpt_fail(err, ENOMEM, "out of memory");
    src->root->format = format;
    src->root->uses = 1; /* never reaped */
    if (*file) {
        src->file = strdup(file);
        if (!src->file)
            return ckpt_fail(err, ENOMEM, "out of memory");
        src->root->inside = src->file;
    }
    r = add_top_nodes(src, &st, err);
    if (r == 0 && tree && !*file)
        r = follow_name(src, err);
    return r == 0 && tree ? open_root_tree(src, err) : r;
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
    int r = ckpt_source_stages(src, src->root, &stages, &own);
    if (r == -EROFS || r == -EACCES || r == -EPERM)
        return 0;
    if (r < 0 && err)
        *err = own;
    return r;
}

/* The source, or the directory of the file that it is. A link to a file, as download caches have them, goes by its own
 * name, and may lead anywhere. */
static int open_backend(struct ckpt_source *src, bool is_dir, struct ckpt_err *err)
{
    char dir[PATH_MAX], name[PATH_MAX] = "";
    CKPT_AUTOFREE char *hidden = NULL, *mount = src->opt.hidden ? realpath(src->opt.hidden, NULL) : NULL;
    bool over;
    if (is_dir)
        snprintf(dir, sizeof dir, "%s", src->path);
    else
        split_path(src->path, dir, name);
    int r = ckpt_backend_open_posix(dir, &src->backend, err);
    if (r == 0 && is_dir)
        r = mount_below(src, dir, &hidden, &over, err);
    if (r < 0)
        return r;
    struct ckpt_bounds bounds = {
        .hidden = hidden, .follow = src->opt.follow, .own = is_dir ? NULL : name, .never = mount};
    if (ckpt_backend_set_bounds(src->backend, &bounds) < 0)
        return ckpt_fail(err, ENOMEM, "out of memory");
    return open_root(src, name, err);
}

/* Threads, cache and views. */
static int open_caches(struct ckpt_source *src)
{
    struct ckpt_cache_options cache = {.memory = src->opt.cache, .spill = src->opt.spill, .spill_dir = src->spill_dir};
    int r = ckpt_pool_new(src->opt.threads, &src->pool);
    if (r == 0)
        r = ckpt_cache_new(&cache, src->pool, &src->cache);
    if (r == 0)
        r = ckpt_views_init(&src->views, src->cache, src->spill_dir);
    return r;
}

static int fail_to_find(const char *path, int error, struct ckpt_err *err)
{
    size_t scheme = strspn(path, "abcdefghijklmnopqrstuvwxyz0123456789+.-");
    bool is_address = error == ENOENT && scheme && !strncmp(path + scheme, "://", 3);
    if (is_address)
        return ckpt_fail(err, EOPNOTSUPP,
                         "%s: %.*s:// is not supported: a source is a file or a folder of this machine. Copy it here "
                         "first, or mount the place where it lies with a program for that",
                         path, (int)scheme, path);
    return ckpt_fail(err, error, "%s: %s", path, strerror(error));
}

static int open_place(const char *path, bool is_dir)
{
    char dir[PATH_MAX], name[PATH_MAX];
    split_path(path, dir, name);
    int fd = open(is_dir ? path : dir, O_PATH | O_DIRECTORY | O_CLOEXEC);
    return fd < 0 ? -errno : fd;
}

static int open_source(struct ckpt_source *src, const char *path, struct ckpt_err *err)
{
    struct stat st;
    if (!src->spill_dir || !src->path)
        return ckpt_fail(err, ENOMEM, "%s", strerror(ENOMEM));
    for (size_t n = strlen(src->path); n > 1 && src->path[n - 1] == '/'; n--)
        src->path[n - 1] = 0;
    int r = open_caches(src);
    if (r < 0)
        return ckpt_fail(err, -r, "%s", strerror(-r));
    if (stat(path, &st) < 0)
        return fail_to_find(path, errno, err);
    src->place = open_place(path, S_ISDIR(st.st_mode));
    if (src->place < 0)
        return ckpt_fail(err, -src->place, "%s: %s", path, strerror(-src->place));
    r = open_backend(src, S_ISDIR(st.st_mode), err);
    if (r == 0 && src->opt.write)
        r = open_for_writing(src, err);
    return r;
}

int ckpt_source_open(const char *path, const struct ckpt_options *options, struct ckpt_source **ret,
                     struct ckpt_err *err)
{
    struct ckpt_source *src = calloc(1, sizeof *src);
    if (!src)
        return ckpt_fail(err, ENOMEM, "out of memory");
    src->kinds = ckpt_source_kinds;
    src->place = -1;
    src->opt = *options;
    pthread_mutex_init(&src->lock, NULL);
    pthread_mutex_init(&src->look_lock, NULL);
    pthread_cond_init(&src->loaded, NULL);
    const char *tmp = options->spill_dir ? options->spill_dir : getenv("TMPDIR");
    src->spill_dir = strdup(tmp && *tmp ? tmp : "/var/tmp");
    src->path = strdup(path);
    long cpus = sysconf(_SC_NPROCESSORS_ONLN);
    if (!options->threads)
        src->opt.threads = (unsigned)CKPT_MAX(cpus, 1l);
    int r = open_source(src, path, err);
    if (r < 0) {
        ckpt_source_close(src);
        return r;
    }
    *ret = src;
    return 0;
}

/* --- closing --- */

void ckpt_source_close(struct ckpt_source *src)
{
    if (!src)
        return;
    for (unsigned i = 0; i < src->set_count; i++) {
        ckpt_source_settle_removals(src, src->sets[i], -1);
        ckpt_stages_close(src->sets[i]->stages);
        src->sets[i]->stages = NULL;
    }
    ckpt_pool_free(src->pool); /* tasks under way use trees */
    src->closing = true;
    /* These hold others. */
    for (unsigned i = 0; i < NODE_BUCKETS; i++)
        for (struct node *n = src->nodes.by_id[i]; n; n = n->next_id) {
            ckpt_file_unref(n->kind == NODE_FILE && n->opened ? CKPT_STEAL(n->opened->file) : NULL);
            ckpt_backend_unref(CKPT_STEAL(n->files));
        }
    for (unsigned i = 0; i < NODE_BUCKETS; i++)
        for (struct node *n = src->nodes.by_id[i], *next; n; n = next) {
            next = n->next_id;
            ckpt_node_free(src, n);
        }
    ckpt_views_clear(&src->views);
    ckpt_cache_free(src->cache);
    ckpt_backend_unref(src->backend);
    pthread_cond_destroy(&src->loaded);
    pthread_mutex_destroy(&src->look_lock);
    pthread_mutex_destroy(&src->lock);
    ckpt_listing_unref(src->top);
    if (src->place >= 0)
        close(src->place);
    free(src->spill_dir);
    free(src->file);
    free(src->path);
    free(src);
}
