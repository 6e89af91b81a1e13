/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Three kinds of chunk: DIRECT (not encoded: ranges come straight from the file), MEMORY (decoded into one
 * buffer) and SPILL (too large for that). MEMORY and SPILL have a decoder that stands still at `frontier`, the bytes
 * decoded so far; who needs more, moves it on, unless another thread is doing so (`busy`). Encodings with a checksum at
 * their end are not shown before the end has been checked.
 *
 * A SPILL chunk keeps its last decoded bytes in a small ring in memory, which is all that reading in order needs. The
 * first read that goes back behind it begins anew, and from then on all that is decoded is also kept in a spill file, a
 * ring too if it must.
 *
 * Memory is given back in this order: unused chunks, the least recently used first. A chunk of an array that is
 * being read in order and that has not been read to its end goes to a spill file instead, so that no chunk of a
 * sequential read is decoded twice, whatever its shape.
 *
 * Locks: cache->lock guards the table, the LRU list, references and the accounts; chunk->lock the state of one
 * decoder. cache->lock is never taken while a chunk->lock is held. Neither is held while bytes are read or decoded.
 */
#include "core/tree/chunk.h"

#include "core/base/log.h"
#include "core/base/temporary.h"
#include "core/base/util.h"

#include <fcntl.h>
#include <stdio.h>
#include <sys/mman.h>
#include <unistd.h>

#define BLOCK        ((size_t)256 << 10) /* decoded at once, then shown to the readers */
#define LARGE_WINDOW ((uint64_t)8 << 20) /* requests of one reader overtake each other by less */
#define TABLE_SIZE   4096

enum kind { DIRECT, MEMORY, SPILL };

struct ckpt_chunk {
    struct ckpt_chunk_key key;
    struct ckpt_chunk *next;          /* of the bucket */
    struct ckpt_chunk *newer, *older; /* LRU, of unreferenced chunks */
    unsigned refs;
    bool hashed;
    struct ckpt_chunk_source src;
    atomic_int kind; /* enum kind; MEMORY becomes SPILL when it is moved out, while nobody holds it */
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
    uint64_t window; /* SPILL: bytes that memory keeps, a multiple of BLOCK */
    uint64_t ring;   /* bytes that the file keeps */
    bool no_file;    /* none can be had */
    struct ckpt_err err;
};

#define SPARES 4

/* Buffers of chunks that were dropped, for the next ones: fresh memory costs as much as a third of decoding into it. */
struct spare {
    uint8_t *mem;
    uint64_t size;
};

struct ckpt_cache {
    struct ckpt_cache_options opt;
    uint64_t chunk_limit, spare_limit; /* what the memory is divided into */
    struct spare spares[SPARES];
    uint64_t spare_bytes;
    struct ckpt_pool *pool;
    pthread_mutex_t lock;
    pthread_cond_t room;
    struct ckpt_chunk *table[TABLE_SIZE];
    struct ckpt_chunk *newest, *oldest;
    struct ckpt_chunk *dead; /* to be freed when the lock is let go */
    uint64_t memory, spilled;
    uint64_t idle; /* of the memory: of chunks that nobody holds, and of direct ones, whose holders may themselves be
                      waiting */
    atomic_uint_fast64_t decoded, decoded_bytes, hits, misses;
};

/* --- the table, the LRU list and the accounts: under cache->lock --- */

static struct ckpt_chunk **bucket_of(struct ckpt_cache *c, const struct ckpt_chunk_key *k)
{
    uint64_t h = (k->tree * 0x9e3779b97f4a7c15 ^ k->node) * 0xbf58476d1ce4e5b9 ^ k->index;
    h *= 0x94d049bb133111eb;
    return &c->table[h >> 52 & (TABLE_SIZE - 1)];
}

static struct ckpt_chunk *find(struct ckpt_cache *c, const struct ckpt_chunk_key *k)
{
    struct ckpt_chunk *p = *bucket_of(c, k);
    while (p && (p->key.tree != k->tree || p->key.node != k->node || p->key.index != k->index))
        p = p->next;
    return p;
}

static void unhash(struct ckpt_cache *c, struct ckpt_chunk *chunk)
{
    if (!chunk->hashed)
        return;
    struct ckpt_chunk **link = bucket_of(c, &chunk->key);
    while (*link != chunk)
        link = &(*link)->next;
    *link = chunk->next;
    chunk->hashed = false;
}

