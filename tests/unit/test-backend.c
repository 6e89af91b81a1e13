/* SPDX-License-Identifier: Apache-2.0 */
/* One suite for every backend over the same tree; then what only a real directory can hold: links, FIFOs, changes. */
#include "core/io/backend.h"

#include "core/base/util.h"
#include "core/io/extent.h"
#include "core/io/join.h"
#include "tests/unit/check.h"
#include "tests/unit/files.h"

static const struct {
    const char *path, *text;
} tree[] = {
    {"a", "alpha"}, {"d/b", "beta"}, {"d/empty", ""}, {"d/e/f/g", "deep"}, {"d-not", "x"}, {"sp ace/\xc3\xa9", "utf8"},
    {"dd/x", "y"},
};

struct names {
    char text[1024];
    int stop_after;
};

static int add_name(void *arg, const char *name, enum ckpt_ftype type)
{
    struct names *n = arg;
    size_t len = strlen(n->text);
    snprintf(n->text + len, sizeof n->text - len, "%s%c;", name,
             type == CKPT_FT_DIR    ? '/'
             : type == CKPT_FT_FILE ? ' '
                                    : '?');
    return n->stop_after && --n->stop_after == 0 ? -42 : 0;
}

static bool listed(const struct names *n, const char *name)
{
    for (const char *p = n->text; (p = strstr(p, name)); p++)
        if (p == n->text || p[-1] == ';')
            return true;
    return false;
}

static void test_stat(struct ckpt_backend *b)
{
    struct ckpt_stat st, again;
    CHECK(ckpt_backend_stat(b, "", &st) == 0 && st.type == CKPT_FT_DIR);
    CHECK(ckpt_backend_stat(b, "a", &st) == 0 && st.type == CKPT_FT_FILE && st.size == 5);
    CHECK(ckpt_backend_stat(b, "a", &again) == 0 && ckpt_stat_same(&st, &again));
    CHECK(ckpt_backend_stat(b, "d", &st) == 0 && st.type == CKPT_FT_DIR);
    CHECK(ckpt_backend_stat(b, "d/e/f", &st) == 0 && st.type == CKPT_FT_DIR);
    CHECK(ckpt_backend_stat(b, "d/b", &again) == 0 && again.size == 4 && !ckpt_stat_same(&st, &again));
    CHECK(ckpt_backend_stat(b, "nothing", &st) == -ENOENT);
    CHECK(ckpt_backend_stat(b, "d/nothing", &st) == -ENOENT);
    int r = ckpt_backend_stat(b, "a/below-a-file", &st);
    CHECK(r == -ENOENT || r == -ENOTDIR);
}

static void test_unsafe(struct ckpt_backend *b)
{
    static const char *const unsafe[] = {"/",   "/a",     "a/",  "d//b", ".",    "..",
                                         "./a", "d/../a", "d/.", "d/..", "../x", "//"};
    struct ckpt_stat st;
    struct ckpt_file *f;
    struct ckpt_backend *sub;
    struct names n = {""};
    char link[64];
    for (size_t i = 0; i < sizeof unsafe / sizeof *unsafe; i++) {
        CHECK(!ckpt_path_safe(unsafe[i], strlen(unsafe[i])));
        CHECK(ckpt_backend_stat(b, unsafe[i], &st) == -ENOENT && ckpt_backend_open(b, unsafe[i], &f) == -ENOENT);
        CHECK(ckpt_backend_list(b, unsafe[i], add_name, &n) == -ENOENT &&
              ckpt_backend_sub(b, unsafe[i], &sub) == -ENOENT);
        CHECK(ckpt_backend_readlink(b, unsafe[i], link, sizeof link) == -ENOENT);
    }
    CHECK(!ckpt_path_safe("", 0) && !ckpt_path_safe("a\0b", 3) && ckpt_path_safe("..a/.b/...", 10));
}

