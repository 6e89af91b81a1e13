/* SPDX-License-Identifier: Apache-2.0 */
/*
 * writers/NAME/ has `lock`, a part K-of-N.json for each writer that has come, and `done` or `failed` when something
 * came of them, with the ids of the parts that it came of. Names change under the lock only, but for the whole
 * directory's, which goes to the trash in one call: so who has it open can tell what became of it. Whoever makes the
 * step may be killed before it has written `done`. So the step's id is told by the parts, and the next one who takes
 * the lock writes it.
 */
#include "core/store/writers.h"

#include "core/base/util.h"
#include "core/io/disk.h"
#include "core/store/seal.h"
#include "core/store/internal.h"

#include <fcntl.h>
#include <stdio.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <xxhash.h>

#define PLACE      "writers"
#define KEEP_DONE  86400  /* seconds after which nobody looks for a result any more */
#define KEEP_PARTS 604800 /* of a step that some writers never came to */
#define DONE_MAX   ((size_t)4 << 20)

struct ckpt_writers {
    struct ckpt_store *store;
    char step[CKPT_STEP_NAME + 1];
    int dir;
    bool made;  /* the step was made of what this writer had here before */
    bool equal; /* which is what it has now */
};

static int fail(const struct ckpt_writers *w, int r, const char *what, struct ckpt_err *err)
{
    return r < 0 ? ckpt_fail(err, -r, "step %s: %s: %s", w->step, what, strerror(-r)) : 0;
}

static bool is_there(int dir, const char *name)
{
    return faccessat(dir, name, F_OK, AT_SYMLINK_NOFOLLOW) == 0;
}

/* `done` and `failed`. */
static int read_text(int dir, const char *name, char **ret)
{
    size_t len;
    return ckpt_text_at(dir, name, DONE_MAX, ret, &len);
}

/* "K-of-N.json" */
static bool is_part(const char *name, unsigned *ret_k, unsigned *ret_n)
{
    int end = 0;
    return sscanf(name, "%5u-of-%5u.json%n", ret_k, ret_n, &end) == 2 && end && !name[end];
}

static void part_name(unsigned k, unsigned n, char ret[32])
{
    snprintf(ret, 32, "%u-of-%u.json", k, n);
}

/* --- the place --- */

/* If the step was made of these parts, and nobody has said so. */
static int note_made(struct ckpt_writers *w)
{
    char path[CKPT_STEP_FILE + 8], id[33];
    snprintf(path, sizeof path, "steps/%s.json", w->step);
    if (!is_there(w->store->dir, path) || is_there(w->dir, "done"))
        return 0;
    int r = ckpt_writers_id(w, id, NULL);
    if (r == 0)
        r = ckpt_store_step_is(w->store, w->step, id);
    return r == 1 ? ckpt_writers_finish(w, 0, NULL) : r;
}

/* The directory's lock, if that is still the step's; -ESTALE: it was moved to the trash. */
static int lock_place(struct ckpt_writers *w)
{
    char path[CKPT_STEP_NAME + 16];
    struct stat ours, now;
    bool made = !is_there(w->dir, "lock");
    int fd = openat(w->dir, "lock", O_RDWR | O_CREAT | O_CLOEXEC, 0666);
    if (fd < 0)
        return -errno;
    if (made)
        ckpt_store_give(w->store, w->dir, "lock");
    snprintf(path, sizeof path, PLACE "/%s", w->step);
    int r = 0;
    while ((r = flock(fd, LOCK_EX) < 0 ? -errno : 0) == -EINTR)
        ;
    if (r == 0 && (fstat(w->dir, &ours) < 0 || fstatat(w->store->dir, path, &now, AT_SYMLINK_NOFOLLOW) < 0 ||
                   ours.st_ino != now.st_ino || ours.st_dev != now.st_dev))
        r = -ESTALE;
    if (r == 0)
        r = note_made(w);
    if (r < 0) {
        close(fd);
        return r;
    }
    return fd;
}

static int move_to_trash(struct ckpt_store *s, const char *step)
{
    char path[CKPT_STEP_NAME + 16], trash[64], random[17];
    ckpt_random_hex(random, 8);
    snprintf(path, sizeof path, PLACE "/%s", step);
    snprintf(trash, sizeof trash, PLACE "-%s", random);
    int r = ckpt_disk_rename(s->dir, path, s->trash, trash, 0);
    if (r == 0)
        (void)!ckpt_disk_remove_tree(s->trash, trash); /* else gc does it */
    return r == -ENOENT ? 0 : r;
}

