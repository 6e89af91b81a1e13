/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A pytree item: the tree comes from `_METADATA`, entry by entry; from the msgpack file `checkpoint` of old versions;
 * or, where there is neither, from the names of the arrays. Strings are in `_strings.json`.
 */
#include "core/format/orbax/loading.h"
#include "core/format/orbax/legacy.h"

#include "core/base/log.h"
#include "core/base/util.h"
#include "core/object/record.h"

#include <stdio.h>

#define MAX_ENTRY ((size_t)1 << 20)
#define MAX_KEY   65535

/* --- the msgpack file `checkpoint` of Orbax before 0.5.16: arrays that are stored apart are strings in it --- */

/* `file` is taken over. */
static int load_aggregate(struct loading *l, struct ckpt_file *file, struct ckpt_tree *t, uint32_t top)
{
    struct flax_dialect dialect = {.elsewhere = "PLACEHOLDER://", .tuples = true, .folder = l->item->dir};
    int r = ckpt_flax_state_new(file, &l->item->aggregate);
    ckpt_file_unref(file);
    if (r == 0)
        r = ckpt_flax_state_load(l->item->aggregate, &dialect, t, top, l->err);
    else
        ckpt_fail(l->err, -r, "out of memory");
    return r < 0 ? ckpt_fail_in(l->err, -r, "checkpoint") : 0;
}

/* --- entries of _METADATA --- */

/* The whole msgpack file as a tree of its own, once. */
static int load_scratch(struct loading *l)
{
    struct ckpt_tree *t = l->o->tree;
    struct ckpt_file *f;
    if (l->scratch)
        return 0;
    int r = ckpt_orbax_open_in_item(l->o, l->item, "checkpoint", &f);
    if (r < 0)
        return ckpt_fail(l->err, r == -ENOENT ? EUCLEAN : -r, "checkpoint: %s", strerror(-r));
    r = ckpt_tree_new(t->ops, t->pins, &l->scratch);
    if (r < 0) {
        ckpt_file_unref(f);
        return ckpt_fail(l->err, -r, "out of memory");
    }
    r = load_aggregate(l, f, l->scratch, 0);
    return r < 0 ? r : ckpt_tree_finish(l->scratch, l->err);
}

static uint32_t child_by_key(const struct ckpt_tree *t, uint32_t dir, const char *key)
{
    if (t->nodes[dir].kind != CKPT_NODE_DIR)
        return CKPT_NO_NODE;
    for (uint32_t child = t->nodes[dir].first; child != CKPT_NO_NODE; child = t->nodes[child].next) {
        size_t len;
        const char *have = ckpt_tree_text(t, t->nodes[child].key, &len);
        if (len == strlen(key) && !memcmp(have, key, len))
            return child;
    }
    return CKPT_NO_NODE;
}

/* Where a leaf goes: its key in a container. */
struct place {
    uint32_t parent;
    const char *key; /* NULL: the item itself is the leaf */
    bool index;
};

static int add_at(struct loading *l, const struct place *at, enum ckpt_node_kind kind, uint32_t *ret)
{
    const char *key = at->key ? at->key : "";
    return ckpt_tree_add(l->o->tree, at->parent, key, strlen(key), at->index, kind, ret, l->err);
}

/* The same leaf in the tree of the msgpack file. */
static int take_from_scratch(struct loading *l, const cJSON *keys, const struct place *place)
{
    struct ckpt_tree *t = l->o->tree;
    int r = load_scratch(l);
    if (r < 0)
        return r;
    /* Walk down by key; the old file has plain keys only, so comparing them is enough. */
    const struct ckpt_tree *s = l->scratch;
    uint32_t at = 0, node;
    const cJSON *e;
    cJSON_ArrayForEach(e, keys)
    {
        const char *want = ckpt_json_get(e, "key")->valuestring;
        at = child_by_key(s, at, want);
        if (at == CKPT_NO_NODE)
            return ckpt_fail(l->err, EUCLEAN, "checkpoint: leaf %s is missing", want);
    }
    const struct ckpt_node *from = &s->nodes[at];
    r = add_at(l, place, from->kind, &node);
    if (r < 0 || from->kind == CKPT_NODE_DIR)
        return r;
    size_t len;
    if (from->kind == CKPT_NODE_VALUE && from->text) {
        const char *text = ckpt_tree_text(s, from->text, &len);
        r = ckpt_orbax_set_text(t, node, text, len);
        if (r < 0)
            return r;
    }
    if (!from->ref)
        return 0;
    const char *text = ckpt_tree_text(s, from->ref, &len);
    return ckpt_tree_string(t, text, len, &t->nodes[node].ref);
}