/* What counts as idle while nobody holds the chunk; that of direct ones always does. */
static uint64_t idle_memory(const struct ckpt_chunk *chunk)
{
    return atomic_load(&chunk->kind) == DIRECT ? 0 : chunk->charged_memory;
}

static void lru_remove(struct ckpt_cache *c, struct ckpt_chunk *chunk)
{
    *(chunk->older ? &chunk->older->newer : &c->oldest) = chunk->newer;
    *(chunk->newer ? &chunk->newer->older : &c->newest) = chunk->older;
    chunk->newer = chunk->older = NULL;
    c->idle -= idle_memory(chunk);
}

static void lru_add(struct ckpt_cache *c, struct ckpt_chunk *chunk)
{
    chunk->older = c->newest;
    chunk->newer = NULL;
    *(c->newest ? &c->newest->newer : &c->oldest) = chunk;
    c->newest = chunk;
    c->idle += idle_memory(chunk);
}

static void give_buffer(struct ckpt_cache *c, uint8_t *mem, uint64_t size)
{
    if (mem && size >= BLOCK * 4 && c->spare_bytes + size <= c->spare_limit)
        for (unsigned i = 0; i < SPARES; i++)
            if (!c->spares[i].mem) {
                c->spares[i] = (struct spare){mem, size};
                c->spare_bytes += size;
                return;
            }
    free(mem);
}

/* A spare buffer that is not much too large, or NULL. */
static uint8_t *take_buffer(struct ckpt_cache *c, uint64_t size)
{
    for (unsigned i = 0; i < SPARES; i++) {
        struct spare *s = &c->spares[i];
        if (!s->mem || s->size < size || s->size - size > size / 4)
            continue;
        c->spare_bytes -= s->size;
        return CKPT_STEAL(s->mem);
    }
    return NULL;
}

static void drop_spares(struct ckpt_cache *c)
{
    for (unsigned i = 0; i < SPARES; i++) {
        free(c->spares[i].mem);
        c->spares[i].mem = NULL;
    }
    c->spare_bytes = 0;
}

static void destroy(struct ckpt_cache *c, struct ckpt_chunk *chunk)
{
    c->memory -= chunk->charged_memory;
    c->idle -= chunk->charged_memory - idle_memory(chunk);
    c->spilled -= chunk->charged_spill;
    pthread_cond_broadcast(&c->room);
    if (atomic_load(&chunk->kind) == MEMORY)
        give_buffer(c, chunk->mem, chunk->src.size);
    else
        free(chunk->mem);
    chunk->next = c->dead;
    c->dead = chunk;
}

/* Lets go of the lock. What was destroyed is closed only then: its file may itself be made of chunks of this cache. */
static void unlock(struct ckpt_cache *c)
{
    struct ckpt_chunk *dead = CKPT_STEAL(c->dead);
    pthread_mutex_unlock(&c->lock);
    for (struct ckpt_chunk *next; dead; dead = next) {
        next = dead->next;
        ckpt_stream_close(dead->stream);
        ckpt_extent_clear(&dead->src.extent);
        if (dead->fd >= 0)
            close(dead->fd);
        pthread_mutex_destroy(&dead->lock);
        pthread_cond_destroy(&dead->moved);
        free(dead);
    }
}

/* What a chunk costs besides its data: its own struct, its stream's window. */
#define OVERHEAD sizeof(struct ckpt_chunk)

/* Move a decoded chunk that nobody holds from memory to a file. Called and returns with the lock held; false: drop it
 * instead. */
static bool move_out(struct ckpt_cache *c, struct ckpt_chunk *chunk)
{
    if (!chunk->sequential || chunk->frontier != chunk->src.size || chunk->served >= chunk->src.size ||
        c->spilled + chunk->src.size > c->opt.spill)
        return false;
    c->spilled += chunk->charged_spill = chunk->src.size;
    chunk->refs++;
    pthread_mutex_unlock(&c->lock);
    int fd = ckpt_temporary(c->opt.spill_dir);
    bool ok = fd >= 0 && ckpt_pwrite(fd, chunk->mem, chunk->src.size, 0) == 0;
    pthread_mutex_lock(&c->lock);
    chunk->refs--;
    if (!ok || chunk->refs) { /* no room, or somebody came back for it meanwhile */
        if (fd >= 0)
            close(fd);
        c->spilled -= chunk->charged_spill;
        chunk->charged_spill = 0;
        if (chunk->refs)
            return true;
        return false;
    }
    chunk->fd = fd;
    chunk->ring = chunk->src.size;
    give_buffer(c, chunk->mem, chunk->src.size);
    chunk->mem = NULL;
    atomic_store(&chunk->kind, SPILL);
    c->memory -= chunk->charged_memory - OVERHEAD;
    chunk->charged_memory = OVERHEAD;
    lru_add(c, chunk);
    return true;
}

