/* SPDX-License-Identifier: Apache-2.0 */
#include "core/view/view.h"

#include "core/base/util.h"
#include "core/view/rendering.h"

/* --- names --- */

static bool ends_with(const char *name, size_t len, const char *suffix, size_t *ret_base)
{
    size_t n = strlen(suffix);
    bool has_suffix = len >= n && !memcmp(name + len - n, suffix, n);
    if (has_suffix)
        *ret_base = len - n;
    return has_suffix;
}

/* node may be CKPT_NO_NODE. */
static bool is_kind(const struct ckpt_tree *t, uint32_t node, enum ckpt_node_kind kind)
{
    return node != CKPT_NO_NODE && t->nodes[node].kind == kind;
}

/* The leaf of a key (its listed name without the suffix). */
static uint32_t leaf_of_key(const struct ckpt_tree *t, uint32_t parent, const char *key, size_t len)
{
    uint32_t node = ckpt_tree_lookup_suffix(t, parent, key, len, ".npy");
    if (is_kind(t, node, CKPT_NODE_ARRAY))
        return node;
    node = ckpt_tree_lookup_suffix(t, parent, key, len, ".json");
    bool is_leaf = is_kind(t, node, CKPT_NODE_ARRAY) || is_kind(t, node, CKPT_NODE_VALUE);
    return is_leaf ? node : CKPT_NO_NODE;
}

/* KEY@SLICE, KEY@SLICE.npy: the last @ that has a key before it. */
static bool lookup_slice(const struct ckpt_tree *t, uint32_t parent, const char *name, size_t len, uint32_t *ret_node,
                         enum ckpt_view *ret_view, const char **ret_slice, size_t *ret_slice_len)
{
    size_t end = len;
    bool npy = ends_with(name, len, ".npy", &end);
    const char *at = memrchr(name, '@', end);
    if (!at)
        return false;
    uint32_t node = ckpt_tree_lookup_suffix(t, parent, name, (size_t)(at - name), ".npy");
    if (!is_kind(t, node, CKPT_NODE_ARRAY))
        return false;
    *ret_node = node;
    *ret_view = npy ? CKPT_VIEW_SLICE_NPY : CKPT_VIEW_SLICE;
    *ret_slice = at + 1;
    *ret_slice_len = end - (size_t)(at + 1 - name);
    return true;
}

/* KEY.npy, KEY.txt, KEY.meta.json. */
static bool lookup_suffix(const struct ckpt_tree *t, uint32_t parent, const char *name, size_t len, uint32_t *ret_node,
                          enum ckpt_view *ret_view)
{
    size_t base;
    uint32_t node;
    if (ends_with(name, len, ".npy", &base)) {
        *ret_view = CKPT_VIEW_NPY;
        *ret_node = leaf_of_key(t, parent, name, base);
        return is_kind(t, *ret_node, CKPT_NODE_VALUE); /* an array's would have been its listed name */
    }
    if (ends_with(name, len, ".txt", &base)) {
        *ret_view = CKPT_VIEW_TEXT;
        *ret_node = leaf_of_key(t, parent, name, base);
        return *ret_node != CKPT_NO_NODE;
    }
    if (!ends_with(name, len, ".meta.json", &base))
        return false;
    *ret_view = CKPT_VIEW_META;
    *ret_node = leaf_of_key(t, parent, name, base);
    if (*ret_node != CKPT_NO_NODE)
        return true;
    node = ckpt_tree_lookup(t, parent, name, base); /* of a blob, under its own name */
    *ret_node = node;
    return is_kind(t, node, CKPT_NODE_BLOB);
}

int ckpt_view_lookup(const struct ckpt_tree *t, uint32_t parent, const char *name, uint32_t *ret_node,
                     enum ckpt_view *ret_view, const char **ret_slice, size_t *ret_slice_len)
{
    size_t len = strlen(name), base;
    if (len > 255)
        return -ENAMETOOLONG;
    *ret_slice = NULL;
    *ret_slice_len = 0;
    *ret_view = CKPT_VIEW_LISTED;
    *ret_node = ckpt_tree_lookup(t, parent, name, len);
    if (*ret_node != CKPT_NO_NODE)
        return 0;
    *ret_node = parent;
    if (!strcmp(name, ".tree.json")) {
        *ret_view = CKPT_VIEW_TREE;
        return 0;
    }
    *ret_view = CKPT_VIEW_RAW;
    *ret_node = leaf_of_key(t, parent, name, len);
    if (*ret_node != CKPT_NO_NODE)
        return 0;
    if (lookup_suffix(t, parent, name, len, ret_node, ret_view))
        return 0;
    if (ends_with(name, len, ".safetensors", &base)) {
        *ret_view = CKPT_VIEW_SAFETENSORS;
        *ret_node = base ? ckpt_tree_lookup(t, parent, name, base) : parent;
        if (is_kind(t, *ret_node, CKPT_NODE_DIR))
            return 0;
    }
    bool is_slice = lookup_slice(t, parent, name, len, ret_node, ret_view, ret_slice, ret_slice_len);
    return is_slice ? 0 : -ENOENT;
}

