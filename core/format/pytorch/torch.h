/* SPDX-License-Identifier: Apache-2.0 */
/* Private to the PyTorch readers: what both kinds of checkpoint have, and the leaves of their trees. */
#ifndef CKPT_FORMAT_PYTORCH_TORCH_H
#define CKPT_FORMAT_PYTORCH_TORCH_H

#include "core/array/share.h"
#include "core/format/format.h"
#include "core/format/pytorch/archive.h"
#include "core/format/pytorch/pytorch.h"
#include "core/format/shards.h"

#define TORCH_PAYLOADS    1024
#define TORCH_FILE_MARK   1 /* of blobs that are files */
#define TORCH_MEMBER_MARK 2 /* of blobs that are members of the archive */
#define TORCH_SAME_MARK   3 /* of objects that are shown elsewhere */
#define TORCH_RANGE_MARK  4 /* of blobs that are in the file of a pickle: the ref is a record */

struct torch {
    /* A node's ref: of an array, and of a value without text, where its record begins; of a blob, its bytes in the
     * strings, or with TORCH_FILE_MARK the path of its file, with TORCH_MEMBER_MARK its member; of an object, its class
     * in the strings, or with TORCH_SAME_MARK the node where it is shown. */
    struct ckpt_buf records;
    struct ckpt_layouts *layouts;
    struct torch_archive archive;   /* of a checkpoint that is a file */
    struct ckpt_file *file;         /* of a pickle by itself */
    struct ckpt_cache *cache;       /* of a TorchScript archive */
    struct ckpt_shards shards;      /* of a folder with an index */
    struct torch_archive *archives; /* of the shards; one that is closed is opened for each read */
    pthread_mutex_t lock;           /* what follows */
    struct torch_payload {
        size_t box;             /* where it is in the records; 0: none */
        uint64_t off;           /* of the elements in its file */
    } payloads[TORCH_PAYLOADS]; /* of boxes that were read: looking it up takes three reads */
};

/* A tree without nodes yet. */
int ckpt_torch_tree_new(const struct ckpt_tree_ops *ops, struct ckpt_pins *pins, struct ckpt_tree **ret,
                        struct ckpt_err *err) CKPT_MUST_USE;

/* --- leaves.c: the calls of struct ckpt_tree_ops --- */
int ckpt_torch_layout(struct ckpt_tree *t, uint32_t node, struct ckpt_array **ret, struct ckpt_err *err);
int ckpt_torch_chunk(struct ckpt_tree *t, uint32_t node, const struct ckpt_array *a, uint64_t index,
                     struct ckpt_extent *ret, struct ckpt_err *err);
int ckpt_torch_stored(struct ckpt_tree *t, uint32_t node, const struct ckpt_array *a, uint64_t *ret,
                      struct ckpt_err *err);
int ckpt_torch_blob(struct ckpt_tree *t, uint32_t node, struct ckpt_extent *ret, struct ckpt_err *err);
void ckpt_torch_describe(struct ckpt_tree *t, uint32_t node, struct ckpt_buf *json);
size_t ckpt_torch_memory(const struct ckpt_tree *t);
void ckpt_torch_close(struct ckpt_tree *t);

/* --- piece.c: archives in the files of a distributed checkpoint --- */
/* The file of a piece, pinned from now on; the caller unrefs. */
int ckpt_torch_piece_file(struct ckpt_tree *t, const struct torch_piece *p, struct ckpt_file **ret,
                          struct ckpt_err *err) CKPT_MUST_USE;
int ckpt_torch_piece_open(struct ckpt_tree *t, const struct torch_piece *p, struct torch_archive *ret,
                          struct ckpt_err *err) CKPT_MUST_USE;
/* The graph of the piece of a record. *ret_cost (which may be NULL): what it took, in bytes; also of a failure. */
int ckpt_torch_piece_load(struct ckpt_tree *t, size_t record, struct torch_graph *ret, uint64_t *ret_cost,
                          struct ckpt_err *err) CKPT_MUST_USE;

/* --- boxes.c: sharded tensors --- */
/* Their boxes must tile the tensor: -ENODATA for a hole, -EUCLEAN for one outside or an overlap. Reads nothing of the
 * pieces. */
int ckpt_torch_boxes_layout(struct ckpt_tree *t, size_t record, struct ckpt_array **ret,
                            struct ckpt_err *err) CKPT_MUST_USE;
/* All elements in C order. */
int ckpt_torch_boxes_chunk(struct ckpt_tree *t, size_t record, struct ckpt_extent *ret,
                           struct ckpt_err *err) CKPT_MUST_USE;

#endif
