/* SPDX-License-Identifier: Apache-2.0 */
/* ckptfs ls: names, and with -l what they are. */
#include "fs/commands/cli.h"
#include "fs/commands/commands.h"
#include "fs/commands/resolve.h"

#include "core/base/grow.h"
#include "core/base/path.h"
#include "core/base/util.h"

#include <getopt.h>

#define MAX_DEPTH 1024

struct ls {
    struct ckpt_source *src;
    bool lengthy, recursive, all, json, human;
    uint64_t listed; /* entries so far */
    int failed;      /* directories that do not open */
};

struct names {
    char **name; /* its type is the byte before */
    size_t count, cap;
    bool all;
};

static int add_name(void *arg, const struct ckpt_dirent *e)
{
    struct names *n = arg;
    bool is_hidden = e->name[0] == '.' && !n->all;
    if (is_hidden)
        return 0;
    if (!CKPT_ROOM_FOR_ONE(n->name, n->count, n->cap))
        return -ENOMEM;
    char *p = malloc(strlen(e->name) + 2);
    if (!p)
        return -ENOMEM;
    *p = (char)e->type;
    strcpy(p + 1, e->name);
    n->name[n->count++] = p;
    return 0;
}

static void names_clear(struct names *n)
{
    for (size_t i = 0; i < n->count; i++)
        free(n->name[i]);
    free(n->name);
}

static int compare(const void *a, const void *b)
{
    return strcmp(*(char *const *)a + 1, *(char *const *)b + 1);
}

/* --- one entry --- */

struct entry {
    const char *name, *path;
    struct ckpt_attr at;
    char link[4096];
    cJSON *meta; /* NULL: no part of a checkpoint, or not to be had */
    int error;
    struct ckpt_err err;
};

static const char *const types[] = {[CKPT_FILE] = "file", [CKPT_DIR] = "dir", [CKPT_LINK] = "link"};

/* A member of what is known of the leaf; NULL: there is none. A view is not the leaf that it shows. */
static const cJSON *known(const struct entry *e, const char *name)
{
    return e->at.view ? NULL : ckpt_json_get(e->meta, name);
}

static const char *kind_of(const struct entry *e)
{
    const char *kind = cJSON_GetStringValue(known(e, "kind"));
    if (e->error)
        return "error";
    return kind ? kind : types[e->at.type];
}

static uint64_t bytes_of(const struct entry *e)
{
    uint64_t n;
    return ckpt_json_u64(known(e, "bytes"), &n) ? n : e->at.size;
}

static void put_bytes(char ret[32], uint64_t bytes, bool human)
{
    if (human)
        fs_human(bytes, ret);
    else
        snprintf(ret, 32, "%llu", (unsigned long long)bytes);
}

static void print_line(const struct entry *e, bool human)
{
    char shape[256], bytes[32] = "-", stored[32] = "-";
    const char *dtype = cJSON_GetStringValue(known(e, "dtype"));
    if (e->at.type == CKPT_FILE && !e->error) {
        put_bytes(bytes, bytes_of(e), human);
        put_bytes(stored, e->at.stored, human);
    }
    printf("%-6s %-19s %-14s %12s %12s  ", kind_of(e), dtype ? dtype : "-", fs_shape(known(e, "shape"), shape), bytes,
           stored);
    fs_put_name(stdout, e->name);
    if (e->at.type == CKPT_LINK) {
        fputs(" -> ", stdout);
        fs_put_name(stdout, e->link);
    }
    if (e->error) {
        fputs("  (", stdout);
        fs_put_name(stdout, e->err.text);
        fputc(')', stdout);
    }
    putchar('\n');
}

static void print_member(const struct entry *e, const char *name)
{
    const cJSON *item = known(e, name);
    CKPT_AUTOFREE char *text = item ? cJSON_PrintUnformatted(item) : NULL;
    if (text)
        printf(",\"%s\":%s", name, text);
}

