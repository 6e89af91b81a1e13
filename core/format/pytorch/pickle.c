/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Two passes. The first only finds out which entries of the memo are ever fetched: pickles memoise all that they make,
 * and all but few of it is never asked for again. The second builds the graph.
 *
 * What goes into a tensor, some ten objects, is given back when its record has been made, since a checkpoint has many
 * of them: each value on the stack knows where the words ended when its making began, and the words from there on are
 * of nobody else, unless something was put into the memo or into a container since (`floor`).
 */
#include "core/format/pytorch/pickle.h"

#include "core/base/util.h"
#include "core/format/pytorch/memo.h"
#include "core/format/pytorch/opcode.h"
#include "core/format/pytorch/rebuild.h"

#include <stdio.h>

#define MAX_STACK     (1u << 21)
#define MAX_MARKS     (1u << 20)
#define MAX_KEY_DEPTH 8 /* of tuples in a key */
#define MAX_LOOKS                                                                                                      \
    (1u << 28) /* at items: what is in a tuple or list that many others share is looked at for each of them */

struct entry {
    torch_value value;
    uint32_t start; /* words there were when its making began */
};

struct machine {
    struct torch_graph g;
    enum torch_dialect dialect;
    struct ckpt_buf *records;
    struct entry *stack;
    uint32_t depth, stack_cap;
    uint32_t *marks; /* depths */
    uint32_t mark_count, mark_cap;
    struct torch_memo memo;
    uint32_t memoized;
    uint32_t floor; /* words that may be referred to from elsewhere than the stack */
    uint32_t looks;
    struct torch_storages *storages;
    struct ckpt_err *err;
};

/* --- failing --- */

static int malformed(struct machine *m, const char *what)
{
    return ckpt_fail(m->err, EUCLEAN, "the pickle is malformed: %s", what);
}

static int no_room(struct machine *m, int r)
{
    if (r == -EFBIG)
        return ckpt_fail(m->err, EUCLEAN, "the pickle describes more than is read of one");
    return ckpt_no_memory(m->err);
}

/* Through a function of the graph. */
static int made(struct machine *m, int r)
{
    return r < 0 ? no_room(m, r) : 0;
}

/* --- the memo --- */

static int memo_expect(struct machine *m, uint32_t key)
{
    int r = ckpt_torch_memo_expect(&m->memo, key);
    return r < 0 ? no_room(m, r) : 0;
}

static void memo_put(struct machine *m, uint32_t key, torch_value value)
{
    if (ckpt_torch_memo_put(&m->memo, key, value))
        m->floor = m->g.count;
}

static int check_protocol(struct machine *m, uint8_t protocol)
{
    if (m->dialect == TORCH_SAVE && protocol != 2)
        return ckpt_fail(m->err, EOPNOTSUPP,
                         "pickled with protocol %u instead of 2; save it again without pickle_protocol", protocol);
    return protocol > 5 ? ckpt_fail(m->err, EOPNOTSUPP, "pickled with protocol %u, which is not known", protocol) : 0;
}

/* The first pass: what is fetched, and that all opcodes up to STOP are ones that are read. */
static int expect_all(struct machine *m)
{
    struct torch_op op = {0};
    int r = 0;
    for (size_t at = 0; r == 0 && op.code != OP_STOP;) {
        r = ckpt_torch_op_next(m->g.pickle, m->g.len, &at, m->dialect, &op, m->err);
        if (r == 0 && op.code == OP_PROTO)
            r = check_protocol(m, op.arg[0]);
        else if (r == 0 && op.code == OP_BINGET)
            r = memo_expect(m, op.arg[0]);
        else if (r == 0 && op.code == OP_LONG_BINGET)
            r = memo_expect(m, ckpt_le32(op.arg));
    }
    return r;
}

/* --- the stack --- */