static void test_list(struct ckpt_backend *b)
{
    struct names n = {""};
    CHECK(ckpt_backend_list(b, "", add_name, &n) == 0);
    CHECK(listed(&n, "a ;") && listed(&n, "d/;") && listed(&n, "d-not ;") && listed(&n, "sp ace/;") &&
          listed(&n, "dd/;"));
    CHECK(strlen(n.text) == strlen("a ;d/;d-not ;sp ace/;dd/;"));
    n = (struct names){""};
    CHECK(ckpt_backend_list(b, "d", add_name, &n) == 0);
    CHECK(listed(&n, "b ;") && listed(&n, "e/;") && listed(&n, "empty ;") && strlen(n.text) == strlen("b ;e/;empty ;"));
    CHECK(ckpt_backend_list(b, "nothing", add_name, &n) == -ENOENT);
    CHECK(ckpt_backend_list(b, "a", add_name, &n) == -ENOTDIR);
    n = (struct names){"", 2};
    CHECK(ckpt_backend_list(b, "", add_name, &n) == -42); /* stopped, with what the visitor said */
}

static void test_open(struct ckpt_backend *b)
{
    struct ckpt_file *f;
    char buf[16] = "";
    CHECK(ckpt_backend_open(b, "d/b", &f) == 0 && f->st.type == CKPT_FT_FILE && f->st.size == 4);
    CHECK(ckpt_file_read(f, buf, sizeof buf, 0) == 4 && !memcmp(buf, "beta", 4));
    CHECK(ckpt_file_read(f, buf, 2, 1) == 2 && !memcmp(buf, "et", 2));
    CHECK(ckpt_file_read(f, buf, 4, 3) == 1 && *buf == 'a');
    CHECK(ckpt_file_read(f, buf, 4, 4) == 0 && ckpt_file_read(f, buf, 4, 1000) == 0 &&
          ckpt_file_read(f, buf, 0, 0) == 0);
    struct ckpt_extent e = {.file = ckpt_file_ref(f), .off = 1, .len = 5};
    CHECK(ckpt_extent_read(&e, buf, 3, 0) == 0 && !memcmp(buf, "eta", 3));
    CHECK(ckpt_extent_read(&e, buf, 4, 0) == -EBADMSG); /* the file is shorter than the extent says */
    CHECK(ckpt_extent_read(&e, buf, 1, 5) == -EBADMSG && ckpt_extent_read(&e, buf, 0, 5) == 0);
    CHECK(ckpt_extent_read(&e, buf, 1, UINT64_MAX) == -EBADMSG);
    ckpt_extent_clear(&e);
    ckpt_file_unref(f);
    CHECK(ckpt_backend_open(b, "d", &f) == -EISDIR && ckpt_backend_open(b, "nothing", &f) == -ENOENT);
    CHECK(ckpt_backend_open(b, "", &f) == -EISDIR);
}

static void test_read_all(struct ckpt_backend *b)
{
    uint8_t *data;
    size_t len;
    CHECK(ckpt_backend_read_all(b, "d/e/f/g", 4, &data, &len) == 0 && len == 4);
    CHECK_STR((char *)data, "deep");
    free(data);
    CHECK(ckpt_backend_read_all(b, "d/empty", 0, &data, &len) == 0 && len == 0 && !*data);
    free(data);
    CHECK(ckpt_backend_read_all(b, "d/e/f/g", 3, &data, &len) == -EFBIG);
}

static void test_sub(struct ckpt_backend *b)
{
    struct ckpt_backend *d, *f, *same;
    struct ckpt_file *file;
    struct names n = {""};
    char buf[8];
    CHECK(ckpt_backend_sub(b, "d", &d) == 0 && ckpt_backend_sub(d, "e/f", &f) == 0 &&
          ckpt_backend_sub(d, "", &same) == 0);
    ckpt_backend_unref(d); /* the deeper ones hold what they need */
    CHECK(ckpt_backend_list(f, "", add_name, &n) == 0);
    CHECK_STR(n.text, "g ;");
    CHECK(ckpt_backend_open(f, "g", &file) == 0);
    ckpt_backend_unref(f);
    CHECK(ckpt_file_read(file, buf, 8, 0) == 4 && !memcmp(buf, "deep", 4));
    ckpt_file_unref(file);
    CHECK(ckpt_backend_open(same, "a", &file) == -ENOENT && ckpt_backend_open(same, "b", &file) == 0);
    ckpt_file_unref(file);
    ckpt_backend_unref(same);
    CHECK(ckpt_backend_sub(b, "a", &d) == -ENOTDIR && ckpt_backend_sub(b, "nothing", &d) == -ENOENT);
}

