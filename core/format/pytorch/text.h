/* SPDX-License-Identifier: Apache-2.0 */
/* Values of a graph as text: JSON for what is shown as a value, Python's str() for what is a key. No state, any thread.
 */
#ifndef CKPT_FORMAT_PYTORCH_TEXT_H
#define CKPT_FORMAT_PYTORCH_TEXT_H

#include "core/format/pytorch/graph.h"

/* Append the JSON of a number, string, bool, None, name, type, device, size, set, path, date. False: it has none. */
bool ckpt_torch_add_json(const struct torch_graph *g, torch_value v, struct ckpt_buf *buf);
/* Append str() of a key of a dict. False: it has none that tells it from others: a tensor or object, whose class is
 * appended. */
bool ckpt_torch_add_str(const struct torch_graph *g, torch_value v, struct ckpt_buf *buf);
/* Is it a bytes or bytearray, and not out-of-band? */
bool ckpt_torch_is_bytes(const struct torch_graph *g, torch_value v);
/* Append its bytes. */
void ckpt_torch_add_bytes(const struct torch_graph *g, torch_value v, struct ckpt_buf *buf);
/* Append the name of a class or function, be it one of the pickle's names, a member of one, or made by a call. */
void ckpt_torch_add_class(const struct torch_graph *g, torch_value class, struct ckpt_buf *buf);

/* Append a character as UTF-8. */
void ckpt_torch_add_character(struct ckpt_buf *buf, uint32_t c);

#endif
