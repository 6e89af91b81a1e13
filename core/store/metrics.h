/* SPDX-License-Identifier: Apache-2.0 */
/* The value of a metric of a committed step: a number in metrics.json at its top. One thread. */
#ifndef CKPT_STORE_METRICS_H
#define CKPT_STORE_METRICS_H

#include "core/store/store.h"

struct ckpt_metrics;

int ckpt_metrics_open(struct ckpt_store *s, struct ckpt_metrics **ret, struct ckpt_err *err) CKPT_MUST_USE;
/* 1 and *ret; 0: the step has no such number (none at all, not a number, NaN); or an error, -ENOENT if there is no such
 * step. */
int ckpt_metrics_get(struct ckpt_metrics *m, const char *step, const char *metric, double *ret,
                     struct ckpt_err *err) CKPT_MUST_USE;
void ckpt_metrics_close(struct ckpt_metrics *m);

#endif
