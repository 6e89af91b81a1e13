/* SPDX-License-Identifier: Apache-2.0 */
/* A path is known by a hash of its directory's hash and its name, so that an item has a fixed size however deep it
 * lies.
 */
#include "core/store/part_items.h"

#include "core/base/grow.h"
#include "core/base/util.h"

#include <stdio.h>
#include <xxhash.h>

static const XXH128_hash_t no_hash = {0, 0};

struct item {
    XXH128_hash_t path;
    enum ckpt_node_kind kind;
    uint8_t content[CKPT_SHA256];
};

struct ckpt_part_items {
    struct item *list; /* by path */
    size_t count, room;
};

/* One pass through a manifest. */
struct reading {
    XXH128_hash_t *dirs; /* paths of the directories, by number */
    uint32_t dir_room;
    struct ckpt_part_items *to;          /* what comes is added to these; or NULL: */
    const struct ckpt_part_items *other; /* it is compared with these */
    char *conflict;
};

static int compare_paths(const void *a, const void *b)
{
    return XXH128_cmp(&((const struct item *)a)->path, &((const struct item *)b)->path);
}

static bool same_content(const struct item *a, const struct item *b)
{
    if (a->kind != b->kind)
        return false;
    return a->kind == CKPT_NODE_DIR || !memcmp(a->content, b->content, sizeof a->content);
}

static int note_dir(struct reading *x, uint32_t number, XXH128_hash_t path)
{
    if (number >= x->dir_room) {
        uint32_t room = CKPT_MAX(number + 1, x->dir_room * 2);
        XXH128_hash_t *p = realloc(x->dirs, room * sizeof *p);
        if (!p)
            return -ENOMEM;
        memset(p + x->dir_room, 0, (room - x->dir_room) * sizeof *p);
        x->dirs = p;
        x->dir_room = room;
    }
    x->dirs[number] = path;
    return 0;
}

static XXH128_hash_t path_of_node(const struct reading *x, const struct ckpt_manifest_node *n)
{
    char key[sizeof(XXH128_hash_t) + 256];
    size_t len = strlen(n->name);
    XXH128_hash_t parent = n->parent < x->dir_room ? x->dirs[n->parent] : no_hash;
    memcpy(key, &parent, sizeof parent);
    memcpy(key + sizeof parent, n->name, len);
    return XXH3_128bits(key, sizeof parent + len);
}

static void set_content(struct item *i, const struct ckpt_manifest_node *n)
{
    if (!n->text) {
        memcpy(i->content, n->sha256, sizeof i->content);
        return;
    }
    XXH128_hash_t text = XXH3_128bits(n->text, strlen(n->text));
    memcpy(i->content, &text, sizeof text);
}

static int compare_item(const struct reading *x, const struct item *i, const char *name)
{
    const struct ckpt_part_items *other = x->other;
    if (!other->count)
        return 0;
    const struct item *found = bsearch(i, other->list, other->count, sizeof *i, compare_paths);
    if (!found || same_content(found, i))
        return 0;
    snprintf(x->conflict, CKPT_PART_CONFLICT, "%s", name);
    return -EEXIST;
}

static int add_item(struct ckpt_part_items *items, const struct item *i)
{
    if (!CKPT_ROOM_FOR_ONE(items->list, items->count, items->room))
        return -ENOMEM;
    items->list[items->count++] = *i;
    return 0;
}

static int read_node(void *arg, uint32_t number, const struct ckpt_manifest_node *n, uint64_t off, uint32_t len)
{
    struct reading *x = arg;
    struct item i = {.kind = n->kind, .path = path_of_node(x, n)};
    if (n->kind == CKPT_NODE_DIR && note_dir(x, number, i.path) < 0)
        return -ENOMEM;
    set_content(&i, n);
    return x->other ? compare_item(x, &i, n->name) : add_item(x->to, &i);
}

static int read_manifest(struct ckpt_file *manifest, struct reading *x, struct ckpt_err *err)
{
    struct ckpt_manifest_info info = {0};
    int r = note_dir(x, 0, no_hash);
    if (r == 0)
        r = ckpt_manifest_each(manifest, &info, read_node, x, err);
    ckpt_manifest_info_clear(&info);
    free(x->dirs);
    return r;
}

int ckpt_part_items_read(struct ckpt_file *manifest, struct ckpt_part_items **ret, struct ckpt_err *err)
{
    struct ckpt_part_items *items = calloc(1, sizeof *items);
    if (!items)
        return -ENOMEM;
    struct reading x = {.to = items};
    int r = read_manifest(manifest, &x, err);
    if (r < 0) {
        ckpt_part_items_free(items);
        return r;
    }
    if (items->count)
        qsort(items->list, items->count, sizeof *items->list, compare_paths);
    *ret = items;
    return r;
}

void ckpt_part_items_free(struct ckpt_part_items *items)
{
    if (!items)
        return;
    free(items->list);
    free(items);
}

bool ckpt_part_items_equal(const struct ckpt_part_items *a, const struct ckpt_part_items *b)
{
    if (a->count != b->count)
        return false;
    for (size_t i = 0; i < a->count; i++) {
        const struct item *x = &a->list[i], *y = &b->list[i];
        bool same = XXH128_isEqual(x->path, y->path) && x->kind == y->kind;
        if (!same || memcmp(x->content, y->content, CKPT_SHA256))
            return false;
    }
    return true;
}

int ckpt_part_items_compare(const struct ckpt_part_items *items, struct ckpt_file *other,
                            char conflict[CKPT_PART_CONFLICT], struct ckpt_err *err)
{
    struct reading x = {.other = items, .conflict = conflict};
    return read_manifest(other, &x, err);
}
