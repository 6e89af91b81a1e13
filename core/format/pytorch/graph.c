/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The low two bits of a value say where it is. In the words, an object begins with its tag; a tuple's items follow it
 * at once, those of lists and dicts lie in blocks that are linked, since they come bit by bit.
 */
#include "core/format/pytorch/graph.h"

#include "core/base/util.h"
#include "core/format/pytorch/opcode.h"

#include <inttypes.h>

#define MAX_WORDS   ((uint32_t)20 << 20)
#define MAX_OBJECTS (1u << 22)
#define MAX_NAME    ((size_t)1024)         /* bytes of either half of a name that are told */
#define MAX_STATE   64                     /* keys */
#define MAX_ROOM    (2 * TORCH_MAX_PICKLE) /* of a pickle and what is appended to it */

enum place { ATOM, NAME, RECORD, WORDS };

enum tag { TUPLE, LIST, DICT, ORDERED_DICT, CALLED, OBJECT, STORAGE, NAMED };
#define TAG_BITS 4

/* Words of a list or dict. */
enum { C_TAG, C_COUNT, C_FIRST, C_LAST, C_WORDS };
/* Words of a block before its items. */
enum { B_NEXT, B_COUNT, B_WORDS };
/* Words of what is called, and of an object, whose number is in its tag. */
enum { O_TAG, O_CLASS, O_ARGS, O_CALL_WORDS, O_STATE = O_CALL_WORDS, O_PARTS, O_WORDS };
/* Words of a name. */
enum { N_TAG, N_MODULE, N_NAME, N_WORDS };
/* Words of a storage. */
enum { S_TAG, S_GLOBAL, S_KEY, S_SIZE = S_KEY + 2, S_START = S_SIZE + 2, S_LEN = S_START + 2, S_WORDS = S_LEN + 2 };

static torch_value value_at(enum place place, size_t at)
{
    return (torch_value)at << 2 | place;
}

static enum place place_of(torch_value v)
{
    return (enum place)(v & 3);
}

static uint32_t *words_of(const struct torch_graph *g, torch_value v)
{
    return g->words + (v >> 2);
}

static enum tag tag_of(const struct torch_graph *g, torch_value v)
{
    return (enum tag)(*words_of(g, v) & ((1 << TAG_BITS) - 1));
}

void ckpt_torch_graph_clear(struct torch_graph *g)
{
    free(g->pickle);
    free(g->words);
    free(g->fars);
    *g = (struct torch_graph){0};
}

/* --- building --- */

static int reserve(struct torch_graph *g, uint32_t words)
{
    if (words > MAX_WORDS - g->count)
        return -EFBIG;
    if (g->count + words <= g->cap)
        return 0;
    uint32_t cap = CKPT_MIN(CKPT_MAX(g->count + words, g->cap + g->cap / 2 + 256), MAX_WORDS);
    uint32_t *p = realloc(g->words, cap * sizeof *p);
    if (!p)
        return -ENOMEM;
    g->words = p;
    g->cap = cap;
    return 0;
}

static int new_object(struct torch_graph *g, uint32_t words, enum tag tag, uint32_t high, torch_value *ret)
{
    int r = reserve(g, words);
    if (r < 0)
        return r;
    *ret = value_at(WORDS, g->count);
    g->words[g->count] = high << TAG_BITS | tag;
    g->count += words;
    return 0;
}

int ckpt_torch_new_tuple(struct torch_graph *g, uint32_t items, torch_value *ret)
{
    return items >= MAX_WORDS ? -EFBIG : new_object(g, 1 + items, TUPLE, items, ret);
}

void ckpt_torch_set_item(struct torch_graph *g, torch_value tuple, uint32_t i, torch_value item)
{
    words_of(g, tuple)[1 + i] = item;
}

int ckpt_torch_new_container(struct torch_graph *g, enum torch_kind kind, bool ordered, torch_value *ret)
{
    int r = new_object(g, C_WORDS, kind == TORCH_LIST ? LIST : ordered ? ORDERED_DICT : DICT, 0, ret);
    if (r == 0)
        memset(words_of(g, *ret) + C_COUNT, 0, (C_WORDS - C_COUNT) * sizeof *g->words);
    return r;
}

