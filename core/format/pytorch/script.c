/* SPDX-License-Identifier: Apache-2.0 */
#include "core/format/pytorch/script.h"

#include "core/base/util.h"
#include "core/format/pytorch/nodes.h"
#include "core/format/zip_content.h"

#define CONSTANTS "constants"

/* --- the constants --- */

static int add_constants(struct ckpt_tree *t, bool flat, struct ckpt_err *err)
{
    struct torch *torch = t->priv;
    struct torch_graph g;
    int r = ckpt_torch_archive_load_constants(&torch->archive, &torch->records, &g, err);
    if (r < 0)
        return ckpt_fail_in(err, -r, CONSTANTS ".pkl");
    bool any = ckpt_torch_kind(&g, g.top) != TORCH_TUPLE || ckpt_torch_count(&g, g.top);
    if (any)
        r = ckpt_torch_nodes_add_under(&(struct torch_nodes){.tree = t, .records = &torch->records, .flat = flat}, &g,
                                       CONSTANTS, err);
    ckpt_torch_graph_clear(&g);
    return r;
}

/* --- files --- */

/* In the folder of the archive: what is shown as leaves, or only says how to read it. */
static bool is_own(const char *name)
{
    static const char *const files[] = {"data.pkl",  CONSTANTS ".pkl",  "version",
                                        "byteorder", ".format_version", ".storage_alignment"};
    static const char *const folders[] = {"data/", CONSTANTS "/", ".data/"};
    for (size_t i = 0; i < sizeof files / sizeof *files; i++)
        if (!strcmp(name, files[i]))
            return true;
    for (size_t i = 0; i < sizeof folders / sizeof *folders; i++)
        if (!strncmp(name, folders[i], strlen(folders[i])))
            return true;
    return false;
}

/* The files are added one after another, mostly folder by folder. */
struct files {
    struct ckpt_tree *tree;
    uint32_t leaves;  /* nodes there were before the first file */
    const char *last; /* of the folder at the top that came last: its name, and its node */
    size_t last_len;
    uint32_t node;
    struct ckpt_err *err;
};

/* A folder at the top. The module may have a container of that name, which is not the same. */
static int enter_top(struct files *f, const char *name, size_t len, uint32_t *ret)
{
    if (f->last && f->last_len == len && !memcmp(f->last, name, len)) {
        *ret = f->node;
        return 0;
    }
    int r = ckpt_tree_add(f->tree, 0, name, len, false, CKPT_NODE_DIR, ret, f->err);
    if (r == 0 && *ret < f->leaves)
        r = ckpt_tree_add_other(f->tree, 0, name, len, ret, f->err);
    f->last = name;
    f->last_len = len;
    f->node = *ret;
    return r;
}

static int add_file(struct files *f, uint32_t member, const char *name)
{
    uint32_t parent = 0, node;
    int r = 0;
    for (const char *slash; r == 0 && (slash = strchr(name, '/')); name = slash + 1) {
        size_t len = (size_t)(slash - name);
        r = parent ? ckpt_tree_add(f->tree, parent, name, len, false, CKPT_NODE_DIR, &node, f->err)
                   : enter_top(f, name, len, &node);
        parent = node;
    }
    if (r < 0 || !*name)
        return r;
    r = ckpt_tree_add(f->tree, parent, name, strlen(name), false, CKPT_NODE_BLOB, &node, f->err);
    if (r < 0)
        return r;
    f->tree->nodes[node].ref = member;
    f->tree->nodes[node].mark = TORCH_MEMBER_MARK;
    return 0;
}

static int add_files(struct ckpt_tree *t, struct ckpt_err *err)
{
    const struct torch_archive *a = &((struct torch *)t->priv)->archive;
    struct files f = {.tree = t, .leaves = t->count, .err = err};
    int r = 0;
    for (uint32_t i = 0, n = ckpt_zip_count(a->zip); i < n && r == 0; i++) {
        const char *name = ckpt_zip_member(a->zip, i).name + a->folder_len;
        if (*name && !is_own(name))
            r = add_file(&f, i, name);
    }
    return r;
}

int ckpt_torch_script_add(struct ckpt_tree *t, bool flat, struct ckpt_err *err)
{
    const struct torch *torch = t->priv;
    if (!torch->archive.script)
        return 0;
    int r = add_constants(t, flat, err);
    return r < 0 ? r : add_files(t, err);
}

int ckpt_torch_script_blob(struct ckpt_tree *t, uint32_t node, struct ckpt_extent *ret, struct ckpt_err *err)
{
    const struct torch *torch = t->priv;
    return ckpt_zip_content(torch->archive.zip, t->nodes[node].ref, torch->cache,
                            &(struct ckpt_chunk_key){t->id, 1, node}, ret, err);
}
