/* SPDX-License-Identifier: Apache-2.0 */
#include "core/format/pytorch/folder.h"
#include "core/format/pytorch/script.h"
#include "core/format/pytorch/torch.h"

#include "core/base/util.h"

static size_t record_of(const struct ckpt_tree *t, uint32_t node)
{
    return t->nodes[node].ref;
}

/* The archive that a tensor's storage is in; to be closed. */
static int archive_of(struct ckpt_tree *t, const struct torch_tensor *tensor, struct torch_archive *ret,
                      struct ckpt_err *err)
{
    struct torch *torch = t->priv;
    struct torch_piece piece;
    bool own = !tensor->archive || tensor->archive == TORCH_CONSTANTS;
    if (tensor->archive == TORCH_RANGES) {
        *ret = (struct torch_archive){.ranges = ckpt_file_ref(torch->file)};
        return 0;
    }
    if (!own && tensor->archive >= TORCH_SHARD)
        return ckpt_torch_folder_archive(t, (uint32_t)(tensor->archive - TORCH_SHARD), ret, err);
    if (!own) {
        ckpt_torch_get_piece(&torch->records, tensor->archive - 1, &piece);
        return ckpt_torch_piece_open(t, &piece, ret, err);
    }
    *ret = ckpt_torch_archive_ref(&torch->archive);
    return 0;
}

static int tensor_layout(struct ckpt_tree *t, size_t record, struct ckpt_array **ret, struct ckpt_err *err)
{
    struct torch *torch = t->priv;
    struct torch_tensor tensor;
    struct torch_archive archive;
    ckpt_torch_get_tensor(&torch->records, record, &tensor);
    if (tensor.fault)
        return ckpt_torch_fault_layout(tensor.fault, tensor.type, ret, err);
    int r = archive_of(t, &tensor, &archive, err);
    if (r < 0)
        return r;
    r = ckpt_torch_archive_layout(&archive, &tensor, ret, err);
    ckpt_torch_archive_close(&archive);
    return r;
}

static int complex_layout(struct ckpt_array **ret, struct ckpt_err *err)
{
    *ret = ckpt_array_new(CKPT_DT_C128, 0, NULL);
    return *ret ? ckpt_array_settle(*ret, NULL) : ckpt_no_memory(err);
}

/* The type of an array by NumPy's name for it. */
static int named_layout(const struct ckpt_tree *t, const struct torch_numpy *np, struct ckpt_array **ret,
                        struct ckpt_err *err)
{
    struct ckpt_npy npy;
    size_t len;
    int r = ckpt_npy_parse_descr(ckpt_tree_text(t, np->descr, &len), &npy, err);
    if (r < 0)
        return r;
    npy.fortran = false;
    npy.header = 0;
    npy.ndim = np->ndim;
    memcpy(npy.shape, np->shape, sizeof np->shape);
    r = ckpt_npy_settle(&npy, err);
    if (r < 0)
        return r;
    r = ckpt_array_of_npy(&npy, ret);
    return r == -ENOMEM ? ckpt_no_memory(err) : r < 0 ? ckpt_fail(err, -r, "its shape is impossible") : 0;
}

static int numpy_layout(struct ckpt_tree *t, size_t record, struct ckpt_array **ret, struct ckpt_err *err)
{
    struct torch *torch = t->priv;
    struct torch_numpy np;
    struct ckpt_array *a;
    unsigned order[CKPT_MAX_DIMS];
    ckpt_torch_get_numpy(&torch->records, record, &np);
    if (np.dtype == CKPT_DT_OTHER) {
        int r = named_layout(t, &np, &a, err);
        if (r < 0)
            return r;
    } else {
        a = ckpt_array_new(np.dtype, np.ndim, np.shape);
        if (!a)
            return ckpt_no_memory(err);
        a->big_endian = np.big_endian;
    }
    for (unsigned i = 0; i < np.ndim; i++)
        order[i] = np.order[i];
    if (!a->unsupported && ckpt_array_settle(a, order) < 0) {
        ckpt_array_unref(a);
        return ckpt_fail(err, EUCLEAN, "its shape is impossible");
    }
    *ret = a;
    return 0;
}

/* A piece could not be opened when the tree was made, so that it is not known what is in it. */
static int piece_layout(struct ckpt_tree *t, size_t record, struct ckpt_err *err)
{
    struct torch_graph g;
    int r = ckpt_torch_piece_load(t, record, &g, NULL, err);
    if (r < 0)
        return r;
    ckpt_torch_graph_clear(&g);
    return ckpt_fail(err, ESTALE, "it could not be read when the checkpoint was opened");
}

