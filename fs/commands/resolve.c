/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The longest part of the path that is on disk is tried as a source, the rest as a path in it. Some directories are
 * part of a checkpoint only as seen from above (a step of an old Orbax, an item): where the path leads to no
 * checkpoint, the directories above are tried as sources too, and are taken if from there it does.
 */
#include "fs/commands/resolve.h"

#include "fs/commands/cli.h"

#include "core/base/path.h"
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

/* --- the part that is on disk --- */

/* Cut the last name off `path` and put it before *rest. -ENOENT: there is none. */
static int shorten(char *path, char **rest)
{
    char *slash = strrchr(path, '/');
    const char *name = slash ? slash + 1 : path;
    if (!*name || !strcmp(path, "."))
        return -ENOENT;
    char *longer = ckpt_path_join(name, *rest);
    if (!longer)
        return -ENOMEM;
    free(*rest);
    *rest = longer;
    if (slash)
        slash[slash == path] = 0; /* "/" is the folder of "/name" */
    else
        strcpy(path, ".");
    return 0;
}

/* The longest part of a path that is on disk, perhaps only "/" or ".", and what follows it; both to be freed, also
 * after an error. */
static int split_path(const char *path, char **ret_part, char **ret_rest)
{
    struct stat st;
    char *part = *ret_part = strdup(path);
    *ret_rest = strdup("");
    if (!part || !*ret_rest)
        return -ENOMEM;
    for (size_t n = strlen(part); n > 1 && part[n - 1] == '/'; n--)
        part[n - 1] = 0;
    while (stat(part, &st) < 0) {
        bool may_be_inside = errno == ENOENT || errno == ENOTDIR;
        int r = may_be_inside ? shorten(part, ret_rest) : -errno;
        if (r < 0)
            return r;
    }
    return 0;
}

static bool is_address(const char *path)
{
    return strstr(path, "://");
}

/* --- a place --- */

/* Perhaps the path leads to something in a checkpoint that begins further up. */
static bool may_be_above(int r)
{
    return r == -ENOENT || r == -ENOTDIR || r == -EOPNOTSUPP;
}

static int try_above(char *source, char **rest, struct fs_place *ret, struct ckpt_err *err)
{
    int r = try_source(source, *rest, ret, err);
    if (r == 1)
        return 0;
    if (r < 0 && !may_be_above(r))
        return r;
    for (int level = 0; level < LEVELS; level++) {
        struct fs_place place;
        if (shorten(source, rest) < 0 || !strcmp(source, "/"))
            break;
        int above = try_source(source, *rest, &place, NULL);
        if (above < 0)
            continue;
        bool is_worse = above == 0 && r == 0; /* both plain: the one that was named is meant */
        if (is_worse) {
            fs_place_clear(&place);
            continue;
        }
        if (r == 0)
            fs_place_clear(ret);
        *ret = place;
        r = 0;
        if (above == 1)
            break;
    }
    return r;
}

static bool is_npy_file(const char *path)
{
    struct stat st;
    return ckpt_has_suffix(path, ".npy") && stat(path, &st) == 0 && S_ISREG(st.st_mode);
}

int fs_resolve(const char *path, struct fs_place *ret, struct ckpt_err *err)
{
    CKPT_AUTOFREE char *part = NULL, *rest = NULL;
    int r = split_path(path, &part, &rest);
    if (r == -ENOMEM)
        return ckpt_no_memory(err);
    bool nothing_is_there = r == 0 && *rest && !strcmp(part, "/");
    if (nothing_is_there)
        return ckpt_fail(err, ENOENT, "%s: %s", path, strerror(ENOENT));
    if (is_address(path) && *rest) /* what it says of an address */
        return CKPT_MIN(try_source(path, "", ret, err), 0);
    /* An .npy file is a leaf of its directory; as a source it would be a directory with that leaf. */
    if (r == 0 && !*rest && is_npy_file(part))
        r = shorten(part, &rest);
    if (r < 0)
        return ckpt_fail(err, -r, "%s: %s", path, strerror(-r));
    CKPT_AUTOFREE char *source = fs_source_path(part);
    if (!source)
        return ckpt_fail(err, errno, "%s: %s", path, strerror(errno));
    r = try_above(source, &rest, ret, err);
    bool has_reason = r == 0 || (err && err->code == -r);
    return has_reason ? r : ckpt_fail(err, -r, "%s: %s", path, strerror(-r));
}

/* --- a source and what follows --- */

/* "latest" at the begin of *rest becomes the step that it leads to. */
static int name_latest(struct ckpt_source *src, char **rest)
{
    static const char latest[] = "latest";
    char target[512];
    struct ckpt_attr at;
    size_t n = strcspn(*rest, "/");
    bool is_latest = n == strlen(latest) && !strncmp(*rest, latest, n);
    if (!is_latest || ckpt_lookup(src, CKPT_ROOT, latest, &at, NULL) < 0)
        return 0;
    int r = at.type == CKPT_LINK ? ckpt_readlink(src, at.id, target, sizeof target) : -EINVAL;
    ckpt_forget(src, at.id, 1);
    if (r < 0)
        return 0; /* a directory of that name */
    char *named = ckpt_path_join(target, *rest + n + ((*rest)[n] == '/'));
    if (!named)
        return -ENOMEM;
    free(*rest);
    *rest = named;
    return 1;
}

/* Some of the path is on disk: more than the directory where every path begins. */
static bool is_on_disk(const char *part, const char *rest)
{
    bool is_begin = !strcmp(part, "/") || !strcmp(part, ".");
    return !*rest || !is_begin;
}

int fs_open_inside(const char *path, struct ckpt_source **ret, char **ret_inside, struct ckpt_err *err)
{
    CKPT_AUTOFREE char *part = NULL, *rest = NULL;
    int r = split_path(path, &part, &rest);
    if (r == -ENOMEM)
        return ckpt_no_memory(err);
    bool goes_on = r == 0 && *rest && is_on_disk(part, rest) && !is_address(path);
    if (!goes_on)
        *rest = 0; /* it is a source as it stands, or opening it says why not */
    r = fs_open(goes_on ? part : path, ret, err);
    if (r < 0)
        return r;
    r = name_latest(*ret, &rest);
    if (r == 0) {
        *ret_inside = CKPT_STEAL(rest);
        return 0;
    }
    ckpt_source_close(CKPT_STEAL(*ret));
    /* The step's own directory, where there is one, says the same as if it had been named. */
    CKPT_AUTOFREE char *named = r == 1 ? ckpt_path_join(part, rest) : NULL;
    return named ? fs_open_inside(named, ret, ret_inside, err) : ckpt_no_memory(err);
}
