/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Owners and modes of what lies in the store, and the marks of staged files that become objects themselves: see seal.c.
 * Any thread; callers see to it that one file is not sealed and given back at once.
 */
#ifndef CKPT_STORE_SEAL_H
#define CKPT_STORE_SEAL_H

#include "core/store/store.h"

#include <sys/stat.h>

/* The object is, or was, a link to a staged file: whoever finds it by its hash must not believe in its bytes. */
#define CKPT_ALIAS_XATTR "user.ckptfs.alias"
/* The name of such a link in hold/ ends so. */
#define CKPT_ALIAS_SUFFIX ".alias"
/* The attribute's value: what mode and owner a staged file has, or that it has those that its inode says. */
#define CKPT_SEAL_MARK 64
#define CKPT_SEAL_NONE "1"

void ckpt_seal_mark(const struct stat *st, char ret[CKPT_SEAL_MARK]);
/* What a mark says, into mode, uid and gid of *st; false: there is none, or it does not tell. */
bool ckpt_seal_marked(int fd, struct stat *st);
/* Before the file, of which no commit is under way, gets another mode or owner: what its mark tells is out of date
 * then. */
int ckpt_seal_forget(int fd) CKPT_MUST_USE;

/* The mode of a file of that group, where mode is for one of the root's. */
mode_t ckpt_seal_mode(const struct ckpt_store *s, gid_t gid, mode_t mode);
/* An object is the root owner's, and gives no more than mode. Nothing happens if it is not there, or is another user's.
 */
int ckpt_seal_object(const struct ckpt_store *s, int dir, const char *name, mode_t mode) CKPT_MUST_USE;

/* A link in hold/ to a staged file: that has the mode and owner again that its mark tells. */
int ckpt_seal_undo(int dir, const char *name);
/* The same of all links in an open hold/, of a step that stays staged though files of it were made objects of. */
void ckpt_seal_undo_all(int hold);
/* Would it give more rights, to read it or to change it, with the mode and owner that its mark tells? */
bool ckpt_seal_matters(int dir, const char *name);

#endif