/* Give back memory until `size` more fits; waits for readers to let go when it must and may. */
static void make_room(struct ckpt_cache *c, uint64_t size, bool wait)
{
    while (c->memory + size > c->chunk_limit && c->memory) {
        struct ckpt_chunk *victim = c->oldest;
        while (victim && atomic_load(&victim->kind) == SPILL)
            victim = victim->newer;                   /* those hold little memory, and much work */
        if (!victim && wait && c->idle < c->memory) { /* what is in use will be idle soon */
            pthread_cond_wait(&c->room, &c->lock);
            continue;
        }
        victim = victim ? victim : c->oldest;
        if (!victim)
            return; /* nothing can be given back */
        lru_remove(c, victim);
        if (atomic_load(&victim->kind) == MEMORY && move_out(c, victim))
            continue;
        if (victim->refs) /* taken up again while it was being moved */
            continue;
        unhash(c, victim);
        destroy(c, victim);
    }
}

static void make_spill_room(struct ckpt_cache *c, uint64_t size)
{
    for (struct ckpt_chunk *p = c->oldest, *newer; p && c->spilled + size > c->opt.spill; p = newer) {
        newer = p->newer;
        if (!p->charged_spill)
            continue;
        lru_remove(c, p);
        unhash(c, p);
        destroy(c, p);
    }
}

/* --- chunks --- */

static struct ckpt_chunk *chunk_new(const struct ckpt_chunk_key *key, struct ckpt_chunk_source *src)
{
    struct ckpt_chunk *chunk = calloc(1, sizeof *chunk);
    if (!chunk)
        return NULL;
    chunk->key = *key;
    chunk->src = *src;
    chunk->fd = -1;
    chunk->refs = 1;
    pthread_mutex_init(&chunk->lock, NULL);
    pthread_cond_init(&chunk->moved, NULL);
    return chunk;
}

/* Decoded bytes are not yet the elements that readers get. */
static bool changes_elements(const struct ckpt_chunk_source *s)
{
    return s->swap > 1 || s->flip || (s->dtype != CKPT_DT_OTHER && ckpt_dtype_info(s->dtype)->bits < 8);
}

/* Decide where the decoded bytes go, and get the room. */
static void prepare(struct ckpt_cache *c, struct ckpt_chunk *chunk)
{
    const struct ckpt_chunk_source *s = &chunk->src;
    if (!s->codecs.count) {
        atomic_store(&chunk->kind, DIRECT);
        make_room(c, OVERHEAD, !s->nested);
        c->memory += chunk->charged_memory = OVERHEAD;
        c->idle += OVERHEAD;
        return;
    }
    if (s->size <= c->chunk_limit / 2) {
        uint64_t cost = OVERHEAD + CKPT_MAX(s->size, (uint64_t)1);
        make_room(c, cost, !s->nested);
        chunk->mem = take_buffer(c, s->size);
        if (!chunk->mem && s->size > c->spare_limit)
            drop_spares(c);
        c->memory += chunk->charged_memory = cost;
        atomic_store(&chunk->kind, MEMORY);
        return;
    }
    chunk->window = c->chunk_limit < 8 * LARGE_WINDOW ? LARGE_WINDOW / 2 : LARGE_WINDOW;
    make_room(c, OVERHEAD + chunk->window + BLOCK * 4, !s->nested);
    c->memory += chunk->charged_memory = OVERHEAD + chunk->window + BLOCK * 4;
    atomic_store(&chunk->kind, SPILL);
}

