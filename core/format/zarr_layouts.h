/* SPDX-License-Identifier: Apache-2.0 */
/* Layouts of Zarr arrays by the text of their metadata: arrays of a tree that are stored alike share one. Internally
 * locked. */
#ifndef CKPT_FORMAT_ZARR_LAYOUTS_H
#define CKPT_FORMAT_ZARR_LAYOUTS_H

#include "core/format/zarr.h"

struct ckpt_zarr_layouts;

struct ckpt_zarr_layouts *ckpt_zarr_layouts_new(void);
void ckpt_zarr_layouts_free(struct ckpt_zarr_layouts *l);
/* As ckpt_zarr_parse; the layout that was made of the same text before, if there is one. */
int ckpt_zarr_layouts_get(struct ckpt_zarr_layouts *l, const void *text, size_t len, int version,
                          struct ckpt_array **ret, struct ckpt_err *err) CKPT_MUST_USE;

#endif
