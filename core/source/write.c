/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What changes a native root. A directory right at its top is a step: a staged one is a directory tree that calls go through to
 * (core/store/stage.h), a committed one becomes a staged copy of itself at the first change. Changes of a directory of a committed
 * step are made to the copy at once; for anything else the caller is told -ESTALE, and finds the copy when it looks the path up again.
 */
#include "core/base/util.h"
#include "core/io/disk.h"
#include "core/format/store/store_format.h"
#include "core/source/source.h"

#include <fcntl.h>
#include <linux/fs.h>
#include <stdio.h>
#include <sys/statvfs.h>

#define COPY ((size_t)1 << 20)
#define SET_SHIFT 40
#define TRIES 16 /* where others open a step for changes, or commit it, meanwhile */

struct ckpt_handle {
    struct ckpt_stage_handle *staged;
};

/* --- the sets of staged steps --- */

struct ckpt_stages *source_set(struct ckpt_source *src, uint64_t id)
{
    unsigned number = source_set_number(id);
    CKPT_GUARD(&src->lock);
    return number < src->set_count ? src->sets[number]->stages : NULL;
}

static void root_changed(void *arg, const char *name)
{
    struct node *n = arg;
    if (name && n->source)
        node_replaced(n->source, n, name);
    NODE_LOADING(n->source, n);
    n->checked_ns = 0;
}

static void root_tick(void *arg)
{
    struct node *n = arg;
    if (n->source)
        source_settle_removals(n->source, n, n->source->opt.settle);
}

/* The source's own directory on disk of a node. */
static char *disk_path(const struct ckpt_source *src, const struct node *n)
{
    char *path = malloc(strlen(src->path) + strlen(n->path) + 2);
    if (path)
        sprintf(path, "%s%s%s", src->path, *n->path ? "/" : "", n->path);
    return path;
}

static int is_entry(void *arg, const char *name, enum ckpt_ftype type)
{
    return 1;
}

char *source_best_step(struct ckpt_source *src, struct node *n)
{
    CKPT_AUTOFREE char *path = disk_path(src, n);
    struct ckpt_store *store = n->store;
    char name[CKPT_STEP_NAME + 1];
    struct ckpt_err err = {0};
    int r = !path ? -ENOMEM : store ? 0 : ckpt_store_open(path, &store, &err);
    if (r == 0)
        r = ckpt_store_best(store, name, &err);
    if (r < 0)
        ckpt_log(CKPT_LOG_WARN, "%s: which step is best cannot be told: %s", path ? path : "", err.text);
    if (store != n->store)
        ckpt_store_close(store);
    return r == 1 ? strdup(name) : NULL;
}

/* While n is loaded. */
static int open_stages(struct ckpt_source *src, struct node *n, struct ckpt_err *err)
{
    CKPT_AUTOFREE char *path = disk_path(src, n);
    struct ckpt_store *store = NULL;
    if (!path)
        return ckpt_fail(err, ENOMEM, "out of memory");
    int r = ckpt_store_open(path, &store, err);
    if (r == -ENOENT && n == src->root && src->lazy && ckpt_backend_list(src->backend, "", is_entry, NULL) == 0) {
        r = ckpt_store_init(path, err);
        r = r < 0 ? r : ckpt_store_open(path, &store, err);
    }
    if (r < 0)
        return r == -ENOENT ? ckpt_fail(err, EROFS, "%s is not a native root: 'ckptfs init' makes it one", path) : r;
    pthread_mutex_lock(&src->lock);
    unsigned number = src->set_count;
    pthread_mutex_unlock(&src->lock);
    if (number == CKPT_SETS) {
        ckpt_store_close(store);
        return ckpt_fail(err, EROFS, "more than %d native roots in one mount cannot be written", CKPT_SETS);
    }
    struct ckpt_stage_options o = {
        .settle = src->opt.settle,
        .explicit_commit = src->opt.explicit_commit || src->opt.writers,
        .writers = src->opt.writers,
        .writer = src->opt.writer,
        .commit_timeout = src->opt.commit_timeout,
        .overwrite = src->opt.overwrite,
        .set_codec = src->opt.codec && ckpt_object_codec_choice(src->opt.codec, &o.codec),
        .threads = 2 * src->opt.threads, /* half of them wait for the disk */
        .first_id = CKPT_STAGED | (uint64_t)number << SET_SHIFT,
        .changed = root_changed,
        .tick = root_tick,
        .arg = n,
    };
    if (o.set_codec)
        (void)!ckpt_object_codec_choice(src->opt.codec, &o.codec);
    struct ckpt_stages *stages;
    n->source = src;
    r = ckpt_stages_open(store, src->cache, &o, &stages, err);
    if (r < 0) {
        ckpt_store_close(store);
        return r;
    }
    pthread_mutex_lock(&src->lock);
    n->store = store;
    n->stages = stages;
    n->uses++; /* from now on it stays */
    n->writable = true;
    n->checked_ns = 0;
    src->sets[src->set_count++] = n;
    pthread_mutex_unlock(&src->lock);
    return 0;
}

int source_stages(struct ckpt_source *src, struct node *n, struct ckpt_stages **ret, struct ckpt_err *err)
{
    if (!src->opt.write || n->kind != NODE_DIR)
        return ckpt_fail(err, EROFS, "this cannot be written");
    NODE_LOADING(src, n);
    int r = n->stages ? 0 : open_stages(src, n, err);
    if (r == 0)
        *ret = n->stages;
    return r;
}

