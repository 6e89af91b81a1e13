/* SPDX-License-Identifier: Apache-2.0 */
/* Links of the source, and `latest` and `best` of a root. All that they have is in their node. */
#include "core/base/util.h"
#include "core/source/kinds.h"

#include <stdio.h>

int ckpt_source_link_target(struct ckpt_source *src, const char *path, char *buf, size_t len)
{
    struct ckpt_stat st;
    int r = ckpt_backend_readlink(src->backend, path, buf, len);
    if (r < 0)
        return r == -EINVAL ? -ESTALE : r; /* it is none any more */
    if (*buf == '/' || ckpt_backend_stat(src->backend, path, &st) < 0)
        return -ENOENT;
    int depth = 0;
    for (const char *p = strchr(path, '/'); p; p = strchr(p + 1, '/'))
        depth++;
    for (const char *p = buf; *p;) {
        size_t n = strcspn(p, "/");
        bool up = n == 2 && p[0] == '.' && p[1] == '.', here = !n || (n == 1 && *p == '.');
        if (up)
            depth--;
        else if (!here)
            depth++;
        if (depth < 0)
            return -ENOENT;
        p += n;
        p += strspn(p, "/");
    }
    return 0;
}

int ckpt_readlink(struct ckpt_source *src, uint64_t id, char *buf, size_t len)
{
    struct target t;
    int r = ckpt_source_target(src, id, &t, NULL);
    if (r < 0)
        return r;
    if (t.node->kind == NODE_LINK)
        snprintf(buf, len, "%s", t.node->content);
    else
        r = -EINVAL;
    ckpt_source_done(src, &t);
    return r;
}

const struct kind ckpt_kind_link = {0};
