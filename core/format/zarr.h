/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Zarr arrays, versions 2 and 3, read only, over any store of keys: what TensorStore's drivers "zarr" and "zarr3" read
 * (zarr-specs.readthedocs.io, versions 2 and 3.0; the sharding_indexed codec). The array is presented by its inner
 * chunks.
 */
#ifndef CKPT_FORMAT_ZARR_H
#define CKPT_FORMAT_ZARR_H

#include "core/array/layout.h"

/* Indices of shards that were read lately, shared by the arrays of a tree. Internally locked. */
struct ckpt_zarr_cache;
struct ckpt_zarr_cache *ckpt_zarr_cache_new(void);
void ckpt_zarr_cache_free(struct ckpt_zarr_cache *cache);

/* Where an array's objects are. */
struct ckpt_zarr_store {
    /* The value of a key below the array ("0.1", "c/0/1"); -ENOENT when there is none. */
    int (*get)(void *arg, const char *key, struct ckpt_extent *ret, struct ckpt_err *err);
    void *arg;
    bool fill_missing; /* a chunk that the store lacks holds the fill value; else it is -ENODATA */
    struct ckpt_zarr_cache *cache;
    uint32_t array; /* a number that is unique to the array among those that share the cache */
};

/* version 2: the text of .zarray; 3: of zarr.json. A codec or type that is known but cannot be decoded gives a layout
 * with `unsupported` set. -EUCLEAN for malformed metadata. */
int ckpt_zarr_parse(const char *text, size_t len, int version, struct ckpt_array **ret,
                    struct ckpt_err *err) CKPT_MUST_USE;
/* Where inner chunk `index` lies. 1: it holds the fill value. */
int ckpt_zarr_chunk(const struct ckpt_array *a, uint64_t index, const struct ckpt_zarr_store *store,
                    struct ckpt_extent *ret, struct ckpt_err *err) CKPT_MUST_USE;
/* The stored objects of an array, by key: their number, and the key of each (shards, where there are any). */
uint64_t ckpt_zarr_objects(const struct ckpt_array *a);
void ckpt_zarr_object_key(const struct ckpt_array *a, uint64_t object, struct ckpt_buf *key);
/* Bytes of the object with a key; 0 where there is none. */
typedef int ckpt_zarr_length_fn(void *arg, const char *key, uint64_t *ret, struct ckpt_err *err);
/* Bytes of all objects of an array; of a large number, an estimate. */
int ckpt_zarr_stored(const struct ckpt_array *a, ckpt_zarr_length_fn *length, void *arg, uint64_t *ret,
                     struct ckpt_err *err) CKPT_MUST_USE;
/* The same where all keys of an array in a database are listed: adds to the uint64_t at arg what is no metadata. */
int ckpt_zarr_add_length(void *arg, const void *key, size_t key_len, uint64_t value_len);

#endif
