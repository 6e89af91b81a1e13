/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Private to the pickle machine: its stack, its memo, and what its opcodes do. None of them imports, looks up or calls
 * anything.
 *
 * What goes into a tensor, some ten objects, is given back when its record has been made, since a checkpoint has many
 * of them: each value on the stack knows where the words ended when its making began, and the words from there on are
 * of nobody else, unless something was put into the memo or into a container since (`floor`).
 */
#ifndef CKPT_FORMAT_PYTORCH_MACHINE_H
#define CKPT_FORMAT_PYTORCH_MACHINE_H

#include "core/format/pytorch/memo.h"
#include "core/format/pytorch/opcode.h"
#include "core/format/pytorch/storages.h"

struct torch_entry {
    torch_value value;
    uint32_t start; /* words there were when its making began */
};

struct torch_machine {
    struct torch_graph g;
    enum torch_dialect dialect;
    struct ckpt_buf *records;
    struct torch_entry *stack;
    uint32_t depth, stack_cap;
    uint32_t *marks; /* depths */
    uint32_t mark_count, mark_cap;
    struct torch_memo memo;
    uint32_t memoized;
    uint32_t floor; /* words that may be referred to from elsewhere than the stack */
    uint32_t looks;
    struct torch_storages *storages; /* where those of persistent ids are noted, or NULL */
    struct ckpt_err *err;
};

/* --- machine.c: what all opcodes need --- */
int ckpt_machine_malformed(struct torch_machine *m, const char *what);
/* Of a function of the graph or the memo: its error told. */
int ckpt_machine_made(struct torch_machine *m, int r) CKPT_MUST_USE;
/* start: where the words ended before its making. */
int ckpt_machine_push_from(struct torch_machine *m, torch_value value, uint32_t start) CKPT_MUST_USE;
/* A value that needs no words, or that others refer to. */
int ckpt_machine_push(struct torch_machine *m, torch_value value) CKPT_MUST_USE;
/* The lowest entry that may be taken: those below belong to an open mark. */
uint32_t ckpt_machine_bottom(const struct torch_machine *m);
int ckpt_machine_need(struct torch_machine *m, uint32_t count) CKPT_MUST_USE;
int ckpt_machine_mark(struct torch_machine *m) CKPT_MUST_USE;
/* *ret: the depth at the last mark, which is taken away. */
int ckpt_machine_unmark(struct torch_machine *m, uint32_t *ret) CKPT_MUST_USE;
/* Give back the words that were used for values that are no longer on the stack, from `start` on. */
void ckpt_machine_give_back(struct torch_machine *m, uint32_t start);
/* True while so many items more may be looked at: what is in a tuple or list that many others share is looked at for
 * each of them. */
bool ckpt_machine_look(struct torch_machine *m, uint32_t items);

/* --- literal.c: numbers, strings and names --- */
int ckpt_machine_literal(struct torch_machine *m, const struct torch_op *op) CKPT_MUST_USE;
/* The number in the line of GET and PUT. */
int ckpt_machine_line_number(struct torch_machine *m, const struct torch_op *op, uint32_t *ret) CKPT_MUST_USE;
/* Of GLOBAL and INST. */
int ckpt_machine_global(struct torch_machine *m, const struct torch_op *op) CKPT_MUST_USE;
int ckpt_machine_stack_global(struct torch_machine *m) CKPT_MUST_USE;

/* --- container.c --- */
int ckpt_machine_new_container(struct torch_machine *m, enum torch_kind kind, bool ordered,
                               uint32_t start) CKPT_MUST_USE;
/* Of the entries from `from` on. */
int ckpt_machine_tuple(struct torch_machine *m, uint32_t from) CKPT_MUST_USE;
int ckpt_machine_list(struct torch_machine *m, uint32_t from) CKPT_MUST_USE;
int ckpt_machine_dict(struct torch_machine *m, uint32_t from) CKPT_MUST_USE;
int ckpt_machine_set(struct torch_machine *m, const char *class, uint32_t from) CKPT_MUST_USE;
/* They go into the list (or dict, set: kind TORCH_CALL) or object below them. */
int ckpt_machine_fill(struct torch_machine *m, enum torch_kind kind, uint32_t from) CKPT_MUST_USE;
/* A dict of a list or tuple of pairs. False: they are none. */
bool ckpt_machine_are_pairs(struct torch_machine *m, torch_value v);
int ckpt_machine_add_pairs(struct torch_machine *m, torch_value dict, torch_value pairs) CKPT_MUST_USE;

/* --- call.c --- */
int ckpt_machine_reduce(struct torch_machine *m) CKPT_MUST_USE;
/* A class and its arguments, and with `by_name` those by name. */
int ckpt_machine_new_object(struct torch_machine *m, bool by_name) CKPT_MUST_USE;
/* A class and its arguments are the entries from `from` on. */
int ckpt_machine_instance(struct torch_machine *m, uint32_t from) CKPT_MUST_USE;
int ckpt_machine_build(struct torch_machine *m) CKPT_MUST_USE;
int ckpt_machine_persistent(struct torch_machine *m) CKPT_MUST_USE;

#endif
