/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Objects that no manifest names go to the trash. In this order:
 *
 *   1. Mark, without the lock: every manifest is read, and what it names goes into a set. One that cannot be read is
 * set aside: all objects that are there when it is first found so go into the set (aside.c).
 *   2. objects/ is listed, without the lock: what is not in the set may go.
 *   3. With the lock held exclusively, so that no commit is between its objects and its manifest: manifests that have
 * appeared since are read too (one that cannot be: all begins anew). What they name in the trash goes back; what may go
 * and is still not named goes to the trash.
 *   4. Without the lock: what has been in the trash for long enough goes for good.
 *
 * An object that somebody takes up meanwhile is safe in each of these. A staged step has a hard link of its own to it,
 * made from objects/ or from the trash; its commit links that into objects/ again, under the shared lock, before its
 * manifest is there.
 */
#include "core/store/internal.h"
#include "core/store/writers.h"

#include "core/base/grow.h"
#include "core/base/util.h"

#include <fcntl.h>
#include <stdio.h>

#define CLOCK_SLACK_NS 2000000000ll /* of time stamps against this clock: what is younger is read twice */

struct gc {
    struct ckpt_store *store;
    struct ckpt_gc_result *ret;
    struct ckpt_err *err;
    struct ckpt_hashes named;
    uint8_t (*dead)[CKPT_SHA256]; /* what may go */
    size_t dead_count, dead_room;
    struct ckpt_store_step *steps; /* that are marked */
    size_t step_count;
    int64_t begin_ns;
    struct ckpt_aside aside;
    bool locked;
};

#define TRIES 5

static void clear(struct gc *g)
{
    ckpt_hashes_clear(&g->named);
    ckpt_store_steps_free(g->steps, g->step_count);
    free(g->dead);
    ckpt_aside_clear(&g->aside);
}

/* --- mark --- */

static int mark_node(void *arg, uint32_t number, const struct ckpt_manifest_node *n, uint64_t off, uint32_t len)
{
    if (n->kind != CKPT_NODE_ARRAY && n->kind != CKPT_NODE_BLOB)
        return 0;
    int r = ckpt_hashes_add(arg, n->object);
    return r < 0 ? r : 0;
}

static int mark_file(struct gc *g, struct ckpt_file *file, struct ckpt_err *err)
{
    struct ckpt_manifest_info info = {0};
    int r = ckpt_manifest_each(file, &info, mark_node, &g->named, err);
    ckpt_manifest_info_clear(&info);
    return r;
}

/* It says nothing of the manifest: another time it can be read. */
static bool is_passing(int r)
{
    return r == -ENOMEM || r == -EMFILE || r == -ENFILE || r == -EINTR || r == -EAGAIN;
}

/* A manifest that cannot be read; file: NULL where it cannot be opened. -EAGAIN: it was not there before. */
static int set_aside(struct gc *g, const char *name, struct ckpt_file *file, int error, const struct ckpt_err *why)
{
    struct ckpt_stat st;
    uint8_t id[CKPT_SHA256];
    int r = 0;
    if (is_passing(error))
        r = error;
    else if (file)
        st = file->st;
    else
        r = ckpt_backend_stat(g->store->files, name, &st);
    if (r == -ENOENT) /* it was deleted */
        return 0;
    if (r < 0)
        return ckpt_fail(g->err, -r, "%s cannot be read: %s", name, why->code ? why->text : strerror(-r));
    if (!ckpt_aside_identity(file, &st, id))
        return ckpt_no_memory(g->err);
    if (ckpt_aside_has(&g->aside, id))
        return 0;
    if (g->locked)
        return ckpt_fail(g->err, EAGAIN, "%s cannot be read: %s", name, why->text);
    r = ckpt_aside_add(&g->aside, id, name, why);
    return r < 0 ? ckpt_fail(g->err, -r, "out of memory") : 0;
}

static int mark_step(struct gc *g, const char *step)
{
    char name[CKPT_STEP_FILE + 8];
    struct ckpt_file *file = NULL;
    struct ckpt_err why = {0};
    int r = ckpt_store_manifest(g->store, step, &file, &why);
    if (r == -ENOENT) /* it was deleted */
        return 0;
    if (r == 0)
        r = mark_file(g, file, &why);
    snprintf(name, sizeof name, "steps/%s.json", step);
    if (r < 0)
        r = set_aside(g, name, file, r, &why);
    ckpt_file_unref(file);
    return r;
}