int ckpt_torch_append(struct torch_graph *g, torch_value container, const torch_value *items, uint32_t count)
{
    uint32_t *c = words_of(g, container), last = c[C_LAST];
    if (!count)
        return 0;
    bool extend = last && last + B_WORDS + g->words[last + B_COUNT] == g->count;
    int r = reserve(g, count + (extend ? 0 : B_WORDS));
    if (r < 0)
        return r;
    c = words_of(g, container);
    if (!extend) {
        last = g->count;
        g->words[last + B_NEXT] = g->words[last + B_COUNT] = 0;
        g->count += B_WORDS;
        if (c[C_LAST])
            g->words[c[C_LAST] + B_NEXT] = last;
        else
            c[C_FIRST] = last;
        c[C_LAST] = last;
    }
    memcpy(g->words + g->count, items, count * sizeof *items);
    g->words[last + B_COUNT] += count;
    g->count += count;
    c[C_COUNT] += count;
    return 0;
}

int ckpt_torch_new_call(struct torch_graph *g, torch_value callee, torch_value args, torch_value *ret)
{
    int r = new_object(g, O_CALL_WORDS, CALLED, 0, ret);
    if (r < 0)
        return r;
    words_of(g, *ret)[O_CLASS] = callee;
    words_of(g, *ret)[O_ARGS] = args;
    return 0;
}

int ckpt_torch_new_object(struct torch_graph *g, torch_value class, torch_value args, torch_value *ret)
{
    int r = g->objects < MAX_OBJECTS ? new_object(g, O_WORDS, OBJECT, g->objects, ret) : -EFBIG;
    if (r < 0)
        return r;
    uint32_t *w = words_of(g, *ret);
    w[O_CLASS] = class;
    w[O_ARGS] = args;
    w[O_STATE] = w[O_PARTS] = TORCH_NOTHING;
    g->objects++;
    return 0;
}

void ckpt_torch_set_state(struct torch_graph *g, torch_value object, torch_value state)
{
    words_of(g, object)[O_STATE] = state;
}

int ckpt_torch_set_part(struct torch_graph *g, torch_value object, enum torch_part part, torch_value value)
{
    torch_value parts = words_of(g, object)[O_PARTS];
    if (parts == TORCH_NOTHING) {
        int r = ckpt_torch_new_tuple(g, TORCH_PARTS, &parts);
        if (r < 0)
            return r;
        for (uint32_t i = 0; i < TORCH_PARTS; i++)
            ckpt_torch_set_item(g, parts, i, TORCH_NOTHING);
        words_of(g, object)[O_PARTS] = parts;
    }
    ckpt_torch_set_item(g, parts, part, value);
    return 0;
}

int ckpt_torch_new_name(struct torch_graph *g, torch_value module, torch_value name, torch_value *ret)
{
    int r = new_object(g, N_WORDS, NAMED, 0, ret);
    if (r < 0)
        return r;
    words_of(g, *ret)[N_MODULE] = module;
    words_of(g, *ret)[N_NAME] = name;
    return 0;
}

/* So many bytes at the end of what was appended. */
static int append(struct torch_graph *g, size_t bytes, uint8_t **ret)
{
    if (bytes > MAX_ROOM - g->size)
        return -EFBIG;
    if (g->size + bytes > g->room) {
        size_t room = CKPT_MIN(CKPT_MAX(g->size + bytes, g->size + g->size / 4 + 256), MAX_ROOM);
        uint8_t *p = realloc(g->pickle, room);
        if (!p)
            return -ENOMEM;
        g->pickle = p;
        g->room = room;
    }
    *ret = g->pickle + g->size;
    g->size += bytes;
    return 0;
}

