/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A tree of Orbax items. The items of a step are the top's containers, but for a lone `default`, whose tree is the
 * top's own. An item of one JSON file is the blob ITEM.json.
 */
#include "core/format/orbax/orbax.h"

#include "core/base/log.h"
#include "core/base/util.h"
#include "core/io/json.h"
#include "core/format/orbax/item.h"

#include <stdio.h>
#include <time.h>

#define MAX_ARRAY_METADATA ((size_t)4 << 20)

static uint64_t hash_text(const uint8_t *p, size_t len)
{
    uint64_t h = 0xcbf29ce484222325;
    for (size_t i = 0; i < len; i++)
        h = (h ^ p[i]) * 0x100000001b3;
    return h ^ h >> 31;
}

/* --- names --- */

static struct orbax_item *item_of(const struct ckpt_tree *t, uint32_t node)
{
    struct orbax *o = t->priv;
    while (node && !t->nodes[node].mark)
        node = t->nodes[node].parent;
    return &o->items[t->nodes[node].mark - 1];
}

void ckpt_orbax_param(const struct ckpt_tree *t, uint32_t node, struct ckpt_buf *buf)
{
    uint32_t path[CKPT_MAX_DEPTH];
    unsigned n = 0;
    const char *text;
    size_t len;
    if ((text = ckpt_flax_state_elsewhere(t, node, &len))) {
        ckpt_buf_add(buf, text, len);
        return;
    }
    for (uint32_t at = node; at && !t->nodes[at].mark && n < CKPT_MAX_DEPTH; at = t->nodes[at].parent)
        path[n++] = at;
    for (unsigned i = n; i-- > 0;) {
        text = ckpt_tree_text(t, t->nodes[path[i]].key, &len);
        ckpt_buf_add(buf, text, len);
        if (i)
            ckpt_buf_addc(buf, '.');
    }
}

/* --- the store of an array's keys: the database, or files --- */

struct array_store {
    struct ckpt_tree *tree;
    struct orbax_item *item;
    struct ckpt_buf key; /* PARAM and a slash, where one belongs */
    size_t prefix;
};

static int store_init(struct array_store *s, struct ckpt_tree *t, uint32_t node)
{
    *s = (struct array_store){.tree = t, .item = item_of(t, node)};
    if (!s->item->db && *s->item->dir) {
        ckpt_buf_adds(&s->key, s->item->dir);
        ckpt_buf_addc(&s->key, '/');
    }
    size_t before = s->key.len;
    ckpt_orbax_param(t, node, &s->key);
    if (s->key.len > before && s->key.data[s->key.len - 1] != '/')
        ckpt_buf_addc(&s->key, '/');
    s->prefix = s->key.len;
    return ckpt_buf_error(&s->key);
}

static int store_get(void *arg, const char *name, struct ckpt_extent *ret, struct ckpt_err *err)
{
    struct array_store *s = arg;
    s->key.len = s->prefix;
    ckpt_buf_adds(&s->key, name);
    ckpt_buf_addc(&s->key, 0);
    if (ckpt_buf_error(&s->key))
        return ckpt_fail(err, ENOMEM, "out of memory");
    s->key.len--;
    if (s->item->db)
        return ckpt_ocdbt_get(s->item->db, s->key.data, s->key.len, ret, err);
    struct ckpt_file *f;
    const char *path = (char *)s->key.data;
    int r = ckpt_pins_open(s->tree->pins, path, &f);
    if (r == -EUCLEAN)
        return ckpt_fail(err, EUCLEAN, "%.200s: not a path inside of the checkpoint", path);
    if (r < 0)
        return r == -ENOENT || r == -ENOTDIR ? -ENOENT : ckpt_fail(err, -r, "%s: %s", path, strerror(-r));
    *ret = (struct ckpt_extent){.file = f, .len = f->st.size};
    return 0;
}

/* --- steps that are being deleted --- */

#define QUIET_NS 5000000000ll /* whoever deletes a checkpoint may be held up for a while between two files */

/* Whether anything changed between two looks at a directory and what it holds, two levels down; and when that was last.
 */
struct print {
    struct ckpt_backend *dir;
    uint64_t sum;
    int64_t newest_ns;
};

