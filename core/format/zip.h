/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Zip archives (PKWARE's APPNOTE 6.3, with zip64), as far as NumPy and PyTorch write them: members stored or deflated.
 * Only the central directory is believed; what it says is checked against the local headers. Refcounted; immutable once
 * opened; any thread.
 */
#ifndef CKPT_FORMAT_ZIP_H
#define CKPT_FORMAT_ZIP_H

#include "core/codec/stream.h"

#define CKPT_ZIP_MAX_MEMBERS (1u << 22)
#define CKPT_ZIP_MAX_NAMES   ((size_t)64 << 20) /* bytes of all names */
#define CKPT_ZIP_NONE        UINT32_MAX

struct ckpt_zip_member {
    const char *name; /* the archive's; valid UTF-8 without NUL, NUL-terminated; never empty, may end in '/' */
    size_t name_len;
    uint64_t size;   /* bytes of the content */
    uint64_t stored; /* bytes in the archive */
    uint32_t crc;    /* CRC-32 of the content */
    bool deflated;
};

struct ckpt_zip;

/*
 * The archive in bytes [off, off + len) of a file, which is referenced. -EBADMSG: it ends too early (no end record, or
 * that speaks of more than is there); -EUCLEAN: malformed (overlapping or doubled members, names that are no UTF-8,
 * numbers that contradict each other); -EOPNOTSUPP: encrypted, of several disks, or another method than stored and
 * deflated. The order of members is that of the central directory.
 */
int ckpt_zip_open(struct ckpt_file *file, uint64_t off, uint64_t len, struct ckpt_zip **ret,
                  struct ckpt_err *err) CKPT_MUST_USE;
struct ckpt_zip *ckpt_zip_ref(struct ckpt_zip *z);
void ckpt_zip_unref(struct ckpt_zip *z);
uint32_t ckpt_zip_count(const struct ckpt_zip *z);
struct ckpt_zip_member ckpt_zip_member(const struct ckpt_zip *z, uint32_t i);
/* CKPT_ZIP_NONE: there is none. */
uint32_t ckpt_zip_find(const struct ckpt_zip *z, const char *name, size_t len);
/*
 * Where a member's stored bytes lie, with its local header checked (one small read, the first time), and how they are
 * decoded: not at all, or inflated and the CRC-32 checked at the end. The caller clears *ret.
 */
int ckpt_zip_payload(struct ckpt_zip *z, uint32_t i, struct ckpt_extent *ret, struct ckpt_codec_chain *ret_chain,
                     struct ckpt_err *err) CKPT_MUST_USE;
/* All of a member of at most max bytes, its CRC-32 checked; NUL-terminated beyond *ret_len, to be freed. -EFBIG when
 * larger. */
int ckpt_zip_read_all(struct ckpt_zip *z, uint32_t i, size_t max, uint8_t **ret, size_t *ret_len,
                      struct ckpt_err *err) CKPT_MUST_USE;
/* Read a member and check its CRC-32, with bounded memory. progress (may be NULL) is told of bytes as they are checked.
 */
int ckpt_zip_verify(struct ckpt_zip *z, uint32_t i, void (*progress)(void *arg, uint64_t bytes), void *arg,
                    struct ckpt_err *err) CKPT_MUST_USE;
size_t ckpt_zip_memory(const struct ckpt_zip *z);

#endif
