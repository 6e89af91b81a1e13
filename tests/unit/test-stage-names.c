/* SPDX-License-Identifier: Apache-2.0 */
/* Names of staged files that come and go under two threads at once: each file on disk stays one file of the table. */
#include "core/stage/private.h"
#include "core/store/internal.h"
#include "tests/unit/check.h"
#include "tests/unit/files.h"

#define TURNS 10000 /* the two calls meet where it matters in one of a thousand */

static const struct ckpt_caller nobody;

static struct {
    struct ckpt_stages *set;
    uint64_t step, file;
    pthread_barrier_t begin, end;
    int linked, looked;
    struct ckpt_stage_attr found;
} race;

static void changed(void *arg, const char *name)
{
}

static void *link_file(void *arg)
{
    for (int i = 0; i < TURNS; i++) {
        struct ckpt_stage_attr attr;
        pthread_barrier_wait(&race.begin);
        race.linked = ckpt_stage_link(race.set, race.file, race.step, "other", &nobody, &attr);
        if (race.linked == 0)
            ckpt_stage_forget(race.set, attr.id, 1);
        pthread_barrier_wait(&race.end);
    }
    return NULL;
}

static void *look_up_file(void *arg)
{
    for (int i = 0; i < TURNS; i++) {
        pthread_barrier_wait(&race.begin);
        race.looked = ckpt_stage_lookup(race.set, race.step, "file", &race.found);
        pthread_barrier_wait(&race.end);
    }
    return NULL;
}

static void make_file(struct ckpt_stage_attr *ret)
{
    struct ckpt_stage_handle *h;
    CHECK(ckpt_stage_create(race.set, race.step, "file", 0644, O_RDWR, &nobody, ret, &h) == 0);
    ckpt_stage_release(h);
}

/* The last name of a file goes while it gets another one: that one, if it came to be, is of the same file. */
static void test_link_and_unlink(void)
{
    pthread_t thread;
    unsigned other_files = 0;
    CHECK(pthread_create(&thread, NULL, link_file, NULL) == 0);
    for (int i = 0; i < TURNS; i++) {
        struct ckpt_stage_attr file, other;
        make_file(&file);
        race.file = file.id;
        pthread_barrier_wait(&race.begin);
        CHECK(ckpt_stage_unlink(race.set, race.step, "file", false, &nobody) == 0);
        pthread_barrier_wait(&race.end);
        if (race.linked == 0) {
            CHECK(ckpt_stage_lookup(race.set, race.step, "other", &other) == 0);
            other_files += other.id != file.id;
            ckpt_stage_forget(race.set, other.id, 1);
            CHECK(ckpt_stage_unlink(race.set, race.step, "other", false, &nobody) == 0);
        }
        ckpt_stage_forget(race.set, file.id, 1);
    }
    CHECK(pthread_join(thread, NULL) == 0);
    CHECK(other_files == 0);
}

/* What is looked up while its name goes is not known by its number on disk, which may be another file's soon. */
static void test_look_up_and_unlink(void)
{
    pthread_t thread;
    unsigned stale = 0;
    CHECK(pthread_create(&thread, NULL, look_up_file, NULL) == 0);
    for (int i = 0; i < TURNS; i++) {
        struct ckpt_stage_attr file;
        make_file(&file);
        ckpt_stage_forget(race.set, file.id, 1);
        pthread_barrier_wait(&race.begin);
        CHECK(ckpt_stage_unlink(race.set, race.step, "file", false, &nobody) == 0);
        pthread_barrier_wait(&race.end);
        if (race.looked < 0)
            continue;
        pthread_mutex_lock(&race.set->lock);
        const struct stage_inode *n = ckpt_stage_inode_by_id(race.set, race.found.id);
        stale += n && !n->unlinked;
        pthread_mutex_unlock(&race.set->lock);
        ckpt_stage_forget(race.set, race.found.id, 1);
    }
    CHECK(pthread_join(thread, NULL) == 0);
    CHECK(stale == 0);
}

int main(void)
{
    char top[] = FILES_TEMPLATE;
    struct ckpt_stage_attr step;
    struct ckpt_store *store;
    files_begin(top);
    CHECK(ckpt_store_init(top, NULL) == 0 && ckpt_store_open(top, &store, NULL) == 0);
    const struct ckpt_stage_options options = {
        .explicit_commit = true, .threads = 2, .first_id = (uint64_t)1 << 63, .changed = changed};
    CHECK(ckpt_stages_open(store, NULL, &options, &race.set, NULL) == 0);
    CHECK(ckpt_stage_new(race.set, "1", 0755, &nobody, &step, NULL) == 0);
    race.step = step.id;
    pthread_barrier_init(&race.begin, NULL, 2);
    pthread_barrier_init(&race.end, NULL, 2);
    test_link_and_unlink();
    test_look_up_and_unlink();
    pthread_barrier_destroy(&race.begin);
    pthread_barrier_destroy(&race.end);
    ckpt_stages_close(race.set);
    ckpt_store_close(store);
    files_end(top);
    return 0;
}
