/* SPDX-License-Identifier: Apache-2.0 */
/* The small things of core/base: arrays that grow, hashes, paths, times. */
#include "core/base/grow.h"
#include "core/base/hash.h"
#include "core/base/path.h"
#include "core/base/util.h"

#include "tests/unit/check.h"

static void test_grow(void)
{
    uint32_t *numbers = NULL, count = 0, room = 0;
    while (count < 1000) {
        CHECK(CKPT_ROOM_FOR_ONE(numbers, count, room));
        CHECK(room > count);
        numbers[count] = count;
        count++;
    }
    CHECK(room < 2000);
    for (uint32_t i = 0; i < count; i++)
        CHECK(numbers[i] == i);
    free(numbers);

    /* A count that its type cannot hold is no room, and leaves everything as it was. */
    uint8_t *bytes = NULL, small_count = 0, small_room = 0;
    while (CKPT_ROOM_FOR_ONE(bytes, small_count, small_room))
        small_count++;
    CHECK(small_count == small_room && small_room >= 128 && bytes);
    free(bytes);

    volatile size_t half = SIZE_MAX / 2; /* not known to the compiler, which would warn */
    size_t most = half;
    CHECK(!ckpt_grow(NULL, 64, most, &most, SIZE_MAX));
    CHECK(most == half);
}

/* The numbers of the authors: http://www.isthe.com/chongo/tech/comp/fnv/ */
static void test_fnv(void)
{
    CHECK(ckpt_fnv(CKPT_FNV_BEGIN, "", 0) == 0xcbf29ce484222325);
    CHECK(ckpt_fnv(CKPT_FNV_BEGIN, "a", 1) == 0xaf63dc4c8601ec8c);
    CHECK(ckpt_fnv(CKPT_FNV_BEGIN, "foobar", 6) == 0x85944171f73967e8);
    CHECK(ckpt_fnv(ckpt_fnv(CKPT_FNV_BEGIN, "foo", 3), "bar", 3) == 0x85944171f73967e8);
}

static void test_paths(void)
{
    static const char *const joined[][3] = {
        {"a", "b", "a/b"}, {"", "b", "b"}, {"a", "", "a"}, {"", "", ""}, {"a/b", "c/d", "a/b/c/d"}};
    for (size_t i = 0; i < sizeof joined / sizeof *joined; i++) {
        char text[16];
        CKPT_AUTOFREE char *path = ckpt_path_join(joined[i][0], joined[i][1]);
        CHECK(path);
        CHECK_STR(path, joined[i][2]);
        CHECK(ckpt_path_put(text, sizeof text, joined[i][0], joined[i][1]));
        CHECK_STR(text, joined[i][2]);
    }
    char four[4];
    CHECK(ckpt_path_put(four, sizeof four, "a", "b"));
    CHECK(!ckpt_path_put(four, sizeof four, "a", "bc"));

    CHECK_STR(ckpt_path_name("a/b"), "b");
    CHECK_STR(ckpt_path_name("b"), "b");
    CHECK_STR(ckpt_path_name("a/"), "");

    char path[CKPT_FD_PATH];
    CHECK_STR(ckpt_fd_path(path, 7), "/proc/self/fd/7");
    ckpt_fd_path(path, INT32_MAX);
    CHECK_STR(path, "/proc/self/fd/2147483647");
}

static void test_times(void)
{
    static const struct {
        int64_t ns;
        struct timespec ts;
    } times[] = {{0, {0, 0}},
                 {1, {0, 1}},
                 {CKPT_SECOND_NS, {1, 0}},
                 {-1, {-1, 999999999}},
                 {-CKPT_SECOND_NS, {-1, 0}},
                 {-CKPT_SECOND_NS - 1, {-2, 999999999}}};
    for (size_t i = 0; i < sizeof times / sizeof *times; i++) {
        struct timespec ts = ckpt_timespec(times[i].ns);
        CHECK(ts.tv_sec == times[i].ts.tv_sec && ts.tv_nsec == times[i].ts.tv_nsec);
        CHECK(ckpt_timespec_ns(&ts) == times[i].ns);
    }
}

int main(void)
{
    test_grow();
    test_fnv();
    test_paths();
    test_times();
    return 0;
}
