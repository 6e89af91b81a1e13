/* SPDX-License-Identifier: Apache-2.0 */
/* Which steps retention keeps. */
#include "core/base/log.h"
#include "core/base/util.h"
#include "core/store/metrics.h"
#include "tests/unit/store.h"

static const char *top;

static struct ckpt_store *new_store(const char *name)
{
    struct ckpt_store *s;
    CHECK(mkdir(file_path(top, name), 0755) == 0);
    CHECK(ckpt_store_init(file_path(top, name), NULL) == 0 && ckpt_store_open(file_path(top, name), &s, NULL) == 0);
    return s;
}

static void set(struct ckpt_store *s, const char *key, const char *value)
{
    CHECK(ckpt_store_config_set(s, key, value, NULL) == 0);
}

static void add(struct ckpt_store *s, const char *name, int64_t age)
{
    store_add_step(s, name, (struct store_leaf[]){{0}}, age);
}

static void add_metrics(struct ckpt_store *s, const char *name, const char *metrics)
{
    store_add_step(s, name,
                   (struct store_leaf[]){
                       {"a.txt", "a", 0, NULL}, {"metrics.json", metrics, 0, NULL}, {"z.txt", "z", 0, NULL}, {0}},
                   0);
}

static void tell(void *arg, const char *step)
{
    strcat(arg, step);
    strcat(arg, " ");
}

/* What would go; and what is left when it has gone. */
static void check(struct ckpt_store *s, const char *goes, const char *stays)
{
    char told[1024] = "", before[1024];
    struct ckpt_err err = {0};
    strcpy(before, store_steps(s));
    int n = ckpt_store_prune(s, true, tell, told, &err);
    if (n < 0)
        fprintf(stderr, "%s\n", err.text);
    CHECK(n >= 0);
    CHECK_STR(told, goes);
    CHECK_STR(store_steps(s), before);
    told[0] = 0;
    CHECK(ckpt_store_prune(s, false, tell, told, NULL) == n);
    CHECK_STR(told, goes);
    CHECK_STR(store_steps(s), stays);
    CHECK(ckpt_store_prune(s, false, NULL, NULL, NULL) == 0);
}

