/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A checkpoint that is itself the source may be replaced under its name, go, and come back. Its node then gets another
 * id, by which those go on who have something of it open, and a new one is the top. Where there is nothing to be shown
 * the top is a node without a tree, whose `content` says why.
 *
 * The kernel remembers names right below the top for the refresh time, since nothing there is immutable. It remembers
 * what they named for longer, and with it all files of a checkpoint that was deleted: so the sweeper makes it let go of
 * them.
 */
#include "core/source/top.h"

#include "core/base/util.h"
#include "core/tree/key.h"

#include <stdio.h>

#define FORMER 16 /* that are told in one sweep */
#define SWEEPS                                                                                                         \
    2 /* in which the names of a former top are told: a look-up under way during the first may bring one back */

/* --- what is there now --- */

/* NULL: out of memory. */
static struct node *new_top(struct ckpt_source *src, const struct ckpt_entry *e)
{
    bool shown = e->kind == CKPT_ENTRY_TREE;
    struct node *n = ckpt_node_new(0, "", "", NODE_TREE, shown ? &e->st : &src->root->st);
    if (!n)
        return NULL;
    n->format = shown ? e->format : src->root->format;
    n->inside = src->file ? src->file : "";
    if (shown)
        return n;
    const char *why = e->hidden && *e->hidden ? e->hidden : "the source is not there any more";
    n->content = strdup(why);
    if (n->content)
        return n;
    free(n);
    return NULL;
}

static bool is_same(const struct node *a, const struct node *b)
{
    const char *why = node_absence(a), *other = node_absence(b);
    if (why || other)
        return why && other && !strcmp(why, other);
    bool same_file = a->ino == b->ino && a->st.btime_ns == b->st.btime_ns;
    return same_file && a->format == b->format && (a->st.type == CKPT_FT_DIR || a->st.size == b->st.size);
}

static void take(struct ckpt_source *src, struct node *fresh)
{
    const char *why = node_absence(fresh);
    if (is_same(src->root, fresh)) {
        ckpt_node_free(src, fresh);
        return;
    }
    bool grows = !why && fresh->st.ino == src->root->st.ino && fresh->st.dev == src->root->st.dev;
    if (!grows) /* one that is being written would fill the log */
        ckpt_log(CKPT_LOG_INFO, "%s: %s", src->path, why ? why : "another checkpoint has the name now");
    pthread_mutex_lock(&src->lock);
    struct node *dead = ckpt_node_replace_top(src, fresh);
    pthread_mutex_unlock(&src->lock);
    if (dead)
        ckpt_node_free(src, dead);
}

/* Under look_lock. */
static void look(struct ckpt_source *src)
{
    const char *path = src->file ? src->file : "";
    struct ckpt_listing *l;
    if (ckpt_listing_top_current(src->backend, path, src->top))
        return;
    if (ckpt_listing_make_top(src->backend, path, src->top, &l) < 0)
        return; /* what it is cannot be told: it is as it was, until the next look */
    struct node *fresh = new_top(src, l->entries);
    if (!fresh) {
        ckpt_listing_unref(l);
        return;
    }
    ckpt_listing_unref(src->top);
    src->top = l;
    take(src, fresh);
}

static bool is_fresh(struct ckpt_source *src)
{
    return ckpt_monotonic_ns() - atomic_load(&src->looked_ns) < (int64_t)(src->opt.refresh * 1e9);
}

void ckpt_source_look(struct ckpt_source *src, bool now)
{
    if (!src->top || (!now && is_fresh(src)))
        return;
    CKPT_GUARD(&src->look_lock);
    if (!now && is_fresh(src))
        return;
    int64_t begin = ckpt_monotonic_ns();
    look(src);
    atomic_store(&src->looked_ns, begin);
}

int ckpt_source_watch(struct ckpt_source *src)
{
    const char *path = src->file ? src->file : "";
    atomic_store(&src->looked_ns, ckpt_monotonic_ns());
    return ckpt_listing_of_top(path, &src->root->st, src->root->format, &src->top);
}

/* --- what was there before: the names by which the kernel may know something of it --- */

struct telling {
    struct ckpt_source *src;
    struct node *node;
    void (*gone)(void *arg, uint64_t parent, const char *name);
    void *arg;
};

/* False: nothing of it is known any more. */
static bool is_known(const struct telling *t)
{
    CKPT_GUARD(&t->src->lock);
    return t->node->inner > 0;
}