static void add_mtime(struct print *p, const char *path)
{
    struct ckpt_stat st;
    if (ckpt_backend_stat(p->dir, path, &st) < 0)
        return;
    p->sum = p->sum * 31 + (uint64_t)st.mtime_ns;
    p->newest_ns = CKPT_MAX(p->newest_ns, st.mtime_ns);
}

static int add_entry(void *arg, const char *name, enum ckpt_ftype type)
{
    struct print *p = arg;
    p->sum += hash_text((const uint8_t *)name, strlen(name)) + (uint64_t)type; /* they come in no order */
    return 0;
}

static int add_subdir(void *arg, const char *name, enum ckpt_ftype type)
{
    if (type == CKPT_FT_DIR)
        add_mtime(arg, name);
    return 0;
}

/* `array`: the directory of the array that something is missing of, or NULL. */
static uint64_t fingerprint(struct orbax *o, const char *array, int64_t *ret_newest_ns)
{
    struct print p = {.dir = ckpt_pins_dir(o->tree->pins), .sum = 1};
    if (ckpt_backend_list(p.dir, "", add_entry, &p) < 0)
        return 0; /* a directory that has no name any more */
    add_mtime(&p, "");
    if (ckpt_backend_list(p.dir, "", add_subdir, &p) < 0)
        return 0;
    for (unsigned i = 0; i < 2 * o->count; i++) {
        CKPT_AUTOFREE char *path = ckpt_orbax_path(&o->items[i / 2], i % 2 ? "ocdbt.process_0/d" : "");
        if (path)
            add_mtime(&p, path);
    }
    struct print other = {.dir = p.dir, .newest_ns = p.newest_ns};
    if (array) /* no part of the sum, which must not differ from array to array */
        add_mtime(&other, array);
    p.newest_ns = other.newest_ns;
    if (ret_newest_ns)
        *ret_newest_ns = p.newest_ns;
    return p.sum ? p.sum : 1;
}

/* Nothing has happened to it for a while; a time stamp from the far future says nothing. */
static bool long_ago(int64_t ns)
{
    int64_t age = ckpt_realtime_ns() - ns;
    return age > QUIET_NS || age < -QUIET_NS;
}

/*
 * A file is missing: is the checkpoint damaged, or just being deleted (file by file, under its own name)? It is being
 * deleted when its directories have changed since it was opened, or go on changing now; so this waits until nothing has
 * changed for QUIET_NS, but does so once for each state of the directories.
 */
static bool is_vanishing(struct orbax *o, const char *array)
{
    if (!ckpt_pins_dir(o->tree->pins)->ops->changes)
        return false;
    int64_t newest = 0, now_newest;
    uint64_t before = fingerprint(o, array, &newest), loaded = atomic_load(&o->loaded_print);
    if (atomic_load(&o->vanished))
        return true;
    if (before && before == atomic_load(&o->stable_print) && long_ago(newest))
        return false;
    bool gone = !before || (loaded && before != loaded);
    for (int looks = 0; !gone && (looks < 4 || !long_ago(newest)) && looks < 400; looks++) {
        nanosleep(&(struct timespec){.tv_nsec = 25000000}, NULL);
        now_newest = newest;
        gone = fingerprint(o, array, &now_newest) != before || now_newest != newest;
    }
    if (gone)
        atomic_store(&o->vanished, true);
    else
        atomic_store(&o->stable_print, before);
    return gone;
}

static bool array_vanishes(struct orbax *o, const struct array_store *s)
{
    CKPT_AUTOFREE char *dir = strndup((char *)s->key.data, s->prefix ? s->prefix - 1 : 0);
    return is_vanishing(o, dir && *dir ? dir : NULL);
}

/* --- layouts --- */

static int layout_of_text(struct orbax *o, uint8_t *text, size_t len, int version, struct ckpt_array **ret,
                          struct ckpt_err *err)
{
    struct orbax_layout **bucket = &o->layouts[hash_text(text, len) % ORBAX_LAYOUT_BUCKETS];
    pthread_mutex_lock(&o->lock);
    for (struct orbax_layout *l = *bucket; l; l = l->next)
        if (l->len == len && !memcmp(l->text, text, len)) {
            *ret = ckpt_array_ref(l->array);
            pthread_mutex_unlock(&o->lock);
            return 0;
        }
    pthread_mutex_unlock(&o->lock);
    int r = ckpt_zarr_parse((char *)text, len, version, ret, err);
    if (r < 0)
        return r;
    struct orbax_layout *l = malloc(sizeof *l + len);
    if (!l)
        return 0;
    *l = (struct orbax_layout){.text = (char *)(l + 1), .len = len, .array = ckpt_array_ref(*ret)};
    memcpy(l->text, text, len);
    pthread_mutex_lock(&o->lock);
    l->next = *bucket;
    *bucket = l;
    pthread_mutex_unlock(&o->lock);
    return 0;
}

