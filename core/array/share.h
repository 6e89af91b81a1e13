/* SPDX-License-Identifier: Apache-2.0 */
/* Layouts that are equal as one object: a tree of a million arrays has few different ones. Internally locked. */
#ifndef CKPT_ARRAY_SHARE_H
#define CKPT_ARRAY_SHARE_H

#include "core/array/layout.h"

struct ckpt_layouts;

struct ckpt_layouts *ckpt_layouts_new(void); /* NULL: out of memory */
void ckpt_layouts_free(struct ckpt_layouts *l);
/* The first one that was equal to *a, a reference to which is taken over. Layouts with a descr or something of their
 * format's are never equal. */
struct ckpt_array *ckpt_layouts_share(struct ckpt_layouts *l, struct ckpt_array *a) CKPT_MUST_USE;
size_t ckpt_layouts_memory(struct ckpt_layouts *l);

#endif