static int push_from(struct machine *m, torch_value value, uint32_t start)
{
    if (m->depth == m->stack_cap) {
        uint32_t cap = m->stack_cap ? m->stack_cap * 2 : 256;
        struct entry *p = cap > MAX_STACK ? NULL : realloc(m->stack, cap * sizeof *p);
        if (!p)
            return no_room(m, cap > MAX_STACK ? -EFBIG : -ENOMEM);
        m->stack = p;
        m->stack_cap = cap;
    }
    m->stack[m->depth++] = (struct entry){value, start};
    m->g.values++;
    return 0;
}

/* A value that needs no words. */
static int push(struct machine *m, torch_value value)
{
    return push_from(m, value, m->g.count);
}

/* The lowest entry that may be taken: those below belong to an open mark. */
static uint32_t bottom(const struct machine *m)
{
    return m->mark_count ? m->marks[m->mark_count - 1] : 0;
}

static int need(struct machine *m, uint32_t count)
{
    return m->depth - bottom(m) < count ? malformed(m, "something is taken from an empty stack") : 0;
}

static int mark(struct machine *m)
{
    if (m->mark_count == m->mark_cap) {
        uint32_t cap = m->mark_cap ? m->mark_cap * 2 : 64;
        uint32_t *p = cap > MAX_MARKS ? NULL : realloc(m->marks, cap * sizeof *p);
        if (!p)
            return no_room(m, cap > MAX_MARKS ? -EFBIG : -ENOMEM);
        m->marks = p;
        m->mark_cap = cap;
    }
    m->marks[m->mark_count++] = m->depth;
    return 0;
}

/* *ret: the depth at the last mark, which is taken away. */
static int unmark(struct machine *m, uint32_t *ret)
{
    if (!m->mark_count)
        return malformed(m, "no mark where one should be");
    *ret = m->marks[--m->mark_count];
    return 0;
}

/* Give back the words that were used for values that are no longer on the stack, from `start` on. */
static void give_back(struct machine *m, uint32_t start)
{
    if (m->floor <= start)
        m->g.count = start;
}

/* --- strings and names --- */

static int push_string(struct machine *m, const struct torch_op *op)
{
    return ckpt_utf8(op->arg, op->len) ? push(m, ckpt_torch_atom(op->at)) : malformed(m, "a string is not UTF-8");
}

static int push_global(struct machine *m, const char *module, size_t module_len, const char *name, size_t name_len)
{
    uint32_t global = ckpt_torch_global_find(m->dialect, module, module_len, name, name_len);
    if (global != TORCH_NO_GLOBAL)
        return push(m, ckpt_torch_global_value(global));
    char full[200];
    struct ckpt_buf text = CKPT_BUF_INIT; /* without control characters */
    int len = snprintf(full, sizeof full, "%.*s.%.*s", (int)CKPT_MIN(module_len, (size_t)90), module,
                       (int)CKPT_MIN(name_len, (size_t)90), name);
    ckpt_buf_add_json_string(&text, full, (size_t)len);
    ckpt_buf_addc(&text, 0);
    int r = ckpt_buf_error(&text) ? no_room(m, -ENOMEM)
                                  : ckpt_fail(m->err, EOPNOTSUPP, "the pickle asks for %.300s, which is not plain data",
                                              (char *)text.data);
    ckpt_buf_clear(&text);
    return r;
}

static int op_global(struct machine *m, const struct torch_op *op)
{
    const char *module = (const char *)op->arg, *end = memchr(module, '\n', op->len);
    return push_global(m, module, (size_t)(end - module), end + 1, op->len - (size_t)(end + 1 - module) - 1);
}

static int op_stack_global(struct machine *m)
{
    size_t module_len, name_len;
    int r = need(m, 2);
    if (r < 0)
        return r;
    torch_value module = m->stack[m->depth - 2].value, name = m->stack[m->depth - 1].value;
    if (ckpt_torch_kind(&m->g, module) != TORCH_STR || ckpt_torch_kind(&m->g, name) != TORCH_STR)
        return malformed(m, "a name is no string");
    const char *p = ckpt_torch_str(&m->g, module, &module_len), *q = ckpt_torch_str(&m->g, name, &name_len);
    m->depth -= 2;
    return push_global(m, p, module_len, q, name_len);
}

/* --- containers --- */

