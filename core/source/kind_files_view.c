/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The files view, MOUNT/.files: the source's own directories and files, as other libraries expect them. Links that lead
 * outside are not shown, nor is the store; each of its steps is a directory with the files of an Orbax checkpoint,
 * which are laid out when it is looked up.
 */
#include "core/base/util.h"
#include "core/format/native.h"
#include "core/source/kinds.h"

#include <stdio.h>

#define PATH_ROOM 512 /* the layout's own names are short */

/* --- a step of the store as files --- */

struct step_files {
    struct ckpt_backend base;
    struct ckpt_files *files;
    size_t count;        /* of the files */
    struct ckpt_stat st; /* of the step's own directory, with the rights of all that is in the step */
    pthread_mutex_t lock;
    char **removed; /* paths; as in removal.c this is no more than a note until the step's own directory goes */
    size_t removed_count;
};

struct step_file {
    struct ckpt_file base;
    struct step_files *of;
    size_t index;
};

static const struct ckpt_backend_ops step_ops;
static const struct ckpt_file_ops step_file_ops;

/* A checkpointer wants a checkpoint in the directory that it is given, a manager in the step's item "default": each
 * file is there under both names. */
static bool get_file(const struct step_files *b, size_t i, char ret[PATH_ROOM], uint64_t *ret_size)
{
    const char *path;
    bool item = i >= b->count;
    if (!ckpt_files_get(b->files, item ? i - b->count : i, &path, ret_size))
        return false;
    return snprintf(ret, PATH_ROOM, "%s%s", item ? "default/" : "", path) < PATH_ROOM;
}

/* Under the lock. */
static bool is_removed(const struct step_files *b, const char *path)
{
    for (size_t i = 0; i < b->removed_count; i++)
        if (!strcmp(b->removed[i], path))
            return true;
    return false;
}

/* The file of a path, SIZE_MAX for a directory. */
static int find_file(struct step_files *b, const char *path, size_t *ret, uint64_t *ret_size)
{
    size_t n = strlen(path);
    char file[PATH_ROOM];
    bool dir = !n;
    CKPT_GUARD(&b->lock);
    if (is_removed(b, path))
        return -ENOENT;
    for (size_t i = 0; get_file(b, i, file, ret_size); i++) {
        if (!strcmp(file, path)) {
            *ret = i;
            return 0;
        }
        dir |= !strncmp(file, path, n) && file[n] == '/';
    }
    *ret = SIZE_MAX;
    return dir ? 0 : -ENOENT;
}

static int step_stat(struct ckpt_backend *base, const char *path, struct ckpt_stat *ret)
{
    struct step_files *b = (struct step_files *)base;
    size_t index;
    uint64_t size = 0;
    int r = find_file(b, path, &index, &size);
    if (r < 0)
        return r;
    *ret = b->st;
    ret->type = index == SIZE_MAX ? CKPT_FT_DIR : CKPT_FT_FILE;
    ret->size = ret->stored = index == SIZE_MAX ? 0 : size;
    ret->mode = index == SIZE_MAX ? b->st.mode : b->st.mode & 0444;
    return 0;
}

/* The first parts of the paths below a directory, each once: files of one directory stand together. */
static int step_list(struct ckpt_backend *base, const char *path, ckpt_list_fn *visit, void *arg)
{
    struct step_files *b = (struct step_files *)base;
    size_t n = strlen(path);
    uint64_t size;
    char file[PATH_ROOM];
    CKPT_AUTOFREE char *seen = strdup("/"); /* names of directories, each between slashes */
    int r = seen ? 0 : -ENOMEM;
    for (size_t i = 0; r == 0 && get_file(b, i, file, &size); i++) {
        char name[CKPT_STEP_NAME + 64], mark[sizeof name + 2];
        if (n && (strncmp(file, path, n) != 0 || file[n] != '/'))
            continue;
        const char *rest = file + n + (n > 0), *slash = strchr(rest, '/');
        size_t len = slash ? (size_t)(slash - rest) : strlen(rest);
        if (len > 255)
            return -ENAMETOOLONG;
        memcpy(name, rest, len);
        name[len] = 0;
        snprintf(mark, sizeof mark, "/%s/", name);
        if (slash && strstr(seen, mark))
            continue;
        char whole[4096];
        pthread_mutex_lock(&b->lock);
        bool gone = ckpt_source_join(path, name, whole) < 0 || is_removed(b, whole);
        pthread_mutex_unlock(&b->lock);
        if (gone)
            continue;
        if (slash) {
            char *more = realloc(seen, strlen(seen) + len + 2);
            if (!more)
                return -ENOMEM;
            seen = more;
            strcat(strcat(seen, name), "/");
        }
        r = visit(arg, name, slash ? CKPT_FT_DIR : CKPT_FT_FILE);
    }
    return r;
}

