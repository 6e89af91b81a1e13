/* SPDX-License-Identifier: Apache-2.0 */
/* Pseudo-random numbers that are the same in every run: a failure is found again. One thread a state. */
#ifndef CKPT_TESTS_RANDOM_H
#define CKPT_TESTS_RANDOM_H

#include <stdint.h>

/* xorshift64*; *state is not 0. */
static inline uint64_t test_random(uint64_t *state)
{
    *state ^= *state >> 12;
    *state ^= *state << 25;
    *state ^= *state >> 27;
    return *state * 0x2545f4914f6cdd1d;
}

static inline uint64_t test_below(uint64_t *state, uint64_t n)
{
    return (test_random(state) >> 16) % n;
}

#endif
