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
        if (sscanf(line, "%*u %*u %u:%u %*s %4095s", &major, &minor, where) == 3 && !strcmp(where, real))
            snprintf(path, sizeof path, "/sys/class/bdi/%u:%u/read_ahead_kb", major, minor);
    }
    if (f)
        fclose(f);
    CKPT_AUTOFD int fd = *path ? open(path, O_WRONLY | O_CLOEXEC) : -1;
    if (fd < 0 || dprintf(fd, "%d", READ_AHEAD_KB) < 0)
        ckpt_log(CKPT_LOG_DEBUG, "the kernel's read-ahead stays as it is");
}

/* --- the thread that tells the kernel which steps have gone, so that it lets go of their files. It holds no lock that
 * an operation needs: the notification may have to wait for one. --- */

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

static void *sweep(void *arg)
{
    struct sweeper *s = arg;
    announce(s);
    double period = CKPT_MAX(s->mount->opt->core.refresh, 1.0);
    for (;;) {
        struct timespec until;
        clock_gettime(CLOCK_REALTIME, &until);
        until.tv_sec += (time_t)period;
        pthread_mutex_lock(&s->lock);
        while (!s->ending && pthread_cond_timedwait(&s->wake, &s->lock, &until) == 0)
            ;
        bool ending = s->ending;
        pthread_mutex_unlock(&s->lock);
        if (ending)
            return NULL;
        ckpt_sweep(s->mount->source, notify_gone, s);
        malloc_trim(1 << 20);
    }
}

/* --- serving --- */

static struct fuse_session *new_session(struct fs_mount *m, const struct fs_mount_options *o, struct ckpt_err *err)
{
    struct fuse_args args = FUSE_ARGS_INIT(0, NULL);
    char *mount_opts = NULL;
    CKPT_AUTOFREE char *real = realpath(o->source, NULL);
    CKPT_AUTOFREE char *fsname = malloc(strlen(real ? real : o->source) + 8);
    struct fuse_session *session = NULL;
    if (fsname) {
        sprintf(fsname, "fsname=%s", real ? real : o->source);
        if (fuse_opt_add_arg(&args, "ckptfs") == 0 &&
            fuse_opt_add_opt(&mount_opts, m->writable || o->read_write
                                              ? "default_permissions,subtype=ckptfs"
                                              : "ro,default_permissions,subtype=ckptfs") == 0 &&
            fuse_opt_add_opt_escaped(&mount_opts, fsname) == 0 &&
            (!o->fuse || fuse_opt_add_opt(&mount_opts, o->fuse) == 0) && fuse_opt_add_arg(&args, "-o") == 0 &&
            fuse_opt_add_arg(&args, mount_opts) == 0 && (!o->debug || fuse_opt_add_arg(&args, "-d") == 0))
            session = fuse_session_new(&args, &fs_operations, sizeof fs_operations, m);
    }
    if (!session)
        ckpt_fail(err, EINVAL, "an option is not known: %s", o->fuse ? o->fuse : "");
    fuse_opt_free_args(&args);
    free(mount_opts);
    return session;
}

static int run_loop(struct fuse_session *session, const struct fs_mount_options *o)
{
    return o->single_thread ? fuse_session_loop(session) : fs_loop_run(session);
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
    struct stat st;
    clear_dead_mount(o->mountpoint);
    if (stat(o->mountpoint, &st) == 0 &&
        !S_ISDIR(st.st_mode)) { /* libfuse would mount on it, and nothing could be reached */
        ckpt_fail(&err, ENOTDIR, "%s: not a directory", o->mountpoint);
        send_report(m->ready_fd, FS_MOUNT_FAILED, err.text);
        fuse_session_destroy(session);
        return FS_MOUNT_FAILED;
    }
    if (fuse_set_signal_handlers(session) != 0 || fuse_session_mount(session, o->mountpoint) != 0) {
        ckpt_fail(&err, EIO,
                  "%s: cannot be mounted: is it an empty directory of yours, is /dev/fuse there, and is fusermount3 "
                  "installed?%s",
                  o->mountpoint,
                  o->fuse && strstr(o->fuse, "allow_")
                      ? " allow_other and allow_root want user_allow_other in /etc/fuse.conf."
                      : "");
        send_report(m->ready_fd, FS_MOUNT_FAILED, err.text);
    } else {
        /* Writing by the kernel itself wants the handles that only a writable mount has; tests that count what is
         * written to disk want none. */
        bool wanted = m->writable || o->passthrough;
        if (wanted && geteuid() == 0 && !ckpt_disk_watched())
            m->passthrough = fs_passthrough_new(session);
        struct sweeper s = {
            .mount = m, .session = session, .lock = PTHREAD_MUTEX_INITIALIZER, .wake = PTHREAD_COND_INITIALIZER};
        bool sweeping = pthread_create(&s.thread, NULL, sweep, &s) == 0;
        if (!sweeping)
            send_report(m->ready_fd, FS_MOUNT_FAILED, "no thread can be made");
        int r = sweeping ? run_loop(session, o) : -EAGAIN;
        status = r < 0 ? FS_MOUNT_FAILED : FS_OK; /* a signal ends it well */
        pthread_mutex_lock(&s.lock);
        s.ending = true;
        pthread_cond_signal(&s.wake);
        pthread_mutex_unlock(&s.lock);
        fuse_session_unmount(session); /* first: it lets a notification under way return */
        if (sweeping)
            pthread_join(s.thread, NULL);
    }
    fuse_remove_signal_handlers(session);
    fuse_session_destroy(session);
    fs_passthrough_free(m->passthrough);
    return status;
}

