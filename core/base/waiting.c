/* SPDX-License-Identifier: Apache-2.0 */
#include "core/base/waiting.h"

#include <stdatomic.h>
#include <stddef.h>

static const struct ckpt_waiting *_Atomic current;

void ckpt_waiting_setup(const struct ckpt_waiting *hook)
{
    atomic_store(&current, hook);
}

int ckpt_waiting_begin(void)
{
    const struct ckpt_waiting *hook = atomic_load(&current);
    return hook ? hook->begin(hook->arg) : 0;
}

void ckpt_waiting_end(void)
{
    const struct ckpt_waiting *hook = atomic_load(&current);
    if (hook)
        hook->end(hook->arg);
}
