/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A commit with its N-th call to the disk failing, for N = 1, 2, ... until nothing fails: alone, with all calls after
 * it, or as the end of the process. Each time the other step is what it was, the step itself is whole or not there (one
 * that is replaced: the old or the new one), and the next try succeeds, also after the staged files have changed. The
 * commit runs in a process of its own, since the calls are counted from its start.
 */
#include "tests/unit/commit.h"

#include <glob.h>
#include <sys/wait.h>

enum way { NEW, OVERWRITE, CHANGE };

struct request {
    char top[64], id[33], name[32], base[33], fail[32], trace[128];
    enum way way;
};

static int requests[2], results[2]; /* pipes */

static void run_child(const struct request *q)
{
    struct ckpt_store *store;
    char path[300];
    setenv("CKPTFS_DISK_FAIL", q->fail, 1);
    setenv("CKPTFS_DISK_TRACE", q->trace, 1);
    CHECK(ckpt_store_open(q->top, &store, NULL) == 0);
    struct ckpt_commit c = {.store = store, .name = q->name, .codec = CKPT_OBJECT_AUTO, .threads = 1};
    snprintf(path, sizeof path, "staging/%s", q->id);
    c.work = openat(store->dir, path, O_RDONLY | O_DIRECTORY);
    c.tree = openat(c.work, "tree", O_RDONLY | O_DIRECTORY);
    c.hold = (struct ckpt_hold){store, openat(c.work, "hold", O_RDONLY | O_DIRECTORY)};
    CHECK(c.work >= 0 && c.tree >= 0 && c.hold.dir >= 0);
    c.overwrite = q->way == OVERWRITE;
    c.base_id = q->way == CHANGE ? q->base : NULL;
    struct ckpt_err err = {0};
    int r = ckpt_commit_run(&c, &err);
    CHECK(r == -err.code && (r == 0) == !*err.text);
    _exit(r == 0 ? 0 : 10);
}

/* A process that has made no call yet, so that those of each of its children are counted from 1. */
static void serve(void)
{
    struct request q;
    while (read(requests[0], &q, sizeof q) == sizeof q) {
        int status;
        pid_t pid = fork();
        if (!pid)
            run_child(&q);
        CHECK(pid > 0 && waitpid(pid, &status, 0) == pid && write(results[1], &status, sizeof status) == sizeof status);
    }
    _exit(0);
}

/* 0: committed; 1: an error; 2: the process was ended. n 0: nothing fails, and fault is where all calls are recorded.
 */
static int commit_in_child(struct staged *s, const char *name, enum way way, const char *base, unsigned n,
                           const char *fault)
{
    struct request q = {.way = way};
    int status;
    snprintf(q.top, sizeof q.top, "%s", s->root->top);
    snprintf(q.id, sizeof q.id, "%s", s->work.id);
    snprintf(q.name, sizeof q.name, "%s", name);
    snprintf(q.base, sizeof q.base, "%s", base);
    if (n)
        snprintf(q.fail, sizeof q.fail, "%u:%s", n, fault);
    else
        snprintf(q.trace, sizeof q.trace, "%s", fault);
    CHECK(write(requests[1], &q, sizeof q) == sizeof q && read(results[0], &status, sizeof status) == sizeof status);
    if (WIFSIGNALED(status)) {
        CHECK(WTERMSIG(status) == SIGKILL);
        return 2;
    }
    CHECK(WEXITSTATUS(status) == 0 || WEXITSTATUS(status) == 10);
    return WEXITSTATUS(status) != 0;
}

/* Some of every kind of content, new with each seed. */
static void add_all(struct staged *s, uint64_t seed)
{
    uint8_t *data = calloc(1, 160000);
    for (size_t i = 0; i < 160000; i += 97)
        data[i] = (uint8_t)(seed * (i + 1));
    memcpy(data, &seed, sizeof seed);
    add_bytes(s, "d/raw", 100000, seed);
    add_npy(s, "d/encoded.npy", "<f4", 1, (uint64_t[]){40000}, data, 160000);
    add_npy(s, "x@0:80000.npy", "|u1", 1, (uint64_t[]){80000}, data, 80000);
    add_npy(s, "x@80000:160000.npy", "|u1", 1, (uint64_t[]){80000}, data + 80000, 80000);
    add_bytes(s, "small", 1000, seed + 1);
    file_write(s->tree, "shared", "the old step has it");
    file_write(s->tree, "value.json", "1.5");
    free(data);
}

