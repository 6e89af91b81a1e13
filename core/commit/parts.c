/* SPDX-License-Identifier: Apache-2.0 */
/* What all the parts of a commit under way add to: its temporary files, and the table of the objects that leaves share.
 */
#include "core/base/grow.h"
#include "core/commit/private.h"

#include "core/io/disk.h"

#include <fcntl.h>

/* A temporary file below staging/ID. One of that name may be a link to something that counts, so it goes, and is not
 * emptied. */
int ckpt_commit_temporary(struct commit *c, const char *name, mode_t mode)
{
    int r = ckpt_disk_open(c->in->work, name, O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW, mode);
    if (r != -EEXIST)
        return r;
    r = ckpt_disk_unlink(c->in->work, name, 0);
    return r < 0 ? r : ckpt_disk_open(c->in->work, name, O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW, mode);
}

int ckpt_commit_object(struct commit *c, const uint8_t sha256[CKPT_SHA256], uint32_t *ret)
{
    if (c->last_object < c->object_count && !memcmp(c->objects[c->last_object].sha256, sha256, CKPT_SHA256)) {
        *ret = c->last_object;
        return 0;
    }
    uint32_t i = 0;
    while (i < c->object_count && memcmp(c->objects[i].sha256, sha256, CKPT_SHA256))
        i++;
    if (!CKPT_ROOM_FOR_ONE(c->objects, i, c->object_room))
        return -ENOMEM;
    if (i == c->object_count) {
        c->objects[i] = (struct commit_object){.mode = OBJECT_MODE};
        memcpy(c->objects[i].sha256, sha256, CKPT_SHA256);
        c->object_count++;
    }
    *ret = c->last_object = i;
    return 0;
}