int ckpt_torch_new_literal(struct torch_graph *g, enum torch_kind kind, const void *bytes, size_t len, torch_value *ret)
{
    static const uint8_t opcodes[] = {
        [TORCH_INT] = OP_LONG4, [TORCH_FLOAT] = OP_BINFLOAT, [TORCH_STR] = OP_BINUNICODE, [TORCH_BYTES] = OP_BINBYTES};
    size_t before = kind == TORCH_BOOL || kind == TORCH_FLOAT ? 1 : 5, at = g->size;
    uint32_t n = (uint32_t)len;
    uint8_t opcode, *p;
    if (kind == TORCH_BOOL) {
        opcode = *(const uint8_t *)bytes ? OP_NEWTRUE : OP_NEWFALSE;
        len = 0;
    } else
        opcode = opcodes[kind];
    if (len > MAX_ROOM)
        return -EFBIG;
    int r = append(g, before + len, &p);
    if (r < 0)
        return r;
    *p = opcode;
    if (before > 1)
        memcpy(p + 1, &n, sizeof n);
    if (len)
        memcpy(p + before, bytes, len);
    *ret = value_at(ATOM, at);
    return 0;
}

int ckpt_torch_new_storage(struct torch_graph *g, const struct torch_storage *s, torch_value *ret)
{
    int r = new_object(g, S_WORDS, STORAGE, s->fault, ret);
    if (r < 0)
        return r;
    uint32_t *w = words_of(g, *ret);
    w[S_GLOBAL] = s->global;
    memcpy(w + S_KEY, &s->key, sizeof s->key);
    memcpy(w + S_SIZE, &s->size, sizeof s->size);
    memcpy(w + S_START, &s->start, sizeof s->start);
    memcpy(w + S_LEN, &s->len, sizeof s->len);
    return 0;
}

torch_value ckpt_torch_atom(size_t off)
{
    return value_at(ATOM, off);
}

torch_value ckpt_torch_global_value(uint32_t global)
{
    return value_at(NAME, global);
}

torch_value ckpt_torch_tensor_value(size_t record)
{
    return value_at(RECORD, record);
}

/* --- looking --- */

static enum torch_kind kind_of_atom(uint8_t opcode)
{
    static const uint8_t kinds[256] = {
        [OP_NEWTRUE] = TORCH_BOOL,
        [OP_NEWFALSE] = TORCH_BOOL,
        [OP_BININT] = TORCH_INT,
        [OP_BININT1] = TORCH_INT,
        [OP_BININT2] = TORCH_INT,
        [OP_LONG1] = TORCH_INT,
        [OP_LONG4] = TORCH_INT,
        [OP_BINFLOAT] = TORCH_FLOAT,
        [OP_BINUNICODE] = TORCH_STR,
        [OP_SHORT_BINUNICODE] = TORCH_STR,
        [OP_BINUNICODE8] = TORCH_STR,
        [OP_SHORT_BINSTRING] = TORCH_STR,
        [OP_BINSTRING] = TORCH_STR,
        [OP_BINBYTES] = TORCH_BYTES,
        [OP_SHORT_BINBYTES] = TORCH_BYTES,
        [OP_BINBYTES8] = TORCH_BYTES,
        [OP_BYTEARRAY8] = TORCH_BYTES,
        [OP_NEXT_BUFFER] = TORCH_BYTES,
        [OP_GLOBAL] = TORCH_GLOBAL,
        [OP_INST] = TORCH_GLOBAL,
    }; /* others: NONE */
    _Static_assert(TORCH_NONE == 0, "the kind of what is not in the table");
    return (enum torch_kind)kinds[opcode];
}

enum torch_kind ckpt_torch_kind(const struct torch_graph *g, torch_value v)
{
    static const enum torch_kind kinds[] = {
        [TUPLE] = TORCH_TUPLE, [LIST] = TORCH_LIST,     [DICT] = TORCH_DICT,       [ORDERED_DICT] = TORCH_DICT,
        [CALLED] = TORCH_CALL, [OBJECT] = TORCH_OBJECT, [STORAGE] = TORCH_STORAGE, [NAMED] = TORCH_GLOBAL};
    switch (place_of(v)) {
    case ATOM:
        return kind_of_atom(g->pickle[v >> 2]);
    case NAME:
        return TORCH_GLOBAL;
    case RECORD:
        return TORCH_TENSOR;
    default:
        return kinds[tag_of(g, v)];
    }
}

bool ckpt_torch_truth(const struct torch_graph *g, torch_value v)
{
    return g->pickle[v >> 2] == OP_NEWTRUE;
}

