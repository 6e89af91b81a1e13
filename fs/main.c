/* SPDX-License-Identifier: Apache-2.0 */
#include "fs/fs.h"

#include <stdarg.h>
#include <string.h>
#include <unistd.h>

static const struct fs_command *find_command(const char *name)
{
    for (const struct fs_command *c = fs_commands; c->name; c++)
        if (!strcmp(c->name, name))
            return c;
    return NULL;
}

void fs_help(const struct fs_command *c, FILE *out)
{
    fprintf(out, "Usage: ckptfs %s %s\n\n%s\n", c->name, c->synopsis, c->summary);
    if (c->help)
        fprintf(out, "\n%s", c->help);
}

int fs_usage(const char *command, const char *fmt, ...)
{
    va_list ap;
    const struct fs_command *c = find_command(command);
    va_start(ap, fmt);
    fprintf(stderr, "ckptfs %s: ", command);
    vfprintf(stderr, fmt, ap);
    fputc('\n', stderr);
    va_end(ap);
    if (c)
        fprintf(stderr, "Usage: ckptfs %s %s\nTry 'ckptfs %s --help'.\n", c->name, c->synopsis, c->name);
    return FS_USAGE;
}

static int overview(FILE *out)
{
    fprintf(out, "ckptfs mounts machine-learning checkpoints as files.\n\n"
                 "Usage: ckptfs COMMAND [ARGUMENTS]\n"
                 "       ckptfs SOURCE MOUNTPOINT [-o OPTIONS]     the same as ckptfs mount\n\nCommands:\n");
    for (const struct fs_command *c = fs_commands; c->name; c++)
        fprintf(out, "  %-8s %s\n", c->name, c->summary);
    fprintf(out, "\n'ckptfs COMMAND --help' tells more. --version prints the version.\n");
    return out == stdout ? FS_OK : FS_USAGE;
}

static bool asks_for_help(const char *word)
{
    return !strcmp(word, "--help") || !strcmp(word, "-h");
}

/* A word that is neither a path nor there is a command that was mistyped. */
static bool is_source(const char *word)
{
    return strchr(word, '/') || access(word, F_OK) == 0;
}

static int no_such_command(const char *word)
{
    fprintf(stderr, "ckptfs: there is no command %s (a source of that name is mounted as ./%s)\n\n", word, word);
    return overview(stderr);
}

int main(int argc, char **argv)
{
    if (argc < 2)
        return overview(stderr);
    if (asks_for_help(argv[1]) || !strcmp(argv[1], "help"))
        return overview(stdout);
    if (!strcmp(argv[1], "--version") || !strcmp(argv[1], "-V")) {
        puts("ckptfs " CKPTFS_VERSION);
        return FS_OK;
    }
    const struct fs_command *c = find_command(argv[1]);
    if (!c) { /* SOURCE MOUNTPOINT, as mount(8) and fstab call it */
        bool is_mount = argc >= 3 && is_source(argv[1]);
        return is_mount ? find_command("mount")->run(argc, argv) : no_such_command(argv[1]);
    }
    for (int i = 2; i < argc && strcmp(argv[i], "--"); i++)
        if (asks_for_help(argv[i])) {
            fs_help(c, stdout);
            return FS_OK;
        }
    return c->run(argc - 1, argv + 1);
}
