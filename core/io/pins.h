/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The files of one checkpoint, opened once and kept: a reader goes on reading a step that has been deleted or
 * replaced under its name. The whole process should hold at most half of its descriptors this way, those of the
 * checkpoints' directories counted: beyond that a checkpoint that opens another file gives up its own oldest pin (the
 * file is opened again by name when it is needed), and ckpt_pins_scarce() tells whoever holds the checkpoints to let
 * some of them go. Refcounted; internally locked.
 */
#ifndef CKPT_IO_PINS_H
#define CKPT_IO_PINS_H

#include "core/io/backend.h"

struct ckpt_pins;

/* The files under `dir`, which is referenced. */
int ckpt_pins_new(struct ckpt_backend *dir, struct ckpt_pins **ret);
struct ckpt_pins *ckpt_pins_ref(struct ckpt_pins *pins);
void ckpt_pins_unref(struct ckpt_pins *pins);
/* Three quarters of what may be held are held. */
bool ckpt_pins_scarce(void);
/* What a -EUCLEAN of a safe path means. */
#define CKPT_LINK_OUT "a link that leads out of the source; -o follow, or --follow, follows it"
/* The file at a path, pinned from now on. The caller unrefs. An unsafe path, or a link that leads outside of the
 * source, is -EUCLEAN. */
int ckpt_pins_open(struct ckpt_pins *pins, const char *path, struct ckpt_file **ret) CKPT_MUST_USE;
struct ckpt_backend *ckpt_pins_dir(struct ckpt_pins *pins); /* borrowed */
size_t ckpt_pins_count(struct ckpt_pins *pins);

#endif
