/* SPDX-License-Identifier: Apache-2.0 */
/*
 * An .npz file is a zip archive of .npy files, and of others. Each is listed with the bytes that it has; the header of
 * an .npy file is read when something else is asked of it. A bare .npy file is read in the same way, as the one file of
 * a tree.
 */
#include "core/format/numpy/numpy.h"

#include "core/base/path.h"
#include "core/base/util.h"
#include "core/format/zip_content.h"

#include <stdio.h>

#define SUFFIX    ".npy"
#define RECENT    64         /* layouts among which one is looked for that another leaf can share */
#define TRIED     64         /* members of which one must be readable */
#define HEAD      1024       /* bytes: more than a header mostly has */
#define ZIP_LEAST 22         /* bytes of an archive without members */
#define MAX_NODES (5u << 19) /* members and directories: one name can make hundreds of directories */

struct numpy {
    struct ckpt_cache *cache;
    struct ckpt_file *file; /* .npy */
    struct ckpt_zip *zip;   /* .npz: a leaf's ref is the number of its member */
    pthread_mutex_t lock;   /* what follows */
    struct ckpt_array *recent[RECENT];
    unsigned next;
};

/* --- what is in a leaf --- */

/* The bytes of its file. */
static int numpy_content(struct ckpt_tree *t, uint32_t node, struct ckpt_extent *ret, struct ckpt_err *err)
{
    struct numpy *n = t->priv;
    if (n->zip) /* chunk 0 is that of the elements */
        return ckpt_zip_content(n->zip, t->nodes[node].ref, n->cache, &(struct ckpt_chunk_key){t->id, 1, node}, ret,
                                err);
    *ret = (struct ckpt_extent){.file = ckpt_file_ref(n->file), .len = n->file->st.size};
    return 0;
}

/* The file from its beginning, past the cache: of a deflated member no more is inflated than the header takes. */
static int open_stream(struct ckpt_tree *t, uint32_t node, struct ckpt_stream **ret, uint64_t *ret_size,
                       struct ckpt_err *err)
{
    struct numpy *n = t->priv;
    struct ckpt_extent extent;
    struct ckpt_codec_chain chain = {0};
    int r = n->zip ? ckpt_zip_payload(n->zip, t->nodes[node].ref, &extent, &chain, err)
                   : numpy_content(t, node, &extent, err);
    if (r < 0)
        return r;
    *ret_size = n->zip ? ckpt_zip_member(n->zip, t->nodes[node].ref).size : extent.len;
    r = ckpt_stream_open(&chain, &extent, *ret_size, ret, err);
    ckpt_extent_clear(&extent);
    return r;
}

static int parse_header(struct ckpt_stream *s, uint64_t size, struct ckpt_npy *ret, struct ckpt_err *err)
{
    uint8_t head[HEAD];
    ssize_t len = ckpt_stream_read(s, head, (size_t)CKPT_MIN(size, (uint64_t)HEAD), err);
    int r = len < 0 ? (int)len : ckpt_npy_parse(head, (size_t)len, ret, err);
    if (r != -EBADMSG || len < HEAD)
        return r;
    /* One that is longer. */
    size_t all = (size_t)CKPT_MIN(size, (uint64_t)CKPT_NPY_HEADER_MAX + 12);
    CKPT_AUTOFREE uint8_t *data = malloc(all);
    if (!data)
        return ckpt_no_memory(err);
    memcpy(data, head, HEAD);
    ssize_t more = ckpt_stream_read(s, data + HEAD, all - HEAD, err);
    return more < 0 ? (int)more : ckpt_npy_parse(data, all, ret, err);
}

static int read_header(struct ckpt_tree *t, uint32_t node, struct ckpt_npy *ret, struct ckpt_err *err)
{
    struct ckpt_stream *s;
    uint64_t size;
    int r = open_stream(t, node, &s, &size, err);
    if (r < 0)
        return r;
    r = parse_header(s, size, ret, err);
    ckpt_stream_close(s);
    if (r == 0 && ret->nbytes > size - ret->header)
        return ckpt_fail(err, EBADMSG, "the file ends too early: its header speaks of %llu bytes, and %llu follow",
                         (unsigned long long)ret->nbytes, (unsigned long long)(size - ret->header));
    return r;
}

/* --- layouts --- */

