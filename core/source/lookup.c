/* SPDX-License-Identifier: Apache-2.0 */
/* What a name in a directory stands for; and paths, which are names one after the other. */
#include "core/base/util.h"
#include "core/source/source.h"
#include "core/tree/key.h"

#include <stdio.h>

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

bool ckpt_source_is_reserved(uint64_t parent, const char *name)
{
    return parent == CKPT_ROOT && (!strcmp(name, ".ckptfs") || !strcmp(name, ".files"));
}

static int lookup_inner(struct ckpt_source *src, struct target *dir, const char *name, struct ckpt_attr *ret,
                        struct ckpt_err *err)
{
    struct node *n = dir->node;
    uint32_t parent, number;
    const char *slice;
    size_t slice_len;
    struct target t = {.node = n};
    int r = ckpt_source_enter(src, dir, &parent, err);
    if (r < 0)
        return r;
    if (!ckpt_viewed_is_dir(&dir->file))
        return -ENOTDIR;
    t.tree = dir->tree;
    t.file.tree = dir->tree;
    r = ckpt_view_lookup(dir->tree, parent, name, &t.file.node, &t.file.view, &slice, &slice_len);
    if (r == 0 && ckpt_source_is_removed(src, n, t.file.node))
        r = -ENOENT;
    if (r < 0)
        return r;
    struct ckpt_selection sel;
    struct slice shown;
    if (slice) {
        char text[CKPT_NAME_MAX + 1];
        snprintf(text, sizeof text, "%.*s", (int)slice_len, slice);
        r = ckpt_view_select(dir->tree, t.file.node, slice, slice_len, &sel, err);
        if (r == 0)
            r = ckpt_node_take_slice(src, n, t.file.node, t.file.view == CKPT_VIEW_SLICE_NPY, text, &sel, &shown);
        if (r < 0)
            return r;
        number = shown.number;
        t.slice = &shown;
        t.file.sel = &sel;
    } else {
        number = t.file.node;
        pthread_mutex_lock(&src->lock);
        n->inner++;
        pthread_mutex_unlock(&src->lock);
    }
    uint64_t id = (uint64_t)n->serial << 40 | (uint64_t)t.file.view << 32 | number;
    if (dir->tree->ops->pin && t.file.view != CKPT_VIEW_META)
        dir->tree->ops->pin(dir->tree, t.file.node);
    r = ckpt_source_inner_attr(src, &t, id, ret, err);
    if (r < 0)
        ckpt_forget(src, id, 1);
    /* Directly under the mount's top nothing is for ever: the checkpoint that is the source may itself be replaced. */
    if (dir->node == src->root && parent == 0)
        ret->forever = false;
    return r;
}

/* A link is shown if following it, here and from the mount, stays inside. */
int ckpt_source_link_target(struct ckpt_source *src, const char *path, char *buf, size_t len)
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

static int lookup_entry(struct ckpt_source *src, struct node *dir, const struct ckpt_listing *l, const char *name,
                        struct node **ret)
{
    static const enum node_kind kinds[] = {[CKPT_ENTRY_FILE] = NODE_FILE,
                                           [CKPT_ENTRY_DIR] = NODE_DIR,
                                           [CKPT_ENTRY_TREE] = NODE_TREE,
                                           [CKPT_ENTRY_LINK] = NODE_LINK};
    const struct ckpt_entry *e = ckpt_listing_find(l, name);
    char link[4096];
    if (!e && !strcmp(name, "latest") && l->latest != SIZE_MAX) {
        struct ckpt_stat st = l->dir;
        st.ino = ~st.ino;
        return ckpt_node_take(src, dir, name, name, NODE_LINK, &st, NULL, l->entries[l->latest].name, ret);
    }
    if (!e && l->best && !strcmp(name, "best")) {
        struct ckpt_stat st = l->store_dir;
        st.ino = ~st.ino;
        return ckpt_node_take(src, dir, name, name, NODE_LINK, &st, NULL, l->best, ret);
    }
    if (!e || e->kind == CKPT_ENTRY_HIDDEN)
        return -ENOENT;
    if (e->kind != CKPT_ENTRY_LINK)
        return ckpt_node_take(src, dir, name, name, kinds[e->kind], &e->st, e, NULL, ret);
    char path[4096];
    if (snprintf(path, sizeof path, "%s%s%s", dir->path, *dir->path ? "/" : "", name) >= (int)sizeof path)
        return -ENAMETOOLONG;
    int r = ckpt_source_link_target(src, path, link, sizeof link);
    return r < 0 ? r : ckpt_node_take(src, dir, name, name, NODE_LINK, &e->st, NULL, link, ret);
}

