/* SPDX-License-Identifier: Apache-2.0 */
/* Strings of an item: its file `_strings.json`, in which the RFC 6901 pointer "/" + PARAM leads to each. */
#include "core/format/orbax/loading.h"

#include "core/base/util.h"

#include <stdio.h>

#define STRINGS "_strings.json"

static int load_strings(struct loading *l, const char *path)
{
    CKPT_AUTOFREE uint8_t *text = NULL;
    CKPT_AUTOFILE struct ckpt_file *f = NULL;
    size_t len;
    if (l->strings)
        return 0;
    int r = ckpt_orbax_open_in_item(l->o, l->item, path, &f);
    if (r == 0)
        r = ckpt_file_read_all(f, ORBAX_MAX_TEXT, &text, &len);
    if (r < 0)
        return ckpt_fail(l->err, r == -EFBIG ? EUCLEAN : -r, "_strings.json: %s", strerror(-r));
    l->strings = ckpt_json_parse((char *)text, len);
    return cJSON_IsObject(l->strings) ? 0 : ckpt_fail(l->err, EUCLEAN, "_strings.json: not a JSON object");
}

/* One character of a part of the pointer, its escape undone; *i is left at its last byte. */
static char pointer_character(const char *param, size_t len, size_t *i)
{
    char next = *i + 1 < len ? param[*i + 1] : 0;
    bool escape = param[*i] == '~' && (next == '0' || next == '1');
    if (!escape)
        return param[*i];
    ++*i;
    return next == '0' ? '~' : '/';
}

static const cJSON *find_string(const cJSON *at, const char *param, size_t len)
{
    CKPT_AUTOFREE char *part = malloc(len + 1);
    for (size_t i = 0, n = 0; part && at; i++) {
        if (i < len && param[i] != '/') {
            part[n++] = pointer_character(param, len, &i);
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

int ckpt_orbax_set_text(struct ckpt_tree *t, uint32_t node, const char *text, size_t len)
{
    uint32_t string;
    int r = ckpt_tree_string(t, text, len, &string);
    if (r == 0)
        t->nodes[node].text = string;
    return r;
}

static int set_string(struct ckpt_tree *t, uint32_t node, const char *string)
{
    CKPT_AUTOBUF struct ckpt_buf json = CKPT_BUF_INIT;
    ckpt_buf_add_json_string(&json, string, strlen(string));
    int r = ckpt_buf_error(&json);
    return r < 0 ? r : ckpt_orbax_set_text(t, node, (char *)json.data, json.len);
}

int ckpt_orbax_add_string(struct loading *l, uint32_t node)
{
    struct ckpt_tree *t = l->o->tree;
    CKPT_AUTOBUF struct ckpt_buf param = CKPT_BUF_INIT;
    ckpt_orbax_param(t, node, &param);
    ckpt_buf_addc(&param, 0);
    if (ckpt_buf_error(&param))
        return ckpt_no_memory(l->err);
    param.len--;
    const char *name = (char *)param.data;
    int r = load_strings(l, STRINGS);
    if (r < 0)
        return r;
    const cJSON *s = find_string(l->strings, name, param.len);
    if (!cJSON_IsString(s))
        return ckpt_fail(l->err, EUCLEAN, "_strings.json: the string of leaf %.*s is missing",
                         (int)CKPT_MIN(param.len, (size_t)200), name);
    return set_string(t, node, s->valuestring);
}

/* The file with strings of an item without _METADATA, which may be where the first of them would be an array. */
static int find_strings(struct loading *l)
{
    int r = load_strings(l, STRINGS);
    for (unsigned i = 0; i < l->item->sub_count && r == -ENOENT; i++) {
        CKPT_AUTOFREE char *path = NULL;
        if (asprintf(&path, "%s/" STRINGS, l->item->subs[i].dir) < 0)
            return ckpt_no_memory(l->err);
        r = load_strings(l, path);
    }
    return r;
}

int ckpt_orbax_settle_strings(struct loading *l, uint32_t first)
{
    struct ckpt_tree *t = l->o->tree;
    int r = find_strings(l);
    if (r < 0)
        return r == -ENOENT ? 0 : r;
    for (uint32_t node = first; node < t->count && r == 0; node++) {
        size_t len;
        const char *param = ckpt_flax_state_elsewhere(t, node, &len);
        const cJSON *s = param ? find_string(l->strings, param, len) : NULL;
        if (!cJSON_IsString(s))
            continue;
        t->nodes[node].kind = CKPT_NODE_VALUE;
        r = set_string(t, node, s->valuestring);
    }
    return r;
}