int ckpt_cache_get(struct ckpt_cache *c, const struct ckpt_chunk_key *key, ckpt_chunk_locate_fn *locate, void *arg,
                   struct ckpt_chunk **ret, struct ckpt_err *err)
{
    pthread_mutex_lock(&c->lock);
    struct ckpt_chunk *chunk = find(c, key);
    if (chunk && atomic_load(&chunk->failed)) { /* tried anew, though somebody still holds it */
        unhash(c, chunk);
        chunk = NULL;
    }
    if (chunk) {
        if (chunk->refs++ == 0 && (chunk->newer || chunk->older || c->newest == chunk))
            lru_remove(c, chunk);
        pthread_mutex_unlock(&c->lock);
        atomic_fetch_add_explicit(&c->hits, 1, memory_order_relaxed);
        *ret = chunk;
        return 0;
    }
    pthread_mutex_unlock(&c->lock);

    struct ckpt_chunk_source src = {0};
    int r = locate(arg, key, &src, err);
    if (r < 0 || src.missing)
        return r < 0 ? r : 1;
    struct ckpt_chunk *fresh = chunk_new(key, &src);
    if (!fresh) {
        ckpt_extent_clear(&src.extent);
        return ckpt_fail(err, ENOMEM, "out of memory");
    }
    atomic_fetch_add_explicit(&c->misses, 1, memory_order_relaxed);
    pthread_mutex_lock(&c->lock);
    prepare(c, fresh); /* may wait */
    chunk = find(c, key);
    if (chunk) { /* another thread was quicker */
        if (chunk->refs++ == 0)
            lru_remove(c, chunk);
        destroy(c, fresh);
    } else {
        chunk = fresh;
        struct ckpt_chunk **b = bucket_of(c, key);
        chunk->next = *b;
        *b = chunk;
        chunk->hashed = true;
    }
    unlock(c);
    *ret = chunk;
    return 0;
}

void ckpt_chunk_put(struct ckpt_cache *c, struct ckpt_chunk *chunk)
{
    if (!chunk)
        return;
    pthread_mutex_lock(&c->lock);
    if (--chunk->refs == 0) {
        if (chunk->hashed && !atomic_load(&chunk->failed))
            lru_add(c, chunk);
        else {
            /* A chunk that failed is tried anew by the next reader: the medium may have recovered. */
            unhash(c, chunk);
            destroy(c, chunk);
        }
        pthread_cond_broadcast(&c->room);
    }
    unlock(c);
}

/* --- the decoder: chunk->lock is held on entry and exit, `busy` keeps others off in between --- */

/* Another block of a SPILL chunk has been decoded into the ring in memory: keep it in the file too, where there is one.
 */
static void keep_block(struct ckpt_cache *c, struct ckpt_chunk *chunk, size_t len)
{
    uint64_t off = chunk->decoded;
    const uint8_t *block = chunk->mem + off % chunk->window; /* the window is a multiple of BLOCK: it does not wrap */
    for (size_t done = 0; done < len;) {
        uint64_t at = (off + done) % chunk->ring;
        size_t n = (size_t)CKPT_MIN((uint64_t)(len - done), chunk->ring - at);
        int r = ckpt_pwrite(chunk->fd, block + done, n, at);
        if (r < 0) {
            /* Less is kept, so random reads decode again; sequential ones do not notice. */
            ckpt_log(CKPT_LOG_WARN, "%s: no room for decoded data (%s); reading large chunks at random will be slow",
                     c->opt.spill_dir, strerror(-r));
            close(chunk->fd);
            chunk->fd = -1;
            chunk->no_file = true;
            return;
        }
        done += n;
    }
}

/* Whether bytes from off on are still kept: 'm' in memory, 'f' in the file, 0 no longer. The next block may be on its
 * way into the places of the oldest. The lock is held. */
static char kept_in(const struct ckpt_chunk *chunk, uint64_t off)
{
    uint64_t ahead = chunk->decoded + (chunk->decoded < chunk->src.size ? BLOCK : 0);
    if (chunk->mem && off + chunk->window >= ahead)
        return 'm';
    if (chunk->fd >= 0 && (chunk->ring == chunk->src.size || off + chunk->ring >= ahead))
        return 'f';
    return 0;
}

/* What is wanted is no longer kept: decode from the beginning, and keep more this time. The decoder is held (`busy`),
 * the lock is not. */
