/* SPDX-License-Identifier: Apache-2.0 */
#include "core/format/pytorch/opcode.h"

#include "core/base/util.h"

#define MAX_NAME ((size_t)256)  /* bytes of a line that is a name */
#define MAX_LINE ((size_t)8192) /* of one that is a number */

/* The argument: so many bytes, or a length in front of it (S: a signed one), or lines. */
enum { LENGTH1 = 100, LENGTH4, LENGTH4S, LENGTH8, LINE, LINES2 };

static const struct {
    const char *name;
    uint8_t arg;
} opcodes[256] = {
    [OP_MARK] = {"MARK", 0},
    [OP_EMPTY_TUPLE] = {"EMPTY_TUPLE", 0},
    [OP_STOP] = {"STOP", 0},
    [OP_POP] = {"POP", 0},
    [OP_POP_MARK] = {"POP_MARK", 0},
    [OP_DUP] = {"DUP", 0},
    [OP_BINBYTES] = {"BINBYTES", LENGTH4},
    [OP_SHORT_BINBYTES] = {"SHORT_BINBYTES", LENGTH1},
    [OP_FLOAT] = {"FLOAT", LINE},
    [OP_BINFLOAT] = {"BINFLOAT", 8},
    [OP_INT] = {"INT", LINE},
    [OP_BININT] = {"BININT", 4},
    [OP_BININT1] = {"BININT1", 1},
    [OP_LONG] = {"LONG", LINE},
    [OP_BININT2] = {"BININT2", 2},
    [OP_NONE] = {"NONE", 0},
    [OP_PERSID] = {"PERSID", LINE},
    [OP_BINPERSID] = {"BINPERSID", 0},
    [OP_REDUCE] = {"REDUCE", 0},
    [OP_STRING] = {"STRING", LINE},
    [OP_BINSTRING] = {"BINSTRING", LENGTH4S},
    [OP_SHORT_BINSTRING] = {"SHORT_BINSTRING", LENGTH1},
    [OP_UNICODE] = {"UNICODE", LINE},
    [OP_BINUNICODE] = {"BINUNICODE", LENGTH4},
    [OP_EMPTY_LIST] = {"EMPTY_LIST", 0},
    [OP_APPEND] = {"APPEND", 0},
    [OP_BUILD] = {"BUILD", 0},
    [OP_GLOBAL] = {"GLOBAL", LINES2},
    [OP_DICT] = {"DICT", 0},
    [OP_APPENDS] = {"APPENDS", 0},
    [OP_GET] = {"GET", LINE},
    [OP_BINGET] = {"BINGET", 1},
    [OP_INST] = {"INST", LINES2},
    [OP_LONG_BINGET] = {"LONG_BINGET", 4},
    [OP_LIST] = {"LIST", 0},
    [OP_OBJ] = {"OBJ", 0},
    [OP_PUT] = {"PUT", LINE},
    [OP_BINPUT] = {"BINPUT", 1},
    [OP_LONG_BINPUT] = {"LONG_BINPUT", 4},
    [OP_SETITEM] = {"SETITEM", 0},
    [OP_TUPLE] = {"TUPLE", 0},
    [OP_SETITEMS] = {"SETITEMS", 0},
    [OP_EMPTY_DICT] = {"EMPTY_DICT", 0},
    [OP_PROTO] = {"PROTO", 1},
    [OP_NEWOBJ] = {"NEWOBJ", 0},
    [OP_EXT1] = {"EXT1", 1},
    [OP_EXT2] = {"EXT2", 2},
    [OP_EXT4] = {"EXT4", 4},
    [OP_TUPLE1] = {"TUPLE1", 0},
    [OP_TUPLE2] = {"TUPLE2", 0},
    [OP_TUPLE3] = {"TUPLE3", 0},
    [OP_NEWTRUE] = {"NEWTRUE", 0},
    [OP_NEWFALSE] = {"NEWFALSE", 0},
    [OP_LONG1] = {"LONG1", LENGTH1},
    [OP_LONG4] = {"LONG4", LENGTH4S},
    [OP_SHORT_BINUNICODE] = {"SHORT_BINUNICODE", LENGTH1},
    [OP_BINUNICODE8] = {"BINUNICODE8", LENGTH8},
    [OP_BINBYTES8] = {"BINBYTES8", LENGTH8},
    [OP_EMPTY_SET] = {"EMPTY_SET", 0},
    [OP_ADDITEMS] = {"ADDITEMS", 0},
    [OP_FROZENSET] = {"FROZENSET", 0},
    [OP_NEWOBJ_EX] = {"NEWOBJ_EX", 0},
    [OP_STACK_GLOBAL] = {"STACK_GLOBAL", 0},
    [OP_MEMOIZE] = {"MEMOIZE", 0},
    [OP_FRAME] = {"FRAME", 8},
    [OP_BYTEARRAY8] = {"BYTEARRAY8", LENGTH8},
    [OP_NEXT_BUFFER] = {"NEXT_BUFFER", 0},
    [OP_READONLY_BUFFER] = {"READONLY_BUFFER", 0},
};

