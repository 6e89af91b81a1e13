/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The second walk of a commit: the manifest. It meets the leaves in the order of the first, and looks at their files
 * again for all but the place of their content.
 */
#include "core/commit/private.h"

#include "core/io/disk.h"
#include "core/store/internal.h"

#include <fcntl.h>
#include <openssl/sha.h>
#include <stdio.h>

/* A directory that leads to where the walk is, and who gets so far. */
struct way {
    uint32_t number;
    struct ckpt_rights rights;
};

struct writing {
    struct commit *commit;
    struct ckpt_manifest_writer *writer;
    size_t next; /* leaf */
    struct way way[CKPT_MAX_DEPTH];
    unsigned depth;
    struct ckpt_rights all; /* who may read all that the manifest tells */
};

/* Who gets to what is in a directory. */
static const struct ckpt_rights *way_to(struct writing *w, uint32_t dir)
{
    while (w->depth > 1 && w->way[w->depth - 1].number != dir)
        w->depth--;
    return &w->way[w->depth - 1].rights;
}

static void tell(struct writing *w, const struct stat *st)
{
    struct ckpt_rights own = ckpt_rights_of(st->st_mode, st->st_uid, st->st_gid, S_ISDIR(st->st_mode));
    w->all = ckpt_rights_join(&w->all, &own);
}

static void begin_way(struct writing *w, const struct stat *top)
{
    w->way[0].rights = ckpt_rights_to_enter(top->st_mode, top->st_uid, top->st_gid);
    w->depth = 1;
    w->all = (struct ckpt_rights){.mode = 0444, .uid = top->st_uid, .gid = top->st_gid};
    tell(w, top);
}

static void enter_dir(struct writing *w, uint32_t parent, uint32_t number, const struct stat *st)
{
    struct ckpt_rights own = ckpt_rights_to_enter(st->st_mode, st->st_uid, st->st_gid),
                       way = ckpt_rights_join(way_to(w, parent), &own);
    w->way[w->depth++] = (struct way){number, way};
    tell(w, st);
}

/* The object of the leaf that was written last is for those who get to the leaf and may read it. */
static void enter_leaf(struct writing *w, uint32_t parent, const struct stat *st)
{
    struct commit *c = w->commit;
    struct commit_leaf *leaf = &c->leaves[w->next - 1];
    struct ckpt_rights own = ckpt_rights_of(st->st_mode, st->st_uid, st->st_gid, false),
                       rights = ckpt_rights_join(way_to(w, parent), &own);
    tell(w, st);
    leaf->mode = (uint16_t)ckpt_rights_mode(&rights, c->store->gid);
    if (leaf->object != COMMIT_OWN)
        c->objects[leaf->object].mode &= leaf->mode;
}

static int fill_node(struct ckpt_manifest_node *n, int fd, const struct stat *st, struct ckpt_err *err)
{
    const int64_t limit = INT64_MAX / 1000000000 - 1; /* year 2262 */
    int64_t seconds = st->st_mtim.tv_sec > limit ? limit : st->st_mtim.tv_sec < -limit ? -limit : st->st_mtim.tv_sec;
    n->mode = st->st_mode & 07777;
    n->uid = st->st_uid;
    n->gid = st->st_gid;
    n->mtime_ns = seconds * 1000000000 + st->st_mtim.tv_nsec;
    return ckpt_leaf_xattrs(fd, &n->xattrs, err);
}

static int write_node(struct writing *w, struct ckpt_manifest_node *n, uint32_t *ret_number, struct ckpt_err *err)
{
    uint32_t number;
    int r = ckpt_manifest_write_node(w->writer, n, &number);
    if (r == -EINVAL)
        return ckpt_fail(err, EOPNOTSUPP, "cannot be described in a manifest");
    if (r < 0)
        return ckpt_fail(err, -r, "the manifest cannot be written: %s", strerror(-r));
    if (ret_number)
        *ret_number = number;
    return 0;
}

