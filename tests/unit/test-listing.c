/* SPDX-License-Identifier: Apache-2.0 */
/* What directories of a source are taken for: steps and their numbers, roots, the latest; and what is kept out of
 * sight. */
#include "core/source/listing.h"

#include "core/base/util.h"
#include "tests/unit/check.h"
#include "tests/unit/files.h"

static void test_numbers(void)
{
    static const struct {
        const char *name;
        bool plain, any;
        double number;
    } cases[] = {
        {"0", true, true, 0},
        {"7", true, true, 7},
        {"0023", true, true, 23},
        {"ckpt_23", true, true, 23},
        {"a_b_0007", true, true, 7},
        {"checkpoint_10", true, true, 10},
        {"12345678901234567890", true, true, 12345678901234567890.0},
        {"x_1.5", false, true, 1.5},
        {"x_-3", false, true, -3},
        {"x_+3", false, true, 3},
        {"x_1e5", false, true, 1e5},
        {"x_1.5e-3", false, true, 1.5e-3},
        {"1e5", false, true, 1e5},
        {"", false, false, 0},
        {"_5", false, false, 0},
        {"x_", false, false, 0},
        {"x", false, false, 0},
        {"5x", false, false, 0},
        {"x5", false, false, 0},
        {"x_5_", false, false, 0},
        {"x_5 ", false, false, 0},
        {"x_ 5", false, false, 0},
        {"x_0x10", false, false, 0},
        {"x_inf", false, false, 0},
        {"x_nan", false, false, 0},
        {"x_1e", false, false, 0},
        {"x_1e+", false, false, 0},
        {"x_-", false, false, 0},
        {"x_1.5.2", false, false, 0},
        {"x-5", true, true, 5},
        {"checkpoint-500", true, true, 500},
        {"step=500", true, true, 500},
        {"epoch=3-step=1000", true, true, 1000},
        {"step-500a", false, false, 0},
        {"step-1.5", false, false, 0},
        {"v1.2-500", false, false, 0},
        {"lr=0.001", false, false, 0},
        {"1e-5", false, true, 1e-5},
        {"lr=1e-5", false, false, 0},
        {"x=-5", false, false, 0},
        {"-5", false, true, -5},
        {"=5", false, false, 0},
        {"7.orbax-checkpoint-tmp", false, false, 0},
        {"7.tmp", false, false, 0},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        double n = 0;
        if (ckpt_step_number(cases[i].name, false, &n) != cases[i].plain || (cases[i].plain && n != cases[i].number)) {
            fprintf(stderr, "%s: %g\n", cases[i].name, n);
            exit(1);
        }
        if (ckpt_step_number(cases[i].name, true, &n) != cases[i].any || (cases[i].any && n != cases[i].number)) {
            fprintf(stderr, "%s: %g\n", cases[i].name, n);
            exit(1);
        }
    }
    static const char *const glued[] = {"global_step500", "epoch500", "a-b500"};
    static const char *const others[] = {"500", "step_500", "v1.2a500", "step500a", "", "a"};
    for (size_t i = 0; i < sizeof glued / sizeof *glued; i++) {
        double n = 0;
        CHECK(ckpt_step_number_glued(glued[i], &n) && n == 500);
    }
    for (size_t i = 0; i < sizeof others / sizeof *others; i++) {
        double n = 0;
        CHECK(!ckpt_step_number_glued(others[i], &n));
    }
}

static const char *top;
static struct ckpt_backend *source;

#define DONE "{\"init_timestamp_nsecs\":1,\"commit_timestamp_nsecs\":2}"
#define OPEN "{\"init_timestamp_nsecs\":1,\"commit_timestamp_nsecs\":null}"

/* A step as Orbax leaves it. */
static void make_step(const char *name, const char *metadata)
{
    char path[512];
    snprintf(path, sizeof path, "%s/_CHECKPOINT_METADATA", name);
    file_write(top, path, metadata);
    snprintf(path, sizeof path, "%s/default/_METADATA", name);
    file_write(top, path, "{\"tree_metadata\":{}}");
}

static struct ckpt_listing *make(const char *path, const struct ckpt_listing *old)
{
    struct ckpt_listing *l = NULL;
    CHECK(ckpt_listing_make(source, path, old, &l) == 0);
    return l;
}