/* A view of what is in the checkpoint of a node, whose reference is given back. */
static int lookup_view(struct ckpt_source *src, struct node *node, const char *name, struct ckpt_attr *ret,
                       struct ckpt_err *err)
{
    uint64_t id = node->id;
    struct target t;
    int r = ckpt_source_target(src, id, &t, err);
    if (r == 0) {
        r = lookup_inner(src, &t, name, ret, err);
        ckpt_source_done(src, &t);
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
    return e && e->kind == CKPT_ENTRY_FILE && e->format ? e : NULL;
}

/* The node of an .npy file as a tree, which is found under a name that no file has. */
static int take_npy(struct ckpt_source *src, struct node *dir, const char *file, const struct ckpt_entry *e,
                    struct node **ret)
{
    char key[257];
    snprintf(key, sizeof key, "%s/", file);
    return ckpt_node_take(src, dir, file, key, NODE_TREE, &e->st, e, NULL, ret);
}

int ckpt_source_npy(struct ckpt_source *src, struct node *file, struct target *ret, struct ckpt_err *err)
{
    struct ckpt_entry e = {.format = file->format};
    struct target dir;
    struct node *node;
    uint32_t top;
    if (file->kind != NODE_FILE || !file->format)
        return -ENODATA;
    int r = ckpt_source_target(src, file->parent, &dir, err);
    if (r < 0)
        return r;
    r = ckpt_backend_stat(src->backend, file->path, &e.st);
    if (r == 0)
        r = take_npy(src, dir.node, file->name, &e, &node);
    ckpt_source_done(src, &dir);
    if (r < 0)
        return r;
    uint64_t id = node->id;
    r = ckpt_source_target(src, id, ret, err);
    if (r == 0 && (r = ckpt_source_enter(src, ret, &top, err)) < 0)
        ckpt_source_done(src, ret);
    ckpt_forget(src, id, 1);
    return r;
}

/* KEY, KEY@SLICE, KEY.txt and the like beside a file KEY.npy. */
static int lookup_npy_view(struct ckpt_source *src, struct node *dir, const struct ckpt_listing *l, const char *name,
                           struct ckpt_attr *ret, struct ckpt_err *err)
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
static int lookup_beside(struct ckpt_source *src, struct node *dir, const struct ckpt_listing *l, const char *name,
                         struct ckpt_attr *ret, struct ckpt_err *err)
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

/* The node of a blob, under its listed name in a directory of a tree, as the tree that it is a checkpoint of; with a
 * reference. */
static int take_blob(struct ckpt_source *src, struct target *dir, const char *name, struct node **ret,
                     struct ckpt_err *err)
{
    struct ckpt_attr at;
    struct ckpt_entry e = {0};
    struct ckpt_probe probe;
    uint32_t parent;
    char path[4096], key[32];
    int r = ckpt_source_enter(src, dir, &parent, err);
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
        .type = CKPT_FT_FILE,
        .size = at.size,
        .stored = at.stored,
        .mtime_ns = at.mtime_ns,
        .ctime_ns = at.mtime_ns,
        .dev = dir->node->st.dev,
        .ino = at.ino,
        .mode = at.mode,
        .uid = at.uid,
        .gid = at.gid,
    };
    struct ckpt_backend *blob = ckpt_source_blob(src, at.id, name, &st);
    if (!blob) {
        ckpt_forget(src, at.id, 1);
        return -ENOMEM;
    }
    r = ckpt_probe_file(blob, name, &e.format, &probe);
    if (r == 0 && (!e.format || probe.weak || *probe.unfinished))
        r = -ENOENT;
    snprintf(key, sizeof key, "%u/", leaf); /* no name has a slash */
    struct node *fresh = r == 0 ? ckpt_node_new(dir->node->id, path, key, NODE_TREE, &st) : NULL;
    if (!fresh)
        ckpt_backend_unref(blob);
    if (r == 0 && !fresh)
        return -ENOMEM;
    if (r < 0)
        return r;
    if (!ckpt_node_opened(fresh)) {
        ckpt_backend_unref(blob);
        ckpt_node_free(src, fresh);
        return -ENOMEM;
    }
    fresh->opened->blob = blob;
    ckpt_node_set_file(fresh);
    ckpt_node_keep(src, fresh, &e, ret);
    return 0;
}

