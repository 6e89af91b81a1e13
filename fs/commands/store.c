/* SPDX-License-Identifier: Apache-2.0 */
/* ckptfs init, config, gc, prune: what is done to a root with a store as a whole. */
#include "fs/commands/cli.h"
#include "fs/commands/commands.h"

#include "core/base/util.h"
#include "core/ckpt_store.h"

#include <getopt.h>

#define TRASH_KEEP_MAX 31536000ul /* a year */

struct options {
    bool json, dry;
    const char *trash_keep;
};

/* What all of them take; the rest of the arguments begins at optind. 0, or the exit status of a usage error. */
static int parse_options(const char *command, int argc, char **argv, struct options *ret)
{
    static const struct option options[] = {{"json", no_argument, NULL, 'j'},
                                            {"dry-run", no_argument, NULL, 'n'},
                                            {"trash-keep", required_argument, NULL, 'k'},
                                            {0}};
    bool collects = !strcmp(command, "gc"), deletes = collects || !strcmp(command, "prune");
    *ret = (struct options){0};
    opterr = 0;
    for (int o; (o = getopt_long(argc, argv, deletes ? "n" : "", options, NULL)) != -1;) {
        if (o == 'j')
            ret->json = true;
        else if (o == 'n' && deletes)
            ret->dry = true;
        else if (o == 'k' && collects)
            ret->trash_keep = optarg;
        else
            return fs_bad_option(command, argv);
    }
    return optind < argc ? 0 : fs_usage(command, "a root is wanted");
}

static int open_store(const char *command, const struct options *o, const char *root, struct ckpt_store **ret)
{
    struct ckpt_err err = {0};
    ckpt_log_setup(CKPT_LOG_ERROR, 0);
    int r = ckpt_store_open(root, ret, &err);
    return r < 0 ? fs_fail(command, o->json, r, &err) : 0;
}

/* --- init --- */

int fs_init_main(int argc, char **argv)
{
    struct options o;
    struct ckpt_err err = {0};
    struct ckpt_store *s;
    bool created = false;
    int status = parse_options("init", argc, argv, &o);
    if (status)
        return status;
    if (argc - optind != 1)
        return fs_usage("init", "one root is wanted");
    const char *root = argv[optind];
    int r = ckpt_store_create(root, &created, &err);
    if (r < 0)
        return fs_fail("init", o.json, r, &err);
    status = open_store("init", &o, root, &s);
    if (status)
        return status;
    if (o.json) {
        fs_json_pair(stdout, "{", "root", root);
        fs_json_pair(stdout, ",", "id", ckpt_store_id(s));
        printf(",\"created\":%s}\n", created ? "true" : "false");
    }
    ckpt_store_close(s);
    return fs_finish("init", FS_OK);
}

/* --- config --- */

static int print_setting(void *arg, const char *key, const char *value)
{
    if (!arg)
        printf("%s=%s\n", key, value);
    else if (value[strspn(value, "0123456789")] || !strncmp(key, "best_m", 6))
        fs_json_pair(stdout, ",", key, value);
    else
        printf(",\"%s\":%s", key, value);
    return 0;
}

static void print_config(struct options *o, const struct ckpt_store *s)
{
    if (o->json)
        fs_json_pair(stdout, "{", "id", ckpt_store_id(s));
    ckpt_store_settings(s, print_setting, o->json ? o : NULL);
    if (o->json)
        puts("}");
}

/* k=v is cut at its '='. All are looked at before the first is set. */
static int check_settings(char **settings, struct ckpt_err *err)
{
    int r = 0;
    for (; *settings && r == 0; settings++) {
        char *equals = strchr(*settings, '=');
        if (!equals)
            return ckpt_fail(err, EINVAL, "%s: KEY=VALUE is wanted", *settings);
        *equals = 0;
        r = ckpt_store_config_check(*settings, equals + 1, err);
    }
    return r;
}

int fs_config_main(int argc, char **argv)
{
    struct options o;
    struct ckpt_err err = {0};
    struct ckpt_store *s;
    int status = parse_options("config", argc, argv, &o);
    if (status)
        return status;
    char **settings = argv + optind + 1;
    int r = check_settings(settings, &err);
    if (r < 0)
        return fs_fail("config", o.json, r, &err);
    status = open_store("config", &o, argv[optind], &s);
    if (status)
        return status;
    for (char **p = settings; *p && r == 0; p++)
        r = ckpt_store_config_set(s, *p, *p + strlen(*p) + 1, &err);
    if (r < 0)
        status = fs_fail("config", o.json, r, &err);
    else if (o.json || !*settings)
        print_config(&o, s);
    ckpt_store_close(s);
    return status ? status : fs_finish("config", FS_OK);
}

/* --- prune --- */

struct pruning {
    bool json;
    uint64_t count;
};

static void tell_pruned(void *arg, const char *step)
{
    struct pruning *p = arg;
    if (p->json) {
        fputs(p->count++ ? "," : "", stdout);
        fs_json_string(stdout, step);
    } else {
        fs_put_name(stdout, step);
        putchar('\n');
    }
}

