/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Objects of the store: immutable payloads named by the SHA-256 of what they decode to (docs/format.md, "Objects").
 * Codec none: the very bytes, with the checksums of their chunks in a file beside it. Else: encoded chunks, an index, a
 * footer. Reading gives a ckpt_file of the decoded bytes, random access by chunks through the cache. Immutable; any
 * thread.
 */
#ifndef CKPT_OBJECT_OBJECT_H
#define CKPT_OBJECT_OBJECT_H

#include "core/io/pins.h"
#include "core/tree/chunk.h"

#include <openssl/types.h>

#define CKPT_SHA256       32
#define CKPT_HEX          65                   /* characters of a hash in hex, with the NUL */
#define CKPT_OBJECT_CHUNK ((uint64_t)1 << 20)  /* decoded bytes of a chunk of a leaf */
#define CKPT_PACK_CHUNK   ((uint64_t)64 << 10) /* of a pack, from which small leaves are read */

/* Numbers are those of the footer. */
enum ckpt_object_codec {
    CKPT_OBJECT_NONE,
    CKPT_OBJECT_LZ4,
    CKPT_OBJECT_BLOSC,
    CKPT_OBJECT_SPARSE,
    CKPT_OBJECT_CODECS,
    CKPT_OBJECT_AUTO = 255
};
const char *ckpt_object_codec_name(enum ckpt_object_codec codec); /* "none", "lz4", "blosc", "sparse", "auto" */
bool ckpt_object_codec_by_name(const char *name, enum ckpt_object_codec *ret);
/* One that a user may ask for. */
bool ckpt_object_codec_choice(const char *name, enum ckpt_object_codec *ret);

struct ckpt_object_info {
    uint8_t sha256[CKPT_SHA256]; /* of the decoded bytes; of a sparse object the name that it has instead */
    uint64_t size;               /* of them */
    uint64_t stored;             /* of the object's file */
    enum ckpt_object_codec codec;
};

void ckpt_hash_hex(const uint8_t sha256[CKPT_SHA256], char ret[CKPT_HEX]);
bool ckpt_hash_parse(const char *hex, uint8_t ret[CKPT_SHA256]); /* exactly 64 lower-case digits */
/* "ab/abcd...": the path below objects/. 68 bytes with the NUL. */
#define CKPT_OBJECT_PATH 72
void ckpt_object_path(const uint8_t sha256[CKPT_SHA256], char ret[CKPT_OBJECT_PATH]);

/*
 * --- writing ---
 * Inputs are descriptors of files whose bytes do not change meanwhile (a file that got shorter is -EBADMSG). Memory: a
 * few chunks. Output goes through core/io/disk.h; nothing is fsynced here. *cancel (may be NULL) set by another thread
 * makes them end with -ECANCELED.
 */

/* The hash of [off, off + len) of a file; and, where sums is given, the XXH3-64 of each of its chunks of
 * CKPT_OBJECT_CHUNK bytes appended to it, little-endian. */
int ckpt_object_hash(int fd, uint64_t off, uint64_t len, const atomic_bool *cancel, uint8_t ret[CKPT_SHA256],
                     struct ckpt_buf *sums, struct ckpt_err *err) CKPT_MUST_USE;
/* What `auto` makes of a file: a few chunks of it are encoded, and CKPT_OBJECT_NONE comes back if that saves less than
 * a tenth. codec is what to use when it does. */
enum ckpt_object_codec ckpt_object_sample(int fd, uint64_t off, uint64_t len, enum ckpt_object_codec codec,
                                          unsigned typesize);
/* What an object is made of. */
struct ckpt_object_input {
    int fd;
    uint64_t off, len;              /* the bytes of the file; off is 0 for a sparse object */
    enum ckpt_object_codec codec;   /* LZ4 or BLOSC; not looked at for a sparse object */
    unsigned typesize;              /* of BLOSC: bytes of an element */
    uint64_t chunk_bytes;           /* not looked at for a sparse object */
    const uint8_t *sha256;          /* the object's name, known already */
    const struct ckpt_buf *sums;    /* as ckpt_object_hash made them, for files that others may write to; or NULL */
    const struct ckpt_buf *present; /* of a sparse object: as ckpt_object_hash_sparse made it */
    const atomic_bool *cancel;      /* or NULL */
};
/* The whole encoded object into `out`. *ret_stored: its length. -EBUSY: a chunk of CKPT_OBJECT_CHUNK bytes is not what
 * it was when the sums were made. */
