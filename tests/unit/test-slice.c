/* SPDX-License-Identifier: Apache-2.0 */
#include "core/array/slice.h"

#include "tests/unit/check.h"

#include <errno.h>
#include <inttypes.h>

/* "start:step:count" of each dimension, "!" after one that an integer picked: what NumPy gives. NULL: NumPy refuses. */
static const struct {
    const char *text;
    unsigned ndim;
    uint64_t shape[4];
    const char *want;
} cases[] = {
    {":", 1, {5}, "0:1:5"},
    {"::", 1, {5}, "0:1:5"},
    {"...", 1, {5}, "0:1:5"},
    {"...", 0, {0}, ""},
    {"...,", 0, {0}, ""},
    {"0", 1, {5}, "0:1:1!"},
    {"-1", 1, {5}, "4:1:1!"},
    {"-0", 1, {5}, "0:1:1!"},
    {"00", 1, {5}, "0:1:1!"},
    {"4", 1, {5}, "4:1:1!"},
    {"-5", 1, {5}, "0:1:1!"},
    {"1:3", 1, {5}, "1:1:2"},
    {"1:99", 1, {5}, "1:1:4"},
    {"-99:2", 1, {5}, "0:1:2"},
    {"3:1", 1, {5}, "0:1:0"},
    {"::2", 1, {5}, "0:2:3"},
    {"::-1", 1, {5}, "4:-1:5"},
    {"::-2", 1, {5}, "4:-2:3"},
    {"3:0:-1", 1, {5}, "3:-1:3"},
    {"3::-1", 1, {5}, "3:-1:4"},
    {":1:-1", 1, {5}, "4:-1:3"},
    {"-2:-4:-1", 1, {5}, "3:-1:2"},
    {"0:-5:-1", 1, {5}, "0:1:0"},
    {"0:-6:-1", 1, {5}, "0:1:1"},
    {"::-1", 1, {0}, "0:1:0"},
    {":", 1, {0}, "0:1:0"},
    {"::99", 1, {5}, "0:1:1"},
    {"::9223372036854775807", 1, {5}, "0:1:1"},
    {"::-9223372036854775809", 1, {5}, "4:1:1"},
    {"99999999999999999999:", 1, {5}, "0:1:0"},
    {":99999999999999999999", 1, {5}, "0:1:5"},
    {"-99999999999999999999:", 1, {5}, "0:1:5"},
    {":-99999999999999999999:-1", 1, {5}, "4:-1:5"},
    {"0:4,:,-1", 3, {6, 2, 3}, "0:1:4 0:1:2 2:1:1!"},
    {"1", 3, {6, 2, 3}, "1:1:1! 0:1:2 0:1:3"},
    {"1,", 3, {6, 2, 3}, "1:1:1! 0:1:2 0:1:3"},
    {"0:2,", 1, {5}, "0:1:2"},
    {"...,1", 3, {6, 2, 3}, "0:1:6 0:1:2 1:1:1!"},
    {"1,...", 3, {6, 2, 3}, "1:1:1! 0:1:2 0:1:3"},
    {"1,...,::2", 3, {6, 2, 3}, "1:1:1! 0:1:2 0:2:2"},
    {"1,1,...,1", 3, {6, 2, 3}, "1:1:1! 1:1:1! 1:1:1!"},
    {"...,1,1,1", 3, {6, 2, 3}, "1:1:1! 1:1:1! 1:1:1!"},
    {"9223372036854775806", 2, {INT64_MAX, 2}, "9223372036854775806:1:1! 0:1:2"},
    {"::-1", 1, {INT64_MAX}, "9223372036854775806:-1:9223372036854775807"},
    {"::9223372036854775806", 1, {INT64_MAX}, "0:9223372036854775806:2"},

    {"", 1, {5}, NULL},
    {",", 1, {5}, NULL},
    {"0,,", 2, {5, 5}, NULL},
    {",0", 2, {5, 5}, NULL},
    {"5", 1, {5}, NULL},
    {"-6", 1, {5}, NULL},
    {"0", 1, {0}, NULL},
    {"0", 0, {0}, NULL},
    {":", 0, {0}, NULL},
    {"...,...", 2, {5, 5}, NULL},
    {"0,0", 1, {5}, NULL},
    {"0,0,...", 1, {5}, NULL},
    {"::0", 1, {5}, NULL},
    {"::0", 1, {0}, NULL},
    {":::", 1, {5}, NULL},
    {"0:1:1:1", 1, {5}, NULL},
    {"..", 1, {5}, NULL},
    {"....", 1, {5}, NULL},
    {"...0", 1, {5}, NULL},
    {"-", 1, {5}, NULL},
    {"--1", 1, {5}, NULL},
    {"+1", 1, {5}, NULL},
    {"1_0", 1, {50}, NULL},
    {"01", 1, {5}, NULL},
    {"01844674407370955161600", 1, {5}, NULL},
    {" 1", 1, {5}, NULL},
    {"1 ", 1, {5}, NULL},
    {"1.0", 1, {5}, NULL},
    {"0x1", 1, {5}, NULL},
    {"None", 1, {5}, NULL},
    {"18446744073709551616", 1, {5}, NULL},
    {"-18446744073709551615", 1, {5}, NULL},
    {"9223372036854775807", 1, {INT64_MAX}, NULL},
    {"-9223372036854775808", 1, {INT64_MAX}, NULL},
    {"0", 1, {UINT64_MAX}, NULL},
};

