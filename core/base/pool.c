/* SPDX-License-Identifier: Apache-2.0 */
#include "core/base/pool.h"

#include "core/base/util.h"

#include <errno.h>

struct task {
    void (*fn)(void *);
    void *arg;
    struct task *next;
};

struct ckpt_pool {
    pthread_mutex_t lock;
    pthread_cond_t wake;
    struct task *head, **tail;
    int ending;
    unsigned count;
    pthread_t threads[];
};

static void *pool_thread(void *arg)
{
    struct ckpt_pool *pool = arg;
    pthread_mutex_lock(&pool->lock);
    for (;;) {
        while (!pool->head && !pool->ending)
            pthread_cond_wait(&pool->wake, &pool->lock);
        struct task *t = pool->head;
        if (!t)
            break;
        pool->head = t->next;
        if (!pool->head)
            pool->tail = &pool->head;
        pthread_mutex_unlock(&pool->lock);
        t->fn(t->arg);
        free(t);
        pthread_mutex_lock(&pool->lock);
    }
    pthread_mutex_unlock(&pool->lock);
    return NULL;
}

int ckpt_pool_new(unsigned threads, struct ckpt_pool **ret)
{
    struct ckpt_pool *pool = calloc(1, sizeof *pool + threads * sizeof(pthread_t));
    if (!pool)
        return -ENOMEM;
    pthread_mutex_init(&pool->lock, NULL);
    pthread_cond_init(&pool->wake, NULL);
    pool->tail = &pool->head;
    for (; pool->count < threads; pool->count++)
        if (pthread_create(&pool->threads[pool->count], NULL, pool_thread, pool) != 0) {
            ckpt_pool_free(pool);
            return -EAGAIN;
        }
    *ret = pool;
    return 0;
}

int ckpt_pool_submit(struct ckpt_pool *pool, void (*fn)(void *), void *arg)
{
    struct task *t = malloc(sizeof *t);
    if (!t)
        return -ENOMEM;
    *t = (struct task){fn, arg, NULL};
    CKPT_GUARD(&pool->lock);
    *pool->tail = t;
    pool->tail = &t->next;
    pthread_cond_signal(&pool->wake);
    return 0;
}

void ckpt_pool_free(struct ckpt_pool *pool)
{
    if (!pool)
        return;
    pthread_mutex_lock(&pool->lock);
    pool->ending = 1;
    pthread_cond_broadcast(&pool->wake);
    pthread_mutex_unlock(&pool->lock);
    for (unsigned i = 0; i < pool->count; i++)
        pthread_join(pool->threads[i], NULL);
    pthread_mutex_destroy(&pool->lock);
    pthread_cond_destroy(&pool->wake);
    free(pool);
}
