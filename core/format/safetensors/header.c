/* SPDX-License-Identifier: Apache-2.0 */
#include "core/format/safetensors/header.h"

#include "core/base/grow.h"
#include "core/base/util.h"
#include "core/format/named.h"

#define WINDOW       ((size_t)1 << 20) /* headers up to this are read once */
#define SMALL_WINDOW ((size_t)1 << 10) /* for one member */
#define LENGTH       8                 /* bytes of the number that the file begins with */
#define MAX_BYTES    ((uint64_t)1 << 62)

static int open_header(struct ckpt_file *file, size_t max_window, struct safetensors_header *ret, struct ckpt_err *err)
{
    uint64_t size = file->st.size, n = 0;
    if (size < LENGTH)
        return ckpt_fail(err, EBADMSG, "the file has %llu bytes, fewer than the length that it should begin with",
                         (unsigned long long)size);
    ssize_t got = ckpt_file_read(file, &n, LENGTH, 0);
    if (got != LENGTH)
        return ckpt_fail(err, got < 0 ? (int)-got : EBADMSG, "%s",
                         got < 0 ? strerror((int)-got) : "the file ends too early");
    if (n > SAFETENSORS_MAX_HEADER)
        return ckpt_fail(err, EUCLEAN, "a header of %llu bytes: more than %llu", (unsigned long long)n,
                         (unsigned long long)SAFETENSORS_MAX_HEADER);
    if (n > size - LENGTH)
        return ckpt_fail(err, EBADMSG, "the file ends within its header: it has %llu bytes, the header alone %llu",
                         (unsigned long long)size, (unsigned long long)n);
    size_t window = (size_t)CKPT_MIN(n, (uint64_t)max_window);
    uint8_t *p = malloc(window + 1);
    if (!p)
        return ckpt_no_memory(err);
    *ret = (struct safetensors_header){
        .file = file,
        .data = LENGTH + n,
        .tokens =
            {.file = file, .begin = LENGTH, .end = LENGTH + n, .window = p, .size = window, .base = LENGTH, .err = err},
    };
    return 0;
}

int ckpt_safetensors_header_open(struct ckpt_file *file, struct safetensors_header *ret, struct ckpt_err *err)
{
    return open_header(file, WINDOW, ret, err);
}

void ckpt_safetensors_header_close(struct safetensors_header *h)
{
    free(h->tokens.window);
}

/* --- a tensor --- */

static int take_type(struct tokens *t, struct safetensors_tensor *ret, unsigned *ret_bits)
{
    static const struct {
        const char *name;
        unsigned bits;
    } packed[] = {{"F4", 4}, {"F6_E2M3", 6}, {"F6_E3M2", 6}};
    struct ckpt_buf name = {.max = sizeof ret->type - 1};
    int r = ckpt_tokens_string(t, &name);
    ckpt_buf_addc(&name, 0);
    bool fits = !ckpt_buf_error(&name) && strlen((char *)name.data) == name.len - 1;
    if (fits)
        memcpy(ret->type, name.data, name.len);
    ckpt_buf_clear(&name);
    if (r < 0)
        return r;
    for (size_t i = 0; fits && i < sizeof packed / sizeof *packed; i++)
        if (!strcmp(ret->type, packed[i].name)) {
            ret->packed = true;
            *ret_bits = packed[i].bits;
            return 0;
        }
    ret->packed = false;
    if (!fits || !ckpt_dtype_by_safetensors(ret->type, &ret->dtype))
        return ckpt_tokens_fail(t, "an unknown dtype");
    *ret_bits = 8u * ckpt_dtype_info(ret->dtype)->size;
    return 0;
}

/* *ret_elements: the product. It is checked as if no dimension were 0, so that what is computed of the shape later
 * cannot overflow. */
static int take_shape(struct tokens *t, struct safetensors_tensor *ret, uint64_t *ret_elements)
{
    uint64_t size, product = 1;
    bool first = true, empty = false;
    ret->ndim = 0;
    int r = ckpt_tokens_take(t, '[');
    while (r == 0 && (r = ckpt_tokens_more(t, ']', &first)) == 1) {
        r = ckpt_tokens_u64(t, &size);
        if (r < 0)
            break;
        if (ret->ndim < CKPT_MAX_DIMS)
            ret->shape[ret->ndim] = size;
        ret->ndim++;
        empty |= !size;
        if (ckpt_mul(product, CKPT_MAX(size, (uint64_t)1), &product) || product > MAX_BYTES / 8)
            return ckpt_tokens_fail(t, "a shape that has too many elements");
    }
    *ret_elements = empty ? 0 : product;
    return r;
}

