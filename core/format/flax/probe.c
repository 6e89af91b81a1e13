/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What flax.training.checkpoints leaves in a folder: files PREFIX_STEP; PREFIXtmp, which is renamed when it is whole;
 * and folders PREFIX_STEP_gda, PREFIXtmp_gda with arrays that several processes share.
 */
#include "core/format/flax/probe.h"

#include "core/base/util.h"
#include "core/format/flax/array.h"
#include "core/format/msgpack.h"
#include "core/format/step.h"

#include <stdio.h>

#define TEMPORARY "_tmp"
#define SHARED    "_gda"
#define LOOKED_AT                                                                                                      \
    1024 /* names of a folder, so that many files of such names do not make a listing quadratic; and                   \
          * tokens of a file */
#define MAX_DEPTH 32
#define MAX_KEY   1024
#define MANY_KEYS 16

static bool is_string(uint8_t c)
{
    return (c & 0xe0) == 0xa0 || (c >= 0xd9 && c <= 0xdb);
}

/*
 * A map with a string as its first key, or an extension that stands for an array. The empty map must be all there is:
 * pickles begin with the same byte. As far as the bytes go.
 */
static bool begins_so(const uint8_t *p, size_t n, uint64_t size)
{
    if (!n)
        return false;
    uint8_t c = p[0];
    if (c == 0x80)
        return size == 1;
    if ((c & 0xf0) == 0x80 || c == 0xde || c == 0xdf) {
        size_t key = c == 0xde ? 3 : c == 0xdf ? 5 : 1;
        return n <= key || is_string(p[key]);
    }
    if ((c >= 0xc7 && c <= 0xc9) || (c >= 0xd4 && c <= 0xd8)) {
        size_t type = c == 0xc7 ? 2 : c == 0xc8 ? 3 : c == 0xc9 ? 5 : 1;
        return n <= type || (p[type] >= FLAX_EXT_NDARRAY && p[type] <= FLAX_EXT_SCALAR);
    }
    return false;
}

/* 1: the file begins like a state dict. */
static int looks_so(struct ckpt_backend *dir, const char *path)
{
    struct ckpt_file *f;
    uint8_t head[6];
    int r = ckpt_backend_open(dir, path, &f);
    if (r < 0)
        return r;
    ssize_t n = ckpt_file_read(f, head, sizeof head, 0);
    r = n < 0 ? (int)n : begins_so(head, (size_t)n, f->st.size);
    ckpt_file_unref(f);
    return r;
}

static bool is_step(const char *name)
{
    double number;
    return strchr(name, '_') && ckpt_step_number(name, true, &number);
}

/* --- PREFIXtmp: anybody may have a file that is called so --- */

struct siblings {
    struct ckpt_backend *dir;
    const char *path;
    size_t folder, prefix; /* where the name begins in the path, and the prefix of it that steps have too */
    unsigned looked;
};

static int is_sibling(void *arg, const char *name, enum ckpt_ftype type)
{
    struct siblings *s = arg;
    char path[4096];
    if (++s->looked > LOOKED_AT)
        return -ENOENT;
    if (type != CKPT_FT_FILE || strncmp(name, s->path + s->folder, s->prefix) || strchr(name + s->prefix, '_') ||
        !is_step(name) || snprintf(path, sizeof path, "%.*s%s", (int)s->folder, s->path, name) >= (int)sizeof path)
        return 0;
    return looks_so(s->dir, path) == 1;
}

static int probe_temporary(struct ckpt_backend *dir, const char *path, const char *name, struct ckpt_probe *ret)
{
    bool usual = !strcmp(name, "checkpoint" TEMPORARY);
    int r = usual ? 1 : looks_so(dir, path);
    if (r == 0) {
        struct siblings s = {dir, path, (size_t)(name - path), strlen(name) - strlen(TEMPORARY) + 1, 0};
        CKPT_AUTOFREE char *folder = strndup(path, s.folder ? s.folder - 1 : 0);
        r = folder ? ckpt_backend_list(dir, folder, is_sibling, &s) : -ENOMEM;
    }
    if (r == 1) {
        ret->bits = 2;
        snprintf(ret->unfinished, sizeof ret->unfinished,
                 "not finished: Flax writes a checkpoint under this name, and renames it when it is whole");
    }
    return r == -ENOMEM ? r : 0;
}