int ckpt_orbax_layout(struct ckpt_tree *t, uint32_t node, struct ckpt_array **ret, struct ckpt_err *err)
{
    struct orbax *o = t->priv;
    if (ckpt_flax_state_has(t, node))
        return ckpt_flax_state_layout(item_of(t, node)->aggregate, t, node, ret, err);
    struct array_store s;
    struct ckpt_extent e = {0};
    int r = store_init(&s, t, node);
    const char *name = s.item->zarr3 ? "zarr.json" : ".zarray";
    if (r == 0)
        r = store_get(&s, name, &e, err);
    if (r == -ENOENT && !s.item->db && array_vanishes(o, &s))
        r = ckpt_fail(err, ENOENT, "the checkpoint is being deleted");
    else if (r == -ENOENT)
        r = ckpt_fail(err, EUCLEAN, "%.*s: its %s is missing", (int)CKPT_MIN(s.key.len, (size_t)200),
                      (char *)s.key.data, name);
    if (r == 0 && e.len > MAX_ARRAY_METADATA)
        r = ckpt_fail(err, EUCLEAN, "%s is larger than %zu bytes", name, MAX_ARRAY_METADATA);
    CKPT_AUTOFREE uint8_t *text = r == 0 ? malloc(e.len + 1) : NULL;
    if (r == 0 && !text)
        r = -ENOMEM;
    if (r == 0 && (r = ckpt_extent_read(&e, text, e.len, 0)) < 0)
        ckpt_fail(err, -r, "%.*s: %s", (int)CKPT_MIN(s.key.len, (size_t)200), (char *)s.key.data, strerror(-r));
    if (r == 0 && (r = layout_of_text(o, text, e.len, s.item->zarr3 ? 3 : 2, ret, err)) < 0)
        ckpt_fail_in(err, -r, "%.*s", (int)CKPT_MIN(s.key.len, (size_t)200), (char *)s.key.data);
    ckpt_extent_clear(&e);
    ckpt_buf_clear(&s.key);
    return r;
}

static int orbax_chunk(struct ckpt_tree *t, uint32_t node, const struct ckpt_array *a, uint64_t index,
                       struct ckpt_extent *ret, struct ckpt_err *err)
{
    struct orbax *o = t->priv;
    if (ckpt_flax_state_has(t, node))
        return ckpt_flax_state_elements(item_of(t, node)->aggregate, t, node, ret, err);
    struct array_store s;
    int r = store_init(&s, t, node);
    if (r == 0) {
        struct ckpt_zarr_store store = {store_get, &s};
        r = ckpt_zarr_chunk(a, index, s.item->fill_missing, &store, o->shards, node, ret, err);
        s.key.len = s.prefix;
        if (r == -ENODATA && !s.item->db && array_vanishes(o, &s))
            r = ckpt_fail(err, ENOENT, "the checkpoint is being deleted");
        else if (r < 0)
            ckpt_fail_in(err, -r, "%.*s", (int)CKPT_MIN(s.key.len, (size_t)200), (char *)s.key.data);
    }
    ckpt_buf_clear(&s.key);
    return r;
}

static int add_length(void *arg, const void *key, size_t key_len, uint64_t value_len)
{
    static const char *const metadata[] = {"/.zarray", "/zarr.json"};
    for (int i = 0; i < 2; i++) {
        size_t n = strlen(metadata[i]);
        if (key_len >= n && !memcmp((const char *)key + key_len - n, metadata[i], n))
            return 0;
    }
    *(uint64_t *)arg += value_len;
    return 0;
}

