/* SPDX-License-Identifier: Apache-2.0 */
#include "core/base/util.h"
#include "core/format/flax/flax.h"
#include "core/format/format.h"
#include "core/format/gguf/gguf.h"
#include "core/format/numpy/numpy.h"
#include "core/format/orbax/orbax.h"
#include "core/format/pytorch/pytorch.h"
#include "core/format/safetensors/safetensors.h"
#include "core/format/zarrs/zarrs.h"

#include <strings.h>

static const struct ckpt_format *const formats[] = {
    &ckpt_orbax_format,   &ckpt_flax_format,   &ckpt_safetensors_format, &ckpt_npy_format,  &ckpt_npz_format,
    &ckpt_pytorch_format, &ckpt_pickle_format, &ckpt_dcp_format,         &ckpt_gguf_format, &ckpt_zarrs_format,
};
#define FORMATS (sizeof formats / sizeof *formats)

int ckpt_probe_dir(struct ckpt_backend *dir, const struct ckpt_format **ret_format, struct ckpt_probe *ret)
{
    *ret_format = NULL;
    *ret = (struct ckpt_probe){.settled = true};
    for (size_t i = 0; i < FORMATS; i++) {
        struct ckpt_probe probe = {.settled = true};
        int r = formats[i]->probe ? formats[i]->probe(dir, &probe) : 0;
        if (r < 0)
            return r;
        if (probe.bits > ret->bits) {
            *ret = probe;
            *ret_format = formats[i];
        }
    }
    return 0;
}

/* --- files --- */

static const char *last_part(const char *path)
{
    const char *slash = strrchr(path, '/');
    return slash ? slash + 1 : path;
}

/* In any case of letters; a name that is nothing but a suffix has none. */
static bool has_suffix(const char *name, const char *suffix)
{
    size_t n = strlen(name), len = strlen(suffix);
    return n > len && !strcasecmp(name + n - len, suffix);
}

/* Copies to a Mac's disk leave such a file beside each: what the other file system had no room for. */
static bool is_of_mac(const char *name)
{
    return !strncmp(name, "._", 2);
}

static const struct ckpt_format *format_of_suffix(const char *name)
{
    for (size_t i = 0; i < FORMATS; i++)
        for (const char *const *suffix = formats[i]->suffixes; suffix && *suffix; suffix++)
            if (has_suffix(name, *suffix))
                return formats[i];
    return NULL;
}

/* A suffix that files of many kinds have, or none. */
static bool may_be_any(const char *name)
{
    static const char *const suffixes[] = {".bin", ".ckpt", ".pth.tar", ".th", ".pyth", ".pkl", ".pickle"};
    for (size_t i = 0; i < sizeof suffixes / sizeof *suffixes; i++)
        if (has_suffix(name, suffixes[i]))
            return true;
    return !strchr(name, '.');
}

static int read_head(struct ckpt_backend *dir, const char *path, struct ckpt_content *ret)
{
    int r = ckpt_backend_open(dir, path, &ret->file);
    if (r < 0)
        return r;
    ssize_t n = ckpt_file_read(ret->file, ret->head, sizeof ret->head, 0);
    if (n < 0)
        ckpt_file_unref(ret->file);
    ret->len = n < 0 ? 0 : (size_t)n;
    return n < 0 ? (int)n : 0;
}

/* own: the format that has the file's suffix. It is asked first, since it mostly need not look far. */
static void probe_content(struct ckpt_content *c, const struct ckpt_format *own, const struct ckpt_format **ret_format,
                          struct ckpt_probe *ret)
{
    *ret_format = own;
    c->is_own = true;
    ret->bits = own && own->begins ? own->begins(c) : 0;
    if (ret->bits)
        return;
    *ret_format = NULL;
    c->is_own = false;
    for (size_t i = 0; i < FORMATS; i++) {
        unsigned bits = formats[i]->begins ? formats[i]->begins(c) : 0;
        if (bits > ret->bits) {
            ret->bits = bits;
            *ret_format = formats[i];
        }
    }
    if (!ret->bits && own && own->is_damaged && own->is_damaged(c)) {
        ret->bits = 2;
        *ret_format = own;
    }
}

static int probe_by_name(struct ckpt_backend *dir, const char *path, const struct ckpt_format **ret_format,
                         struct ckpt_probe *ret)
{
    for (size_t i = 0; i < FORMATS; i++) {
        int r = formats[i]->probe_file ? formats[i]->probe_file(dir, path, ret) : 0;
        if (r < 0)
            return r;
        if (ret->bits) {
            *ret_format = formats[i];
            return 0;
        }
    }
    return 0;
}

static void take_by_suffix(const struct ckpt_format *own, const struct ckpt_format **ret_format, struct ckpt_probe *ret)
{
    *ret_format = own;
    ret->bits = 2;
    ret->weak = own->weak;
}

int ckpt_probe_file(struct ckpt_backend *dir, const char *path, bool any_name, const struct ckpt_format **ret_format,
                    struct ckpt_probe *ret)
{
    const char *name = last_part(path);
    const struct ckpt_format *own = format_of_suffix(name);
    struct ckpt_content c;
    *ret_format = NULL;
    *ret = (struct ckpt_probe){.settled = true};
    if (!any_name && is_of_mac(name))
        return 0;
    int r = probe_by_name(dir, path, ret_format, ret);
    if (r < 0 || ret->bits)
        return r;
    if (!any_name && own && own->weak)
        take_by_suffix(own, ret_format, ret);
    if (ret->bits || (!any_name && !own && !may_be_any(name)))
        return 0;
    r = read_head(dir, path, &c);
    if (r < 0 && (!own || r == -ENOENT || r == -ENOMEM))
        return r;
    if (r < 0) { /* why it cannot be read is told when it is opened */
        take_by_suffix(own, ret_format, ret);
        return 0;
    }
    probe_content(&c, own, ret_format, ret);
    ckpt_file_unref(c.file);
    ret->weak = *ret_format && (*ret_format)->weak;
    if (ret->weak && !any_name) { /* without its suffix it has no views */
        *ret = (struct ckpt_probe){.settled = true};
        *ret_format = NULL;
    }
    return 0;
}

/* --- names --- */

const struct ckpt_format *ckpt_empty_format(void)
{
    return &ckpt_orbax_format;
}

bool ckpt_unfinished_name(const char *name, size_t *ret_len)
{
    for (size_t i = 0; i < FORMATS; i++)
        if (formats[i]->unfinished_name && formats[i]->unfinished_name(name, ret_len))
            return true;
    return false;
}

bool ckpt_plain_name(const char *name)
{
    for (size_t i = 0; i < FORMATS; i++)
        if (formats[i]->plain_name && formats[i]->plain_name(name))
            return true;
    return false;
}
