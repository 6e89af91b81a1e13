/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Two passes. The first only finds out which entries of the memo are ever fetched: pickles memoise all that they make,
 * and all but few of it is never asked for again. The second builds the graph.
 */
#include "core/format/pytorch/pickle.h"

#include "core/base/util.h"
#include "core/format/pytorch/machine.h"
#include "core/format/pytorch/record.h"

/* --- the memo --- */

static int expect(struct torch_machine *m, const struct torch_op *op)
{
    uint32_t key = 0;
    int r = 0;
    if (op->code == OP_BINGET)
        key = op->arg[0];
    else if (op->code == OP_LONG_BINGET)
        key = ckpt_le32(op->arg);
    else if (op->code == OP_GET)
        r = ckpt_machine_line_number(m, op, &key);
    else
        return 0;
    return r < 0 ? r : ckpt_machine_made(m, ckpt_torch_memo_expect(&m->memo, key));
}

static int check_protocol(struct torch_machine *m, uint8_t protocol)
{
    return protocol > 5 ? ckpt_fail(m->err, EOPNOTSUPP, "pickled with protocol %u, which is not known", protocol) : 0;
}

/* The first pass: what is fetched, and that all opcodes up to STOP can be read. */
static int expect_all(struct torch_machine *m)
{
    struct torch_op op = {0};
    int r = 0;
    for (size_t at = 0; r == 0 && op.code != OP_STOP;) {
        r = ckpt_torch_op_next(m->g.pickle, m->g.len, &at, &op, m->err);
        if (r == 0)
            r = op.code == OP_PROTO ? check_protocol(m, op.arg[0]) : expect(m, &op);
    }
    return r;
}

static int get(struct torch_machine *m, uint32_t key)
{
    torch_value v = ckpt_torch_memo_get(&m->memo, key);
    return v == TORCH_NOTHING ? ckpt_machine_malformed(m, "something is fetched from the memo that was never put there")
                              : ckpt_machine_push(m, v);
}

static int put(struct torch_machine *m, uint32_t key)
{
    int r = ckpt_machine_need(m, 1);
    m->memoized++;
    if (r == 0 && ckpt_torch_memo_put(&m->memo, key, m->stack[m->depth - 1].value))
        m->floor = m->g.count;
    return r;
}

static int memo_op(struct torch_machine *m, const struct torch_op *op)
{
    uint32_t key = 0;
    int r;
    switch (op->code) {
    case OP_BINGET:
        return get(m, op->arg[0]);
    case OP_LONG_BINGET:
        return get(m, ckpt_le32(op->arg));
    case OP_BINPUT:
        return put(m, op->arg[0]);
    case OP_LONG_BINPUT:
        return put(m, ckpt_le32(op->arg));
    case OP_MEMOIZE:
        return put(m, m->memoized);
    default: /* GET, PUT */
        r = ckpt_machine_line_number(m, op, &key);
        return r < 0 ? r : op->code == OP_GET ? get(m, key) : put(m, key);
    }
}

/* --- the stack --- */

static int pop_mark(struct torch_machine *m, const struct torch_op *op)
{
    return ckpt_machine_unmark(m, &m->depth);
}

/* A mark, where nothing lies on it. */
static int pop(struct torch_machine *m, const struct torch_op *op)
{
    if (m->mark_count && m->depth == ckpt_machine_bottom(m))
        return pop_mark(m, op);
    int r = ckpt_machine_need(m, 1);
    if (r == 0)
        m->depth--;
    return r;
}

static int duplicate(struct torch_machine *m, const struct torch_op *op)
{
    int r = ckpt_machine_need(m, 1);
    return r < 0 ? r : ckpt_machine_push(m, m->stack[m->depth - 1].value);
}

static int mark(struct torch_machine *m, const struct torch_op *op)
{
    return ckpt_machine_mark(m);
}

/* --- containers --- */

static int short_tuple(struct torch_machine *m, const struct torch_op *op)
{
    uint32_t count = op->code == OP_EMPTY_TUPLE ? 0 : op->code - OP_TUPLE1 + 1u;
    int r = ckpt_machine_need(m, count);
    return r < 0 ? r : ckpt_machine_tuple(m, m->depth - count);
}

static int empty_container(struct torch_machine *m, const struct torch_op *op)
{
    if (op->code == OP_EMPTY_SET)
        return ckpt_machine_set(m, "set", m->depth);
    return ckpt_machine_new_container(m, op->code == OP_EMPTY_LIST ? TORCH_LIST : TORCH_DICT, false, m->g.count);
}

