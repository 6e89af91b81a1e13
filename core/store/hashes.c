/* SPDX-License-Identifier: Apache-2.0 */
/* Open addressing. The hashes come from manifests, so anybody may have chosen them: where they go depends on a secret.
 */
#include "core/store/internal.h"

#include "core/base/util.h"

#include <sys/random.h>

#define FIRST_SIZE 1024

static const uint8_t nothing[CKPT_SHA256];

void ckpt_hashes_init(struct ckpt_hashes *h)
{
    *h = (struct ckpt_hashes){0};
    if (getrandom(h->seed, sizeof h->seed, 0) != sizeof h->seed)
        h->seed[0] = (uint64_t)ckpt_realtime_ns();
}

void ckpt_hashes_clear(struct ckpt_hashes *h)
{
    free(h->slot);
    h->slot = NULL;
    h->size = h->count = 0;
    h->zero = false;
}

static size_t place(const struct ckpt_hashes *h, const uint8_t hash[CKPT_SHA256])
{
    uint64_t sum = 0;
    for (int i = 0; i < 4; i++) {
        __uint128_t product = (__uint128_t)((ckpt_le64(hash + 8 * i) ^ h->seed[i]) | 1) * (h->seed[(i + 1) % 4] | 1);
        sum = (sum << 23 | sum >> 41) ^ (uint64_t)product ^ (uint64_t)(product >> 64);
    }
    return (size_t)sum & (h->size - 1);
}

/* Where it is, or where it would go. */
static size_t find(const struct ckpt_hashes *h, const uint8_t hash[CKPT_SHA256])
{
    size_t i = place(h, hash);
    while (memcmp(h->slot[i], nothing, CKPT_SHA256) && memcmp(h->slot[i], hash, CKPT_SHA256))
        i = (i + 1) & (h->size - 1);
    return i;
}

static int grow(struct ckpt_hashes *h)
{
    struct ckpt_hashes larger = *h;
    larger.size = h->size ? 2 * h->size : FIRST_SIZE;
    larger.slot = calloc(larger.size, CKPT_SHA256);
    if (!larger.slot)
        return -ENOMEM;
    for (size_t i = 0; i < h->size; i++)
        if (memcmp(h->slot[i], nothing, CKPT_SHA256))
            memcpy(larger.slot[find(&larger, h->slot[i])], h->slot[i], CKPT_SHA256);
    free(h->slot);
    *h = larger;
    return 0;
}

int ckpt_hashes_add(struct ckpt_hashes *h, const uint8_t hash[CKPT_SHA256])
{
    if (!memcmp(hash, nothing, CKPT_SHA256)) {
        bool had = h->zero;
        h->zero = true;
        return !had;
    }
    if (h->count >= h->size / 3 * 2) {
        int r = grow(h);
        if (r < 0)
            return r;
    }
    size_t i = find(h, hash);
    if (!memcmp(h->slot[i], hash, CKPT_SHA256))
        return 0;
    memcpy(h->slot[i], hash, CKPT_SHA256);
    h->count++;
    return 1;
}

int ckpt_hashes_add_all(struct ckpt_hashes *h, const struct ckpt_hashes *from)
{
    int r = from->zero ? ckpt_hashes_add(h, nothing) : 0;
    for (size_t i = 0; i < from->size && r >= 0; i++)
        if (memcmp(from->slot[i], nothing, CKPT_SHA256))
            r = ckpt_hashes_add(h, from->slot[i]);
    return CKPT_MIN(r, 0);
}

bool ckpt_hashes_has(const struct ckpt_hashes *h, const uint8_t hash[CKPT_SHA256])
{
    if (!memcmp(hash, nothing, CKPT_SHA256))
        return h->zero;
    return h->size && !memcmp(h->slot[find(h, hash)], hash, CKPT_SHA256);
}