/* One letter: what the entry is; upper-case: a step. '-': not there. */
static char kind(const struct ckpt_listing *l, const char *name)
{
    const struct ckpt_entry *e = ckpt_listing_find(l, name);
    if (!e)
        return '-';
    CHECK_STR(e->name, name);
    char c = "fdtlh"[e->kind];
    CHECK((e->kind == CKPT_ENTRY_HIDDEN) == (e->hidden != NULL));
    CHECK(e->kind != CKPT_ENTRY_TREE || e->format);
    return e->is_step ? (char)(c - 'a' + 'A') : c;
}

static const char *latest(const struct ckpt_listing *l)
{
    return l->latest == SIZE_MAX ? "" : l->entries[l->latest].name;
}

static void test_root(void)
{
    make_step("root/2", DONE);
    make_step("root/10", DONE);
    make_step("root/010", DONE);
    make_step("root/best_9", DONE);
    make_step("root/30", OPEN);
    make_step("root/31.orbax-checkpoint-tmp", DONE);
    make_step("root/32.orbax-checkpoint-tmp-5", DONE);
    make_step("root/other", DONE); /* a checkpoint, no step */
    file_write(top, "root/metadata/_ROOT_METADATA", "{}");
    file_write(top, "root/notes.txt", "x");
    file_write(top, "root/99", "a file with a step's name");
    file_link(top, "root/40", "10");
    file_link(top, "root/away", "../../outside");
    file_link(top, "root/gone", "nothing");
    struct ckpt_listing *l = make("root", NULL);
    CHECK(l->root && l->count == 14);
    CHECK(kind(l, "2") == 'T' && kind(l, "10") == 'T' && kind(l, "010") == 'T' && kind(l, "best_9") == 'T');
    CHECK(kind(l, "30") == 'h' && kind(l, "31.orbax-checkpoint-tmp") == 'h' &&
          kind(l, "32.orbax-checkpoint-tmp-5") == 'h');
    CHECK(kind(l, "other") == 't' && kind(l, "metadata") == 'd' && kind(l, "notes.txt") == 'f' && kind(l, "99") == 'f');
    CHECK(kind(l, "40") == 'L' && kind(l, "away") == 'h' && kind(l, "gone") == 'h' && kind(l, "nothing") == '-' &&
          kind(l, "") == '-');
    CHECK_STR(latest(l), "40"); /* a link to a step is one, of its own number */
    CHECK(*ckpt_listing_find(l, "30")->hidden);
    file_remove(top, "root/40");
    struct ckpt_listing *without = make("root", l);
    CHECK_STR(latest(without), "10"); /* of equal numbers the last by bytes */
    ckpt_listing_unref(without);
    file_write(top, "root/latest", "taken");
    without = make("root", l);
    CHECK_STR(latest(without), "");
    for (size_t i = 1; i < without->count; i++)
        CHECK(strcmp(without->entries[i - 1].name, without->entries[i].name) < 0);
    ckpt_listing_unref(without);
    ckpt_listing_unref(l);
}

static void test_no_root(void)
{
    struct ckpt_listing *l = make("", NULL); /* the folder that the root is in */
    CHECK(!l->root && kind(l, "root") == 'd');
    CHECK_STR(latest(l), "");
    ckpt_listing_unref(l);
    file_write(top, "plain/7/file", "x"); /* digits alone make no step */
    file_write(top, "plain/8/file", "x");
    l = make("plain", NULL);
    CHECK(!l->root && kind(l, "7") == 'd' && kind(l, "8") == 'd');
    ckpt_listing_unref(l);
    CHECK(mkdir(file_path(top, "none"), 0755) == 0);
    l = make("none", NULL);
    CHECK(!l->root && !l->count && !ckpt_listing_find(l, "x"));
    ckpt_listing_unref(ckpt_listing_ref(l));
    ckpt_listing_unref(l);
    CHECK(ckpt_listing_make(source, "nothing", NULL, &l) == -ENOENT);
    CHECK(ckpt_listing_make(source, "root/notes.txt", NULL, &l) == -ENOTDIR);
}

