/* SPDX-License-Identifier: Apache-2.0 */
/* ckptfs diff: two trees, leaf by leaf. Nothing is held but the two blocks that are being compared. */
#include "fs/commands/commands.h"
#include "fs/commands/diff_private.h"
#include "fs/commands/elements.h"

#include "core/base/path.h"
#include "core/base/util.h"

#include <getopt.h>
#include <math.h>

#define MAX_DEPTH 1024
/* --rtol alone: nothing is near zero by its own size, so NumPy's allclose has this too. */
#define ZERO_TOLERANCE 1e-8

/* --- what two entries are --- */

enum sort { CONTAINER, ARRAY, VALUE, BYTES };

static enum sort sort_of(const struct fs_pair *p, int side)
{
    const char *kind = p->kind[side] ? p->kind[side] : "";
    if (p->at[side].type == CKPT_DIR)
        return CONTAINER;
    if (!strcmp(kind, "array"))
        return ARRAY;
    return !strcmp(kind, "value") ? VALUE : BYTES;
}

/* A plain folder has values as files. */
static bool is_value_as_file(const struct fs_pair *p, const enum sort sort[2], int side)
{
    bool is_value_there = sort[!side] == VALUE;
    return is_value_there && sort[side] == BYTES && p->is_plain[side] && ckpt_has_suffix(p->path, ".json");
}

/* An .npy file of a plain folder is the array that its header tells. NULL: it is none, or cannot be read. */
static cJSON *describe_plain(struct fs_diff *d, const struct fs_pair *p, int side)
{
    struct fs_elements e;
    if (!ckpt_has_suffix(p->path, ".npy"))
        return NULL;
    if (fs_elements_open(d->side[side].src, d->side[side].at.id, p->path, &p->at[side], &e, NULL) < 0)
        return NULL;
    cJSON *meta = cJSON_CreateObject(), *shape = cJSON_AddArrayToObject(meta, "shape");
    bool is_known = e.npy.dtype != CKPT_DT_OTHER;
    cJSON_AddStringToObject(meta, "dtype", is_known ? ckpt_dtype_info(e.npy.dtype)->name : e.npy.descr);
    cJSON_AddStringToObject(meta, "kind", "array");
    for (unsigned i = 0; i < e.npy.ndim; i++)
        cJSON_AddItemToArray(shape, cJSON_CreateNumber((double)e.npy.shape[i]));
    fs_elements_close(&e);
    return meta;
}

/* A view that is not all of the elements: a slice, or a text. */
static bool is_partial_view(const struct fs_pair *p, int side)
{
    uint64_t bytes;
    if (!p->at[side].view)
        return false;
    bool is_whole = ckpt_json_u64(ckpt_json_get(p->meta[side], "bytes"), &bytes) && bytes == p->at[side].size;
    return !is_whole;
}

/* False: it cannot be compared, which was told. */
static bool describe(struct fs_diff *d, struct fs_pair *p, int side)
{
    struct ckpt_err err = {0};
    if (p->at[side].type == CKPT_DIR)
        return true;
    cJSON_Delete(CKPT_STEAL(p->meta[side])); /* of an earlier look at this side alone */
    int r = fs_describe(d->side[side].src, p->at[side].id, &p->meta[side], &err);
    p->is_plain[side] = r == -ENODATA;
    if (r < 0 && !p->is_plain[side])
        fs_diff_tell_error(d, side, p->path, r, &err);
    if (p->is_plain[side])
        p->meta[side] = describe_plain(d, p, side);
    if (is_partial_view(p, side)) /* to be compared as it is */
        return r == 0;
    p->kind[side] = cJSON_GetStringValue(ckpt_json_get(p->meta[side], "kind"));
    return r == 0 || p->is_plain[side];
}

static void pair_clear(struct fs_pair *p)
{
    cJSON_Delete(p->meta[0]);
    cJSON_Delete(p->meta[1]);
}

static void compare_dirs(struct fs_diff *d, const struct fs_pair *p, unsigned depth);

