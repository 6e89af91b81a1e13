/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Private to core/source: a committed step that is being removed, name by name. rm -r of a large step should not copy
 * it first, and must work on a full disk. So a removal is only a note, here in memory, until the step's own directory
 * goes, which deletes the step at once. If the process ends before that, nothing was removed. Any other change of the
 * step, or a while without another removal, makes the staged copy, without what was removed (ckpt_source_copy_step).
 */
#ifndef CKPT_SOURCE_REMOVAL_H
#define CKPT_SOURCE_REMOVAL_H

#include "core/source/source.h"

/* All under the source's lock. */
struct removal {
    unsigned refs;                  /* the node's, and that of who makes the copy */
    struct ckpt_stage_removed what; /* a tree's nodes have the numbers of its manifest's */
    uint32_t count;                 /* of them */
    pid_t pid;                      /* who did the last */
    int64_t changed_ns;             /* CLOCK_MONOTONIC */
    int64_t again_ns;               /* no copy is tried before */
};

/* n->removal, if there is none; the node stays known as long as it has one. Under the source's lock. */
int ckpt_removal_begin(struct ckpt_source *src, struct node *n, uint32_t count) CKPT_MUST_USE;
/* Under the source's lock. */
void ckpt_removal_unref(struct removal *r);

/* --- without the lock --- */

bool ckpt_source_is_removed(struct ckpt_source *src, struct node *n, uint32_t node);
/* Is nothing left in a directory? */
bool ckpt_source_is_emptied(struct ckpt_source *src, struct node *n, const struct ckpt_tree *tree, uint32_t dir);
/* A directory's time is that of the last removal, if something was removed from it. */
void ckpt_source_removal_times(struct ckpt_source *src, struct node *n, uint32_t dir, struct ckpt_attr *attr);

#endif
