/* SPDX-License-Identifier: Apache-2.0 */
/*
 * ckptfs cp: files and directories as a mount would show them, copied out of a source.
 *
 * Each file is written under a temporary name and renamed when it is whole, so that a name never stands for half a
 * file. Below the destination that was named no link is followed: directories are entered by descriptors, one name at a
 * time.
 */
#include "fs/commands/cli.h"
#include "fs/commands/commands.h"
#include "fs/commands/resolve.h"

#include "core/base/util.h"

#include <fcntl.h>
#include <getopt.h>
#include <signal.h>
#include <stdio.h>
#include <sys/stat.h>

#define BLOCK     ((size_t)4 << 20)
#define HOLE      ((size_t)64 << 10) /* zeros of this many bytes are not written */
#define MAX_DEPTH 1024

struct cp {
    struct ckpt_source *src;
    bool json;
    uint8_t *block;
    char temporary[64];
    uint64_t files, faults;
    struct fs_progress progress;
    int status;          /* of the first fault */
    int stop;            /* negative errno: the destination takes no more */
    struct ckpt_err err; /* of stop */
};

static volatile sig_atomic_t interrupted;

static void interrupt(int signal)
{
    interrupted = signal;
}

/* --- what goes wrong --- */

/* Something of the source is not copied; the rest is. */
static void fault(struct cp *c, const char *path, int error, const struct ckpt_err *err)
{
    fs_progress_clear(&c->progress);
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
    fs_put_name(stderr, err->code == -error && *err->text ? err->text : strerror(-error));
    fputc('\n', stderr);
    if (!c->faults++)
        c->status = fs_status(error);
}

static int stop(struct cp *c, int error, const char *what)
{
    if (!c->stop)
        c->stop = ckpt_fail(&c->err, error, error == EINTR ? "%s: interrupted" : "%s cannot be written: %s", what,
                            strerror(error));
    return -error;
}

/* --- files --- */

static struct timespec *times_of(const struct ckpt_attr *at, struct timespec ts[2])
{
    ts[0] = (struct timespec){.tv_nsec = UTIME_OMIT};
    ts[1] = (struct timespec){.tv_sec = at->mtime_ns / 1000000000, .tv_nsec = at->mtime_ns % 1000000000};
    if (ts[1].tv_nsec < 0) {
        ts[1].tv_nsec += 1000000000;
        ts[1].tv_sec--;
    }
    return ts;
}

static bool all_zero(const uint8_t *p, size_t len)
{
    return !p[0] && !memcmp(p, p + 1, len - 1);
}

static int write_piece(int fd, const uint8_t *p, size_t len, uint64_t off)
{
    while (len) {
        ssize_t n = pwrite(fd, p, len, (off_t)off);
        if (n < 0 && errno != EINTR)
            return -errno;
        if (n <= 0)
            continue;
        p += n;
        off += (uint64_t)n;
        len -= (size_t)n;
    }
    return 0;
}

static int write_block(int fd, const uint8_t *p, size_t len, uint64_t off)
{
    int r = 0;
    for (size_t at = 0, n; at < len && r == 0; at += n) {
        n = CKPT_MIN(len - at, HOLE);
        if (!all_zero(p + at, n))
            r = write_piece(fd, p + at, n, off + at);
    }
    return r;
}

/* 0; 1: the source could not be read, which is told. */
static int copy_bytes(struct cp *c, uint64_t id, const char *path, const struct ckpt_attr *at, int fd)
{
    struct ckpt_err err = {0};
    struct timespec ts[2];
    uint64_t off = 0;
    for (ssize_t n = 1; n > 0; off += (uint64_t)n) {
        if (interrupted)
            return stop(c, EINTR, path);
        uint64_t end;
        if (off && ckpt_run(c->src, id, off, &end, NULL) == 0) {
            fs_progress_add(&c->progress, path, end - off);
            off = end;
        }
        n = ckpt_read(c->src, id, c->block, BLOCK, off, &err);
        if (n < 0) {
            fault(c, path, (int)n, &err);
            return 1;
        }
        int r = write_block(fd, c->block, (size_t)n, off);
        if (r < 0)
            return stop(c, -r, path);
        fs_progress_add(&c->progress, path, (uint64_t)n);
    }
    if (ftruncate(fd, (off_t)off) < 0 || futimens(fd, times_of(at, ts)) < 0)
        return stop(c, errno, path);
    return 0;
}

