/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Private to ocdbt: from stored bytes to a manifest or a B+tree node, without files and without the cache. A node is
 * immutable; its arrays hold entries column by column, so that 200,000 entries are a handful of allocations and a
 * search touches only key offsets and keys.
 */
#ifndef CKPT_FORMAT_OCDBT_NODE_H
#define CKPT_FORMAT_OCDBT_NODE_H

#include "core/base/err.h"

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define CKPT_OCDBT_BODY_MAX     ((size_t)512 << 20)
#define CKPT_OCDBT_ENVELOPE_MIN 18 /* magic, length, version, compression, crc */
#define CKPT_OCDBT_OFFSET_MAX   ((uint64_t)INT64_MAX)
#define CKPT_OCDBT_KEY_MAX      65535                 /* of a whole key */
#define CKPT_OCDBT_PATH_MAX     65535                 /* of a whole path */
#define CKPT_OCDBT_ENTRIES_MAX  ((uint32_t)1 << 20)   /* of a node, and of a data file table */
#define CKPT_OCDBT_INLINE_MAX   ((uint64_t)1 << 20)   /* of a value in a node */
#define CKPT_OCDBT_EXPANDED_MAX ((uint64_t)128 << 20) /* keys of a node, or paths of a table, prefixes repeated */

enum ckpt_ocdbt_magic { CKPT_OCDBT_MANIFEST = 0x0cdb3a2a, CKPT_OCDBT_NODE = 0x0cdb20de };

/* Reads numbers off a body. Errors stick: `bad` is set and everything reads as 0. */
struct ckpt_ocdbt_reader {
    const uint8_t *p, *end;
    bool bad;
};
uint64_t ckpt_ocdbt_varint(struct ckpt_ocdbt_reader *r, uint64_t max);
uint8_t ckpt_ocdbt_u8(struct ckpt_ocdbt_reader *r);
int ckpt_ocdbt_fail_short(struct ckpt_err *err);                         /* what a bad reader comes to */
const uint8_t *ckpt_ocdbt_take(struct ckpt_ocdbt_reader *r, size_t len); /* NULL when so many are not there */

/* A data file table: whole paths, the transitive path in front. */
struct ckpt_ocdbt_files {
    uint32_t count;
    char *heap;     /* paths, each NUL-terminated */
    uint32_t *path; /* where in the heap */
    uint16_t *base; /* so much of the path is the transitive path of nodes in the file */
    size_t bytes;
};
int ckpt_ocdbt_files_parse(struct ckpt_ocdbt_reader *r, const char *transitive, size_t transitive_len,
                           struct ckpt_ocdbt_files *ret, struct ckpt_err *err) CKPT_MUST_USE;
void ckpt_ocdbt_files_clear(struct ckpt_ocdbt_files *files);
static inline const char *ckpt_ocdbt_path(const struct ckpt_ocdbt_files *files, uint32_t i)
{
    return files->heap + files->path[i];
}

/* Which node, and what comes down to it from its parent. All of it is the node's identity. */
struct ckpt_ocdbt_ref {
    char *path;
    uint32_t base; /* transitive path of the node: so much of path */
    uint64_t off, len;
    uint8_t height;
    uint8_t *prefix; /* of all its keys */
    uint32_t prefix_len;
};
/* prefix is a ++ b. */
int ckpt_ocdbt_ref_init(struct ckpt_ocdbt_ref *ref, const char *path, uint32_t base, uint64_t off, uint64_t len,
                        uint8_t height, const uint8_t *a, size_t a_len, const uint8_t *b, size_t b_len) CKPT_MUST_USE;
int ckpt_ocdbt_ref_copy(struct ckpt_ocdbt_ref *ref, const struct ckpt_ocdbt_ref *from) CKPT_MUST_USE;
void ckpt_ocdbt_ref_clear(struct ckpt_ocdbt_ref *ref);
bool ckpt_ocdbt_ref_same(const struct ckpt_ocdbt_ref *a, const struct ckpt_ocdbt_ref *b);
uint64_t ckpt_ocdbt_ref_hash(const struct ckpt_ocdbt_ref *ref);

#define CKPT_OCDBT_INLINE UINT32_MAX

struct ckpt_ocdbt_node {
    atomic_uint refs;
    struct ckpt_ocdbt_ref ref;
    struct ckpt_ocdbt_files files;
    uint32_t count; /* at least 1 */
    uint8_t *keys;
    uint32_t *key;    /* count + 1 offsets into keys */
    uint32_t *file;   /* of the value or child; CKPT_OCDBT_INLINE: in `values` */
    uint64_t *pos;    /* in the file or in values */
    uint64_t *len;    /* of the value or the child */
    uint16_t *common; /* height > 0: so much of the key is common to all keys of the child */
    uint8_t *values;
    size_t bytes; /* memory that it takes */
};
/* Takes body over. */
int ckpt_ocdbt_node_parse(const struct ckpt_ocdbt_ref *ref, uint8_t *body, size_t len, struct ckpt_ocdbt_node **ret,
                          struct ckpt_err *err) CKPT_MUST_USE;
struct ckpt_ocdbt_node *ckpt_ocdbt_node_ref(struct ckpt_ocdbt_node *node);
void ckpt_ocdbt_node_unref(struct ckpt_ocdbt_node *node);
static inline const uint8_t *ckpt_ocdbt_key(const struct ckpt_ocdbt_node *node, uint32_t i, size_t *ret_len)
{
    *ret_len = node->key[i + 1] - node->key[i];
    return node->keys + node->key[i];
}
/* The first entry whose key is >= the given one (relative to the node's prefix), or count. */
uint32_t ckpt_ocdbt_lower_bound(const struct ckpt_ocdbt_node *node, const uint8_t *key, size_t len);
int ckpt_ocdbt_compare(const uint8_t *a, size_t a_len, const uint8_t *b, size_t b_len);
/* a ++ b against c. */
int ckpt_ocdbt_compare_joined(const uint8_t *a, size_t a_len, const uint8_t *b, size_t b_len, const uint8_t *c,
                              size_t c_len);
bool ckpt_ocdbt_begins_with(const uint8_t *key, size_t len, const uint8_t *prefix, size_t prefix_len);

/* What a database's manifest says of its newest version. */
struct ckpt_ocdbt_manifest {
    bool numbered; /* all of it but this is in files of their own, one a generation */
    bool empty;    /* the version has no root */
    struct ckpt_ocdbt_ref root;
};
int ckpt_ocdbt_manifest_parse(const uint8_t *data, size_t len, struct ckpt_ocdbt_manifest *ret,
                              struct ckpt_err *err) CKPT_MUST_USE;

/* Checks the envelope of all `len` bytes and takes the body, decompressed, out of it: fresh memory. */
int ckpt_ocdbt_envelope(const uint8_t *data, size_t len, enum ckpt_ocdbt_magic magic, uint8_t **ret, size_t *ret_len,
                        struct ckpt_err *err) CKPT_MUST_USE;

#endif