static bool has_seed(const struct step *step, uint64_t seed)
{
    const struct step_node *x = step_find(step, "x.npy");
    return x && !memcmp(x->bytes + 128, &seed, sizeof seed);
}

/* All bytes of the step are there (reading it checks them), and it is the one of that seed. */
static bool is_whole(struct root *r, const char *name, uint64_t seed)
{
    struct step step;
    step_read(r, name, &step);
    bool is = step.count == 8 && has_seed(&step, seed);
    step_clear(&step);
    return is;
}

static bool is_there(struct root *r, const char *name)
{
    char path[64];
    snprintf(path, sizeof path, ".ckptstore/steps/%s.json", name);
    return access(file_path(r->top, path), F_OK) == 0;
}

static void change_raw(struct staged *s, unsigned n)
{
    int fd = open(file_path(s->tree, "d/raw"), O_WRONLY);
    CHECK(fd >= 0 && pwrite(fd, &n, sizeof n, 50000) == sizeof n && close(fd) == 0);
}

/* The file that becomes an object itself is another user's, who alone may read it. */
static void give_raw(struct staged *s)
{
    CHECK(chmod(file_path(s->tree, "d/raw"), 0600) == 0);
    if (geteuid() == 0)
        CHECK(chown(file_path(s->tree, "d/raw"), 1234, 1235) == 0);
}

/* It is as its owner has made it, whatever became of the commit; and no object is his. */
static void check_raw(struct root *r, struct staged *s)
{
    struct stat st;
    glob_t objects;
    bool root = geteuid() == 0;
    CHECK(stat(file_path(s->tree, "d/raw"), &st) == 0 && (st.st_mode & 07777) == 0600);
    CHECK(!root || (st.st_uid == 1234 && st.st_gid == 1235));
    CHECK(glob(file_path(r->top, ".ckptstore/objects/*/*"), 0, NULL, &objects) == 0);
    for (size_t i = 0; i < objects.gl_pathc; i++)
        CHECK(stat(objects.gl_pathv[i], &st) == 0 && st.st_uid == geteuid() && (!root || !(st.st_mode & 0222)));
    globfree(&objects);
}

/* True if the commit succeeded, be it that no call failed any more or that it did not matter. */
static bool one_fault(struct root *r, enum way way, const char *fault, unsigned n, uint64_t *seed)
{
    struct staged s;
    uint64_t old = *seed, new = ++*seed;
    char base[33] = "";
    if (way != NEW) {
        struct step step;
        step_read(r, "7", &step);
        strcpy(base, step.info.id);
        step_clear(&step);
    }
    staged_begin(r, &s);
    add_all(&s, new);
    give_raw(&s);
    int failed = commit_in_child(&s, "7", way, base, n, fault);
    CHECK(is_whole(r, "1", 1));
    bool committed = way == NEW ? is_there(r, "7") : !is_whole(r, "7", old);
    if (committed)
        CHECK(is_whole(r, "7", new));
    CHECK(committed || failed);
    if (!committed) {
        struct ckpt_commit again = staged_commit(&s, "7");
        if (failed == 2 && n % 4 < 2) /* by another process */
            CHECK(ckpt_commit_recover(&again, NULL) == 0);
        if (failed == 2 ? n % 4 < 2
                        : strstr(fault, "once") != NULL) /* as long as nothing can be written, nothing is given back */
            check_raw(r, &s);
        if (n % 2)
            change_raw(&s, n);
        struct ckpt_commit c = staged_commit(&s, "7");
        c.overwrite = way == OVERWRITE;
        c.base_id = way == CHANGE ? base : NULL;
        CHECK(commit_with(&c) == 0);
        CHECK(is_whole(r, "7", new) && is_whole(r, "1", 1));
    } else if (failed == 1) /* and could not be taken back */
        CHECK(!strstr(fault, "once"));
    staged_end(&s);
    if (way == NEW)
        CHECK(ckpt_store_delete(r->store, "7", NULL, NULL) == 0);
    return !failed;
}

static void test_faults(struct root *r, enum way way, const char *fault, uint64_t *seed)
{
    unsigned in_a_row = 0, n = 0;
    /* Calls whose failure does no harm come last: files that are removed. */
    while (in_a_row < 6)
        in_a_row = one_fault(r, way, fault, ++n, seed) ? in_a_row + 1 : 0;
    CHECK(n > 30 && n < 200);
}

/* --- the order of the calls --- */

/* Names whose last change is not durable: files, and directories whose entries are not. */
static struct {
    char *path[256];
    unsigned count;
} unsynced;

