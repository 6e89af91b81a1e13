/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The formats that are read, each behind one row of a table. A format says whether a directory or file is a checkpoint
 * of its own, and opens it as a tree.
 */
#ifndef CKPT_FORMAT_FORMAT_H
#define CKPT_FORMAT_FORMAT_H

#include "core/tree/chunk.h"
#include "core/tree/tree.h"

struct ckpt_probe {
    unsigned bits; /* verified; 0: not a checkpoint of this format */
    bool weak; /* counts only under the name of a step, in a root; a file: only as the source, else it is shown as it is
                */
    bool settled;         /* false: its parts do not fit together, as when it is being deleted */
    char unfinished[160]; /* why it is not finished; empty: it is */
};

/* How a file begins, from which a format says whether it is one of its own. */
#define CKPT_CONTENT_HEAD 512
struct ckpt_content {
    struct ckpt_file *file;
    bool is_own; /* its suffix is the format's */
    size_t len;  /* of head: all of a smaller file */
    uint8_t head[CKPT_CONTENT_HEAD];
};

/* Whether a directory below a folder is a checkpoint, or has one in it: 1, 0, or -ENOMEM. */
typedef int ckpt_below_fn(struct ckpt_backend *folder, const char *dir);

/* Where a checkpoint is. */
struct ckpt_opening {
    struct ckpt_pins *pins; /* of its directory */
    const char *name;       /* of the checkpoint in its directory, where it is a file or that holds several; else "" */
    struct ckpt_cache *cache; /* outlives the tree */
    bool flat;                /* names that the format joins with dots are kept whole */
    ckpt_below_fn *below;     /* NULL: what is below the folder belongs to the checkpoint */
};

struct ckpt_format {
    const char *name;
    int (*probe)(struct ckpt_backend *dir, struct ckpt_probe *ret); /* NULL: none of its checkpoints is a directory */
    /* Suffixes of names that the format has for itself, in lower case, NULL behind them. NULL: it has none. */
    const char *const *suffixes;
    /* Whether a file begins like one, whatever it is called: 0, or at least 2 bits. NULL: none of its checkpoints is a
     * file. */
    unsigned (*begins)(const struct ckpt_content *c);
    /* The same of a file with one of the suffixes, which no format's `begins` knows: true of one that is damaged where
     * it begins, or was cut to nothing. NULL: never. */
    bool (*is_damaged)(const struct ckpt_content *c);
    /* Of files with a suffix: weak, and known by the suffix alone where they are not the source. */
    bool weak;
    /* Whether a regular file is one, where the last part of its path means something without a suffix: bits stays 0, or
     * becomes at least 2. NULL: no names do. */
    int (*probe_file)(struct ckpt_backend *dir, const char *path, struct ckpt_probe *ret);
    int (*open)(const struct ckpt_opening *o, struct ckpt_tree **ret, struct ckpt_err *err);
    /* True for a name that this format gives to what is not finished; *ret_len: of the final name in it. NULL: it has
     * none. */
    bool (*unfinished_name)(const char *name, size_t *ret_len);
    /* True for a directory's name that this format gives to what belongs to a checkpoint and, with all that is in it,
     * is none. NULL: it has none. */
    bool (*plain_name)(const char *name);
};

/* The format whose probe verifies most, and its probe; NULL for a directory that is no checkpoint. An error of the
 * medium is returned. */
int ckpt_probe_dir(struct ckpt_backend *dir, const struct ckpt_format **ret_format, struct ckpt_probe *ret);
/* The same for a file, by what is in it. Only where any_name is true, since somebody named that very file, may it have
 * any name; else one that checkpoints have: a suffix of a format or one of many uses, or none at all. */
int ckpt_probe_file(struct ckpt_backend *dir, const char *path, bool any_name, const struct ckpt_format **ret_format,
                    struct ckpt_probe *ret);
/* For a step that is one by its name alone. */
const struct ckpt_format *ckpt_empty_format(void);
/* A name that some format gives to what is not finished. */
bool ckpt_unfinished_name(const char *name, size_t *ret_len);
/* A name that some format gives to directories that are never looked at for checkpoints. */
bool ckpt_plain_name(const char *name);

#endif