/* BLOB.tree, and BLOB.tree.safetensors beside it. */
static int lookup_blob(struct ckpt_source *src, struct target *dir, const char *name, struct ckpt_attr *ret,
                       struct ckpt_err *err)
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
        ckpt_source_node_attr(node, ret);
        pthread_mutex_unlock(&src->lock);
        return 0;
    }
    return -ENOENT;
}

int ckpt_source_lookup_control(struct ckpt_source *src, const char *name, const struct ckpt_caller *who,
                               struct ckpt_attr *ret, struct ckpt_err *err)
{
    uint8_t *content;
    size_t len;
    struct ckpt_stat st = src->root->st;
    st.mode &= 0444;
    int r = ckpt_source_control(src, name, who, &content, &len, err);
    if (r < 0)
        return r;
    st.mtime_ns = ckpt_realtime_ns();
    struct node *n = ckpt_node_new(CKPT_CONTROL, name, name, NODE_CONTROL, &st);
    if (!n) {
        free(content);
        return -ENOMEM;
    }
    n->content = (char *)content;
    n->content_len = (uint32_t)len; /* a buffer has at most 1 GiB */
    n->refs = 1;
    pthread_mutex_lock(&src->lock);
    ckpt_node_insert(&src->nodes, n, NODE_NEXT);
    ckpt_node_unname(&src->nodes, n); /* each look-up makes one of its own */
    ckpt_source_node_attr(n, ret);
    pthread_mutex_unlock(&src->lock);
    return 0;
}

/* A step of the store in the files face of the root that is the source. */
static int lookup_step_files(struct ckpt_source *src, const char *name, struct ckpt_attr *ret)
{
    struct target face;
    struct node *n;
    int r = ckpt_source_target(src, CKPT_FACE, &face, NULL);
    if (r < 0)
        return r;
    r = ckpt_source_face_step(src, face.node, name, &n);
    if (r == 0) {
        CKPT_GUARD(&src->lock);
        ckpt_source_node_attr(n, ret);
        ret->fleeting = true;
    }
    ckpt_source_done(src, &face);
    return r;
}

static int lookup_staged(struct ckpt_source *src, uint64_t parent, const char *name, struct ckpt_attr *ret,
                         struct ckpt_err *err)
{
    struct ckpt_stages *set = ckpt_source_set(src, parent);
    struct ckpt_stage_attr attr;
    int r = set ? ckpt_stage_lookup(set, parent, name, &attr) : -ESTALE;
    if (r == -ENOENT && ckpt_stage_is_files_view(set, parent) && lookup_step_files(src, name, ret) == 0)
        return 0;
    if (r < 0)
        return ckpt_fail(err, -r, "%s: %s", name, strerror(-r));
    ckpt_source_attr_of_stage(&attr, ret);
    return 0;
}

