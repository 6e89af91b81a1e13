/* SPDX-License-Identifier: Apache-2.0 */
/* A step of files that a program writes in one go: a staging directory without a name, and its commit. */
#include "core/ckpt_store.h"

#include "core/base/util.h"
#include "core/commit/commit.h"
#include "core/commit/work.h"

#include <unistd.h>

struct ckpt_import {
    struct ckpt_work work;
};

int ckpt_import_check_metadata(const char *json, size_t len, struct ckpt_err *err)
{
    return ckpt_manifest_metadata_ok(json, len, err);
}

int ckpt_import_begin(struct ckpt_store *s, struct ckpt_import **ret, struct ckpt_err *err)
{
    CKPT_AUTOFREE struct ckpt_import *import = malloc(sizeof *import);
    if (!import)
        return ckpt_no_memory(err);
    int r = ckpt_work_begin(s, &import->work, err);
    if (r < 0)
        return r;
    *ret = CKPT_STEAL(import);
    return 0;
}

int ckpt_import_dir(const struct ckpt_import *import)
{
    return import->work.tree;
}

int ckpt_import_commit(struct ckpt_import *import, const char *step, const char *metadata, struct ckpt_err *err)
{
    const struct ckpt_work *w = &import->work;
    long cpus = sysconf(_SC_NPROCESSORS_ONLN);
    struct ckpt_commit c = {
        .store = w->store,
        .hold = {w->store, w->hold},
        .work = w->dir,
        .tree = w->tree,
        .name = step,
        .codec = w->store->config.codec,
        .metadata = metadata,
        .threads = cpus > 0 ? (unsigned)cpus : 1,
    };
    return ckpt_commit_run(&c, err);
}

void ckpt_import_end(struct ckpt_import *import)
{
    ckpt_work_end(&import->work);
    free(import);
}
