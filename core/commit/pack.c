/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Small leaves. All those of a commit that the store does not have already go into one object, its pack, one after
 * another. What the store has is known from the manifests of the newest steps; the table of them lives for this commit
 * only.
 */
#include "core/base/grow.h"
#include "core/commit/private.h"

#include "core/io/disk.h"
#include "core/store/internal.h"

#include <fcntl.h>
#include <openssl/sha.h>
#include <sys/random.h>
#include <xxhash.h>

#define PACK_NAME "pack.tmp"
#define ALIGN     64
#define PENDING   ((size_t)1 << 20)     /* written at once */
#define KNOWN_MAX 200000u               /* leaves of other steps */
#define STEPS_MAX 16u                   /* manifests that are read */
#define BYTES_MAX ((uint64_t)256 << 20) /* of them, beyond the first */
#define FREE      UINT32_MAX
#define IS_KNOWN  ((uint32_t)1 << 31) /* a slot's number is one of `known`, not of the commit's leaves */

struct known {
    uint8_t sha256[CKPT_SHA256];
    uint64_t offset;
    uint32_t object, size, stored;
    uint8_t codec;
};

struct commit_pack {
    int fd;
    uint64_t written, size;
    struct ckpt_buf pending;
    bool any; /* a leaf is in it */
    /* the table: numbers of leaves by their hash, open addressing */
    uint32_t *slots;
    size_t slot_count, used;
    uint64_t seed; /* hashes may come from anybody */
    struct known *known;
    size_t known_count, known_room;
    bool loaded;
};

/* The pack that is being made is no object yet. */
#define THE_PACK (COMMIT_OWN - 1)

int ckpt_pack_new(struct commit *c)
{
    struct commit_pack *p = calloc(1, sizeof *p);
    if (!p)
        return -ENOMEM;
    p->fd = -1;
    if (getrandom(&p->seed, sizeof p->seed, 0) != sizeof p->seed)
        p->seed = (uint64_t)ckpt_realtime_ns();
    c->pack = p;
    return 0;
}

void ckpt_pack_free(struct commit *c)
{
    struct commit_pack *p = c->pack;
    if (!p)
        return;
    if (p->fd >= 0)
        close(p->fd);
    if (faccessat(c->in->work, PACK_NAME, F_OK, AT_SYMLINK_NOFOLLOW) == 0)
        (void)!ckpt_disk_unlink(c->in->work, PACK_NAME, 0);
    ckpt_buf_clear(&p->pending);
    free(p->slots);
    free(p->known);
    free(p);
    c->pack = NULL;
}

/* --- the table --- */

static const uint8_t *hash_of(const struct commit *c, uint32_t number)
{
    return number & IS_KNOWN ? c->pack->known[number & ~IS_KNOWN].sha256 : c->leaves[number].sha256;
}

/* Where it is, or where it would go. */
static size_t place(const struct commit *c, const uint8_t sha256[CKPT_SHA256])
{
    const struct commit_pack *p = c->pack;
    size_t i = XXH3_64bits_withSeed(sha256, CKPT_SHA256, p->seed) & (p->slot_count - 1);
    while (p->slots[i] != FREE && memcmp(hash_of(c, p->slots[i]), sha256, CKPT_SHA256))
        i = (i + 1) & (p->slot_count - 1);
    return i;
}

static int table_add(struct commit *c, uint32_t number)
{
    struct commit_pack *p = c->pack;
    if (p->used >= p->slot_count / 3 * 2) {
        uint32_t *old = p->slots;
        size_t count = p->slot_count;
        p->slot_count = count ? 2 * count : 1024;
        p->slots = malloc(p->slot_count * sizeof *p->slots);
        if (!p->slots) {
            p->slots = old;
            p->slot_count = count;
            return -ENOMEM;
        }
        memset(p->slots, 0xff, p->slot_count * sizeof *p->slots);
        for (size_t i = 0; i < count; i++)
            if (old[i] != FREE)
                p->slots[place(c, hash_of(c, old[i]))] = old[i];
        free(old);
    }
    size_t i = place(c, hash_of(c, number));
    if (p->slots[i] == FREE) {
        p->slots[i] = number;
        p->used++;
    }
    return 0;
}