static void compare_pair(struct fs_diff *d, struct fs_pair *p, unsigned depth)
{
    static const char *const names[] = {
        [CONTAINER] = "container", [ARRAY] = "array", [VALUE] = "value", [BYTES] = "file"};
    if (!describe(d, p, 0) || !describe(d, p, 1))
        return;
    enum sort sort[2] = {sort_of(p, 0), sort_of(p, 1)};
    for (int i = 0; i < 2; i++)
        if (is_value_as_file(p, sort, i))
            sort[i] = VALUE;
    if (sort[0] != sort[1]) {
        fs_diff_tell_texts(d, "kind", p, names[sort[0]], names[sort[1]]);
        return;
    }
    switch (sort[0]) {
    case CONTAINER:
        if (depth < MAX_DEPTH)
            compare_dirs(d, p, depth);
        break;
    case ARRAY:
        fs_diff_arrays(d, p);
        break;
    case VALUE:
        fs_diff_values(d, p);
        break;
    case BYTES:
        fs_diff_files(d, p);
    }
}

/* --- directories --- */

struct walk {
    struct fs_diff *d;
    const struct fs_pair *dirs;
    int side; /* whose entries are visited */
    unsigned depth;
};

/* A listed entry of that name; views do not count. */
static int find_listed(const struct walk *w, int side, const char *name, struct ckpt_attr *ret, struct ckpt_err *err)
{
    struct ckpt_source *src = w->d->side[side].src;
    int r = ckpt_lookup(src, w->dirs->at[side].id, name, ret, err);
    if (r == -ENAMETOOLONG) /* for this side, so it does not have it */
        return -ENOENT;
    if (r == 0 && (ret->view || ret->type == CKPT_LINK)) {
        ckpt_forget(src, ret->id, 1);
        return -ENOENT;
    }
    return r;
}

static bool is_listed(const struct walk *w, int side, const char *name)
{
    struct ckpt_attr at;
    if (find_listed(w, side, name, &at, NULL) < 0)
        return false;
    ckpt_forget(w->d->side[side].src, at.id, 1);
    return true;
}

/* What has the same key on the other side, but is of another kind and so has another name. It has no partner of its
 * own. */
static bool find_other_kind(struct walk *w, const char *name, const char *kind, struct ckpt_attr *ret)
{
    static const char *const suffixes[] = {".npy", ".json", ""};
    const char *own = fs_diff_suffix(kind);
    int key = (int)(strlen(name) - strlen(own)), there = !w->side;
    for (size_t i = 0; i < 3; i++) {
        char other[512];
        if (!strcmp(suffixes[i], own))
            continue;
        snprintf(other, sizeof other, "%.*s%s", key, name, suffixes[i]);
        if (find_listed(w, there, other, ret, NULL) < 0)
            continue;
        if (!is_listed(w, w->side, other))
            return true;
        ckpt_forget(w->d->side[there].src, ret->id, 1);
    }
    return false;
}

/* What one side has and the other does not have under this name. */
static void compare_unpaired(struct walk *w, struct fs_pair *p)
{
    struct fs_diff *d = w->d;
    int own = w->side, other = !w->side;
    if (!describe(d, p, own))
        return;
    if (!find_other_kind(w, ckpt_path_name(p->path), p->kind[own], &p->at[other])) {
        fs_diff_tell_only(d, own, p->path, p->kind[own]);
        return;
    }
    if (own == 0) /* once */
        compare_pair(d, p, w->depth);
    ckpt_forget(d->side[other].src, p->at[other].id, 1);
}

/* p: one side is there. */
static void find_partner(struct walk *w, struct fs_pair *p, const char *name)
{
    struct ckpt_err err = {0};
    int other = !w->side;
    int r = find_listed(w, other, name, &p->at[other], &err);
    if (r == -ENOENT) {
        compare_unpaired(w, p);
        return;
    }
    if (r < 0) {
        fs_diff_tell_error(w->d, other, p->path, r, &err);
        return;
    }
    if (w->side == 0) /* once */
        compare_pair(w->d, p, w->depth + 1);
    ckpt_forget(w->d->side[other].src, p->at[other].id, 1);
}

static int visit(void *arg, const struct ckpt_dirent *e)
{
    struct walk *w = arg;
    struct ckpt_source *src = w->d->side[w->side].src;
    struct ckpt_err err = {0};
    CKPT_AUTOFREE char *path = ckpt_path_join(w->dirs->path, e->name);
    struct fs_pair p = {.path = path};
    if (!path)
        return -ENOMEM;
    if (e->type == CKPT_LINK) /* what it points to is compared where it is */
        return 0;
    int r = ckpt_lookup(src, w->dirs->at[w->side].id, e->name, &p.at[w->side], &err);
    if (r == -ENOENT) /* it went while we looked */
        return 0;
    if (r < 0) {
        fs_diff_tell_error(w->d, w->side, path, r, &err);
        return 0;
    }
    find_partner(w, &p, e->name);
    ckpt_forget(src, p.at[w->side].id, 1);
    pair_clear(&p);
    return 0;
}

