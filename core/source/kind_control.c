/* SPDX-License-Identifier: Apache-2.0 */
/* .ckptfs and the control files in it. Their text is made when they are looked up. */
#include "core/base/util.h"
#include "core/source/kinds.h"

#include <stdio.h>

/* --- .ckptfs --- */

int ckpt_source_lookup_control(struct ckpt_source *src, const char *name, const struct ckpt_caller *who,
                               struct ckpt_attr *ret, struct ckpt_err *err)
{
    uint8_t *content;
    size_t len;
    pthread_mutex_lock(&src->lock);
    struct ckpt_stat st = src->root->st;
    pthread_mutex_unlock(&src->lock);
    st.mode &= 0444;
    int r = ckpt_source_control(src, name, who, &content, &len, err);
    if (r < 0)
        return r;
    st.mtime_ns = ckpt_realtime_ns();
    struct node *n = ckpt_node_new(CKPT_CONTROL, name, name, NODE_CONTROL, &st);
    if (!n) {
        free(content);
        return -ENOMEM;
    }
    n->content = (char *)content;
    n->content_len = (uint32_t)len; /* a buffer has at most 1 GiB */
    n->refs = 1;
    CKPT_GUARD(&src->lock);
    ckpt_node_insert(&src->nodes, n, NODE_NEXT);
    ckpt_node_unname(&src->nodes, n); /* each look-up makes one of its own */
    ckpt_source_node_attr(n, ret);
    return 0;
}

static int control_dir_lookup(struct ckpt_source *src, struct target *t, const char *name, struct ckpt_attr *ret,
                              struct ckpt_err *err)
{
    return ckpt_source_lookup_control(src, name, NULL, ret, err);
}

static int control_dir_next(struct ckpt_dir *d, uint64_t pos, struct ckpt_dirent *ret)
{
    for (uint64_t n = 0; ckpt_source_control_names[n]; n++)
        if (n == pos) {
            snprintf(ret->name, sizeof ret->name, "%s", ckpt_source_control_names[n]);
            ret->type = CKPT_FILE;
            ret->ino = 16 + n;
            ret->next = n + 1;
            return 1;
        }
    return 0;
}

static int control_dir_open(struct ckpt_dir *d, bool *ret_immutable, struct ckpt_err *err)
{
    d->next = control_dir_next;
    return 0;
}

/* --- its files --- */

static ssize_t control_read(struct ckpt_source *src, struct target *t, void *buf, size_t len, uint64_t off,
                            struct ckpt_err *err)
{
    const struct node *n = t->node;
    if (off >= n->content_len)
        return 0;
    len = CKPT_MIN(len, n->content_len - (size_t)off);
    if (len)
        memcpy(buf, n->content + off, len);
    return (ssize_t)len;
}

const struct kind ckpt_kind_control = {
    .read = control_read,
};

const struct kind ckpt_kind_control_dir = {
    .lookup = control_dir_lookup,
    .open_dir = control_dir_open,
};
