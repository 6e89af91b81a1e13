/* SPDX-License-Identifier: Apache-2.0 */
/* ckptfs verify: read everything, check every checksum. */
#include "fs/commands/cli.h"
#include "fs/commands/commands.h"
#include "fs/commands/resolve.h"

#include "core/base/path.h"
#include "core/base/util.h"

#include <getopt.h>

struct verify {
    struct ckpt_source *src;
    bool json;
    uint64_t files, faults;
    struct fs_progress progress;
};

static void count_file(void *arg, const char *path)
{
    ((struct verify *)arg)->files++;
}

static void advance(void *arg, const char *path, uint64_t bytes)
{
    fs_progress_add(&((struct verify *)arg)->progress, path, bytes);
}

static void tell_fault(void *arg, const char *path, const struct ckpt_err *err)
{
    struct verify *v = arg;
    fs_progress_clear(&v->progress);
    if (v->json) {
        fputs(v->faults ? ",\n" : "\n", stdout);
        fs_json_pair(stdout, "{", "path", path);
        fputs(",\"error\":", stdout);
        fs_json_error(stdout, -err->code, err);
        putchar('}');
    } else {
        fs_put_name(stdout, *path ? path : ".");
        fputs(": ", stdout);
        fs_put_name(stdout, err->text);
        putchar('\n');
    }
    fflush(stdout);
    v->faults++;
}

static int finish(struct verify *v)
{
    char text[32];
    unsigned long long files = v->files, bytes = v->progress.done, faults = v->faults;
    fs_progress_clear(&v->progress);
    if (v->json)
        printf("%s],\"files\":%llu,\"bytes\":%llu}\n", faults ? "\n" : "", files, bytes);
    else
        printf("%llu files, %s read, %llu fault%s\n", files, fs_human(bytes, text), faults, faults == 1 ? "" : "s");
    return fs_finish("verify", v->faults ? FS_INTEGRITY : FS_OK);
}

struct by_number {
    double number;
    char *path;
};

static int match_number(void *arg, const struct ckpt_step *s)
{
    struct by_number *m = arg;
    if (s->number != m->number || m->path)
        return 0;
    m->path = ckpt_path_join(s->root, s->name);
    return m->path ? 0 : -ENOMEM;
}

/* The path of the step that has this number, to be freed; NULL: there is none, or it is no number. */
static char *name_of_number(struct verify *v, const char *text)
{
    char *end;
    struct by_number m = {.number = strtod(text, &end)};
    bool is_number = end != text && !*end;
    if (!is_number)
        return NULL;
    if (ckpt_each_step(v->src, match_number, &m, NULL) < 0)
        free(CKPT_STEAL(m.path));
    return m.path;
}

/* A path, or the number of a step of whatever name. */
static int find_step(struct verify *v, const char *step, char **ret_path, struct ckpt_attr *ret, struct ckpt_err *err)
{
    int r = fs_walk(v->src, step, ret, err);
    CKPT_AUTOFREE char *named = r == -ENOENT ? name_of_number(v, step) : NULL;
    if (named)
        r = fs_walk(v->src, named, ret, err);
    if (r < 0)
        return r;
    *ret_path = named ? CKPT_STEAL(named) : strdup(step);
    return *ret_path ? 0 : ckpt_no_memory(err);
}

/* The source, and what is to be verified in it. */
static int open_step(struct verify *v, const char *source, const char *step, char **ret_path, struct ckpt_attr *ret,
                     struct ckpt_err *err)
{
    CKPT_AUTOFREE char *inside = NULL;
    int r = fs_open_inside(source, &v->src, &inside, err);
    if (r < 0)
        return r;
    CKPT_AUTOFREE char *whole = ckpt_path_join(inside, step);
    r = whole ? find_step(v, whole, ret_path, ret, err) : ckpt_no_memory(err);
    if (r == 0 && *inside && ret->view) {
        ckpt_forget(v->src, ret->id, 1);
        r = ckpt_fail(err, ENOENT, "%s: a view, not something that is stored", source);
    }
    return r;
}

static int run(struct verify *v, const char *source, const char *step)
{
    struct ckpt_verify how = {.file = count_file, .progress = advance, .fault = tell_fault, .arg = v};
    struct ckpt_attr at = {.id = CKPT_ROOT};
    struct ckpt_err err = {0};
    CKPT_AUTOFREE char *path = NULL;
    int r = open_step(v, source, step, &path, &at, &err);
    bool bad = r < 0 && !v->src && fs_status(r) == FS_INTEGRITY;
    if (r < 0 && !bad)
        return fs_fail("verify", v->json, r, &err);
    if (v->json)
        fputs("{\"faults\":[", stdout);
    fs_progress_begin(&v->progress);
    if (bad) /* the source is one checkpoint, and does not open: that is its fault */
        tell_fault(v, "", &err);
    else {
        r = ckpt_verify(v->src, at.id, path, &how, &err);
        if (r < 0)
            tell_fault(v, path, &err);
        ckpt_forget(v->src, at.id, 1);
    }
    return finish(v);
}

int fs_verify_main(int argc, char **argv)
{
    static const struct option options[] = {{"json", no_argument, NULL, 'j'}, {0}};
    struct verify v = {0};
    opterr = 0;
    for (int o; (o = getopt_long(argc, argv, "", options, NULL)) != -1;) {
        if (o != 'j')
            return fs_bad_option("verify", argv);
        v.json = true;
    }
    if (argc - optind < 1 || argc - optind > 2)
        return fs_usage("verify", "a source is wanted, and at most one step");
    int status = run(&v, argv[optind], optind + 1 < argc ? argv[optind + 1] : "");
    ckpt_source_close(v.src);
    return status;
}
