/* SPDX-License-Identifier: Apache-2.0 */
#include "core/format/pytorch/rebuild.h"

#include "core/base/util.h"

#define MAX_DIMS 64 /* that PyTorch allows */

static int malformed(struct ckpt_err *err, const char *what)
{
    return ckpt_fail(err, EUCLEAN, "the pickle is malformed: %s", what);
}

bool ckpt_torch_digits(const char *p, size_t len, uint64_t *ret)
{
    if (!len || len > 18 || (len > 1 && *p == '0'))
        return false;
    *ret = 0;
    for (size_t i = 0; i < len; i++) {
        if (p[i] < '0' || p[i] > '9')
            return false;
        *ret = *ret * 10 + (uint64_t)(p[i] - '0');
    }
    return true;
}

/* The part of a storage that another is a view of: None, or (its key, where it begins, number of elements). */
static int read_view(const struct torch_graph *g, torch_value v, struct torch_storage *s, struct ckpt_err *err)
{
    int64_t start, count;
    uint64_t itemsize = ckpt_torch_global(s->global)->itemsize, end;
    if (ckpt_torch_kind(g, v) == TORCH_NONE)
        return 0;
    if (ckpt_torch_kind(g, v) != TORCH_TUPLE || ckpt_torch_count(g, v) != 3 ||
        ckpt_torch_kind(g, ckpt_torch_item(g, v, 1)) != TORCH_INT ||
        ckpt_torch_kind(g, ckpt_torch_item(g, v, 2)) != TORCH_INT)
        return malformed(err, "the view of a storage is none");
    bool fits = ckpt_torch_int(g, ckpt_torch_item(g, v, 1), &start) && start >= 0 &&
                ckpt_torch_int(g, ckpt_torch_item(g, v, 2), &count) && count >= 0;
    if (!fits || ckpt_mul((uint64_t)start, itemsize, &s->start) || ckpt_mul((uint64_t)count, itemsize, &s->len) ||
        ckpt_add(s->start, s->len, &end) || end > s->size)
        s->fault = TORCH_OUTSIDE;
    return 0;
}

static bool is_storage_id(const struct torch_graph *g, torch_value id)
{
    if (ckpt_torch_kind(g, id) != TORCH_TUPLE || ckpt_torch_count(g, id) < 5 || ckpt_torch_count(g, id) > 6)
        return false;
    return ckpt_torch_str_is(g, ckpt_torch_item(g, id, 0), "storage") &&
           ckpt_torch_kind(g, ckpt_torch_item(g, id, 1)) == TORCH_GLOBAL &&
           ckpt_torch_kind(g, ckpt_torch_item(g, id, 2)) == TORCH_STR &&
           ckpt_torch_kind(g, ckpt_torch_item(g, id, 4)) == TORCH_INT;
}

/* ('storage', class, key, location, number of elements[, view]) */
int ckpt_torch_rebuild_storage(const struct torch_graph *g, torch_value id, struct torch_storage *ret,
                               struct ckpt_err *err)
{
    if (!is_storage_id(g, id))
        return malformed(err, "a persistent id is not that of a storage");
    size_t len;
    int64_t count;
    torch_value class = ckpt_torch_item(g, id, 1);
    const char *key = ckpt_torch_str(g, ckpt_torch_item(g, id, 2), &len);
    bool is_known = ckpt_torch_is(g, class, TORCH_GLOBAL, TORCH_IS_STORAGE);
    *ret = (struct torch_storage){.global = is_known ? ckpt_torch_global_number(g, class) : TORCH_NO_GLOBAL};
    if (!ckpt_torch_digits(key, len, &ret->key))
        ret->fault = TORCH_BAD_KEY;
    else if (!is_known)
        ret->fault = TORCH_ODD_STORAGE;
    else if (!ckpt_torch_int(g, ckpt_torch_item(g, id, 4), &count) || count < 0 ||
             ckpt_mul((uint64_t)count, ckpt_torch_global(ret->global)->itemsize, &ret->size))
        ret->fault = TORCH_BAD_SIZE;
    ret->len = ret->size;
    bool has_view = ckpt_torch_count(g, id) == 6 && !ret->fault;
    return has_view ? read_view(g, ckpt_torch_item(g, id, 5), ret, err) : 0;
}

/* The numbers of a size or stride, of which the record keeps CKPT_MAX_DIMS. */
static int read_numbers(const struct torch_graph *g, torch_value v, uint64_t ret[CKPT_MAX_DIMS], unsigned *ret_count,
                        enum torch_fault *fault, struct ckpt_err *err)
{
    if (ckpt_torch_is(g, v, TORCH_CALL, TORCH_IS_SIZE))
        v = ckpt_torch_item(g, ckpt_torch_args(g, v), 0);
    if (ckpt_torch_kind(g, v) != TORCH_TUPLE)
        return malformed(err, "the size or stride of a tensor is no tuple");
    uint32_t count = ckpt_torch_count(g, v);
    for (uint32_t i = 0; i < count && i < MAX_DIMS; i++) {
        int64_t n;
        if (ckpt_torch_kind(g, ckpt_torch_item(g, v, i)) != TORCH_INT)
            return malformed(err, "the size or stride of a tensor has what is no integer");
        if (!ckpt_torch_int(g, ckpt_torch_item(g, v, i), &n) || n < 0)
            *fault = TORCH_BAD_NUMBER;
        else if (i < CKPT_MAX_DIMS)
            ret[i] = (uint64_t)n;
    }
    *ret_count = (unsigned)CKPT_MIN(count, (uint32_t)MAX_DIMS + 1);
    return 0;
}