bool ckpt_source_writable(const struct ckpt_source *src)
{
    return src->opt.write && (src->root->stages || src->lazy);
}

void source_attr_of_stage(const struct ckpt_stage_attr *a, struct ckpt_attr *ret)
{
    const struct stat *st = &a->st;
    *ret = (struct ckpt_attr){
        .id = a->id,
        .ino = st->st_ino,
        .type = S_ISDIR(st->st_mode) ? CKPT_DIR : CKPT_FILE,
        .size = (uint64_t)st->st_size,
        .stored = (uint64_t)st->st_blocks * 512,
        .mtime_ns = st->st_mtim.tv_sec * 1000000000ll + st->st_mtim.tv_nsec,
        .atime_ns = st->st_atim.tv_sec * 1000000000ll + st->st_atim.tv_nsec,
        .ctime_ns = st->st_ctim.tv_sec * 1000000000ll + st->st_ctim.tv_nsec,
        .nlink = (uint32_t)st->st_nlink,
        .mode = st->st_mode & 07777,
        .uid = st->st_uid,
        .gid = st->st_gid,
        .staged = true,
        .fleeting = a->copy,
    };
}

/*
 * The directory that a call wants to change: either one in a staged step (*ret_id with a reference, 0 returned), or the top of a native
 * root (*ret_root, kept by its uses; 1 returned).
 */
struct place {
    struct ckpt_stages *stages;
    uint64_t id;
    struct target top; /* holds the root's node */
};

static void place_clear(struct ckpt_source *src, struct place *p)
{
    if (p->id)
        ckpt_stage_forget(p->stages, p->id, 1);
    source_done(src, &p->top);
}

static int find_place(struct ckpt_source *src, uint64_t id, struct place *ret, struct ckpt_err *err)
{
    *ret = (struct place){0};
    if (id & CKPT_STAGED) {
        struct ckpt_stages *set = source_set(src, id);
        int r = set ? ckpt_stage_hold(set, id) : -ESTALE;
        if (r < 0)
            return ckpt_fail(err, -r, "the step is not staged any more");
        ret->stages = set;
        ret->id = id;
        return 0;
    }
    int r = source_target(src, id, &ret->top, err);
    if (r < 0)
        return r;
    if (ret->top.tree || ret->top.node->kind == NODE_TREE) {
        if (ret->top.tree && !ckpt_viewed_is_dir(&ret->top.file))
            r = ckpt_fail(err, ENOTDIR, "not a directory");
        if (r == 0)
            r = source_open_copy(src, &ret->top, &ret->stages, &ret->id, err);
    } else if (ret->top.node->kind == NODE_DIR)
        r = source_stages(src, ret->top.node, &ret->stages, err);
    else
        r = ckpt_fail(err, EROFS, "this cannot be written");
    if (r < 0)
        place_clear(src, ret);
    return r < 0 ? r : ret->id ? 0 : 1;
}

/* --- steps: what happens at the top of a root --- */

enum step_kind { STEP_NONE, STEP_STORED, STEP_FOREIGN };

/* What the root has under a name, staged steps aside. */
static int kind_of(struct ckpt_source *src, struct node *root, const char *name, enum step_kind *ret, struct ckpt_err *err)
{
    struct ckpt_listing *l;
    root_changed(root, NULL);
    int r = source_listing(src, root, &l, err);
    if (r < 0)
        return r;
    const struct ckpt_entry *e = ckpt_listing_find(l, name);
    *ret = !e || (e->kind == CKPT_ENTRY_HIDDEN && !*e->hidden) ? STEP_NONE : e->stored ? STEP_STORED : STEP_FOREIGN;
    ckpt_listing_unref(l);
    return 0;
}

static bool is_reserved(const char *name)
{
    return !strcmp(name, "latest") || !strcmp(name, "best") || !strcmp(name, ".ckptfs") || !strcmp(name, ".files") ||
           !strcmp(name, CKPT_STORE_DIR);
}

static int new_step(struct ckpt_source *src, struct place *p, const char *name, uint32_t mode, const struct ckpt_caller *who,
                    struct ckpt_stage_attr *ret, struct ckpt_err *err)
{
    enum step_kind kind;
    if (is_reserved(name))
        return ckpt_fail(err, EEXIST, "%s is a name that the mount has given", name);
    int r = kind_of(src, p->top.node, name, &kind, err);
    if (r == 0 && kind != STEP_NONE)
        r = ckpt_fail(err, EEXIST, "%s is there already", name);
    return r < 0 ? r : ckpt_stage_new(p->stages, name, mode, who, ret, err);
}

/* The node of a committed step, which is held (see NODE_LOADING), so that it gets no staged copy meanwhile. -ESTALE: it has one already, or has been replaced. */
static int hold_step(struct ckpt_source *src, struct node *root, const char *name, struct target *ret, struct ckpt_err *err)
{
    struct ckpt_attr attr;
    int r = source_lookup(src, root->id, name, &attr, err);
    if (r < 0)
        return r;
    r = attr.id & CKPT_STAGED ? -ESTALE : source_target(src, attr.id, ret, err);
    ckpt_forget(src, attr.id, 1);
    if (r < 0)
        return r;
    node_load(src, ret->node);
    if (ret->node->kind == NODE_TREE && !atomic_load(&ret->node->stale) && !ckpt_stage_exists(root->stages, name))
        return 0;
    node_loaded(&(struct loading){src, ret->node});
    source_done(src, ret);
    return -ESTALE;
}

static void release_step(struct ckpt_source *src, struct target *t)
{
    node_loaded(&(struct loading){src, t->node});
    source_done(src, t);
}