static int write_dir(void *arg, const struct walk_at *at, int fd, uint32_t *ret_number, struct ckpt_err *err)
{
    struct ckpt_manifest_node n = {
        .parent = at->parent, .name = (char *)at->name, .kind = CKPT_NODE_DIR, .container = ckpt_walk_container(fd)};
    int r = fill_node(&n, fd, &at->st, err);
    if (r == 0)
        r = write_node(arg, &n, ret_number, err);
    if (r == 0)
        enter_dir(arg, at->parent, *ret_number, &at->st);
    free(n.xattrs);
    return r < 0 ? ckpt_fail_in(err, -r, "%s", at->path) : 0;
}

/* What the first walk has found of the leaf that comes next. */
static int fill_leaf(struct writing *w, struct ckpt_manifest_node *n, uint64_t size, struct ckpt_err *err)
{
    struct commit *c = w->commit;
    const struct commit_leaf *leaf = &c->leaves[w->next];
    if (w->next == c->leaf_count || leaf->size != size || (leaf->codec == COMMIT_VALUE && n->kind != CKPT_NODE_VALUE))
        return ckpt_fail(err, EBUSY, "has changed while it was committed");
    w->next++;
    n->size = size;
    if (n->kind == CKPT_NODE_VALUE) {
        SHA256((const uint8_t *)n->text, size, n->sha256);
        return 0;
    }
    memcpy(n->sha256, leaf->sha256, CKPT_SHA256);
    memcpy(n->object, leaf->object == COMMIT_OWN ? leaf->sha256 : c->objects[leaf->object].sha256, CKPT_SHA256);
    n->offset = leaf->offset;
    n->stored = leaf->stored;
    n->codec = (enum ckpt_object_codec)leaf->codec;
    return 0;
}

static int describe(struct writing *w, const struct walk_at *at, struct leaf_file *f, struct ckpt_manifest_node *n,
                    struct ckpt_err *err)
{
    int r = 0;
    n->kind = CKPT_NODE_BLOB;
    if (ckpt_has_suffix(at->name, ".json") && (r = ckpt_leaf_value(w->commit, f, &n->text, err)) == 1)
        n->kind = CKPT_NODE_VALUE;
    else if (r == 0 && ckpt_has_suffix(at->name, ".npy") && (r = ckpt_leaf_array(w->commit, f, &n->npy, err)) == 1)
        n->kind = CKPT_NODE_ARRAY;
    if (r >= 0)
        r = fill_leaf(w, n, f->size, err);
    if (r >= 0 && ckpt_told_apply(f->fd, n) < 0)
        r = ckpt_no_memory(err);
    n->whole = at->whole && n->kind != CKPT_NODE_VALUE;
    return r < 0 ? r : fill_node(n, f->fd, &f->st, err);
}

static int write_file(void *arg, const struct walk_at *at, struct ckpt_err *err)
{
    struct writing *w = arg;
    struct ckpt_manifest_node n = {.parent = at->parent, .name = (char *)at->name};
    struct leaf_file f;
    if (atomic_load(w->commit->cancel))
        return -ECANCELED;
    int r = ckpt_leaf_open(at->dir, at->name, &f, err);
    if (r == 0) {
        (void)ckpt_seal_marked(f.fd, &f.st);
        r = describe(w, at, &f, &n, err);
        if (r == 0)
            enter_leaf(w, at->parent, &f.st);
        ckpt_leaf_close(&f);
    }
    if (r == 0)
        r = write_node(w, &n, NULL, err);
    n.name = NULL; /* borrowed */
    ckpt_manifest_node_clear(&n);
    return r < 0 ? ckpt_fail_in(err, -r, "%s", at->path) : 0;
}

/* Of its pieces' attributes the array has the first one's. */
static int write_pieces(void *arg, const struct walk_at *at, struct ckpt_err *err)
{
    struct writing *w = arg;
    struct ckpt_manifest_node n = {.parent = at->parent, .name = (char *)at->name, .kind = CKPT_NODE_ARRAY};
    struct pieces *ps;
    struct stat st;
    int r = ckpt_pieces_open(w->commit, at, &ps, err);
    if (r < 0)
        return r;
    n.npy = *ckpt_pieces_npy(ps);
    CKPT_AUTOFD int fd = ckpt_pieces_first(ps, &st, err);
    ckpt_pieces_close(ps);
    if (fd >= 0)
        (void)ckpt_seal_marked(fd, &st);
    r = fd < 0 ? fd : fill_leaf(w, &n, n.npy.header + n.npy.nbytes, err);
    if (r == 0)
        r = fill_node(&n, fd, &st, err);
    if (r == 0) {
        enter_leaf(w, at->parent, &st);
        r = write_node(w, &n, NULL, err);
    }
    free(n.xattrs);
    return r < 0 ? ckpt_fail_in(err, -r, "%s", at->path) : 0;
}

