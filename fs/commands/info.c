/* SPDX-License-Identifier: Apache-2.0 */
/* ckptfs info: the checkpoints of a source, or what is in the one that it is. */
#include "fs/commands/cli.h"
#include "fs/commands/commands.h"
#include "fs/commands/pointers.h"
#include "fs/commands/resolve.h"

#include "core/base/grow.h"
#include "core/base/path.h"
#include "core/base/util.h"

#include <getopt.h>
#include <math.h>

struct step {
    char *root, *name, *format;
    double number;
    int64_t mtime_ns;
    bool latest;
};

struct info {
    struct ckpt_source *src;
    uint64_t top; /* what is asked about */
    bool json, fast;
    struct step *steps;
    size_t count, cap;
    int root_width, name_width;
    size_t bad; /* checkpoints that do not open, or have damaged leaves */
    size_t unopened;
    size_t lacking;  /* checkpoints that open, though a part of them is missing */
    size_t pointers; /* of Git LFS */
};

static int add_step(void *arg, const struct ckpt_step *s)
{
    struct info *in = arg;
    if (!CKPT_ROOM_FOR_ONE(in->steps, in->count, in->cap))
        return -ENOMEM;
    struct step *n = &in->steps[in->count++];
    *n = (struct step){strdup(s->root), strdup(s->name), strdup(s->format), s->number, s->mtime_ns, s->latest};
    bool is_whole = n->root && n->name && n->format;
    if (!is_whole)
        return -ENOMEM;
    in->root_width = CKPT_MAX(in->root_width, (int)strlen(n->root));
    in->name_width = CKPT_MAX(in->name_width, (int)strlen(n->name));
    return 0;
}

static void clear(struct info *in)
{
    for (size_t i = 0; i < in->count; i++) {
        free(in->steps[i].root);
        free(in->steps[i].name);
        free(in->steps[i].format);
    }
    free(in->steps);
    ckpt_source_close(in->src);
}

static void put_padded(const char *text, int width)
{
    fs_put_name(stdout, text);
    for (int n = (int)strlen(text); n < width; n++)
        putchar(' ');
    fputs("  ", stdout);
}

static void print_head(const struct info *in)
{
    if (in->root_width)
        put_padded("ROOT", in->root_width);
    printf("%9s  ", "STEP");
    put_padded("NAME", in->name_width);
    printf("%-12s", "FORMAT");
    if (!in->fast)
        printf(" %9s %11s %11s", "LEAVES", "BYTES", "STORED");
    puts("  TIME");
}

/* What a checkpoint has, or why it does not open. */
struct found {
    struct fs_sum sum;
    int error;
    struct ckpt_err err;
};

static void print_sums(const struct found *f)
{
    char bytes[32], stored[32];
    if (f->error)
        printf(" %9s %11s %11s", "-", "-", "-");
    else
        printf(" %9llu %11s %11s", (unsigned long long)f->sum.leaves, fs_human(f->sum.bytes, bytes),
               fs_human(f->sum.stored, stored));
}

static void print_row(const struct info *in, const struct step *s, const struct found *f)
{
    char text[32];
    if (in->root_width)
        put_padded(s->root, in->root_width);
    printf("%9s  ", isnan(s->number) ? "-" : fs_number(s->number, text));
    put_padded(s->name, in->name_width);
    printf("%-12s", s->format);
    if (!in->fast)
        print_sums(f);
    printf("  %s%s", fs_time(s->mtime_ns, text), s->latest ? "  latest" : "");
    if (f->error) {
        fputs("  error: ", stdout);
        fs_put_name(stdout, f->err.text);
    } else if (f->sum.damaged) {
        printf("  damaged: %llu, ", (unsigned long long)f->sum.damaged);
        fs_put_name(stdout, f->sum.err.text);
    }
    putchar('\n');
}

static void json_sum(const struct fs_sum *sum)
{
    fs_json_count(stdout, ",", "leaves", sum->leaves);
    fs_json_count(stdout, ",", "containers", sum->containers);
    fs_json_count(stdout, ",", "bytes", sum->bytes);
    fs_json_count(stdout, ",", "stored", sum->stored);
    fs_json_count(stdout, ",", "damaged", sum->damaged);
    if (sum->damaged) {
        fputs(",\"error\":", stdout);
        fs_json_error(stdout, -sum->err.code, &sum->err);
    }
}