static int status_of(int error)
{
    return error == -EUCLEAN || error == -EBADMSG || error == -EOPNOTSUPP || error == -ENODATA ? FS_INTEGRITY
                                                                                               : FS_UNREACHABLE;
}

/* In the daemon: open, mount, serve. ready_fd is where the parent waits, or -1. */
static int run_daemon(struct fs_mount_options *o, int ready_fd)
{
    struct ckpt_err err = {0};
    struct fs_mount m = {.opt = o, .ready_fd = ready_fd};
    o->core.write = !o->read_only;
    o->core.hidden = o->mountpoint;
    int r = fs_opens_new(&m.opens);
    r = r < 0 ? ckpt_fail(&err, -r, "out of memory") : ckpt_source_open(o->source, &o->core, &m.source, &err);
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
    if (getrlimit(RLIMIT_NOFILE, &rl) == 0 && rl.rlim_cur < rl.rlim_max) { /* files of checkpoints are kept open */
        rl.rlim_cur = rl.rlim_max;
        setrlimit(RLIMIT_NOFILE, &rl);
    }
    mallopt(M_ARENA_MAX, 2);            /* many threads, little memory */
    mallopt(M_MMAP_THRESHOLD, 4 << 20); /* chunks go back to the system when they are dropped */
    mallopt(M_TRIM_THRESHOLD, 16 << 20);
}

int fs_mount_main(int argc, char **argv)
{
    struct fs_mount_options o;
    struct ckpt_err err = {0};
    if (fs_mount_options_parse(argc, argv, &o, &err) < 0)
        return fs_usage("mount", "%s", err.text);
    prepare_process();
    int status, pipes[2];
    /* The daemon changes its folder. */
    CKPT_AUTOFREE char *source = realpath(o.source, NULL), *mountpoint = realpath(o.mountpoint, NULL);
    if (source)
        o.source = source;
    if (mountpoint)
        o.mountpoint = mountpoint;
    if (o.foreground) {
        ckpt_log_setup(o.debug ? CKPT_LOG_DEBUG : CKPT_LOG_INFO, 0);
        status = run_daemon(&o, -1);
    } else if (pipe2(pipes, O_CLOEXEC) < 0) {
        perror("ckptfs: pipe");
        status = FS_MOUNT_FAILED;
    } else {
        pid_t child = fork();
        if (child < 0) {
            perror("ckptfs: fork");
            status = FS_MOUNT_FAILED;
        } else if (child == 0) {
            close(pipes[0]);
            detach();
            ckpt_log_setup(CKPT_LOG_INFO, 1);
            status = run_daemon(&o, pipes[1]);
        } else {
            close(pipes[1]);
            status = await_daemon(pipes[0], child);
            close(pipes[0]);
        }
    }
    fs_mount_options_clear(&o);
    return status;
}

/* --- umount --- */

int fs_umount_main(int argc, char **argv)
{
    bool lazy = false, force = false;
    const char *mountpoint = NULL;
    for (int i = 1; i < argc; i++) {
        if (!strcmp(argv[i], "--lazy") || !strcmp(argv[i], "-l"))
            lazy = true;
        else if (!strcmp(argv[i], "--force") || !strcmp(argv[i], "-f"))
            force = true;
        else if (argv[i][0] == '-' || mountpoint)
            return fs_usage("umount", "unknown argument %s", argv[i]);
        else
            mountpoint = argv[i];
    }
    if (!mountpoint)
        return fs_usage("umount", "the mount point is missing");
    /* As root directly; else through fusermount3, which may. */
    if (umount2(mountpoint, (lazy ? MNT_DETACH : 0) | (force ? MNT_FORCE : 0)) == 0)
        return FS_OK;
    int error = errno;
    if (error == EPERM) {
        pid_t pid = fork();
        int status = 0;
        if (pid == 0) {
            execlp("fusermount3", "fusermount3", "-u", lazy ? "-z" : mountpoint, lazy ? mountpoint : NULL,
                   (char *)NULL);
            _exit(127);
        }
        if (pid > 0 && waitpid(pid, &status, 0) == pid && WIFEXITED(status))
            return WEXITSTATUS(status) == 0 ? FS_OK : FS_MOUNT_FAILED;
    }
    fprintf(stderr, "ckptfs: %s: %s%s\n", mountpoint, error == EINVAL ? "nothing is mounted there" : strerror(error),
            error == EBUSY ? ": a program still uses it (see it with fuser -vm); --lazy unmounts when it ends" : "");
    return FS_MOUNT_FAILED;
}
