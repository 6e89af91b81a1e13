/* SPDX-License-Identifier: Apache-2.0 */
/*
 * How a step that is being deleted is kept out of sight: rm -r takes a step away file by file, under its final name. A
 * step that was whole and whose directory has changed since is hidden until nothing has happened to it for CHANGED_NS,
 * one whose parts do not fit together for QUIET_NS; if it is then still there, it is shown as what it is.
 */
#include "core/source/listing.h"

#include "core/base/log.h"
#include "core/base/util.h"
#include "core/format/native.h"
#include "core/store/store.h"

#include <stdio.h>
#include <time.h>

#define QUIET_NS   2000000000ll
#define CHANGED_NS 10000000000ll /* of what was whole: on a busy disk a deletion may stand still for seconds */
#define TEXT_BLOCK ((size_t)64 << 10)
#define RACY_NS    2000000000ll /* a change this soon after another may leave the time stamp as it is */

/* Nothing has happened to it for so long. A time stamp from the far future is another machine's, and says nothing. */
static bool is_quiet_for(const struct ckpt_stat *st, int64_t ns)
{
    int64_t age = ckpt_realtime_ns() - CKPT_MAX(st->mtime_ns, st->ctime_ns);
    return age > ns || age < -ns;
}

static bool is_quiet(const struct ckpt_stat *st)
{
    return is_quiet_for(st, QUIET_NS);
}

struct ckpt_listing_block {
    struct ckpt_listing_block *next;
    size_t used, size;
    char text[];
};

const struct ckpt_entry *ckpt_listing_find(const struct ckpt_listing *l, const char *name)
{
    size_t lo = 0, hi = l->count;
    while (lo < hi) { /* the first of that name */
        size_t mid = lo + (hi - lo) / 2;
        if (strcmp(l->entries[mid].name, name) < 0)
            lo = mid + 1;
        else
            hi = mid;
    }
    return lo < l->count && !strcmp(l->entries[lo].name, name) ? &l->entries[lo] : NULL;
}

struct ckpt_listing *ckpt_listing_ref(struct ckpt_listing *l)
{
    atomic_fetch_add(&l->refs, 1);
    return l;
}

void ckpt_listing_unref(struct ckpt_listing *l)
{
    if (!l || atomic_fetch_sub(&l->refs, 1) != 1)
        return;
    for (struct ckpt_listing_block *b = l->blocks, *next; b; b = next) {
        next = b->next;
        free(b);
    }
    free(l->best);
    free(l->entries);
    free(l);
}

/* --- making one --- */

struct maker {
    struct ckpt_backend *source;
    const char *path;
    const struct ckpt_listing *old;
    struct ckpt_listing *l;
    bool plain;    /* it is in a directory of a plain name */
    bool any_name; /* the one file is the source: see ckpt_probe_file() */
    size_t cap;
};

static bool is_plain(const char *path)
{
    CKPT_AUTOFREE char *parts = strdup(path);
    char *rest = parts;
    bool plain = false;
    for (const char *name; !plain && (name = strsep(&rest, "/"));)
        plain = ckpt_plain_name(name);
    return plain;
}

static char *join(const char *dir, const char *name)
{
    char *path = malloc(strlen(dir) + strlen(name) + 2);
    if (path)
        sprintf(path, "%s%s%s", dir, *dir ? "/" : "", name);
    return path;
}

/* A text that lives as long as the listing. NULL: out of memory. */
static const char *keep_text(struct ckpt_listing *l, const char *text)
{
    struct ckpt_listing_block *b = l->blocks;
    size_t n = strlen(text) + 1;
    if (!b || b->size - b->used < n) {
        size_t size = CKPT_MAX(n, b ? TEXT_BLOCK : TEXT_BLOCK / 64);
        b = malloc(sizeof *b + size);
        if (!b)
            return NULL;
        *b = (struct ckpt_listing_block){.next = l->blocks, .size = size};
        l->blocks = b;
    }
    char *kept = memcpy(b->text + b->used, text, n);
    b->used += n;
    return kept;
}

static int hide(struct ckpt_listing *l, struct ckpt_entry *e, const char *why)
{
    e->kind = CKPT_ENTRY_HIDDEN;
    e->hidden = keep_text(l, why);
    return e->hidden ? 0 : -ENOMEM;
}

