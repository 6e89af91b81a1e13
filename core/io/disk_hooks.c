/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Lines of the trace, of calls that succeeded (a write that failed half way has the line of its half):
 *
 *   open PATH FLAGS MODE          numbers are decimal, but for modes, which are octal
 *   write PATH OFFSET LENGTH AT   the data are at AT of FILE.data
 *   truncate PATH SIZE
 *   punch PATH SIZE
 *   allocate PATH MODE OFFSET LENGTH
 *   fsync PATH
 *   mkdir PATH MODE
 *   rename PATH PATH FLAGS
 *   link PATH PATH
 *   unlink PATH FLAGS
 *   setxattr PATH NAME LENGTH AT
 *   removexattr PATH NAME
 *   chmod PATH MODE
 *   chown PATH UID GID
 *   times PATH                    they are not told
 *
 * Paths are absolute; of a descriptor, the name that its file has when the call is made. One that has none any more
 * ends in "%20(deleted)".
 */
#include "core/io/disk_hooks.h"

#include "core/base/buf.h"
#include "core/base/log.h"
#include "core/base/path.h"
#include "core/base/util.h"

#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>

static pthread_once_t hooks_once = PTHREAD_ONCE_INIT;
atomic_bool ckpt_disk_unhooked;

static struct {
    pthread_mutex_t lock;    /* held from before a call until its line is written */
    uint64_t calls, fail_at; /* 0: never */
    int fail_code;           /* positive errno, 0: SIGKILL */
    bool fail_once;
    int trace, data;  /* descriptors, or -1 */
    const char *slow; /* a call's name and a colon, then milliseconds; NULL: none */
} hooks = {.lock = PTHREAD_MUTEX_INITIALIZER, .trace = -1, .data = -1};

static int error_by_name(const char *name, size_t len)
{
    static const struct {
        const char *name;
        int code;
    } errors[] = {
        {"ENOSPC", ENOSPC}, {"EIO", EIO},       {"EDQUOT", EDQUOT}, {"EROFS", EROFS},   {"EACCES", EACCES},
        {"EPERM", EPERM},   {"ENOMEM", ENOMEM}, {"EMFILE", EMFILE}, {"EEXIST", EEXIST}, {"EOPNOTSUPP", EOPNOTSUPP},
        {"EMLINK", EMLINK}, {"KILL", 0},
    };
    for (size_t i = 0; i < sizeof errors / sizeof *errors; i++)
        if (strlen(errors[i].name) == len && !memcmp(errors[i].name, name, len))
            return errors[i].code;
    return -1;
}

/* N:ERROR or N:ERROR:once */
static bool parse_fail(const char *text)
{
    char *end;
    hooks.fail_at = strtoull(text, &end, 10);
    if (!hooks.fail_at || *end != ':')
        return false;
    size_t len = strcspn(++end, ":");
    hooks.fail_code = error_by_name(end, len);
    hooks.fail_once = !strcmp(end + len, ":once");
    return hooks.fail_code >= 0 && (!end[len] || hooks.fail_once);
}

