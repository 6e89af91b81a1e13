/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A folder of shards as one tree. The index says which names there are, and in which file each is; only the headers of
 * the files say whether a tensor is an array, so these are read when the folder is opened, and their places are kept. A
 * shard that is missing or malformed spoils its own tensors alone. What else is in the folder are blobs.
 */
#include "core/format/safetensors/safetensors_private.h"

#include "core/base/util.h"
#include "core/format/beside.h"
#include "core/io/json.h"
#include "core/format/safetensors/index.h"

#include <stdio.h>

#define MAX_ENTRIES (1u << 22)

struct folder {
    struct ckpt_tree *tree;
    struct safetensors *own;
    struct ckpt_file *index;
    char index_name[256];
    bool flat;
    enum ckpt_name_round round;
    struct ckpt_err *err;
};

static int no_memory(const struct folder *f)
{
    return ckpt_no_memory(f->err);
}

static uint64_t hash_of(const struct ckpt_buf *name)
{
    return ckpt_name_hash(name->data ? (char *)name->data : "", name->len);
}

/* --- the index --- */

static int note_entry(void *arg, const struct ckpt_buf *tensor, const char *shard)
{
    struct folder *f = arg;
    struct safetensors *s = f->own;
    uint32_t string;
    if (!strcmp(shard, f->index_name))
        return ckpt_fail(f->err, EUCLEAN, "a shard is the index itself");
    if (s->entry_count == MAX_ENTRIES)
        return ckpt_fail(f->err, EOPNOTSUPP, "more than %u tensors", MAX_ENTRIES);
    if (s->entry_count == s->entry_cap) {
        uint32_t cap = s->entry_cap ? s->entry_cap + s->entry_cap / 2 : 64;
        struct safetensors_entry *p = realloc(s->entries, cap * sizeof *p);
        if (!p)
            return no_memory(f);
        s->entries = p;
        s->entry_cap = cap;
    }
    if (ckpt_tree_string(f->tree, shard, strlen(shard), &string) < 0)
        return no_memory(f);
    s->entries[s->entry_count++] = (struct safetensors_entry){.hash = hash_of(tensor), .shard = string};
    return 0;
}

static int by_hash(const void *pa, const void *pb)
{
    const struct safetensors_entry *a = pa, *b = pb;
    return a->hash < b->hash ? -1 : a->hash > b->hash;
}

static int by_shard(const void *pa, const void *pb)
{
    const struct safetensors_entry *a = pa, *b = pb;
    return a->shard < b->shard ? -1 : a->shard > b->shard;
}

static struct safetensors_entry *find_entry(const struct safetensors *s, uint64_t hash)
{
    struct safetensors_entry key = {.hash = hash};
    return s->entry_count ? bsearch(&key, s->entries, s->entry_count, sizeof key, by_hash) : NULL;
}

/* The shards, from their names in the entries, which then have their numbers. */
static int number_shards(struct folder *f)
{
    struct safetensors *s = f->own;
    uint32_t n = 0;
    if (s->entry_count)
        qsort(s->entries, s->entry_count, sizeof *s->entries, by_shard);
    for (uint32_t i = 0; i < s->entry_count; i++)
        n += !i || s->entries[i].shard != s->entries[i - 1].shard;
    s->shards = calloc(n + 1, sizeof *s->shards);
    if (!s->shards)
        return no_memory(f);
    for (uint32_t i = 0; i < s->entry_count; i++) {
        uint32_t name = s->entries[i].shard;
        if (!s->shard_count || s->shards[s->shard_count - 1].name != name)
            s->shards[s->shard_count++].name = name;
        s->entries[i].shard = s->shard_count - 1;
    }
    if (s->entry_count)
        qsort(s->entries, s->entry_count, sizeof *s->entries, by_hash);
    for (uint32_t i = 1; i < s->entry_count; i++)
        if (s->entries[i].hash == s->entries[i - 1].hash)
            return ckpt_fail(f->err, EUCLEAN, "a tensor is in weight_map twice");
    return 0;
}

/* --- the shards --- */

struct loading {
    struct safetensors *own;
    uint32_t shard;
};

/* A tensor that the map does not have, or has in another file, is not shown. */
static int note_place(void *arg, const struct ckpt_buf *name, uint64_t place, const struct safetensors_tensor *tensor)
{
    const struct loading *l = arg;
    struct safetensors_entry *e = find_entry(l->own, hash_of(name));
    if (e && e->shard == l->shard) {
        e->place = (uint32_t)place & 0x7fffffff;
        e->packed = tensor->packed;
    }
    return 0;
}