static int copy_file(struct cp *c, const struct ckpt_attr *at, const char *path, int dir, const char *name)
{
    CKPT_AUTOFD int fd = openat(dir, c->temporary, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC,
                                (at->mode | 0200) & 0777);
    if (fd < 0)
        return stop(c, errno, path);
    int r = copy_bytes(c, at->id, path, at, fd);
    if (r == 0 && renameat(dir, c->temporary, dir, name) < 0)
        r = stop(c, errno, path);
    if (r != 0)
        unlinkat(dir, c->temporary, 0);
    c->files += r == 0;
    return r < 0 ? r : 0;
}

static int copy_link(struct cp *c, uint64_t id, const char *path, int dir, const char *name)
{
    char target[4096];
    struct ckpt_err err = {0};
    int r = ckpt_readlink(c->src, id, target, sizeof target);
    if (r < 0) {
        fault(c, path, r, &err);
        return 0;
    }
    if (symlinkat(target, dir, c->temporary) < 0)
        return stop(c, errno, path);
    if (renameat(dir, c->temporary, dir, name) < 0) {
        r = stop(c, errno, path);
        unlinkat(dir, c->temporary, 0);
    }
    return r;
}

/* --- directories --- */

struct into {
    struct cp *c;
    uint64_t from;
    const char *path;
    int dir;
    unsigned depth;
};

static int copy_dir(struct cp *c, const struct ckpt_attr *at, const char *path, int parent, const char *name,
                    unsigned depth);

static int copy_entry(void *arg, const struct ckpt_dirent *e)
{
    const struct into *in = arg;
    struct cp *c = in->c;
    CKPT_AUTOFREE char *path = fs_join(in->path, e->name);
    struct ckpt_attr at;
    struct ckpt_err err = {0};
    if (!path)
        return stop(c, ENOMEM, in->path);
    if (interrupted)
        return stop(c, EINTR, path);
    int r = ckpt_lookup(c->src, in->from, e->name, &at, &err);
    if (r == -ENOENT) /* it went while we looked */
        return 0;
    if (r < 0) {
        fault(c, path, r, &err);
        return 0;
    }
    if (at.type == CKPT_DIR)
        r = copy_dir(c, &at, path, in->dir, e->name, in->depth + 1);
    else if (at.type == CKPT_LINK)
        r = copy_link(c, at.id, path, in->dir, e->name);
    else
        r = copy_file(c, &at, path, in->dir, e->name);
    ckpt_forget(c->src, at.id, 1);
    return r;
}

static int copy_entries(struct cp *c, const struct ckpt_attr *at, const char *path, int dir, unsigned depth)
{
    struct into in = {c, at->id, path, dir, depth};
    struct ckpt_err err = {0};
    if (depth >= MAX_DEPTH)
        return stop(c, ENAMETOOLONG, path);
    int r = fs_each_entry(c->src, at->id, copy_entry, &in, &err);
    if (r < 0 && !c->stop) {
        fault(c, path, r, &err);
        r = 0;
    }
    return r;
}

