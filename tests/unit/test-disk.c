/* SPDX-License-Identifier: Apache-2.0 */
/* Each case is a process of its own: the hooks are read from the environment once. */
#include "core/io/disk.h"

#include "core/base/log.h"
#include "core/base/util.h"
#include "tests/unit/check.h"
#include "tests/unit/files.h"

#include <dirent.h>
#include <limits.h>
#include <signal.h>
#include <sys/wait.h>
#include <sys/xattr.h>

#define CALLS 16 /* of work() */

/* Runs in a new process with the hooks set; returns its wait status. */
static int in_process(const char *fail, const char *trace, int (*run)(const char *top), const char *top)
{
    fflush(NULL);
    pid_t pid = fork();
    CHECK(pid >= 0);
    if (pid == 0) {
        if (fail)
            setenv("CKPTFS_DISK_FAIL", fail, 1);
        if (trace)
            setenv("CKPTFS_DISK_TRACE", trace, 1);
        _exit(run(top));
    }
    int status;
    CHECK(waitpid(pid, &status, 0) == pid);
    return status;
}

/* Every kind of call, CALLS of them. Returns the number of the first that failed. */
static int work(const char *top)
{
    CKPT_AUTOFD int dir = open(top, O_RDONLY | O_DIRECTORY);
    CHECK(dir >= 0);
#define STEP(n, call)                                                                                                  \
    do                                                                                                                 \
        if ((call) < 0)                                                                                                \
            return n;                                                                                                  \
    while (0)
    STEP(1, ckpt_disk_mkdir(dir, "d", 0755));
    CKPT_AUTOFD int fd = ckpt_disk_open(dir, "d/a b%", O_RDWR | O_CREAT | O_EXCL, 0644);
    STEP(2, fd);
    STEP(3, ckpt_disk_write(fd, "hello world", 11, 0));
    STEP(4, ckpt_disk_write(fd, "HELL", 4, 20));
    STEP(5, ckpt_disk_truncate(fd, 22));
    STEP(6, ckpt_disk_setxattr(fd, "user.x", "va\0lue", 6));
    STEP(7, ckpt_disk_setxattr(fd, "user.gone", "", 0));
    STEP(8, ckpt_disk_removexattr(fd, "user.gone"));
    STEP(9, ckpt_disk_fsync(fd));
    STEP(10, ckpt_disk_fsync_dir(dir, "d"));
    STEP(11, ckpt_disk_link(dir, "d/a b%", dir, "linked"));
    STEP(12, ckpt_disk_rename(dir, "d/a b%", dir, "d/c", RENAME_NOREPLACE));
    STEP(13, ckpt_disk_write(fd, "w", 1, 6)); /* the trace has its new name */
    STEP(14, ckpt_disk_unlink(dir, "linked", 0));
    STEP(15, ckpt_disk_mkdir(dir, "e", 0755));
    STEP(16, ckpt_disk_unlink(dir, "e", AT_REMOVEDIR));
#undef STEP
    return 0;
}

static void check_done(const char *top)
{
    char buf[32], value[16];
    CKPT_AUTOFD int fd = open(file_path(top, "d/c"), O_RDONLY);
    CHECK(fd >= 0 && read(fd, buf, sizeof buf) == 22);
    CHECK(memcmp(buf, "hello world\0\0\0\0\0\0\0\0\0HE", 22) == 0);
    CHECK(fgetxattr(fd, "user.x", value, sizeof value) == 6 && memcmp(value, "va\0lue", 6) == 0);
    CHECK(fgetxattr(fd, "user.gone", value, sizeof value) < 0);
    CHECK(access(file_path(top, "linked"), F_OK) < 0 && access(file_path(top, "e"), F_OK) < 0);
}

static void test_plain(const char *top)
{
    file_parents(top, "plain/x");
    CHECK(in_process(NULL, NULL, work, file_path(top, "plain")) == 0);
    check_done(file_path(top, "plain"));
}

