/* SPDX-License-Identifier: Apache-2.0 */
/* The file .metadata of a distributed checkpoint: which leaves there are, where in the tree, and in which files their
 * pieces lie. */
#ifndef CKPT_FORMAT_PYTORCH_METADATA_H
#define CKPT_FORMAT_PYTORCH_METADATA_H

#include "core/format/pytorch/graph.h"
#include "core/tree/tree.h"

/*
 * A graph (of the pickle, which is malloced and taken over in any case) whose top is the checkpoint's tree: dicts and
 * lists, and records of sharded tensors and of pieces as its leaves. Paths of files go to the strings of `tree`.
 */
int ckpt_torch_metadata_load(uint8_t *pickle, size_t len, struct ckpt_tree *tree, struct ckpt_buf *records,
                             struct torch_graph *ret, struct ckpt_err *err) CKPT_MUST_USE;

#endif
