/* SPDX-License-Identifier: Apache-2.0 */
/* ckptfs gc: moves objects that no step names to the trash, and empties it of what is old. */
#include "fs/commands/commands.h"
#include "fs/commands/root_options.h"

#include "core/base/util.h"

#include <time.h>

#define SHOW_NS        100000000
#define TRASH_KEEP_MAX 31536000ul /* a year */

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
    bool is_early = now - c->shown_ns < SHOW_NS;
    if (!c->shows_count || is_early)
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

static void print_json(const struct collecting *c, const struct ckpt_gc_result *r, bool dry)
{
    fs_json_count(stdout, "{", "objects", r->objects);
    fs_json_count(stdout, ",", "bytes", r->bytes);
    fs_json_count(stdout, ",", "purged", r->purged);
    fs_json_count(stdout, ",", "purged_bytes", r->purged_bytes);
    fs_json_count(stdout, ",", "kept", r->kept);
    fputs(",\"aside\":[", stdout);
    if (c->aside.len)
        fwrite(c->aside.data, 1, c->aside.len, stdout);
    printf("],\"dry_run\":%s}\n", dry ? "true" : "false");
}

static void print_text(const struct collecting *c, const struct ckpt_gc_result *r, bool dry)
{
    char moved[32], purged[32];
    const char *would = dry ? "would be " : "";
    printf("%llu object%s (%s) %smoved to the trash, ", (unsigned long long)r->objects, r->objects == 1 ? "" : "s",
           fs_human(r->bytes, moved), would);
    printf("%llu (%s) %sdeleted for good, %llu kept\n", (unsigned long long)r->purged,
           fs_human(r->purged_bytes, purged), would, (unsigned long long)r->kept);
    if (!c->aside.len)
        return;
    fwrite(c->aside.data, 1, c->aside.len, stdout);
    printf("%llu object%s kept because a manifest that cannot be read may name them: repair it, or remove its step\n",
           (unsigned long long)r->aside, r->aside == 1 ? " is" : "s are");
}

/* False: it is not a number of seconds. */
static bool parse_trash_keep(const char *text, unsigned *ret)
{
    char *end;
    unsigned long keep = strtoul(text, &end, 10);
    bool is_number = end != text && !*end && *text != '-';
    *ret = (unsigned)keep;
    return is_number && keep <= TRASH_KEEP_MAX;
}

int fs_gc_main(int argc, char **argv)
{
    struct fs_root_options o;
    struct ckpt_err err = {0};
    struct ckpt_store *s;
    struct ckpt_gc_result result;
    int status = fs_parse_root_options("gc", argc, argv, &o);
    if (status)
        return status;
    if (argc - optind != 1)
        return fs_usage("gc", "one root is wanted");
    unsigned keep = 0;
    if (o.trash_keep && !parse_trash_keep(o.trash_keep, &keep))
        return fs_usage("gc", "--trash-keep: %s is not a number of seconds", o.trash_keep);
    status = fs_open_root("gc", &o, argv[optind], &s);
    if (status)
        return status;
    if (o.trash_keep)
        ckpt_store_set_trash_keep(s, keep);
    struct collecting c = {.shows_count = isatty(STDERR_FILENO), .json = o.json, .aside = CKPT_BUF_INIT};
    const struct ckpt_gc_watch watch = {show_count, note_aside, &c};
    int r = ckpt_store_gc(s, o.dry, &watch, &result, &err);
    if (c.shown_ns)
        fputs("\r\033[K", stderr);
    ckpt_store_close(s);
    if (r < 0)
        status = fs_fail("gc", o.json, r, &err);
    else {
        if (o.json)
            print_json(&c, &result, o.dry);
        else
            print_text(&c, &result, o.dry);
        status = fs_finish("gc", c.aside.len ? FS_PARTLY : FS_OK);
    }
    ckpt_buf_clear(&c.aside);
    return status;
}
