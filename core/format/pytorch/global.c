/* SPDX-License-Identifier: Apache-2.0 */
#include "core/format/pytorch/global.h"

#include <string.h>

#define BOTH     (TORCH_SAVE | TORCH_META)
#define METADATA "torch.distributed.checkpoint.metadata"

#define CALL(module, name, meaning, dialects)                                                                          \
    {                                                                                                                  \
        module, name, meaning, CKPT_DT_OTHER, 0, dialects                                                              \
    }
#define STORAGE(name, dtype, size)                                                                                     \
    {                                                                                                                  \
        "torch", name "Storage", TORCH_IS_STORAGE, dtype, size, TORCH_SAVE                                             \
    }
#define DTYPE(name, dtype)                                                                                             \
    {                                                                                                                  \
        "torch", name, TORCH_IS_DTYPE, dtype, 0, BOTH                                                                  \
    }
#define SCHEME(name)                                                                                                   \
    {                                                                                                                  \
        "torch", name, TORCH_IS_SCHEME, CKPT_DT_OTHER, 0, TORCH_SAVE                                                   \
    }
#define CLASS(module, name)                                                                                            \
    {                                                                                                                  \
        module, name, TORCH_IS_CLASS, CKPT_DT_OTHER, 0, TORCH_META                                                     \
    }

static const struct torch_global globals[] = {
    CALL("collections", "OrderedDict", TORCH_IS_ORDERED_DICT, TORCH_SAVE),
    CALL("torch._utils", "_rebuild_tensor_v2", TORCH_IS_TENSOR_V2, TORCH_SAVE),
    CALL("torch._utils", "_rebuild_tensor_v3", TORCH_IS_TENSOR_V3, TORCH_SAVE),
    CALL("torch._utils", "_rebuild_parameter", TORCH_IS_PARAMETER, TORCH_SAVE),
    CALL("torch._utils", "_rebuild_parameter_with_state", TORCH_IS_PARAMETER_STATE, TORCH_SAVE),
    CALL("torch._utils", "_rebuild_sparse_tensor", TORCH_IS_SPARSE, TORCH_SAVE),
    CALL("torch._utils", "_rebuild_qtensor", TORCH_IS_QUANTISED, TORCH_SAVE),
    CALL("torch", "Size", TORCH_IS_SIZE, BOTH),
    CALL("torch", "device", TORCH_IS_DEVICE, TORCH_SAVE),
    CALL("_codecs", "encode", TORCH_IS_ENCODE, TORCH_SAVE),
    CALL("__builtin__", "bytes", TORCH_IS_BYTES, TORCH_SAVE),
    CALL("builtins", "bytes", TORCH_IS_BYTES, TORCH_SAVE),
    CALL("__builtin__", "bytearray", TORCH_IS_BYTEARRAY, TORCH_SAVE),
    CALL("builtins", "bytearray", TORCH_IS_BYTEARRAY, TORCH_SAVE),
    CALL("__builtin__", "complex", TORCH_IS_COMPLEX, TORCH_SAVE),
    CALL("builtins", "complex", TORCH_IS_COMPLEX, TORCH_SAVE),
    CALL("__builtin__", "set", TORCH_IS_SET, TORCH_SAVE),
    CALL("builtins", "set", TORCH_IS_SET, TORCH_SAVE),
    CALL("torch.serialization", "_get_layout", TORCH_IS_LAYOUT, BOTH),
    CALL("torch.jit._pickle", "build_intlist", TORCH_IS_TYPED, TORCH_SAVE),
    CALL("torch.jit._pickle", "build_doublelist", TORCH_IS_TYPED, TORCH_SAVE),
    CALL("torch.jit._pickle", "build_boollist", TORCH_IS_TYPED, TORCH_SAVE),
    CALL("torch.jit._pickle", "build_complexlist", TORCH_IS_TYPED, TORCH_SAVE),
    CALL("torch.jit._pickle", "build_tensorlist", TORCH_IS_TYPED, TORCH_SAVE),
    CALL("torch.jit._pickle", "restore_type_tag", TORCH_IS_TYPED, TORCH_SAVE),
    CALL("pathlib", "PosixPath", TORCH_IS_OPAQUE, TORCH_META),
    CALL("pathlib._local", "PosixPath", TORCH_IS_OPAQUE, TORCH_META),
    CALL(METADATA, "_MEM_FORMAT_ENCODING", TORCH_IS_OPAQUE, TORCH_META),
    CALL("builtins", "getattr", TORCH_IS_GETATTR, TORCH_META),
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
    {"torch.storage", "UntypedStorage", TORCH_IS_STORAGE, CKPT_DT_U8, 1, TORCH_SAVE},
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
    SCHEME("per_tensor_affine"),
    SCHEME("per_tensor_symmetric"),
    SCHEME("per_channel_affine"),
    SCHEME("per_channel_symmetric"),
    SCHEME("per_channel_affine_float_qparams"),
    CLASS(METADATA, "Metadata"),
    CLASS(METADATA, "TensorStorageMetadata"),
    CLASS(METADATA, "BytesStorageMetadata"),
    CLASS(METADATA, "TensorProperties"),
    CLASS(METADATA, "ChunkStorageMetadata"),
    CLASS(METADATA, "MetadataIndex"),
    CLASS(METADATA, "StorageMeta"),
    CLASS("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
};

static bool is(const char *text, const char *name, size_t len)
{
    return strlen(text) == len && !memcmp(text, name, len);
}

uint32_t ckpt_torch_global_find(enum torch_dialect dialect, const char *module, size_t module_len, const char *name,
                                size_t name_len)
{
    for (uint32_t i = 0; i < sizeof globals / sizeof *globals; i++)
        if (globals[i].dialects & dialect && is(globals[i].name, name, name_len) &&
            is(globals[i].module, module, module_len))
            return i;
    return TORCH_NO_GLOBAL;
}

const struct torch_global *ckpt_torch_global(uint32_t number)
{
    return &globals[number];
}