int ckpt_view_select(struct ckpt_tree *t, uint32_t node, const char *slice, size_t len, struct ckpt_selection *ret,
                     struct ckpt_err *err)
{
    struct ckpt_array *a;
    int r = ckpt_tree_layout(t, node, &a, err);
    if (r < 0)
        return r;
    r = ckpt_slice_parse(slice, len, a->ndim, a->shape, ret);
    ckpt_array_unref(a);
    return r < 0 ? ckpt_fail(err, -r, "@%.*s is not a slice of this array", (int)len, slice) : 0;
}

bool ckpt_viewed_is_dir(const struct ckpt_viewed *f)
{
    return f->view == CKPT_VIEW_LISTED && f->tree->nodes[f->node].kind == CKPT_NODE_DIR;
}

/* --- sizes and bytes: a header made here, then elements --- */

struct opened {
    struct ckpt_array *array; /* the elements that follow the header; NULL: there are none */
    struct ckpt_selection sel;
    struct ckpt_buf head;    /* all of a small file, or the header of one */
    struct ckpt_extent file; /* of a blob, or of a leaf that is stored as it is listed */
    struct ckpt_rendering *rendering;
    uint64_t body; /* bytes after the header */
};

static void opened_clear(struct opened *o)
{
    ckpt_array_unref(o->array);
    ckpt_buf_clear(&o->head);
    ckpt_extent_clear(&o->file);
    ckpt_rendering_unref(o->rendering);
}

static int open_array(const struct ckpt_viewed *f, struct opened *o, struct ckpt_err *err)
{
    uint64_t shape[CKPT_MAX_DIMS];
    int r = ckpt_tree_layout(f->tree, f->node, &o->array, err);
    if (r < 0)
        return r;
    const struct ckpt_array *a = o->array;
    if (a->unsupported)
        return ckpt_fail(err, a->unsupported, "%s", a->why);
    if (f->sel)
        o->sel = *f->sel;
    else
        ckpt_selection_all(&o->sel, a->ndim, a->shape);
    unsigned ndim = ckpt_selection_shape(&o->sel, shape);
    o->body = ckpt_selection_elements(&o->sel) * a->itemsize;
    if (f->view == CKPT_VIEW_LISTED || f->view == CKPT_VIEW_SLICE_NPY)
        ckpt_npy_add_header(&o->head, ckpt_array_descr(a), ndim, shape);
    return ckpt_buf_error(&o->head);
}

static int open_value(const struct ckpt_viewed *f, struct opened *o, struct ckpt_err *err)
{
    struct ckpt_value value;
    int r = ckpt_tree_value(f->tree, f->node, &o->head, &value, err);
    if (r < 0)
        return r;
    if (f->view == CKPT_VIEW_NPY) {
        if (value.dtype == CKPT_DT_OTHER) /* null, a string, a number beyond 64 bits */
            return ckpt_fail(err, ENOENT, "this value has no array form");
        o->head.len = 0;
        ckpt_npy_add_header(&o->head, ckpt_dtype_info(value.dtype)->descr, 0, NULL);
        ckpt_buf_add(&o->head, value.element, ckpt_dtype_info(value.dtype)->size);
    } else
        ckpt_buf_addc(&o->head, '\n');
    return ckpt_buf_error(&o->head);
}

