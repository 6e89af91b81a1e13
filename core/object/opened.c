/* SPDX-License-Identifier: Apache-2.0 */
#include "core/object/opened.h"

#include "core/base/util.h"

#define OPEN 64

struct ckpt_opened {
    atomic_uint refs;
    struct ckpt_pins *pins;
    struct ckpt_cache *cache;
    pthread_mutex_t lock; /* what follows */
    bool closed;
    uint64_t clock;
    struct kept {
        struct ckpt_file *file; /* NULL: free */
        uint8_t sha256[CKPT_SHA256];
        uint64_t used;
    } kept[OPEN];
};

int ckpt_opened_new(struct ckpt_pins *pins, struct ckpt_cache *cache, struct ckpt_opened **ret)
{
    struct ckpt_opened *o = calloc(1, sizeof *o);
    if (!o)
        return -ENOMEM;
    atomic_init(&o->refs, 1);
    o->pins = ckpt_pins_ref(pins);
    o->cache = cache;
    pthread_mutex_init(&o->lock, NULL);
    *ret = o;
    return 0;
}

static void unref(struct ckpt_opened *o)
{
    if (atomic_fetch_sub(&o->refs, 1) != 1)
        return;
    ckpt_pins_unref(o->pins);
    pthread_mutex_destroy(&o->lock);
    free(o);
}

void ckpt_opened_close(struct ckpt_opened *o)
{
    struct ckpt_file *files[OPEN];
    if (!o)
        return;
    pthread_mutex_lock(&o->lock);
    o->closed = true;
    for (unsigned i = 0; i < OPEN; i++)
        files[i] = CKPT_STEAL(o->kept[i].file);
    pthread_mutex_unlock(&o->lock);
    for (unsigned i = 0; i < OPEN; i++)
        ckpt_file_unref(files[i]);
    unref(o);
}

/* One that is open, with a reference; with the lock held. */
static struct ckpt_file *find(struct ckpt_opened *o, const uint8_t sha256[CKPT_SHA256])
{
    for (unsigned i = 0; i < OPEN; i++)
        if (o->kept[i].file && !memcmp(o->kept[i].sha256, sha256, CKPT_SHA256)) {
            o->kept[i].used = ++o->clock;
            return ckpt_file_ref(o->kept[i].file);
        }
    return NULL;
}

/* In the place of the one that was used longest ago, which is returned. */
static struct ckpt_file *keep(struct ckpt_opened *o, const uint8_t sha256[CKPT_SHA256], struct ckpt_file *file)
{
    struct kept *place = &o->kept[0];
    for (unsigned i = 1; i < OPEN && place->file; i++)
        if (!o->kept[i].file || o->kept[i].used < place->used)
            place = &o->kept[i];
    struct ckpt_file *old = place->file;
    *place = (struct kept){.file = ckpt_file_ref(file), .used = ++o->clock};
    memcpy(place->sha256, sha256, CKPT_SHA256);
    return old;
}

int ckpt_opened_get(struct ckpt_opened *o, const struct ckpt_span *span, struct ckpt_file **ret, struct ckpt_err *err)
{
    pthread_mutex_lock(&o->lock);
    struct ckpt_file *file = find(o, span->object), *other, *old = NULL;
    pthread_mutex_unlock(&o->lock);
    if (!file) {
        int r = ckpt_object_open(o->pins, o->cache, span->object, span->whole ? span->len : UINT64_MAX, &file, err);
        if (r < 0)
            return r;
        pthread_mutex_lock(&o->lock);
        other = find(o, span->object);
        if (!other && !o->closed)
            old = keep(o, span->object, file);
        pthread_mutex_unlock(&o->lock);
        if (other) { /* another thread was quicker: one handle for all */
            old = file;
            file = other;
        }
        ckpt_file_unref(old);
    }
    if (span->off > file->st.size || span->len > file->st.size - span->off ||
        (span->whole && span->len != file->st.size)) {
        char hex[CKPT_HEX];
        ckpt_hash_hex(span->object, hex);
        ckpt_file_unref(file);
        return ckpt_fail(err, EUCLEAN, "object %s has other bytes than the manifest says", hex);
    }
    *ret = file;
    return 0;
}

/* --- a span as a file --- */

struct span_file {
    struct ckpt_file base;
    struct ckpt_opened *opened;
    struct ckpt_span span;
};

static ssize_t span_read(struct ckpt_file *base, void *buf, size_t len, uint64_t off)
{
    struct span_file *f = (struct span_file *)base;
    struct ckpt_file *object;
    if (off >= f->span.len)
        return 0;
    len = (size_t)CKPT_MIN((uint64_t)len, f->span.len - off);
    int r = ckpt_opened_get(f->opened, &f->span, &object, NULL);
    if (r < 0)
        return r;
    ssize_t n = ckpt_file_read(object, buf, len, f->span.off + off);
    ckpt_file_unref(object);
    return n < 0 || (size_t)n == len ? n : -EBADMSG;
}

static void span_run(struct ckpt_file *base, uint64_t off, uint64_t end, struct ckpt_run *ret)
{
    struct span_file *f = (struct span_file *)base;
    struct ckpt_file *object;
    if (end > f->span.len || ckpt_opened_get(f->opened, &f->span, &object, NULL) < 0)
        return;
    ckpt_file_run(object, f->span.off + off, f->span.off + end, ret);
    ckpt_file_unref(object);
    ret->begin -= f->span.off;
    ret->end -= f->span.off;
}

static void span_close(struct ckpt_file *base)
{
    unref(((struct span_file *)base)->opened);
    free(base);
}

static const struct ckpt_file_ops span_ops;

int ckpt_opened_file(struct ckpt_opened *o, const struct ckpt_span *span, struct ckpt_file **ret)
{
    struct span_file *f = calloc(1, sizeof *f);
    if (!f)
        return -ENOMEM;
    atomic_init(&f->base.refs, 1);
    atomic_fetch_add(&o->refs, 1);
    f->base.ops = &span_ops;
    f->base.st = (struct ckpt_stat){.type = CKPT_FT_FILE, .size = span->len};
    f->opened = o;
    f->span = *span;
    *ret = &f->base;
    return 0;
}

static const struct ckpt_file_ops span_ops = {
    .name = "part of an object",
    .derived = true,
    .read = span_read,
    .run = span_run,
    .close = span_close,
};
