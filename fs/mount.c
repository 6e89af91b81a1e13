/* SPDX-License-Identifier: Apache-2.0 */
/*
 * `ckptfs mount`: the daemon. The command forks; the child opens the source, mounts and serves, and tells the parent
 * through a pipe when the kernel has been answered, or why it never will be. So the command returns when the mount
 * works, with the right status.
 */
#include "fs/commands/commands.h"
#include "fs/loop.h"
#include "fs/operations.h"

#include "core/base/buf.h"
#include "core/base/util.h"
#include "core/io/disk.h"

#include <fcntl.h>
#include <malloc.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/wait.h>
#include <time.h>

#define READ_AHEAD_KB 1024

/* What the child says: a status, and the reason. */
struct report {
    int status;
    char text[CKPT_ERR_TEXT];
};

static void send_report(int fd, int status, const char *text)
{
    struct report r = {.status = status};
    snprintf(r.text, sizeof r.text, "%s", text);
    if (fd >= 0 && write(fd, &r, sizeof r) < 0)
        ckpt_log(CKPT_LOG_DEBUG, "nobody waits for the mount");
}

/* A mount point whose daemon has died answers ENOTCONN: take the dead mount away. Its attributes may still be cached;
 * what statfs tells is not. */
static void clear_dead_mount(const char *mountpoint)
{
    struct statfs st;
    if (statfs(mountpoint, &st) == 0 || errno != ENOTCONN)
        return;
    ckpt_log(CKPT_LOG_WARN, "%s: the daemon of an earlier mount has died; unmounting what is left", mountpoint);
    if (umount2(mountpoint, MNT_DETACH) == 0)
        return;
    pid_t pid = fork();
    if (pid == 0) {
        execlp("fusermount3", "fusermount3", "-u", "-z", mountpoint, (char *)NULL);
        _exit(127);
    }
    if (pid > 0)
        waitpid(pid, NULL, 0);
}

/* Let the kernel read ahead in larger pieces; only root may, and nothing depends on it. */
static void raise_read_ahead(const char *mountpoint)
{
    CKPT_AUTOFREE char *real = realpath(mountpoint, NULL);
    FILE *f = fopen("/proc/self/mountinfo", "re");
    char line[8192], path[128] = "";
    while (f && real && fgets(line, sizeof line, f)) {
        unsigned major, minor;
        char where[4096];
        bool is_mount = sscanf(line, "%*u %*u %u:%u %*s %4095s", &major, &minor, where) == 3;
        if (is_mount && !strcmp(where, real)) /* the last one is on top */
            snprintf(path, sizeof path, "/sys/class/bdi/%u:%u/read_ahead_kb", major, minor);
    }
    if (f)
        fclose(f);
    CKPT_AUTOFD int fd = *path ? open(path, O_WRONLY | O_CLOEXEC) : -1;
    if (fd < 0 || dprintf(fd, "%d", READ_AHEAD_KB) < 0)
        ckpt_log(CKPT_LOG_DEBUG, "the kernel's read-ahead stays as it is");
}

/* --- the sweeper: a thread that tells the kernel which steps have gone, so that the kernel forgets their files. It
 * holds no lock that an operation needs: the notification may have to wait for one. --- */

struct sweeper {
    struct fs_mount *mount;
    struct fuse_session *session;
    pthread_mutex_t lock;
    pthread_cond_t wake;
    bool ending;
    pthread_t thread;
};

static void notify_gone(void *arg, uint64_t parent, const char *name)
{
    struct sweeper *s = arg;
    fuse_lowlevel_notify_inval_entry(s->session, parent, name, strlen(name));
}

/* The first request of all: when it is answered, the mount works. */
static void announce(struct sweeper *s)
{
    struct stat st;
    if (stat(s->mount->opt->mountpoint, &st) < 0) { /* unmounted already, or it does not work */
        send_report(s->mount->ready_fd, FS_MOUNT_FAILED, strerror(errno));
        fuse_session_exit(s->session);
        return;
    }
    raise_read_ahead(s->mount->opt->mountpoint); /* only now: the kernel's greeting has set it */
    send_report(s->mount->ready_fd, FS_OK, "");
    if (s->mount->ready_fd >= 0)
        close(s->mount->ready_fd);
}

/* False: the mount ends. */
static bool rest(struct sweeper *s, double seconds)
{
    struct timespec until;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += (time_t)seconds;
    CKPT_GUARD(&s->lock);
    int r = 0;
    while (!s->ending && r == 0) /* it may wake without a reason */
        r = pthread_cond_timedwait(&s->wake, &s->lock, &until);
    return !s->ending;
}

static void *sweep(void *arg)
{
    struct sweeper *s = arg;
    announce(s);
    double period = CKPT_MAX(s->mount->opt->core.refresh, 1.0);
    while (rest(s, period)) {
        ckpt_sweep(s->mount->source, notify_gone, s);
        malloc_trim(1 << 20);
    }
    return NULL;
}

