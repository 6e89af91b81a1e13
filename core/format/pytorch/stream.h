/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What torch.save wrote before PyTorch 1.6, and still writes when it is asked to: pickles one after another (a magic
 * number, a version, facts about the machine, the objects, the keys of the storages), then the storages, each after
 * the number of its elements. Refcounted; immutable once its objects were loaded; any thread.
 */
#ifndef CKPT_FORMAT_PYTORCH_STREAM_H
#define CKPT_FORMAT_PYTORCH_STREAM_H

#include "core/format/pytorch/graph.h"
#include "core/io/extent.h"

struct torch_stream;

/* Does it begin with the magic number? */
bool ckpt_torch_stream_probe(struct ckpt_file *file);
/* The bytes [off, end) of a file, which is referenced. Reads what is in front of the objects. */
int ckpt_torch_stream_open(struct ckpt_file *file, uint64_t off, uint64_t end, struct torch_stream **ret,
                           struct ckpt_err *err) CKPT_MUST_USE;
struct torch_stream *ckpt_torch_stream_ref(struct torch_stream *s);
void ckpt_torch_stream_unref(struct torch_stream *s);
/* Its objects, as ckpt_torch_pickle_load has them, once; where the storages are is known from then on. -EBADMSG: the
 * file ends too early. */
int ckpt_torch_stream_load(struct torch_stream *s, struct ckpt_buf *records, uint64_t number, struct torch_graph *ret,
                           struct ckpt_err *err) CKPT_MUST_USE;
/* The bytes of a storage, little-endian. False: there is none of that key. */
bool ckpt_torch_stream_storage(const struct torch_stream *s, uint64_t key, struct ckpt_extent *ret);
/* Reads all storages. */
int ckpt_torch_stream_verify(struct torch_stream *s, void (*progress)(void *arg, uint64_t bytes), void *arg,
                             struct ckpt_err *err) CKPT_MUST_USE;
size_t ckpt_torch_stream_memory(const struct torch_stream *s);

#endif