int ckpt_torch_layout(struct ckpt_tree *t, uint32_t node, struct ckpt_array **ret, struct ckpt_err *err)
{
    struct torch *torch = t->priv;
    size_t record = record_of(t, node);
    int r;
    switch (ckpt_torch_record_kind(&torch->records, record)) {
    case TORCH_R_TENSOR:
        r = tensor_layout(t, record, ret, err);
        break;
    case TORCH_R_COMPLEX:
        r = complex_layout(ret, err);
        break;
    case TORCH_R_SHARDED:
        r = ckpt_torch_boxes_layout(t, record, ret, err);
        break;
    case TORCH_R_NUMPY:
        r = numpy_layout(t, record, ret, err);
        break;
    case TORCH_R_LOST:
        return ckpt_torch_folder_lost(t, ckpt_torch_get_lost(&torch->records, record), err);
    default:
        return piece_layout(t, record, err);
    }
    if (r == 0)
        *ret = ckpt_layouts_share(torch->layouts, *ret);
    return r;
}

static int complex_chunk(const struct torch *torch, size_t record, struct ckpt_extent *ret, struct ckpt_err *err)
{
    uint8_t *bytes = malloc(16);
    if (!bytes)
        return ckpt_no_memory(err);
    ckpt_torch_get_complex(&torch->records, record, bytes);
    *ret = (struct ckpt_extent){.len = 16, .bytes = bytes};
    return 0;
}

static int tensor_chunk(struct ckpt_tree *t, size_t record, struct ckpt_extent *ret, struct ckpt_err *err)
{
    struct torch *torch = t->priv;
    struct torch_tensor tensor;
    struct torch_archive archive;
    ckpt_torch_get_tensor(&torch->records, record, &tensor);
    int r = archive_of(t, &tensor, &archive, err);
    if (r < 0)
        return r;
    r = ckpt_torch_archive_chunk(&archive, &tensor, ret, err);
    ckpt_torch_archive_close(&archive);
    return r;
}

/* --- bytes that are kept in the tree's strings, as a file: they may be many, and are read piece by piece --- */

struct kept_file {
    struct ckpt_file base;
    struct ckpt_tree *tree; /* referenced */
    const char *bytes;
};

static ssize_t kept_read(struct ckpt_file *base, void *buf, size_t len, uint64_t off)
{
    const struct kept_file *f = (const struct kept_file *)base;
    if (off >= base->st.size)
        return 0;
    len = (size_t)CKPT_MIN((uint64_t)len, base->st.size - off);
    memcpy(buf, f->bytes + off, len);
    return (ssize_t)len;
}

static void kept_close(struct ckpt_file *base)
{
    ckpt_tree_unref(((struct kept_file *)base)->tree);
    free(base);
}

static const struct ckpt_file_ops kept_ops = {
    .name = "bytes of a pickle",
    .derived = true,
    .read = kept_read,
    .close = kept_close,
};

static int open_kept(struct ckpt_tree *t, const char *bytes, size_t len, struct ckpt_extent *ret, struct ckpt_err *err)
{
    struct kept_file *f = calloc(1, sizeof *f);
    if (!f)
        return ckpt_no_memory(err);
    f->base = (struct ckpt_file){.ops = &kept_ops, .st = {.type = CKPT_FT_FILE, .size = len}};
    atomic_init(&f->base.refs, 1);
    f->tree = ckpt_tree_ref(t);
    f->bytes = bytes;
    *ret = (struct ckpt_extent){.file = &f->base, .len = len};
    return 0;
}

static int numpy_chunk(struct ckpt_tree *t, size_t record, const struct ckpt_array *a, struct ckpt_extent *ret,
                       struct ckpt_err *err)
{
    const struct torch *torch = t->priv;
    struct torch_numpy np;
    size_t len;
    ckpt_torch_get_numpy(&torch->records, record, &np);
    if (np.off) {
        *ret = (struct ckpt_extent){.file = ckpt_file_ref(torch->file), .off = np.off, .len = a->nbytes};
        return 0;
    }
    const char *data = ckpt_tree_text(t, np.data, &len);
    return open_kept(t, data, len, ret, err);
}

/* --- leaves --- */

