/* SPDX-License-Identifier: Apache-2.0 */
#include "core/format/lfs.h"

#include "core/base/util.h"

bool ckpt_lfs_begins(const void *head, size_t len)
{
    static const char *const begins[] = {"version https://git-lfs.github.com/spec/",
                                         "version https://hawser.github.com/spec/"};
    for (size_t i = 0; i < sizeof begins / sizeof *begins; i++)
        if (len >= strlen(begins[i]) && !memcmp(head, begins[i], strlen(begins[i])))
            return true;
    return false;
}

bool ckpt_lfs_is_pointer(struct ckpt_file *file)
{
    char head[CKPT_LFS_HEAD];
    if (file->st.size >= CKPT_LFS_MOST)
        return false;
    ssize_t n = ckpt_file_read(file, head, sizeof head, 0);
    return n > 0 && ckpt_lfs_begins(head, (size_t)n);
}
