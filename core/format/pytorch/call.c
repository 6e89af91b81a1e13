/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a pickle would call is written down instead: as what it is known to make, where the name and its arguments are
 * such, and else as an object: the name, its arguments, and what is set and put into it afterwards.
 */
#include "core/base/util.h"
#include "core/format/pytorch/machine.h"
#include "core/format/pytorch/rebuild.h"

/* A callee, its arguments (a tuple), and where the words ended before they were made; no longer on the stack. */
struct call {
    torch_value callee, args;
    uint32_t start, count;
    torch_value arg[4]; /* the first of them; TORCH_NOTHING beyond */
};

/* What became of a call, if it was no error. */
enum { UNFIT, DONE };

static enum torch_kind kind_of(const struct torch_machine *m, torch_value v)
{
    return v == TORCH_NOTHING ? TORCH_NONE : ckpt_torch_kind(&m->g, v);
}

static void take_args(const struct torch_graph *g, struct call *c)
{
    c->count = ckpt_torch_count(g, c->args);
    for (uint32_t i = 0; i < sizeof c->arg / sizeof *c->arg; i++)
        c->arg[i] = i < c->count ? ckpt_torch_item(g, c->args, i) : TORCH_NOTHING;
}

static int done(int r)
{
    return r < 0 ? r : DONE;
}

/* One of the arguments takes the place of the call. */
static int push_argument(struct torch_machine *m, const struct call *c, torch_value v)
{
    if (ckpt_torch_kind(&m->g, v) == TORCH_TENSOR) /* of which nothing is in the words */
        ckpt_machine_give_back(m, c->start);
    return done(ckpt_machine_push_from(m, v, c->start));
}

/* --- objects --- */

static int push_object(struct torch_machine *m, const struct call *c, torch_value class, torch_value args)
{
    torch_value v;
    int r = ckpt_machine_made(m, ckpt_torch_new_object(&m->g, class, args, &v));
    return r < 0 ? r : ckpt_machine_push_from(m, v, c->start);
}

/* An object with a state, which is made at once. */
static int push_with_state(struct torch_machine *m, const struct call *c, torch_value class, torch_value args,
                           torch_value state)
{
    int r = push_object(m, c, class, args);
    if (r == 0 && state != TORCH_NOTHING)
        ckpt_torch_set_state(&m->g, m->stack[m->depth - 1].value, state);
    return done(r);
}

/* The arguments behind the first, as a tuple of their own. */
static int rest_of(struct torch_machine *m, const struct call *c, torch_value *ret)
{
    int r = ckpt_machine_made(m, ckpt_torch_new_tuple(&m->g, c->count - 1, ret));
    for (uint32_t i = 1; r == 0 && i < c->count; i++)
        ckpt_torch_set_item(&m->g, *ret, i - 1, ckpt_torch_item(&m->g, c->args, i));
    return r;
}

/* Can such a value be called, or be a class? */
static bool is_callable(const struct torch_machine *m, torch_value v)
{
    enum torch_kind kind = kind_of(m, v);
    return kind == TORCH_GLOBAL || kind == TORCH_OBJECT || ckpt_torch_is(&m->g, v, TORCH_CALL, TORCH_IS_GETATTR);
}

static int call(struct torch_machine *m, struct call *c);

/* copyreg.__newobj__(class, argument, ...) */
static int call_new(struct torch_machine *m, const struct call *c)
{
    torch_value args;
    if (!c->count || !is_callable(m, c->arg[0]))
        return UNFIT;
    int r = rest_of(m, c, &args);
    return r < 0 ? r : done(push_object(m, c, c->arg[0], args));
}

/* copyreg.__newobj_ex__(class, arguments, arguments by name) */
static int call_new_by_name(struct torch_machine *m, const struct call *c)
{
    bool fits = c->count == 3 && is_callable(m, c->arg[0]) && kind_of(m, c->arg[1]) == TORCH_TUPLE &&
                kind_of(m, c->arg[2]) == TORCH_DICT;
    if (!fits)
        return UNFIT;
    int r = push_object(m, c, c->arg[0], c->arg[1]);
    if (r == 0 && ckpt_torch_count(&m->g, c->arg[2]))
        r = ckpt_machine_made(m, ckpt_torch_set_part(&m->g, m->stack[m->depth - 1].value, TORCH_KWARGS, c->arg[2]));
    return done(r);
}

