/* SPDX-License-Identifier: Apache-2.0 */
/* ckptfs wait: until a root has the next finished step. */
#include "fs/commands/cli.h"
#include "fs/commands/commands.h"

#include "core/base/path.h"
#include "core/base/util.h"

#include <getopt.h>
#include <math.h>
#include <time.h>

struct wait {
    bool json;
    double after, timeout, interval; /* timeout < 0: none */
    char *root, *name;               /* the step that is told */
    double number;
    int64_t mtime_ns;
};

static double now(void)
{
    return (double)ckpt_monotonic_ns() / 1e9;
}

/* Of several the one that follows next, so that a loop over wait sees them all. */
static int consider(void *arg, const struct ckpt_step *s)
{
    struct wait *w = arg;
    bool is_after = s->number > w->after; /* no number, NaN, is after none */
    bool is_next = !w->name || s->number < w->number;
    if (!is_after || !is_next)
        return 0;
    free(w->root);
    free(w->name);
    w->root = strdup(s->root);
    w->name = strdup(s->name);
    w->number = s->number;
    w->mtime_ns = s->mtime_ns;
    return w->root && w->name ? 0 : -ENOMEM;
}

static int tell(const struct wait *w)
{
    CKPT_AUTOFREE char *path = ckpt_path_join(w->root, w->name);
    char number[32];
    if (!path)
        return fs_fail("wait", w->json, -ENOMEM, NULL);
    if (w->json) {
        fs_json_pair(stdout, "{", "path", path);
        fs_json_pair(stdout, ",", "root", w->root);
        fs_json_pair(stdout, ",", "name", w->name);
        printf(",\"step\":%s,\"time\":", fs_number(w->number, number));
        fs_json_time(stdout, w->mtime_ns);
        fputs("}\n", stdout);
    } else {
        fs_put_name(stdout, path);
        putchar('\n');
    }
    return fs_finish("wait", FS_OK);
}

static void nap(double seconds)
{
    struct timespec ts = ckpt_timespec((int64_t)(CKPT_MIN(seconds, 1e9) * 1e9));
    nanosleep(&ts, NULL);
}

/* 0 when there is a step. */
static int poll_source(struct wait *w, struct ckpt_source *src, struct ckpt_err *err)
{
    double begin = now();
    for (;;) {
        double looked = now();
        int r = ckpt_each_step(src, consider, w, err);
        if (r < 0 || w->name)
            return r;
        double left = w->timeout < 0 ? INFINITY : begin + w->timeout - now();
        if (left <= 0) {
            char number[32];
            return ckpt_fail(err, ETIMEDOUT, "no step after %s within %g s", fs_number(w->after, number), w->timeout);
        }
        /* A root of very many steps takes its time to look at: not more than half of it. */
        nap(CKPT_MIN(left, CKPT_MAX(w->interval, now() - looked)));
    }
}

static int run(struct wait *w, const char *source)
{
    struct ckpt_source *src;
    struct ckpt_err err = {0};
    CKPT_AUTOFREE char *meta = NULL;
    size_t len;
    int r = fs_open(source, &src, &err);
    if (r < 0)
        return fs_fail("wait", w->json, r, &err);
    if (ckpt_describe(src, CKPT_ROOT, &meta, &len, NULL) == 0)
        r = ckpt_fail(&err, EINVAL, "%s: one checkpoint, not a root of steps", source);
    else
        r = poll_source(w, src, &err);
    ckpt_source_close(src);
    return r < 0 ? fs_fail("wait", w->json, r, &err) : tell(w);
}

static bool parse_number(const char *text, double least, double *ret)
{
    char *end;
    *ret = strtod(text, &end);
    bool is_number = end != text && !*end;
    return is_number && *ret >= least && *ret <= 1e15;
}

int fs_wait_main(int argc, char **argv)
{
    static const struct option options[] = {{"json", no_argument, NULL, 'j'},
                                            {"after", required_argument, NULL, 'a'},
                                            {"timeout", required_argument, NULL, 't'},
                                            {"interval", required_argument, NULL, 'i'},
                                            {0}};
    struct wait w = {.after = -INFINITY, .timeout = -1, .interval = 0.5};
    bool good = true;
    opterr = 0;
    for (int o; good && (o = getopt_long(argc, argv, "", options, NULL)) != -1;)
        switch (o) {
        case 'j':
            w.json = true;
            break;
        case 'a':
            good = parse_number(optarg, -1e15, &w.after);
            break;
        case 't':
            good = parse_number(optarg, 0, &w.timeout);
            break;
        case 'i':
            good = parse_number(optarg, 0.01, &w.interval);
            break;
        default:
            return fs_bad_option("wait", argv);
        }
    if (!good)
        return fs_usage("wait", "%s: not a number it can be", optarg);
    if (argc - optind != 1)
        return fs_usage("wait", argc == optind ? "the source is missing" : "one source is wanted");
    if (isinf(w.after))
        return fs_usage("wait", "--after is missing");
    int status = run(&w, argv[optind]);
    free(w.root);
    free(w.name);
    return status;
}
