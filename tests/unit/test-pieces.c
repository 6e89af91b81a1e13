/* SPDX-License-Identifier: Apache-2.0 */
/* Arrays that are committed in pieces: random tilings, holes, overlaps, repeats, and names that are no slices. */
#include "tests/unit/commit.h"

struct tiling {
    unsigned ndim;
    uint64_t shape[4];
    uint8_t *all; /* of u16 */
    struct staged *s;
    uint64_t seed;
    bool drop; /* write dimensions of one index as that index */
    unsigned count;
};

static void add_piece(struct tiling *t, const uint64_t *from, const uint64_t *to, int change)
{
    char name[256];
    int at = snprintf(name, sizeof name, "p/x@");
    uint64_t shape[4], index[4], n = 1;
    unsigned ndim = 0;
    for (unsigned d = 0; d < t->ndim; d++) {
        bool drop = t->drop && to[d] == from[d] + 1 && test_below(&t->seed, 2);
        const char *comma = d ? "," : "";
        if (drop)
            at += snprintf(name + at, sizeof name - (size_t)at, "%s%llu", comma, (unsigned long long)from[d]);
        else if (!from[d] && test_below(&t->seed, 2))
            at += snprintf(name + at, sizeof name - (size_t)at, "%s:%llu", comma, (unsigned long long)to[d]);
        else
            at += snprintf(name + at, sizeof name - (size_t)at, "%s%llu:%llu", comma, (unsigned long long)from[d],
                           (unsigned long long)to[d]);
        if (!drop)
            shape[ndim++] = to[d] - from[d];
        index[d] = from[d];
        n *= to[d] - from[d];
    }
    snprintf(name + at, sizeof name - (size_t)at, ".npy");
    uint8_t *data = malloc(2 * n + 1);
    for (uint64_t i = 0; i < n; i++) {
        uint64_t flat = 0;
        for (unsigned d = 0; d < t->ndim; d++)
            flat = flat * t->shape[d] + index[d];
        memcpy(data + 2 * i, t->all + 2 * flat, 2);
        for (unsigned d = t->ndim; d-- > 0;) {
            if (++index[d] < to[d])
                break;
            index[d] = from[d];
        }
    }
    data[0] ^= (uint8_t)change;
    add_npy(t->s, name, "<V2", ndim, shape, data, 2 * n);
    free(data);
    t->count++;
}

/* Guillotine cuts. */
static void cut(struct tiling *t, const uint64_t *from, const uint64_t *to, unsigned depth)
{
    unsigned d = (unsigned)test_below(&t->seed, t->ndim);
    if (!depth || to[d] - from[d] < 2) {
        add_piece(t, from, to, 0);
        return;
    }
    uint64_t middle = from[d] + 1 + test_below(&t->seed, to[d] - from[d] - 1), low[4], high[4];
    memcpy(low, from, sizeof low);
    memcpy(high, to, sizeof high);
    high[d] = middle;
    cut(t, from, high, depth - 1);
    low[d] = middle;
    cut(t, low, to, depth - 1);
}

static void tiling_begin(struct root *r, struct staged *s, struct tiling *t, unsigned ndim, const uint64_t *shape,
                         uint64_t seed)
{
    uint64_t n = 1;
    *t = (struct tiling){.ndim = ndim, .s = s, .seed = seed * 2 + 1};
    for (unsigned d = 0; d < ndim; d++)
        n *= t->shape[d] = shape[d];
    t->all = malloc(2 * n + 1);
    for (uint64_t i = 0; i < 2 * n; i++)
        t->all[i] = (uint8_t)(i % 1000 < 500 ? test_random(&t->seed) >> 40 : 0);
    staged_begin(r, s);
}

static void check_joined(struct root *r, const struct tiling *t, const char *name)
{
    struct step step;
    uint64_t n = 2;
    step_read(r, name, &step);
    CHECK(step.count == 3);
    const struct step_node *a = step_get(&step, "p/x.npy");
    CHECK(a->n.kind == CKPT_NODE_ARRAY && a->n.npy.dtype == CKPT_DT_BF16 && a->n.npy.ndim == t->ndim &&
          !a->n.npy.fortran);
    for (unsigned d = 0; d < t->ndim; d++) {
        CHECK(a->n.npy.shape[d] == t->shape[d]);
        n *= t->shape[d];
    }
    CHECK(a->n.size == a->n.npy.header + n && !memcmp(a->bytes + a->n.npy.header, t->all, n));
    step_clear(&step);
}