static int open_trace(const char *path, const char *suffix)
{
    char full[PATH_MAX];
    if (snprintf(full, sizeof full, "%s%s", path, suffix) >= (int)sizeof full)
        return -1;
    return open(full, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
}

static void hooks_read(void)
{
    const char *fail = getenv("CKPTFS_DISK_FAIL"), *trace = getenv("CKPTFS_DISK_TRACE");
    if (fail && *fail && !parse_fail(fail)) {
        hooks.fail_at = 0;
        ckpt_log(CKPT_LOG_ERROR, "CKPTFS_DISK_FAIL: \"%s\" is not N:ERROR or N:ERROR:once", fail);
    }
    if (trace && *trace) {
        hooks.trace = open_trace(trace, "");
        hooks.data = open_trace(trace, ".data");
        if (hooks.trace < 0 || hooks.data < 0)
            ckpt_log(CKPT_LOG_ERROR, "CKPTFS_DISK_TRACE: cannot write to %s", trace);
    }
    const char *slow = getenv("CKPTFS_DISK_SLOW");
    if (slow && strchr(slow, ':'))
        hooks.slow = slow;
    if (!hooks.fail_at && hooks.trace < 0 && !hooks.slow)
        atomic_store(&ckpt_disk_unhooked, true);
}

bool ckpt_disk_hooks_ask(void)
{
    pthread_once(&hooks_once, hooks_read);
    return !atomic_load(&ckpt_disk_unhooked);
}

int ckpt_disk_hook(void)
{
    pthread_mutex_lock(&hooks.lock);
    uint64_t n = ++hooks.calls;
    if (!hooks.fail_at || n < hooks.fail_at || (hooks.fail_once && n > hooks.fail_at))
        return 0;
    if (!hooks.fail_code)
        raise(SIGKILL);
    return -hooks.fail_code;
}

static void add_plain(struct ckpt_buf *line, const char *text)
{
    for (const char *p = text; *p; p++)
        if ((unsigned char)*p <= ' ' || (unsigned char)*p >= 0x7f || *p == '%')
            ckpt_buf_addf(line, "%%%02X", (unsigned char)*p);
        else
            ckpt_buf_addc(line, *p);
}

static void add_fd(struct ckpt_buf *line, int fd)
{
    char proc[64], path[PATH_MAX];
    ssize_t n = -1;
    ckpt_fd_path(proc, fd);
    if (fd != AT_FDCWD)
        n = readlink(proc, path, sizeof path - 1);
    else if (getcwd(path, sizeof path))
        n = (ssize_t)strlen(path);
    path[n < 0 ? 0 : n] = 0;
    add_plain(line, n < 0 ? "?" : path);
}

static void add_path(struct ckpt_buf *line, int dir, const char *path)
{
    ckpt_buf_addc(line, ' ');
    if (*path != '/') {
        add_fd(line, dir);
        ckpt_buf_addc(line, '/');
    }
    add_plain(line, path);
}

/* Numbers that end a line; of data also where they are put. */
static void add_data(struct ckpt_buf *line, const void *data, size_t len)
{
    ssize_t n = hooks.data < 0 ? -1 : write(hooks.data, data, len);
    long long end = lseek(hooks.data, 0, SEEK_CUR); /* behind what was appended, whoever else appends */
    if (n != (ssize_t)len || end < 0)
        ckpt_log(CKPT_LOG_ERROR, "CKPTFS_DISK_TRACE: data are missing: %s", strerror(errno));
    ckpt_buf_addf(line, " %zu %lld", len, end - (long long)len);
}

static void slow_down(const char *op)
{
    size_t len = strlen(op);
    if (!hooks.slow || strncmp(hooks.slow, op, len) || hooks.slow[len] != ':')
        return;
    long ms = strtol(hooks.slow + len + 1, NULL, 10);
    nanosleep(&(struct timespec){.tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1000000}, NULL);
}

/* Writes the line, and lets go of the lock. */
static void hook_end(const char *op, struct ckpt_buf *line)
{
    if (line->len && hooks.trace >= 0) {
        ckpt_buf_addc(line, '\n');
        if (ckpt_buf_error(line) < 0 || write(hooks.trace, line->data, line->len) != (ssize_t)line->len)
            ckpt_log(CKPT_LOG_ERROR, "CKPTFS_DISK_TRACE: a line is missing");
    }
    ckpt_buf_clear(line);
    pthread_mutex_unlock(&hooks.lock);
    slow_down(op);
}

static bool tracing(int r)
{
    return r >= 0 && hooks.trace >= 0;
}

void ckpt_disk_hooked_paths(int r, const char *op, int dir, const char *path, int dir2, const char *path2,
                            const char *fmt, ...)
{
    struct ckpt_buf line = CKPT_BUF_INIT;
    if (tracing(r)) {
        va_list ap;
        va_start(ap, fmt);
        ckpt_buf_adds(&line, op);
        add_path(&line, dir, path);
        if (path2)
            add_path(&line, dir2, path2);
        ckpt_buf_vaddf(&line, fmt, ap);
        va_end(ap);
    }
    hook_end(op, &line);
}

void ckpt_disk_hooked_fd(int r, const char *op, int fd, const char *name, const uint64_t *number, const void *data,
                         size_t len)
{
    struct ckpt_buf line = CKPT_BUF_INIT;
    if (tracing(r)) {
        ckpt_buf_addf(&line, "%s ", op);
        add_fd(&line, fd);
        if (name) {
            ckpt_buf_addc(&line, ' ');
            add_plain(&line, name);
        }
        if (number)
            ckpt_buf_addf(&line, " %llu", (unsigned long long)*number);
        if (data)
            add_data(&line, data, len);
    }
    hook_end(op, &line);
}

void ckpt_disk_hooked_words(int r, const char *op, int fd, const char *words)
{
    struct ckpt_buf line = CKPT_BUF_INIT;
    if (tracing(r)) {
        ckpt_buf_addf(&line, "%s ", op);
        add_fd(&line, fd);
        if (words)
            ckpt_buf_addf(&line, " %s", words);
    }
    hook_end(op, &line);
}
