/* SPDX-License-Identifier: Apache-2.0 */
#include "core/format/format.h"
#include "core/format/orbax/orbax.h"

static const struct ckpt_reader *const readers[] = {
    &ckpt_orbax_reader,
};

int ckpt_probe_dir(struct ckpt_backend *dir, const struct ckpt_reader **ret_reader, struct ckpt_probe *ret)
{
    *ret_reader = NULL;
    *ret = (struct ckpt_probe){.settled = true};
    for (size_t i = 0; i < sizeof readers / sizeof *readers; i++) {
        struct ckpt_probe probe = {.settled = true};
        int r = readers[i]->probe(dir, &probe);
        if (r < 0)
            return r;
        if (probe.bits > ret->bits) {
            *ret = probe;
            *ret_reader = readers[i];
        }
    }
    return 0;
}

const struct ckpt_reader *ckpt_empty_reader(void)
{
    return &ckpt_orbax_reader;
}

bool ckpt_unfinished_name(const char *name, size_t *ret_len)
{
    for (size_t i = 0; i < sizeof readers / sizeof *readers; i++)
        if (readers[i]->unfinished_name(name, ret_len))
            return true;
    return false;
}