static int make_tuple(struct machine *m, uint32_t from)
{
    uint32_t count = m->depth - from, start = count ? m->stack[from].start : m->g.count;
    torch_value tuple;
    int r = made(m, ckpt_torch_new_tuple(&m->g, count, &tuple));
    if (r < 0)
        return r;
    for (uint32_t i = 0; i < count; i++)
        ckpt_torch_set_item(&m->g, tuple, i, m->stack[from + i].value);
    m->depth = from;
    return push_from(m, tuple, start);
}

static int op_tuple(struct machine *m, uint32_t count)
{
    int r = need(m, count);
    return r < 0 ? r : make_tuple(m, m->depth - count);
}

static int op_marked_tuple(struct machine *m)
{
    uint32_t from = 0;
    int r = unmark(m, &from);
    return r < 0 ? r : make_tuple(m, from);
}

static int new_container(struct machine *m, enum torch_kind kind, bool ordered, uint32_t start)
{
    torch_value v;
    int r = made(m, ckpt_torch_new_container(&m->g, kind, ordered, &v));
    return r < 0 ? r : push_from(m, v, start);
}

/* True while so many items more may be looked at. */
static bool look(struct machine *m, uint32_t items)
{
    if (items > MAX_LOOKS - m->looks)
        return false;
    m->looks += items;
    return true;
}

/* What Python could hash and what has a name. */
static bool is_key(struct machine *m, torch_value v, unsigned depth)
{
    const struct torch_graph *g = &m->g;
    switch (ckpt_torch_kind(g, v)) {
    case TORCH_NONE:
    case TORCH_BOOL:
    case TORCH_INT:
    case TORCH_FLOAT:
    case TORCH_STR:
    case TORCH_OBJECT: /* an index of .metadata */
        return true;
    case TORCH_TUPLE:
        if (depth == MAX_KEY_DEPTH || !look(m, ckpt_torch_count(g, v)))
            return false;
        for (uint32_t i = 0; i < ckpt_torch_count(g, v); i++)
            if (!is_key(m, ckpt_torch_item(g, v, i), depth + 1))
                return false;
        return true;
    default:
        return false;
    }
}

/* The entries from `from` on go into the container below them. */
static int fill(struct machine *m, enum torch_kind kind, uint32_t from)
{
    torch_value items[256], container;
    uint32_t count = m->depth - from, at = from;
    if (from <= bottom(m))
        return malformed(m, "something is taken from an empty stack");
    container = m->stack[from - 1].value;
    if (ckpt_torch_kind(&m->g, container) != kind)
        return malformed(m, kind == TORCH_LIST ? "something is appended to what is no list"
                                               : "a key is set in what is no dict");
    if (kind == TORCH_DICT && count % 2)
        return malformed(m, "a key has no value");
    for (uint32_t i = 0; kind == TORCH_DICT && i < count; i += 2)
        if (!is_key(m, m->stack[from + i].value, 0))
            return ckpt_fail(m->err, EUCLEAN,
                             "a dict has a key that is neither a string nor a number, nor a tuple of them");
    while (at < m->depth) {
        uint32_t n = 0;
        while (at < m->depth && n < sizeof items / sizeof *items)
            items[n++] = m->stack[at++].value;
        int r = made(m, ckpt_torch_append(&m->g, container, items, n));
        if (r < 0)
            return r;
    }
    m->depth = from;
    m->floor = m->g.count;
    return 0;
}

static int op_fill(struct machine *m, enum torch_kind kind, uint32_t count)
{
    int r = need(m, count + 1);
    return r < 0 ? r : fill(m, kind, m->depth - count);
}

static int op_fill_marked(struct machine *m, enum torch_kind kind)
{
    uint32_t from = 0;
    int r = unmark(m, &from);
    return r < 0 ? r : fill(m, kind, from);
}

/* --- calls --- */