/* The bytes of an int, little-endian two's complement. */
static const uint8_t *int_bytes(const struct torch_graph *g, torch_value v, size_t *ret_len, bool *ret_unsigned)
{
    const uint8_t *p = g->pickle + (v >> 2);
    *ret_unsigned = *p == OP_BININT1 || *p == OP_BININT2;
    switch (*p) {
    case OP_LONG1:
        *ret_len = p[1];
        return p + 2;
    case OP_LONG4:
        *ret_len = ckpt_le32(p + 1);
        return p + 5;
    case OP_BININT1:
        *ret_len = 1;
        return p + 1;
    case OP_BININT2:
        *ret_len = 2;
        return p + 1;
    default:
        *ret_len = 4;
        return p + 1;
    }
}

size_t ckpt_torch_int_width(const struct torch_graph *g, torch_value v)
{
    size_t len;
    bool positive;
    (void)int_bytes(g, v, &len, &positive);
    return len;
}

bool ckpt_torch_int(const struct torch_graph *g, torch_value v, int64_t *ret)
{
    size_t len;
    bool positive;
    const uint8_t *p = int_bytes(g, v, &len, &positive);
    uint8_t sign = len && !positive && p[len - 1] & 0x80 ? 0xff : 0;
    while (len > sizeof *ret && p[len - 1] == sign && (p[len - 2] & 0x80) == (sign & 0x80))
        len--;
    if (len > sizeof *ret)
        return false;
    uint64_t u = sign ? UINT64_MAX : 0;
    memcpy(&u, p, len);
    *ret = (int64_t)u;
    return true;
}

/* In place, of a number in two's complement. */
static void negate(uint32_t *limb, size_t count)
{
    uint64_t carry = 1;
    for (size_t i = 0; i < count; i++) {
        carry += (uint32_t)~limb[i];
        limb[i] = (uint32_t)carry;
        carry >>= 32;
    }
}

void ckpt_torch_int_text(const struct torch_graph *g, torch_value v, struct ckpt_buf *buf)
{
    enum { LIMBS = TORCH_MAX_INT / 4 + 1, GROUP = 1000000000 };
    uint32_t limb[LIMBS] = {0}, groups[LIMBS * 2]; /* of nine digits, the lowest first */
    size_t len, count = 0;
    bool positive;
    int64_t small;
    if (ckpt_torch_int(g, v, &small)) {
        ckpt_buf_addf(buf, "%" PRId64, small);
        return;
    }
    const uint8_t *p = int_bytes(g, v, &len, &positive);
    len = CKPT_MIN(len, TORCH_MAX_INT);
    bool negative = p[len - 1] & 0x80;
    if (negative)
        memset(limb, 0xff, sizeof limb);
    memcpy(limb, p, len);
    if (negative)
        negate(limb, LIMBS);
    for (size_t top = LIMBS; top > 0;) {
        uint64_t rest = 0;
        for (size_t i = top; i-- > 0;) {
            rest = rest << 32 | limb[i];
            limb[i] = (uint32_t)(rest / GROUP);
            rest %= GROUP;
        }
        groups[count++] = (uint32_t)rest;
        while (top > 0 && !limb[top - 1])
            top--;
    }
    while (count > 1 && !groups[count - 1])
        count--;
    ckpt_buf_addf(buf, "%s%u", negative ? "-" : "", groups[--count]);
    while (count > 0)
        ckpt_buf_addf(buf, "%09u", groups[--count]);
}

double ckpt_torch_float(const struct torch_graph *g, torch_value v)
{
    uint64_t bits;
    double d;
    memcpy(&bits, g->pickle + (v >> 2) + 1, sizeof bits);
    bits = __builtin_bswap64(bits);
    memcpy(&d, &bits, sizeof d);
    return d;
}

/* What follows an opcode that has its length in front. */
static const uint8_t *counted(const uint8_t *p, size_t *ret_len)
{
    switch (*p) {
    case OP_SHORT_BINUNICODE:
    case OP_SHORT_BINSTRING:
    case OP_SHORT_BINBYTES:
        *ret_len = p[1];
        return p + 2;
    case OP_BINUNICODE8:
    case OP_BINBYTES8:
    case OP_BYTEARRAY8:
        *ret_len = (size_t)ckpt_le64(p + 1);
        return p + 9;
    default:
        *ret_len = ckpt_le32(p + 1);
        return p + 5;
    }
}