/* A committed step that is empty, or of which all was removed, goes with one rmdir. */
static int remove_stored(struct ckpt_source *src, struct place *p, const char *name, struct ckpt_err *err)
{
    struct node *root = p->top.node;
    struct ckpt_tree *tree = NULL;
    struct ckpt_attr attr;
    struct target t;
    int r = source_lookup(src, root->id, name, &attr, err);
    if (r < 0)
        return r;
    r = attr.id & CKPT_STAGED ? -ESTALE : source_target(src, attr.id, &t, err);
    if (r == 0) {
        r = t.node->kind == NODE_TREE ? source_tree(src, t.node, &tree, err) : -ENOTDIR;
        source_done(src, &t);
    }
    ckpt_forget(src, attr.id, 1);
    bool unreadable = r == -EUCLEAN || r == -EBADMSG || r == -EOPNOTSUPP; /* what cannot be opened can still be removed */
    if (r < 0 && !unreadable)
        return r;
    r = hold_step(src, root, name, &t, err);
    if (r == 0) {
        if (unreadable)
            r = ckpt_store_delete(root->store, name, NULL, err);
        else if (source_is_emptied(src, t.node, tree, 0))
            r = ckpt_store_delete(root->store, name, ckpt_store_tree_id(tree), err);
        else
            r = ckpt_fail(err, ENOTEMPTY, "step %s is not empty", name);
        release_step(src, &t);
    }
    ckpt_tree_unref(tree);
    return r;
}

static int remove_step(struct ckpt_source *src, struct place *p, const char *name, struct ckpt_err *err)
{
    enum step_kind kind;
    if (ckpt_stage_exists(p->stages, name))
        return ckpt_stage_remove(p->stages, name, err);
    int r = kind_of(src, p->top.node, name, &kind, err);
    if (r == 0 && kind != STEP_STORED)
        return kind == STEP_NONE ? ckpt_fail(err, ENOENT, "there is no step %s", name)
                                 : ckpt_fail(err, EROFS, "%s is not a step of the store: remove it in the source", name);
    if (r == 0)
        r = remove_stored(src, p, name, err);
    if (r == 0)
        ckpt_stages_tidy(p->stages);
    root_changed(p->top.node, r == 0 ? name : NULL);
    return r;
}

/* A step of which something was removed is a changed one, whatever becomes of its name. */
static int copy_if_removing(struct ckpt_source *src, struct node *root, const char *name, struct ckpt_err *err)
{
    struct ckpt_attr attr;
    struct target t;
    if (ckpt_stage_exists(root->stages, name) || ckpt_lookup(src, root->id, name, &attr, NULL) < 0)
        return 0;
    int r = attr.id & CKPT_STAGED ? -ESTALE : source_target(src, attr.id, &t, err);
    if (r == 0) {
        if (t.node->kind == NODE_TREE && atomic_load(&t.node->removing))
            r = source_copy_step(src, root, t.node, err);
        source_done(src, &t);
    }
    ckpt_forget(src, attr.id, 1);
    return r;
}

/* A committed step that nobody has opened for changes. */
static int rename_stored(struct ckpt_source *src, struct node *root, const char *from, const char *to, bool replace, struct ckpt_err *err)
{
    struct target t;
    int r = hold_step(src, root, from, &t, err);
    if (r < 0)
        return r;
    r = ckpt_store_rename(root->store, from, to, replace, err);
    if (r == 0) {
        node_rename_step(src, root, from, to);
        ckpt_stage_renamed(root->stages, from, to);
    }
    release_step(src, &t);
    return r;
}

static int rename_once(struct ckpt_source *src, struct place *p, const char *from, const char *to, unsigned flags,
                       const struct ckpt_caller *who, struct ckpt_err *err)
{
    struct node *root = p->top.node;
    enum step_kind kind, there;
    double number;
    if (flags & RENAME_EXCHANGE)
        return ckpt_fail(err, EINVAL, "steps cannot be exchanged");
    if (is_reserved(to))
        return ckpt_fail(err, EEXIST, "%s is a name that the mount has given", to);
    int r = kind_of(src, root, from, &kind, err);
    if (r == 0)
        r = kind_of(src, root, to, &there, err);
    if (r < 0)
        return r;
    if ((r = copy_if_removing(src, root, from, err)) < 0)
        return r;
    bool replace = src->opt.overwrite && !(flags & RENAME_NOREPLACE);
    if (there == STEP_FOREIGN || (there == STEP_STORED && !replace))
        return ckpt_fail(err, EEXIST, "%s is there already%s", to, there == STEP_STORED ? ": -o overwrite replaces it" : "");
    bool staged = ckpt_stage_exists(p->stages, from);
    if (staged && (kind != STEP_STORED || ckpt_step_name(to, &number))) {
        r = ckpt_stage_rename(p->stages, from, to, who, err);
        root_changed(root, from);
        root_changed(root, to);
        return r;
    }
    if (kind != STEP_STORED)
        return kind == STEP_NONE ? ckpt_fail(err, ENOENT, "there is no step %s", from) : ckpt_fail(err, EROFS, "%s is not a step of the store", from);
    if (!ckpt_step_name(to, &number))
        return ckpt_fail(err, EPERM, "a committed step needs a step's name: digits, or a prefix, '_' and digits");
    r = rename_stored(src, root, from, to, replace, err);
    root_changed(root, NULL);
    return r;
}

