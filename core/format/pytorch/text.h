/* SPDX-License-Identifier: Apache-2.0 */
/* Values of a graph as text: JSON for what is shown as a value, Python's str() for what is a key. No state, any thread.
 */
#ifndef CKPT_FORMAT_PYTORCH_TEXT_H
#define CKPT_FORMAT_PYTORCH_TEXT_H

#include "core/format/pytorch/graph.h"

/* Append the JSON of a number, string, bool, None, type, device, size or set. False: it has none. */
bool ckpt_torch_add_json(const struct torch_graph *g, torch_value v, struct ckpt_buf *buf);
/* Append str() of a key of a dict. */
void ckpt_torch_add_str(const struct torch_graph *g, torch_value v, struct ckpt_buf *buf);
/* Append the bytes of a bytes or bytearray. False: it is neither. */
bool ckpt_torch_add_bytes(const struct torch_graph *g, torch_value v, struct ckpt_buf *buf);

#endif
