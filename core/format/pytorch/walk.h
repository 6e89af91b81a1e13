/* SPDX-License-Identifier: Apache-2.0 */
/* Private to nodes.c and node.c: a walk through a graph that adds the nodes of a tree. One thread. */
#ifndef CKPT_FORMAT_PYTORCH_WALK_H
#define CKPT_FORMAT_PYTORCH_WALK_H

#include "core/format/pytorch/nodes.h"
#include "core/format/pytorch/record.h"

/* An object of the graph. */
struct torch_seen {
    uint32_t node;  /* 1 + that of its first place; 0: it was not met yet */
    uint32_t spent; /* to show what is in it, once it was shown */
};

/* What is being walked. */
struct torch_inside {
    struct torch_seen *seen; /* by the number of the object */
    torch_value path[CKPT_MAX_DEPTH + 2];
    unsigned depth;
};

struct torch_nodes_walk {
    const struct torch_nodes *n;
    uint64_t left; /* nodes that may be added, with their text: a small pickle may put one long string in a million
                      places */
    uint64_t again_left, pieces_left;
    struct torch_inside *in;
    struct ckpt_err *err;
};

/* Where a node goes. */
struct torch_place {
    uint32_t parent;
    const char *key;
    size_t len;
    bool index, dotted;
};

#define TORCH_PER_NODE 256 /* bytes of text that count as one more node */

int ckpt_torch_node_memory(struct torch_nodes_walk *w);
/* -EUCLEAN: there are too many. */
int ckpt_torch_node_spend(struct torch_nodes_walk *w, uint64_t nodes) CKPT_MUST_USE;
int ckpt_torch_node_add(struct torch_nodes_walk *w, const struct torch_place *p, enum ckpt_node_kind kind,
                        uint32_t *ret) CKPT_MUST_USE;
int ckpt_torch_node_record(struct torch_nodes_walk *w, const struct torch_place *p, enum ckpt_node_kind kind,
                           size_t record) CKPT_MUST_USE;
/* A string of the tree. */
int ckpt_torch_node_intern(struct torch_nodes_walk *w, const void *text, size_t len, uint32_t *ret) CKPT_MUST_USE;
/* A leaf of what is no tensor, container or object. 1: it is no value, and nothing was added. */
int ckpt_torch_node_value(struct torch_nodes_walk *w, const struct torch_graph *g, torch_value v,
                          const struct torch_place *p) CKPT_MUST_USE;
/* An object that is an array, a scalar or a type of NumPy. 1: it is none, and nothing was added. */
int ckpt_torch_node_numpy(struct torch_nodes_walk *w, const struct torch_graph *g, torch_value v,
                          const struct torch_place *p) CKPT_MUST_USE;

#endif
