/* SPDX-License-Identifier: Apache-2.0 */
/* References as text: "ref1 SHA256 OBJECT SIZE OFFSET STORED CODEC". And the first bytes of what they stand for. */
#include "core/commit/commit.h"

#include "core/base/path.h"
#include "core/base/util.h"
#include "core/io/disk.h"

#include <inttypes.h>
#include <stdio.h>
#include <sys/xattr.h>

void ckpt_ref_print(const struct ckpt_ref *ref, char ret[CKPT_REF_TEXT])
{
    char sha256[CKPT_HEX], object[CKPT_HEX];
    ckpt_hash_hex(ref->sha256, sha256);
    ckpt_hash_hex(ref->object, object);
    snprintf(ret, CKPT_REF_TEXT, "ref1 %s %s %" PRIu64 " %" PRIu64 " %" PRIu64 " %s", sha256, object, ref->size,
             ref->offset, ref->stored, ckpt_object_codec_name(ref->codec));
}

/* The next word; empty when there is none. */
static const char *take_word(char **p)
{
    char *word = *p;
    *p += strcspn(word, " ");
    if (**p)
        *(*p)++ = 0;
    return word;
}

static bool take_number(char **p, uint64_t *ret)
{
    const char *word = take_word(p);
    size_t n = strspn(word, "0123456789");
    if (!n || n > 19 || word[n])
        return false;
    *ret = strtoull(word, NULL, 10);
    return *ret <= CKPT_LEAF_MAX;
}

bool ckpt_ref_parse(const char *text, size_t len, struct ckpt_ref *ret)
{
    char copy[CKPT_REF_TEXT], *p = copy;
    struct ckpt_ref ref;
    if (len >= sizeof copy || memchr(text, 0, len))
        return false;
    memcpy(copy, text, len);
    copy[len] = 0;
    if (strcmp(take_word(&p), "ref1"))
        return false;
    if (!ckpt_hash_parse(take_word(&p), ref.sha256))
        return false;
    if (!ckpt_hash_parse(take_word(&p), ref.object))
        return false;
    if (!take_number(&p, &ref.size) || !take_number(&p, &ref.offset) || !take_number(&p, &ref.stored))
        return false;
    if (!ckpt_object_codec_by_name(take_word(&p), &ref.codec))
        return false;
    if (*p) /* there is more */
        return false;
    *ret = ref;
    return true;
}

int ckpt_ref_of(int fd, struct ckpt_ref *ret)
{
    char path[32], text[CKPT_REF_TEXT];
    ckpt_fd_path(path, fd);
    ssize_t n = getxattr(path, CKPT_REF_XATTR, text, sizeof text);
    if (n < 0) {
        bool has_none = errno == ENODATA || errno == EOPNOTSUPP;
        if (has_none)
            return 0;
        return errno == ERANGE ? -EUCLEAN : -errno;
    }
    return ckpt_ref_parse(text, (size_t)n, ret) ? 1 : -EUCLEAN;
}

int ckpt_head_keep(int fd, const struct ckpt_ref *ref)
{
    uint8_t value[CKPT_SHA256 + CKPT_HEAD], *head = value + CKPT_SHA256;
    ssize_t n = pread(fd, head, CKPT_MIN(CKPT_HEAD, ref->size), 0);
    if (n < 0)
        return -errno;
    if (n < 6 || memcmp(head, "\x93NUMPY", 6))
        return 0;
    memcpy(value, ref->sha256, CKPT_SHA256);
    return ckpt_disk_setxattr(fd, CKPT_HEAD_XATTR, value, CKPT_SHA256 + (size_t)n);
}

size_t ckpt_head_kept(int fd, const struct ckpt_ref *ref, uint8_t ret[CKPT_HEAD])
{
    uint8_t value[CKPT_SHA256 + CKPT_HEAD];
    ssize_t n = fgetxattr(fd, CKPT_HEAD_XATTR, value, sizeof value);
    if (n <= (ssize_t)CKPT_SHA256 || memcmp(value, ref->sha256, CKPT_SHA256))
        return 0;
    memcpy(ret, value + CKPT_SHA256, (size_t)n - CKPT_SHA256);
    return (size_t)n - CKPT_SHA256;
}