static void begin_anew(struct ckpt_cache *c, struct ckpt_chunk *chunk, uint64_t off)
{
    ckpt_stream_close(chunk->stream);
    chunk->stream = NULL;
    if (!off || chunk->fd >= 0 || chunk->no_file) /* from the top in order: nothing more is needed */
        return;
    uint64_t ring = CKPT_MIN(chunk->src.size, c->opt.spill & ~(uint64_t)(BLOCK - 1));
    pthread_mutex_lock(&c->lock);
    make_spill_room(c, ring);
    bool room = ring > chunk->window && c->spilled + ring <= c->opt.spill;
    if (room)
        c->spilled += chunk->charged_spill = ring;
    unlock(c);
    int fd = room ? ckpt_temporary(c->opt.spill_dir) : -ENOSPC;
    pthread_mutex_lock(&chunk->lock);
    chunk->ring = ring;
    chunk->fd = fd < 0 ? -1 : fd;
    chunk->no_file = fd < 0;
    pthread_mutex_unlock(&chunk->lock);
    if (fd < 0)
        ckpt_log(CKPT_LOG_WARN, "%s: no file for decoded data (%s); reading large chunks at random will be slow",
                 c->opt.spill_dir, strerror(-fd));
}

static int decoder_open(struct ckpt_cache *c, struct ckpt_chunk *chunk, struct ckpt_err *err)
{
    int kind = atomic_load(&chunk->kind);
    if (!chunk->mem) {
        chunk->mem = malloc(kind == MEMORY ? CKPT_MAX(chunk->src.size, (uint64_t)1) : chunk->window);
        if (!chunk->mem)
            return ckpt_fail(err, ENOMEM, "out of memory");
    }
    atomic_fetch_add_explicit(&c->decoded, 1, memory_order_relaxed);
    if (kind == MEMORY && chunk->src.size <= BLOCK * 4)
        return 0; /* decoded in one go */
    int r = ckpt_stream_open(&chunk->src.codecs, &chunk->src.extent, chunk->src.size, &chunk->stream, err);
    if (r == 0 && kind == MEMORY && !changes_elements(&chunk->src))
        ckpt_stream_set_output(chunk->stream, chunk->mem);
    return r;
}

static void finish_elements(const struct ckpt_chunk_source *s, uint8_t *p, size_t len)
{
    if (!changes_elements(s))
        return;
    ckpt_swap_words(p, len, s->swap);
    ckpt_dtype_extend(s->dtype, p, len); /* of elements of one byte, if at all */
    if (s->flip)
        ckpt_dtype_flip(s->dtype, s->flip, p, len / ckpt_dtype_info(s->dtype)->size);
}

/* Decode the next block; the lock is not held. Returns bytes or an error. */
static ssize_t decode_block(struct ckpt_cache *c, struct ckpt_chunk *chunk, struct ckpt_err *err)
{
    int r;
    if (!chunk->stream && (r = decoder_open(c, chunk, err)) < 0)
        return r;
    const struct ckpt_chunk_source *s = &chunk->src;
    if (!chunk->stream) {
        r = ckpt_decode(&s->codecs, &s->extent, chunk->mem, s->size, err);
        if (r < 0)
            return r;
        finish_elements(s, chunk->mem, s->size);
        return (ssize_t)s->size;
    }
    bool spill = atomic_load(&chunk->kind) == SPILL;
    size_t len = (size_t)CKPT_MIN((uint64_t)BLOCK, s->size - chunk->decoded);
    uint8_t *to = chunk->mem + (spill ? chunk->decoded % chunk->window : chunk->decoded);
    ssize_t n = ckpt_stream_read(chunk->stream, to, len, err);
    if (n < 0)
        return n;
    if ((size_t)n != len)
        return ckpt_fail(err, EBADMSG, "the chunk decodes to %llu bytes, not %llu",
                         (unsigned long long)(chunk->decoded + (uint64_t)n), (unsigned long long)s->size);
    finish_elements(s, to, len);
    if (spill && chunk->fd >= 0)
        keep_block(c, chunk, len);
    return n;
}

