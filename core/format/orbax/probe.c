/* SPDX-License-Identifier: Apache-2.0 */
/* What a directory is, told by its own content: an item, a step, or neither; and whether it is finished. */
#include "core/format/orbax/item.h"
#include "core/format/orbax/legacy.h"
#include "core/format/step.h"

#include "core/base/util.h"
#include "core/io/json.h"

#include <ctype.h>
#include <stdio.h>

#define MARKER         ".orbax-checkpoint-tmp"
#define PROBED_SUBDIRS 64
#define MAX_BARE       65536 /* arrays of an item without metadata */

bool ckpt_orbax_unfinished_name(const char *name, size_t *ret_len)
{
    const char *marker = strstr(name, MARKER);
    if (marker)
        *ret_len = (size_t)(marker - name);
    return marker;
}

/* The first byte of a map, an array, or anything that has more bytes than the first. */
static bool begins_msgpack(uint8_t c)
{
    bool small_map = (c & 0xf0) == 0x80, small_array = (c & 0xf0) == 0x90;
    return small_map || small_array || c >= 0xc7;
}

/* The old msgpack file `checkpoint`, not the text file of that name that TensorFlow writes. */
static bool is_msgpack(struct ckpt_backend *dir, const char *path)
{
    CKPT_AUTOFILE struct ckpt_file *f = NULL;
    uint8_t c = 0;
    if (ckpt_backend_open(dir, path, &f) < 0)
        return false;
    return ckpt_file_read(f, &c, 1, 0) == 1 && begins_msgpack(c);
}

struct content {
    bool metadata, manifest, checkpoint, step_metadata, commit;
    char (*subdirs)[256];
    size_t count;
    bool other_files;
};

static void content_clear(struct content *c)
{
    free(c->subdirs);
}

#define AUTO_CONTENT __attribute__((cleanup(content_clear)))

static int note_subdir(struct content *c, const char *name)
{
    size_t len;
    if (ckpt_orbax_unfinished_name(name, &len) || strlen(name) >= sizeof *c->subdirs)
        return 0;
    if (c->count >= PROBED_SUBDIRS)
        return 0;
    if (!c->subdirs) {
        c->subdirs = malloc(PROBED_SUBDIRS * sizeof *c->subdirs);
        if (!c->subdirs)
            return -ENOMEM;
    }
    strcpy(c->subdirs[c->count++], name);
    return 0;
}

static int note_entry(void *arg, const char *name, enum ckpt_ftype type)
{
    struct content *c = arg;
    if (type == CKPT_FT_DIR)
        return note_subdir(c, name);
    c->metadata |= !strcmp(name, "_METADATA");
    c->manifest |= !strcmp(name, "manifest.ocdbt");
    c->checkpoint |= !strcmp(name, "checkpoint");
    c->step_metadata |= !strcmp(name, "_CHECKPOINT_METADATA");
    c->commit |= !strcmp(name, "commit_success.txt");
    return 0;
}

static bool join_path(char *path, size_t size, const char *sub, const char *name)
{
    return snprintf(path, size, "%s%s%s", sub, *sub ? "/" : "", name) < (int)size;
}

static bool has_file(struct ckpt_backend *dir, const char *sub, const char *name)
{
    char path[4096];
    struct ckpt_stat st;
    if (!join_path(path, sizeof path, sub, name) || ckpt_backend_stat(dir, path, &st) < 0)
        return false;
    return st.type == CKPT_FT_FILE;
}

static bool is_array(struct ckpt_backend *dir, const char *sub)
{
    return has_file(dir, sub, ".zarray") || has_file(dir, sub, "zarr.json");
}

bool ckpt_orbax_has_aggregate(struct ckpt_backend *dir, const char *sub)
{
    char path[4096];
    return join_path(path, sizeof path, sub, "checkpoint") && is_msgpack(dir, path);
}

struct bare {
    struct ckpt_backend *dir;
    unsigned arrays, joined; /* the latter have a dot in their names */
};

static int is_not_bare(void *arg, const char *name, enum ckpt_ftype type)
{
    static const char *const own[] = {"commit_success.txt", "orbax.checkpoint", "descriptor",
                                      "_sharding",          "_strings.json",    "array_metadatas"};
    struct bare *b = arg;
    for (size_t i = 0; i < sizeof own / sizeof *own; i++)
        if (!strcmp(name, own[i]))
            return 0;
    bool array = type == CKPT_FT_DIR && b->arrays < MAX_BARE && is_array(b->dir, name);
    b->arrays += array;
    b->joined += array && strchr(name, '.');
    return !array;
}

bool ckpt_orbax_is_bare_item(struct ckpt_backend *dir)
{
    struct bare b = {.dir = dir};
    return ckpt_backend_list(dir, "", is_not_bare, &b) == 0 && b.joined;
}

