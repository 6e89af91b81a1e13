/* SPDX-License-Identifier: Apache-2.0 */
/* The life of a source. */
#include "core/source/kind.h"

#include "core/base/util.h"

#include <limits.h>
#include <stdio.h>
#include <sys/stat.h>

void ckpt_sweep(struct ckpt_source *src, void (*gone)(void *arg, uint64_t parent, const char *name), void *arg)
{
    struct held {
        uint64_t parent, ino, dev;
        int64_t btime_ns;
        char *path, *name;
    } *held = NULL;
    size_t count = 0, cap = 0;
    pthread_mutex_lock(&src->lock);
    for (struct opened *o = src->newest; o; o = o->older) {
        const struct node *n = o->node;
        char manifest[NODE_PATH];
        if (o->blob || n == src->root)
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
        held[count++] = (struct held){
            n->parent, n->st.ino, n->st.dev, n->st.btime_ns, strdup(n->stored ? manifest : n->path), strdup(n->name)};
    }
    pthread_mutex_unlock(&src->lock);
    for (size_t i = 0; i < count; i++) {
        struct ckpt_stat st;
        unsigned shortages = ckpt_shortages();
        int r = held[i].path && held[i].name ? ckpt_backend_stat(src->backend, held[i].path, &st) : 0;
        bool known = held[i].path && held[i].name && shortages == ckpt_shortages();
        if (known && (r < 0 || st.ino != held[i].ino || st.dev != held[i].dev || st.btime_ns != held[i].btime_ns))
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
    const struct ckpt_format *format;
    int r = ckpt_backend_stat(src->backend, file, &st);
    if (r == 0)
        r = *file ? ckpt_probe_file(src->backend, file, &format, &probe)
                  : ckpt_probe_dir(src->backend, &format, &probe);
    if (r < 0)
        return ckpt_fail(err, -r, "%s: %s", src->path, strerror(-r));
    if (*file && !format)
        return ckpt_fail(
            err, EOPNOTSUPP,
            "%s: neither a directory nor a checkpoint file: none of the formats that can be read begins or is named so",
            src->path);
    bool tree = format && (*file || !probe.weak);
    if (tree && *probe.unfinished)
        return ckpt_fail(err, EUCLEAN, "%s: this checkpoint is %s", src->path, probe.unfinished);
    src->root = ckpt_node_new(0, "", "", tree ? NODE_TREE : NODE_DIR, &st);
    if (src->root && *file && !(src->file = strdup(file)))
        return ckpt_fail(err, ENOMEM, "out of memory");
    if (src->root && src->file)
        src->root->inside = src->file;
    struct node *control = ckpt_node_new(CKPT_ROOT, "", ".ckptfs", NODE_CONTROL_DIR, &none);
    if (!src->root || !control)
        return ckpt_fail(err, ENOMEM, "out of memory");
    control->refs = 1;
    control->st.mtime_ns = st.mtime_ns;
    control->st.mode = ckpt_source_shown_mode(src->root);
    control->st.uid = st.uid;
    control->st.gid = st.gid;
    ckpt_node_insert(&src->nodes, src->root, CKPT_ROOT);
    ckpt_node_insert(&src->nodes, control, CKPT_CONTROL);
    none = st;
    none.mode = ckpt_source_shown_mode(src->root);
    none.type = CKPT_FT_DIR;
    struct node *files_view = ckpt_node_new(CKPT_ROOT, "", ".files", NODE_FILES_VIEW, &none);
    if (!files_view)
        return ckpt_fail(err, ENOMEM, "out of memory");
    files_view->refs = 1;
    ckpt_node_insert(&src->nodes, files_view, CKPT_FILES_VIEW);
    src->nodes.next_id = 16;
    src->root->format = format;
    src->root->uses = 1; /* never reaped */
    struct ckpt_tree *t;
    if (!tree)
        return 0;
    r = ckpt_source_tree(src, src->root, &t, err);
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
    int r = ckpt_source_stages(src, src->root, &stages, &own);
    if (r == -EROFS || r == -EACCES || r == -EPERM)
        return 0;
    if (r < 0 && err)
        *err = own;
    return r;
}

/* Looking into the mount would ask the very process that looks. */
static int hide_mount(struct ckpt_source *src, const char *dir, struct ckpt_err *err)
{
    CKPT_AUTOFREE char *top = src->opt.hidden ? realpath(dir, NULL) : NULL,
                       *hidden = top ? realpath(src->opt.hidden, NULL) : NULL;
    size_t n = hidden ? strlen(top) : 0;
    n -= n == 1; /* "/" */
    if (!hidden || strncmp(hidden, top, n) != 0 || hidden[n] != '/')
        return 0;
    return ckpt_backend_hide(src->backend, hidden + n + 1) < 0 ? ckpt_fail(err, ENOMEM, "out of memory") : 0;
}

/* The source, or the directory of the file that it is. A link to a file, as download caches have them, goes by its own
 * name and is seen from the top of all, since it may lead anywhere. */
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
        if (!real || !name_copy ||
            snprintf(file, sizeof file, "%s%s%s", real + 1, real[1] ? "/" : "", name_copy) >= (int)sizeof file)
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

static int fail_to_find(const char *path, int error, struct ckpt_err *err)
{
    size_t scheme = strspn(path, "abcdefghijklmnopqrstuvwxyz0123456789+.-");
    bool is_address = error == ENOENT && scheme && !strncmp(path + scheme, "://", 3);
    if (is_address)
        return ckpt_fail(err, EOPNOTSUPP, "%s: addresses (%.*s://) cannot be read, only files and folders", path,
                         (int)scheme, path);
    return ckpt_fail(err, error, "%s: %s", path, strerror(error));
}

int ckpt_source_open(const char *path, const struct ckpt_options *options, struct ckpt_source **ret,
                     struct ckpt_err *err)
{
    struct ckpt_source *src = calloc(1, sizeof *src);
    struct stat st;
    if (!src)
        return ckpt_fail(err, ENOMEM, "out of memory");
    src->kinds = ckpt_source_kinds;
    src->opt = *options;
    pthread_mutex_init(&src->lock, NULL);
    pthread_cond_init(&src->loaded, NULL);
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
        r = fail_to_find(path, errno, err);
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
    pthread_mutex_destroy(&src->lock);
    free(src->spill_dir);
    free(src->file);
    free(src->path);
    free(src);
}
