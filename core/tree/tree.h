/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A checkpoint as a tree of nodes in one compact arena: containers, arrays, values and blobs, with their keys and
 * listed names. Built by a format, then immutable, but for the layouts of arrays, which are worked out on demand.
 * Node 0 is the top, a container. Numbers of nodes follow from the checkpoint's bytes alone, so a tree that is
 * built again has the same.
 */
#ifndef CKPT_TREE_TREE_H
#define CKPT_TREE_TREE_H

#include "core/array/layout.h"
#include "core/base/buf.h"
#include "core/base/rights.h"
#include "core/io/pins.h"

#include <pthread.h>

enum ckpt_node_kind { CKPT_NODE_DIR, CKPT_NODE_ARRAY, CKPT_NODE_VALUE, CKPT_NODE_BLOB, CKPT_NODE_KINDS };
enum ckpt_container { CKPT_DICT, CKPT_LIST, CKPT_TUPLE, CKPT_NAMEDTUPLE, CKPT_OBJECT, CKPT_CONTAINERS };

#define CKPT_MAX_DEPTH 256
#define CKPT_MAX_NODES (1u << 27)
#define CKPT_NO_NODE   UINT32_MAX
/* The mark of an empty container that stands for a directory of the checkpoint's folder which is no part of it: there
 * are checkpoints in it. */
#define CKPT_BELOW_MARK 0xff

struct ckpt_node {
    uint32_t parent, next; /* next sibling */
    uint32_t key;          /* in the strings */
    uint32_t name;         /* listed name where it is not the escaped key and the suffix, else 0 */
    union {
        struct {
            uint32_t first, last;
        }; /* container */
        struct {
            uint32_t text;   /* value: its JSON text in the strings, 0 if it is in an array */
            uint32_t layout; /* array, or value in an array: 1 + number of its layout, 0 = not known yet */
        };
    };
    uint32_t ref; /* the format's */
    uint8_t kind; /* enum ckpt_node_kind */
    union {
        uint8_t container; /* of a container: enum ckpt_container */
        uint8_t dtype;     /* of a value with a text: 1 + enum ckpt_dtype of its number, 0: what NumPy would give it */
    };
    uint8_t index; /* the key is a sequence index */
    uint8_t mark;  /* the format's */
};

struct ckpt_tree;

/* A value: its JSON text, and its element where it is a number or bool with an exact type. */
struct ckpt_value {
    enum ckpt_dtype dtype; /* CKPT_DT_OTHER: it has no element (strings, null, integers beyond 64 bits) */
    uint8_t element[16];
};

/* What the checkpoint keeps of a leaf or directory besides its content. */
struct ckpt_leaf_attrs {
    uint32_t mode, uid, gid; /* permission bits, owner */
    int64_t mtime_ns;
};

/* What a format does for its trees. All but close may run at once. */
struct ckpt_tree_ops {
    const char *name;      /* "orbax" */
    const char *framework; /* whose tensors they are, as loaders of safetensors ask for it: "pt"; NULL: they have no
                              name for it */
    /* The layout of an array (or of a value kept in one); the tree caches it. */
    int (*layout)(struct ckpt_tree *tree, uint32_t node, struct ckpt_array **ret, struct ckpt_err *err);
    /* Where chunk `index` of an array is stored. 1: nowhere, it holds the fill value; -ENODATA: it should be there, and
     * is not. */
    int (*chunk)(struct ckpt_tree *tree, uint32_t node, const struct ckpt_array *a, uint64_t index,
                 struct ckpt_extent *ret, struct ckpt_err *err);
    /* Bytes that an array takes in the source. A format with `file` is asked of any leaf, with `a` NULL. */
    int (*stored)(struct ckpt_tree *tree, uint32_t node, const struct ckpt_array *a, uint64_t *ret,
                  struct ckpt_err *err);
    int (*blob)(struct ckpt_tree *tree, uint32_t node, struct ckpt_extent *ret, struct ckpt_err *err);
    /* The listed file's own bytes, where the format keeps them as they are; NULL: they are made from layout or value.
     */
    int (*file)(struct ckpt_tree *tree, uint32_t node, struct ckpt_extent *ret, struct ckpt_err *err);
    /* Of a node; NULL: they are those of the checkpoint. */
    int (*attrs)(struct ckpt_tree *tree, uint32_t node, struct ckpt_leaf_attrs *ret, struct ckpt_err *err);
    /* Who may read a node; whole: and all that is in it. 1, or NULL: who may read the checkpoint. */
    int (*rights)(struct ckpt_tree *tree, uint32_t node, bool whole, struct ckpt_rights *ret, struct ckpt_err *err);
    /* Keep what a reader of the leaf will need open; NULL: nothing to do. */
    void (*pin)(struct ckpt_tree *tree, uint32_t node);
    /* Append members (`,"sharding":...`) to a leaf's metadata; NULL: none. */
    void (*describe)(struct ckpt_tree *tree, uint32_t node, struct ckpt_buf *json);
    /* Check what the format has of checksums and bounds beyond its leaves; NULL: nothing. */
    int (*verify)(struct ckpt_tree *tree, void (*progress)(void *arg, uint64_t bytes), void *arg, struct ckpt_err *err);
    /* Bytes of memory of its own. */
    size_t (*memory)(const struct ckpt_tree *tree);
    void (*close)(struct ckpt_tree *tree);
};

