/* SPDX-License-Identifier: Apache-2.0 */
#include "core/format/ocdbt/node.h"

#include "core/base/util.h"
#include "core/codec/crc32c.h"
#include "core/codec/zstd.h"
#include "core/io/backend.h"

int ckpt_ocdbt_fail_short(struct ckpt_err *err)
{
    return ckpt_fail(err, EUCLEAN, "a column ends too early, or a number in it is out of range");
}

uint64_t ckpt_ocdbt_varint(struct ckpt_ocdbt_reader *r, uint64_t max)
{
    uint64_t v = 0;
    for (unsigned shift = 0; shift < 70; shift += 7) {
        if (r->p == r->end)
            break;
        uint8_t b = *r->p++;
        if (shift == 63 && b > 1)
            break;
        v |= (uint64_t)(b & 0x7f) << shift;
        if (!(b & 0x80)) {
            if (v > max)
                break;
            return v;
        }
    }
    r->bad = true;
    r->p = r->end;
    return 0;
}

uint8_t ckpt_ocdbt_u8(struct ckpt_ocdbt_reader *r)
{
    const uint8_t *p = ckpt_ocdbt_take(r, 1);
    return p ? *p : 0;
}

const uint8_t *ckpt_ocdbt_take(struct ckpt_ocdbt_reader *r, size_t len)
{
    if (len > (size_t)(r->end - r->p)) {
        r->bad = true;
        r->p = r->end;
        return NULL;
    }
    const uint8_t *p = r->p;
    r->p += len;
    return p;
}

static void column16(struct ckpt_ocdbt_reader *r, uint16_t *ret, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++)
        ret[i] = (uint16_t)ckpt_ocdbt_varint(r, UINT16_MAX);
}

static void column64(struct ckpt_ocdbt_reader *r, uint64_t *ret, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++)
        ret[i] = ckpt_ocdbt_varint(r, UINT64_MAX);
}

int ckpt_ocdbt_envelope(const uint8_t *data, size_t len, enum ckpt_ocdbt_magic magic, uint8_t **ret, size_t *ret_len,
                        struct ckpt_err *err)
{
    if (len < CKPT_OCDBT_ENVELOPE_MIN)
        return ckpt_fail(err, EBADMSG, "%zu bytes are too few: truncated", len);
    bool known = ckpt_le32(data) == __builtin_bswap32((uint32_t)magic);
    uint32_t crc = ckpt_crc32c(0, data, len - 4);
    if (crc != ckpt_le32(data + len - 4)) {
        if (known && ckpt_le64(data + 4) > len)
            return ckpt_fail(err, EBADMSG, "truncated: %zu of %llu bytes", len,
                             (unsigned long long)ckpt_le64(data + 4));
        return ckpt_fail(err, EBADMSG, "%s: the checksum is %08x, not %08x as stored",
                         known ? "damaged" : "damaged, or not of this kind", crc, ckpt_le32(data + len - 4));
    }
    if (!known)
        return ckpt_fail(err, EUCLEAN, "begins with %02x%02x%02x%02x, not %08x", data[0], data[1], data[2], data[3],
                         (unsigned)magic);
    if (ckpt_le64(data + 4) != len)
        return ckpt_fail(err, EUCLEAN, "says it has %llu bytes, and has %zu", (unsigned long long)ckpt_le64(data + 4),
                         len);
    struct ckpt_ocdbt_reader r = {data + 12, data + len - 4, false};
    uint64_t version = ckpt_ocdbt_varint(&r, UINT64_MAX), compression = ckpt_ocdbt_varint(&r, UINT64_MAX);
    if (r.bad)
        return ckpt_ocdbt_fail_short(err);
    if (version != 0)
        return ckpt_fail(err, EOPNOTSUPP, "format version %llu", (unsigned long long)version);
    if (compression > 1)
        return ckpt_fail(err, EOPNOTSUPP, "compression method %llu", (unsigned long long)compression);
    size_t body_len = (size_t)(r.end - r.p);
    if (compression == 1)
        return ckpt_zstd_frame(r.p, body_len, CKPT_OCDBT_BODY_MAX, ret, ret_len, err);
    if (body_len > CKPT_OCDBT_BODY_MAX)
        return ckpt_fail(err, EUCLEAN, "a body of %zu bytes", body_len);
    uint8_t *body = malloc(body_len ? body_len : 1);
    if (!body)
        return ckpt_no_memory(err);
    memcpy(body, r.p, body_len);
    *ret = body;
    *ret_len = body_len;
    return 0;
}

