/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Caches of the Hugging Face hub: REPOSITORY/snapshots/REVISION/... are links to REPOSITORY/blobs/HASH. What a path and
 * a link say, as texts alone.
 */
#ifndef CKPT_IO_HUB_H
#define CKPT_IO_HUB_H

#include <stddef.h>

/* How much of an absolute path is the repository whose snapshots it is, or lies in; 0: it is no such path. */
size_t ckpt_hub_repository(const char *path);
/* The name of a blob, where the target of a link that lies in a directory, by its absolute path, is one of the
 * directory's own repository, written as the hub's library writes it: a part of `target`, or NULL. */
const char *ckpt_hub_blob(const char *dir, const char *target);

#endif
