/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a pickle describes, as plain values that refer to each other: a graph, since pickles share and may even have
 * cycles. Values are numbers: numbers, strings and names stay where they are in the pickle, tensors are records
 * (record.h), the rest lies in one array of words. What a pickle spells in text (protocol 0) is appended to it as the
 * opcode of a later protocol, and is then like any other. Built by one thread, then immutable.
 */
#ifndef CKPT_FORMAT_PYTORCH_GRAPH_H
#define CKPT_FORMAT_PYTORCH_GRAPH_H

#include "core/base/buf.h"
#include "core/base/err.h"
#include "core/format/pytorch/global.h"

#define TORCH_MAX_PICKLE ((size_t)64 << 20)
#define TORCH_MAX_INT    ((size_t)2048) /* bytes of an integer whose digits are told */

typedef uint32_t torch_value;
#define TORCH_NOTHING UINT32_MAX

enum torch_kind {
    TORCH_NONE,
    TORCH_BOOL,
    TORCH_INT,
    TORCH_FLOAT,
    TORCH_STR,
    TORCH_BYTES,  /* bytes, bytearray */
    TORCH_GLOBAL, /* a name that was not called */
    TORCH_TENSOR, /* a record */
    TORCH_TUPLE,
    TORCH_LIST,
    TORCH_DICT,
    TORCH_CALL,    /* a known name called with a tuple of arguments: a device, a set */
    TORCH_OBJECT,  /* what any other name was called with, and what became of it */
    TORCH_STORAGE, /* what a persistent id names */
};

/* Bytes that are not in the pickle, but in its file. */
struct torch_far {
    size_t at; /* of the NEXT_BUFFER in their place */
    uint64_t off, len;
    bool is_storage;     /* what torch.save wrote of one: */
    uint32_t global;     /* its class */
    uint64_t data, size; /* its bytes in the file */
};

struct torch_graph {
    uint8_t *pickle; /* malloced */
    size_t len;
    size_t end;  /* behind its STOP */
    size_t size; /* with what was appended */
    size_t room;
    uint32_t *words;
    uint32_t count, cap;
    uint32_t objects;       /* there are */
    uint64_t values;        /* that the pickle made: what it describes has no more without sharing */
    struct torch_far *fars; /* by their place */
    uint32_t far_count;
    uint64_t archive; /* that its storages are in, as in a tensor's record */
    torch_value top;
};

/* What an object may have besides its arguments and its state. */
enum torch_part {
    TORCH_KWARGS,  /* a dict: arguments by name */
    TORCH_ITEMS,   /* a list: what was appended to it */
    TORCH_ENTRIES, /* a dict: what was set in it */
    TORCH_PARTS
};

/* Where the bytes of a storage are, and how many. */
struct torch_storage {
    uint32_t global; /* its class; TORCH_NO_GLOBAL: not known */
    uint8_t fault;   /* enum torch_fault */
    uint64_t key, size;
    uint64_t start, len; /* of the part that is meant: all, but in files from before PyTorch 1.6 */
};

void ckpt_torch_graph_clear(struct torch_graph *g);

/* --- building; -ENOMEM, and -EFBIG beyond the maximum --- */
int ckpt_torch_new_tuple(struct torch_graph *g, uint32_t items,
                         torch_value *ret) CKPT_MUST_USE; /* the caller sets the items */
void ckpt_torch_set_item(struct torch_graph *g, torch_value tuple, uint32_t i, torch_value item);
int ckpt_torch_new_container(struct torch_graph *g, enum torch_kind kind, bool ordered, torch_value *ret) CKPT_MUST_USE;
/* Items of a list; keys and values of a dict, one after the other. */
int ckpt_torch_append(struct torch_graph *g, torch_value container, const torch_value *items,
                      uint32_t count) CKPT_MUST_USE;
int ckpt_torch_new_call(struct torch_graph *g, torch_value callee, torch_value args, torch_value *ret) CKPT_MUST_USE;
/* args: a tuple, or TORCH_NOTHING. */
int ckpt_torch_new_object(struct torch_graph *g, torch_value class, torch_value args, torch_value *ret) CKPT_MUST_USE;
int ckpt_torch_set_part(struct torch_graph *g, torch_value object, enum torch_part part,
                        torch_value value) CKPT_MUST_USE;
/* A name that is two strings of the pickle. */
int ckpt_torch_new_name(struct torch_graph *g, torch_value module, torch_value name, torch_value *ret) CKPT_MUST_USE;
/* Literals, which are appended to the pickle: pointers into it, as those of an opcode, are worth nothing afterwards.
 * The bytes may not be of the pickle. A bool: one byte; an int: little-endian, two's complement; a float: as in the
 * pickle. */
