/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What is in a checkpoint's directory: items, groups of items, and what is no one's but the user's. The items of a step
 * are the top's containers, but for a lone `default`, whose tree is the top's own. An item of one JSON file is the blob
 * ITEM.json. Files and folders of others keep their names, and come last: of two equal listed names the tree's stays.
 */
#include "core/base/log.h"
#include "core/base/util.h"
#include "core/io/json.h"
#include "core/format/beside.h"
#include "core/format/orbax/item.h"

#include <stdio.h>

#define MAX_STEP_METADATA ((size_t)16 << 20)
#define MAX_ITEM_DEPTH    4 /* of items in groups */
#define MAX_MISSING       ((size_t)300)

/* --- what is in a directory --- */

struct names {
    char **items;
    size_t count, cap;
};

static int names_add(struct names *n, const char *name)
{
    if (n->count == n->cap) {
        size_t cap = n->cap ? n->cap * 2 : 16;
        char **grown = realloc(n->items, cap * sizeof *grown);
        if (!grown)
            return -ENOMEM;
        n->items = grown;
        n->cap = cap;
    }
    n->items[n->count] = strdup(name);
    return n->items[n->count++] ? 0 : -ENOMEM;
}

static void names_clear(struct names *n)
{
    for (size_t i = 0; i < n->count; i++)
        free(n->items[i]);
    free(n->items);
}