/* Call n is the one that fails, and the process can go on or not. */
static int fails_at(const char *top)
{
    int n = work(top), want = atoi(getenv("WANT"));
    CKPT_AUTOFD int dir = open(top, O_RDONLY | O_DIRECTORY);
    bool once = strstr(getenv("CKPTFS_DISK_FAIL"), "once");
    int r = ckpt_disk_mkdir(dir, "after", 0755);
    CHECK(n == want && r == (once && n ? 0 : -EDQUOT));
    CHECK(!n || ckpt_disk_open(dir, ".", O_RDONLY | O_DIRECTORY, 0) >= 0); /* reading goes on */
    return 0;
}

static void test_fail(const char *top)
{
    for (int n = 1; n <= CALLS + 1; n++)
        for (int kind = 0; kind < 3; kind++) {
            static const char *const kinds[] = {"EDQUOT", "EDQUOT:once", "KILL"};
            char name[32], fail[32], want[16];
            snprintf(name, sizeof name, "fail-%d-%d", n, kind);
            snprintf(fail, sizeof fail, "%d:%s", n, kinds[kind]);
            snprintf(want, sizeof want, "%d", n <= CALLS ? n : 0);
            setenv("WANT", want, 1);
            char sub[512];
            snprintf(sub, sizeof sub, "%s", file_path(top, name));
            CHECK(mkdir(sub, 0755) == 0);
            int status = in_process(fail, NULL, kind == 2 ? work : fails_at, sub);
            if (kind == 2 && n <= CALLS) {
                CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
                CHECK((access(file_path(sub, "d"), F_OK) == 0) == (n > 1)); /* instead of the call, not after it */
                CHECK((access(file_path(sub, "linked"), F_OK) == 0) == (n > 11 && n <= 14));
                CHECK((access(file_path(sub, "e"), F_OK) == 0) == (n > 15));
            } else {
                CHECK(status == 0);
            }
        }
}

static void test_nonsense(const char *top)
{
    static const char *const nonsense[] = {"", "0:EIO", "3", "3:", "3:EWHAT", "3:EIO:twice", "x:EIO"};
    for (size_t i = 0; i < sizeof nonsense / sizeof *nonsense; i++) {
        char name[32];
        snprintf(name, sizeof name, "nonsense-%zu/x", i);
        file_parents(top, name);
        name[strlen(name) - 2] = 0;
        int err = dup(2); /* it is told on stderr */
        CHECK(freopen("/dev/null", "w", stderr));
        CHECK(in_process(nonsense[i], NULL, work, file_path(top, name)) == 0);
        fflush(stderr);
        dup2(err, 2);
        close(err);
    }
}

/* --- the trace, played in another place --- */

static void unescape(char *s)
{
    char *out = s;
    for (; *s; s++)
        if (*s == '%') {
            unsigned c;
            CHECK(sscanf(s + 1, "%2X", &c) == 1);
            *out++ = (char)c;
            s += 2;
        } else
            *out++ = *s;
    *out = 0;
}

/* A path below `from` as one below `to`. */
static const char *moved(char *word, const char *from, const char *to)
{
    unescape(word);
    CHECK(strncmp(word, from, strlen(from)) == 0 && word[strlen(from)] == '/');
    return file_path(to, word + strlen(from) + 1);
}

static void *traced_data(int fd, long long len, long long at)
{
    void *p = malloc((size_t)len + 1);
    CHECK(p && pread(fd, p, (size_t)len, at) == len);
    return p;
}

