/* SPDX-License-Identifier: Apache-2.0 */
/* A root with a store: init, configuration, steps and their names. What may be deleted is in test-gc.c and
 * test-retention.c. */
#include "core/store/store.h"

#include "core/base/util.h"
#include "core/store/internal.h"
#include "core/commit/work.h"
#include "tests/unit/store.h"

#include <sys/file.h>

static const char *top;
static const struct store_leaf none[] = {{0}};

static struct ckpt_store *open_store(const char *name)
{
    struct ckpt_store *s;
    struct ckpt_err err = {0};
    int r = ckpt_store_open(file_path(top, name), &s, &err);
    if (r < 0)
        fprintf(stderr, "%s\n", err.text);
    CHECK(r == 0);
    return s;
}

static struct ckpt_store *new_store(const char *name)
{
    CHECK(mkdir(file_path(top, name), 0755) == 0);
    CHECK(ckpt_store_init(file_path(top, name), NULL) == 0);
    return open_store(name);
}

static char *read_config(const char *root)
{
    static char text[8192];
    char path[512];
    snprintf(path, sizeof path, "%s/.ckptstore/store.json", root);
    FILE *f = fopen(file_path(top, path), "r");
    CHECK(f);
    size_t n = fread(text, 1, sizeof text - 1, f);
    text[n] = 0;
    fclose(f);
    return text;
}

/* --- init and open --- */

static int count_names(void *arg, int dir, const char *name)
{
    ++*(int *)arg;
    return 0;
}

static void test_init(void)
{
    struct ckpt_err err = {0};
    struct ckpt_store *s;
    int names = 0;
    CHECK(ckpt_store_init(file_path(top, "nothing"), &err) == -ENOENT && *err.text);
    CHECK(mkdir(file_path(top, "init"), 0755) == 0);
    CHECK(ckpt_store_open(file_path(top, "init"), &s, &err) == -ENOENT && strstr(err.text, "ckptfs init"));
    CHECK(ckpt_store_init(file_path(top, "init"), NULL) == 0);
    s = open_store("init");
    char id[33];
    strcpy(id, s->config.id);
    CHECK(strlen(id) == 32 && s->config.codec == CKPT_OBJECT_AUTO);
    CHECK(ckpt_names_each(s->dir, ".", count_names, &names) == 0 && names == 6); /* and nothing temporary */
    ckpt_store_close(s);
    CHECK(ckpt_store_init(file_path(top, "init"), NULL) == 0);
    s = open_store("init");
    CHECK_STR(s->config.id, id);
    ckpt_store_close(s);

    /* Cut short before store.json, it is no store, and is finished by the next one. */
    file_remove(top, "init/.ckptstore/store.json");
    file_remove(top, "init/.ckptstore/trash/objects");
    CHECK(ckpt_store_open(file_path(top, "init"), &s, NULL) == -ENOENT);
    CHECK(ckpt_store_init(file_path(top, "init"), NULL) == 0);
    s = open_store("init");
    CHECK(strcmp(s->config.id, id) != 0);
    ckpt_store_close(s);

    /* Empty directories that a copy has left out. */
    file_remove(top, "init/.ckptstore/trash/steps");
    file_remove(top, "init/.ckptstore/staging");
    file_remove(top, "init/.ckptstore/lock");
    s = open_store("init");
    int lock = ckpt_store_lock(s, true);
    CHECK(lock >= 0);
    close(lock);
    ckpt_store_close(s);
}

static void test_lock(void)
{
    struct ckpt_store *s = new_store("lock");
    int a = ckpt_store_lock(s, false), b = ckpt_store_lock(s, false);
    CHECK(a >= 0 && b >= 0);
    int c = openat(s->dir, "lock", O_RDWR);
    CHECK(c >= 0 && flock(c, LOCK_EX | LOCK_NB) < 0);
    close(a);
    close(b);
    CHECK(flock(c, LOCK_EX | LOCK_NB) == 0);
    close(c);
    ckpt_store_close(s);
}

