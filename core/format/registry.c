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

static const struct ckpt_format *const formats[] = {
    &ckpt_orbax_format,   &ckpt_flax_format, &ckpt_safetensors_format, &ckpt_npy_format,   &ckpt_npz_format,
    &ckpt_pytorch_format, &ckpt_dcp_format,  &ckpt_gguf_format,        &ckpt_zarrs_format,
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

int ckpt_probe_file(struct ckpt_backend *dir, const char *path, const struct ckpt_format **ret_format,
                    struct ckpt_probe *ret)
{
    *ret_format = NULL;
    *ret = (struct ckpt_probe){.settled = true};
    for (size_t i = 0; i < FORMATS && !ret->bits; i++) {
        int r = formats[i]->probe_file ? formats[i]->probe_file(dir, path, ret) : 0;
        if (r < 0)
            return r;
        if (ret->bits)
            *ret_format = formats[i];
    }
    return 0;
}

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