/* --- what other steps have --- */

static int add_known(void *arg, uint32_t number, const struct ckpt_manifest_node *n, uint64_t off, uint32_t len)
{
    struct commit *c = arg;
    struct commit_pack *p = c->pack;
    if ((n->kind != CKPT_NODE_ARRAY && n->kind != CKPT_NODE_BLOB) || n->size >= CKPT_SMALL ||
        p->known_count == KNOWN_MAX)
        return 0; /* to the end, where the checksum is */
    if (!CKPT_ROOM_FOR_ONE(p->known, p->known_count, p->known_room))
        return -ENOMEM;
    struct known *k = &p->known[p->known_count];
    *k = (struct known){.offset = n->offset, .size = (uint32_t)n->size, .codec = (uint8_t)n->codec};
    k->stored = (uint32_t)CKPT_MIN(n->stored, (uint64_t)UINT32_MAX);
    memcpy(k->sha256, n->sha256, CKPT_SHA256);
    int r = ckpt_commit_object(c, n->object, &k->object);
    p->known_count += r == 0;
    return r;
}

/* What a manifest knows that turns out to be damaged is forgotten. */
static int load_step(struct commit *c, const char *step, uint64_t *bytes)
{
    struct commit_pack *p = c->pack;
    struct ckpt_manifest_info info = {0};
    struct ckpt_file *file;
    size_t before = p->known_count;
    if (ckpt_store_manifest(c->store, step, &file, NULL) < 0)
        return 0;
    *bytes += file->st.size;
    int r = ckpt_manifest_each(file, &info, add_known, c, NULL);
    ckpt_manifest_info_clear(&info);
    ckpt_file_unref(file);
    if (r < 0)
        p->known_count = before;
    if (r == -ENOMEM)
        return r;
    for (size_t i = before; i < p->known_count; i++)
        if ((r = table_add(c, (uint32_t)i | IS_KNOWN)) < 0)
            return r;
    return 0;
}

static int newest_first(const void *a, const void *b)
{
    const struct ckpt_store_step *x = a, *y = b;
    return x->mtime_ns != y->mtime_ns ? (x->mtime_ns < y->mtime_ns) - (x->mtime_ns > y->mtime_ns)
                                      : strcmp(x->name, y->name);
}

static int load(struct commit *c)
{
    struct ckpt_store_step *steps;
    size_t count;
    uint64_t bytes = 0;
    int r = ckpt_store_steps(c->store, false, &steps, &count, NULL);
    if (r < 0)
        return r;
    if (count)
        qsort(steps, count, sizeof *steps, newest_first);
    for (size_t i = 0; i < count && i < STEPS_MAX && r == 0 && c->pack->known_count < KNOWN_MAX && bytes < BYTES_MAX;
         i++)
        r = load_step(c, steps[i].name, &bytes);
    ckpt_store_steps_free(steps, count);
    c->pack->loaded = true;
    return r;
}

/* Take what another step has; 0 if it is gone meanwhile, with its step. */
static int take_known(struct commit *c, const struct known *k, struct commit_leaf *ret)
{
    struct commit_object *object = &c->objects[k->object];
    if (!object->used) {
        int r = ckpt_hold_object(&c->hold, object->sha256);
        if (r < 0)
            return r == -ENOENT || r == -EMLINK ? 0 : r;
        object->used = true;
    }
    ret->object = k->object;
    ret->offset = k->offset;
    ret->stored = k->stored;
    ret->codec = k->codec;
    return 1;
}

/* --- the pack --- */

static int flush(struct commit_pack *p)
{
    int r = ckpt_disk_write(p->fd, p->pending.data, p->pending.len, p->written);
    p->written += p->pending.len;
    p->pending.len = 0;
    return r;
}

static int append(struct commit *c, const uint8_t *data, size_t len)
{
    static const uint8_t zeros[ALIGN];
    struct commit_pack *p = c->pack;
    if (p->fd < 0) {
        p->fd = ckpt_commit_temporary(c, PACK_NAME, OBJECT_MODE);
        if (p->fd < 0)
            return p->fd;
    }
    ckpt_buf_add(&p->pending, zeros, (ALIGN - p->size % ALIGN) % ALIGN);
    ckpt_buf_add(&p->pending, data, len);
    p->size = p->written + p->pending.len;
    p->any = true;
    return ckpt_buf_error(&p->pending) ? -ENOMEM : p->pending.len >= PENDING ? flush(p) : 0;
}

