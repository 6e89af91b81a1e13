/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Element types. `enum ckpt_dtype` covers the types that checkpoints hold; NumPy's open-ended ones
 * (strings, structures, datetimes) are CKPT_DT_OTHER with their descr kept as text elsewhere.
 */
#ifndef CKPT_ARRAY_DTYPE_H
#define CKPT_ARRAY_DTYPE_H

#include "core/base/buf.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum ckpt_dtype {
    CKPT_DT_BOOL,
    CKPT_DT_I8,
    CKPT_DT_I16,
    CKPT_DT_I32,
    CKPT_DT_I64,
    CKPT_DT_U8,
    CKPT_DT_U16,
    CKPT_DT_U32,
    CKPT_DT_U64,
    CKPT_DT_F16,
    CKPT_DT_F32,
    CKPT_DT_F64,
    CKPT_DT_BF16,
    CKPT_DT_C32,
    CKPT_DT_C64,
    CKPT_DT_C128, /* complex of two float16, float32, float64 */
    CKPT_DT_F8_E4M3FN,
    CKPT_DT_F8_E4M3FNUZ,
    CKPT_DT_F8_E4M3B11FNUZ,
    CKPT_DT_F8_E5M2,
    CKPT_DT_F8_E5M2FNUZ,
    CKPT_DT_F8_E3M4,
    CKPT_DT_F8_E4M3,
    CKPT_DT_F8_E8M0FNU,
    CKPT_DT_F4_E2M1FN,
    CKPT_DT_F6_E2M3FN,
    CKPT_DT_F6_E3M2FN, /* unpacked, one byte an element */
    CKPT_DT_I4,
    CKPT_DT_U4,
    CKPT_DT_I2,
    CKPT_DT_U2,
    CKPT_DT_I1,
    CKPT_DT_U1, /* unpacked, one byte an element */
    CKPT_DT_OTHER,
    CKPT_DT_COUNT
};

enum ckpt_dtype_class { CKPT_DC_BOOL, CKPT_DC_INT, CKPT_DC_UINT, CKPT_DC_FLOAT, CKPT_DC_COMPLEX, CKPT_DC_OTHER };

struct ckpt_dtype_info {
    const char *name;        /* as NumPy and ml_dtypes call it: "float32", "bfloat16", "int4" */
    const char *descr;       /* of the .npy header: "<f4", "<V2", "|V1", "|i1" (docs/using.md, "Types") */
    const char *safetensors; /* "F32", "BF16", ...; NULL: the type has no name there */
    uint8_t size;            /* bytes an element as the mount shows it */
    uint8_t swap;            /* bytes reversed as a unit when the byte order differs: 4 for float32 and complex64 */
    uint8_t bits;            /* 4, 2 and 1 for the small integers (sign-extension needed), else 8*size */
    enum ckpt_dtype_class klass;
};

const struct ckpt_dtype_info *ckpt_dtype_info(enum ckpt_dtype dt); /* never NULL; OTHER has size 0 */
/* By NumPy or ml_dtypes name ("float32", "float8_e4m3fn"). False: not known. */
bool ckpt_dtype_by_name(const char *name, enum ckpt_dtype *ret);
/* By a type string as in .zarray or a .npy descr: "<f4", ">c16", "|b1", "bfloat16", "int4". *ret_big: stored
 * big-endian. */
bool ckpt_dtype_by_descr(const char *descr, enum ckpt_dtype *ret, bool *ret_big);
bool ckpt_dtype_by_safetensors(const char *name, enum ckpt_dtype *ret);

/* Reverse the bytes of each word in place; len is a multiple of word, and nothing is done for words of one byte, or of
 * none. */
void ckpt_swap_words(void *data, size_t len, unsigned word);
/* Reverse the byte order of n elements in place. */
void ckpt_dtype_swap(enum ckpt_dtype dt, void *data, size_t n);
/* Make stored small integers (high bits undefined) what the mount shows: sign- or zero-extended. No-op for other
 * types. */
void ckpt_dtype_extend(enum ckpt_dtype dt, void *data, size_t n);

/* Turn the signs of n elements in place: of all of a float, of the parts of a complex number. No-op for other types. */
enum { CKPT_FLIP_REAL = 1, CKPT_FLIP_IMAG = 2 };
void ckpt_dtype_flip(enum ckpt_dtype dt, unsigned parts, void *data, size_t n);

/* What the real and the imaginary part of a complex type are. */
enum ckpt_dtype ckpt_dtype_part(enum ckpt_dtype complex);
/* The element as a double (complex: the real part), for statistics. OTHER: NaN. */
double ckpt_dtype_to_double(enum ckpt_dtype dt, const void *element);

/* The element as JSON text: true, 12, 0.1 (shortest that reads back as the float64 value; always a point or an
 * exponent), NaN, Infinity, -Infinity. Complex and OTHER append nothing and return false. */
bool ckpt_dtype_add_json(struct ckpt_buf *buf, enum ckpt_dtype dt, const void *element);
/* The way back: the element whose JSON text this is. False: the type has none that is equal to it (any NaN is, to NaN).
 */
bool ckpt_dtype_of_json(enum ckpt_dtype dt, const char *text, void *ret_element);
/* The type that NumPy would give it; OTHER: strings, null, and integers of more than 64 bits have none. */
enum ckpt_dtype ckpt_dtype_for_json(const char *text);
/* A double in that shortest form, exactly as Python's json.dumps writes it ("1.0", "1e-05", "1e+16", "NaN"). */
void ckpt_add_json_double(struct ckpt_buf *buf, double value);
/* The same for what is mostly an integer, such as the number of a step: without a point where it is one. */
void ckpt_add_json_number(struct ckpt_buf *buf, double value);

#endif
