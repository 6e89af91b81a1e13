/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a pickle describes, as plain values that refer to each other: a graph, since pickles share and may even have
 * cycles. Values are numbers: numbers and strings stay where they are in the pickle, tensors are records (tensor.h),
 * the rest lies in one array of words. Built by one thread, then immutable.
 */
#ifndef CKPT_FORMAT_PYTORCH_GRAPH_H
#define CKPT_FORMAT_PYTORCH_GRAPH_H

#include "core/base/buf.h"
#include "core/base/err.h"
#include "core/format/pytorch/global.h"

#define TORCH_MAX_PICKLE ((size_t)64 << 20)

typedef uint32_t torch_value;
#define TORCH_NOTHING UINT32_MAX

enum torch_kind {
    TORCH_NONE,
    TORCH_BOOL,
    TORCH_INT,
    TORCH_FLOAT,
    TORCH_STR,
    TORCH_GLOBAL, /* a name that was not called */
    TORCH_TENSOR, /* a record */
    TORCH_TUPLE,
    TORCH_LIST,
    TORCH_DICT,
    TORCH_CALL,    /* a name called with a tuple of arguments: a device, a set */
    TORCH_OBJECT,  /* an instance of a class, with its state */
    TORCH_STORAGE, /* what a persistent id names */
};

struct torch_graph {
    uint8_t *pickle; /* malloced */
    size_t len;
    uint32_t *words;
    uint32_t count, cap;
    uint64_t values;  /* that the pickle made: what it describes has no more without sharing */
    uint64_t archive; /* that its storages are in, as in a tensor's record */
    torch_value top;
};

/* Where the bytes of a storage are, and how many. */
struct torch_storage {
    uint32_t global; /* its class */
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
int ckpt_torch_new_call(struct torch_graph *g, uint32_t global, torch_value args, torch_value *ret) CKPT_MUST_USE;
int ckpt_torch_new_object(struct torch_graph *g, uint32_t global, torch_value *ret) CKPT_MUST_USE;
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
/* An int of any width in decimal; appended. */
void ckpt_torch_int_text(const struct torch_graph *g, torch_value v, struct ckpt_buf *buf);
double ckpt_torch_float(const struct torch_graph *g, torch_value v);
const char *ckpt_torch_str(const struct torch_graph *g, torch_value v, size_t *ret_len); /* UTF-8 */
bool ckpt_torch_same_str(const struct torch_graph *g, torch_value a, torch_value b);     /* of two strings */
bool ckpt_torch_str_is(const struct torch_graph *g, torch_value v,
                       const char *text); /* false, too, for what is no string */
/* The name itself, or the one that was called, or the class of the object or storage; TORCH_NO_GLOBAL, NULL: it has
 * none. */
uint32_t ckpt_torch_global_number(const struct torch_graph *g, torch_value v);
const struct torch_global *ckpt_torch_global_of(const struct torch_graph *g, torch_value v);
bool ckpt_torch_is(const struct torch_graph *g, torch_value v, enum torch_kind kind, enum torch_meaning meaning);
uint32_t ckpt_torch_count(const struct torch_graph *g, torch_value v); /* of a tuple, list, dict */
torch_value ckpt_torch_item(const struct torch_graph *g, torch_value tuple, uint32_t i);
bool ckpt_torch_ordered(const struct torch_graph *g, torch_value dict); /* an OrderedDict */
torch_value ckpt_torch_args(const struct torch_graph *g, torch_value call);
torch_value ckpt_torch_state(const struct torch_graph *g, torch_value object); /* TORCH_NOTHING: it has none */
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