static int step_open(struct ckpt_backend *base, const char *path, struct ckpt_file **ret)
{
    struct step_files *b = (struct step_files *)base;
    size_t index;
    uint64_t size;
    int r = find_file(b, path, &index, &size);
    if (r < 0 || index == SIZE_MAX)
        return r < 0 ? r : -EISDIR;
    struct step_file *f = calloc(1, sizeof *f);
    if (!f)
        return -ENOMEM;
    f->base.ops = &step_file_ops;
    f->base.st = b->st;
    f->base.st.type = CKPT_FT_FILE;
    f->base.st.size = size;
    atomic_init(&f->base.refs, 1);
    f->of = (struct step_files *)ckpt_backend_ref(base);
    f->index = index;
    *ret = &f->base;
    return 0;
}

static ssize_t step_read(struct ckpt_file *base, void *buf, size_t len, uint64_t off)
{
    struct step_file *f = (struct step_file *)base;
    return ckpt_files_read(f->of->files, f->index % f->of->count, buf, len, off, NULL);
}

static void step_close(struct ckpt_file *base)
{
    ckpt_backend_unref(&((struct step_file *)base)->of->base);
    free(base);
}

static void step_free(struct ckpt_backend *base)
{
    struct step_files *b = (struct step_files *)base;
    for (size_t i = 0; i < b->removed_count; i++)
        free(b->removed[i]);
    free(b->removed);
    pthread_mutex_destroy(&b->lock);
    ckpt_files_close(b->files);
    free(b);
}

static const struct ckpt_backend_ops step_ops = {
    .name = "step",
    .stat = step_stat,
    .list = step_list,
    .open = step_open,
    .free = step_free,
};

static const struct ckpt_file_ops step_file_ops = {
    .name = "step",
    .derived = true,
    .read = step_read,
    .close = step_close,
};

static void set_stat_rights(struct ckpt_stat *st, const struct ckpt_rights *r)
{
    st->mode = r->mode | r->mode >> 2;
    st->uid = r->uid;
    st->gid = r->gid;
}

static int open_step(struct ckpt_source *src, const char *path, const struct ckpt_stat *st, struct ckpt_backend **ret)
{
    struct ckpt_attr attr;
    struct ckpt_rights rights;
    struct step_files *b = calloc(1, sizeof *b);
    if (!b)
        return -ENOMEM;
    b->base.ops = &step_ops;
    atomic_init(&b->base.refs, 1);
    b->st = *st;
    pthread_mutex_init(&b->lock, NULL);
    int r = ckpt_walk(src, CKPT_ROOT, path, &attr, NULL);
    if (r == 0) {
        r = attr.staged ? -ENOENT
                        : ckpt_files_open(src, attr.id, NULL, NULL, &b->files,
                                          NULL); /* one that is being changed is not there */
        ckpt_forget(src, attr.id, 1);
    }
    if (r == 0)
        r = ckpt_source_files_rights(b->files, &rights, NULL);
    if (r == 0)
        set_stat_rights(&b->st, &rights);
    const char *file;
    uint64_t size;
    while (r == 0 && ckpt_files_get(b->files, b->count, &file, &size))
        b->count++;
    if (r < 0) {
        ckpt_files_close(b->files);
        pthread_mutex_destroy(&b->lock);
        free(b);
    } else
        *ret = &b->base;
    return r;
}

/* --- look-ups --- */

/* A source that is one file has that one file alone. */
static bool is_shown(const struct ckpt_source *src, const struct node *dir, const char *name)
{
    return strcmp(name, CKPT_STORE_DIR) != 0 && (!src->file || *dir->path || !strcmp(name, src->file));
}

/* What a node of a step's files has besides its path: where its bytes come from. */
static void set_files(struct ckpt_source *src, struct node *n, struct ckpt_backend *files, const char *inside)
{
    CKPT_GUARD(&src->lock);
    if (n->files)
        return;
    n->files = ckpt_backend_ref(files);
    n->inside = n->path + strlen(n->path) - strlen(inside);
}

/* Until it is known who may read all of a step, only this process's user may. */
static struct ckpt_rights own_rights(void)
{
    return (struct ckpt_rights){.mode = 0400, .uid = geteuid(), .gid = getegid()};
}

static void show_rights(struct ckpt_source *src, struct node *n)
{
    CKPT_GUARD(&src->lock);
    const struct ckpt_stat *st = &((struct step_files *)n->files)->st;
    n->st.mode = st->mode;
    n->st.uid = st->uid;
    n->st.gid = st->gid;
}