/* --- configuration --- */

static int add_setting(void *arg, const char *key, const char *value)
{
    strcat(arg, key);
    strcat(arg, "=");
    strcat(arg, value);
    strcat(arg, " ");
    return 0;
}

static const char *settings(struct ckpt_store *s)
{
    static char text[1024];
    struct ckpt_store_config c;
    CHECK(ckpt_store_config_read(s, &c, NULL) == 0);
    text[0] = 0;
    CHECK(ckpt_store_config_each(&c, add_setting, text) == 0);
    return text;
}

static void test_config(void)
{
    struct ckpt_store *s = new_store("config");
    static const char *const good[][3] = {
        {"codec", "lz4", "codec=lz4 "},
        {"keep_last", "3", "codec=lz4 keep_last=3 "},
        {"codec", "", "codec=auto keep_last=3 "},
        {"keep_newer", "7d", "codec=auto keep_last=3 keep_newer=7d "},
        {"keep_last", "", "codec=auto keep_newer=7d "},
        {"keep_newer", "36h", "codec=auto keep_newer=36h "},
        {"keep_newer", "90", "codec=auto keep_newer=90s "},
        {"keep_newer", "1.5m", "codec=auto keep_newer=90s "},
        {"keep_newer", "0.25s", "codec=auto keep_newer=0.25s "},
        {"keep_newer", "120s", "codec=auto keep_newer=2m "},
        {"keep_newer", "0", "codec=auto "},
        {"keep_period", "1000", "codec=auto keep_period=1000 "},
        {"best_metric", "val \"loss\" \xc3\xa9",
         "codec=auto keep_period=1000 best_metric=val \"loss\" \xc3\xa9 best_mode=min "},
        {"best_mode", "max", "codec=auto keep_period=1000 best_metric=val \"loss\" \xc3\xa9 best_mode=max "},
        {"keep_best", "1000000000000000",
         "codec=auto keep_period=1000 best_metric=val \"loss\" \xc3\xa9 best_mode=max keep_best=1000000000000000 "},
    };
    for (size_t i = 0; i < sizeof good / sizeof *good; i++) {
        CHECK(ckpt_store_config_set(s, good[i][0], good[i][1], NULL) == 0);
        CHECK_STR(settings(s), good[i][2]);
    }
    char before[1024], long_name[200];
    strcpy(before, settings(s));
    memset(long_name, 'x', sizeof long_name - 1);
    long_name[sizeof long_name - 1] = 0;
    const char *const bad[][2] = {
        {"keep_last", "x"},
        {"keep_last", "-1"},
        {"keep_last", " 1"},
        {"keep_last", "1.5"},
        {"keep_last", "99999999999999999999"},
        {"keep_newer", "7x"},
        {"keep_newer", "7dd"},
        {"keep_newer", "-7d"},
        {"keep_newer", "0x10"},
        {"keep_newer", "inf"},
        {"keep_newer", "1e3"},
        {"keep_newer", "1..5"},
        {"keep_newer", "d"},
        {"codec", "quantum"},
        {"best_mode", "middle"},
        {"best_metric", long_name},
        {"best_metric", "\xff"},
        {"nonsense", "1"},
        {"", ""},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct ckpt_err err = {0};
        if (ckpt_store_config_set(s, bad[i][0], bad[i][1], &err) != -EINVAL || !*err.text) {
            fprintf(stderr, "%s=%s\n", bad[i][0], bad[i][1]);
            exit(1);
        }
        CHECK_STR(settings(s), before);
    }
    ckpt_store_close(s);
}

#define HEAD "{\"format\":\"ckptfs-store\",\"version\":1,\"id\":\"0123456789abcdef0123456789abcdef\""