/* ('module', class, its file, its text): files from before PyTorch 1.6 name the classes of modules so. */
static torch_value class_of_module(const struct torch_graph *g, torch_value id)
{
    if (ckpt_torch_kind(g, id) != TORCH_TUPLE || ckpt_torch_count(g, id) != 4)
        return TORCH_NOTHING;
    return ckpt_torch_str_is(g, ckpt_torch_item(g, id, 0), "module") ? ckpt_torch_item(g, id, 1) : TORCH_NOTHING;
}

static int op_persistent_id(struct machine *m)
{
    struct torch_storage s;
    torch_value v;
    int r = need(m, 1);
    if (r < 0)
        return r;
    torch_value class = class_of_module(&m->g, m->stack[m->depth - 1].value);
    if (class != TORCH_NOTHING) {
        m->stack[m->depth - 1].value = class;
        return 0;
    }
    r = ckpt_torch_rebuild_storage(&m->g, m->stack[m->depth - 1].value, &s, m->err);
    if (r < 0)
        return r;
    if (m->storages)
        ckpt_torch_storages_note(m->storages, &s);
    uint32_t start = m->stack[--m->depth].start;
    give_back(m, start);
    r = made(m, ckpt_torch_new_storage(&m->g, &s, &v));
    return r < 0 ? r : push_from(m, v, start);
}

static int replace_by_tensor(struct machine *m, uint32_t start, const struct torch_tensor *t)
{
    size_t at = ckpt_torch_add_tensor(m->records, t);
    m->depth -= 2;
    give_back(m, start);
    return ckpt_buf_error(m->records) < 0 ? no_room(m, ckpt_buf_error(m->records))
                                          : push_from(m, ckpt_torch_tensor_value(at), start);
}

static bool is_bytes(const struct torch_graph *g, torch_value v)
{
    return ckpt_torch_is(g, v, TORCH_CALL, TORCH_IS_ENCODE) || ckpt_torch_is(g, v, TORCH_CALL, TORCH_IS_BYTES);
}

/* Characters that are one byte each in Latin-1. */
static bool is_latin1(const char *p, size_t len)
{
    for (size_t i = 0; i < len; i++)
        if ((uint8_t)p[i] > 0xc3)
            return false;
    return true;
}

/* A string, and the name of a codec: only Latin-1, which makes bytes of it. */
static bool encodes(struct machine *m, torch_value args, const char *codec)
{
    const struct torch_graph *g = &m->g;
    size_t len;
    if (ckpt_torch_count(g, args) != 2 || ckpt_torch_kind(g, ckpt_torch_item(g, args, 0)) != TORCH_STR ||
        !ckpt_torch_str_is(g, ckpt_torch_item(g, args, 1), codec))
        return false;
    const char *text = ckpt_torch_str(g, ckpt_torch_item(g, args, 0), &len);
    return look(m, (uint32_t)len) && is_latin1(text, len);
}

static bool is_set(struct machine *m, torch_value args)
{
    const struct torch_graph *g = &m->g;
    struct torch_walk w;
    torch_value v;
    if (!ckpt_torch_count(g, args))
        return true;
    if (ckpt_torch_count(g, args) != 1 || ckpt_torch_kind(g, ckpt_torch_item(g, args, 0)) != TORCH_LIST)
        return false;
    if (!look(m, ckpt_torch_count(g, ckpt_torch_item(g, args, 0))))
        return false;
    ckpt_torch_walk_init(&w, g, ckpt_torch_item(g, args, 0));
    while (ckpt_torch_walk_next(&w, &v))
        if (!is_key(m, v, 0))
            return false;
    return true;
}

static bool are_integers(struct machine *m, torch_value tuple)
{
    const struct torch_graph *g = &m->g;
    if (ckpt_torch_kind(g, tuple) != TORCH_TUPLE || !look(m, ckpt_torch_count(g, tuple)))
        return false;
    for (uint32_t i = 0; i < ckpt_torch_count(g, tuple); i++)
        if (ckpt_torch_kind(g, ckpt_torch_item(g, tuple, i)) != TORCH_INT)
            return false;
    return true;
}

