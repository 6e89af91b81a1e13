/* SPDX-License-Identifier: Apache-2.0 */
/* What the files of ckptfs diff share: the two sides, how differences are told, and how leaves are compared. */
#ifndef FS_COMMANDS_DIFF_PRIVATE_H
#define FS_COMMANDS_DIFF_PRIVATE_H

#include "fs/commands/cli.h"
#include "fs/commands/compare.h"
#include "fs/commands/resolve.h"

struct fs_diff {
    struct fs_place side[2];
    bool json, meta;
    double rtol, atol;
    uint8_t *block[2]; /* FS_DIFF_BLOCK bytes */
    uint64_t told, differences;
    int status; /* of the first thing that could not be compared */
    struct fs_progress progress;
};

#define FS_DIFF_BLOCK ((size_t)4 << 20)

/* What both sides have under one path. */
struct fs_pair {
    const char *path;
    struct ckpt_attr at[2];
    cJSON *meta[2];
    const char *kind[2];
    bool is_plain[2]; /* a file of a plain folder: its name and its first bytes say what it is */
};

/* The end of a listed name that says of which kind it is; "" for kinds that have none. kind may be NULL. */
const char *fs_diff_suffix(const char *kind);

/* --- diff_tell.c --- */

/* type: "value", "dtype" and so on, of docs/reference.md. */
void fs_diff_tell_only(struct fs_diff *d, int side, const char *path, const char *kind);
void fs_diff_tell_texts(struct fs_diff *d, const char *type, const struct fs_pair *p, const char *a, const char *b);
/* The same of values that are JSON. */
void fs_diff_tell_json(struct fs_diff *d, const char *type, const struct fs_pair *p, const cJSON *a, const cJSON *b);
/* unit: "elements" or "bytes", of which there are so many. */
void fs_diff_tell_values(struct fs_diff *d, const struct fs_pair *p, const struct fs_compare *c, uint64_t count,
                         const char *unit);
/* A side could not be read; the rest is compared. */
void fs_diff_tell_error(struct fs_diff *d, int side, const char *path, int error, const struct ckpt_err *err);

/* --- diff_leaves.c --- */

/* Each compares two leaves of the same kind, and tells what differs and what cannot be read. */
void fs_diff_arrays(struct fs_diff *d, const struct fs_pair *p);
void fs_diff_values(struct fs_diff *d, const struct fs_pair *p);
void fs_diff_files(struct fs_diff *d, const struct fs_pair *p);

#endif
