/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Callers that a step waits for before it commits. A lookup that has met -ESTALE is made once more, and then the kernel
 * fails: so whoever has looked something up for the second time may open or change it first.
 */
#include "core/stage/private.h"

/* They come within microseconds; who was killed meanwhile, or is refused, does not. */
#define AWAITED_NS 1000000000ll

/* In a slot that is free, or else in that of the one who came first. */
static void add_awaited(struct stage_step *step, pid_t thread)
{
    CKPT_GUARD(&step->set->lock);
    struct stage_awaited *slot = step->awaited;
    for (unsigned i = 1; i < STAGE_AWAITED; i++)
        if (step->awaited[i].until_ns < slot->until_ns)
            slot = &step->awaited[i];
    *slot = (struct stage_awaited){thread, ckpt_monotonic_ns() + AWAITED_NS};
}

int ckpt_stage_await(struct ckpt_stages *set, uint64_t id, const struct ckpt_caller *who)
{
    struct stage_inode *n;
    int r = ckpt_stage_use(set, id, &n);
    if (r < 0)
        return r;
    r = ckpt_stage_enter(n->step); /* waits for a commit under way: the caller has no use for what that ends */
    if (r == 0) {
        add_awaited(n->step, who->pid);
        ckpt_stage_leave(n->step);
    }
    ckpt_stage_unuse(n);
    return r;
}

void ckpt_stage_came(struct stage_step *step, const struct ckpt_caller *who)
{
    CKPT_GUARD(&step->set->lock);
    ckpt_stage_end_awaited_locked(step, who->pid);
}

/* When the last of them is given up. Under the set's lock. */
static int64_t awaited_until(const struct stage_step *step)
{
    int64_t last = 0;
    for (unsigned i = 0; i < STAGE_AWAITED; i++)
        last = CKPT_MAX(last, step->awaited[i].until_ns);
    return last;
}

bool ckpt_stage_is_awaited(struct stage_step *step)
{
    CKPT_GUARD(&step->set->lock);
    return awaited_until(step) > ckpt_monotonic_ns();
}

void ckpt_stage_wait_awaited(struct stage_step *step, int64_t end_ns)
{
    struct ckpt_stages *set = step->set;
    CKPT_GUARD(&set->lock);
    for (;;) {
        int64_t now = ckpt_monotonic_ns(), until = CKPT_MIN(awaited_until(step), end_ns);
        if (until <= now || set->closing)
            return;
        struct timespec at = ckpt_stage_deadline(until - now);
        pthread_cond_timedwait(&set->idle, &set->lock, &at);
    }
}
