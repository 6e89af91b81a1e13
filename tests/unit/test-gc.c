/* SPDX-License-Identifier: Apache-2.0 */
/* What gc takes away, and above all what it leaves. */
#include "core/base/util.h"
#include "core/store/internal.h"
#include "tests/unit/store.h"

#include <sys/file.h>

static const char *top;

static struct ckpt_store *new_store(const char *name)
{
    struct ckpt_store *s;
    CHECK(mkdir(file_path(top, name), 0755) == 0);
    CHECK(ckpt_store_init(file_path(top, name), NULL) == 0 && ckpt_store_open(file_path(top, name), &s, NULL) == 0);
    return s;
}

static struct ckpt_gc_result gc(struct ckpt_store *s, bool dry)
{
    struct ckpt_gc_result result;
    struct ckpt_err err = {0};
    int r = ckpt_store_gc(s, dry, NULL, NULL, &result, &err);
    if (r < 0)
        fprintf(stderr, "%s\n", err.text);
    CHECK(r == 0);
    return result;
}

static void test_hashes(void)
{
    struct ckpt_hashes h;
    uint8_t hash[CKPT_SHA256] = {0};
    ckpt_hashes_init(&h);
    CHECK(!ckpt_hashes_has(&h, hash));
    CHECK(ckpt_hashes_add(&h, hash) == 1 && ckpt_hashes_add(&h, hash) == 0 && ckpt_hashes_has(&h, hash));
    for (uint32_t i = 1; i <= 50000; i++) {
        memcpy(hash + 4 * (i % 7), &i, 4); /* much alike */
        CHECK(ckpt_hashes_add(&h, hash) == 1 && ckpt_hashes_add(&h, hash) == 0);
        memset(hash, 0, sizeof hash);
    }
    CHECK(h.count == 50000);
    for (uint32_t i = 1; i <= 50000; i++) {
        memcpy(hash + 4 * (i % 7), &i, 4);
        CHECK(ckpt_hashes_has(&h, hash));
        hash[31] = 1;
        CHECK(!ckpt_hashes_has(&h, hash));
        memset(hash, 0, sizeof hash);
    }
    ckpt_hashes_clear(&h);
}

static uint64_t told;

static void tell(void *arg, uint64_t done, uint64_t total)
{
    CHECK(done <= total && arg == &told);
    told = done;
}

static void test_collect(void)
{
    struct ckpt_store *s = new_store("collect");
    uint8_t a[CKPT_SHA256], b[CKPT_SHA256], c[CKPT_SHA256], dead[CKPT_SHA256], pack[CKPT_SHA256];
    struct ckpt_gc_result r = gc(s, false);
    CHECK(r.objects == 0 && r.kept == 0 && r.purged == 0);
    store_add_object(s, "a", a);
    store_add_object(s, "b", b);
    store_add_object(s, "c", c);
    store_add_object(s, "nobody wants this", dead);
    store_add_object(s, "small and smaller", pack);
    store_add_step(s, "1", (struct store_leaf[]){{"x", "a", 0, NULL}, {"y", "b", 0, NULL}, {0}}, 0);
    store_add_step(s, "2", (struct store_leaf[]){{"y", "b", 0, NULL}, {"z", "c", 0, NULL}, {"s", "smaller", 10, pack}, {0}}, 0);

    r = gc(s, true);
    CHECK(r.objects == 1 && r.bytes == 17 + 56 + 8 + 8 && r.kept == 4 && store_where(s, dead) == 'o');
    CHECK(ckpt_store_gc(s, false, tell, &told, &r, NULL) == 0 && told == 2);
    CHECK(r.objects == 1 && r.bytes == 17 + 56 + 8 + 8 && r.kept == 4 && r.purged == 0);
    CHECK(store_where(s, dead) == 't');
    CHECK(store_where(s, a) == 'o' && store_where(s, b) == 'o' && store_where(s, c) == 'o' && store_where(s, pack) == 'o');
    r = gc(s, false);
    CHECK(r.objects == 0 && r.purged == 0 && store_where(s, dead) == 't'); /* not for long enough */

    CHECK(ckpt_store_delete(s, "1", NULL, NULL) == 0);
    CHECK(gc(s, false).objects == 1 && store_where(s, a) == 't' && store_where(s, b) == 'o');
    s->trash_keep = 0;
    r = gc(s, true);
    CHECK(r.purged == 2 && store_where(s, a) == 't');
    r = gc(s, false);
    CHECK(r.purged == 2 && r.purged_bytes > 2 * 64 && store_where(s, a) == '-' && store_where(s, dead) == '-');
    CHECK(ckpt_store_delete(s, "2", NULL, NULL) == 0);
    r = gc(s, false); /* moved and purged at once */
    CHECK(r.objects == 3 && r.purged == 3 && r.kept == 0 && store_where(s, pack) == '-');
    ckpt_store_close(s);
}

