/* SPDX-License-Identifier: Apache-2.0 */
/* What a writer's part has: the paths of a manifest with their contents, in memory, to see whether two parts agree. One
 * thread. */
#ifndef CKPT_STORE_PART_ITEMS_H
#define CKPT_STORE_PART_ITEMS_H

#include "core/object/manifest.h"

#define CKPT_PART_CONFLICT 256 /* bytes of a name, with its NUL */

struct ckpt_part_items;

int ckpt_part_items_read(struct ckpt_file *manifest, struct ckpt_part_items **ret, struct ckpt_err *err) CKPT_MUST_USE;
void ckpt_part_items_free(struct ckpt_part_items *items);
/* The same paths, with the same content. */
bool ckpt_part_items_equal(const struct ckpt_part_items *a, const struct ckpt_part_items *b);
/* -EEXIST: the other part has a path of these with other content; its name is in conflict, and *err is untouched. */
int ckpt_part_items_compare(const struct ckpt_part_items *items, struct ckpt_file *other,
                            char conflict[CKPT_PART_CONFLICT], struct ckpt_err *err) CKPT_MUST_USE;

#endif