static void play_line(char *line, int data, const char *from, const char *to)
{
    char *w[8] = {0}, *save;
    for (int i = 0; i < 7 && (w[i] = strtok_r(i ? NULL : line, " \n", &save)); i++)
        ;
    const char *path = moved(w[1], from, to);
    if (!strcmp(w[0], "open")) {
        int fd = open(path, atoi(w[2]), strtol(w[3], NULL, 8));
        CHECK(fd >= 0 && close(fd) == 0);
    } else if (!strcmp(w[0], "write")) {
        void *p = traced_data(data, atoll(w[3]), atoll(w[4]));
        int fd = open(path, O_WRONLY);
        CHECK(fd >= 0 && pwrite(fd, p, (size_t)atoll(w[3]), atoll(w[2])) == atoll(w[3]) && close(fd) == 0);
        free(p);
    } else if (!strcmp(w[0], "truncate"))
        CHECK(truncate(path, atoll(w[2])) == 0);
    else if (!strcmp(w[0], "fsync"))
        CHECK(access(path, F_OK) == 0);
    else if (!strcmp(w[0], "mkdir"))
        CHECK(mkdir(path, (mode_t)strtol(w[2], NULL, 8)) == 0);
    else if (!strcmp(w[0], "rename"))
        CHECK(rename(path, moved(w[2], from, to)) == 0 && w[3]);
    else if (!strcmp(w[0], "link"))
        CHECK(link(path, moved(w[2], from, to)) == 0 && !w[3]);
    else if (!strcmp(w[0], "unlink"))
        CHECK(unlinkat(AT_FDCWD, path, atoi(w[2])) == 0);
    else if (!strcmp(w[0], "setxattr")) {
        void *p = traced_data(data, atoll(w[3]), atoll(w[4]));
        CHECK(setxattr(path, w[2], p, (size_t)atoll(w[3]), 0) == 0);
        free(p);
    } else {
        CHECK(!strcmp(w[0], "removexattr") && removexattr(path, w[2]) == 0);
    }
}

static int play(const char *trace, const char *from, const char *to)
{
    char name[1024], line[8192];
    snprintf(name, sizeof name, "%s.data", trace);
    FILE *f = fopen(trace, "r");
    CKPT_AUTOFD int data = open(name, O_RDONLY);
    CHECK(f && data >= 0);
    int lines = 0;
    while (fgets(line, sizeof line, f)) {
        play_line(line, data, from, to);
        lines++;
    }
    fclose(f);
    return lines;
}

static void test_trace(const char *top)
{
    char from[512], to[512], trace[512], real[PATH_MAX];
    snprintf(trace, sizeof trace, "%s", file_path(top, "trace"));
    snprintf(from, sizeof from, "%s", file_path(top, "from x"));
    snprintf(to, sizeof to, "%s", file_path(top, "to"));
    CHECK(mkdir(from, 0755) == 0 && mkdir(to, 0755) == 0 && realpath(from, real));
    CHECK(in_process(NULL, trace, work, from) == 0);
    check_done(from);
    CHECK(play(trace, real, to) == CALLS);
    check_done(to);
    /* What failed is not there; both hooks at once; it is appended to. */
    CHECK(WEXITSTATUS(in_process(NULL, trace, work, from)) == 1);
    snprintf(trace, sizeof trace, "%s", file_path(top, "half-trace"));
    snprintf(from, sizeof from, "%s", file_path(top, "half"));
    snprintf(to, sizeof to, "%s", file_path(top, "half-to"));
    CHECK(mkdir(from, 0755) == 0 && mkdir(to, 0755) == 0 && realpath(from, real));
    CHECK(WEXITSTATUS(in_process("5:EIO", trace, work, from)) == 5);
    CHECK(play(trace, real, to) == 4);
    struct stat st;
    CHECK(stat(file_path(to, "d/a b%"), &st) == 0 && st.st_size == 24);
}

/* --- replace --- */

static int count_entries(const char *path)
{
    DIR *d = opendir(path);
    int n = 0;
    CHECK(d);
    while (readdir(d))
        n++;
    closedir(d);
    return n - 2;
}

static int replaces(const char *top)
{
    CKPT_AUTOFD int dir = open(top, O_RDONLY | O_DIRECTORY);
    return -ckpt_disk_replace(dir, "r/config", "new text", 8);
}

static int replaces_here(const char *top)
{
    CKPT_AUTOFD int dir = open(file_path(top, "r"), O_RDONLY | O_DIRECTORY);
    char longest[256] = {0};
    memset(longest, 'n', 255);
    CHECK(ckpt_disk_replace(dir, longest, "", 0) == 0);
    CHECK(ckpt_disk_unlink(dir, longest, 0) == 0);
    return -ckpt_disk_replace(dir, "config", "text", 4);
}

static bool holds(const char *path, const char *text)
{
    char buf[64];
    FILE *f = fopen(path, "r");
    CHECK(f);
    size_t n = fread(buf, 1, sizeof buf - 1, f);
    fclose(f);
    buf[n] = 0;
    return !strcmp(buf, text);
}