static void move_to_trash(struct ckpt_store *s, const uint8_t hash[CKPT_SHA256], bool link)
{
    char path[CKPT_OBJECT_PATH], hex[CKPT_HEX], from[CKPT_OBJECT_PATH + 24], to[CKPT_OBJECT_PATH + 24];
    ckpt_object_path(hash, path);
    ckpt_hash_hex(hash, hex);
    for (int i = 0; i < 2; i++) {
        snprintf(from, sizeof from, "objects/%s%s", path, i ? ".sums" : "");
        snprintf(to, sizeof to, "trash/objects/%s%s", hex, i ? ".sums" : "");
        CHECK(link ? linkat(s->dir, from, s->dir, to, 0) == 0 : renameat(s->dir, from, s->dir, to) == 0);
    }
}

/* What is needed again comes back before the trash is emptied. */
static void test_restore(void)
{
    struct ckpt_store *s = new_store("restore");
    uint8_t a[CKPT_SHA256], b[CKPT_SHA256];
    store_add_step(s, "1", (struct store_leaf[]){{"x", "a", 0, NULL}, {"y", "b", 0, NULL}, {0}}, 0);
    store_add_object(s, "a", a);
    store_add_object(s, "b", b);
    move_to_trash(s, a, false);
    s->trash_keep = 0;
    gc(s, false);
    CHECK(store_where(s, a) == 'o' && store_where(s, b) == 'o');
    move_to_trash(s, a, true); /* in both places */
    gc(s, false);
    CHECK(store_where(s, a) == 'o');
    move_to_trash(s, b, true);
    CHECK(ckpt_store_delete(s, "1", NULL, NULL) == 0);
    s->trash_keep = 60;
    gc(s, false); /* both names are one file, which a rename would leave where it is */
    CHECK(store_where(s, b) == 't' && store_where(s, a) == 't');
    ckpt_store_close(s);
}

/* Nothing goes while something cannot be read. */
static void test_stops(void)
{
    struct ckpt_store *s = new_store("stops");
    struct ckpt_gc_result r;
    struct ckpt_err err = {0};
    uint8_t a[CKPT_SHA256], dead[CKPT_SHA256];
    store_add_object(s, "a", a);
    store_add_object(s, "dead", dead);
    store_add_step(s, "1", (struct store_leaf[]){{"x", "a", 0, NULL}, {0}}, 0);
    store_add_step(s, "2", (struct store_leaf[]){{"x", "a", 0, NULL}, {0}}, 0);
    int fd = openat(s->steps, "2.json", O_RDWR);
    struct stat st;
    CHECK(fd >= 0 && fstat(fd, &st) == 0 && ftruncate(fd, st.st_size / 2) == 0);
    int e = ckpt_store_gc(s, false, NULL, NULL, &r, &err);
    CHECK((e == -EBADMSG || e == -EUCLEAN) && strstr(err.text, "2") && r.objects == 0 && store_where(s, dead) == 'o');
    CHECK(ftruncate(fd, 0) == 0);
    static const char newer[] = "{\"format\":\"ckptfs-step\",\"version\":99,\"name\":\"2\"}\n";
    CHECK(pwrite(fd, newer, sizeof newer - 1, 0) == sizeof newer - 1);
    CHECK(ckpt_store_gc(s, false, NULL, NULL, &r, &err) == -EOPNOTSUPP && store_where(s, dead) == 'o');
    CHECK(ckpt_store_delete(s, "2", NULL, NULL) == 0);
    gc(s, false);
    CHECK(store_where(s, dead) == 't' && store_where(s, a) == 'o');
    close(fd);
    ckpt_store_close(s);
}

static void test_odd_files(void)
{
    struct ckpt_store *s = new_store("odd");
    uint8_t a[CKPT_SHA256];
    char path[CKPT_OBJECT_PATH];
    store_add_object(s, "a", a);
    ckpt_object_path(a, path);
    CHECK(unlinkat(s->objects, path, 0) == 0); /* its sums stay alone */
    file_write(top, "odd/.ckptstore/objects/README", "x");
    file_write(top, "odd/.ckptstore/objects/zz/file", "x");
    file_write(top, "odd/.ckptstore/objects/aa/file", "x");
    file_write(top, "odd/.ckptstore/objects/bb", "x");
    file_link(top, "odd/.ckptstore/objects/cc", "aa");
    file_write(top, "odd/.ckptstore/trash/note", "x");
    file_write(top, "odd/.ckptstore/steps/5.pin", "");
    store_add_step(s, "6", (struct store_leaf[]){{0}}, 0);
    file_write(top, "odd/.ckptstore/steps/6.pin", "");
    s->trash_keep = 0;
    gc(s, false);
    CHECK(faccessat(s->dir, "objects/README", F_OK, 0) == 0 && faccessat(s->dir, "objects/zz/file", F_OK, 0) == 0);
    CHECK(faccessat(s->dir, "objects/aa/file", F_OK, 0) == 0 && faccessat(s->dir, "trash/note", F_OK, 0) == 0);
    CHECK(store_where(s, a) == '-');
    CHECK(faccessat(s->steps, "5.pin", F_OK, 0) < 0 && faccessat(s->steps, "6.pin", F_OK, 0) == 0);
    ckpt_store_close(s);
}