struct ckpt_tree {
    const struct ckpt_tree_ops *ops;
    void *priv;             /* the format's */
    struct ckpt_pins *pins; /* the checkpoint's files; referenced */
    uint64_t id;            /* of this opening, for the chunk cache */
    char *metadata;         /* JSON of the user's, or NULL */
    char *fault;            /* what is wrong with the checkpoint although it opens; NULL: nothing is known */
    bool exact; /* the format knows all names (ckpt_tree_set_name): none is changed, and two equal ones are an error */
    struct ckpt_node *nodes;
    uint32_t count, cap;
    char *strings; /* NUL-terminated, each after a u32 length; offset 0 is the empty string */
    uint32_t strings_len, strings_cap;
    uint32_t *table;      /* lookup by listed name; CKPT_NO_NODE = free */
    uint32_t table_size;  /* a power of two */
    void *builder;        /* until ckpt_tree_finish */
    pthread_mutex_t lock; /* the layouts */
    struct ckpt_array **layouts;
    uint32_t layout_count, layout_cap;
    pthread_mutex_t rights_lock; /* who may read its files, once that was asked for */
    struct ckpt_rights rights;
    bool rights_known;
    atomic_uint refs;
};

/* --- building: one thread --- */
int ckpt_tree_new(const struct ckpt_tree_ops *ops, struct ckpt_pins *pins, struct ckpt_tree **ret);
/* Intern a string; 0 when it is empty. */
int ckpt_tree_string(struct ckpt_tree *t, const char *text, size_t len, uint32_t *ret);
/* A new leaf, or a container (an existing one of that key is returned, unless the tree is exact). -EUCLEAN beyond the
 * limits. */
int ckpt_tree_add(struct ckpt_tree *t, uint32_t parent, const char *key, size_t len, bool index,
                  enum ckpt_node_kind kind, uint32_t *ret, struct ckpt_err *err) CKPT_MUST_USE;
/* The container of a key, or CKPT_NO_NODE. Of a tree that is being built, and not exact. */
uint32_t ckpt_tree_find_dir(struct ckpt_tree *t, uint32_t parent, const char *key, size_t len);
/* A container beside another one of the same key, as 1 and "1" of a Python dict are: it gets another name. */
int ckpt_tree_add_other(struct ckpt_tree *t, uint32_t parent, const char *key, size_t len, uint32_t *ret,
                        struct ckpt_err *err) CKPT_MUST_USE;
/*
 * A node whose key is joined of several with dots ("layer.0.weight"): each part but the last a container, which is made
 * where it is not there yet. The key stays whole where a part would be empty, where the way is barred by a leaf, where
 * the node would get a listed name that is taken, where it would be nested too deeply, or where there are millions of
 * nodes already. So all keys of a container that have no dot, and what is in them, must be added before those that have
 * one, and before the first of either: ckpt_tree_note_names.
 */
int ckpt_tree_add_dotted(struct ckpt_tree *t, uint32_t parent, const char *key, size_t len, enum ckpt_node_kind kind,
                         uint32_t *ret, struct ckpt_err *err) CKPT_MUST_USE;
/* Before the first node is added: keep account of the listed names, for ckpt_tree_add_dotted. */
void ckpt_tree_note_names(struct ckpt_tree *t);
/* The listed name of a node, where it is not the escaped key with its suffix. */
int ckpt_tree_set_name(struct ckpt_tree *t, uint32_t node, const char *name, size_t len,
                       struct ckpt_err *err) CKPT_MUST_USE;
/* Names, and the table for lookups. No node may be added afterwards. */
int ckpt_tree_finish(struct ckpt_tree *t, struct ckpt_err *err) CKPT_MUST_USE;

/* How an opening ends: with r 0 *ret gets the tree, else that is closed. Returns r. */
int ckpt_tree_give(struct ckpt_tree *t, int r, struct ckpt_tree **ret);

/* --- use --- */
struct ckpt_tree *ckpt_tree_ref(struct ckpt_tree *t);
void ckpt_tree_unref(struct ckpt_tree *t);
const char *ckpt_tree_text(const struct ckpt_tree *t, uint32_t string, size_t *ret_len);
/* The node of a listed name in a container; CKPT_NO_NODE if there is none. */
uint32_t ckpt_tree_lookup(const struct ckpt_tree *t, uint32_t parent, const char *name, size_t len);
/* The same with a suffix that is not in `name`. */
uint32_t ckpt_tree_lookup_suffix(const struct ckpt_tree *t, uint32_t parent, const char *name, size_t len,
                                 const char *suffix);
/* The listed name; appended. */
void ckpt_tree_name(const struct ckpt_tree *t, uint32_t node, struct ckpt_buf *buf);
const char *ckpt_node_suffix(const struct ckpt_node *n); /* ".npy", ".json" or "" */
/* The layout of an array, or of a value that is in one. The caller unrefs. */
int ckpt_tree_layout(struct ckpt_tree *t, uint32_t node, struct ckpt_array **ret, struct ckpt_err *err) CKPT_MUST_USE;
/* A value's JSON text (appended, without newline) and, in *ret (may be NULL), its element. */
int ckpt_tree_value(struct ckpt_tree *t, uint32_t node, struct ckpt_buf *json, struct ckpt_value *ret,
                    struct ckpt_err *err) CKPT_MUST_USE;
/* Bytes of memory that the tree holds, about. */
size_t ckpt_tree_memory(const struct ckpt_tree *t);

#endif