/* Steps without metadata beside one that has some. */
static void test_weak(void)
{
    make_step("weak/1", DONE);
    file_write(top, "weak/2/state/_METADATA", "{\"tree_metadata\":{}}");
    CHECK(mkdir(file_path(top, "weak/3"), 0755) == 0);
    file_touch(top, "weak/3", 3600); /* long settled: nobody is writing it */
    CHECK(mkdir(file_path(top, "weak/4"), 0755) == 0);
    struct ckpt_listing *l = make("weak", NULL);
    CHECK(kind(l, "1") == 'T' && kind(l, "2") == 'T' && kind(l, "3") == 'T');
    CHECK(kind(l, "4") == 'h'); /* just made, and empty: about to be written, or what a deletion has left */
    CHECK_STR(latest(l), "3");
    ckpt_listing_unref(l);
}

/* rm -r takes a step away under its final name. */
static void test_going(void)
{
    make_step("going/1", DONE);
    make_step("going/2", "{\"init_timestamp_nsecs\":1,\"commit_timestamp_nsecs\":2,\"item_handlers\":{\"default\":"
                         "\"x\",\"extra\":\"y\"}}");
    file_write(top, "going/2/extra/metadata", "{}");
    struct ckpt_listing *before = make("going", NULL);
    CHECK(kind(before, "1") == 'T' && kind(before, "2") == 'T');
    file_remove(top, "going/2/_CHECKPOINT_METADATA");
    struct ckpt_listing *during = make("going", before);
    CHECK(kind(during, "2") == 'h' && kind(during, "1") == 'T');
    CHECK_STR(latest(during), "1");
    struct ckpt_listing *still = make("going", during);
    CHECK(kind(still, "2") == 'h');
    file_touch(top, "going/2", 3600); /* nothing happens any more: it is what is left of it */
    struct ckpt_listing *after = make("going", still);
    CHECK(kind(after, "2") == 'T');
    ckpt_listing_unref(after);
    ckpt_listing_unref(still);
    ckpt_listing_unref(during);
    ckpt_listing_unref(before);

    /* An item that the step names is not there. */
    make_step("going/3", "{\"init_timestamp_nsecs\":1,\"commit_timestamp_nsecs\":2,\"item_handlers\":{\"default\":"
                         "\"x\",\"extra\":\"y\"}}");
    struct ckpt_listing *l = make("going", NULL);
    CHECK(kind(l, "3") == 'h');
    ckpt_listing_unref(l);
    file_touch(top, "going/3", 3600);
    l = make("going", NULL);
    CHECK(kind(l, "3") == 'T');
    ckpt_listing_unref(l);
}

static void test_current(void)
{
    make_step("cur/1", DONE);
    file_touch(top, "cur", -100);
    struct ckpt_listing *l = make("cur", NULL);
    CHECK(ckpt_listing_current(source, "cur", l));
    make_step("cur/2", DONE);
    CHECK(!ckpt_listing_current(source, "cur", l));
    ckpt_listing_unref(l);
    l = make("cur", NULL);
    CHECK(!ckpt_listing_current(source, "cur", l)); /* changed so lately that another change could look the same */
    ckpt_listing_unref(l);
    file_touch(top, "cur", -100);
    make_step("cur/3", OPEN);
    file_touch(top, "cur", -100);
    l = make("cur", NULL);
    CHECK(kind(l, "3") == 'h' && !ckpt_listing_current(source, "cur", l)); /* it may be finished at any time */
    ckpt_listing_unref(l);
    CHECK(!ckpt_listing_current(source, "nothing", (l = make("plain", NULL))));
    ckpt_listing_unref(l);
}

int main(void)
{
    char folder[] = FILES_TEMPLATE;
    files_begin(folder);
    char inner[sizeof folder + 8];
    snprintf(inner, sizeof inner, "%s/src", folder);
    CHECK(mkdir(inner, 0755) == 0);
    top = inner;
    file_write(folder, "outside", "x");
    CHECK(ckpt_backend_open_posix(top, &source, NULL) == 0);
    test_numbers();
    test_root();
    test_no_root();
    test_weak();
    test_going();
    test_current();
    ckpt_backend_unref(source);
    files_end(folder);
    return 0;
}
