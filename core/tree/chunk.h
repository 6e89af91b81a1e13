/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Decoded chunks, kept in a bounded cache. A chunk that fits is decoded into memory, from its beginning and as far as
 * somebody needs it; a larger one into a spill file, a ring that keeps its last decoded bytes. Readers wait until
 * the decoder has passed what they want. Every chunk is decoded by one thread at a time, once for all readers.
 * Internally locked. No reader holds two chunks at once but for nested ones, or beside one that takes no memory, so
 * that waiting for memory cannot deadlock.
 */
#ifndef CKPT_TREE_CHUNK_H
#define CKPT_TREE_CHUNK_H

#include "core/array/dtype.h"
#include "core/base/pool.h"
#include "core/codec/stream.h"

struct ckpt_cache_options {
    uint64_t memory;       /* bytes of decoded chunks in memory; at least 4 MiB */
    uint64_t spill;        /* bytes of decoded chunks in spill files */
    const char *spill_dir; /* borrowed for the life of the cache */
};

struct ckpt_cache_stats {
    uint64_t decoded, decoded_bytes; /* chunks begun, bytes produced */
    uint64_t hits, misses;
    uint64_t memory, spilled; /* bytes now */
};

struct ckpt_cache;
struct ckpt_chunk;

#define CKPT_CHUNK_OF_FILE ((uint64_t)1 << 63)

struct ckpt_chunk_key {
    uint64_t tree, index; /* tree: a tree's id, or CKPT_CHUNK_OF_FILE and a number */
    uint32_t node;
};

/* Where a chunk comes from, and what is done to its decoded elements. */
struct ckpt_chunk_source {
    struct ckpt_extent extent; /* taken over */
    struct ckpt_codec_chain codecs;
    uint64_t size; /* decoded bytes */
    enum ckpt_dtype dtype;
    uint8_t swap; /* bytes of a word that is reversed; 0 or 1: none */
    uint8_t flip; /* CKPT_FLIP_* */
    bool missing; /* no such chunk stored: it is not cached, and ckpt_cache_get says 1 */
    bool nested;  /* may be read by who holds another chunk, so it takes what memory it needs at once. Small chunks only
                   */
};

typedef int ckpt_chunk_locate_fn(void *arg, const struct ckpt_chunk_key *key, struct ckpt_chunk_source *ret,
                                 struct ckpt_err *err);

int ckpt_cache_new(const struct ckpt_cache_options *options, struct ckpt_pool *pool, struct ckpt_cache **ret);
void ckpt_cache_free(struct ckpt_cache *cache);
/* The chunk, located when it is not known yet; 0, 1 for a missing one (nothing is returned), or an error. Put it after
 * use. */
int ckpt_cache_get(struct ckpt_cache *cache, const struct ckpt_chunk_key *key, ckpt_chunk_locate_fn *locate, void *arg,
                   struct ckpt_chunk **ret, struct ckpt_err *err) CKPT_MUST_USE;
void ckpt_chunk_put(struct ckpt_cache *cache, struct ckpt_chunk *chunk);
/* Let the pool decode up to byte `end`, in the background, if there is room. */
void ckpt_chunk_prefetch(struct ckpt_cache *cache, struct ckpt_chunk *chunk, uint64_t end);
/* Exactly len decoded bytes from off, waiting for them. sequential: more of the same is likely to be asked for next. */
int ckpt_chunk_read(struct ckpt_cache *cache, struct ckpt_chunk *chunk, void *buf, size_t len, uint64_t off,
                    bool sequential, struct ckpt_err *err) CKPT_MUST_USE;
/* The run of decoded bytes that begins at off, as far as `end` or less; of a chunk that is stored as it is. */
void ckpt_chunk_run(const struct ckpt_chunk *chunk, uint64_t off, uint64_t end, struct ckpt_run *ret);
/* Bytes [off, off + len) in memory, waiting for them, valid until the chunk is put; *ret is NULL for a chunk that is
 * not in memory. */
int ckpt_chunk_map(struct ckpt_cache *cache, struct ckpt_chunk *chunk, uint64_t off, uint64_t len, bool sequential,
                   const uint8_t **ret, struct ckpt_err *err) CKPT_MUST_USE;
/* Forget the chunks of a tree that is closed. */
void ckpt_cache_drop_tree(struct ckpt_cache *cache, uint64_t tree);
void ckpt_cache_stats(struct ckpt_cache *cache, struct ckpt_cache_stats *ret);

#endif