static void describe(const struct ckpt_selection *sel, char *text, size_t size)
{
    size_t at = 0;
    text[0] = 0;
    for (unsigned i = 0; i < sel->ndim; i++)
        at += (size_t)snprintf(text + at, size - at, "%s%" PRIu64 ":%" PRId64 ":%" PRIu64 "%s", i ? " " : "",
                               sel->start[i], sel->step[i], sel->count[i], sel->dropped[i] ? "!" : "");
}

static void check_golden(void)
{
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct ckpt_selection sel;
        size_t len = strlen(cases[i].text);
        char *text = malloc(len + 1), got[512]; /* of its exact length, so that a sanitizer sees a read beyond it */
        CHECK(text);
        char *exact = realloc(text, len ? len : 1);
        CHECK(exact);
        memcpy(exact, cases[i].text, len);
        int r = ckpt_slice_parse(exact, len, cases[i].ndim, cases[i].shape, &sel);
        if (r != (cases[i].want ? 0 : -ENOENT))
            fprintf(stderr, "\"%s\": %d\n", cases[i].text, r);
        CHECK(r == (cases[i].want ? 0 : -ENOENT));
        free(exact);
        if (r < 0)
            continue;
        describe(&sel, got, sizeof got);
        CHECK_STR(got, cases[i].want);
    }
}

/* Python's definition, by trying every element: which indices a slice of n elements has. */
static unsigned reference(int n, const int *start, const int *stop, int step, int *ret)
{
    unsigned count = 0;
    int from = step > 0 ? 0 : n - 1, to = step > 0 ? n : -1;
    if (start)
        from = *start < 0 ? *start + n : *start;
    if (stop)
        to = *stop < 0 ? *stop + n : *stop;
    if (stop && step < 0 && *stop < -n)
        to = -1;
    if (step > 0)
        for (int i = from < 0 ? 0 : from; i < to && i < n; i += step)
            ret[count++] = i;
    else
        for (int i = from >= n ? n - 1 : from; i > to && i >= 0; i += step)
            ret[count++] = i;
    return count;
}

static void check_one(int n, const int *start, const int *stop, int step)
{
    char text[64] = "", number[16];
    int want[16];
    struct ckpt_selection sel;
    uint64_t shape = (uint64_t)n;
    if (start) {
        snprintf(number, sizeof number, "%d", *start);
        strcat(text, number);
    }
    strcat(text, ":");
    if (stop) {
        snprintf(number, sizeof number, "%d", *stop);
        strcat(text, number);
    }
    snprintf(number, sizeof number, ":%d", step);
    strcat(text, number);
    unsigned count = reference(n, start, stop, step, want);
    CHECK(ckpt_slice_parse(text, strlen(text), 1, &shape, &sel) == 0);
    CHECK(sel.count[0] == count && !sel.dropped[0] && ckpt_selection_elements(&sel) == count);
    for (unsigned i = 0; i < count; i++)
        CHECK((int64_t)sel.start[0] + (int64_t)i * sel.step[0] == want[i]);
}

static void check_brute_force(void)
{
    for (int n = 0; n <= 6; n++)
        for (int start = -9; start <= 9; start++)
            for (int stop = -9; stop <= 9; stop++)
                for (int step = -8; step <= 8; step++) {
                    if (!step)
                        continue;
                    check_one(n, start == 9 ? NULL : &start, stop == 9 ? NULL : &stop, step);
                }
}

static void check_selection(void)
{
    struct ckpt_selection sel;
    const uint64_t shape[] = {4, 0, 3}, large[] = {UINT64_MAX, 2, 0};
    uint64_t got[CKPT_MAX_DIMS];

    ckpt_selection_all(&sel, 3, shape);
    CHECK(ckpt_selection_shape(&sel, got) == 3 && !memcmp(got, shape, sizeof shape));
    CHECK(ckpt_selection_elements(&sel) == 0);
    ckpt_selection_all(&sel, 0, NULL);
    CHECK(ckpt_selection_shape(&sel, got) == 0 && ckpt_selection_elements(&sel) == 1);
    ckpt_selection_all(&sel, 2, large);
    CHECK(ckpt_selection_elements(&sel) == UINT64_MAX); /* saturated */
    ckpt_selection_all(&sel, 3, large);
    CHECK(ckpt_selection_elements(&sel) == 0);
    CHECK(ckpt_slice_parse("1,...,::2", 9, 3, (uint64_t[]){4, 5, 3}, &sel) == 0);
    CHECK(ckpt_selection_shape(&sel, got) == 2 && got[0] == 5 && got[1] == 2 && ckpt_selection_elements(&sel) == 10);

    sel.ndim = 77; /* a failed parse leaves the result alone */
    CHECK(ckpt_slice_parse("9", 1, 1, (uint64_t[]){4}, &sel) == -ENOENT && sel.ndim == 77);
}

int main(void)
{
    check_golden();
    check_brute_force();
    check_selection();
    return 0;
}
