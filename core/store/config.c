/* SPDX-License-Identifier: Apache-2.0 */
/*
 * store.json. What this program does not know in it is kept to the byte: of a change, the members go over as the text
 * that they are.
 */
#include "core/store/internal.h"

#include "core/base/util.h"
#include "core/io/json.h"
#include "core/io/disk.h"

#include <math.h>
#include <stdio.h>

#define FORMAT      "ckptfs-store"
#define CONFIG_MAX  ((size_t)1 << 20)
#define COUNT_MAX   1000000000000000ull /* what a JSON number can say exactly, as cJSON writes it */
#define SECONDS_MAX 1e11                /* three thousand years */
#define STEP_NAMES  "step_names"        /* in `required` */
#define KEYS        "codec, keep_last, keep_period, keep_newer, best_metric, best_mode, keep_best"

/* --- one setting, as text --- */

static int parse_count(const char *text, uint64_t *ret)
{
    char *end;
    if (!*text) {
        *ret = 0;
        return 0;
    }
    if (text[strspn(text, "0123456789")])
        return -EINVAL;
    errno = 0;
    uint64_t n = strtoull(text, &end, 10);
    if (errno || n > COUNT_MAX)
        return -EINVAL;
    *ret = n;
    return 0;
}

static int parse_duration(const char *text, double *ret)
{
    static const char units[] = "smhdw";
    static const double seconds[] = {1, 60, 3600, 86400, 7 * 86400};
    if (!*text) {
        *ret = 0;
        return 0;
    }
    size_t digits = strspn(text, "0123456789.");
    char *end;
    double n = strtod(text, &end);
    if (!digits || end != text + digits)
        return -EINVAL;
    if (*end) {
        const char *unit = strchr(units, *end);
        if (!unit || end[1])
            return -EINVAL;
        n *= seconds[unit - units];
    }
    if (!(n <= SECONDS_MAX))
        return -EINVAL;
    *ret = n;
    return 0;
}

static void print_duration(double seconds, char buf[64])
{
    static const struct {
        double seconds;
        char name;
    } units[] = {{86400, 'd'}, {3600, 'h'}, {60, 'm'}};
    for (size_t i = 0; i < sizeof units / sizeof *units; i++)
        if (fmod(seconds, units[i].seconds) == 0) {
            snprintf(buf, 64, "%.0f%c", seconds / units[i].seconds, units[i].name);
            return;
        }
    snprintf(buf, 64, "%.15gs", seconds);
}

static int set_codec(struct ckpt_store_config *c, const char *value, struct ckpt_err *err)
{
    if (!ckpt_object_codec_choice(*value ? value : "auto", &c->codec))
        return ckpt_fail(err, EINVAL, "codec: %s is none; there are auto, none, lz4 and blosc", value);
    return 0;
}

static int set_metric(struct ckpt_retention *r, const char *value, struct ckpt_err *err)
{
    if (strlen(value) >= sizeof r->best_metric)
        return ckpt_fail(err, EINVAL, "best_metric: a name of at most %zu bytes is wanted", sizeof r->best_metric - 1);
    if (!ckpt_utf8(value, strlen(value))) /* it is kept as JSON, where other bytes would come back as something else */
        return ckpt_fail(err, EINVAL, "best_metric: the name is not UTF-8");
    strcpy(r->best_metric, value);
    return 0;
}

