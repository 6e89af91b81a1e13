/* SPDX-License-Identifier: Apache-2.0 */
/* Numbers have seven bits a byte, the lowest first; the last byte has its top bit clear. */
#include "core/format/pytorch/record.h"

#include "core/base/util.h"
#include "core/format/pytorch/global.h"

static const struct {
    int code;
    const char *text;
} faults[TORCH_FAULTS] = {
    [TORCH_BAD_KEY] = {EUCLEAN, "the key of its storage is no number"},
    [TORCH_BAD_SIZE] = {EUCLEAN, "the size of its storage is impossible"},
    [TORCH_BAD_RANK] = {EUCLEAN, "it has not as many strides as dimensions, or too many of them"},
    [TORCH_BAD_NUMBER] = {EUCLEAN, "its shape, strides or place have a number that is negative or too large"},
    [TORCH_NO_STORAGE] = {EUCLEAN, "its storage is not in the file: a pickle by itself has none"},
    [TORCH_OUTSIDE] = {EUCLEAN, "it reaches beyond its storage"},
    [TORCH_MANY_DIMS] = {EOPNOTSUPP, "arrays of more than 32 dimensions are not shown"},
    [TORCH_ODD_TYPE] = {EOPNOTSUPP, "its type is not supported"},
    [TORCH_SPARSE] = {EOPNOTSUPP, "sparse tensors are not supported"},
    [TORCH_QUANTISED] = {EOPNOTSUPP, "quantised tensors are not supported"},
    [TORCH_NEGATED] = {EOPNOTSUPP, "a negated view of a type without a sign bit is not supported"},
    [TORCH_TRANSFORMED] = {EOPNOTSUPP, "it was saved through a transform (compressed, say), which is not supported"},
    [TORCH_LONG] = {EOPNOTSUPP, "a value whose text is longer than 4 MiB, or a number of more than 4900 digits, is not "
                                "shown"},
    [TORCH_ODD_STORAGE] = {EOPNOTSUPP, "its storage is of a class that is not known"},
    [TORCH_BAD_DATA] = {EUCLEAN, "its data have another length than its shape and type make"},
    [TORCH_ELSEWHERE] = {EOPNOTSUPP, "its data were kept outside of the pickle (an out-of-band buffer)"},
    [TORCH_ODD_ARRAY] = {EOPNOTSUPP, "its type is one that .npy files do not have"},
};
_Static_assert(CKPT_MAX_DIMS == 32, "faults[] says how many dimensions are shown");

int ckpt_torch_fault_layout(enum torch_fault fault, uint32_t type, struct ckpt_array **ret, struct ckpt_err *err)
{
    if (faults[fault].code == EUCLEAN)
        return ckpt_fail(err, EUCLEAN, "%s", faults[fault].text);
    struct ckpt_array *a = ckpt_array_new(CKPT_DT_U8, 0, NULL);
    if (!a || ckpt_array_settle(a, NULL) < 0) {
        ckpt_array_unref(a);
        return ckpt_no_memory(err);
    }
    if (fault == TORCH_ODD_TYPE)
        ckpt_array_refuse(a, "its type, torch.%s, is not supported", ckpt_torch_global(type)->name);
    else
        ckpt_array_refuse(a, "%s", faults[fault].text);
    *ret = a;
    return 0;
}

static void put(struct ckpt_buf *b, uint64_t v)
{
    for (; v >= 0x80; v >>= 7)
        ckpt_buf_addc(b, (char)(v | 0x80));
    ckpt_buf_addc(b, (char)v);
}

static uint64_t get(const struct ckpt_buf *b, size_t *at)
{
    uint64_t v = 0;
    for (unsigned shift = 0;; shift += 7) {
        uint8_t byte = b->data[(*at)++];
        v |= (uint64_t)(byte & 0x7f) << shift;
        if (!(byte & 0x80))
            return v;
    }
}

static size_t begin(struct ckpt_buf *b, enum torch_record kind)
{
    size_t at = b->len;
    ckpt_buf_addc(b, (char)kind);
    return at;
}

enum torch_record ckpt_torch_record_kind(const struct ckpt_buf *records, size_t at)
{
    return (enum torch_record)records->data[at];
}

size_t ckpt_torch_add_tensor(struct ckpt_buf *b, const struct torch_tensor *t)
{
    size_t at = begin(b, TORCH_R_TENSOR);
    put(b, t->fault);
    put(b, t->type);
    if (t->fault)
        return at;
    put(b, t->dtype);
    put(b, t->flip);
    put(b, t->archive);
    put(b, t->key);
    put(b, t->size);
    put(b, t->offset);
    put(b, t->ndim);
    for (unsigned i = 0; i < t->ndim; i++) {
        put(b, t->shape[i]);
        put(b, t->stride[i]);
    }
    return at;
}

void ckpt_torch_get_tensor(const struct ckpt_buf *b, size_t at, struct torch_tensor *ret)
{
    at++;
    ret->fault = (enum torch_fault)get(b, &at);
    ret->type = (uint32_t)get(b, &at);
    if (ret->fault)
        return;
    ret->dtype = (enum ckpt_dtype)get(b, &at);
    ret->flip = (uint8_t)get(b, &at);
    ret->archive = get(b, &at);
    ret->key = get(b, &at);
    ret->size = get(b, &at);
    ret->offset = get(b, &at);
    ret->ndim = (unsigned)get(b, &at);
    for (unsigned i = 0; i < ret->ndim; i++) {
        ret->shape[i] = get(b, &at);
        ret->stride[i] = get(b, &at);
    }
}

