/* SPDX-License-Identifier: Apache-2.0 */
/* Private to core/source: the tables of kinds.c, each in the file of its kind. */
#ifndef CKPT_SOURCE_KINDS_H
#define CKPT_SOURCE_KINDS_H

#include "core/source/kind.h"

extern const struct kind ckpt_kind_dir;         /* a directory of the source */
extern const struct kind ckpt_kind_file;        /* a file of the source that is shown as itself */
extern const struct kind ckpt_kind_link;        /* a link of the source; `latest` and `best` of a root */
extern const struct kind ckpt_kind_tree;        /* a checkpoint, and all that is in it */
extern const struct kind ckpt_kind_control_dir; /* .ckptfs */
extern const struct kind ckpt_kind_control;     /* a file in it */
extern const struct kind ckpt_kind_files_view;  /* .files, and its directories */
extern const struct kind ckpt_kind_staged;      /* all that is in a staged step */

#endif
