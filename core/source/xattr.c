/* SPDX-License-Identifier: Apache-2.0 */
/* user.ckpt.*: what is known of a leaf or directory, and why a checkpoint does not open. And the attributes that a step
 * of a store, or a leaf or directory in it, was written with. */
#include "core/base/util.h"
#include "core/io/json.h"
#include "core/format/native.h"
#include "core/source/kind.h"
#include "core/tree/rights.h"

#include <stdio.h>

#define PREFIX       "user.ckpt."
#define KNOWN_LEVELS 40

static void set_string(cJSON *all, const char *name, const char *value)
{
    cJSON_AddItemToObject(all, name, cJSON_CreateString(value));
}

/* Members of the leaf's metadata, as text: strings bare, the rest as JSON. */
static void copy_member(cJSON *all, const cJSON *meta, const char *name)
{
    const cJSON *item = ckpt_json_get(meta, name);
    if (!item)
        return;
    char *text = cJSON_IsString(item) ? strdup(item->valuestring) : cJSON_PrintUnformatted(item);
    if (text)
        set_string(all, name, text);
    free(text);
}

static void describe_inner(struct ckpt_tree *t, uint32_t node, cJSON *all)
{
    static const char *const names[] = {"kind",     "dtype",  "shape",  "chunks",    "codec", "stored",
                                        "sharding", "format", "sha256", "prng_impl", "class"};
    struct ckpt_buf json = CKPT_BUF_INIT;
    struct ckpt_err err = {0};
    size_t len;
    const char *key = ckpt_tree_text(t, t->nodes[node].key, &len);
    if (node)
        set_string(all, "key", key);
    if (ckpt_view_meta(t, node, &json, &err) < 0)
        set_string(all, "error", err.text);
    else {
        ckpt_buf_addc(&json, 0);
        if (!ckpt_buf_error(&json))
            ckpt_json_tame((char *)json.data);
        cJSON *meta = ckpt_buf_error(&json) ? NULL : ckpt_json_parse((char *)json.data, json.len - 1);
        for (size_t i = 0; i < sizeof names / sizeof *names; i++)
            copy_member(all, meta, names[i]);
        cJSON_Delete(meta);
    }
    ckpt_buf_clear(&json);
}

static void manifest_of(struct ckpt_source *src, const struct node *n, char ret[NODE_PATH])
{
    CKPT_GUARD(&src->lock);
    ckpt_node_manifest(n, false, ret);
}

/* A step of a store is pinned by a file beside its manifest. */
static bool is_pinned(struct ckpt_source *src, const struct node *n)
{
    struct ckpt_stat st;
    char pin[NODE_PATH];
    if (!n->stored)
        return false;
    manifest_of(src, n, pin);
    strcpy(pin + strlen(pin) - strlen("json"), "pin");
    return ckpt_backend_stat(src->backend, pin, &st) == 0;
}

/* Why a checkpoint does not open may be something in it: it is told in full to who may read all of its files. */
static bool may_know(struct ckpt_source *src, const struct node *n, const struct ckpt_caller *who)
{
    struct ckpt_rights all = {.mode = 0444, .uid = n->st.uid, .gid = n->st.gid};
    if (!who || ckpt_caller_owns(who, n->st.uid))
        return true;
    char manifest[NODE_PATH] = "";
    if (n->stored)
        manifest_of(src, n, manifest);
    int r = node_blob(n) ? 0 : ckpt_rights_below(src->backend, n->stored ? manifest : n->path, KNOWN_LEVELS, &all);
    return r == 0 && ckpt_caller_may(who, all.mode, all.uid, all.gid, 4);
}

/* The number of a step is in its name. */
static double number_of(struct ckpt_source *src, const struct node *n)
{
    char name[CKPT_NAME_MAX + 1];
    double number = 0;
    ckpt_source_step_name(src, n, name);
    if (!ckpt_step_number(name, true, &number))
        (void)!ckpt_step_number_glued(name, &number);
    return number;
}

