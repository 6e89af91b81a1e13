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
    int r = ckpt_store_gc(s, dry, NULL, &result, &err);
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
    store_add_step(s, "2",
                   (struct store_leaf[]){{"y", "b", 0, NULL}, {"z", "c", 0, NULL}, {"s", "smaller", 10, pack}, {0}}, 0);

    r = gc(s, true);
    CHECK(r.objects == 1 && r.bytes == 17 + 56 + 8 + 8 && r.kept == 4 && store_where(s, dead) == 'o');
    const struct ckpt_gc_watch watch = {.progress = tell, .arg = &told};
    CHECK(ckpt_store_gc(s, false, &watch, &r, NULL) == 0 && told == 2);
    CHECK(r.objects == 1 && r.bytes == 17 + 56 + 8 + 8 && r.kept == 4 && r.purged == 0);
    CHECK(store_where(s, dead) == 't');
    CHECK(store_where(s, a) == 'o' && store_where(s, b) == 'o' && store_where(s, c) == 'o' &&
          store_where(s, pack) == 'o');
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

/* The manifest of a step in other bytes, as a disk that rots leaves them. */
static void damage(struct ckpt_store *s, const char *file, const char *text, off_t length)
{
    int fd = openat(s->steps, file, O_RDWR);
    CHECK(fd >= 0 && ftruncate(fd, length) == 0);
    CHECK(pwrite(fd, text, strlen(text), 0) == (ssize_t)strlen(text));
    close(fd);
}

static bool has_list(struct ckpt_store *s)
{
    return faccessat(s->dir, "aside", F_OK, 0) == 0;
}

static char told_aside[1024];

static void tell_aside(void *arg, const char *name, const struct ckpt_err *why)
{
    CHECK(arg == told_aside && *why->text);
    strcat(strcat(told_aside, name), " ");
}

static struct ckpt_gc_result gc_aside(struct ckpt_store *s, const char *want)
{
    const struct ckpt_gc_watch watch = {.aside = tell_aside, .arg = told_aside};
    struct ckpt_gc_result r;
    told_aside[0] = 0;
    CHECK(ckpt_store_gc(s, false, &watch, &r, NULL) == 0 && !strcmp(told_aside, want));
    return r;
}

/* What a manifest that cannot be read may name stays; what came later goes. Repaired, it has lost nothing. */
static void test_aside(void)
{
    struct ckpt_store *s = new_store("aside");
    uint8_t a[CKPT_SHA256], b[CKPT_SHA256], old[CKPT_SHA256], trashed[CKPT_SHA256], later[CKPT_SHA256],
        last[CKPT_SHA256];
    char whole[8192];
    s->trash_keep = 0;
    store_add_step(s, "1", (struct store_leaf[]){{"x", "a", 0, NULL}, {0}}, 0);
    store_add_step(s, "2", (struct store_leaf[]){{"x", "a", 0, NULL}, {"y", "b", 0, NULL}, {0}}, 0);
    store_add_object(s, "a", a);
    store_add_object(s, "b", b);
    store_add_object(s, "old", old);
    store_add_object(s, "trashed", trashed);
    move_to_trash(s, trashed, false);
    int fd = openat(s->steps, "2.json", O_RDWR);
    ssize_t length = pread(fd, whole, sizeof whole, 0);
    CHECK(fd >= 0 && length > 0 && length < (ssize_t)sizeof whole);
    whole[length] = 0;

    damage(s, "2.json", "", length / 2);
    struct ckpt_gc_result r = gc(s, true);
    CHECK(r.objects == 0 && r.kept == 4 && !has_list(s));
    r = gc_aside(s, "steps/2.json ");
    CHECK(r.objects == 0 && r.purged == 0 && r.kept == 4 && has_list(s));
    CHECK(store_where(s, old) == 'o' && store_where(s, trashed) == 'o' && store_where(s, b) == 'o');
    CHECK(ckpt_store_delete(s, "1", NULL, NULL) == 0); /* what it named too may be named by the other */
    store_add_object(s, "later", later);
    r = gc_aside(s, "steps/2.json ");
    CHECK(r.objects == 1 && r.purged == 1 && r.aside == 4 && store_where(s, later) == '-');
    CHECK(store_where(s, a) == 'o' && store_where(s, b) == 'o' && store_where(s, old) == 'o');

    /* Other bytes are another manifest, which may name what came since. */
    store_add_object(s, "later", later);
    damage(s, "2.json", "{\"format\":\"ckptfs-step\",\"version\":99,\"name\":\"2\"}\n", 0);
    CHECK(gc_aside(s, "steps/2.json ").objects == 0 && store_where(s, later) == 'o');
    store_add_object(s, "last", last);
    file_write(top, "aside/.ckptstore/aside", "ckptfs-aside 1\n"); /* a list that is damaged is no list */
    CHECK(gc_aside(s, "steps/2.json ").objects == 0 && store_where(s, last) == 'o');

    /* Under another name it is the same one; and so are two of the same bytes. */
    CHECK(ckpt_store_rename(s, "2", "3", false, NULL) == 0);
    store_add_object(s, "again", later);
    CHECK(gc_aside(s, "steps/3.json ").objects == 1);
    damage(s, "3.json", whole, 0);
    r = gc_aside(s, "");
    CHECK(r.objects == 4 && r.kept == 2 && r.aside == 0 && !has_list(s) && store_where(s, a) == 'o' &&
          store_where(s, b) == 'o');
    damage(s, "3.json", "{", length / 2);
    gc_aside(s, "steps/3.json ");
    CHECK(ckpt_store_delete(s, "3", NULL, NULL) == 0);
    CHECK(gc_aside(s, "").objects == 2 && !has_list(s) && store_where(s, a) == '-');
    close(fd);
    ckpt_store_close(s);
}