static int open_place(struct ckpt_writers *w)
{
    char path[CKPT_STEP_NAME + 16];
    snprintf(path, sizeof path, PLACE "/%s", w->step);
    int r = ckpt_disk_mkdir(w->store->dir, PLACE, 0777);
    if (r == 0)
        ckpt_store_give(w->store, w->store->dir, PLACE);
    if (r == 0)
        r = ckpt_disk_fsync(w->store->dir);
    if (r == 0 || r == -EEXIST)
        r = ckpt_disk_mkdir(w->store->dir, path, 0777);
    if (r == 0)
        ckpt_store_give(w->store, w->store->dir, path);
    if (r == 0)
        r = ckpt_disk_fsync_dir(w->store->dir, PLACE);
    if (r < 0 && r != -EEXIST)
        return r;
    w->dir = openat(w->store->dir, path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    return w->dir < 0 ? -errno : 0;
}

/* Is one of the ids, a line each, among those in `done`? */
static bool names_any(const char *done, const char *ids)
{
    char id[CKPT_MANIFEST_ID];
    for (const char *p = ids; *p; p += strcspn(p, "\n"), p += *p == '\n') {
        size_t len = strcspn(p, "\n");
        snprintf(id, sizeof id, "%.*s", (int)len, p);
        if (len && len < sizeof id && strstr(done, id))
            return true;
    }
    return false;
}

int ckpt_writers_open(struct ckpt_store *s, const char *step, const char *before, struct ckpt_writers **ret,
                      struct ckpt_err *err)
{
    struct ckpt_writers *w = calloc(1, sizeof *w);
    if (!w)
        return ckpt_fail(err, ENOMEM, "out of memory");
    w->store = s;
    w->dir = -1;
    snprintf(w->step, sizeof w->step, "%s", step);
    int r = -ESTALE;
    while (r == -ESTALE || r == -ENOENT) {
        if (w->dir >= 0)
            close(w->dir);
        r = open_place(w);
        if (r < 0)
            continue;
        CKPT_AUTOFD int lock = lock_place(w);
        r = CKPT_MIN(lock, 0);
        CKPT_AUTOFREE char *done = NULL;
        if (r == 0 && read_text(w->dir, "done", &done) == 0) {
            w->made = names_any(done, before);
            if (!w->made && (r = move_to_trash(s, step)) == 0) /* of a step of that name that was there before */
                r = -ESTALE;
        }
    }
    if (r < 0) {
        ckpt_fail(err, -r, "step %s: the parts of its writers have no place: %s", step, strerror(-r));
        ckpt_writers_close(w);
    } else
        *ret = w;
    return r;
}

void ckpt_writers_close(struct ckpt_writers *w)
{
    if (w && w->dir >= 0)
        close(w->dir);
    free(w);
}

/* --- do two parts agree? --- */

struct item {
    XXH128_hash_t path;
    enum ckpt_node_kind kind;
    uint8_t content[CKPT_SHA256];
};

struct items {
    struct item *list;
    size_t count, room;
    XXH128_hash_t *dirs; /* paths of the directories, by number */
    uint32_t dir_room;
    const struct items *other; /* sorted: what comes is compared with these instead */
    char conflict[256];
};

static void items_clear(struct items *x)
{
    free(x->list);
    free(x->dirs);
}

static int by_path(const void *a, const void *b)
{
    return XXH128_cmp(&((const struct item *)a)->path, &((const struct item *)b)->path);
}

static int note_dir(struct items *x, uint32_t number, XXH128_hash_t path)
{
    if (number >= x->dir_room) {
        uint32_t room = CKPT_MAX(number + 1, x->dir_room * 2);
        XXH128_hash_t *p = realloc(x->dirs, room * sizeof *p);
        if (!p)
            return -ENOMEM;
        memset(p + x->dir_room, 0, (room - x->dir_room) * sizeof *p);
        x->dirs = p;
        x->dir_room = room;
    }
    x->dirs[number] = path;
    return 0;
}

static int compare_item(struct items *x, const struct item *i, const char *name)
{
    const struct item *o = x->other->count ? bsearch(i, x->other->list, x->other->count, sizeof *i, by_path) : NULL;
    if (!o || (o->kind == i->kind && (i->kind == CKPT_NODE_DIR || !memcmp(o->content, i->content, sizeof i->content))))
        return 0;
    snprintf(x->conflict, sizeof x->conflict, "%s", name);
    return -EEXIST;
}

static int note_node(void *arg, uint32_t number, const struct ckpt_manifest_node *n, uint64_t off, uint32_t len)
{
    struct items *x = arg;
    struct item i = {.kind = n->kind};
    char key[sizeof(XXH128_hash_t) + 256];
    size_t name = strlen(n->name);
    XXH128_hash_t parent = n->parent < x->dir_room ? x->dirs[n->parent] : (XXH128_hash_t){0, 0};
    memcpy(key, &parent, sizeof parent);
    memcpy(key + sizeof parent, n->name, name);
    i.path = XXH3_128bits(key, sizeof parent + name);
    if (n->kind == CKPT_NODE_DIR && note_dir(x, number, i.path) < 0)
        return -ENOMEM;
    XXH128_hash_t text = n->text ? XXH3_128bits(n->text, strlen(n->text)) : (XXH128_hash_t){0, 0};
    if (n->text)
        memcpy(i.content, &text, sizeof text);
    else
        memcpy(i.content, n->sha256, sizeof i.content);
    if (x->other)
        return compare_item(x, &i, n->name);
    if (x->count == x->room) {
        size_t room = x->room ? 2 * x->room : 256;
        struct item *p = realloc(x->list, room * sizeof *p);
        if (!p)
            return -ENOMEM;
        x->list = p;
        x->room = room;
    }
    x->list[x->count++] = i;
    return 0;
}

static int read_items(struct ckpt_file *file, struct items *x, struct ckpt_err *err)
{
    struct ckpt_manifest_info info = {0};
    int r = note_dir(x, 0, (XXH128_hash_t){0, 0});
    if (r == 0)
        r = ckpt_manifest_each(file, &info, note_node, x, err);
    ckpt_manifest_info_clear(&info);
    return r;
}

/* --- parts --- */

static int open_part(struct ckpt_store *s, const char *step, const char *name, struct ckpt_file **ret)
{
    char path[CKPT_STEP_NAME + 64];
    snprintf(path, sizeof path, PLACE "/%s/%s", step, name);
    return ckpt_backend_open(s->files, path, ret);
}

struct comparing {
    struct ckpt_writers *w;
    unsigned k, n;
    struct items *mine;
    struct ckpt_err *err;
};

static int compare_part(void *arg, int dir, const char *name)
{
    struct comparing *c = arg;
    unsigned k, n;
    struct ckpt_file *file;
    if (!is_part(name, &k, &n))
        return 0;
    if (n != c->n)
        return ckpt_fail(c->err, EINVAL, "step %s: writer %u was mounted with writers=%u, this one with writers=%u",
                         c->w->step, k, n, c->n);
    if (k == c->k)
        return 0;
    int r = open_part(c->w->store, c->w->step, name, &file);
    if (r < 0)
        return fail(c->w, r, "the part of another writer cannot be opened", c->err);
    struct items theirs = {.other = c->mine};
    r = read_items(file, &theirs, c->err);
    ckpt_file_unref(file);
    if (r == -EEXIST)
        r = ckpt_fail(c->err, EEXIST, "step %s: writer %u has written other bytes to %s", c->w->step, k,
                      theirs.conflict);
    items_clear(&theirs);
    return r;
}

static int read_sorted(struct ckpt_file *file, struct items *x, struct ckpt_err *err)
{
    int r = read_items(file, x, err);
    if (r == 0 && x->count)
        qsort(x->list, x->count, sizeof *x->list, by_path);
    return r;
}

/* The same paths, with the same content. */
static bool same_items(const struct items *a, const struct items *b)
{
    bool same = a->count == b->count;
    for (size_t i = 0; i < a->count && same; i++)
        same = XXH128_isEqual(a->list[i].path, b->list[i].path) && a->list[i].kind == b->list[i].kind &&
               !memcmp(a->list[i].content, b->list[i].content, CKPT_SHA256);
    return same;
}

/* With the part that this writer had when the step was made. */
static int compare_made(struct ckpt_writers *w, const char *part, const struct items *mine, struct ckpt_err *err)
{
    struct ckpt_file *file;
    struct items was = {0};
    int r = open_part(w->store, w->step, part, &file);
    if (r < 0)
        return fail(w, r, "the part that it was made of cannot be opened", err);
    r = read_sorted(file, &was, err);
    ckpt_file_unref(file);
    w->equal = r == 0 && same_items(mine, &was);
    items_clear(&was);
    return r < 0 || w->equal
               ? r
               : ckpt_fail(err, EEXIST, "step %s was made of what this writer had before its last changes", w->step);
}

static int compare_parts(struct ckpt_writers *w, unsigned k, unsigned n, int work, const char *name,
                         struct ckpt_err *err)
{
    char path[64], part[32];
    struct ckpt_backend *dir;
    struct ckpt_file *file;
    struct items mine = {0};
    struct comparing c = {w, k, n, &mine, err};
    part_name(k, n, part);
    snprintf(path, sizeof path, "/proc/self/fd/%d", work);
    int r = ckpt_backend_open_posix(path, &dir, err);
    if (r < 0)
        return r;
    r = ckpt_backend_open(dir, name, &file);
    ckpt_backend_unref(dir);
    if (r < 0)
        return fail(w, r, "its part cannot be opened", err);
    r = read_sorted(file, &mine, err);
    ckpt_file_unref(file);
    if (r == 0)
        r = is_there(w->dir, "done") ? compare_made(w, part, &mine, err)
                                     : ckpt_names_each(w->dir, ".", compare_part, &c);
    items_clear(&mine);
    return r;
}

int ckpt_writers_put(struct ckpt_writers *w, unsigned k, unsigned n, int work, const char *name, struct ckpt_err *err)
{
    char part[32];
    part_name(k, n, part);
    CKPT_AUTOFD int lock = lock_place(w);
    if (lock < 0)
        return fail(w, lock, "the lock of its writers cannot be taken", err);
    int r = compare_parts(w, k, n, work, name, err);
    if (r < 0 || w->equal)
        return r;
    r = ckpt_disk_rename(work, name, w->dir, part, 0);
    if (r == 0)
        r = ckpt_disk_fsync(w->dir);
    return fail(w, r, "its part cannot be put beside the others", err);
}

int ckpt_writers_done(struct ckpt_writers *w, const char *part, struct ckpt_err *err)
{
    CKPT_AUTOFREE char *text = NULL;
    if (w->equal)
        return 1;
    int r = read_text(w->dir, "done", &text);
    if (r == 0)
        return strstr(text, part)
                   ? 1
                   : ckpt_fail(err, EEXIST, "step %s was made of what this writer had before its last changes",
                               w->step);
    if (r != -ENOENT)
        return fail(w, r, "what became of it cannot be told", err);
    if (read_text(w->dir, "failed", &text) < 0 || !strstr(text, part))
        return 0;
    int code = atoi(text);
    char *why = strchr(text, ' '), *end = strchr(text, '\n');
    if (end)
        *end = 0;
    return ckpt_fail(err, code > 0 && code < 4096 ? code : EIO, "%s",
                     why ? why + 1 : "the writers' step cannot be made");
}

struct counting {
    bool *there;
    unsigned n, count, highest;
};

static int count_part(void *arg, int dir, const char *name)
{
    struct counting *c = arg;
    unsigned k, n;
    if (!is_part(name, &k, &n) || n != c->n || k > n)
        return 0;
    c->count += !c->there[k];
    c->there[k] = true;
    c->highest = CKPT_MAX(c->highest, k);
    return 0;
}

static int count_parts(struct ckpt_writers *w, unsigned n, struct counting *ret)
{
    *ret = (struct counting){.n = n, .there = calloc(n + 1, sizeof *ret->there)};
    if (!ret->there)
        return -ENOMEM;
    return ckpt_names_each(w->dir, ".", count_part, ret);
}

void ckpt_writers_missing(struct ckpt_writers *w, unsigned n, char *buf, size_t len)
{
    struct counting c;
    size_t at = 0;
    *buf = 0;
    if (count_parts(w, n, &c) == 0) {
        unsigned first = c.highest == n; /* some count from 1 */
        for (unsigned k = first; k < n + first && at < len; k++)
            if (!c.there[k])
                at += (size_t)snprintf(buf + at, len - at, "%s%u", at ? ", " : "", k);
    }
    free(c.there);
}

/* --- the step --- */

int ckpt_writers_complete(struct ckpt_writers *w, unsigned n, struct ckpt_err *err)
{
    struct counting c;
    int r = count_parts(w, n, &c);
    free(c.there);
    if (r < 0)
        return fail(w, r, "the parts of its writers cannot be listed", err);
    return c.count >= n && !is_there(w->dir, "done");
}

int ckpt_writers_lock(struct ckpt_writers *w, struct ckpt_err *err)
{
    int lock = lock_place(w);
    return lock < 0 && lock != -ESTALE ? fail(w, lock, "the lock of its writers cannot be taken", err) : lock;
}

struct visiting {
    struct ckpt_store *store;
    const char *step;
    ckpt_part_fn *visit;
    void *arg;
    struct ckpt_err *err;
    bool may_go; /* nobody holds the lock */
};

static int visit_part(void *arg, int dir, const char *name)
{
    struct visiting *v = arg;
    struct ckpt_file *file;
    unsigned k, n;
    if (!is_part(name, &k, &n))
        return 0;
    int r = open_part(v->store, v->step, name, &file);
    if (r == -ENOENT && v->may_go)
        return 0;
    if (r < 0)
        return ckpt_fail(v->err, -r, "step %s: the part of a writer cannot be opened: %s", v->step, strerror(-r));
    r = v->visit(v->arg, file, v->err);
    ckpt_file_unref(file);
    return r;
}

int ckpt_writers_each(struct ckpt_writers *w, ckpt_part_fn *visit, void *arg, struct ckpt_err *err)
{
    struct visiting v = {w->store, w->step, visit, arg, err, false};
    return ckpt_names_each(w->dir, ".", visit_part, &v);
}

/* In whatever order they come. */
static int mix_id(void *arg, struct ckpt_file *part, struct ckpt_err *err)
{
    struct ckpt_manifest_info info = {0};
    XXH128_hash_t *all = arg;
    int r = ckpt_manifest_info(part, &info, err);
    if (r == 0) {
        XXH128_hash_t one = XXH3_128bits(info.id, strlen(info.id));
        *all = (XXH128_hash_t){all->low64 ^ one.low64, all->high64 ^ one.high64};
    }
    ckpt_manifest_info_clear(&info);
    return r;
}

int ckpt_writers_id(struct ckpt_writers *w, char ret[33], struct ckpt_err *err)
{
    XXH128_hash_t all = {0, 0};
    int r = ckpt_writers_each(w, mix_id, &all, err);
    snprintf(ret, 33, "%016llx%016llx", (unsigned long long)all.high64, (unsigned long long)all.low64);
    return r;
}

static int add_id(void *arg, struct ckpt_file *part, struct ckpt_err *err)
{
    struct ckpt_manifest_info info = {0};
    int r = ckpt_manifest_info(part, &info, err);
    if (r == 0)
        ckpt_buf_addf(arg, "%s\n", info.id);
    ckpt_manifest_info_clear(&info);
    return r;
}

static int drop_part(void *arg, int dir, const char *name)
{
    unsigned k, n;
    return is_part(name, &k, &n) ? ckpt_disk_unlink(dir, name, 0) : 0;
}

static int part_mode(void *arg, int dir, const char *name)
{
    mode_t *mode = arg;
    struct stat st;
    unsigned k, n;
    if (is_part(name, &k, &n) && fstatat(dir, name, &st, AT_SYMLINK_NOFOLLOW) == 0)
        *mode &= st.st_mode;
    return 0;
}

/* The reason may name something in the parts: it is for who may read them. */
static int seal_reason(struct ckpt_writers *w)
{
    mode_t mode = 0666;
    int r = ckpt_names_each(w->dir, ".", part_mode, &mode);
    return r < 0 ? r : ckpt_seal_object(w->store, w->dir, "failed", mode | 0600);
}

int ckpt_writers_finish(struct ckpt_writers *w, int result, const struct ckpt_err *why)
{
    struct ckpt_buf text = CKPT_BUF_INIT;
    if (result < 0)
        ckpt_buf_addf(&text, "%d %s\n", -result, why->text);
    int r = ckpt_writers_each(w, add_id, &text, NULL);
    if (r == 0)
        r = ckpt_buf_error(&text);
    if (r == 0)
        r = ckpt_disk_replace(w->dir, result < 0 ? "failed" : "done", text.data, text.len);
    if (r == 0 && result < 0)
        r = seal_reason(w);
    ckpt_buf_clear(&text);
    /* All come again, with what they have then. */
    return r == 0 && result < 0 ? ckpt_names_each(w->dir, ".", drop_part, NULL) : r;
}

/* --- afterwards --- */

bool ckpt_writers_made(const struct ckpt_writers *w)
{
    return w->made;
}

bool ckpt_writers_was_done(struct ckpt_store *s, const char *step, const char *ids)
{
    char path[CKPT_STEP_NAME + 16];
    struct ckpt_writers w = {.store = s, .dir = -1};
    CKPT_AUTOFREE char *text = NULL;
    if (snprintf(w.step, sizeof w.step, "%s", step) >= (int)sizeof w.step)
        return false;
    snprintf(path, sizeof path, PLACE "/%s", w.step);
    w.dir = openat(s->dir, path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    CKPT_AUTOFD int dir = w.dir;
    if (dir < 0)
        return false;
    CKPT_AUTOFD int lock = lock_place(&w); /* who has made the step may have been killed before saying so */
    return lock >= 0 && read_text(dir, "done", &text) == 0 && names_any(text, ids);
}

static int any_part(void *arg, int dir, const char *name)
{
    unsigned k, n;
    return is_part(name, &k, &n);
}

int ckpt_writers_withdraw(struct ckpt_store *s, const char *step, unsigned k, unsigned n)
{
    char path[CKPT_STEP_NAME + 16], part[32];
    struct ckpt_writers w = {.store = s, .dir = -1};
    snprintf(w.step, sizeof w.step, "%s", step);
    snprintf(path, sizeof path, PLACE "/%s", step);
    part_name(k, n, part);
    w.dir = openat(s->dir, path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    CKPT_AUTOFD int dir = w.dir;
    if (dir < 0)
        return errno == ENOENT ? 0 : -errno;
    CKPT_AUTOFD int lock = lock_place(&w);
    if (lock < 0)
        return lock == -ESTALE ? 0 : lock;
    if (is_there(dir, "done") || !is_there(dir, part))
        return 0;
    int r = ckpt_disk_unlink(dir, part, 0);
    if (r == 0)
        r = ckpt_names_each(dir, ".", any_part, NULL);
    return r == 0 ? move_to_trash(s, step) : CKPT_MIN(r, 0);
}

static int visit_step(void *arg, int dir, const char *name)
{
    struct visiting *v = arg;
    char done[CKPT_STEP_NAME + 8];
    if (strlen(name) > CKPT_STEP_NAME)
        return 0;
    snprintf(done, sizeof done, "%s/done", name);
    if (is_there(dir, done))
        return 0;
    v->step = name;
    int r = ckpt_names_each(dir, name, visit_part, v);
    return r == -ENOENT || r == -ENOTDIR ? 0 : r;
}

int ckpt_writers_parts(struct ckpt_store *s, ckpt_part_fn *visit, void *arg, struct ckpt_err *err)
{
    struct visiting v = {s, NULL, visit, arg, err, true};
    int r = ckpt_names_each(s->dir, PLACE, visit_step, &v);
    return r == -ENOENT ? 0 : r;
}

static int tidy_step(void *arg, int dir, const char *name)
{
    struct stat st;
    char path[CKPT_STEP_NAME + 8];
    if (strlen(name) > CKPT_STEP_NAME)
        return 0;
    snprintf(path, sizeof path, "%s/done", name);
    bool done = fstatat(dir, path, &st, AT_SYMLINK_NOFOLLOW) == 0;
    if (!done && fstatat(dir, name, &st, AT_SYMLINK_NOFOLLOW) < 0)
        return 0;
    int64_t age = ckpt_realtime_ns() - (st.st_ctim.tv_sec * 1000000000ll + st.st_ctim.tv_nsec);
    return age > (done ? KEEP_DONE : KEEP_PARTS) * 1000000000ll ? move_to_trash(arg, name) : 0;
}

int ckpt_writers_tidy(struct ckpt_store *s)
{
    int r = ckpt_names_each(s->dir, PLACE, tidy_step, s);
    return r == -ENOENT ? 0 : r;
}