/* An empty container: it has an entry, as no leaf names it. */
static int add_empty(struct loading *l, const struct place *place, enum ckpt_container container)
{
    uint32_t node = place->parent;
    int r = place->key ? add_at(l, place, CKPT_NODE_DIR, &node) : 0;
    if (r < 0)
        return r;
    l->o->tree->nodes[node].container = (uint8_t)container;
    return 0;
}

static int add_leaf(struct loading *l, const cJSON *keys, const struct place *place, const cJSON *value)
{
    static const char *const empties[] = {[CKPT_DICT] = "Dict", [CKPT_LIST] = "List", [CKPT_TUPLE] = "Tuple"};
    const cJSON *type_item = ckpt_json_get(value, "value_type"), *skip = ckpt_json_get(value, "skip_deserialize");
    const char *type = cJSON_IsString(type_item) ? type_item->valuestring : "";
    uint32_t node;
    for (unsigned c = 0; c < sizeof empties / sizeof *empties; c++)
        if (!strcmp(type, empties[c]))
            return add_empty(l, place, (enum ckpt_container)c);
    if (!strcmp(type, "None") || !strcmp(type, "NamedTuple")) {
        int r = add_at(l, place, CKPT_NODE_VALUE, &node);
        return r < 0 ? r : ckpt_orbax_set_text(l->o->tree, node, "null", 4);
    }
    if (cJSON_IsTrue(skip))
        return take_from_scratch(l, keys, place);
    bool string = !strcmp(type, "string");
    bool scalar = !strcmp(type, "scalar"); /* a value for now: the type of its array decides, see settle_scalars */
    int r = add_at(l, place, scalar || string ? CKPT_NODE_VALUE : CKPT_NODE_ARRAY, &node);
    if (r < 0)
        return r;
    return string ? ckpt_orbax_add_string(l, node) : 0;
}

/* All children of one container have one type in sane files; any dict key makes it a dict. */
static void note_key_type(struct ckpt_node *dir, bool index)
{
    if (!index)
        dir->container = CKPT_DICT;
    else if (dir->first == CKPT_NO_NODE)
        dir->container = CKPT_LIST;
}

/* Makes the containers that a leaf's keys lead through. */
static int add_containers(struct loading *l, const cJSON *keys, struct place *ret)
{
    const cJSON *e;
    *ret = (struct place){.parent = l->item->root};
    cJSON_ArrayForEach(e, keys)
    {
        const cJSON *key = ckpt_json_get(e, "key"), *type = ckpt_json_get(e, "key_type");
        if (!cJSON_IsString(key) || strlen(key->valuestring) > MAX_KEY)
            return ckpt_fail(l->err, EUCLEAN, "_METADATA: a key is not a string, or too long");
        if (ret->key) {
            int r = add_at(l, ret, CKPT_NODE_DIR, &ret->parent);
            if (r < 0)
                return r;
        }
        ret->key = key->valuestring;
        ret->index = cJSON_IsNumber(type) && type->valuedouble == 1;
        note_key_type(&l->o->tree->nodes[ret->parent], ret->index);
    }
    return 0;
}

static int add_entry(struct loading *l, const char *text, size_t len)
{
    CKPT_AUTOCJSON cJSON *entry = ckpt_json_parse(text, len);
    const cJSON *keys = ckpt_json_get(entry, "key_metadata"), *value = ckpt_json_get(entry, "value_metadata");
    struct place place;
    if (!cJSON_IsArray(keys) || !cJSON_IsObject(value))
        return ckpt_fail(l->err, EUCLEAN, "_METADATA: an entry of tree_metadata is malformed");
    int r = add_containers(l, keys, &place);
    return r < 0 ? r : add_leaf(l, keys, &place, value);
}

static int load_tree_metadata(struct loading *l, struct ckpt_json_reader *json)
{
    CKPT_AUTOBUF struct ckpt_buf key = {.max = MAX_ENTRY}, text = {.max = MAX_ENTRY};
    int r = ckpt_json_enter_object(json, l->err);
    if (r < 0)
        return r;
    for (;;) {
        r = ckpt_json_member(json, &key, l->err);
        if (r <= 0)
            return r;
        r = ckpt_json_value(json, &text, l->err);
        if (r < 0)
            return r;
        r = add_entry(l, (char *)text.data, text.len);
        if (r < 0)
            return r;
    }
}

/* As Python's json module writes it: NaN, Infinity and -Infinity are numbers. The text is shown as it is, within other
 * JSON. */
