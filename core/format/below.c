/* SPDX-License-Identifier: Apache-2.0 */
#include "core/format/below.h"

#include <stdio.h>

struct search {
    struct ckpt_backend *folder;
    const char *dir;
    unsigned level, *left; /* entries that are looked at */
};

static int find_checkpoint(struct ckpt_backend *folder, const char *dir, unsigned level, unsigned *left);

/* 1: a checkpoint, or a directory that has one in it. */
static int look_at(void *arg, const char *name, enum ckpt_ftype type)
{
    const struct search *s = arg;
    const struct ckpt_format *format;
    struct ckpt_probe probe;
    char path[4096];
    if (!*s->left || snprintf(path, sizeof path, "%s/%s", s->dir, name) >= (int)sizeof path)
        return 0;
    --*s->left;
    if (type == CKPT_FT_DIR)
        return s->level + 1 < CKPT_MAX_BELOW_LEVELS ? find_checkpoint(s->folder, path, s->level + 1, s->left) : 0;
    if (type != CKPT_FT_FILE || ckpt_probe_file(s->folder, path, false, &format, &probe) < 0)
        return 0;
    return probe.bits && !probe.weak;
}

static int find_checkpoint(struct ckpt_backend *folder, const char *dir, unsigned level, unsigned *left)
{
    const struct ckpt_format *format;
    struct ckpt_probe probe = {0};
    struct ckpt_backend *sub;
    int r = ckpt_backend_sub(folder, dir, &sub);
    if (r == 0) {
        r = ckpt_probe_dir(sub, &format, &probe);
        ckpt_backend_unref(sub);
    }
    if (r == -ENOMEM)
        return r;
    if (r == 0 && probe.bits > 1 && !probe.weak)
        return 1;
    r = ckpt_backend_list(folder, dir, look_at, &(struct search){folder, dir, level, left});
    return r == 1 || r == -ENOMEM ? r : 0;
}

int ckpt_below(struct ckpt_backend *folder, const char *dir)
{
    unsigned left = CKPT_MAX_BELOW;
    return find_checkpoint(folder, dir, 0, &left);
}