static void test_config_kept(void)
{
    struct ckpt_store *s = new_store("kept");
    file_write(top, "kept/.ckptstore/store.json",
               " {\"note\" : {\"a\": [1, 2.50, "
               "18446744073709551615]},\n\"format\":\"ckptfs-store\",\"version\":1,\"required\":[],"
               "\"id\":\"0123456789abcdef0123456789abcdef\",\"codec\":\"blosc\",\"retention\":{\"future\":1e400,\"keep_"
               "last\":5}}\n");
    CHECK_STR(settings(s), "codec=blosc keep_last=5 ");
    CHECK(ckpt_store_config_set(s, "keep_period", "10", NULL) == 0);
    CHECK_STR(settings(s), "codec=blosc keep_last=5 keep_period=10 ");
    const char *text = read_config("kept");
    CHECK(strstr(text, "18446744073709551615") && strstr(text, "2.50") && strstr(text, "1e400") &&
          strstr(text, "\"required\":[]"));
    CHECK(strstr(text, "0123456789abcdef0123456789abcdef"));
    ckpt_store_close(s);
}

static void test_config_refused(void)
{
    static const struct {
        const char *text;
        int error;
    } cases[] = {
        {"", -EUCLEAN},
        {"{", -EUCLEAN},
        {"[]", -EUCLEAN},
        {"{}", -EUCLEAN},
        {HEAD, -EUCLEAN},
        {HEAD "} x", -EUCLEAN},
        {"{\"format\":\"ckptfs-store\",\"version\":2,\"whatever\":[]}", -EOPNOTSUPP},
        {"{\"format\":\"ckptfs-store\",\"id\":\"0123456789abcdef0123456789abcdef\"}", -EUCLEAN},
        {"{\"format\":\"something\",\"version\":1,\"id\":\"0123456789abcdef0123456789abcdef\"}", -EUCLEAN},
        {"{\"format\":\"ckptfs-store\",\"version\":1,\"id\":\"0123456789ABCDEF0123456789abcdef\"}", -EUCLEAN},
        {HEAD ",\"required\":[\"sealed\"]}", -EOPNOTSUPP},
        {HEAD ",\"required\":7}", -EOPNOTSUPP},
        {HEAD ",\"codec\":\"quantum\"}", -EOPNOTSUPP},
        {HEAD ",\"codec\":1}", -EUCLEAN},
        {HEAD ",\"retention\":[]}", -EUCLEAN},
        {HEAD ",\"retention\":{\"keep_last\":-1}}", -EUCLEAN},
        {HEAD ",\"retention\":{\"keep_last\":1.5}}", -EUCLEAN},
        {HEAD ",\"retention\":{\"keep_newer\":\"7d\"}}", -EUCLEAN},
        {HEAD ",\"retention\":{\"best_mode\":\"median\"}}", -EUCLEAN},
        {HEAD ",\"retention\":{\"best_metric\":1}}", -EUCLEAN},
        {HEAD ",\"retention\":{\"best_metric\":\"a\\u0000b\"}}", -EUCLEAN},
        {HEAD "}", 0},
        {HEAD ",\"retention\":{}}", 0},
    };
    struct ckpt_store *s = new_store("refused");
    ckpt_store_close(s);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct ckpt_err err = {0};
        file_write(top, "refused/.ckptstore/store.json", cases[i].text);
        int r = ckpt_store_open(file_path(top, "refused"), &s, &err);
        if (r != cases[i].error || (r < 0 && !*err.text)) {
            fprintf(stderr, "%s: %d %s\n", cases[i].text, r, err.text);
            exit(1);
        }
        if (r == 0)
            ckpt_store_close(s);
    }
}

/* --- steps --- */

