/* SPDX-License-Identifier: Apache-2.0 */
/* A folder of files for one test: made under $TMPDIR, removed at the end. Any failure ends the program. */
#ifndef CKPT_TESTS_FILES_H
#define CKPT_TESTS_FILES_H

#include "tests/unit/check.h"

#include <fcntl.h>
#include <ftw.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define FILES_TEMPLATE "/tmp/ckptfs-test-XXXXXX"

static inline void files_begin(char *top)
{
    CHECK(mkdtemp(top));
}

static inline int files_remove_one(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
    return remove(path);
}

static inline void files_end(const char *top)
{
    CHECK(nftw(top, files_remove_one, 16, FTW_DEPTH | FTW_PHYS) == 0);
}

/* The path of a name; good until the fourth call after. */
static inline const char *file_path(const char *top, const char *name)
{
    static char paths[4][1024];
    static unsigned next;
    char *path = paths[next++ % 4];
    snprintf(path, sizeof paths[0], "%s/%s", top, name);
    return path;
}

/* The folders that a name lies in. */
static inline void file_parents(const char *top, const char *name)
{
    char path[1024];
    snprintf(path, sizeof path, "%s/%s", top, name);
    for (char *p = path + strlen(top) + 1; (p = strchr(p, '/')); p++) {
        *p = 0;
        CHECK(mkdir(path, 0755) == 0 || access(path, F_OK) == 0);
        *p = '/';
    }
}

static inline void file_write_bytes(const char *top, const char *name, const void *data, size_t len)
{
    file_parents(top, name);
    FILE *f = fopen(file_path(top, name), "wb");
    CHECK(f && fwrite(data, 1, len, f) == len && fclose(f) == 0);
}

static inline void file_write(const char *top, const char *name, const char *text)
{
    file_write_bytes(top, name, text, strlen(text));
}

static inline void file_link(const char *top, const char *name, const char *to)
{
    file_parents(top, name);
    CHECK(symlink(to, file_path(top, name)) == 0);
}

static inline void file_move(const char *top, const char *from, const char *to)
{
    CHECK(rename(file_path(top, from), file_path(top, to)) == 0);
}

static inline void file_remove(const char *top, const char *name)
{
    CHECK(remove(file_path(top, name)) == 0);
}

/* The time of last change, in seconds from now. */
static inline void file_touch(const char *top, const char *name, long seconds)
{
    struct timespec ts[2];
    clock_gettime(CLOCK_REALTIME, &ts[0]);
    ts[0].tv_sec += seconds;
    ts[1] = ts[0];
    CHECK(utimensat(AT_FDCWD, file_path(top, name), ts, AT_SYMLINK_NOFOLLOW) == 0);
}

#endif
