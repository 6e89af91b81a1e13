/* SPDX-License-Identifier: Apache-2.0 */
#include "core/base/util.h"
#include "core/format/pytorch/torch.h"

#define MEMBER_COST 64
#define DAMAGE_COST ((uint64_t)1 << 20) /* at most, of a piece that cannot be read */

int ckpt_torch_piece_file(struct ckpt_tree *t, const struct torch_piece *p, struct ckpt_file **ret,
                          struct ckpt_err *err)
{
    size_t len;
    const char *path = ckpt_tree_text(t, p->file, &len);
    int r = strlen(path) == len ? ckpt_pins_open(t->pins, path, ret) : -EUCLEAN;
    if (r == -EUCLEAN)
        return ckpt_fail(err, EUCLEAN, "%.200s: not a path inside of the checkpoint", path);
    if (r == -ENOENT || r == -ENOTDIR)
        return ckpt_fail(err, ENODATA, "%.200s, which has data of it, is missing", path);
    return r < 0 ? ckpt_fail(err, -r, "%.200s: %s", path, strerror(-r)) : 0;
}

int ckpt_torch_piece_open(struct ckpt_tree *t, const struct torch_piece *p, struct torch_archive *ret,
                          struct ckpt_err *err)
{
    struct ckpt_file *f;
    size_t len;
    int r = ckpt_torch_piece_file(t, p, &f, err);
    if (r < 0)
        return r;
    if (p->off > f->st.size || p->len > f->st.size - p->off)
        r = ckpt_fail(err, EBADMSG, "the file ends before the piece does (%llu bytes at offset %llu)",
                      (unsigned long long)p->len, (unsigned long long)p->off);
    if (r == 0)
        r = ckpt_torch_archive_open(f, p->off, p->len, ret, err);
    ckpt_file_unref(f);
    return r < 0 ? ckpt_fail_in(err, -r, "%.200s", ckpt_tree_text(t, p->file, &len)) : 0;
}

int ckpt_torch_piece_load(struct ckpt_tree *t, size_t record, struct torch_graph *ret, uint64_t *ret_cost,
                          struct ckpt_err *err)
{
    struct torch *torch = t->priv;
    struct torch_piece piece;
    struct torch_archive archive;
    struct ckpt_buf aside = CKPT_BUF_INIT;
    ckpt_torch_get_piece(&torch->records, record, &piece);
    uint64_t members = 0;
    int r = ckpt_torch_piece_open(t, &piece, &archive, err);
    if (r == 0) {
        members = ckpt_zip_count(archive.zip);
        /* The records are immutable once the tree is finished; then the graph is only looked at for its errors. */
        r = ckpt_torch_archive_load(&archive, t->builder ? &torch->records : &aside, record + 1, ret, err);
        ckpt_torch_archive_close(&archive);
        ckpt_buf_clear(&aside);
    }
    if (ret_cost)
        *ret_cost = r < 0 ? CKPT_MIN(piece.len, DAMAGE_COST) : ret->len + members * MEMBER_COST;
    return r;
}