/* A staged step hides the committed one that it is a copy of. */
static int lookup_step(struct ckpt_source *src, struct node *root, const char *name, struct ckpt_attr *ret)
{
    struct ckpt_stage_attr attr;
    int r = ckpt_stage_ref_step(root->stages, name, &attr);
    if (r == 0) {
        ckpt_source_attr_of_stage(&attr, ret);
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
    int r = ckpt_source_stages(src, src->root, &stages, err);
    if (r < 0)
        return r;
    r = ckpt_stage_ref_files_view(stages, &attr);
    if (r < 0)
        return ckpt_fail(err, -r, ".files: %s", strerror(-r));
    ckpt_source_attr_of_stage(&attr, ret);
    return 0;
}

int ckpt_source_lookup(struct ckpt_source *src, uint64_t parent, const char *name, struct ckpt_attr *ret,
                       struct ckpt_err *err)
{
    char buf[16];
    struct target t;
    if (strlen(name) > 255)
        return ckpt_fail(err, ENAMETOOLONG, "the name is longer than 255 bytes");
    if (ckpt_source_is_reserved(parent, name))
        return strcmp(name, ".files") ? ckpt_getattr(src, CKPT_CONTROL, ret, err) : lookup_face(src, ret, err);
    if (parent & CKPT_STAGED)
        return lookup_staged(src, parent, name, ret, err);
    name = top_name(parent, name, buf);
    int r = ckpt_source_target(src, parent, &t, err);
    if (r < 0)
        return r;
    uint64_t copy;
    if (atomic_load(&t.node->stale))
        r = -ESTALE;
    else if (t.tree || t.node->kind == NODE_TREE) {
        r = ckpt_source_copied(src, &t, &copy);
        if (r == 1) {
            r = lookup_staged(src, copy, name, ret, err);
            ckpt_forget(src, copy, 1);
        } else if (r == 0) {
            r = lookup_inner(src, &t, name, ret, err);
            if (r == -ENOENT)
                r = lookup_blob(src, &t, name, ret, err);
        }
    } else if (t.node->stages && lookup_step(src, t.node, name, ret) == 0)
        r = 0;
    else if (t.node->kind == NODE_CONTROL_DIR)
        r = ckpt_source_lookup_control(src, name, NULL, ret, err);
    else if (t.node->kind == NODE_FACE) {
        struct node *n;
        r = ckpt_source_face_lookup(src, t.node, name, &n);
        if (r == 0) {
            pthread_mutex_lock(&src->lock);
            ckpt_source_node_attr(n, ret);
            pthread_mutex_unlock(&src->lock);
        }
    } else if (t.node->kind != NODE_DIR)
        r = -ENOTDIR;
    else {
        struct ckpt_listing *l;
        struct node *n;
        r = ckpt_source_listing(src, t.node, &l, err);
        if (r == 0) {
            r = lookup_entry(src, t.node, l, name, &n);
            if (r == 0) {
                pthread_mutex_lock(&src->lock);
                ckpt_source_node_attr(n, ret);
                pthread_mutex_unlock(&src->lock);
            } else if (r == -ENOENT)
                r = lookup_beside(src, t.node, l, name, ret, err);
            ckpt_listing_unref(l);
        }
    }
    ckpt_source_done(src, &t);
    if (r < 0 && err && err->code != -r)
        ckpt_fail(err, -r, "%s: %s", name, strerror(-r));
    return r;
}

struct looking {
    uint64_t parent; /* as the caller has it */
    const char *name;
    struct ckpt_attr *ret;
};

static int lookup_at(struct ckpt_source *src, uint64_t parent, uint64_t none, void *arg, struct ckpt_err *err)
{
    struct looking *l = arg;
    int r = ckpt_source_lookup(src, parent, l->name, l->ret, err);
    if (parent == l->parent)
        return r;
    /* A directory that is found where it is now may be somewhere else at the next look. */
    if (r == 0)
        l->ret->forever = false;
    l->ret->fleeting = true;
    return r;
}

int ckpt_lookup(struct ckpt_source *src, uint64_t parent, const char *name, struct ckpt_attr *ret, struct ckpt_err *err)
{
    struct looking l = {parent, name, ret};
    *ret = (struct ckpt_attr){0};
    atomic_fetch_add_explicit(&src->lookups, 1, memory_order_relaxed);
    unsigned shortages = ckpt_shortages();
    int r = source_absent(ckpt_source_retry(src, parent, 0, lookup_at, &l, err), shortages);
    if (r == -EMFILE)
        return ckpt_fail(err, EMFILE, "%s: %s", name, strerror(EMFILE));
    if (r == 0 && src->opt.write)
        ckpt_source_own_id(src, parent, name, ret);
    if (r == -ENOENT)
        ret->fleeting |= (parent & CKPT_STAGED) != 0;
    return r;
}

void ckpt_forget(struct ckpt_source *src, uint64_t id, uint64_t count)
{
    if (id == CKPT_ROOT || id == CKPT_CONTROL || id == CKPT_FACE)
        return;
    if (id & CKPT_STAGED) {
        struct ckpt_stages *set = ckpt_source_set(src, id);
        if (set)
            ckpt_stage_forget(set, id, count);
        return;
    }
    pthread_mutex_lock(&src->lock);
    struct node *n = ckpt_node_of_id(&src->nodes, id), *dead = NULL;
    if (n) {
        uint64_t *refs = id < NODE_INSIDE ? &n->refs : &n->inner;
        enum ckpt_view view = (enum ckpt_view)(id >> 32 & 0xff);
        *refs -= CKPT_MIN(*refs, count);
        if (id >= NODE_INSIDE && (view == CKPT_VIEW_SLICE || view == CKPT_VIEW_SLICE_NPY))
            ckpt_node_put_slice(&src->nodes, n, (uint32_t)id, count);
        dead = ckpt_node_reap(src, n);
    }
    pthread_mutex_unlock(&src->lock);
    if (dead)
        ckpt_node_free(src, dead);
}

/* Name by name; links are resolved here, at most 40 of them. */
static int walk_from(struct ckpt_source *src, uint64_t from, const char *path, int links, struct ckpt_attr *ret,
                     struct ckpt_err *err)
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