/* Are these the arguments with which torch.save and distributed checkpoints call it? */
static bool fits(struct machine *m, const struct torch_global *callee, torch_value args)
{
    const struct torch_graph *g = &m->g;
    uint32_t n = ckpt_torch_count(g, args);
    torch_value first = n ? ckpt_torch_item(g, args, 0) : TORCH_NOTHING,
                second = n > 1 ? ckpt_torch_item(g, args, 1) : TORCH_NOTHING;
    switch (callee->meaning) {
    case TORCH_IS_SIZE:
        return n == 1 && are_integers(m, first);
    case TORCH_IS_DEVICE:
        return (n == 1 || (n == 2 && ckpt_torch_kind(g, second) == TORCH_INT)) &&
               ckpt_torch_kind(g, first) == TORCH_STR;
    case TORCH_IS_ENCODE:
        return encodes(m, args, "latin1");
    case TORCH_IS_BYTES:
        return n == 0;
    case TORCH_IS_BYTEARRAY:
        return n == 0 || (n == 1 && is_bytes(g, first)) || encodes(m, args, "latin-1");
    case TORCH_IS_COMPLEX:
        return n == 2 && ckpt_torch_kind(g, first) == TORCH_FLOAT && ckpt_torch_kind(g, second) == TORCH_FLOAT;
    case TORCH_IS_SET:
        return is_set(m, args);
    case TORCH_IS_LAYOUT:
        return n == 1 && ckpt_torch_kind(g, first) == TORCH_STR;
    case TORCH_IS_OPAQUE:
        return true;
    case TORCH_IS_GETATTR:
        return n == 2 && ckpt_torch_is(g, first, TORCH_GLOBAL, TORCH_IS_OPAQUE) &&
               ckpt_torch_kind(g, second) == TORCH_STR;
    default:
        return false;
    }
}

/* (tensor, requires_grad, hooks[, state]): its tensor. */
static int rebuild_parameter(struct machine *m, torch_value args, uint32_t count, uint32_t start)
{
    if (ckpt_torch_count(&m->g, args) != count ||
        ckpt_torch_kind(&m->g, ckpt_torch_item(&m->g, args, 0)) != TORCH_TENSOR)
        return malformed(m, "a parameter has no tensor");
    torch_value tensor = ckpt_torch_item(&m->g, args, 0);
    m->depth -= 2;
    give_back(m, start);
    return push_from(m, tensor, start);
}

/* The first argument itself. */
static int take_first(struct machine *m, torch_value args, uint32_t start)
{
    if (!ckpt_torch_count(&m->g, args))
        return malformed(m, "a typed value is not there");
    m->depth -= 2;
    return push_from(m, ckpt_torch_item(&m->g, args, 0), start);
}

static int op_reduce(struct machine *m)
{
    struct torch_tensor t = {0};
    torch_value v;
    int r = need(m, 2);
    if (r < 0)
        return r;
    torch_value callee = m->stack[m->depth - 2].value, args = m->stack[m->depth - 1].value;
    uint32_t start = m->stack[m->depth - 2].start;
    if (ckpt_torch_kind(&m->g, callee) != TORCH_GLOBAL || ckpt_torch_kind(&m->g, args) != TORCH_TUPLE)
        return malformed(m, "something is called that is no name, or without arguments");
    const struct torch_global *global = ckpt_torch_global_of(&m->g, callee);
    switch (global->meaning) {
    case TORCH_IS_TENSOR_V2:
    case TORCH_IS_TENSOR_V3:
        r = ckpt_torch_rebuild_tensor(&m->g, args, global->meaning == TORCH_IS_TENSOR_V3, &t, m->err);
        return r < 0 ? r : replace_by_tensor(m, start, &t);
    case TORCH_IS_SPARSE:
        t.fault = TORCH_SPARSE;
        return replace_by_tensor(m, start, &t);
    case TORCH_IS_QUANTISED:
        t.fault = TORCH_QUANTISED;
        return replace_by_tensor(m, start, &t);
    case TORCH_IS_PARAMETER:
        return rebuild_parameter(m, args, 3, start);
    case TORCH_IS_PARAMETER_STATE:
        return rebuild_parameter(m, args, 4, start);
    case TORCH_IS_TYPED:
        return take_first(m, args, start);
    case TORCH_IS_ORDERED_DICT:
        if (ckpt_torch_count(&m->g, args))
            return malformed(m, "an OrderedDict is made of something");
        m->depth -= 2;
        give_back(m, start);
        return new_container(m, TORCH_DICT, true, start);
    default:
        if (!fits(m, global, args))
            return ckpt_fail(m->err, EUCLEAN, "the pickle calls %s.%s with arguments that it never has", global->module,
                             global->name);
        m->depth -= 2;
        r = made(m, ckpt_torch_new_call(&m->g, ckpt_torch_global_number(&m->g, callee), args, &v));
        return r < 0 ? r : push_from(m, v, start);
    }
}