static void json_row(const struct info *in, const struct step *s, const struct found *f)
{
    char number[32];
    fputs(s == in->steps ? "\n" : ",\n", stdout);
    fs_json_pair(stdout, "{", "root", s->root);
    fs_json_pair(stdout, ",", "name", s->name);
    printf(",\"step\":%s", isnan(s->number) ? "null" : fs_number(s->number, number));
    fs_json_pair(stdout, ",", "format", s->format);
    fputs(",\"time\":", stdout);
    fs_json_time(stdout, s->mtime_ns);
    printf(",\"latest\":%s", s->latest ? "true" : "false");
    if (f->error) {
        fputs(",\"error\":", stdout);
        fs_json_error(stdout, f->error, &f->err);
    } else if (!in->fast)
        json_sum(&f->sum);
    putchar('}');
}

static char *attribute(struct info *in, uint64_t id, const char *name)
{
    ssize_t n = ckpt_getxattr(in->src, id, name, NULL, NULL, 0);
    char *text = n >= 0 ? malloc((size_t)n + 1) : NULL;
    if (text) {
        n = ckpt_getxattr(in->src, id, name, NULL, text, (size_t)n);
        text[n > 0 ? n : 0] = 0;
    }
    return text;
}

/* What is wrong with a checkpoint that opens counts as damage, and is told before that of leaves. */
static void note_fault(struct info *in, uint64_t id, struct fs_sum *sum)
{
    CKPT_AUTOFREE char *fault = attribute(in, id, "user.ckpt.error");
    if (!fault)
        return;
    sum->damaged++;
    ckpt_fail(&sum->err, EUCLEAN, "%s", fault);
    in->lacking++;
}

/* 0, or why the checkpoint does not open; -ENOENT when it has gone. */
static int examine(struct info *in, const struct step *s, struct fs_sum *sum, struct ckpt_err *err)
{
    struct ckpt_attr at;
    CKPT_AUTOFREE char *path = ckpt_path_join(s->root, s->name);
    if (!path)
        return ckpt_no_memory(err);
    int r = fs_walk(in->src, path, &at, err);
    if (r < 0)
        return r;
    r = fs_sum(in->src, at.id, sum, err);
    if (r == 0)
        note_fault(in, at.id, sum);
    ckpt_forget(in->src, at.id, 1);
    return r < 0 ? fs_give_reason(err, r) : 0;
}

static int status_of(const struct info *in)
{
    if (!in->bad)
        return FS_OK;
    return in->lacking || in->unopened == in->count ? FS_INTEGRITY : FS_PARTLY;
}

/* --- pointers of Git LFS: one a line, or an array of paths --- */

static void print_pointer(void *arg, const char *path)
{
    struct info *in = arg;
    if (in->json) {
        fputs(in->pointers++ ? "," : ",\"lfs_pointers\":[", stdout);
        fs_json_string(stdout, path);
        return;
    }
    if (!in->pointers++)
        puts("These files are Git LFS pointers, not the files themselves; `git lfs pull` in the clone gets them:");
    fs_put_name(stdout, path);
    puts(": Git LFS pointer");
}

static void print_pointers(struct info *in)
{
    if (fs_each_pointer(in->src, in->top, !in->fast, print_pointer, in) < 0)
        fputs("ckptfs info: out of memory\n", stderr);
    if (in->json && in->pointers)
        putchar(']');
}

static int list_steps(struct info *in)
{
    if (in->json)
        fputs("\"steps\":[", stdout);
    else if (in->count)
        print_head(in);
    for (size_t i = 0; i < in->count; i++) {
        struct found f = {0};
        if (!in->fast)
            f.error = examine(in, &in->steps[i], &f.sum, &f.err);
        in->unopened += f.error < 0;
        in->bad += f.error < 0 || f.sum.damaged;
        if (in->json)
            json_row(in, &in->steps[i], &f);
        else
            print_row(in, &in->steps[i], &f);
    }
    if (in->json)
        fputs("\n]", stdout);
    else if (!in->count)
        fputs("ckptfs info: there are no checkpoints here\n", stderr);
    print_pointers(in);
    if (in->json)
        puts("}");
    return status_of(in);
}