static int read_shard(struct folder *f, uint32_t number, struct ckpt_buf *metadata, struct ckpt_err *err)
{
    struct safetensors_shard *shard = &f->own->shards[number];
    struct loading l = {f->own, number};
    struct safetensors_header h;
    struct ckpt_file *file;
    size_t len;
    int r = ckpt_pins_open(f->tree->pins, ckpt_tree_text(f->tree, shard->name, &len), &file);
    if (r < 0)
        return ckpt_fail(err, r == -ENOENT ? EIO : -r, "%s",
                         r == -ENOENT ? "this shard is missing"
                         : r == -EUCLEAN
                             ? "a link that leads out of the source; a folder that holds both can be mounted instead"
                             : strerror(-r));
    shard->ino = file->st.ino;
    shard->size = file->st.size;
    shard->mtime_ns = file->st.mtime_ns;
    r = ckpt_safetensors_header_open(file, &h, err);
    if (r == 0) {
        r = ckpt_safetensors_header_check(&h, metadata, err);
        if (r == 0)
            r = ckpt_safetensors_header_each(&h, note_place, &l, err);
        ckpt_safetensors_header_close(&h);
    }
    ckpt_file_unref(file);
    return r;
}

/* *metadata: those of the first shard that has any. */
static int read_shards(struct folder *f, struct ckpt_buf *metadata)
{
    struct safetensors *s = f->own;
    for (uint32_t i = 0; i < s->shard_count; i++) {
        struct ckpt_err err = {0};
        int r = read_shard(f, i, metadata->len ? NULL : metadata, &err);
        if (r == 0)
            continue;
        if (r == -ENOMEM || ckpt_tree_string(f->tree, err.text, strlen(err.text), &s->shards[i].why) < 0)
            return no_memory(f);
        s->shards[i].error = -r;
        metadata->len = 0;
    }
    return 0;
}

int ckpt_safetensors_folder_locate(struct ckpt_tree *t, uint32_t entry, struct ckpt_file **ret, uint64_t *ret_place,
                                   struct ckpt_err *err)
{
    const struct safetensors *s = t->priv;
    const struct safetensors_entry *e = &s->entries[entry];
    const struct safetensors_shard *shard = &s->shards[e->shard];
    size_t len;
    const char *name = ckpt_tree_text(t, shard->name, &len);
    if (shard->error)
        return ckpt_fail(err, shard->error, "%s: %s", name, ckpt_tree_text(t, shard->why, &len));
    if (!e->place)
        return ckpt_fail(err, ENODATA, "%s does not have this tensor, though the index says so", name);
    int r = ckpt_pins_open(t->pins, name, ret);
    if (r < 0)
        return ckpt_fail(err, r == -ENOENT ? EIO : -r, "%s: %s", name, strerror(-r));
    const struct ckpt_stat *st = &(*ret)->st;
    if (st->ino == shard->ino && st->size == shard->size && st->mtime_ns == shard->mtime_ns) {
        *ret_place = e->place;
        return 0;
    }
    ckpt_file_unref(*ret);
    return ckpt_fail(err, ESTALE, "%s was replaced since the folder was opened", name);
}

/* --- the tree --- */

static int add_tensor(void *arg, const struct ckpt_buf *tensor, const char *shard)
{
    struct folder *f = arg;
    struct safetensors_entry *e = find_entry(f->own, hash_of(tensor));
    uint32_t node;
    if (!e)
        return ckpt_fail(f->err, ESTALE, "the index is being changed");
    int r = ckpt_tree_add_named(f->tree, tensor->data ? (char *)tensor->data : "", tensor->len, f->flat, f->round,
                                e->packed ? CKPT_NODE_BLOB : CKPT_NODE_ARRAY, &node, f->err);
    if (r == 1)
        f->tree->nodes[node].ref = (uint32_t)(e - f->own->entries);
    return r < 0 ? r : 0;
}

/* The index, and what is shown as tensors already. */
static bool is_own_file(void *arg, const char *name)
{
    const struct folder *f = arg;
    const struct safetensors *s = f->own;
    uint32_t string;
    if (!strcmp(name, f->index_name))
        return true;
    if (ckpt_tree_string(f->tree, name, strlen(name), &string) < 0)
        return false;
    for (uint32_t lo = 0, hi = s->shard_count; lo < hi;) { /* they are in the order of the strings */
        uint32_t mid = lo + (hi - lo) / 2;
        if (s->shards[mid].name == string)
            return true;
        if (s->shards[mid].name < string)
            lo = mid + 1;
        else
            hi = mid;
    }
    return false;
}