/* ---- data file table ---- */

void ckpt_ocdbt_files_clear(struct ckpt_ocdbt_files *files)
{
    free(files->heap);
    free(files->path);
    free(files->base);
    *files = (struct ckpt_ocdbt_files){0};
}

/* The heap's size, or an error: everything about the lengths that can be wrong. */
static int paths_measure(const uint16_t *prefix, const uint16_t *suffix, const uint16_t *base, uint32_t n,
                         size_t transitive, uint64_t *ret, struct ckpt_err *err)
{
    uint64_t total = 0;
    uint32_t before = 0;
    for (uint32_t i = 0; i < n; i++) {
        uint32_t len = (uint32_t)prefix[i] + suffix[i];
        if (prefix[i] > before || base[i] > len || transitive + len > CKPT_OCDBT_PATH_MAX)
            return ckpt_fail(err, EUCLEAN, "data file %u: the lengths of its path do not fit", i);
        before = len;
        total += transitive + len + 1;
    }
    if (total > CKPT_OCDBT_EXPANDED_MAX)
        return ckpt_fail(err, EUCLEAN, "a data file table of %llu bytes", (unsigned long long)total);
    *ret = total;
    return 0;
}

int ckpt_ocdbt_files_parse(struct ckpt_ocdbt_reader *r, const char *transitive, size_t transitive_len,
                           struct ckpt_ocdbt_files *ret, struct ckpt_err *err)
{
    uint32_t n = (uint32_t)ckpt_ocdbt_varint(r, CKPT_OCDBT_ENTRIES_MAX);
    if (r->bad || n > (size_t)(r->end - r->p))
        return ckpt_fail(err, EUCLEAN, "the number of data files is out of range");
    *ret = (struct ckpt_ocdbt_files){0};
    if (n == 0)
        return 0;

    struct ckpt_ocdbt_files files = {.count = n};
    CKPT_AUTOFREE uint16_t *prefix = calloc(n, sizeof *prefix);
    CKPT_AUTOFREE uint16_t *suffix = calloc(n, sizeof *suffix);
    files.path = calloc(n, sizeof *files.path);
    files.base = calloc(n, sizeof *files.base);
    int e = 0;
    uint64_t total = 0;
    if (!prefix || !suffix || !files.path || !files.base)
        e = ckpt_no_memory(err);
    if (e == 0) {
        column16(r, prefix + 1, n - 1);
        column16(r, suffix, n);
        column16(r, files.base, n);
        e = r->bad ? ckpt_ocdbt_fail_short(err)
                   : paths_measure(prefix, suffix, files.base, n, transitive_len, &total, err);
    }
    if (e == 0 && !(files.heap = malloc(total)))
        e = ckpt_no_memory(err);
    char *out = files.heap;
    const char *before = NULL;
    for (uint32_t i = 0; e == 0 && i < n; i++) {
        const uint8_t *tail = ckpt_ocdbt_take(r, suffix[i]);
        if (!tail) {
            e = ckpt_ocdbt_fail_short(err);
            break;
        }
        files.path[i] = (uint32_t)(out - files.heap);
        files.base[i] = (uint16_t)(files.base[i] + transitive_len);
        memcpy(out, transitive, transitive_len);
        if (prefix[i])
            memcpy(out + transitive_len, before + transitive_len, prefix[i]);
        memcpy(out + transitive_len + prefix[i], tail, suffix[i]);
        size_t len = transitive_len + prefix[i] + suffix[i];
        out[len] = '\0';
        /* An empty path is what a missing root has. */
        if ((prefix[i] || suffix[i]) && !ckpt_path_safe(out, len))
            e = ckpt_fail(err, EUCLEAN, "data file %u: the path \"%.80s\" is refused", i, out);
        before = out;
        out += len + 1;
    }
    if (e < 0) {
        ckpt_ocdbt_files_clear(&files);
        return e;
    }
    files.bytes = (size_t)total + n * (sizeof *files.path + sizeof *files.base);
    *ret = files;
    return 0;
}

/* ---- references ---- */