static int set(struct ckpt_store_config *c, const char *key, const char *value, struct ckpt_err *err)
{
    struct ckpt_retention *r = &c->retention;
    struct {
        const char *key;
        uint64_t *count;
    } counts[] = {{"keep_last", &r->keep_last}, {"keep_period", &r->keep_period}, {"keep_best", &r->keep_best}};
    for (size_t i = 0; i < sizeof counts / sizeof *counts; i++)
        if (!strcmp(key, counts[i].key) && parse_count(value, counts[i].count) < 0)
            return ckpt_fail(err, EINVAL, "%s: %s is not a number of steps", key, value);
        else if (!strcmp(key, counts[i].key))
            return 0;
    if (!strcmp(key, "codec"))
        return set_codec(c, value, err);
    if (!strcmp(key, "best_metric"))
        return set_metric(r, value, err);
    if (!strcmp(key, "keep_newer"))
        return parse_duration(value, &r->keep_newer) < 0
                   ? ckpt_fail(err, EINVAL, "keep_newer: %s is not a time; like 7d, 12h, 30m or 90s is wanted", value)
                   : 0;
    if (strcmp(key, "best_mode"))
        return ckpt_fail(err, EINVAL, "there is no setting %s; there are " KEYS, key);
    if (*value && strcmp(value, "min") && strcmp(value, "max"))
        return ckpt_fail(err, EINVAL, "best_mode: min or max is wanted, not %s", value);
    r->best_max = !strcmp(value, "max");
    return 0;
}

int ckpt_store_config_check(const char *key, const char *value, struct ckpt_err *err)
{
    struct ckpt_store_config c = {0};
    return set(&c, key, value, err);
}

int ckpt_store_config_each(const struct ckpt_store_config *c,
                           int (*visit)(void *arg, const char *key, const char *value), void *arg)
{
    const struct ckpt_retention *r = &c->retention;
    char last[32], period[32], newer[64], best[32];
    snprintf(last, sizeof last, "%llu", (unsigned long long)r->keep_last);
    snprintf(period, sizeof period, "%llu", (unsigned long long)r->keep_period);
    snprintf(best, sizeof best, "%llu", (unsigned long long)r->keep_best);
    print_duration(r->keep_newer, newer);
    const struct {
        bool set;
        const char *key, *value;
    } all[] = {
        {true, "codec", ckpt_object_codec_name(c->codec)},
        {r->keep_last, "keep_last", last},
        {r->keep_period, "keep_period", period},
        {r->keep_newer > 0, "keep_newer", newer},
        {*r->best_metric, "best_metric", r->best_metric},
        {*r->best_metric || r->best_max, "best_mode", r->best_max ? "max" : "min"},
        {r->keep_best, "keep_best", best},
    };
    int result = 0;
    for (size_t i = 0; i < sizeof all / sizeof *all && result == 0; i++)
        if (all[i].set)
            result = visit(arg, all[i].key, all[i].value);
    return result;
}

int ckpt_store_settings(const struct ckpt_store *s, int (*visit)(void *arg, const char *key, const char *value),
                        void *arg)
{
    return ckpt_store_config_each(&s->config, visit, arg);
}

/* --- reading --- */

static int malformed(struct ckpt_err *err, const char *what)
{
    return ckpt_fail(err, EUCLEAN, "store.json is malformed: %s", what);
}

static int parse_required(const cJSON *required, struct ckpt_store_config *c, struct ckpt_err *err)
{
    const cJSON *item;
    if (required && !cJSON_IsArray(required))
        return ckpt_fail(err, EOPNOTSUPP, "this store needs something that this program does not have");
    cJSON_ArrayForEach(item, required)
    {
        const char *name = cJSON_IsString(item) ? item->valuestring : "something";
        if (strcmp(name, STEP_NAMES))
            return ckpt_fail(err, EOPNOTSUPP, "this store needs %s, which this program does not have", name);
        c->step_names = true;
    }
    return 0;
}