static int orbax_stored(struct ckpt_tree *t, uint32_t node, const struct ckpt_array *a, uint64_t *ret,
                        struct ckpt_err *err)
{
    bool aggregated = ckpt_flax_state_has(t, node);
    *ret = aggregated ? a->nbytes : 0;
    if (aggregated || a->unsupported)
        return 0;
    struct array_store s;
    int r = store_init(&s, t, node);
    uint64_t objects = ckpt_zarr_objects(a);
    if (r == 0 && s.item->db && objects > 4)
        r = ckpt_ocdbt_each(s.item->db, s.key.data, s.key.len, add_length, ret, err);
    else if (r == 0) {
        struct ckpt_buf name = CKPT_BUF_INIT;
        uint64_t looked = CKPT_MIN(objects, (uint64_t)1024), i;
        for (i = 0; i < looked && r == 0; i++) {
            struct ckpt_extent e = {0};
            struct ckpt_stat st;
            name.len = 0;
            ckpt_zarr_object_key(a, i, &name);
            if ((r = ckpt_buf_error(&name)) < 0)
                break;
            if (s.item->db) {
                r = store_get(&s, (char *)name.data, &e, err);
                *ret += e.len;
                ckpt_extent_clear(&e);
            } else { /* without opening it */
                s.key.len = s.prefix;
                ckpt_buf_add(&s.key, name.data, name.len + 1);
                r = ckpt_buf_error(&s.key);
                if (r == 0 && ckpt_backend_stat(ckpt_pins_dir(t->pins), (char *)s.key.data, &st) == 0)
                    *ret += st.size;
            }
            if (r == -ENOENT)
                r = 0;
        }
        if (looked < objects) /* many alike: an estimate will do */
            *ret = (uint64_t)((double)*ret / (double)looked * (double)objects);
        ckpt_buf_clear(&name);
    }
    ckpt_buf_clear(&s.key);
    return r;
}

static int orbax_blob(struct ckpt_tree *t, uint32_t node, struct ckpt_extent *ret, struct ckpt_err *err)
{
    size_t len;
    const char *path = ckpt_tree_text(t, t->nodes[node].ref, &len);
    struct ckpt_file *f;
    if (ckpt_flax_state_has(t, node))
        return ckpt_flax_state_blob(item_of(t, node)->aggregate, t, node, ret, err);
    int r = ckpt_pins_open(t->pins, path, &f);
    if (r < 0)
        return ckpt_fail(err, -r, "%s: %s", path, strerror(-r));
    *ret = (struct ckpt_extent){.file = f, .len = f->st.size};
    return 0;
}

/* Files of plain arrays are pinned when a leaf is looked up; those of a database are few and were pinned at the
 * opening. */
static void orbax_pin(struct ckpt_tree *t, uint32_t node)
{
    struct ckpt_array *a;
    struct ckpt_extent e = {0};
    if (t->nodes[node].kind == CKPT_NODE_BLOB) {
        if (orbax_blob(t, node, &e, NULL) == 0)
            ckpt_extent_clear(&e);
        return;
    }
    if (t->nodes[node].text || item_of(t, node)->db || t->nodes[node].kind == CKPT_NODE_DIR)
        return;
    if (ckpt_tree_layout(t, node, &a, NULL) < 0)
        return;
    struct array_store s;
    struct ckpt_buf name = CKPT_BUF_INIT;
    if (!ckpt_flax_state_has(t, node) && !a->unsupported && store_init(&s, t, node) == 0) {
        uint64_t objects = ckpt_zarr_objects(a);
        for (uint64_t i = 0; i < objects && i < 65536; i++) {
            name.len = 0;
            ckpt_zarr_object_key(a, i, &name);
            if (!ckpt_buf_error(&name) && store_get(&s, (char *)name.data, &e, NULL) == 0)
                ckpt_extent_clear(&e);
        }
        ckpt_buf_clear(&s.key);
    }
    ckpt_buf_clear(&name);
    ckpt_array_unref(a);
}

/* --- advice for people: sharding, PRNG keys --- */

static struct ckpt_json_reader *open_json(struct ckpt_tree *t, struct orbax_item *item, const char *name,
                                          struct ckpt_file **ret)
{
    CKPT_AUTOFREE char *path = ckpt_orbax_path(item, name);
    struct ckpt_json_reader *json;
    if (!path || ckpt_pins_open(t->pins, path, ret) < 0)
        return NULL;
    if (ckpt_json_open(*ret, &json) == 0)
        return json;
    ckpt_file_unref(*ret);
    return NULL;
}