static int take_probe(struct ckpt_listing *l, struct ckpt_entry *e, const struct ckpt_format *format,
                      const struct ckpt_probe *p)
{
    e->format = format;
    e->bits = (uint16_t)CKPT_MIN(p->bits, (unsigned)UINT16_MAX);
    e->weak = p->weak;
    e->settled = p->settled;
    e->hidden = *p->unfinished ? keep_text(l, p->unfinished) : NULL;
    return *p->unfinished && !e->hidden ? -ENOMEM : 0;
}

/* What was found of it before, where it was not hidden. */
static int take_old(struct ckpt_listing *l, struct ckpt_entry *e, const struct ckpt_entry *old)
{
    e->format = old->format;
    e->bits = old->bits;
    e->weak = old->weak;
    e->settled = old->settled;
    e->hidden = old->hidden ? keep_text(l, old->hidden) : NULL;
    return old->hidden && !e->hidden ? -ENOMEM : 0;
}

static int add_name(void *arg, const char *name, enum ckpt_ftype type)
{
    struct maker *m = arg;
    struct ckpt_listing *l = m->l;
    if (!strcmp(name, CKPT_STORE_DIR) && type == CKPT_FT_DIR) {
        l->native = true;
        return 0;
    }
    if (type == CKPT_FT_OTHER || l->count >= UINT32_MAX / 4)
        return 0;
    if (l->count == m->cap) {
        size_t cap = m->cap ? m->cap * 2 : 16;
        struct ckpt_entry *p = realloc(l->entries, cap * sizeof *p);
        if (!p)
            return -ENOMEM;
        l->entries = p;
        m->cap = cap;
    }
    struct ckpt_entry *e = &l->entries[l->count];
    *e = (struct ckpt_entry){.name = keep_text(l, name)};
    if (!e->name)
        return -ENOMEM;
    e->kind = CKPT_ENTRY_FILE;
    if (type == CKPT_FT_DIR)
        e->kind = CKPT_ENTRY_DIR;
    else if (type == CKPT_FT_LINK)
        e->kind = CKPT_ENTRY_LINK;
    l->count++;
    return 0;
}

/* What a file is: a checkpoint of its own is shown as a directory. */
static int probe_file(struct maker *m, struct ckpt_entry *e, const char *path)
{
    const struct ckpt_entry *old = m->old ? ckpt_listing_find(m->old, e->name) : NULL;
    const struct ckpt_format *format = NULL;
    struct ckpt_probe probe = {0};
    bool was_shown = old && old->kind != CKPT_ENTRY_HIDDEN && old->st.type == CKPT_FT_FILE;
    int r;
    if (m->plain)
        return 0;
    if (was_shown && ckpt_stat_same(&old->st, &e->st))
        r = take_old(m->l, e, old);
    else {
        r = ckpt_probe_file(m->source, path, m->any_name, &format, &probe);
        if (r != -ENOMEM)
            r = take_probe(m->l, e, format, &probe);
    }
    if (r == -ENOMEM)
        return r;
    if (e->hidden)
        return hide(m->l, e, e->hidden);
    if (!e->weak && e->bits)
        e->step_name = ckpt_step_number(e->name, true, &e->number);
    return 0;
}

/* What a subdirectory is by its content. */
static int probe_entry(struct maker *m, struct ckpt_entry *e, const char *path)
{
    const struct ckpt_entry *old = m->old ? ckpt_listing_find(m->old, e->name) : NULL;
    bool same = old && old->st.ino == e->st.ino && old->st.dev == e->st.dev && old->st.type == e->st.type;
    bool unchanged = same && ckpt_stat_same(&old->st, &e->st);
    if (unchanged && old->kind != CKPT_ENTRY_HIDDEN && (old->settled || old->bits))
        return take_old(m->l, e, old);
    const struct ckpt_format *format = NULL;
    struct ckpt_probe probe = {0};
    struct ckpt_backend *dir;
    int r = ckpt_backend_sub(m->source, path, &dir);
    if (r == 0) {
        r = ckpt_probe_dir(dir, &format, &probe);
        ckpt_backend_unref(dir);
    }
    if (r == -ENOMEM || take_probe(m->l, e, format, &probe) < 0)
        return -ENOMEM;
    e->unreadable = r < 0;
    struct ckpt_stat after;
    if (r == -ENOENT || ckpt_backend_stat(m->source, path, &after) < 0)
        return hide(m->l, e, "");
    e->busy = !ckpt_stat_same(&e->st, &after);
    bool quiet = !e->busy && is_quiet(&e->st);
    bool was_whole = same && old->kind == CKPT_ENTRY_TREE && old->st.mtime_ns != e->st.mtime_ns;
    bool was_hidden = same && old->kind == CKPT_ENTRY_HIDDEN && old->hidden;
    bool was_going = was_hidden && !strncmp(old->hidden, "changed", 7);
    bool still_going = e->busy || !is_quiet_for(&e->st, CHANGED_NS);
    if ((was_whole || was_going) && still_going)
        return hide(m->l, e, "changed since it was committed: it is being deleted, or written to in place");
    if (!quiet && !e->settled && !e->bits && e->step_name)
        e->bits = 1; /* decided when it is known whether this is a root */
    return 0;
}

