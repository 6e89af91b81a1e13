/* SPDX-License-Identifier: Apache-2.0 */
/* ckptfs prune: removes the steps that the retention settings do not keep. */
#include "fs/commands/commands.h"
#include "fs/commands/root_options.h"

#include "core/base/util.h"

struct pruning {
    bool json;
    uint64_t count;
};

static void tell_pruned(void *arg, const char *step)
{
    struct pruning *p = arg;
    if (p->json) {
        if (p->count)
            putchar(',');
        fs_json_string(stdout, step);
        p->count++;
    } else {
        fs_put_name(stdout, step);
        putchar('\n');
    }
}

int fs_prune_main(int argc, char **argv)
{
    struct fs_root_options o;
    struct ckpt_err err = {0};
    struct ckpt_store *s;
    int status = fs_parse_root_options("prune", argc, argv, &o);
    if (status)
        return status;
    if (argc - optind != 1)
        return fs_usage("prune", "one root is wanted");
    status = fs_open_root("prune", &o, argv[optind], &s);
    if (status)
        return status;
    struct pruning p = {o.json, 0};
    if (o.json)
        fputs("{\"steps\":[", stdout);
    int r = ckpt_store_prune(s, o.dry, tell_pruned, &p, &err);
    ckpt_store_close(s);
    if (o.json) {
        printf("],\"dry_run\":%s", o.dry ? "true" : "false");
        if (r < 0) {
            fputs(",\"error\":", stdout);
            fs_json_error(stdout, r, &err);
        }
        puts("}");
    }
    if (r < 0)
        return fs_fail("prune", false, r, &err);
    return fs_finish("prune", FS_OK);
}
