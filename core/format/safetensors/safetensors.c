/* SPDX-License-Identifier: Apache-2.0 */
#include "core/format/safetensors/safetensors_private.h"

#include "core/base/util.h"
#include "core/format/safetensors/index.h"
#include "core/tree/rights.h"

/* --- a tensor --- */

/* A buffer without bytes has no data. */
static const char *text_of(const struct ckpt_buf *name)
{
    return name->data ? (char *)name->data : "";
}

/* Where the tensor of a node is, read again from its header. The caller unrefs the file. */
static int locate(struct ckpt_tree *t, uint32_t node, struct ckpt_file **ret_file, struct safetensors_tensor *ret,
                  struct ckpt_err *err)
{
    struct safetensors *s = t->priv;
    struct ckpt_buf name = {.max = SAFETENSORS_MAX_NAME};
    struct ckpt_file *f = NULL;
    uint64_t place = t->nodes[node].ref;
    int r = 0;
    if (s->file)
        f = ckpt_file_ref(s->file);
    else
        r = ckpt_safetensors_folder_locate(t, t->nodes[node].ref, &f, &place, err);
    if (r < 0)
        return r;
    r = ckpt_safetensors_header_tensor(f, place, &name, ret, err);
    bool is_same = r == 0 && ckpt_tree_is_named(t, node, text_of(&name), name.len);
    if (r == 0 && !is_same)
        r = -EUCLEAN;
    if (r == -EUCLEAN) /* it was right when it was opened */
        r = ckpt_fail(err, ESTALE, "the header was changed since it was opened");
    ckpt_buf_clear(&name);
    if (r < 0)
        ckpt_file_unref(f);
    else
        *ret_file = f;
    return r;
}

static int safetensors_layout(struct ckpt_tree *t, uint32_t node, struct ckpt_array **ret, struct ckpt_err *err)
{
    struct safetensors *s = t->priv;
    struct safetensors_tensor tensor;
    struct ckpt_file *f;
    int r = locate(t, node, &f, &tensor, err);
    if (r < 0)
        return r;
    ckpt_file_unref(f);
    if (tensor.ndim > CKPT_MAX_DIMS)
        return ckpt_layout_unsupported(tensor.type, CKPT_MAX_DIMS, tensor.shape, "an array of more than 32 dimensions",
                                       ret, err);
    return ckpt_recent_layouts_get(&s->layouts, tensor.dtype, false, (unsigned)tensor.ndim, tensor.shape, ret, err);
}

/* A file beside the shards. */
static int file_beside(struct ckpt_tree *t, uint32_t node, struct ckpt_extent *ret, struct ckpt_err *err)
{
    size_t len;
    struct ckpt_file *f;
    const char *path = ckpt_tree_text(t, t->nodes[node].ref, &len);
    int r = ckpt_pins_open(t->pins, path, &f);
    if (r < 0)
        return ckpt_fail(err, -r, "%s: %s", path, r == -EUCLEAN ? CKPT_LINK_OUT : strerror(-r));
    *ret = (struct ckpt_extent){.file = f, .len = f->st.size};
    return 0;
}

static int safetensors_blob(struct ckpt_tree *t, uint32_t node, struct ckpt_extent *ret, struct ckpt_err *err)
{
    struct safetensors_tensor tensor;
    struct ckpt_file *f;
    if (t->nodes[node].mark == SAFETENSORS_FILE_MARK)
        return file_beside(t, node, ret, err);
    int r = locate(t, node, &f, &tensor, err);
    if (r == 0)
        *ret = (struct ckpt_extent){.file = f, .off = tensor.off, .len = tensor.len};
    return r;
}

/* All elements are one chunk. */
static int safetensors_chunk(struct ckpt_tree *t, uint32_t node, const struct ckpt_array *a, uint64_t index,
                             struct ckpt_extent *ret, struct ckpt_err *err)
{
    return safetensors_blob(t, node, ret, err);
}

static int safetensors_stored(struct ckpt_tree *t, uint32_t node, const struct ckpt_array *a, uint64_t *ret,
                              struct ckpt_err *err)
{
    *ret = a->nbytes;
    return 0;
}