size_t ckpt_torch_add_complex(struct ckpt_buf *b, double re, double im)
{
    size_t at = begin(b, TORCH_R_COMPLEX);
    ckpt_buf_add(b, &re, sizeof re);
    ckpt_buf_add(b, &im, sizeof im);
    return at;
}

void ckpt_torch_get_complex(const struct ckpt_buf *b, size_t at, uint8_t ret[16])
{
    memcpy(ret, b->data + at + 1, 16);
}

static void put_piece(struct ckpt_buf *b, const struct torch_piece *p)
{
    put(b, p->file);
    put(b, p->off);
    put(b, p->len);
}

static void take_piece(const struct ckpt_buf *b, size_t *at, struct torch_piece *ret)
{
    ret->file = (uint32_t)get(b, at);
    ret->off = get(b, at);
    ret->len = get(b, at);
}

size_t ckpt_torch_add_lost(struct ckpt_buf *b, uint32_t entry)
{
    size_t at = begin(b, TORCH_R_LOST);
    put(b, entry);
    return at;
}

uint32_t ckpt_torch_get_lost(const struct ckpt_buf *b, size_t at)
{
    at++;
    return (uint32_t)get(b, &at);
}

size_t ckpt_torch_add_range(struct ckpt_buf *b, uint64_t off, uint64_t len)
{
    size_t at = begin(b, TORCH_R_BYTES);
    put(b, off);
    put(b, len);
    return at;
}

void ckpt_torch_get_range(const struct ckpt_buf *b, size_t at, uint64_t *ret_off, uint64_t *ret_len)
{
    at++;
    *ret_off = get(b, &at);
    *ret_len = get(b, &at);
}

size_t ckpt_torch_add_piece(struct ckpt_buf *b, const struct torch_piece *p)
{
    size_t at = begin(b, TORCH_R_PIECE);
    put_piece(b, p);
    return at;
}

void ckpt_torch_get_piece(const struct ckpt_buf *b, size_t at, struct torch_piece *ret)
{
    at++;
    take_piece(b, &at, ret);
}

size_t ckpt_torch_add_sharded(struct ckpt_buf *b, const struct torch_sharded *s)
{
    size_t at = begin(b, TORCH_R_SHARDED);
    put(b, s->fault);
    put(b, s->type);
    put(b, s->dtype);
    put(b, s->ndim);
    for (unsigned i = 0; i < s->ndim; i++)
        put(b, s->shape[i]);
    put(b, s->boxes);
    return at;
}

void ckpt_torch_get_sharded(const struct ckpt_buf *b, size_t at, struct torch_sharded *ret, size_t *ret_at)
{
    at++;
    ret->fault = (enum torch_fault)get(b, &at);
    ret->type = (uint32_t)get(b, &at);
    ret->dtype = (enum ckpt_dtype)get(b, &at);
    ret->ndim = (unsigned)get(b, &at);
    for (unsigned i = 0; i < ret->ndim; i++)
        ret->shape[i] = get(b, &at);
    ret->boxes = (uint32_t)get(b, &at);
    *ret_at = at;
}

void ckpt_torch_add_box(struct ckpt_buf *b, unsigned ndim, const struct torch_box *box)
{
    for (unsigned i = 0; i < ndim; i++) {
        put(b, box->low[i]);
        put(b, box->size[i]);
    }
    put_piece(b, &box->piece);
}

void ckpt_torch_box_next(const struct ckpt_buf *b, unsigned ndim, size_t *at, struct torch_box *ret)
{
    for (unsigned i = 0; i < ndim; i++) {
        ret->low[i] = get(b, at);
        ret->size[i] = get(b, at);
    }
    take_piece(b, at, &ret->piece);
}

size_t ckpt_torch_add_numpy(struct ckpt_buf *b, const struct torch_numpy *a)
{
    size_t at = begin(b, TORCH_R_NUMPY);
    put(b, a->dtype);
    put(b, a->big_endian);
    put(b, a->descr);
    put(b, a->data);
    put(b, a->off);
    put(b, a->ndim);
    for (unsigned i = 0; i < a->ndim; i++) {
        put(b, a->shape[i]);
        put(b, a->order[i]);
    }
    return at;
}

void ckpt_torch_get_numpy(const struct ckpt_buf *b, size_t at, struct torch_numpy *ret)
{
    at++;
    ret->dtype = (enum ckpt_dtype)get(b, &at);
    ret->big_endian = get(b, &at);
    ret->descr = (uint32_t)get(b, &at);
    ret->data = (uint32_t)get(b, &at);
    ret->off = get(b, &at);
    ret->ndim = (unsigned)get(b, &at);
    for (unsigned i = 0; i < ret->ndim; i++) {
        ret->shape[i] = get(b, &at);
        ret->order[i] = (uint8_t)get(b, &at);
    }
}
