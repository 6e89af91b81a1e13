/* SPDX-License-Identifier: Apache-2.0 */
#include "core/format/shards.h"

#include "core/base/grow.h"
#include "core/base/util.h"
#include "core/format/lfs.h"
#include "core/format/named.h"
#include "core/format/safetensors/index.h"

#define MAX_ENTRIES (1u << 22)

/* --- the index --- */

struct choice {
    struct ckpt_backend *dir;
    const char *base, *suffix;
    char *best;
};

static bool is_first(const struct choice *c, const char *name)
{
    size_t n = strlen(c->base);
    return !strncmp(name, c->base, n) && !strcmp(name + n, c->suffix);
}

/* By its name; in the place of one that a clone did not fetch there is a pointer. */
static bool is_index(const struct choice *c, const char *name, enum ckpt_ftype type)
{
    CKPT_AUTOFILE struct ckpt_file *f = NULL;
    if (type == CKPT_FT_DIR || !ckpt_has_suffix(name, c->suffix) || strlen(name) > 255)
        return false;
    return ckpt_backend_open(c->dir, name, &f) < 0 || !ckpt_lfs_is_pointer(f);
}

static int choose(void *arg, const char *name, enum ckpt_ftype type)
{
    const struct choice *c = arg;
    if (is_first(c, c->best) || !is_index(c, name, type))
        return 0;
    if (!*c->best || is_first(c, name) || strcmp(name, c->best) < 0)
        strcpy(c->best, name);
    return 0;
}

int ckpt_shards_choose(struct ckpt_backend *dir, const char *base, const char *suffix, char ret[256])
{
    *ret = 0;
    return ckpt_backend_list(dir, "", choose, &(struct choice){dir, base, suffix, ret});
}

struct look {
    struct choice index;
    const char *shard; /* NULL: there need not be one */
    bool has_index, has_shard;
};

static bool is_shard(const char *name, const char *suffix)
{
    static const char numbers[] = "-00001-of-00002";
    size_t len = strlen(name), tail = strlen(numbers) + strlen(suffix);
    if (len <= tail || !ckpt_has_suffix(name, suffix))
        return false;
    const char *p = name + len - tail;
    for (size_t i = 0; i < strlen(numbers); i++) {
        bool is_digit = p[i] >= '0' && p[i] <= '9', wanted = numbers[i] >= '0' && numbers[i] <= '9';
        if (wanted ? !is_digit : p[i] != numbers[i])
            return false;
    }
    return true;
}

static int look_at(void *arg, const char *name, enum ckpt_ftype type)
{
    struct look *l = arg;
    if (type == CKPT_FT_DIR)
        return 0;
    l->has_index |= is_index(&l->index, name, type);
    l->has_shard |= !l->shard || is_shard(name, l->shard);
    return l->has_index && l->has_shard;
}

int ckpt_shards_probe(struct ckpt_backend *dir, const char *suffix, const char *shard, bool *ret)
{
    struct look l = {.index = {.dir = dir, .suffix = suffix}, .shard = shard};
    int r = ckpt_backend_list(dir, "", look_at, &l);
    *ret = r == 1;
    return r < 0 ? r : 0;
}

int ckpt_shards_open_index(const struct ckpt_shards *s, struct ckpt_pins *pins, struct ckpt_file **ret,
                           struct ckpt_err *err)
{
    int r = ckpt_pins_open(pins, s->index_name, ret);
    return r < 0 ? ckpt_fail(err, -r, "%s: %s", s->index_name, r == -EUCLEAN ? CKPT_LINK_OUT : strerror(-r)) : 0;
}

struct reading {
    struct ckpt_shards *shards;
    struct ckpt_err *err;
};

static int note_entry(void *arg, const struct ckpt_buf *tensor, const char *shard)
{
    const struct reading *reading = arg;
    struct ckpt_shards *s = reading->shards;
    uint32_t string;
    if (!strcmp(shard, s->index_name))
        return ckpt_fail(reading->err, EUCLEAN, "a shard is the index itself");
    if (s->entry_count == MAX_ENTRIES)
        return ckpt_fail(reading->err, EOPNOTSUPP, "more than %u tensors", MAX_ENTRIES);
    if (!CKPT_ROOM_FOR_ONE(s->entries, s->entry_count, s->entry_cap))
        return ckpt_no_memory(reading->err);
    if (ckpt_tree_string(s->tree, shard, strlen(shard), &string) < 0)
        return ckpt_no_memory(reading->err);
    uint64_t hash = ckpt_name_hash(tensor->data ? (char *)tensor->data : "", tensor->len);
    s->entries[s->entry_count++] = (struct ckpt_shard_entry){.hash = hash, .shard = string};
    return 0;
}

static int by_hash(const void *pa, const void *pb)
{
    const struct ckpt_shard_entry *a = pa, *b = pb;
    return a->hash < b->hash ? -1 : a->hash > b->hash;
}

static int by_shard(const void *pa, const void *pb)
{
    const struct ckpt_shard_entry *a = pa, *b = pb;
    return a->shard < b->shard ? -1 : a->shard > b->shard;
}

struct ckpt_shard_entry *ckpt_shards_find(const struct ckpt_shards *s, const char *name, size_t len)
{
    struct ckpt_shard_entry key = {.hash = ckpt_name_hash(name, len)};
    return s->entry_count ? bsearch(&key, s->entries, s->entry_count, sizeof key, by_hash) : NULL;
}

