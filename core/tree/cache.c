/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The table of chunks, what they may take, and who must go. Memory is given back in this order: unused chunks, the
 * least recently used first. A chunk of an array that is being read in order and that has not been read to its end goes
 * to a spill file instead, so that no chunk of a sequential read is decoded twice, whatever its shape.
 */
#include "core/tree/chunk_private.h"

#include "core/base/temporary.h"
#include "core/base/util.h"

#include <unistd.h>

#define LARGE_WINDOW ((uint64_t)8 << 20) /* requests of one reader overtake each other by less */

/* --- the table, the LRU list and the accounts: under cache->lock --- */

static struct ckpt_chunk **bucket_of(struct ckpt_cache *c, const struct ckpt_chunk_key *k)
{
    uint64_t h = (k->tree * 0x9e3779b97f4a7c15 ^ k->node) * 0xbf58476d1ce4e5b9 ^ k->index;
    h *= 0x94d049bb133111eb;
    return &c->table[h >> 52 & (CKPT_CACHE_BUCKETS - 1)];
}

static struct ckpt_chunk *table_find(struct ckpt_cache *c, const struct ckpt_chunk_key *k)
{
    for (struct ckpt_chunk *p = *bucket_of(c, k); p; p = p->next)
        if (p->key.tree == k->tree && p->key.node == k->node && p->key.index == k->index)
            return p;
    return NULL;
}

static void table_add(struct ckpt_cache *c, struct ckpt_chunk *chunk)
{
    struct ckpt_chunk **bucket = bucket_of(c, &chunk->key);
    chunk->next = *bucket;
    *bucket = chunk;
    chunk->hashed = true;
}

static void table_remove(struct ckpt_cache *c, struct ckpt_chunk *chunk)
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
    return ckpt_chunk_kind(chunk) == DIRECT ? 0 : chunk->charged_memory;
}

static void lru_remove(struct ckpt_cache *c, struct ckpt_chunk *chunk)
{
    if (chunk->older)
        chunk->older->newer = chunk->newer;
    else
        c->oldest = chunk->newer;
    if (chunk->newer)
        chunk->newer->older = chunk->older;
    else
        c->newest = chunk->older;
    chunk->newer = chunk->older = NULL;
    c->idle -= idle_memory(chunk);
}

static void lru_add(struct ckpt_cache *c, struct ckpt_chunk *chunk)
{
    chunk->older = c->newest;
    chunk->newer = NULL;
    if (c->newest)
        c->newest->newer = chunk;
    else
        c->oldest = chunk;
    c->newest = chunk;
    c->idle += idle_memory(chunk);
}

/* Keeps the buffer of a chunk that goes, or frees it. Small ones are as quick to get anew. */
static void spare_give(struct ckpt_cache *c, uint8_t *mem, uint64_t size)
{
    bool worth = mem && size >= CKPT_CHUNK_BLOCK * 4 && c->spare_bytes + size <= c->spare_limit;
    for (unsigned i = 0; worth && i < CKPT_CACHE_SPARES; i++)
        if (!c->spares[i].mem) {
            c->spares[i] = (struct ckpt_spare){mem, size};
            c->spare_bytes += size;
            return;
        }
    free(mem);
}

/* A spare buffer that is not much too large, or NULL. */
static uint8_t *spare_take(struct ckpt_cache *c, uint64_t size)
{
    for (unsigned i = 0; i < CKPT_CACHE_SPARES; i++) {
        struct ckpt_spare *s = &c->spares[i];
        bool fits = s->mem && s->size >= size && s->size - size <= size / 4;
        if (!fits)
            continue;
        c->spare_bytes -= s->size;
        return CKPT_STEAL(s->mem);
    }
    return NULL;
}

static void spare_drop_all(struct ckpt_cache *c)
{
    for (unsigned i = 0; i < CKPT_CACHE_SPARES; i++) {
        free(c->spares[i].mem);
        c->spares[i].mem = NULL;
    }
    c->spare_bytes = 0;
}

/* With references and table settled. Its bytes are freed at once, the rest when the lock is released. */
static void chunk_destroy(struct ckpt_cache *c, struct ckpt_chunk *chunk)
{
    c->memory -= chunk->charged_memory;
    c->idle -= chunk->charged_memory - idle_memory(chunk);
    c->spilled -= chunk->charged_spill;
    pthread_cond_broadcast(&c->room);
    if (ckpt_chunk_kind(chunk) == MEMORY)
        spare_give(c, chunk->mem, chunk->src.size);
    else
        free(chunk->mem);
    chunk->next = c->dead;
    c->dead = chunk;
}