/* What a step is known by without being opened. name: as `describe` has it. */
static void describe_place(struct ckpt_source *src, const struct node *n, const char *name, cJSON *all)
{
    if (n->is_step) {
        struct ckpt_buf text = CKPT_BUF_INIT;
        ckpt_add_json_number(&text, number_of(src, n));
        ckpt_buf_addc(&text, 0);
        if (!ckpt_buf_error(&text))
            set_string(all, "step", (char *)text.data);
        ckpt_buf_clear(&text);
    }
    set_string(all, "state", atomic_load(&n->removing) ? "staged" : "committed");
    set_string(all, "pinned", name && !strcmp(name, "pinned") && is_pinned(src, n) ? "1" : "0");
}

static void describe_step(struct ckpt_source *src, struct target *t, const struct ckpt_caller *who, cJSON *all)
{
    const struct node *n = t->node;
    struct ckpt_err err = {0};
    uint32_t node;
    if (ckpt_source_enter(src, t, &node, &err) < 0) {
        set_string(all, "format", n->format ? n->format->name : "orbax");
        set_string(all, "error",
                   may_know(src, n, who) ? err.text : "it cannot be opened; who may read all of it is told why");
        return;
    }
    set_string(all, "metadata", t->tree->metadata ? t->tree->metadata : "{}");
    if (t->tree->fault)
        set_string(all, "error", t->tree->fault);
    describe_inner(t->tree, 0, all);
}

/* Listing the names of a step's attributes does not open it: `ls -l` of a root does that for each of 100,000 steps. */
static bool is_never_opened(struct ckpt_source *src, const struct node *n)
{
    CKPT_GUARD(&src->lock);
    return !n->opened || (!n->opened->tree && !n->opened->err);
}

