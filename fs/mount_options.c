/* SPDX-License-Identifier: Apache-2.0 */
#include "fs/mount_options.h"

#include "core/base/buf.h"
#include "core/base/util.h"

#include <stdio.h>

#define WRITERS_MAX 65536
#define SECONDS_MAX 86400
#define CACHE_MAX   ((uint64_t)1 << 50)

/* The power of two that a suffix stands for; 0: it is none. */
static unsigned shift_of(char suffix)
{
    switch (suffix) {
    case 'K':
    case 'k':
        return 10;
    case 'M':
    case 'm':
        return 20;
    case 'G':
    case 'g':
        return 30;
    default:
        return 0;
    }
}

static int parse_number(const char *text, int base, uint64_t max, uint64_t *ret)
{
    char *end;
    errno = 0;
    unsigned long long v = strtoull(text, &end, base);
    bool is_number = end != text && !errno && *text != '-'; /* strtoull would take "-1" for a large one */
    if (!is_number)
        return -EINVAL;
    unsigned shift = shift_of(*end);
    if (shift)
        end++;
    if (*end || v > max >> shift)
        return -EINVAL;
    *ret = (uint64_t)v << shift;
    return 0;
}

static int parse_seconds(const char *value, double *ret)
{
    char *end;
    if (!value)
        return -EINVAL;
    *ret = strtod(value, &end);
    bool is_number = end != value && !*end;
    bool is_good = is_number && *ret >= 0 && *ret <= SECONDS_MAX;
    return is_good ? 0 : -EINVAL;
}

/* Options of fstab lines that mean something to mount(8), or to systemd, and nothing to a mount of FUSE. Access times
 * are the daemon's. */
static bool is_for_mount(const char *name)
{
    static const char *const names[] = {
        "defaults", "auto",       "noauto",   "user",       "nouser",      "users",         "owner",    "group",
        "nofail",   "_netdev",    "relatime", "norelatime", "strictatime", "nostrictatime", "lazytime", "nolazytime",
        "diratime", "nodiratime", "silent",   "loud",       "comment",     "helper",        "uhelper"};
    if (!strncmp(name, "x-", 2) || !strncmp(name, "X-", 2))
        return true;
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (!strcmp(name, names[i]))
            return true;
    return false;
}

/* --- one option: 0, or -EINVAL for a value that it cannot have. value: NULL without "=". --- */

static int parse_count(const char *value, int base, uint64_t max, uint64_t *ret)
{
    return value ? parse_number(value, base, max, ret) : -EINVAL;
}

static int set_ro(struct fs_mount_options *o, const char *value)
{
    o->read_only = true;
    o->read_write = false;
    return 0;
}

static int set_rw(struct fs_mount_options *o, const char *value)
{
    o->read_only = false;
    o->read_write = true;
    return 0;
}

static int set_passthrough(struct fs_mount_options *o, const char *value)
{
    o->passthrough = true;
    return value ? -EINVAL : 0;
}

static int set_flat(struct fs_mount_options *o, const char *value)
{
    o->core.flat = true;
    return value ? -EINVAL : 0;
}

static int set_follow(struct fs_mount_options *o, const char *value)
{
    o->core.follow = true;
    return value ? -EINVAL : 0;
}

static int set_overwrite(struct fs_mount_options *o, const char *value)
{
    o->core.overwrite = true;
    return value ? -EINVAL : 0;
}

static int set_refresh(struct fs_mount_options *o, const char *value)
{
    return parse_seconds(value, &o->core.refresh);
}

static int set_settle(struct fs_mount_options *o, const char *value)
{
    return parse_seconds(value, &o->core.settle);
}

static int set_commit_timeout(struct fs_mount_options *o, const char *value)
{
    return parse_seconds(value, &o->core.commit_timeout);
}

static int set_writers(struct fs_mount_options *o, const char *value)
{
    uint64_t n = 0;
    int r = parse_count(value, 10, WRITERS_MAX, &n);
    o->core.writers = (unsigned)n;
    o->set_writers = true;
    return r;
}

