/* SPDX-License-Identifier: Apache-2.0 */
#include "core/array/share.h"

#include "tests/unit/check.h"

static struct ckpt_array *make(enum ckpt_dtype dtype, uint64_t rows, uint64_t columns)
{
    struct ckpt_array *a = ckpt_array_new(dtype, 2, (uint64_t[]){rows, columns});
    CHECK(a && ckpt_array_settle(a, NULL) == 0);
    return a;
}

/* Equal ones are one, and what differs in any way is not. */
static void test_equal(void)
{
    struct ckpt_layouts *l = ckpt_layouts_new();
    struct ckpt_array *first = ckpt_layouts_share(l, make(CKPT_DT_F32, 3, 4)),
                      *a = ckpt_layouts_share(l, make(CKPT_DT_F32, 3, 4));
    CHECK(a == first);
    ckpt_array_unref(a);
    struct ckpt_array *others[7];
    for (unsigned i = 0; i < 7; i++) {
        a = make(i == 0 ? CKPT_DT_I32 : CKPT_DT_F32, i == 1 ? 4 : 3, i == 1 ? 3 : 4);
        a->big_endian = i == 2;
        a->flip = i == 3;
        a->start = i == 4;
        a->unsupported = i == 5;
        a->codecs.count = i == 6;
        others[i] = ckpt_layouts_share(l, a);
        for (unsigned j = 0; j <= i; j++)
            CHECK(others[i] != first && (i == j || others[i] != others[j]));
    }
    for (unsigned i = 0; i < 7; i++)
        ckpt_array_unref(others[i]);
    ckpt_array_unref(first);
    ckpt_layouts_free(l);
}

static void test_many(void)
{
    struct ckpt_layouts *l = ckpt_layouts_new();
    struct ckpt_array *kept[500];
    for (unsigned i = 0; i < 500; i++)
        kept[i] = ckpt_layouts_share(l, make(CKPT_DT_U8, i, 1));
    size_t bytes = ckpt_layouts_memory(l);
    for (unsigned i = 0; i < 500; i++) {
        struct ckpt_array *a = ckpt_layouts_share(l, make(CKPT_DT_U8, i, 1));
        CHECK(a == kept[i]);
        ckpt_array_unref(a);
        ckpt_array_unref(kept[i]);
    }
    CHECK(ckpt_layouts_memory(l) == bytes);
    ckpt_layouts_free(l);
    ckpt_layouts_free(NULL);
}

int main(void)
{
    test_equal();
    test_many();
    return 0;
}
