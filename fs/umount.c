/* SPDX-License-Identifier: Apache-2.0 */
/* `ckptfs umount`: as root directly; otherwise by fusermount3, which may. */
#include "fs/commands/commands.h"
#include "fs/fs.h"

#include <errno.h>
#include <stdbool.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/wait.h>
#include <unistd.h>

struct umount {
    const char *mountpoint;
    bool lazy, force;
};

/* FS_OK, or the exit status of a usage error. */
static int parse(int argc, char **argv, struct umount *ret)
{
    for (int i = 1; i < argc; i++) {
        const char *word = argv[i];
        if (!strcmp(word, "--lazy") || !strcmp(word, "-l"))
            ret->lazy = true;
        else if (!strcmp(word, "--force") || !strcmp(word, "-f"))
            ret->force = true;
        else if (word[0] == '-' || ret->mountpoint)
            return fs_usage("umount", "unknown argument %s", word);
        else
            ret->mountpoint = word;
    }
    return ret->mountpoint ? FS_OK : fs_usage("umount", "the mount point is missing");
}

/* An exit status; -1 when there is no fusermount3 to be run. It says itself what is wrong. */
static int run_fusermount(const struct umount *u)
{
    const char *words[] = {"fusermount3", "-u", u->lazy ? "-z" : u->mountpoint, u->lazy ? u->mountpoint : NULL, NULL};
    int status = 0;
    pid_t pid = fork();
    if (pid == 0) {
        execvp(words[0], (char **)words);
        _exit(127);
    }
    bool has_ended = pid > 0 && waitpid(pid, &status, 0) == pid && WIFEXITED(status);
    if (!has_ended)
        return -1;
    return WEXITSTATUS(status) == 0 ? FS_OK : FS_MOUNT_FAILED;
}

static int tell(const struct umount *u, int error)
{
    const char *reason = error == EINVAL ? "nothing is mounted there" : strerror(error);
    fprintf(stderr, "ckptfs: %s: %s", u->mountpoint, reason);
    if (error == EBUSY)
        fputs(": a program still uses it (see it with fuser -vm); --lazy unmounts when it ends", stderr);
    fputc('\n', stderr);
    return FS_MOUNT_FAILED;
}

int fs_umount_main(int argc, char **argv)
{
    struct umount u = {0};
    int flags = 0, status = parse(argc, argv, &u);
    if (status != FS_OK)
        return status;
    if (u.lazy)
        flags |= MNT_DETACH;
    if (u.force)
        flags |= MNT_FORCE;
    if (umount2(u.mountpoint, flags) == 0)
        return FS_OK;
    int error = errno;
    if (error != EPERM)
        return tell(&u, error);
    status = run_fusermount(&u);
    return status < 0 ? tell(&u, error) : status;
}