/* Move the decoder on until `end` bytes can be seen. */
static void advance(struct ckpt_cache *c, struct ckpt_chunk *chunk, uint64_t end)
{
    chunk->busy = true;
    while (chunk->frontier < end && !chunk->err.code) {
        struct ckpt_err err = {0};
        pthread_mutex_unlock(&chunk->lock);
        ssize_t n = decode_block(c, chunk, &err);
        pthread_mutex_lock(&chunk->lock);
        if (n < 0)
            chunk->err = err.code ? err : (struct ckpt_err){.code = (int)-n};
        if (n < 0)
            atomic_store(&chunk->failed, true);
        else {
            atomic_fetch_add_explicit(&c->decoded_bytes, (uint64_t)n, memory_order_relaxed);
            chunk->decoded += (uint64_t)n;
            chunk->verified |= chunk->decoded == chunk->src.size;
            /* Where the check comes after more than the ring keeps, all is decoded once for the check alone, and a
             * second time for the readers. */
            if (chunk->verified || !chunk->stream || !ckpt_stream_checks_at_end(chunk->stream))
                chunk->frontier = chunk->decoded;
            if (chunk->decoded == chunk->src.size) {
                ckpt_stream_close(chunk->stream);
                chunk->stream = NULL;
            }
        }
        pthread_cond_broadcast(&chunk->moved);
        if (chunk->decoded == chunk->src.size)
            break;
    }
    chunk->busy = false;
    pthread_cond_broadcast(&chunk->moved);
}

/* Wait until [off, end) can be read; the lock is held. */
static int await(struct ckpt_cache *c, struct ckpt_chunk *chunk, uint64_t off, uint64_t end, struct ckpt_err *err)
{
    bool spill = atomic_load(&chunk->kind) == SPILL;
    while (!chunk->err.code) {
        bool gone = spill && off < chunk->decoded && !kept_in(chunk, off);
        if (!gone && chunk->frontier >= end)
            return 0;
        if (chunk->busy) {
            pthread_cond_wait(&chunk->moved, &chunk->lock);
            continue;
        }
        if (gone) {
            chunk->busy = true;
            chunk->decoded = chunk->frontier = chunk->target = 0; /* before others can see the file, which is empty */
            pthread_mutex_unlock(&chunk->lock);
            begin_anew(c, chunk, off);
            pthread_mutex_lock(&chunk->lock);
        }
        advance(c, chunk, end);
    }
    if (err)
        *err = chunk->err;
    return -chunk->err.code;
}

struct ahead {
    struct ckpt_cache *cache;
    struct ckpt_chunk *chunk;
};

static void run_ahead(void *arg)
{
    struct ahead *a = arg;
    struct ckpt_chunk *chunk = a->chunk;
    pthread_mutex_lock(&chunk->lock);
    while (!chunk->busy && !chunk->err.code && chunk->frontier < chunk->target) {
        uint64_t end = CKPT_MIN(chunk->frontier + BLOCK, chunk->target);
        advance(a->cache, chunk, end);
    }
    chunk->ahead = false;
    pthread_mutex_unlock(&chunk->lock);
    ckpt_chunk_put(a->cache, chunk);
    free(a);
}

/* With the chunk's lock held: see that the pool decodes on to `end`. Returns a task to submit once the lock is let go.
 */
static struct ahead *plan_ahead(struct ckpt_cache *c, struct ckpt_chunk *chunk, uint64_t end)
{
    chunk->target = CKPT_MAX(chunk->target, CKPT_MIN(end, chunk->src.size));
    if (chunk->ahead || chunk->busy || chunk->err.code || chunk->frontier >= chunk->target)
        return NULL;
    struct ahead *a = malloc(sizeof *a);
    if (!a)
        return NULL;
    *a = (struct ahead){c, chunk};
    chunk->ahead = true;
    return a;
}

static void submit_ahead(struct ahead *a)
{
    if (!a)
        return;
    pthread_mutex_lock(&a->cache->lock);
    a->chunk->refs++;
    pthread_mutex_unlock(&a->cache->lock);
    if (ckpt_pool_submit(a->cache->pool, run_ahead, a) < 0) {
        pthread_mutex_lock(&a->chunk->lock);
        a->chunk->ahead = false;
        pthread_mutex_unlock(&a->chunk->lock);
        ckpt_chunk_put(a->cache, a->chunk);
        free(a);
    }
}

void ckpt_chunk_prefetch(struct ckpt_cache *c, struct ckpt_chunk *chunk, uint64_t end)
{
    if (atomic_load(&chunk->kind) == DIRECT)
        return;
    pthread_mutex_lock(&chunk->lock);
    struct ahead *a = plan_ahead(c, chunk, end);
    pthread_mutex_unlock(&chunk->lock);
    submit_ahead(a);
}

/* How far to decode beyond a read that ends at `end`: all that fits in memory, a little of what does not. */
static uint64_t ahead_of(const struct ckpt_chunk *chunk, uint64_t end)
{
    return atomic_load(&chunk->kind) == MEMORY ? chunk->src.size : end + chunk->window / 8;
}

