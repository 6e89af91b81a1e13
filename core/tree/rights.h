/* SPDX-License-Identifier: Apache-2.0 */
/* Who may read the files that a checkpoint of the source is made of. */
#ifndef CKPT_TREE_RIGHTS_H
#define CKPT_TREE_RIGHTS_H

#include "core/tree/tree.h"

#define CKPT_RIGHTS_FILES                                                                                              \
    (1u << 20) /* that are looked at; of a checkpoint with more it is this process's own user alone */

/* Joined with *ret: a file, or a directory and, so many levels down, the files in it and the directories that lead
 * to them. What has gone meanwhile counts for nothing. */
int ckpt_rights_below(struct ckpt_backend *dir, const char *path, unsigned levels,
                      struct ckpt_rights *ret) CKPT_MUST_USE;
/* As struct ckpt_tree_ops's, for a tree whose leaves may be in any of the files of its folder: all of these, looked at
 * once. */
int ckpt_rights_of_folder(struct ckpt_tree *t, uint32_t node, bool whole, struct ckpt_rights *ret,
                          struct ckpt_err *err) CKPT_MUST_USE;

#endif