static void test_tilings(struct root *r)
{
    static const uint64_t shapes[][4] = {{40},        {3000, 1}, {30, 40},       {7, 9, 11},  {5, 6, 7, 8},
                                         {3, 900000}, {1, 5},    {300, 2, 4000}, {2, 3000000}};
    static const unsigned ndims[] = {1, 2, 2, 3, 4, 2, 2, 3, 2};
    char name[32];
    for (unsigned i = 0; i < 27; i++) {
        struct staged s;
        struct tiling t;
        unsigned k = i % 9;
        tiling_begin(r, &s, &t, ndims[k], shapes[k], i);
        t.drop = i >= 9;
        cut(&t, (uint64_t[4]){0}, t.shape, 1 + i / 3);
        struct ckpt_commit c = staged_commit(&s, name);
        c.codec = i % 2 ? CKPT_OBJECT_NONE : CKPT_OBJECT_AUTO;
        snprintf(name, sizeof name, "tile_%u", i);
        CHECK(ckpt_commit_check(&c, NULL) == 0);
        CHECK(commit_with(&c) == 0);
        check_joined(r, &t, name);
        free(t.all);
        staged_end(&s);
    }
}

/* As views name them: a slice of the first dimensions. */
static void test_rows(struct root *r)
{
    struct staged s;
    struct step step;
    uint16_t data[24];
    for (int i = 0; i < 24; i++)
        data[i] = (uint16_t)(i * 3);
    staged_begin(r, &s);
    add_npy(&s, "a@0:2.npy", "<u2", 3, (uint64_t[]){2, 3, 2}, data, 24);
    add_npy(&s, "a@2,:3,.npy", "<u2", 2, (uint64_t[]){3, 2}, data + 12, 12);
    add_npy(&s, "a@3:4:1,:3:,0:2.npy", "<u2", 3, (uint64_t[]){1, 3, 2}, data + 18, 12);
    add_npy(&s, "a@3:3,0:3,0:2.npy", "<u2", 3, (uint64_t[]){0, 3, 2}, NULL, 0);
    set_attr(&s, "a@0:2.npy", "user.who", "one");
    add_npy(&s, "e@0:0,0:4.npy", "<u2", 2, (uint64_t[]){0, 4}, NULL, 0);
    file_write(s.tree, "me@home.npy", "an ordinary name");
    file_write(s.tree, "a@0:2.txt", "another");
    add_npy(&s, "@0:2.npy", "<u2", 1, (uint64_t[]){2}, data, 4);
    add_npy(&s, "x@.npy", "<u2", 1, (uint64_t[]){2}, data, 4);
    add_npy(&s, "x@01:2.npy", "<u2", 1, (uint64_t[]){2}, data, 4);
    CHECK(mkdir(file_path(s.tree, "d@0:1.npy"), 0755) == 0);
    CHECK(commit_as(&s, "rows_1") == 0);
    step_read(r, "rows_1", &step);
    CHECK(step.count == 9);
    const struct step_node *a = step_get(&step, "a.npy"), *e = step_get(&step, "e.npy");
    CHECK(a->n.npy.ndim == 3 && a->n.npy.shape[0] == 4 && a->n.npy.shape[1] == 3 && a->n.npy.shape[2] == 2);
    CHECK(a->n.size == 176 && !memcmp(a->bytes + 128, data, 48));
    CHECK_STR(a->n.xattrs, "{\"user.who\":\"6f6e65\"}");
    CHECK(e->n.npy.ndim == 2 && e->n.npy.shape[0] == 0 && e->n.npy.shape[1] == 4 && e->n.size == 128);
    CHECK(step_get(&step, "me@home.npy")->n.kind == CKPT_NODE_BLOB && step_get(&step, "a@0:2.txt") &&
          step_get(&step, "d@0:1.npy"));
    CHECK(step_get(&step, "@0:2.npy")->n.kind == CKPT_NODE_ARRAY && step_get(&step, "x@.npy") &&
          step_get(&step, "x@01:2.npy"));
    step_clear(&step);
    staged_end(&s);
}