/* --- by content alone --- */

/* A map's or text's bytes before what is in it; *ret_count: of its pairs or bytes. 0: it is none. */
static size_t map_head(const uint8_t *p, size_t n, uint32_t *ret_count)
{
    size_t head = (*p & 0xf0) == 0x80 ? 1 : *p == 0xde ? 3 : *p == 0xdf ? 5 : 0;
    *ret_count = *p & 0x0f;
    for (size_t i = 1; i < head && i < n; i++)
        *ret_count = (i == 1 ? 0 : *ret_count << 8) | p[i];
    return head;
}

static size_t text_head(const uint8_t *p, size_t n, uint32_t *ret_len)
{
    size_t head = (*p & 0xe0) == 0xa0 ? 1 : *p >= 0xd9 && *p <= 0xdb ? (size_t)1 + (1u << (*p - 0xd9)) : 0;
    *ret_len = *p & 0x1f;
    for (size_t i = 1; i < head && i < n; i++)
        *ret_len = (i == 1 ? 0 : *ret_len << 8) | p[i];
    return head;
}

/* A key that somebody may have given: text without control bytes, as far as it is there. */
static bool is_name(const uint8_t *p, size_t n)
{
    for (size_t i = 0, len; i < n; i += len) {
        len = ckpt_utf8_length(p + i, n - i);
        if (!len && n - i >= 4)
            return false;
        if (!len)
            return true; /* cut by the end of what is looked at */
        if (p[i] < 0x20 || p[i] == 0x7f)
            return false;
    }
    return n > 0;
}

/* An array's or number's payload is itself an array of three, or of two. */
static bool is_array(const uint8_t *p, size_t n)
{
    size_t head = *p >= 0xd4 && *p <= 0xd8 ? 2 : *p == 0xc7 ? 3 : *p == 0xc8 ? 4 : *p == 0xc9 ? 6 : 0;
    if (!head || n < head)
        return head;
    bool known = p[head - 1] >= FLAX_EXT_NDARRAY && p[head - 1] <= FLAX_EXT_TUPLE;
    return known && (n == head || (p[head] & 0xf0) == 0x90);
}

static bool is_ext(uint8_t c)
{
    return (c >= 0xc7 && c <= 0xc9) || (c >= 0xd4 && c <= 0xd8);
}

/* Down the first key of each map, as far as the file goes: it may have been cut. */
static bool goes_on_so(const struct ckpt_content *c)
{
    const uint8_t *p = c->head;
    size_t n = c->len;
    while (n && !is_ext(*p)) {
        uint32_t count, len;
        size_t head = map_head(p, n, &count);
        if (!head || !count)
            return *p != 0xc1;
        if (n <= head)
            return false;
        p += head;
        n -= head;
        head = text_head(p, n, &len);
        if (!head || n <= head || !is_name(p + head, CKPT_MIN(n - head, (size_t)len)))
            return false;
        p += CKPT_MIN(n, head + len);
        n -= CKPT_MIN(n, head + len);
    }
    return !n || is_array(p, n);
}

/* --- all of its first tokens: what has no suffix that tells anything must be sure --- */

struct walk {
    struct ckpt_mp mp;
    struct ckpt_buf key;
    uint64_t left[MAX_DEPTH]; /* keys and values that are still to come, of each map and list that is open */
    bool is_map[MAX_DEPTH];
    unsigned depth, keys;
};

static bool take_key(struct walk *w, const struct ckpt_mp_token *tok)
{
    w->key.len = 0;
    if (tok->type != CKPT_MP_STR || tok->len > MAX_KEY || ckpt_mp_bytes(&w->mp, tok, &w->key, NULL) < 0)
        return false;
    w->keys++;
    return is_name(w->key.data, w->key.len);
}