static int rename_step(struct ckpt_source *src, struct place *p, const char *from, const char *to, unsigned flags, const struct ckpt_caller *who,
                       struct ckpt_err *err)
{
    int r = rename_once(src, p, from, to, flags, who, err);
    for (unsigned i = 0; r == -ESTALE && i < TRIES; i++)
        r = rename_once(src, p, from, to, flags, who, err);
    return r;
}

/* --- the calls --- */

struct making {
    const char *name;
    uint32_t mode;
    int flags;
    const struct ckpt_caller *who;
    struct ckpt_attr *ret;
    struct ckpt_handle **ret_handle;
};

static int mkdir_at(struct ckpt_source *src, uint64_t parent, uint64_t none, void *arg, struct ckpt_err *err)
{
    const struct making *m = arg;
    struct place p;
    struct ckpt_stage_attr attr;
    int r = find_place(src, parent, &p, err);
    if (r < 0)
        return r;
    bool top = r == 1;
    r = top ? new_step(src, &p, m->name, m->mode, m->who, &attr, err) : ckpt_stage_mkdir(p.stages, p.id, m->name, m->mode, m->who, &attr);
    if (r == 0) {
        source_attr_of_stage(&attr, m->ret);
        m->ret->fleeting |= top;
    }
    place_clear(src, &p);
    return r;
}

int ckpt_mkdir(struct ckpt_source *src, uint64_t parent, const char *name, uint32_t mode, const struct ckpt_caller *who, struct ckpt_attr *ret,
               struct ckpt_err *err)
{
    struct making m = {.name = name, .mode = mode, .who = who, .ret = ret};
    int r = source_retry(src, parent, 0, mkdir_at, &m, err);
    if (r == 0)
        source_own_id(src, parent, name, ret);
    return r;
}

static int wrap(struct ckpt_stage_handle *staged, struct ckpt_handle **ret)
{
    *ret = malloc(sizeof **ret);
    if (!*ret) {
        ckpt_stage_release(staged);
        return -ENOMEM;
    }
    (*ret)->staged = staged;
    return 0;
}

static int create_at(struct ckpt_source *src, uint64_t parent, uint64_t none, void *arg, struct ckpt_err *err)
{
    const struct making *m = arg;
    struct place p;
    struct ckpt_stage_attr attr;
    struct ckpt_stage_handle *staged;
    int r = find_place(src, parent, &p, err);
    if (r < 0)
        return r;
    r = r == 1 ? ckpt_fail(err, EPERM, "files lie in steps: make a directory for one first")
               : ckpt_stage_create(p.stages, p.id, m->name, m->mode, m->flags, m->who, &attr, &staged);
    if (r == 0) {
        r = wrap(staged, m->ret_handle);
        if (r < 0)
            ckpt_stage_forget(p.stages, attr.id, 1);
        else
            source_attr_of_stage(&attr, m->ret);
    }
    place_clear(src, &p);
    return r;
}

int ckpt_create(struct ckpt_source *src, uint64_t parent, const char *name, uint32_t mode, int flags, const struct ckpt_caller *who,
                struct ckpt_attr *ret, struct ckpt_handle **ret_handle, struct ckpt_err *err)
{
    struct making m = {.name = name, .mode = mode, .flags = flags, .who = who, .ret = ret, .ret_handle = ret_handle};
    return source_retry(src, parent, 0, create_at, &m, err);
}

struct removing {
    const char *name;
    bool dir;
    const struct ckpt_caller *who;
};

static int unlink_in(struct ckpt_source *src, struct place *p, const struct removing *m, struct ckpt_err *err)
{
    int r = ckpt_stage_unlink(p->stages, p->id, m->name, m->dir, m->who);
    if (r == -ENOENT && m->dir && ckpt_stage_is_face(p->stages, p->id)) {
        r = source_face_remove_step(src, m->name, err);
        ckpt_stages_tidy(p->stages);
        root_changed(src->root, r == 0 ? m->name : NULL);
    }
    return r;
}

static int unlink_at(struct ckpt_source *src, uint64_t parent, uint64_t none, void *arg, struct ckpt_err *err)
{
    const struct removing *m = arg;
    struct place p;
    int r = source_remove(src, parent, m->name, m->dir, m->who, err);
    if (r == 1)
        r = source_face_remove(src, parent, m->name, m->dir, err);
    if (r <= 0)
        return r;
    r = find_place(src, parent, &p, err);
    if (r < 0)
        return r;
    if (r == 0)
        r = unlink_in(src, &p, m, err);
    else
        r = m->dir ? remove_step(src, &p, m->name, err) : ckpt_fail(err, EROFS, "%s is not a step of the store", m->name);
    place_clear(src, &p);
    return r;
}

int ckpt_unlink(struct ckpt_source *src, uint64_t parent, const char *name, bool dir, const struct ckpt_caller *who, struct ckpt_err *err)
{
    struct removing m = {name, dir, who};
    return source_retry(src, parent, 0, unlink_at, &m, err);
}

struct renaming {
    const char *from, *to;
    unsigned flags;
    const struct ckpt_caller *who;
};

static int rename_at(struct ckpt_source *src, uint64_t parent, uint64_t new_parent, void *arg, struct ckpt_err *err)
{
    const struct renaming *m = arg;
    struct place from, to;
    int r = find_place(src, parent, &from, err);
    if (r < 0)
        return r;
    int at_top = r;
    r = find_place(src, new_parent, &to, err);
    if (r >= 0) {
        if (r == 1 && !at_top && from.stages == to.stages)
            r = ckpt_fail(err, EPERM, "only steps lie there");
        else if (at_top != r || from.stages != to.stages)
            r = ckpt_fail(err, EXDEV, "another step: copy, which shares the data");
        else
            r = at_top ? rename_step(src, &from, m->from, m->to, m->flags, m->who, err)
                       : ckpt_stage_move(from.stages, from.id, m->from, to.id, m->to, m->flags, m->who);
        place_clear(src, &to);
    }
    place_clear(src, &from);
    return r;
}

