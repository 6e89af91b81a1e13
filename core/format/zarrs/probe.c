/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Is a directory a folder of arrays? That is certain where it says so itself, or an array lies right in it. Arrays
 * farther down may be a step's, a run's or a disk's: then a file counts that trainers put beside them, and else, in a
 * root, the name of a step. Only so many directories are looked at, the first in each: where arrays are, most are.
 */
#include "core/format/zarrs/zarrs_private.h"

#include "core/base/util.h"
#include "core/format/orbax/legacy.h"
#include "core/format/step.h"

#include <stdio.h>

#define MAX_NAMES   4096 /* of a directory */
#define MAX_SUBDIRS 64   /* of it that are looked at */
#define MAX_LOOKS   64   /* directories in all, for an array farther down; with a trainer's file: */
#define MAX_SEARCH  512
#define MAX_LEVELS  32
#define NAME_SIZE   256

/* What of a directory's names tells something, of the first so many. */
struct content {
    unsigned names, count;
    char (*subdirs)[NAME_SIZE];
    bool index; /* of shards of another format */
};

static void content_clear(struct content *c)
{
    free(c->subdirs);
}

#define AUTO_CONTENT __attribute__((cleanup(content_clear)))

static int note(void *arg, const char *name, enum ckpt_ftype type)
{
    struct content *c = arg;
    if (++c->names > MAX_NAMES)
        return 1;
    c->index |= ckpt_has_suffix(name, ".index.json");
    if (type != CKPT_FT_DIR || c->count == MAX_SUBDIRS || strlen(name) >= NAME_SIZE)
        return 0;
    if (!c->subdirs)
        c->subdirs = malloc(MAX_SUBDIRS * sizeof *c->subdirs);
    if (!c->subdirs)
        return -ENOMEM;
    strcpy(c->subdirs[c->count++], name);
    return 0;
}

static int take_content(struct ckpt_backend *dir, const char *sub, struct content *ret)
{
    int r = ckpt_backend_list(dir, sub, note, ret);
    return r > 0 ? 0 : r;
}

static bool has_any(struct ckpt_backend *dir, const char *sub, const char *const *names)
{
    char path[4352];
    struct ckpt_stat st;
    for (; *names; names++) {
        bool fits = snprintf(path, sizeof path, "%s%s%s", sub, *sub ? "/" : "", *names) < (int)sizeof path;
        if (fits && ckpt_backend_stat(dir, path, &st) == 0)
            return true;
    }
    return false;
}

/* Another format's checkpoint. */
static bool has_foreign_files(struct ckpt_backend *dir, const char *sub, const struct content *c)
{
    static const char *const foreign[] = {"_METADATA", "_CHECKPOINT_METADATA", ".metadata", ".ckptstore", NULL};
    return c->index || has_any(dir, sub, foreign) || ckpt_orbax_has_aggregate(dir, sub);
}

bool ckpt_zarrs_is_foreign(struct ckpt_backend *dir, const char *sub)
{
    AUTO_CONTENT struct content c = {0};
    return take_content(dir, sub, &c) == 0 && has_foreign_files(dir, sub, &c);
}

/* What Orbax leaves beside its metadata: without those nobody knows the tree. */
static bool is_of_orbax(struct ckpt_backend *dir)
{
    static const char *const orbax[] = {"_sharding", "_strings.json", "array_metadatas", "commit_success.txt", NULL};
    return has_any(dir, "", orbax);
}

/* Files of trainers: axlearn; Levanter; jax.experimental.array_serialization. */
static bool is_marked(struct ckpt_backend *dir)
{
    static const char *const marks[] = {"index", "metadata.json", "pytreedef.json", NULL};
    bool marked = false;
    for (size_t i = 0; marks[i] && !marked; i++)
        marked = ckpt_zarrs_has_file(dir, "", marks[i]);
    return marked;
}

/* --- farther down --- */

struct search {
    struct ckpt_backend *dir;
    char path[4096];
    unsigned left;
    bool foreign; /* another format's checkpoint was met */
};

/* At the directory of the path, and below it. */
static bool search(struct search *s, unsigned levels)
{
    AUTO_CONTENT struct content c = {0};
    if (!levels || !s->left)
        return false;
    s->left--;
    if (take_content(s->dir, s->path, &c) < 0)
        return false;
    s->foreign |= has_foreign_files(s->dir, s->path, &c);
    bool found = !s->foreign && ckpt_zarrs_look(s->dir, s->path) != ZARRS_FOLDER;
    size_t old = strlen(s->path), room = sizeof s->path - old;
    for (unsigned i = 0; i < c.count && !found && !s->foreign; i++) {
        bool fits = snprintf(s->path + old, room, "%s%s", old ? "/" : "", c.subdirs[i]) < (int)room;
        found = fits && search(s, levels - 1);
        s->path[old] = 0;
    }
    return found;
}

static bool is_step_name(const char *name)
{
    double number;
    return ckpt_step_number(name, true, &number) || ckpt_step_number_glued(name, &number);
}

static bool has_steps(const struct content *c)
{
    for (unsigned i = 0; i < c->count; i++)
        if (is_step_name(c->subdirs[i]))
            return true;
    return false;
}

/* --- right in it --- */

/* A subdirectory is another format's checkpoint. steps: only one with the name of a step counts. */
static bool has_foreign(struct ckpt_backend *dir, const struct content *c, bool steps)
{
    for (unsigned i = 0; i < c->count; i++) {
        bool counts = !steps || is_step_name(c->subdirs[i]);
        if (counts && ckpt_zarrs_is_foreign(dir, c->subdirs[i]))
            return true;
    }
    return false;
}

static bool has_array(struct ckpt_backend *dir, const struct content *c)
{
    for (unsigned i = 0; i < c->count; i++)
        if (ckpt_zarrs_is_array(ckpt_zarrs_look(dir, c->subdirs[i])))
            return true;
    return false;
}

static bool is_database(struct ckpt_backend *dir, const struct content *c)
{
    for (unsigned i = 0; i < c->count; i++) {
        const char *name = c->subdirs[i];
        if (ckpt_zarrs_is_process(name) && ckpt_zarrs_has_file(dir, name, "manifest.ocdbt"))
            return true;
    }
    return false;
}

/* --- all of it --- */

static unsigned bits_of(struct ckpt_backend *dir, const struct content *c, struct ckpt_probe *ret)
{
    if (ckpt_zarrs_look(dir, "") != ZARRS_FOLDER || is_database(dir, c))
        return 80;
    if (has_array(dir, c))
        return ckpt_orbax_is_bare_item(dir) || has_foreign(dir, c, true) ? 0 : 72;
    bool marked = is_marked(dir);
    struct search s = {.dir = dir, .left = marked ? MAX_SEARCH : MAX_LOOKS};
    if (has_steps(c) || !search(&s, MAX_LEVELS) || has_foreign(dir, c, false))
        return 0;
    ret->weak = !marked;
    return 40;
}

int ckpt_zarrs_probe(struct ckpt_backend *dir, struct ckpt_probe *ret)
{
    AUTO_CONTENT struct content c = {0};
    int r = take_content(dir, "", &c);
    bool may_be = r == 0 && !is_of_orbax(dir) && !has_foreign_files(dir, "", &c);
    if (may_be)
        ret->bits = bits_of(dir, &c, ret);
    return r;
}