int fs_prune_main(int argc, char **argv)
{
    struct options o;
    struct ckpt_err err = {0};
    struct ckpt_store *s;
    int status = parse_options("prune", argc, argv, &o);
    if (status)
        return status;
    if (argc - optind != 1)
        return fs_usage("prune", "one root is wanted");
    status = open_store("prune", &o, argv[optind], &s);
    if (status)
        return status;
    struct pruning p = {o.json, 0};
    if (o.json)
        fputs("{\"steps\":[", stdout);
    int r = ckpt_store_prune(s, o.dry, tell_pruned, &p, &err);
    ckpt_store_close(s);
    if (o.json) {
        printf("],\"dry_run\":%s", o.dry ? "true" : "false");
        if (r < 0) {
            fputs(",\"error\":", stdout);
            fs_json_error(stdout, r, &err);
        }
        puts("}");
    }
    if (r < 0)
        return fs_fail("prune", false, r, &err);
    return fs_finish("prune", FS_OK);
}

/* --- gc --- */

struct collecting {
    bool shows_count;
    int64_t shown_ns; /* CLOCK_MONOTONIC; 0: never */
    bool json;
    struct ckpt_buf aside; /* manifests that cannot be read, as text to be printed */
};

static void show_count(void *arg, uint64_t done, uint64_t total)
{
    struct collecting *c = arg;
    int64_t now = ckpt_monotonic_ns();
    if (!c->shows_count || now - c->shown_ns < 100000000)
        return;
    c->shown_ns = now;
    fprintf(stderr, "\r%llu of %llu manifests read\033[K", (unsigned long long)done, (unsigned long long)total);
}

static void note_aside(void *arg, const char *name, const struct ckpt_err *why)
{
    struct collecting *c = arg;
    if (!c->json) {
        ckpt_buf_addf(&c->aside, "%s cannot be read: %s\n", name, why->text);
        return;
    }
    ckpt_buf_adds(&c->aside, c->aside.len ? ",{\"manifest\":" : "{\"manifest\":");
    ckpt_buf_add_json_string(&c->aside, name, strlen(name));
    ckpt_buf_adds(&c->aside, ",\"reason\":");
    ckpt_buf_add_json_string(&c->aside, why->text, strlen(why->text));
    ckpt_buf_addc(&c->aside, '}');
}

static void print_result(const struct options *o, const struct collecting *c, const struct ckpt_gc_result *r)
{
    char moved[32], purged[32];
    if (o->json)
        printf("{\"objects\":%llu,\"bytes\":%llu,\"purged\":%llu,\"purged_bytes\":%llu,\"kept\":%llu,\"aside\":[%.*s],"
               "\"dry_run\":%s}\n",
               (unsigned long long)r->objects, (unsigned long long)r->bytes, (unsigned long long)r->purged,
               (unsigned long long)r->purged_bytes, (unsigned long long)r->kept, (int)c->aside.len,
               c->aside.data ? (char *)c->aside.data : "", o->dry ? "true" : "false");
    else
        printf("%llu object%s (%s) %s to the trash, %llu (%s) %s for good, %llu kept\n", (unsigned long long)r->objects,
               r->objects == 1 ? "" : "s", fs_human(r->bytes, moved), o->dry ? "would be moved" : "moved",
               (unsigned long long)r->purged, fs_human(r->purged_bytes, purged),
               o->dry ? "would be deleted" : "deleted", (unsigned long long)r->kept);
    if (!o->json && c->aside.len)
        printf("%.*s%llu object%s kept because a manifest that cannot be read may name them: repair it, or remove its "
               "step\n",
               (int)c->aside.len, (char *)c->aside.data, (unsigned long long)r->aside, r->aside == 1 ? " is" : "s are");
}

int fs_gc_main(int argc, char **argv)
{
    struct options o;
    struct ckpt_err err = {0};
    struct ckpt_store *s;
    struct ckpt_gc_result result;
    int status = parse_options("gc", argc, argv, &o);
    if (status)
        return status;
    if (argc - optind != 1)
        return fs_usage("gc", "one root is wanted");
    char *end = NULL;
    unsigned long keep = o.trash_keep ? strtoul(o.trash_keep, &end, 10) : 0;
    if (o.trash_keep && (end == o.trash_keep || *end || *o.trash_keep == '-' || keep > TRASH_KEEP_MAX))
        return fs_usage("gc", "--trash-keep: %s is not a number of seconds", o.trash_keep);
    status = open_store("gc", &o, argv[optind], &s);
    if (status)
        return status;
    if (o.trash_keep)
        ckpt_store_set_trash_keep(s, (unsigned)keep);
    struct collecting c = {.shows_count = isatty(STDERR_FILENO), .json = o.json, .aside = CKPT_BUF_INIT};
    const struct ckpt_gc_watch watch = {show_count, note_aside, &c};
    int r = ckpt_store_gc(s, o.dry, &watch, &result, &err);
    if (c.shown_ns)
        fputs("\r\033[K", stderr);
    ckpt_store_close(s);
    if (r == 0)
        print_result(&o, &c, &result);
    bool aside = c.aside.len;
    ckpt_buf_clear(&c.aside);
    return r < 0 ? fs_fail("gc", o.json, r, &err) : fs_finish("gc", aside ? FS_PARTLY : FS_OK);
}
