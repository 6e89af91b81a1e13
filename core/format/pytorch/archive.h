/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Where the objects and storages of a checkpoint are: in the zip archive that torch.save writes (one folder with
 * data.pkl, and the storages under data/), or in what it wrote before PyTorch 1.6. Immutable once opened and loaded;
 * any thread.
 */
#ifndef CKPT_FORMAT_PYTORCH_ARCHIVE_H
#define CKPT_FORMAT_PYTORCH_ARCHIVE_H

#include "core/format/pytorch/graph.h"
#include "core/format/pytorch/record.h"
#include "core/format/pytorch/stream.h"
#include "core/format/zip.h"

struct torch_archive {
    struct ckpt_file *ranges;    /* of which storages are ranges; NULL: of none */
    struct torch_stream *stream; /* NULL: a zip archive */
    struct ckpt_zip *zip;
    const char *folder; /* the archive's, with the slash; folder_len bytes */
    size_t folder_len;
    bool big_endian;
    bool script; /* of torch.jit.save */
};

/* The file as a whole, whichever of both it is. Errors as of ckpt_zip_open; -EOPNOTSUPP also for what torch.save wrote
 * otherwise. */
int ckpt_torch_archive_open_file(struct ckpt_file *file, struct torch_archive *ret, struct ckpt_err *err) CKPT_MUST_USE;
/* The zip archive in bytes [off, off + len) of a file. */
int ckpt_torch_archive_open(struct ckpt_file *file, uint64_t off, uint64_t len, struct torch_archive *ret,
                            struct ckpt_err *err) CKPT_MUST_USE;
struct torch_archive ckpt_torch_archive_ref(const struct torch_archive *a); /* to be closed */
void ckpt_torch_archive_close(struct torch_archive *a);
/* A zip archive of which some folder holds a data.pkl. */
bool ckpt_torch_archive_probe(struct ckpt_file *file);
/* Its objects, of a file once; see ckpt_torch_pickle_load. */
int ckpt_torch_archive_load(const struct torch_archive *a, struct ckpt_buf *records, uint64_t number,
                            struct torch_graph *ret, struct ckpt_err *err) CKPT_MUST_USE;

/* Those that the program of a TorchScript archive mentions. */
int ckpt_torch_archive_load_constants(const struct torch_archive *a, struct ckpt_buf *records, struct torch_graph *ret,
                                      struct ckpt_err *err) CKPT_MUST_USE;

/* The layout of a tensor that has no fault. Reads nothing of an archive that is not compressed. */
int ckpt_torch_archive_layout(const struct torch_archive *a, const struct torch_tensor *t, struct ckpt_array **ret,
                              struct ckpt_err *err) CKPT_MUST_USE;
/* Where its elements are, in the only chunk of that layout. */
int ckpt_torch_archive_chunk(const struct torch_archive *a, const struct torch_tensor *t, struct ckpt_extent *ret,
                             struct ckpt_err *err) CKPT_MUST_USE;
/* Bytes that the elements take, about. */
uint64_t ckpt_torch_archive_stored(const struct torch_archive *a, const struct torch_tensor *t,
                                   const struct ckpt_array *layout);
/* Reads all of it, and checks every member's CRC-32, of those too that no leaf shows. */
int ckpt_torch_archive_verify(const struct torch_archive *a, void (*progress)(void *arg, uint64_t bytes), void *arg,
                              struct ckpt_err *err) CKPT_MUST_USE;
size_t ckpt_torch_archive_memory(const struct torch_archive *a);

#endif