int ckpt_object_encode(const struct ckpt_object_input *in, int out, uint64_t *ret_stored,
                       struct ckpt_err *err) CKPT_MUST_USE;
/* The sums file of a payload stored as it is: from the sums of ckpt_object_hash. */
int ckpt_object_write_sums(int out, uint64_t size, const uint8_t sha256[CKPT_SHA256], const struct ckpt_buf *sums,
                           struct ckpt_err *err) CKPT_MUST_USE;

/*
 * A file with holes of CKPT_SPARSE_HOLES bytes and more is a sparse object, in which the holes are left out. Its name
 * is no SHA-256 of its bytes: these would have to be hashed one by one. stored: bytes that the file takes.
 */
#define CKPT_SPARSE_HOLES ((uint64_t)1 << 30)
bool ckpt_object_wants_sparse(uint64_t size, uint64_t stored);
/* The name; and, appended to present, of each chunk of CKPT_OBJECT_CHUNK bytes that is not all zeros its number and its
 * XXH3-64. Holes are not read. */
int ckpt_object_hash_sparse(int fd, uint64_t size, const atomic_bool *cancel, uint8_t ret[CKPT_SHA256],
                            struct ckpt_buf *present, struct ckpt_err *err) CKPT_MUST_USE;
/* The object, into `out`: of the chunks that are present. -EBUSY: one is not what it was. */
int ckpt_object_encode_sparse(const struct ckpt_object_input *in, int out, uint64_t *ret_stored,
                              struct ckpt_err *err) CKPT_MUST_USE;
/* The name from bytes that come in order, at multiples of the size of a chunk; what is not added is zeros. _add: 1 if
 * there is anything but zeros. */
int ckpt_sparse_name_begin(EVP_MD_CTX *md, uint64_t size) CKPT_MUST_USE;
int ckpt_sparse_name_add(EVP_MD_CTX *md, const uint8_t *data, size_t len, uint64_t off) CKPT_MUST_USE;
int ckpt_sparse_name_end(EVP_MD_CTX *md, uint8_t ret[CKPT_SHA256]) CKPT_MUST_USE;

/*
 * --- reading ---
 * dir is the store's directory (.ckptstore). An object is looked for in objects/, then in trash/objects/; -ENOENT when
 * it is in neither. Sums are in objects/ab/HASH.sums. Errors of what is damaged: -EBADMSG, -EUCLEAN; of a newer version
 * or unknown codec: -EOPNOTSUPP.
 */

/* What a stored object is, from its footer and length alone. `size`: the decoded length that it must have, or
 * UINT64_MAX. */
int ckpt_object_stat(struct ckpt_file *file, const uint8_t sha256[CKPT_SHA256], uint64_t size,
                     struct ckpt_object_info *ret, struct ckpt_err *err) CKPT_MUST_USE;
/* The decoded bytes as a file (its st.size is the decoded length). Each chunk's checksum is checked when it is first
 * read. The files are pinned in `pins`. The cache must outlive the file. */
int ckpt_object_open(struct ckpt_pins *pins, struct ckpt_cache *cache, const uint8_t sha256[CKPT_SHA256], uint64_t size,
                     struct ckpt_file **ret, struct ckpt_err *err) CKPT_MUST_USE;
/* The same of an object that a staged step holds: pins is of its hold/ (docs/format.md). -ENOENT: it does not. */
int ckpt_object_open_held(struct ckpt_pins *pins, struct ckpt_cache *cache, const uint8_t sha256[CKPT_SHA256],
                          uint64_t size, struct ckpt_file **ret, struct ckpt_err *err) CKPT_MUST_USE;
/* The descriptor and true for an object that is stored as its very bytes, so that the kernel may be given it. */
bool ckpt_object_raw_fd(struct ckpt_file *object, int *ret_fd);

#endif
