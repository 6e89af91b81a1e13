/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A hash table path -> open file per checkpoint, and one count for the process. When the count reaches the limit, the
 * checkpoint that opens a file gives up its own oldest pin first: the others may have readers that outlive their step.
 */
#include "core/io/pins.h"

#include "core/base/hash.h"
#include "core/base/util.h"

#include <sys/resource.h>

struct pin {
    struct pin *next;          /* of the bucket */
    struct pin *newer, *older; /* of the table, by age */
    struct ckpt_file *file;
    char path[];
};

struct ckpt_pins {
    atomic_uint refs;
    struct ckpt_backend *dir;
    pthread_mutex_t lock;
    struct pin **buckets;
    size_t bucket_count, count;
    struct pin *newest, *oldest;
};

static atomic_size_t pinned; /* by all tables */

static size_t pin_limit(void)
{
    static atomic_size_t cached;
    size_t limit = atomic_load(&cached);
    if (!limit) {
        struct rlimit rl;
        limit = getrlimit(RLIMIT_NOFILE, &rl) == 0 ? (size_t)CKPT_MIN(rl.rlim_cur, (rlim_t)1 << 20) / 4 : 256;
        atomic_store(&cached, limit);
    }
    return limit;
}

static uint64_t hash_path(const char *p)
{
    uint64_t h = ckpt_fnv(CKPT_FNV_BEGIN, p, strlen(p));
    return h ^ h >> 29;
}

int ckpt_pins_new(struct ckpt_backend *dir, struct ckpt_pins **ret)
{
    struct ckpt_pins *pins = calloc(1, sizeof *pins);
    if (!pins)
        return -ENOMEM;
    atomic_init(&pins->refs, 1);
    pins->dir = ckpt_backend_ref(dir);
    atomic_fetch_add(&pinned, 1);
    pthread_mutex_init(&pins->lock, NULL);
    *ret = pins;
    return 0;
}

static void drop(struct ckpt_pins *pins, struct pin *pin)
{
    struct pin **link = &pins->buckets[hash_path(pin->path) % pins->bucket_count];
    while (*link != pin)
        link = &(*link)->next;
    *link = pin->next;
    *(pin->older ? &pin->older->newer : &pins->oldest) = pin->newer;
    *(pin->newer ? &pin->newer->older : &pins->newest) = pin->older;
    ckpt_file_unref(pin->file);
    free(pin);
    pins->count--;
    atomic_fetch_sub(&pinned, 1);
}

struct ckpt_pins *ckpt_pins_ref(struct ckpt_pins *pins)
{
    atomic_fetch_add(&pins->refs, 1);
    return pins;
}

bool ckpt_pins_scarce(void)
{
    return atomic_load(&pinned) >= pin_limit() / 4 * 3;
}

void ckpt_pins_unref(struct ckpt_pins *pins)
{
    if (!pins || atomic_fetch_sub(&pins->refs, 1) != 1)
        return;
    atomic_fetch_sub(&pinned, 1);
    while (pins->oldest)
        drop(pins, pins->oldest);
    free(pins->buckets);
    pthread_mutex_destroy(&pins->lock);
    ckpt_backend_unref(pins->dir);
    free(pins);
}

struct ckpt_backend *ckpt_pins_dir(struct ckpt_pins *pins)
{
    return pins->dir;
}

size_t ckpt_pins_count(struct ckpt_pins *pins)
{
    CKPT_GUARD(&pins->lock);
    return pins->count;
}

static struct pin *find(struct ckpt_pins *pins, const char *path)
{
    struct pin *p = pins->bucket_count ? pins->buckets[hash_path(path) % pins->bucket_count] : NULL;
    while (p && strcmp(p->path, path))
        p = p->next;
    return p;
}

static int grow(struct ckpt_pins *pins)
{
    if (pins->count < pins->bucket_count)
        return 0;
    size_t n = pins->bucket_count ? pins->bucket_count * 4 : 16;
    struct pin **buckets = calloc(n, sizeof *buckets);
    if (!buckets)
        return -ENOMEM;
    for (struct pin *p = pins->oldest; p; p = p->newer) {
        struct pin **b = &buckets[hash_path(p->path) % n];
        p->next = *b;
        *b = p;
    }
    free(pins->buckets);
    pins->buckets = buckets;
    pins->bucket_count = n;
    return 0;
}

/* Keep a file that was just opened; failure to do so is no error, the file is then opened by name again. */
static void keep(struct ckpt_pins *pins, const char *path, struct ckpt_file *file)
{
    while (pins->oldest && atomic_load(&pinned) >= pin_limit())
        drop(pins, pins->oldest);
    if (atomic_load(&pinned) >= pin_limit() || grow(pins) < 0)
        return;
    struct pin *pin = malloc(sizeof *pin + strlen(path) + 1);
    if (!pin)
        return;
    strcpy(pin->path, path);
    pin->file = ckpt_file_ref(file);
    struct pin **b = &pins->buckets[hash_path(path) % pins->bucket_count];
    pin->next = *b;
    *b = pin;
    pin->newer = NULL;
    pin->older = pins->newest;
    *(pins->newest ? &pins->newest->newer : &pins->oldest) = pin;
    pins->newest = pin;
    pins->count++;
    atomic_fetch_add(&pinned, 1);
}

int ckpt_pins_open(struct ckpt_pins *pins, const char *path, struct ckpt_file **ret)
{
    if (!ckpt_path_safe(path, strlen(path)))
        return -EUCLEAN;
    pthread_mutex_lock(&pins->lock);
    struct pin *pin = find(pins, path);
    if (pin) {
        *ret = ckpt_file_ref(pin->file);
        pthread_mutex_unlock(&pins->lock);
        return 0;
    }
    pthread_mutex_unlock(&pins->lock);
    struct ckpt_file *file;
    int r = ckpt_backend_open(pins->dir, path, &file);
    if (r < 0)
        return r == -EXDEV || r == -ELOOP ? -EUCLEAN : r;
    pthread_mutex_lock(&pins->lock);
    pin = find(pins, path);
    if (pin) { /* another thread was quicker: one handle for all */
        ckpt_file_unref(file);
        file = ckpt_file_ref(pin->file);
    } else
        keep(pins, path, file);
    pthread_mutex_unlock(&pins->lock);
    *ret = file;
    return 0;
}