static int compare_names(const void *a, const void *b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

static void names_sort(struct names *n)
{
    if (n->count)
        qsort(n->items, n->count, sizeof *n->items, compare_names);
}

static bool names_have(const struct names *n, const char *name)
{
    for (size_t i = 0; i < n->count; i++)
        if (!strcmp(n->items[i], name))
            return true;
    return false;
}

/* --- walking --- */

/* A directory that is being walked. */
struct dir {
    struct dir *up; /* NULL: the node is given */
    char *path;     /* "": the checkpoint itself */
    const char *name;
    uint32_t node;               /* CKPT_NO_NODE: not made before there is something to show in it */
    unsigned depth;              /* of directories within the checkpoint */
    const struct orbax_own *own; /* of the item that it is in, or NULL */
    const char *handler;         /* of Orbax, for an item of this name; NULL: it is not told */
    bool orbax;                  /* it is, or is in, what Orbax may have made */
    struct names dirs, files;    /* of those that are not Orbax's own */
    struct orbax *o;
    struct ckpt_err *err;
};

static void dir_clear(struct dir *d)
{
    names_clear(&d->dirs);
    names_clear(&d->files);
    free(d->path);
}

#define AUTO_DIR __attribute__((cleanup(dir_clear)))

static char *join(const char *path, const char *name)
{
    char *joined = NULL;
    return asprintf(&joined, "%s%s%s", path, *path ? "/" : "", name) < 0 ? NULL : joined;
}

static int dir_init(struct dir *d, struct dir *up, const char *name)
{
    *d = (struct dir){
        .up = up,
        .path = join(up->path, name),
        .name = name,
        .node = CKPT_NO_NODE,
        .depth = up->depth + 1,
        .own = up->own,
        .orbax = up->orbax,
        .o = up->o,
        .err = up->err,
    };
    return d->path ? 0 : ckpt_no_memory(d->err);
}

static bool is_own(const struct dir *d, const char *path, const char *name, enum ckpt_ftype type)
{
    if (d->own && ckpt_orbax_own_whose(d->own, path, type) == ORBAX_OWN)
        return true;
    bool in_step = d->orbax || !d->depth;
    if (type == CKPT_FT_DIR)
        return !d->depth && !strcmp(name, "descriptor");
    return in_step && ckpt_orbax_own_file(name);
}

/* Links are followed to files, where they stay inside of the source. */
static enum ckpt_ftype type_of(const struct dir *d, const char *path, enum ckpt_ftype type)
{
    struct ckpt_stat st;
    if (type != CKPT_FT_LINK)
        return type;
    bool leads_to_file = ckpt_backend_stat(ckpt_pins_dir(d->o->tree->pins), path, &st) == 0 && st.type == CKPT_FT_FILE;
    return leads_to_file ? CKPT_FT_FILE : CKPT_FT_OTHER;
}

static int note_entry(void *arg, const char *name, enum ckpt_ftype type)
{
    struct dir *d = arg;
    size_t len;
    if (ckpt_orbax_unfinished_name(name, &len))
        return 0;
    CKPT_AUTOFREE char *path = join(d->path, name);
    if (!path)
        return -ENOMEM;
    type = type_of(d, path, type);
    struct names *to = type == CKPT_FT_DIR ? &d->dirs : &d->files;
    if (type == CKPT_FT_OTHER || to->count >= CKPT_MAX_BESIDE || is_own(d, path, name, type))
        return 0;
    return names_add(to, name);
}

static int list_dir(struct dir *d)
{
    int r = ckpt_backend_list(ckpt_pins_dir(d->o->tree->pins), d->path, note_entry, d);
    names_sort(&d->dirs);
    names_sort(&d->files);
    return r < 0 ? ckpt_fail(d->err, -r, "%s: %s", d->path, strerror(-r)) : 0;
}

static int set_ref(const struct dir *d, uint32_t node, const char *path)
{
    uint32_t string;
    int r = ckpt_tree_string(d->o->tree, path, strlen(path), &string);
    if (r < 0)
        return ckpt_no_memory(d->err);
    d->o->tree->nodes[node].ref = string;
    return 0;
}

/* The directory's own node. A folder of the same name as a part of the tree is shown together with that. */
static int make_node(struct dir *d)
{
    struct ckpt_tree *t = d->o->tree;
    uint32_t before = t->count;
    if (d->node != CKPT_NO_NODE)
        return 0;
    int r = make_node(d->up);
    if (r == 0)
        r = ckpt_tree_add(t, d->up->node, d->name, strlen(d->name), false, CKPT_NODE_DIR, &d->node, d->err);
    return r == 0 && d->node >= before ? set_ref(d, d->node, d->path) : r;
}

static int add_blob(struct dir *in, const char *key, const char *path)
{
    uint32_t node;
    int r = make_node(in);
    if (r == 0)
        r = ckpt_tree_add(in->o->tree, in->node, key, strlen(key), false, CKPT_NODE_BLOB, &node, in->err);
    return r < 0 ? r : set_ref(in, node, path);
}

/* Is there room for one more? What is left out is told. */
static bool is_room(struct dir *d)
{
    if (d->o->beside == CKPT_MAX_BESIDE)
        ckpt_log(CKPT_LOG_WARN, "%s: more than %d files beside a checkpoint: the rest is left out", d->path,
                 CKPT_MAX_BESIDE);
    return d->o->beside++ < CKPT_MAX_BESIDE;
}

static int add_file(struct dir *in, const char *name)
{
    CKPT_AUTOFREE char *path = join(in->path, name);
    if (!path)
        return ckpt_no_memory(in->err);
    return is_room(in) ? add_blob(in, name, path) : 0;
}

static int add_dir(struct dir *up, const char *name, const char *handler);

/* All that was found in a directory. */
static int add_entries(struct dir *d)
{
    int r = 0;
    for (size_t i = 0; i < d->dirs.count && r == 0; i++)
        r = add_dir(d, d->dirs.items[i], NULL);
    for (size_t i = 0; i < d->files.count && r == 0; i++)
        r = add_file(d, d->files.items[i]);
    return r;
}

/* --- items --- */

/* What else is in an item's directory. */
static int add_others(struct dir *d, const struct orbax_item *item, uint32_t first)
{
    struct orbax_own own;
    int r = ckpt_orbax_own_init(&own, d->o, item, first);
    if (r < 0)
        ckpt_no_memory(d->err);
    d->own = &own;
    d->orbax = false;
    if (r == 0)
        r = list_dir(d);
    if (r == 0)
        r = add_entries(d);
    d->own = NULL;
    ckpt_orbax_own_clear(&own);
    return r;
}

/* The directory is an item, whose tree its node gets. */
static int add_item(struct dir *d)
{
    struct orbax *o = d->o;
    uint32_t first = o->tree->count;
    if (o->count == ORBAX_MAX_ITEMS)
        return ckpt_fail(d->err, EUCLEAN, "more than %d items", ORBAX_MAX_ITEMS);
    struct orbax_item *item = &o->items[o->count];
    *item = (struct orbax_item){.dir = strdup(d->path), .root = d->node};
    if (!item->dir)
        return ckpt_no_memory(d->err);
    o->count++;
    o->tree->nodes[d->node].mark = (uint8_t)o->count;
    int r = ckpt_orbax_item_load(o, item, d->err);
    return r < 0 ? r : add_others(d, item, first);
}

/* It has a node of its own, also beside a part of another tree that has its name. */
static int add_tree(struct dir *d)
{
    struct ckpt_tree *t = d->o->tree;
    uint32_t before = t->count;
    int r = make_node(d->up);
    if (r == 0)
        r = ckpt_tree_add(t, d->up->node, d->name, strlen(d->name), false, CKPT_NODE_DIR, &d->node, d->err);
    if (r == 0 && d->node < before)
        r = ckpt_tree_add_other(t, d->up->node, d->name, strlen(d->name), &d->node, d->err);
    return r < 0 ? r : add_item(d);
}

static const char *class_of(const char *handler)
{
    const char *dot = handler ? strrchr(handler, '.') : NULL;
    return dot ? dot + 1 : handler;
}

/* Its items are trees: it says so. */
static bool makes_trees(const char *handler)
{
    const char *class = class_of(handler);
    return class && (!strncmp(class, "PyTree", 6) || !strncmp(class, "Standard", 8) || !strncmp(class, "Array", 5));
}

static bool makes_json(const char *handler)
{
    const char *class = class_of(handler);
    return class && !strncmp(class, "Json", 4);
}

static bool begins_json(const struct dir *d, const char *file)
{
    CKPT_AUTOFILE struct ckpt_file *f = NULL;
    CKPT_AUTOFREE char *path = join(d->path, file);
    char head[64] = "";
    if (!path || ckpt_backend_open(ckpt_pins_dir(d->o->tree->pins), path, &f) < 0)
        return false;
    if (ckpt_file_read(f, head, sizeof head - 1, 0) <= 0)
        return false;
    const char *c = head + strspn(head, " \t\r\n");
    return *c && strchr("{[\"-0123456789tfnNI", *c);
}

/* The file of an item of JSON, which has the handler's name for it, or the item's; NULL: it is none. */
static const char *json_file(const struct dir *d)
{
    static const char usual[] = "metadata";
    const struct names *files = &d->files;
    bool json = makes_json(d->handler), alone = files->count == 1 && !d->dirs.count;
    if (json && alone)
        return files->items[0];
    const char *file = names_have(files, usual) ? usual : names_have(files, d->name) ? d->name : NULL;
    if (!file || json)
        return file;
    bool may_be = d->orbax && alone && !d->handler;
    return may_be && begins_json(d, file) ? file : NULL;
}

static void names_remove(struct names *n, const char *name)
{
    for (size_t i = 0; i < n->count; i++)
        if (!strcmp(n->items[i], name)) {
            free(n->items[i]);
            memmove(n->items + i, n->items + i + 1, (--n->count - i) * sizeof *n->items);
            return;
        }
}

static int add_json_item(struct dir *d, const char *file)
{
    CKPT_AUTOFREE char *path = join(d->path, file);
    CKPT_AUTOFREE char *blob = NULL;
    if (!path || asprintf(&blob, "%s.json", d->name) < 0)
        return ckpt_no_memory(d->err);
    int r = add_blob(d->up, blob, path);
    names_remove(&d->files, file); /* which may be what `file` points to */
    return r;
}

static void note_missing(struct orbax *o, const char *name)
{
    o->incomplete = true;
    if (o->missing.len > MAX_MISSING)
        return;
    ckpt_buf_addf(&o->missing, "%s%.100s", o->missing.len ? ", " : "", name);
}

/* A directory that is no pytree: a JSON item, a group of items, or somebody else's files. */
static int add_other(struct dir *d, bool leads)
{
    int r = list_dir(d);
    /* The remains of a database: what was an item lost the files that say so. */
    for (size_t i = 0; i < d->dirs.count && d->orbax; i++)
        d->o->incomplete |= !strncmp(d->dirs.items[i], "ocdbt.process_", strlen("ocdbt.process_"));
    if (r < 0)
        return r;
    const char *json = json_file(d);
    if (json)
        r = add_json_item(d, json);
    bool empty = !d->files.count && !d->dirs.count;
    if (empty && d->orbax && !json) /* an item that wrote nothing, or of which little is left */
        d->o->incomplete = true;
    if (empty && d->handler && !json)
        note_missing(d->o, d->name);
    bool shown = !leads && !(empty && json);
    if (r == 0 && shown && is_room(d))
        r = make_node(d);
    return r < 0 ? r : add_entries(d);
}

/* handler: of an item of a step; NULL: it is not told, or there is none. */
static int add_dir(struct dir *up, const char *name, const char *handler)
{
    AUTO_DIR struct dir d;
    int r = dir_init(&d, up, name);
    if (r < 0)
        return r;
    d.handler = handler;
    if (d.depth > CKPT_MAX_BESIDE_LEVELS) {
        ckpt_log(CKPT_LOG_WARN, "%s: nested more than %d deep: left out", d.path, CKPT_MAX_BESIDE_LEVELS);
        return 0;
    }
    bool leads = d.own && ckpt_orbax_own_whose(d.own, d.path, CKPT_FT_DIR) == ORBAX_LEADS;
    if (!leads && ckpt_orbax_is_item(ckpt_pins_dir(d.o->tree->pins), d.path))
        return add_tree(&d);
    if (makes_trees(handler)) {
        note_missing(d.o, name);
        return 0;
    }
    return add_other(&d, leads);
}

/* --- a step --- */

static const char *handler_of(const cJSON *handlers, const char *name)
{
    return cJSON_GetStringValue(ckpt_json_get(handlers, name));
}

static int has_subdir(void *arg, const char *name, enum ckpt_ftype type)
{
    struct names *n = arg;
    return type == CKPT_FT_DIR && n->count < CKPT_MAX_BESIDE ? names_add(n, name) : 0;
}

/* Is it an item, or a group with one in it? */
static bool holds_item(struct ckpt_backend *dir, const char *path, unsigned depth)
{
    struct names subdirs = {0};
    if (ckpt_orbax_is_item(dir, path))
        return true;
    bool found = false;
    if (depth < MAX_ITEM_DEPTH && ckpt_backend_list(dir, path, has_subdir, &subdirs) == 0)
        for (size_t i = 0; i < subdirs.count && !found; i++) {
            CKPT_AUTOFREE char *sub = join(path, subdirs.items[i]);
            found = sub && holds_item(dir, sub, depth + 1);
        }
    names_clear(&subdirs);
    return found;
}

/* Items that `_CHECKPOINT_METADATA` names, and that are not there, or have nothing. */
static void check_handlers(struct orbax *o, const cJSON *handlers)
{
    struct ckpt_backend *dir = ckpt_pins_dir(o->tree->pins);
    struct ckpt_stat st;
    const cJSON *e;
    cJSON_ArrayForEach(e, handlers)
    {
        bool safe = ckpt_path_safe(e->string, strlen(e->string));
        if (!safe || ckpt_backend_stat(dir, e->string, &st) < 0)
            note_missing(o, e->string);
    }
}

struct step {
    struct dir top;
    const cJSON *handlers; /* by items; NULL: they are not told */
    bool *done;            /* directories of the top */
};

/* Is it an item, and not what the user has put there? */
static bool is_part(const struct step *s, const char *name)
{
    return handler_of(s->handlers, name) || holds_item(ckpt_pins_dir(s->top.o->tree->pins), name, 0);
}

static int add_part(struct step *s, size_t i)
{
    const char *name = s->top.dirs.items[i], *handler = handler_of(s->handlers, name);
    s->done[i] = true;
    s->top.orbax = handler || !s->handlers;
    return add_dir(&s->top, name, handler);
}

/* A lone `default` is left out of paths: is another tree beside it? A group of items counts as one. */
static bool is_default_alone(const struct step *s)
{
    struct ckpt_backend *dir = ckpt_pins_dir(s->top.o->tree->pins);
    const struct names *dirs = &s->top.dirs;
    if (!names_have(dirs, "default") || !ckpt_orbax_is_item(dir, "default"))
        return false;
    for (size_t i = 0; i < dirs->count; i++)
        if (strcmp(dirs->items[i], "default") && holds_item(dir, dirs->items[i], 0))
            return false;
    return true;
}

static int add_default(struct step *s)
{
    AUTO_DIR struct dir d;
    int r = dir_init(&d, &s->top, "default");
    d.node = 0;
    return r < 0 ? r : add_item(&d);
}

/* Items come before the leaves of `default`: of two equal names the item's stays. */
static int add_parts(struct step *s)
{
    const struct names *dirs = &s->top.dirs;
    bool alone = is_default_alone(s);
    int r = 0;
    for (size_t i = 0; i < dirs->count && r == 0; i++) {
        s->done[i] = alone && !strcmp(dirs->items[i], "default");
        if (!s->done[i] && is_part(s, dirs->items[i]))
            r = add_part(s, i);
    }
    if (r == 0 && alone)
        r = add_default(s);
    for (size_t i = 0; i < dirs->count && r == 0; i++)
        if (!s->done[i])
            r = add_part(s, i);
    for (size_t i = 0; i < s->top.files.count && r == 0; i++)
        r = add_file(&s->top, s->top.files.items[i]);
    return r;
}

static int load_step(struct orbax *o, const cJSON *handlers, struct ckpt_err *err)
{
    struct step s = {.top = {.path = strdup(""), .name = "", .o = o, .err = err},
                     .handlers = cJSON_IsObject(handlers) ? handlers : NULL};
    int r = s.top.path ? list_dir(&s.top) : ckpt_no_memory(err);
    if (r == 0)
        s.done = calloc(s.top.dirs.count + 1, sizeof *s.done);
    if (r == 0)
        r = s.done ? add_parts(&s) : ckpt_no_memory(err);
    if (r == 0 && s.handlers)
        check_handlers(o, s.handlers);
    free(s.done);
    dir_clear(&s.top);
    return r;
}

/* A single save: its directory is step and item at once. */
static int load_single(struct orbax *o, struct ckpt_err *err)
{
    AUTO_DIR struct dir d = {.path = strdup(""), .name = "", .o = o, .err = err};
    return d.path ? add_item(&d) : ckpt_no_memory(err);
}

/* --- all of it --- */

/* `_CHECKPOINT_METADATA`, to be deleted; false: it cannot be read. *ret is NULL where it is no JSON. */
static bool read_step_metadata(struct orbax *o, cJSON **ret)
{
    CKPT_AUTOFREE uint8_t *text = NULL;
    size_t len;
    if (ckpt_backend_read_all(ckpt_pins_dir(o->tree->pins), "_CHECKPOINT_METADATA", MAX_STEP_METADATA, &text, &len) < 0)
        return false;
    *ret = ckpt_json_parse((char *)text, len);
    return true;
}

static void take_custom_metadata(struct orbax *o, const cJSON *root)
{
    const cJSON *custom = ckpt_json_get(root, "custom_metadata");
    if (o->tree->metadata)
        return;
    if (!custom)
        custom = ckpt_json_get(root, "custom");
    if (cJSON_IsObject(custom) && custom->child)
        o->tree->metadata = cJSON_PrintUnformatted(custom);
}

int ckpt_orbax_step_load(struct orbax *o, struct ckpt_err *err)
{
    CKPT_AUTOCJSON cJSON *root = NULL;
    bool has_metadata = read_step_metadata(o, &root);
    bool single = ckpt_orbax_is_item(ckpt_pins_dir(o->tree->pins), "");
    int r = single ? load_single(o, err) : load_step(o, ckpt_json_get(root, "item_handlers"), err);
    if (!single && !has_metadata)
        o->incomplete |= !o->count; /* no item either */
    if (r == 0)
        take_custom_metadata(o, root);
    return r;
}
