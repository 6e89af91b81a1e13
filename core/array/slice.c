/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Follows Python: an item's numbers are read into 64 bits with saturation, which loses nothing because slices clip to
 * the dimension (PySlice_Unpack saturates the same way) and because no integer index that large is in range.
 */
#include "core/array/slice.h"

#include "core/base/err.h"
#include "core/base/util.h"

struct cursor {
    const char *at, *end;
};

static bool accept(struct cursor *c, const char *token)
{
    size_t n = strlen(token);
    bool is_there = (size_t)(c->end - c->at) >= n && !memcmp(c->at, token, n);
    if (!is_there)
        return false;
    c->at += n;
    return true;
}

/* "-"? digits, as Python writes integers: no leading zeros ("00" is zero, "01" a syntax error). 1 a number, 0 none,
 * <0 malformed. */
static int accept_int(struct cursor *c, int64_t *ret)
{
    bool negative = accept(c, "-"), large = false;
    const char *first = c->at;
    int64_t value = 0;
    for (; c->at < c->end && ckpt_is_digit(*c->at); c->at++) { /* below zero, where there is one more number */
        large |= __builtin_mul_overflow(value, (int64_t)10, &value);
        large |= __builtin_sub_overflow(value, (int64_t)(*c->at - '0'), &value);
    }
    if (c->at == first)
        return negative ? -ENOENT : 0;
    bool is_zero = !large && value == 0;
    if (*first == '0' && !is_zero)
        return -ENOENT;
    if (large)
        value = INT64_MIN;
    if (negative)
        *ret = value;
    else
        *ret = value == INT64_MIN ? INT64_MAX : -value;
    return 1;
}

/* What Python's slice.indices() does with a bound: from the end when negative, then clipped to [low, high]. */
static int64_t clip(int64_t bound, int64_t n, int64_t low, int64_t high)
{
    if (bound < 0)
        bound += n;
    return CKPT_MIN(CKPT_MAX(bound, low), high);
}

static void select_slice(struct ckpt_selection *sel, unsigned dim, int64_t start, int64_t stop, int64_t step)
{
    uint64_t count = 0;
    int64_t length = step > 0 ? stop - start : start - stop;
    if (length > 0)
        count = (uint64_t)(length - 1) / (uint64_t)llabs(step) + 1;
    sel->count[dim] = count;
    sel->start[dim] = count ? (uint64_t)start : 0;
    sel->step[dim] = count > 1 ? step : 1; /* a huge step that is never taken would only overflow somewhere */
}

/* A single index, which takes the dimension away. */
static int select_index(struct ckpt_selection *sel, unsigned dim, int64_t index, int64_t n)
{
    if (index < 0)
        index += n;
    if (index < 0 || index >= n)
        return -ENOENT;
    select_slice(sel, dim, index, index + 1, 1);
    return 0;
}

/* One item that is not "..." against dimension dim of n elements. */
static int parse_item(struct cursor *c, struct ckpt_selection *sel, unsigned dim, int64_t n)
{
    int64_t start = 0, stop = 0, step = 1;
    int has_start = accept_int(c, &start);
    if (has_start < 0)
        return -ENOENT;
    sel->dropped[dim] = !accept(c, ":");
    if (sel->dropped[dim])
        return has_start ? select_index(sel, dim, start, n) : -ENOENT;
    int has_stop = accept_int(c, &stop);
    if (has_stop < 0)
        return -ENOENT;
    if (accept(c, ":") && accept_int(c, &step) < 0)
        return -ENOENT;
    if (step == 0)
        return -ENOENT;
    step = CKPT_MAX(step, -INT64_MAX); /* so that it can be negated */
    bool forward = step > 0;
    int64_t low = forward ? 0 : -1, high = forward ? n : n - 1;
    if (has_start)
        start = clip(start, n, low, high);
    else
        start = forward ? low : high;
    if (has_stop)
        stop = clip(stop, n, low, high);
    else
        stop = forward ? high : low;
    select_slice(sel, dim, start, stop, step);
    return 0;
}

static void select_whole(struct ckpt_selection *sel, unsigned dim, uint64_t n)
{
    sel->start[dim] = 0;
    sel->step[dim] = 1;
    sel->count[dim] = n;
    sel->dropped[dim] = false;
}

void ckpt_selection_all(struct ckpt_selection *sel, unsigned ndim, const uint64_t *shape)
{
    sel->ndim = ndim;
    for (unsigned i = 0; i < ndim; i++)
        select_whole(sel, i, shape[i]);
}

/* How many items stand in text, "..." not counted; a trailing comma ends the last one. */
static unsigned count_items(const char *text, size_t len)
{
    unsigned items = 1;
    for (size_t i = 0; i + 1 < len; i++)
        items += text[i] == ',';
    for (size_t i = 0; i + 2 < len; i++)
        if (!memcmp(text + i, "...", 3)) /* at most one is valid, so one is all there is to subtract */
            return items - 1;
    return items;
}

int ckpt_slice_parse(const char *text, size_t len, unsigned ndim, const uint64_t *shape, struct ckpt_selection *ret)
{
    struct cursor c = {text, text + len};
    struct ckpt_selection sel;
    unsigned items = count_items(text, len), dim = 0;
    bool ellipsis = false;

    bool may_fit = len && ndim <= CKPT_MAX_DIMS && items <= ndim;
    if (!may_fit)
        return -ENOENT;
    ckpt_selection_all(&sel, ndim, shape);
    for (;;) {
        if (accept(&c, "...")) {
            if (ellipsis)
                return -ENOENT;
            ellipsis = true;
            dim += ndim - items;
        } else {
            if (dim >= ndim || shape[dim] > INT64_MAX) /* beyond int64 there is no NumPy array */
                return -ENOENT;
            if (parse_item(&c, &sel, dim, (int64_t)shape[dim]) < 0)
                return -ENOENT;
            dim++;
        }
        if (c.at == c.end)
            break;
        if (!accept(&c, ","))
            return -ENOENT;
        if (c.at == c.end)
            break; /* one trailing comma, as Python allows */
    }
    *ret = sel;
    return 0;
}

unsigned ckpt_selection_shape(const struct ckpt_selection *sel, uint64_t *shape)
{
    unsigned n = 0;
    for (unsigned i = 0; i < sel->ndim; i++)
        if (!sel->dropped[i])
            shape[n++] = sel->count[i];
    return n;
}

uint64_t ckpt_selection_elements(const struct ckpt_selection *sel)
{
    uint64_t n = 1;
    bool large = false;
    for (unsigned i = 0; i < sel->ndim; i++) {
        if (!sel->count[i])
            return 0;
        large |= ckpt_mul(n, sel->count[i], &n);
    }
    return large ? UINT64_MAX : n;
}