static void test_staging(void)
{
    struct ckpt_store *s = new_store("staging");
    file_write(top, "staging/.ckptstore/staging/empty/lock", "");
    file_write(top, "staging/.ckptstore/staging/empty/name", "7");
    CHECK(mkdir(file_path(top, "staging/.ckptstore/staging/empty/tree"), 0755) == 0);
    file_write(top, "staging/.ckptstore/staging/full/lock", "");
    file_write(top, "staging/.ckptstore/staging/full/name", "8");
    file_write(top, "staging/.ckptstore/staging/full/tree/file", "x");
    file_write(top, "staging/.ckptstore/staging/nameless/lock", "");
    file_write(top, "staging/.ckptstore/staging/nameless/tree/file", "x");
    file_write(top, "staging/.ckptstore/staging/living/lock", "");
    file_write(top, "staging/.ckptstore/staging/living/name", "9");
    int lock = openat(s->staging, "living/lock", O_RDWR);
    CHECK(lock >= 0 && flock(lock, LOCK_EX) == 0);
    gc(s, false); /* all are too young */
    CHECK(faccessat(s->staging, "empty", F_OK, 0) == 0 && faccessat(s->staging, "nameless", F_OK, 0) == 0);
    s->trash_keep = 0;
    usleep(1100000);
    gc(s, false);
    CHECK(faccessat(s->staging, "empty", F_OK, 0) < 0 && faccessat(s->staging, "nameless", F_OK, 0) < 0);
    CHECK(faccessat(s->staging, "full/tree/file", F_OK, 0) == 0 && faccessat(s->staging, "living", F_OK, 0) == 0);
    CHECK(faccessat(s->trash, "staging-empty", F_OK, 0) < 0 && faccessat(s->trash, "staging-nameless", F_OK, 0) < 0);
    close(lock);
    gc(s, false);
    CHECK(faccessat(s->staging, "living", F_OK, 0) < 0);
    ckpt_store_close(s);
}

/* A commit is between its object and its manifest while gc looks. */
struct slow_commit {
    struct ckpt_store *s;
    int lock;
};

static void *finish_commit(void *arg)
{
    struct slow_commit *c = arg;
    usleep(300000);
    store_add_step(c->s, "1", (struct store_leaf[]){{"x", "committed late", 0, NULL}, {0}}, 0);
    close(c->lock);
    return NULL;
}

static void test_commit_meanwhile(void)
{
    struct ckpt_store *s = new_store("meanwhile");
    uint8_t late[CKPT_SHA256], dead[CKPT_SHA256];
    pthread_t thread;
    struct slow_commit c = {s, ckpt_store_lock(s, false)};
    store_add_object(s, "committed late", late);
    store_add_object(s, "dead", dead);
    CHECK(c.lock >= 0 && pthread_create(&thread, NULL, finish_commit, &c) == 0);
    struct ckpt_gc_result r = gc(s, false);
    CHECK(pthread_join(thread, NULL) == 0);
    CHECK(r.objects == 1 && store_where(s, late) == 'o' && store_where(s, dead) == 't');
    ckpt_store_close(s);
}

/* Names of steps change all the time. */
struct renaming {
    struct ckpt_store *s;
    atomic_bool stop;
};

static void *rename_steps(void *arg)
{
    struct renaming *r = arg;
    for (unsigned i = 0; !atomic_load(&r->stop); i++) {
        char from[16], to[16];
        snprintf(from, sizeof from, "%u", i);
        snprintf(to, sizeof to, "%u", i + 1);
        CHECK(ckpt_store_rename(r->s, from, to, false, NULL) == 0);
    }
    return NULL;
}

static void test_rename_meanwhile(void)
{
    struct ckpt_store *s = new_store("renaming");
    uint8_t a[CKPT_SHA256];
    pthread_t thread;
    struct renaming r = {.s = s};
    store_add_step(s, "0", (struct store_leaf[]){{"x", "a", 0, NULL}, {0}}, 0);
    store_add_object(s, "a", a);
    s->trash_keep = 0;
    CHECK(pthread_create(&thread, NULL, rename_steps, &r) == 0);
    for (int i = 0; i < 50; i++) {
        gc(s, false);
        CHECK(store_where(s, a) == 'o');
    }
    atomic_store(&r.stop, true);
    CHECK(pthread_join(thread, NULL) == 0);
    ckpt_store_close(s);
}

int main(void)
{
    char template[] = FILES_TEMPLATE;
    files_begin(template);
    top = template;
    test_hashes();
    test_collect();
    test_restore();
    test_stops();
    test_odd_files();
    test_staging();
    test_commit_meanwhile();
    test_rename_meanwhile();
    files_end(template);
    return 0;
}
