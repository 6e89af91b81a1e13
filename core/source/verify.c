/* SPDX-License-Identifier: Apache-2.0 */
/* Reads everything at and below a directory, so that every checksum is checked, and what the format itself can check.
 */
#include "core/base/util.h"
#include "core/source/source.h"

#include <stdio.h>

#define BLOCK ((size_t)1 << 20)

struct verifier {
    struct ckpt_source *src;
    const struct ckpt_verify *how;
    uint8_t *block;
    const char *path; /* for the progress of a format's own check */
    int faults;
};

static void fault(struct verifier *v, const char *path, int code, struct ckpt_err *err)
{
    v->faults++;
    if (err->code != code)
        ckpt_fail(err, code, "%s", strerror(code));
    if (v->how->fault)
        v->how->fault(v->how->arg, path, err);
}

static void format_progress(void *arg, uint64_t bytes)
{
    struct verifier *v = arg;
    if (v->how->progress)
        v->how->progress(v->how->arg, v->path, bytes);
}

static void verify_file(struct verifier *v, uint64_t id, const char *path)
{
    if (v->how->file)
        v->how->file(v->how->arg, path);
    for (uint64_t off = 0;;) {
        struct ckpt_err err = {0};
        uint64_t end;
        if (off && ckpt_run(v->src, id, off, &end, NULL) == 0) {
            if (v->how->progress)
                v->how->progress(v->how->arg, path, end - off);
            off = end;
        }
        ssize_t n = ckpt_read(v->src, id, v->block, BLOCK, off, &err);
        if (n < 0)
            fault(v, path, (int)-n, &err);
        if (n <= 0)
            return;
        off += (uint64_t)n;
        if (v->how->progress)
            v->how->progress(v->how->arg, path, (uint64_t)n);
    }
}

/* What is wrong with a checkpoint whose leaves can be read all the same. */
static void tell_fault(struct verifier *v, const struct ckpt_tree *t, const char *path)
{
    struct ckpt_err err = {0};
    if (!t->fault)
        return;
    ckpt_fail(&err, EUCLEAN, "%s", t->fault);
    fault(v, path, EUCLEAN, &err);
}

/* Once a checkpoint, at its top: the format's own checks. False: what is in it is not to be read. */
static bool verify_tree(struct verifier *v, uint64_t id, const char *path)
{
    struct target t;
    struct ckpt_err err = {0};
    uint32_t node;
    int r = ckpt_source_target(v->src, id, &t, &err);
    if (r < 0)
        return true;
    if (!t.tree && t.node->kind == NODE_TREE) {
        r = ckpt_source_enter(v->src, &t, &node, &err);
        v->path = path;
        if (r == 0 && t.tree->ops->verify)
            r = t.tree->ops->verify(t.tree, format_progress, v, &err);
        if (r < 0)
            fault(v, path, -r, &err);
        else
            tell_fault(v, t.tree, path);
    }
    ckpt_source_done(v->src, &t);
    return r >= 0;
}

static int verify_dir(struct verifier *v, uint64_t id, const char *path, unsigned depth, struct ckpt_err *err)
{
    struct ckpt_dir *dir;
    struct ckpt_dirent e;
    bool immutable;
    int r = ckpt_opendir(v->src, id, &dir, &immutable, err);
    if (r < 0)
        return r;
    for (uint64_t pos = 0; r == 0 && ckpt_readdir(dir, pos, &e) == 1; pos = e.next) {
        struct ckpt_attr at;
        struct ckpt_err own = {0};
        if (e.type == CKPT_LINK) /* what it points to is verified where it is */
            continue;
        CKPT_AUTOFREE char *sub = malloc(strlen(path) + strlen(e.name) + 2);
        if (!sub) {
            r = -ENOMEM;
            break;
        }
        sprintf(sub, "%s%s%s", path, *path ? "/" : "", e.name);
        int l = ckpt_lookup(v->src, id, e.name, &at, &own);
        if (l == -ENOENT) /* it went while we looked */
            continue;
        if (l < 0) {
            fault(v, sub, -l, &own);
            continue;
        }
        if (at.type == CKPT_DIR) {
            bool readable = verify_tree(v, at.id, sub);
            l = readable && depth < 2 * CKPT_MAX_DEPTH ? verify_dir(v, at.id, sub, depth + 1, &own) : 0;
            if (l < 0 && l != -ENOENT)
                fault(v, sub, -l, &own);
        } else
            verify_file(v, at.id, sub);
        ckpt_forget(v->src, at.id, 1);
    }
    ckpt_closedir(dir);
    return r;
}

int ckpt_verify(struct ckpt_source *src, uint64_t id, const char *path, const struct ckpt_verify *how,
                struct ckpt_err *err)
{
    struct verifier v = {.src = src, .how = how, .block = malloc(BLOCK)};
    struct ckpt_attr at;
    if (!v.block)
        return ckpt_fail(err, ENOMEM, "out of memory");
    int r = ckpt_getattr(src, id, &at, err);
    if (r == 0 && at.type == CKPT_DIR) {
        if (verify_tree(&v, id, path)) {
            struct ckpt_err own = {0};
            r = verify_dir(&v, id, path, 0, &own);
            if (r < 0)
                fault(&v, path, -r, &own);
            r = 0;
        }
    } else if (r == 0)
        verify_file(&v, id, path);
    free(v.block);
    return r < 0 ? r : v.faults;
}
