/* SPDX-License-Identifier: Apache-2.0 */
#include "core/format/beside.h"

#include "core/base/grow.h"
#include "core/base/path.h"
#include "core/base/util.h"

#include <stdio.h>

struct walk {
    const struct ckpt_beside *b;
    unsigned count;
    struct ckpt_err *err;
};

/* Names of a directory, each after its type. */
struct names {
    char **names;
    size_t count, cap;
};

static int add_name(void *arg, const char *name, enum ckpt_ftype type)
{
    struct names *n = arg;
    if (n->count == CKPT_MAX_BESIDE)
        return 0;
    if (!CKPT_ROOM_FOR_ONE(n->names, n->count, n->cap))
        return -ENOMEM;
    char *copy = malloc(strlen(name) + 2);
    if (!copy)
        return -ENOMEM;
    *copy = (char)type;
    strcpy(copy + 1, name);
    n->names[n->count++] = copy;
    return 0;
}

static int by_name(const void *a, const void *b)
{
    return strcmp(*(char *const *)a + 1, *(char *const *)b + 1);
}

static int add_dir(struct walk *w, uint32_t parent, const char *dir, unsigned level);

static int add_subdir(struct walk *w, uint32_t node, const char *path, unsigned level)
{
    int found = w->b->below && !level ? w->b->below(ckpt_pins_dir(w->b->tree->pins), path) : 0;
    if (found < 0)
        return ckpt_no_memory(w->err);
    if (found) {
        w->b->tree->nodes[node].mark = CKPT_BELOW_MARK;
        return 0;
    }
    return level + 1 < CKPT_MAX_BESIDE_LEVELS ? add_dir(w, node, path, level + 1) : 0;
}

static int add_entry(struct walk *w, uint32_t parent, const char *dir, enum ckpt_ftype type, const char *name,
                     unsigned level)
{
    struct ckpt_tree *t = w->b->tree;
    char path[4096];
    struct ckpt_stat st;
    uint32_t node;
    if (w->count == CKPT_MAX_BESIDE || !ckpt_path_put(path, sizeof path, dir, name))
        return 0;
    if (type == CKPT_FT_LINK) /* one that leads to nothing, or out, is not shown */
        type = ckpt_backend_stat(ckpt_pins_dir(t->pins), path, &st) == 0 && st.type == CKPT_FT_FILE ? CKPT_FT_FILE
                                                                                                    : CKPT_FT_OTHER;
    if (type == CKPT_FT_OTHER || (!level && type == CKPT_FT_FILE && w->b->is_own(w->b->arg, name)))
        return 0;
    w->count++;
    enum ckpt_node_kind kind = type == CKPT_FT_DIR ? CKPT_NODE_DIR : CKPT_NODE_BLOB;
    int r = ckpt_tree_add(t, parent, name, strlen(name), false, kind, &node, w->err);
    if (r == 0 && kind == CKPT_NODE_DIR)
        return add_subdir(w, node, path, level);
    uint32_t string;
    if (r == 0 && ckpt_tree_string(t, path, strlen(path), &string) < 0)
        r = ckpt_no_memory(w->err);
    if (r == 0) {
        t->nodes[node].ref = string;
        t->nodes[node].mark = w->b->mark;
    }
    return r;
}

static int add_dir(struct walk *w, uint32_t parent, const char *dir, unsigned level)
{
    struct names n = {0};
    int r = ckpt_backend_list(ckpt_pins_dir(w->b->tree->pins), dir, add_name, &n);
    if (r < 0)
        r = ckpt_fail(w->err, -r, "%s: %s", dir, strerror(-r));
    if (r == 0 && n.count)
        qsort(n.names, n.count, sizeof *n.names, by_name);
    for (size_t i = 0; i < n.count; i++) {
        if (r == 0)
            r = add_entry(w, parent, dir, (enum ckpt_ftype) * n.names[i], n.names[i] + 1, level);
        free(n.names[i]);
    }
    free(n.names);
    return r;
}

int ckpt_add_beside(const struct ckpt_beside *b, struct ckpt_err *err)
{
    struct walk w = {.b = b, .err = err};
    return add_dir(&w, 0, "", 0);
}
