/* SPDX-License-Identifier: Apache-2.0 */
#include "core/base/util.h"
#include "core/format/gguf/private.h"
#include "core/tree/rights.h"

/* --- a tensor --- */

/* From where its data begin to where those of the next one do, or the file ends. */
static uint64_t length_to_next(const struct gguf_part *part, const struct ckpt_file *file, uint64_t off)
{
    uint32_t lo = 0, hi = part->offset_count;
    while (lo < hi) { /* the first that begins later */
        uint32_t mid = lo + (hi - lo) / 2;
        if (part->offsets[mid] <= off)
            lo = mid + 1;
        else
            hi = mid;
    }
    uint64_t all = file->st.size > part->data ? file->st.size - part->data : 0;
    uint64_t end = lo < part->offset_count ? part->offsets[lo] : all;
    return end > off ? end - off : 0;
}

/* The tensor of a node, read again from the header. The caller unrefs the file. */
static int get_tensor(struct ckpt_tree *t, uint32_t node, const struct gguf_part **ret_part,
                      struct ckpt_file **ret_file, struct gguf_tensor *ret, struct ckpt_err *err)
{
    const struct gguf *g = t->priv;
    struct ckpt_buf name = CKPT_BUF_INIT;
    struct ckpt_file *file = NULL;
    uint64_t end;
    int r = 0;
    *ret_part = g->parts;
    if (g->range_count)
        r = ckpt_gguf_split_part(t, node, ret_part, &file, err);
    else
        file = ckpt_file_ref(g->parts->file);
    if (r < 0)
        return r;
    const struct gguf_part *part = *ret_part;
    r = ckpt_gguf_header_tensor(file, part->big_endian, t->nodes[node].ref, &name, ret, err);
    bool sized = r == 0 && ret->type && ret->type->block;
    if (r == 0 && !sized)
        ret->len = length_to_next(part, file, ret->off);
    if (r == 0 && (!ckpt_tree_is_named(t, node, (char *)name.data, name.len) ||
                   ckpt_add(part->data + ret->len, ret->off, &end) || end > file->st.size))
        r = -EUCLEAN;
    if (r == -EUCLEAN) /* it was right when it was opened */
        r = ckpt_fail(err, ESTALE, "the header was changed since it was opened");
    ckpt_buf_clear(&name);
    if (r < 0)
        ckpt_file_unref(file);
    else
        *ret_file = file;
    return r;
}

static bool is_array(const struct gguf_tensor *tensor)
{
    return tensor->type && tensor->type->block && tensor->type->dtype != CKPT_DT_OTHER;
}

static int gguf_layout(struct ckpt_tree *t, uint32_t node, struct ckpt_array **ret, struct ckpt_err *err)
{
    struct gguf *g = t->priv;
    const struct gguf_part *part;
    struct gguf_tensor tensor;
    struct ckpt_file *file;
    int r = get_tensor(t, node, &part, &file, &tensor, err);
    if (r < 0)
        return r;
    ckpt_file_unref(file);
    if (!is_array(&tensor))
        return ckpt_fail(err, ESTALE, "the header was changed since it was opened");
    return ckpt_recent_layouts_get(&g->layouts, tensor.type->dtype, part->big_endian, tensor.ndim, tensor.shape, ret,
                                   err);
}