int ckpt_rename(struct ckpt_source *src, uint64_t parent, const char *name, uint64_t new_parent, const char *new_name, unsigned flags,
                const struct ckpt_caller *who, struct ckpt_err *err)
{
    struct renaming m = {name, new_name, flags, who};
    if (flags & ~(unsigned)(RENAME_NOREPLACE | RENAME_EXCHANGE)) /* a whiteout is a device */
        return ckpt_fail(err, EINVAL, "a rename that does more than replace or exchange");
    return source_retry(src, parent, new_parent, rename_at, &m, err);
}

/* What the store has of a committed file; clear it. -EXDEV where it is not of a store, or only another rendering. */
static int record_of(struct ckpt_source *src, uint64_t id, struct ckpt_manifest_node *ret)
{
    struct target t;
    int r = source_target(src, id, &t, NULL);
    if (r < 0)
        return r;
    bool stored = t.tree && t.file.view == CKPT_VIEW_LISTED && !ckpt_viewed_is_dir(&t.file) && source_root_of(src, t.node);
    r = stored ? ckpt_store_tree_record(t.tree, t.file.node, ret, NULL) : -EXDEV;
    source_done(src, &t);
    return r;
}

/* One more name of a leaf of a committed step: in the same step, of the file that stands for it; in another one, of a new file that shares its content. */
static int link_committed(struct ckpt_source *src, uint64_t id, const struct place *p, const struct making *m, struct ckpt_stage_attr *ret)
{
    struct target t;
    struct ckpt_manifest_node node = {0};
    uint64_t copy;
    int r = source_target(src, id, &t, NULL);
    if (r < 0)
        return r;
    bool copied = t.file.view == CKPT_VIEW_LISTED && source_copied(src, &t, &copy) == 1;
    source_done(src, &t);
    if (copied) {
        bool same = source_set(src, copy) == p->stages && ckpt_stage_same_step(p->stages, copy, p->id);
        r = same ? ckpt_stage_link(p->stages, copy, p->id, m->name, m->who, ret) : 0;
        ckpt_forget(src, copy, 1);
        if (same)
            return r;
    }
    r = record_of(src, id, &node);
    if (r == 0)
        r = ckpt_stage_link_stored(p->stages, &node, p->id, m->name, m->who, ret);
    ckpt_manifest_node_clear(&node);
    return r;
}

static int link_at(struct ckpt_source *src, uint64_t parent, uint64_t id, void *arg, struct ckpt_err *err)
{
    const struct making *m = arg;
    struct place p;
    struct ckpt_stage_attr attr;
    int r = find_place(src, parent, &p, err);
    if (r < 0)
        return r;
    if (r == 1)
        r = ckpt_fail(err, EPERM, "files lie in steps");
    else if (id & CKPT_STAGED)
        r = source_set(src, id) == p.stages ? ckpt_stage_link(p.stages, id, p.id, m->name, m->who, &attr) : -EXDEV;
    else
        r = link_committed(src, id, &p, m, &attr);
    if (r == 0)
        source_attr_of_stage(&attr, m->ret);
    place_clear(src, &p);
    return r;
}

int ckpt_link(struct ckpt_source *src, uint64_t id, uint64_t parent, const char *name, const struct ckpt_caller *who, struct ckpt_attr *ret,
              struct ckpt_err *err)
{
    struct making m = {.name = name, .who = who, .ret = ret};
    return source_retry(src, parent, id, link_at, &m, err);
}

int ckpt_no_link(struct ckpt_source *src, uint64_t parent)
{
    struct target t;
    if (parent & CKPT_STAGED)
        return -EPERM;
    if (!src->opt.write || source_target(src, parent, &t, NULL) < 0)
        return -EROFS;
    bool ours = (!t.tree && t.node->kind == NODE_DIR && (t.node->stages || (t.node == src->root && src->lazy))) || source_root_of(src, t.node);
    source_done(src, &t);
    return ours ? -EPERM : -EROFS;
}

/* --- callers that are told -ESTALE --- */

/* The kernel makes them look the path up once more, and no third time: within that time the file is theirs to open. */
#define AGAIN_NS 1000000000ll

static void tell_again(struct ckpt_source *src, const struct ckpt_caller *who, bool change)
{
    CKPT_GUARD(&src->lock);
    struct source_told *slot = src->told;
    for (unsigned i = 1; i < SOURCE_TOLD; i++)
        if (src->told[i].until_ns < slot->until_ns)
            slot = &src->told[i];
    *slot = (struct source_told){who->pid, change, ckpt_monotonic_ns() + AGAIN_NS};
    atomic_store(&src->told_until_ns, slot->until_ns);
}

/* Was this one told? Once only: the file that it looks up next is the one that it was told of. */
static bool was_told(struct ckpt_source *src, const struct ckpt_caller *who, bool *ret_change)
{
    int64_t now = ckpt_monotonic_ns();
    if (atomic_load(&src->told_until_ns) <= now)
        return false;
    bool told = false;
    CKPT_GUARD(&src->lock);
    for (unsigned i = 0; i < SOURCE_TOLD; i++)
        if (src->told[i].thread == who->pid && src->told[i].until_ns > now) {
            *ret_change = src->told[i].change;
            src->told[i].until_ns = 0;
            told = true;
        }
    return told;
}