/* Of the index, and what it does not say, of the shards: loaders ask for their "format". */
static int join_metadata(struct folder *f, struct ckpt_buf *index, const struct ckpt_buf *shard)
{
    cJSON *own = index->len ? ckpt_json_parse((char *)index->data, index->len) : NULL;
    cJSON *more = shard->len ? ckpt_json_parse((char *)shard->data, shard->len) : NULL;
    const cJSON *e;
    bool any = own && own->child;
    if (!own) {
        index->len = 0;
        ckpt_buf_addc(index, '{');
    } else
        index->len--; /* of its end, to go on */
    if (more)
        cJSON_ArrayForEach(e, more)
        {
            if (ckpt_json_get(own, e->string))
                continue;
            if (any)
                ckpt_buf_addc(index, ',');
            ckpt_buf_add_json_string(index, e->string, strlen(e->string));
            ckpt_buf_addc(index, ':');
            ckpt_buf_add_json_string(index, e->valuestring, strlen(e->valuestring));
            any = true;
        }
    ckpt_buf_addc(index, '}');
    cJSON_Delete(own);
    cJSON_Delete(more);
    int r = ckpt_buf_error(index);
    return r < 0 ? ckpt_fail(f->err, -r, "%s", strerror(-r)) : ckpt_safetensors_set_metadata(f->tree, index, f->err);
}

static int load(struct folder *f)
{
    struct ckpt_buf metadata = {.max = SAFETENSORS_MAX_METADATA},
                    shard_metadata = {.max = SAFETENSORS_MAX_METADATA + 1};
    int r = ckpt_safetensors_index_each(f->index, note_entry, f, &metadata, f->err);
    if (r == 0)
        r = number_shards(f);
    if (r == 0)
        r = read_shards(f, &shard_metadata);
    for (; f->round < CKPT_NAME_ROUNDS && r == 0; f->round++) {
        r = ckpt_safetensors_index_each(f->index, add_tensor, f, NULL, f->err);
        if (r == 0 && f->round == CKPT_NAMES_PLAIN)
            r = ckpt_add_beside(&(struct ckpt_beside){f->tree, is_own_file, f, SAFETENSORS_FILE_MARK}, f->err);
    }
    if (ckpt_buf_error(&metadata)) /* too long to be kept */
        ckpt_buf_clear(&metadata);
    metadata.max = 0;
    if (r == 0)
        r = join_metadata(f, &metadata, &shard_metadata);
    ckpt_buf_clear(&metadata);
    ckpt_buf_clear(&shard_metadata);
    return r < 0 ? r : ckpt_tree_finish(f->tree, f->err);
}

/* The index: "model" has the first right, then the first by name. */
static int choose_index(void *arg, const char *name, enum ckpt_ftype type)
{
    static const char model[] = "model" SAFETENSORS_INDEX;
    char *best = arg;
    if (type == CKPT_FT_DIR || !ckpt_has_suffix(name, SAFETENSORS_INDEX) || strlen(name) > 255 || !strcmp(best, model))
        return 0;
    if (!*best || !strcmp(name, model) || strcmp(name, best) < 0)
        strcpy(best, name);
    return 0;
}

int ckpt_safetensors_folder_open(const struct ckpt_opening *o, struct ckpt_tree **ret, struct ckpt_err *err)
{
    struct folder f = {.flat = o->flat, .err = err};
    int r = ckpt_backend_list(ckpt_pins_dir(o->pins), "", choose_index, f.index_name);
    if (r == 0)
        r = ckpt_pins_open(o->pins, f.index_name, &f.index);
    if (r < 0)
        return ckpt_fail(err, -r, "%s: %s", f.index_name,
                         r == -EUCLEAN ? "a link that leads out of the source" : strerror(-r));
    r = ckpt_safetensors_tree_new(o, &f.tree, err);
    if (r == 0) {
        f.own = f.tree->priv;
        r = load(&f);
    }
    ckpt_file_unref(f.index);
    if (r < 0) {
        ckpt_tree_unref(f.tree);
        return ckpt_fail_in(err, -r, "%s", f.index_name);
    }
    *ret = f.tree;
    return 0;
}
