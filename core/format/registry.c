/* SPDX-License-Identifier: Apache-2.0 */
#include "core/base/util.h"
#include "core/format/flax/flax.h"
#include "core/format/format.h"
#include "core/format/gguf/gguf.h"
#include "core/format/numpy/numpy.h"
#include "core/format/orbax/orbax.h"
#include "core/format/pytorch/pytorch.h"
#include "core/format/safetensors/safetensors.h"

static const struct ckpt_reader *const readers[] = {
    &ckpt_orbax_reader, &ckpt_flax_reader,    &ckpt_safetensors_reader, &ckpt_npy_reader,
    &ckpt_npz_reader,   &ckpt_pytorch_reader, &ckpt_dcp_reader,         &ckpt_gguf_reader,
};
#define READERS (sizeof readers / sizeof *readers)

int ckpt_probe_dir(struct ckpt_backend *dir, const struct ckpt_reader **ret_reader, struct ckpt_probe *ret)
{
    *ret_reader = NULL;
    *ret = (struct ckpt_probe){.settled = true};
    for (size_t i = 0; i < READERS; i++) {
        struct ckpt_probe probe = {.settled = true};
        int r = readers[i]->probe ? readers[i]->probe(dir, &probe) : 0;
        if (r < 0)
            return r;
        if (probe.bits > ret->bits) {
            *ret = probe;
            *ret_reader = readers[i];
        }
    }
    return 0;
}

int ckpt_probe_file(struct ckpt_backend *dir, const char *path, const struct ckpt_reader **ret_reader,
                    struct ckpt_probe *ret)
{
    *ret_reader = NULL;
    *ret = (struct ckpt_probe){.settled = true};
    for (size_t i = 0; i < READERS && !ret->bits; i++) {
        int r = readers[i]->probe_file ? readers[i]->probe_file(dir, path, ret) : 0;
        if (r < 0)
            return r;
        if (ret->bits)
            *ret_reader = readers[i];
    }
    return 0;
}

const struct ckpt_reader *ckpt_empty_reader(void)
{
    return &ckpt_orbax_reader;
}

bool ckpt_unfinished_name(const char *name, size_t *ret_len)
{
    for (size_t i = 0; i < READERS; i++)
        if (readers[i]->unfinished_name && readers[i]->unfinished_name(name, ret_len))
            return true;
    return false;
}

bool ckpt_plain_name(const char *name)
{
    for (size_t i = 0; i < READERS; i++)
        if (readers[i]->plain_name && readers[i]->plain_name(name))
            return true;
    return false;
}