static int begin_manifest(struct writing *w, int out, struct ckpt_err *err)
{
    struct commit *c = w->commit;
    struct ckpt_manifest_info info = {
        .name = (char *)c->in->name, .time_ns = (uint64_t)ckpt_realtime_ns(), .metadata = (char *)c->in->metadata};
    struct stat st;
    info.whole = c->whole;
    for (size_t i = 0; i < c->leaf_count && !info.sparse; i++)
        info.sparse = c->leaves[i].codec == CKPT_OBJECT_SPARSE;
    if (c->in->id)
        snprintf(info.id, sizeof info.id, "%s", c->in->id);
    else
        ckpt_random_hex(info.id, 16);
    info.top.kind = CKPT_NODE_DIR;
    info.top.container = ckpt_walk_container(c->in->tree);
    if (fstat(c->in->tree, &st) < 0)
        return ckpt_fail(err, errno, "%s: %s", c->in->name, strerror(errno));
    begin_way(w, &st);
    int r = fill_node(&info.top, c->in->tree, &st, err);
    if (r < 0)
        return ckpt_fail_in(err, -r, "%s", c->in->name);
    r = ckpt_manifest_write_begin(out, &info, &w->writer);
    free(info.top.xattrs);
    if (r == -EINVAL && info.metadata)
        return ckpt_fail(err, EUCLEAN, "%s: its user.ckpt.metadata is not a JSON object, or too large", c->in->name);
    return r < 0 ? ckpt_fail(err, -r, "%s: the manifest cannot be written: %s", c->in->name, strerror(-r)) : 0;
}

/* The manifest's file has the time of the step's own directory; it is the root owner's, and for who may read all that
 * it tells. */
static int seal_manifest(struct writing *w, int out, mode_t allowed)
{
    struct commit *c = w->commit;
    struct stat st, own;
    if (fstat(c->in->tree, &st) < 0)
        return -errno;
    const struct timespec times[2] = {{.tv_nsec = UTIME_OMIT}, st.st_mtim};
    if (geteuid() == 0 && fchown(out, c->store->uid, c->store->gid) < 0)
        return -errno;
    if (fstat(out, &own) < 0)
        return -errno;
    mode_t mode = ckpt_seal_mode(c->store, own.st_gid, ckpt_rights_mode(&w->all, c->store->gid) & (allowed | 0400));
    return fchmod(out, mode) < 0 || futimens(out, times) < 0 ? -errno : 0;
}

int ckpt_describe_tree(struct commit *c, const char *name, mode_t *ret_mode, struct ckpt_err *err)
{
    struct writing w = {.commit = c};
    const struct walk_visitor v = {write_dir, write_file, write_pieces, &w};
    struct stat st;
    CKPT_AUTOFD int out = ckpt_commit_temporary(c, name, 0666);
    if (out < 0)
        return ckpt_fail(err, -out, "%s: the manifest cannot be written: %s", c->in->name, strerror(-out));
    int r = begin_manifest(&w, out, err);
    if (r < 0)
        return r;
    r = ckpt_walk_tree(c->in, &v, err);
    if (r < 0) {
        ckpt_manifest_write_abort(w.writer);
        return r;
    }
    r = ckpt_manifest_write_end(w.writer);
    if (r == 0 && fstat(out, &st) < 0)
        r = -errno;
    if (r == 0)
        r = seal_manifest(&w, out, st.st_mode);
    if (r == 0)
        r = ckpt_disk_fsync(out);
    if (r < 0)
        return ckpt_fail(err, -r, "%s: the manifest cannot be written: %s", c->in->name, strerror(-r));
    *ret_mode = st.st_mode;
    return w.next == c->leaf_count ? 0 : ckpt_fail(err, EBUSY, "%s has changed while it was committed", c->in->name);
}
