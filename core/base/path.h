/* SPDX-License-Identifier: Apache-2.0 */
/* Paths: joined, and of descriptors. Any thread. */
#ifndef CKPT_BASE_PATH_H
#define CKPT_BASE_PATH_H

#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* "dir/name", or the other one where one is empty, in size bytes. False: it does not fit, and is cut. */
static inline bool ckpt_path_put(char *ret, size_t size, const char *dir, const char *name)
{
    const char *slash = *dir && *name ? "/" : "";
    int n = snprintf(ret, size, "%s%s%s", dir, slash, name);
    return n >= 0 && (size_t)n < size;
}

/* The same, to be freed; NULL without memory. */
static inline char *ckpt_path_join(const char *dir, const char *name)
{
    size_t size = strlen(dir) + strlen(name) + 2;
    char *path = malloc(size);
    if (path)
        ckpt_path_put(path, size, dir, name);
    return path;
}

/* What follows its last slash, or all of it. */
static inline const char *ckpt_path_name(const char *path)
{
    const char *slash = strrchr(path, '/');
    return slash ? slash + 1 : path;
}

#define CKPT_FD_PATH 32

/* The path by which a descriptor, which may be an O_PATH one, is opened again; ret. */
static inline const char *ckpt_fd_path(char ret[CKPT_FD_PATH], int fd)
{
    snprintf(ret, CKPT_FD_PATH, "/proc/self/fd/%d", fd);
    return ret;
}

#endif
