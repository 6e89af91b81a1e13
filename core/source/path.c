/* SPDX-License-Identifier: Apache-2.0 */
/* Paths: names one after the other, with links. */
#include "core/base/util.h"
#include "core/source/source.h"

#include <stdio.h>

/* Name by name. Links are resolved here, at most as many. */
static int walk_from(struct ckpt_source *src, uint64_t from, const char *path, int links, struct ckpt_attr *ret,
                     struct ckpt_err *err)
{
    uint64_t chain[512];
    unsigned depth = 0;
    struct ckpt_attr at;
    int r = ckpt_getattr(src, from, &at, err);
    CKPT_AUTOFREE char *rest = strdup(path);
    if (r == 0 && !rest)
        r = -ENOMEM;
    for (char *p = rest; r == 0;) {
        p += strspn(p, "/");
        if (!*p)
            break;
        size_t n = strcspn(p, "/");
        char name[256], target[4096];
        if (n >= sizeof name) {
            r = ckpt_fail(err, ENAMETOOLONG, "a name is longer than 255 bytes");
            break;
        }
        memcpy(name, p, n);
        name[n] = 0;
        p += n;
        if (!strcmp(name, "."))
            continue;
        if (!strcmp(name, "..")) {
            if (depth) {
                depth--;
                ckpt_forget(src, chain[depth], 1);
                r = ckpt_getattr(src, depth ? chain[depth - 1] : from, &at, err);
            }
            continue;
        }
        uint64_t parent = depth ? chain[depth - 1] : from;
        r = ckpt_lookup(src, parent, name, &at, err);
        if (r < 0)
            break;
        if (at.type == CKPT_LINK) {
            r = links ? ckpt_readlink(src, at.id, target, sizeof target) : ckpt_fail(err, ELOOP, "too many links");
            ckpt_forget(src, at.id, 1);
            if (r < 0)
                break;
            /* What is left of the path follows the link's target. */
            char *joined = malloc(strlen(target) + strlen(p) + 2);
            if (!joined) {
                r = -ENOMEM;
                break;
            }
            sprintf(joined, "%s/%s", target, p);
            free(rest);
            rest = p = joined;
            links--;
            r = ckpt_getattr(src, parent, &at, err);
        } else if (depth == sizeof chain / sizeof *chain) {
            ckpt_forget(src, at.id, 1);
            r = ckpt_fail(err, ENAMETOOLONG, "the path is nested too deeply");
        } else
            chain[depth++] = at.id;
    }
    if (r == 0 && !depth && from != CKPT_ROOT)
        r = ckpt_fail(err, EINVAL, "an empty path");
    for (unsigned i = 0; i + (r == 0) < depth; i++)
        ckpt_forget(src, chain[i], 1);
    if (r == 0)
        *ret = at;
    return r;
}

int ckpt_walk(struct ckpt_source *src, uint64_t from, const char *path, struct ckpt_attr *ret, struct ckpt_err *err)
{
    return walk_from(src, from, path, 40, ret, err);
}