static int lookup_inside(struct ckpt_source *src, struct node *dir, const char *name, struct node **ret)
{
    char inside[4096];
    struct ckpt_stat st;
    int r = ckpt_source_join(dir->inside, name, inside);
    if (r == 0)
        r = ckpt_backend_stat(dir->files, inside, &st);
    if (r == 0)
        r = ckpt_node_take(src, dir, name, name, st.type == CKPT_FT_DIR ? NODE_FILES_VIEW : NODE_FILE, &st, NULL, NULL,
                           ret);
    if (r == 0)
        set_files(src, *ret, dir->files, inside);
    return r;
}

int ckpt_source_step_files(struct ckpt_source *src, struct node *dir, const char *name, struct node **ret)
{
    char path[4096], manifest[4096];
    struct ckpt_stat st;
    struct ckpt_backend *files = NULL;
    int r = ckpt_source_manifest_path(dir->path, name, manifest);
    if (r < 0)
        return r;
    r = ckpt_step_is_stored(name, NULL) ? ckpt_backend_stat(src->backend, manifest, &st) : -ENOENT;
    if (r == 0)
        r = ckpt_source_join(dir->path, name, path);
    if (r < 0)
        return r;
    struct ckpt_rights own = own_rights();
    set_stat_rights(&st, &own);
    st.type = CKPT_FT_DIR;
    st.ino = st.ino * 31 + (uint64_t)st.btime_ns + 1; /* another step of that name is another directory */
    r = ckpt_node_take(src, dir, name, name, NODE_FILES_VIEW, &st, NULL, NULL, ret);
    if (r < 0)
        return r;
    pthread_mutex_lock(&src->lock);
    bool known = (*ret)->files;
    pthread_mutex_unlock(&src->lock);
    if (!known) {
        r = open_step(src, path, &st, &files);
        if (r == 0)
            set_files(src, *ret, files, "");
        ckpt_backend_unref(files);
    }
    if (r < 0)
        ckpt_forget(src, (*ret)->id, 1);
    else
        show_rights(src, *ret);
    return r;
}

static int view_lookup(struct ckpt_source *src, struct node *dir, const char *name, struct node **ret)
{
    char path[4096], link[4096];
    struct ckpt_stat st;
    if (dir->files)
        return lookup_inside(src, dir, name, ret);
    if (!is_shown(src, dir, name))
        return -ENOENT;
    int r = ckpt_source_join(dir->path, name, path);
    if (r < 0)
        return r;
    bool is_link = ckpt_backend_readlink(src->backend, path, link, sizeof link) == 0;
    if (is_link && ckpt_source_link_target(src, path, link, sizeof link) < 0)
        return -ENOENT;
    r = ckpt_backend_stat(src->backend, path, &st);
    if (r == 0 && !is_link && st.type != CKPT_FT_DIR && st.type != CKPT_FT_FILE)
        r = -ENOENT;
    if (r < 0)
        return r == -ENOENT ? ckpt_source_step_files(src, dir, name, ret) : r;
    if (is_link)
        return ckpt_node_take(src, dir, name, name, NODE_LINK, &st, NULL, link, ret);
    enum node_kind kind = st.type == CKPT_FT_DIR ? NODE_FILES_VIEW : NODE_FILE;
    return ckpt_node_take(src, dir, name, name, kind, &st, NULL, NULL, ret);
}

/* --- deletion: libraries delete their steps file by file --- */

/* Nothing is left below a directory of a step's files. */
static bool is_emptied(struct step_files *b, const char *path)
{
    size_t n = strlen(path);
    uint64_t size;
    char file[PATH_ROOM];
    bool any = false;
    CKPT_GUARD(&b->lock);
    for (size_t i = 0; !any && get_file(b, i, file, &size); i++)
        any = (!n || (!strncmp(file, path, n) && file[n] == '/')) && !is_removed(b, file);
    return !any;
}

static int note_removed(struct step_files *b, const char *path)
{
    CKPT_GUARD(&b->lock);
    char **more = realloc(b->removed, (b->removed_count + 1) * sizeof *more);
    if (!more)
        return -ENOMEM;
    b->removed = more;
    char *copy = strdup(path);
    if (!copy)
        return -ENOMEM;
    b->removed[b->removed_count++] = copy;
    return 0;
}

static int remove_file(struct step_files *b, const char *path, bool is_dir)
{
    size_t index;
    uint64_t size;
    int r = find_file(b, path, &index, &size);
    if (r < 0)
        return r;
    bool found_dir = index == SIZE_MAX;
    if (is_dir && !found_dir)
        return -ENOTDIR;
    if (!is_dir && found_dir)
        return -EISDIR;
    if (is_dir && !is_emptied(b, path))
        return -ENOTEMPTY;
    return note_removed(b, path);
}

