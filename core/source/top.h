/* SPDX-License-Identifier: Apache-2.0 */
/* Private to core/source: a checkpoint that is itself the source, and what has its name now. */
#ifndef CKPT_SOURCE_TOP_H
#define CKPT_SOURCE_TOP_H

#include "core/source/source.h"

/* The top is a checkpoint; from now on it is looked at again. */
int ckpt_source_watch(struct ckpt_source *src) CKPT_MUST_USE;
/* src->root is the checkpoint that is there, not older than the refresh time (now: at all). Nothing happens for other
 * sources. Locks: none is held but a node's loading. */
void ckpt_source_look(struct ckpt_source *src, bool now);
/* Calls gone(arg, CKPT_ROOT, name) for each name by which something of a checkpoint that was the top may be known. */
void ckpt_source_tell_former(struct ckpt_source *src, void (*gone)(void *arg, uint64_t parent, const char *name),
                             void *arg);

#endif
