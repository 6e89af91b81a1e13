/* SPDX-License-Identifier: Apache-2.0 */
#include "core/format/gguf/gguf.h"

#include "core/base/util.h"
#include "core/format/gguf/header.h"
#include "core/format/named.h"

#include <stdio.h>

/* A node's ref is the place of its tensor in the header. Immutable once opened, but for the recent layouts. */
struct gguf {
    struct ckpt_recent_layouts layouts;
    struct ckpt_file *file;
    bool big_endian;
    uint64_t data; /* where they begin in the file */
};

/* The tensor of a node, read again from the header. */
static int get_tensor(struct ckpt_tree *t, uint32_t node, struct gguf_tensor *ret, struct ckpt_err *err)
{
    const struct gguf *g = t->priv;
    struct ckpt_buf name = CKPT_BUF_INIT;
    uint64_t end;
    int r = ckpt_gguf_header_tensor(g->file, g->big_endian, t->nodes[node].ref, &name, ret, err);
    if (r == 0 && (!ckpt_tree_is_named(t, node, (char *)name.data, name.len) ||
                   ckpt_add(g->data + ret->len, ret->off, &end) || end > g->file->st.size))
        r = -EUCLEAN;
    if (r == -EUCLEAN) /* it was right when it was opened */
        r = ckpt_fail(err, ESTALE, "the header was changed since it was opened");
    ckpt_buf_clear(&name);
    return r;
}

static bool is_array(const struct gguf_tensor *tensor)
{
    return !tensor->type || !tensor->type->block || tensor->type->dtype != CKPT_DT_OTHER;
}

static int gguf_layout(struct ckpt_tree *t, uint32_t node, struct ckpt_array **ret, struct ckpt_err *err)
{
    struct gguf *g = t->priv;
    struct gguf_tensor tensor;
    char type[32], why[96];
    int r = get_tensor(t, node, &tensor, err);
    if (r < 0)
        return r;
    if (tensor.type && tensor.type->block)
        return ckpt_recent_layouts_get(&g->layouts, tensor.type->dtype, g->big_endian, tensor.ndim, tensor.shape, ret,
                                       err);
    snprintf(type, sizeof type, "type %u", tensor.type_number);
    snprintf(why, sizeof why, "tensors of %s%s have a size that is not known", tensor.type ? "type " : "",
             tensor.type ? tensor.type->name : type);
    return ckpt_layout_unsupported(tensor.type ? tensor.type->name : type, tensor.ndim, tensor.shape, why, ret, err);
}

static int gguf_blob(struct ckpt_tree *t, uint32_t node, struct ckpt_extent *ret, struct ckpt_err *err)
{
    const struct gguf *g = t->priv;
    struct gguf_tensor tensor;
    int r = get_tensor(t, node, &tensor, err);
    if (r == 0)
        *ret = (struct ckpt_extent){.file = ckpt_file_ref(g->file), .off = g->data + tensor.off, .len = tensor.len};
    return r;
}

/* All elements are one chunk. */
static int gguf_chunk(struct ckpt_tree *t, uint32_t node, const struct ckpt_array *a, uint64_t index,
                      struct ckpt_extent *ret, struct ckpt_err *err)
{
    return gguf_blob(t, node, ret, err);
}

static int gguf_stored(struct ckpt_tree *t, uint32_t node, const struct ckpt_array *a, uint64_t *ret,
                       struct ckpt_err *err)
{
    *ret = a->nbytes;
    return 0;
}

static void gguf_describe(struct ckpt_tree *t, uint32_t node, struct ckpt_buf *json)
{
    struct gguf_tensor tensor;
    if (t->nodes[node].kind != CKPT_NODE_BLOB || get_tensor(t, node, &tensor, NULL) < 0 || !tensor.type)
        return;
    ckpt_buf_addf(json, ",\"dtype\":\"%s\",\"shape\":[", tensor.type->name);
    for (unsigned i = 0; i < tensor.ndim; i++)
        ckpt_buf_addf(json, "%s%llu", i ? "," : "", (unsigned long long)tensor.shape[i]);
    ckpt_buf_addc(json, ']');
}

