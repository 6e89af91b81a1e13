/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A stored object as a file of its decoded bytes. One that is open already is opened again as the same file, so that
 * all who read it share its chunks in the cache.
 *
 * What is encoded comes through the cache, chunk by chunk. What is stored raw is read as it is, each chunk checked the
 * first time that any of it is asked for: then the whole chunk is read, once for the check and for the reader.
 */
#include "core/base/log.h"
#include "core/base/util.h"
#include "core/object/object_file.h"
#include "core/object/words.h"

#include <stdio.h>
#include <xxhash.h>

#define STREAMS     4                    /* readers of one object whose progress is followed */
#define AHEAD       3                    /* chunks that are decoded ahead of one who reads in order */
#define AHEAD_CHUNK ((uint64_t)64 << 10) /* smaller chunks are not worth another thread */
#define BUCKETS     1024

struct object {
    struct ckpt_file base;
    struct object *next;    /* of the bucket of the open ones */
    bool shared;            /* it is in there */
    struct ckpt_file *file; /* as stored */
    struct ckpt_object_info info;
    uint32_t chunk_log2;
    uint64_t chunks;
    struct ckpt_words words; /* encoded: the index; raw: the sums */
    uint64_t present; /* of a sparse object: its chunks that are there, whose numbers come after their offsets in the
                         index */
    atomic_bool told; /* that it is damaged */
    /* encoded */
    struct ckpt_cache *cache;
    uint64_t id;                           /* in the cache */
    atomic_bool cached;                    /* there may be chunks of it */
    atomic_uint_fast64_t streams[STREAMS]; /* the last chunk that each reader has got to */
    atomic_uint next_stream;
    /* raw */
    atomic_uchar *checked;      /* a bit a chunk */
    atomic_uint_fast64_t zeros; /* the sum of a chunk of zeros; 0: not known yet */
};

static const struct ckpt_file_ops encoded_ops, raw_ops;

static uint64_t chunk_begin(const struct object *o, uint64_t chunk)
{
    return chunk << o->chunk_log2;
}

static uint64_t chunk_len(const struct object *o, uint64_t chunk)
{
    return CKPT_MIN((uint64_t)1 << o->chunk_log2, o->info.size - chunk_begin(o, chunk));
}

/* Readers get a number only; what is wrong is told once. */
static int damaged(struct object *o, uint64_t chunk, int r, const struct ckpt_err *err)
{
    char hex[CKPT_HEX];
    ckpt_hash_hex(o->info.sha256, hex);
    if (!atomic_exchange(&o->told, true))
        ckpt_log(CKPT_LOG_WARN, "object %s, chunk %llu: %s", hex, (unsigned long long)chunk,
                 err->code == -r ? err->text : strerror(-r));
    return r;
}

/* --- encoded --- */

/* The index, as it is read for the first time: chunks lie one behind the other from the beginning of the file to the
 * index. */
struct index_check {
    uint64_t chunks, index, bound, last;
    uint64_t all; /* of a sparse object: chunks that the decoded bytes would have */
};

/* The numbers of a sparse object's chunks grow. */
static int check_number(struct index_check *c, uint64_t i, uint64_t number, struct ckpt_err *err)
{
    bool ok = number < c->all && (i == 0 || number > c->last);
    c->last = number;
    return ok ? 0
              : ckpt_fail(err, EUCLEAN, "the object's index has a wrong number for chunk %llu", (unsigned long long)i);
}

static int check_offset(void *arg, uint64_t i, uint64_t off, struct ckpt_err *err)
{
    struct index_check *c = arg;
    if (i > c->chunks)
        return check_number(c, i - c->chunks - 1, off, err);
    bool ok = i ? off > c->last && off - c->last > CKPT_OBJECT_SUM && off - c->last <= c->bound : off == 0;
    if (!ok || off > c->index || (i == c->chunks && off != c->index))
        return ckpt_fail(err, EUCLEAN, "the object's index has a wrong offset for chunk %llu", (unsigned long long)i);
    c->last = off;
    return 0;
}

static bool is_sparse(const struct object *o)
{
    return o->info.codec == CKPT_OBJECT_SPARSE;
}

