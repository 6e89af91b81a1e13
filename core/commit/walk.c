/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The staged tree in an order that depends on names alone, so that two walks meet the same things in the same order.
 * The pieces of an array stand where the array's own name would.
 */
#include "core/base/grow.h"
#include "core/commit/private.h"

#include "core/store/internal.h"

#include <fcntl.h>
#include <stdio.h>
#include <sys/xattr.h>

#define NAME_ROOM  256 /* bytes of a name, with its NUL */
#define SHOWN_ROOM 200

/* The names in one directory. */
struct entry {
    uint32_t at;   /* in text, NUL-terminated */
    uint32_t stem; /* of a piece X@SLICE.npy: the length of X, else 0 */
    bool whole;    /* it is named like a piece, and is none */
};
struct names {
    struct ckpt_buf text;
    struct entry *entries;
    size_t count, room;
    bool numbered; /* names that are numbers stand in the order of these */
    bool apart;    /* pieces are files like others */
};

static void names_clear(struct names *n)
{
    ckpt_buf_clear(&n->text);
    free(n->entries);
}

static const char *entry_name(const struct names *n, const struct entry *e)
{
    return (const char *)n->text.data + e->at;
}

static int add_name(void *arg, int dir, const char *name)
{
    struct names *n = arg;
    struct stat st;
    size_t stem = ckpt_pieces_stem(name);
    if (stem && (fstatat(dir, name, &st, AT_SYMLINK_NOFOLLOW) < 0 || !S_ISREG(st.st_mode)))
        stem = 0;
    bool whole = stem && ckpt_told_whole(dir, name);
    if (whole || n->apart)
        stem = 0;
    if (!CKPT_ROOM_FOR_ONE(n->entries, n->count, n->room))
        return -ENOMEM;
    n->entries[n->count++] = (struct entry){(uint32_t)n->text.len, (uint32_t)stem, whole};
    ckpt_buf_add(&n->text, name, strlen(name) + 1);
    return ckpt_buf_error(&n->text);
}

/* --- their order --- */

/* The name under which an entry is listed. */
static const char *listed(const struct names *n, const struct entry *e, char buf[NAME_ROOM])
{
    const char *name = entry_name(n, e);
    if (!e->stem)
        return name;
    snprintf(buf, NAME_ROOM, "%.*s.npy", (int)e->stem, name);
    return buf;
}

/* The digits of "12", "12.npy" or "12.json" without the zeros that lead; 0: it is no number. */
static size_t number_of(const char **name)
{
    size_t n = strspn(*name, "0123456789");
    const char *rest = *name + n;
    if (!n || (*rest && strcmp(rest, ".npy") && strcmp(rest, ".json")))
        return 0;
    while (n > 1 && **name == '0') {
        ++*name;
        n--;
    }
    return n;
}

/* Numbers come first. */
static int compare_numbers(const char *a, const char *b)
{
    size_t n = number_of(&a), m = number_of(&b);
    if (!n || !m)
        return (n == 0) - (m == 0);
    return n != m ? (n > m) - (n < m) : memcmp(a, b, n);
}

static int compare(const void *x, const void *y, void *arg)
{
    const struct names *n = arg;
    const struct entry *a = x, *b = y;
    char room[2][NAME_ROOM];
    const char *p = listed(n, a, room[0]), *q = listed(n, b, room[1]);
    int d = n->numbered ? compare_numbers(p, q) : 0;
    if (d == 0)
        d = strcmp(p, q);
    if (d == 0) /* a file of the array's own name before its pieces */
        d = (a->stem > 0) - (b->stem > 0);
    return d ? d : strcmp(entry_name(n, a), entry_name(n, b));
}

static int names_read(int fd, bool numbered, bool apart, struct names *ret)
{
    *ret = (struct names){.numbered = numbered, .apart = apart, .text.max = UINT32_MAX};
    int r = ckpt_names_each(fd, ".", add_name, ret);
    if (r == 0 && ret->count)
        qsort_r(ret->entries, ret->count, sizeof *ret->entries, compare, ret);
    return r;
}

/* --- the walk --- */

struct walk {
    const struct ckpt_commit *in;
    const struct walk_visitor *v;
    struct ckpt_buf path;
    struct ckpt_err *err;
};

enum ckpt_container ckpt_walk_container(int fd)
{
    static const char *const kinds[CKPT_CONTAINERS] = {"dict", "list", "tuple", "namedtuple", "object"};
    char text[16];
    ssize_t n = fgetxattr(fd, "user.ckpt.kind", text, sizeof text - 1);
    text[CKPT_MAX(n, 0)] = 0;
    for (int i = 0; i < CKPT_CONTAINERS; i++)
        if (!strcmp(text, kinds[i]))
            return (enum ckpt_container)i;
    return CKPT_DICT;
}

static int walk_dir(struct walk *w, int fd, uint32_t number, unsigned depth);