static bool is_python_json(const char *text, size_t len)
{
    static const char *const words[] = {"NaN", "-Infinity", "Infinity"};
    CKPT_AUTOFREE char *copy = malloc(len + 1);
    bool quoted = false;
    if (!copy)
        return false;
    memcpy(copy, text, len);
    copy[len] = 0;
    for (size_t i = 0; i < len; i++) {
        if (copy[i] == '"')
            quoted = !quoted;
        else if (quoted && copy[i] == '\\')
            i++;
        for (unsigned w = 0; w < 3 && !quoted; w++)
            if (!strncmp(copy + i, words[w], strlen(words[w]))) /* any number will do */
                memcpy(copy + i, "0        ", strlen(words[w]));
    }
    CKPT_AUTOCJSON cJSON *item = cJSON_ParseWithLength(copy, len);
    return item;
}

static int set_custom(struct loading *l, const struct ckpt_buf *text)
{
    bool object = text->len > 2 && text->data[0] == '{' && text->data[1] != '}';
    if (!object || l->o->tree->metadata)
        return 0;
    if (!is_python_json((char *)text->data, text->len))
        return ckpt_fail(l->err, EUCLEAN, "custom_metadata is not valid JSON");
    l->o->tree->metadata = strndup((char *)text->data, text->len);
    return 0;
}

/* A member of _METADATA that says how the item is stored, or what the user keeps with it. The others are skipped. */
static int load_setting(struct loading *l, struct ckpt_json_reader *json, const char *name, struct ckpt_buf *text)
{
    bool custom = !strcmp(name, "custom_metadata");
    bool wanted = custom || !strncmp(name, "use_", 4) || !strncmp(name, "store_", 6);
    int r = ckpt_json_value(json, wanted ? text : NULL, l->err);
    if (r < 0 || !wanted)
        return r;
    if (custom)
        return set_custom(l, text);
    bool yes = text->len == 4 && !memcmp(text->data, "true", 4);
    if (!strcmp(name, "use_zarr3"))
        l->item->zarr3 = yes;
    else if (!strcmp(name, "use_ocdbt"))
        l->ocdbt = yes;
    else if (!strcmp(name, "store_array_data_equal_to_fill_value"))
        l->item->fill_missing = !yes;
    return 0;
}

/* JSON text within a string: it is for when the tree is there. */
static int keep_types(struct loading *l, struct ckpt_json_reader *json)
{
    CKPT_AUTOBUF struct ckpt_buf text = {.max = ORBAX_MAX_TEXT};
    int r = ckpt_json_value(json, &text, l->err);
    if (r < 0)
        return r;
    struct ckpt_scan s = {(char *)text.data, (char *)text.data + text.len, NULL};
    l->types.len = 0;
    if (text.len && *text.data == '"' && ckpt_scan_string(&s, &l->types) < 0)
        l->types.len = 0;
    return 0;
}

/* The leaves are as good without it. */
static void apply_types(struct loading *l)
{
    struct ckpt_err err = {0};
    const char *text = (char *)l->types.data;
    if (l->types.len && ckpt_orbax_types_apply(l->o->tree, l->item->root, text, l->types.len, &err) < 0)
        ckpt_log(CKPT_LOG_WARN,
                 "%s/_METADATA: value_metadata_tree is malformed: which containers are tuples is not known",
                 l->item->dir);
}

static int load_members(struct loading *l, struct ckpt_json_reader *json)
{
    CKPT_AUTOBUF struct ckpt_buf key = {.max = MAX_ENTRY}, text = {.max = ORBAX_MAX_TEXT};
    bool seen = false;
    int r = ckpt_json_enter_object(json, l->err);
    while (r == 0) {
        r = ckpt_json_member(json, &key, l->err);
        if (r <= 0)
            break;
        const char *name = (char *)key.data;
        bool tree = !strcmp(name, "tree_metadata");
        seen |= tree;
        if (tree)
            r = load_tree_metadata(l, json);
        else if (!strcmp(name, "value_metadata_tree"))
            r = keep_types(l, json);
        else
            r = load_setting(l, json, name, &text);
    }
    if (r == 0)
        r = ckpt_json_end(json, l->err);
    if (r == 0 && !seen)
        r = ckpt_fail(l->err, EUCLEAN, "there is no tree_metadata");
    if (r == 0)
        apply_types(l);
    return r;
}

static int load_metadata(struct loading *l, struct ckpt_file *file)
{
    struct ckpt_json_reader *json;
    int r = ckpt_json_open(file, &json);
    if (r < 0)
        return r;
    l->item->fill_missing = true; /* unless the file says that fill values are stored */
    r = load_members(l, json);
    ckpt_json_close(json);
    return r < 0 ? ckpt_fail_in(l->err, -r, "_METADATA") : 0;
}

/* --- without any metadata: one directory an array, its name split at dots --- */

