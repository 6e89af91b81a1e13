/* SPDX-License-Identifier: Apache-2.0 */
/* What people may want to know of an array besides its elements: its sharding, and the kind of a random key. */
#include "core/format/orbax/item.h"

#include "core/base/util.h"
#include "core/io/json.h"

#include <stdio.h>

#define MAX_KEY      ((size_t)1 << 20)
#define MAX_SHARDING ((size_t)4 << 20)
#define MAX_METADATA ((size_t)1 << 20) /* of one array */

/* A JSON file of an item that is being read. */
struct item_json {
    struct ckpt_file *file;
    struct ckpt_json_reader *reader;
    struct ckpt_buf key;
};

static void item_json_close(struct item_json *j)
{
    ckpt_json_close(j->reader);
    ckpt_file_unref(j->file);
    ckpt_buf_clear(&j->key);
}

#define AUTO_ITEM_JSON __attribute__((cleanup(item_json_close)))

/* True inside of the file's top object. None of these files has to be there. */
static bool item_json_open(struct ckpt_tree *t, struct orbax_item *item, const char *name, struct item_json *ret)
{
    CKPT_AUTOFREE char *path = ckpt_orbax_path(item, name);
    *ret = (struct item_json){.key = {.max = MAX_KEY}};
    if (!path || ckpt_pins_open(t->pins, path, &ret->file) < 0)
        return false;
    return ckpt_json_open(ret->file, &ret->reader) == 0 && ckpt_json_enter_object(ret->reader, NULL) == 0;
}

/* Skips members up to the one with a key. */
static bool item_json_find(struct item_json *j, const void *key, size_t len)
{
    while (ckpt_json_member(j->reader, &j->key, NULL) == 1) {
        bool found = j->key.len == len && (!len || !memcmp(j->key.data, key, len));
        if (found)
            return true;
        if (ckpt_json_value(j->reader, NULL, NULL) < 0)
            return false;
    }
    return false;
}

/* `_sharding` has JSON texts within strings, by the array's name in base64. */
static void describe_sharding(struct ckpt_tree *t, struct orbax_item *item, const struct ckpt_buf *param,
                              struct ckpt_buf *out)
{
    AUTO_ITEM_JSON struct item_json j = {0};
    CKPT_AUTOBUF struct ckpt_buf want = CKPT_BUF_INIT, text = {.max = MAX_SHARDING};
    if (!item_json_open(t, item, "_sharding", &j))
        return;
    ckpt_buf_add_base64url(&want, param->data, param->len);
    if (!item_json_find(&j, want.data, want.len) || ckpt_json_value(j.reader, &text, NULL) < 0)
        return;
    CKPT_AUTOCJSON cJSON *value = ckpt_json_parse((char *)text.data, text.len);
    if (!cJSON_IsString(value))
        return;
    const char *sharding = value->valuestring;
    CKPT_AUTOCJSON cJSON *inner = ckpt_json_parse(sharding, strlen(sharding));
    if (!cJSON_IsObject(inner))
        return;
    ckpt_buf_adds(out, ",\"sharding\":");
    ckpt_buf_adds(out, sharding);
}

static int first_name(void *arg, const char *name, enum ckpt_ftype type)
{
    char *best = arg;
    if (type == CKPT_FT_DIR || strlen(name) >= 256)
        return 0;
    if (!*best || strcmp(name, best) < 0)
        strcpy(best, name);
    return 0;
}

/* Every process writes the metadata of all arrays, so any of the files will do. */
static bool array_metadata_name(struct ckpt_tree *t, const struct orbax_item *item, char *ret, size_t size)
{
    char name[256] = "";
    CKPT_AUTOFREE char *dir = ckpt_orbax_path(item, "array_metadatas");
    if (!dir || ckpt_backend_list(ckpt_pins_dir(t->pins), dir, first_name, name) < 0)
        return false;
    snprintf(ret, size, "array_metadatas/%s", name);
    return *name;
}

static bool equals(const cJSON *text, const struct ckpt_buf *param)
{
    if (!cJSON_IsString(text) || strlen(text->valuestring) != param->len)
        return false;
    return !param->len || !memcmp(text->valuestring, param->data, param->len);
}

/* True: this entry is the array's, and says which kind of random key it is. */
static bool describe_entry(const cJSON *entry, const struct ckpt_buf *param, struct ckpt_buf *out)
{
    const cJSON *meta = ckpt_json_get(entry, "array_metadata");
    const cJSON *impl = ckpt_json_get(ckpt_json_get(meta, "ext_metadata"), "random_key_impl");
    if (!cJSON_IsString(impl) || !equals(ckpt_json_get(meta, "param_name"), param))
        return false;
    ckpt_buf_adds(out, ",\"prng_impl\":");
    ckpt_buf_add_json_string(out, impl->valuestring, strlen(impl->valuestring));
    return true;
}

static void describe_key(struct ckpt_tree *t, struct orbax_item *item, const struct ckpt_buf *param,
                         struct ckpt_buf *out)
{
    static const char member[] = "array_metadatas";
    char path[300];
    AUTO_ITEM_JSON struct item_json j = {0};
    CKPT_AUTOBUF struct ckpt_buf text = {.max = MAX_METADATA};
    if (!array_metadata_name(t, item, path, sizeof path) || !item_json_open(t, item, path, &j))
        return;
    if (!item_json_find(&j, member, strlen(member)) || ckpt_json_enter_array(j.reader, NULL) < 0)
        return;
    while (ckpt_json_element(j.reader, NULL) == 1) {
        if (ckpt_json_value(j.reader, &text, NULL) < 0)
            return;
        CKPT_AUTOCJSON cJSON *entry = ckpt_json_parse((char *)text.data, text.len);
        if (describe_entry(entry, param, out))
            return;
    }
}

void ckpt_orbax_describe(struct ckpt_tree *t, uint32_t node, struct ckpt_buf *out)
{
    CKPT_AUTOBUF struct ckpt_buf param = CKPT_BUF_INIT;
    if (t->nodes[node].kind != CKPT_NODE_ARRAY)
        return;
    struct orbax_item *item = ckpt_orbax_item_of(t, node);
    ckpt_orbax_param(t, node, &param);
    if (ckpt_buf_error(&param))
        return;
    describe_key(t, item, &param, out);
    describe_sharding(t, item, &param, out);
}
