/* SPDX-License-Identifier: Apache-2.0 */
/* Private to core/source: what the calls that change a native root share. Any thread; no locks are held. */
#ifndef CKPT_SOURCE_CHANGE_H
#define CKPT_SOURCE_CHANGE_H

#include "core/source/source.h"

/* --- roots.c --- */

/* The root's listing is out of date. name: of a step that has another manifest, or none; NULL: of none. */
void ckpt_source_root_changed(void *arg, const char *name);

/* --- write.c --- */

/*
 * The directory that a call wants to change: either one in a staged step (`id`, with a reference), or the top of a
 * native root (`top`, kept by its uses, and no id).
 */
struct place {
    struct ckpt_stages *stages;
    uint64_t id;
    struct target top; /* holds the root's node */
};
/* Opens a committed step for changes. 0: in a staged step; 1: the top of a root. -ESTALE: the step has been committed;
 * see ckpt_source_retry(). */
int ckpt_source_find_place(struct ckpt_source *src, uint64_t id, struct place *ret, struct ckpt_err *err) CKPT_MUST_USE;
void ckpt_source_place_clear(struct ckpt_source *src, struct place *p);

/* What the store has of a committed file; clear it. -EXDEV where it is not of a store, or only another rendering. */
int ckpt_source_record_of(struct ckpt_source *src, uint64_t id, struct ckpt_manifest_node *ret) CKPT_MUST_USE;

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

/* --- again.c: callers that are told -ESTALE --- */

/* Whoever is told so to change something (or to read it) has it for himself when he has looked it up again. */
void ckpt_source_tell_again(struct ckpt_source *src, const struct ckpt_caller *who, bool change);
/* What is to be changed is no staged file: its step is opened for changes, and -ESTALE is the answer. */
int ckpt_source_must_look_again(struct ckpt_source *src, uint64_t id, const struct ckpt_caller *who,
                                struct ckpt_err *err) CKPT_MUST_USE;

#endif
