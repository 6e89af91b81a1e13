/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A store is there when its store.json is, and that is written last: an init that was cut short is finished by the next
 * one. It is linked to its name, so that of two inits at once the first one's id stays.
 */
#include "core/store/internal.h"

#include "core/base/path.h"
#include "core/base/util.h"
#include "core/io/disk.h"

#include <fcntl.h>
#include <stdio.h>
#include <sys/file.h>
#include <sys/stat.h>

#define DIR_MODE  0777 /* the umask decides */
#define FILE_MODE 0666

/* In the order in which they are made: a directory before what is in it. */
static const char *const directories[] = {"steps", "objects", "staging", "trash", "trash/steps", "trash/objects"};

/* --- small things --- */

struct folders {
    int (*visit)(void *arg, int dir, const char *name);
    void *arg;
};

static int visit_folder(void *arg, int dir, const char *name)
{
    const struct folders *f = arg;
    if (strlen(name) != 2 || strspn(name, "0123456789abcdef") != 2)
        return 0;
    int r = ckpt_names_each(dir, name, f->visit, f->arg);
    return r == -ENOENT || r == -ENOTDIR || r == -ELOOP ? 0 : r;
}

int ckpt_objects_each(struct ckpt_store *s, int (*visit)(void *arg, int dir, const char *name), void *arg)
{
    struct folders f = {visit, arg};
    return ckpt_names_each(s->dir, "objects", visit_folder, &f);
}

/* --- init --- */

/* What init makes is the root's owner's from the first on. */
static void give(const struct stat *owner, int dir, const char *name)
{
    const struct ckpt_store s = {.path = (char *)name, .uid = owner->st_uid, .gid = owner->st_gid};
    ckpt_store_give(&s, dir, name);
}

static int write_new(int dir, const char *name, const struct ckpt_buf *text)
{
    CKPT_AUTOFD int fd = ckpt_disk_open(dir, name, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, FILE_MODE);
    if (fd < 0)
        return fd;
    int r = ckpt_disk_write(fd, text->data, text->len, 0);
    return r < 0 ? r : ckpt_disk_fsync(fd);
}

static int add_config(int dir, const struct stat *owner)
{
    char temporary[64], random[9];
    struct ckpt_buf text = CKPT_BUF_INIT;
    ckpt_random_hex(random, 4);
    snprintf(temporary, sizeof temporary, "store.json.%s.tmp", random);
    int r = ckpt_store_config_new(&text);
    if (r == 0)
        r = write_new(dir, temporary, &text);
    if (r == 0)
        give(owner, dir, temporary);
    if (r == 0)
        r = ckpt_disk_link(dir, temporary, dir, "store.json");
    if (r == -EEXIST)
        r = 0;
    int unlinked = ckpt_disk_unlink(dir, temporary, 0);
    if (r == 0 && unlinked < 0)
        r = unlinked;
    if (r == 0)
        r = ckpt_disk_fsync(dir);
    ckpt_buf_clear(&text);
    return r;
}

/* The directories, and the lock. What is missing of them is no harm done: tools that copy trees may leave empty ones
 * out. */
static int add_directories(int dir, const struct stat *owner)
{
    for (size_t i = 0; i < sizeof directories / sizeof *directories; i++) {
        bool made = faccessat(dir, directories[i], F_OK, 0) < 0;
        int r = !made ? 0 : ckpt_disk_mkdir(dir, directories[i], DIR_MODE);
        if (r < 0 && r != -EEXIST)
            return r;
        if (made && r == 0)
            give(owner, dir, directories[i]);
    }
    if (faccessat(dir, "lock", F_OK, 0) == 0 || faccessat(dir, CKPT_STORE_LOCK_2, F_OK, 0) == 0)
        return 0;
    CKPT_AUTOFD int lock = ckpt_disk_open(dir, "lock", O_RDWR | O_CREAT | O_NOFOLLOW | O_CLOEXEC, FILE_MODE);
    if (lock >= 0)
        give(owner, dir, "lock");
    return lock < 0 ? lock : 0;
}

