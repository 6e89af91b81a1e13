/* SPDX-License-Identifier: Apache-2.0 */
#include "fs/fs.h"

#include "core/base/util.h"

#include <limits.h>
#include <sys/stat.h>

/* The directory that a link lies in, resolved, and the link's name. */
static char *path_of_link(const char *path)
{
    const char *slash = strrchr(path, '/'), *name = slash ? slash + 1 : path;
    CKPT_AUTOFREE char *dir = slash ? strndup(path, (size_t)(slash - path) + (slash == path)) : strdup(".");
    CKPT_AUTOFREE char *real = dir ? realpath(dir, NULL) : NULL;
    char *ret = real ? malloc(strlen(real) + strlen(name) + 2) : NULL;
    if (ret)
        sprintf(ret, "%s/%s", real[1] ? real : "", name);
    return ret;
}

char *fs_source_path(const char *path)
{
    struct stat st, to;
    bool is_link = lstat(path, &st) == 0 && S_ISLNK(st.st_mode);
    bool to_file = is_link && stat(path, &to) == 0 && S_ISREG(to.st_mode);
    return to_file ? path_of_link(path) : realpath(path, NULL);
}