/* The shards, from their names in the entries, which then have their numbers. */
static int number_shards(struct ckpt_shards *s, struct ckpt_err *err)
{
    uint32_t n = 0;
    if (s->entry_count)
        qsort(s->entries, s->entry_count, sizeof *s->entries, by_shard);
    for (uint32_t i = 0; i < s->entry_count; i++)
        n += !i || s->entries[i].shard != s->entries[i - 1].shard;
    s->all = calloc(n + 1, sizeof *s->all);
    if (!s->all)
        return ckpt_no_memory(err);
    for (uint32_t i = 0; i < s->entry_count; i++) {
        uint32_t name = s->entries[i].shard;
        if (!s->count || s->all[s->count - 1].name != name)
            s->all[s->count++].name = name;
        s->entries[i].shard = s->count - 1;
    }
    if (s->entry_count)
        qsort(s->entries, s->entry_count, sizeof *s->entries, by_hash);
    for (uint32_t i = 1; i < s->entry_count; i++)
        if (s->entries[i].hash == s->entries[i - 1].hash)
            return ckpt_fail(err, EUCLEAN, "a tensor is in weight_map twice");
    return 0;
}

int ckpt_shards_read(struct ckpt_shards *s, struct ckpt_file *index, struct ckpt_buf *metadata, struct ckpt_err *err)
{
    int r = ckpt_safetensors_index_each(index, note_entry, &(struct reading){s, err}, metadata, err);
    return r < 0 ? r : number_shards(s, err);
}

/* --- the shards --- */

const char *ckpt_shard_name(const struct ckpt_shards *s, uint32_t shard)
{
    size_t len;
    return ckpt_tree_text(s->tree, s->all[shard].name, &len);
}

int ckpt_shard_open(struct ckpt_shards *s, uint32_t number, struct ckpt_file **ret, struct ckpt_err *err)
{
    struct ckpt_shard *shard = &s->all[number];
    int r = ckpt_pins_open(s->tree->pins, ckpt_shard_name(s, number), ret);
    if (r == -ENOENT)
        return ckpt_fail(err, EIO, "this shard is missing");
    if (r == -EUCLEAN)
        return ckpt_fail(err, EUCLEAN, CKPT_LINK_OUT);
    if (r < 0)
        return ckpt_fail(err, -r, "%s", strerror(-r));
    if (ckpt_lfs_is_pointer(*ret)) {
        ckpt_file_unref(*ret);
        return ckpt_fail(err, EUCLEAN, CKPT_LFS_HINT);
    }
    shard->ino = (*ret)->st.ino;
    shard->size = (*ret)->st.size;
    shard->mtime_ns = (*ret)->st.mtime_ns;
    return 0;
}

int ckpt_shard_spoil(struct ckpt_shards *s, uint32_t number, int r, const struct ckpt_err *why, struct ckpt_err *err)
{
    if (r == -ENOMEM || ckpt_tree_string(s->tree, why->text, strlen(why->text), &s->all[number].why) < 0)
        return ckpt_no_memory(err);
    s->all[number].error = -r;
    return 0;
}

int ckpt_shards_check(const struct ckpt_shards *s, const struct ckpt_shard_entry *e, struct ckpt_err *err)
{
    const struct ckpt_shard *shard = &s->all[e->shard];
    const char *name = ckpt_shard_name(s, e->shard);
    size_t len;
    if (shard->error)
        return ckpt_fail(err, shard->error, "%s: %s", name, ckpt_tree_text(s->tree, shard->why, &len));
    if (!e->place)
        return ckpt_fail(err, ENODATA, "%s does not have this tensor, though the index says so", name);
    return 0;
}

int ckpt_shard_reopen(const struct ckpt_shards *s, uint32_t number, struct ckpt_file **ret, struct ckpt_err *err)
{
    const struct ckpt_shard *shard = &s->all[number];
    const char *name = ckpt_shard_name(s, number);
    int r = ckpt_pins_open(s->tree->pins, name, ret);
    if (r < 0)
        return ckpt_fail(err, r == -ENOENT ? EIO : -r, "%s: %s", name, strerror(-r));
    const struct ckpt_stat *st = &(*ret)->st;
    if (st->ino == shard->ino && st->size == shard->size && st->mtime_ns == shard->mtime_ns)
        return 0;
    ckpt_file_unref(*ret);
    return ckpt_fail(err, ESTALE, "%s was replaced since the folder was opened", name);
}

bool ckpt_shards_own(void *arg, const char *name)
{
    const struct ckpt_shards *s = arg;
    uint32_t string;
    if (!strcmp(name, s->index_name))
        return true;
    if (ckpt_tree_string(s->tree, name, strlen(name), &string) < 0)
        return false;
    for (uint32_t lo = 0, hi = s->count; lo < hi;) { /* they are in the order of the strings */
        uint32_t mid = lo + (hi - lo) / 2;
        if (s->all[mid].name == string)
            return true;
        if (s->all[mid].name < string)
            lo = mid + 1;
        else
            hi = mid;
    }
    return false;
}

size_t ckpt_shards_memory(const struct ckpt_shards *s)
{
    return s->count * sizeof *s->all + s->entry_cap * sizeof *s->entries;
}

void ckpt_shards_clear(struct ckpt_shards *s)
{
    free(s->all);
    free(s->entries);
    *s = (struct ckpt_shards){0};
}