static void describe_sharding(struct ckpt_tree *t, struct orbax_item *item, const struct ckpt_buf *param,
                              struct ckpt_buf *out)
{
    struct ckpt_file *f;
    struct ckpt_json_reader *json = open_json(t, item, "_sharding", &f);
    struct ckpt_buf want = CKPT_BUF_INIT, key = {.max = 1 << 20}, text = {.max = 4 << 20};
    if (!json)
        return;
    ckpt_buf_add_base64url(&want, param->data, param->len);
    int r = ckpt_json_enter_object(json, NULL);
    while (r == 0 && ckpt_json_member(json, &key, NULL) == 1) {
        bool found = key.len == want.len && !memcmp(key.data, want.data, want.len);
        r = ckpt_json_value(json, found ? &text : NULL, NULL);
        if (!found || r < 0)
            continue;
        cJSON *s = ckpt_json_parse((char *)text.data, text.len);
        cJSON *inner = cJSON_IsString(s) ? ckpt_json_parse(s->valuestring, strlen(s->valuestring)) : NULL;
        if (cJSON_IsObject(inner)) {
            ckpt_buf_adds(out, ",\"sharding\":");
            ckpt_buf_adds(out, s->valuestring);
        }
        cJSON_Delete(inner);
        cJSON_Delete(s);
        break;
    }
    ckpt_json_close(json);
    ckpt_file_unref(f);
    ckpt_buf_clear(&want);
    ckpt_buf_clear(&key);
    ckpt_buf_clear(&text);
}

static int first_name(void *arg, const char *name, enum ckpt_ftype type)
{
    char *best = arg;
    if (type != CKPT_FT_DIR && strlen(name) < 256 && (!*best || strcmp(name, best) < 0))
        strcpy(best, name);
    return 0;
}

static void describe_key(struct ckpt_tree *t, struct orbax_item *item, const struct ckpt_buf *param,
                         struct ckpt_buf *out)
{
    char name[256] = "", path[300];
    CKPT_AUTOFREE char *dir = ckpt_orbax_path(item, "array_metadatas");
    if (!dir || ckpt_backend_list(ckpt_pins_dir(t->pins), dir, first_name, name) < 0 || !*name)
        return;
    snprintf(path, sizeof path, "array_metadatas/%s", name);
    struct ckpt_file *f;
    struct ckpt_json_reader *json = open_json(t, item, path, &f);
    struct ckpt_buf key = {.max = 1 << 20}, text = {.max = 1 << 20};
    if (!json)
        return;
    int r = ckpt_json_enter_object(json, NULL);
    while (r == 0 && ckpt_json_member(json, &key, NULL) == 1) {
        if (strcmp((char *)key.data, "array_metadatas")) {
            r = ckpt_json_value(json, NULL, NULL);
            continue;
        }
        r = ckpt_json_enter_array(json, NULL);
        while (r == 0 && ckpt_json_element(json, NULL) == 1) {
            r = ckpt_json_value(json, &text, NULL);
            cJSON *entry = r == 0 ? ckpt_json_parse((char *)text.data, text.len) : NULL;
            const cJSON *meta = ckpt_json_get(entry, "array_metadata"), *param_name = ckpt_json_get(meta, "param_name");
            const cJSON *impl = ckpt_json_get(ckpt_json_get(meta, "ext_metadata"), "random_key_impl");
            if (cJSON_IsString(param_name) && cJSON_IsString(impl) && strlen(param_name->valuestring) == param->len &&
                (!param->len || !memcmp(param_name->valuestring, param->data, param->len))) {
                ckpt_buf_adds(out, ",\"prng_impl\":");
                ckpt_buf_add_json_string(out, impl->valuestring, strlen(impl->valuestring));
                r = 1;
            }
            cJSON_Delete(entry);
        }
        break;
    }
    ckpt_json_close(json);
    ckpt_file_unref(f);
    ckpt_buf_clear(&key);
    ckpt_buf_clear(&text);
}

static void orbax_describe(struct ckpt_tree *t, uint32_t node, struct ckpt_buf *out)
{
    struct ckpt_buf param = CKPT_BUF_INIT;
    if (t->nodes[node].kind != CKPT_NODE_ARRAY)
        return;
    struct orbax_item *item = item_of(t, node);
    ckpt_orbax_param(t, node, &param);
    if (!ckpt_buf_error(&param)) {
        describe_key(t, item, &param, out);
        describe_sharding(t, item, &param, out);
    }
    ckpt_buf_clear(&param);
}

