/* SPDX-License-Identifier: Apache-2.0 */
#include "core/object/object_file.h"

#include "core/base/util.h"

#include <openssl/evp.h>
#include <xxhash.h>

#define PIECE                                                                                                          \
    ((size_t)128 << 10) /* is still in the processor's cache when the second sum is made of it; divides a chunk */

struct hashing {
    uint8_t *piece;
    EVP_MD_CTX *sha;
    XXH3_state_t *sum; /* NULL: not wanted */
    struct ckpt_buf *sums;
};

static int hash_piece(struct hashing *h, size_t len, bool ends_chunk, struct ckpt_err *err)
{
    if (!EVP_DigestUpdate(h->sha, h->piece, len))
        return ckpt_fail(err, EIO, "SHA-256 fails");
    if (!h->sum)
        return 0;
    XXH3_64bits_update(h->sum, h->piece, len);
    if (ends_chunk) {
        uint64_t sum = XXH3_64bits_digest(h->sum);
        ckpt_buf_add(h->sums, &sum, sizeof sum);
        XXH3_64bits_reset(h->sum);
    }
    return 0;
}

static int hash_range(struct hashing *h, int fd, uint64_t off, uint64_t len, const atomic_bool *cancel,
                      struct ckpt_err *err)
{
    for (uint64_t done = 0; done < len;) {
        if (cancel && atomic_load_explicit(cancel, memory_order_relaxed))
            return ckpt_fail(err, ECANCELED, "cancelled");
        size_t n = (size_t)CKPT_MIN((uint64_t)PIECE, len - done);
        int r = ckpt_input_read(fd, h->piece, n, off + done, err);
        if (r < 0)
            return r;
        done += n;
        r = hash_piece(h, n, done % CKPT_OBJECT_CHUNK == 0 || done == len, err);
        if (r < 0)
            return r;
    }
    return h->sums && ckpt_buf_error(h->sums) < 0 ? ckpt_fail(err, -ckpt_buf_error(h->sums), "out of memory") : 0;
}

int ckpt_object_hash(int fd, uint64_t off, uint64_t len, const atomic_bool *cancel, uint8_t ret[CKPT_SHA256],
                     struct ckpt_buf *sums, struct ckpt_err *err)
{
    struct hashing h = {
        .piece = malloc(PIECE), .sha = EVP_MD_CTX_new(), .sum = sums ? XXH3_createState() : NULL, .sums = sums};
    int r = 0;
    if (!h.piece || !h.sha || (sums && !h.sum) || !EVP_DigestInit_ex(h.sha, EVP_sha256(), NULL))
        r = ckpt_no_memory(err);
    if (r == 0 && h.sum)
        XXH3_64bits_reset(h.sum);
    if (r == 0)
        r = hash_range(&h, fd, off, len, cancel, err);
    uint8_t sha256[EVP_MAX_MD_SIZE];
    if (r == 0 && !EVP_DigestFinal_ex(h.sha, sha256, NULL))
        r = ckpt_fail(err, EIO, "SHA-256 fails");
    if (r == 0)
        memcpy(ret, sha256, CKPT_SHA256);
    free(h.piece);
    EVP_MD_CTX_free(h.sha);
    XXH3_freeState(h.sum);
    return r;
}
