/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Private to the chunk cache: cache.c has the table and the accounts, chunk.c the decoder and the spill files.
 *
 * Locks: cache->lock guards the table, the LRU list, references and the accounts; chunk->lock the state of one
 * decoder. cache->lock is never taken while a chunk->lock is held. Neither is held while bytes are read or decoded.
 */
#ifndef CKPT_TREE_CHUNK_PRIVATE_H
#define CKPT_TREE_CHUNK_PRIVATE_H

#include "core/tree/chunk.h"

#define CKPT_CHUNK_BLOCK   ((size_t)256 << 10) /* decoded at once, then shown to the readers */
#define CKPT_CACHE_BUCKETS 4096
#define CKPT_CACHE_SPARES  4

/* DIRECT: not encoded, ranges come straight from the file. MEMORY: decoded into one buffer. SPILL: too large for that.
 */
enum ckpt_chunk_kind { DIRECT, MEMORY, SPILL };

struct ckpt_chunk {
    struct ckpt_chunk_key key;
    struct ckpt_chunk *next;          /* of the bucket */
    struct ckpt_chunk *newer, *older; /* LRU, of unreferenced chunks */
    unsigned refs;
    bool hashed;
    struct ckpt_chunk_source src;
    atomic_int kind; /* enum ckpt_chunk_kind; MEMORY becomes SPILL when it is moved out, while nobody holds it */
    uint64_t charged_memory, charged_spill;

    pthread_mutex_t lock;
    pthread_cond_t moved; /* frontier, error or busy changed */
    bool busy;
    bool ahead; /* a task of the pool is on its way */
    bool sequential;
    bool verified; /* decoded to its end once, with all checks */
    atomic_bool failed;
    uint64_t decoded;  /* bytes behind the decoder */
    uint64_t frontier; /* bytes that readers may see */
    uint64_t target;   /* where the background task stops */
    uint64_t served;   /* bytes handed out, about */
    struct ckpt_stream *stream;
    uint8_t *mem;    /* MEMORY: size bytes; SPILL: window bytes, or NULL once it was moved out of memory */
    int fd;          /* SPILL: the file, once there is one */
    uint64_t window; /* SPILL: bytes that memory keeps, a multiple of CKPT_CHUNK_BLOCK */
    uint64_t ring;   /* bytes that the file keeps */
    bool no_file;    /* none can be had */
    struct ckpt_err err;
};

/* Buffers of chunks that were dropped, for the next ones: fresh memory costs as much as a third of decoding into it. */
struct ckpt_spare {
    uint8_t *mem;
    uint64_t size;
};

struct ckpt_cache {
    struct ckpt_cache_options opt;
    uint64_t chunk_limit, spare_limit; /* what the memory is divided into */
    struct ckpt_spare spares[CKPT_CACHE_SPARES];
    uint64_t spare_bytes;
    struct ckpt_pool *pool;
    pthread_mutex_t lock;
    pthread_cond_t room;
    struct ckpt_chunk *table[CKPT_CACHE_BUCKETS];
    struct ckpt_chunk *newest, *oldest;
    struct ckpt_chunk *dead; /* freed when the lock is released */
    uint64_t memory, spilled;
    uint64_t idle; /* of the memory: of chunks that nobody holds, and of direct ones, whose holders may themselves be
                      waiting */
    atomic_uint_fast64_t decoded, decoded_bytes, hits, misses;
};

static inline enum ckpt_chunk_kind ckpt_chunk_kind(const struct ckpt_chunk *chunk)
{
    return (enum ckpt_chunk_kind)atomic_load(&chunk->kind);
}

/* --- cache.c --- */
/* Charges a chunk with the bytes of a spill file; false: there is no room for them. Takes cache->lock. */
bool ckpt_cache_charge_spill(struct ckpt_cache *cache, struct ckpt_chunk *chunk, uint64_t size);
/* Another reference to a chunk that the caller holds already. Takes cache->lock. */
void ckpt_chunk_ref(struct ckpt_cache *cache, struct ckpt_chunk *chunk);

#endif
