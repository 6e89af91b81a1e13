/* SPDX-License-Identifier: Apache-2.0 */
/* Files that stay readable after their names are gone, and the limit on how many are held. */
#include "core/io/pins.h"

#include "core/base/util.h"
#include "tests/unit/check.h"
#include "tests/unit/files.h"

#include <sys/resource.h>

#define LIMIT 400 /* descriptors of the process; a quarter of them may be pinned */

static struct ckpt_pins *open_pins(const char *path)
{
    struct ckpt_backend *b;
    struct ckpt_pins *pins;
    CHECK(ckpt_backend_open_posix(path, &b, NULL) == 0);
    CHECK(ckpt_pins_new(b, &pins) == 0 && ckpt_pins_dir(pins) == b);
    ckpt_backend_unref(b); /* the pins keep it */
    return pins;
}

static char first_byte(struct ckpt_pins *pins, const char *path)
{
    struct ckpt_file *f;
    char c = 0;
    if (ckpt_pins_open(pins, path, &f) < 0)
        return 0;
    CHECK(ckpt_file_read(f, &c, 1, 0) == 1);
    ckpt_file_unref(f);
    return c;
}

static void test_kept(const char *top)
{
    file_write(top, "k/a", "A");
    file_write(top, "k/sub/b", "B");
    struct ckpt_pins *pins = open_pins(file_path(top, "k"));
    struct ckpt_file *one, *two;
    CHECK(ckpt_pins_open(pins, "a", &one) == 0 && ckpt_pins_open(pins, "a", &two) == 0 && one == two);
    ckpt_file_unref(two);
    CHECK(first_byte(pins, "sub/b") == 'B' && ckpt_pins_count(pins) == 2);
    file_remove(top, "k/a");
    file_remove(top, "k/sub/b");
    CHECK(first_byte(pins, "a") == 'A' && first_byte(pins, "sub/b") == 'B'); /* gone, but held */
    file_write(top, "k/a", "new");
    CHECK(first_byte(pins, "a") == 'A'); /* the one that was there first */
    CHECK(ckpt_pins_open(pins, "nothing", &two) == -ENOENT && ckpt_pins_count(pins) == 2);
    CHECK(ckpt_pins_open(pins, "sub", &two) == -EISDIR);
    static const char *const unsafe[] = {"", "/etc/passwd", "../x", "a/../a", "a//b", "."};
    for (size_t i = 0; i < sizeof unsafe / sizeof *unsafe; i++)
        CHECK(ckpt_pins_open(pins, unsafe[i], &two) == -EUCLEAN);
    ckpt_pins_unref(pins);
    char c;
    CHECK(ckpt_file_read(one, &c, 1, 0) == 1 && c == 'A'); /* handles outlive the table */
    ckpt_file_unref(one);
}

static void test_limit(const char *top)
{
    char name[32];
    for (unsigned i = 0; i < LIMIT; i++) {
        snprintf(name, sizeof name, "many/%u", i);
        file_write(top, name, "x");
    }
    struct ckpt_pins *many = open_pins(file_path(top, "many")), *few = open_pins(file_path(top, "many"));
    CHECK(first_byte(few, "0") == 'x' && first_byte(few, "1") == 'x');
    for (unsigned i = 0; i < LIMIT; i++) {
        snprintf(name, sizeof name, "%u", i);
        CHECK(first_byte(many, name) == 'x');
        CHECK(ckpt_pins_count(many) + ckpt_pins_count(few) <= LIMIT / 4);
    }
    /* The one that opens much gave up its own oldest, not those of the other. Each table's directory counts, too. */
    CHECK(ckpt_pins_count(few) == 2 && ckpt_pins_count(many) == LIMIT / 4 - 4 && ckpt_pins_scarce());
    file_remove(top, "many/0");
    file_remove(top, "many/399");
    CHECK(first_byte(few, "0") == 'x' && first_byte(many, "0") == 0 && first_byte(many, "399") == 'x');
    ckpt_pins_unref(many);
    CHECK(!ckpt_pins_scarce());
    CHECK(first_byte(few, "2") == 'x' && ckpt_pins_count(few) == 3);
    ckpt_pins_unref(few);
}

struct opener {
    struct ckpt_pins *pins;
    unsigned seed;
};

static void *open_many(void *arg)
{
    struct opener *o = arg;
    for (unsigned i = 0; i < 2000; i++) {
        char name[32];
        snprintf(name, sizeof name, "%u", 1 + (i * 7 + o->seed * 31) % 300);
        CHECK(first_byte(o->pins, name) == 'x');
    }
    return NULL;
}

static void test_threads(const char *top)
{
    struct ckpt_pins *pins[2] = {open_pins(file_path(top, "many")), open_pins(file_path(top, "many"))};
    pthread_t threads[8];
    struct opener openers[8];
    for (unsigned i = 0; i < 8; i++) {
        openers[i] = (struct opener){pins[i % 2], i};
        CHECK(pthread_create(&threads[i], NULL, open_many, &openers[i]) == 0);
    }
    for (unsigned i = 0; i < 8; i++)
        pthread_join(threads[i], NULL);
    CHECK(ckpt_pins_count(pins[0]) + ckpt_pins_count(pins[1]) <= LIMIT / 4 + 8);
    ckpt_pins_unref(pins[0]);
    ckpt_pins_unref(pins[1]);
}

int main(void)
{
    /* Before the first pin: the limit is looked up once. */
    CHECK(setrlimit(RLIMIT_NOFILE, &(struct rlimit){LIMIT, LIMIT}) == 0);
    char top[] = FILES_TEMPLATE;
    files_begin(top);
    test_kept(top);
    test_limit(top);
    test_threads(top);
    files_end(top);
    return 0;
}