static bool has_same_dims(const struct ckpt_array *a, const struct ckpt_array *b)
{
    if (a->ndim != b->ndim || a->origin != b->origin)
        return false;
    return !memcmp(a->shape, b->shape, a->ndim * sizeof *a->shape) &&
           !memcmp(a->stride, b->stride, a->ndim * sizeof *a->stride);
}

static bool has_same_type(const struct ckpt_array *a, const struct ckpt_array *b)
{
    if (a->dtype != b->dtype || a->itemsize != b->itemsize || a->big_endian != b->big_endian)
        return false;
    return !strcmp(ckpt_array_descr(a), ckpt_array_descr(b));
}

static bool is_same_layout(const struct ckpt_array *a, const struct ckpt_array *b)
{
    return has_same_type(a, b) && has_same_dims(a, b) && !strcmp(a->codec_text, b->codec_text);
}

/* The object that others have of this layout, if one of the last few has; or it becomes one of them. Takes a's
 * reference, and returns one. */
static struct ckpt_array *share(struct numpy *n, struct ckpt_array *a)
{
    struct ckpt_array *old = a, *shared = NULL;
    pthread_mutex_lock(&n->lock);
    for (unsigned i = 0; i < RECENT && n->recent[i] && !shared; i++)
        if (is_same_layout(n->recent[i], a))
            shared = ckpt_array_ref(n->recent[i]);
    if (!shared) {
        old = n->recent[n->next];
        n->recent[n->next] = ckpt_array_ref(a);
        n->next = (n->next + 1) % RECENT;
    }
    pthread_mutex_unlock(&n->lock);
    ckpt_array_unref(old);
    return shared ? shared : a;
}

static int numpy_layout(struct ckpt_tree *t, uint32_t node, struct ckpt_array **ret, struct ckpt_err *err)
{
    struct numpy *n = t->priv;
    struct ckpt_array *a;
    struct ckpt_npy npy;
    int r = read_header(t, node, &npy, err);
    if (r < 0)
        return n->zip ? ckpt_fail_in(err, -r, "%.200s", ckpt_zip_member(n->zip, t->nodes[node].ref).name) : r;
    r = ckpt_array_of_npy(&npy, &a);
    if (r == -EUCLEAN)
        return ckpt_fail(err, EUCLEAN, "an array has an impossible shape");
    if (r < 0)
        return ckpt_no_memory(err);
    if (n->zip && ckpt_zip_member(n->zip, t->nodes[node].ref).deflated)
        strcpy(a->codec_text, "deflate");
    *ret = share(n, a);
    return 0;
}

/* All elements are one chunk, in the file behind its header. */
static int numpy_chunk(struct ckpt_tree *t, uint32_t node, const struct ckpt_array *a, uint64_t index,
                       struct ckpt_extent *ret, struct ckpt_err *err)
{
    int r = numpy_content(t, node, ret, err);
    if (r < 0)
        return r;
    ret->off += a->origin;
    ret->len = a->nbytes;
    return 0;
}

/* --- what is known of it --- */

static int numpy_stored(struct ckpt_tree *t, uint32_t node, const struct ckpt_array *a, uint64_t *ret,
                        struct ckpt_err *err)
{
    const struct numpy *n = t->priv;
    *ret = n->zip ? ckpt_zip_member(n->zip, t->nodes[node].ref).stored : n->file->st.stored;
    return 0;
}

static void numpy_describe(struct ckpt_tree *t, uint32_t node, struct ckpt_buf *json)
{
    const struct numpy *n = t->priv;
    if (n->zip && t->nodes[node].kind != CKPT_NODE_DIR)
        ckpt_buf_addf(json, ",\"crc32\":\"%08x\"", ckpt_zip_member(n->zip, t->nodes[node].ref).crc);
}

/* Checksums, which the reading of stored members does not check, and of deflated ones tells less of; and headers. */
static int numpy_verify(struct ckpt_tree *t, void (*progress)(void *arg, uint64_t bytes), void *arg,
                        struct ckpt_err *err)
{
    const struct numpy *n = t->priv;
    int r = 0;
    for (uint32_t i = 0; n->zip && i < ckpt_zip_count(n->zip) && r == 0; i++)
        r = ckpt_zip_verify(n->zip, i, progress, arg, err);
    for (uint32_t node = 0; node < t->count && r == 0; node++) {
        struct ckpt_array *a;
        struct ckpt_err own = {0};
        if (t->nodes[node].kind != CKPT_NODE_ARRAY)
            continue;
        r = ckpt_tree_layout(t, node, &a, &own);
        if (r == 0)
            ckpt_array_unref(a);
        else if (r == -EOPNOTSUPP) /* no damage */
            r = 0;
        else
            ckpt_fail(err, -r, "%s", own.text);
    }
    return r;
}