/* The place of a chunk among those that are there: 1; or 0 and that of the next one, if it is a hole. */
static int find_place(struct object *o, uint64_t chunk, uint64_t *ret, struct ckpt_err *err)
{
    uint64_t lo = 0, hi = o->present, number;
    *ret = chunk;
    if (!is_sparse(o))
        return 1;
    while (lo < hi) {
        uint64_t mid = lo + (hi - lo) / 2;
        int r = ckpt_words_get(&o->words, o->present + 1 + mid, 1, &number, err);
        if (r < 0)
            return r;
        if (number == chunk) {
            *ret = mid;
            return 1;
        }
        if (number < chunk)
            lo = mid + 1;
        else
            hi = mid;
    }
    *ret = lo;
    return 0;
}

static int locate(void *arg, const struct ckpt_chunk_key *key, struct ckpt_chunk_source *ret, struct ckpt_err *err)
{
    struct object *o = arg;
    uint64_t span[2], place;
    int r = find_place(o, key->index, &place, err);
    if (r == 0)
        r = ckpt_fail(err, EUCLEAN, "the object's index has changed");
    if (r == 1)
        r = ckpt_words_get(&o->words, place, 2, span, err);
    if (r < 0)
        return r;
    if (span[0] >= span[1] ||
        span[1] - span[0] > ckpt_object_bound(o->info.codec, (uint64_t)1 << o->chunk_log2)) /* since it was checked */
        return ckpt_fail(err, EUCLEAN, "the object's index has changed");
    *ret = (struct ckpt_chunk_source){
        .extent = {.file = ckpt_file_ref(o->file), .off = span[0], .len = span[1] - span[0]},
        .codecs = {2, {CKPT_CODEC_XXH3, o->info.codec == CKPT_OBJECT_LZ4 ? CKPT_CODEC_LZ4 : CKPT_CODEC_BLOSC}},
        .size = chunk_len(o, key->index),
        .dtype = CKPT_DT_OTHER,
        .nested = true,
    };
    return 0;
}

static int get_chunk(struct object *o, uint64_t chunk, struct ckpt_chunk **ret, struct ckpt_err *err)
{
    struct ckpt_chunk_key key = {.tree = o->id, .index = chunk};
    atomic_store_explicit(&o->cached, true, memory_order_relaxed);
    return ckpt_cache_get(o->cache, &key, locate, o, ret, err);
}

static void decode_ahead(struct object *o, uint64_t from)
{
    struct ckpt_chunk *chunk;
    if (is_sparse(o))
        return;
    for (uint64_t i = from; i < o->chunks && i < from + AHEAD; i++)
        if (get_chunk(o, i, &chunk, NULL) == 0) { /* whoever reads it will see the error */
            ckpt_chunk_prefetch(o->cache, chunk, chunk_len(o, i));
            ckpt_chunk_put(o->cache, chunk);
        }
}

/* Does a read of chunks [first, last] go on where another one ended? Requests of one reader may overtake each other by
 * a chunk. */
static void follow(struct object *o, uint64_t first, uint64_t last)
{
    for (unsigned i = 0; i < STREAMS; i++) {
        uint64_t at = atomic_load_explicit(&o->streams[i], memory_order_relaxed);
        if (at == UINT64_MAX || first + 1 < at || first > at + 1)
            continue;
        if (last > at) {
            atomic_store_explicit(&o->streams[i], last, memory_order_relaxed);
            decode_ahead(o, last + 1);
        }
        return;
    }
    unsigned i = atomic_fetch_add_explicit(&o->next_stream, 1, memory_order_relaxed) % STREAMS;
    atomic_store_explicit(&o->streams[i], last, memory_order_relaxed);
    if (last > first) /* nobody has come so far by chance */
        decode_ahead(o, first + 1);
}

static int read_chunk(struct object *o, uint64_t i, void *buf, size_t len, uint64_t at, struct ckpt_err *err)
{
    struct ckpt_chunk *chunk;
    int r = get_chunk(o, i, &chunk, err);
    if (r < 0)
        return r;
    r = ckpt_chunk_read(o->cache, chunk, buf, len, at, false, err);
    ckpt_chunk_put(o->cache, chunk);
    return r;
}

