/* SPDX-License-Identifier: Apache-2.0 */
#include "core/format/flax/spec.h"

#include "core/base/util.h"

#include <stdio.h>

#define MAX_MEMBERS 32
#define MAX_WORD    32   /* bytes of a member's name, and of a driver's */
#define MAX_PATH    4096 /* bytes */
#define MAX_LEVELS  8    /* of values in it: a map of maps is not read again and again */

struct spec {
    bool driver, store;
    struct ckpt_buf path;
};

/* Steps over a value that does not nest too deeply; false: it does, or it is malformed. */
static bool skip(struct ckpt_mp *mp, unsigned levels)
{
    struct ckpt_mp_token t;
    if (!levels || ckpt_mp_next(mp, &t, NULL) < 0)
        return false;
    bool nests = t.type == CKPT_MP_MAP || t.type == CKPT_MP_ARRAY;
    uint64_t values = t.type == CKPT_MP_MAP ? 2 * t.len : t.len;
    if (nests && t.len > mp->end - mp->at)
        return false;
    for (uint64_t i = 0; nests && i < values; i++)
        if (!skip(mp, levels - 1))
            return false;
    return true;
}

static bool take_text(struct ckpt_mp *mp, size_t max, struct ckpt_buf *text)
{
    struct ckpt_mp_token t;
    text->len = 0;
    if (ckpt_mp_next(mp, &t, NULL) < 0 || t.type != CKPT_MP_STR || t.len > max)
        return false;
    if (ckpt_mp_bytes(mp, &t, text, NULL) < 0)
        return false;
    ckpt_buf_addc(text, 0);
    if (ckpt_buf_error(text))
        return false;
    return strlen((char *)text->data) == --text->len;
}

static bool is_driver(const char *name)
{
    return !strcmp(name, "zarr") || !strcmp(name, "zarr2") || !strcmp(name, "zarr3");
}

static bool take_store(struct ckpt_mp *mp, struct spec *s)
{
    struct ckpt_mp_token map;
    CKPT_AUTOBUF struct ckpt_buf word = CKPT_BUF_INIT;
    if (ckpt_mp_next(mp, &map, NULL) < 0 || map.type != CKPT_MP_MAP || map.len > MAX_MEMBERS)
        return false;
    for (uint64_t i = 0; i < map.len; i++) {
        if (!take_text(mp, MAX_WORD, &word))
            return false;
        const char *name = (char *)word.data;
        s->store |= !strcmp(name, "driver");
        bool good = !strcmp(name, "path") ? take_text(mp, MAX_PATH, &s->path) : skip(mp, MAX_LEVELS);
        if (!good)
            return false;
    }
    return true;
}

/* Other members of a specification, by the name: a map with anything else is no specification, and is left at once. */
static bool is_known(const char *name)
{
    static const char *const known[] = {
        "dtype",
        "metadata",
        "transform",
        "schema",
        "context",
        "rank",
        "field",
        "open",
        "create",
        "delete_existing",
        "cache_pool",
        "metadata_cache_pool",
        "data_copy_concurrency",
        "recheck_cached",
        "recheck_cached_data",
        "recheck_cached_metadata",
        "assume_metadata",
        "assume_cached_metadata",
        "fill_missing_data_reads",
        "store_data_equal_to_fill_value",
    };
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (!strcmp(name, known[i]))
            return true;
    return false;
}

static bool take_member(struct ckpt_mp *mp, const char *name, struct spec *s)
{
    CKPT_AUTOBUF struct ckpt_buf driver = CKPT_BUF_INIT;
    if (!strcmp(name, "kvstore"))
        return take_store(mp, s);
    if (!strcmp(name, "path")) /* as TensorStore was told before its version 0.1.14 */
        return take_text(mp, MAX_PATH, &s->path);
    if (strcmp(name, "driver") != 0)
        return is_known(name) && skip(mp, MAX_LEVELS);
    s->driver = take_text(mp, MAX_WORD, &driver) && is_driver((char *)driver.data);
    return s->driver;
}

static bool take_spec(struct ckpt_mp *mp, const struct ckpt_mp_token *map, struct spec *s)
{
    CKPT_AUTOBUF struct ckpt_buf name = CKPT_BUF_INIT;
    for (uint64_t i = 0; i < map->len; i++)
        if (!take_text(mp, MAX_WORD, &name) || !take_member(mp, (char *)name.data, s))
            return false;
    return s->driver && s->store && s->path.len;
}

/* "/data//x/./y/" is "data/x/y". */
static void add_parts(const char *path, struct ckpt_buf *out)
{
    size_t begin = out->len;
    for (size_t n; *path; path += n) {
        path += *path == '/';
        n = strcspn(path, "/");
        bool is_empty = !n || (n == 1 && *path == '.');
        if (is_empty)
            continue;
        if (out->len > begin)
            ckpt_buf_addc(out, '/');
        ckpt_buf_add(out, path, n);
    }
}

int ckpt_flax_spec(struct ckpt_mp *mp, const struct ckpt_mp_token *map, struct ckpt_buf *path, struct ckpt_err *err)
{
    uint64_t begin = mp->at;
    struct spec s = {0};
    bool may_be = map->len >= 2 && map->len <= MAX_MEMBERS;
    bool is_spec = may_be && take_spec(mp, map, &s);
    if (is_spec)
        add_parts((char *)s.path.data, path);
    else
        mp->at = begin;
    ckpt_buf_clear(&s.path);
    return ckpt_buf_error(path) ? ckpt_no_memory(err) : is_spec;
}

const char *ckpt_flax_spec_tail(const char *path, unsigned parts)
{
    for (const char *slash; parts; parts--) {
        slash = strchr(path, '/');
        if (!slash)
            break;
        path = slash + 1;
    }
    return path;
}

bool ckpt_flax_spec_is_there(struct ckpt_pins *pins, const char *folder, const char *path)
{
    static const char *const files[] = {".zarray", "zarr.json"};
    char name[2 * MAX_PATH];
    struct ckpt_stat st;
    const char *slash = *folder ? "/" : "";
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
        bool fits = snprintf(name, sizeof name, "%s%s%s/%s", folder, slash, path, files[i]) < (int)sizeof name;
        bool safe = fits && ckpt_path_safe(name, strlen(name));
        if (safe && ckpt_backend_stat(ckpt_pins_dir(pins), name, &st) == 0)
            return true;
    }
    return false;
}
