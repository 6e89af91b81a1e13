/* SPDX-License-Identifier: Apache-2.0 */
/* Private to the object files: the bytes at the end of an encoded object, and at the beginning of a sums file. */
#ifndef CKPT_OBJECT_OBJECT_FILE_H
#define CKPT_OBJECT_OBJECT_FILE_H

#include "core/object/object.h"

#define CKPT_OBJECT_FOOTER       96
#define CKPT_OBJECT_SUM          8 /* bytes of an XXH3-64 */
#define CKPT_SUMS_HEADER         56
#define CKPT_CHUNK_LOG2_MIN      12
#define CKPT_CHUNK_LOG2_MAX      24
#define CKPT_SPARSE_LOG2         16 /* of the blocks that a sparse object is named by: its chunks have one or more */
#define CKPT_OBJECT_TYPESIZE_MAX 255
#define CKPT_OBJECT_SIZE_MAX     ((uint64_t)INT64_MAX)

struct ckpt_object_footer {
    enum ckpt_object_codec codec;
    uint32_t chunk_log2, typesize;
    uint64_t size;   /* decoded */
    uint64_t chunks; /* what size and chunk_log2 make; of a sparse object, those that are there */
    uint64_t index;  /* where the index begins */
    uint8_t sha256[CKPT_SHA256];
};

uint64_t ckpt_chunk_count(uint64_t size, uint32_t chunk_log2);
/* The most that a chunk of so many decoded bytes takes, with its sum. */
uint64_t ckpt_object_bound(enum ckpt_object_codec codec, uint64_t chunk_bytes);

/* Words of the index: where each chunk begins, and the end of the last; of a sparse object also the number of each. */
uint64_t ckpt_object_index_words(const struct ckpt_object_footer *f);
void ckpt_object_footer_make(const struct ckpt_object_footer *f, uint8_t ret[CKPT_OBJECT_FOOTER]);
/* 1: the file is an encoded object of that hash, and *ret says how; 0: it is none, so a raw one; or an error. All
 * numbers are checked against each other and against the file's length. */
int ckpt_object_footer_read(struct ckpt_file *file, const uint8_t sha256[CKPT_SHA256], struct ckpt_object_footer *ret,
                            struct ckpt_err *err) CKPT_MUST_USE;

/* Exactly len bytes of a file that is to be stored. */
int ckpt_input_read(int fd, void *buf, size_t len, uint64_t off, struct ckpt_err *err) CKPT_MUST_USE;

void ckpt_sums_header_make(uint64_t size, const uint8_t sha256[CKPT_SHA256], uint8_t ret[CKPT_SUMS_HEADER]);
/* Of an object of `size` bytes. */
int ckpt_sums_header_read(struct ckpt_file *file, uint64_t size, const uint8_t sha256[CKPT_SHA256],
                          uint32_t *ret_chunk_log2, struct ckpt_err *err) CKPT_MUST_USE;

#endif