static ssize_t encoded_read(struct ckpt_file *base, void *buf, size_t len, uint64_t off)
{
    struct object *o = (struct object *)base;
    if (off >= o->info.size || !len)
        return 0;
    len = (size_t)CKPT_MIN((uint64_t)len, o->info.size - off);
    if (o->chunks > 1 && (uint64_t)1 << o->chunk_log2 >= AHEAD_CHUNK)
        follow(o, off >> o->chunk_log2, (off + len - 1) >> o->chunk_log2);
    for (size_t done = 0; done < len;) {
        uint64_t i = (off + done) >> o->chunk_log2, at = off + done - chunk_begin(o, i);
        size_t n = (size_t)CKPT_MIN((uint64_t)(len - done), chunk_len(o, i) - at);
        struct ckpt_err err = {0};
        uint64_t place;
        int r = find_place(o, i, &place, &err);
        if (r == 0)
            memset((uint8_t *)buf + done, 0, n);
        else if (r == 1)
            r = read_chunk(o, i, (uint8_t *)buf + done, n, at, &err);
        if (r < 0)
            return damaged(o, i, r, &err);
        done += n;
    }
    return (ssize_t)len;
}

static void encoded_run(struct ckpt_file *base, uint64_t off, uint64_t end, struct ckpt_run *ret)
{
    struct object *o = (struct object *)base;
    uint64_t place, next = o->chunks;
    int r = is_sparse(o) ? find_place(o, off >> o->chunk_log2, &place, NULL) : -EINVAL;
    if (r == 0 && place < o->present && ckpt_words_get(&o->words, o->present + 1 + place, 1, &next, NULL) < 0)
        r = -EIO; /* reading will tell */
    if (r == 1)
        next = (off >> o->chunk_log2) + 1;
    ret->zeros = r == 0;
    ret->end = r < 0 || next >= o->chunks ? end : CKPT_MIN(end, chunk_begin(o, next));
}

static int open_encoded(struct object *o, const struct ckpt_object_footer *f, struct ckpt_err *err)
{
    static atomic_uint_fast64_t next_id = 1;
    struct index_check check = {
        .chunks = f->chunks, .index = f->index, .bound = ckpt_object_bound(f->codec, (uint64_t)1 << f->chunk_log2)};
    check.all = ckpt_chunk_count(f->size, f->chunk_log2);
    o->base.ops = &encoded_ops;
    o->chunk_log2 = f->chunk_log2;
    o->chunks = check.all;
    o->present = f->chunks;
    o->id = CKPT_CHUNK_OF_FILE | atomic_fetch_add(&next_id, 1);
    for (unsigned i = 0; i < STREAMS; i++)
        atomic_init(&o->streams[i], UINT64_MAX);
    return ckpt_words_open(&o->words, o->file, f->index, f->index, ckpt_object_index_words(f), check_offset, &check,
                           err);
}

/* --- raw --- */

static bool is_checked(const struct object *o, uint64_t chunk)
{
    return atomic_load_explicit(&o->checked[chunk / 8], memory_order_relaxed) >> (chunk % 8) & 1;
}

static int check_sum(struct object *o, uint64_t chunk, uint64_t got, struct ckpt_err *err)
{
    uint64_t want;
    int r = ckpt_words_get(&o->words, chunk, 1, &want, err);
    if (r == 0 && got != want)
        r = ckpt_fail(err, EBADMSG, "the XXH3-64 is %016llx, not %016llx as stored", (unsigned long long)got,
                      (unsigned long long)want);
    if (r == 0)
        atomic_fetch_or_explicit(&o->checked[chunk / 8], (unsigned char)(1u << (chunk % 8)), memory_order_relaxed);
    return r;
}

static int check_chunk(struct object *o, uint64_t chunk, const uint8_t *data, struct ckpt_err *err)
{
    return check_sum(o, chunk, XXH3_64bits(data, chunk_len(o, chunk)), err);
}

static int read_stored(struct object *o, void *buf, size_t len, uint64_t off, struct ckpt_err *err)
{
    ssize_t n = ckpt_file_read(o->file, buf, len, off);
    if (n < 0)
        return ckpt_fail(err, (int)-n, "%s", strerror((int)-n));
    return (size_t)n == len ? 0 : ckpt_fail(err, EBADMSG, "the file has become shorter");
}

/* A part of a chunk that has not been checked. */
static int read_part(struct object *o, uint64_t chunk, void *buf, size_t len, uint64_t at, struct ckpt_err *err)
{
    size_t whole = (size_t)chunk_len(o, chunk);
    CKPT_AUTOFREE uint8_t *data = malloc(whole);
    if (!data)
        return ckpt_no_memory(err);
    int r = read_stored(o, data, whole, chunk_begin(o, chunk), err);
    if (r == 0)
        r = check_chunk(o, chunk, data, err);
    if (r == 0)
        memcpy(buf, data + at, len);
    return r;
}

