/* SPDX-License-Identifier: Apache-2.0 */
#include "fs/mount_options.h"

#include "core/base/buf.h"
#include "core/base/util.h"

#include <stdio.h>

#define WRITERS_MAX 65536

static int parse_number(const char *text, int base, uint64_t max, uint64_t *ret)
{
    char *end;
    errno = 0;
    unsigned long long v = strtoull(text, &end, base);
    if (!*text || *text == '-' || errno || end == text)
        return -EINVAL;
    unsigned shift = 0;
    switch (*end) {
    case 'K':
    case 'k':
        shift = 10;
        break;
    case 'M':
    case 'm':
        shift = 20;
        break;
    case 'G':
    case 'g':
        shift = 30;
        break;
    default:
        break;
    }
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
    *ret = value ? strtod(value, &end) : -1;
    return value && end != value && !*end && *ret >= 0 && *ret <= 86400 ? 0 : -EINVAL;
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

/* One option of ours: 1 if it was, 0 if it is for FUSE. */
static int parse_option(struct fs_mount_options *o, const char *name, const char *value, struct ckpt_err *err)
{
    static const char *const later[] = {"profile", "verify", NULL};
    uint64_t n = 0;
    int r = 0;
    if (!strcmp(name, "ro") || !strcmp(name, "rw")) {
        o->read_only = name[1] == 'o';
        o->read_write = !o->read_only;
        return 1;
    }
    if (is_for_mount(name))
        return 1;
    if (!strcmp(name, "remount"))
        return ckpt_fail(err, EINVAL, "the options of a mount cannot be changed: unmount it, and mount it again");
    for (int i = 0; later[i]; i++)
        if (!strcmp(name, later[i]))
            return ckpt_fail(err, EINVAL, "option %s is not supported by this version", name);
    if (!strcmp(name, "passthrough") || !strcmp(name, "flat")) {
        *(*name == 'p' ? &o->passthrough : &o->core.flat) = true;
        r = value ? -EINVAL : 0;
    } else if (!strcmp(name, "refresh"))
        r = parse_seconds(value, &o->core.refresh);
    else if (!strcmp(name, "settle"))
        r = parse_seconds(value, &o->core.settle);
    else if (!strcmp(name, "commit_timeout"))
        r = parse_seconds(value, &o->core.commit_timeout);
    else if (!strcmp(name, "writers") || !strcmp(name, "writer")) {
        r = value ? parse_number(value, 10, WRITERS_MAX, &n) : -EINVAL;
        *(name[6] ? &o->core.writers : &o->core.writer) = (unsigned)n;
        *(name[6] ? &o->set_writers : &o->set_writer) = true;
    } else if (!strcmp(name, "commit")) {
        o->core.explicit_commit = value && !strcmp(value, "explicit");
        r = o->core.explicit_commit || (value && !strcmp(value, "auto")) ? 0 : -EINVAL;
    } else if (!strcmp(name, "overwrite")) {
        o->core.overwrite = true;
        r = value ? -EINVAL : 0;
    } else if (!strcmp(name, "codec")) {
        static const char *const codecs[] = {"auto", "none", "lz4", "blosc"};
        r = -EINVAL;
        for (size_t i = 0; value && i < sizeof codecs / sizeof *codecs; i++)
            if (!strcmp(value, codecs[i])) {
                snprintf(o->codec, sizeof o->codec, "%s", value);
                o->core.codec = o->codec;
                r = 0;
            }
    } else if (!strcmp(name, "cache")) {
        r = value ? parse_number(value, 10, (uint64_t)1 << 50, &n) : -EINVAL;
        o->core.cache = n;
    } else if (!strcmp(name, "uid") || !strcmp(name, "gid")) {
        r = value ? parse_number(value, 10, UINT32_MAX - 1, &n) : -EINVAL;
        *(name[0] == 'u' ? &o->shown.uid : &o->shown.gid) = (uint32_t)n;
        *(name[0] == 'u' ? &o->shown.set_uid : &o->shown.set_gid) = true;
    } else if (!strcmp(name, "umask")) {
        r = value ? parse_number(value, 8, 0777, &n) : -EINVAL;
        o->shown.umask = (uint32_t)n;
    } else
        return 0;
    return r < 0 ? ckpt_fail(err, EINVAL, "option %s=%s: not a value it can have", name, value ? value : "") : 1;
}

/* A comma-separated list; a comma in a value is written "\,". */
static int parse_list(struct fs_mount_options *o, const char *list, struct ckpt_buf *fuse, struct ckpt_err *err)
{
    CKPT_AUTOFREE char *word = malloc(strlen(list) + 1);
    if (!word)
        return ckpt_no_memory(err);
    for (const char *p = list; *p;) {
        const char *begin = p;
        size_t n = 0;
        for (; *p && *p != ','; p++) {
            if (*p == '\\' && p[1])
                p++;
            word[n++] = *p;
        }
        word[n] = 0;
        size_t raw = (size_t)(p - begin);
        p += *p == ',';
        if (!n)
            continue;
        char *value = strchr(word, '=');
        if (value)
            *value++ = 0;
        int r = parse_option(o, word, value, err);
        if (r < 0)
            return r;
        if (r == 0) {
            if (fuse->len)
                ckpt_buf_addc(fuse, ',');
            ckpt_buf_add(fuse, begin, raw);
        }
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

int fs_mount_options_parse(int argc, char **argv, struct fs_mount_options *o, struct ckpt_err *err)
{
    *o = (struct fs_mount_options){.core = CKPT_OPTIONS_INIT};
    struct ckpt_buf fuse = CKPT_BUF_INIT;
    bool only_names = false;
    int r = 0;
    for (int i = 1; i < argc && r >= 0; i++) {
        const char *a = argv[i];
        if (only_names || a[0] != '-' || !a[1]) {
            if (o->mountpoint)
                r = ckpt_fail(err, EINVAL, "more than a source and a mount point: %s", a);
            else
                *(o->source ? &o->mountpoint : &o->source) = a;
        } else if (!strcmp(a, "--"))
            only_names = true;
        else if (!strcmp(a, "-f"))
            o->foreground = true;
        else if (!strcmp(a, "-d"))
            o->foreground = o->debug = true;
        else if (!strcmp(a, "-s"))
            o->single_thread = true;
        else if (!strncmp(a, "-o", 2)) {
            const char *list = a[2] ? a + 2 : ++i < argc ? argv[i] : NULL;
            r = list ? parse_list(o, list, &fuse, err) : ckpt_fail(err, EINVAL, "-o wants options");
        } else
            r = ckpt_fail(err, EINVAL, "unknown option %s", a);
    }
    if (r >= 0 && !o->mountpoint)
        r = ckpt_fail(err, EINVAL,
                      o->source ? "the mount point is missing" : "the source and the mount point are missing");
    if (r >= 0)
        r = check_writers(o, err);
    if (r >= 0 && fuse.len) {
        o->fuse = ckpt_buf_steal(&fuse, NULL);
        r = o->fuse ? 0 : -ENOMEM;
    }
    ckpt_buf_clear(&fuse);
    return r < 0 ? r : 0;
}

void fs_mount_options_clear(struct fs_mount_options *o)
{
    free(o->fuse);
    o->fuse = NULL;
}
