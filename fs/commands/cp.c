/* SPDX-License-Identifier: Apache-2.0 */
/*
 * ckptfs cp: files and directories as a mount would show them, copied out of a source.
 *
 * Each file is written under a temporary name and renamed when it is whole, so that a name never stands for half a
 * file. What of the source cannot be read is left out and told, and the rest is copied.
 */
#include "fs/commands/cli.h"
#include "fs/commands/commands.h"
#include "fs/commands/interrupt.h"
#include "fs/commands/resolve.h"
#include "fs/commands/transfer.h"

#include "core/base/path.h"
#include "core/base/util.h"

#include <fcntl.h>
#include <getopt.h>
#include <stdio.h>
#include <sys/stat.h>

#define MAX_DEPTH 1024

struct cp {
    bool json;
    char temporary[64];
    struct fs_transfer transfer;
    uint64_t faults;
    int fault_status;    /* of the first fault */
    int stopped;         /* negative errno: the destination takes no more */
    struct ckpt_err err; /* of stopped */
};

/* --- what goes wrong --- */

static void tell_fault(void *arg, const char *path, int error, const struct ckpt_err *err)
{
    struct cp *c = arg;
    if (c->json) {
        fputs(c->faults ? ",\n" : "\n", stdout);
        fs_json_pair(stdout, "{", "path", path);
        fputs(",\"error\":", stdout);
        fs_json_error(stdout, error, err);
        putchar('}');
    }
    fputs("ckptfs cp: ", stderr);
    fs_put_name(stderr, *path ? path : ".");
    fputs(": ", stderr);
    fs_put_name(stderr, fs_reason(error, err));
    fputc('\n', stderr);
    if (!c->faults)
        c->fault_status = fs_status(error);
    c->faults++;
}

static int fail_destination(struct cp *c, int error, const char *path)
{
    return ckpt_fail(&c->err, error, "%s cannot be written: %s", path, strerror(error));
}

/* --- where to --- */

struct destination {
    int dir;
    char name[256]; /* that the copy gets in dir; "": its contents go right into dir */
};

static int open_folder(struct cp *c, const char *folder, const char *dest, struct destination *ret)
{
    ret->dir = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    return ret->dir < 0 ? fail_destination(c, errno, dest) : 0;
}

/* DEST is the name of the copy. */
static int open_new(struct cp *c, const char *dest, struct destination *ret)
{
    CKPT_AUTOFREE char *folder = strdup(dest);
    if (!folder)
        return ckpt_no_memory(&c->err);
    for (size_t n = strlen(folder); n > 1 && folder[n - 1] == '/'; n--)
        folder[n - 1] = 0;
    char *slash = strrchr(folder, '/');
    const char *name = slash ? slash + 1 : folder;
    if (strlen(name) >= sizeof ret->name)
        return fail_destination(c, ENAMETOOLONG, dest);
    snprintf(ret->name, sizeof ret->name, "%s", name);
    if (!slash)
        return open_folder(c, ".", dest, ret);
    slash[slash == folder] = 0; /* "/" is the folder of "/name" */
    return open_folder(c, folder, dest, ret);
}

/* last: the name that it has in the source. */
static int open_destination(struct cp *c, const char *dest, bool file, const char *last, struct destination *ret)
{
    struct stat st;
    if (stat(dest, &st) == 0 && S_ISDIR(st.st_mode)) {
        snprintf(ret->name, sizeof ret->name, "%s", last);
        return open_folder(c, dest, dest, ret);
    }
    size_t n = strlen(dest);
    if (file && n && dest[n - 1] == '/')
        return fail_destination(c, ENOTDIR, dest);
    return open_new(c, dest, ret);
}

/* --- the path in the source --- */

/* "." at the end only says that the contents are meant; messages do without. */
static void cut_points(char *path)
{
    for (size_t n = strlen(path); n; n--) {
        if (path[n - 1] != '/' && (path[n - 1] != '.' || (n > 1 && path[n - 2] != '/')))
            return;
        path[n - 1] = 0;
    }
}