static int parse_head(const cJSON *json, struct ckpt_store_config *c, struct ckpt_err *err)
{
    const cJSON *format = ckpt_json_get(json, "format"), *required = ckpt_json_get(json, "required"),
                *id = ckpt_json_get(json, "id");
    uint64_t version;
    if (!cJSON_IsString(format) || strcmp(format->valuestring, FORMAT))
        return malformed(err, "it does not say that its format is " FORMAT);
    if (!ckpt_json_u64(ckpt_json_get(json, "version"), &version))
        return malformed(err, "it has no version");
    if (version != CKPT_STORE_VERSION)
        return ckpt_fail(err, EOPNOTSUPP, "this store has format version %llu, this program knows version %d only",
                         (unsigned long long)version, CKPT_STORE_VERSION);
    int r = parse_required(required, c, err);
    if (r < 0)
        return r;
    if (!cJSON_IsString(id) || strlen(id->valuestring) != 32 || strspn(id->valuestring, "0123456789abcdef") != 32)
        return malformed(err, "its id is not 32 hex digits");
    strcpy(c->id, id->valuestring);
    return 0;
}

static int parse_retention(const cJSON *json, struct ckpt_retention *r, struct ckpt_err *err)
{
    static const char *const names[] = {"keep_last", "keep_period", "keep_best"};
    uint64_t *const counts[] = {&r->keep_last, &r->keep_period, &r->keep_best};
    const cJSON *newer = ckpt_json_get(json, "keep_newer"), *metric = ckpt_json_get(json, "best_metric"),
                *mode = ckpt_json_get(json, "best_mode");
    if (json && !cJSON_IsObject(json))
        return malformed(err, "retention is not an object");
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (ckpt_json_get(json, names[i]) && !ckpt_json_u64(ckpt_json_get(json, names[i]), counts[i]))
            return malformed(err, "a count of retention is not a whole number");
    if (newer && !(cJSON_IsNumber(newer) && newer->valuedouble >= 0 && newer->valuedouble <= SECONDS_MAX))
        return malformed(err, "keep_newer is not a number of seconds");
    if (metric && !(cJSON_IsString(metric) && strlen(metric->valuestring) < sizeof r->best_metric))
        return malformed(err, "best_metric is not a short string");
    if (mode && !(cJSON_IsString(mode) && (!strcmp(mode->valuestring, "min") || !strcmp(mode->valuestring, "max"))))
        return malformed(err, "best_mode is neither min nor max");
    if (newer)
        r->keep_newer = newer->valuedouble;
    if (metric)
        strcpy(r->best_metric, metric->valuestring);
    r->best_max = mode && !strcmp(mode->valuestring, "max");
    return 0;
}

static int parse(const char *text, size_t len, struct ckpt_store_config *ret, struct ckpt_err *err)
{
    struct ckpt_store_config c = {.codec = CKPT_OBJECT_AUTO};
    cJSON *json = ckpt_json_parse(text, len);
    int r = cJSON_IsObject(json) ? parse_head(json, &c, err) : malformed(err, "not a JSON object");
    const cJSON *codec = ckpt_json_get(json, "codec");
    if (r == 0 && codec && !cJSON_IsString(codec))
        r = malformed(err, "its codec is not a string");
    else if (r == 0 && codec && !ckpt_object_codec_choice(codec->valuestring, &c.codec))
        r = ckpt_fail(err, EOPNOTSUPP, "this store's codec is %s, which this program does not have",
                      codec->valuestring);
    if (r == 0)
        r = parse_retention(ckpt_json_get(json, "retention"), &c.retention, err);
    cJSON_Delete(json);
    if (r == 0)
        *ret = c;
    return r;
}

static int load(struct ckpt_store *s, uint8_t **ret, size_t *ret_len, struct ckpt_store_config *config,
                struct ckpt_err *err)
{
    int r = ckpt_backend_read_all(s->files, "store.json", CONFIG_MAX, ret, ret_len);
    if (r == -ENOENT)
        return ckpt_fail(err, ENOENT, "%s is not a native root: %s/store.json is missing", s->path, CKPT_STORE_DIR);
    if (r == -EFBIG)
        r = malformed(err, "it is too large");
    else if (r < 0)
        r = ckpt_fail(err, -r, "store.json: %s", strerror(-r));
    else if ((r = parse((char *)*ret, *ret_len, config, err)) < 0) {
        free(*ret);
        *ret = NULL;
    }
    return r < 0 ? ckpt_fail_in(err, -r, "%s", s->path) : 0;
}