/* Both must open, or all of one would be missing in the other. */
static bool both_open(struct fs_diff *d, const struct fs_pair *p)
{
    bool good = true;
    for (int i = 0; i < 2; i++) {
        struct ckpt_dir *dir;
        struct ckpt_err err = {0};
        bool immutable;
        int r = ckpt_opendir(d->side[i].src, p->at[i].id, &dir, &immutable, &err);
        if (r == 0) {
            ckpt_closedir(dir);
            continue;
        }
        fs_diff_tell_error(d, i, p->path, r, &err);
        good = false;
    }
    return good;
}

static void compare_dirs(struct fs_diff *d, const struct fs_pair *p, unsigned depth)
{
    if (!both_open(d, p))
        return;
    for (int i = 0; i < 2; i++) {
        struct walk w = {d, p, i, depth};
        struct ckpt_err err = {0};
        int r = fs_each_entry(d->side[i].src, p->at[i].id, visit, &w, &err);
        if (r < 0) {
            fs_diff_tell_error(d, i, p->path, r, &err);
            return;
        }
    }
}

/* --- the command --- */

static int open_side(struct fs_diff *d, int side, const char *spec)
{
    struct ckpt_err err = {0};
    int r = fs_resolve(spec, &d->side[side], &err);
    d->block[side] = malloc(FS_DIFF_BLOCK);
    if (r == 0 && !d->block[side])
        r = ckpt_no_memory(&err);
    return r < 0 ? fs_fail("diff", d->json, r, &err) : FS_OK;
}

static int exit_status(const struct fs_diff *d)
{
    if (d->status)
        return d->status;
    return d->differences ? FS_DIFFERS : FS_OK;
}

static int run(struct fs_diff *d, char **specs)
{
    struct fs_pair top = {.path = ""};
    for (int i = 0; i < 2; i++) {
        int status = open_side(d, i, specs[i]);
        if (status != FS_OK)
            return status;
        top.at[i] = d->side[i].at;
    }
    if (top.at[0].type == CKPT_FILE)
        top.path = ckpt_path_name(specs[0]);
    fs_progress_begin(&d->progress);
    if (d->json) {
        fs_json_pair(stdout, "{", "a", specs[0]);
        fs_json_pair(stdout, ",", "b", specs[1]);
        fputs(",\"differences\":[", stdout);
    }
    compare_pair(d, &top, 0);
    pair_clear(&top);
    fs_progress_clear(&d->progress);
    if (d->json)
        fputs(d->told ? "\n],\"equal\":false}\n" : "],\"equal\":true}\n", stdout);
    return fs_finish("diff", exit_status(d));
}

static bool parse_tolerance(const char *text, double *ret)
{
    char *end;
    *ret = strtod(text, &end);
    bool is_number = end != text && !*end;
    return is_number && *ret >= 0 && isfinite(*ret);
}

int fs_diff_main(int argc, char **argv)
{
    static const struct option options[] = {{"json", no_argument, NULL, 'j'},
                                            {"meta", no_argument, NULL, 'm'},
                                            {"rtol", required_argument, NULL, 'r'},
                                            {"atol", required_argument, NULL, 'a'},
                                            {0}};
    struct fs_diff d = {0};
    bool good = true, has_atol = false;
    opterr = 0;
    for (int o; good && (o = getopt_long(argc, argv, "", options, NULL)) != -1;)
        switch (o) {
        case 'j':
            d.json = true;
            break;
        case 'm':
            d.meta = true;
            break;
        case 'r':
            good = parse_tolerance(optarg, &d.rtol);
            break;
        case 'a':
            good = has_atol = parse_tolerance(optarg, &d.atol);
            break;
        default:
            return fs_bad_option("diff", argv);
        }
    if (!good)
        return fs_usage("diff", "%s: not a tolerance", optarg);
    bool only_relative = d.rtol > 0 && !has_atol;
    if (only_relative)
        d.atol = ZERO_TOLERANCE;
    if (argc - optind != 2)
        return fs_usage("diff", "two trees are wanted");
    int status = run(&d, argv + optind);
    for (int i = 0; i < 2; i++) {
        fs_place_clear(&d.side[i]);
        free(d.block[i]);
    }
    return status;
}