static int open_viewed(struct ckpt_views *v, const struct ckpt_viewed *f, struct opened *o, struct ckpt_err *err)
{
    *o = (struct opened){0};
    switch (f->view) {
    case CKPT_VIEW_LISTED:
    case CKPT_VIEW_RAW:
    case CKPT_VIEW_NPY:
    case CKPT_VIEW_SLICE:
    case CKPT_VIEW_SLICE_NPY:
        break;
    default: {
        int r = ckpt_rendering_get(v, f, &o->rendering, err);
        if (r == 0)
            o->body = o->rendering->size;
        return r;
    }
    }
    const struct ckpt_tree_ops *ops = f->tree->ops;
    enum ckpt_node_kind kind = f->tree->nodes[f->node].kind;
    if (f->view == CKPT_VIEW_LISTED && ops->file && kind != CKPT_NODE_DIR) {
        int r = ops->file(f->tree, f->node, &o->file, err);
        o->body = o->file.len;
        return r;
    }
    switch (kind) {
    case CKPT_NODE_ARRAY:
        return open_array(f, o, err);
    case CKPT_NODE_VALUE:
        return open_value(f, o, err);
    case CKPT_NODE_BLOB: {
        int r = ops->blob(f->tree, f->node, &o->file, err);
        o->body = o->file.len;
        return r;
    }
    default:
        return ckpt_fail(err, EISDIR, "a directory");
    }
}

static uint64_t stored_bytes(const struct ckpt_viewed *f, const struct opened *o)
{
    const struct ckpt_tree_ops *ops = f->tree->ops;
    bool is_known = f->view == CKPT_VIEW_LISTED && (o->array || ops->file);
    if (is_known) {
        uint64_t stored;
        if (ops->stored(f->tree, f->node, o->array, &stored, NULL) == 0)
            return stored;
        return o->array ? o->array->nbytes : o->file.len;
    }
    bool is_value = !o->array && f->tree->nodes[f->node].kind == CKPT_NODE_VALUE;
    return is_value ? o->head.len : o->file.len;
}

int ckpt_view_size(struct ckpt_views *v, const struct ckpt_viewed *f, uint64_t *ret_size, uint64_t *ret_stored,
                   struct ckpt_err *err)
{
    struct opened o;
    int r = open_viewed(v, f, &o, err);
    if (r == 0) {
        *ret_size = o.head.len + o.body;
        *ret_stored = stored_bytes(f, &o);
    }
    opened_clear(&o);
    return r;
}

/* The part of [off, off + len) that lies in [begin, begin + size): returns its length, *ret_at is where it begins in
 * that piece. */
static size_t overlap(uint64_t off, size_t len, uint64_t begin, uint64_t size, uint64_t *ret_at)
{
    uint64_t from = CKPT_MAX(off, begin), to = CKPT_MIN(off + len, begin + size);
    *ret_at = from - begin;
    return to > from ? (size_t)(to - from) : 0;
}

static int read_value(const struct ckpt_viewed *leaf, uint8_t *buf, size_t len, uint64_t off, struct ckpt_err *err)
{
    CKPT_AUTOBUF struct ckpt_buf json = CKPT_BUF_INIT;
    struct ckpt_value value;
    int r = ckpt_tree_value(leaf->tree, leaf->node, &json, &value, err);
    if (r == 0)
        memcpy(buf, value.element + off, len);
    return r;
}

static int read_elements(struct ckpt_views *v, const struct ckpt_viewed *f, const struct opened *o, void *buf,
                         size_t len, uint64_t off, struct ckpt_err *err)
{
    const struct ckpt_selected what = {f->tree, f->node, o->array, &o->sel};
    return ckpt_read_array(&v->reader, &what, buf, len, off, err);
}

/* Bytes of the element of a value, or of the elements of an array. */
static int read_leaf(struct ckpt_views *v, const struct ckpt_viewed *leaf, uint8_t *buf, size_t len, uint64_t off,
                     struct ckpt_err *err)
{
    struct opened o;
    if (leaf->tree->nodes[leaf->node].kind == CKPT_NODE_VALUE)
        return read_value(leaf, buf, len, off, err);
    int r = open_viewed(v, leaf, &o, err);
    if (r == 0)
        r = read_elements(v, leaf, &o, buf, len, off, err);
    opened_clear(&o);
    return r;
}

/* The last part that begins at or before off. */
static size_t find_part(const struct ckpt_rendering *r, uint64_t off)
{
    size_t low = 0, high = r->part_count;
    while (high - low > 1) {
        size_t mid = low + (high - low) / 2;
        if (r->parts[mid].off <= off)
            low = mid;
        else
            high = mid;
    }
    return low;
}