/* Bytes [off, end) into buf, in one read as far as all of its chunks have been checked or are there whole. Returns
 * where that is. */
static int read_run(struct object *o, uint8_t *buf, uint64_t off, uint64_t end, uint64_t *ret_end, struct ckpt_err *err)
{
    uint64_t first = off >> o->chunk_log2, i = first, run = off;
    for (; run < end; i++) {
        uint64_t chunk_end = chunk_begin(o, i) + chunk_len(o, i);
        if (!is_checked(o, i) && (run != chunk_begin(o, i) || chunk_end > end))
            break;
        run = CKPT_MIN(chunk_end, end);
    }
    if (run == off) {
        *ret_end = CKPT_MIN(chunk_begin(o, i) + chunk_len(o, i), end);
        return read_part(o, i, buf, (size_t)(*ret_end - off), off - chunk_begin(o, i), err);
    }
    *ret_end = run;
    int r = read_stored(o, buf, (size_t)(run - off), off, err);
    for (i = first; r == 0 && chunk_begin(o, i) < run; i++)
        if (!is_checked(o, i))
            r = check_chunk(o, i, buf + (chunk_begin(o, i) - off), err);
    return r;
}

static ssize_t raw_read(struct ckpt_file *base, void *buf, size_t len, uint64_t off)
{
    struct object *o = (struct object *)base;
    if (off >= o->info.size || !len)
        return 0;
    len = (size_t)CKPT_MIN((uint64_t)len, o->info.size - off);
    for (uint64_t at = off, next; at < off + len; at = next) {
        struct ckpt_err err = {0};
        int r = read_run(o, (uint8_t *)buf + (at - off), at, off + len, &next, &err);
        if (r < 0)
            return damaged(o, at >> o->chunk_log2, r, &err);
    }
    return (ssize_t)len;
}

/* A chunk of zeros is checked by its sum as any other. */
static bool zeros_fit(struct object *o, uint64_t chunk)
{
    uint64_t len = chunk_len(o, chunk), sum = atomic_load(&o->zeros);
    bool whole = len == (uint64_t)1 << o->chunk_log2;
    if (!sum || !whole) {
        CKPT_AUTOFREE uint8_t *data = calloc(1, (size_t)len);
        if (!data)
            return false;
        sum = XXH3_64bits(data, (size_t)len);
        if (whole)
            atomic_store(&o->zeros, sum);
    }
    return check_sum(o, chunk, sum, NULL) == 0;
}

static bool is_hole(struct object *o, uint64_t begin, uint64_t end)
{
    struct ckpt_run run;
    ckpt_file_run(o->file, begin, end, &run);
    return run.zeros && run.end == end;
}

static void raw_run(struct ckpt_file *base, uint64_t off, uint64_t end, struct ckpt_run *ret)
{
    struct object *o = (struct object *)base;
    if (end > o->info.size)
        return;
    ckpt_file_run(o->file, off, end, ret);
    for (uint64_t i = off >> o->chunk_log2, at = off; ret->zeros && at < ret->end; at = chunk_begin(o, ++i)) {
        uint64_t begin = chunk_begin(o, i), chunk_end = begin + chunk_len(o, i);
        bool hole = begin >= off && chunk_end <= ret->end;
        if (is_checked(o, i) || ((hole || is_hole(o, begin, chunk_end)) && zeros_fit(o, i)))
            continue;
        ret->zeros = at > off; /* as far as they are checked */
        ret->end = ret->zeros ? at : CKPT_MIN(chunk_end, ret->end);
        return;
    }
}

static int open_raw(struct object *o, struct ckpt_file *sums, struct ckpt_err *err)
{
    o->base.ops = &raw_ops;
    int r = ckpt_sums_header_read(sums, o->info.size, o->info.sha256, &o->chunk_log2, err);
    if (r < 0)
        return r;
    o->chunks = ckpt_chunk_count(o->info.size, o->chunk_log2);
    r = ckpt_words_open(&o->words, sums, 0, CKPT_SUMS_HEADER, o->chunks, NULL, NULL, err);
    if (r < 0)
        return r;
    o->checked = calloc(1, o->chunks / 8 + 1);
    return o->checked ? 0 : ckpt_no_memory(err);
}

