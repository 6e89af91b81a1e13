/* SPDX-License-Identifier: Apache-2.0 */
/* What retention asks of a step: one number in metrics.json. The manifest is read as far as that file, and its bytes
 * through the object. */
#include "core/store/metrics.h"

#include "core/base/util.h"
#include "core/io/json.h"
#include "core/store/internal.h"

#include <math.h>

#define METRICS_FILE "metrics.json"
#define METRICS_MAX  ((uint64_t)1 << 20)
#define CACHE_BYTES  ((uint64_t)8 << 20)

struct ckpt_metrics {
    struct ckpt_store *store;
    struct ckpt_pool *pool;
    struct ckpt_cache *cache;
};

int ckpt_metrics_open(struct ckpt_store *s, struct ckpt_metrics **ret, struct ckpt_err *err)
{
    const struct ckpt_cache_options options = {.memory = CACHE_BYTES, .spill_dir = "/var/tmp"};
    struct ckpt_metrics *m = calloc(1, sizeof *m);
    int r = m ? ckpt_pool_new(1, &m->pool) : -ENOMEM;
    if (r == 0)
        r = ckpt_cache_new(&options, m->pool, &m->cache);
    if (r < 0) {
        ckpt_metrics_close(m);
        return ckpt_fail(err, -r, "%s", strerror(-r));
    }
    m->store = s;
    *ret = m;
    return 0;
}

void ckpt_metrics_close(struct ckpt_metrics *m)
{
    if (!m)
        return;
    if (m->pool)
        ckpt_pool_free(m->pool);
    if (m->cache)
        ckpt_cache_free(m->cache);
    free(m);
}

/* --- where it is --- */

struct found {
    bool found;
    uint8_t object[CKPT_SHA256];
    bool own; /* the object is this file and nothing else */
    uint64_t size, offset;
};

static int look(void *arg, uint32_t number, const struct ckpt_manifest_node *n, uint64_t off, uint32_t len)
{
    struct found *f = arg;
    if (n->parent != 0 || !n->name || strcmp(n->name, METRICS_FILE))
        return 0;
    if (n->kind == CKPT_NODE_BLOB) { /* a value would be one number, string or the like */
        f->found = true;
        f->own = !memcmp(n->object, n->sha256, CKPT_SHA256);
        f->size = n->size;
        f->offset = n->offset;
        memcpy(f->object, n->object, CKPT_SHA256);
    }
    return 1;
}

static int find(struct ckpt_metrics *m, const char *step, struct found *ret, struct ckpt_err *err)
{
    struct ckpt_manifest_info info = {0};
    struct ckpt_file *file;
    int r = ckpt_store_manifest(m->store, step, &file, err);
    if (r < 0)
        return r;
    r = ckpt_manifest_each(file, &info, look, ret, err);
    ckpt_manifest_info_clear(&info);
    ckpt_file_unref(file);
    return r < 0 ? r : 0;
}

/* --- what it says --- */

static int read_bytes(struct ckpt_metrics *m, const struct found *f, uint8_t **ret, struct ckpt_err *err)
{
    struct ckpt_pins *pins;
    struct ckpt_file *file;
    int r = ckpt_pins_new(m->store->files, &pins);
    if (r < 0)
        return ckpt_fail(err, -r, "%s", strerror(-r));
    r = ckpt_object_open(pins, m->cache, f->object, f->own ? f->size : UINT64_MAX, &file, err);
    if (r == 0) {
        CKPT_AUTOFREE uint8_t *bytes = malloc(f->size + 1);
        ssize_t n = bytes ? ckpt_file_read(file, bytes, f->size, f->offset) : -ENOMEM;
        if (n == (ssize_t)f->size)
            *ret = CKPT_STEAL(bytes);
        else
            r = ckpt_fail(err, n < 0 ? (int)-n : EBADMSG, METRICS_FILE ": %s",
                          n < 0 ? strerror((int)-n) : "its object is too short");
        ckpt_file_unref(file);
    }
    ckpt_pins_unref(pins);
    return r;
}

static bool parse_number(const struct ckpt_buf *text, double *ret)
{
    char *end;
    const char *p = (const char *)text->data;
    if (!text->len || !strchr("-0123456789", *p)) /* NaN is not better or worse than anything */
        return false;
    double v = strtod(p, &end);
    if (end != p + text->len || !isfinite(v))
        return false;
    *ret = v;
    return true;
}

/* The member of an object. Anything else that the file may be has none. The last of equal ones counts, as for
 * json.load. */
static int member(struct ckpt_file *file, const char *metric, double *ret)
{
    struct ckpt_buf key = CKPT_BUF_INIT, text = CKPT_BUF_INIT;
    struct ckpt_json_reader *reader;
    int r = ckpt_json_open(file, &reader), found = 0;
    if (r < 0)
        return r;
    bool more = ckpt_json_enter_object(reader, NULL) == 0;
    while (more && ckpt_json_member(reader, &key, NULL) == 1 && ckpt_json_value(reader, &text, NULL) == 0) {
        ckpt_buf_addc(&text, 0);
        if (ckpt_buf_error(&text) || ckpt_buf_error(&key))
            break;
        text.len--;
        if (!strcmp((char *)key.data, metric))
            found = parse_number(&text, ret);
    }
    ckpt_json_close(reader);
    ckpt_buf_clear(&key);
    ckpt_buf_clear(&text);
    return found;
}

static int parse(const uint8_t *bytes, size_t len, const char *metric, double *ret)
{
    struct ckpt_backend *memory = ckpt_backend_new_memory();
    struct ckpt_file *file = NULL;
    int r = memory ? ckpt_backend_memory_add(memory, METRICS_FILE, bytes, len) : -ENOMEM;
    if (r == 0)
        r = ckpt_backend_open(memory, METRICS_FILE, &file);
    if (r == 0)
        r = member(file, metric, ret);
    if (file)
        ckpt_file_unref(file);
    if (memory)
        ckpt_backend_unref(memory);
    return r;
}

int ckpt_metrics_get(struct ckpt_metrics *m, const char *step, const char *metric, double *ret, struct ckpt_err *err)
{
    CKPT_AUTOFREE uint8_t *bytes = NULL;
    struct found f = {0};
    int r = find(m, step, &f, err);
    if (r < 0 || !f.found || !f.size || f.size > METRICS_MAX)
        return r;
    r = read_bytes(m, &f, &bytes, err);
    if (r == -ENOENT) /* the step is there */
        r = ckpt_fail(err, EUCLEAN, METRICS_FILE ": its object is missing from the store");
    if (r == 0)
        r = parse(bytes, f.size, metric, ret);
    return r;
}