/* --- steps of the store: each manifest is one, and nothing else says so --- */

static int add_manifest(void *arg, const char *name, enum ckpt_ftype type)
{
    struct maker *m = arg;
    char step[CKPT_STEP_NAME + 1];
    double number;
    if (type != CKPT_FT_FILE || !ckpt_step_of_file(name, step, &number))
        return 0;
    int r = add_name(m, step, CKPT_FT_FILE);
    if (r < 0)
        return r;
    struct ckpt_entry *e = &m->l->entries[m->l->count - 1];
    e->kind = CKPT_ENTRY_TREE;
    e->number = number;
    e->is_step = e->step_name = true;
    e->format = &ckpt_store_format;
    e->bits = 64;
    e->settled = e->stored = true;
    return 0;
}

static int stat_stored(struct maker *m, struct ckpt_entry *e)
{
    char path[4096];
    const char *slash = *m->path ? "/" : "";
    int n = snprintf(path, sizeof path, "%s%s" CKPT_STORE_DIR "/steps/%s.json", m->path, slash, e->name);
    if (n >= (int)sizeof path)
        return -ENAMETOOLONG;
    if (ckpt_backend_stat(m->source, path, &e->st) < 0)
        return hide(m->l, e, ""); /* deleted just now */
    e->st.type = CKPT_FT_DIR; /* the manifest has the time of the step's own directory; mode and owner are read when it
                                 is looked up */
    return 0;
}

static int add_stored(struct maker *m)
{
    CKPT_AUTOFREE char *steps = join(m->path, CKPT_STORE_DIR "/steps");
    if (!steps)
        return -ENOMEM;
    int r = ckpt_backend_stat(m->source, steps, &m->l->store_dir);
    if (r == 0)
        r = ckpt_backend_list(m->source, steps, add_manifest, m);
    m->l->root = true;
    return r == -ENOENT ? 0 : r;
}

static int stat_entry(struct maker *m, struct ckpt_entry *e)
{
    if (e->stored)
        return stat_stored(m, e);
    CKPT_AUTOFREE char *path = join(m->path, e->name);
    size_t len;
    if (!path)
        return -ENOMEM;
    if (e->kind == CKPT_ENTRY_LINK) {
        struct ckpt_stat st;
        if (ckpt_backend_stat(m->source, path, &st) < 0)
            return hide(m->l, e, "");
        e->st = st; /* of what it points to */
        e->step_name = st.type == CKPT_FT_DIR && ckpt_step_is_plain(e->name) &&
                       ckpt_step_number(e->name, false, &e->number);
        /* A download cache has its files under such names: a checkpoint opens up, whatever its file is called. */
        int r = st.type == CKPT_FT_FILE ? probe_file(m, e, path) : 0;
        if (r == 0 && e->kind == CKPT_ENTRY_LINK && e->bits && !e->weak)
            e->kind = CKPT_ENTRY_FILE;
        return r;
    }
    int r = ckpt_backend_stat(m->source, path, &e->st);
    if (r < 0)
        return hide(m->l, e, "");
    if (e->kind != CKPT_ENTRY_DIR)
        return e->st.type == CKPT_FT_FILE ? probe_file(m, e, path) : 0;
    if (ckpt_unfinished_name(e->name, &len))
        return hide(m->l, e, "a temporary name: the save has not finished, or died");
    if (m->plain || ckpt_plain_name(e->name))
        return 0;
    e->step_name = ckpt_step_is_plain(e->name) && ckpt_step_number(e->name, false, &e->number);
    r = probe_entry(m, e, path);
    if (r == 0 && e->kind == CKPT_ENTRY_DIR && !e->step_name && e->bits)
        e->step_name = ckpt_step_number(e->name, true, &e->number) || ckpt_step_number_glued(e->name, &e->number);
    return r;
}