static int copy_dir(struct cp *c, const struct ckpt_attr *at, const char *path, int parent, const char *name,
                    unsigned depth)
{
    struct timespec ts[2];
    struct ckpt_dir *opens;
    struct ckpt_err err = {0};
    bool immutable;
    int r = ckpt_opendir(c->src, at->id, &opens, &immutable, &err);
    if (r < 0) { /* and no empty directory that looks like a checkpoint */
        fault(c, path, r, &err);
        return 0;
    }
    ckpt_closedir(opens);
    if (mkdirat(parent, name, (at->mode | 0700) & 0777) < 0 && errno != EEXIST)
        return stop(c, errno, path);
    CKPT_AUTOFD int dir = openat(parent, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (dir < 0)
        return stop(c, errno, path);
    r = copy_entries(c, at, path, dir, depth);
    if (r == 0 && futimens(dir, times_of(at, ts)) < 0)
        r = stop(c, errno, path);
    return r;
}

/* --- from the command line --- */

/* The directory that is copied into, and the name there; "" when the contents go right into it. */
static int open_destination(struct cp *c, const char *dest, bool file, const char *last, int *ret_dir, char name[256])
{
    struct stat st;
    bool exists = stat(dest, &st) == 0 && S_ISDIR(st.st_mode);
    CKPT_AUTOFREE char *folder = strdup(dest);
    if (!folder)
        return stop(c, ENOMEM, dest);
    size_t n = strlen(folder);
    if (file && !exists && n && folder[n - 1] == '/')
        return stop(c, ENOTDIR, dest);
    while (!exists && n > 1 && folder[n - 1] == '/')
        folder[--n] = 0;
    char *base = strrchr(folder, '/');
    const char *own = base ? base + 1 : folder;
    if (strlen(own) > 255)
        return stop(c, ENAMETOOLONG, dest);
    snprintf(name, 256, "%s", exists ? last : own);
    if (!exists && base)
        base[base == folder] = 0;
    *ret_dir = open(exists || base ? folder : ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    return *ret_dir < 0 ? stop(c, errno, dest) : 0;
}

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

static int copy_top(struct cp *c, const struct ckpt_attr *at, const char *path, const char *dest)
{
    char last[256], name[256];
    CKPT_AUTOFD int dir = -1;
    CKPT_AUTOFREE char *shown = strdup(path);
    if (!shown)
        return stop(c, ENOMEM, path);
    cut_points(shown);
    last_name(path, last);
    int r = open_destination(c, dest, at->type == CKPT_FILE, last, &dir, name);
    if (r < 0)
        return r;
    if (at->type == CKPT_FILE)
        return copy_file(c, at, shown, dir, name);
    return *name ? copy_dir(c, at, shown, dir, name, 0) : copy_entries(c, at, shown, dir, 0);
}

static int finish(struct cp *c)
{
    char text[32];
    fs_progress_clear(&c->progress);
    if (c->json)
        printf("%s],\"files\":%llu,\"bytes\":%llu", c->faults ? "\n" : "", (unsigned long long)c->files,
               (unsigned long long)c->progress.done);
    if (c->stop) {
        fprintf(stderr, "ckptfs cp: ");
        fs_put_name(stderr, c->err.text);
        fprintf(stderr, "; stopped after %llu files, %s\n", (unsigned long long)c->files,
                fs_human(c->progress.done, text));
        if (c->json) {
            fputs(",\"error\":", stdout);
            fs_json_error(stdout, c->stop, &c->err);
        }
    }
    if (c->json)
        puts("}");
    return fs_finish("cp", c->stop || (c->faults && c->files) ? FS_PARTLY : c->faults ? c->status : FS_OK);
}

static int run(struct cp *c, const char *source, const char *path, const char *dest)
{
    struct ckpt_attr at;
    struct ckpt_err err = {0};
    struct fs_sum sum = {0};
    c->block = malloc(BLOCK);
    CKPT_AUTOFREE char *inside = NULL;
    int r = c->block ? fs_open_inside(source, &c->src, &inside, &err) : -ENOMEM;
    CKPT_AUTOFREE char *whole = r == 0 ? fs_join(inside, path) : NULL;
    if (r == 0)
        r = whole ? fs_walk(c->src, whole, &at, &err) : ckpt_no_memory(&err);
    if (r < 0)
        return fs_fail("cp", c->json, r, &err);
    fs_progress_begin(&c->progress);
    if (c->progress.on && at.type == CKPT_DIR && fs_sum(c->src, at.id, &sum, NULL) == 0)
        c->progress.total = sum.bytes;
    else if (at.type == CKPT_FILE)
        c->progress.total = at.size;
    if (c->json)
        fputs("{\"errors\":[", stdout);
    r = copy_top(c, &at, path, dest);
    ckpt_forget(c->src, at.id, 1);
    int status = finish(c);
    return r < 0 && !c->stop ? FS_PARTLY : status;
}

int fs_cp_main(int argc, char **argv)
{
    static const struct option options[] = {
        {"json", no_argument, NULL, 'j'}, {"recursive", no_argument, NULL, 'r'}, {0}};
    struct cp c = {0};
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
    struct sigaction sa = {.sa_handler = interrupt, .sa_flags = (int)SA_RESETHAND};
    sigaction(SIGINT, &sa, NULL);
    sigaction(SIGTERM, &sa, NULL);
    int status = run(&c, argv[optind], argv[optind + 1], argv[optind + 2]);
    free(c.block);
    ckpt_source_close(c.src);
    if (interrupted) /* end as the signal would have ended it, with nothing left lying about */
        raise(interrupted);
    return status;
}