static int take_offsets(struct tokens *t, uint64_t *ret_begin, uint64_t *ret_end)
{
    int r = ckpt_tokens_take(t, '[');
    if (r == 0)
        r = ckpt_tokens_u64(t, ret_begin);
    if (r == 0)
        r = ckpt_tokens_take(t, ',');
    if (r == 0)
        r = ckpt_tokens_u64(t, ret_end);
    return r < 0 ? r : ckpt_tokens_take(t, ']');
}

struct member {
    bool type, shape, offsets;
    unsigned bits;
    uint64_t elements, begin, end;
};

static int take_member(struct tokens *t, const struct ckpt_buf *key, struct member *m, struct safetensors_tensor *ret)
{
    static const char *const names[] = {"dtype", "shape", "data_offsets"};
    bool *seen[] = {&m->type, &m->shape, &m->offsets};
    int which = -1;
    for (int i = 0; i < 3; i++)
        if (!ckpt_buf_error(key) && key->len == strlen(names[i]) && !memcmp(key->data, names[i], key->len))
            which = i;
    if (which < 0)
        return ckpt_tokens_value(t, NULL);
    if (*seen[which])
        return ckpt_tokens_fail(t, "a member of a tensor that is there twice");
    *seen[which] = true;
    return which == 0   ? take_type(t, ret, &m->bits)
           : which == 1 ? take_shape(t, ret, &m->elements)
                        : take_offsets(t, &m->begin, &m->end);
}

static int settle_tensor(struct safetensors_header *h, const struct member *m, struct safetensors_tensor *ret)
{
    struct tokens *t = &h->tokens;
    uint64_t bits, size = h->file->st.size - h->data;
    if (!m->type || !m->shape || !m->offsets)
        return ckpt_tokens_fail(t, "a tensor without dtype, shape or data_offsets");
    if (ckpt_mul(m->elements, m->bits, &bits))
        return ckpt_tokens_fail(t, "a shape that has too many elements");
    if (bits % 8)
        return ckpt_tokens_fail(t, "a tensor that is no whole number of bytes");
    if (m->begin > m->end || m->end - m->begin != bits / 8)
        return ckpt_tokens_fail(t, "data_offsets that do not fit dtype and shape");
    if (m->end > size)
        return ckpt_fail(t->err, EBADMSG,
                         "the file ends within its data: it has %llu bytes of them, and a tensor ends at %llu",
                         (unsigned long long)size, (unsigned long long)m->end);
    ret->off = h->data + m->begin;
    ret->len = bits / 8;
    return 0;
}

static int take_tensor(struct safetensors_header *h, struct safetensors_tensor *ret)
{
    struct tokens *t = &h->tokens;
    struct member m = {0};
    struct ckpt_buf key = {.max = 64}; /* longer ones are none of those that count */
    bool first = true;
    int r = ckpt_tokens_take(t, '{');
    while (r == 0 && (r = ckpt_tokens_more(t, '}', &first)) == 1) {
        key.len = 0;
        key.error = 0;
        r = ckpt_tokens_string(t, &key);
        if (r == 0)
            r = ckpt_tokens_take(t, ':');
        if (r == 0)
            r = take_member(t, &key, &m, ret);
    }
    ckpt_buf_clear(&key);
    return r < 0 ? r : settle_tensor(h, &m, ret);
}

int ckpt_safetensors_header_tensor(struct ckpt_file *file, uint64_t place, struct ckpt_buf *name,
                                   struct safetensors_tensor *ret, struct ckpt_err *err)
{
    struct safetensors_header h;
    int r = open_header(file, SMALL_WINDOW, &h, err);
    if (r < 0)
        return r;
    struct tokens *t = &h.tokens;
    ckpt_tokens_seek(t, place);
    if (name)
        name->len = 0;
    r = ckpt_tokens_string(t, name);
    if (r == 0)
        r = ckpt_tokens_take(t, ':');
    if (r == 0)
        r = take_tensor(&h, ret);
    ckpt_safetensors_header_close(&h);
    return r;
}

/* --- the metadata: strings by name, or null --- */

static int take_metadata(struct tokens *t, struct ckpt_buf *out)
{
    struct ckpt_buf member = {.max = SAFETENSORS_MAX_METADATA};
    bool first = true;
    if (ckpt_tokens_peek(t) == 'n')
        return ckpt_tokens_value(t, NULL);
    int r = ckpt_tokens_take(t, '{');
    while (r == 0 && (r = ckpt_tokens_more(t, '}', &first)) == 1) {
        member.len = 0;
        member.error = 0;
        for (int i = 0; i < 2 && r >= 0; i++) { /* name and value */
            if (ckpt_tokens_peek(t) != '"')
                r = ckpt_tokens_fail(t, "__metadata__ holds something that is no string");
            else
                r = ckpt_tokens_value(t, out ? &member : NULL);
            if (r == 0 && i == 0) {
                r = ckpt_tokens_take(t, ':');
                ckpt_buf_addc(&member, ':');
            }
        }
        if (r == 0 && out && !ckpt_buf_error(&member) && out->len + member.len < SAFETENSORS_MAX_METADATA) {
            ckpt_buf_addc(out, out->len ? ',' : '{');
            ckpt_buf_add(out, member.data, member.len);
        }
    }
    ckpt_buf_clear(&member);
    if (r == 0 && out && out->len)
        ckpt_buf_addc(out, '}');
    return r;
}

