/* SPDX-License-Identifier: Apache-2.0 */
/* Dates and times of Python's datetime, which are calls in a graph, as Python writes them. No state, any thread. */
#ifndef CKPT_FORMAT_PYTORCH_DATES_H
#define CKPT_FORMAT_PYTORCH_DATES_H

#include "core/format/pytorch/graph.h"

/* Append isoformat() of a datetime, date or time, str() of a timedelta or timezone. data: the bytes of the first three.
 * False: it is no such moment. */
bool ckpt_torch_add_date(const struct torch_graph *g, torch_value v, const struct ckpt_buf *data, struct ckpt_buf *buf);

#endif
