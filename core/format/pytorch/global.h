/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The names of a pickle whose calls are more than an object with arguments, and what each stands for here. Nothing is
 * ever looked up or called: a name is a word of a table, or only a name. Constant; any thread.
 */
#ifndef CKPT_FORMAT_PYTORCH_GLOBAL_H
#define CKPT_FORMAT_PYTORCH_GLOBAL_H

#include "core/array/dtype.h"

/* Whose pickle it is: what its persistent ids name. */
enum torch_dialect {
    TORCH_SAVE = 1, /* data.pkl of torch.save */
    TORCH_META = 2, /* .metadata of a distributed checkpoint */
};

enum torch_meaning {
    /* called with arguments, become containers or tensors, or something that was among the arguments */
    TORCH_IS_ORDERED_DICT,
    TORCH_IS_DICT, /* of pairs, or of a dict */
    TORCH_IS_DEFAULT_DICT,
    TORCH_IS_LIST, /* or a deque */
    TORCH_IS_TENSOR_V1,
    TORCH_IS_TENSOR_V2,
    TORCH_IS_TENSOR_V3,
    TORCH_IS_PARAMETER,
    TORCH_IS_SPARSE,
    TORCH_IS_QUANTISED,
    TORCH_IS_FROM_TYPE,   /* a tensor of a class of its own: function, class, arguments of the function, state */
    TORCH_IS_LOADER,      /* of a storage that torch.save wrote into bytes */
    TORCH_IS_FIRST,       /* its first argument */
    TORCH_IS_NEW,         /* copyreg's functions, whose first argument is the class */
    TORCH_IS_NEW_BY_NAME, /* with arguments by name */
    TORCH_IS_NEW_OF_BASE, /* with a base class and its state */
    TORCH_IS_PARTIAL,     /* an object, which can be called: before protocol 4 it has arguments by name */
    TORCH_IS_JAX_ARRAY,   /* NumPy's function, its arguments, the array's state, ... */
    /* called with arguments, become values */
    TORCH_IS_SIZE,
    TORCH_IS_DEVICE,
    TORCH_IS_ENCODE,
    TORCH_IS_BYTES,
    TORCH_IS_BYTEARRAY,
    TORCH_IS_COMPLEX,
    TORCH_IS_SET,
    TORCH_IS_LAYOUT,  /* of memory: torch.strided */
    TORCH_IS_GETATTR, /* of a name, and a string: the member of an enum, the method of a class */
    TORCH_IS_PATH,
    TORCH_IS_WINDOWS_PATH,
    TORCH_IS_DATETIME,
    TORCH_IS_DATE,
    TORCH_IS_TIME,
    TORCH_IS_TIMEDELTA,
    TORCH_IS_TIMEZONE,
    TORCH_IS_RANGE,
    TORCH_IS_SLICE,
    /* objects that numpy.c knows more of */
    TORCH_IS_NP_DTYPE,
    TORCH_IS_NP_ARRAY,
    TORCH_IS_NP_BUFFER, /* an array of a buffer (protocol 5) */
    TORCH_IS_NP_SCALAR,
    /* mentioned only */
    TORCH_IS_STORAGE,
    TORCH_IS_DTYPE,
};

struct torch_global {
    const char *module, *name;
    uint8_t meaning;  /* enum torch_meaning */
    uint8_t dtype;    /* of TORCH_IS_STORAGE, TORCH_IS_DTYPE; CKPT_DT_OTHER: not one that can be shown */
    uint8_t itemsize; /* of TORCH_IS_STORAGE: bytes of one of its elements; 0: not known */
};

#define TORCH_NO_GLOBAL UINT32_MAX

/* The number of a name; TORCH_NO_GLOBAL: it is no more than a name. */
uint32_t ckpt_torch_global_find(const char *module, size_t module_len, const char *name, size_t name_len);
const struct torch_global *ckpt_torch_global(uint32_t number);

#endif