int ckpt_ocdbt_ref_init(struct ckpt_ocdbt_ref *ref, const char *path, uint32_t base, uint64_t off, uint64_t len,
                        uint8_t height, const uint8_t *a, size_t a_len, const uint8_t *b, size_t b_len)
{
    *ref = (struct ckpt_ocdbt_ref){.base = base, .off = off, .len = len, .height = height};
    ref->path = strdup(path);
    ref->prefix = malloc(a_len + b_len + 1);
    if (!ref->path || !ref->prefix) {
        ckpt_ocdbt_ref_clear(ref);
        return -ENOMEM;
    }
    if (a_len)
        memcpy(ref->prefix, a, a_len);
    if (b_len)
        memcpy(ref->prefix + a_len, b, b_len);
    ref->prefix_len = (uint32_t)(a_len + b_len);
    return 0;
}

int ckpt_ocdbt_ref_copy(struct ckpt_ocdbt_ref *ref, const struct ckpt_ocdbt_ref *from)
{
    return ckpt_ocdbt_ref_init(ref, from->path, from->base, from->off, from->len, from->height, from->prefix,
                               from->prefix_len, NULL, 0);
}

void ckpt_ocdbt_ref_clear(struct ckpt_ocdbt_ref *ref)
{
    free(ref->path);
    free(ref->prefix);
    *ref = (struct ckpt_ocdbt_ref){0};
}

bool ckpt_ocdbt_ref_same(const struct ckpt_ocdbt_ref *a, const struct ckpt_ocdbt_ref *b)
{
    return a->off == b->off && a->len == b->len && a->height == b->height && a->base == b->base &&
           a->prefix_len == b->prefix_len && memcmp(a->prefix, b->prefix, a->prefix_len) == 0 &&
           strcmp(a->path, b->path) == 0;
}

uint64_t ckpt_ocdbt_ref_hash(const struct ckpt_ocdbt_ref *ref)
{
    uint64_t h = 0xcbf29ce484222325u; /* FNV-1a of the path, then the offset mixed in */
    for (const char *p = ref->path; *p; p++)
        h = (h ^ (uint8_t)*p) * 0x100000001b3u;
    h = (h ^ ref->off) * 0x9e3779b97f4a7c15u;
    return h ^ h >> 32;
}

/* ---- nodes ---- */

struct ckpt_ocdbt_node *ckpt_ocdbt_node_ref(struct ckpt_ocdbt_node *node)
{
    atomic_fetch_add_explicit(&node->refs, 1, memory_order_relaxed);
    return node;
}

void ckpt_ocdbt_node_unref(struct ckpt_ocdbt_node *node)
{
    if (!node || atomic_fetch_sub_explicit(&node->refs, 1, memory_order_acq_rel) != 1)
        return;
    ckpt_ocdbt_ref_clear(&node->ref);
    ckpt_ocdbt_files_clear(&node->files);
    free(node->keys);
    free(node->key);
    free(node->file);
    free(node->pos);
    free(node->len);
    free(node->common);
    free(node->values);
    free(node);
}

int ckpt_ocdbt_compare(const uint8_t *a, size_t a_len, const uint8_t *b, size_t b_len)
{
    int c = memcmp(a, b, CKPT_MIN(a_len, b_len));
    return c ? c : (a_len > b_len) - (a_len < b_len);
}

int ckpt_ocdbt_compare_joined(const uint8_t *a, size_t a_len, const uint8_t *b, size_t b_len, const uint8_t *c,
                              size_t c_len)
{
    if (c_len <= a_len) {
        int r = memcmp(a, c, c_len);
        return r ? r : a_len + b_len > c_len;
    }
    int r = memcmp(a, c, a_len);
    return r ? r : ckpt_ocdbt_compare(b, b_len, c + a_len, c_len - a_len);
}

bool ckpt_ocdbt_begins_with(const uint8_t *key, size_t len, const uint8_t *prefix, size_t prefix_len)
{
    return len >= prefix_len && memcmp(key, prefix, prefix_len) == 0;
}

uint32_t ckpt_ocdbt_lower_bound(const struct ckpt_ocdbt_node *node, const uint8_t *key, size_t len)
{
    uint32_t lo = 0, hi = node->count;
    while (lo < hi) {
        uint32_t mid = lo + (hi - lo) / 2;
        size_t mid_len;
        const uint8_t *m = ckpt_ocdbt_key(node, mid, &mid_len);
        if (ckpt_ocdbt_compare(m, mid_len, key, len) < 0)
            lo = mid + 1;
        else
            hi = mid;
    }
    return lo;
}