static int gguf_blob(struct ckpt_tree *t, uint32_t node, struct ckpt_extent *ret, struct ckpt_err *err)
{
    const struct gguf_part *part;
    struct gguf_tensor tensor;
    struct ckpt_file *file;
    size_t len;
    int r;
    if (t->nodes[node].mark == GGUF_FILE_MARK) {
        const char *path = ckpt_tree_text(t, t->nodes[node].ref, &len);
        r = ckpt_pins_open(t->pins, path, &file);
        if (r < 0)
            return ckpt_fail(err, -r, "%s: %s", path, strerror(-r));
        *ret = (struct ckpt_extent){.file = file, .len = file->st.size};
        return 0;
    }
    r = get_tensor(t, node, &part, &file, &tensor, err);
    if (r == 0)
        *ret = (struct ckpt_extent){.file = file, .off = part->data + tensor.off, .len = tensor.len};
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

/* What a reader of a leaf in a folder needs open; of a single file that is the file anyway. */
static void gguf_pin(struct ckpt_tree *t, uint32_t node)
{
    struct ckpt_extent e = {0};
    bool in_folder = ((struct gguf *)t->priv)->range_count;
    if (in_folder && t->nodes[node].kind != CKPT_NODE_DIR && gguf_blob(t, node, &e, NULL) == 0)
        ckpt_extent_clear(&e);
}

static void describe_part(const struct ckpt_tree *t, const struct gguf_part *part, struct ckpt_buf *json)
{
    const struct gguf *g = t->priv;
    const char *shard = ckpt_shard_name(&g->shards, (uint32_t)(part - g->parts));
    ckpt_buf_adds(json, ",\"shard\":");
    ckpt_buf_add_json_string(json, shard, strlen(shard));
}

static void gguf_describe(struct ckpt_tree *t, uint32_t node, struct ckpt_buf *json)
{
    const struct gguf *g = t->priv;
    const struct gguf_part *part;
    struct gguf_tensor tensor;
    struct ckpt_file *file;
    const struct ckpt_node *n = &t->nodes[node];
    if (n->kind == CKPT_NODE_DIR || n->mark || get_tensor(t, node, &part, &file, &tensor, NULL) < 0)
        return;
    ckpt_file_unref(file);
    if (n->kind == CKPT_NODE_BLOB) {
        if (tensor.type)
            ckpt_buf_addf(json, ",\"dtype\":\"%s\",\"shape\":[", tensor.type->name);
        else
            ckpt_buf_addf(json, ",\"dtype\":\"type %u\",\"shape\":[", tensor.type_number);
        for (unsigned i = 0; i < tensor.ndim; i++)
            ckpt_buf_addf(json, "%s%llu", i ? "," : "", (unsigned long long)tensor.shape[i]);
        ckpt_buf_addc(json, ']');
    }
    if (g->range_count)
        describe_part(t, part, json);
}

static int gguf_rights(struct ckpt_tree *t, uint32_t node, bool whole, struct ckpt_rights *ret, struct ckpt_err *err)
{
    const struct gguf *g = t->priv;
    return g->range_count ? ckpt_rights_of_folder(t, node, whole, ret, err) : 1;
}

static size_t gguf_memory(const struct ckpt_tree *t)
{
    const struct gguf *g = t->priv;
    size_t sum = sizeof *g + g->part_count * sizeof *g->parts + g->range_count * sizeof *g->ranges;
    for (uint32_t i = 0; i < g->part_count; i++)
        sum += g->parts[i].offset_count * sizeof *g->parts->offsets;
    return sum + ckpt_shards_memory(&g->shards) + (t->metadata ? strlen(t->metadata) : 0);
}

static void gguf_close(struct ckpt_tree *t)
{
    struct gguf *g = t->priv;
    ckpt_recent_layouts_clear(&g->layouts);
    for (uint32_t i = 0; i < g->part_count; i++) {
        ckpt_file_unref(g->parts[i].file);
        free(g->parts[i].offsets);
    }
    ckpt_shards_clear(&g->shards);
    free(g->parts);
    free(g->ranges);
    free(g);
}

static const struct ckpt_tree_ops gguf_ops = {
    .name = "gguf",
    .layout = gguf_layout,
    .chunk = gguf_chunk,
    .stored = gguf_stored,
    .blob = gguf_blob,
    .rights = gguf_rights,
    .pin = gguf_pin,
    .describe = gguf_describe,
    .memory = gguf_memory,
    .close = gguf_close,
};

/* --- opening --- */

/* Offsets of all tensors, and whether the size of each is known. */
struct survey {
    uint64_t *offsets;
    uint32_t count;
    bool known;
};

static int note_offset(void *arg, const struct ckpt_buf *name, uint64_t place, const struct gguf_tensor *tensor)
{
    struct survey *s = arg;
    s->known &= tensor->type && tensor->type->block;
    s->offsets[s->count++] = tensor->off;
    return 0;
}

static int by_value(const void *pa, const void *pb)
{
    uint64_t a = *(const uint64_t *)pa, b = *(const uint64_t *)pb;
    return (a > b) - (a < b);
}

/* What is of a size that is not known takes the room to the next tensor, so it must be known where that begins. */
static int survey(struct gguf_part *part, struct gguf_header *h, struct ckpt_err *err)
{
    struct survey s = {.offsets = malloc(((size_t)h->tensors + 1) * sizeof *s.offsets), .known = true};
    int r = s.offsets ? ckpt_gguf_header_each(h, note_offset, &s) : ckpt_no_memory(err);
    if (r < 0 || s.known) {
        free(s.offsets);
        return r;
    }
    qsort(s.offsets, s.count, sizeof *s.offsets, by_value);
    part->offsets = s.offsets;
    part->offset_count = s.count;
    return 0;
}

int ckpt_gguf_part_open(struct gguf_part *part, struct ckpt_file *file, struct gguf_header *h,
                        struct ckpt_buf *metadata, struct ckpt_err *err)
{
    int r = ckpt_gguf_header_open(file, h, metadata, err);
    if (r < 0)
        return r;
    part->big_endian = h->big_endian;
    part->data = h->data;
    r = survey(part, h, err);
    if (r < 0)
        ckpt_gguf_header_close(h);
    return r;
}

static int add_tensor(void *arg, const struct ckpt_buf *name, uint64_t place, const struct gguf_tensor *tensor)
{
    struct gguf_builder *b = arg;
    uint32_t node;
    int r = ckpt_tree_add_named(b->tree, (char *)name->data, name->len, b->flat, b->round,
                                is_array(tensor) ? CKPT_NODE_ARRAY : CKPT_NODE_BLOB, &node, b->err);
    if (r < 1)
        return r;
    b->tree->nodes[node].ref = (uint32_t)place;
    if (b->names && ckpt_name_set_add(b->names, ckpt_name_hash((char *)name->data, name->len)) < 0)
        return ckpt_no_memory(b->err);
    return 0;
}

int ckpt_gguf_add_tensors(struct gguf_builder *b, struct gguf_header *h)
{
    return ckpt_gguf_header_each(h, add_tensor, b);
}

static int load(struct ckpt_tree *t, struct ckpt_file *file, bool flat, struct ckpt_err *err)
{
    struct gguf *g = t->priv;
    struct gguf_header h;
    struct gguf_builder b = {.tree = t, .flat = flat, .err = err};
    struct ckpt_buf metadata = CKPT_BUF_INIT;
    g->parts = calloc(1, sizeof *g->parts);
    if (!g->parts)
        return ckpt_no_memory(err);
    g->part_count = 1;
    g->parts->file = ckpt_file_ref(file);
    int r = ckpt_gguf_part_open(g->parts, file, &h, &metadata, err);
    if (r == 0) {
        for (; b.round < CKPT_NAME_ROUNDS && r == 0; b.round++)
            r = ckpt_gguf_add_tensors(&b, &h);
        ckpt_gguf_header_close(&h);
    }
    if (r == 0 && metadata.len && !(t->metadata = ckpt_buf_steal(&metadata, NULL)))
        r = ckpt_no_memory(err);
    ckpt_buf_clear(&metadata);
    return r < 0 ? r : ckpt_tree_finish(t, err);
}

int ckpt_gguf_tree_new(const struct ckpt_opening *o, struct ckpt_tree **ret, struct ckpt_err *err)
{
    struct gguf *g = calloc(1, sizeof *g);
    if (!g || ckpt_tree_new(&gguf_ops, o->pins, ret) < 0) {
        free(g);
        return ckpt_no_memory(err);
    }
    ckpt_recent_layouts_init(&g->layouts);
    (*ret)->priv = g;
    g->shards.tree = *ret;
    if (!o->flat)
        ckpt_tree_note_names(*ret);
    return 0;
}

static int gguf_open(const struct ckpt_opening *o, struct ckpt_tree **ret, struct ckpt_err *err)
{
    struct ckpt_tree *t;
    struct ckpt_file *file;
    if (!*o->name)
        return ckpt_gguf_split_open(o, ret, err);
    int r = ckpt_gguf_tree_new(o, &t, err);
    if (r < 0)
        return r;
    r = ckpt_pins_open(o->pins, o->name, &file);
    if (r < 0)
        r = ckpt_fail(err, -r, "%s", strerror(-r));
    else {
        r = load(t, file, o->flat, err);
        ckpt_file_unref(file);
    }
    if (r < 0)
        ckpt_fail_in(err, -r, "%s", o->name);
    return ckpt_tree_give(t, r, ret);
}

static int gguf_probe(struct ckpt_backend *dir, struct ckpt_probe *ret)
{
    bool is_split;
    int r = ckpt_gguf_split_probe(dir, &is_split);
    ret->bits = r == 0 && is_split ? 4 : 0;
    return r;
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
    .probe = gguf_probe,
    .open = gguf_open,
};