int ckpt_torch_chunk(struct ckpt_tree *t, uint32_t node, const struct ckpt_array *a, uint64_t index,
                     struct ckpt_extent *ret, struct ckpt_err *err)
{
    struct torch *torch = t->priv;
    size_t record = record_of(t, node);
    switch (ckpt_torch_record_kind(&torch->records, record)) {
    case TORCH_R_TENSOR:
        return tensor_chunk(t, record, ret, err);
    case TORCH_R_COMPLEX:
        return complex_chunk(torch, record, ret, err);
    case TORCH_R_NUMPY:
        return numpy_chunk(t, record, a, ret, err);
    default:
        return ckpt_torch_boxes_chunk(t, record, ret, err);
    }
}

int ckpt_torch_stored(struct ckpt_tree *t, uint32_t node, const struct ckpt_array *a, uint64_t *ret,
                      struct ckpt_err *err)
{
    struct torch *torch = t->priv;
    struct torch_tensor tensor;
    struct torch_archive archive;
    *ret = a ? a->nbytes : 0;
    if (t->nodes[node].kind != CKPT_NODE_ARRAY ||
        ckpt_torch_record_kind(&torch->records, record_of(t, node)) != TORCH_R_TENSOR)
        return 0;
    ckpt_torch_get_tensor(&torch->records, record_of(t, node), &tensor);
    if (tensor.fault) {
        *ret = 0;
        return 0;
    }
    int r = archive_of(t, &tensor, &archive, err);
    if (r < 0)
        return r;
    *ret = ckpt_torch_archive_stored(&archive, &tensor, a);
    ckpt_torch_archive_close(&archive);
    return 0;
}

int ckpt_torch_blob(struct ckpt_tree *t, uint32_t node, struct ckpt_extent *ret, struct ckpt_err *err)
{
    if (t->nodes[node].mark == TORCH_RANGE_MARK) {
        const struct torch *torch = t->priv;
        *ret = (struct ckpt_extent){.file = ckpt_file_ref(torch->file)};
        ckpt_torch_get_range(&torch->records, record_of(t, node), &ret->off, &ret->len);
        return 0;
    }
    if (t->nodes[node].mark == TORCH_MEMBER_MARK)
        return ckpt_torch_script_blob(t, node, ret, err);
    size_t len;
    const char *text = ckpt_tree_text(t, t->nodes[node].ref, &len);
    if (t->nodes[node].mark != TORCH_FILE_MARK)
        return open_kept(t, text, len, ret, err);
    struct ckpt_file *f;
    int r = ckpt_pins_open(t->pins, text, &f);
    if (r < 0)
        return ckpt_fail(err, -r, "%s: %s", text, strerror(-r));
    *ret = (struct ckpt_extent){.file = f, .len = f->st.size};
    return 0;
}

static void describe_tensor(const struct torch *torch, const struct torch_tensor *t, struct ckpt_buf *json)
{
    const char *folder = t->archive == TORCH_CONSTANTS ? "constants" : "data";
    if (t->archive != TORCH_RANGES)
        ckpt_buf_addf(json, ",\"storage\":\"%s/%llu\"", folder, (unsigned long long)t->key);
    ckpt_buf_addf(json, ",\"storage_offset\":%llu,\"stride\":[", (unsigned long long)t->offset);
    for (unsigned i = 0; i < t->ndim; i++)
        ckpt_buf_addf(json, "%s%llu", i ? "," : "", (unsigned long long)t->stride[i]);
    ckpt_buf_addc(json, ']');
    if (!ckpt_torch_in_shard(t))
        return;
    const char *shard = ckpt_shard_name(&torch->shards, (uint32_t)(t->archive - TORCH_SHARD));
    ckpt_buf_adds(json, ",\"shard\":");
    ckpt_buf_add_json_string(json, shard, strlen(shard));
}

/* How many pieces, and the first of them. */
static void describe_boxes(const struct ckpt_tree *t, size_t record, struct ckpt_buf *json)
{
    const struct torch *torch = t->priv;
    struct torch_sharded s;
    struct torch_box box;
    size_t at, len;
    ckpt_torch_get_sharded(&torch->records, record, &s, &at);
    ckpt_buf_addf(json, ",\"pieces\":%u,\"boxes\":[", s.boxes);
    for (uint32_t i = 0; i < s.boxes && i < 64; i++) {
        ckpt_torch_box_next(&torch->records, s.ndim, &at, &box);
        ckpt_buf_addf(json, "%s{\"offsets\":[", i ? "," : "");
        for (unsigned d = 0; d < s.ndim; d++)
            ckpt_buf_addf(json, "%s%llu", d ? "," : "", (unsigned long long)box.low[d]);
        ckpt_buf_adds(json, "],\"sizes\":[");
        for (unsigned d = 0; d < s.ndim; d++)
            ckpt_buf_addf(json, "%s%llu", d ? "," : "", (unsigned long long)box.size[d]);
        ckpt_buf_adds(json, "],\"file\":");
        const char *file = ckpt_tree_text(t, box.piece.file, &len);
        ckpt_buf_add_json_string(json, file, len);
        ckpt_buf_addc(json, '}');
    }
    ckpt_buf_addc(json, ']');
}