static int make_store(int root)
{
    struct stat owner;
    if (fstat(root, &owner) < 0)
        return -errno;
    int r = ckpt_disk_mkdir(root, CKPT_STORE_DIR, DIR_MODE);
    if (r < 0 && r != -EEXIST)
        return r;
    if (r == 0)
        give(&owner, root, CKPT_STORE_DIR);
    CKPT_AUTOFD int dir = openat(root, CKPT_STORE_DIR, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (dir < 0)
        return -errno;
    r = add_directories(dir, &owner);
    if (r == 0)
        r = ckpt_disk_fsync_dir(dir, "trash");
    if (r == 0)
        r = ckpt_disk_fsync(dir);
    if (r == 0)
        r = add_config(dir, &owner);
    return r < 0 ? r : ckpt_disk_fsync(root);
}

int ckpt_store_init(const char *root, struct ckpt_err *err)
{
    CKPT_AUTOFD int fd = open(root, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0)
        return ckpt_fail(err, errno, "%s: %s", root, strerror(errno));
    if (faccessat(fd, CKPT_STORE_DIR "/store.json", F_OK, 0) == 0)
        return 0;
    int r = make_store(fd);
    return r < 0 ? ckpt_fail(err, -r, "%s/%s cannot be made: %s", root, CKPT_STORE_DIR, strerror(-r)) : 0;
}

int ckpt_store_create(const char *root, bool *ret_created, struct ckpt_err *err)
{
    struct stat st;
    CKPT_AUTOFREE char *config = NULL;
    if (asprintf(&config, "%s/" CKPT_STORE_DIR "/store.json", root) < 0) {
        config = NULL;
        return ckpt_no_memory(err);
    }
    bool was_there = stat(config, &st) == 0;
    if (stat(root, &st) < 0 && errno == ENOENT) {
        int r = ckpt_disk_mkdir(AT_FDCWD, root, DIR_MODE);
        if (r < 0)
            return ckpt_fail(err, -r, "%s: %s", root, strerror(-r));
    }
    int r = ckpt_store_init(root, err);
    if (r == 0)
        *ret_created = !was_there;
    return r;
}

/* --- open --- */

void ckpt_store_close(struct ckpt_store *s)
{
    if (!s)
        return;
    const int fds[] = {s->root, s->dir, s->steps, s->objects, s->staging, s->trash};
    for (size_t i = 0; i < sizeof fds / sizeof *fds; i++)
        if (fds[i] >= 0)
            close(fds[i]);
    if (s->files)
        ckpt_backend_unref(s->files);
    pthread_mutex_destroy(&s->lock);
    free(s->path);
    free(s);
}

static int open_directories(struct ckpt_store *s)
{
    static const int flags = O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC;
    struct {
        const char *name;
        int *fd;
    } parts[] = {{"steps", &s->steps}, {"objects", &s->objects}, {"staging", &s->staging}, {"trash", &s->trash}};
    int r = add_directories(s->dir, &(struct stat){.st_uid = s->uid, .st_gid = s->gid});
    for (size_t i = 0; i < sizeof parts / sizeof *parts && r == 0; i++) {
        *parts[i].fd = openat(s->dir, parts[i].name, flags);
        r = *parts[i].fd < 0 ? -errno : 0;
    }
    return r;
}

/* Reading goes by the descriptor, too: whatever the root is called by then. */
static int open_files(struct ckpt_store *s, struct ckpt_err *err)
{
    char path[64];
    ckpt_fd_path(path, s->dir);
    if (ckpt_backend_open_posix(path, &s->files, NULL) == 0)
        return 0;
    CKPT_AUTOFREE char *name = NULL; /* no /proc here */
    if (asprintf(&name, "%s/%s", s->path, CKPT_STORE_DIR) < 0) {
        name = NULL;
        return ckpt_no_memory(err);
    }
    return ckpt_backend_open_posix(name, &s->files, err);
}

static int open_all(struct ckpt_store *s, struct ckpt_err *err)
{
    struct ckpt_store_config config;
    struct stat st;
    s->root = open(s->path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (s->root < 0 || fstat(s->root, &st) < 0)
        return ckpt_fail(err, errno, "%s: %s", s->path, strerror(errno));
    s->uid = st.st_uid;
    s->gid = st.st_gid;
    s->dir = openat(s->root, CKPT_STORE_DIR, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (s->dir < 0 && errno == ENOENT)
        return ckpt_fail(err, ENOENT, "%s is not a native root: it has no %s; 'ckptfs init %s' makes it one", s->path,
                         CKPT_STORE_DIR, s->path);
    if (s->dir < 0)
        return ckpt_fail(err, errno, "%s/%s: %s", s->path, CKPT_STORE_DIR, strerror(errno));
    int r = open_files(s, err);
    if (r == 0)
        r = ckpt_store_config_read(s, &config, err);
    if (r < 0)
        return r;
    r = open_directories(s);
    return r < 0 ? ckpt_fail(err, -r, "%s/%s: its directories cannot be opened: %s", s->path, CKPT_STORE_DIR,
                             strerror(-r))
                 : 0;
}

int ckpt_store_open(const char *root, struct ckpt_store **ret, struct ckpt_err *err)
{
    struct ckpt_store *s = calloc(1, sizeof *s);
    if (!s)
        return ckpt_no_memory(err);
    s->root = s->dir = s->steps = s->objects = s->staging = s->trash = -1;
    s->trash_keep = CKPT_TRASH_KEEP;
    pthread_mutex_init(&s->lock, NULL);
    s->path = strdup(root);
    int r = s->path ? open_all(s, err) : ckpt_no_memory(err);
    if (r < 0) {
        ckpt_store_close(s);
        return r;
    }
    *ret = s;
    return 0;
}

const char *ckpt_store_id(const struct ckpt_store *s)
{
    return s->config.id;
}

void ckpt_store_set_trash_keep(struct ckpt_store *s, unsigned seconds)
{
    s->trash_keep = seconds;
}
