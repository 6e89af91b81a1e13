/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A tree that grows path by path, in no order, and is then made of a graph's own dicts and lists. Keys are strings and
 * integers of the graph. One thread.
 */
#ifndef CKPT_FORMAT_PYTORCH_BRANCH_H
#define CKPT_FORMAT_PYTORCH_BRANCH_H

#include "core/format/pytorch/graph.h"

struct torch_branch {
    uint32_t parent, next, first, last; /* UINT32_MAX: none */
    torch_value key;
    torch_value value; /* of a leaf; TORCH_NOTHING of others */
};

struct torch_branches {
    struct torch_branch *all; /* 0 is the root */
    uint32_t count, cap;
    uint32_t *slots; /* by parent and key: 1 + number; 0: free */
    uint32_t size;   /* of the slots, a power of two */
};

/* Every call with the same graph. -ENOMEM, and -EFBIG where the graph has no more room. */
int ckpt_torch_branches_init(struct torch_branches *b) CKPT_MUST_USE;
/* The branch of a key, made where it is not there yet (*ret_new). */
int ckpt_torch_branch_step(struct torch_branches *b, const struct torch_graph *g, uint32_t parent, torch_value key,
                           uint32_t *ret, bool *ret_new) CKPT_MUST_USE;
/* All of it. Where the keys are the integers from 0 on it is a list, in their order. */
int ckpt_torch_branches_make(struct torch_branches *b, struct torch_graph *g, torch_value *ret) CKPT_MUST_USE;
void ckpt_torch_branches_clear(struct torch_branches *b);

#endif