static void test_rules(void)
{
    struct ckpt_store *s = new_store("rules");
    check(s, "", "");
    set(s, "keep_last", "2");
    check(s, "", "");
    set(s, "keep_last", "");
    static const char *const names[] = {"0", "100", "step_150", "0150", "199", "200", "250", "300"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        add(s, names[i], 0);
    check(s, "", "0 100 0150 step_150 199 200 250 300"); /* no rule */
    set(s, "keep_best", "3");                            /* none either, without a metric */
    set(s, "best_mode", "max");
    check(s, "", "0 100 0150 step_150 199 200 250 300");
    CHECK(ckpt_store_pin(s, "199", true, NULL) == 0);
    set(s, "keep_period", "100");
    check(s, "0150 step_150 250 ", "0 100 199* 200 300");
    set(s, "keep_last", "3");
    check(s, "", "0 100 199* 200 300"); /* they add up */
    set(s, "keep_period", "");
    check(s, "0 100 ", "199* 200 300");
    set(s, "keep_last", "1");
    CHECK(ckpt_store_pin(s, "199", false, NULL) == 0);
    check(s, "199 200 ", "300");
    set(s, "keep_last", "");
    set(s, "keep_period", "7");
    check(s, "", "300"); /* the latest stays */
    ckpt_store_close(s);
}

static void test_newer(void)
{
    struct ckpt_store *s = new_store("newer");
    add(s, "1", 1000);
    add(s, "2", 10);
    add(s, "3", 500);
    add(s, "4", -1000); /* a clock that was wrong */
    add(s, "5", 2000);
    file_write(top, "newer/.ckptstore/steps/0.json", "damaged");
    set(s, "keep_newer", "100s");
    check(s, "1 3 ", "0 2 4 5");
    set(s, "keep_newer", "");
    set(s, "keep_last", "1");
    check(s, "0 2 4 ", "5");
    ckpt_store_close(s);
}

static void test_best(void)
{
    struct ckpt_store *s = new_store("best");
    set(s, "best_metric", "loss");
    add(s, "01", 0);
    add_metrics(s, "02", "{\"Loss\":1}");
    check(s, "", "01 02"); /* as no step has it, the name may be wrong */
    add_metrics(s, "1", "{\"acc\": NaN, \"loss\": 0.75}");
    add_metrics(s, "2", " {\n\"loss\": 25e-2 , \"x\": {\"loss\": -5}}\n");
    add_metrics(s, "3", "{\"loss\":0.875}");
    add_metrics(s, "4", "{\"loss\":0.125}");
    add_metrics(s, "5", "{\"loss\":NaN}");
    add_metrics(s, "6", "{\"loss\":\"low\"}");
    add_metrics(s, "7", "{not json");
    add_metrics(s, "8", "[1]");
    add_metrics(s, "9", "{\"loss\":-Infinity}");
    add_metrics(s, "10", "{\"loss\":0.125}"); /* as good as 4, and later */
    add_metrics(s, "11", "{\"loss\":0.5,\"loss\":null}");
    add(s, "12", 0);
    set(s, "keep_best", "3");
    set(s, "keep_last", "1");
    set(s, "keep_period", "3");
    check(s, "01 1 02 5 7 8 11 ", "2 3 4 6 9 10 12");
    set(s, "keep_period", "");
    check(s, "3 6 9 ", "2 4 10 12");
    set(s, "best_mode", "max");
    set(s, "keep_best", "");
    check(s, "4 10 ", "2 12");
    ckpt_store_close(s);
}

/* What cannot be judged is kept. */
static void test_best_damaged(void)
{
    struct ckpt_store *s = new_store("damaged");
    uint8_t hash[CKPT_SHA256];
    char path[CKPT_OBJECT_PATH];
    add_metrics(s, "1", "{\"loss\":3}");
    add_metrics(s, "2", "{\"loss\":1}");
    add_metrics(s, "3", "{\"loss\":5.25}");
    add(s, "4", 0);
    store_add_object(s, "{\"loss\":5.25}", hash);
    ckpt_object_path(hash, path);
    CHECK(unlinkat(s->objects, path, 0) == 0);
    file_write(top, "damaged/.ckptstore/steps/0.json", "damaged");
    set(s, "best_metric", "loss");
    check(s, "1 ", "0 2 3 4");
    int fd = openat(s->objects, path, O_CREAT | O_WRONLY, 0644);
    CHECK(fd >= 0 && write(fd, "{\"loss\":0.25}", 13) == 13); /* other bytes than the sums say */
    close(fd);
    check(s, "", "0 2 3 4");
    ckpt_store_close(s);
}

static void test_metrics(void)
{
    struct ckpt_store *s = new_store("metrics");
    struct ckpt_metrics *m;
    uint8_t pack[CKPT_SHA256];
    double v = 0;
    store_add_object(s, "0123456789{\"loss\": 7}...", pack);
    store_add_step(s, "1", (struct store_leaf[]){{"metrics.json", "{\"loss\": 7}", 10, pack}, {0}}, 0);
    add(s, "2", 0);
    store_add_step(s, "3", (struct store_leaf[]){{"metrics.json", "", 0, NULL}, {0}}, 0);
    store_add_step(s, "4", (struct store_leaf[]){{"metrics.json", "{\"loss\": 7}", 20, pack}, {0}},
                   0); /* beyond its end */
    CHECK(ckpt_metrics_open(s, &m, NULL) == 0);
    CHECK(ckpt_metrics_get(m, "1", "loss", &v, NULL) == 1 && v == 7);
    CHECK(ckpt_metrics_get(m, "1", "accuracy", &v, NULL) == 0);
    CHECK(ckpt_metrics_get(m, "2", "loss", &v, NULL) == 0 && ckpt_metrics_get(m, "3", "loss", &v, NULL) == 0);
    CHECK(ckpt_metrics_get(m, "4", "loss", &v, NULL) < 0);
    CHECK(ckpt_metrics_get(m, "5", "loss", &v, NULL) == -ENOENT);
    ckpt_metrics_close(m);
    ckpt_store_close(s);
}

int main(void)
{
    char template[] = FILES_TEMPLATE;
    files_begin(template);
    top = template;
    ckpt_log_setup(CKPT_LOG_ERROR, 0);
    test_rules();
    test_newer();
    test_best();
    test_best_damaged();
    test_metrics();
    files_end(template);
    return 0;
}
