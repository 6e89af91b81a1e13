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

struct content {
    bool foreign; /* another format's */
    bool marked;  /* by a trainer */
    bool orbax;   /* left of a checkpoint of Orbax */
    bool manifest, processes;
    unsigned names, count;
    char (*subdirs)[NAME_SIZE];
};

static void content_clear(struct content *c)
{
    free(c->subdirs);
}

#define AUTO_CONTENT __attribute__((cleanup(content_clear)))

static bool is_one_of(const char *name, const char *const *names)
{
    while (*names && strcmp(name, *names) != 0)
        names++;
    return *names;
}

static int note_subdir(struct content *c, const char *name)
{
    if (c->count == MAX_SUBDIRS || strlen(name) >= NAME_SIZE)
        return 0;
    if (!c->subdirs)
        c->subdirs = malloc(MAX_SUBDIRS * sizeof *c->subdirs);
    if (!c->subdirs)
        return -ENOMEM;
    strcpy(c->subdirs[c->count++], name);
    return 0;
}

static int note(void *arg, const char *name, enum ckpt_ftype type)
{
    static const char *const foreign[] = {"_METADATA", "_CHECKPOINT_METADATA", ".metadata", ".ckptstore", NULL};
    /* axlearn; Levanter; jax.experimental.array_serialization */
    static const char *const marks[] = {"index", "metadata.json", "pytreedef.json", NULL};
    static const char *const orbax[] = {"_sharding", "_strings.json", "array_metadatas", "commit_success.txt", NULL};
    struct content *c = arg;
    if (++c->names > MAX_NAMES)
        return 1;
    c->foreign |= is_one_of(name, foreign);
    c->orbax |= is_one_of(name, orbax);
    c->marked |= type == CKPT_FT_FILE && is_one_of(name, marks);
    c->manifest |= type == CKPT_FT_FILE && !strcmp(name, "manifest.ocdbt");
    c->processes |= type == CKPT_FT_DIR && !strncmp(name, "ocdbt.process_", 14);
    return type == CKPT_FT_DIR ? note_subdir(c, name) : 0;
}

static int take_content(struct ckpt_backend *dir, const char *sub, struct content *ret)
{
    int r = ckpt_backend_list(dir, sub, note, ret);
    return r > 0 ? 0 : r;
}

static bool is_foreign(struct ckpt_backend *dir, const char *sub, const struct content *c)
{
    return c->foreign || ckpt_orbax_has_aggregate(dir, sub);
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
    s->foreign |= is_foreign(s->dir, s->path, &c);
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

/* A subdirectory is another format's checkpoint, which would be lost in this one's tree. */
static bool has_foreign(struct ckpt_backend *dir, const struct content *c)
{
    bool foreign = false;
    for (unsigned i = 0; i < c->count && !foreign; i++) {
        AUTO_CONTENT struct content sub = {0};
        foreign = take_content(dir, c->subdirs[i], &sub) == 0 && is_foreign(dir, c->subdirs[i], &sub);
    }
    return foreign;
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
    char path[NAME_SIZE + 32];
    for (unsigned i = 0; i < c->count && !c->manifest; i++) {
        snprintf(path, sizeof path, "%s", c->subdirs[i]);
        if (ckpt_zarrs_is_process(path) && ckpt_zarrs_has_file(dir, path, "manifest.ocdbt"))
            return true;
    }
    return c->manifest;
}

/* --- all of it --- */

static unsigned bits_of(struct ckpt_backend *dir, const struct content *c, struct ckpt_probe *ret)
{
    enum zarrs_kind kind = ckpt_zarrs_look(dir, "");
    if (is_database(dir, c))
        return 80;
    if (kind == ZARRS_GROUP || ckpt_zarrs_is_array(kind))
        return 80;
    if (has_array(dir, c))
        return ckpt_orbax_is_bare_item(dir) || has_foreign(dir, c) ? 0 : 72;
    struct search s = {.dir = dir, .left = c->marked ? MAX_SEARCH : MAX_LOOKS};
    if (has_steps(c) || !search(&s, MAX_LEVELS) || has_foreign(dir, c))
        return 0;
    ret->weak = !c->marked;
    return 40;
}

int ckpt_zarrs_probe(struct ckpt_backend *dir, struct ckpt_probe *ret)
{
    AUTO_CONTENT struct content c = {0};
    int r = take_content(dir, "", &c);
    if (r == 0 && !c.orbax && !is_foreign(dir, "", &c))
        ret->bits = bits_of(dir, &c, ret);
    return r;
}
