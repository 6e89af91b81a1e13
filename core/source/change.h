/* SPDX-License-Identifier: Apache-2.0 */
/* Private to core/source: what the calls that change a native root share. Any thread; no locks are held. */
#ifndef CKPT_SOURCE_CHANGE_H
#define CKPT_SOURCE_CHANGE_H

#include "core/source/kind.h"

/* --- steps.c: names at the top of a root --- */

int ckpt_source_new_step(struct ckpt_source *src, struct place *p, const char *name, uint32_t mode,
                         const struct ckpt_caller *who, struct ckpt_stage_attr *ret,
                         struct ckpt_err *err) CKPT_MUST_USE;
int ckpt_source_remove_step(struct ckpt_source *src, struct place *p, const char *name,
                            struct ckpt_err *err) CKPT_MUST_USE;
int ckpt_source_rename_step(struct ckpt_source *src, struct place *p, const char *from, const char *to, unsigned flags,
                            const struct ckpt_caller *who, struct ckpt_err *err) CKPT_MUST_USE;

/* --- handle.c --- */

/* A handle of the public header; what it is made of is taken over, also when there is no memory. */
int ckpt_source_wrap(struct ckpt_stage_handle *staged, struct ckpt_handle **ret) CKPT_MUST_USE;

/* --- told.c: callers that are told -ESTALE --- */

/* Whoever is told so to change something (or to read it) has it for himself when he has looked it up again. */
void ckpt_source_tell_again(struct ckpt_source *src, const struct ckpt_caller *who, bool change);
/* What is to be changed is no staged file: its step is opened for changes, and -ESTALE is the answer. */
int ckpt_source_must_look_again(struct ckpt_source *src, uint64_t id, const struct ckpt_caller *who,
                                struct ckpt_err *err) CKPT_MUST_USE;

#endif