static void name_step(cJSON *all)
{
    static const char *const names[] = {"metadata", "kind", "format"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        set_string(all, names[i], "");
}

/* --- of a checkpoint, and of what is in it --- */

/* An object of all user.ckpt.* attributes; `name`: of that one, and maybe others; NULL: the values do not matter. NULL
 * when out of memory. */
static cJSON *describe_tree(struct ckpt_source *src, struct target *t, const char *name, const struct ckpt_caller *who)
{
    cJSON *all = cJSON_CreateObject();
    if (!all)
        return NULL;
    if (t->tree) {
        if (t->file.view != CKPT_VIEW_TREE && t->file.view != CKPT_VIEW_SAFETENSORS)
            describe_inner(t->tree, t->file.node, all);
        return all;
    }
    describe_place(src, t->node, name, all);
    if (!name && is_never_opened(src, t->node))
        name_step(all);
    else if (!name || !ckpt_json_get(all, name))
        describe_step(src, t, who, all);
    return all;
}

/* A step that has none is not opened for that. */
static bool has_written(const struct target *t)
{
    return t->node->stored && (t->tree || t->node->top_attributes);
}

/* The attributes that it was written with: an object of hex strings; NULL: none. */
static cJSON *written_attributes(struct ckpt_source *src, struct target *t)
{
    struct ckpt_manifest_node n = {0};
    cJSON *all = NULL;
    uint32_t node;
    if (ckpt_source_enter(src, t, &node, NULL) < 0 || t->file.view != CKPT_VIEW_LISTED)
        return NULL;
    if (ckpt_store_tree_record(t->tree, node, &n, NULL) == 0 && n.xattrs)
        all = ckpt_json_parse(n.xattrs, strlen(n.xattrs));
    ckpt_manifest_node_clear(&n);
    return all;
}

static ssize_t written_attribute(struct ckpt_source *src, struct target *t, const char *name, char *buf, size_t len)
{
    cJSON *all = has_written(t) ? written_attributes(src, t) : NULL;
    const cJSON *item = ckpt_json_get(all, name);
    ssize_t r = -ENODATA;
    if (cJSON_IsString(item)) {
        size_t n = strlen(item->valuestring) / 2;
        CKPT_AUTOFREE char *value = malloc(n + 1);
        for (size_t i = 0; value && i < n; i++) {
            unsigned byte = 0;
            sscanf(item->valuestring + 2 * i, "%2x", &byte);
            value[i] = (char)byte;
        }
        r = value ? ckpt_give_xattr(value, n, buf, len) : -ENOMEM;
    }
    cJSON_Delete(all);
    return r;
}

/* `all` is taken over. */
static ssize_t give_value(cJSON *all, const char *name, char *buf, size_t len)
{
    const cJSON *item = ckpt_json_get(all, name);
    ssize_t r = item ? ckpt_give_xattr(item->valuestring, strlen(item->valuestring), buf, len) : -ENODATA;
    cJSON_Delete(all);
    return r;
}

/* Both are taken over. */
static ssize_t give_names(cJSON *all, cJSON *written, char *buf, size_t len)
{
    struct ckpt_buf names = CKPT_BUF_INIT;
    const cJSON *e;
    cJSON_ArrayForEach(e, all)
    {
        ckpt_buf_addf(&names, PREFIX "%s", e->string);
        ckpt_buf_addc(&names, 0);
    }
    cJSON_ArrayForEach(e, written) ckpt_buf_add(&names, e->string, strlen(e->string) + 1);
    cJSON_Delete(written);
    cJSON_Delete(all);
    ssize_t r = ckpt_buf_error(&names);
    if (r == 0)
        r = ckpt_give_xattr((char *)names.data, names.len, buf, len);
    ckpt_buf_clear(&names);
    return r;
}

static bool is_ours(const char *name)
{
    return !strncmp(name, PREFIX, strlen(PREFIX));
}

ssize_t ckpt_source_tree_getxattr(struct ckpt_source *src, struct target *t, const char *name,
                                  const struct ckpt_caller *who, char *buf, size_t len)
{
    if (!is_ours(name))
        return written_attribute(src, t, name, buf, len);
    name += strlen(PREFIX);
    return give_value(describe_tree(src, t, name, who), name, buf, len);
}

ssize_t ckpt_source_tree_listxattr(struct ckpt_source *src, struct target *t, char *buf, size_t len)
{
    bool written = has_written(t); /* to describe a step may enter its tree */
    cJSON *all = describe_tree(src, t, NULL, NULL);
    return give_names(all, written ? written_attributes(src, t) : NULL, buf, len);
}

/* --- of an .npy file of a directory --- */

static cJSON *describe_npy(struct ckpt_source *src, struct target *t)
{
    struct target npy;
    cJSON *all = cJSON_CreateObject();
    if (all && ckpt_source_npy(src, t->node, &npy, NULL) == 0) { /* a malformed one has none */
        describe_inner(npy.tree, npy.tree->nodes[0].first, all);
        ckpt_source_done(src, &npy);
    }
    return all;
}

ssize_t ckpt_source_npy_getxattr(struct ckpt_source *src, struct target *t, const char *name, char *buf, size_t len)
{
    return is_ours(name) ? give_value(describe_npy(src, t), name + strlen(PREFIX), buf, len) : -ENODATA;
}

ssize_t ckpt_source_npy_listxattr(struct ckpt_source *src, struct target *t, char *buf, size_t len)
{
    return give_names(describe_npy(src, t), NULL, buf, len);
}

/* --- as JSON --- */

int ckpt_describe(struct ckpt_source *src, uint64_t id, char **ret, size_t *ret_len, struct ckpt_err *err)
{
    struct target t;
    uint32_t node;
    struct ckpt_buf json = CKPT_BUF_INIT;
    int r = ckpt_source_target(src, id, &t, err);
    if (r < 0)
        return r;
    if (!t.tree && t.node->kind != NODE_TREE)
        r = ckpt_fail(err, ENODATA, "not a checkpoint, nor a part of one");
    else
        r = ckpt_source_enter(src, &t, &node, err);
    if (r == 0)
        r = ckpt_view_meta(t.tree, node, &json, err);
    if (r == 0) {
        *ret = ckpt_buf_steal(&json, ret_len);
        r = *ret ? 0 : ckpt_fail(err, ENOMEM, "out of memory");
    }
    ckpt_buf_clear(&json);
    ckpt_source_done(src, &t);
    return r;
}
