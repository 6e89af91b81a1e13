/* SPDX-License-Identifier: Apache-2.0 */
/* ckptfs gc: moves objects that no step names to the trash, and empties it of what is old. */
#include "fs/commands/commands.h"
#include "fs/commands/root_options.h"

#include "core/base/util.h"

#include <time.h>

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

static void print_result(const struct fs_root_options *o, const struct collecting *c, const struct ckpt_gc_result *r)
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
    struct fs_root_options o;
    struct ckpt_err err = {0};
    struct ckpt_store *s;
    struct ckpt_gc_result result;
    int status = fs_parse_root_options("gc", argc, argv, &o);
    if (status)
        return status;
    if (argc - optind != 1)
        return fs_usage("gc", "one root is wanted");
    char *end = NULL;
    unsigned long keep = o.trash_keep ? strtoul(o.trash_keep, &end, 10) : 0;
    if (o.trash_keep && (end == o.trash_keep || *end || *o.trash_keep == '-' || keep > TRASH_KEEP_MAX))
        return fs_usage("gc", "--trash-keep: %s is not a number of seconds", o.trash_keep);
    status = fs_open_root("gc", &o, argv[optind], &s);
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