/* --- what a root makes of its entries --- */

static int by_number(const void *pa, const void *pb)
{
    const struct ckpt_entry *a = *(struct ckpt_entry *const *)pa, *b = *(struct ckpt_entry *const *)pb;
    return (a->number > b->number) - (a->number < b->number);
}

/* A model and its optimizer are saved side by side, as model_0 and optimizer_0: both have a prefix, and not the same.
 */
static bool are_parts(const struct ckpt_entry *a, const struct ckpt_entry *b)
{
    size_t n = ckpt_step_prefix(a->name), m = ckpt_step_prefix(b->name);
    return n && m && (n != m || memcmp(a->name, b->name, n) != 0);
}

/* Those of one number, if there are such parts among them. */
static void drop_parts(struct ckpt_entry **entries, size_t count)
{
    bool parts = false;
    for (size_t i = 1; i < count; i++)
        parts |= are_parts(entries[0], entries[i]);
    for (size_t i = 0; i < count && parts; i++)
        entries[i]->step_name = false;
}

/* Checkpoints that share a number, and are therefore none of a row. */
static int drop_numbered_parts(struct ckpt_listing *l)
{
    size_t n = 0;
    CKPT_AUTOFREE struct ckpt_entry **named = calloc(CKPT_MAX(l->count, (size_t)1), sizeof *named);
    if (!named)
        return -ENOMEM;
    for (size_t i = 0; i < l->count; i++)
        if (l->entries[i].step_name && l->entries[i].bits && !l->entries[i].stored)
            named[n++] = &l->entries[i];
    qsort(named, n, sizeof *named, by_number);
    for (size_t begin = 0, end = 0; begin < n; begin = end) {
        while (end < n && named[end]->number == named[begin]->number)
            end++;
        drop_parts(named + begin, end - begin);
    }
    return 0;
}

/* A finished checkpoint under a step's name. */
static bool makes_root(const struct ckpt_entry *e)
{
    if (e->kind == CKPT_ENTRY_HIDDEN || e->kind == CKPT_ENTRY_LINK)
        return false;
    return e->step_name && e->bits > 1;
}

static bool is_root(const struct maker *m)
{
    const struct ckpt_listing *l = m->l, *old = m->old;
    if (l->root)
        return true;
    for (size_t i = 0; i < l->count; i++)
        if (makes_root(&l->entries[i]))
            return true;
    /* One whose steps are all on their way in or out is still one. */
    return old && old->root && old->dir.ino == l->dir.ino && old->dir.dev == l->dir.dev;
}

/* A directory that is a checkpoint or, in a root, has a step's name. */
static int settle_dir(struct ckpt_listing *l, struct ckpt_entry *e)
{
    bool quiet = !e->busy && is_quiet(&e->st), whole = e->settled && e->bits > 1;
    if (e->hidden)
        return hide(l, e, e->hidden);
    if (!whole && !quiet && !e->unreadable)
        return hide(l, e, "its parts are not all there: it is being written, or deleted");
    e->kind = CKPT_ENTRY_TREE;
    if (!e->format) /* by its name alone: an empty step */
        e->format = ckpt_empty_format();
    return 0;
}

/* Decides what an entry is shown as, and whether it is a step. */
static int settle_entry(struct ckpt_listing *l, struct ckpt_entry *e)
{
    bool is_checkpoint = e->bits > 1 && !e->weak;
    bool may_be_step = e->kind == CKPT_ENTRY_DIR || e->kind == CKPT_ENTRY_LINK;
    bool step = l->root && e->step_name && may_be_step;
    if (e->kind == CKPT_ENTRY_DIR && (step || is_checkpoint)) {
        int r = settle_dir(l, e);
        if (r < 0)
            return r;
    }
    if (e->kind == CKPT_ENTRY_FILE && e->bits && !e->weak) {
        e->kind = CKPT_ENTRY_TREE;
        step = e->step_name;
    } else if (e->stored && e->kind == CKPT_ENTRY_TREE)
        step = true;
    e->is_step = step && (e->kind == CKPT_ENTRY_TREE || e->kind == CKPT_ENTRY_LINK);
    return 0;
}