static int op_new_object(struct machine *m)
{
    torch_value v;
    int r = need(m, 2);
    if (r < 0)
        return r;
    torch_value class = m->stack[m->depth - 2].value, args = m->stack[m->depth - 1].value;
    uint32_t start = m->stack[m->depth - 2].start;
    if (ckpt_torch_kind(&m->g, args) != TORCH_TUPLE || ckpt_torch_count(&m->g, args))
        return malformed(m, "an object is made of something");
    bool ordered = ckpt_torch_is(&m->g, class, TORCH_GLOBAL, TORCH_IS_ORDERED_DICT);
    if (!ordered && !ckpt_torch_is(&m->g, class, TORCH_GLOBAL, TORCH_IS_CLASS))
        return malformed(m, "an object is made of what is no class");
    m->depth -= 2;
    if (ordered)
        return new_container(m, TORCH_DICT, true, start);
    r = made(m, ckpt_torch_new_object(&m->g, ckpt_torch_global_number(&m->g, class), &v));
    return r < 0 ? r : push_from(m, v, start);
}

/* The state of an object is kept; that of an OrderedDict, its attributes (a state dict's _metadata), is of no use here.
 */
static int op_build(struct machine *m)
{
    int r = need(m, 2);
    if (r < 0)
        return r;
    torch_value object = m->stack[m->depth - 2].value, state = m->stack[m->depth - 1].value;
    enum torch_kind kind = ckpt_torch_kind(&m->g, state), of = ckpt_torch_kind(&m->g, object);
    if (of == TORCH_OBJECT ? kind != TORCH_DICT && kind != TORCH_TUPLE
                           : kind != TORCH_DICT || of != TORCH_DICT || !ckpt_torch_ordered(&m->g, object))
        return malformed(m, "BUILD of what has no state");
    m->depth--;
    if (of == TORCH_OBJECT) {
        ckpt_torch_set_state(&m->g, object, state);
        m->floor = m->g.count;
    }
    return 0;
}

static int op_empty_set(struct machine *m)
{
    torch_value args, set;
    uint32_t start = m->g.count, global = ckpt_torch_global_find(m->dialect, "builtins", 8, "set", 3);
    int r = made(m, ckpt_torch_new_tuple(&m->g, 0, &args));
    if (r == 0)
        r = made(m, ckpt_torch_new_call(&m->g, global, args, &set));
    return r < 0 ? r : push_from(m, set, start);
}

/* --- the machine --- */

static int op_get(struct machine *m, uint32_t key)
{
    torch_value v = ckpt_torch_memo_get(&m->memo, key);
    return v == TORCH_NOTHING ? malformed(m, "something is fetched from the memo that was never put there")
                              : push(m, v);
}

static int op_put(struct machine *m, uint32_t key)
{
    int r = need(m, 1);
    if (r == 0)
        memo_put(m, key, m->stack[m->depth - 1].value);
    return r;
}

static int op_frame(struct machine *m, const struct torch_op *op)
{
    size_t left = m->g.len - op->at - 9;
    return ckpt_le64(op->arg) > left ? ckpt_fail(m->err, EBADMSG, "the pickle ends in the middle of a frame") : 0;
}

