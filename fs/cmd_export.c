/* SPDX-License-Identifier: Apache-2.0 */
/* ckptfs export: a checkpoint, or a part of one, as plain files. They have their name when all of them are whole and durable. */
#include "fs/cli.h"
#include "fs/commands.h"
#include "fs/resolve.h"
#include "fs/transfer.h"

#include "core/base/util.h"
#include "core/io/disk.h"

#include <dirent.h>
#include <fcntl.h>
#include <getopt.h>

struct export {
    struct fs_place from;
    struct fs_transfer transfer;
    int parent;             /* the directory that DST lies in */
    char *name;             /* DST's last name */
    char temporary[64];
    bool taken;             /* there is something under the name already */
};

static int open_from(struct export *x, const char *path, struct ckpt_err *err)
{
    CKPT_AUTOFREE char *meta = NULL;
    size_t len;
    int r = fs_resolve(path, &x->from, err);
    if (r < 0)
        return r;
    x->transfer.src = x->from.src;
    if (x->from.at.type != CKPT_DIR)
        return ckpt_fail(err, EINVAL, "%s: a file; 'ckptfs cp' copies single files", path);
    r = ckpt_describe(x->from.src, x->from.at.id, &meta, &len, err);
    if (r == -ENODATA)
        return ckpt_fail(err, EINVAL, "%s is no checkpoint, nor a part of one; 'ckptfs cp' copies other directories", path);
    return r;
}

/* The rename at the end takes the place of an empty directory, and of nothing else. */
static bool is_taken(int parent, const char *name)
{
    int fd = openat(parent, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    DIR *dir = fd < 0 ? NULL : fdopendir(fd);
    if (!dir) {
        bool absent = errno == ENOENT;
        if (fd >= 0)
            close(fd);
        return !absent;
    }
    unsigned entries = 0;
    while (readdir(dir) && entries < 3) /* two are "." and ".." */
        entries++;
    closedir(dir);
    return entries > 2;
}

static int open_to(struct export *x, const char *path, struct ckpt_err *err)
{
    CKPT_AUTOFREE char *folder = strdup(path);
    if (!folder)
        return ckpt_fail(err, ENOMEM, "out of memory");
    size_t n = strlen(folder);
    while (n > 1 && folder[n - 1] == '/')
        folder[--n] = 0;
    char *slash = strrchr(folder, '/');
    const char *name = slash ? slash + 1 : folder;
    if (!*name || !strcmp(name, ".") || !strcmp(name, "..") || strlen(name) > 255)
        return ckpt_fail(err, EINVAL, "%s: the name of a new directory is wanted", path);
    x->name = strdup(name);
    if (slash)
        slash[slash == folder] = 0;
    x->parent = open(slash ? folder : ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    x->transfer.unwritable = x->parent < 0;
    if (!x->name || x->parent < 0)
        return ckpt_fail(err, x->name ? errno : ENOMEM, "%s: %s", path, strerror(x->name ? errno : ENOMEM));
    x->taken = is_taken(x->parent, x->name);
    return x->taken ? ckpt_fail(err, EEXIST, "%s is there already", path) : 0;
}

static int write_all(struct export *x, const char *path, struct ckpt_err *err)
{
    int r = ckpt_disk_mkdir(x->parent, x->temporary, (x->from.at.mode | 0700) & 0777);
    CKPT_AUTOFD int dir = r < 0 ? r : openat(x->parent, x->temporary, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (dir < 0) {
        x->transfer.unwritable = true;
        return ckpt_fail(err, r < 0 ? -r : errno, "%s cannot be made: %s", path, strerror(r < 0 ? -r : errno));
    }
    x->transfer.durable = true;
    r = fs_transfer_run(&x->transfer, &x->from.at, dir, err);
    if (r < 0)
        return r;
    r = ckpt_disk_rename(x->parent, x->temporary, x->parent, x->name, 0);
    x->taken = r == -ENOTEMPTY || r == -EEXIST || r == -ENOTDIR;
    if (r == 0)
        r = ckpt_disk_fsync(x->parent);
    x->transfer.unwritable = r < 0;
    return r < 0 ? ckpt_fail(err, -r, "%s: %s", path, strerror(-r)) : 0;
}

static int run(struct export *x, const char *from, const char *to, struct ckpt_err *err)
{
    int r = open_from(x, from, err);
    if (r == 0)
        r = open_to(x, to, err);
    if (r < 0)
        return r;
    snprintf(x->temporary, sizeof x->temporary, ".ckptfs-export-%ld.tmp", (long)getpid());
    r = write_all(x, to, err);
    if (r < 0)
        (void)!ckpt_disk_remove_tree(x->parent, x->temporary);
    return r;
}

static int finish(const struct export *x, bool json, int r, const struct ckpt_err *err)
{
    if (r < 0) {
        int status = fs_fail("export", json, r, err);
        return x->taken ? FS_USAGE : x->transfer.unwritable ? FS_PARTLY : status;
    }
    if (json)
        printf("{\"files\":%llu,\"bytes\":%llu}\n", (unsigned long long)x->transfer.files, (unsigned long long)x->transfer.bytes);
    return fs_finish("export", FS_OK);
}

/* 0, or the exit status. */
static int check_format(const char *format)
{
    if (!format)
        return fs_usage("export", "--format is wanted: npy");
    if (!strcmp(format, "npy"))
        return 0;
    if (!strcmp(format, "orbax") || !strcmp(format, "safetensors"))
        return fs_usage("export", "this version cannot write %s yet, only npy%s", format,
                        *format == 's' ? "; a mount, and 'ckptfs cp', have every directory as DIR.safetensors" : "");
    return fs_usage("export", "there is no format %s; there is npy", format);
}

int fs_export_main(int argc, char **argv)
{
    static const struct option options[] = {{"json", no_argument, NULL, 'j'}, {"format", required_argument, NULL, 'f'}, {0}};
    struct export x = {.parent = -1};
    struct ckpt_err err = {0};
    const char *format = NULL;
    bool json = false;
    opterr = 0;
    for (int o; (o = getopt_long(argc, argv, "", options, NULL)) != -1;)
        switch (o) {
        case 'j': json = true; break;
        case 'f': format = optarg; break;
        default: return fs_bad_option("export", argv);
        }
    if (argc - optind != 2)
        return fs_usage("export", "a checkpoint and a destination are wanted");
    int status = check_format(format);
    if (status)
        return status;
    ckpt_log_setup(CKPT_LOG_ERROR, 0);
    fs_interrupt_begin();
    int r = run(&x, argv[optind], argv[optind + 1], &err);
    status = finish(&x, json, r, &err);
    fs_place_clear(&x.from);
    if (x.parent >= 0)
        close(x.parent);
    free(x.name);
    if (r < 0)
        fs_interrupt_end();
    return status;
}
