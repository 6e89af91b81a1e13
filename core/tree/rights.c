/* SPDX-License-Identifier: Apache-2.0 */
#include "core/tree/rights.h"

#include "core/base/path.h"
#include "core/base/util.h"

#include <stdio.h>

#define FOLDER_LEVELS                                                                                                  \
    40 /* no checkpoint has so many, but chunks of arrays in a directory for each dimension come near */

struct looking {
    struct ckpt_backend *dir;
    const char *path;
    unsigned levels;
    unsigned *left;
    struct ckpt_rights *rights;
};

static int look(struct looking *at);

static int look_at_entry(void *arg, const char *name, enum ckpt_ftype type)
{
    struct looking *in = arg;
    char path[4096];
    if (type == CKPT_FT_OTHER || (in->levels == 1 && type == CKPT_FT_DIR))
        return 0;
    if (!ckpt_path_put(path, sizeof path, in->path, name))
        return -ENAMETOOLONG;
    struct looking at = {in->dir, path, in->levels - 1, in->left, in->rights};
    return look(&at);
}

static int look(struct looking *at)
{
    struct ckpt_stat st;
    if (!*at->left)
        return -E2BIG;
    --*at->left;
    int r = ckpt_backend_stat(at->dir, at->path, &st);
    bool dir = r == 0 && st.type == CKPT_FT_DIR;
    if (r == 0 && (dir || st.type == CKPT_FT_FILE)) {
        struct ckpt_rights own = ckpt_rights_of(st.mode, st.uid, st.gid, dir);
        *at->rights = ckpt_rights_join(at->rights, &own);
    }
    if (dir && at->levels)
        r = ckpt_backend_list(at->dir, at->path, look_at_entry, at);
    bool shown = r != -ENOENT && r != -EXDEV && r != -EACCES; /* else its bytes are not for anybody here */
    return shown ? r : 0;
}

int ckpt_rights_below(struct ckpt_backend *dir, const char *path, unsigned levels, struct ckpt_rights *ret)
{
    unsigned left = CKPT_RIGHTS_FILES;
    struct looking at = {dir, path, levels, &left, ret};
    int r = look(&at);
    if (r != -E2BIG)
        return r;
    *ret = (struct ckpt_rights){.mode = ret->mode & 0400, .uid = geteuid(), .gid = getegid()};
    return 0;
}

int ckpt_rights_of_folder(struct ckpt_tree *t, uint32_t node, bool whole, struct ckpt_rights *ret, struct ckpt_err *err)
{
    struct ckpt_backend *dir = ckpt_pins_dir(t->pins);
    struct ckpt_stat st;
    CKPT_GUARD(&t->rights_lock);
    if (!t->rights_known) {
        int r = ckpt_backend_stat(dir, "", &st);
        struct ckpt_rights all;
        if (r == 0) {
            all = (struct ckpt_rights){.mode = 0444, .uid = st.uid, .gid = st.gid};
            r = ckpt_rights_below(dir, "", FOLDER_LEVELS, &all);
        }
        if (r < 0)
            return ckpt_fail(err, -r, "who may read its files cannot be told: %s", strerror(-r));
        t->rights = all;
        t->rights_known = true;
    }
    *ret = t->rights;
    return 0;
}
