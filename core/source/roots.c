/* SPDX-License-Identifier: Apache-2.0 */
/* Native roots that may be changed: their staged steps, a set a root, and what these say of their commits. */
#include "core/base/util.h"
#include "core/source/change.h"

#include <stdio.h>

void ckpt_source_root_changed(void *arg, const char *name)
{
    struct node *n = arg;
    if (name && n->source)
        ckpt_node_replaced(n->source, n, name);
    NODE_LOADING(n->source, n);
    n->checked_ns = 0;
}

static void root_tick(void *arg)
{
    struct node *n = arg;
    if (n->source)
        ckpt_source_settle_removals(n->source, n, n->source->opt.settle);
}

static int is_entry(void *arg, const char *name, enum ckpt_ftype type)
{
    return 1;
}

/* The store of a root. An empty source that is written becomes one now. */
static int open_store(struct ckpt_source *src, const struct node *n, const char *path, struct ckpt_store **ret,
                      struct ckpt_err *err)
{
    int r = ckpt_store_open(path, ret, err);
    if (r != -ENOENT)
        return r;
    bool waits = n == src->root && src->lazy;
    if (!waits || ckpt_backend_list(src->backend, "", is_entry, NULL) != 0)
        return ckpt_fail(err, EROFS, "%s is not a native root: 'ckptfs init' makes it one", path);
    r = ckpt_store_init(path, err);
    if (r == 0)
        r = ckpt_store_open(path, ret, err);
    if (r == -ENOENT)
        return ckpt_fail(err, EROFS, "%s is not a native root: 'ckptfs init' makes it one", path);
    return r;
}

/* While n is loaded. */
static int open_stages(struct ckpt_source *src, struct node *n, struct ckpt_err *err)
{
    CKPT_AUTOFREE char *path = ckpt_source_disk_path(src, n);
    struct ckpt_store *store = NULL;
    if (!path)
        return ckpt_fail(err, ENOMEM, "out of memory");
    int r = open_store(src, n, path, &store, err);
    if (r < 0)
        return r;
    pthread_mutex_lock(&src->lock);
    unsigned number = src->set_count;
    pthread_mutex_unlock(&src->lock);
    if (number == CKPT_SETS) {
        ckpt_store_close(store);
        return ckpt_fail(err, EROFS, "more than %d native roots in one mount cannot be written", CKPT_SETS);
    }
    enum ckpt_object_codec codec = 0;
    bool set_codec = src->opt.codec && ckpt_object_codec_choice(src->opt.codec, &codec);
    struct ckpt_stage_options o = {
        .settle = src->opt.settle,
        .explicit_commit = src->opt.explicit_commit || src->opt.writers,
        .writers = src->opt.writers,
        .writer = src->opt.writer,
        .commit_timeout = src->opt.commit_timeout,
        .overwrite = src->opt.overwrite,
        .set_codec = set_codec,
        .codec = codec,
        .threads = 2 * src->opt.threads, /* half of them wait for the disk */
        .first_id = CKPT_STAGED | (uint64_t)number << SOURCE_SET_SHIFT,
        .changed = ckpt_source_root_changed,
        .tick = root_tick,
        .arg = n,
    };
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

int ckpt_source_stages(struct ckpt_source *src, struct node *n, struct ckpt_stages **ret, struct ckpt_err *err)
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
    return src->opt.write && (source_stages(src) || src->lazy);
}