/* The step that an id is in is open for changes: what is opened may be no more than a view, whose name becomes a file's. */
static int open_at(struct ckpt_source *src, uint64_t id, uint64_t none, void *arg, struct ckpt_err *err)
{
    struct ckpt_stages *set;
    struct target t;
    uint64_t copy;
    if (id & CKPT_STAGED)
        return source_set(src, id) && !ckpt_stage_ended(source_set(src, id), id) ? 0 : -ESTALE;
    int r = source_target(src, id, &t, err);
    if (r < 0)
        return r;
    struct target top = {.node = t.node};
    if (!src->opt.write || t.node->kind != NODE_TREE)
        r = ckpt_fail(err, EROFS, "this cannot be written");
    else
        r = source_open_copy(src, &top, &set, &copy, err);
    if (r == 0)
        ckpt_stage_forget(set, copy, 1);
    source_done(src, &t);
    return r;
}

/* A change of something that is no staged file: its step is opened for changes, and the caller is to look again. */
static int must_look_again(struct ckpt_source *src, uint64_t id, const struct ckpt_caller *who, struct ckpt_err *err)
{
    int r = source_retry(src, id, 0, open_at, NULL, err);
    if (r < 0)
        return r;
    tell_again(src, who, true);
    return ckpt_fail(err, ESTALE, "the step is open for changes now");
}

struct looking_again {
    const char *name;
    const struct ckpt_caller *who;
    struct ckpt_attr *ret;
};

/* The staged file of a name, whose step does not commit before it is opened. */
static int lookup_staged_at(struct ckpt_source *src, uint64_t parent, uint64_t none, void *arg, struct ckpt_err *err)
{
    const struct looking_again *l = arg;
    struct ckpt_stage_attr attr;
    struct place p;
    int r = find_place(src, parent, &p, err);
    if (r < 0)
        return r;
    r = r == 1 ? -ENOENT : ckpt_stage_lookup(p.stages, p.id, l->name, &attr);
    if (r == 0) {
        r = ckpt_stage_await(p.stages, attr.id, l->who);
        if (r < 0)
            ckpt_stage_forget(p.stages, attr.id, 1);
        else
            source_attr_of_stage(&attr, l->ret);
    }
    place_clear(src, &p);
    return r;
}

/* Is this a directory of a step of a store? */
static bool is_in_step(struct ckpt_source *src, uint64_t id)
{
    struct target t;
    if (id & CKPT_STAGED)
        return true;
    if (source_target(src, id, &t, NULL) < 0)
        return false;
    bool is = source_root_of(src, t.node) != NULL;
    source_done(src, &t);
    return is;
}

int ckpt_lookup_for(struct ckpt_source *src, uint64_t parent, const char *name, const struct ckpt_caller *who, struct ckpt_attr *ret,
                    struct ckpt_err *err)
{
    bool change;
    if (parent == CKPT_CONTROL)
        return source_lookup_control(src, name, who, ret, err);
    int r = ckpt_lookup(src, parent, name, ret, err);
    if (r < 0 || ret->type != CKPT_FILE || !was_told(src, who, &change) || (!change && !(ret->id & CKPT_STAGED)) || !is_in_step(src, parent))
        return r;
    struct looking_again l = {name, who, ret};
    ckpt_forget(src, ret->id, 1);
    *ret = (struct ckpt_attr){0};
    r = source_retry(src, parent, 0, lookup_staged_at, &l, err);
    ret->fleeting = true; /* below what is no staged directory, or not any more */
    return r;
}

/* The staged file that stands for a committed one, whose step is opened for changes; with a reference. */
static int find_copy(struct ckpt_source *src, uint64_t id, struct ckpt_stages **ret_set, uint64_t *ret, struct ckpt_err *err)
{
    struct target t;
    int r = source_target(src, id, &t, err);
    if (r < 0)
        return r;
    if (!src->opt.write || t.node->kind != NODE_TREE)
        r = ckpt_fail(err, EROFS, "this cannot be written");
    else if (t.tree && t.file.view != CKPT_VIEW_LISTED)
        r = ckpt_fail(err, EROFS, "a view cannot be written");
    else
        r = source_open_copy(src, &t, ret_set, ret, err);
    source_done(src, &t);
    return r;
}

/* The staged file itself, or the copy of a committed one; with a reference. */
static int find_staged(struct ckpt_source *src, uint64_t id, struct ckpt_stages **ret_set, uint64_t *ret, struct ckpt_err *err)
{
    if (!(id & CKPT_STAGED))
        return find_copy(src, id, ret_set, ret, err);
    *ret_set = source_set(src, id);
    *ret = id;
    return *ret_set ? ckpt_stage_hold(*ret_set, id) : -ESTALE;
}

struct setting {
    const struct stat *st;
    unsigned what;
    const char *name; /* of an attribute */
    const void *value;
    size_t len;
    int flags;
    const struct ckpt_caller *who;
    struct ckpt_attr *ret;
};

static int setattr_at(struct ckpt_source *src, uint64_t id, uint64_t none, void *arg, struct ckpt_err *err)
{
    const struct setting *m = arg;
    struct ckpt_stage_attr attr;
    struct ckpt_stages *set;
    uint64_t staged;
    int r = find_staged(src, id, &set, &staged, err);
    if (r < 0)
        return r;
    r = ckpt_stage_setattr(set, staged, m->st, m->what, m->who, &attr);
    ckpt_stage_forget(set, staged, 1);
    if (r < 0)
        return r;
    if (staged != id) /* readers that have the committed file open keep its size */
        return ckpt_getattr(src, id, m->ret, err);
    source_attr_of_stage(&attr, m->ret);
    return 0;
}

