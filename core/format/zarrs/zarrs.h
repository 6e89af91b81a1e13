/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Folders of Zarr arrays that no other format explains: arrays anywhere in a tree of directories (Levanter, axlearn,
 * groups of Zarr), and databases of OCDBT whose keys are such a tree (jax.experimental.array_serialization).
 */
#ifndef CKPT_FORMAT_ZARRS_ZARRS_H
#define CKPT_FORMAT_ZARRS_ZARRS_H

#include "core/format/format.h"

extern const struct ckpt_format ckpt_zarrs_format;

#endif
