/* SPDX-License-Identifier: Apache-2.0 */
#include "core/format/pytorch/global.h"

#include <string.h>

#define CALL(module, name, meaning)                                                                                    \
    {                                                                                                                  \
        module, name, meaning, CKPT_DT_OTHER, 0                                                                        \
    }
#define BUILTIN(name, meaning) CALL("builtins", name, meaning), CALL("__builtin__", name, meaning)
#define PATHLIB(name, meaning) CALL("pathlib", name, meaning), CALL("pathlib._local", name, meaning)
/* NumPy's modules in its versions 1 and 2. */
#define NUMPY(module, name, meaning)                                                                                   \
    CALL("numpy.core." module, name, meaning), CALL("numpy._core." module, name, meaning)
#define COPYREG(name, meaning) CALL("copyreg", name, meaning), CALL("copy_reg", name, meaning)
#define STORAGE(name, dtype, size)                                                                                     \
    {                                                                                                                  \
        "torch", name "Storage", TORCH_IS_STORAGE, dtype, size                                                         \
    }
#define DTYPE(name, dtype)                                                                                             \
    {                                                                                                                  \
        "torch", name, TORCH_IS_DTYPE, dtype, 0                                                                        \
    }

static const struct torch_global globals[] = {
    CALL("collections", "OrderedDict", TORCH_IS_ORDERED_DICT),
    CALL("torch._utils", "_rebuild_tensor_v2", TORCH_IS_TENSOR_V2),
    CALL("torch._utils", "_rebuild_tensor_v3", TORCH_IS_TENSOR_V3),
    CALL("torch._utils", "_rebuild_tensor", TORCH_IS_TENSOR_V1),
    CALL("torch._utils", "_rebuild_parameter", TORCH_IS_PARAMETER),
    CALL("torch._utils", "_rebuild_parameter_with_state", TORCH_IS_PARAMETER),
    CALL("torch._utils", "_rebuild_sparse_tensor", TORCH_IS_SPARSE),
    CALL("torch._utils", "_rebuild_sparse_csr_tensor", TORCH_IS_SPARSE),
    CALL("torch._utils", "_rebuild_qtensor", TORCH_IS_QUANTISED),
    CALL("torch._tensor", "_rebuild_from_type_v2", TORCH_IS_FROM_TYPE),
    CALL("torch._tensor", "_rebuild_from_type", TORCH_IS_FROM_TYPE),
    CALL("torch.tensor", "_rebuild_from_type", TORCH_IS_FROM_TYPE),
    CALL("torch.storage", "_load_from_bytes", TORCH_IS_LOADER),
    /* of the programs in TorchScript's archives */
    CALL("torch.jit._pickle", "build_intlist", TORCH_IS_FIRST),
    CALL("torch.jit._pickle", "build_tensorlist", TORCH_IS_FIRST),
    CALL("torch.jit._pickle", "build_doublelist", TORCH_IS_FIRST),
    CALL("torch.jit._pickle", "build_boollist", TORCH_IS_FIRST),
    CALL("torch.jit._pickle", "build_complexlist", TORCH_IS_FIRST),
    CALL("torch.jit._pickle", "restore_type_tag", TORCH_IS_FIRST),
    CALL("torch", "Size", TORCH_IS_SIZE),
    CALL("torch", "device", TORCH_IS_DEVICE),
    CALL("torch.serialization", "_get_layout", TORCH_IS_LAYOUT),
    CALL("_codecs", "encode", TORCH_IS_ENCODE),
    BUILTIN("bytes", TORCH_IS_BYTES),
    BUILTIN("bytearray", TORCH_IS_BYTEARRAY),
    BUILTIN("complex", TORCH_IS_COMPLEX),
    BUILTIN("set", TORCH_IS_SET),
    BUILTIN("frozenset", TORCH_IS_SET),
    BUILTIN("dict", TORCH_IS_DICT),
    BUILTIN("list", TORCH_IS_LIST),
    BUILTIN("getattr", TORCH_IS_GETATTR),
    BUILTIN("range", TORCH_IS_RANGE),
    BUILTIN("xrange", TORCH_IS_RANGE),
    BUILTIN("slice", TORCH_IS_SLICE),
    CALL("collections", "defaultdict", TORCH_IS_DEFAULT_DICT),
    CALL("collections", "Counter", TORCH_IS_DICT),
    CALL("collections", "deque", TORCH_IS_LIST),
    COPYREG("__newobj__", TORCH_IS_NEW),
    COPYREG("__newobj_ex__", TORCH_IS_NEW_BY_NAME),
    COPYREG("_reconstructor", TORCH_IS_NEW_OF_BASE),
    CALL("functools", "partial", TORCH_IS_PARTIAL),
    PATHLIB("PosixPath", TORCH_IS_PATH),
    PATHLIB("PurePosixPath", TORCH_IS_PATH),
    PATHLIB("Path", TORCH_IS_PATH),
    PATHLIB("PurePath", TORCH_IS_PATH),
    PATHLIB("WindowsPath", TORCH_IS_WINDOWS_PATH),
    PATHLIB("PureWindowsPath", TORCH_IS_WINDOWS_PATH),
    CALL("datetime", "datetime", TORCH_IS_DATETIME),
    CALL("datetime", "date", TORCH_IS_DATE),
    CALL("datetime", "time", TORCH_IS_TIME),
    CALL("datetime", "timedelta", TORCH_IS_TIMEDELTA),
    CALL("datetime", "timezone", TORCH_IS_TIMEZONE),
    CALL("numpy", "dtype", TORCH_IS_NP_DTYPE),
    NUMPY("multiarray", "_reconstruct", TORCH_IS_NP_ARRAY),
    NUMPY("multiarray", "scalar", TORCH_IS_NP_SCALAR),
    NUMPY("numeric", "_frombuffer", TORCH_IS_NP_BUFFER),
    CALL("jax._src.array", "_reconstruct_array", TORCH_IS_JAX_ARRAY),
    CALL("jax._src.device_array", "reconstruct_device_array", TORCH_IS_JAX_ARRAY),
    CALL("jax.interpreters.xla", "_reconstruct_device_array", TORCH_IS_JAX_ARRAY),
    STORAGE("Double", CKPT_DT_F64, 8),
    STORAGE("Float", CKPT_DT_F32, 4),
    STORAGE("Half", CKPT_DT_F16, 2),
    STORAGE("BFloat16", CKPT_DT_BF16, 2),
    STORAGE("Long", CKPT_DT_I64, 8),
    STORAGE("Int", CKPT_DT_I32, 4),
    STORAGE("Short", CKPT_DT_I16, 2),
    STORAGE("Char", CKPT_DT_I8, 1),
    STORAGE("Byte", CKPT_DT_U8, 1),
    STORAGE("Bool", CKPT_DT_BOOL, 1),
    STORAGE("ComplexFloat", CKPT_DT_C64, 8),
    STORAGE("ComplexDouble", CKPT_DT_C128, 16),
    STORAGE("QInt8", CKPT_DT_OTHER, 1),
    STORAGE("QUInt8", CKPT_DT_OTHER, 1),
    STORAGE("QInt32", CKPT_DT_OTHER, 4),
    STORAGE("QUInt4x2", CKPT_DT_OTHER, 0),
    STORAGE("QUInt2x4", CKPT_DT_OTHER, 0),
    {"torch.storage", "UntypedStorage", TORCH_IS_STORAGE, CKPT_DT_U8, 1},
    {"torch.storage", "_UntypedStorage", TORCH_IS_STORAGE, CKPT_DT_U8, 1},
    {"torch", "UntypedStorage", TORCH_IS_STORAGE, CKPT_DT_U8, 1},
    DTYPE("float64", CKPT_DT_F64),
    DTYPE("float32", CKPT_DT_F32),
    DTYPE("float16", CKPT_DT_F16),
    DTYPE("bfloat16", CKPT_DT_BF16),
    DTYPE("int64", CKPT_DT_I64),
    DTYPE("int32", CKPT_DT_I32),
    DTYPE("int16", CKPT_DT_I16),
    DTYPE("int8", CKPT_DT_I8),
    DTYPE("uint64", CKPT_DT_U64),
    DTYPE("uint32", CKPT_DT_U32),
    DTYPE("uint16", CKPT_DT_U16),
    DTYPE("uint8", CKPT_DT_U8),
    DTYPE("bool", CKPT_DT_BOOL),
    DTYPE("complex128", CKPT_DT_C128),
    DTYPE("complex64", CKPT_DT_C64),
    DTYPE("complex32", CKPT_DT_C32),
    DTYPE("float8_e4m3fn", CKPT_DT_F8_E4M3FN),
    DTYPE("float8_e4m3fnuz", CKPT_DT_F8_E4M3FNUZ),
    DTYPE("float8_e5m2", CKPT_DT_F8_E5M2),
    DTYPE("float8_e5m2fnuz", CKPT_DT_F8_E5M2FNUZ),
    DTYPE("float8_e8m0fnu", CKPT_DT_F8_E8M0FNU),
    DTYPE("float4_e2m1fn_x2", CKPT_DT_OTHER),
    DTYPE("bcomplex32", CKPT_DT_OTHER),
    DTYPE("bits1x8", CKPT_DT_OTHER),
    DTYPE("bits2x4", CKPT_DT_OTHER),
    DTYPE("bits4x2", CKPT_DT_OTHER),
    DTYPE("bits8", CKPT_DT_OTHER),
    DTYPE("bits16", CKPT_DT_OTHER),
    DTYPE("int1", CKPT_DT_OTHER),
    DTYPE("int2", CKPT_DT_OTHER),
    DTYPE("int3", CKPT_DT_OTHER),
    DTYPE("int4", CKPT_DT_OTHER),
    DTYPE("int5", CKPT_DT_OTHER),
    DTYPE("int6", CKPT_DT_OTHER),
    DTYPE("int7", CKPT_DT_OTHER),
    DTYPE("uint1", CKPT_DT_OTHER),
    DTYPE("uint2", CKPT_DT_OTHER),
    DTYPE("uint3", CKPT_DT_OTHER),
    DTYPE("uint4", CKPT_DT_OTHER),
    DTYPE("uint5", CKPT_DT_OTHER),
    DTYPE("uint6", CKPT_DT_OTHER),
    DTYPE("uint7", CKPT_DT_OTHER),
    DTYPE("qint8", CKPT_DT_OTHER),
    DTYPE("quint8", CKPT_DT_OTHER),
    DTYPE("qint32", CKPT_DT_OTHER),
    DTYPE("quint4x2", CKPT_DT_OTHER),
    DTYPE("quint2x4", CKPT_DT_OTHER),
};

static bool is(const char *text, const char *name, size_t len)
{
    return strlen(text) == len && !memcmp(text, name, len);
}

/* What was on an accelerator is what it would be elsewhere: the class of its storage says where it was. */
static bool is_cuda_storage(const char *module, size_t module_len, const char *name, size_t name_len)
{
    static const char suffix[] = "Storage";
    size_t n = strlen(suffix);
    return is("torch.cuda", module, module_len) && name_len > n && !memcmp(name + name_len - n, suffix, n);
}

uint32_t ckpt_torch_global_find(const char *module, size_t module_len, const char *name, size_t name_len)
{
    if (is_cuda_storage(module, module_len, name, name_len)) {
        module = "torch";
        module_len = strlen(module);
    }
    for (uint32_t i = 0; i < sizeof globals / sizeof *globals; i++)
        if (is(globals[i].name, name, name_len) && is(globals[i].module, module, module_len))
            return i;
    return TORCH_NO_GLOBAL;
}

const struct torch_global *ckpt_torch_global(uint32_t number)
{
    return &globals[number];
}