const char *ckpt_torch_str(const struct torch_graph *g, torch_value v, size_t *ret_len)
{
    return (const char *)counted(g->pickle + (v >> 2), ret_len);
}

const uint8_t *ckpt_torch_bytes(const struct torch_graph *g, torch_value v, size_t *ret_len)
{
    const uint8_t *p = g->pickle + (v >> 2);
    if (*p == OP_NEXT_BUFFER) {
        *ret_len = 0;
        return NULL;
    }
    return counted(p, ret_len);
}

const struct torch_far *ckpt_torch_far(const struct torch_graph *g, torch_value v)
{
    bool is_copy = ckpt_torch_is(g, v, TORCH_CALL, TORCH_IS_BYTEARRAY); /* of bytes */
    torch_value args = is_copy ? ckpt_torch_args(g, v) : TORCH_NOTHING;
    if (args != TORCH_NOTHING && ckpt_torch_count(g, args) == 1)
        v = ckpt_torch_item(g, args, 0);
    if (ckpt_torch_kind(g, v) != TORCH_BYTES)
        return NULL;
    for (uint32_t lo = 0, hi = g->far_count; lo < hi;) {
        uint32_t mid = lo + (hi - lo) / 2;
        if (g->fars[mid].at == v >> 2)
            return &g->fars[mid];
        if (g->fars[mid].at < v >> 2)
            lo = mid + 1;
        else
            hi = mid;
    }
    return NULL;
}

bool ckpt_torch_same_str(const struct torch_graph *g, torch_value a, torch_value b)
{
    size_t n, m;
    const char *p = ckpt_torch_str(g, a, &n), *q = ckpt_torch_str(g, b, &m);
    return n == m && !memcmp(p, q, n);
}

bool ckpt_torch_str_is(const struct torch_graph *g, torch_value v, const char *text)
{
    size_t len;
    if (v == TORCH_NOTHING || ckpt_torch_kind(g, v) != TORCH_STR)
        return false;
    const char *p = ckpt_torch_str(g, v, &len);
    return len == strlen(text) && !memcmp(p, text, len);
}

torch_value ckpt_torch_class(const struct torch_graph *g, torch_value v)
{
    return words_of(g, v)[O_CLASS];
}

/* Protocols up to 2 have Python 2's name of the module of built-in names. */
static void add_name(struct ckpt_buf *buf, const char *module, size_t module_len, const char *name, size_t name_len)
{
    static const char old[] = "__builtin__";
    if (module_len == strlen(old) && !memcmp(module, old, module_len))
        ckpt_buf_adds(buf, "builtins");
    else
        ckpt_buf_add(buf, module, CKPT_MIN(module_len, MAX_NAME));
    ckpt_buf_addc(buf, '.');
    ckpt_buf_add(buf, name, CKPT_MIN(name_len, MAX_NAME));
}

void ckpt_torch_add_name(const struct torch_graph *g, torch_value global, struct ckpt_buf *buf)
{
    const char *module, *name;
    size_t module_len, name_len;
    if (place_of(global) == NAME) {
        const struct torch_global *known = ckpt_torch_global(global >> 2);
        add_name(buf, known->module, strlen(known->module), known->name, strlen(known->name));
        return;
    }
    if (place_of(global) == WORDS) {
        module = ckpt_torch_str(g, words_of(g, global)[N_MODULE], &module_len);
        name = ckpt_torch_str(g, words_of(g, global)[N_NAME], &name_len);
    } else { /* two lines of the pickle */
        module = (const char *)g->pickle + (global >> 2) + 1;
        module_len = strcspn(module, "\n");
        name = module + module_len + 1;
        name_len = strcspn(name, "\n");
    }
    add_name(buf, module, module_len, name, name_len);
}

uint32_t ckpt_torch_global_number(const struct torch_graph *g, torch_value v)
{
    if (v == TORCH_NOTHING)
        return TORCH_NO_GLOBAL;
    enum torch_kind kind = ckpt_torch_kind(g, v);
    if (kind == TORCH_STORAGE)
        return words_of(g, v)[S_GLOBAL];
    if (kind == TORCH_CALL || kind == TORCH_OBJECT)
        v = words_of(g, v)[O_CLASS];
    return place_of(v) == NAME ? v >> 2 : TORCH_NO_GLOBAL;
}