static void is_synced(const char *path)
{
    for (unsigned i = 0; i < unsynced.count; i++)
        if (!strcmp(unsynced.path[i], path)) {
            free(unsynced.path[i]);
            unsynced.path[i--] = unsynced.path[--unsynced.count];
        }
}

static bool was_synced(const char *path)
{
    for (unsigned i = 0; i < unsynced.count; i++)
        if (!strcmp(unsynced.path[i], path))
            return false;
    return true;
}

static void is_changed(const char *path)
{
    if (was_synced(path)) {
        CHECK(unsynced.count < 256);
        unsynced.path[unsynced.count++] = strdup(path);
    }
}

static void entry_changed(const char *path)
{
    char dir[1024];
    snprintf(dir, sizeof dir, "%s", path);
    *strrchr(dir, '/') = 0;
    is_changed(dir);
}

/* What a reader finds by the manifest that has just got its name. */
static void check_published(const char *manifest)
{
    CHECK(was_synced(manifest));
    for (unsigned i = 0; i < unsynced.count; i++)
        CHECK(!strstr(unsynced.path[i], "/.ckptstore/objects"));
}

static void follow(const char *op, const char *a, const char *b)
{
    if (!strcmp(op, "fsync"))
        is_synced(a);
    if (!strcmp(op, "open") || !strcmp(op, "write") || !strcmp(op, "truncate") || !strcmp(op, "setxattr"))
        is_changed(a);
    if (!strcmp(op, "open") || !strcmp(op, "mkdir") || !strcmp(op, "unlink"))
        entry_changed(a);
    if (!strcmp(op, "link") || !strcmp(op, "rename")) {
        bool synced = was_synced(a);
        if (strstr(b, "/.ckptstore/objects/"))
            CHECK(synced);
        if (strstr(b, "/.ckptstore/steps/"))
            check_published(a);
        if (!synced)
            is_changed(b);
        entry_changed(b);
    }
    if (!strcmp(op, "rename")) {
        is_synced(a);
        entry_changed(a);
    }
}

static void test_order(struct root *r, enum way way, const char *base, uint64_t seed)
{
    struct staged s;
    char trace[128], line[4096], op[32], a[1024], b[1024];
    bool published = false;
    snprintf(trace, sizeof trace, "%s/trace", r->top);
    staged_begin(r, &s);
    add_all(&s, seed);
    CHECK(commit_in_child(&s, "9", way, base, 0, trace) == 0);
    staged_end(&s);
    FILE *f = fopen(trace, "r");
    CHECK(f);
    for (unsigned i = 0; fgets(line, sizeof line, f); i++) {
        CHECK(sscanf(line, "%31s %1023s %1023s", op, a, b) >= 2);
        follow(op, a, b);
        published |= strstr(b, "/.ckptstore/steps/9.json") && (!strcmp(op, "link") || !strcmp(op, "rename"));
    }
    fclose(f);
    CHECK(published);
    for (unsigned i = 0; i < unsynced.count; i++)
        CHECK(!strstr(unsynced.path[i], "/.ckptstore/steps"));
    while (unsynced.count)
        free(unsynced.path[--unsynced.count]);
    file_remove(r->top, "trace");
    file_remove(r->top, "trace.data");
    CHECK(is_whole(r, "9", seed));
}

int main(void)
{
    static const char *const faults[] = {"ENOSPC", "EIO:once", "KILL"};
    struct root r;
    struct staged s;
    uint64_t seed = 1;
    CHECK(pipe(requests) == 0 && pipe(results) == 0);
    pid_t server = fork();
    if (!server) {
        close(requests[1]);
        serve();
    }
    root_begin_in(&r, "/dev/shm");
    staged_begin(&r, &s);
    add_all(&s, seed);
    CHECK(commit_as(&s, "1") == 0);
    staged_end(&s);
    ++seed;
    test_order(&r, NEW, "", seed);
    ++seed;
    test_order(&r, OVERWRITE, "", seed);
    test_order(&r, OVERWRITE, "", seed); /* nothing is new */
    for (int i = 0; i < 3; i++)
        test_faults(&r, NEW, faults[i], &seed);
    staged_begin(&r, &s);
    add_all(&s, ++seed);
    CHECK(commit_as(&s, "7") == 0);
    staged_end(&s);
    test_faults(&r, CHANGE, faults[1], &seed);
    test_faults(&r, OVERWRITE, faults[2], &seed);
    root_end(&r);
    close(requests[1]);
    CHECK(waitpid(server, NULL, 0) == server);
    return 0;
}