static int mark_part(void *arg, struct ckpt_file *part, struct ckpt_err *err)
{
    struct gc *g = arg;
    struct ckpt_err why = {0};
    int r = mark_file(g, part, &why);
    return r < 0 ? set_aside(g, "writers: the part of one", part, r, &why) : 0;
}

/* What writers have of steps that wait for others. */
static int mark_parts(struct gc *g)
{
    int r = ckpt_writers_parts(g->store, mark_part, g, g->err);
    if (r >= 0)
        return r;
    bool told = g->err && g->err->code == -r;
    return told ? r : ckpt_fail(g->err, -r, "the parts of writers cannot be listed: %s", strerror(-r));
}

static int mark(struct gc *g, void (*progress)(void *arg, uint64_t done, uint64_t total), void *arg)
{
    g->begin_ns = ckpt_realtime_ns();
    int r = ckpt_store_steps(g->store, false, &g->steps, &g->step_count, g->err);
    for (size_t i = 0; i < g->step_count && r == 0; i++) {
        r = mark_step(g, g->steps[i].name);
        if (progress)
            progress(arg, i + 1, g->step_count);
    }
    return r == 0 ? mark_parts(g) : r;
}

static int by_file(const void *a, const void *b)
{
    const struct ckpt_store_step *x = a, *y = b;
    if (x->ino != y->ino)
        return x->ino < y->ino ? -1 : 1;
    if (x->mtime_ns != y->mtime_ns)
        return x->mtime_ns < y->mtime_ns ? -1 : 1;
    return (x->dev > y->dev) - (x->dev < y->dev);
}

/* Was this manifest read? g->steps are sorted by file. One as young as the marking may have changed since. */
static bool is_marked(const struct gc *g, const struct ckpt_store_step *step)
{
    if (!g->step_count || step->mtime_ns > g->begin_ns - CLOCK_SLACK_NS)
        return false;
    return bsearch(step, g->steps, g->step_count, sizeof *g->steps, by_file);
}

/* The lock is held. A renamed manifest is the same file. */
static int mark_new(struct gc *g)
{
    struct ckpt_store_step *now;
    size_t count;
    int r = ckpt_store_steps(g->store, false, &now, &count, g->err);
    if (r < 0)
        return r;
    if (g->step_count)
        qsort(g->steps, g->step_count, sizeof *g->steps, by_file);
    for (size_t i = 0; i < count && r == 0; i++)
        if (!is_marked(g, &now[i]))
            r = mark_step(g, now[i].name);
    ckpt_store_steps_free(now, count);
    return r == 0 ? mark_parts(g) : r;
}

/* --- what is not named --- */

static int add_dead(struct gc *g, const uint8_t hash[CKPT_SHA256])
{
    if (!CKPT_ROOM_FOR_ONE(g->dead, g->dead_count, g->dead_room))
        return -ENOMEM;
    memcpy(g->dead[g->dead_count++], hash, CKPT_SHA256);
    return 0;
}

/* Sums without their object come up, too; ones with it twice, which does no harm. */
static int look_at_object(void *arg, int dir, const char *name)
{
    struct gc *g = arg;
    uint8_t hash[CKPT_SHA256];
    bool sums;
    if (!ckpt_object_name(name, hash, &sums) || ckpt_hashes_has(&g->named, hash))
        return 0;
    if (sums) {
        char object[CKPT_HEX];
        ckpt_hash_hex(hash, object);
        if (faccessat(dir, object, F_OK, AT_SYMLINK_NOFOLLOW) == 0)
            return 0;
    }
    return add_dead(g, hash);
}

static int find_dead(struct gc *g)
{
    int r = ckpt_objects_each(g->store, look_at_object, g);
    return r < 0 ? ckpt_fail(g->err, -r, "%s: the objects cannot be listed: %s", g->store->path, strerror(-r)) : 0;
}