int ckpt_setattr(struct ckpt_source *src, uint64_t id, const struct stat *st, unsigned what, const struct ckpt_caller *who, struct ckpt_attr *ret,
                 struct ckpt_err *err)
{
    struct setting m = {.st = st, .what = what, .who = who, .ret = ret};
    if (!(what & CKPT_ATTR_SIZE))
        return source_retry(src, id, 0, setattr_at, &m, err);
    int r = id & CKPT_STAGED ? setattr_at(src, id, 0, &m, err) : -ESTALE;
    return r == -ESTALE ? must_look_again(src, id, who, err) : r;
}

/* user.ckpt.pinned of a committed step: "1" or "0". 1: it was that. */
static int set_pin(struct ckpt_source *src, uint64_t id, const char *name, const char *value, size_t len, struct ckpt_err *err)
{
    struct target t;
    char step[CKPT_NAME_MAX + 1];
    if (strcmp(name, "user.ckpt.pinned") || id & CKPT_STAGED)
        return 0;
    int r = source_target(src, id, &t, err);
    if (r < 0)
        return r;
    struct node *root = t.tree ? NULL : source_root_of(src, t.node);
    bool on = len && value[0] == '1', off = !len || value[0] == '0';
    if (!root)
        r = ckpt_fail(err, EROFS, "only the steps of a store can be pinned");
    else if (len > 1 || !(on || off))
        r = ckpt_fail(err, EINVAL, "user.ckpt.pinned is 0 or 1");
    else if (atomic_load(&t.node->stale))
        r = -ESTALE;
    else {
        source_step_name(src, t.node, step);
        r = ckpt_store_pin(root->store, step, on, err);
    }
    source_done(src, &t);
    return r < 0 ? r : 1;
}

static int setxattr_at(struct ckpt_source *src, uint64_t id, uint64_t none, void *arg, struct ckpt_err *err)
{
    const struct setting *m = arg;
    struct ckpt_stages *set;
    uint64_t staged;
    int r = set_pin(src, id, m->name, m->value ? m->value : "0", m->value ? m->len : 1, err);
    if (r)
        return CKPT_MIN(r, 0);
    r = find_staged(src, id, &set, &staged, err);
    if (r < 0)
        return r;
    r = m->value ? ckpt_stage_setxattr(set, staged, m->name, m->value, m->len, m->flags, m->who)
                 : ckpt_stage_removexattr(set, staged, m->name, m->who);
    ckpt_stage_forget(set, staged, 1);
    return r;
}

int ckpt_setxattr(struct ckpt_source *src, uint64_t id, const char *name, const void *value, size_t len, int flags,
                  const struct ckpt_caller *who, struct ckpt_err *err)
{
    struct setting m = {.name = name, .value = value ? value : "", .len = len, .flags = flags, .who = who};
    return source_retry(src, id, 0, setxattr_at, &m, err);
}

int ckpt_removexattr(struct ckpt_source *src, uint64_t id, const char *name, const struct ckpt_caller *who, struct ckpt_err *err)
{
    struct setting m = {.name = name, .who = who};
    return source_retry(src, id, 0, setxattr_at, &m, err);
}

int ckpt_open(struct ckpt_source *src, uint64_t id, int flags, const struct ckpt_caller *who, struct ckpt_handle **ret_handle, struct ckpt_err *err)
{
    struct ckpt_stage_handle *staged;
    bool change = (flags & O_ACCMODE) != O_RDONLY || flags & O_TRUNC;
    *ret_handle = NULL;
    if (!(id & CKPT_STAGED))
        return change ? must_look_again(src, id, who, err) : 0;
    struct ckpt_stages *set = source_set(src, id);
    int r = set ? ckpt_stage_open(set, id, flags, who, &staged) : -ESTALE;
    if (r == -ESTALE && change)
        return must_look_again(src, id, who, err);
    if (r == -ESTALE)
        tell_again(src, who, false);
    return r < 0 ? r : wrap(staged, ret_handle);
}

void ckpt_release(struct ckpt_handle *h)
{
    if (h)
        ckpt_stage_release(h->staged);
    free(h);
}

ssize_t ckpt_handle_read(struct ckpt_handle *h, void *buf, size_t len, uint64_t off, bool cached)
{
    return cached ? ckpt_stage_read_cached(h->staged, buf, len, off) : ckpt_stage_read(h->staged, buf, len, off);
}

int ckpt_handle_run(struct ckpt_handle *h, uint64_t off, uint64_t *ret_end)
{
    return ckpt_stage_run(h->staged, off, ret_end);
}

ssize_t ckpt_handle_write(struct ckpt_handle *h, const void *buf, size_t len, uint64_t off, const struct ckpt_caller *who)
{
    return ckpt_stage_write(h->staged, buf, len, off, who);
}

int ckpt_handle_allocate(struct ckpt_handle *h, int mode, uint64_t off, uint64_t len, const struct ckpt_caller *who)
{
    return ckpt_stage_allocate(h->staged, mode, off, len, who);
}

void ckpt_handle_flush(struct ckpt_handle *h)
{
    ckpt_stage_flush(h->staged);
}

