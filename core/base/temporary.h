/* SPDX-License-Identifier: Apache-2.0 */
/* Files without a name, for what is too large for memory. */
#ifndef CKPT_BASE_TEMPORARY_H
#define CKPT_BASE_TEMPORARY_H

#include "core/base/err.h"

/* A file on the file system of this directory that goes with its last descriptor; or a negative errno. */
int ckpt_temporary(const char *dir) CKPT_MUST_USE;

#endif
