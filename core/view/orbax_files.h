/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A subtree as the files of an Orbax checkpoint (docs/orbax.md, "Export"). Laid out from metadata alone: names and
 * sizes are known at once, elements are read from the tree when they are asked for. Immutable once made; any thread may
 * read.
 */
#ifndef CKPT_VIEW_ORBAX_FILES_H
#define CKPT_VIEW_ORBAX_FILES_H

#include "core/view/view.h"

struct ckpt_orbax_files;

/* What Orbax cannot hold is told to left_out (may be NULL): its keys joined with dots, and why. The tree is borrowed.
 */
typedef void ckpt_left_out_fn(void *arg, const char *path, const char *reason);
int ckpt_orbax_files_new(struct ckpt_views *v, struct ckpt_tree *tree, uint32_t top, int64_t time_ns,
                         ckpt_left_out_fn *left_out, void *arg, struct ckpt_orbax_files **ret,
                         struct ckpt_err *err) CKPT_MUST_USE;
void ckpt_orbax_files_free(struct ckpt_orbax_files *f);
/* A file's path and size; false behind the last. The one that says that all is there is the last. */
bool ckpt_orbax_file(const struct ckpt_orbax_files *f, size_t index, const char **ret_path, uint64_t *ret_size);
/* Bytes read, fewer than len only at the end. */
ssize_t ckpt_orbax_file_read(struct ckpt_orbax_files *f, size_t index, void *buf, size_t len, uint64_t off,
                             struct ckpt_err *err) CKPT_MUST_USE;

#endif
