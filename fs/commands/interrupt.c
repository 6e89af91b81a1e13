/* SPDX-License-Identifier: Apache-2.0 */
#include "fs/commands/interrupt.h"

#include <signal.h>
#include <stddef.h>

static volatile sig_atomic_t caught;

static void catch (int signal)
{
    caught = signal;
}

void fs_interrupt_begin(void)
{
    struct sigaction sa = {.sa_handler = catch, .sa_flags = (int)SA_RESETHAND};
    sigaction(SIGINT, &sa, NULL);
    sigaction(SIGTERM, &sa, NULL);
}

bool fs_interrupted(void)
{
    return caught;
}

void fs_interrupt_end(void)
{
    if (caught)
        raise(caught);
}
