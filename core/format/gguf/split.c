/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A split model: NAME-00001-of-0000N.gguf and so on in one folder, each with a part of the tensors, and the first with
 * the metadata. A part that is missing or malformed is a file that cannot be read, since nobody knows what is in it.
 */
#include "core/base/util.h"
#include "core/format/beside.h"
#include "core/format/gguf/private.h"

#include <ctype.h>
#include <stdio.h>
#include <strings.h>

#define SUFFIX       ".gguf"
#define DIGITS       5
#define NUMBERS      "-00000-of-00000" SUFFIX
#define PROBED_PARTS 256 /* to tell whether there is any */

/* --- names --- */

static uint32_t take_digits(const char *p)
{
    uint32_t n = 0;
    for (unsigned i = 0; i < DIGITS; i++) {
        if (!isdigit((unsigned char)p[i]))
            return 0;
        n = n * 10 + (uint32_t)(p[i] - '0');
    }
    return n;
}

struct part_name {
    size_t base; /* bytes of NAME */
    uint32_t number, count;
};

/* Of a part of several. */
static bool parse_name(const char *name, struct part_name *ret)
{
    size_t len = strlen(name), numbers = strlen(NUMBERS);
    if (len <= numbers || len > 255 || *name == '.')
        return false;
    const char *p = name + len - numbers;
    if (*p != '-' || strncmp(p + 1 + DIGITS, "-of-", 4) != 0 || strcasecmp(p + 2 * DIGITS + 5, SUFFIX) != 0)
        return false;
    *ret = (struct part_name){len - numbers, take_digits(p + 1), take_digits(p + DIGITS + 5)};
    return ret->count > 1 && ret->number && ret->number <= ret->count;
}

/* The parts of a folder. */
struct group {
    char name[256]; /* of one of them; empty: there are none */
    bool mixed;     /* there are other models besides, so that the folder is none itself */
};

static int note_name(void *arg, const char *name, enum ckpt_ftype type)
{
    struct group *g = arg;
    struct part_name part, known;
    if (type == CKPT_FT_DIR || *name == '.' || strlen(name) < strlen(SUFFIX) ||
        strcasecmp(name + strlen(name) - strlen(SUFFIX), SUFFIX) != 0)
        return 0;
    if (!parse_name(name, &part)) {
        g->mixed = true;
        return 0;
    }
    if (!*g->name) {
        strcpy(g->name, name);
        return 0;
    }
    bool same = parse_name(g->name, &known) && part.base == known.base && part.count == known.count &&
                !strncmp(name, g->name, part.base);
    g->mixed |= !same;
    return 0;
}

static bool begins_gguf(struct ckpt_backend *dir, const char *name)
{
    CKPT_AUTOFILE struct ckpt_file *f = NULL;
    char magic[4];
    if (ckpt_backend_open(dir, name, &f) < 0)
        return false;
    return ckpt_file_read(f, magic, sizeof magic, 0) == sizeof magic && !memcmp(magic, "GGUF", sizeof magic);
}

/* Without any, as in a clone whose files were not fetched, they are files. */
static bool has_part(struct ckpt_backend *dir, const char *name)
{
    struct part_name part;
    char text[300];
    if (begins_gguf(dir, name))
        return true;
    parse_name(name, &part);
    for (uint32_t i = 1; i <= CKPT_MIN(part.count, (uint32_t)PROBED_PARTS); i++) {
        snprintf(text, sizeof text, "%.*s-%0*u%s", (int)part.base, name, DIGITS, i, name + part.base + 1 + DIGITS);
        if (begins_gguf(dir, text))
            return true;
    }
    return false;
}

int ckpt_gguf_split_probe(struct ckpt_backend *dir, bool *ret)
{
    struct group g = {0};
    int r = ckpt_backend_list(dir, "", note_name, &g);
    *ret = r == 0 && *g.name && !g.mixed && has_part(dir, g.name);
    return r;
}

/* --- leaves --- */

int ckpt_gguf_split_part(struct ckpt_tree *t, uint32_t node, const struct gguf_part **ret, struct ckpt_file **ret_file,
                         struct ckpt_err *err)
{
    const struct gguf *g = t->priv;
    uint32_t lo = 0, hi = g->range_count;
    if (t->nodes[node].mark == GGUF_LOST_MARK) {
        const struct ckpt_shard *shard = &g->shards.all[t->nodes[node].ref];
        size_t len;
        return ckpt_fail(err, shard->error, "%s: %s", ckpt_shard_name(&g->shards, t->nodes[node].ref),
                         ckpt_tree_text(t, shard->why, &len));
    }
    while (hi - lo > 1) { /* the last one that begins no later */
        uint32_t mid = lo + (hi - lo) / 2;
        *(g->ranges[mid].first <= node ? &lo : &hi) = mid;
    }
    *ret = &g->parts[g->ranges[lo].part];
    return ckpt_shard_reopen(&g->shards, g->ranges[lo].part, ret_file, err);
}

/* --- opening --- */

struct splitting {
    struct ckpt_tree *tree;
    struct gguf *gguf;
    struct gguf_builder builder;
    struct ckpt_buf metadata;
};

