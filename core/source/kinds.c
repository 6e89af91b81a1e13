/* SPDX-License-Identifier: Apache-2.0 */
/* The kinds of things that ids name: a row each. */
#include "core/source/kinds.h"

const struct kind *const ckpt_source_kinds[NODE_KINDS] = {
    [NODE_DIR] = &ckpt_kind_dir,
    [NODE_FILE] = &ckpt_kind_file,
    [NODE_TREE] = &ckpt_kind_tree,
    [NODE_LINK] = &ckpt_kind_link,
    [NODE_CONTROL_DIR] = &ckpt_kind_control_dir,
    [NODE_CONTROL] = &ckpt_kind_control,
    [NODE_FILES_VIEW] = &ckpt_kind_files_view,
    [NODE_STAGED] = &ckpt_kind_staged,
};