static int step(struct machine *m, const struct torch_op *op)
{
    switch (op->code) {
    case OP_FRAME:
        return op_frame(m, op);
    case OP_MARK:
        return mark(m);
    case OP_NONE:
    case OP_NEWTRUE:
    case OP_NEWFALSE:
    case OP_BININT:
    case OP_BININT1:
    case OP_BININT2:
    case OP_LONG1:
    case OP_BINFLOAT:
        return push(m, ckpt_torch_atom(op->at));
    case OP_BINUNICODE:
    case OP_SHORT_BINUNICODE:
    case OP_SHORT_BINSTRING:
        return push_string(m, op);
    case OP_EMPTY_TUPLE:
        return op_tuple(m, 0);
    case OP_TUPLE1:
    case OP_TUPLE2:
    case OP_TUPLE3:
        return op_tuple(m, op->code - OP_TUPLE1 + 1u);
    case OP_TUPLE:
        return op_marked_tuple(m);
    case OP_EMPTY_LIST:
        return new_container(m, TORCH_LIST, false, m->g.count);
    case OP_EMPTY_DICT:
        return new_container(m, TORCH_DICT, false, m->g.count);
    case OP_EMPTY_SET:
        return op_empty_set(m);
    case OP_APPEND:
        return op_fill(m, TORCH_LIST, 1);
    case OP_APPENDS:
        return op_fill_marked(m, TORCH_LIST);
    case OP_SETITEM:
        return op_fill(m, TORCH_DICT, 2);
    case OP_SETITEMS:
        return op_fill_marked(m, TORCH_DICT);
    case OP_BINGET:
        return op_get(m, op->arg[0]);
    case OP_LONG_BINGET:
        return op_get(m, ckpt_le32(op->arg));
    case OP_BINPUT:
        m->memoized++;
        return op_put(m, op->arg[0]);
    case OP_LONG_BINPUT:
        m->memoized++;
        return op_put(m, ckpt_le32(op->arg));
    case OP_MEMOIZE:
        return op_put(m, m->memoized++);
    case OP_GLOBAL:
        return op_global(m, op);
    case OP_STACK_GLOBAL:
        return op_stack_global(m);
    case OP_BINPERSID:
        return op_persistent_id(m);
    case OP_REDUCE:
        return op_reduce(m);
    case OP_NEWOBJ:
        return op_new_object(m);
    case OP_BUILD:
        return op_build(m);
    default: /* PROTO, STOP */
        return 0;
    }
}

static int run(struct machine *m)
{
    struct torch_op op = {0};
    int r = expect_all(m);
    for (size_t at = 0; r == 0 && op.code != OP_STOP;) {
        r = ckpt_torch_op_next(m->g.pickle, m->g.len, &at, m->dialect, &op, m->err);
        if (r == 0)
            r = step(m, &op);
    }
    if (r == 0 && (m->depth != 1 || m->mark_count))
        r = malformed(m, "it does not end with one object");
    if (r == 0)
        m->g.top = m->stack[0].value;
    return r;
}

int ckpt_torch_pickle_load(uint8_t *pickle, size_t len, enum torch_dialect dialect, struct ckpt_buf *records,
                           uint64_t archive, struct torch_graph *ret, struct ckpt_err *err)
{
    return ckpt_torch_pickle_load_noting(pickle, len, dialect, records, archive, NULL, ret, err);
}

int ckpt_torch_pickle_load_noting(uint8_t *pickle, size_t len, enum torch_dialect dialect, struct ckpt_buf *records,
                                  uint64_t archive, struct torch_storages *storages, struct torch_graph *ret,
                                  struct ckpt_err *err)
{
    struct machine m = {.g = {.pickle = pickle, .len = len, .archive = archive},
                        .dialect = dialect,
                        .records = records,
                        .storages = storages,
                        .err = err};
    int r = len > TORCH_MAX_PICKLE
                ? ckpt_fail(err, EUCLEAN, "a pickle of %zu bytes; at most %zu are read", len, TORCH_MAX_PICKLE)
                : run(&m);
    free(m.stack);
    free(m.marks);
    ckpt_torch_memo_clear(&m.memo);
    if (r < 0)
        ckpt_torch_graph_clear(&m.g);
    else
        *ret = m.g;
    return r;
}
