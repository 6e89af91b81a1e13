/* SPDX-License-Identifier: Apache-2.0 */
/* A graph as the nodes of a tree: containers as directories, numbers and the like as values, tensors as arrays whose
 * ref is their record. */
#ifndef CKPT_FORMAT_PYTORCH_NODES_H
#define CKPT_FORMAT_PYTORCH_NODES_H

#include "core/format/pytorch/graph.h"
#include "core/tree/tree.h"

struct torch_nodes {
    struct ckpt_tree *tree;
    struct ckpt_buf *records;
    bool flat; /* keys with dots are kept whole */
    /* The graph that a record TORCH_R_PIECE stands for, and (in any case) what it took to get it, in bytes; an error
     * but -ENOMEM makes it an array that cannot be read. NULL: there are none. */
    int (*piece)(void *arg, size_t record, struct torch_graph *ret, uint64_t *ret_cost, struct ckpt_err *err);
    void *arg;
    bool (*wanted)(void *arg, const char *key, size_t len); /* keys of the top; NULL: all */
    void *wanted_arg;
};

/* Everything from the graph's top on, into the tree's top. */
int ckpt_torch_nodes_add(const struct torch_nodes *n, const struct torch_graph *g, struct ckpt_err *err) CKPT_MUST_USE;
/* As an item of the tree's top. */
int ckpt_torch_nodes_add_item(const struct torch_nodes *n, const struct torch_graph *g, const char *key,
                              struct ckpt_err *err) CKPT_MUST_USE;
/* As one member of the tree's top. */
int ckpt_torch_nodes_add_under(const struct torch_nodes *n, const struct torch_graph *g, const char *key,
                               struct ckpt_err *err) CKPT_MUST_USE;

#endif
