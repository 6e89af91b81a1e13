/* SPDX-License-Identifier: Apache-2.0 */
/* Small things about the files of a store: their names, their text, the lock. */
#include "core/store/internal.h"

#include "core/base/util.h"
#include "core/io/disk.h"

#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/file.h>
#include <sys/random.h>
#include <sys/stat.h>

#define LOCK_MODE 0666 /* the umask decides */

void ckpt_random_hex(char *ret, size_t bytes)
{
    for (size_t i = 0; i < bytes; i++) {
        uint8_t byte;
        if (getrandom(&byte, 1, 0) != 1)
            byte = (uint8_t)(ckpt_realtime_ns() >> 8 * (i % 4));
        sprintf(ret + 2 * i, "%02x", byte);
    }
}

int ckpt_names_each(int dir, const char *path, int (*visit)(void *arg, int dir, const char *name), void *arg)
{
    int fd = openat(dir, path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    DIR *names = fd < 0 ? NULL : fdopendir(fd);
    if (!names) {
        int error = errno;
        if (fd >= 0)
            close(fd);
        return -error;
    }
    int r = 0;
    while (r == 0) {
        errno = 0;
        struct dirent *e = readdir(names);
        if (!e) {
            r = -errno;
            break;
        }
        if (strcmp(e->d_name, ".") && strcmp(e->d_name, ".."))
            r = visit(arg, fd, e->d_name);
    }
    closedir(names);
    return r;
}

int ckpt_text_at(int dir, const char *path, size_t max, char **ret, size_t *ret_len)
{
    struct stat st;
    CKPT_AUTOFD int fd = openat(dir, path, O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0 || fstat(fd, &st) < 0)
        return -errno;
    if ((uint64_t)st.st_size > max)
        return -EFBIG;
    char *text = malloc((size_t)st.st_size + 1);
    ssize_t n = text ? ckpt_pread(fd, text, (size_t)st.st_size, 0) : -ENOMEM;
    if (n < 0) {
        free(text);
        return (int)n;
    }
    text[n] = 0;
    *ret = text;
    *ret_len = (size_t)n;
    return 0;
}

static int open_there(int dir, const char *name)
{
    int fd = openat(dir, name, O_RDWR | O_NOFOLLOW | O_CLOEXEC);
    return fd < 0 ? -errno : fd;
}

/* Where both are there, or neither, it is `lock`, unless that is a directory. */
static int open_lock(struct ckpt_store *s)
{
    int fd = open_there(s->dir, "lock");
    bool is_second = fd == -EISDIR;
    if (fd == -ENOENT) { /* a copy of a store may lack an empty directory */
        fd = open_there(s->dir, CKPT_STORE_LOCK_2);
        if (fd == -EISDIR)
            fd = -ENOENT;
    } else if (is_second)
        fd = open_there(s->dir, CKPT_STORE_LOCK_2);
    if (fd != -ENOENT)
        return fd;
    const char *name = is_second ? CKPT_STORE_LOCK_2 : "lock";
    fd = ckpt_disk_open(s->dir, name, O_RDWR | O_CREAT | O_NOFOLLOW | O_CLOEXEC, LOCK_MODE);
    if (fd >= 0)
        ckpt_store_give(s, s->dir, name);
    return fd;
}

int ckpt_store_lock(struct ckpt_store *s, bool exclusive)
{
    int fd = open_lock(s);
    if (fd < 0)
        return fd;
    while (flock(fd, exclusive ? LOCK_EX : LOCK_SH) < 0)
        if (errno != EINTR) {
            int error = errno;
            close(fd);
            return -error;
        }
    return fd;
}
