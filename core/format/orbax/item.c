/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A pytree item: the tree comes from `_METADATA`, entry by entry; from the msgpack file `checkpoint` of old versions;
 * or, where there is neither, from the names of the arrays. Strings are in `_strings.json`.
 */
#include "core/format/orbax/item.h"

#include "core/base/util.h"
#include "core/io/json.h"

#include <stdio.h>

#define MAX_ENTRY ((size_t)1 << 20)
#define MAX_TEXT  ((size_t)64 << 20)

char *ckpt_orbax_path(const struct orbax_item *item, const char *name)
{
    char *path = malloc(strlen(item->dir) + strlen(name) + 2);
    if (path)
        sprintf(path, "%s%s%s", item->dir, *item->dir && *name ? "/" : "", name);
    return path;
}

struct orbax_item *ckpt_orbax_item_of(const struct ckpt_tree *t, uint32_t node)
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
    size_t len;
    const char *text = ckpt_flax_state_elsewhere(t, node, &len);
    if (text) {
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

static int open_in_item(struct orbax *o, struct orbax_item *item, const char *name, struct ckpt_file **ret)
{
    CKPT_AUTOFREE char *path = ckpt_orbax_path(item, name);
    return path ? ckpt_pins_open(o->tree->pins, path, ret) : -ENOMEM;
}

struct loading {
    struct orbax *o;
    struct orbax_item *item;
    struct ckpt_err *err;
    cJSON *strings;            /* of _strings.json, read when first needed */
    struct ckpt_tree *scratch; /* the msgpack file's tree, for leaves that it holds */
    int ocdbt;                 /* of _METADATA: -1 = not said */
};

/* --- strings: RFC 6901 pointer "/" + PARAM --- */

static int load_strings(struct loading *l)
{
    uint8_t *text;
    size_t len;
    struct ckpt_file *f;
    if (l->strings)
        return 0;
    int r = open_in_item(l->o, l->item, "_strings.json", &f);
    if (r == 0) {
        r = ckpt_file_read_all(f, MAX_TEXT, &text, &len);
        ckpt_file_unref(f);
    }
    if (r < 0)
        return ckpt_fail(l->err, r == -EFBIG ? EUCLEAN : -r, "_strings.json: %s", strerror(-r));
    l->strings = ckpt_json_parse((char *)text, len);
    free(text);
    return cJSON_IsObject(l->strings) ? 0 : ckpt_fail(l->err, EUCLEAN, "_strings.json: not a JSON object");
}

static const cJSON *find_string(const cJSON *at, const char *param, size_t len)
{
    CKPT_AUTOFREE char *part = malloc(len + 1);
    for (size_t i = 0, n = 0; part && at; i++) {
        if (i < len && param[i] != '/') {
            char c = param[i];
            if (c == '~' && i + 1 < len && (param[i + 1] == '0' || param[i + 1] == '1'))
                c = param[++i] == '0' ? '~' : '/';
            part[n++] = c;
            continue;
        }
        part[n] = 0;
        n = 0;
        at = ckpt_json_get(at, part);
        if (i >= len)
            return at;
    }
    return NULL;
}

static int set_text(struct ckpt_tree *t, uint32_t node, const char *text, size_t len)
{
    uint32_t string;
    int r = ckpt_tree_string(t, text, len, &string);
    if (r == 0)
        t->nodes[node].text = string;
    return r;
}

static int add_string(struct loading *l, uint32_t node)
{
    struct ckpt_tree *t = l->o->tree;
    struct ckpt_buf buf = CKPT_BUF_INIT;
    int r = load_strings(l);
    if (r < 0)
        return r;
    ckpt_orbax_param(t, node, &buf);
    const cJSON *s = ckpt_buf_error(&buf) ? NULL : find_string(l->strings, buf.data ? (char *)buf.data : "", buf.len);
    if (!cJSON_IsString(s))
        r = ckpt_fail(l->err, EUCLEAN, "_strings.json: the string of leaf %.*s is missing",
                      (int)CKPT_MIN(buf.len, (size_t)200), buf.data ? (char *)buf.data : "");
    else {
        buf.len = 0;
        ckpt_buf_add_json_string(&buf, s->valuestring, strlen(s->valuestring));
        r = ckpt_buf_error(&buf);
        if (r == 0)
            r = set_text(t, node, (char *)buf.data, buf.len);
    }
    ckpt_buf_clear(&buf);
    return r;
}

/* --- the msgpack file `checkpoint` of Orbax before 0.5.16: arrays that are stored apart are strings in it --- */

/* `file` is taken over. */
static int load_aggregate(struct loading *l, struct ckpt_file *file, struct ckpt_tree *t, uint32_t top)
{
    static const struct flax_dialect dialect = {.elsewhere = "PLACEHOLDER://", .tuples = true};
    int r = ckpt_flax_state_new(file, &l->item->aggregate);
    ckpt_file_unref(file);
    if (r == 0)
        r = ckpt_flax_state_load(l->item->aggregate, &dialect, t, top, l->err);
    else
        ckpt_fail(l->err, -r, "out of memory");
    return r < 0 ? ckpt_fail_in(l->err, -r, "checkpoint") : 0;
}

/* --- entries of _METADATA --- */

/* The same leaf in the tree of the msgpack file. */
static int take_from_scratch(struct loading *l, const cJSON *keys, uint32_t parent, const char *key, bool index)
{
    struct ckpt_tree *t = l->o->tree, *s = l->scratch;
    struct ckpt_file *f;
    int r;
    if (!s) {
        if ((r = open_in_item(l->o, l->item, "checkpoint", &f)) < 0)
            return ckpt_fail(l->err, r == -ENOENT ? EUCLEAN : -r, "checkpoint: %s", strerror(-r));
        r = ckpt_tree_new(t->ops, t->pins, &l->scratch);
        if (r < 0) {
            ckpt_file_unref(f);
            return ckpt_fail(l->err, -r, "out of memory");
        }
        r = load_aggregate(l, f, l->scratch, 0);
        if (r == 0)
            r = ckpt_tree_finish(l->scratch, l->err);
        if (r < 0)
            return r;
        s = l->scratch;
    }
    /* Walk down by key; the old file has plain keys only, so comparing them is enough. */
    uint32_t at = 0;
    const cJSON *e;
    cJSON_ArrayForEach(e, keys)
    {
        const char *want = ckpt_json_get(e, "key")->valuestring;
        uint32_t child = s->nodes[at].kind == CKPT_NODE_DIR ? s->nodes[at].first : CKPT_NO_NODE;
        for (; child != CKPT_NO_NODE; child = s->nodes[child].next) {
            size_t len;
            const char *have = ckpt_tree_text(s, s->nodes[child].key, &len);
            if (len == strlen(want) && !memcmp(have, want, len))
                break;
        }
        if (child == CKPT_NO_NODE)
            return ckpt_fail(l->err, EUCLEAN, "checkpoint: leaf %s is missing", want);
        at = child;
    }
    uint32_t node;
    const struct ckpt_node *from = &s->nodes[at];
    r = ckpt_tree_add(t, parent, key, strlen(key), index, from->kind, &node, l->err);
    if (r < 0 || from->kind == CKPT_NODE_DIR)
        return r;
    size_t len;
    const char *text;
    if (from->kind == CKPT_NODE_VALUE && from->text) {
        text = ckpt_tree_text(s, from->text, &len);
        r = set_text(t, node, text, len);
    }
    if (r == 0 && from->ref) {
        text = ckpt_tree_text(s, from->ref, &len);
        r = ckpt_tree_string(t, text, len, &t->nodes[node].ref);
    }
    return r;
}

static int add_leaf(struct loading *l, const cJSON *keys, uint32_t parent, const char *key, bool index,
                    const cJSON *value)
{
    static const char *const empties[] = {[CKPT_DICT] = "Dict", [CKPT_LIST] = "List", [CKPT_TUPLE] = "Tuple"};
    struct ckpt_tree *t = l->o->tree;
    const cJSON *type_item = ckpt_json_get(value, "value_type"), *skip = ckpt_json_get(value, "skip_deserialize");
    const char *type = cJSON_IsString(type_item) ? type_item->valuestring : "";
    uint32_t node;
    int r;
    for (unsigned c = 0; c < sizeof empties / sizeof *empties; c++)
        if (!strcmp(type, empties[c])) {
            if (!key) /* the item itself is empty */
                node = parent;
            else if ((r = ckpt_tree_add(t, parent, key, strlen(key), index, CKPT_NODE_DIR, &node, l->err)) < 0)
                return r;
            t->nodes[node].container = (uint8_t)c;
            return 0;
        }
    if (!key)
        key = ""; /* a bare leaf */
    if (!strcmp(type, "None") || !strcmp(type, "NamedTuple")) {
        r = ckpt_tree_add(t, parent, key, strlen(key), index, CKPT_NODE_VALUE, &node, l->err);
        return r < 0 ? r : set_text(t, node, "null", 4);
    }
    if (cJSON_IsTrue(skip))
        return take_from_scratch(l, keys, parent, key, index);
    bool is_value = !strcmp(type, "scalar") || !strcmp(type, "string");
    r = ckpt_tree_add(t, parent, key, strlen(key), index, is_value ? CKPT_NODE_VALUE : CKPT_NODE_ARRAY, &node, l->err);
    if (r == 0 && !strcmp(type, "string"))
        return add_string(l, node);
    if (r == 0 && is_value)
        t->nodes[node].mark = 0; /* its type decides later whether it is a value: see settle_scalars */
    return r;
}

static int add_entry(struct loading *l, const char *text, size_t len)
{
    struct ckpt_tree *t = l->o->tree;
    cJSON *entry = ckpt_json_parse(text, len);
    const cJSON *keys = ckpt_json_get(entry, "key_metadata"), *value = ckpt_json_get(entry, "value_metadata"), *e;
    uint32_t at = l->item->root;
    const char *last = NULL;
    bool last_index = false;
    int r = 0;
    if (!cJSON_IsArray(keys) || !cJSON_IsObject(value))
        r = ckpt_fail(l->err, EUCLEAN, "_METADATA: an entry of tree_metadata is malformed");
    else
        cJSON_ArrayForEach(e, keys)
        {
            const cJSON *key = ckpt_json_get(e, "key"), *type = ckpt_json_get(e, "key_type");
            if (!cJSON_IsString(key) || strlen(key->valuestring) > 65535) {
                r = ckpt_fail(l->err, EUCLEAN, "_METADATA: a key is not a string, or too long");
                break;
            }
            if (last) {
                r = ckpt_tree_add(t, at, last, strlen(last), last_index, CKPT_NODE_DIR, &at, l->err);
                if (r < 0)
                    break;
            }
            last = key->valuestring;
            last_index = cJSON_IsNumber(type) && type->valuedouble == 1;
            /* All children of one container have one type in sane files; any dict key makes it a dict. */
            struct ckpt_node *dir = &t->nodes[at];
            if (dir->first == CKPT_NO_NODE && last_index)
                dir->container = CKPT_LIST;
            else if (!last_index)
                dir->container = CKPT_DICT;
        }
    if (r == 0)
        r = add_leaf(l, keys, at, last, last_index, value);
    cJSON_Delete(entry);
    return r;
}

static int load_tree_metadata(struct loading *l, struct ckpt_json_reader *json)
{
    struct ckpt_buf key = {.max = MAX_ENTRY}, text = {.max = MAX_ENTRY};
    int r = ckpt_json_enter_object(json, l->err);
    while (r == 0 && (r = ckpt_json_member(json, &key, l->err)) == 1) {
        r = ckpt_json_value(json, &text, l->err);
        if (r == 0)
            r = add_entry(l, (char *)text.data, text.len);
    }
    ckpt_buf_clear(&key);
    ckpt_buf_clear(&text);
    return r;
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
    cJSON *item = cJSON_ParseWithLength(copy, len);
    bool valid = item != NULL;
    cJSON_Delete(item);
    return valid;
}

static int load_metadata(struct loading *l, struct ckpt_file *file)
{
    struct ckpt_json_reader *json;
    struct ckpt_buf key = {.max = MAX_ENTRY}, text = {.max = MAX_TEXT};
    bool seen = false;
    int r = ckpt_json_open(file, &json);
    if (r < 0)
        return r;
    l->item->fill_missing = true; /* unless the file says that fill values are stored */
    r = ckpt_json_enter_object(json, l->err);
    while (r == 0 && (r = ckpt_json_member(json, &key, l->err)) == 1) {
        const char *name = (char *)key.data;
        if (!strcmp(name, "tree_metadata")) {
            seen = true;
            r = load_tree_metadata(l, json);
            continue;
        }
        bool custom = !strcmp(name, "custom_metadata");
        bool wanted = custom || !strncmp(name, "use_", 4) || !strncmp(name, "store_", 6);
        r = ckpt_json_value(json, wanted ? &text : NULL, l->err);
        if (r < 0 || !wanted)
            continue;
        bool yes = text.len == 4 && !memcmp(text.data, "true", 4);
        if (!strcmp(name, "use_zarr3"))
            l->item->zarr3 = yes;
        else if (!strcmp(name, "use_ocdbt"))
            l->ocdbt = yes;
        else if (!strcmp(name, "store_array_data_equal_to_fill_value"))
            l->item->fill_missing = !yes;
        else if (custom && text.len > 2 && text.data[0] == '{' && text.data[1] != '}' && !l->o->tree->metadata) {
            if (!is_python_json((char *)text.data, text.len))
                r = ckpt_fail(l->err, EUCLEAN, "custom_metadata is not valid JSON");
            else
                l->o->tree->metadata = strndup((char *)text.data, text.len);
        }
    }
    if (r == 0)
        r = ckpt_json_end(json, l->err);
    if (r == 0 && !seen)
        r = ckpt_fail(l->err, EUCLEAN, "there is no tree_metadata");
    ckpt_json_close(json);
    ckpt_buf_clear(&key);
    ckpt_buf_clear(&text);
    return r < 0 ? ckpt_fail_in(l->err, -r, "_METADATA") : 0;
}

/* --- without any metadata: one directory an array, its name split at dots --- */

static int guess_leaf(void *arg, const char *name, enum ckpt_ftype type)
{
    struct loading *l = arg;
    char path[1024];
    struct ckpt_stat st;
    if (type != CKPT_FT_DIR)
        return 0;
    bool found = false;
    for (int v = 0; v < 2 && !found; v++) {
        CKPT_AUTOFREE char *dir = ckpt_orbax_path(l->item, name);
        if (!dir)
            return -ENOMEM;
        if (snprintf(path, sizeof path, "%s/%s", dir, v ? "zarr.json" : ".zarray") >= (int)sizeof path)
            return 0;
        found = ckpt_backend_stat(ckpt_pins_dir(l->o->tree->pins), path, &st) == 0;
        if (found)
            l->item->zarr3 = v;
    }
    if (!found)
        return 0;
    uint32_t at = l->item->root;
    for (const char *p = name;;) {
        const char *dot = strchr(p, '.');
        size_t n = dot ? (size_t)(dot - p) : strlen(p);
        int r = ckpt_tree_add(l->o->tree, at, p, n, false, dot ? CKPT_NODE_DIR : CKPT_NODE_ARRAY, &at, l->err);
        if (r < 0 || !dot)
            return r;
        p = dot + 1;
    }
}

/* --- all of it --- */

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

static int open_database(struct loading *l)
{
    struct orbax_item *item = l->item;
    struct ckpt_file *f;
    int r = l->ocdbt == 0 ? -ENOENT : open_in_item(l->o, item, "manifest.ocdbt", &f);
    if (r == 0)
        ckpt_file_unref(f);
    else if (r != -ENOENT)
        return ckpt_fail(l->err, -r, "manifest.ocdbt: %s", strerror(-r));
    else if (l->ocdbt != 1)
        return 0;
    else
        return ckpt_fail(l->err, ENOENT, "manifest.ocdbt is missing");
    return ckpt_ocdbt_open(l->o->tree->pins, item->dir, &item->db, l->err);
}

int ckpt_orbax_item_load(struct orbax *o, struct orbax_item *item, struct ckpt_err *err)
{
    struct loading l = {.o = o, .item = item, .err = err, .ocdbt = -1};
    uint32_t first = o->tree->count;
    struct ckpt_file *f;
    int r = open_in_item(o, item, "_METADATA", &f);
    bool has_metadata = r == 0;
    if (has_metadata) {
        r = load_metadata(&l, f);
        ckpt_file_unref(f);
    } else if (r != -ENOENT)
        r = ckpt_fail(err, -r, "_METADATA: %s", strerror(-r));
    else {
        item->fill_missing = true;
        r = open_in_item(o, item, "checkpoint", &f);
        if (r == 0)
            r = load_aggregate(&l, f, o->tree, item->root);
        else if (r != -ENOENT && r != -EISDIR)
            r = ckpt_fail(err, -r, "checkpoint: %s", strerror(-r));
        else {
            o->guessed = true;
            r = ckpt_backend_list(ckpt_pins_dir(o->tree->pins), item->dir, guess_leaf, &l);
        }
    }
    if (r == 0)
        r = open_database(&l);
    if (r == 0 && !has_metadata && !item->aggregate &&
        o->tree->count == first) /* what made it an item went meanwhile */
        r = ckpt_fail(err, ENOENT, "_METADATA is missing");
    if (r == 0)
        r = settle_scalars(&l, first);
    cJSON_Delete(l.strings);
    ckpt_tree_unref(l.scratch);
    return r < 0 && *item->dir ? ckpt_fail_in(err, -r, "%s", item->dir) : r;
}
