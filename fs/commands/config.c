/* SPDX-License-Identifier: Apache-2.0 */
/* ckptfs config: shows or changes the settings of a store. */
#include "fs/commands/commands.h"
#include "fs/commands/root_options.h"

#include "core/base/util.h"

static int print_text(void *arg, const char *key, const char *value)
{
    printf("%s=%s\n", key, value);
    return 0;
}

static int print_json(void *arg, const char *key, const char *value)
{
    bool is_text = !strncmp(key, "best_m", 6); /* best_metric and best_mode, also when a metric is called "7" */
    bool has_digits_alone = !value[strspn(value, "0123456789")];
    if (is_text || !has_digits_alone)
        fs_json_pair(stdout, ",", key, value);
    else
        printf(",\"%s\":%s", key, value);
    return 0;
}

static void print_config(struct fs_root_options *o, const struct ckpt_store *s)
{
    if (!o->json) {
        ckpt_store_settings(s, print_text, NULL);
        return;
    }
    fs_json_pair(stdout, "{", "id", ckpt_store_id(s));
    ckpt_store_settings(s, print_json, NULL);
    puts("}");
}

/* k=v is cut at its '='. All are looked at before the first is set. */
static int check_settings(char **settings, struct ckpt_err *err)
{
    int r = 0;
    for (; *settings && r == 0; settings++) {
        char *equals = strchr(*settings, '=');
        if (!equals)
            return ckpt_fail(err, EINVAL, "%s: KEY=VALUE is wanted", *settings);
        *equals = 0;
        r = ckpt_store_config_check(*settings, equals + 1, err);
    }
    return r;
}

int fs_config_main(int argc, char **argv)
{
    struct fs_root_options o;
    struct ckpt_err err = {0};
    struct ckpt_store *s;
    int status = fs_parse_root_options("config", argc, argv, &o);
    if (status)
        return status;
    char **settings = argv + optind + 1;
    int r = check_settings(settings, &err);
    if (r < 0)
        return fs_fail("config", o.json, r, &err);
    status = fs_open_root("config", &o, argv[optind], &s);
    if (status)
        return status;
    for (char **p = settings; *p && r == 0; p++)
        r = ckpt_store_config_set(s, *p, *p + strlen(*p) + 1, &err);
    if (r < 0)
        status = fs_fail("config", o.json, r, &err);
    else if (o.json || !*settings)
        print_config(&o, s);
    ckpt_store_close(s);
    return status ? status : fs_finish("config", FS_OK);
}
