/* SPDX-License-Identifier: Apache-2.0 */
#include "core/io/follow.h"

#include "core/base/path.h"
#include "core/base/util.h"

#include <fcntl.h>
#include <sys/stat.h>

#define MAX_LINKS 40 /* as the kernel has it */
#define MAX_NAMES 512
#define TEXT      4096

int ckpt_path_of_fd(int fd, char *ret, size_t size)
{
    char link[CKPT_FD_PATH];
    ssize_t n = readlink(ckpt_fd_path(link, fd), ret, size);
    if (n < 0)
        return -errno;
    if ((size_t)n >= size)
        return -ENAMETOOLONG;
    ret[n] = 0;
    return 0;
}

struct walk {
    int at; /* O_PATH */
    const char *never;
    unsigned links, dirs;
};

/* By the kernel's own name of it: asking a mount of ours would ask the very process that looks. */
static bool is_never(const struct walk *w, int fd)
{
    char path[TEXT];
    if (!w->never)
        return false;
    size_t n = strlen(w->never);
    if (ckpt_path_of_fd(fd, path, sizeof path) < 0)
        return true;
    return !strncmp(path, w->never, n) && (!path[n] || path[n] == '/');
}

static int walk_names(struct walk *w, const char *path);

/* To where a link leads. */
static int walk_link(struct walk *w, int link)
{
    char target[TEXT];
    ssize_t n = readlinkat(link, "", target, sizeof target - 1);
    if (n < 0)
        return -errno;
    target[n] = 0;
    if (++w->links > MAX_LINKS)
        return -ELOOP;
    if (*target == '/') {
        int top = open("/", O_PATH | O_DIRECTORY | O_CLOEXEC);
        if (top < 0)
            return -errno;
        close(w->at);
        w->at = top;
    }
    return walk_names(w, target);
}

/* One name; *ret_link: it was a link's. */
static int walk_name(struct walk *w, const char *name, bool *ret_link)
{
    struct stat st;
    CKPT_AUTOFD int fd = openat(w->at, name, O_PATH | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0)
        return -errno;
    if (is_never(w, fd))
        return -ENOENT;
    if (fstat(fd, &st) < 0)
        return -errno;
    *ret_link = S_ISLNK(st.st_mode);
    if (*ret_link)
        return walk_link(w, fd);
    close(w->at);
    w->at = fd;
    fd = -1;
    return 0;
}

/* What a link says; it has no more than MAX_LINKS others in it, so that this is as deep as it gets. */
static int walk_names(struct walk *w, const char *path)
{
    char name[256];
    bool link;
    int r = 0;
    for (size_t n; r == 0 && *(path += strspn(path, "/")); path += n) {
        n = strcspn(path, "/");
        if (n >= sizeof name)
            return -ENAMETOOLONG;
        memcpy(name, path, n);
        name[n] = 0;
        r = walk_name(w, name, &link);
    }
    return r;
}

struct place {
    dev_t dev;
    ino_t ino;
};

/* Is it a directory that the path has come through? */
static bool is_known(const struct place *places, unsigned count, const struct stat *st)
{
    for (unsigned i = 0; i < count; i++)
        if (places[i].dev == st->st_dev && places[i].ino == st->st_ino)
            return true;
    return false;
}

/* The names of the path itself, each to where it leads. */
static int walk_path(struct walk *w, const char *path)
{
    char name[256];
    struct place places[MAX_NAMES];
    struct stat st;
    bool link = false;
    unsigned count = 0;
    size_t n;
    for (;; path += n) {
        if (fstat(w->at, &st) < 0)
            return -errno;
        bool linked_dir = link && S_ISDIR(st.st_mode);
        if (linked_dir && (is_known(places, count, &st) || ++w->dirs > CKPT_FOLLOW_DIRS))
            return -ELOOP;
        path += strspn(path, "/");
        if (!*path)
            return 0;
        n = strcspn(path, "/");
        if (n >= sizeof name || count == MAX_NAMES)
            return -ENAMETOOLONG;
        places[count++] = (struct place){st.st_dev, st.st_ino};
        memcpy(name, path, n);
        name[n] = 0;
        int r = walk_name(w, name, &link);
        if (r < 0)
            return r;
    }
}

int ckpt_follow(int dir, const char *path, int flags, const char *never)
{
    struct walk w = {.at = openat(dir, ".", O_PATH | O_DIRECTORY | O_CLOEXEC), .never = never};
    if (w.at < 0)
        return -errno;
    char again[CKPT_FD_PATH];
    int r = walk_path(&w, path);
    if (r == 0 && !(flags & O_PATH)) { /* the very thing that was found, whatever has its name now */
        struct stat st;
        bool usual = fstat(w.at, &st) == 0 && (S_ISREG(st.st_mode) || S_ISDIR(st.st_mode));
        r = usual ? open(ckpt_fd_path(again, w.at), (flags & ~O_NOFOLLOW) | O_CLOEXEC) : -1;
        if (r < 0)
            r = usual ? -errno : -EPERM;
    } else if (r == 0) {
        struct stat st;
        bool wrong = (flags & O_DIRECTORY) && fstat(w.at, &st) == 0 && !S_ISDIR(st.st_mode);
        r = wrong ? -ENOTDIR : w.at;
    }
    if (r != w.at)
        close(w.at);
    return r;
}
