/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What flax.training.checkpoints leaves in a folder: files PREFIX_STEP; PREFIXtmp, which is renamed when it is whole;
 * and folders PREFIX_STEP_gda, PREFIXtmp_gda with arrays that several processes share.
 */
#include "core/format/flax/probe.h"

#include "core/base/util.h"
#include "core/format/flax/array.h"
#include "core/format/step.h"

#include <stdio.h>

#define TEMPORARY "_tmp"
#define SHARED    "_gda"
#define LOOKED_AT 1024 /* names of a folder, so that many files of such names do not make a listing quadratic */

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

/* --- all of them --- */

int ckpt_flax_probe_file(struct ckpt_backend *dir, const char *path, struct ckpt_probe *ret)
{
    const char *slash = strrchr(path, '/'), *name = slash ? slash + 1 : path;
    if (ckpt_has_suffix(path, ".msgpack"))
        ret->bits = 64;
    else if (ckpt_has_suffix(path, TEMPORARY))
        return probe_temporary(dir, path, name, ret);
    else if (is_step(name)) {
        int r = looks_so(dir, path);
        ret->bits = r == 1 ? 8 : 0;
        return r < 0 ? r : 0;
    }
    return 0;
}

bool ckpt_flax_plain_name(const char *name)
{
    CKPT_AUTOFREE char *of = ckpt_has_suffix(name, SHARED) ? strndup(name, strlen(name) - strlen(SHARED)) : NULL;
    return of && (is_step(of) || ckpt_has_suffix(of, TEMPORARY));
}
