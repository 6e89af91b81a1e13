/* SPDX-License-Identifier: Apache-2.0 */
/* Private to item.c, strings.c, databases.c: an item that is being loaded. */
#ifndef CKPT_FORMAT_ORBAX_LOADING_H
#define CKPT_FORMAT_ORBAX_LOADING_H

#include "core/format/orbax/item.h"
#include "core/io/json.h"

#define ORBAX_MAX_TEXT ((size_t)64 << 20) /* bytes of a JSON text that is taken as a whole */

struct loading {
    struct orbax *o;
    struct orbax_item *item;
    struct ckpt_err *err;
    cJSON *strings;            /* of _strings.json, read when first needed */
    struct ckpt_tree *scratch; /* the msgpack file's tree, for leaves that it holds */
    int ocdbt;                 /* of _METADATA: -1 = not said */
    struct ckpt_buf types;     /* value_metadata_tree of _METADATA, JSON text */
};

/* strings.c */
int ckpt_orbax_set_text(struct ckpt_tree *t, uint32_t node, const char *text, size_t len) CKPT_MUST_USE;
/* The value of a leaf that is a string. */
int ckpt_orbax_add_string(struct loading *l, uint32_t node) CKPT_MUST_USE;
/* The msgpack file of 0.4.0 to 0.4.3 does not tell strings, which are elsewhere, from arrays. */
int ckpt_orbax_settle_strings(struct loading *l, uint32_t first) CKPT_MUST_USE;

/* databases.c */
int ckpt_orbax_open_database(struct loading *l, uint32_t first) CKPT_MUST_USE;
/* Orbax 0.3.5 to 0.4.1 took the name of an array for a path, and made a database in each directory of these. */
int ckpt_orbax_open_subs(struct loading *l, uint32_t first) CKPT_MUST_USE;

#endif
