/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What formats have in common that are lists of tensors, each with a name that is joined with dots: whether a name
 * comes twice, the nodes of the tree, and layouts that many tensors share.
 */
#ifndef CKPT_FORMAT_NAMED_H
#define CKPT_FORMAT_NAMED_H

#include "core/tree/tree.h"

/* Names, by 64 bits of hash alone: names that share one are taken for equal. Of sets of a million names one in 10^7 is
 * refused for that. */
struct ckpt_name_set {
    uint64_t *hashes;
    size_t count, cap;
};

uint64_t ckpt_name_hash(const char *name, size_t len);
int ckpt_name_set_add(struct ckpt_name_set *s, uint64_t hash);
/* No more are added afterwards: the hashes are sorted. */
bool ckpt_name_set_has_twice(struct ckpt_name_set *s);
void ckpt_name_set_sort(struct ckpt_name_set *s);
/* Of a sorted one. */
bool ckpt_name_set_has(const struct ckpt_name_set *s, uint64_t hash);
void ckpt_name_set_clear(struct ckpt_name_set *s);

/*
 * Adding the leaves takes two rounds over the list: the names without a dot, then those with dots
 * (ckpt_tree_add_dotted); of a tree that is to be flat all in the first.
 */
enum ckpt_name_round { CKPT_NAMES_PLAIN, CKPT_NAMES_DOTTED, CKPT_NAME_ROUNDS };
/* 1: added. 0: it is for the other round. */
int ckpt_tree_add_named(struct ckpt_tree *t, const char *name, size_t len, bool flat, enum ckpt_name_round round,
                        enum ckpt_node_kind kind, uint32_t *ret, struct ckpt_err *err) CKPT_MUST_USE;
/* True if the node's keys from the top down, joined with dots, are this name. */
bool ckpt_tree_is_named(const struct ckpt_tree *t, uint32_t node, const char *name, size_t len);

/* The layouts that were asked for last: tensors of one type and shape share them. Internally locked. */
struct ckpt_recent_layouts {
    pthread_mutex_t lock;
    struct ckpt_array *slots[256];
};

void ckpt_recent_layouts_init(struct ckpt_recent_layouts *l);
void ckpt_recent_layouts_clear(struct ckpt_recent_layouts *l);
/* The layout of one uncompressed chunk in C order. */
int ckpt_recent_layouts_get(struct ckpt_recent_layouts *l, enum ckpt_dtype dtype, bool big_endian, unsigned ndim,
                            const uint64_t *shape, struct ckpt_array **ret, struct ckpt_err *err) CKPT_MUST_USE;
/* Of something that is known, but cannot be decoded: `type` is what it calls itself. */
int ckpt_layout_unsupported(const char *type, unsigned ndim, const uint64_t *shape, const char *why,
                            struct ckpt_array **ret, struct ckpt_err *err) CKPT_MUST_USE;

#endif