/* copyreg._reconstructor(class, base, state of the base): None for `object`; else what a list, dict or number has. */
static int call_new_of_base(struct torch_machine *m, const struct call *c)
{
    torch_value args;
    if (c->count != 3 || !is_callable(m, c->arg[0]))
        return UNFIT;
    if (kind_of(m, c->arg[2]) == TORCH_NONE)
        return done(push_object(m, c, c->arg[0], TORCH_NOTHING));
    int r = ckpt_machine_made(m, ckpt_torch_new_tuple(&m->g, 1, &args));
    if (r == 0)
        ckpt_torch_set_item(&m->g, args, 0, c->arg[2]);
    return r < 0 ? r : done(push_object(m, c, c->arg[0], args));
}

/* A functools.partial of a class's __new__, with the state (function, arguments, arguments by name, attributes). */
static int call_partial(struct torch_machine *m, const struct call *c)
{
    const struct torch_graph *g = &m->g;
    torch_value state = ckpt_torch_state(g, c->callee), args;
    if (c->count || kind_of(m, state) != TORCH_TUPLE || ckpt_torch_count(g, state) < 3)
        return UNFIT;
    torch_value function = ckpt_torch_item(g, state, 0), names = ckpt_torch_item(g, state, 2);
    struct call inner = {function, ckpt_torch_item(g, state, 1), c->start};
    bool is_new = ckpt_torch_is(g, function, TORCH_CALL, TORCH_IS_GETATTR) &&
                  ckpt_torch_str_is(g, ckpt_torch_item(g, ckpt_torch_args(g, function), 1), "__new__");
    if (!is_new || kind_of(m, inner.args) != TORCH_TUPLE || kind_of(m, names) != TORCH_DICT)
        return UNFIT;
    take_args(g, &inner);
    if (!inner.count || !is_callable(m, inner.arg[0]))
        return UNFIT;
    int r = rest_of(m, &inner, &args);
    if (r == 0)
        r = push_object(m, &inner, inner.arg[0], args);
    if (r == 0)
        r = ckpt_machine_made(m, ckpt_torch_set_part(&m->g, m->stack[m->depth - 1].value, TORCH_KWARGS, names));
    return done(r);
}

/* jax's function of NumPy's function, its arguments, the state of that array, and more. */
static int call_jax_array(struct torch_machine *m, const struct call *c)
{
    bool fits = c->count >= 3 && ckpt_torch_is(&m->g, c->arg[0], TORCH_GLOBAL, TORCH_IS_NP_ARRAY) &&
                kind_of(m, c->arg[1]) == TORCH_TUPLE && kind_of(m, c->arg[2]) == TORCH_TUPLE;
    return fits ? push_with_state(m, c, c->arg[0], c->arg[1], c->arg[2]) : UNFIT;
}

/* --- containers --- */

static int push_container(struct torch_machine *m, const struct call *c, enum torch_kind kind, bool ordered,
                          torch_value pairs)
{
    if (pairs == TORCH_NOTHING)
        ckpt_machine_give_back(m, c->start);
    int r = ckpt_machine_new_container(m, kind, ordered, c->start);
    if (r == 0 && pairs != TORCH_NOTHING)
        r = ckpt_machine_add_pairs(m, m->stack[m->depth - 1].value, pairs);
    return done(r);
}

/* Of nothing, of pairs, or of a dict. */
static int call_dict(struct torch_machine *m, const struct call *c, bool ordered)
{
    if (!c->count)
        return push_container(m, c, TORCH_DICT, ordered, TORCH_NOTHING);
    if (c->count == 1 && kind_of(m, c->arg[0]) == TORCH_DICT)
        return push_argument(m, c, c->arg[0]);
    if (c->count == 1 && ckpt_machine_are_pairs(m, c->arg[0]))
        return push_container(m, c, TORCH_DICT, ordered, c->arg[0]);
    return UNFIT;
}