/* The keys down to a node, as one string. */
static void describe_place(const struct ckpt_tree *t, uint32_t node, struct ckpt_buf *json)
{
    uint32_t path[CKPT_MAX_DEPTH + 1];
    unsigned depth = 0;
    size_t len;
    for (; node && depth < sizeof path / sizeof *path; node = t->nodes[node].parent)
        path[depth++] = node;
    ckpt_buf_adds(json, ",\"same_as\":[");
    while (depth-- > 0) {
        const char *key = ckpt_tree_text(t, t->nodes[path[depth]].key, &len);
        ckpt_buf_add_json_string(json, key, len);
        if (depth)
            ckpt_buf_addc(json, ',');
    }
    ckpt_buf_addc(json, ']');
}

/* Its class, and of one that is not shown again, where it is. */
static void describe_object(const struct ckpt_tree *t, uint32_t node, struct ckpt_buf *json)
{
    bool elsewhere = t->nodes[node].mark == TORCH_SAME_MARK;
    uint32_t shown = elsewhere ? t->nodes[node].ref : node;
    size_t len;
    const char *class = ckpt_tree_text(t, t->nodes[shown].ref, &len);
    ckpt_buf_adds(json, ",\"class\":");
    ckpt_buf_add_json_string(json, class, len);
    if (elsewhere)
        describe_place(t, shown, json);
}

void ckpt_torch_describe(struct ckpt_tree *t, uint32_t node, struct ckpt_buf *json)
{
    const struct torch *torch = t->priv;
    struct torch_tensor tensor;
    if (t->nodes[node].kind == CKPT_NODE_DIR && t->nodes[node].container == CKPT_OBJECT)
        describe_object(t, node, json);
    if (t->nodes[node].kind != CKPT_NODE_ARRAY)
        return;
    switch (ckpt_torch_record_kind(&torch->records, record_of(t, node))) {
    case TORCH_R_TENSOR:
        ckpt_torch_get_tensor(&torch->records, record_of(t, node), &tensor);
        if (!tensor.fault)
            describe_tensor(torch, &tensor, json);
        return;
    case TORCH_R_SHARDED:
        describe_boxes(t, record_of(t, node), json);
        return;
    default:
        return;
    }
}

static size_t shards_memory(const struct torch *torch)
{
    size_t sum = ckpt_shards_memory(&torch->shards);
    for (uint32_t i = 0; torch->archives && i < torch->shards.count; i++)
        sum += sizeof *torch->archives + ckpt_torch_archive_memory(&torch->archives[i]);
    return sum;
}

size_t ckpt_torch_memory(const struct ckpt_tree *t)
{
    const struct torch *torch = t->priv;
    return sizeof *torch + torch->records.cap + ckpt_layouts_memory(torch->layouts) +
           ckpt_torch_archive_memory(&torch->archive) + shards_memory(torch);
}

void ckpt_torch_close(struct ckpt_tree *t)
{
    struct torch *torch = t->priv;
    ckpt_torch_archive_close(&torch->archive);
    ckpt_file_unref(torch->file);
    for (uint32_t i = 0; torch->archives && i < torch->shards.count; i++)
        ckpt_torch_archive_close(&torch->archives[i]);
    free(torch->archives);
    ckpt_shards_clear(&torch->shards);
    ckpt_layouts_free(torch->layouts);
    ckpt_buf_clear(&torch->records);
    pthread_mutex_destroy(&torch->lock);
    free(torch);
}

int ckpt_torch_tree_new(const struct ckpt_tree_ops *ops, struct ckpt_pins *pins, struct ckpt_tree **ret,
                        struct ckpt_err *err)
{
    struct ckpt_tree *t;
    struct torch *torch = calloc(1, sizeof *torch);
    if (!torch || ckpt_tree_new(ops, pins, &t) < 0) {
        free(torch);
        return ckpt_no_memory(err);
    }
    pthread_mutex_init(&torch->lock, NULL);
    t->priv = torch;
    torch->layouts = ckpt_layouts_new();
    ckpt_buf_addc(&torch->records, 0); /* no record is at 0 */
    if (!torch->layouts || ckpt_buf_error(&torch->records)) {
        ckpt_tree_unref(t);
        return ckpt_no_memory(err);
    }
    *ret = t;
    return 0;
}