static void test_names(void)
{
    static const char *const good[] = {"0",      "7",         "0007",           "step_7",   "a_b_7",
                                       "step-7", "step=0007", "epoch=3-step=7", "epoch-3_7"};
    static const char *const marked[] = {"step-7", "checkpoint=7", "epoch=3-step=7", "a_1-7"};
    static const char *const old[] = {"._1", "v1.2_7", ".new_7"};
    static const char *const bad[] = {"",   "_7",  "x",  "7x",       "x_",   "7.tmp", ".new", "a/7",   "-7",
                                      "=7", "1.5", "7 ", "step-1.5", "1e-5", "lr=-1", "x7",   "a/b-7", "v1.2-500"};
    char name[300];
    double n;
    for (size_t i = 0; i < sizeof good / sizeof *good; i++)
        CHECK(ckpt_step_name(good[i], &n));
    for (size_t i = 0; i < sizeof good / sizeof *good; i++)
        CHECK(ckpt_step_is_stored(good[i], NULL));
    for (size_t i = 0; i < sizeof marked / sizeof *marked; i++)
        CHECK(ckpt_step_name(marked[i], &n) && n == 7 && ckpt_step_needs_mark(marked[i]));
    for (size_t i = 0; i < sizeof old / sizeof *old; i++)
        CHECK(!ckpt_step_name(old[i], NULL) && ckpt_step_is_stored(old[i], &n) && !ckpt_step_needs_mark(old[i]));
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        CHECK(!ckpt_step_name(bad[i], NULL) && !ckpt_step_is_stored(bad[i], NULL));
    CHECK(!ckpt_step_needs_mark("7") && !ckpt_step_needs_mark("step_7"));
    CHECK(ckpt_step_name("step_0012", &n) && n == 12);
    memset(name, '1', sizeof name);
    name[240] = 0;
    CHECK(ckpt_step_name(name, NULL));
    name[240] = '1';
    name[241] = 0;
    CHECK(!ckpt_step_name(name, NULL));
}