/* What would make the values that are missing is left out. */
static int call_default_dict(struct torch_machine *m, const struct call *c)
{
    if (c->count <= 1)
        return push_container(m, c, TORCH_DICT, false, TORCH_NOTHING);
    return c->count == 2 && kind_of(m, c->arg[1]) == TORCH_DICT ? push_argument(m, c, c->arg[1]) : UNFIT;
}

/* A list of nothing or of a list; and a deque, which may have a number of how many it holds. */
static int call_list(struct torch_machine *m, const struct call *c)
{
    enum torch_kind kind = kind_of(m, c->arg[0]);
    if (c->count > 2)
        return UNFIT;
    if (c->count && kind == TORCH_LIST)
        return push_argument(m, c, c->arg[0]);
    bool empty = !c->count || (kind == TORCH_TUPLE && !ckpt_torch_count(&m->g, c->arg[0]));
    return empty ? push_container(m, c, TORCH_LIST, false, TORCH_NOTHING) : UNFIT;
}

/* --- tensors --- */

static int push_tensor(struct torch_machine *m, const struct call *c, const struct torch_tensor *t)
{
    size_t at = ckpt_torch_add_tensor(m->records, t);
    ckpt_machine_give_back(m, c->start);
    int r = ckpt_machine_made(m, ckpt_buf_error(m->records));
    return r < 0 ? r : done(ckpt_machine_push_from(m, ckpt_torch_tensor_value(at), c->start));
}

/* How pickle.dump writes a tensor: its storage is bytes that torch.save made. */
static int call_loader(struct torch_machine *m, const struct call *c)
{
    const struct torch_far *far = c->count == 1 ? ckpt_torch_far(&m->g, c->arg[0]) : NULL;
    torch_value v;
    if (!far || !far->is_storage)
        return UNFIT;
    struct torch_storage s = {.global = far->global, .key = far->data, .size = far->size, .len = far->size};
    ckpt_machine_give_back(m, c->start);
    int r = ckpt_machine_made(m, ckpt_torch_new_storage(&m->g, &s, &v));
    return r < 0 ? r : done(ckpt_machine_push_from(m, v, c->start));
}

static int call_tensor(struct torch_machine *m, const struct call *c, enum torch_meaning meaning)
{
    struct torch_tensor t = {0};
    if (kind_of(m, c->arg[0]) != TORCH_STORAGE)
        return UNFIT;
    int r = ckpt_torch_rebuild_tensor(&m->g, c->args, meaning, &t, m->err);
    return r < 0 ? r : push_tensor(m, c, &t);
}

/* (tensor, requires_grad, hooks[, attributes]): its tensor. */
static int call_parameter(struct torch_machine *m, const struct call *c)
{
    bool fits = (c->count == 3 || c->count == 4) && kind_of(m, c->arg[0]) == TORCH_TENSOR;
    return fits ? push_argument(m, c, c->arg[0]) : UNFIT;
}

/*
 * (function, class, its arguments, state): a tensor of a class of its own. Where the function makes a tensor of PyTorch
 * it is that; else an object of the class, whose state has its pieces.
 */
static int call_from_type(struct torch_machine *m, const struct call *c)
{
    const struct torch_graph *g = &m->g;
    if (c->count != 4 || !is_callable(m, c->arg[0]) || !is_callable(m, c->arg[1]) ||
        kind_of(m, c->arg[2]) != TORCH_TUPLE)
        return UNFIT;
    const struct torch_global *function = ckpt_torch_global_of(g, c->arg[0]);
    struct call inner = {.callee = c->arg[0], .args = c->arg[2], .start = c->start};
    take_args(g, &inner);
    int r = UNFIT;
    if (function && function->meaning >= TORCH_IS_TENSOR_V1 && function->meaning <= TORCH_IS_QUANTISED)
        r = call(m, &inner);
    return r != UNFIT ? r : push_with_state(m, c, c->arg[1], c->arg[2], c->arg[3]);
}

/* --- values --- */