static size_t gguf_memory(const struct ckpt_tree *t)
{
    return sizeof(struct gguf) + (t->metadata ? strlen(t->metadata) : 0);
}

static void gguf_close(struct ckpt_tree *t)
{
    struct gguf *g = t->priv;
    ckpt_recent_layouts_clear(&g->layouts);
    ckpt_file_unref(g->file);
    free(g);
}

static const struct ckpt_tree_ops gguf_ops = {
    .name = "gguf",
    .layout = gguf_layout,
    .chunk = gguf_chunk,
    .stored = gguf_stored,
    .blob = gguf_blob,
    .describe = gguf_describe,
    .memory = gguf_memory,
    .close = gguf_close,
};

/* --- opening --- */

struct builder {
    struct ckpt_tree *tree;
    bool flat;
    enum ckpt_name_round round;
    struct ckpt_err *err;
};

static int add_tensor(void *arg, const struct ckpt_buf *name, uint64_t place, const struct gguf_tensor *tensor)
{
    struct builder *b = arg;
    uint32_t node;
    int r = ckpt_tree_add_named(b->tree, (char *)name->data, name->len, b->flat, b->round,
                                is_array(tensor) ? CKPT_NODE_ARRAY : CKPT_NODE_BLOB, &node, b->err);
    if (r == 1)
        b->tree->nodes[node].ref = (uint32_t)place;
    return r < 0 ? r : 0;
}

static int load(struct ckpt_tree *t, bool flat, struct ckpt_err *err)
{
    struct gguf *g = t->priv;
    struct gguf_header h;
    struct builder b = {.tree = t, .flat = flat, .err = err};
    struct ckpt_buf metadata = CKPT_BUF_INIT;
    int r = ckpt_gguf_header_open(g->file, &h, &metadata, err);
    if (r == 0) {
        g->big_endian = h.big_endian;
        g->data = h.data;
        if (!flat)
            ckpt_tree_note_names(t);
        for (; b.round < CKPT_NAME_ROUNDS && r == 0; b.round++)
            r = ckpt_gguf_header_each(&h, add_tensor, &b);
        ckpt_gguf_header_close(&h);
    }
    if (r == 0 && metadata.len && !(t->metadata = ckpt_buf_steal(&metadata, NULL)))
        r = ckpt_no_memory(err);
    ckpt_buf_clear(&metadata);
    return r < 0 ? r : ckpt_tree_finish(t, err);
}

static int gguf_open(const struct ckpt_opening *o, struct ckpt_tree **ret, struct ckpt_err *err)
{
    struct ckpt_tree *t;
    struct gguf *g = calloc(1, sizeof *g);
    if (!g || ckpt_tree_new(&gguf_ops, o->pins, &t) < 0) {
        free(g);
        return ckpt_no_memory(err);
    }
    ckpt_recent_layouts_init(&g->layouts);
    t->priv = g;
    int r = ckpt_pins_open(o->pins, o->name, &g->file);
    r = r < 0 ? ckpt_fail(err, -r, "%s", strerror(-r)) : load(t, o->flat, err);
    if (r < 0) {
        ckpt_tree_unref(t);
        return ckpt_fail_in(err, -r, "%s", o->name);
    }
    *ret = t;
    return 0;
}

static const char *const gguf_suffixes[] = {".gguf", NULL};

static unsigned gguf_begins(const struct ckpt_content *c)
{
    return c->len >= 4 && !memcmp(c->head, "GGUF", 4) ? 32 : 0;
}

/* Cut before the end of its magic number, or with a version behind one that is damaged. */
static bool gguf_is_damaged(const struct ckpt_content *c)
{
    if (c->len < 8)
        return !memcmp(c->head, "GGUF", CKPT_MIN(c->len, (size_t)4));
    uint32_t version = ckpt_le32(c->head + 4);
    bool little = version && version <= 3;
    bool big = version && !(version & 0xffffff) && version >> 24 <= 3;
    return little || big;
}

const struct ckpt_format ckpt_gguf_format = {
    .name = "gguf",
    .suffixes = gguf_suffixes,
    .begins = gguf_begins,
    .is_damaged = gguf_is_damaged,
    .open = gguf_open,
};
