/* SPDX-License-Identifier: Apache-2.0 */
/* Is a staged file a reference, and to what? The attribute decides (bytes.c); it is read once. */
#include "core/stage/private.h"

/* With its content locked. */
void ckpt_stage_set_shares(struct stage_inode *n, const struct ckpt_ref *ref)
{
    CKPT_GUARD(&n->step->set->lock);
    n->shares = *ref;
    atomic_store(&n->shared, 1);
}

int ckpt_stage_shares(struct stage_inode *n, struct ckpt_ref *ret)
{
    int known = atomic_load(&n->shared);
    if (known < 0) {
        struct ckpt_ref ref;
        known = ckpt_ref_of(n->fd, &ref);
        if (known < 0)
            return known;
        if (known)
            ckpt_stage_set_shares(n, &ref);
        else
            atomic_store(&n->shared, 0);
    }
    if (known && ret)
        *ret = n->shares;
    return known;
}