static int orbax_verify(struct ckpt_tree *t, void (*progress)(void *arg, uint64_t bytes), void *arg,
                        struct ckpt_err *err)
{
    struct orbax *o = t->priv;
    for (unsigned i = 0; i < o->count; i++) {
        int r = o->items[i].db ? ckpt_ocdbt_verify(o->items[i].db, progress, arg, err) : 0;
        if (r < 0)
            return r;
    }
    return 0;
}

static size_t orbax_memory(const struct ckpt_tree *t)
{
    const struct orbax *o = t->priv;
    size_t n = sizeof *o + ORBAX_MAX_ITEMS * sizeof *o->items;
    for (unsigned i = 0; i < o->count; i++)
        n += (o->items[i].db ? ckpt_ocdbt_memory(o->items[i].db) : 0) +
             (o->items[i].aggregate ? ckpt_flax_state_memory(o->items[i].aggregate) : 0);
    return n;
}

static void orbax_close(struct ckpt_tree *t)
{
    struct orbax *o = t->priv;
    for (unsigned i = 0; i < o->count; i++) {
        ckpt_ocdbt_close(o->items[i].db);
        ckpt_flax_state_free(o->items[i].aggregate);
        free(o->items[i].dir);
    }
    for (unsigned i = 0; i < ORBAX_LAYOUT_BUCKETS; i++)
        for (struct orbax_layout *l = o->layouts[i], *next; l; l = next) {
            next = l->next;
            ckpt_array_unref(l->array);
            free(l);
        }
    ckpt_zarr_cache_free(o->shards);
    pthread_mutex_destroy(&o->lock);
    free(o->items);
    free(o);
}

static const struct ckpt_tree_ops orbax_ops = {
    .name = "orbax",
    .layout = ckpt_orbax_layout,
    .chunk = orbax_chunk,
    .stored = orbax_stored,
    .blob = orbax_blob,
    .rights = ckpt_orbax_rights,
    .pin = orbax_pin,
    .describe = orbax_describe,
    .verify = orbax_verify,
    .memory = orbax_memory,
    .close = orbax_close,
};

/* --- opening --- */

struct entries {
    char **dirs, **files;
    size_t dir_count, file_count;
};

static int collect(void *arg, const char *name, enum ckpt_ftype type)
{
    struct entries *e = arg;
    char ***list = type == CKPT_FT_DIR ? &e->dirs : &e->files;
    size_t *count = type == CKPT_FT_DIR ? &e->dir_count : &e->file_count, len;
    if (ckpt_orbax_unfinished_name(name, &len) || *count >= 4096)
        return 0;
    char **p = realloc(*list, (*count + 1) * sizeof *p);
    if (!p)
        return -ENOMEM;
    *list = p;
    return (p[(*count)++] = strdup(name)) ? 0 : -ENOMEM;
}

static void free_entries(struct entries *e)
{
    for (size_t i = 0; i < e->dir_count; i++)
        free(e->dirs[i]);
    for (size_t i = 0; i < e->file_count; i++)
        free(e->files[i]);
    free(e->dirs);
    free(e->files);
}

