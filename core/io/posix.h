/* SPDX-License-Identifier: Apache-2.0 */
/* Private to core/io: a directory of the local machine, by a path from an open one. */
#ifndef CKPT_IO_POSIX_H
#define CKPT_IO_POSIX_H

#include "core/io/backend.h"

int ckpt_posix_open_at(int dir, const char *path, struct ckpt_backend **ret) CKPT_MUST_USE;

#endif