/* The keys, prefixes put back: strictly rising, none longer than a key may be with what comes down from the root. */
static int parse_keys(struct ckpt_ocdbt_node *node, struct ckpt_ocdbt_reader *r, struct ckpt_err *err)
{
    uint32_t n = node->count;
    CKPT_AUTOFREE uint16_t *prefix = calloc(n, sizeof *prefix);
    CKPT_AUTOFREE uint16_t *suffix = calloc(n, sizeof *suffix);
    node->key = calloc((size_t)n + 1, sizeof *node->key);
    if (node->ref.height)
        node->common = calloc(n, sizeof *node->common);
    if (!prefix || !suffix || !node->key || (node->ref.height && !node->common))
        return ckpt_no_memory(err);
    column16(r, prefix + 1, n - 1);
    column16(r, suffix, n);
    if (node->common)
        column16(r, node->common, n);
    if (r->bad)
        return ckpt_ocdbt_fail_short(err);

    uint64_t total = 0;
    uint32_t before = 0;
    for (uint32_t i = 0; i < n; i++) {
        uint32_t len = (uint32_t)prefix[i] + suffix[i];
        if (prefix[i] > before || node->ref.prefix_len + len > CKPT_OCDBT_KEY_MAX ||
            (node->common && node->common[i] > len))
            return ckpt_fail(err, EUCLEAN, "entry %u: the lengths of its key do not fit", i);
        before = len;
        total += len;
        if (total > CKPT_OCDBT_EXPANDED_MAX)
            return ckpt_fail(err, EUCLEAN, "its keys have more than %llu bytes",
                             (unsigned long long)CKPT_OCDBT_EXPANDED_MAX);
        node->key[i + 1] = (uint32_t)total;
    }
    node->keys = malloc(total ? total : 1);
    if (!node->keys)
        return ckpt_no_memory(err);
    for (uint32_t i = 0; i < n; i++) {
        const uint8_t *tail = ckpt_ocdbt_take(r, suffix[i]);
        if (!tail)
            return ckpt_ocdbt_fail_short(err);
        uint8_t *key = node->keys + node->key[i];
        if (i) {
            const uint8_t *last = node->keys + node->key[i - 1];
            size_t last_len = node->key[i] - node->key[i - 1];
            if (ckpt_ocdbt_compare(tail, suffix[i], last + prefix[i], last_len - prefix[i]) <= 0)
                return ckpt_fail(err, EUCLEAN, "entry %u: its key is not above the one before", i);
            memcpy(key, last, prefix[i]);
        }
        memcpy(key + prefix[i], tail, suffix[i]);
    }
    return 0;
}

/* The range and file of one value or child. */
static int check_place(const struct ckpt_ocdbt_node *node, uint32_t i, struct ckpt_err *err)
{
    uint64_t end;
    if (node->file[i] >= node->files.count || !*ckpt_ocdbt_path(&node->files, node->file[i]))
        return ckpt_fail(err, EUCLEAN, "entry %u: there is no data file %u", i, node->file[i]);
    if (ckpt_add(node->pos[i], node->len[i], &end) || end > CKPT_OCDBT_OFFSET_MAX)
        return ckpt_fail(err, EUCLEAN, "entry %u: offset and length are out of range", i);
    return 0;
}

static int parse_leaf(struct ckpt_ocdbt_node *node, struct ckpt_ocdbt_reader *r, struct ckpt_err *err)
{
    uint32_t n = node->count;
    column64(r, node->len, n);
    const uint8_t *kind = ckpt_ocdbt_take(r, n);
    if (!kind)
        return ckpt_ocdbt_fail_short(err);
    for (uint32_t i = 0; i < n; i++) {
        if (kind[i] > 1)
            return ckpt_fail(err, EUCLEAN, "entry %u: value kind %u", i, kind[i]);
        node->file[i] = kind[i] ? (uint32_t)ckpt_ocdbt_varint(r, UINT32_MAX - 1) : CKPT_OCDBT_INLINE;
    }
    uint64_t values = 0;
    for (uint32_t i = 0; i < n && !r->bad; i++) {
        if (kind[i]) {
            node->pos[i] = ckpt_ocdbt_varint(r, CKPT_OCDBT_OFFSET_MAX);
            int e = r->bad ? 0 : check_place(node, i, err);
            if (e < 0)
                return e;
            continue;
        }
        if (node->len[i] > CKPT_OCDBT_INLINE_MAX)
            return ckpt_fail(err, EUCLEAN, "entry %u: an inline value of %llu bytes", i,
                             (unsigned long long)node->len[i]);
        node->pos[i] = values;
        values += node->len[i];
    }
    if (r->bad)
        return ckpt_ocdbt_fail_short(err);
    if (values != (uint64_t)(r->end - r->p))
        return ckpt_fail(err, EUCLEAN, "%zu bytes of inline values, where the lengths say %llu",
                         (size_t)(r->end - r->p), (unsigned long long)values);
    return 0;
}