int ckpt_store_config_read(struct ckpt_store *s, struct ckpt_store_config *ret, struct ckpt_err *err)
{
    CKPT_AUTOFREE uint8_t *text = NULL;
    size_t len;
    struct ckpt_store_config c;
    int r = load(s, &text, &len, &c, err);
    if (r < 0)
        return r;
    CKPT_GUARD(&s->lock);
    s->config = c;
    *ret = c;
    return 0;
}

/* --- writing --- */

/* The members of the object that comes, each as its text; those of `retention` one by one. */
static int take_members(struct ckpt_json_reader *r, cJSON *to, bool top, struct ckpt_err *err)
{
    struct ckpt_buf key = CKPT_BUF_INIT, text = CKPT_BUF_INIT;
    int e = ckpt_json_enter_object(r, err), more = 0;
    while (e == 0 && (more = ckpt_json_member(r, &key, err)) == 1) {
        cJSON *item = NULL;
        if (top && !strcmp((char *)key.data, "retention")) {
            item = cJSON_CreateObject();
            e = item ? take_members(r, item, false, err) : -ENOMEM;
        } else if ((e = ckpt_json_value(r, &text, err)) == 0) {
            ckpt_buf_addc(&text, 0);
            item = ckpt_buf_error(&text) ? NULL : cJSON_CreateRaw((char *)text.data);
        }
        if (e == 0 && !cJSON_AddItemToObject(to, (char *)key.data, item))
            e = ckpt_no_memory(err);
        else if (e < 0)
            cJSON_Delete(item);
    }
    ckpt_buf_clear(&key);
    ckpt_buf_clear(&text);
    return e < 0 ? e : more;
}

/* What is in store.json now, as objects of texts. */
static int split(const uint8_t *text, size_t len, cJSON *to, struct ckpt_err *err)
{
    struct ckpt_backend *memory = ckpt_backend_new_memory();
    struct ckpt_file *file = NULL;
    struct ckpt_json_reader *reader = NULL;
    int r = memory ? ckpt_backend_memory_add(memory, "store.json", text, len) : -ENOMEM;
    if (r == 0)
        r = ckpt_backend_open(memory, "store.json", &file);
    if (r == 0)
        r = ckpt_json_open(file, &reader);
    if (r == 0) {
        r = take_members(reader, to, true, err);
        ckpt_json_close(reader);
    } else
        r = ckpt_fail(err, -r, "%s", strerror(-r));
    if (file)
        ckpt_file_unref(file);
    if (memory)
        ckpt_backend_unref(memory);
    return r;
}

static void put(cJSON *to, const char *key, bool set, cJSON *item)
{
    cJSON_DeleteItemFromObjectCaseSensitive(to, key);
    if (!set || !cJSON_AddItemToObject(to, key, item))
        cJSON_Delete(item);
}

static int print(cJSON *all, const struct ckpt_store_config *c, struct ckpt_buf *text)
{
    const struct ckpt_retention *r = &c->retention;
    cJSON *retention = cJSON_GetObjectItemCaseSensitive(all, "retention");
    if (!retention)
        retention = cJSON_AddObjectToObject(all, "retention");
    if (c->step_names) {
        const char *names[] = {STEP_NAMES};
        put(all, "required", true, cJSON_CreateStringArray(names, 1));
    }
    put(all, "codec", true, cJSON_CreateString(ckpt_object_codec_name(c->codec)));
    put(retention, "keep_last", r->keep_last, cJSON_CreateNumber((double)r->keep_last));
    put(retention, "keep_period", r->keep_period, cJSON_CreateNumber((double)r->keep_period));
    put(retention, "keep_newer", r->keep_newer > 0, cJSON_CreateNumber(r->keep_newer));
    put(retention, "best_metric", *r->best_metric, cJSON_CreateString(r->best_metric));
    put(retention, "best_mode", *r->best_metric || r->best_max, cJSON_CreateString(r->best_max ? "max" : "min"));
    put(retention, "keep_best", r->keep_best, cJSON_CreateNumber((double)r->keep_best));
    char *out = retention ? cJSON_PrintUnformatted(all) : NULL;
    if (!out)
        return -ENOMEM;
    ckpt_buf_adds(text, out);
    ckpt_buf_addc(text, '\n');
    free(out);
    return ckpt_buf_error(text);
}

