/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The objects that a tree has opened: the ones used last stay open, so that a pack is not opened for every leaf in it.
 * Refcounted; internally locked.
 */
#ifndef CKPT_OBJECT_OPENED_H
#define CKPT_OBJECT_OPENED_H

#include "core/object/object.h"

struct ckpt_opened;

/* Bytes of an object. */
struct ckpt_span {
    uint8_t object[CKPT_SHA256];
    uint64_t off, len;
    bool whole; /* it is the object: that must not have more bytes */
};

int ckpt_opened_new(struct ckpt_pins *pins, struct ckpt_cache *cache, struct ckpt_opened **ret);
/* The tree is closed: nothing stays open any more but for the time of a read. */
void ckpt_opened_close(struct ckpt_opened *o);
/* The object that a span is of, long enough for it; the caller unrefs. */
int ckpt_opened_get(struct ckpt_opened *o, const struct ckpt_span *span, struct ckpt_file **ret,
                    struct ckpt_err *err) CKPT_MUST_USE;

/*
 * A span as a file, for as long as it is wanted: its object is opened whenever it is read, so that what the chunk cache
 * remembers keeps no objects open.
 */
int ckpt_opened_file(struct ckpt_opened *o, const struct ckpt_span *span, struct ckpt_file **ret) CKPT_MUST_USE;

#endif
