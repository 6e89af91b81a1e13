/* SPDX-License-Identifier: Apache-2.0 */
#include "core/view/ocdbt_writer.h"

#include "core/base/util.h"
#include "core/codec/crc32c.h"

#include <xxhash.h>

#define MAGIC_MANIFEST 0x0cdb3a2au
#define MAGIC_NODE     0x0cdb20deu
#define MAX_INLINE     1024 /* what Orbax writes into its manifests */
#define MAX_NODE       100000000
#define LEAF_BYTES     ((size_t)1 << 20) /* a leaf of more is closed */
#define LEAF_KEYS      100000

static void add_varint(struct ckpt_buf *buf, uint64_t value)
{
    for (; value >= 0x80; value >>= 7)
        ckpt_buf_addc(buf, (char)(value | 0x80));
    ckpt_buf_addc(buf, (char)value);
}

static void add_buf(struct ckpt_buf *buf, const struct ckpt_buf *other)
{
    ckpt_buf_add(buf, other->data, other->len);
    if (ckpt_buf_error(other))
        buf->error = ckpt_buf_error(other);
}

/* A table of one data file. */
static void add_file_table(struct ckpt_buf *buf, const char *path)
{
    add_varint(buf, 1);
    add_varint(buf, strlen(path));
    add_varint(buf, 0); /* the length of its base */
    ckpt_buf_adds(buf, path);
}

static void add_key(struct ckpt_ocdbt_columns *c, const struct ckpt_buf *key)
{
    size_t common = 0, max = CKPT_MIN(key->len, c->last.len);
    while (c->count && common < max && key->data[common] == c->last.data[common])
        common++;
    if (c->count++)
        add_varint(&c->prefix, common);
    add_varint(&c->suffix, key->len - common);
    ckpt_buf_add(&c->keys, key->data + common, key->len - common);
    c->last.len = 0;
    add_buf(&c->last, key);
}

static void columns_each(struct ckpt_ocdbt_columns *c, void (*visit)(struct ckpt_buf *buf))
{
    struct ckpt_buf *all[] = {&c->prefix, &c->suffix, &c->keys,    &c->last,     &c->length,     &c->kind,    &c->file,
                              &c->offset, &c->values, &c->subtree, &c->num_keys, &c->tree_bytes, &c->indirect};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        visit(all[i]);
}

static void empty(struct ckpt_buf *buf)
{
    buf->len = 0;
}

/* Length and checksum around a body. */
static void add_envelope(struct ckpt_buf *out, uint32_t magic, const struct ckpt_buf *body)
{
    size_t begin = out->len;
    uint32_t big = __builtin_bswap32(magic);
    uint64_t length = 4 + 8 + 2 + body->len + 4;
    ckpt_buf_add(out, &big, sizeof big);
    ckpt_buf_add(out, &length, sizeof length);
    ckpt_buf_add(out, "\0\0", 2); /* version 0, not compressed */
    add_buf(out, body);
    if (ckpt_buf_error(out))
        return;
    uint32_t crc = ckpt_crc32c(0, out->data + begin, out->len - begin);
    ckpt_buf_add(out, &crc, sizeof crc);
}

/* A node at the end of the file of nodes: where, and how long. */
static int add_node(struct ckpt_ocdbt_writer *w, struct ckpt_ocdbt_columns *c, unsigned height, uint64_t *ret_off,
                    uint64_t *ret_len)
{
    struct ckpt_buf body = CKPT_BUF_INIT;
    ckpt_buf_addc(&body, (char)height);
    add_file_table(&body, height ? w->nodes_path : w->data_path);
    add_varint(&body, c->count);
    add_buf(&body, &c->prefix);
    add_buf(&body, &c->suffix);
    add_buf(&body, &c->subtree);
    add_buf(&body, &c->keys);
    if (height) {
        add_buf(&body, &c->file);
        add_buf(&body, &c->offset);
        add_buf(&body, &c->length);
        add_buf(&body, &c->num_keys);
        add_buf(&body, &c->tree_bytes);
        add_buf(&body, &c->indirect);
    } else {
        add_buf(&body, &c->length);
        add_buf(&body, &c->kind);
        add_buf(&body, &c->file);
        add_buf(&body, &c->offset);
        add_buf(&body, &c->values);
    }
    *ret_off = ckpt_rendering_text_size(w->nodes);
    add_envelope(&w->nodes->text, MAGIC_NODE, &body);
    *ret_len = ckpt_rendering_text_size(w->nodes) - *ret_off;
    ckpt_buf_clear(&body);
    ckpt_rendering_flush(w->nodes);
    return w->nodes->error ? w->nodes->error : ckpt_buf_error(&w->nodes->text);
}