int ckpt_store_config_new(struct ckpt_buf *text)
{
    struct ckpt_store_config c = {.codec = CKPT_OBJECT_AUTO};
    cJSON *all = cJSON_CreateObject();
    ckpt_random_hex(c.id, 16);
    cJSON_AddStringToObject(all, "format", FORMAT);
    cJSON_AddNumberToObject(all, "version", CKPT_STORE_VERSION);
    cJSON_AddStringToObject(all, "id", c.id);
    int r = all ? print(all, &c, text) : -ENOMEM;
    cJSON_Delete(all);
    struct ckpt_store_config back; /* nothing was left out for want of memory */
    return r == 0 && parse((char *)text->data, text->len, &back, NULL) < 0 ? -ENOMEM : r;
}

/* What was read as `old`, with what *ret says; that is what is there then. */
static int rewrite(struct ckpt_store *s, const uint8_t *old, size_t len, struct ckpt_store_config *ret,
                   struct ckpt_err *err)
{
    struct ckpt_buf text = CKPT_BUF_INIT;
    cJSON *all = cJSON_CreateObject();
    int r = all ? split(old, len, all, err) : ckpt_no_memory(err);
    if (r == 0)
        r = print(all, ret, &text);
    if (r == 0 && (r = parse((char *)text.data, text.len, ret, err)) == 0)
        r = ckpt_disk_replace(s->dir, "store.json", text.data, text.len);
    if (r == 0)
        ckpt_store_give(s, s->dir, "store.json");
    if (r < 0)
        r = ckpt_fail_in(err, -r, "%s: store.json cannot be written", s->path);
    cJSON_Delete(all);
    ckpt_buf_clear(&text);
    return r;
}

static void note(struct ckpt_store *s, const struct ckpt_store_config *c)
{
    CKPT_GUARD(&s->lock);
    s->config = *c;
}

int ckpt_store_require_names(struct ckpt_store *s, struct ckpt_err *err)
{
    CKPT_AUTOFREE uint8_t *old = NULL;
    size_t len;
    struct ckpt_store_config c;
    int r = load(s, &old, &len, &c, err);
    if (r < 0 || c.step_names)
        return r;
    c.step_names = true;
    r = rewrite(s, old, len, &c, err);
    if (r < 0)
        return r;
    note(s, &c);
    return c.step_names ? 0 : ckpt_fail(err, ENOMEM, "out of memory"); /* it was left out for want of that */
}

int ckpt_store_config_set(struct ckpt_store *s, const char *key, const char *value, struct ckpt_err *err)
{
    CKPT_AUTOFREE uint8_t *old = NULL;
    size_t len;
    struct ckpt_store_config c;
    int r = ckpt_store_config_check(key, value, err);
    if (r < 0)
        return r;
    CKPT_AUTOFD int lock = ckpt_store_lock(s, true);
    if (lock < 0)
        return ckpt_fail(err, -lock, "%s: the lock cannot be taken: %s", s->path, strerror(-lock));
    r = load(s, &old, &len, &c, err);
    if (r == 0)
        r = set(&c, key, value, err);
    if (r == 0)
        r = rewrite(s, old, len, &c, err);
    if (r == 0)
        note(s, &c);
    return r;
}