static int set_writer(struct fs_mount_options *o, const char *value)
{
    uint64_t n = 0;
    int r = parse_count(value, 10, WRITERS_MAX, &n);
    o->core.writer = (unsigned)n;
    o->set_writer = true;
    return r;
}

static int set_commit(struct fs_mount_options *o, const char *value)
{
    bool is_explicit = value && !strcmp(value, "explicit"), is_auto = value && !strcmp(value, "auto");
    o->core.explicit_commit = is_explicit;
    return is_explicit || is_auto ? 0 : -EINVAL;
}

static int set_codec(struct fs_mount_options *o, const char *value)
{
    static const char *const codecs[] = {"auto", "none", "lz4", "blosc"};
    for (size_t i = 0; value && i < sizeof codecs / sizeof *codecs; i++) {
        if (strcmp(value, codecs[i]) != 0)
            continue;
        snprintf(o->codec, sizeof o->codec, "%s", value);
        o->core.codec = o->codec;
        return 0;
    }
    return -EINVAL;
}

static int set_cache(struct fs_mount_options *o, const char *value)
{
    uint64_t n = 0;
    int r = parse_count(value, 10, CACHE_MAX, &n);
    o->core.cache = n;
    return r;
}

static int set_uid(struct fs_mount_options *o, const char *value)
{
    uint64_t n = 0;
    int r = parse_count(value, 10, UINT32_MAX - 1, &n);
    o->shown.uid = (uint32_t)n;
    o->shown.set_uid = true;
    return r;
}

static int set_gid(struct fs_mount_options *o, const char *value)
{
    uint64_t n = 0;
    int r = parse_count(value, 10, UINT32_MAX - 1, &n);
    o->shown.gid = (uint32_t)n;
    o->shown.set_gid = true;
    return r;
}

static int set_umask(struct fs_mount_options *o, const char *value)
{
    uint64_t n = 0;
    int r = parse_count(value, 8, 0777, &n);
    o->shown.umask = (uint32_t)n;
    return r;
}

static const struct option {
    const char *name;
    int (*set)(struct fs_mount_options *o, const char *value);
} options[] = {
    {"ro", set_ro},           {"rw", set_rw},         {"passthrough", set_passthrough},
    {"flat", set_flat},       {"follow", set_follow}, {"overwrite", set_overwrite},
    {"refresh", set_refresh}, {"settle", set_settle}, {"commit_timeout", set_commit_timeout},
    {"writers", set_writers}, {"writer", set_writer}, {"commit", set_commit},
    {"codec", set_codec},     {"cache", set_cache},   {"uid", set_uid},
    {"gid", set_gid},         {"umask", set_umask},
};

/* NULL: it is none of ours. */
static const struct option *find_option(const char *name)
{
    for (size_t i = 0; i < sizeof options / sizeof *options; i++)
        if (!strcmp(name, options[i].name))
            return &options[i];
    return NULL;
}

/* --- all of them --- */

/* 1 if it is one of ours, 0 if it is for FUSE. */
static int parse_option(struct fs_mount_options *o, const char *name, const char *value, struct ckpt_err *err)
{
    if (is_for_mount(name))
        return 1;
    if (!strcmp(name, "remount"))
        return ckpt_fail(err, EINVAL, "the options of a mount cannot be changed: unmount it, and mount it again");
    bool is_planned = !strcmp(name, "profile") || !strcmp(name, "verify");
    if (is_planned)
        return ckpt_fail(err, EINVAL, "option %s is not supported by this version", name);
    const struct option *option = find_option(name);
    if (!option)
        return 0;
    if (option->set(o, value) < 0)
        return ckpt_fail(err, EINVAL, "option %s=%s: not a value it can have", name, value ? value : "");
    return 1;
}

/* One word of a list, without its backslashes; where it ends. */
static const char *cut_word(const char *list, char *ret)
{
    for (; *list && *list != ','; list++) {
        bool is_escape = *list == '\\' && list[1];
        if (is_escape)
            list++;
        *ret++ = *list;
    }
    *ret = 0;
    return list;
}

