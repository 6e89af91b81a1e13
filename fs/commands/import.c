/* SPDX-License-Identifier: Apache-2.0 */
/*
 * ckptfs import: a checkpoint of any format becomes a step of the store. Its files are written to a staging directory
 * as a mount would show them, and committed together.
 */
#include "fs/commands/cli.h"
#include "fs/commands/commands.h"
#include "fs/commands/interrupt.h"
#include "fs/commands/resolve.h"
#include "fs/commands/transfer.h"

#include "core/base/util.h"
#include "core/ckpt_store.h"

#include <getopt.h>

struct import {
    struct fs_place from;
    struct ckpt_store *store;
    const char *root, *step;
    struct fs_transfer transfer;
    char *metadata;  /* the user's, JSON; NULL: none */
    bool taken;      /* there is such a step already */
    bool committing; /* what fails then is the root */
};

/* --- where from --- */

static bool is_checkpoint(struct ckpt_source *src, uint64_t id)
{
    CKPT_AUTOFREE char *meta = NULL;
    size_t len;
    return ckpt_describe(src, id, &meta, &len, NULL) != -ENODATA;
}

/* -EINVAL for a directory that has checkpoints in it: a step is one. */
static int refuse_checkpoint(void *arg, const struct ckpt_dirent *e)
{
    struct import *m = arg;
    struct ckpt_attr at;
    if (e->type != CKPT_DIR || ckpt_lookup(m->from.src, m->from.at.id, e->name, &at, NULL) < 0)
        return 0;
    bool inside = is_checkpoint(m->from.src, at.id);
    ckpt_forget(m->from.src, at.id, 1);
    return inside ? -EINVAL : 0;
}

static int open_from(struct import *m, const char *path, struct ckpt_err *err)
{
    int r = fs_resolve(path, &m->from, err);
    if (r < 0)
        return r;
    if (m->from.at.type != CKPT_DIR)
        return ckpt_fail(err, EINVAL, "%s: a file, not a checkpoint", path);
    if (!is_checkpoint(m->from.src, m->from.at.id)) {
        r = fs_each_entry(m->from.src, m->from.at.id, refuse_checkpoint, m, err);
        if (r == -EINVAL)
            ckpt_fail(err, EINVAL, "%s is no checkpoint, but has checkpoints in it: name one of them", path);
    }
    m->transfer.src = m->from.src;
    return r;
}

/* --- where to --- */

/* path is cut: the root, and the step's name behind it. */
static int open_to(struct import *m, char *path, struct ckpt_err *err)
{
    size_t n = strlen(path);
    while (n > 1 && path[n - 1] == '/')
        path[--n] = 0;
    char *slash = strrchr(path, '/');
    m->step = slash ? slash + 1 : path;
    if (!ckpt_step_name(m->step, NULL))
        return ckpt_fail(err, EINVAL, "%s is not a step's name: " CKPT_STEP_RULE, m->step);
    if (slash)
        *slash = 0;
    m->root = ".";
    if (slash)
        m->root = *path ? path : "/";
    int r = ckpt_store_open(m->root, &m->store, err);
    if (r < 0)
        return r;
    m->taken = ckpt_store_has_step(m->store, m->step);
    return m->taken ? ckpt_fail(err, EEXIST, "%s: there is a step %s already", m->root, m->step) : 0;
}

/* --- the commit --- */

/* An attribute of the source, NUL-terminated, to be freed; NULL: there is none. */
static int read_attribute(struct import *m, const char *name, char **ret, struct ckpt_err *err)
{
    *ret = NULL;
    ssize_t n = ckpt_getxattr(m->from.src, m->from.at.id, name, NULL, NULL, 0);
    if (n == -ENODATA)
        return 0;
    CKPT_AUTOFREE char *text = malloc((size_t)CKPT_MAX(n, 0) + 1);
    if (!text)
        return ckpt_no_memory(err);
    if (n >= 0)
        n = ckpt_getxattr(m->from.src, m->from.at.id, name, NULL, text, (size_t)n);
    if (n < 0)
        return ckpt_fail(err, (int)-n, "%s of the source cannot be read: %s", name, strerror((int)-n));
    text[n] = 0;
    *ret = CKPT_STEAL(text);
    return 0;
}