/* A part of a writer is a manifest too. */
static void test_aside_part(void)
{
    struct ckpt_store *s = new_store("part");
    uint8_t old[CKPT_SHA256], later[CKPT_SHA256];
    file_write(top, "part/.ckptstore/writers/7/0-of-2.json", "{\"format\":");
    store_add_object(s, "old", old);
    struct ckpt_gc_result r;
    const struct ckpt_gc_watch watch = {.aside = tell_aside, .arg = told_aside};
    CHECK(ckpt_store_gc(s, false, &watch, &r, NULL) == 0 && store_where(s, old) == 'o');
    store_add_object(s, "later", later);
    CHECK(ckpt_store_gc(s, false, &watch, &r, NULL) == 0 && store_where(s, later) == 't' && store_where(s, old) == 'o');
    ckpt_store_close(s);
}

/* One that cannot be opened, or whose bytes the disk does not give, is known by its file. */
static void test_aside_identity(void)
{
    struct ckpt_stat st = {.size = 5, .ino = 6, .dev = 7, .mtime_ns = 8, .ctime_ns = 9}, other;
    uint8_t one[CKPT_SHA256], two[CKPT_SHA256];
    CHECK(ckpt_aside_identity(NULL, &st, one) && ckpt_aside_identity(NULL, &st, two) && !memcmp(one, two, sizeof one));
    for (int i = 0; i < 5; i++) {
        other = st;
        other.size += i == 0;
        other.ino += i == 1;
        other.dev += i == 2;
        other.mtime_ns += i == 3;
        other.ctime_ns += i == 4;
        CHECK(ckpt_aside_identity(NULL, &other, two) && memcmp(one, two, sizeof one));
    }
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

/* The one that is committed cannot be read. */
static void *finish_bad_commit(void *arg)
{
    struct slow_commit *c = arg;
    usleep(300000);
    file_write(top, "badly/.ckptstore/steps/1.json", "{");
    close(c->lock);
    return NULL;
}

static void test_bad_commit_meanwhile(void)
{
    struct ckpt_store *s = new_store("badly");
    uint8_t late[CKPT_SHA256];
    pthread_t thread;
    struct slow_commit c = {s, ckpt_store_lock(s, false)};
    store_add_object(s, "committed late", late);
    CHECK(c.lock >= 0 && pthread_create(&thread, NULL, finish_bad_commit, &c) == 0);
    struct ckpt_gc_result r = gc_aside(s, "steps/1.json ");
    CHECK(pthread_join(thread, NULL) == 0);
    CHECK(r.objects == 0 && r.aside == 1 && store_where(s, late) == 'o');
    ckpt_store_close(s);
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
    test_aside();
    test_aside_part();
    test_aside_identity();
    test_odd_files();
    test_staging();
    test_commit_meanwhile();
    test_bad_commit_meanwhile();
    test_rename_meanwhile();
    files_end(template);
    return 0;
}
