/* SPDX-License-Identifier: Apache-2.0 */
#include "core/format/pytorch/opcode.h"

#include "core/base/util.h"

#define BOTH     (TORCH_SAVE | TORCH_META)
#define MAX_LINE ((size_t)256)

/* The argument: so many bytes, or a length in front of it, or lines. */
enum { LENGTH1 = 100, LENGTH4, LINES2 };

static const struct {
    const char *name;
    uint8_t arg;
    uint8_t dialects; /* that have it; 0: it is refused */
} opcodes[256] = {
    [OP_MARK] = {"MARK", 0, BOTH},
    [OP_EMPTY_TUPLE] = {"EMPTY_TUPLE", 0, BOTH},
    [OP_STOP] = {"STOP", 0, BOTH},
    [OP_BINFLOAT] = {"BINFLOAT", 8, BOTH},
    [OP_BININT] = {"BININT", 4, BOTH},
    [OP_BININT1] = {"BININT1", 1, BOTH},
    [OP_BININT2] = {"BININT2", 2, BOTH},
    [OP_NONE] = {"NONE", 0, BOTH},
    [OP_BINPERSID] = {"BINPERSID", 0, TORCH_SAVE},
    [OP_REDUCE] = {"REDUCE", 0, BOTH},
    [OP_SHORT_BINSTRING] = {"SHORT_BINSTRING", LENGTH1, TORCH_SAVE},
    [OP_BINUNICODE] = {"BINUNICODE", LENGTH4, BOTH},
    [OP_EMPTY_LIST] = {"EMPTY_LIST", 0, BOTH},
    [OP_APPEND] = {"APPEND", 0, BOTH},
    [OP_BUILD] = {"BUILD", 0, BOTH},
    [OP_GLOBAL] = {"GLOBAL", LINES2, BOTH},
    [OP_APPENDS] = {"APPENDS", 0, BOTH},
    [OP_BINGET] = {"BINGET", 1, BOTH},
    [OP_LONG_BINGET] = {"LONG_BINGET", 4, BOTH},
    [OP_BINPUT] = {"BINPUT", 1, BOTH},
    [OP_LONG_BINPUT] = {"LONG_BINPUT", 4, BOTH},
    [OP_SETITEM] = {"SETITEM", 0, BOTH},
    [OP_TUPLE] = {"TUPLE", 0, BOTH},
    [OP_SETITEMS] = {"SETITEMS", 0, BOTH},
    [OP_EMPTY_DICT] = {"EMPTY_DICT", 0, BOTH},
    [OP_PROTO] = {"PROTO", 1, BOTH},
    [OP_NEWOBJ] = {"NEWOBJ", 0, BOTH},
    [OP_TUPLE1] = {"TUPLE1", 0, BOTH},
    [OP_TUPLE2] = {"TUPLE2", 0, BOTH},
    [OP_TUPLE3] = {"TUPLE3", 0, BOTH},
    [OP_NEWTRUE] = {"NEWTRUE", 0, BOTH},
    [OP_NEWFALSE] = {"NEWFALSE", 0, BOTH},
    [OP_LONG1] = {"LONG1", LENGTH1, BOTH},
    [OP_SHORT_BINUNICODE] = {"SHORT_BINUNICODE", LENGTH1, TORCH_META},
    [OP_EMPTY_SET] = {"EMPTY_SET", 0, TORCH_SAVE},
    [OP_STACK_GLOBAL] = {"STACK_GLOBAL", 0, TORCH_META},
    [OP_MEMOIZE] = {"MEMOIZE", 0, TORCH_META},
    [OP_FRAME] = {"FRAME", 8, TORCH_META},
    /* known by name only */
    ['0'] = {.name = "POP"},
    ['1'] = {.name = "POP_MARK"},
    ['2'] = {.name = "DUP"},
    ['B'] = {.name = "BINBYTES"},
    ['C'] = {.name = "SHORT_BINBYTES"},
    ['F'] = {.name = "FLOAT"},
    ['I'] = {.name = "INT"},
    ['L'] = {.name = "LONG"},
    ['P'] = {.name = "PERSID"},
    ['S'] = {.name = "STRING"},
    ['T'] = {.name = "BINSTRING"},
    ['V'] = {.name = "UNICODE"},
    ['d'] = {.name = "DICT"},
    ['g'] = {.name = "GET"},
    ['i'] = {.name = "INST"},
    ['l'] = {.name = "LIST"},
    ['o'] = {.name = "OBJ"},
    ['p'] = {.name = "PUT"},
    [0x82] = {.name = "EXT1"},
    [0x83] = {.name = "EXT2"},
    [0x84] = {.name = "EXT4"},
    [0x8b] = {.name = "LONG4"},
    [0x8d] = {.name = "BINUNICODE8"},
    [0x8e] = {.name = "BINBYTES8"},
    [0x90] = {.name = "ADDITEMS"},
    [0x91] = {.name = "FROZENSET"},
    [0x92] = {.name = "NEWOBJ_EX"},
    [0x96] = {.name = "BYTEARRAY8"},
    [0x97] = {.name = "NEXT_BUFFER"},
    [0x98] = {.name = "READONLY_BUFFER"},
};

/* Two lines; 0: they do not end, or late. */
static size_t lines_length(const uint8_t *p, size_t left)
{
    size_t len = 0;
    for (int i = 0; i < 2; i++) {
        const uint8_t *end = memchr(p + len, '\n', CKPT_MIN(left - len, MAX_LINE + 1));
        if (!end)
            return 0;
        len = (size_t)(end + 1 - p);
    }
    return len;
}

int ckpt_torch_op_next(const uint8_t *pickle, size_t len, size_t *at, enum torch_dialect dialect, struct torch_op *ret,
                       struct ckpt_err *err)
{
    if (*at == len)
        return ckpt_fail(err, EBADMSG, "the pickle ends without STOP");
    const uint8_t *p = pickle + *at + 1;
    size_t left = len - *at - 1;
    struct torch_op op = {.code = pickle[*at], .at = *at};
    if (!opcodes[op.code].name)
        return ckpt_fail(err, EUCLEAN, "the pickle has an unknown opcode, 0x%02x", op.code);
    if (!(opcodes[op.code].dialects & dialect))
        return ckpt_fail(err, EOPNOTSUPP, "the pickle has the opcode %s, which such files may not have",
                         opcodes[op.code].name);
    size_t arg = opcodes[op.code].arg, before = arg == LENGTH1 ? 1 : arg == LENGTH4 ? 4 : 0;
    if (left < before)
        return ckpt_fail(err, EBADMSG, "the pickle ends in the middle of %s", opcodes[op.code].name);
    if (arg == LINES2 && !(arg = lines_length(p, left)))
        return ckpt_fail(err, EUCLEAN, "a name in the pickle has no end");
    if (before)
        arg = before == 1 ? p[0] : ckpt_le32(p);
    if (left - before < arg)
        return ckpt_fail(err, EBADMSG, "the pickle ends in the middle of %s", opcodes[op.code].name);
    op.arg = p + before;
    op.len = arg;
    *at += 1 + before + arg;
    *ret = op;
    return 0;
}
