/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The longest part of the path that is on disk is tried as a source, the rest as a path in it. Some directories are
 * part of a checkpoint only as seen from above (a step of an old Orbax, an item): where the path leads to no
 * checkpoint, the directories above are tried as sources too, and are taken if from there it does.
 */
#include "fs/commands/resolve.h"

#include "fs/commands/cli.h"

#include "core/base/util.h"

#include <sys/stat.h>

#define LEVELS 3

void fs_place_clear(struct fs_place *p)
{
    if (!p->src)
        return;
    ckpt_forget(p->src, p->at.id, 1);
    ckpt_source_close(p->src);
    p->src = NULL;
}

/* 1: there, inside of a checkpoint; 0: there, but a plain directory or file. */
static int try_source(const char *source, const char *rest, struct fs_place *ret, struct ckpt_err *err)
{
    struct fs_place p = {0};
    CKPT_AUTOFREE char *meta = NULL;
    size_t len;
    int r = fs_open(source, &p.src, err);
    if (r < 0)
        return r;
    r = fs_walk(p.src, rest, &p.at, err);
    if (r < 0) {
        ckpt_source_close(p.src);
        return r;
    }
    *ret = p;
    return ckpt_describe(p.src, p.at.id, &meta, &len, NULL) != -ENODATA;
}

/* Cut the last name off `path` and put it before *rest. False: there is none. */
static bool shorten(char *path, char **rest)
{
    char *slash = strrchr(path, '/');
    const char *name = slash ? slash + 1 : path;
    if (!*name || !strcmp(path, "."))
        return false;
    char *longer = fs_join(name, *rest);
    if (!longer)
        return false;
    free(*rest);
    *rest = longer;
    if (!slash)
        strcpy(path, ".");
    else
        slash[slash == path] = 0;
    return true;
}

static int try_above(char *source, char **rest, struct fs_place *ret, struct ckpt_err *err)
{
    struct fs_place place;
    int r = try_source(source, *rest, ret, err);
    if (r == 1 || (r < 0 && r != -ENOENT && r != -ENOTDIR && r != -EOPNOTSUPP))
        return r;
    for (int level = 0; level < LEVELS && shorten(source, rest) && strcmp(source, "/"); level++) {
        int above = try_source(source, *rest, &place, NULL);
        if (above == 1 || (above == 0 && r < 0)) {
            if (r == 0)
                fs_place_clear(ret);
            *ret = place;
            r = 0;
        } else if (above == 0)
            fs_place_clear(&place);
        if (above == 1)
            break;
    }
    return r;
}

int fs_resolve(const char *path, struct fs_place *ret, struct ckpt_err *err)
{
    struct stat st;
    CKPT_AUTOFREE char *part = strdup(path), *rest = strdup("");
    if (!part || !rest)
        return ckpt_no_memory(err);
    for (size_t n = strlen(part); n > 1 && part[n - 1] == '/'; n--)
        part[n - 1] = 0;
    bool there = stat(part, &st) == 0;
    /* An .npy file is a leaf of its directory; as a source it would be a directory with that leaf. */
    if (there && S_ISREG(st.st_mode) && strlen(part) > 4 && !strcmp(part + strlen(part) - 4, ".npy"))
        shorten(part, &rest);
    while (!there && (errno == ENOENT || errno == ENOTDIR) && shorten(part, &rest))
        there = stat(part, &st) == 0;
    if (there && *rest && !strcmp(part, "/")) /* nothing of it is there */
        return ckpt_fail(err, ENOENT, "%s: %s", path, strerror(ENOENT));
    if (strstr(path, "://") && *rest) /* what it says of an address */
        return try_source(path, "", ret, err);
    CKPT_AUTOFREE char *source = there ? realpath(part, NULL) : NULL;
    if (!source)
        return ckpt_fail(err, errno, "%s: %s", path, strerror(errno));
    int r = try_above(source, &rest, ret, err);
    if (r < 0 && err && err->code != -r)
        return ckpt_fail(err, -r, "%s: %s", path, strerror(-r));
    return r < 0 ? r : 0;
}

/* --- a source and what follows --- */

/* The part of `path` that is on disk stays, the rest goes to *rest. False: none of it is there, or no memory. */
static bool split(char *path, char **rest)
{
    struct stat st;
    while (stat(path, &st) < 0)
        if ((errno != ENOENT && errno != ENOTDIR) || !shorten(path, rest))
            return false;
    return !(**rest && (!strcmp(path, "/") || !strcmp(path, ".")));
}

/* "latest" at the begin of *rest becomes the step that it leads to. */
static int name_latest(struct ckpt_source *src, char **rest)
{
    static const char latest[] = "latest";
    char target[512];
    struct ckpt_attr at;
    size_t n = strlen(latest);
    bool is_latest = !strncmp(*rest, latest, n) && (!(*rest)[n] || (*rest)[n] == '/');
    if (!is_latest || ckpt_lookup(src, CKPT_ROOT, latest, &at, NULL) < 0)
        return 0;
    int r = at.type == CKPT_LINK ? ckpt_readlink(src, at.id, target, sizeof target) : -EINVAL;
    ckpt_forget(src, at.id, 1);
    if (r < 0)
        return 0; /* a directory of that name */
    char *named = fs_join(target, *rest + n + ((*rest)[n] == '/'));
    if (!named)
        return -ENOMEM;
    free(*rest);
    *rest = named;
    return 1;
}

int fs_open_inside(const char *path, struct ckpt_source **ret, char **ret_inside, struct ckpt_err *err)
{
    CKPT_AUTOFREE char *part = strdup(path), *rest = strdup("");
    if (!part || !rest)
        return ckpt_no_memory(err);
    bool is_there = !strstr(path, "://") && split(part, &rest);
    int r = fs_open(is_there ? part : path, ret, err);
    if (r == 0 && (r = name_latest(*ret, &rest)) == 1) {
        /* The step's own directory, where there is one, says the same as if it had been named. */
        CKPT_AUTOFREE char *named = fs_join(part, rest);
        ckpt_source_close(CKPT_STEAL(*ret));
        return named ? fs_open_inside(named, ret, ret_inside, err) : ckpt_no_memory(err);
    }
    if (r == 0)
        *ret_inside = CKPT_STEAL(rest);
    return r;
}