/* A pair of pieces of x, and what comes of them. */
static void check_pair(struct root *r, const char *a, uint64_t an, const char *b, uint64_t bn, int code,
                       const char *word)
{
    struct staged s;
    uint8_t data[64] = {1, 2, 3};
    staged_begin(r, &s);
    add_npy(&s, a, "<u2", 1, &an, data, 2 * an);
    if (b)
        add_npy(&s, b, "<u2", 1, &bn, data, 2 * bn);
    check_refused(r, &s, code, word, code == ENODATA || code == EBADMSG);
    staged_end(&s);
}

static void test_bad_pieces(struct root *r)
{
    struct staged s;
    uint8_t data[64] = {0};
    check_pair(r, "x@0:2.npy", 2, "x@3:5.npy", 2, ENODATA, "hole: they have 4 of 5");
    check_pair(r, "x@1:2.npy", 1, NULL, 0, ENODATA, "hole");
    check_pair(r, "x@0:3.npy", 3, "x@2:5.npy", 3, ENODATA, "overlap");
    check_pair(r, "x@0:3.npy", 3, "x@0:2.npy", 2, ENODATA, "overlap");
    check_pair(r, "x@0:2.npy", 2, "x@2:4,0:2.npy", 2, EUCLEAN, "shape");
    check_pair(r, "x@0:2.npy", 3, NULL, 0, EUCLEAN, "shape");
    check_pair(r, "x@0:.npy", 2, "x@3:.npy", 2, ENODATA,
               "hole: they have 4 of 5"); /* an end that is left out is the piece's */
    check_pair(r, "x@:.npy", 2, "x@1:3.npy", 2, ENODATA, "overlap");
    check_pair(r, "x@....npy", 2, NULL, 0, EOPNOTSUPP, "without an ellipsis");
    check_pair(r, "x@0:2,....npy", 2, NULL, 0, EOPNOTSUPP, "without an ellipsis");
    check_pair(r, "x@-2:2.npy", 2, NULL, 0, EOPNOTSUPP, "without an ellipsis");
    check_pair(r, "x@0:2:2.npy", 2, NULL, 0, EOPNOTSUPP, "step");
    check_pair(r, "x@0:2:10.npy", 2, NULL, 0, EOPNOTSUPP, "step");
    check_pair(r, "x@5:2.npy", 2, NULL, 0, EOPNOTSUPP, "before");
    check_pair(r, "x@0:99999999999999999999.npy", 2, NULL, 0, EOPNOTSUPP, "without an ellipsis");
    check_pair(r, "x@0:2.npy", 2, "x.npy", 2, EEXIST, "whole and in pieces");

    staged_begin(r, &s);
    add_npy(&s, "x@0:2.npy", "<u2", 1, (uint64_t[]){2}, data, 4);
    add_npy(&s, "x@2:4.npy", "<i2", 1, (uint64_t[]){2}, data, 4);
    check_refused(r, &s, EUCLEAN, "type", false);
    add_npy(&s, "x@2:4.npy", "<u2", 1, (uint64_t[]){2}, data, 4);
    set_attr(&s, "x@2:4.npy", "user.ckpt.dtype", "bfloat16");
    check_refused(r, &s, EUCLEAN, "type", false);
    file_remove(s.tree, "x@2:4.npy");
    add_npy(&s, "x@2:4.npy", ">u2", 1, (uint64_t[]){2}, data, 4);
    check_refused(r, &s, EOPNOTSUPP, "big-endian", false);
    add_npy(&s, "x@2:4.npy", "<u2", 1, (uint64_t[]){2}, data, 3);
    check_refused(r, &s, EBADMSG, "x@2:4.npy", true);
    file_write(s.tree, "x@2:4.npy", "no array");
    check_refused(r, &s, EUCLEAN, "not a NumPy file", false);
    add_npy(&s, "x@2:4.npy", "<u2", 1, (uint64_t[]){2}, data, 4);
    CHECK(commit_as(&s, "pieces_1") == 0);
    staged_end(&s);

    staged_begin(r, &s);
    struct ckpt_buf f = CKPT_BUF_INIT;
    ckpt_buf_add(&f, "\x93NUMPY\x01\x00\x76\x00", 10);
    ckpt_buf_adds(&f, "{'descr': '<u2', 'fortran_order': True, 'shape': (2, 2), }");
    while (f.len < 127)
        ckpt_buf_addc(&f, ' ');
    ckpt_buf_adds(&f, "\n12345678");
    file_write_bytes(s.tree, "f@0:2,0:2.npy", f.data, f.len);
    check_refused(r, &s, EOPNOTSUPP, "Fortran", false);
    CHECK(rename(file_path(s.tree, "f@0:2,0:2.npy"), file_path(s.tree, "f.npy")) == 0 &&
          commit_as(&s, "fortran_1") == 0);
    check_same(&s, "fortran_1");
    ckpt_buf_clear(&f);
    staged_end(&s);
}

