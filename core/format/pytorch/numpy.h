/* SPDX-License-Identifier: Apache-2.0 */
/* NumPy's arrays, scalars and types (and JAX's arrays, which are pickled as NumPy's), as a graph has them. No state,
 * any thread. */
#ifndef CKPT_FORMAT_PYTORCH_NUMPY_H
#define CKPT_FORMAT_PYTORCH_NUMPY_H

#include "core/format/pytorch/graph.h"
#include "core/format/pytorch/record.h"

enum torch_np_kind {
    TORCH_NP_ARRAY,  /* or a scalar that no number of JSON is */
    TORCH_NP_NUMBER, /* a scalar */
    TORCH_NP_TEXT,   /* a scalar: UTF-32 */
    TORCH_NP_BYTES,  /* a scalar */
    TORCH_NP_OTHER,  /* a scalar that is any object */
};

struct torch_np {
    enum torch_np_kind kind;
    enum torch_fault fault;   /* else what follows is meaningless */
    struct torch_numpy array; /* without descr and data */
    char descr[512];          /* of CKPT_DT_OTHER; else empty */
    uint64_t nbytes;          /* of the elements */
    torch_value data;         /* bytes, or the object */
};

/* False: it is no array and no scalar; an array of objects is none. */
bool ckpt_torch_np_read(const struct torch_graph *g, torch_value v, struct torch_np *ret);
/* The name of a type: "float32". False: it is none, or has no name. */
bool ckpt_torch_np_type(const struct torch_graph *g, torch_value v, char ret[512]);

#endif
