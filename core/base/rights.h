/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Who may read something, and who of all may read several things at once: the rule for what joins files, be it a view
 * of a directory, a manifest, or an object that leaves share.
 */
#ifndef CKPT_BASE_RIGHTS_H
#define CKPT_BASE_RIGHTS_H

#include "core/base/caller.h"

#include <stdbool.h>
#include <stdint.h>

/* Who may read. A class of users (owner, group, others) has its bit only if the narrower ones have theirs. So it does
 * not matter to which class of which file somebody belongs. */
struct ckpt_rights {
    uint32_t mode; /* of 0444 */
    uint32_t uid, gid;
};

/* Of a file, to read it; of a directory, to list and to enter it. */
struct ckpt_rights ckpt_rights_of(uint32_t mode, uint32_t uid, uint32_t gid, bool dir);
/* Of a directory, to enter it: what it takes to read a file in it whose name is known. */
struct ckpt_rights ckpt_rights_to_enter(uint32_t mode, uint32_t uid, uint32_t gid);
/* Of those who may read both. Where owners or groups differ, what they do not have in common is not granted; this
 * process's own user, who reads all there is to read, is the owner then. */
struct ckpt_rights ckpt_rights_join(const struct ckpt_rights *a, const struct ckpt_rights *b);
bool ckpt_rights_same(const struct ckpt_rights *a, const struct ckpt_rights *b);
/* The mode of a file of that group, whoever owns it, that gives no more than these rights, but that its owner may
 * always read it. */
uint32_t ckpt_rights_mode(const struct ckpt_rights *r, uint32_t gid);

/* Is it the caller's, or root? */
bool ckpt_caller_owns(const struct ckpt_caller *who, uint32_t uid);
/* May the caller do all of want (bits 4, 2, 1) with something? NULL is whom everything is shown. */
bool ckpt_caller_may(const struct ckpt_caller *who, uint32_t mode, uint32_t uid, uint32_t gid, unsigned want);

#endif
