/* SPDX-License-Identifier: Apache-2.0 */
/* Private to core/source: an open directory, of whatever kind. One thread at a time. */
#ifndef CKPT_SOURCE_DIR_H
#define CKPT_SOURCE_DIR_H

#include "core/source/source.h"

#include <dirent.h>

struct dir_names {
    char (*names)[256];
    uint64_t *inos;
    enum ckpt_type *types;
    size_t count, cap;
};

struct ckpt_dir {
    struct ckpt_source *src;
    uint64_t id;          /* what is listed; not the target's, where a staged copy stands for that */
    struct target target; /* held until the directory is closed */
    int (*next)(struct ckpt_dir *d, uint64_t pos, struct ckpt_dirent *ret);
    uint32_t node;                /* in a tree */
    struct ckpt_listing *listing; /* of a source directory; with a reference */
    DIR *entries;                 /* of a staged directory */
    dev_t dev;                    /* that it is on */
    struct dir_names names; /* staged steps of a root, behind the listing; or all that a directory of the files view has
                             */
};

typedef int source_name_fn(void *arg, const char *name, uint64_t ino, enum ckpt_type type);
/* A source_name_fn for &d->names. */
int ckpt_source_note_name(void *arg, const char *name, uint64_t ino, enum ckpt_type type);
bool ckpt_source_has_name(const struct dir_names *names, const char *name);
/* d->names as entries, the first at position `first`. */
int ckpt_source_next_name(struct ckpt_dir *d, uint64_t pos, uint64_t first, struct ckpt_dirent *ret);
/* The entry's name, escaped where the mount's top has one like it. */
void ckpt_source_set_name(const struct ckpt_dir *d, struct ckpt_dirent *ret, const char *name);

#endif