static void test_replace(const char *top)
{
    file_write(top, "r/config", "old");
    CHECK(in_process(NULL, NULL, replaces_here, top) == 0);
    CHECK(holds(file_path(top, "r/config"), "text"));
    for (int n = 1; n <= 6; n++) {
        char fail[32];
        snprintf(fail, sizeof fail, "%d:ENOSPC:once", n);
        file_write(top, "r/config", "old");
        int status = in_process(fail, NULL, replaces, top);
        CHECK(WIFEXITED(status) &&
              WEXITSTATUS(status) == (n <= 5 ? ENOSPC : 0)); /* open, write, fsync, rename, fsync */
        CHECK(holds(file_path(top, "r/config"), n < 5 ? "old" : "new text"));
        CHECK(count_entries(file_path(top, "r")) == 1); /* nothing is left behind */
    }
}

/* --- removal --- */

static void deep(int depth)
{
    for (int i = 0; i < depth; i++)
        CHECK(mkdir("d", 0755) == 0 && chdir("d") == 0 && close(creat("f", 0644)) == 0);
}

static int removes(const char *top)
{
    CKPT_AUTOFD int dir = open(top, O_RDONLY | O_DIRECTORY);
    char name[64];
    for (int i = 0; i < 600; i++) {
        snprintf(name, sizeof name, "t/%d/file-%d", i % 7, i);
        file_write(top, name, "x");
    }
    file_write(top, "kept/file", "x");
    file_link(top, "t/link", "../kept");
    file_link(top, "t/dangling", "nowhere");
    file_write(top, "t/closed/in/f", "x");
    CHECK(chmod(file_path(top, "t/closed/in"), 0) == 0 && chmod(file_path(top, "t/closed"), 0500) == 0);
    CHECK(mkdir(file_path(top, "t/deep"), 0755) == 0 && chdir(file_path(top, "t/deep")) == 0);
    deep(290);
    CHECK(ckpt_disk_remove_tree(dir, "t") == 0);
    CHECK(access(file_path(top, "t"), F_OK) < 0 && access(file_path(top, "kept/file"), F_OK) == 0);

    /* A link or a file itself; nothing at all. */
    file_link(top, "link", "kept");
    CHECK(ckpt_disk_remove_tree(dir, "link") == 0 && access(file_path(top, "kept/file"), F_OK) == 0);
    CHECK(ckpt_disk_remove_tree(dir, "kept/file") == 0 && access(file_path(top, "kept/file"), F_OK) < 0);
    CHECK(ckpt_disk_remove_tree(dir, "link") == 0);

    /* Too deep: all but that goes. */
    CHECK(chdir(top) == 0 && mkdir("u", 0755) == 0 && chdir("u") == 0);
    deep(310);
    file_write(top, "u/other/f", "x");
    CHECK(ckpt_disk_remove_tree(dir, "u") == -ELOOP);
    CHECK(access(file_path(top, "u/other"), F_OK) < 0 && access(file_path(top, "u/d"), F_OK) == 0);
    CHECK(ckpt_disk_remove_tree(dir, "u/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d") == 0 && ckpt_disk_remove_tree(dir, "u") == 0);
    return 0;
}

static int removes_some(const char *top)
{
    CKPT_AUTOFD int dir = open(top, O_RDONLY | O_DIRECTORY);
    return -ckpt_disk_remove_tree(dir, "s");
}

static void test_remove(const char *top)
{
    CHECK(in_process(NULL, NULL, removes, top) == 0);
    file_write(top, "s/a/1", "x");
    file_write(top, "s/b/2", "x");
    file_write(top, "s/c/3", "x");
    CHECK(WEXITSTATUS(in_process("2:EIO:once", NULL, removes_some, top)) ==
          EIO); /* the first error is told, though more was done */
    CHECK(in_process(NULL, NULL, removes_some, top) == 0 && access(file_path(top, "s"), F_OK) < 0);
}

int main(void)
{
    char top[] = FILES_TEMPLATE;
    files_begin(top);
    test_plain(top);
    test_fail(top);
    test_nonsense(top);
    test_trace(top);
    test_replace(top);
    test_remove(top);
    files_end(top);
    return 0;
}