int ckpt_chunk_map(struct ckpt_cache *c, struct ckpt_chunk *chunk, uint64_t off, uint64_t len, bool sequential,
                   const uint8_t **ret, struct ckpt_err *err)
{
    *ret = NULL;
    if (atomic_load(&chunk->kind) != MEMORY)
        return 0;
    pthread_mutex_lock(&chunk->lock);
    struct ahead *a = NULL;
    if (sequential) {
        chunk->sequential = true;
        a = plan_ahead(c, chunk, ahead_of(chunk, off + len));
    }
    if (a) { /* let the pool begin, then wait with it */
        pthread_mutex_unlock(&chunk->lock);
        submit_ahead(a);
        pthread_mutex_lock(&chunk->lock);
    }
    int r = await(c, chunk, off, off + len, err);
    chunk->served += len;
    /* The pool's task gives way to a reader who decodes. A chunk that were left half decoded could not be moved out. */
    a = sequential && r == 0 ? plan_ahead(c, chunk, chunk->target) : NULL;
    pthread_mutex_unlock(&chunk->lock);
    submit_ahead(a);
    if (r == 0)
        *ret = chunk->mem + off;
    return r;
}

static int file_read(struct ckpt_chunk *chunk, int fd, uint8_t *buf, size_t len, uint64_t off)
{
    for (size_t done = 0; done < len;) {
        uint64_t at = (off + done) % chunk->ring;
        size_t want = (size_t)CKPT_MIN((uint64_t)(len - done), chunk->ring - at);
        ssize_t n = pread(fd, buf + done, want, (off_t)at);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return n < 0 ? -errno : -EIO;
        done += (size_t)n;
    }
    return 0;
}

static void window_read(const struct ckpt_chunk *chunk, uint8_t *buf, size_t len, uint64_t off)
{
    for (size_t done = 0; done < len;) {
        uint64_t at = (off + done) % chunk->window;
        size_t n = (size_t)CKPT_MIN((uint64_t)(len - done), chunk->window - at);
        memcpy(buf + done, chunk->mem + at, n);
        done += n;
    }
}

static int spill_read(struct ckpt_cache *c, struct ckpt_chunk *chunk, uint8_t *buf, size_t len, uint64_t off,
                      bool sequential, struct ckpt_err *err)
{
    while (len) {
        size_t n = CKPT_MIN(len, BLOCK * 4); /* less than the window holds */
        pthread_mutex_lock(&chunk->lock);
        int r = await(c, chunk, off, off + n, err);
        struct ahead *a = r == 0 && sequential ? plan_ahead(c, chunk, ahead_of(chunk, off + n)) : NULL;
        char where = r == 0 ? kept_in(chunk, off) : 0;
        if (where == 'm') /* the lock keeps the decoder from coming round */
            window_read(chunk, buf, n, off);
        /* The file could be given up while it is read. */
        int fd = where == 'f' ? dup(chunk->fd) : -1;
        if (where == 'f' && fd < 0)
            r = ckpt_fail(err, errno, "no descriptor for decoded data: %s", strerror(errno));
        pthread_mutex_unlock(&chunk->lock);
        submit_ahead(a);
        if (r < 0)
            return r;
        if (where == 'f') {
            r = file_read(chunk, fd, buf, n, off);
            close(fd);
            if (r < 0)
                return ckpt_fail(err, -r, "%s: %s", c->opt.spill_dir, strerror(-r));
            /* The decoder may have come round the ring meanwhile, or have begun anew. */
            pthread_mutex_lock(&chunk->lock);
            where = kept_in(chunk, off) && chunk->frontier >= off + n ? 'f' : 0;
            pthread_mutex_unlock(&chunk->lock);
        }
        if (!where)
            continue;
        buf += n;
        off += n;
        len -= n;
    }
    return 0;
}

