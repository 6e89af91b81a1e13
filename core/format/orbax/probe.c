/* SPDX-License-Identifier: Apache-2.0 */
/* What a directory is, told by its own content: an item, a step, or neither; and whether it is finished. */
#include "core/format/orbax/item.h"

#include "core/base/util.h"
#include "core/io/json.h"

#include <ctype.h>
#include <stdio.h>

#define MARKER         ".orbax-checkpoint-tmp"
#define PROBED_SUBDIRS 64

bool ckpt_orbax_unfinished_name(const char *name, size_t *ret_len)
{
    const char *marker = strstr(name, MARKER);
    if (marker)
        *ret_len = (size_t)(marker - name);
    return marker;
}

/* The old msgpack file `checkpoint`, not the text file of that name that TensorFlow writes. */
static bool is_msgpack(struct ckpt_backend *dir, const char *path)
{
    struct ckpt_file *f;
    uint8_t c = 0;
    if (ckpt_backend_open(dir, path, &f) < 0)
        return false;
    bool ok = ckpt_file_read(f, &c, 1, 0) == 1 &&
              ((c & 0xf0) == 0x80 || c == 0xde || c == 0xdf || c >= 0xc7 || (c & 0xf0) == 0x90);
    ckpt_file_unref(f);
    return ok;
}

struct content {
    bool metadata, manifest, checkpoint, step_metadata, commit;
    char (*subdirs)[256];
    size_t count;
    bool other_files;
};

static int note_entry(void *arg, const char *name, enum ckpt_ftype type)
{
    struct content *c = arg;
    size_t n;
    if (type == CKPT_FT_DIR) {
        if (c->count < PROBED_SUBDIRS && !ckpt_orbax_unfinished_name(name, &n) && strlen(name) < 256) {
            if (!c->subdirs && !(c->subdirs = malloc(PROBED_SUBDIRS * sizeof *c->subdirs)))
                return -ENOMEM;
            strcpy(c->subdirs[c->count++], name);
        }
        return 0;
    }
    c->metadata |= !strcmp(name, "_METADATA");
    c->manifest |= !strcmp(name, "manifest.ocdbt");
    c->checkpoint |= !strcmp(name, "checkpoint");
    c->step_metadata |= !strcmp(name, "_CHECKPOINT_METADATA");
    c->commit |= !strcmp(name, "commit_success.txt");
    return 0;
}

static bool join(char *path, size_t size, const char *sub, const char *name)
{
    return snprintf(path, size, "%s%s%s", sub, *sub ? "/" : "", name) < (int)size;
}

static bool has(struct ckpt_backend *dir, const char *sub, const char *name)
{
    char path[4096];
    struct ckpt_stat st;
    return join(path, sizeof path, sub, name) && ckpt_backend_stat(dir, path, &st) == 0 && st.type == CKPT_FT_FILE;
}

/* An item by its own files (docs/orbax.md, "What is a checkpoint"). */
bool ckpt_orbax_is_item(struct ckpt_backend *dir, const char *sub)
{
    char path[4096];
    if (has(dir, sub, "_METADATA") || has(dir, sub, "manifest.ocdbt"))
        return true;
    if (has(dir, sub, "checkpoint") && join(path, sizeof path, sub, "checkpoint") && is_msgpack(dir, path))
        return true;
    struct content c = {0};
    bool found = false;
    if (ckpt_backend_list(dir, sub, note_entry, &c) == 0)
        for (size_t i = 0; i < c.count && !found; i++)
            found = join(path, sizeof path, sub, c.subdirs[i]) &&
                    (has(dir, path, ".zarray") || has(dir, path, "zarr.json"));
    free(c.subdirs);
    return found;
}

/* Like PREFIX_12 or 12, which is rather the name of a step than of an item. */
static bool numbered(const char *name)
{
    const char *p = strrchr(name, '_');
    p = p && p != name ? p + 1 : name;
    size_t n = strspn(p, "0123456789");
    return n && !p[n];
}

/* A directory that holds something of its own, rather than being an item of a step: a single save, or a root with
 * steps. */
static bool stands_alone(struct ckpt_backend *dir, const char *sub)
{
    struct content c = {0};
    bool steps = false;
    int r = ckpt_backend_list(dir, sub, note_entry, &c);
    for (size_t i = 0; r == 0 && i < c.count; i++)
        steps |= numbered(c.subdirs[i]) && !c.metadata && !c.manifest && !c.checkpoint;
    free(c.subdirs);
    return c.step_metadata || steps;
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

/* What `_CHECKPOINT_METADATA` says: finished or not, and whether the items that it names are there. */
static void read_step_metadata(struct ckpt_backend *dir, const struct content *c, struct ckpt_probe *ret)
{
    uint8_t *text;
    size_t len;
    if (ckpt_backend_read_all(dir, "_CHECKPOINT_METADATA", 16 << 20, &text, &len) < 0)
        return;
    cJSON *root = ckpt_json_parse((char *)text, len);
    const cJSON *init = ckpt_json_get(root, "init_timestamp_nsecs"),
                *commit = ckpt_json_get(root, "commit_timestamp_nsecs");
    if (cJSON_IsNumber(init) && !cJSON_IsNumber(commit) && !c->commit)
        snprintf(ret->unfinished, sizeof ret->unfinished,
                 "not committed: _CHECKPOINT_METADATA has no commit time and there is no commit_success.txt");
    const cJSON *handlers = ckpt_json_get(root, "item_handlers"), *e;
    struct ckpt_stat st;
    if (cJSON_IsObject(handlers))
        cJSON_ArrayForEach(e, handlers)
        {
            if (!ckpt_path_safe(e->string, strlen(e->string)) || ckpt_backend_stat(dir, e->string, &st) < 0)
                ret->settled = false;
        }
    cJSON_Delete(root);
    free(text);
}

int ckpt_orbax_probe(struct ckpt_backend *dir, struct ckpt_probe *ret)
{
    struct content c = {0};
    int r = ckpt_backend_list(dir, "", note_entry, &c);
    if (r == 0) {
        bool item = c.metadata || c.manifest || (c.checkpoint && is_msgpack(dir, "checkpoint"));
        for (size_t i = 0; i < c.count && !item && !c.step_metadata; i++)
            item = has(dir, c.subdirs[i], ".zarray") || has(dir, c.subdirs[i], "zarr.json");
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
    }
    free(c.subdirs);
    return r;
}