/* A leaf's bytes are not in any object that is known. */
static int add_new(struct commit *c, uint32_t number, const uint8_t *data, size_t len)
{
    struct commit_pack *p = c->pack;
    struct commit_leaf *leaf = &c->leaves[number];
    leaf->object = THE_PACK;
    leaf->offset = len ? (p->size + ALIGN - 1) / ALIGN * ALIGN : 0;
    int r = append(c, data, len);
    if (r < 0)
        return r;
    size_t i = p->slot_count ? place(c, leaf->sha256) : 0;
    if (p->slot_count && p->slots[i] != FREE) { /* of one that is gone */
        p->slots[i] = number;
        return 0;
    }
    return table_add(c, number);
}

/* 1: found. */
static int find(struct commit *c, struct commit_leaf *leaf)
{
    struct commit_pack *p = c->pack;
    uint32_t number = p->slot_count ? p->slots[place(c, leaf->sha256)] : FREE;
    if (number == FREE)
        return 0;
    if (number & IS_KNOWN) {
        const struct known *k = &p->known[number & ~IS_KNOWN];
        return k->size == leaf->size ? take_known(c, k, leaf) : 0;
    }
    *leaf = c->leaves[number];
    return 1;
}

int ckpt_pack_add(struct commit *c, size_t number, const uint8_t *data, size_t len, struct ckpt_err *err)
{
    struct commit_leaf *leaf = &c->leaves[number];
    leaf->size = len;
    SHA256(data, len, leaf->sha256);
    int r = c->pack->loaded ? 0 : load(c);
    if (r < 0)
        return ckpt_fail(err, -r, "the steps of the store cannot be read: %s", strerror(-r));
    r = find(c, leaf);
    if (r == 0)
        r = number < IS_KNOWN ? add_new(c, (uint32_t)number, data, len) : -EOPNOTSUPP;
    return r < 0 ? ckpt_fail(err, -r, "small leaves cannot be packed: %s", strerror(-r)) : 0;
}

/* What the leaves in the pack did not know before it was done. */
static void tell_leaves(struct commit *c, const struct ckpt_ref *ref, uint32_t object)
{
    for (size_t i = 0; i < c->leaf_count; i++) {
        struct commit_leaf *leaf = &c->leaves[i];
        if (leaf->object != THE_PACK)
            continue;
        leaf->object = object;
        leaf->codec = (uint8_t)ref->codec;
        leaf->stored = ref->size ? (uint64_t)((double)ref->stored * (double)leaf->size / (double)ref->size) : 0;
    }
}

int ckpt_pack_finish(struct commit *c, struct ckpt_err *err)
{
    struct commit_pack *p = c->pack;
    struct ckpt_ref ref;
    uint32_t object;
    if (!p->any)
        return 0;
    int r = p->pending.len ? flush(p) : 0;
    if (r < 0)
        return ckpt_fail(err, -r, "small leaves cannot be packed: %s", strerror(-r));
    bool plain = c->in->codec == CKPT_OBJECT_NONE;
    struct hold_input in = {
        .fd = p->fd,
        .size = p->size,
        .codec = plain ? CKPT_OBJECT_NONE : CKPT_OBJECT_LZ4,
        .sample = !plain,
        .typesize = 1,
        .chunk = CKPT_PACK_CHUNK,
        .raw = HOLD_MOVE,
        .dir = c->in->work,
        .name = PACK_NAME,
        .cancel = c->cancel,
    };
    r = ckpt_hold_content(&c->hold, &in, &ref, err);
    if (r == 0 && (r = ckpt_commit_object(c, ref.sha256, &object)) < 0)
        r = ckpt_fail(err, -r, "%s", strerror(-r));
    if (r < 0)
        return ckpt_fail_in(err, -r, "the pack of small leaves");
    c->objects[object].used = true;
    tell_leaves(c, &ref, object);
    return 0;
}