static void tell(const struct telling *t, const char *key, size_t len, const char *suffix)
{
    char name[CKPT_NAME_MAX + 1];
    if (snprintf(name, sizeof name, "%.*s%s", (int)len, key, suffix) >= (int)sizeof name)
        return;
    if (ckpt_source_is_reserved(CKPT_ROOT, name)) { /* it is listed escaped */
        memmove(name + strlen("%2E"), name + 1, strlen(name));
        memcpy(name, "%2E", strlen("%2E"));
    }
    t->gone(t->arg, CKPT_ROOT, name);
}

/* As a leaf is listed, without .npy and .json. */
static size_t key_length(const char *name)
{
    bool has_suffix = ckpt_has_suffix(name, ".npy") || ckpt_has_suffix(name, ".json");
    return has_suffix ? (size_t)(strrchr(name, '.') - name) : strlen(name);
}

static void tell_views(const struct telling *t, const char *name)
{
    static const char *const suffixes[] = {
        "", ".npy", ".txt", ".meta.json", ".safetensors", ".tree", ".tree.safetensors"};
    size_t len = strlen(name), key = key_length(name);
    for (size_t i = 0; i < sizeof suffixes / sizeof *suffixes; i++) {
        tell(t, name, key, suffixes[i]);
        if (key != len)
            tell(t, name, len, suffixes[i]);
    }
}

static void tell_slices(const struct telling *t, const struct ckpt_tree *tree)
{
    for (uint32_t i = 0;; i++) {
        char view[CKPT_NAME_MAX + 1];
        pthread_mutex_lock(&t->src->lock);
        bool more = t->node->opened && i < t->node->opened->slice_count;
        const struct slice *s = more ? ckpt_node_slice(t->node, i) : NULL;
        uint32_t node = s ? s->node : CKPT_NO_NODE;
        if (s)
            snprintf(view, sizeof view, "@%s%s", s->text, s->npy ? ".npy" : "");
        pthread_mutex_unlock(&t->src->lock);
        if (!more)
            return;
        if (!s || node >= tree->count)
            continue;
        struct ckpt_buf name = CKPT_BUF_INIT;
        ckpt_tree_name(tree, node, &name);
        ckpt_buf_addc(&name, 0);
        if (!ckpt_buf_error(&name)) /* one further down is told by that of its directory */
            tell(t, (char *)name.data, key_length((char *)name.data), view);
        ckpt_buf_clear(&name);
    }
}

static void tell_names(const struct telling *t, const struct ckpt_tree *tree, bool views)
{
    struct ckpt_buf name = CKPT_BUF_INIT;
    for (uint32_t i = tree->nodes[0].first; i != CKPT_NO_NODE && is_known(t); i = tree->nodes[i].next) {
        name.len = 0;
        ckpt_tree_name(tree, i, &name);
        ckpt_buf_addc(&name, 0);
        if (ckpt_buf_error(&name))
            break;
        if (views)
            tell_views(t, (char *)name.data);
        else
            tell(t, (char *)name.data, name.len - 1, "");
    }
    ckpt_buf_clear(&name);
}

static void tell_all(const struct telling *t)
{
    struct ckpt_tree *tree;
    if (ckpt_source_tree(t->src, t->node, &tree, NULL) < 0)
        return;
    tell_names(t, tree, false);
    if (is_known(t)) { /* somebody has a file open, or looked at what is not listed */
        t->gone(t->arg, CKPT_ROOT, ".tree.json");
        t->gone(t->arg, CKPT_ROOT, ".safetensors");
        tell_slices(t, tree);
        tell_names(t, tree, true);
    }
    ckpt_tree_unref(tree);
}

/* Some that are not told often enough yet; they are kept. */
static unsigned take_former(struct ckpt_source *src, struct node *ret[FORMER])
{
    unsigned n = 0;
    CKPT_GUARD(&src->lock);
    for (struct opened *o = src->newest; o && n < FORMER; o = o->older) {
        bool is_former = node_is_top(o->node) && o->node != src->root;
        if (!is_former || o->told == SWEEPS)
            continue;
        o->told++;
        o->node->uses++;
        ret[n++] = o->node;
    }
    return n;
}

void ckpt_source_tell_former(struct ckpt_source *src, void (*gone)(void *arg, uint64_t parent, const char *name),
                             void *arg)
{
    struct node *former[FORMER];
    unsigned count = take_former(src, former);
    for (unsigned i = 0; i < count; i++) {
        tell_all(&(struct telling){src, former[i], gone, arg});
        ckpt_node_release(src, former[i]);
    }
}