bool ckpt_object_raw_fd(struct ckpt_file *object, int *ret_fd)
{
    int fd = object->ops == &raw_ops ? ckpt_file_fd(((struct object *)object)->file) : -1;
    if (fd < 0)
        return false;
    *ret_fd = fd;
    return true;
}

/* --- the open ones --- */

static struct {
    pthread_mutex_t lock;
    struct object *buckets[BUCKETS];
} open_objects = {.lock = PTHREAD_MUTEX_INITIALIZER};

static struct object **bucket_of(const uint8_t sha256[CKPT_SHA256])
{
    return &open_objects.buckets[ckpt_le16(sha256) % BUCKETS];
}

/* A reference, unless the last one has just gone. */
static bool try_ref(struct ckpt_file *f)
{
    unsigned refs = atomic_load(&f->refs);
    while (refs)
        if (atomic_compare_exchange_weak(&f->refs, &refs, refs + 1))
            return true;
    return false;
}

/* The same file in the same cache; with the lock held. */
static struct object *find_open(struct ckpt_cache *cache, const struct ckpt_file *file,
                                const uint8_t sha256[CKPT_SHA256])
{
    for (struct object *o = *bucket_of(sha256); o; o = o->next)
        if (o->cache == cache && o->file->ops == file->ops && o->file->st.dev == file->st.dev &&
            o->file->st.ino == file->st.ino && !memcmp(o->info.sha256, sha256, CKPT_SHA256) && try_ref(&o->base))
            return o;
    return NULL;
}

static struct object *find_shared(struct ckpt_cache *cache, struct ckpt_file *file, const uint8_t sha256[CKPT_SHA256])
{
    if (ckpt_file_fd(file) < 0) /* device and inode mean nothing */
        return NULL;
    CKPT_GUARD(&open_objects.lock);
    return find_open(cache, file, sha256);
}

/* Let others share it, or return what another thread has opened meanwhile. */
static struct object *publish(struct object *o)
{
    if (ckpt_file_fd(o->file) < 0)
        return o;
    CKPT_GUARD(&open_objects.lock);
    struct object *other = find_open(o->cache, o->file, o->info.sha256);
    if (other)
        return other;
    struct object **bucket = bucket_of(o->info.sha256);
    o->next = *bucket;
    *bucket = o;
    o->shared = true;
    return o;
}

static void object_close(struct ckpt_file *base)
{
    struct object *o = (struct object *)base;
    if (o->shared) {
        CKPT_GUARD(&open_objects.lock);
        struct object **link = bucket_of(o->info.sha256);
        while (*link != o)
            link = &(*link)->next;
        *link = o->next;
    }
    if (atomic_load_explicit(&o->cached, memory_order_relaxed))
        ckpt_cache_drop_tree(o->cache, o->id);
    ckpt_words_clear(&o->words);
    ckpt_file_unref(o->file);
    free(o->checked);
    free(o);
}

/* --- opening --- */

/* A store's directory, or one where objects have their hash for a name. */
struct place {
    struct ckpt_pins *pins;
    bool held;
};

/*
 * What is stored under the hash and suffix. In a store among the objects, or in the trash; or among the objects again,
 * if it was just taken out of the trash.
 */
static int open_stored(struct place at, const uint8_t sha256[CKPT_SHA256], const char *suffix, struct ckpt_file **ret)
{
    char path[CKPT_OBJECT_PATH], live[2 * CKPT_OBJECT_PATH], trash[2 * CKPT_OBJECT_PATH];
    ckpt_object_path(sha256, path);
    if (at.held) {
        snprintf(live, sizeof live, "%s%s", path + 3, suffix);
        return ckpt_pins_open(at.pins, live, ret);
    }
    snprintf(live, sizeof live, "objects/%s%s", path, suffix);
    snprintf(trash, sizeof trash, "trash/objects/%s%s", path + 3, suffix);
    int r = ckpt_pins_open(at.pins, live, ret);
    if (r == -ENOENT)
        r = ckpt_pins_open(at.pins, trash, ret);
    return r == -ENOENT ? ckpt_pins_open(at.pins, live, ret) : r;
}