/* One item, or a key and its value. */
static int fill_one(struct torch_machine *m, const struct torch_op *op)
{
    uint32_t count = op->code == OP_APPEND ? 1 : 2;
    int r = ckpt_machine_need(m, count + 1);
    return r < 0 ? r : ckpt_machine_fill(m, op->code == OP_APPEND ? TORCH_LIST : TORCH_DICT, m->depth - count);
}

/* What takes all down to the last mark. */
static int marked(struct torch_machine *m, const struct torch_op *op)
{
    uint32_t from = 0;
    int r = ckpt_machine_unmark(m, &from);
    if (r < 0)
        return r;
    switch (op->code) {
    case OP_TUPLE:
        return ckpt_machine_tuple(m, from);
    case OP_LIST:
        return ckpt_machine_list(m, from);
    case OP_DICT:
        return ckpt_machine_dict(m, from);
    case OP_FROZENSET:
        return ckpt_machine_set(m, "frozenset", from);
    case OP_APPENDS:
        return ckpt_machine_fill(m, TORCH_LIST, from);
    case OP_SETITEMS:
        return ckpt_machine_fill(m, TORCH_DICT, from);
    case OP_ADDITEMS:
        return ckpt_machine_fill(m, TORCH_CALL, from);
    default: /* OBJ */
        return ckpt_machine_instance(m, from);
    }
}

/* --- names and calls --- */

/* A class in the opcode, and its arguments down to the last mark. */
static int inst(struct torch_machine *m, const struct torch_op *op)
{
    uint32_t from = 0, start;
    torch_value args;
    int r = ckpt_machine_unmark(m, &from);
    if (r == 0)
        r = ckpt_machine_tuple(m, from);
    if (r < 0)
        return r;
    args = m->stack[from].value;
    start = m->stack[from].start;
    m->depth = from;
    r = ckpt_machine_global(m, op);
    if (r < 0)
        return r;
    m->stack[from].start = start;
    r = ckpt_machine_push(m, args);
    return r < 0 ? r : ckpt_machine_reduce(m);
}

static int stack_global(struct torch_machine *m, const struct torch_op *op)
{
    return ckpt_machine_stack_global(m);
}

static int reduce(struct torch_machine *m, const struct torch_op *op)
{
    return ckpt_machine_reduce(m);
}

static int new_object(struct torch_machine *m, const struct torch_op *op)
{
    return ckpt_machine_new_object(m, op->code == OP_NEWOBJ_EX);
}

static int build(struct torch_machine *m, const struct torch_op *op)
{
    return ckpt_machine_build(m);
}

static int persistent(struct torch_machine *m, const struct torch_op *op)
{
    int r = op->code == OP_PERSID ? ckpt_machine_literal(m, op) : 0;
    return r < 0 ? r : ckpt_machine_persistent(m);
}

/* --- the machine --- */

static int frame(struct torch_machine *m, const struct torch_op *op)
{
    size_t left = m->g.len - op->at - 9;
    return ckpt_le64(op->arg) > left ? ckpt_fail(m->err, EBADMSG, "the pickle ends in the middle of a frame") : 0;
}

static int nothing(struct torch_machine *m, const struct torch_op *op)
{
    return 0;
}

/* A buffer may be read only, which makes no difference here. */
static int readonly(struct torch_machine *m, const struct torch_op *op)
{
    return ckpt_machine_need(m, 1);
}

typedef int handler(struct torch_machine *m, const struct torch_op *op);