/* Of what would be moved. */
static int count_dead(struct gc *g)
{
    for (size_t i = 0; i < g->dead_count; i++) {
        char path[CKPT_OBJECT_PATH], sums[CKPT_OBJECT_PATH + 8];
        ckpt_object_path(g->dead[i], path);
        snprintf(sums, sizeof sums, "%s.sums", path);
        g->ret->objects += faccessat(g->store->objects, path, F_OK, AT_SYMLINK_NOFOLLOW) == 0;
        g->ret->bytes += ckpt_size_at(g->store->objects, path) + ckpt_size_at(g->store->objects, sums);
    }
    return 0;
}

/* Pins without a step; and the list of what manifests may name, where none is set aside any more. */
static int drop_needless(struct gc *g)
{
    int r = ckpt_store_drop_stale_pins(g->store);
    if (r < 0)
        return ckpt_fail(g->err, -r, "%s: pins without a step cannot be removed: %s", g->store->path, strerror(-r));
    r = g->aside.count ? 0 : ckpt_aside_drop(g->store);
    if (r < 0)
        return ckpt_fail(g->err, -r, "%s: the list of what manifests may name cannot be removed: %s", g->store->path,
                         strerror(-r));
    return 0;
}

static int sweep(struct gc *g)
{
    CKPT_AUTOFD int lock = ckpt_store_lock(g->store, true);
    if (lock < 0)
        return ckpt_fail(g->err, -lock, "%s: the lock cannot be taken: %s", g->store->path, strerror(-lock));
    g->locked = true;
    int r = mark_new(g);
    if (r == 0)
        r = ckpt_trash_restore(g->store, &g->named, g->err);
    for (size_t i = 0; i < g->dead_count && r == 0; i++)
        if (!ckpt_hashes_has(&g->named, g->dead[i]))
            r = ckpt_trash_object(g->store, g->dead[i], g->ret, g->err);
    return r < 0 ? r : drop_needless(g);
}

/* What those that cannot be read may name stays. */
static int keep_aside(struct gc *g, bool dry)
{
    size_t before = g->named.count;
    int r = g->aside.count ? ckpt_aside_keep(g->store, &g->aside, dry, &g->named) : 0;
    g->ret->aside = g->named.count - before;
    if (r < 0)
        return ckpt_fail(g->err, -r, "%s: what a manifest that cannot be read may name cannot be listed: %s",
                         g->store->path, strerror(-r));
    return 0;
}

static int move_dead(struct gc *g)
{
    int r = sweep(g);
    return r < 0 ? r : ckpt_trash_staging(g->store, g->err);
}

static int collect(struct gc *g, bool dry)
{
    int r = find_dead(g);
    if (r == 0)
        r = dry ? count_dead(g) : move_dead(g);
    if (r == 0)
        r = ckpt_trash_purge(g->store, dry, g->ret, g->err);
    g->ret->kept = g->named.count + g->named.zero;
    return r;
}

static int gc_once(struct gc *g, bool dry, void (*progress)(void *arg, uint64_t done, uint64_t total), void *arg)
{
    *g->ret = (struct ckpt_gc_result){0};
    ckpt_hashes_init(&g->named);
    int r = mark(g, progress, arg);
    if (r == 0)
        r = keep_aside(g, dry);
    return r == 0 ? collect(g, dry) : r;
}

int ckpt_store_gc(struct ckpt_store *s, bool dry, const struct ckpt_gc_watch *watch, struct ckpt_gc_result *ret,
                  struct ckpt_err *err)
{
    static const struct ckpt_gc_watch nobody;
    const struct ckpt_gc_watch *w = watch ? watch : &nobody;
    /* First, so that the part of a writer that cannot be opened, which stops what follows, does not stop it for longer
     * than parts stay. */
    int r = dry ? 0 : ckpt_writers_tidy(s);
    *ret = (struct ckpt_gc_result){0};
    if (r < 0)
        return ckpt_fail(err, -r, "old parts of writers cannot be removed: %s", strerror(-r));
    r = -EAGAIN;
    for (int i = 0; r == -EAGAIN && i < TRIES; i++) {
        struct gc g = {.store = s, .ret = ret, .err = err};
        r = gc_once(&g, dry, w->progress, w->arg);
        for (size_t k = 0; k < g.aside.count && r == 0 && w->aside; k++)
            w->aside(w->arg, g.aside.found[k].name, &g.aside.found[k].why);
        clear(&g);
    }
    return r;
}