static void suite(struct ckpt_backend *b)
{
    uint64_t bytes, calls, bytes2, calls2;
    ckpt_io_counters(&bytes, &calls);
    test_stat(b);
    test_unsafe(b);
    test_list(b);
    test_open(b);
    test_read_all(b);
    test_sub(b);
    ckpt_io_counters(&bytes2, &calls2);
    CHECK(bytes2 > bytes && calls2 > calls);
    char buf[8];
    CHECK(ckpt_backend_readlink(b, "a", buf, sizeof buf) < 0);
    ckpt_backend_unref(b);
}

/* --- a real directory only --- */

static void test_links(const char *top)
{
    struct ckpt_backend *b, *d, *sub;
    struct ckpt_stat st;
    struct ckpt_file *f;
    char buf[64];
    file_link(top, "src/in", "d/b");
    file_link(top, "src/d/up", "../a");
    file_link(top, "src/dirlink", "d/e");
    file_link(top, "src/out", "../outside");
    file_link(top, "src/absolute", "/etc/passwd");
    file_link(top, "src/outdir", "..");
    file_link(top, "src/proc", "/proc/self/root");
    file_link(top, "src/broken", "nothing");
    file_link(top, "src/loop", "loop");
    CHECK(ckpt_backend_open_posix(file_path(top, "src"), &b, NULL) == 0);
    CHECK(ckpt_backend_stat(b, "in", &st) == 0 && st.type == CKPT_FT_FILE && st.size == 4);
    CHECK(ckpt_backend_stat(b, "dirlink/f", &st) == 0 && st.type == CKPT_FT_DIR);
    CHECK(ckpt_backend_readlink(b, "in", buf, sizeof buf) == 0);
    CHECK_STR(buf, "d/b");
    CHECK(ckpt_backend_readlink(b, "out", buf, sizeof buf) == 0);
    CHECK_STR(buf, "../outside");
    static const char *const outside[] = {"out", "absolute", "outdir", "outdir/outside", "proc", "proc/etc/passwd"};
    for (size_t i = 0; i < sizeof outside / sizeof *outside; i++) {
        CHECK(ckpt_backend_stat(b, outside[i], &st) == -EXDEV && ckpt_backend_open(b, outside[i], &f) == -EXDEV);
        CHECK(ckpt_backend_sub(b, outside[i], &sub) == -EXDEV);
    }
    CHECK(ckpt_backend_stat(b, "broken", &st) == -ENOENT && ckpt_backend_stat(b, "loop", &st) == -ELOOP);
    /* Out of the sub-backend, but not of the source. */
    CHECK(ckpt_backend_sub(b, "d", &d) == 0);
    CHECK(ckpt_backend_open(d, "up", &f) == 0 && ckpt_file_read(f, buf, sizeof buf, 0) == 5 &&
          !memcmp(buf, "alpha", 5));
    ckpt_file_unref(f);
    ckpt_backend_unref(d);
    ckpt_backend_unref(b);
}

static int count_types(void *arg, const char *name, enum ckpt_ftype type)
{
    ((unsigned *)arg)[type]++;
    return 0;
}

static void test_special(const char *top)
{
    struct ckpt_backend *b;
    struct ckpt_stat st;
    struct ckpt_file *f;
    unsigned types[CKPT_FT_COUNT] = {0};
    CHECK(mkfifo(file_path(top, "src/d/fifo"), 0600) == 0);
    CHECK(ckpt_backend_open_posix(file_path(top, "src"), &b, NULL) == 0);
    CHECK(ckpt_backend_stat(b, "d/fifo", &st) == 0 && st.type == CKPT_FT_OTHER);
    CHECK(ckpt_backend_open(b, "d/fifo", &f) == -EPERM); /* and does not wait for a writer */
    CHECK(ckpt_backend_list(b, "d", count_types, types) == 0);
    CHECK(types[CKPT_FT_OTHER] == 1 && types[CKPT_FT_LINK] == 1 && types[CKPT_FT_DIR] == 1 && types[CKPT_FT_FILE] == 2);
    ckpt_backend_unref(b);
}