static bool is_bytes(const struct torch_machine *m, torch_value v)
{
    return kind_of(m, v) == TORCH_BYTES || ckpt_torch_is(&m->g, v, TORCH_CALL, TORCH_IS_ENCODE) ||
           ckpt_torch_is(&m->g, v, TORCH_CALL, TORCH_IS_BYTES);
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
static bool encodes(struct torch_machine *m, const struct call *c)
{
    const struct torch_graph *g = &m->g;
    size_t len;
    if (c->count != 2 || kind_of(m, c->arg[0]) != TORCH_STR)
        return false;
    if (!ckpt_torch_str_is(g, c->arg[1], "latin1") && !ckpt_torch_str_is(g, c->arg[1], "latin-1"))
        return false;
    const char *text = ckpt_torch_str(g, c->arg[0], &len);
    return ckpt_machine_look(m, (uint32_t)len) && is_latin1(text, len);
}

static bool are_of_kind(struct torch_machine *m, torch_value tuple, enum torch_kind kind)
{
    const struct torch_graph *g = &m->g;
    if (!ckpt_machine_look(m, ckpt_torch_count(g, tuple)))
        return false;
    for (uint32_t i = 0; i < ckpt_torch_count(g, tuple); i++)
        if (ckpt_torch_kind(g, ckpt_torch_item(g, tuple, i)) != kind)
            return false;
    return true;
}

static bool are_numbers(const struct torch_machine *m, const struct call *c, uint32_t count)
{
    if (c->count != count)
        return false;
    for (uint32_t i = 0; i < count; i++)
        if (kind_of(m, c->arg[i]) != TORCH_INT && (kind_of(m, c->arg[i]) != TORCH_NONE || c->arg[i] == TORCH_NOTHING))
            return false;
    return true;
}

/* Are these arguments with which it makes a value? What text.c takes for granted. */
static bool is_value(struct torch_machine *m, const struct call *c, enum torch_meaning meaning)
{
    const struct torch_graph *g = &m->g;
    enum torch_kind first = kind_of(m, c->arg[0]), second = kind_of(m, c->arg[1]);
    switch (meaning) {
    case TORCH_IS_SIZE:
        return c->count == 1 && first == TORCH_TUPLE && are_of_kind(m, c->arg[0], TORCH_INT);
    case TORCH_IS_DEVICE:
        return first == TORCH_STR && (c->count == 1 || (c->count == 2 && second == TORCH_INT));
    case TORCH_IS_ENCODE:
        return encodes(m, c);
    case TORCH_IS_BYTES:
        return !c->count;
    case TORCH_IS_BYTEARRAY:
        return !c->count || (c->count == 1 && is_bytes(m, c->arg[0])) || encodes(m, c);
    case TORCH_IS_COMPLEX:
        return c->count == 2 && first == TORCH_FLOAT && second == TORCH_FLOAT;
    case TORCH_IS_SET:
        return !c->count || (c->count == 1 && first == TORCH_LIST);
    case TORCH_IS_LAYOUT:
        return c->count == 1 && first == TORCH_STR;
    case TORCH_IS_GETATTR:
        return c->count == 2 && second == TORCH_STR &&
               (first == TORCH_GLOBAL || ckpt_torch_is(g, c->arg[0], TORCH_CALL, TORCH_IS_GETATTR));
    case TORCH_IS_PATH:
    case TORCH_IS_WINDOWS_PATH:
        return are_of_kind(m, c->args, TORCH_STR);
    case TORCH_IS_DATETIME:
    case TORCH_IS_TIME:
        return (c->count == 1 && is_bytes(m, c->arg[0])) ||
               (c->count == 2 && is_bytes(m, c->arg[0]) && ckpt_torch_is(g, c->arg[1], TORCH_CALL, TORCH_IS_TIMEZONE));
    case TORCH_IS_DATE:
        return c->count == 1 && is_bytes(m, c->arg[0]);
    case TORCH_IS_TIMEZONE:
        return c->count == 1 && ckpt_torch_is(g, c->arg[0], TORCH_CALL, TORCH_IS_TIMEDELTA);
    case TORCH_IS_TIMEDELTA:
    case TORCH_IS_RANGE:
    case TORCH_IS_SLICE:
        return are_numbers(m, c, 3);
    default:
        return false;
    }
}

static int call_value(struct torch_machine *m, const struct call *c, enum torch_meaning meaning)
{
    torch_value v;
    if (!is_value(m, c, meaning))
        return UNFIT;
    int r = ckpt_machine_made(m, ckpt_torch_new_call(&m->g, c->callee, c->args, &v));
    return r < 0 ? r : done(ckpt_machine_push_from(m, v, c->start));
}

/* --- all of them --- */

static int call_known(struct torch_machine *m, const struct call *c, enum torch_meaning meaning)
{
    switch (meaning) {
    case TORCH_IS_ORDERED_DICT:
        return call_dict(m, c, true);
    case TORCH_IS_DICT:
        return call_dict(m, c, false);
    case TORCH_IS_DEFAULT_DICT:
        return call_default_dict(m, c);
    case TORCH_IS_LIST:
        return call_list(m, c);
    case TORCH_IS_TENSOR_V1:
    case TORCH_IS_TENSOR_V2:
    case TORCH_IS_TENSOR_V3:
        return call_tensor(m, c, meaning);
    case TORCH_IS_LOADER:
        return call_loader(m, c);
    case TORCH_IS_PARAMETER:
        return call_parameter(m, c);
    case TORCH_IS_SPARSE:
        return push_tensor(m, c, &(struct torch_tensor){.fault = TORCH_SPARSE});
    case TORCH_IS_QUANTISED:
        return push_tensor(m, c, &(struct torch_tensor){.fault = TORCH_QUANTISED});
    case TORCH_IS_FROM_TYPE:
        return call_from_type(m, c);
    case TORCH_IS_FIRST:
        return c->count ? push_argument(m, c, c->arg[0]) : UNFIT;
    case TORCH_IS_NEW:
        return call_new(m, c);
    case TORCH_IS_NEW_BY_NAME:
        return call_new_by_name(m, c);
    case TORCH_IS_NEW_OF_BASE:
        return call_new_of_base(m, c);
    case TORCH_IS_JAX_ARRAY:
        return call_jax_array(m, c);
    default:
        return call_value(m, c, meaning);
    }
}

static int call(struct torch_machine *m, struct call *c)
{
    if (ckpt_torch_is(&m->g, c->callee, TORCH_OBJECT, TORCH_IS_PARTIAL))
        return call_partial(m, c);
    if (ckpt_torch_kind(&m->g, c->callee) != TORCH_GLOBAL)
        return UNFIT;
    const struct torch_global *known = ckpt_torch_global_of(&m->g, c->callee);
    return known ? call_known(m, c, known->meaning) : UNFIT;
}

/* A callee and a tuple are the two entries on top of the stack. */
static int call_top(struct torch_machine *m)
{
    struct call c = {m->stack[m->depth - 2].value, m->stack[m->depth - 1].value, m->stack[m->depth - 2].start};
    if (!is_callable(m, c.callee) || ckpt_torch_kind(&m->g, c.args) != TORCH_TUPLE)
        return ckpt_machine_malformed(m, "something is called that is no name, or without arguments");
    m->depth -= 2;
    take_args(&m->g, &c);
    int r = call(m, &c);
    if (r == UNFIT)
        r = push_object(m, &c, c.callee, c.args);
    return r < 0 ? r : 0;
}

int ckpt_machine_reduce(struct torch_machine *m)
{
    int r = ckpt_machine_need(m, 2);
    return r < 0 ? r : call_top(m);
}

int ckpt_machine_new_object(struct torch_machine *m, bool by_name)
{
    int r = ckpt_machine_need(m, by_name ? 3 : 2);
    if (r < 0)
        return r;
    torch_value names = by_name ? m->stack[m->depth - 1].value : TORCH_NOTHING;
    if (by_name && ckpt_torch_kind(&m->g, names) != TORCH_DICT)
        return ckpt_machine_malformed(m, "arguments by name are no dict");
    if (!by_name || !ckpt_torch_count(&m->g, names)) {
        m->depth -= by_name;
        return call_top(m);
    }
    struct call c = {m->stack[m->depth - 3].value, m->stack[m->depth - 2].value, m->stack[m->depth - 3].start};
    if (!is_callable(m, c.callee) || ckpt_torch_kind(&m->g, c.args) != TORCH_TUPLE)
        return ckpt_machine_malformed(m, "an object is made of what is no class, or without arguments");
    m->depth -= 3;
    r = push_object(m, &c, c.callee, c.args);
    if (r == 0)
        r = ckpt_machine_made(m, ckpt_torch_set_part(&m->g, m->stack[m->depth - 1].value, TORCH_KWARGS, names));
    return r;
}

int ckpt_machine_instance(struct torch_machine *m, uint32_t from)
{
    if (from == m->depth)
        return ckpt_machine_malformed(m, "an object is made of no class");
    int r = ckpt_machine_tuple(m, from + 1);
    return r < 0 ? r : call_top(m);
}

/* --- BUILD --- */

/* One that has a state already gets a tuple of both. */
static int add_state(struct torch_machine *m, torch_value object, torch_value state)
{
    torch_value before = ckpt_torch_state(&m->g, object), both = state;
    int r = 0;
    if (before != TORCH_NOTHING) {
        r = ckpt_machine_made(m, ckpt_torch_new_tuple(&m->g, 2, &both));
        if (r < 0)
            return r;
        ckpt_torch_set_item(&m->g, both, 0, before);
        ckpt_torch_set_item(&m->g, both, 1, state);
    }
    ckpt_torch_set_state(&m->g, object, both);
    m->floor = m->g.count;
    return 0;
}

/* The state of an object is kept; the attributes of containers, tensors and values (a state dict's _metadata) are of no
 * use here. */
int ckpt_machine_build(struct torch_machine *m)
{
    int r = ckpt_machine_need(m, 2);
    if (r < 0)
        return r;
    torch_value object = m->stack[m->depth - 2].value, state = m->stack[m->depth - 1].value;
    m->depth--;
    switch (ckpt_torch_kind(&m->g, object)) {
    case TORCH_OBJECT:
        return add_state(m, object, state);
    case TORCH_DICT:
    case TORCH_LIST:
    case TORCH_TENSOR:
    case TORCH_CALL:
        return 0;
    default:
        return ckpt_machine_malformed(m, "BUILD of what has no state");
    }
}

/* --- persistent ids --- */

/* PyTorch before 1.6 had ('module', class, file, program) for the class of a module. */
static bool is_module(const struct torch_machine *m, torch_value id)
{
    return ckpt_torch_kind(&m->g, id) == TORCH_TUPLE && ckpt_torch_count(&m->g, id) >= 2 &&
           ckpt_torch_str_is(&m->g, ckpt_torch_item(&m->g, id, 0), "module") &&
           is_callable(m, ckpt_torch_item(&m->g, id, 1));
}

int ckpt_machine_persistent(struct torch_machine *m)
{
    struct torch_storage s;
    torch_value v;
    int r = ckpt_machine_need(m, 1);
    if (r < 0)
        return r;
    torch_value id = m->stack[m->depth - 1].value;
    uint32_t start = m->stack[m->depth - 1].start;
    if (is_module(m, id)) {
        m->depth--;
        return ckpt_machine_push_from(m, ckpt_torch_item(&m->g, id, 1), start);
    }
    r = ckpt_torch_rebuild_storage(&m->g, id, &s, m->err);
    if (r < 0)
        return r;
    if (m->g.archive == TORCH_RANGES)
        s.fault = TORCH_NO_STORAGE;
    if (m->storages && s.global != TORCH_NO_GLOBAL)
        ckpt_torch_storages_note(m->storages, &s);
    m->depth--;
    ckpt_machine_give_back(m, start);
    r = ckpt_machine_made(m, ckpt_torch_new_storage(&m->g, &s, &v));
    return r < 0 ? r : ckpt_machine_push_from(m, v, start);
}
