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

struct folder {
    struct ckpt_tree *tree;
    struct ckpt_shards *shards;
    struct ckpt_file *index;
    bool flat;
    ckpt_below_fn *below;
    enum ckpt_name_round round;
    struct ckpt_err *err;
};

/* --- the shards --- */

struct loading {
    struct ckpt_shards *shards;
    uint32_t shard;
};

/* A tensor that the map does not have, or has in another file, is not shown. */
static int note_place(void *arg, const struct ckpt_buf *name, uint64_t place, const struct safetensors_tensor *tensor)
{
    const struct loading *l = arg;
    struct ckpt_shard_entry *e = ckpt_shards_find(l->shards, name->data ? (char *)name->data : "", name->len);
    if (e && e->shard == l->shard) {
        e->place = (uint32_t)place & 0x7fffffff;
        e->packed = tensor->packed;
    }
    return 0;
}

static int read_shard(struct folder *f, uint32_t number, struct ckpt_buf *metadata, struct ckpt_err *err)
{
    struct loading l = {f->shards, number};
    struct safetensors_header h;
    struct ckpt_file *file;
    int r = ckpt_shard_open(f->shards, number, &file, err);
    if (r < 0)
        return r;
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
    int r = 0;
    for (uint32_t i = 0; i < f->shards->count && r == 0; i++) {
        struct ckpt_err why = {0};
        int wrong = read_shard(f, i, metadata->len ? NULL : metadata, &why);
        if (wrong == 0)
            continue;
        r = ckpt_shard_spoil(f->shards, i, wrong, &why, f->err);
        metadata->len = 0;
    }
    return r;
}

int ckpt_safetensors_folder_locate(struct ckpt_tree *t, uint32_t entry, struct ckpt_file **ret, uint64_t *ret_place,
                                   struct ckpt_err *err)
{
    const struct safetensors *s = t->priv;
    const struct ckpt_shard_entry *e = &s->shards.entries[entry];
    int r = ckpt_shards_check(&s->shards, e, err);
    if (r == 0)
        r = ckpt_shard_reopen(&s->shards, e->shard, ret, err);
    *ret_place = e->place;
    return r;
}

/* --- the tree --- */

static int add_tensor(void *arg, const struct ckpt_buf *tensor, const char *shard)
{
    struct folder *f = arg;
    const char *name = tensor->data ? (char *)tensor->data : "";
    const struct ckpt_shard_entry *e = ckpt_shards_find(f->shards, name, tensor->len);
    uint32_t node;
    if (!e)
        return ckpt_fail(f->err, ESTALE, "the index is being changed");
    int r = ckpt_tree_add_named(f->tree, name, tensor->len, f->flat, f->round,
                                e->packed ? CKPT_NODE_BLOB : CKPT_NODE_ARRAY, &node, f->err);
    if (r == 1)
        f->tree->nodes[node].ref = (uint32_t)(e - f->shards->entries);
    return r < 0 ? r : 0;
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
    int r = ckpt_shards_read(f->shards, f->index, &metadata, f->err);
    if (r == 0)
        r = read_shards(f, &shard_metadata);
    for (; f->round < CKPT_NAME_ROUNDS && r == 0; f->round++) {
        r = ckpt_safetensors_index_each(f->index, add_tensor, f, NULL, f->err);
        if (r == 0 && f->round == CKPT_NAMES_PLAIN)
            r = ckpt_add_beside(
                &(struct ckpt_beside){f->tree, ckpt_shards_own, f->shards, SAFETENSORS_FILE_MARK, f->below}, f->err);
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

int ckpt_safetensors_folder_open(const struct ckpt_opening *o, struct ckpt_tree **ret, struct ckpt_err *err)
{
    struct folder f = {.flat = o->flat, .below = o->below, .err = err};
    char index_name[256] = "";
    int r = ckpt_safetensors_tree_new(o, &f.tree, err);
    if (r < 0)
        return r;
    f.shards = &((struct safetensors *)f.tree->priv)->shards;
    f.shards->tree = f.tree;
    r = ckpt_shards_choose(ckpt_pins_dir(o->pins), "model", SAFETENSORS_INDEX, index_name);
    strcpy(f.shards->index_name, index_name);
    if (r < 0)
        r = ckpt_fail(err, -r, "%s", strerror(-r));
    if (r == 0)
        r = ckpt_shards_open_index(f.shards, o->pins, &f.index, err);
    if (r == 0) {
        r = load(&f);
        r = r < 0 ? ckpt_fail_in(err, -r, "%s", index_name) : 0;
        ckpt_file_unref(f.index);
    }
    return ckpt_tree_give(f.tree, r, ret);
}