static int open_as_stored(struct object *o, struct place at, uint64_t size, struct ckpt_err *err)
{
    int r = ckpt_object_stat(o->file, o->info.sha256, size, &o->info, err);
    if (r < 0)
        return r;
    o->base.st = o->file->st;
    o->base.st.size = o->info.size;
    if (o->info.codec != CKPT_OBJECT_NONE) {
        struct ckpt_object_footer f;
        r = ckpt_object_footer_read(o->file, o->info.sha256, &f, err);
        return r > 0 ? open_encoded(o, &f, err) : r < 0 ? r : ckpt_fail(err, EUCLEAN, "the object has changed");
    }
    struct ckpt_file *sums;
    r = open_stored(at, o->info.sha256, ".sums", &sums);
    if (r < 0)
        return ckpt_fail(err, r == -ENOENT ? EUCLEAN : -r,
                         r == -ENOENT ? "its sums are missing" : "its sums cannot be read: %s", strerror(-r));
    r = open_raw(o, sums, err);
    ckpt_file_unref(sums);
    return r;
}

static int object_new(struct place at, struct ckpt_cache *cache, struct ckpt_file *file,
                      const uint8_t sha256[CKPT_SHA256], uint64_t size, struct object **ret, struct ckpt_err *err)
{
    struct object *o = calloc(1, sizeof *o);
    if (!o)
        return ckpt_no_memory(err);
    atomic_init(&o->base.refs, 1);
    o->cache = cache;
    o->file = ckpt_file_ref(file);
    memcpy(o->info.sha256, sha256, CKPT_SHA256);
    int r = open_as_stored(o, at, size, err);
    if (r < 0) {
        object_close(&o->base);
        return r;
    }
    *ret = publish(o);
    if (*ret != o)
        object_close(&o->base);
    return 0;
}

/* The reference is given back when it fails. */
static int share(struct object *o, struct place at, uint64_t size, struct ckpt_err *err)
{
    struct ckpt_file *sums;
    if (size != UINT64_MAX && size != o->info.size) {
        int r = ckpt_fail(err, EBADMSG, "the object has %llu bytes, not %llu", (unsigned long long)o->info.size,
                          (unsigned long long)size);
        ckpt_file_unref(&o->base);
        return r;
    }
    /* Pinned here too, for when it is opened again. */
    if (o->info.codec == CKPT_OBJECT_NONE && open_stored(at, o->info.sha256, ".sums", &sums) == 0)
        ckpt_file_unref(sums);
    return 0;
}

static int open_in(struct place at, struct ckpt_cache *cache, const uint8_t sha256[CKPT_SHA256], uint64_t size,
                   struct ckpt_file **ret, struct ckpt_err *err)
{
    char hex[CKPT_HEX];
    struct ckpt_file *file;
    ckpt_hash_hex(sha256, hex);
    int r = open_stored(at, sha256, "", &file);
    if (r < 0)
        return ckpt_fail(err, -r, r == -ENOENT ? "object %s is missing from the store" : "object %s: %s", hex,
                         strerror(-r));
    struct object *o = find_shared(cache, file, sha256);
    r = o ? share(o, at, size, err) : object_new(at, cache, file, sha256, size, &o, err);
    ckpt_file_unref(file);
    if (r < 0)
        return ckpt_fail_in(err, -r, "object %s", hex);
    *ret = &o->base;
    return 0;
}

int ckpt_object_open(struct ckpt_pins *pins, struct ckpt_cache *cache, const uint8_t sha256[CKPT_SHA256], uint64_t size,
                     struct ckpt_file **ret, struct ckpt_err *err)
{
    return open_in((struct place){pins, false}, cache, sha256, size, ret, err);
}

int ckpt_object_open_held(struct ckpt_pins *pins, struct ckpt_cache *cache, const uint8_t sha256[CKPT_SHA256],
                          uint64_t size, struct ckpt_file **ret, struct ckpt_err *err)
{
    return open_in((struct place){pins, true}, cache, sha256, size, ret, err);
}

static const struct ckpt_file_ops encoded_ops = {
    .name = "encoded object",
    .derived = true,
    .read = encoded_read,
    .run = encoded_run,
    .close = object_close,
};

static const struct ckpt_file_ops raw_ops = {
    .name = "raw object",
    .derived = true,
    .read = raw_read,
    .run = raw_run,
    .close = object_close,
};