/* Such lines end somewhere, or the pickle does. */
static int line_length(const struct torch_op *op, const uint8_t *p, size_t left, size_t *ret, struct ckpt_err *err)
{
    bool is_text = op->code == OP_STRING || op->code == OP_UNICODE;
    size_t max = is_text ? left : op->code == OP_PERSID ? MAX_NAME : MAX_LINE;
    const uint8_t *end = left ? memchr(p, '\n', CKPT_MIN(left, max + 1)) : NULL;
    if (!end)
        return left > max ? ckpt_fail(err, EUCLEAN, "the line of %s in the pickle has no end", opcodes[op->code].name)
                          : ckpt_fail(err, EBADMSG, "the pickle ends in the middle of %s", opcodes[op->code].name);
    *ret = (size_t)(end - p);
    return 0;
}

static int names_length(const uint8_t *p, size_t left, size_t *ret, struct ckpt_err *err)
{
    *ret = 0;
    for (int i = 0; i < 2; i++) {
        const uint8_t *end = *ret < left ? memchr(p + *ret, '\n', CKPT_MIN(left - *ret, MAX_NAME + 1)) : NULL;
        if (!end)
            return ckpt_fail(err, EUCLEAN, "a name in the pickle has no end");
        *ret = (size_t)(end + 1 - p);
    }
    return 0;
}

/* Of what has its length in front. A length that is too long for the pickle is found by the caller. */
static int counted_length(const struct torch_op *op, unsigned how, const uint8_t *p, size_t *ret, struct ckpt_err *err)
{
    uint64_t n = how == LENGTH1 ? p[0] : how == LENGTH8 ? ckpt_le64(p) : ckpt_le32(p);
    if (how == LENGTH4S && n > INT32_MAX)
        return ckpt_fail(err, EUCLEAN, "%s in the pickle has a negative length", opcodes[op->code].name);
    *ret = (size_t)n;
    return 0;
}

static size_t length_bytes(unsigned how)
{
    switch (how) {
    case LENGTH1:
        return 1;
    case LENGTH4:
    case LENGTH4S:
        return 4;
    case LENGTH8:
        return 8;
    default:
        return 0;
    }
}

static bool is_extension(uint8_t code)
{
    return code == OP_EXT1 || code == OP_EXT2 || code == OP_EXT4;
}

int ckpt_torch_op_next(const uint8_t *pickle, size_t len, size_t *at, struct torch_op *ret, struct ckpt_err *err)
{
    if (*at == len)
        return ckpt_fail(err, EBADMSG, "the pickle ends without STOP");
    const uint8_t *p = pickle + *at + 1;
    size_t left = len - *at - 1;
    struct torch_op op = {.code = pickle[*at], .at = *at};
    const char *name = opcodes[op.code].name;
    if (!name)
        return ckpt_fail(err, EUCLEAN, "the pickle has an unknown opcode, 0x%02x", op.code);
    if (is_extension(op.code))
        return ckpt_fail(err, EOPNOTSUPP,
                         "the pickle has the opcode %s: a class by its number in a registry (copyreg) that only the "
                         "program has that wrote it; save it again without the registry",
                         name);
    unsigned how = opcodes[op.code].arg;
    size_t before = length_bytes(how), after = how == LINE, arg = how;
    int r = 0;
    if (left < before)
        return ckpt_fail(err, EBADMSG, "the pickle ends in the middle of %s", name);
    if (before)
        r = counted_length(&op, how, p, &arg, err);
    else if (how == LINE)
        r = line_length(&op, p, left, &arg, err);
    else if (how == LINES2)
        r = names_length(p, left, &arg, err);
    if (r < 0)
        return r;
    if (left - before < arg)
        return ckpt_fail(err, EBADMSG, "the pickle ends in the middle of %s", name);
    op.arg = p + before;
    op.len = arg;
    *at += 1 + before + arg + after;
    *ret = op;
    return 0;
}