/* What a reader of a leaf in a folder needs open; of a single file that is the file anyway. */
static void safetensors_pin(struct ckpt_tree *t, uint32_t node)
{
    const struct safetensors *s = t->priv;
    struct ckpt_extent e = {0};
    bool is_in_folder = !s->file && t->nodes[node].kind != CKPT_NODE_DIR;
    if (is_in_folder && safetensors_blob(t, node, &e, NULL) == 0)
        ckpt_extent_clear(&e);
}

static void safetensors_describe(struct ckpt_tree *t, uint32_t node, struct ckpt_buf *json)
{
    const struct safetensors *s = t->priv;
    struct safetensors_tensor tensor;
    struct ckpt_file *f;
    const struct ckpt_node *n = &t->nodes[node];
    if (n->kind == CKPT_NODE_DIR || n->mark == SAFETENSORS_FILE_MARK)
        return;
    if (n->kind == CKPT_NODE_BLOB && locate(t, node, &f, &tensor, NULL) == 0) {
        ckpt_file_unref(f);
        ckpt_buf_addf(json, ",\"dtype\":\"%s\",\"shape\":[", tensor.type);
        for (unsigned i = 0; i < CKPT_MIN(tensor.ndim, (uint64_t)CKPT_MAX_DIMS); i++)
            ckpt_buf_addf(json, "%s%llu", i ? "," : "", (unsigned long long)tensor.shape[i]);
        ckpt_buf_addc(json, ']');
    }
    if (s->file)
        return;
    const char *shard = ckpt_shard_name(&s->shards, s->shards.entries[n->ref].shard);
    ckpt_buf_adds(json, ",\"shard\":");
    ckpt_buf_add_json_string(json, shard, strlen(shard));
}

static int safetensors_rights(struct ckpt_tree *t, uint32_t node, bool whole, struct ckpt_rights *ret,
                              struct ckpt_err *err)
{
    const struct safetensors *s = t->priv;
    return s->file ? 1 : ckpt_rights_of_folder(t, node, whole, ret, err);
}

static size_t safetensors_memory(const struct ckpt_tree *t)
{
    const struct safetensors *s = t->priv;
    return sizeof *s + ckpt_shards_memory(&s->shards) + (t->metadata ? strlen(t->metadata) : 0);
}

static void safetensors_close(struct ckpt_tree *t)
{
    struct safetensors *s = t->priv;
    ckpt_recent_layouts_clear(&s->layouts);
    ckpt_file_unref(s->file);
    ckpt_shards_clear(&s->shards);
    free(s);
}

/* --- opening --- */

static const struct ckpt_tree_ops safetensors_ops;

int ckpt_safetensors_tree_new(const struct ckpt_opening *o, struct ckpt_tree **ret, struct ckpt_err *err)
{
    struct safetensors *s = calloc(1, sizeof *s);
    if (!s || ckpt_tree_new(&safetensors_ops, o->pins, ret) < 0) {
        free(s);
        return ckpt_no_memory(err);
    }
    ckpt_recent_layouts_init(&s->layouts);
    (*ret)->priv = s;
    if (!o->flat)
        ckpt_tree_note_names(*ret);
    return 0;
}

int ckpt_safetensors_set_metadata(struct ckpt_tree *t, struct ckpt_buf *json, struct ckpt_err *err)
{
    if (!json->len)
        return 0;
    t->metadata = ckpt_buf_steal(json, NULL);
    return t->metadata ? 0 : ckpt_no_memory(err);
}

struct builder {
    struct ckpt_tree *tree;
    bool flat;
    enum ckpt_name_round round;
    struct ckpt_err *err;
};

static int add_tensor(void *arg, const struct ckpt_buf *name, uint64_t place, const struct safetensors_tensor *tensor)
{
    struct builder *b = arg;
    uint32_t node;
    enum ckpt_node_kind kind = tensor->packed ? CKPT_NODE_BLOB : CKPT_NODE_ARRAY;
    int r = ckpt_tree_add_named(b->tree, text_of(name), name->len, b->flat, b->round, kind, &node, b->err);
    if (r == 1)
        b->tree->nodes[node].ref = (uint32_t)place;
    return r < 0 ? r : 0;
}

