/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Committed steps of a store, each its manifest, as trees (docs/format.md). The checkpoint's directory is the
 * .ckptstore of a root, its name that of the manifest: "steps/7.json". No probe finds them: whoever lists a root knows
 * its store.
 */
#ifndef CKPT_FORMAT_NATIVE_H
#define CKPT_FORMAT_NATIVE_H

#include "core/format/format.h"
#include "core/object/manifest.h"

extern const struct ckpt_format ckpt_store_format;

/* What the manifest says of a node of such a tree; clear it. */
int ckpt_store_tree_record(struct ckpt_tree *tree, uint32_t node, struct ckpt_manifest_node *ret,
                           struct ckpt_err *err) CKPT_MUST_USE;
/* The id of the tree's manifest, by which one commit of a step is told from another. */
const char *ckpt_store_tree_id(const struct ckpt_tree *tree);
/* The manifest itself, also when the step has been replaced or deleted since; unref it. */
int ckpt_store_tree_manifest(struct ckpt_tree *tree, struct ckpt_file **ret, struct ckpt_err *err) CKPT_MUST_USE;

#endif
