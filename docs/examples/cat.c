/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Writes a file of a checkpoint to standard output, without a mount: cat SOURCE PATH, as in
 *
 *     cat run latest/params/w.npy
 *     cat run 'latest/params/w@0:4,:'
 *
 * Built with what pkg-config knows of the installed library:
 *
 *     cc -o cat cat.c $(pkg-config --cflags --libs ckptfs)
 */
#include "core/ckpt.h"

#include <stdio.h>
#include <string.h>

static int fail(const struct ckpt_err *err, int code)
{
    fprintf(stderr, "cat: %s\n", *err->text ? err->text : strerror(-code));
    return 1;
}

int main(int argc, char **argv)
{
    struct ckpt_options options = CKPT_OPTIONS_INIT;
    struct ckpt_source *source;
    struct ckpt_attr file;
    struct ckpt_err err = {0};
    char block[65536];
    ssize_t n;
    if (argc != 3) {
        fprintf(stderr, "usage: cat SOURCE PATH\n");
        return 1;
    }
    int r = ckpt_source_open(argv[1], &options, &source, &err);
    if (r < 0)
        return fail(&err, r);
    r = ckpt_walk(source, CKPT_ROOT, argv[2], &file, &err);
    if (r == 0) {
        uint64_t at = 0;
        while ((n = ckpt_read(source, file.id, block, sizeof block, at, &err)) > 0) {
            fwrite(block, 1, (size_t)n, stdout);
            at += (uint64_t)n;
        }
        r = n < 0 ? (int)n : 0;
        ckpt_forget(source, file.id, 1);
    }
    ckpt_source_close(source);
    return r < 0 ? fail(&err, r) : fflush(stdout) != 0;
}