static int load(struct ckpt_tree *t, struct ckpt_file *file, bool flat, struct ckpt_err *err)
{
    struct safetensors_header h;
    struct builder b = {.tree = t, .flat = flat, .err = err};
    struct ckpt_buf metadata = {.max = SAFETENSORS_MAX_METADATA + 1};
    int r = ckpt_safetensors_header_open(file, &h, err);
    if (r < 0)
        return r;
    r = ckpt_safetensors_header_check(&h, &metadata, err);
    for (; b.round < CKPT_NAME_ROUNDS && r == 0; b.round++)
        r = ckpt_safetensors_header_each(&h, add_tensor, &b, err);
    ckpt_safetensors_header_close(&h);
    if (r == 0)
        r = ckpt_safetensors_set_metadata(t, &metadata, err);
    ckpt_buf_clear(&metadata);
    return r < 0 ? r : ckpt_tree_finish(t, err);
}

static int file_open(const struct ckpt_opening *o, struct ckpt_tree **ret, struct ckpt_err *err)
{
    struct ckpt_tree *t;
    int r = ckpt_safetensors_tree_new(o, &t, err);
    if (r < 0)
        return r;
    struct safetensors *s = t->priv;
    r = ckpt_pins_open(o->pins, o->name, &s->file);
    r = r < 0 ? ckpt_fail(err, -r, "%s", strerror(-r)) : load(t, s->file, o->flat, err);
    if (r < 0) {
        ckpt_tree_unref(t);
        return ckpt_fail_in(err, -r, "%s", o->name);
    }
    *ret = t;
    return 0;
}

static int safetensors_open(const struct ckpt_opening *o, struct ckpt_tree **ret, struct ckpt_err *err)
{
    return *o->name ? file_open(o, ret, err) : ckpt_safetensors_folder_open(o, ret, err);
}

static int safetensors_probe(struct ckpt_backend *dir, struct ckpt_probe *ret)
{
    bool has_index;
    int r = ckpt_shards_probe(dir, SAFETENSORS_INDEX, NULL, &has_index);
    ret->bits = r == 0 && has_index ? 16 : 0;
    return r;
}

static const char *const safetensors_suffixes[] = {".safetensors", ".sft", NULL};

/* The length of a header that the file has room for, and a JSON object of members. */
static unsigned safetensors_begins(const struct ckpt_content *c)
{
    if (c->len < 10 || c->head[8] != '{' || !strchr("\"} \t\r\n", c->head[9]))
        return 0;
    uint64_t len = ckpt_le64(c->head);
    return len >= 2 && len <= SAFETENSORS_MAX_HEADER && len <= c->file->st.size - 8 ? 32 : 0;
}

/* A length or a header as they should be; text has neither, and most binary files have not. */
static bool safetensors_is_damaged(const struct ckpt_content *c)
{
    uint8_t first[8] = {0};
    memcpy(first, c->head, CKPT_MIN(c->len, sizeof first));
    uint64_t len = ckpt_le64(first);
    if (c->len < sizeof first)
        return len <= SAFETENSORS_MAX_HEADER;
    if (c->len > sizeof first && c->head[8] == '{')
        return true;
    return len <= SAFETENSORS_MAX_HEADER && len <= c->file->st.size - 8;
}

static const struct ckpt_tree_ops safetensors_ops = {
    .name = "safetensors",
    .layout = safetensors_layout,
    .chunk = safetensors_chunk,
    .stored = safetensors_stored,
    .blob = safetensors_blob,
    .rights = safetensors_rights,
    .pin = safetensors_pin,
    .describe = safetensors_describe,
    .memory = safetensors_memory,
    .close = safetensors_close,
};

const struct ckpt_format ckpt_safetensors_format = {
    .name = "safetensors",
    .probe = safetensors_probe,
    .suffixes = safetensors_suffixes,
    .begins = safetensors_begins,
    .is_damaged = safetensors_is_damaged,
    .open = safetensors_open,
};