static int parse_interior(struct ckpt_ocdbt_node *node, struct ckpt_ocdbt_reader *r, struct ckpt_err *err)
{
    uint32_t n = node->count;
    for (uint32_t i = 0; i < n; i++)
        node->file[i] = (uint32_t)ckpt_ocdbt_varint(r, UINT32_MAX - 1);
    column64(r, node->pos, n);
    column64(r, node->len, n);
    for (uint32_t i = 0; i < n && !r->bad; i++) {
        int e = check_place(node, i, err);
        if (e < 0)
            return e;
    }
    for (uint64_t i = 0; i < (uint64_t)n * 3; i++)
        ckpt_ocdbt_varint(r, UINT64_MAX); /* statistics: keys, tree bytes, value bytes */
    if (r->bad)
        return ckpt_ocdbt_fail_short(err);
    if (r->p != r->end)
        return ckpt_fail(err, EUCLEAN, "%zu bytes are left over", (size_t)(r->end - r->p));
    return 0;
}

/* Keeps of the body only its end, the inline values. */
static void keep_values(struct ckpt_ocdbt_node *node, uint8_t **body, const struct ckpt_ocdbt_reader *r)
{
    size_t len = (size_t)(r->end - r->p);
    node->values = CKPT_STEAL(*body);
    memmove(node->values, r->p, len);
    uint8_t *less = realloc(node->values, len);
    if (less)
        node->values = less;
    node->bytes += len;
}

int ckpt_ocdbt_node_parse(const struct ckpt_ocdbt_ref *ref, uint8_t *taken, size_t len, struct ckpt_ocdbt_node **ret,
                          struct ckpt_err *err)
{
    CKPT_AUTOFREE uint8_t *body = taken;
    struct ckpt_ocdbt_reader r = {body, body + len, false};
    struct ckpt_ocdbt_node *node = calloc(1, sizeof *node);
    if (!node)
        return ckpt_no_memory(err);
    atomic_init(&node->refs, 1);
    int e = ckpt_ocdbt_ref_copy(&node->ref, ref);
    if (e < 0) {
        free(node);
        return ckpt_no_memory(err);
    }
    unsigned height = ckpt_ocdbt_u8(&r);
    if (r.bad)
        e = ckpt_ocdbt_fail_short(err);
    else if (height != ref->height)
        e = ckpt_fail(err, EUCLEAN, "height %u, where the reference to it says %u", height, ref->height);
    if (e == 0)
        e = ckpt_ocdbt_files_parse(&r, ref->path, ref->base, &node->files, err);
    if (e == 0) {
        node->count = (uint32_t)ckpt_ocdbt_varint(&r, CKPT_OCDBT_ENTRIES_MAX);
        /* An entry takes three bytes at least. */
        if (r.bad || node->count == 0 || node->count > (size_t)(r.end - r.p) / 3)
            e = ckpt_fail(err, EUCLEAN, "the number of entries is out of range");
    }
    if (e == 0)
        e = parse_keys(node, &r, err);
    if (e == 0) {
        node->file = calloc(node->count, sizeof *node->file);
        node->pos = calloc(node->count, sizeof *node->pos);
        node->len = calloc(node->count, sizeof *node->len);
        if (!node->file || !node->pos || !node->len)
            e = ckpt_no_memory(err);
    }
    if (e == 0)
        e = height ? parse_interior(node, &r, err) : parse_leaf(node, &r, err);
    if (e < 0) {
        ckpt_ocdbt_node_unref(node);
        return e;
    }
    node->bytes = sizeof *node + strlen(ref->path) + ref->prefix_len + node->files.bytes + node->key[node->count] +
                  (size_t)node->count * (sizeof *node->key + sizeof *node->file + sizeof *node->pos +
                                         sizeof *node->len + (height ? sizeof *node->common : 0));
    if (!height && r.p != r.end)
        keep_values(node, &body, &r);
    *ret = node;
    return 0;
}