/* One box too many. */
static void test_overlaps(struct root *r)
{
    static const uint64_t shape[] = {60, 70};
    for (unsigned i = 0; i < 10; i++) {
        struct staged s;
        struct tiling t;
        tiling_begin(r, &s, &t, 2, shape, i + 100);
        uint64_t from[] = {3 + i, 5, 0, 0}, to[] = {9 + 5 * i, 17 + i, 0, 0};
        cut(&t, (uint64_t[4]){0}, t.shape, 4);
        char name[64];
        snprintf(name, sizeof name, "p/x@%u:%u,5:%u.npy", 3 + i, 9 + 5 * i, 17 + i);
        if (access(file_path(s.tree, name), F_OK) < 0)
            add_piece(&t, from, to, 0);
        check_refused(r, &s, ENODATA, "overlap", true);
        free(t.all);
        staged_end(&s);
    }
}

/* Equal boxes have different names where a bound is written in two ways. */
static void test_repeats(struct root *r)
{
    for (unsigned i = 0; i < 4; i++) {
        struct staged s;
        struct ckpt_buf one = CKPT_BUF_INIT;
        uint64_t n = i < 2 ? 10 : 3000000;
        char name[64];
        for (uint64_t k = 0; k < n; k++)
            ckpt_buf_addc(&one, (char)(k * 7));
        staged_begin(r, &s);
        snprintf(name, sizeof name, "x@0:%llu.npy", (unsigned long long)n);
        add_npy(&s, name, "|u1", 1, &n, one.data, n);
        snprintf(name, sizeof name, "x@%llu:%llu.npy", (unsigned long long)n, (unsigned long long)(2 * n));
        add_npy(&s, name, "|u1", 1, &n, one.data, n);
        one.data[n - 1] ^= i % 2;
        snprintf(name, sizeof name, "x@:%llu.npy", (unsigned long long)n);
        add_npy(&s, name, "|u1", 1, &n, one.data, n);
        if (i % 2)
            check_refused(r, &s, EEXIST, "differ", false);
        else {
            struct step step;
            snprintf(name, sizeof name, "same_%u", i);
            CHECK(commit_as(&s, name) == 0);
            step_read(r, name, &step);
            const struct step_node *x = step_get(&step, "x.npy");
            CHECK(x->n.npy.shape[0] == 2 * n && !memcmp(x->bytes + 128, one.data, n) &&
                  !memcmp(x->bytes + 128 + n, one.data, n));
            step_clear(&step);
        }
        ckpt_buf_clear(&one);
        staged_end(&s);
    }
}

/* Thousands of pieces, in a grid and as bricks that no grid has. */
static void test_many_pieces(struct root *r)
{
    for (int brick = 0; brick < 2; brick++) {
        static const uint64_t shape[] = {160, 160};
        struct staged s;
        struct tiling t;
        tiling_begin(r, &s, &t, 2, shape, 5);
        for (uint64_t i = 0; i < 160; i += 4)
            for (uint64_t j = 0; j < 160; j += 4) {
                uint64_t shift = brick ? i / 4 % 4 : 0, from[] = {i, j ? j + shift : 0, 0, 0},
                         to[] = {i + 4, j + 4 < 160 ? j + 4 + shift : 160, 0, 0};
                add_piece(&t, from, to, 0);
            }
        CHECK(t.count == 1600 && commit_as(&s, brick ? "brick_1" : "grid_1") == 0);
        check_joined(r, &t, brick ? "brick_1" : "grid_1");
        free(t.all);
        staged_end(&s);
    }
}

int main(void)
{
    struct root r;
    root_begin(&r);
    test_tilings(&r);
    test_rows(&r);
    test_bad_pieces(&r);
    test_overlaps(&r);
    test_repeats(&r);
    test_many_pieces(&r);
    root_end(&r);
    return 0;
}