/* The data of a safetensors file: parts one after another, each a leaf's elements. */
static int read_parts(struct ckpt_views *v, const struct ckpt_viewed *f, const struct ckpt_rendering *r, uint8_t *buf,
                      size_t len, uint64_t off, struct ckpt_err *err)
{
    for (size_t i = find_part(r, off); i < r->part_count && len; i++) {
        uint64_t end = i + 1 < r->part_count ? r->parts[i + 1].off : r->size, at;
        size_t n = overlap(off, len, r->parts[i].off, end - r->parts[i].off, &at);
        if (!n)
            continue;
        struct ckpt_viewed leaf = {f->tree, r->parts[i].node, CKPT_VIEW_RAW, NULL};
        int e = read_leaf(v, &leaf, buf, n, at, err);
        if (e < 0)
            return e;
        buf += n;
        off += n;
        len -= n;
    }
    return 0;
}

static int read_body(struct ckpt_views *v, const struct ckpt_viewed *f, const struct opened *o, uint8_t *buf,
                     size_t len, uint64_t off, struct ckpt_err *err)
{
    if (o->array)
        return read_elements(v, f, o, buf, len, off, err);
    if (!o->rendering) {
        int r = ckpt_extent_read(&o->file, buf, len, off);
        return r < 0 ? ckpt_fail(err, -r, "%s", strerror(-r)) : 0;
    }
    uint64_t at;
    size_t n = overlap(off, len, 0, ckpt_rendering_text_size(o->rendering), &at);
    if (n) {
        ssize_t r = ckpt_rendering_read(o->rendering, buf, n, at);
        if (r < 0)
            return ckpt_fail(err, (int)-r, "%s", strerror((int)-r));
    }
    return n < len ? read_parts(v, f, o->rendering, buf + n, len - n, off + n, err) : 0;
}

ssize_t ckpt_view_read(struct ckpt_views *v, const struct ckpt_viewed *f, void *buf, size_t len, uint64_t off,
                       struct ckpt_err *err)
{
    struct opened o;
    int r = open_viewed(v, f, &o, err);
    ssize_t done = 0;
    if (r == 0) {
        uint64_t at;
        size_t n = overlap(off, len, 0, o.head.len, &at);
        if (n)
            memcpy(buf, o.head.data + at, n);
        done = (ssize_t)n;
        n = overlap(off, len, o.head.len, o.body, &at);
        if (n)
            r = read_body(v, f, &o, (uint8_t *)buf + done, n, at, err);
        done += (ssize_t)n;
    }
    opened_clear(&o);
    return r < 0 ? r : done;
}

int ckpt_view_run(struct ckpt_views *v, const struct ckpt_viewed *f, uint64_t off, uint64_t *ret_end,
                  struct ckpt_err *err)
{
    struct opened o;
    int r = open_viewed(v, f, &o, err);
    if (r == 0) {
        *ret_end = o.head.len + o.body;
        bool may_have_holes = o.file.file && off < o.file.len;
        r = may_have_holes ? ckpt_extent_run(&o.file, off, ret_end) : 1;
    }
    opened_clear(&o);
    return r;
}

ssize_t ckpt_view_give(struct ckpt_views *v, const struct ckpt_viewed *f, size_t len, uint64_t off, ckpt_give_fn *give,
                       void *arg, struct ckpt_err *err)
{
    struct opened o;
    bool is_given = false;
    size_t head = 0, body = 0;
    int r = open_viewed(v, f, &o, err);
    if (r == 0 && o.array) {
        const struct ckpt_selected what = {f->tree, f->node, o.array, &o.sel};
        struct ckpt_mapped mapped;
        uint64_t head_at, body_at;
        head = overlap(off, len, 0, o.head.len, &head_at);
        body = overlap(off, len, o.head.len, o.body, &body_at);
        r = ckpt_map_array(&v->reader, &what, body, body_at, &mapped, err);
        is_given = mapped.data;
        if (is_given) {
            const struct iovec iov[2] = {{head ? o.head.data + head_at : NULL, head},
                                         {(void *)(uintptr_t)mapped.data, body}};
            r = head ? give(arg, iov, 2) : give(arg, iov + 1, 1);
            ckpt_chunk_put(v->reader.cache, mapped.hold);
        }
    }
    opened_clear(&o);
    if (r < 0)
        return r;
    if (is_given)
        return (ssize_t)(head + body);
    CKPT_AUTOFREE uint8_t *buf = malloc(CKPT_MAX(len, (size_t)1));
    ssize_t done = buf ? ckpt_view_read(v, f, buf, len, off, err) : ckpt_no_memory(err);
    if (done < 0)
        return done;
    const struct iovec iov = {buf, (size_t)done};
    r = give(arg, &iov, 1);
    return r < 0 ? r : done;
}