static int files_view_remove(struct ckpt_source *src, struct target *t, const char *name, bool is_dir,
                             const struct ckpt_caller *who, struct ckpt_err *err)
{
    char path[4096];
    if (!t->node->files || !src->opt.write || !source_stages(src))
        return 1;
    int r = ckpt_source_join(t->node->inside, name, path);
    return r < 0 ? r : remove_file((struct step_files *)t->node->files, path, is_dir);
}

int ckpt_source_remove_step_files(struct ckpt_source *src, const char *name, struct ckpt_err *err)
{
    struct target view;
    struct node *n;
    int r = ckpt_source_target(src, CKPT_FILES_VIEW, &view, err);
    if (r < 0)
        return r;
    r = ckpt_source_step_files(src, view.node, name, &n);
    if (r == 0) {
        r = is_emptied((struct step_files *)n->files, "") ? ckpt_store_delete(src->root->store, name, NULL, err)
                                                          : -ENOTEMPTY;
        ckpt_forget(src, n->id, 1);
    }
    ckpt_source_done(src, &view);
    return r < 0 ? ckpt_fail(err, -r, "%s: %s", name, strerror(-r)) : 0;
}

/* --- listings --- */

struct view_listing {
    struct ckpt_source *src;
    struct node *dir;
    source_name_fn *visit;
    void *arg;
};

static enum ckpt_type shown_type(enum ckpt_ftype type)
{
    if (type == CKPT_FT_LINK)
        return CKPT_LINK;
    return type == CKPT_FT_DIR ? CKPT_DIR : CKPT_FILE;
}

static int visit_entry(void *arg, const char *name, enum ckpt_ftype type)
{
    struct view_listing *l = arg;
    char path[4096], link[4096];
    if (!is_shown(l->src, l->dir, name) || type == CKPT_FT_OTHER || strlen(name) > 255)
        return 0;
    if (type == CKPT_FT_LINK && (ckpt_source_join(l->dir->path, name, path) < 0 ||
                                 ckpt_source_link_target(l->src, path, link, sizeof link) < 0))
        return 0;
    return l->visit(l->arg, name, 0, shown_type(type));
}

static int visit_step(void *arg, const char *file, enum ckpt_ftype type)
{
    struct view_listing *l = arg;
    char name[CKPT_STEP_NAME + 1], path[4096];
    struct ckpt_stat st;
    /* Something of the disk's goes before it. */
    if (type != CKPT_FT_FILE || !ckpt_step_of_file(file, name, NULL) ||
        ckpt_source_join(l->dir->path, name, path) < 0 || ckpt_backend_stat(l->src->backend, path, &st) == 0)
        return 0;
    return l->visit(l->arg, name, 0, CKPT_DIR);
}

static int list_steps(struct ckpt_source *src, struct node *dir, source_name_fn *each, void *arg)
{
    char path[4096];
    struct view_listing l = {src, dir, each, arg};
    int r = ckpt_source_join(dir->path, CKPT_STORE_DIR "/steps", path);
    if (r == 0 && !src->file)
        r = ckpt_backend_list(src->backend, path, visit_step, &l);
    return r == -ENOENT ? 0 : r;
}

static int list_dir(struct ckpt_source *src, struct node *dir, source_name_fn *each, void *arg)
{
    struct view_listing l = {src, dir, each, arg};
    if (dir->files)
        return ckpt_backend_list(dir->files, dir->inside, visit_entry, &l);
    int r = ckpt_backend_list(src->backend, dir->path, visit_entry, &l);
    return r < 0 ? r : list_steps(src, dir, each, arg);
}

static int files_view_next(struct ckpt_dir *d, uint64_t pos, struct ckpt_dirent *ret)
{
    return ckpt_source_next_name(d, pos, 0, ret);
}

int ckpt_source_files_view_opendir(struct ckpt_dir *d, struct ckpt_err *err)
{
    d->next = files_view_next;
    return list_dir(d->src, d->target.node, ckpt_source_note_name, &d->names);
}

/* --- the table --- */

static int files_view_lookup(struct ckpt_source *src, struct target *t, const char *name, struct ckpt_attr *ret,
                             struct ckpt_err *err)
{
    struct node *n;
    int r = view_lookup(src, t->node, name, &n);
    if (r == 0)
        ckpt_source_attr_of_node(src, n, ret);
    return r;
}

static int files_view_open_dir(struct ckpt_dir *d, bool *ret_immutable, struct ckpt_err *err)
{
    return ckpt_source_files_view_opendir(d, err);
}

const struct kind ckpt_kind_files_view = {
    .lookup = files_view_lookup,
    .attr = ckpt_source_outer_attr,
    .open_dir = files_view_open_dir,
    .remove = files_view_remove,
};
