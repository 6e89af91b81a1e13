/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Steps that are being deleted. Something is missing: is the checkpoint damaged, or does somebody delete it, file by
 * file and under its own name? Only the time stamps of its directories tell. A damaged checkpoint stands still; one
 * that is being deleted has changed since it was opened, or changes while it is watched.
 */
#include "core/format/orbax/item.h"

#include "core/base/util.h"

#include <time.h>

#define QUIET_NS  5000000000ll /* a deletion may be held up for a while between two files */
#define PAUSE_NS  25000000     /* between two looks */
#define MIN_LOOKS 4
#define MAX_LOOKS 400 /* a clock that stands still must not keep a reader for ever */

/* The state of a directory and what it holds, two levels down: equal sums mean that nothing changed in between. */
struct fingerprint {
    struct ckpt_backend *dir;
    uint64_t sum;
    int64_t newest_ns;
};

static void add_mtime(struct fingerprint *p, const char *path)
{
    struct ckpt_stat st;
    if (ckpt_backend_stat(p->dir, path, &st) < 0)
        return;
    p->sum = p->sum * 31 + (uint64_t)st.mtime_ns;
    p->newest_ns = CKPT_MAX(p->newest_ns, st.mtime_ns);
}

static int add_name(void *arg, const char *name, enum ckpt_ftype type)
{
    struct fingerprint *p = arg;
    p->sum += orbax_hash(name, strlen(name)) + (uint64_t)type; /* a sum, as names come in no order */
    return 0;
}

static int add_subdir(void *arg, const char *name, enum ckpt_ftype type)
{
    if (type == CKPT_FT_DIR)
        add_mtime(arg, name);
    return 0;
}

static void add_item_dir(struct fingerprint *p, const struct orbax_item *item, const char *name)
{
    CKPT_AUTOFREE char *path = ckpt_orbax_path(item, name);
    if (path)
        add_mtime(p, path);
}

uint64_t ckpt_orbax_fingerprint(struct orbax *o, const char *array, int64_t *ret_newest_ns)
{
    struct fingerprint p = {.dir = ckpt_pins_dir(o->tree->pins), .sum = 1};
    if (ckpt_backend_list(p.dir, "", add_name, &p) < 0)
        return 0; /* the directory has no name any more */
    add_mtime(&p, "");
    if (ckpt_backend_list(p.dir, "", add_subdir, &p) < 0)
        return 0;
    for (unsigned i = 0; i < o->count; i++) {
        add_item_dir(&p, &o->items[i], "");
        add_item_dir(&p, &o->items[i], "ocdbt.process_0/d");
    }
    /* The array's own directory counts for the time only: the sum must not differ from array to array. */
    struct fingerprint own = {.dir = p.dir, .newest_ns = p.newest_ns};
    if (array)
        add_mtime(&own, array);
    if (ret_newest_ns)
        *ret_newest_ns = own.newest_ns;
    return p.sum ? p.sum : 1;
}

/* A time stamp from the far future says nothing, so it counts as old. */
static bool long_ago(int64_t ns)
{
    int64_t age = ckpt_realtime_ns() - ns;
    return age > QUIET_NS || age < -QUIET_NS;
}

/* Watches the directories until nothing has changed for QUIET_NS. True as soon as something does. */
static bool changes_while_watched(struct orbax *o, const char *array, uint64_t before, int64_t newest)
{
    for (int looks = 0; looks < MAX_LOOKS; looks++) {
        if (looks >= MIN_LOOKS && long_ago(newest))
            return false;
        nanosleep(&(struct timespec){.tv_nsec = PAUSE_NS}, NULL);
        int64_t now_newest = newest;
        uint64_t now = ckpt_orbax_fingerprint(o, array, &now_newest);
        if (now != before || now_newest != newest)
            return true;
    }
    return false;
}

bool ckpt_orbax_is_vanishing(struct orbax *o, const char *array)
{
    if (!ckpt_pins_dir(o->tree->pins)->ops->changes)
        return false;
    int64_t newest = 0;
    uint64_t before = ckpt_orbax_fingerprint(o, array, &newest), loaded = atomic_load(&o->loaded_print);
    if (atomic_load(&o->vanished))
        return true;
    /* One wait for each state of the directories is enough: damaged arrays are many, and each would wait. */
    bool watched = before && before == atomic_load(&o->stable_print);
    if (watched && long_ago(newest))
        return false;
    bool changed = loaded && before != loaded;
    bool gone = !before || changed || changes_while_watched(o, array, before, newest);
    if (gone)
        atomic_store(&o->vanished, true);
    else
        atomic_store(&o->stable_print, before);
    return gone;
}
