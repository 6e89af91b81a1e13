/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Files that are mostly holes. Their name is a hash of what is in them and where, since a SHA-256 of all their bytes
 * would have to go through the zeros one by one. See docs/format.md, "Sparse objects".
 */
#include "core/object/object_file.h"

#include "core/base/util.h"

#include <openssl/evp.h>
#include <unistd.h>
#include <xxhash.h>

#define MAGIC "ckptfs sparse 1\n"
#define BLOCK ((size_t)1 << CKPT_SPARSE_LOG2) /* is hashed when it is not all zeros */

bool ckpt_object_wants_sparse(uint64_t size, uint64_t stored)
{
    return size > stored && size - stored >= CKPT_SPARSE_HOLES;
}

static bool is_zero(const uint8_t *p, size_t len)
{
    return !p[0] && !memcmp(p, p + 1, len - 1);
}

/* --- the name --- */

int ckpt_sparse_name_begin(EVP_MD_CTX *md, uint64_t size)
{
    return EVP_DigestInit_ex(md, EVP_sha256(), NULL) == 1 && EVP_DigestUpdate(md, MAGIC, strlen(MAGIC)) == 1 &&
                   EVP_DigestUpdate(md, &size, sizeof size) == 1
               ? 0
               : -EIO;
}

int ckpt_sparse_name_add(EVP_MD_CTX *md, const uint8_t *data, size_t len, uint64_t off)
{
    int found = 0;
    for (size_t at = 0; at < len; at += BLOCK) {
        size_t n = CKPT_MIN(len - at, BLOCK);
        uint64_t number = (off + at) / BLOCK;
        if (is_zero(data + at, n))
            continue;
        found = 1;
        if (EVP_DigestUpdate(md, &number, sizeof number) != 1 || EVP_DigestUpdate(md, data + at, n) != 1)
            return -EIO;
    }
    return found;
}

int ckpt_sparse_name_end(EVP_MD_CTX *md, uint8_t ret[CKPT_SHA256])
{
    uint8_t sha256[EVP_MAX_MD_SIZE];
    if (EVP_DigestFinal_ex(md, sha256, NULL) != 1)
        return -EIO;
    for (unsigned i = 0; i < CKPT_SHA256;
         i++) /* no file has this SHA-256 by design: it would be that of another file's description */
        ret[i] = (uint8_t)~sha256[i];
    return 0;
}

/* --- of a file --- */

/* Where data begin, at off or behind it; where the file system cannot tell, all are. */
static uint64_t next_data(int fd, uint64_t off, uint64_t size)
{
    off_t at = lseek(fd, (off_t)off, SEEK_DATA);
    if (at < 0)
        return errno == ENXIO ? size : off;
    return CKPT_MIN((uint64_t)at, size);
}

static int add_chunk(EVP_MD_CTX *md, int fd, uint8_t *buf, uint64_t chunk, uint64_t size, struct ckpt_buf *present,
                     struct ckpt_err *err)
{
    uint64_t begin = chunk * CKPT_OBJECT_CHUNK;
    size_t len = (size_t)CKPT_MIN(CKPT_OBJECT_CHUNK, size - begin);
    int r = ckpt_input_read(fd, buf, len, begin, err);
    if (r < 0)
        return r;
    r = ckpt_sparse_name_add(md, buf, len, begin);
    if (r <= 0)
        return r < 0 ? ckpt_fail(err, EIO, "SHA-256 fails") : 0;
    const uint64_t words[2] = {chunk, XXH3_64bits(buf, len)};
    ckpt_buf_add(present, words, sizeof words);
    return ckpt_buf_error(present) < 0 ? ckpt_fail(err, -ckpt_buf_error(present), "out of memory") : 0;
}

int ckpt_object_hash_sparse(int fd, uint64_t size, const atomic_bool *cancel, uint8_t ret[CKPT_SHA256],
                            struct ckpt_buf *present, struct ckpt_err *err)
{
    EVP_MD_CTX *md = EVP_MD_CTX_new();
    CKPT_AUTOFREE uint8_t *buf = malloc(CKPT_OBJECT_CHUNK);
    int r = md && buf && ckpt_sparse_name_begin(md, size) == 0 ? 0 : ckpt_no_memory(err);
    for (uint64_t off = 0; r == 0 && (off = next_data(fd, off, size)) < size;) {
        uint64_t chunk = off / CKPT_OBJECT_CHUNK;
        if (cancel && atomic_load_explicit(cancel, memory_order_relaxed))
            r = ckpt_fail(err, ECANCELED, "cancelled");
        else
            r = add_chunk(md, fd, buf, chunk, size, present, err);
        off = (chunk + 1) * CKPT_OBJECT_CHUNK;
    }
    if (r == 0 && ckpt_sparse_name_end(md, ret) < 0)
        r = ckpt_fail(err, EIO, "SHA-256 fails");
    EVP_MD_CTX_free(md);
    return r;
}