/* A comma-separated list; a comma in a value is written "\,". */
static int parse_list(struct fs_mount_options *o, const char *list, struct ckpt_buf *fuse, struct ckpt_err *err)
{
    CKPT_AUTOFREE char *word = malloc(strlen(list) + 1);
    if (!word)
        return ckpt_no_memory(err);
    while (*list) {
        const char *begin = list, *end = cut_word(list, word);
        list = *end ? end + 1 : end;
        if (!*word)
            continue;
        char *value = strchr(word, '=');
        if (value)
            *value++ = 0;
        int r = parse_option(o, word, value, err);
        if (r < 0)
            return r;
        bool is_for_fuse = r == 0; /* as it was written, with its backslashes */
        if (is_for_fuse && fuse->len)
            ckpt_buf_addc(fuse, ',');
        if (is_for_fuse)
            ckpt_buf_add(fuse, begin, (size_t)(end - begin));
    }
    return 0;
}

static int check_writers(struct fs_mount_options *o, struct ckpt_err *err)
{
    if (o->set_writers != o->set_writer)
        return ckpt_fail(err, EINVAL, "writers=N wants writer=K beside it, the number of this mount among the N");
    if (o->core.writer > o->core.writers)
        return ckpt_fail(err, EINVAL, "writer=%u is none of writers=%u", o->core.writer, o->core.writers);
    if (o->core.writers <= 1) /* alone */
        o->core.writers = 0;
    return 0;
}

static int add_name(struct fs_mount_options *o, const char *name, struct ckpt_err *err)
{
    if (o->mountpoint)
        return ckpt_fail(err, EINVAL, "more than a source and a mount point: %s", name);
    if (o->source)
        o->mountpoint = name;
    else
        o->source = name;
    return 0;
}

static int parse_flag(struct fs_mount_options *o, const char *flag, struct ckpt_err *err)
{
    if (!strcmp(flag, "-f"))
        o->foreground = true;
    else if (!strcmp(flag, "-d"))
        o->foreground = o->debug = true;
    else if (!strcmp(flag, "-s"))
        o->single_thread = true;
    else
        return ckpt_fail(err, EINVAL, "unknown option %s", flag);
    return 0;
}

/* fuse: what is to be given to FUSE. */
static int parse_words(int argc, char **argv, struct fs_mount_options *o, struct ckpt_buf *fuse, struct ckpt_err *err)
{
    bool names_only = false;
    for (int i = 1; i < argc; i++) {
        const char *word = argv[i];
        int r = 0;
        bool is_option = !names_only && word[0] == '-' && word[1];
        if (!is_option)
            r = add_name(o, word, err);
        else if (!strcmp(word, "--"))
            names_only = true;
        else if (strncmp(word, "-o", 2) != 0)
            r = parse_flag(o, word, err);
        else if (word[2])
            r = parse_list(o, word + 2, fuse, err);
        else if (i + 1 < argc)
            r = parse_list(o, argv[++i], fuse, err);
        else
            r = ckpt_fail(err, EINVAL, "-o wants options");
        if (r < 0)
            return r;
    }
    return 0;
}

int fs_mount_options_parse(int argc, char **argv, struct fs_mount_options *o, struct ckpt_err *err)
{
    CKPT_AUTOBUF struct ckpt_buf fuse = CKPT_BUF_INIT;
    *o = (struct fs_mount_options){.core = CKPT_OPTIONS_INIT};
    int r = parse_words(argc, argv, o, &fuse, err);
    if (r < 0)
        return r;
    if (!o->source)
        return ckpt_fail(err, EINVAL, "the source and the mount point are missing");
    if (!o->mountpoint)
        return ckpt_fail(err, EINVAL, "the mount point is missing");
    r = check_writers(o, err);
    if (r < 0)
        return r;
    if (ckpt_buf_error(&fuse) < 0)
        return ckpt_no_memory(err);
    if (fuse.len)
        o->fuse = ckpt_buf_steal(&fuse, NULL);
    return 0;
}

void fs_mount_options_clear(struct fs_mount_options *o)
{
    free(o->fuse);
    o->fuse = NULL;
}