static bool is_later(const struct ckpt_entry *a, const struct ckpt_entry *b)
{
    return a->number == b->number ? strcmp(a->name, b->name) > 0 : a->number > b->number;
}

/* With all entries known: is this a root, and what does that make of them? */
static int settle_entries(struct maker *m)
{
    struct ckpt_listing *l = m->l;
    if (drop_numbered_parts(l) < 0)
        return -ENOMEM;
    bool taken = false;
    l->root = is_root(m);
    l->latest = SIZE_MAX;
    for (size_t i = 0; i < l->count; i++) {
        struct ckpt_entry *e = &l->entries[i];
        taken |= !strcmp(e->name, "latest");
        int r = settle_entry(l, e);
        if (r < 0)
            return r;
        if (!e->is_step)
            continue;
        if (l->latest == SIZE_MAX || is_later(e, &l->entries[l->latest]))
            l->latest = i;
    }
    if (taken)
        l->latest = SIZE_MAX;
    return 0;
}

/* By name; a step of the store before anything else of its name, which it hides. */
static int compare(const void *pa, const void *pb)
{
    const struct ckpt_entry *a = pa, *b = pb;
    int r = strcmp(a->name, b->name);
    if (r)
        return r;
    return !a->stored - !b->stored;
}

static int hide_doubles(struct ckpt_listing *l)
{
    int r = 0;
    for (size_t i = 1; l->native && r == 0 && i < l->count; i++)
        if (!strcmp(l->entries[i].name, l->entries[i - 1].name))
            r = hide(l, &l->entries[i], "a step of the store has its name");
    return r;
}

/* Give back the room behind the last entry. */
static void trim(struct ckpt_listing *l)
{
    struct ckpt_entry *p = realloc(l->entries, CKPT_MAX(l->count, (size_t)1) * sizeof *p);
    if (p)
        l->entries = p;
}

void ckpt_listing_shrink(struct ckpt_listing *l)
{
    size_t kept = 0;
    if (!l->native || atomic_load(&l->refs) != 1)
        return;
    for (size_t i = 0; i < l->count; i++)
        if (!l->entries[i].stored)
            l->entries[kept++] = l->entries[i];
    l->count = kept;
    l->latest = SIZE_MAX;
    l->shrunk = true;
    trim(l);
}

int ckpt_listing_make(struct ckpt_backend *source, const char *path, const struct ckpt_listing *old,
                      struct ckpt_listing **ret)
{
    struct ckpt_listing *l = calloc(1, sizeof *l);
    if (!l)
        return -ENOMEM;
    struct maker m = {.source = source, .path = path, .old = old, .l = l, .plain = is_plain(path)};
    unsigned shortages = ckpt_shortages();
    atomic_init(&l->refs, 1);
    l->taken_ns = ckpt_realtime_ns();
    int r = ckpt_backend_stat(source, path, &l->dir);
    if (r == 0)
        r = ckpt_backend_list(source, path, add_name, &m);
    if (r == 0 && l->native)
        r = add_stored(&m);
    if (r == 0 && l->count)
        qsort(l->entries, l->count, sizeof *l->entries, compare);
    for (size_t i = 0; i < l->count && r == 0; i++)
        r = stat_entry(&m, &l->entries[i]);
    if (r == 0)
        r = hide_doubles(l);
    if (r == 0)
        r = settle_entries(&m);
    if (r == 0)
        trim(l);
    if (shortages != ckpt_shortages()) /* what an entry is may be wrong */
        r = -EMFILE;
    if (r < 0)
        ckpt_listing_unref(l);
    else
        *ret = l;
    return r;
}

/* A stamp that was young when the listing was made proves nothing. */
static bool is_dir_unchanged(struct ckpt_backend *source, const char *path, const struct ckpt_stat *then,
                             int64_t taken_ns)
{
    struct ckpt_stat now;
    if (ckpt_backend_stat(source, path, &now) < 0 || !ckpt_stat_same(&now, then))
        return false;
    return taken_ns - now.mtime_ns >= RACY_NS;
}