/* What is open stays readable, and a directory stays the same one, whatever becomes of their names. */
static void test_renamed(const char *top)
{
    struct ckpt_backend *b, *d;
    struct ckpt_file *f, *g;
    struct ckpt_stat st;
    char buf[16];
    CHECK(ckpt_backend_open_posix(file_path(top, "src"), &b, NULL) == 0);
    CHECK(ckpt_backend_sub(b, "dd", &d) == 0 && ckpt_backend_open(b, "a", &f) == 0);
    file_write(top, "src/dd.new/x", "other");
    file_move(top, "src/dd", "src/dd.old");
    file_move(top, "src/dd.new", "src/dd");
    file_remove(top, "src/a");
    CHECK(ckpt_backend_open(d, "x", &g) == 0 && ckpt_file_read(g, buf, sizeof buf, 0) == 1 && *buf == 'y');
    ckpt_file_unref(g);
    CHECK(ckpt_file_read(f, buf, sizeof buf, 0) == 5 && !memcmp(buf, "alpha", 5));
    CHECK(ckpt_backend_stat(b, "a", &st) == -ENOENT);
    ckpt_file_unref(f);
    ckpt_backend_unref(d);
    ckpt_backend_unref(b);
    struct ckpt_err err = {0};
    CHECK(ckpt_backend_open_posix(file_path(top, "src/nothing"), &b, &err) == -ENOENT && err.code == ENOENT &&
          *err.text);
    CHECK(ckpt_backend_open_posix(file_path(top, "src/dd/x"), &b, &err) == -ENOTDIR);
}

/* Parts in any order, some empty, one that the file does not have to its end. */
static void test_join(void)
{
    static const char text[] = "0123456789";
    static const struct ckpt_range parts[] = {{4, 3}, {0, 0}, {9, 1}, {2, 2}, {5, 0}, {0, 4}};
    static const char want[] = "4569230123";
    struct ckpt_backend *b = ckpt_backend_new_memory();
    struct ckpt_file *f, *j;
    CHECK(b && ckpt_backend_memory_add(b, "f", text, 10) == 0 && ckpt_backend_open(b, "f", &f) == 0);
    struct ckpt_range *ranges = malloc(sizeof parts);
    memcpy(ranges, parts, sizeof parts);
    CHECK(ckpt_file_join(f, ranges, 6, &j) == 0 && j->st.size == 10 && ckpt_file_fd(j) == -1);
    for (size_t off = 0; off <= 11; off++)
        for (size_t len = 0; len <= 12; len++) {
            char buf[16];
            size_t n = off < 10 ? CKPT_MIN(len, 10 - off) : 0;
            CHECK(ckpt_file_read(j, buf, len, off) == (ssize_t)n && (!n || !memcmp(buf, want + off, n)));
        }
    ckpt_file_unref(j);
    ranges = malloc(2 * sizeof *ranges);
    ranges[0] = (struct ckpt_range){8, 4};
    ranges[1] = (struct ckpt_range){0, 4};
    CHECK(ckpt_file_join(f, ranges, 2, &j) == 0 && j->st.size == 8);
    char buf[8];
    CHECK(ckpt_file_read(j, buf, 8, 0) == 2 && !memcmp(buf, "89", 2));
    CHECK(ckpt_extent_read(&(struct ckpt_extent){.file = j, .len = 8}, buf, 8, 0) == -EBADMSG);
    ckpt_file_unref(j);
    CHECK(ckpt_file_join(f, NULL, 0, &j) == 0 && j->st.size == 0 && ckpt_file_read(j, buf, 1, 0) == 0);
    ckpt_file_unref(j);
    ranges = malloc(2 * sizeof *ranges);
    ranges[0] = ranges[1] = (struct ckpt_range){0, (uint64_t)1 << 62};
    CHECK(ckpt_file_join(f, ranges, 2, &j) == -EUCLEAN);
    ckpt_file_unref(f);
    ckpt_backend_unref(b);
}

int main(void)
{
    struct ckpt_backend *b = ckpt_backend_new_memory();
    char top[] = FILES_TEMPLATE;
    files_begin(top);
    file_write(top, "outside", "secret");
    for (size_t i = 0; i < sizeof tree / sizeof *tree; i++) {
        char path[256];
        snprintf(path, sizeof path, "src/%s", tree[i].path);
        file_write(top, path, tree[i].text);
        CHECK(ckpt_backend_memory_add(b, tree[i].path, tree[i].text, strlen(tree[i].text)) == 0);
    }
    suite(b);
    CHECK(ckpt_backend_open_posix(file_path(top, "src"), &b, NULL) == 0);
    suite(b);
    test_links(top);
    test_special(top);
    test_renamed(top);
    files_end(top);
    test_join();
    return 0;
}
