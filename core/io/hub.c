/* SPDX-License-Identifier: Apache-2.0 */
#include "core/io/hub.h"

#include "core/base/util.h"

static bool is_repository(const char *name, size_t len)
{
    static const char *const kinds[] = {"models--", "datasets--", "spaces--"};
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++)
        if (len > strlen(kinds[i]) && !strncmp(name, kinds[i], strlen(kinds[i])))
            return true;
    return false;
}

static bool is_snapshots(const char *name)
{
    static const char snapshots[] = "snapshots";
    size_t n = strlen(snapshots);
    return !strncmp(name, snapshots, n) && (!name[n] || name[n] == '/');
}

size_t ckpt_hub_repository(const char *path)
{
    size_t found = 0;
    for (const char *name = path; (name = strchr(name, '/'));) {
        size_t len = strcspn(++name, "/");
        if (name[len] && is_repository(name, len) && is_snapshots(name + len + 1))
            found = (size_t)(name + len - path);
    }
    return found;
}

const char *ckpt_hub_blob(const char *dir, const char *target)
{
    static const char up[] = "../", blobs[] = "blobs/";
    size_t repository = ckpt_hub_repository(dir);
    unsigned levels = 0;
    for (const char *p = dir + repository; repository && (p = strchr(p, '/')); p++)
        levels++;
    if (levels < 2) /* it is in no snapshot */
        return NULL;
    for (; levels && !strncmp(target, up, strlen(up)); levels--)
        target += strlen(up);
    if (levels || strncmp(target, blobs, strlen(blobs)) != 0)
        return NULL;
    target += strlen(blobs);
    bool is_name = *target && *target != '.' && !strchr(target, '/');
    return is_name ? target : NULL;
}