/* Of all opcodes that ckpt_torch_op_next gives. */
static handler *const handlers[256] = {
    [OP_MARK] = mark,
    [OP_EMPTY_TUPLE] = short_tuple,
    [OP_STOP] = nothing,
    [OP_POP] = pop,
    [OP_POP_MARK] = pop_mark,
    [OP_DUP] = duplicate,
    [OP_BINBYTES] = ckpt_machine_literal,
    [OP_SHORT_BINBYTES] = ckpt_machine_literal,
    [OP_FLOAT] = ckpt_machine_literal,
    [OP_BINFLOAT] = ckpt_machine_literal,
    [OP_INT] = ckpt_machine_literal,
    [OP_BININT] = ckpt_machine_literal,
    [OP_BININT1] = ckpt_machine_literal,
    [OP_LONG] = ckpt_machine_literal,
    [OP_BININT2] = ckpt_machine_literal,
    [OP_NONE] = ckpt_machine_literal,
    [OP_PERSID] = persistent,
    [OP_BINPERSID] = persistent,
    [OP_REDUCE] = reduce,
    [OP_STRING] = ckpt_machine_literal,
    [OP_BINSTRING] = ckpt_machine_literal,
    [OP_SHORT_BINSTRING] = ckpt_machine_literal,
    [OP_UNICODE] = ckpt_machine_literal,
    [OP_BINUNICODE] = ckpt_machine_literal,
    [OP_EMPTY_LIST] = empty_container,
    [OP_APPEND] = fill_one,
    [OP_BUILD] = build,
    [OP_GLOBAL] = ckpt_machine_global,
    [OP_DICT] = marked,
    [OP_APPENDS] = marked,
    [OP_GET] = memo_op,
    [OP_BINGET] = memo_op,
    [OP_INST] = inst,
    [OP_LONG_BINGET] = memo_op,
    [OP_LIST] = marked,
    [OP_OBJ] = marked,
    [OP_PUT] = memo_op,
    [OP_BINPUT] = memo_op,
    [OP_LONG_BINPUT] = memo_op,
    [OP_SETITEM] = fill_one,
    [OP_TUPLE] = marked,
    [OP_SETITEMS] = marked,
    [OP_EMPTY_DICT] = empty_container,
    [OP_PROTO] = nothing,
    [OP_NEWOBJ] = new_object,
    [OP_TUPLE1] = short_tuple,
    [OP_TUPLE2] = short_tuple,
    [OP_TUPLE3] = short_tuple,
    [OP_NEWTRUE] = ckpt_machine_literal,
    [OP_NEWFALSE] = ckpt_machine_literal,
    [OP_LONG1] = ckpt_machine_literal,
    [OP_LONG4] = ckpt_machine_literal,
    [OP_SHORT_BINUNICODE] = ckpt_machine_literal,
    [OP_BINUNICODE8] = ckpt_machine_literal,
    [OP_BINBYTES8] = ckpt_machine_literal,
    [OP_EMPTY_SET] = empty_container,
    [OP_ADDITEMS] = marked,
    [OP_FROZENSET] = marked,
    [OP_NEWOBJ_EX] = new_object,
    [OP_STACK_GLOBAL] = stack_global,
    [OP_MEMOIZE] = memo_op,
    [OP_FRAME] = frame,
    [OP_BYTEARRAY8] = ckpt_machine_literal,
    [OP_NEXT_BUFFER] = ckpt_machine_literal,
    [OP_READONLY_BUFFER] = readonly,
};

static int run(struct torch_machine *m)
{
    struct torch_op op = {0};
    int r = expect_all(m);
    for (size_t at = 0; r == 0 && op.code != OP_STOP;) {
        r = ckpt_torch_op_next(m->g.pickle, m->g.len, &at, &op, m->err);
        if (r == 0)
            r = handlers[op.code](m, &op);
        m->g.end = at;
    }
    if (r == 0 && (m->depth != 1 || m->mark_count))
        r = ckpt_machine_malformed(m, "it does not end with one object");
    if (r == 0)
        m->g.top = m->stack[0].value;
    return r;
}

int ckpt_torch_pickle_load(uint8_t *pickle, size_t len, enum torch_dialect dialect, struct ckpt_buf *records,
                           uint64_t archive, struct torch_graph *ret, struct ckpt_err *err)
{
    return ckpt_torch_pickle_load_noting(pickle, len, dialect, records, archive, NULL, ret, err);
}

/* m: with the pickle and what else is known of it. */
static int load(struct torch_machine *m, struct torch_graph *ret)
{
    int r = m->g.len > TORCH_MAX_PICKLE
                ? ckpt_fail(m->err, EUCLEAN, "a pickle of %zu bytes; at most %zu are read", m->g.len, TORCH_MAX_PICKLE)
                : run(m);
    free(m->stack);
    free(m->marks);
    ckpt_torch_memo_clear(&m->memo);
    if (r < 0)
        ckpt_torch_graph_clear(&m->g);
    else
        *ret = m->g;
    return r;
}

int ckpt_torch_pickle_load_noting(uint8_t *pickle, size_t len, enum torch_dialect dialect, struct ckpt_buf *records,
                                  uint64_t archive, struct torch_storages *storages, struct torch_graph *ret,
                                  struct ckpt_err *err)
{
    struct torch_machine m = {.g = {.pickle = pickle, .len = len, .size = len, .room = len, .archive = archive},
                              .dialect = dialect,
                              .records = records,
                              .storages = storages,
                              .err = err};
    return load(&m, ret);
}

int ckpt_torch_pickle_load_plain(uint8_t *pickle, size_t len, struct torch_far *fars, uint32_t far_count,
                                 struct ckpt_buf *records, struct torch_graph *ret, struct ckpt_err *err)
{
    struct torch_machine m = {.g = {.pickle = pickle,
                                    .len = len,
                                    .size = len,
                                    .room = len,
                                    .archive = TORCH_RANGES,
                                    .fars = fars,
                                    .far_count = far_count},
                              .dialect = TORCH_SAVE,
                              .records = records,
                              .err = err};
    return load(&m, ret);
}