const struct torch_global *ckpt_torch_global_of(const struct torch_graph *g, torch_value v)
{
    uint32_t number = ckpt_torch_global_number(g, v);
    return number == TORCH_NO_GLOBAL ? NULL : ckpt_torch_global(number);
}

bool ckpt_torch_is(const struct torch_graph *g, torch_value v, enum torch_kind kind, enum torch_meaning meaning)
{
    const struct torch_global *global = ckpt_torch_global_of(g, v);
    return global && global->meaning == meaning && ckpt_torch_kind(g, v) == kind;
}

uint32_t ckpt_torch_count(const struct torch_graph *g, torch_value v)
{
    const uint32_t *w = words_of(g, v);
    enum tag tag = tag_of(g, v);
    return tag == TUPLE ? *w >> TAG_BITS : tag == LIST ? w[C_COUNT] : w[C_COUNT] / 2;
}

torch_value ckpt_torch_item(const struct torch_graph *g, torch_value tuple, uint32_t i)
{
    return words_of(g, tuple)[1 + i];
}

bool ckpt_torch_ordered(const struct torch_graph *g, torch_value dict)
{
    return tag_of(g, dict) == ORDERED_DICT;
}

torch_value ckpt_torch_args(const struct torch_graph *g, torch_value v)
{
    return words_of(g, v)[O_ARGS];
}

torch_value ckpt_torch_state(const struct torch_graph *g, torch_value object)
{
    return words_of(g, object)[O_STATE];
}

torch_value ckpt_torch_part(const struct torch_graph *g, torch_value object, enum torch_part part)
{
    torch_value parts = words_of(g, object)[O_PARTS];
    return parts == TORCH_NOTHING ? TORCH_NOTHING : ckpt_torch_item(g, parts, part);
}

uint32_t ckpt_torch_object_number(const struct torch_graph *g, torch_value object)
{
    return *words_of(g, object) >> TAG_BITS;
}

void ckpt_torch_storage_of(const struct torch_graph *g, torch_value v, struct torch_storage *ret)
{
    const uint32_t *w = words_of(g, v);
    *ret = (struct torch_storage){.global = w[S_GLOBAL], .fault = (uint8_t)(w[S_TAG] >> TAG_BITS)};
    memcpy(&ret->key, w + S_KEY, sizeof ret->key);
    memcpy(&ret->size, w + S_SIZE, sizeof ret->size);
    memcpy(&ret->start, w + S_START, sizeof ret->start);
    memcpy(&ret->len, w + S_LEN, sizeof ret->len);
}

size_t ckpt_torch_record_of(torch_value v)
{
    return v >> 2;
}

void ckpt_torch_walk_init(struct torch_walk *w, const struct torch_graph *g, torch_value container)
{
    const uint32_t *words = words_of(g, container);
    *w = (struct torch_walk){.g = g};
    if (tag_of(g, container) == TUPLE) {
        w->at = (container >> 2) + 1;
        w->left = ckpt_torch_count(g, container);
    } else
        w->next = words[C_FIRST];
}

bool ckpt_torch_walk_next(struct torch_walk *w, torch_value *ret)
{
    if (!w->left) {
        if (!w->next)
            return false;
        w->at = w->next + B_WORDS;
        w->left = w->g->words[w->next + B_COUNT];
        w->next = w->g->words[w->next + B_NEXT];
    }
    w->left--;
    *ret = w->g->words[w->at++];
    return true;
}

torch_value ckpt_torch_get(const struct torch_graph *g, torch_value dict, const char *key)
{
    struct torch_walk w;
    torch_value k, v, found = TORCH_NOTHING;
    ckpt_torch_walk_init(&w, g, dict);
    if (ckpt_torch_count(g, dict) > MAX_STATE)
        return found;
    while (ckpt_torch_walk_next(&w, &k) && ckpt_torch_walk_next(&w, &v))
        if (ckpt_torch_str_is(g, k, key))
            found = v;
    return found;
}
