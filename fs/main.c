/* SPDX-License-Identifier: Apache-2.0 */
#include "fs/fs.h"

#include <stdarg.h>
#include <string.h>
#include <unistd.h>

#define UNMOUNT "unmount" /* what people take umount for */
#define WORD    16        /* letters of a command */

bool fs_follow;

static const struct fs_command *find_command(const char *name)
{
    if (!strcmp(name, UNMOUNT))
        name = "umount";
    for (const struct fs_command *c = fs_commands; c->name; c++)
        if (!strcmp(c->name, name))
            return c;
    return NULL;
}

void fs_help(const struct fs_command *c, FILE *out)
{
    fprintf(out, "Usage: ckptfs %s %s\n\n%s\n", c->name, c->synopsis, c->summary);
    fputs(c->reads ? "\n  --follow      links that lead out of the source are followed\n" : "\n", out);
    if (c->help)
        fputs(c->help, out);
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
    fprintf(out, "\n'ckptfs help COMMAND' tells more. --version prints the version.\n");
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

/* How many letters must be changed, taken out or put in to make one word of the other. */
static unsigned distance(const char *a, const char *b)
{
    unsigned row[WORD + 1];
    size_t n = strlen(a), m = strlen(b);
    if (n > WORD || m > WORD)
        return WORD;
    for (unsigned j = 0; j <= m; j++)
        row[j] = j;
    for (unsigned i = 1; i <= n; i++) {
        unsigned corner = row[0];
        row[0] = i;
        for (unsigned j = 1; j <= m; j++) {
            unsigned changed = corner + (a[i - 1] != b[j - 1]);
            corner = row[j];
            unsigned other = (corner < row[j - 1] ? corner : row[j - 1]) + 1;
            row[j] = changed < other ? changed : other;
        }
    }
    return row[m];
}

/* The command that was meant, if one is near; NULL. */
static const char *nearest(const char *word)
{
    const char *found = NULL;
    unsigned least = strlen(word) < 4 ? 2 : 3;
    for (const struct fs_command *c = fs_commands; c->name; c++) {
        unsigned d = distance(word, c->name);
        if (d < least) {
            least = d;
            found = c->name;
        }
    }
    return found;
}

static int no_such_command(const char *word)
{
    const char *near = nearest(word);
    fprintf(stderr, "ckptfs: there is no command %s", word);
    if (near)
        fprintf(stderr, "; is it %s that you mean?", near);
    fprintf(stderr, " (a source of that name is mounted as ./%s)\n\n", word);
    return overview(stderr);
}

static int help(const char *word)
{
    const struct fs_command *c = word ? find_command(word) : NULL;
    if (word && !c)
        return no_such_command(word);
    if (!c)
        return overview(stdout);
    fs_help(c, stdout);
    return FS_OK;
}

/* Every command that reads a source has this option, so that they need not know of it. */
static int take_follow(int argc, char **argv)
{
    int kept = 1;
    bool only_names = false;
    for (int i = 1; i < argc; i++) {
        only_names |= !strcmp(argv[i], "--");
        if (!only_names && !strcmp(argv[i], "--follow"))
            fs_follow = true;
        else
            argv[kept++] = argv[i];
    }
    argv[kept] = NULL;
    return kept;
}

static int run(const struct fs_command *c, int argc, char **argv)
{
    bool own_h = !strcmp(c->name, "ls") && argc > 2; /* -h is how many bytes, as ls has it */
    for (int i = 1; i < argc && strcmp(argv[i], "--"); i++) {
        bool is_own = own_h && !strcmp(argv[i], "-h");
        if (!is_own && asks_for_help(argv[i]))
            return help(c->name);
    }
    if (c->reads)
        argc = take_follow(argc, argv);
    int status = c->run(argc, argv);
    if (status != FS_OK && !strcmp(argv[0], UNMOUNT))
        fprintf(stderr, "ckptfs: %s is another word for the command %s\n", UNMOUNT, c->name);
    return status;
}

int main(int argc, char **argv)
{
    if (argc < 2)
        return overview(stderr);
    if (asks_for_help(argv[1]) || !strcmp(argv[1], "help"))
        return help(argv[2]);
    if (!strcmp(argv[1], "--version") || !strcmp(argv[1], "-V")) {
        puts("ckptfs " CKPTFS_VERSION);
        return FS_OK;
    }
    const struct fs_command *c = find_command(argv[1]);
    if (c)
        return run(c, argc - 1, argv + 1);
    if (argc >= 3 && is_source(argv[1])) /* SOURCE MOUNTPOINT, as mount(8) and fstab call it */
        return find_command("mount")->run(argc, argv);
    return no_such_command(argv[1]);
}
