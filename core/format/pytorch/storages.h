/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The storages that a file from before PyTorch 1.6 has behind its pickle, in its order. How long each is only the
 * pickle says, by the persistent ids that are noted while it is read. One thread while it is built, then immutable.
 */
#ifndef CKPT_FORMAT_PYTORCH_STORAGES_H
#define CKPT_FORMAT_PYTORCH_STORAGES_H

#include "core/base/buf.h"
#include "core/base/err.h"

struct torch_storage;

struct torch_stored {
    uint64_t key;
    uint64_t off, size; /* of its bytes in the file; size 0: none, or not noted */
    uint32_t order;
    uint8_t itemsize; /* 0: not noted */
    bool odd;         /* persistent ids contradict each other */
};

struct torch_storages {
    struct torch_stored *all; /* by key */
    uint32_t count, cap;
};

/* The next one in the file. -ENOMEM. */
int ckpt_torch_storages_add(struct torch_storages *s, uint64_t key) CKPT_MUST_USE;
/* No more are added. False: a key is there twice. */
bool ckpt_torch_storages_sort(struct torch_storages *s);
/* What a persistent id says. */
void ckpt_torch_storages_note(struct torch_storages *s, const struct torch_storage *id);
/* NULL: it is not there. */
const struct torch_stored *ckpt_torch_storages_find(const struct torch_storages *s, uint64_t key);
void ckpt_torch_storages_clear(struct torch_storages *s);

#endif
