/* SPDX-License-Identifier: Apache-2.0 */
/* Private to disk.c: what CKPTFS_DISK_FAIL, CKPTFS_DISK_TRACE and CKPTFS_DISK_SLOW ask for. Between a hook and its end
 * the lock of all calls is held. Without the build option test_hooks the functions do nothing: no environment variable
 * can make a released program fail. */
#ifndef CKPT_IO_DISK_HOOKS_H
#define CKPT_IO_DISK_HOOKS_H

#include "core/base/err.h"

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef CKPT_TEST_HOOKS

extern atomic_bool ckpt_disk_unhooked; /* the environment has been read, and asks for nothing */
bool ckpt_disk_hooks_ask(void);

static inline bool ckpt_disk_hooked(void)
{
    return !__builtin_expect(atomic_load_explicit(&ckpt_disk_unhooked, memory_order_relaxed), true) &&
           ckpt_disk_hooks_ask();
}

/* Takes the lock, and counts: an error if this call is one that is to fail. One of the ends follows in any case. */
int ckpt_disk_hook(void) CKPT_MUST_USE;
/* The end of a call on paths, with its result: the line is "op PATH[ PATH2]" and what fmt says. */
void ckpt_disk_hooked_paths(int r, const char *op, int dir, const char *path, int dir2, const char *path2,
                            const char *fmt, ...) __attribute__((format(printf, 7, 8)));
/* The end of a call on a descriptor: "op PATH[ NAME][ NUMBER]", then of the data where they are put, if there are any.
 */
void ckpt_disk_hooked_fd(int r, const char *op, int fd, const char *name, const uint64_t *number, const void *data,
                         size_t len);
/* The end of a call on a descriptor: "op PATH[ WORDS]". */
void ckpt_disk_hooked_words(int r, const char *op, int fd, const char *words);

#else

static inline bool ckpt_disk_hooked(void)
{
    return false;
}

static inline CKPT_MUST_USE int ckpt_disk_hook(void)
{
    return 0;
}

static inline __attribute__((format(printf, 7, 8))) void ckpt_disk_hooked_paths(int r, const char *op, int dir,
                                                                                const char *path, int dir2,
                                                                                const char *path2, const char *fmt, ...)
{
}

static inline void ckpt_disk_hooked_fd(int r, const char *op, int fd, const char *name, const uint64_t *number,
                                       const void *data, size_t len)
{
}

static inline void ckpt_disk_hooked_words(int r, const char *op, int fd, const char *words)
{
}

#endif

#endif