static size_t numpy_memory(const struct ckpt_tree *t)
{
    const struct numpy *n = t->priv;
    return sizeof *n + (n->zip ? ckpt_zip_memory(n->zip) : 0);
}

static void numpy_close(struct ckpt_tree *t)
{
    struct numpy *n = t->priv;
    for (unsigned i = 0; i < RECENT; i++)
        ckpt_array_unref(n->recent[i]);
    ckpt_zip_unref(n->zip);
    ckpt_file_unref(n->file);
    pthread_mutex_destroy(&n->lock);
    free(n);
}

/* --- opening --- */

static const struct ckpt_tree_ops npy_ops, npz_ops;

static bool is_npy(const char *name, size_t len)
{
    return len >= strlen(SUFFIX) && !memcmp(name + len - strlen(SUFFIX), SUFFIX, strlen(SUFFIX));
}

/* A tree without nodes yet, over the file that is to be opened. */
static int begin(const struct ckpt_opening *o, const struct ckpt_tree_ops *ops, struct ckpt_tree **ret,
                 struct ckpt_file **ret_file, struct ckpt_err *err)
{
    int r = ckpt_pins_open(o->pins, o->name, ret_file);
    if (r < 0)
        return ckpt_fail(err, -r, "%s: %s", o->name, strerror(-r));
    struct numpy *n = calloc(1, sizeof *n);
    if (!n || ckpt_tree_new(ops, o->pins, ret) < 0) {
        ckpt_file_unref(*ret_file);
        free(n);
        return ckpt_no_memory(err);
    }
    pthread_mutex_init(&n->lock, NULL);
    n->cache = o->cache;
    (*ret)->priv = n;
    return 0;
}

/* What has no array in it that can be read is no archive of arrays, be it damaged or of another kind. */
static int check_arrays(struct ckpt_tree *t, struct ckpt_err *err)
{
    struct ckpt_err first = {0}, other;
    unsigned tried = 0;
    for (uint32_t node = 0; node < t->count && tried < TRIED; node++) {
        struct ckpt_array *a;
        if (t->nodes[node].kind != CKPT_NODE_ARRAY)
            continue;
        if (ckpt_tree_layout(t, node, &a, tried++ ? &other : &first) == 0) {
            ckpt_array_unref(a);
            return 0;
        }
    }
    return first.code && tried < TRIED ? ckpt_fail(err, first.code, "%s", first.text) : 0;
}

/* The leaf that the file itself is, under its very name if that is one of such files. */
static int npy_open(const struct ckpt_opening *o, struct ckpt_tree **ret, struct ckpt_err *err)
{
    struct ckpt_tree *t;
    struct ckpt_file *file;
    uint32_t node;
    const char *name = ckpt_path_name(o->name);
    int r = begin(o, &npy_ops, &t, &file, err);
    if (r < 0)
        return r;
    ((struct numpy *)t->priv)->file = file;
    t->exact = true;
    size_t len = strlen(name);
    bool named_so = is_npy(name, len); /* else it is listed as any array */
    r = ckpt_tree_add(t, 0, name, named_so ? len - strlen(SUFFIX) : len, false, CKPT_NODE_ARRAY, &node, err);
    if (r == 0 && named_so)
        r = ckpt_tree_set_name(t, node, name, len, err);
    if (r == 0)
        r = ckpt_tree_finish(t, err);
    return ckpt_tree_give(t, r < 0 ? r : check_arrays(t, err), ret);
}

/* A member, in directories that are made as they are needed. */
static int add_member(struct ckpt_tree *t, uint32_t number, struct ckpt_err *err)
{
    struct ckpt_zip_member m = ckpt_zip_member(((struct numpy *)t->priv)->zip, number);
    uint32_t parent = 0, node;
    const char *name = m.name, *slash;
    int r = 0;
    for (slash = strchr(name, '/'); r == 0 && slash; slash = strchr(name, '/')) {
        r = ckpt_tree_add(t, parent, name, (size_t)(slash - name), false, CKPT_NODE_DIR, &parent, err);
        name = slash + 1;
    }
    size_t len = m.name_len - (size_t)(name - m.name);
    if (r < 0 || !len)
        return r;
    if (t->count >= MAX_NODES)
        return ckpt_fail(err, EOPNOTSUPP, "more than %u members and directories", MAX_NODES);
    bool array = is_npy(name, len);
    r = ckpt_tree_add(t, parent, name, array ? len - strlen(SUFFIX) : len, false,
                      array ? CKPT_NODE_ARRAY : CKPT_NODE_BLOB, &node, err);
    if (r == 0)
        t->nodes[node].ref = number;
    return r;
}

