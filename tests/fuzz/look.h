/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Opens files as an Orbax item, or a step of a store, and looks at all that it shows, as a mount would: every name
 * found again, every view's size and some of its bytes. Sizes that are only claimed are not read to their end, so that
 * an input takes neither long nor much memory.
 */
#ifndef CKPT_FUZZ_LOOK_H
#define CKPT_FUZZ_LOOK_H

#include "core/base/log.h"
#include "core/base/util.h"
#include "core/format/orbax/orbax.h"
#include "core/view/view.h"

#include <stdio.h>
#include <stdlib.h>

#define LOOK_NODES 300
#define LOOK_SMALL ((uint64_t)1 << 20)

static inline void look_expect(bool ok, const char *what)
{
    if (!ok) {
        fprintf(stderr, "%s\n", what);
        abort();
    }
}

static inline int look_given(void *arg, const struct iovec *iov, int count)
{
    for (int i = 0; i < count; i++)
        *(size_t *)arg += iov[i].iov_len;
    return 0;
}

static inline void look_at_view(struct ckpt_views *v, struct ckpt_tree *t, uint32_t node, enum ckpt_view view)
{
    struct ckpt_viewed f = {t, node, view, NULL};
    struct ckpt_err err = {0};
    uint64_t size, stored;
    uint8_t buf[256];
    int r = ckpt_view_size(v, &f, &size, &stored, &err);
    if (r < 0) {
        look_expect(err.code == -r && *err.text, "a size fails without a reason");
        return;
    }
    ssize_t n = ckpt_view_read(v, &f, buf, sizeof buf, 0, &err);
    look_expect(n < 0 || (uint64_t)n == CKPT_MIN(size, (uint64_t)sizeof buf), "a read is short");
    if (size > LOOK_SMALL)
        return;
    n = ckpt_view_read(v, &f, buf, sizeof buf, size / 2, &err);
    look_expect(n < 0 || (uint64_t)n == CKPT_MIN(size - size / 2, (uint64_t)sizeof buf), "a read is short");
    size_t given = 0;
    n = ckpt_view_give(v, &f, size, 0, look_given, &given, &err);
    look_expect(n < 0 || given == size, "not all is handed on");
}

static inline void look_at_node(struct ckpt_views *v, struct ckpt_tree *t, uint32_t node)
{
    struct ckpt_buf name = CKPT_BUF_INIT;
    struct ckpt_err err = {0};
    ckpt_tree_name(t, node, &name);
    ckpt_buf_addc(&name, 0);
    uint32_t found;
    enum ckpt_view view;
    const char *slice;
    size_t slice_len;
    look_expect(name.len > 1 && name.len <= 256 && !memchr(name.data, '/', name.len) &&
                    strlen((char *)name.data) == name.len - 1,
                "a bad name");
    look_expect(ckpt_view_lookup(t, t->nodes[node].parent, (char *)name.data, &found, &view, &slice, &slice_len) == 0 &&
                    found == node && view == CKPT_VIEW_LISTED,
                "a listed name is not found");
    ckpt_buf_clear(&name);
    enum ckpt_node_kind kind = t->nodes[node].kind;
    if (kind == CKPT_NODE_DIR)
        return;
    look_at_view(v, t, node, CKPT_VIEW_LISTED);
    look_at_view(v, t, node, CKPT_VIEW_META);
    if (kind == CKPT_NODE_BLOB)
        return;
    look_at_view(v, t, node, CKPT_VIEW_RAW);
    if (kind == CKPT_NODE_VALUE)
        look_at_view(v, t, node, CKPT_VIEW_NPY);
    struct ckpt_array *a;
    if (kind == CKPT_NODE_ARRAY && ckpt_tree_layout(t, node, &a, &err) == 0) {
        struct ckpt_selection sel;
        struct ckpt_viewed f = {t, node, CKPT_VIEW_SLICE, &sel};
        uint8_t buf[64];
        bool small = a->nbytes <= LOOK_SMALL && a->chunk_bytes <= LOOK_SMALL;
        ckpt_array_unref(a);
        if (small)
            look_at_view(v, t, node, CKPT_VIEW_TEXT);
        if (small && ckpt_view_select(t, node, "::-2", 4, &sel, &err) == 0)
            look_expect(ckpt_view_read(v, &f, buf, sizeof buf, 0, &err) <= (ssize_t)sizeof buf, "a read is long");
    }
}

static inline void look_at(const struct ckpt_format *format, struct ckpt_backend *b, const char *name)
{
    static struct ckpt_pool *pool; /* threads are slow to make */
    struct ckpt_pins *pins = NULL;
    struct ckpt_cache *cache;
    struct ckpt_views views;
    struct ckpt_tree *t;
    struct ckpt_err err = {0};
    ckpt_log_setup(CKPT_LOG_ERROR, 0);
    look_expect((pool || ckpt_pool_new(1, &pool) == 0) && ckpt_pins_new(b, &pins) == 0, "no threads");
    look_expect(ckpt_cache_new(&(struct ckpt_cache_options){8 << 20, 0, "/tmp"}, pool, &cache) == 0, "no cache");
    look_expect(ckpt_views_init(&views, cache, "/tmp") == 0, "no views");
    int r = format->open(&(struct ckpt_opening){pins, name, cache}, &t, &err);
    look_expect(r == 0 || (err.code == -r && *err.text), "an item fails without a reason");
    if (r == 0) {
        for (uint32_t node = 1; node < t->count && node < LOOK_NODES; node++)
            look_at_node(&views, t, node);
        if (t->count < LOOK_NODES) {
            look_at_view(&views, t, 0, CKPT_VIEW_TREE);
            look_at_view(&views, t, 0, CKPT_VIEW_SAFETENSORS);
        }
        look_expect(ckpt_tree_memory(t) > 0, "no memory");
        ckpt_cache_drop_tree(cache, t->id);
        ckpt_tree_unref(t);
    }
    ckpt_views_clear(&views);
    struct ckpt_cache_stats st; /* what is decoded ahead holds its chunk: wait for it */
    do
        ckpt_cache_stats(cache, &st);
    while (st.memory && usleep(100) == 0);
    ckpt_cache_free(cache);
    ckpt_pins_unref(pins);
}

static inline void look_at_tree(struct ckpt_backend *b)
{
    look_at(&ckpt_orbax_format, b, "");
}

#endif
