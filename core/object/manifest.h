/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The manifest of a step of the store: JSON, a line a node (docs/format.md, "Manifests"). Written from top to bottom,
 * read as a stream or one record at a time, so memory does not grow with it. One thread at a time for a writer;
 * reading: any thread.
 */
#ifndef CKPT_OBJECT_MANIFEST_H
#define CKPT_OBJECT_MANIFEST_H

#include "core/array/npy.h"
#include "core/object/object.h"
#include "core/tree/tree.h"

#define CKPT_MANIFEST_VERSION  1
#define CKPT_MANIFEST_ID       33                  /* of an id as text, with its NUL */
#define CKPT_LEAF_MAX          ((uint64_t)1 << 62) /* bytes of a leaf's file */
#define CKPT_MANIFEST_TEXT_MAX ((size_t)64 << 10)  /* bytes of a value's file; what has more is a blob */
#define CKPT_MANIFEST_XATTRS_MAX                                                                                       \
    ((size_t)256 << 10)                         /* bytes of a node's attributes, so that a record has less than a MiB */
#define CKPT_MANIFEST_TOLD_MAX     ((size_t)63) /* bytes of the name of a type, or of a PRNG */
#define CKPT_MANIFEST_LINE_MAX     ((uint32_t)1 << 20)
#define CKPT_MANIFEST_HEAD_MAX     ((size_t)16 << 20)
#define CKPT_MANIFEST_METADATA_MAX (CKPT_MANIFEST_HEAD_MAX / 2 - 4096)

/* One node. Strings are borrowed when written; ckpt_manifest_node_clear frees what reading made. */
struct ckpt_manifest_node {
    uint32_t parent; /* number of the directory it is in; the top is node 0, and not written as one: it has this record
                        as `top` */
    char *name;      /* as listed, with its suffix: "w.npy"; NULL: the top's */
    enum ckpt_node_kind kind;
    enum ckpt_container container; /* of a directory */
    uint32_t mode, uid, gid;       /* permission bits, owner */
    int64_t mtime_ns;
    char *xattrs; /* a JSON object of the user's own attributes (not user.ckpt.*), values in hex; NULL: none */
    /* leaves */
    uint64_t size;                /* bytes of the leaf's file */
    uint8_t sha256[CKPT_SHA256];  /* of the leaf's file; of a sparse one, the name of its object */
    uint8_t object[CKPT_SHA256];  /* where it is: its own object (equal to sha256), or a pack */
    uint64_t offset;              /* in the decoded object */
    enum ckpt_object_codec codec; /* of the object, for people */
    uint64_t stored;              /* bytes that it takes: of its own object; of its share of a pack, about */
    char *text;                   /* of a value: the very bytes of its file; no object then */
    /* arrays */
    struct ckpt_npy npy; /* of the header; the dtype is the true one, where descr does not tell it */
    /* what the bytes do not tell */
    char *type;      /* of a value: the dtype of its number; of a blob: what its bytes are ("Q4_0"); NULL: not told */
    bool shaped;     /* of a blob with a type: npy has its shape */
    char *prng_impl; /* of an array of random keys' data; NULL: it is none */
    bool whole;      /* it is a leaf, though it is named like a piece of an array (X@SLICE.npy) */
    uint32_t check;  /* read: a sum of the record's bytes, to know them by when they are read again */
};

void ckpt_manifest_node_clear(struct ckpt_manifest_node *n);
/* Is it a leaf whose SHA-256 is not known, since it is mostly a hole? */
bool ckpt_manifest_is_sparse(const struct ckpt_manifest_node *n);
/* May a leaf be told to be this: a name of a type that is a blob's, or of a PRNG? Printable ASCII without spaces. */
bool ckpt_told_ok(const char *text);
/* Is a value's text the number of a type? */
bool ckpt_told_fits(const char *type, const char *text);
/* A name that a node may have: not empty, "." or "..", at most 255 bytes, no '/'. */
bool ckpt_manifest_name_ok(const char *name);
/* The bytes of a file that may be a value: one JSON null, bool, number or string, as UTF-8, NaN and infinities as
 * Python writes them. */
bool ckpt_manifest_text_ok(const char *text, size_t len);
/* May a step have this metadata? -EINVAL with the reason: not one JSON object, nested more than 64 deep, too long. */
int ckpt_manifest_metadata_ok(const char *text, size_t len, struct ckpt_err *err) CKPT_MUST_USE;

struct ckpt_manifest_info {
    char *name;                /* the step's, when it was committed */
    uint64_t time_ns;          /* of the commit, since 1970 */
    char id[CKPT_MANIFEST_ID]; /* 32 hex digits, random: another commit is another step */
    char *metadata;            /* JSON object of the user's, or NULL */
    bool sparse;               /* there may be sparse leaves: its readers must know of them */
    bool whole;                /* there may be leaves that are named like pieces: who changes it must know of them */
    struct ckpt_manifest_node top; /* the step's own directory */
    uint64_t count;                /* read to the end: nodes, the top counted */
};
void ckpt_manifest_info_clear(struct ckpt_manifest_info *info);

/* --- writing: to a descriptor, through core/io/disk.h; not fsynced. -EINVAL for what could not be read again. An error
 * sticks --- */
struct ckpt_manifest_writer;
int ckpt_manifest_write_begin(int fd, const struct ckpt_manifest_info *info,
                              struct ckpt_manifest_writer **ret) CKPT_MUST_USE;
/* A directory before what is in it. *ret_number is the node's. */
int ckpt_manifest_write_node(struct ckpt_manifest_writer *w, const struct ckpt_manifest_node *n,
                             uint32_t *ret_number) CKPT_MUST_USE;
/* Writes the end (with the count and an XXH3-64 of all lines before it), and frees the writer. */
int ckpt_manifest_write_end(struct ckpt_manifest_writer *w) CKPT_MUST_USE;
void ckpt_manifest_write_abort(struct ckpt_manifest_writer *w);

/* --- reading --- */
/* The head alone. */
int ckpt_manifest_info(struct ckpt_file *file, struct ckpt_manifest_info *ret, struct ckpt_err *err) CKPT_MUST_USE;
/* All nodes but the top in the order of the file, with where each record lies. A nonzero result of visit ends the walk
 * and is returned. The end record's checksum has been checked when 0 is returned. -EUCLEAN malformed, -EBADMSG cut
 * short or a wrong checksum, -EOPNOTSUPP newer. */
typedef int ckpt_manifest_visit(void *arg, uint32_t number, const struct ckpt_manifest_node *n, uint64_t off,
                                uint32_t len);
int ckpt_manifest_each(struct ckpt_file *file, struct ckpt_manifest_info *ret_info, ckpt_manifest_visit *visit,
                       void *arg, struct ckpt_err *err) CKPT_MUST_USE;
/* One record that each() has told the place of. */
int ckpt_manifest_record(struct ckpt_file *file, uint64_t off, uint32_t len, struct ckpt_manifest_node *ret,
                         struct ckpt_err *err) CKPT_MUST_USE;

#endif