/* One checkpoint, as text. */
static void print_summary(const char *format, const struct fs_sum *sum, int64_t mtime_ns, const char *metadata)
{
    char text[32];
    printf("format:      %s\n", format);
    printf("leaves:      %llu\n", (unsigned long long)sum->leaves);
    printf("containers:  %llu\n", (unsigned long long)sum->containers);
    printf("bytes:       %llu (%s)\n", (unsigned long long)sum->bytes, fs_human(sum->bytes, text));
    printf("stored:      %llu (%s)\n", (unsigned long long)sum->stored, fs_human(sum->stored, text));
    printf("time:        %s\nmetadata:    ", fs_time(mtime_ns, text));
    fs_put_name(stdout, metadata);
    putchar('\n');
    if (!sum->damaged)
        return;
    printf("damaged:     %llu, ", (unsigned long long)sum->damaged);
    fs_put_name(stdout, sum->err.text);
    putchar('\n');
}

static int summarise(struct info *in, const char *source, const char *format)
{
    struct fs_sum sum;
    struct ckpt_attr at;
    struct ckpt_err err = {0};
    CKPT_AUTOFREE char *attr = attribute(in, in->top, "user.ckpt.metadata");
    const char *metadata = attr && *attr ? attr : "{}";
    int r = fs_sum(in->src, in->top, &sum, &err);
    if (r == 0)
        r = ckpt_getattr(in->src, in->top, &at, &err);
    if (r < 0)
        return fs_fail("info", in->json, r, &err);
    note_fault(in, in->top, &sum);
    if (in->json) {
        fs_json_pair(stdout, "{", "source", source);
        fs_json_pair(stdout, ",", "format", format);
        json_sum(&sum);
        fputs(",\"time\":", stdout);
        fs_json_time(stdout, at.mtime_ns);
        printf(",\"metadata\":%s", metadata);
    } else
        print_summary(format, &sum, at.mtime_ns, metadata);
    print_pointers(in);
    if (in->json)
        puts("}");
    if (in->lacking)
        return FS_INTEGRITY;
    return sum.damaged ? FS_PARTLY : FS_OK;
}

static int run(struct info *in, const char *source)
{
    struct ckpt_err err = {0};
    cJSON *meta = NULL;
    CKPT_AUTOFREE char *inside = NULL;
    struct ckpt_attr top;
    int r = fs_open_inside(source, &in->src, &inside, &err);
    if (r == 0)
        r = fs_walk(in->src, inside, &top, &err); /* closing the source gives it back */
    if (r < 0)
        return fs_fail("info", in->json, r, &err);
    in->top = top.id;
    r = fs_describe(in->src, in->top, &meta, &err);
    if (r == 0) {
        const char *format = cJSON_GetStringValue(ckpt_json_get(meta, "format"));
        int status = summarise(in, source, format ? format : "");
        cJSON_Delete(meta);
        return status;
    }
    if (r == -ENODATA && *inside)
        r = ckpt_fail(&err, ENOENT, "%s: there is no checkpoint", source);
    if (r == -ENODATA)
        r = ckpt_each_checkpoint(in->src, add_step, in, &err);
    if (r < 0)
        return fs_fail("info", in->json, r, &err);
    if (in->json) {
        fs_json_pair(stdout, "{", "source", source);
        putchar(',');
    }
    return list_steps(in);
}

int fs_info_main(int argc, char **argv)
{
    static const struct option options[] = {{"json", no_argument, NULL, 'j'}, {"fast", no_argument, NULL, 'f'}, {0}};
    struct info in = {.name_width = 4};
    opterr = 0;
    for (int o; (o = getopt_long(argc, argv, "", options, NULL)) != -1;)
        switch (o) {
        case 'j':
            in.json = true;
            break;
        case 'f':
            in.fast = true;
            break;
        default:
            return fs_bad_option("info", argv);
        }
    if (argc - optind != 1)
        return fs_usage("info", argc == optind ? "the source is missing" : "one source is wanted");
    int status = run(&in, argv[optind]);
    clear(&in);
    return fs_finish("info", status);
}
