/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a directory of the source holds, as the mount shows it: which subdirectories are checkpoints, which of them
 * steps, which are not finished. A snapshot, refcounted and immutable.
 */
#ifndef CKPT_SOURCE_LISTING_H
#define CKPT_SOURCE_LISTING_H

#include "core/format/format.h"
#include "core/format/step.h"

enum ckpt_entry_kind { CKPT_ENTRY_FILE, CKPT_ENTRY_DIR, CKPT_ENTRY_TREE, CKPT_ENTRY_LINK, CKPT_ENTRY_HIDDEN };

/* Small, since there may be 100,000 of them, and twice as many while a new listing takes the place of the old one. */
struct ckpt_entry {
    const char *name;                 /* this and other texts are in the listing's blocks */
    const char *hidden;               /* HIDDEN: why; else why its probe says that it is not finished, NULL: it is */
    const struct ckpt_format *format; /* TREE; FILE that has views */
    double number;
    struct ckpt_stat st;
    uint16_t bits; /* as its probe has them: see struct ckpt_probe */
    uint8_t kind;  /* enum ckpt_entry_kind */
    bool weak, settled;
    bool is_step; /* a finished step of this root */
    bool step_name;
    bool busy;       /* it changed while it was probed */
    bool unreadable; /* what it is cannot be told; by its name it may be a step */
    bool stored;     /* TREE of the root's store; st is the manifest's */
};

struct ckpt_listing_block;

struct ckpt_listing {
    atomic_uint refs;
    struct ckpt_stat dir;       /* when it was made */
    int64_t taken_ns;           /* CLOCK_REALTIME */
    struct ckpt_entry *entries; /* by name; a step of the store comes before anything else of its name */
    size_t count;
    struct ckpt_listing_block *blocks; /* of texts */
    bool shrunk;                       /* it has no stored steps any more: see ckpt_listing_shrink */
    bool root;
    bool native; /* it has a store; store_dir is its steps/ when it was listed */
    struct ckpt_stat store_dir;
    char *best;    /* the step of the store that its retention calls best; NULL: none */
    size_t latest; /* entry of the highest step; SIZE_MAX: none, or a file of that name is there */
};

/*
 * Of a checkpoint that is itself the source, one entry: under `path`, a file, or the backend's own top (""). It is a
 * TREE, or HIDDEN with the reason why it cannot be shown now: as a step of a root, but for its name, which says
 * nothing. What is known of it when it is opened; what it is now; and whether that can be another.
 */
int ckpt_listing_of_top(const char *path, const struct ckpt_stat *st, const struct ckpt_format *format,
                        struct ckpt_listing **ret) CKPT_MUST_USE;
int ckpt_listing_make_top(struct ckpt_backend *source, const char *path, const struct ckpt_listing *old,
                          struct ckpt_listing **ret) CKPT_MUST_USE;
bool ckpt_listing_top_current(struct ckpt_backend *source, const char *path, const struct ckpt_listing *l);

/* old (may be NULL) is what was known before: probes of what has not changed are taken from it. */
int ckpt_listing_make(struct ckpt_backend *source, const char *path, const struct ckpt_listing *old,
                      struct ckpt_listing **ret);
/* Nothing can have changed since it was made. */
bool ckpt_listing_current(struct ckpt_backend *source, const char *path, const struct ckpt_listing *l);
/* Before another one is made after it: if nobody else looks at it, it gives up the memory of what that does not ask of
 * it. It lists no directory then. */
void ckpt_listing_shrink(struct ckpt_listing *l);
struct ckpt_listing *ckpt_listing_ref(struct ckpt_listing *l);
void ckpt_listing_unref(struct ckpt_listing *l);
const struct ckpt_entry *ckpt_listing_find(const struct ckpt_listing *l, const char *name);

#endif
