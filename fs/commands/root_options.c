/* SPDX-License-Identifier: Apache-2.0 */
#include "fs/commands/root_options.h"

#include "core/base/util.h"

#include <getopt.h>

int fs_parse_root_options(const char *command, int argc, char **argv, struct fs_root_options *ret)
{
    static const struct option options[] = {{"json", no_argument, NULL, 'j'},
                                            {"dry-run", no_argument, NULL, 'n'},
                                            {"trash-keep", required_argument, NULL, 'k'},
                                            {0}};
    bool collects = !strcmp(command, "gc"), deletes = collects || !strcmp(command, "prune");
    *ret = (struct fs_root_options){0};
    opterr = 0;
    for (int o; (o = getopt_long(argc, argv, deletes ? "n" : "", options, NULL)) != -1;) {
        bool is_known = o == 'j' || (o == 'n' && deletes) || (o == 'k' && collects);
        if (!is_known)
            return fs_bad_option(command, argv);
        if (o == 'j')
            ret->json = true;
        else if (o == 'n')
            ret->dry = true;
        else
            ret->trash_keep = optarg;
    }
    return optind < argc ? 0 : fs_usage(command, "a root is wanted");
}

int fs_open_root(const char *command, const struct fs_root_options *o, const char *root, struct ckpt_store **ret)
{
    struct ckpt_err err = {0};
    ckpt_log_setup(CKPT_LOG_ERROR, 0);
    int r = ckpt_store_open(root, ret, &err);
    return r < 0 ? fs_fail(command, o->json, r, &err) : 0;
}