/* The names of all parts that there should be. */
static int name_parts(struct splitting *s, const char *name, struct ckpt_err *err)
{
    struct gguf *g = s->gguf;
    struct part_name part;
    char text[300];
    parse_name(name, &part);
    g->part_count = g->shards.count = part.count;
    g->parts = calloc(part.count, sizeof *g->parts);
    g->shards.all = calloc(part.count, sizeof *g->shards.all);
    g->ranges = calloc(2 * (size_t)part.count, sizeof *g->ranges);
    if (!g->parts || !g->shards.all || !g->ranges)
        return ckpt_no_memory(err);
    for (uint32_t i = 0; i < part.count; i++) {
        int len = snprintf(text, sizeof text, "%.*s-%05u-of-%05u%s", (int)part.base, name, i + 1, part.count,
                           name + strlen(name) - strlen(SUFFIX));
        if (ckpt_tree_string(s->tree, text, (size_t)len, &g->shards.all[i].name) < 0)
            return ckpt_no_memory(err);
    }
    return 0;
}

/* Its header, in a round. */
static int add_part(struct splitting *s, uint32_t number, struct ckpt_err *err)
{
    struct gguf *g = s->gguf;
    struct gguf_part *part = &g->parts[number];
    struct ckpt_buf none = CKPT_BUF_INIT;
    struct gguf_header h;
    struct ckpt_file *file;
    struct ckpt_err why = {0};
    bool first = s->builder.round == CKPT_NAMES_PLAIN;
    if (g->shards.all[number].error)
        return 0;
    int r = first ? ckpt_shard_open(&g->shards, number, &file, &why)
                  : ckpt_shard_reopen(&g->shards, number, &file, err);
    if (r < 0)
        return first ? ckpt_shard_spoil(&g->shards, number, r, &why, err) : r;
    r = first ? ckpt_gguf_part_open(part, file, &h, number ? &none : &s->metadata, &why)
              : ckpt_gguf_header_open(file, &h, &none, err);
    ckpt_buf_clear(&none);
    if (r == 0) {
        g->ranges[g->range_count++] = (struct gguf_range){s->tree->count, number};
        r = ckpt_gguf_add_tensors(&s->builder, &h);
        ckpt_gguf_header_close(&h);
    } else if (first)
        r = ckpt_shard_spoil(&g->shards, number, r, &why, err);
    ckpt_file_unref(file);
    return r;
}

/* A file that cannot be read, in the place of what is in it. */
static int add_lost(struct splitting *s, struct ckpt_err *err)
{
    const struct gguf *g = s->gguf;
    uint32_t node;
    for (uint32_t i = 0; i < g->part_count; i++) {
        const char *name = ckpt_shard_name(&g->shards, i);
        if (!g->shards.all[i].error)
            continue;
        int r = ckpt_tree_add(s->tree, 0, name, strlen(name), false, CKPT_NODE_BLOB, &node, err);
        if (r < 0)
            return r;
        s->tree->nodes[node].ref = i;
        s->tree->nodes[node].mark = GGUF_LOST_MARK;
    }
    return 0;
}

/* The group is the only one, so a name of that kind is one of it. */
static bool is_part(void *arg, const char *name)
{
    struct part_name part;
    return parse_name(name, &part);
}

static int load(struct splitting *s, const struct ckpt_opening *o, struct ckpt_err *err)
{
    struct group group = {0};
    struct ckpt_name_set names = {0};
    int r = ckpt_backend_list(ckpt_pins_dir(o->pins), "", note_name, &group);
    if (r == 0 && !*group.name)
        r = -ENOENT;
    r = r < 0 ? ckpt_fail(err, -r, "%s", strerror(-r)) : name_parts(s, group.name, err);
    s->builder.names = &names;
    for (; s->builder.round < CKPT_NAME_ROUNDS && r == 0; s->builder.round++)
        for (uint32_t i = 0; i < s->gguf->part_count && r == 0; i++)
            r = add_part(s, i, err);
    bool twice = ckpt_name_set_has_twice(&names);
    ckpt_name_set_clear(&names);
    if (r == 0 && twice)
        r = ckpt_fail(err, EUCLEAN, "two parts have a tensor of the same name");
    if (r == 0 && !s->gguf->range_count)
        r = ckpt_fail(err, EUCLEAN, "not one of its parts can be read");
    if (r == 0)
        r = add_lost(s, err);
    if (r == 0)
        r = ckpt_add_beside(&(struct ckpt_beside){s->tree, is_part, NULL, GGUF_FILE_MARK, o->below}, err);
    if (r == 0 && s->metadata.len && !(s->tree->metadata = ckpt_buf_steal(&s->metadata, NULL)))
        r = ckpt_no_memory(err);
    return r < 0 ? r : ckpt_tree_finish(s->tree, err);
}

int ckpt_gguf_split_open(const struct ckpt_opening *o, struct ckpt_tree **ret, struct ckpt_err *err)
{
    struct splitting s = {.metadata = CKPT_BUF_INIT};
    int r = ckpt_gguf_tree_new(o, &s.tree, err);
    if (r < 0)
        return r;
    s.gguf = s.tree->priv;
    s.builder = (struct gguf_builder){.tree = s.tree, .flat = o->flat, .err = err};
    r = load(&s, o, err);
    ckpt_buf_clear(&s.metadata);
    return ckpt_tree_give(s.tree, r, ret);
}
