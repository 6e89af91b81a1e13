/* SPDX-License-Identifier: Apache-2.0 */
/* What a file is by its first bytes, whatever its name. No state, any thread. */
#ifndef CKPT_FORMAT_PYTORCH_CONTENT_H
#define CKPT_FORMAT_PYTORCH_CONTENT_H

#include "core/io/backend.h"

enum torch_content {
    TORCH_CONTENT_NONE, /* none of these, or it cannot be read */
    TORCH_CONTENT_ZIP, /* a zip archive of which some folder holds a data.pkl, as torch.save and torch.jit.save write */
    TORCH_CONTENT_STREAM, /* as torch.save wrote before PyTorch 1.6 */
    TORCH_CONTENT_TAR,    /* as the first releases of PyTorch wrote */
    TORCH_CONTENT_PICKLE, /* by itself, of protocol 2 or later */
    TORCH_CONTENT_TEXT,   /* of protocol 0 or 1, which have no mark: it may as well be a text */
};

/* A few small reads; of a zip archive its directory is read. */
enum torch_content ckpt_torch_content(struct ckpt_file *file);

#endif