/* The last name of a path, "" if that is not a name. */
static void last_name(const char *path, char name[256])
{
    size_t n = strlen(path);
    while (n && path[n - 1] == '/')
        n--;
    size_t begin = n;
    while (begin && path[begin - 1] != '/')
        begin--;
    snprintf(name, 256, "%.*s", (int)(n - begin), path + begin);
    if (!strcmp(name, ".") || !strcmp(name, ".."))
        *name = 0;
}

/* --- from the command line --- */

static int copy(struct cp *c, const struct ckpt_attr *at, const char *path, const char *dest)
{
    char last[256];
    struct destination to = {.dir = -1};
    CKPT_AUTOFREE char *shown = strdup(path);
    if (!shown)
        return ckpt_no_memory(&c->err);
    cut_points(shown);
    last_name(path, last);
    bool is_file = at->type == CKPT_FILE;
    int r = open_destination(c, dest, is_file, last, &to);
    if (r < 0)
        return r;
    c->transfer.shown = shown;
    if (is_file || *to.name)
        r = fs_transfer_entry(&c->transfer, at, to.dir, to.name, &c->err);
    else
        r = fs_transfer_contents(&c->transfer, at, to.dir, &c->err);
    close(to.dir);
    return r;
}

static int exit_status(const struct cp *c)
{
    bool some = c->faults && c->transfer.files;
    if (c->stopped || some)
        return FS_PARTLY;
    return c->faults ? c->fault_status : FS_OK;
}

static int finish(const struct cp *c)
{
    char text[32];
    unsigned long long files = c->transfer.files, bytes = c->transfer.progress.done;
    if (c->json)
        printf("%s],\"files\":%llu,\"bytes\":%llu", c->faults ? "\n" : "", files, bytes);
    if (c->stopped) {
        fprintf(stderr, "ckptfs cp: ");
        fs_put_name(stderr, c->err.text);
        fprintf(stderr, "; stopped after %llu files, %s\n", files, fs_human(bytes, text));
    }
    if (c->stopped && c->json) {
        fputs(",\"error\":", stdout);
        fs_json_error(stdout, c->stopped, &c->err);
    }
    if (c->json)
        puts("}");
    return fs_finish("cp", exit_status(c));
}

static int run(struct cp *c, const char *source, const char *path, const char *dest)
{
    struct ckpt_attr at;
    struct ckpt_err err = {0};
    CKPT_AUTOFREE char *inside = NULL;
    int r = fs_open_inside(source, &c->transfer.src, &inside, &err);
    if (r < 0)
        return fs_fail("cp", c->json, r, &err);
    CKPT_AUTOFREE char *whole = ckpt_path_join(inside, path);
    r = whole ? fs_walk(c->transfer.src, whole, &at, &err) : ckpt_no_memory(&err);
    if (r < 0)
        return fs_fail("cp", c->json, r, &err);
    if (c->json)
        fputs("{\"errors\":[", stdout);
    c->stopped = copy(c, &at, path, dest);
    ckpt_forget(c->transfer.src, at.id, 1);
    return finish(c);
}

int fs_cp_main(int argc, char **argv)
{
    static const struct option options[] = {
        {"json", no_argument, NULL, 'j'}, {"recursive", no_argument, NULL, 'r'}, {0}};
    struct cp c = {.transfer = {.temporary = c.temporary,
                                .max_depth = MAX_DEPTH,
                                .file_mode = 0200,
                                .links = true,
                                .times = true,
                                .fault = tell_fault,
                                .arg = &c}};
    opterr = 0;
    for (int o; (o = getopt_long(argc, argv, "rR", options, NULL)) != -1;)
        switch (o) {
        case 'j':
            c.json = true;
            break;
        case 'r':
        case 'R':
            break; /* directories are copied with all that is in them anyway */
        default:
            return fs_bad_option("cp", argv);
        }
    if (argc - optind != 3)
        return fs_usage("cp", "a source, a path in it and a destination are wanted");
    snprintf(c.temporary, sizeof c.temporary, ".ckptfs-cp-%ld.tmp", (long)getpid());
    fs_interrupt_begin();
    int status = run(&c, argv[optind], argv[optind + 1], argv[optind + 2]);
    ckpt_source_close(c.transfer.src);
    fs_interrupt_end();
    return status;
}
