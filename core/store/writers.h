/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One step by several writers, each with a mount of its own, perhaps on another machine; what they share is the root.
 * What a writer has of the step is a part: a manifest in .ckptstore/writers/NAME/, called K-of-N.json, whose content is
 * durable in objects/. When all N are there, whoever has seen it makes them one step, and says so in the file `done`;
 * those who wait look for that. A lock beside keeps two from doing so at once.
 */
#ifndef CKPT_STORE_WRITERS_H
#define CKPT_STORE_WRITERS_H

#include "core/store/store.h"

#define CKPT_WRITERS_MAX 65536

struct ckpt_writers; /* of one step */

/* The place where the parts of a step meet, made if need be. What an earlier step of that name has left is moved to the
 * trash, but for one that a part of this writer has become part of: `before` has the ids of those, a line each. */
int ckpt_writers_open(struct ckpt_store *s, const char *step, const char *before, struct ckpt_writers **ret,
                      struct ckpt_err *err) CKPT_MUST_USE;
void ckpt_writers_close(struct ckpt_writers *w);
/* The step was made of what this writer had there before. */
bool ckpt_writers_made(const struct ckpt_writers *w);
/*
 * Writer number k of n has its part: the manifest `name` in the directory `work`, which moves. One that it has put
 * there before is replaced; where the step was made of that, it must be equal. -EEXIST: a leaf of it is there with
 * other bytes; -EINVAL: another writer counts otherwise.
 */
int ckpt_writers_put(struct ckpt_writers *w, unsigned k, unsigned n, int work, const char *name,
                     struct ckpt_err *err) CKPT_MUST_USE;
/* 1: the step was made of parts of which the one with this id was one; 0: not yet; or why it could not be made. */
int ckpt_writers_done(struct ckpt_writers *w, const char *part, struct ckpt_err *err) CKPT_MUST_USE;
/* A descriptor that holds the lock; -ESTALE: the place was moved to the trash. Whoever makes the step holds it
 * meanwhile. */
int ckpt_writers_lock(struct ckpt_writers *w, struct ckpt_err *err) CKPT_MUST_USE;
/* 1: all parts are there, and nothing has come of them yet. 0: some are missing, or it has. */
int ckpt_writers_complete(struct ckpt_writers *w, unsigned n, struct ckpt_err *err) CKPT_MUST_USE;
/* A nonzero result ends the visits. */
typedef int ckpt_part_fn(void *arg, struct ckpt_file *part, struct ckpt_err *err);
/* These two by who holds the lock. */
/* The id that a step of these parts has, whoever makes it. */
int ckpt_writers_id(struct ckpt_writers *w, char ret[33], struct ckpt_err *err) CKPT_MUST_USE;
int ckpt_writers_each(struct ckpt_writers *w, ckpt_part_fn *visit, void *arg, struct ckpt_err *err) CKPT_MUST_USE;
/* result: 0, or the error that all who wait shall get. */
int ckpt_writers_finish(struct ckpt_writers *w, int result, const struct ckpt_err *why) CKPT_MUST_USE;
/* Those that are not there, as text ("1, 3"). */
void ckpt_writers_missing(struct ckpt_writers *w, unsigned n, char *buf, size_t len);

/* Was a part with one of these ids (a line each) made into a step of that name? */
bool ckpt_writers_was_done(struct ckpt_store *s, const char *step, const char *ids);
/* A writer gives its part up. */
int ckpt_writers_withdraw(struct ckpt_store *s, const char *step, unsigned k, unsigned n) CKPT_MUST_USE;
/* Each part that still waits; what it names must stay. -ENOENT of a part that goes meanwhile is no error. */
int ckpt_writers_parts(struct ckpt_store *s, ckpt_part_fn *visit, void *arg, struct ckpt_err *err) CKPT_MUST_USE;
/* Moves to the trash what nobody waits for any more. */
int ckpt_writers_tidy(struct ckpt_store *s) CKPT_MUST_USE;

#endif