/* Releases the lock. What was destroyed is closed only then: its file may itself be made of chunks of this cache. */
static void cache_unlock(struct ckpt_cache *c)
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

/* Would the rest of a chunk that is read in order be decoded a second time, if it went? */
static bool worth_moving_out(const struct ckpt_cache *c, const struct ckpt_chunk *chunk)
{
    uint64_t size = chunk->src.size;
    bool decoded = chunk->frontier == size, read = chunk->served >= size;
    return chunk->sequential && decoded && !read && c->spilled + size <= c->opt.spill;
}

/* Move a decoded chunk that nobody holds from memory to a file. Called and returns with the lock held, but writes
 * without it. False: drop it instead. */
static bool move_out(struct ckpt_cache *c, struct ckpt_chunk *chunk)
{
    if (!worth_moving_out(c, chunk))
        return false;
    chunk->charged_spill = chunk->src.size;
    c->spilled += chunk->charged_spill;
    chunk->refs++;
    pthread_mutex_unlock(&c->lock);
    int fd = ckpt_temporary(c->opt.spill_dir);
    bool written = fd >= 0 && ckpt_pwrite(fd, chunk->mem, chunk->src.size, 0) == 0;
    pthread_mutex_lock(&c->lock);
    chunk->refs--;
    if (!written || chunk->refs) { /* no room, or somebody came back for it meanwhile */
        if (fd >= 0)
            close(fd);
        c->spilled -= chunk->charged_spill;
        chunk->charged_spill = 0;
        return chunk->refs;
    }
    chunk->fd = fd;
    chunk->ring = chunk->src.size;
    spare_give(c, chunk->mem, chunk->src.size);
    chunk->mem = NULL;
    atomic_store(&chunk->kind, SPILL);
    c->memory -= chunk->charged_memory - OVERHEAD;
    chunk->charged_memory = OVERHEAD;
    lru_add(c, chunk);
    return true;
}

/* The least recently used chunk that holds much memory. Those with a spill file hold little, and much work. */
static struct ckpt_chunk *oldest_in_memory(const struct ckpt_cache *c)
{
    struct ckpt_chunk *p = c->oldest;
    while (p && ckpt_chunk_kind(p) == SPILL)
        p = p->newer;
    return p;
}

static void evict(struct ckpt_cache *c, struct ckpt_chunk *chunk)
{
    table_remove(c, chunk);
    chunk_destroy(c, chunk);
}

/* Evict until `size` more fits; waits for readers to put their chunks when it must and may. */
static void make_room(struct ckpt_cache *c, uint64_t size, bool wait)
{
    while (c->memory + size > c->chunk_limit && c->memory) {
        struct ckpt_chunk *victim = oldest_in_memory(c);
        bool some_in_use = c->idle < c->memory; /* and will be idle soon */
        if (!victim && wait && some_in_use) {
            pthread_cond_wait(&c->room, &c->lock);
            continue;
        }
        if (!victim)
            victim = c->oldest;
        if (!victim)
            return; /* nothing can be given back */
        lru_remove(c, victim);
        bool moved = ckpt_chunk_kind(victim) == MEMORY && move_out(c, victim);
        bool retaken = victim->refs; /* while it was being moved */
        if (!moved && !retaken)
            evict(c, victim);
    }
}

static void make_spill_room(struct ckpt_cache *c, uint64_t size)
{
    for (struct ckpt_chunk *p = c->oldest, *newer; p && c->spilled + size > c->opt.spill; p = newer) {
        newer = p->newer;
        if (!p->charged_spill)
            continue;
        lru_remove(c, p);
        evict(c, p);
    }
}

