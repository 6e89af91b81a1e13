/* SPDX-License-Identifier: Apache-2.0 */
/* The opcodes of pickles (Python's pickletools), and which of them are read. Constant; any thread. */
#ifndef CKPT_FORMAT_PYTORCH_OPCODE_H
#define CKPT_FORMAT_PYTORCH_OPCODE_H

#include "core/base/err.h"
#include "core/format/pytorch/global.h"

enum torch_opcode {
    OP_MARK = '(',
    OP_EMPTY_TUPLE = ')',
    OP_STOP = '.',
    OP_BINFLOAT = 'G',
    OP_BININT = 'J',
    OP_BININT1 = 'K',
    OP_BININT2 = 'M',
    OP_NONE = 'N',
    OP_BINPERSID = 'Q',
    OP_REDUCE = 'R',
    OP_SHORT_BINSTRING = 'U',
    OP_BINUNICODE = 'X',
    OP_EMPTY_LIST = ']',
    OP_APPEND = 'a',
    OP_BUILD = 'b',
    OP_GLOBAL = 'c',
    OP_APPENDS = 'e',
    OP_BINGET = 'h',
    OP_LONG_BINGET = 'j',
    OP_BINPUT = 'q',
    OP_LONG_BINPUT = 'r',
    OP_SETITEM = 's',
    OP_TUPLE = 't',
    OP_SETITEMS = 'u',
    OP_EMPTY_DICT = '}',
    OP_PROTO = 0x80,
    OP_NEWOBJ = 0x81,
    OP_TUPLE1 = 0x85,
    OP_TUPLE2 = 0x86,
    OP_TUPLE3 = 0x87,
    OP_NEWTRUE = 0x88,
    OP_NEWFALSE = 0x89,
    OP_LONG1 = 0x8a,
    OP_SHORT_BINUNICODE = 0x8c,
    OP_EMPTY_SET = 0x8f,
    OP_STACK_GLOBAL = 0x93,
    OP_MEMOIZE = 0x94,
    OP_FRAME = 0x95,
};

struct torch_op {
    uint8_t code;
    size_t at;          /* of the opcode */
    const uint8_t *arg; /* without its length */
    size_t len;
};

/* The opcode at *at, which is moved behind it and its argument. -EBADMSG: the pickle ends; -EUCLEAN, -EOPNOTSUPP: it
 * may not be there. */
int ckpt_torch_op_next(const uint8_t *pickle, size_t len, size_t *at, enum torch_dialect dialect, struct torch_op *ret,
                       struct ckpt_err *err) CKPT_MUST_USE;

#endif
