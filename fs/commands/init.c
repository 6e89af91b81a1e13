/* SPDX-License-Identifier: Apache-2.0 */
/* ckptfs init: makes a root, and the store in it. */
#include "fs/commands/commands.h"
#include "fs/commands/root_options.h"

#include <getopt.h>

int fs_init_main(int argc, char **argv)
{
    struct fs_root_options o;
    struct ckpt_err err = {0};
    struct ckpt_store *s;
    bool created = false;
    int status = fs_parse_root_options("init", argc, argv, &o);
    if (status)
        return status;
    if (argc - optind != 1)
        return fs_usage("init", "one root is wanted");
    const char *root = argv[optind];
    int r = ckpt_store_create(root, &created, &err);
    if (r < 0)
        return fs_fail("init", o.json, r, &err);
    status = fs_open_root("init", &o, root, &s);
    if (status)
        return status;
    if (o.json) {
        fs_json_pair(stdout, "{", "root", root);
        fs_json_pair(stdout, ",", "id", ckpt_store_id(s));
        printf(",\"created\":%s}\n", created ? "true" : "false");
    }
    ckpt_store_close(s);
    return fs_finish("init", FS_OK);
}