bool ckpt_cache_charge_spill(struct ckpt_cache *c, struct ckpt_chunk *chunk, uint64_t size)
{
    pthread_mutex_lock(&c->lock);
    make_spill_room(c, size);
    bool room = size > chunk->window && c->spilled + size <= c->opt.spill;
    if (room) {
        chunk->charged_spill = size;
        c->spilled += size;
    }
    cache_unlock(c);
    return room;
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

static void charge_memory(struct ckpt_cache *c, struct ckpt_chunk *chunk, uint64_t cost)
{
    chunk->charged_memory = cost;
    c->memory += cost;
}

/* Decide where the decoded bytes go, and get the room. */
static void prepare(struct ckpt_cache *c, struct ckpt_chunk *chunk)
{
    const struct ckpt_chunk_source *s = &chunk->src;
    if (!s->codecs.count) {
        atomic_store(&chunk->kind, DIRECT);
        make_room(c, OVERHEAD, !s->nested);
        charge_memory(c, chunk, OVERHEAD);
        c->idle += OVERHEAD;
        return;
    }
    if (s->size <= c->chunk_limit / 2) {
        uint64_t cost = OVERHEAD + CKPT_MAX(s->size, (uint64_t)1);
        make_room(c, cost, !s->nested);
        chunk->mem = spare_take(c, s->size);
        if (!chunk->mem && s->size > c->spare_limit)
            spare_drop_all(c);
        charge_memory(c, chunk, cost);
        atomic_store(&chunk->kind, MEMORY);
        return;
    }
    bool small_cache = c->chunk_limit < 8 * LARGE_WINDOW;
    chunk->window = small_cache ? LARGE_WINDOW / 2 : LARGE_WINDOW;
    uint64_t cost = OVERHEAD + chunk->window + CKPT_CHUNK_BLOCK * 4;
    make_room(c, cost, !s->nested);
    charge_memory(c, chunk, cost);
    atomic_store(&chunk->kind, SPILL);
}

/* One more holder of a chunk that is in the table. */
static void chunk_take(struct ckpt_cache *c, struct ckpt_chunk *chunk)
{
    if (chunk->refs == 0) /* only those that nobody holds are in the list */
        lru_remove(c, chunk);
    chunk->refs++;
}

/* The chunk where it is known already, with a reference. */
static struct ckpt_chunk *get_known(struct ckpt_cache *c, const struct ckpt_chunk_key *key)
{
    CKPT_GUARD(&c->lock);
    struct ckpt_chunk *chunk = table_find(c, key);
    if (!chunk)
        return NULL;
    if (atomic_load(&chunk->failed)) { /* tried anew, though somebody still holds it */
        table_remove(c, chunk);
        return NULL;
    }
    chunk_take(c, chunk);
    return chunk;
}

int ckpt_cache_get(struct ckpt_cache *c, const struct ckpt_chunk_key *key, ckpt_chunk_locate_fn *locate, void *arg,
                   struct ckpt_chunk **ret, struct ckpt_err *err)
{
    struct ckpt_chunk *chunk = get_known(c, key);
    if (chunk) {
        atomic_fetch_add_explicit(&c->hits, 1, memory_order_relaxed);
        *ret = chunk;
        return 0;
    }
    struct ckpt_chunk_source src = {0};
    int r = locate(arg, key, &src, err);
    if (r < 0)
        return r;
    if (src.missing)
        return 1;
    struct ckpt_chunk *fresh = chunk_new(key, &src);
    if (!fresh) {
        ckpt_extent_clear(&src.extent);
        return ckpt_no_memory(err);
    }
    atomic_fetch_add_explicit(&c->misses, 1, memory_order_relaxed);
    pthread_mutex_lock(&c->lock);
    prepare(c, fresh); /* may wait */
    chunk = table_find(c, key);
    if (chunk) { /* another thread was quicker */
        chunk_take(c, chunk);
        chunk_destroy(c, fresh);
    } else {
        chunk = fresh;
        table_add(c, chunk);
    }
    cache_unlock(c);
    *ret = chunk;
    return 0;
}

void ckpt_chunk_ref(struct ckpt_cache *c, struct ckpt_chunk *chunk)
{
    CKPT_GUARD(&c->lock);
    chunk->refs++;
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
            evict(c, chunk);
        }
        pthread_cond_broadcast(&c->room);
    }
    cache_unlock(c);
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
    for (unsigned i = 0; i < CKPT_CACHE_BUCKETS; i++)
        for (struct ckpt_chunk *p = c->table[i], *next; p; p = next) {
            next = p->next;
            if (p->key.tree != tree)
                continue;
            table_remove(c, p);
            if (!p->refs) {
                lru_remove(c, p);
                chunk_destroy(c, p);
            } /* else: its last reader frees it */
        }
    cache_unlock(c);
}

void ckpt_cache_free(struct ckpt_cache *c)
{
    if (!c)
        return;
    pthread_mutex_lock(&c->lock);
    while (c->oldest) {
        struct ckpt_chunk *p = c->oldest;
        lru_remove(c, p);
        evict(c, p);
    }
    cache_unlock(c);
    spare_drop_all(c);
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