int ckpt_handle_fsync(struct ckpt_handle *h)
{
    return ckpt_stage_fsync(h->staged);
}

int ckpt_handle_fd(const struct ckpt_handle *h)
{
    return ckpt_stage_handle_fd(h->staged);
}

void ckpt_handle_unseen(struct ckpt_handle *h)
{
    ckpt_stage_handle_unseen(h->staged);
}

int ckpt_backing_fd(struct ckpt_source *src, uint64_t id)
{
    struct target t;
    struct ckpt_extent e = {0};
    int fd, r = -1;
    if (id & CKPT_STAGED || source_target(src, id, &t, NULL) < 0)
        return -1;
    if (t.tree && t.file.view == CKPT_VIEW_LISTED && !ckpt_viewed_is_dir(&t.file) && t.tree->format->file &&
        t.tree->format->file(t.tree, t.file.node, &e, NULL) == 0) {
        if (e.file && !e.off && ckpt_object_raw_fd(e.file, &fd) && e.len == e.file->st.size)
            r = fcntl(fd, F_DUPFD_CLOEXEC, 0);
        ckpt_extent_clear(&e);
    }
    source_done(src, &t);
    return r;
}

ssize_t ckpt_copy_range(struct ckpt_source *src, struct ckpt_handle *from, uint64_t from_id, uint64_t from_off, struct ckpt_handle *to,
                        uint64_t to_off, uint64_t len, const struct ckpt_caller *who, struct ckpt_err *err)
{
    struct ckpt_ref ref;
    struct ckpt_manifest_node node = {0};
    bool shared = from ? ckpt_stage_handle_ref(from->staged, &ref) == 1 : record_of(src, from_id, &node) == 0 && !node.text;
    if (shared && !from) {
        ref = (struct ckpt_ref){.size = node.size, .offset = node.offset, .stored = node.stored, .codec = node.codec};
        memcpy(ref.sha256, node.sha256, CKPT_SHA256);
        memcpy(ref.object, node.object, CKPT_SHA256);
    }
    ckpt_manifest_node_clear(&node);
    if (shared && !from_off && !to_off && len >= ref.size && ref.size <= INT64_MAX && ckpt_stage_share(to->staged, &ref, who) == 0)
        return (ssize_t)ref.size;
    CKPT_AUTOFREE uint8_t *buf = malloc(COPY);
    uint64_t done = 0;
    if (!buf)
        return ckpt_fail(err, ENOMEM, "out of memory");
    bool whole = shared && !from_off && !to_off;
    len = whole ? CKPT_MIN(len, ref.size) : CKPT_MIN(len, (uint64_t)64 << 20); /* the caller asks for the rest */
    while (done < len) {
        size_t want = (size_t)CKPT_MIN((uint64_t)COPY, len - done);
        ssize_t n = from ? ckpt_stage_read(from->staged, buf, want, from_off + done) : ckpt_read(src, from_id, buf, want, from_off + done, err);
        if (n > 0)
            n = ckpt_stage_write(to->staged, buf, (size_t)n, to_off + done, who);
        if (n < 0)
            return done ? (ssize_t)done : n;
        if (n == 0)
            break;
        done += (uint64_t)n;
    }
    return (ssize_t)done;
}

/* A directory of a committed step: what was changed of that here, if anything was, is committed. */
static int fsyncdir_committed(struct ckpt_source *src, uint64_t id, const struct ckpt_caller *who, struct ckpt_err *err)
{
    struct ckpt_stages *set;
    struct target t;
    uint64_t staged;
    int r = source_target(src, id, &t, err);
    if (r < 0)
        return r;
    struct node *root = t.node->kind == NODE_TREE && !atomic_load(&t.node->stale) ? source_root_of(src, t.node) : NULL;
    const struct ckpt_stat *top = &t.node->st;
    bool changed = false, may = ckpt_caller_owns(who, top->uid) || ckpt_caller_may(who, top->mode, top->uid, top->gid, 2);
    if (root) {
        set = root->stages;
        r = source_find_copy(src, root, &t, &staged);
        if (r == 0 && atomic_load(&t.node->removing) && !may)
            r = ckpt_fail(err, EACCES, "the step is committed by its owner, or by who may write to it");
        else if (r == 0 && atomic_load(&t.node->removing)) {
            r = source_open_copy(src, &t, &set, &staged, err);
            r = r < 0 ? r : 1;
        }
        changed = r == 1;
    }
    source_done(src, &t);
    if (!changed)
        return CKPT_MIN(r, 0);
    r = ckpt_stage_fsyncdir(set, staged, who, err);
    ckpt_stage_forget(set, staged, 1);
    return r;
}

int ckpt_fsyncdir(struct ckpt_source *src, uint64_t id, const struct ckpt_caller *who, struct ckpt_err *err)
{
    struct ckpt_attr now;
    bool moved = source_again(src, id, &now) == 0; /* what has been changed since its commit is in another copy */
    uint64_t at = moved ? now.id : id;
    struct ckpt_stages *set = at & CKPT_STAGED ? source_set(src, at) : NULL;
    int r = set ? ckpt_stage_fsyncdir(set, at, who, err) : at & CKPT_STAGED ? 0 : fsyncdir_committed(src, at, who, err);
    if (moved)
        ckpt_forget(src, now.id, 1);
    return r == -ESTALE ? 0 : r; /* committed meanwhile, with all that was changed before this call: it is durable */
}

int ckpt_statfs(struct ckpt_source *src, struct statvfs *ret)
{
    return statvfs(src->path, ret) < 0 ? -errno : 0;
}
