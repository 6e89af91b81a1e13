/* SPDX-License-Identifier: Apache-2.0 */
/* The files of .ckptfs, and the walk over a source's directories that two of them need. */
#include "core/base/util.h"
#include "core/io/json.h"
#include "core/source/source.h"

#include <math.h>
#include <stdio.h>

#define MAX_DIR_DEPTH 64

/* --- every listing at and below a directory of the source --- */

typedef int listing_fn(void *arg, const char *path, const struct ckpt_listing *l);

/* Of those that `who` may list and enter, and gets to through such ones. */
struct listing_walk {
    struct ckpt_source *src;
    const struct ckpt_caller *who;
    listing_fn *visit;
    void *arg;
};

static int walk_listings(const struct listing_walk *w, const char *path, unsigned depth)
{
    struct ckpt_listing *l;
    struct ckpt_stat st;
    int r = ckpt_backend_stat(w->src->backend, path, &st);
    if (r == 0 && !ckpt_caller_may(w->who, st.mode, st.uid, st.gid, 5))
        return 0;
    if (r == 0)
        r = ckpt_listing_make(w->src->backend, path, NULL, &l);
    if (r < 0)
        return depth ? 0 : r; /* a directory that has gone, or may not be read, does not hide the others */
    r = w->visit(w->arg, path, l);
    for (size_t i = 0; i < l->count && r == 0 && depth < MAX_DIR_DEPTH; i++) {
        const struct ckpt_entry *e = &l->entries[i];
        char sub[4096];
        if (e->kind == CKPT_ENTRY_DIR && ckpt_source_join(path, e->name, sub) == 0)
            r = walk_listings(w, sub, depth + 1);
    }
    ckpt_listing_unref(l);
    return r;
}

static int walk_source(struct ckpt_source *src, const struct ckpt_caller *who, listing_fn *visit, void *arg)
{
    const struct listing_walk w = {src, who, visit, arg};
    return !src->top ? walk_listings(&w, "", 0) : 0;
}

struct step_walk {
    int (*visit)(void *, const struct ckpt_step *);
    void *arg;
    bool all; /* other checkpoints too */
};

static int compare_steps(const void *pa, const void *pb)
{
    const struct ckpt_entry *a = *(const struct ckpt_entry *const *)pa, *b = *(const struct ckpt_entry *const *)pb;
    if (a->is_step != b->is_step)
        return a->is_step ? -1 : 1;
    return a->is_step && a->number != b->number ? (a->number < b->number ? -1 : 1) : strcmp(a->name, b->name);
}

static int visit_steps(void *arg, const char *path, const struct ckpt_listing *l)
{
    struct step_walk *w = arg;
    CKPT_AUTOFREE const struct ckpt_entry **steps = malloc((l->count + 1) * sizeof *steps);
    size_t n = 0;
    int r = 0;
    if (!steps)
        return -ENOMEM;
    for (size_t i = 0; i < l->count; i++)
        if (l->entries[i].is_step || (w->all && l->entries[i].kind == CKPT_ENTRY_TREE))
            steps[n++] = &l->entries[i];
    if (n)
        qsort(steps, n, sizeof *steps, compare_steps);
    for (size_t i = 0; i < n && r == 0; i++) {
        struct ckpt_step s = {.root = path, .name = steps[i]->name, .mtime_ns = steps[i]->st.mtime_ns};
        s.number = steps[i]->is_step ? steps[i]->number : NAN;
        s.format = steps[i]->format ? steps[i]->format->name : "orbax";
        s.latest = steps[i]->is_step && (i + 1 == n || !steps[i + 1]->is_step);
        r = w->visit(w->arg, &s);
    }
    return r;
}

static int each(struct ckpt_source *src, struct step_walk *w, struct ckpt_err *err)
{
    int r = walk_source(src, NULL, visit_steps, w);
    return r < 0 ? ckpt_fail(err, -r, "%s: %s", src->path, strerror(-r)) : r;
}

int ckpt_each_step(struct ckpt_source *src, int (*visit)(void *arg, const struct ckpt_step *step), void *arg,
                   struct ckpt_err *err)
{
    return each(src, &(struct step_walk){visit, arg, false}, err);
}

int ckpt_each_checkpoint(struct ckpt_source *src, int (*visit)(void *arg, const struct ckpt_step *step), void *arg,
                         struct ckpt_err *err)
{
    return each(src, &(struct step_walk){visit, arg, true}, err);
}

/* --- the files --- */

static int make_version(struct ckpt_source *src, const struct ckpt_caller *who, struct ckpt_buf *out)
{
    ckpt_buf_adds(out, "ckptfs " CKPTFS_VERSION "\n");
    return 0;
}

