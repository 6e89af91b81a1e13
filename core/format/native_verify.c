/* SPDX-License-Identifier: Apache-2.0 */
/* Every leaf's bytes against the SHA-256 in its record, and every object that holds several against its name. */
#include "core/base/util.h"
#include "core/format/native_private.h"

#include <openssl/evp.h>
#include <stdio.h>

#define BLOCK ((size_t)1 << 20)

static const uint8_t none[CKPT_SHA256];

/* Hashes, open addressing; `none` is a free place. */
struct hashes {
    uint8_t (*slots)[CKPT_SHA256];
    uint32_t size, count;
};

struct verifier {
    struct ckpt_tree *tree;
    void (*progress)(void *arg, uint64_t bytes);
    void *arg;
    uint8_t *block;
    EVP_MD_CTX *md;
    struct hashes right; /* objects */
    unsigned faults;
    struct ckpt_err first; /* of them */
};

static bool is_none(const uint8_t *sha256)
{
    return !memcmp(sha256, none, CKPT_SHA256);
}

/* Where a hash is, or would be. */
static uint8_t *hash_slot(struct hashes *h, const uint8_t *sha256)
{
    uint32_t at = ckpt_le32(sha256) & (h->size - 1);
    while (!is_none(h->slots[at]) && memcmp(h->slots[at], sha256, CKPT_SHA256))
        at = (at + 1) & (h->size - 1);
    return h->slots[at];
}

static bool has_hash(struct hashes *h, const uint8_t *sha256)
{
    if (!h->size || is_none(sha256))
        return false;
    return !memcmp(hash_slot(h, sha256), sha256, CKPT_SHA256);
}

/* Without memory, something is verified twice. */
static void add_hash(struct hashes *h, const uint8_t *sha256)
{
    if (h->count * 2 >= h->size) {
        struct hashes larger = {.size = h->size ? h->size * 2 : 256, .count = h->count};
        larger.slots = calloc(larger.size, CKPT_SHA256);
        if (!larger.slots)
            return;
        for (uint32_t i = 0; i < h->size; i++)
            if (!is_none(h->slots[i]))
                memcpy(hash_slot(&larger, h->slots[i]), h->slots[i], CKPT_SHA256);
        free(h->slots);
        *h = larger;
    }
    memcpy(hash_slot(h, sha256), sha256, CKPT_SHA256);
    h->count++;
}

static int read_block(struct verifier *v, const struct ckpt_extent *e, uint64_t off, size_t len, struct ckpt_err *err)
{
    int r = ckpt_extent_read(e, v->block, len, off);
    if (r < 0)
        return ckpt_fail(err, -r, "%s", r == -EBADMSG ? "stored data is damaged" : strerror(-r));
    return 0;
}

/* The bytes of an extent have this hash. */
static int check_extent(struct verifier *v, const struct ckpt_extent *e, const uint8_t *sha256, struct ckpt_err *err)
{
    uint8_t got[EVP_MAX_MD_SIZE];
    bool ok = EVP_DigestInit_ex(v->md, EVP_sha256(), NULL) == 1;
    for (uint64_t off = 0; ok && off < e->len;) {
        size_t n = (size_t)CKPT_MIN((uint64_t)BLOCK, e->len - off);
        int r = read_block(v, e, off, n, err);
        if (r < 0)
            return r;
        ok = EVP_DigestUpdate(v->md, v->block, n) == 1;
        off += n;
        if (v->progress)
            v->progress(v->arg, n);
    }
    if (!ok || EVP_DigestFinal_ex(v->md, got, NULL) != 1)
        return ckpt_fail(err, ENOMEM, "SHA-256 cannot be computed");
    if (memcmp(got, sha256, CKPT_SHA256))
        return ckpt_fail(err, EBADMSG, "the bytes do not have the SHA-256 that they are stored under");
    return 0;
}

static int add_sparse(struct verifier *v, const struct ckpt_extent *e, uint64_t off, size_t len, struct ckpt_err *err)
{
    int r = read_block(v, e, off, len, err);
    if (r < 0)
        return r;
    if (ckpt_sparse_name_add(v->md, v->block, len, off) < 0)
        return ckpt_fail(err, ENOMEM, "its name cannot be computed");
    return 0;
}

