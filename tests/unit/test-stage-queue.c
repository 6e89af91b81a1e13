/* SPDX-License-Identifier: Apache-2.0 */
/* Whose turn it is in the background: users in turn, and a thread that what lasts does not get. */
#include "core/stage/private.h"
#include "tests/unit/check.h"

#define MAX 200

static struct {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    bool open;                  /* tasks that wait at the gate go on */
    unsigned order[MAX], count; /* users of those that have run */
    unsigned waiting;
} gate = {.lock = PTHREAD_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER};

static void note(struct stage_task *task)
{
    CKPT_GUARD(&gate.lock);
    gate.order[gate.count++] = task->uid;
    pthread_cond_broadcast(&gate.changed);
}

static void wait_and_note(struct stage_task *task)
{
    pthread_mutex_lock(&gate.lock);
    gate.waiting++;
    pthread_cond_broadcast(&gate.changed);
    while (!gate.open)
        pthread_cond_wait(&gate.changed, &gate.lock);
    gate.waiting--;
    pthread_mutex_unlock(&gate.lock);
    note(task);
}

static void set_open(bool open)
{
    CKPT_GUARD(&gate.lock);
    gate.open = open;
    gate.count = open ? gate.count : 0;
    pthread_cond_broadcast(&gate.changed);
}

static void await(const unsigned *what, unsigned value)
{
    CKPT_GUARD(&gate.lock);
    while (*what != value)
        pthread_cond_wait(&gate.changed, &gate.lock);
}

static struct ckpt_stages *set_new(unsigned threads)
{
    struct ckpt_stages *set = calloc(1, sizeof *set);
    CHECK(set && ckpt_pool_new(threads, &set->pool) == 0);
    pthread_mutex_init(&set->lock, NULL);
    set->slow_limit = threads > 1 ? threads - 1 : 1;
    set_open(false);
    return set;
}

static void set_free(struct ckpt_stages *set)
{
    ckpt_pool_free(set->pool);
    ckpt_stage_queue_free(set);
    pthread_mutex_destroy(&set->lock);
    free(set);
}

static void add(struct ckpt_stages *set, struct stage_task *task, struct stage_step *step, uid_t uid, bool slow,
                void (*run)(struct stage_task *))
{
    *task = (struct stage_task){.step = step, .uid = uid, .slow = slow, .run = run};
    CKPT_GUARD(&set->lock);
    CHECK(ckpt_stage_queue_add(set, task) == 0);
}

/* Ten tasks of one user do not wait for a hundred of another that came before. */
static void test_turns(void)
{
    struct ckpt_stages *set = set_new(1);
    struct stage_task tasks[MAX];
    unsigned n = 0, at[4] = {0};
    add(set, &tasks[n++], NULL, 0, false, wait_and_note);
    await(&gate.waiting, 1);
    for (int i = 0; i < 100; i++)
        add(set, &tasks[n++], NULL, 1, false, note);
    for (int i = 0; i < 10; i++)
        add(set, &tasks[n++], NULL, 2, i % 2, note);
    add(set, &tasks[n++], NULL, 3, false, note);
    set_open(true);
    await(&gate.count, n);
    for (unsigned i = 0; i < n; i++)
        at[gate.order[i]] = i;
    CHECK(at[0] == 0 && at[3] <= 3 && at[2] <= 23 && at[1] == n - 1);
    set_free(set);
}

/* However many there are that last, there is a thread for others. */
static void test_slow(void)
{
    struct ckpt_stages *set = set_new(3);
    struct stage_task tasks[20];
    for (int i = 0; i < 10; i++)
        add(set, &tasks[i], NULL, (uid_t)i % 2, true, wait_and_note);
    await(&gate.waiting, 2);
    for (int i = 10; i < 20; i++)
        add(set, &tasks[i], NULL, 7, false, note);
    await(&gate.count, 10);
    CHECK(gate.waiting == 2 && gate.order[9] == 7);
    set_open(true);
    await(&gate.count, 20);
    set_free(set);
}

/* A step's tasks are taken back, and no others. */
static void test_take(void)
{
    struct ckpt_stages *set = set_new(2);
    struct stage_step a = {.set = set}, b = {.set = set};
    struct stage_task tasks[10], gates[2];
    for (int i = 0; i < 2; i++)
        add(set, &gates[i], NULL, 0, false, wait_and_note);
    await(&gate.waiting, 2);
    for (int i = 0; i < 10; i++)
        add(set, &tasks[i], i % 3 ? &a : &b, 1, i >= 5, note);
    pthread_mutex_lock(&set->lock);
    unsigned count = 0;
    for (struct stage_task *t = ckpt_stage_queue_take(&a); t; t = t->next, count++)
        CHECK(t->step == &a);
    CHECK(count == 6 && !ckpt_stage_queue_take(&a));
    pthread_mutex_unlock(&set->lock);
    add(set, &tasks[1], &a, 1, true, note);
    add(set, &tasks[2], &a, 1, false, note);
    set_open(true);
    await(&gate.count, 2 + 4 + 2);
    set_free(set);
}

int main(void)
{
    test_turns();
    test_slow();
    test_take();
    return 0;
}