static int compare(const void *a, const void *b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

static void sort_entries(struct entries *e)
{
    if (e->dir_count)
        qsort(e->dirs, e->dir_count, sizeof *e->dirs, compare);
    if (e->file_count)
        qsort(e->files, e->file_count, sizeof *e->files, compare);
}

static bool is_orbax_file(const char *name)
{
    static const char *const own[] = {"commit_success.txt", "_CHECKPOINT_METADATA", "orbax.checkpoint", "_sharding"};
    for (size_t i = 0; i < sizeof own / sizeof *own; i++)
        if (!strcmp(name, own[i]))
            return true;
    return false;
}

static int add_item(struct orbax *o, const char *dir, uint32_t root, struct ckpt_err *err)
{
    if (o->count == ORBAX_MAX_ITEMS)
        return ckpt_fail(err, EUCLEAN, "more than %d items", ORBAX_MAX_ITEMS);
    struct orbax_item *item = &o->items[o->count];
    *item = (struct orbax_item){.dir = strdup(dir), .root = root};
    if (!item->dir)
        return ckpt_fail(err, ENOMEM, "out of memory");
    o->count++;
    o->tree->nodes[root].mark = (uint8_t)o->count;
    return ckpt_orbax_item_load(o, item, err);
}

static int add_blob(struct orbax *o, uint32_t parent, const char *name, const char *path, struct ckpt_err *err)
{
    uint32_t node, string;
    int r = ckpt_tree_add(o->tree, parent, name, strlen(name), false, CKPT_NODE_BLOB, &node, err);
    if (r == 0)
        r = ckpt_tree_string(o->tree, path, strlen(path), &string);
    if (r == 0)
        o->tree->nodes[node].ref = string;
    return r;
}

/* A directory of a step that is no pytree: a JSON item, a group of items, or another library's files. */
static int add_other(struct orbax *o, uint32_t parent, const char *dir, const char *name, unsigned depth,
                     struct ckpt_err *err);

static int add_dir(struct orbax *o, uint32_t parent, const char *dir, const char *name, unsigned depth,
                   struct ckpt_err *err)
{
    uint32_t node;
    if (!ckpt_orbax_is_item(ckpt_pins_dir(o->tree->pins), dir))
        return add_other(o, parent, dir, name, depth, err);
    int r = ckpt_tree_add(o->tree, parent, name, strlen(name), false, CKPT_NODE_DIR, &node, err);
    return r < 0 ? r : add_item(o, dir, node, err);
}

static int add_other(struct orbax *o, uint32_t parent, const char *dir, const char *name, unsigned depth,
                     struct ckpt_err *err)
{
    struct entries e = {0};
    char path[1200], blob[300];
    uint32_t node;
    int r = ckpt_backend_list(ckpt_pins_dir(o->tree->pins), dir, collect, &e);
    size_t files = 0;
    const char *json = NULL;
    for (size_t i = 0; i < e.file_count; i++)
        if (!is_orbax_file(e.files[i])) {
            files++;
            json = e.files[i];
        }
    if (r < 0)
        r = ckpt_fail(err, -r, "%s: %s", dir, strerror(-r));
    else if (files == 1 && !e.dir_count) { /* one file: a JSON item */
        snprintf(blob, sizeof blob, "%s.json", name);
        snprintf(path, sizeof path, "%s/%s", dir, json);
        r = add_blob(o, parent, blob, path, err);
    } else if (depth < 4 && (files || e.dir_count)) {
        r = ckpt_tree_add(o->tree, parent, name, strlen(name), false, CKPT_NODE_DIR, &node, err);
        sort_entries(&e);
        for (size_t i = 0; i < e.dir_count && r == 0; i++)
            if (snprintf(path, sizeof path, "%s/%s", dir, e.dirs[i]) < (int)sizeof path)
                r = add_dir(o, node, path, e.dirs[i], depth + 1, err);
        for (size_t i = 0; i < e.file_count && r == 0; i++)
            if (!is_orbax_file(e.files[i]) && snprintf(path, sizeof path, "%s/%s", dir, e.files[i]) < (int)sizeof path)
                r = add_blob(o, node, e.files[i], path, err);
    } else /* nothing there: an item that wrote nothing, or one of which little is left */
        o->incomplete = true;
    for (size_t i = 0; i < e.dir_count; i++) /* the remains of a database */
        o->incomplete |= !strncmp(e.dirs[i], "ocdbt.process_", 14);
    free_entries(&e);
    return r;
}

/* Are the items that `_CHECKPOINT_METADATA` names all there? */
static void check_handlers(struct orbax *o)
{
    struct ckpt_backend *dir = ckpt_pins_dir(o->tree->pins);
    struct ckpt_stat st;
    uint8_t *text;
    size_t len;
    if (ckpt_backend_read_all(dir, "_CHECKPOINT_METADATA", 16 << 20, &text, &len) < 0) {
        o->incomplete |= !o->count; /* no item either */
        return;
    }
    cJSON *root = ckpt_json_parse((char *)text, len);
    const cJSON *handlers = ckpt_json_get(root, "item_handlers"), *e;
    if (cJSON_IsObject(handlers))
        cJSON_ArrayForEach(e, handlers)
        {
            o->incomplete |= !ckpt_path_safe(e->string, strlen(e->string)) ||
                             ckpt_backend_stat(dir, e->string, &st) < 0;
        }
    cJSON_Delete(root);
    free(text);
}

static int load_step(struct orbax *o, struct ckpt_err *err)
{
    struct ckpt_backend *dir = ckpt_pins_dir(o->tree->pins);
    struct entries e = {0};
    int r = ckpt_backend_list(dir, "", collect, &e);
    if (r < 0)
        return ckpt_fail(err, -r, "%s", strerror(-r));
    sort_entries(&e);
    /* `default` is left out of paths unless another tree is beside it; a group of items counts as one. */
    size_t lone = SIZE_MAX;
    bool others = false;
    for (size_t i = 0; i < e.dir_count; i++) {
        if (!strcmp(e.dirs[i], "default") && ckpt_orbax_is_item(dir, "default"))
            lone = i;
        else if (strcmp(e.dirs[i], "descriptor")) {
            struct entries sub = {0};
            others |= ckpt_orbax_is_item(dir, e.dirs[i]) ||
                      (ckpt_backend_list(dir, e.dirs[i], collect, &sub) == 0 && sub.dir_count);
            free_entries(&sub);
        }
    }
    /* Items come before the leaves of `default`: of two equal names the item's stays. */
    for (size_t i = 0; i < e.dir_count && r == 0; i++)
        if (strcmp(e.dirs[i], "descriptor") && (i != lone || others))
            r = add_dir(o, 0, e.dirs[i], e.dirs[i], 0, err);
    if (r == 0 && lone != SIZE_MAX && !others)
        r = add_item(o, "default", 0, err);
    free_entries(&e);
    check_handlers(o);
    return r;
}

static void load_custom_metadata(struct orbax *o)
{
    uint8_t *text;
    size_t len;
    if (o->tree->metadata ||
        ckpt_backend_read_all(ckpt_pins_dir(o->tree->pins), "_CHECKPOINT_METADATA", 16 << 20, &text, &len) < 0)
        return;
    cJSON *root = ckpt_json_parse((char *)text, len);
    const cJSON *custom = ckpt_json_get(root, "custom_metadata");
    if (!custom)
        custom = ckpt_json_get(root, "custom");
    if (cJSON_IsObject(custom) && custom->child)
        o->tree->metadata = cJSON_PrintUnformatted(custom);
    cJSON_Delete(root);
    free(text);
}

static int orbax_open(const struct ckpt_opening *opening, struct ckpt_tree **ret, struct ckpt_err *err)
{
    struct ckpt_pins *pins = opening->pins;
    struct ckpt_tree *t;
    int r = ckpt_tree_new(&orbax_ops, pins, &t);
    if (r < 0)
        return ckpt_fail(err, -r, "out of memory");
    struct orbax *o = calloc(1, sizeof *o);
    if (!o) {
        ckpt_tree_unref(t);
        return ckpt_fail(err, ENOMEM, "out of memory");
    }
    t->priv = o;
    o->tree = t;
    pthread_mutex_init(&o->lock, NULL);
    o->items = calloc(ORBAX_MAX_ITEMS, sizeof *o->items);
    o->shards = ckpt_zarr_cache_new();
    if (!o->items || !o->shards)
        r = ckpt_fail(err, ENOMEM, "out of memory");
    else
        r = ckpt_orbax_is_item(ckpt_pins_dir(pins), "") ? add_item(o, "", 0, err) : load_step(o, err);
    /* Without anything in it, it may be the last moment of a deletion. */
    bool missing = r == -ENOENT || o->incomplete || o->guessed || t->nodes[0].first == CKPT_NO_NODE;
    for (unsigned i = 0; i < o->count && r == 0; i++) {
        struct ckpt_err pin_err = {0};
        int pinned = o->items[i].db ? ckpt_ocdbt_pin(o->items[i].db, &pin_err) : 0;
        if (pinned < 0) /* the leaves that it concerns will say so */
            ckpt_log(CKPT_LOG_DEBUG, "%s", pin_err.text);
        missing |= pinned == -ENOENT;
    }
    if (missing && is_vanishing(o, NULL))
        r = ckpt_fail(err, ENOENT, "the checkpoint is being deleted");
    else if (r == -ENOENT)
        r = err ? (err->code = EUCLEAN, -EUCLEAN) : -EUCLEAN;
    if (r == 0) {
        atomic_store(&o->loaded_print, fingerprint(o, NULL, NULL));
        load_custom_metadata(o);
        r = ckpt_tree_finish(t, err);
    }
    return ckpt_tree_give(t, r, ret);
}

const struct ckpt_format ckpt_orbax_format = {
    .name = "orbax",
    .probe = ckpt_orbax_probe,
    .open = orbax_open,
    .unfinished_name = ckpt_orbax_unfinished_name,
};