/* What is known of the source as a whole: before its bytes are copied, which may take long. */
static int read_attributes(struct import *m, struct ckpt_err *err)
{
    CKPT_AUTOFREE char *format = NULL;
    int r = read_attribute(m, "user.ckpt.metadata", &m->metadata, err);
    if (r == 0)
        r = read_attribute(m, "user.ckpt.format", &format, err);
    if (r < 0)
        return r;
    m->transfer.own_attributes = format && !strcmp(format, "ckptfs"); /* no other keeps any */
    if (m->metadata && strcmp(m->metadata, "{}"))
        return ckpt_import_check_metadata(m->metadata, strlen(m->metadata), err);
    free(CKPT_STEAL(m->metadata));
    return 0;
}

static int commit(struct import *m, struct ckpt_import *to, struct ckpt_err *err)
{
    m->committing = true;
    int r = ckpt_import_commit(to, m->step, m->metadata, err);
    m->taken = r == -EEXIST;
    return r;
}

static int run(struct import *m, const char *from, char *to, struct ckpt_err *err)
{
    struct ckpt_import *import;
    int r = open_to(m, to, err);
    if (r == 0)
        r = open_from(m, from, err);
    if (r == 0)
        r = read_attributes(m, err);
    if (r < 0)
        return r;
    r = ckpt_import_begin(m->store, &import, err);
    if (r < 0) {
        m->transfer.unwritable = true;
        return r;
    }
    r = fs_transfer_contents(&m->transfer, &m->from.at, ckpt_import_dir(import), err);
    if (r == 0)
        r = commit(m, import, err);
    ckpt_import_end(import);
    return r;
}

/* It is committed; what the root's retention then says is no failure of it. */
static void prune(struct import *m)
{
    struct ckpt_err err = {0};
    if (ckpt_store_prune(m->store, false, NULL, NULL, &err) < 0)
        fprintf(stderr, "ckptfs import: the step is committed, but retention failed: %s\n", err.text);
}

static int finish(struct import *m, bool json, int r, const struct ckpt_err *err)
{
    if (r < 0) {
        int status = fs_fail("import", json, r, err);
        if (m->taken)
            return FS_USAGE;
        bool is_of_root = m->transfer.unwritable || (m->committing && status == FS_UNREACHABLE);
        return is_of_root ? FS_PARTLY : status;
    }
    if (json) {
        fs_json_pair(stdout, "{", "step", m->step);
        printf(",\"files\":%llu,\"bytes\":%llu}\n", (unsigned long long)m->transfer.files,
               (unsigned long long)m->transfer.bytes);
    }
    return fs_finish("import", FS_OK);
}

int fs_import_main(int argc, char **argv)
{
    static const struct option options[] = {{"json", no_argument, NULL, 'j'}, {0}};
    struct import m = {.transfer = {.max_depth = FS_REMOVABLE_DEPTH, .file_mode = 0600, .attributes = true}};
    struct ckpt_err err = {0};
    bool json = false;
    opterr = 0;
    for (int o; (o = getopt_long(argc, argv, "", options, NULL)) != -1;) {
        if (o != 'j')
            return fs_bad_option("import", argv);
        json = true;
    }
    if (argc - optind != 2)
        return fs_usage("import", "a source, and a root with the name of a step are wanted");
    CKPT_AUTOFREE char *to = strdup(argv[optind + 1]);
    if (!to)
        return fs_fail("import", json, -ENOMEM, NULL);
    ckpt_log_setup(CKPT_LOG_ERROR, 0);
    fs_interrupt_begin();
    int r = run(&m, argv[optind], to, &err);
    if (r == 0)
        prune(&m);
    int status = finish(&m, json, r, &err);
    fs_place_clear(&m.from);
    ckpt_store_close(m.store);
    free(m.metadata);
    if (r < 0)
        fs_interrupt_end();
    return status;
}