/* --- all of it --- */

static int walk(struct safetensors_header *h, struct ckpt_buf *metadata, safetensors_visit *visit, void *arg,
                struct ckpt_err *err)
{
    struct tokens *t = &h->tokens;
    struct safetensors_tensor tensor;
    struct ckpt_buf name = {.max = SAFETENSORS_MAX_NAME};
    bool first = true, has_metadata = false;
    t->err = err;
    ckpt_tokens_seek(t, t->begin);
    int r = ckpt_tokens_take(t, '{');
    while (r == 0 && (r = ckpt_tokens_more(t, '}', &first)) == 1) {
        uint64_t place = ckpt_tokens_place(t);
        name.len = 0;
        r = ckpt_tokens_string(t, &name);
        if (r == 0 && ckpt_buf_error(&name))
            r = ckpt_fail(err, ckpt_buf_error(&name) == -ENOMEM ? ENOMEM : EOPNOTSUPP,
                          "the name of a tensor is longer than %zu bytes", SAFETENSORS_MAX_NAME);
        if (r == 0)
            r = ckpt_tokens_take(t, ':');
        if (r < 0)
            break;
        if (name.len == 12 && !memcmp(name.data, "__metadata__", 12)) {
            r = has_metadata ? ckpt_tokens_fail(t, "__metadata__ is there twice") : take_metadata(t, metadata);
            has_metadata = true;
            continue;
        }
        r = take_tensor(h, &tensor);
        if (r == 0)
            r = visit(arg, &name, place, &tensor);
    }
    ckpt_buf_clear(&name);
    return r < 0 ? r : ckpt_tokens_end(t);
}

int ckpt_safetensors_header_each(struct safetensors_header *h, safetensors_visit *visit, void *arg,
                                 struct ckpt_err *err)
{
    return walk(h, NULL, visit, arg, err);
}

struct range {
    uint64_t off, len;
};

struct ranges {
    struct ckpt_name_set names;
    struct range *ranges;
    size_t count, cap;
    struct ckpt_err *err;
};

static int add_range(void *arg, const struct ckpt_buf *name, uint64_t place, const struct safetensors_tensor *tensor)
{
    struct ranges *all = arg;
    if (!CKPT_ROOM_FOR_ONE(all->ranges, all->count, all->cap))
        return ckpt_no_memory(all->err);
    all->ranges[all->count++] = (struct range){tensor->off, tensor->len};
    if (ckpt_name_set_add(&all->names, ckpt_name_hash(name->data ? (char *)name->data : "", name->len)) < 0)
        return ckpt_no_memory(all->err);
    return 0;
}

static int by_place(const void *pa, const void *pb)
{
    const struct range *a = pa, *b = pb;
    if (a->off != b->off)
        return a->off < b->off ? -1 : 1;
    return a->len < b->len ? -1 : a->len > b->len;
}

/* Every byte of the data belongs to exactly one tensor: nothing is hidden, and nothing is seen twice. */
static int check_ranges(const struct safetensors_header *h, struct ranges *all)
{
    uint64_t at = h->data;
    if (all->count)
        qsort(all->ranges, all->count, sizeof *all->ranges, by_place);
    for (size_t i = 0; i < all->count; i++) {
        if (all->ranges[i].off != at)
            return ckpt_fail(all->err, EUCLEAN, "the data of the tensors %s at byte %llu",
                             all->ranges[i].off < at ? "overlap" : "have a hole",
                             (unsigned long long)CKPT_MIN(at, all->ranges[i].off));
        at += all->ranges[i].len;
    }
    if (at != h->file->st.size)
        return ckpt_fail(all->err, EUCLEAN, "%llu bytes follow the last tensor",
                         (unsigned long long)(h->file->st.size - at));
    return 0;
}

int ckpt_safetensors_header_check(struct safetensors_header *h, struct ckpt_buf *metadata, struct ckpt_err *err)
{
    struct ranges all = {.err = err};
    int r = walk(h, metadata, add_range, &all, err);
    if (r == 0)
        r = check_ranges(h, &all);
    if (r == 0 && ckpt_name_set_has_twice(&all.names))
        r = ckpt_fail(err, EUCLEAN, "two tensors have the same name");
    free(all.ranges);
    ckpt_name_set_clear(&all.names);
    return r;
}
