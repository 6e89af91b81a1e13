/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What else is in the folder of a checkpoint: files as blobs under their own names, and directories with them, in the
 * order of their names, since the same folder must make the same tree. Links are followed to files, where they stay
 * inside of the source.
 */
#ifndef CKPT_FORMAT_BESIDE_H
#define CKPT_FORMAT_BESIDE_H

#include "core/format/format.h"

#define CKPT_MAX_BESIDE        65536 /* files and directories; more are left out */
#define CKPT_MAX_BESIDE_LEVELS 64

struct ckpt_beside {
    struct ckpt_tree *tree;
    bool (*is_own)(void *arg, const char *name); /* a file of the format itself, right in the folder: it is not shown */
    void *arg;
    uint8_t mark;         /* of the blobs' nodes, whose ref is their path in the tree's strings */
    ckpt_below_fn *below; /* a directory right in the folder that has a checkpoint in it is a node with CKPT_BELOW_MARK;
                             NULL: it is one with blobs */
};

int ckpt_add_beside(const struct ckpt_beside *b, struct ckpt_err *err) CKPT_MUST_USE;

#endif