static uint64_t resident_bytes(void)
{
    unsigned long long total, resident = 0;
    FILE *f = fopen("/proc/self/statm", "re");
    if (f && fscanf(f, "%llu %llu", &total, &resident) != 2)
        resident = 0;
    if (f)
        fclose(f);
    return resident * (uint64_t)sysconf(_SC_PAGESIZE);
}

void ckpt_source_stats(struct ckpt_source *src, struct ckpt_stats *ret)
{
    struct ckpt_cache_stats cache;
    ckpt_cache_stats(src->cache, &cache);
    *ret = (struct ckpt_stats){
        .lookups = atomic_load(&src->lookups),
        .getattrs = atomic_load(&src->getattrs),
        .readdirs = atomic_load(&src->readdirs),
        .reads = atomic_load(&src->reads),
        .bytes_read = atomic_load(&src->bytes_read),
        .chunks_decoded = cache.decoded,
        .bytes_decoded = cache.decoded_bytes,
        .cache_hits = cache.hits,
        .cache_misses = cache.misses,
        .cache_bytes = cache.memory,
        .spill_bytes = cache.spilled,
        .resident = resident_bytes(),
    };
    ckpt_io_counters(&ret->bytes_fetched, &ret->fetches);
    CKPT_GUARD(&src->lock);
    ret->trees = src->trees;
    ret->tree_bytes = src->tree_bytes;
}

/* One table for both renderings. */
static const struct {
    const char *json, *prometheus, *type, *help;
    size_t off;
} figures[] = {
#define FIGURE(member, prometheus, type, help)                                                                         \
    {                                                                                                                  \
#member, prometheus, type, help, offsetof(struct ckpt_stats, member)                                           \
    }
    FIGURE(lookups, "lookups_total", "counter", "Names looked up."),
    FIGURE(getattrs, "getattrs_total", "counter", "Attributes asked for."),
    FIGURE(readdirs, "readdirs_total", "counter", "Directory entries listed."),
    FIGURE(reads, "reads_total", "counter", "Reads of files."),
    FIGURE(bytes_read, "read_bytes_total", "counter", "Bytes asked for by readers."),
    FIGURE(bytes_fetched, "fetched_bytes_total", "counter", "Bytes fetched from the source."),
    FIGURE(fetches, "fetches_total", "counter", "Reads of the source."),
    FIGURE(chunks_decoded, "chunks_decoded_total", "counter", "Chunks decoded."),
    FIGURE(bytes_decoded, "decoded_bytes_total", "counter", "Bytes that decoding gave."),
    FIGURE(cache_hits, "cache_hits_total", "counter", "Chunks found in the cache."),
    FIGURE(cache_misses, "cache_misses_total", "counter", "Chunks not found in the cache."),
    FIGURE(cache_bytes, "cache_bytes", "gauge", "Bytes of decoded chunks in memory."),
    FIGURE(spill_bytes, "spill_bytes", "gauge", "Bytes of decoded chunks in spill files."),
    FIGURE(trees, "trees", "gauge", "Checkpoints opened."),
    FIGURE(tree_bytes, "tree_bytes", "gauge", "Bytes of memory of opened checkpoints."),
    FIGURE(resident, "resident_bytes", "gauge", "Resident memory of the process."),
#undef FIGURE
};

static unsigned long long figure(const struct ckpt_stats *s, size_t i)
{
    return (unsigned long long)*(const uint64_t *)(const void *)((const char *)s + figures[i].off);
}

static int make_stats(struct ckpt_source *src, const struct ckpt_caller *who, struct ckpt_buf *out)
{
    struct ckpt_stats s;
    ckpt_source_stats(src, &s);
    ckpt_buf_adds(out, "{");
    for (size_t i = 0; i < sizeof figures / sizeof *figures; i++)
        ckpt_buf_addf(out, "%s\"%s\":%llu", i ? "," : "", figures[i].json, figure(&s, i));
    ckpt_buf_adds(out, "}\n");
    return 0;
}

static int make_metrics(struct ckpt_source *src, const struct ckpt_caller *who, struct ckpt_buf *out)
{
    struct ckpt_stats s;
    ckpt_source_stats(src, &s);
    for (size_t i = 0; i < sizeof figures / sizeof *figures; i++)
        ckpt_buf_addf(out, "# HELP ckptfs_%s %s\n# TYPE ckptfs_%s %s\nckptfs_%s %llu\n", figures[i].prometheus,
                      figures[i].help, figures[i].prometheus, figures[i].type, figures[i].prometheus, figure(&s, i));
    return 0;
}