static void print_json(const struct ls *ls, const struct entry *e)
{
    fputs(ls->listed ? ",\n" : "\n", stdout);
    fs_json_pair(stdout, "{", "name", e->name);
    fs_json_pair(stdout, ",", "path", e->path);
    fs_json_pair(stdout, ",", "type", types[e->at.type]);
    fs_json_pair(stdout, ",", "kind", kind_of(e));
    print_member(e, "format");
    print_member(e, "dtype");
    print_member(e, "shape");
    if (e->at.type == CKPT_FILE) {
        fs_json_count(stdout, ",", "bytes", bytes_of(e));
        fs_json_count(stdout, ",", "size", e->at.size);
        fs_json_count(stdout, ",", "stored", e->at.stored);
    } else if (e->at.type == CKPT_LINK)
        fs_json_pair(stdout, ",", "target", e->link);
    fputs(",\"time\":", stdout);
    fs_json_time(stdout, e->at.mtime_ns);
    if (e->error) {
        fputs(",\"error\":", stdout);
        fs_json_error(stdout, e->error, &e->err);
    }
    putchar('}');
}

/* With what is asked for; the attributes are there. */
static void print_entry(struct ls *ls, struct entry *e)
{
    if (e->at.type == CKPT_LINK) {
        if (ckpt_readlink(ls->src, e->at.id, e->link, sizeof e->link) < 0)
            e->link[0] = 0;
    } else if (!e->error) {
        e->error = fs_describe(ls->src, e->at.id, &e->meta, &e->err);
        if (e->error == -ENODATA)
            e->error = 0;
    }
    if (ls->json)
        print_json(ls, e);
    else
        print_line(e, ls->human);
    cJSON_Delete(e->meta);
}

static bool has_names_alone(const struct ls *ls)
{
    return !ls->lengthy && !ls->json;
}

static void print_name(struct ls *ls, const char *name)
{
    fs_put_name(stdout, name);
    putchar('\n');
    ls->listed++;
}

static void list_entry(struct ls *ls, uint64_t dir, const char *dir_path, const char *name)
{
    if (has_names_alone(ls)) {
        print_name(ls, name);
        return;
    }
    CKPT_AUTOFREE char *path = ckpt_path_join(dir_path, name);
    struct entry e = {.name = name, .path = path ? path : name};
    e.error = ckpt_lookup(ls->src, dir, name, &e.at, &e.err);
    if (e.error == -ENOENT) /* it went while we looked */
        return;
    print_entry(ls, &e);
    if (e.at.id)
        ckpt_forget(ls->src, e.at.id, 1);
    ls->listed++;
}

/* --- directories --- */

static int list_dir(struct ls *ls, uint64_t id, const char *path, unsigned depth, struct ckpt_err *err);

/* The rest is listed all the same. */
static void tell_fault(struct ls *ls, const char *path, int error, const struct ckpt_err *err)
{
    ls->failed++;
    fflush(stdout);
    fputs("ckptfs ls: ", stderr);
    fs_put_name(stderr, path);
    fprintf(stderr, ": %s\n", fs_reason(error, err));
}

static void list_below(struct ls *ls, uint64_t dir, const char *dir_path, const char *name, unsigned depth)
{
    CKPT_AUTOFREE char *path = ckpt_path_join(dir_path, name);
    struct ckpt_attr at = {0};
    struct ckpt_err err = {0};
    int r = path ? ckpt_lookup(ls->src, dir, name, &at, &err) : -ENOMEM;
    if (r == -ENOENT)
        return;
    if (r < 0) {
        tell_fault(ls, path ? path : name, r, &err);
        if (at.id) /* it is known all the same */
            ckpt_forget(ls->src, at.id, 1);
        return;
    }
    if (!ls->json) {
        putchar('\n');
        fs_put_name(stdout, path);
        fputs(":\n", stdout);
    }
    r = list_dir(ls, at.id, path, depth + 1, &err);
    if (r < 0)
        tell_fault(ls, path, r, &err);
    ckpt_forget(ls->src, at.id, 1);
}

/* Each directory of those names, if they are wanted. */
static void list_dirs(struct ls *ls, uint64_t id, const char *path, unsigned depth, const struct names *n)
{
    if (!ls->recursive || depth >= MAX_DEPTH)
        return;
    for (size_t i = 0; i < n->count; i++)
        if (*n->name[i] == CKPT_DIR)
            list_below(ls, id, path, n->name[i] + 1, depth);
}