/* An item without any metadata of its own: some directory in it is an array. */
static bool holds_arrays(struct ckpt_backend *dir, const char *sub)
{
    char path[4096];
    AUTO_CONTENT struct content c = {0};
    if (ckpt_backend_list(dir, sub, note_entry, &c) < 0)
        return false;
    for (size_t i = 0; i < c.count; i++)
        if (join_path(path, sizeof path, sub, c.subdirs[i]) && is_array(dir, path))
            return true;
    return false;
}

/* An item by its own files (docs/orbax.md, "What is a checkpoint"). */
bool ckpt_orbax_is_item(struct ckpt_backend *dir, const char *sub)
{
    char path[4096];
    if (has_file(dir, sub, "_METADATA") || has_file(dir, sub, "manifest.ocdbt"))
        return true;
    bool old = has_file(dir, sub, "checkpoint") && join_path(path, sizeof path, sub, "checkpoint");
    if (old && is_msgpack(dir, path))
        return true;
    return holds_arrays(dir, sub);
}

/* Like PREFIX_12, PREFIX-12 or 12, which is rather the name of a step than of an item. */
static bool numbered(const char *name)
{
    double number;
    return ckpt_step_number(name, false, &number);
}

/* A directory that holds something of its own, rather than being an item of a step: a single save, or a root with
 * steps. */
static bool stands_alone(struct ckpt_backend *dir, const char *sub)
{
    AUTO_CONTENT struct content c = {0};
    int r = ckpt_backend_list(dir, sub, note_entry, &c);
    if (c.step_metadata)
        return true;
    bool own = c.metadata || c.manifest || c.checkpoint; /* then what is numbered in it is a key */
    if (r < 0 || own)
        return false;
    for (size_t i = 0; i < c.count; i++)
        if (numbered(c.subdirs[i]))
            return true;
    return false;
}

/* A step without `_CHECKPOINT_METADATA` (Orbax before 0.5.11, or made by hand): some of its directories are items, and
 * none stands alone. That is weak: a folder of single saves of such versions looks the same but for its name. */
static bool holds_items(struct ckpt_backend *dir, const struct content *c)
{
    bool found = false;
    for (size_t i = 0; i < c->count; i++) {
        if (ckpt_orbax_is_item(dir, c->subdirs[i]))
            found |= !numbered(c->subdirs[i]);
        if (stands_alone(dir, c->subdirs[i]))
            return false;
    }
    return found;
}

/* Are the items that `_CHECKPOINT_METADATA` names there? */
static bool items_are_there(struct ckpt_backend *dir, const cJSON *handlers)
{
    const cJSON *e;
    struct ckpt_stat st;
    if (!cJSON_IsObject(handlers))
        return true;
    cJSON_ArrayForEach(e, handlers)
    {
        bool safe = ckpt_path_safe(e->string, strlen(e->string));
        if (!safe || ckpt_backend_stat(dir, e->string, &st) < 0)
            return false;
    }
    return true;
}

/* What `_CHECKPOINT_METADATA` says: finished or not, and whether the items that it names are there. */
static void read_step_metadata(struct ckpt_backend *dir, const struct content *c, struct ckpt_probe *ret)
{
    CKPT_AUTOFREE uint8_t *text = NULL;
    size_t len;
    if (ckpt_backend_read_all(dir, "_CHECKPOINT_METADATA", 16 << 20, &text, &len) < 0)
        return;
    CKPT_AUTOCJSON cJSON *root = ckpt_json_parse((char *)text, len);
    bool begun = cJSON_IsNumber(ckpt_json_get(root, "init_timestamp_nsecs"));
    bool committed = c->commit || cJSON_IsNumber(ckpt_json_get(root, "commit_timestamp_nsecs"));
    if (begun && !committed)
        snprintf(ret->unfinished, sizeof ret->unfinished,
                 "not committed: _CHECKPOINT_METADATA has no commit time and there is no commit_success.txt");
    if (!items_are_there(dir, ckpt_json_get(root, "item_handlers")))
        ret->settled = false;
}

/* Is the probed directory itself an item? A step's directories are not looked into. */
static bool is_item_itself(struct ckpt_backend *dir, const struct content *c)
{
    if (c->metadata || c->manifest)
        return true;
    if (c->checkpoint && is_msgpack(dir, "checkpoint"))
        return true;
    return !c->step_metadata && ckpt_orbax_is_bare_item(dir);
}

int ckpt_orbax_probe(struct ckpt_backend *dir, struct ckpt_probe *ret)
{
    AUTO_CONTENT struct content c = {0};
    int r = ckpt_backend_list(dir, "", note_entry, &c);
    if (r < 0)
        return r;
    bool item = is_item_itself(dir, &c);
    if (c.step_metadata)
        read_step_metadata(dir, &c, ret);
    if (item || c.step_metadata)
        ret->bits = 64;
    else if (holds_items(dir, &c)) {
        ret->bits = 32;
        ret->weak = true;
    }
    if (!ret->bits && !c.count)
        ret->settled = false; /* empty, or what is left while it is being deleted */
    return r;
}
