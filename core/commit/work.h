/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A staging directory for a commit that is made in one go. It has no name, so nobody takes it over if its owner dies:
 * gc and the next mount remove it. One thread.
 */
#ifndef CKPT_COMMIT_WORK_H
#define CKPT_COMMIT_WORK_H

#include "core/store/store.h"

struct ckpt_work {
    struct ckpt_store *store;
    int dir, tree, hold, lock; /* staging/ID, what is in it; for struct ckpt_commit */
    char id[33];
};

int ckpt_work_begin(struct ckpt_store *s, struct ckpt_work *ret, struct ckpt_err *err) CKPT_MUST_USE;
/* With all that is in it. */
void ckpt_work_end(struct ckpt_work *w);

#endif