/* --- serving --- */

/* The -o of a session; libfuse's functions return -1 without memory. */
static int add_options(const struct fs_mount *m, const struct fs_mount_options *o, char **ret)
{
    bool is_writable = m->writable || o->read_write;
    CKPT_AUTOFREE char *real = fs_source_path(o->source);
    const char *source = real ? real : o->source;
    CKPT_AUTOFREE char *fsname = malloc(strlen("fsname=") + strlen(source) + 1);
    if (!fsname)
        return -1;
    sprintf(fsname, "fsname=%s", source);
    int r = fuse_opt_add_opt(ret, "default_permissions,subtype=ckptfs");
    if (r == 0 && !is_writable)
        r = fuse_opt_add_opt(ret, "ro");
    if (r == 0)
        r = fuse_opt_add_opt_escaped(ret, fsname);
    if (r == 0 && o->fuse)
        r = fuse_opt_add_opt(ret, o->fuse);
    return r;
}

static struct fuse_session *new_session(struct fs_mount *m, const struct fs_mount_options *o, struct ckpt_err *err)
{
    struct fuse_args args = FUSE_ARGS_INIT(0, NULL);
    struct fuse_session *session = NULL;
    char *options = NULL;
    int r = add_options(m, o, &options);
    if (r == 0)
        r = fuse_opt_add_arg(&args, "ckptfs");
    if (r == 0)
        r = fuse_opt_add_arg(&args, "-o");
    if (r == 0)
        r = fuse_opt_add_arg(&args, options);
    if (r == 0 && o->debug)
        r = fuse_opt_add_arg(&args, "-d");
    if (r == 0)
        session = fuse_session_new(&args, &fs_operations, sizeof fs_operations, m);
    if (!session)
        ckpt_fail(err, EINVAL, "an option is not known: %s", o->fuse ? o->fuse : "");
    fuse_opt_free_args(&args);
    free(options);
    return session;
}

static int run_loop(struct fuse_session *session, const struct fs_mount_options *o)
{
    return o->single_thread ? fuse_session_loop(session) : fs_loop_run(session);
}

static int mount_session(struct fuse_session *session, const struct fs_mount_options *o, struct ckpt_err *err)
{
    struct stat st;
    bool is_other = stat(o->mountpoint, &st) == 0 && !S_ISDIR(st.st_mode);
    if (is_other) /* libfuse would mount on it, and nothing could be reached */
        return ckpt_fail(err, ENOTDIR, "%s: not a directory", o->mountpoint);
    if (fuse_set_signal_handlers(session) == 0) {
        if (fuse_session_mount(session, o->mountpoint) == 0)
            return 0;
        fuse_remove_signal_handlers(session);
    }
    bool is_for_others = o->fuse && strstr(o->fuse, "allow_");
    return ckpt_fail(err, EIO,
                     "%s: cannot be mounted: is it an empty directory of yours, is /dev/fuse there, and is fusermount3 "
                     "installed?%s",
                     o->mountpoint,
                     is_for_others ? " allow_other and allow_root want user_allow_other in /etc/fuse.conf." : "");
}

/* Until it is unmounted, or a signal ends it: an exit status. */
static int serve_mounted(struct fs_mount *m, const struct fs_mount_options *o, struct fuse_session *session)
{
    struct sweeper s = {
        .mount = m, .session = session, .lock = PTHREAD_MUTEX_INITIALIZER, .wake = PTHREAD_COND_INITIALIZER};
    /* Passthrough wants the handles that only a writable mount has. Tests that count what is written to disk want none
     * of it. */
    bool wanted = m->writable || o->passthrough;
    if (wanted && geteuid() == 0 && !ckpt_disk_watched())
        m->passthrough = fs_passthrough_new(session);
    bool sweeping = pthread_create(&s.thread, NULL, sweep, &s) == 0;
    if (!sweeping)
        send_report(m->ready_fd, FS_MOUNT_FAILED, "no thread can be made");
    int r = sweeping ? run_loop(session, o) : -EAGAIN;
    pthread_mutex_lock(&s.lock);
    s.ending = true;
    pthread_cond_signal(&s.wake);
    pthread_mutex_unlock(&s.lock);
    fuse_session_unmount(session); /* first: it lets a notification under way return */
    if (sweeping)
        pthread_join(s.thread, NULL);
    return r < 0 ? FS_MOUNT_FAILED : FS_OK; /* a signal ends it well */
}

static int serve(struct fs_mount *m, const struct fs_mount_options *o)
{
    struct ckpt_err err = {0};
    struct fuse_session *session = new_session(m, o, &err);
    if (!session) {
        send_report(m->ready_fd, FS_USAGE, err.text);
        return FS_USAGE;
    }
    int status = FS_MOUNT_FAILED;
    clear_dead_mount(o->mountpoint);
    if (mount_session(session, o, &err) == 0) {
        status = serve_mounted(m, o, session);
        fuse_remove_signal_handlers(session);
    } else
        send_report(m->ready_fd, FS_MOUNT_FAILED, err.text);
    fuse_session_destroy(session);
    fs_passthrough_free(m->passthrough);
    return status;
}