/* Appends a name to the path; what it was is its length before. */
static int push(struct walk *w, const char *name, size_t *ret_len)
{
    *ret_len = w->path.len;
    ckpt_buf_addc(&w->path, '/');
    ckpt_buf_add(&w->path, name, strlen(name) + 1);
    if (ckpt_buf_error(&w->path) < 0)
        return ckpt_no_memory(w->err);
    w->path.len--;
    return 0;
}

/* The path for people, its end if it is long: a message has bounds. */
static const char *shown(const struct walk *w, char room[SHOWN_ROOM])
{
    const char *path = (char *)w->path.data;
    if (w->path.len < SHOWN_ROOM)
        return path;
    snprintf(room, SHOWN_ROOM, "...%s", path + w->path.len - (SHOWN_ROOM - 4));
    return room;
}

static void pop(struct walk *w, size_t len)
{
    w->path.len = len;
    w->path.data[len] = 0;
}

static int enter_dir(struct walk *w, const struct walk_at *at, unsigned depth)
{
    uint32_t number;
    CKPT_AUTOFD int fd = openat(at->dir, at->name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0)
        return ckpt_fail(w->err, errno, "%s: %s", at->path, strerror(errno));
    int r = w->v->dir(w->v->arg, at, fd, &number, w->err);
    return r ? r : walk_dir(w, fd, number, depth + 1);
}

static int visit_one(struct walk *w, struct walk_at *at, unsigned depth)
{
    if (fstatat(at->dir, at->name, &at->st, AT_SYMLINK_NOFOLLOW) < 0)
        return ckpt_fail(w->err, errno, "%s: %s", at->path, strerror(errno));
    if (S_ISDIR(at->st.st_mode))
        return enter_dir(w, at, depth);
    if (!S_ISREG(at->st.st_mode))
        return ckpt_fail(w->err, EPERM, "%s is %s: a step holds files and directories only", at->path,
                         S_ISLNK(at->st.st_mode) ? "a symbolic link" : "a special file");
    return w->v->file(w->v->arg, at, w->err);
}

/* Entries [first, last) are the pieces of one array. */
static int visit_pieces(struct walk *w, const struct names *n, size_t first, size_t last, struct walk_at *at)
{
    CKPT_AUTOFREE const char **pieces = malloc((last - first) * sizeof *pieces);
    if (!pieces)
        return ckpt_no_memory(w->err);
    for (size_t i = first; i < last; i++)
        pieces[i - first] = entry_name(n, &n->entries[i]);
    at->pieces = pieces;
    at->piece_count = last - first;
    return w->v->pieces(w->v->arg, at, w->err);
}

/* The entry at *i, or the array whose pieces begin there; *i is then what follows. */
static int visit_next(struct walk *w, const struct names *n, size_t *i, int fd, uint32_t number, unsigned depth)
{
    char room[2][NAME_ROOM], path[SHOWN_ROOM];
    size_t first = *i, len, last = first + 1;
    struct walk_at at = {.dir = fd, .parent = number, .name = listed(n, &n->entries[first], room[0])};
    at.whole = n->entries[first].whole;
    bool pieces = n->entries[first].stem;
    while (pieces && last < n->count && n->entries[last].stem &&
           !strcmp(listed(n, &n->entries[last], room[1]), at.name))
        last++;
    *i = last;
    int r = push(w, at.name, &len);
    if (r < 0)
        return r;
    at.path = shown(w, path);
    if (depth + 1 >= CKPT_MAX_DEPTH)
        r = ckpt_fail(w->err, EOPNOTSUPP, "%s: a step is nested at most %d deep", at.path, CKPT_MAX_DEPTH - 1);
    else if (pieces && first && !n->entries[first - 1].stem && !strcmp(entry_name(n, &n->entries[first - 1]), at.name))
        r = ckpt_fail(w->err, EEXIST, "%s is there whole and in pieces (%s): remove one of them", at.path,
                      entry_name(n, &n->entries[first]));
    else
        r = pieces ? visit_pieces(w, n, first, last, &at) : visit_one(w, &at, depth);
    pop(w, len);
    return r;
}

static int walk_dir(struct walk *w, int fd, uint32_t number, unsigned depth)
{
    struct names n;
    char path[SHOWN_ROOM];
    enum ckpt_container kind = ckpt_walk_container(fd);
    int r = names_read(fd, kind == CKPT_LIST || kind == CKPT_TUPLE, w->in->put, &n);
    if (r < 0)
        r = ckpt_fail(w->err, -r, "%s: its entries cannot be read: %s", shown(w, path), strerror(-r));
    for (size_t i = 0; i < n.count && r == 0;)
        r = visit_next(w, &n, &i, fd, number, depth);
    names_clear(&n);
    return r;
}

int ckpt_walk_tree(const struct ckpt_commit *in, const struct walk_visitor *v, struct ckpt_err *err)
{
    struct walk w = {.in = in, .v = v, .err = err};
    ckpt_buf_add(&w.path, in->name, strlen(in->name) + 1);
    if (ckpt_buf_error(&w.path) < 0)
        return ckpt_no_memory(err);
    w.path.len--;
    int r = walk_dir(&w, in->tree, 0, 0);
    ckpt_buf_clear(&w.path);
    return r;
}