struct steps_json {
    struct ckpt_buf *out;
    char *root; /* the one being written */
};

static void add_string(struct ckpt_buf *out, const char *key, const char *text)
{
    ckpt_buf_addf(out, "\"%s\":", key);
    ckpt_buf_add_json_string(out, text, strlen(text));
}

static int add_step(void *arg, const struct ckpt_step *s)
{
    struct steps_json *j = arg;
    bool same = j->root && !strcmp(j->root, s->root);
    if (!same) {
        if (j->root)
            ckpt_buf_adds(j->out, "]},");
        free(j->root);
        j->root = strdup(s->root);
        if (!j->root)
            return -ENOMEM;
        ckpt_buf_adds(j->out, "\n{");
        add_string(j->out, "path", s->root);
        ckpt_buf_adds(j->out, ",\"steps\":[");
    }
    ckpt_buf_adds(j->out, same ? ",\n {" : "\n {");
    add_string(j->out, "name", s->name);
    ckpt_buf_adds(j->out, ",\"step\":");
    ckpt_add_json_number(j->out, s->number);
    ckpt_buf_addc(j->out, ',');
    add_string(j->out, "format", s->format);
    ckpt_buf_addf(j->out, ",\"state\":\"committed\",\"time\":%lld.%09lld,\"latest\":%s}",
                  (long long)(s->mtime_ns / 1000000000), (long long)(s->mtime_ns % 1000000000),
                  s->latest ? "true" : "false");
    return ckpt_buf_error(j->out);
}

static int make_steps(struct ckpt_source *src, const struct ckpt_caller *who, struct ckpt_buf *out)
{
    struct steps_json j = {.out = out};
    ckpt_buf_adds(out, "{\"roots\":[");
    int r = walk_source(src, who, visit_steps, &(struct step_walk){add_step, &j, false});
    ckpt_buf_adds(out, j.root ? "]}]}\n" : "]}\n");
    free(j.root);
    return r;
}

struct hidden_walk {
    struct ckpt_buf *out;
    const struct ckpt_caller *who;
};

/* A reason may name what is in it. */
static const char *reason_for(const struct ckpt_caller *who, const struct ckpt_entry *e)
{
    bool closed = e->st.type == CKPT_FT_DIR && !ckpt_caller_may(who, e->st.mode, e->st.uid, e->st.gid, 5);
    return closed ? "not finished" : e->hidden;
}

static int list_hidden(void *arg, const char *path, const struct ckpt_listing *l)
{
    const struct hidden_walk *w = arg;
    struct ckpt_buf *out = w->out;
    for (size_t i = 0; i < l->count; i++) {
        const struct ckpt_entry *e = &l->entries[i];
        if (e->kind != CKPT_ENTRY_HIDDEN || !*e->hidden)
            continue;
        size_t begin = out->len;
        ckpt_buf_addf(out, "%s%s%s", path, *path ? "/" : "", e->name);
        for (size_t k = begin; k < out->len; k++) /* a line is a line, whatever the name */
            if (out->data[k] == '\n' || out->data[k] == '\t')
                out->data[k] = '?';
        ckpt_buf_addf(out, "\t%s\n", reason_for(w->who, e));
    }
    return ckpt_buf_error(out);
}

static int make_unfinished(struct ckpt_source *src, const struct ckpt_caller *who, struct ckpt_buf *out)
{
    return walk_source(src, who, list_hidden, &(struct hidden_walk){out, who});
}

static int (*const makers[])(struct ckpt_source *, const struct ckpt_caller *,
                             struct ckpt_buf *) = {make_version, make_stats, make_metrics, make_steps, make_unfinished};
const char *const ckpt_source_control_names[] = {"version", "stats.json", "metrics", "steps.json", "unfinished", NULL};

int ckpt_source_control(struct ckpt_source *src, const char *name, const struct ckpt_caller *who, uint8_t **ret,
                        size_t *ret_len, struct ckpt_err *err)
{
    for (size_t i = 0; ckpt_source_control_names[i]; i++) {
        if (strcmp(ckpt_source_control_names[i], name))
            continue;
        struct ckpt_buf out = CKPT_BUF_INIT;
        int r = makers[i](src, who, &out);
        if (r == 0)
            r = ckpt_buf_error(&out);
        if (r < 0) {
            ckpt_buf_clear(&out);
            return ckpt_fail(err, -r, ".ckptfs/%s: %s", name, strerror(-r));
        }
        *ret = ckpt_buf_steal(&out, ret_len);
        return *ret ? 0 : -ENOMEM;
    }
    return -ENOENT;
}