/* Words, or elements whose signs turn, are changed as a whole: what is wanted of one in part is read aside. */
static int direct_read(const struct ckpt_chunk_source *s, void *buf, size_t len, uint64_t off, struct ckpt_err *err)
{
    if (s->extent.len != s->size)
        return ckpt_fail(err, EBADMSG, "the chunk has %llu bytes, not %llu", (unsigned long long)s->extent.len,
                         (unsigned long long)s->size);
    size_t unit = CKPT_MAX(s->flip ? ckpt_dtype_info(s->dtype)->size : s->swap, (uint8_t)1);
    size_t before = (size_t)(off % unit), whole = (before + len + unit - 1) / unit * unit;
    CKPT_AUTOFREE uint8_t *aside = whole == len ? NULL : malloc(whole);
    uint8_t *to = whole == len ? buf : aside;
    if (!to)
        return ckpt_fail(err, ENOMEM, "out of memory");
    int r = ckpt_extent_read(&s->extent, to, whole, off - before);
    if (r < 0)
        return ckpt_fail(err, -r, "%s", r == -EBADMSG ? "the file is shorter than its chunk" : strerror(-r));
    finish_elements(s, to, whole);
    if (aside)
        memcpy(buf, aside + before, len);
    return 0;
}

void ckpt_chunk_run(const struct ckpt_chunk *chunk, uint64_t off, uint64_t end, struct ckpt_run *ret)
{
    const struct ckpt_chunk_source *s = &chunk->src;
    *ret = (struct ckpt_run){.begin = off, .end = end};
    if (atomic_load(&chunk->kind) != DIRECT || s->flip || !s->extent.file || s->extent.len != s->size || end > s->size)
        return;
    ckpt_file_run(s->extent.file, s->extent.off + off, s->extent.off + end, ret);
    ret->begin -= s->extent.off;
    ret->end -= s->extent.off;
}

int ckpt_chunk_read(struct ckpt_cache *c, struct ckpt_chunk *chunk, void *buf, size_t len, uint64_t off,
                    bool sequential, struct ckpt_err *err)
{
    if (off > chunk->src.size || len > chunk->src.size - off)
        return ckpt_fail(err, EINVAL, "read beyond the end of a chunk");
    switch (atomic_load(&chunk->kind)) {
    case DIRECT:
        return direct_read(&chunk->src, buf, len, off, err);
    case MEMORY: {
        const uint8_t *p;
        int r = ckpt_chunk_map(c, chunk, off, len, sequential, &p, err);
        if (r == 0)
            memcpy(buf, p, len);
        return r;
    }
    default:
        return spill_read(c, chunk, buf, len, off, sequential, err);
    }
}

/* --- life --- */

int ckpt_cache_new(const struct ckpt_cache_options *options, struct ckpt_pool *pool, struct ckpt_cache **ret)
{
    struct ckpt_cache *c = calloc(1, sizeof *c);
    if (!c)
        return -ENOMEM;
    c->opt = *options;
    c->opt.memory = CKPT_MAX(c->opt.memory, (uint64_t)4 << 20);
    c->spare_limit = c->opt.memory / 4;
    c->chunk_limit = c->opt.memory - c->spare_limit;
    c->pool = pool;
    pthread_mutex_init(&c->lock, NULL);
    pthread_cond_init(&c->room, NULL);
    *ret = c;
    return 0;
}

void ckpt_cache_drop_tree(struct ckpt_cache *c, uint64_t tree)
{
    pthread_mutex_lock(&c->lock);
    for (unsigned i = 0; i < TABLE_SIZE; i++)
        for (struct ckpt_chunk *p = c->table[i], *next; p; p = next) {
            next = p->next;
            if (p->key.tree != tree)
                continue;
            unhash(c, p);
            if (!p->refs) {
                lru_remove(c, p);
                destroy(c, p);
            } /* else: its last reader frees it */
        }
    unlock(c);
}

void ckpt_cache_free(struct ckpt_cache *c)
{
    if (!c)
        return;
    pthread_mutex_lock(&c->lock);
    while (c->oldest) {
        struct ckpt_chunk *p = c->oldest;
        lru_remove(c, p);
        unhash(c, p);
        destroy(c, p);
    }
    unlock(c);
    drop_spares(c);
    pthread_mutex_destroy(&c->lock);
    pthread_cond_destroy(&c->room);
    free(c);
}

void ckpt_cache_stats(struct ckpt_cache *c, struct ckpt_cache_stats *ret)
{
    CKPT_GUARD(&c->lock);
    *ret = (struct ckpt_cache_stats){
        .decoded = atomic_load(&c->decoded),
        .decoded_bytes = atomic_load(&c->decoded_bytes),
        .hits = atomic_load(&c->hits),
        .misses = atomic_load(&c->misses),
        .memory = c->memory,
        .spilled = c->spilled,
    };
}