static bool take_container(struct walk *w, const struct ckpt_mp_token *tok)
{
    if (w->depth == MAX_DEPTH || tok->len > UINT32_MAX)
        return false;
    bool is_map = tok->type == CKPT_MP_MAP;
    w->is_map[w->depth] = is_map;
    w->left[w->depth++] = is_map ? 2 * tok->len : tok->len;
    return true;
}

/* Its first bytes tell an array, which may be cut: 1 or 0; -1: it is none. */
static int is_array_at(struct ckpt_file *file, uint64_t at)
{
    uint8_t head[8];
    ssize_t n = ckpt_file_read(file, head, sizeof head, at);
    return n <= 0 || !is_ext(head[0]) ? -1 : is_array(head, (size_t)n);
}

/* An array, all of a small file, or many keys have been seen; and nothing that a state dict has not. */
static bool is_surely(struct walk *w, struct ckpt_file *file)
{
    struct ckpt_mp_token tok;
    for (unsigned i = 0; i < LOOKED_AT; i++) {
        int array = is_array_at(file, w->mp.at);
        if (array >= 0)
            return array;
        if (ckpt_mp_next(&w->mp, &tok, NULL) < 0)
            return false;
        unsigned top = w->depth - 1;
        bool is_key = w->depth && w->is_map[top] && w->left[top] % 2 == 0;
        if (w->depth)
            w->left[top]--;
        if (is_key && !take_key(w, &tok))
            return false;
        bool is_container = tok.type == CKPT_MP_MAP || tok.type == CKPT_MP_ARRAY;
        if (is_container && !take_container(w, &tok))
            return false;
        while (w->depth && !w->left[w->depth - 1])
            w->depth--;
        if (!w->depth)
            return w->mp.at == file->st.size;
    }
    return w->keys >= MANY_KEYS;
}

unsigned ckpt_flax_begins(const struct ckpt_content *c)
{
    if (!begins_so(c->head, c->len, c->file->st.size) || !goes_on_so(c))
        return 0;
    if (c->is_own)
        return 16;
    struct walk *w = calloc(1, sizeof *w);
    if (!w)
        return 0;
    ckpt_mp_init(&w->mp, c->file, 0, c->file->st.size);
    bool sure = is_surely(w, c->file);
    ckpt_buf_clear(&w->key);
    free(w);
    return sure ? 16 : 0;
}

/* A text file begins with a number, which would have to be all there is; a PNG or HDF5 file with a map of numbers. */
bool ckpt_flax_is_damaged(const struct ckpt_content *c)
{
    if (c->len <= 1)
        return true;
    uint8_t first = c->head[0];
    bool map = first > 0x80 && first <= 0x8f;
    bool other = (first >= 0x90 && first <= 0xbf) || (first >= 0xc4 && first <= 0xdf);
    return map ? c->head[1] >= 0x80 : other;
}

const char *const ckpt_flax_suffixes[] = {".msgpack", NULL};

/* --- by name --- */

int ckpt_flax_probe_file(struct ckpt_backend *dir, const char *path, struct ckpt_probe *ret)
{
    const char *slash = strrchr(path, '/'), *name = slash ? slash + 1 : path;
    if (ckpt_has_suffix(path, TEMPORARY))
        return probe_temporary(dir, path, name, ret);
    if (!is_step(name))
        return 0;
    int r = looks_so(dir, path);
    ret->bits = r == 1 ? 8 : 0;
    return r < 0 ? r : 0;
}

bool ckpt_flax_plain_name(const char *name)
{
    CKPT_AUTOFREE char *of = ckpt_has_suffix(name, SHARED) ? strndup(name, strlen(name) - strlen(SHARED)) : NULL;
    return of && (is_step(of) || ckpt_has_suffix(of, TEMPORARY));
}
