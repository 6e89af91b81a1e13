/* SPDX-License-Identifier: Apache-2.0 */
/* ckptfs cat: the bytes of files and views. */
#include "fs/commands/cli.h"
#include "fs/commands/commands.h"
#include "fs/commands/resolve.h"

#include "core/base/path.h"
#include "core/base/util.h"

#include <getopt.h>

#define BLOCK ((size_t)8 << 20)

struct cat {
    struct ckpt_source *src;
    char *inside; /* of the source: paths are below it */
    uint8_t *block;
    bool json;
    int written; /* 0, or the negative errno of writing */
};

static int put(struct cat *c, const uint8_t *p, size_t len)
{
    while (len) {
        ssize_t n = write(STDOUT_FILENO, p, len);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0) {
            c->written = -errno;
            return -errno;
        }
        p += n;
        len -= (size_t)n;
    }
    return 0;
}

static int put_file(struct cat *c, uint64_t id, const char *path, struct ckpt_err *err)
{
    uint64_t off = 0;
    for (;;) {
        ssize_t n = ckpt_read(c->src, id, c->block, BLOCK, off, err);
        if (n < 0)
            return ckpt_fail_in(err, (int)-n, "%s", path);
        int r = put(c, c->block, (size_t)n);
        if (r < 0 || n == 0)
            return r;
        off += (uint64_t)n;
    }
}

static int cat_file(struct cat *c, const char *path, struct ckpt_err *err)
{
    struct ckpt_attr at;
    CKPT_AUTOFREE char *whole = ckpt_path_join(c->inside, path);
    int r = whole ? fs_walk(c->src, whole, &at, err) : ckpt_no_memory(err);
    if (r < 0)
        return r;
    bool is_dir = at.type == CKPT_DIR;
    r = is_dir ? ckpt_fail(err, EISDIR, "%s: a directory", path) : put_file(c, at.id, path, err);
    ckpt_forget(c->src, at.id, 1);
    return r;
}

static void tell(const struct cat *c, const char *path, int error, const struct ckpt_err *err)
{
    if (!c->json) {
        fputs("ckptfs cat: ", stderr);
        fs_put_name(stderr, err->text);
        fputc('\n', stderr);
        return;
    }
    fs_json_pair(stderr, "{", "path", path);
    fputs(",\"error\":", stderr);
    fs_json_error(stderr, error, err);
    fputs("}\n", stderr);
}

static int cat_all(struct cat *c, char **paths)
{
    int status = FS_OK, good = 0;
    for (; *paths; paths++) {
        struct ckpt_err err = {0};
        int r = cat_file(c, *paths, &err);
        if (c->written == -EPIPE)
            return FS_PARTLY;
        if (c->written < 0) {
            fprintf(stderr, "ckptfs cat: standard output: %s\n", strerror(-c->written));
            return FS_PARTLY;
        }
        good += r == 0;
        if (r == 0)
            continue;
        tell(c, *paths, r, &err);
        if (status == FS_OK)
            status = fs_status(r);
    }
    return status != FS_OK && good ? FS_PARTLY : status;
}

static int fail_open(const struct cat *c, int error, const struct ckpt_err *err)
{
    if (!c->json)
        return fs_fail("cat", false, error, err);
    fputs("{\"error\":", stderr);
    fs_json_error(stderr, error, err);
    fputs("}\n", stderr);
    return fs_status(error);
}

int fs_cat_main(int argc, char **argv)
{
    static const struct option options[] = {{"json", no_argument, NULL, 'j'}, {0}};
    struct cat c = {0};
    struct ckpt_err err = {0};
    opterr = 0;
    for (int o; (o = getopt_long(argc, argv, "", options, NULL)) != -1;) {
        if (o != 'j')
            return fs_bad_option("cat", argv);
        c.json = true;
    }
    if (argc - optind < 2)
        return fs_usage("cat", "the source and a path are wanted");
    int r = fs_open_inside(argv[optind], &c.src, &c.inside, &err);
    if (r < 0)
        return fail_open(&c, r, &err);
    c.block = malloc(BLOCK);
    int status = c.block ? cat_all(&c, argv + optind + 1) : fail_open(&c, -ENOMEM, NULL);
    free(c.block);
    free(c.inside);
    ckpt_source_close(c.src);
    return status;
}
