/* SPDX-License-Identifier: Apache-2.0 */
/* A fixed pool of threads that run tasks in the order of submission. Internally locked. */
#ifndef CKPT_BASE_POOL_H
#define CKPT_BASE_POOL_H

struct ckpt_pool;

int ckpt_pool_new(unsigned threads, struct ckpt_pool **ret);
/* Runs fn(arg) on some thread, later. -ENOMEM when the queue cannot grow; fn is then not called. */
int ckpt_pool_submit(struct ckpt_pool *pool, void (*fn)(void *arg), void *arg);
/* Waits for the tasks under way and queued, then ends the threads. */
void ckpt_pool_free(struct ckpt_pool *pool);

#endif