/* 1: a directory has the metadata of an array; 0: it has not. */
static int has_array_metadata(struct loading *l, const char *name)
{
    static const char *const files[] = {".zarray", "zarr.json"};
    char path[1024];
    struct ckpt_stat st;
    CKPT_AUTOFREE char *dir = ckpt_orbax_path(l->item, name);
    if (!dir)
        return -ENOMEM;
    for (int v = 0; v < 2; v++) {
        if (snprintf(path, sizeof path, "%s/%s", dir, files[v]) >= (int)sizeof path)
            return 0;
        if (ckpt_backend_stat(ckpt_pins_dir(l->o->tree->pins), path, &st) == 0) {
            l->item->zarr3 = v;
            return 1;
        }
    }
    return 0;
}

static int guess_leaf(void *arg, const char *name, enum ckpt_ftype type)
{
    struct loading *l = arg;
    int r = type == CKPT_FT_DIR ? has_array_metadata(l, name) : 0;
    if (r <= 0)
        return r;
    uint32_t at = l->item->root;
    for (const char *p = name;;) {
        const char *dot = strchr(p, '.');
        size_t n = dot ? (size_t)(dot - p) : strlen(p);
        r = ckpt_tree_add(l->o->tree, at, p, n, false, dot ? CKPT_NODE_DIR : CKPT_NODE_ARRAY, &at, l->err);
        if (r < 0 || !dot)
            return r;
        p = dot + 1;
    }
}

/* --- what the tree says --- */

/* A numpy scalar of complex type is no JSON value, but a 0-d array; the type is in its array's metadata. */
static int settle_scalars(struct loading *l, uint32_t first)
{
    struct ckpt_tree *t = l->o->tree;
    for (uint32_t node = first; node < t->count; node++) {
        struct ckpt_array *a;
        if (t->nodes[node].kind != CKPT_NODE_VALUE || t->nodes[node].text)
            continue;
        struct ckpt_err err = {0};
        int r = ckpt_orbax_layout(t, node, &a, &err);
        if (r == -ENOMEM)
            return r;
        if (r < 0) /* reading it will say what is wrong */
            continue;
        enum ckpt_dtype_class klass = ckpt_dtype_info(a->dtype)->klass;
        if (klass == CKPT_DC_COMPLEX || klass == CKPT_DC_OTHER || a->unsupported)
            t->nodes[node].kind = CKPT_NODE_ARRAY;
        ckpt_array_unref(a);
    }
    return 0;
}

/* --- all of it --- */

/* An item without _METADATA. */
static int load_old(struct loading *l)
{
    struct orbax *o = l->o;
    struct ckpt_file *f;
    l->item->fill_missing = true;
    int r = ckpt_orbax_open_in_item(o, l->item, "checkpoint", &f);
    if (r == 0)
        return load_aggregate(l, f, o->tree, l->item->root);
    if (r != -ENOENT && r != -EISDIR)
        return ckpt_fail(l->err, -r, "checkpoint: %s", strerror(-r));
    o->guessed = true;
    return ckpt_backend_list(ckpt_pins_dir(o->tree->pins), l->item->dir, guess_leaf, l);
}

static int load_item(struct loading *l)
{
    CKPT_AUTOFILE struct ckpt_file *f = NULL;
    struct orbax *o = l->o;
    uint32_t first = o->tree->count;
    l->item->has_aggregate = ckpt_orbax_has_aggregate(ckpt_pins_dir(o->tree->pins), l->item->dir);
    int r = ckpt_orbax_open_in_item(o, l->item, "_METADATA", &f);
    bool has_metadata = r == 0;
    if (r == 0)
        r = load_metadata(l, f);
    else if (r == -ENOENT)
        r = load_old(l);
    else
        r = ckpt_fail(l->err, -r, "_METADATA: %s", strerror(-r));
    if (r < 0)
        return r;
    r = ckpt_orbax_open_database(l, first);
    if (r == 0 && l->ocdbt < 0)
        r = ckpt_orbax_open_subs(l, first);
    if (r == 0 && !has_metadata && l->item->aggregate)
        r = ckpt_orbax_settle_strings(l, first);
    if (r < 0)
        return r;
    bool nothing = !has_metadata && !l->item->aggregate && o->tree->count == first;
    if (nothing) /* what made it an item went meanwhile */
        return ckpt_fail(l->err, ENOENT, "_METADATA is missing");
    return settle_scalars(l, first);
}

int ckpt_orbax_item_load(struct orbax *o, struct orbax_item *item, struct ckpt_err *err)
{
    struct loading l = {.o = o, .item = item, .err = err, .ocdbt = -1};
    int r = load_item(&l);
    cJSON_Delete(l.strings);
    ckpt_tree_unref(l.scratch);
    ckpt_buf_clear(&l.types);
    if (r < 0 && *item->dir)
        return ckpt_fail_in(err, -r, "%s", item->dir);
    return r;
}