static void test_steps(void)
{
    struct ckpt_store *s = new_store("steps");
    struct ckpt_store_step *steps;
    size_t count;
    CHECK(ckpt_store_steps(s, true, &steps, &count, NULL) == 0 && count == 0);
    ckpt_store_steps_free(steps, count);
    static const char *const names[] = {"10", "9", "step_2", "02", "2"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        store_add_step(s, names[i], none, 0);
    file_write(top, "steps/.ckptstore/steps/x.json", "{}");
    file_write(top, "steps/.ckptstore/steps/5.json.tmp", "{}");
    file_write(top, "steps/.ckptstore/steps/6.pin", "");
    CHECK(mkdirat(s->steps, "8.json", 0755) == 0);
    CHECK_STR(store_steps(s), "02 2 step_2 9 10");
    file_write(top, "steps/.ckptstore/steps/77.json", "{\"format\":");
    CHECK(ckpt_store_steps(s, true, &steps, &count, NULL) == 0 && count == 6);
    for (size_t i = 0; i < count; i++) {
        bool damaged = !strcmp(steps[i].name, "77");
        CHECK(damaged ? !*steps[i].id : strlen(steps[i].id) == 32 && steps[i].time_ns);
        CHECK(steps[i].ino && steps[i].mtime_ns);
    }
    ckpt_store_steps_free(steps, count);
    ckpt_store_close(s);
}

static unsigned count_in(struct ckpt_store *s, const char *folder)
{
    int n = 0;
    CHECK(ckpt_names_each(s->dir, folder, count_names, &n) == 0);
    return (unsigned)n;
}

static void test_delete(void)
{
    struct ckpt_store *s = new_store("delete");
    struct ckpt_err err = {0};
    store_add_step(s, "1", none, 0);
    store_add_step(s, "2", none, 0);
    CHECK(ckpt_store_pin(s, "1", true, NULL) == 0);
    CHECK(ckpt_store_delete(s, "1", NULL, NULL) == 0);
    CHECK_STR(store_steps(s), "2");
    CHECK(ckpt_store_delete(s, "1", NULL, &err) == -ENOENT && strstr(err.text, "1"));
    CHECK(ckpt_store_delete(s, "../2", NULL, NULL) == -EINVAL);
    store_add_step(s, "1", none, 0);
    CHECK_STR(store_steps(s), "1 2"); /* the pin went with the old one */
    CHECK(ckpt_store_delete(s, "1", NULL, NULL) == 0);
    CHECK(count_in(s, "trash/steps") == 2);
    ckpt_store_close(s);
}

static void test_rename(void)
{
    struct ckpt_store *s = new_store("rename");
    store_add_step(s, "1", none, 0);
    store_add_step(s, "2", none, 0);
    CHECK(ckpt_store_rename(s, "1", "2", false, NULL) == -EEXIST);
    CHECK(ckpt_store_rename(s, "5", "6", false, NULL) == -ENOENT);
    CHECK(ckpt_store_rename(s, "1", "x", false, NULL) == -EINVAL);
    CHECK(ckpt_store_rename(s, "1", "1", false, NULL) == 0 && ckpt_store_rename(s, "5", "5", false, NULL) == -ENOENT);
    CHECK_STR(store_steps(s), "1 2");
    CHECK(ckpt_store_pin(s, "1", true, NULL) == 0);
    CHECK(ckpt_store_rename(s, "1", "step_3", false, NULL) == 0);
    CHECK_STR(store_steps(s), "2 step_3*");
    CHECK(ckpt_store_rename(s, "2", "step_3", true, NULL) ==
          0); /* what is replaced was pinned, what replaces it is not */
    CHECK_STR(store_steps(s), "step_3");
    store_add_step(s, "4", none, 0);
    CHECK(ckpt_store_pin(s, "step_3", true, NULL) == 0);
    CHECK(ckpt_store_rename(s, "step_3", "4", true, NULL) == 0);
    CHECK_STR(store_steps(s), "4*");
    file_write(top, "rename/.ckptstore/steps/9.pin", ""); /* a stale one does not stick */
    CHECK(ckpt_store_pin(s, "4", false, NULL) == 0 && ckpt_store_rename(s, "4", "9", false, NULL) == 0);
    CHECK_STR(store_steps(s), "9");
    ckpt_store_close(s);
}

static void test_pin(void)
{
    struct ckpt_store *s = new_store("pin");
    store_add_step(s, "1", none, 0);
    CHECK(ckpt_store_pin(s, "2", true, NULL) == -ENOENT && ckpt_store_pin(s, "2", false, NULL) == -ENOENT);
    CHECK(ckpt_store_pin(s, "1", false, NULL) == 0 && ckpt_store_pin(s, "1", true, NULL) == 0 &&
          ckpt_store_pin(s, "1", true, NULL) == 0);
    CHECK_STR(store_steps(s), "1*");
    CHECK(ckpt_store_pin(s, "1", false, NULL) == 0);
    CHECK_STR(store_steps(s), "1");
    ckpt_store_close(s);
}

/* --- staging directories for commits in one go --- */

static void test_work(void)
{
    struct ckpt_store *s = new_store("work");
    struct ckpt_work w;
    CHECK(ckpt_work_begin(s, &w, NULL) == 0);
    CHECK(count_in(s, "staging") == 1);
    int fd = openat(w.tree, "file", O_CREAT | O_WRONLY, 0644);
    CHECK(fd >= 0 && fstatat(w.dir, "tree/file", &(struct stat){0}, 0) == 0 &&
          fstatat(w.dir, "hold", &(struct stat){0}, 0) == 0);
    close(fd);
    fd = openat(w.dir, "lock", O_RDWR);
    CHECK(fd >= 0 && flock(fd, LOCK_EX | LOCK_NB) < 0);
    close(fd);
    ckpt_work_end(&w);
    CHECK(count_in(s, "staging") == 0 && count_in(s, "trash") == 2);
    ckpt_store_close(s);
}

int main(void)
{
    char template[] = FILES_TEMPLATE;
    files_begin(template);
    top = template;
    test_init();
    test_lock();
    test_config();
    test_config_kept();
    test_config_refused();
    test_names();
    test_steps();
    test_delete();
    test_rename();
    test_pin();
    test_work();
    files_end(template);
    return 0;
}
