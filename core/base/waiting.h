/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A thread that is about to wait, or to work, for long tells so: whoever has a fixed number of threads that answer many
 * users lets another take its place meanwhile, and may refuse when there are too many of one user's. Internally locked.
 */
#ifndef CKPT_BASE_WAITING_H
#define CKPT_BASE_WAITING_H

struct ckpt_waiting {
    int (*begin)(void *arg); /* 0, or a negative errno */
    void (*end)(void *arg);
    void *arg;
};

/* Borrowed until the next one; NULL: nobody wants to know. */
void ckpt_waiting_setup(const struct ckpt_waiting *hook);
/* 0, and then _end is to be called; or a negative errno. They nest. */
int ckpt_waiting_begin(void);
void ckpt_waiting_end(void);

#endif