int ckpt_torch_new_literal(struct torch_graph *g, enum torch_kind kind, const void *bytes, size_t len,
                           torch_value *ret) CKPT_MUST_USE;
void ckpt_torch_set_state(struct torch_graph *g, torch_value object, torch_value state);
int ckpt_torch_new_storage(struct torch_graph *g, const struct torch_storage *s, torch_value *ret) CKPT_MUST_USE;
torch_value ckpt_torch_atom(size_t off); /* of an opcode in the pickle */
torch_value ckpt_torch_global_value(uint32_t global);
torch_value ckpt_torch_tensor_value(size_t record);

/* --- looking --- */
enum torch_kind ckpt_torch_kind(const struct torch_graph *g, torch_value v);
bool ckpt_torch_truth(const struct torch_graph *g, torch_value v); /* of a bool */
/* False: it is wider than 64 bits. */
bool ckpt_torch_int(const struct torch_graph *g, torch_value v, int64_t *ret);
/* The bytes of an int, as ckpt_torch_new_literal takes them. */
size_t ckpt_torch_int_width(const struct torch_graph *g, torch_value v);
/* An int of at most TORCH_MAX_INT bytes in decimal; appended. */
void ckpt_torch_int_text(const struct torch_graph *g, torch_value v, struct ckpt_buf *buf);
double ckpt_torch_float(const struct torch_graph *g, torch_value v);
const char *ckpt_torch_str(const struct torch_graph *g, torch_value v, size_t *ret_len); /* UTF-8 */
/* Of TORCH_BYTES; NULL: a buffer that is not in the pickle. */
const uint8_t *ckpt_torch_bytes(const struct torch_graph *g, torch_value v, size_t *ret_len);
/* Where bytes (or a bytearray) are that are not in the pickle; NULL: nobody knows. */
const struct torch_far *ckpt_torch_far(const struct torch_graph *g, torch_value v);
bool ckpt_torch_same_str(const struct torch_graph *g, torch_value a, torch_value b); /* of two strings */
bool ckpt_torch_str_is(const struct torch_graph *g, torch_value v,
                       const char *text); /* false, too, for what is no string */
/* The callee of a call, the class of an object. */
torch_value ckpt_torch_class(const struct torch_graph *g, torch_value v);
/* Append "module.name" of a name that was not called. */
void ckpt_torch_add_name(const struct torch_graph *g, torch_value global, struct ckpt_buf *buf);
/* The name itself, or the one that was called, or the class of the object or storage; TORCH_NO_GLOBAL, NULL: it has
 * none, or one that is not known. */
uint32_t ckpt_torch_global_number(const struct torch_graph *g, torch_value v);
const struct torch_global *ckpt_torch_global_of(const struct torch_graph *g, torch_value v);
bool ckpt_torch_is(const struct torch_graph *g, torch_value v, enum torch_kind kind, enum torch_meaning meaning);
uint32_t ckpt_torch_count(const struct torch_graph *g, torch_value v); /* of a tuple, list, dict */
torch_value ckpt_torch_item(const struct torch_graph *g, torch_value tuple, uint32_t i);
bool ckpt_torch_ordered(const struct torch_graph *g, torch_value dict);  /* an OrderedDict */
torch_value ckpt_torch_args(const struct torch_graph *g, torch_value v); /* of a call or object */
/* Of an object; TORCH_NOTHING: it has none. */
torch_value ckpt_torch_state(const struct torch_graph *g, torch_value object);
torch_value ckpt_torch_part(const struct torch_graph *g, torch_value object, enum torch_part part);
uint32_t ckpt_torch_object_number(const struct torch_graph *g, torch_value object); /* below g->objects */
void ckpt_torch_storage_of(const struct torch_graph *g, torch_value v, struct torch_storage *ret);
size_t ckpt_torch_record_of(torch_value v); /* of a tensor */
/* The value of a string key in a dict, the last one; TORCH_NOTHING. Only for dicts of few keys: one dict may be the
 * state of many objects. */
torch_value ckpt_torch_get(const struct torch_graph *g, torch_value dict, const char *key);

/* All items of a tuple or list in order; of a dict keys and values. */
struct torch_walk {
    const struct torch_graph *g;
    uint32_t at, left, next; /* in the words */
};
void ckpt_torch_walk_init(struct torch_walk *w, const struct torch_graph *g, torch_value container);
bool ckpt_torch_walk_next(struct torch_walk *w, torch_value *ret);

#endif