bool ckpt_listing_current(struct ckpt_backend *source, const char *path, const struct ckpt_listing *l)
{
    struct ckpt_stat st;
    if (l->shrunk || !is_dir_unchanged(source, path, &l->dir, l->taken_ns))
        return false;
    if (l->native) {
        CKPT_AUTOFREE char *steps = join(path, CKPT_STORE_DIR "/steps");
        if (!steps || !is_dir_unchanged(source, steps, &l->store_dir, l->taken_ns))
            return false;
    }
    for (size_t i = 0; i < l->count; i++) {
        const struct ckpt_entry *e = &l->entries[i];
        if (e->kind == CKPT_ENTRY_TREE && e->settled && e->st.type == CKPT_FT_DIR)
            continue; /* committed: only its name could go, which changes the directory */
        if (e->kind == CKPT_ENTRY_HIDDEN)
            return false;
        CKPT_AUTOFREE char *sub = join(path, e->name);
        if (!sub || ckpt_backend_stat(source, sub, &st) < 0 || !ckpt_stat_same(&st, &e->st))
            return false;
    }
    return true;
}

/* --- a checkpoint that is the source --- */

static int new_top(struct maker *m, const char *path)
{
    struct ckpt_listing *l = calloc(1, sizeof *l);
    if (!l)
        return -ENOMEM;
    m->l = l;
    atomic_init(&l->refs, 1);
    l->taken_ns = ckpt_realtime_ns();
    l->latest = SIZE_MAX;
    return add_name(m, path, CKPT_FT_FILE);
}

int ckpt_listing_of_top(const char *path, const struct ckpt_stat *st, const struct ckpt_format *format,
                        struct ckpt_listing **ret)
{
    struct maker m = {.path = ""};
    int r = new_top(&m, path);
    if (r < 0) {
        ckpt_listing_unref(m.l);
        return r;
    }
    struct ckpt_entry *e = m.l->entries;
    e->st = *st;
    e->format = format;
    e->bits = 64;
    e->settled = true;
    e->kind = CKPT_ENTRY_TREE;
    *ret = m.l;
    return 0;
}

static int probe_top_file(struct maker *m, struct ckpt_entry *e)
{
    if (e->st.type != CKPT_FT_FILE)
        return hide(m->l, e, "it was a file, and is none any more: mount it again");
    int r = probe_file(m, e, e->name);
    if (r < 0 || e->kind == CKPT_ENTRY_HIDDEN)
        return r;
    if (!e->bits)
        return hide(m->l, e, "the file is no checkpoint any more");
    e->kind = CKPT_ENTRY_TREE;
    return 0;
}

static int probe_top_dir(struct maker *m, struct ckpt_entry *e)
{
    e->kind = CKPT_ENTRY_DIR;
    int r = probe_entry(m, e, "");
    if (r < 0 || e->kind != CKPT_ENTRY_DIR)
        return r;
    bool is_checkpoint = e->bits > 1 && !e->weak;
    return is_checkpoint ? settle_dir(m->l, e) : hide(m->l, e, "the directory is no finished checkpoint");
}

static bool is_absence(int r)
{
    return r == -ENOENT || r == -ENOTDIR || r == -ELOOP || r == -EXDEV;
}

int ckpt_listing_make_top(struct ckpt_backend *source, const char *path, const struct ckpt_listing *old,
                          struct ckpt_listing **ret)
{
    struct maker m = {.source = source, .path = "", .old = old, .any_name = true};
    unsigned shortages = ckpt_shortages();
    int r = new_top(&m, path);
    struct ckpt_entry *e = r == 0 ? m.l->entries : NULL;
    if (r == 0) {
        r = ckpt_backend_stat(source, path, &e->st);
        if (is_absence(r))
            r = hide(m.l, e, "");
        else if (r == 0)
            r = *path ? probe_top_file(&m, e) : probe_top_dir(&m, e);
    }
    if (shortages != ckpt_shortages()) /* what it is may be wrong */
        r = -EMFILE;
    if (r < 0)
        ckpt_listing_unref(m.l);
    else
        *ret = m.l;
    return r;
}

bool ckpt_listing_top_current(struct ckpt_backend *source, const char *path, const struct ckpt_listing *l)
{
    const struct ckpt_entry *e = l->entries;
    return e->kind == CKPT_ENTRY_TREE && is_dir_unchanged(source, path, &e->st, l->taken_ns);
}