static int npz_open(const struct ckpt_opening *o, struct ckpt_tree **ret, struct ckpt_err *err)
{
    struct ckpt_tree *t;
    struct ckpt_file *file;
    int r = begin(o, &npz_ops, &t, &file, err);
    if (r < 0)
        return r;
    struct numpy *n = t->priv;
    r = ckpt_zip_open(file, 0, file->st.size, &n->zip, err);
    ckpt_file_unref(file);
    for (uint32_t i = 0; r == 0 && i < ckpt_zip_count(n->zip); i++)
        r = add_member(t, i, err);
    if (r == 0)
        r = ckpt_tree_finish(t, err);
    return ckpt_tree_give(t, r < 0 ? r : check_arrays(t, err), ret);
}

static const char *const npy_suffixes[] = {SUFFIX, NULL};

static unsigned npy_begins(const struct ckpt_content *c)
{
    return c->len >= 6 && !memcmp(c->head, "\x93NUMPY", 6) ? 32 : 0;
}

static bool npy_is_damaged(const struct ckpt_content *c)
{
    return true; /* what is wrong with it is told when it is opened */
}

static const char *const npz_suffixes[] = {".npz", NULL};

/* In the order of their sections a local header begins an archive, an end record one without members. */
static bool begins_zip(const struct ckpt_content *c)
{
    if (c->len < 4)
        return false;
    return !memcmp(c->head, "PK\3\4", 4) || !memcmp(c->head, "PK\5\6", 4);
}

static bool has_arrays(struct ckpt_file *file)
{
    struct ckpt_zip *zip;
    bool found = false;
    if (ckpt_zip_open(file, 0, file->st.size, &zip, NULL) < 0)
        return false;
    for (uint32_t i = 0, n = ckpt_zip_count(zip); i < n && !found; i++) {
        struct ckpt_zip_member m = ckpt_zip_member(zip, i);
        found = is_npy(m.name, m.name_len);
    }
    ckpt_zip_unref(zip);
    return found;
}

/*
 * An archive with arrays in it; the first member's name, behind its local header, mostly tells. An archive may have
 * something before it, which only a name makes worth a look.
 */
static unsigned npz_begins(const struct ckpt_content *c)
{
    if (!begins_zip(c))
        return c->is_own && has_arrays(c->file) ? 16 : 0;
    size_t len = c->len > 30 ? c->head[26] | (size_t)c->head[27] << 8 : 0;
    bool first = len && 30 + len <= c->len && is_npy((const char *)c->head + 30, len);
    return first || has_arrays(c->file) ? 16 : 0;
}

/* An archive without arrays, or too short to be one. */
static bool npz_is_damaged(const struct ckpt_content *c)
{
    return begins_zip(c) || c->file->st.size < ZIP_LEAST;
}

#define NUMPY_OPS(title)                                                                                               \
    {                                                                                                                  \
        .name = (title), .layout = numpy_layout, .chunk = numpy_chunk, .stored = numpy_stored, .blob = numpy_content,  \
        .file = numpy_content, .describe = numpy_describe, .verify = numpy_verify, .memory = numpy_memory,             \
        .close = numpy_close,                                                                                          \
    }

static const struct ckpt_tree_ops npy_ops = NUMPY_OPS("npy"), npz_ops = NUMPY_OPS("npz");

const struct ckpt_format ckpt_npy_format = {
    .name = "npy",
    .suffixes = npy_suffixes,
    .begins = npy_begins,
    .is_damaged = npy_is_damaged,
    .weak = true, /* in a folder it is a file, with views */
    .open = npy_open,
};

const struct ckpt_format ckpt_npz_format = {
    .name = "npz",
    .suffixes = npz_suffixes,
    .begins = npz_begins,
    .is_damaged = npz_is_damaged,
    .open = npz_open,
};
