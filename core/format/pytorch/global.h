/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The names that a pickle may mention, and what each stands for here. Nothing is ever looked up or called: a name that
 * is not in the table refuses the pickle. Constant; any thread.
 */
#ifndef CKPT_FORMAT_PYTORCH_GLOBAL_H
#define CKPT_FORMAT_PYTORCH_GLOBAL_H

#include "core/array/dtype.h"

/* Whose pickle it is: each has opcodes and names of its own. */
enum torch_dialect {
    TORCH_SAVE = 1, /* data.pkl of torch.save */
    TORCH_META = 2, /* .metadata of a distributed checkpoint */
};

enum torch_meaning {
    /* called with arguments, become objects or tensors */
    TORCH_IS_ORDERED_DICT,
    TORCH_IS_TENSOR_V2,
    TORCH_IS_TENSOR_V3,
    TORCH_IS_PARAMETER,
    TORCH_IS_PARAMETER_STATE,
    TORCH_IS_SPARSE,
    TORCH_IS_QUANTISED,
    TORCH_IS_SIZE,
    TORCH_IS_DEVICE,
    TORCH_IS_ENCODE,
    TORCH_IS_BYTES,
    TORCH_IS_BYTEARRAY,
    TORCH_IS_COMPLEX,
    TORCH_IS_SET,
    TORCH_IS_LAYOUT,  /* of memory: torch.strided */
    TORCH_IS_OPAQUE,  /* whatever it is called with says nothing */
    TORCH_IS_TYPED,   /* TorchScript: its first argument, with a type beside it */
    TORCH_IS_GETATTR, /* of an opaque name only: how some versions of Python pickle the members of an enum */
    /* mentioned only */
    TORCH_IS_STORAGE,
    TORCH_IS_DTYPE,
    TORCH_IS_SCHEME, /* of quantisation */
    TORCH_IS_CLASS,  /* made without arguments, then given a state */
};

struct torch_global {
    const char *module, *name;
    uint8_t meaning;  /* enum torch_meaning */
    uint8_t dtype;    /* of TORCH_IS_STORAGE, TORCH_IS_DTYPE; CKPT_DT_OTHER: not one that can be shown */
    uint8_t itemsize; /* of TORCH_IS_STORAGE: bytes of one of its elements; 0: not known */
    uint8_t dialects;
};

#define TORCH_NO_GLOBAL UINT32_MAX

/* The number of a name; TORCH_NO_GLOBAL: a pickle of this dialect may not have it. */
uint32_t ckpt_torch_global_find(enum torch_dialect dialect, const char *module, size_t module_len, const char *name,
                                size_t name_len);
const struct torch_global *ckpt_torch_global(uint32_t number);

#endif
