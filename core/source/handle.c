/* SPDX-License-Identifier: Apache-2.0 */
/* Open files of staged steps, as the public header has them; and the descriptors that the kernel may read from by
 * itself. */
#include "core/base/util.h"
#include "core/format/native.h"
#include "core/source/change.h"

#include <fcntl.h>

#define COPY ((size_t)1 << 20)

struct ckpt_handle {
    struct ckpt_stage_handle *staged;
};

int ckpt_source_wrap(struct ckpt_stage_handle *staged, struct ckpt_handle **ret)
{
    *ret = malloc(sizeof **ret);
    if (!*ret) {
        ckpt_stage_release(staged);
        return -ENOMEM;
    }
    (*ret)->staged = staged;
    return 0;
}

int ckpt_open(struct ckpt_source *src, uint64_t id, int flags, const struct ckpt_caller *who,
              struct ckpt_handle **ret_handle, struct ckpt_err *err)
{
    struct ckpt_stage_handle *staged;
    bool change = (flags & O_ACCMODE) != O_RDONLY || flags & O_TRUNC;
    *ret_handle = NULL;
    if (!(id & CKPT_STAGED))
        return change ? ckpt_source_must_look_again(src, id, who, err) : 0;
    struct ckpt_stages *set = ckpt_source_set(src, id);
    int r = set ? ckpt_stage_open(set, id, flags, who, &staged) : -ESTALE;
    if (r == -ESTALE && change)
        return ckpt_source_must_look_again(src, id, who, err);
    if (r == -ESTALE)
        ckpt_source_tell_again(src, who, false);
    return r < 0 ? r : ckpt_source_wrap(staged, ret_handle);
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

ssize_t ckpt_handle_write(struct ckpt_handle *h, const void *buf, size_t len, uint64_t off,
                          const struct ckpt_caller *who)
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
    ckpt_stage_handle_kernel_writes(h->staged);
}

/* A descriptor, to be closed, of the file that an extent is all of; -1. */
static int whole_file_fd(const struct ckpt_extent *e)
{
    int fd;
    if (!e->file || e->off || !ckpt_object_raw_fd(e->file, &fd))
        return -1;
    return e->len == e->file->st.size ? fcntl(fd, F_DUPFD_CLOEXEC, 0) : -1;
}

int ckpt_backing_fd(struct ckpt_source *src, uint64_t id)
{
    struct target t;
    struct ckpt_extent e = {0};
    int r = -1;
    if (id & CKPT_STAGED || ckpt_source_target(src, id, &t, NULL) < 0)
        return -1;
    bool is_leaf = t.tree && t.file.view == CKPT_VIEW_LISTED && !ckpt_viewed_is_dir(&t.file);
    if (is_leaf && t.tree->ops->file && t.tree->ops->file(t.tree, t.file.node, &e, NULL) == 0) {
        r = whole_file_fd(&e);
        ckpt_extent_clear(&e);
    }
    ckpt_source_done(src, &t);
    return r;
}

/* Where bytes come from. */
struct origin {
    struct ckpt_handle *from;       /* NULL: a committed file */
    struct ckpt_manifest_node node; /* of a committed leaf of a store that is written here; name NULL: it is none */
    struct ckpt_ref ref;            /* of stored content that others may share */
    bool has_ref;
};

static struct origin find_origin(struct ckpt_source *src, struct ckpt_handle *from, uint64_t from_id)
{
    struct origin o = {.from = from};
    if (from) {
        o.has_ref = ckpt_stage_handle_ref(from->staged, &o.ref) == 1;
        return o;
    }
    if (ckpt_source_record_of(src, from_id, &o.node) < 0) {
        o.node = (struct ckpt_manifest_node){0};
        return o;
    }
    const struct ckpt_manifest_node *n = &o.node;
    o.has_ref = !n->text;
    o.ref = (struct ckpt_ref){.size = n->size, .offset = n->offset, .stored = n->stored, .codec = n->codec};
    memcpy(o.ref.sha256, n->sha256, CKPT_SHA256);
    memcpy(o.ref.object, n->object, CKPT_SHA256);
    return o;
}

/* All of a file was copied: what is told of its content goes along. Returns r. */
static ssize_t keep_told(const struct origin *o, struct ckpt_handle *to, ssize_t r)
{
    int e = 0;
    if (o->from)
        e = ckpt_stage_copy_told(o->from->staged, to->staged);
    else if (o->node.name)
        e = ckpt_stage_keep_told(to->staged, &o->node);
    return e < 0 ? e : r;
}

/* The size of the file where that is known; else more than any. */
static uint64_t size_of(const struct origin *o)
{
    if (o->has_ref)
        return o->ref.size;
    return o->node.name ? o->node.size : UINT64_MAX;
}

struct range {
    uint64_t from_id, from_off, to_off, len;
};

static ssize_t copy_range(struct ckpt_source *src, const struct origin *o, const struct range *range,
                          struct ckpt_handle *to, const struct ckpt_caller *who, struct ckpt_err *err)
{
    bool from_begin = !range->from_off && !range->to_off, may_share = o->has_ref && from_begin;
    uint64_t done = 0, len = range->len;
    may_share = may_share && len >= o->ref.size && o->ref.size <= INT64_MAX;
    if (may_share && ckpt_stage_share(to->staged, &o->ref, who) == 0)
        return (ssize_t)o->ref.size;
    CKPT_AUTOFREE uint8_t *buf = malloc(COPY);
    if (!buf)
        return ckpt_fail(err, ENOMEM, "out of memory");
    /* In one go, or else the caller asks for the rest. */
    len = CKPT_MIN(len, o->has_ref && from_begin ? o->ref.size : (uint64_t)64 << 20);
    while (done < len) {
        size_t want = (size_t)CKPT_MIN((uint64_t)COPY, len - done);
        ssize_t n = o->from ? ckpt_stage_read(o->from->staged, buf, want, range->from_off + done)
                            : ckpt_read(src, range->from_id, buf, want, range->from_off + done, err);
        if (n > 0)
            n = ckpt_stage_write(to->staged, buf, (size_t)n, range->to_off + done, who);
        if (n < 0)
            return done ? (ssize_t)done : n;
        if (n == 0)
            break;
        done += (uint64_t)n;
    }
    return (ssize_t)done;
}

ssize_t ckpt_copy_range(struct ckpt_source *src, struct ckpt_handle *from, uint64_t from_id, uint64_t from_off,
                        struct ckpt_handle *to, uint64_t to_off, uint64_t len, const struct ckpt_caller *who,
                        struct ckpt_err *err)
{
    struct origin o = find_origin(src, from, from_id);
    bool whole = !from_off && !to_off && len >= size_of(&o);
    ssize_t n = copy_range(src, &o, &(struct range){from_id, from_off, to_off, len}, to, who, err);
    if (n >= 0 && whole && (uint64_t)n == size_of(&o))
        n = keep_told(&o, to, n);
    ckpt_manifest_node_clear(&o.node);
    return n;
}