static int status_of(int error)
{
    switch (-error) {
    case EUCLEAN:
    case EBADMSG:
    case EOPNOTSUPP:
    case ENODATA:
        return FS_INTEGRITY;
    default:
        return FS_UNREACHABLE;
    }
}

/* In the daemon: open, mount, serve. ready_fd is where the parent waits, or -1. */
static int run_daemon(struct fs_mount_options *o, int ready_fd)
{
    struct ckpt_err err = {0};
    struct fs_mount m = {.opt = o, .ready_fd = ready_fd};
    o->core.write = !o->read_only;
    o->core.hidden = o->mountpoint;
    int r = fs_opens_new(&m.opens);
    if (r < 0)
        ckpt_no_memory(&err);
    else
        r = ckpt_source_open(o->source, &o->core, &m.source, &err);
    if (r < 0) {
        fs_opens_free(m.opens);
        if (ready_fd < 0)
            ckpt_log(CKPT_LOG_ERROR, "%s", err.text);
        send_report(ready_fd, status_of(r), err.text);
        return status_of(r);
    }
    m.writable = ckpt_source_writable(m.source) || o->read_write;
    int status = serve(&m, o);
    ckpt_source_close(m.source);
    fs_opens_free(m.opens);
    return status;
}

/* Wait for the child's word. */
static int await_daemon(int fd, pid_t child)
{
    struct report r;
    ssize_t n;
    do
        n = read(fd, &r, sizeof r);
    while (n < 0 && errno == EINTR);
    if (n != sizeof r) { /* it ended without a word; libfuse may have said why on stderr */
        int status = 0;
        waitpid(child, &status, 0);
        fprintf(stderr, "ckptfs: the mount failed\n");
        return FS_MOUNT_FAILED;
    }
    if (r.status != FS_OK) {
        waitpid(child, NULL, 0);
        fprintf(stderr, "ckptfs: %s\n", r.text);
    }
    return r.status;
}

/* Leave the terminal; what libfuse has to say about a failing mount still goes to stderr. */
static void detach(void)
{
    setsid();
    if (chdir("/") < 0)
        ckpt_log(CKPT_LOG_DEBUG, "the daemon stays in its folder");
    int null = open("/dev/null", O_RDWR | O_CLOEXEC);
    if (null >= 0) {
        dup2(null, 0);
        dup2(null, 1);
        dup2(null, 2);
        close(null);
    }
}

static void prepare_process(void)
{
    signal(SIGIO, SIG_IGN); /* whoever breaks a lease of ours would end the daemon */
    struct rlimit rl;
    bool may_raise = getrlimit(RLIMIT_NOFILE, &rl) == 0 && rl.rlim_cur < rl.rlim_max;
    if (may_raise) { /* files of checkpoints are kept open */
        rl.rlim_cur = rl.rlim_max;
        setrlimit(RLIMIT_NOFILE, &rl);
    }
    mallopt(M_ARENA_MAX, 2);            /* many threads, little memory */
    mallopt(M_MMAP_THRESHOLD, 4 << 20); /* chunks go back to the system when they are dropped */
    mallopt(M_TRIM_THRESHOLD, 16 << 20);
}

/* Returns in the parent when the mount works, and in the child when it has ended. */
static int run_in_background(struct fs_mount_options *o)
{
    int pipes[2];
    if (pipe2(pipes, O_CLOEXEC) < 0) {
        perror("ckptfs: pipe");
        return FS_MOUNT_FAILED;
    }
    pid_t child = fork();
    if (child < 0) {
        perror("ckptfs: fork");
        return FS_MOUNT_FAILED;
    }
    if (child == 0) {
        close(pipes[0]);
        detach();
        ckpt_log_setup(CKPT_LOG_INFO, 1);
        return run_daemon(o, pipes[1]);
    }
    close(pipes[1]);
    int status = await_daemon(pipes[0], child);
    close(pipes[0]);
    return status;
}

int fs_mount_main(int argc, char **argv)
{
    struct fs_mount_options o;
    struct ckpt_err err = {0};
    if (fs_mount_options_parse(argc, argv, &o, &err) < 0)
        return fs_usage("mount", "%s", err.text);
    prepare_process();
    int status;
    /* The daemon changes its folder. */
    CKPT_AUTOFREE char *source = fs_source_path(o.source), *mountpoint = realpath(o.mountpoint, NULL);
    if (source)
        o.source = source;
    if (mountpoint)
        o.mountpoint = mountpoint;
    if (o.foreground) {
        ckpt_log_setup(o.debug ? CKPT_LOG_DEBUG : CKPT_LOG_INFO, 0);
        status = run_daemon(&o, -1);
    } else
        status = run_in_background(&o);
    fs_mount_options_clear(&o);
    return status;
}
