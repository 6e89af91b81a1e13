/* SPDX-License-Identifier: Apache-2.0 */
/* What torch.save wrote first before PyTorch 1.6. No state, any thread. */
#ifndef CKPT_FORMAT_PYTORCH_MAGIC_H
#define CKPT_FORMAT_PYTORCH_MAGIC_H

#include <stddef.h>
#include <stdint.h>

#define TORCH_MAGIC_BYTES 27 /* of the longest form */

/* The length of the pickle of the magic number that some bytes begin with; 0: they do not. */
size_t ckpt_torch_magic(const uint8_t *head, size_t len);

#endif