/* Do all elements lie in the storage? */
static bool inside(const struct torch_tensor *t)
{
    uint64_t last = t->offset, step, itemsize = ckpt_dtype_info(t->dtype)->size;
    bool over = false;
    for (unsigned i = 0; i < t->ndim; i++) {
        if (!t->shape[i])
            return true;
        over |= ckpt_mul(t->shape[i] - 1, t->stride[i], &step) || ckpt_add(last, step, &last);
    }
    return !over && last < t->size / itemsize;
}

/* {'conj': True}, {'neg': True}, or None. */
static int read_metadata(const struct torch_graph *g, torch_value v, struct torch_tensor *t, struct ckpt_err *err)
{
    if (ckpt_torch_kind(g, v) == TORCH_NONE)
        return 0;
    if (ckpt_torch_kind(g, v) != TORCH_DICT)
        return malformed(err, "the metadata of a tensor are no dict");
    torch_value conj = ckpt_torch_get(g, v, "conj"), neg = ckpt_torch_get(g, v, "neg");
    if (conj != TORCH_NOTHING && ckpt_torch_kind(g, conj) == TORCH_BOOL && ckpt_torch_truth(g, conj))
        t->flip ^= CKPT_FLIP_IMAG;
    if (neg != TORCH_NOTHING && ckpt_torch_kind(g, neg) == TORCH_BOOL && ckpt_torch_truth(g, neg))
        t->flip ^= CKPT_FLIP_REAL | CKPT_FLIP_IMAG;
    if (ckpt_dtype_info(t->dtype)->klass != CKPT_DC_COMPLEX)
        t->flip &= CKPT_FLIP_REAL;
    return 0;
}

static enum torch_fault fault_of(const struct torch_tensor *t, unsigned strides)
{
    if (t->ndim != strides || t->ndim > MAX_DIMS)
        return TORCH_BAD_RANK;
    if (t->dtype == CKPT_DT_OTHER)
        return TORCH_ODD_TYPE;
    if (t->ndim > CKPT_MAX_DIMS)
        return TORCH_MANY_DIMS;
    const struct ckpt_dtype_info *info = ckpt_dtype_info(t->dtype);
    if (t->flip && info->klass != CKPT_DC_COMPLEX &&
        (info->klass != CKPT_DC_FLOAT || info->size == 1)) /* the sign is not one bit */
        return TORCH_NEGATED;
    return inside(t) ? TORCH_FINE : TORCH_OUTSIDE;
}

/* What was counted in the part of the storage is counted in all of it. */
static void place_in_storage(struct torch_tensor *t, const struct torch_storage *s)
{
    uint64_t itemsize = ckpt_dtype_info(t->dtype)->size;
    if (s->start % itemsize)
        t->fault = TORCH_BAD_NUMBER;
    t->offset += s->start / itemsize;
    t->size = s->size;
}

/* The type that the tensor has of its own, or from its storage. False: none. */
static bool read_type(const struct torch_graph *g, torch_value v, struct torch_tensor *t)
{
    const struct torch_global *type = ckpt_torch_global_of(g, v);
    bool is_type = ckpt_torch_is(g, v, TORCH_GLOBAL, TORCH_IS_DTYPE) || ckpt_torch_kind(g, v) == TORCH_STORAGE;
    if (!is_type || (!type && ckpt_torch_kind(g, v) != TORCH_STORAGE))
        return false;
    t->dtype = type ? (enum ckpt_dtype)type->dtype : CKPT_DT_OTHER;
    t->type = type && t->dtype == CKPT_DT_OTHER ? ckpt_torch_global_number(g, v) : 0;
    return true;
}

/* (storage, offset, size, stride[, requires_grad, hooks[, dtype][, metadata]]) */
int ckpt_torch_rebuild_tensor(const struct torch_graph *g, torch_value args, enum torch_meaning meaning,
                              struct torch_tensor *t, struct ckpt_err *err)
{
    bool v3 = meaning == TORCH_IS_TENSOR_V3;
    uint32_t count = ckpt_torch_count(g, args), fixed = v3 ? 7 : meaning == TORCH_IS_TENSOR_V2 ? 6 : 4;
    unsigned strides;
    int64_t offset;
    if (count != fixed && count != fixed + 1)
        return malformed(err, "a tensor has too few or too many arguments");
    torch_value storage = ckpt_torch_item(g, args, 0);
    if (ckpt_torch_kind(g, ckpt_torch_item(g, args, 1)) != TORCH_INT)
        return malformed(err, "the offset of a tensor is no integer");
    struct torch_storage s;
    ckpt_torch_storage_of(g, storage, &s);
    *t = (struct torch_tensor){.fault = (enum torch_fault)s.fault, .archive = g->archive, .key = s.key, .size = s.len};
    if (!read_type(g, v3 ? ckpt_torch_item(g, args, 6) : storage, t))
        return malformed(err, "the type of a tensor is none");
    if (!ckpt_torch_int(g, ckpt_torch_item(g, args, 1), &offset) || offset < 0)
        t->fault = TORCH_BAD_NUMBER;
    t->offset = (uint64_t)offset;
    int r = read_numbers(g, ckpt_torch_item(g, args, 2), t->shape, &t->ndim, &t->fault, err);
    if (r == 0)
        r = read_numbers(g, ckpt_torch_item(g, args, 3), t->stride, &strides, &t->fault, err);
    if (r == 0 && count > fixed)
        r = read_metadata(g, ckpt_torch_item(g, args, fixed), t, err);
    if (r == 0 && !t->fault)
        t->fault = fault_of(t, strides);
    if (r == 0 && !t->fault)
        place_in_storage(t, &s);
    return r;
}
