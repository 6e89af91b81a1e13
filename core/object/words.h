/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A table of little-endian u64 in a file, with the XXH3-64 of all of it behind it: the index of an encoded object, the
 * sums of a raw one. Checked when it is opened. A small one is then in memory; of a large one the words are read when
 * they are asked for. Immutable; any thread.
 */
#ifndef CKPT_OBJECT_WORDS_H
#define CKPT_OBJECT_WORDS_H

#include "core/io/backend.h"

struct ckpt_words {
    uint64_t off, count;
    struct ckpt_file *file; /* of a large table, referenced */
    uint8_t *data;          /* of a small one, `skip` bytes before the words */
    size_t skip;
};

/* Told of each word in turn. */
typedef int ckpt_words_visit(void *arg, uint64_t i, uint64_t word, struct ckpt_err *err);

/* count words at off; the sum behind them begins at `from`, a multiple of 8 before. visit may be NULL. */
int ckpt_words_open(struct ckpt_words *w, struct ckpt_file *file, uint64_t from, uint64_t off, uint64_t count,
                    ckpt_words_visit *visit, void *arg, struct ckpt_err *err) CKPT_MUST_USE;
void ckpt_words_clear(struct ckpt_words *w);
/* n words from the i-th on; they are there. */
int ckpt_words_get(const struct ckpt_words *w, uint64_t i, unsigned n, uint64_t *ret,
                   struct ckpt_err *err) CKPT_MUST_USE;

#endif