static int list_dir(struct ls *ls, uint64_t id, const char *path, unsigned depth, struct ckpt_err *err)
{
    struct names n = {.all = ls->all || ls->json};
    struct ckpt_dirent control = {.name = ".ckptfs", .type = CKPT_FILE}; /* not a directory to be descended into */
    int r = fs_each_entry(ls->src, id, add_name, &n, err);
    if (r == 0 && id == CKPT_ROOT && ls->all)
        r = add_name(&n, &control);
    if (r == 0 && n.count) {
        qsort(n.name, n.count, sizeof *n.name, compare);
        for (size_t i = 0; i < n.count; i++)
            list_entry(ls, id, path, n.name[i] + 1);
        list_dirs(ls, id, path, depth, &n);
    }
    names_clear(&n);
    return r < 0 ? fs_give_reason(err, r) : 0;
}

static int list_path(struct ls *ls, const char *path, struct ckpt_err *err)
{
    struct ckpt_attr at;
    int r = fs_walk(ls->src, path, &at, err);
    if (r < 0)
        return r;
    if (at.type == CKPT_DIR)
        r = list_dir(ls, at.id, path, 0, err);
    else if (has_names_alone(ls))
        print_name(ls, path);
    else {
        struct entry e = {.name = ls->json ? ckpt_path_name(path) : path, .path = path, .at = at};
        print_entry(ls, &e);
        ls->listed++;
    }
    ckpt_forget(ls->src, at.id, 1);
    return r;
}

/* Before anything is printed, so that an error is the only document. */
static int check_path(struct ls *ls, const char *path, struct ckpt_err *err)
{
    struct ckpt_attr at;
    struct ckpt_dir *dir;
    bool immutable;
    int r = fs_walk(ls->src, path, &at, err);
    if (r < 0)
        return r;
    if (at.type == CKPT_DIR) {
        r = ckpt_opendir(ls->src, at.id, &dir, &immutable, err);
        if (r == 0)
            ckpt_closedir(dir);
    }
    if (r < 0 && *path)
        ckpt_fail_in(err, -r, "%s", path);
    ckpt_forget(ls->src, at.id, 1);
    return r;
}

static int run(struct ls *ls, const char *source, const char *given)
{
    struct ckpt_err err = {0};
    CKPT_AUTOFREE char *inside = NULL;
    int r = fs_open_inside(source, &ls->src, &inside, &err);
    if (r < 0)
        return fs_fail("ls", ls->json, r, &err);
    CKPT_AUTOFREE char *path = ckpt_path_join(inside, strcmp(given, ".") ? given : "");
    if (!path)
        return fs_fail("ls", ls->json, -ENOMEM, NULL);
    for (size_t n = strlen(path); n && path[n - 1] == '/'; n--)
        path[n - 1] = 0;
    r = check_path(ls, path, &err);
    if (r < 0)
        return fs_fail("ls", ls->json, r, &err);
    if (ls->json)
        putchar('[');
    r = list_path(ls, path, &err);
    if (ls->json)
        puts("\n]");
    if (r < 0)
        return fs_fail("ls", false, r, &err);
    return fs_finish("ls", ls->failed ? FS_PARTLY : FS_OK);
}

int fs_ls_main(int argc, char **argv)
{
    static const struct option options[] = {{"json", no_argument, NULL, 'j'},
                                            {"recursive", no_argument, NULL, 'R'},
                                            {"all", no_argument, NULL, 'a'},
                                            {"human-readable", no_argument, NULL, 'h'},
                                            {0}};
    struct ls ls = {0};
    opterr = 0;
    for (int o; (o = getopt_long(argc, argv, "lhRa", options, NULL)) != -1;)
        switch (o) {
        case 'j':
            ls.json = true;
            break;
        case 'l':
            ls.lengthy = true;
            break;
        case 'h':
            ls.human = true;
            break;
        case 'R':
            ls.recursive = true;
            break;
        case 'a':
            ls.all = true;
            break;
        default:
            return fs_bad_option("ls", argv);
        }
    if (argc - optind < 1 || argc - optind > 2)
        return fs_usage("ls", "a source is wanted, and at most one path");
    int status = run(&ls, argv[optind], optind + 1 < argc ? argv[optind + 1] : "");
    ckpt_source_close(ls.src);
    return status;
}