static int end_leaf(struct ckpt_ocdbt_writer *w)
{
    struct ckpt_ocdbt_columns *root = &w->root;
    uint64_t off, len;
    int r = add_node(w, &w->leaf, 0, &off, &len);
    if (r < 0)
        return r;
    add_key(root, &w->first);
    add_varint(&root->subtree, 0);
    add_varint(&root->file, 0);
    add_varint(&root->offset, off);
    add_varint(&root->length, len);
    add_varint(&root->num_keys, w->leaf.count);
    add_varint(&root->tree_bytes, len);
    add_varint(&root->indirect, w->leaf_indirect);
    w->keys += w->leaf.count;
    w->tree_bytes += len;
    w->indirect += w->leaf_indirect;
    columns_each(&w->leaf, empty);
    w->leaf.count = w->leaf_indirect = 0;
    return 0;
}

int ckpt_ocdbt_write(struct ckpt_ocdbt_writer *w, const struct ckpt_buf *key, const void *value, uint64_t len,
                     uint64_t off)
{
    struct ckpt_ocdbt_columns *leaf = &w->leaf;
    if (ckpt_buf_error(key))
        return ckpt_buf_error(key);
    if (!leaf->count) {
        w->first.len = 0;
        add_buf(&w->first, key);
    }
    add_key(leaf, key);
    add_varint(&leaf->length, len);
    ckpt_buf_addc(&leaf->kind, value ? 0 : 1);
    if (value)
        ckpt_buf_add(&leaf->values, value, len);
    else {
        add_varint(&leaf->file, 0);
        add_varint(&leaf->offset, off);
        w->leaf_indirect += len;
    }
    return leaf->keys.len + leaf->values.len >= LEAF_BYTES || leaf->count >= LEAF_KEYS ? end_leaf(w) : 0;
}

int ckpt_ocdbt_write_manifest(struct ckpt_ocdbt_writer *w, uint64_t time_ns, struct ckpt_buf *manifest)
{
    struct ckpt_buf body = CKPT_BUF_INIT;
    uint64_t off = 0, len = 0;
    int r = w->leaf.count ? end_leaf(w) : 0;
    unsigned height = w->root.count > 1;
    len = w->tree_bytes; /* of the one leaf, which begins the file */
    if (r == 0 && height) {
        r = add_node(w, &w->root, height, &off, &len);
        w->tree_bytes += len;
    }
    if (r < 0)
        return r;
    XXH128_hash_t id = XXH3_128bits(w->root.last.data, w->root.last.len);
    id.low64 ^= w->indirect;
    id.high64 ^= w->keys;
    ckpt_buf_add(&body, &id, 16);
    ckpt_buf_addc(&body, 0); /* one manifest, not numbered */
    add_varint(&body, MAX_INLINE);
    add_varint(&body, MAX_NODE);
    ckpt_buf_addc(&body, 4); /* the version tree's arity, log2 */
    add_varint(&body, 0);    /* nodes are not compressed */
    add_file_table(&body, w->nodes_path);
    add_varint(&body, 1); /* versions */
    add_varint(&body, 1); /* the generation */
    ckpt_buf_addc(&body, (char)height);
    add_varint(&body, 0);
    add_varint(&body, off);
    add_varint(&body, len);
    add_varint(&body, w->keys);
    add_varint(&body, w->tree_bytes);
    add_varint(&body, w->indirect);
    ckpt_buf_add(&body, &time_ns, sizeof time_ns);
    add_varint(&body, 0); /* nodes of older versions */
    add_envelope(manifest, MAGIC_MANIFEST, &body);
    ckpt_buf_clear(&body);
    return ckpt_buf_error(manifest);
}

void ckpt_ocdbt_writer_clear(struct ckpt_ocdbt_writer *w)
{
    columns_each(&w->leaf, ckpt_buf_clear);
    columns_each(&w->root, ckpt_buf_clear);
    ckpt_buf_clear(&w->first);
}
