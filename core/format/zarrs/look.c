/* SPDX-License-Identifier: Apache-2.0 */
/* What a directory is, and what the names in it are. */
#include "core/format/zarrs/zarrs_private.h"

#include "core/base/util.h"
#include "core/io/json.h"

#include <stdio.h>

static bool join(char *path, size_t size, const char *sub, const char *name)
{
    return snprintf(path, size, "%s%s%s", sub, *sub ? "/" : "", name) < (int)size;
}

bool ckpt_zarrs_has_file(struct ckpt_backend *dir, const char *sub, const char *name)
{
    char path[4352];
    struct ckpt_stat st;
    bool there = join(path, sizeof path, sub, name) && ckpt_backend_stat(dir, path, &st) == 0;
    return there && st.type == CKPT_FT_FILE;
}

bool ckpt_zarrs_is_group(const void *text, size_t len)
{
    CKPT_AUTOCJSON cJSON *root = ckpt_json_parse(text, len);
    const cJSON *type = ckpt_json_get(root, "node_type");
    return cJSON_IsString(type) && !strcmp(type->valuestring, "group");
}

/* What has a zarr.json. */
static enum zarrs_kind look_into(struct ckpt_backend *dir, const char *sub)
{
    char path[4352];
    CKPT_AUTOFREE uint8_t *text = NULL;
    size_t len = 0;
    bool read = join(path, sizeof path, sub, "zarr.json") &&
                ckpt_backend_read_all(dir, path, ZARRS_MAX_METADATA, &text, &len) == 0;
    return read && ckpt_zarrs_is_group(text, len) ? ZARRS_GROUP : ZARRS_ARRAY3;
}

enum zarrs_kind ckpt_zarrs_look(struct ckpt_backend *dir, const char *sub)
{
    if (ckpt_zarrs_has_file(dir, sub, ".zarray"))
        return ZARRS_ARRAY2;
    if (ckpt_zarrs_has_file(dir, sub, "zarr.json"))
        return look_into(dir, sub);
    if (ckpt_zarrs_has_file(dir, sub, "manifest.ocdbt"))
        return ZARRS_DATABASE;
    bool group = ckpt_zarrs_has_file(dir, sub, ".zgroup") || ckpt_zarrs_has_file(dir, sub, ".zmetadata");
    return group ? ZARRS_GROUP : ZARRS_FOLDER;
}

static bool is(const char *name, size_t len, const char *want)
{
    return len == strlen(want) && !memcmp(name, want, len);
}

bool ckpt_zarrs_is_own(const char *name, size_t len)
{
    static const char *const own[] = {".zarray", ".zattrs", ".zgroup", ".zmetadata", "zarr.json"};
    static const char lock[] = ".__lock"; /* TensorStore's, of a file that it is writing */
    size_t n = strlen(lock);
    for (size_t i = 0; i < sizeof own / sizeof *own; i++)
        if (is(name, len, own[i]))
            return true;
    return len > n && !memcmp(name + len - n, lock, n);
}

bool ckpt_zarrs_is_chunk(const char *name, size_t len)
{
    size_t i = len && *name == 'c';
    if (i && (len == 1 || name[1] != '.'))
        return len == 1;
    for (i = i ? 2 : 0;; i++) {
        size_t begin = i;
        while (i < len && name[i] >= '0' && name[i] <= '9')
            i++;
        if (i == begin)
            return false;
        if (i == len || name[i] != '.')
            return i == len;
    }
}

bool ckpt_zarrs_is_process(const char *name)
{
    static const char *const prefixes[] = {"ocdbt.process_", "process_"};
    for (size_t i = 0; i < sizeof prefixes / sizeof *prefixes; i++) {
        size_t n = strlen(prefixes[i]);
        const char *digits = name + n;
        if (!strncmp(name, prefixes[i], n) && *digits && !digits[strspn(digits, "0123456789")])
            return true;
    }
    return false;
}