/* What is in an extent has this name. Holes are not read. */
static int check_sparse(struct verifier *v, const struct ckpt_extent *e, const uint8_t *name, struct ckpt_err *err)
{
    uint8_t got[CKPT_SHA256];
    int r = ckpt_sparse_name_begin(v->md, e->len);
    for (uint64_t off = 0, end; r == 0 && off < e->len; off = end) {
        bool data = ckpt_extent_run(e, off, &end);
        for (uint64_t at = off; data && at < end && r == 0; at += BLOCK)
            r = add_sparse(v, e, at, (size_t)CKPT_MIN((uint64_t)BLOCK, end - at), err);
        if (v->progress)
            v->progress(v->arg, end - off);
    }
    if (r == 0)
        r = ckpt_sparse_name_end(v->md, got);
    if (r < 0)
        return err && err->code ? r : ckpt_fail(err, ENOMEM, "its name cannot be computed");
    if (memcmp(got, name, CKPT_SHA256))
        return ckpt_fail(err, EBADMSG, "the bytes do not have the name that they are stored under");
    return 0;
}

/* An object that leaves are part of. */
static int check_object(struct verifier *v, const uint8_t *sha256, struct ckpt_err *err)
{
    const struct store *s = v->tree->priv;
    struct ckpt_span span = {0};
    struct ckpt_extent e = {0};
    memcpy(span.object, sha256, CKPT_SHA256);
    int r = ckpt_opened_get(s->opened, &span, &e.file, err);
    if (r < 0)
        return r;
    e.len = e.file->st.size;
    r = check_extent(v, &e, sha256, err);
    ckpt_extent_clear(&e);
    if (r == 0)
        add_hash(&v->right, sha256);
    else {
        char hex[CKPT_HEX];
        ckpt_hash_hex(sha256, hex);
        ckpt_fail_in(err, -r, "object %s", hex);
    }
    return r;
}

/* The leaf's own bytes, read as any reader does. */
static int check_bytes(struct verifier *v, uint32_t node, const struct ckpt_manifest_node *n, struct ckpt_err *err)
{
    CKPT_AUTOEXTENT struct ckpt_extent e = {0};
    int r = v->tree->ops->file(v->tree, node, &e, err);
    if (r < 0)
        return r;
    bool sparse = ckpt_manifest_is_sparse(n);
    return sparse ? check_sparse(v, &e, n->object, err) : check_extent(v, &e, n->sha256, err);
}

static int check_leaf(struct verifier *v, uint32_t node, struct ckpt_err *err)
{
    struct ckpt_manifest_node n;
    int r = ckpt_store_record(v->tree, node, &n, err);
    if (r < 0)
        return r;
    ckpt_manifest_node_clear(&n);
    bool in_object = n.kind != CKPT_NODE_VALUE;
    bool whole = in_object && !n.offset &&
                 !memcmp(n.object, n.sha256, CKPT_SHA256); /* the object is the leaf's alone */
    if (whole && has_hash(&v->right, n.sha256))
        return 0;
    if (in_object && !whole && !has_hash(&v->right, n.object)) {
        r = check_object(v, n.object, err);
        if (r < 0)
            return r;
    }
    r = check_bytes(v, node, &n, err);
    if (r == 0 && whole)
        add_hash(&v->right, n.sha256);
    return r;
}

/* Keeps the first fault, with its leaf; the others are counted. */
static void note_fault(struct verifier *v, uint32_t node, const struct ckpt_err *err)
{
    char path[256];
    if (v->faults++)
        return;
    v->first = *err;
    ckpt_store_path(v->tree, node, path, sizeof path);
    ckpt_fail_in(&v->first, err->code, "%s", path);
}

/* What verifying found; its text says how many leaves are damaged. */
static int give_faults(const struct verifier *v, struct ckpt_err *err)
{
    if (!v->faults)
        return 0;
    if (err) {
        *err = v->first;
        size_t len = strlen(err->text);
        if (v->faults > 1)
            snprintf(err->text + len, sizeof err->text - len, " (and %u more)", v->faults - 1);
    }
    return -v->first.code;
}

int ckpt_store_verify(struct ckpt_tree *t, void (*progress)(void *arg, uint64_t bytes), void *arg, struct ckpt_err *err)
{
    struct verifier v = {.tree = t, .progress = progress, .arg = arg, .block = malloc(BLOCK), .md = EVP_MD_CTX_new()};
    int r = v.block && v.md ? 0 : ckpt_no_memory(err);
    for (uint32_t node = 1; node < t->count && r == 0; node++) {
        struct ckpt_err own = {0};
        bool leaf = t->nodes[node].kind != CKPT_NODE_DIR;
        if (leaf && check_leaf(&v, node, &own) < 0)
            note_fault(&v, node, &own);
    }
    if (r == 0)
        r = give_faults(&v, err);
    free(v.block);
    free(v.right.slots);
    EVP_MD_CTX_free(v.md);
    return r;
}
