/* SPDX-License-Identifier: Apache-2.0 */
#include "fs/commands/cli.h"

#include "core/array/dtype.h"
#include "core/base/path.h"
#include "core/base/util.h"

#include <getopt.h>
#include <sys/ioctl.h>
#include <time.h>

#define FOREVER     86400.0
#define PROGRESS_NS 100000000ll
#define MAX_DEPTH   1024

/* --- ending --- */

int fs_status(int error)
{
    switch (-error) {
    case 0:
        return FS_OK;
    case EUCLEAN:
    case EBADMSG:
    case EOPNOTSUPP:
    case ENODATA:
        return FS_INTEGRITY;
    case EISDIR:
    case EINVAL:
        return FS_USAGE;
    default:
        return FS_UNREACHABLE;
    }
}

const char *fs_reason(int error, const struct ckpt_err *err)
{
    return err && err->code == -error && *err->text ? err->text : strerror(-error);
}

int fs_give_reason(struct ckpt_err *err, int error)
{
    bool has_reason = err && err->code == -error && *err->text;
    return has_reason ? error : ckpt_fail(err, -error, "%s", strerror(-error));
}

int fs_fail(const char *command, bool json, int error, const struct ckpt_err *err)
{
    fprintf(stderr, "ckptfs %s: ", command);
    fs_put_name(stderr, fs_reason(error, err));
    fputc('\n', stderr);
    if (json) {
        fputs("{\"error\":", stdout);
        fs_json_error(stdout, error, err);
        fputs("}\n", stdout);
    }
    return fs_finish(command, fs_status(error));
}

int fs_finish(const char *command, int status)
{
    if (fflush(stdout) == 0 && !ferror(stdout))
        return status;
    if (errno != EPIPE) /* whoever read has had enough */
        fprintf(stderr, "ckptfs %s: standard output: %s\n", command, strerror(errno));
    return FS_PARTLY;
}

int fs_bad_option(const char *command, char **argv)
{
    const char *word = argv[optind - 1];
    if (optopt > 0 && optopt < 128 && (word[0] != '-' || word[1] != '-'))
        return fs_usage(command, "unknown option -%c", optopt);
    return fs_usage(command, "unknown option, or no value for it: %s", word);
}

/* --- the source --- */

int fs_open(const char *path, struct ckpt_source **ret, struct ckpt_err *err)
{
    struct ckpt_options o = CKPT_OPTIONS_INIT;
    o.refresh = FOREVER;
    o.follow = fs_follow;
    ckpt_log_setup(CKPT_LOG_ERROR, 0); /* what goes wrong is told by the command */
    return ckpt_source_open(path, &o, ret, err);
}

/* A text that begins with "name: ", without that. */
static const char *without_name(const char *text, const char *name)
{
    size_t n = strlen(name);
    bool has_name = n && !strncmp(text, name, n) && !strncmp(text + n, ": ", 2);
    return has_name ? text + n + 2 : text;
}

/* The path of a key that was typed with its dots, to be freed; NULL: there is none. Only the last name is taken for
 * one: the others may be files. */
static char *path_of_key(struct ckpt_source *src, const char *path)
{
    static const char *const suffixes[] = {".npy", ".json", ""};
    const char *last = strrchr(path, '/');
    size_t begin = last ? (size_t)(last + 1 - path) : 0, n = strlen(path);
    CKPT_AUTOFREE char *split = malloc(n + sizeof ".json");
    if (!split)
        return NULL;
    strcpy(split, path);
    for (unsigned i = 0; i < 2; i++)
        if (ckpt_has_suffix(split, suffixes[i]))
            split[n = strlen(split) - strlen(suffixes[i])] = 0;
    bool dotted = false;
    for (char *p = split + begin; *p; p++)
        if (*p == '.') {
            *p = '/';
            dotted = true;
        }
    for (unsigned i = 0; dotted && i < sizeof suffixes / sizeof *suffixes; i++) {
        struct ckpt_attr at;
        strcpy(split + n, suffixes[i]);
        if (ckpt_walk(src, CKPT_ROOT, split, &at, NULL) < 0)
            continue;
        ckpt_forget(src, at.id, 1);
        if (!at.view)
            return CKPT_STEAL(split);
    }
    return NULL;
}

int fs_walk(struct ckpt_source *src, const char *path, struct ckpt_attr *ret, struct ckpt_err *err)
{
    struct ckpt_err own = {0};
    int r = ckpt_walk(src, CKPT_ROOT, path, ret, &own);
    if (r == 0)
        return 0;
    const char *text = without_name(fs_reason(r, &own), ckpt_path_name(path));
    CKPT_AUTOFREE char *meant = r == -ENOENT && err ? path_of_key(src, path) : NULL;
    if (meant)
        return ckpt_fail(err, -r, "%s: %s; the parts of the key are directories here: %s", path, text, meant);
    return *path ? ckpt_fail(err, -r, "%s: %s", path, text) : ckpt_fail(err, -r, "%s", text);
}

int fs_each_entry(struct ckpt_source *src, uint64_t id, fs_visit *visit, void *arg, struct ckpt_err *err)
{
    struct ckpt_dir *dir;
    struct ckpt_dirent e;
    bool immutable;
    int r = ckpt_opendir(src, id, &dir, &immutable, err);
    if (r < 0)
        return r;
    int more = ckpt_readdir(dir, 0, &e);
    while (r == 0 && more == 1) {
        r = visit(arg, &e);
        more = ckpt_readdir(dir, e.next, &e);
    }
    if (r == 0 && more < 0)
        r = ckpt_fail(err, -more, "%s", strerror(-more));
    ckpt_closedir(dir);
    return r;
}

int fs_describe(struct ckpt_source *src, uint64_t id, cJSON **ret, struct ckpt_err *err)
{
    CKPT_AUTOFREE char *text = NULL;
    size_t len;
    int r = ckpt_describe(src, id, &text, &len, err);
    if (r < 0)
        return r;
    ckpt_json_tame(text);
    *ret = ckpt_json_parse(text, len);
    return *ret ? 0 : ckpt_fail(err, ENOMEM, "what is known of it cannot be read");
}

/* --- sums --- */

struct summing {
    struct ckpt_source *src;
    struct fs_sum *sum;
    uint64_t dir;
    unsigned depth;
};

static void sum_fault(struct fs_sum *sum, const char *name, int error, const struct ckpt_err *err)
{
    if (!sum->damaged++)
        ckpt_fail(&sum->err, -error, "%s: %s", name, fs_reason(error, err));
}

static int sum_entry(void *arg, const struct ckpt_dirent *e);

static int sum_dir(const struct summing *s, const struct ckpt_attr *at, struct ckpt_err *err)
{
    struct summing below = {s->src, s->sum, at->id, s->depth + 1};
    s->sum->containers++;
    return s->depth < MAX_DEPTH ? fs_each_entry(s->src, at->id, sum_entry, &below, err) : 0;
}

static int sum_leaf(const struct summing *s, const struct ckpt_attr *at, struct ckpt_err *err)
{
    cJSON *meta = NULL;
    s->sum->bytes += at->size;
    s->sum->stored += at->stored;
    if (at->size) /* a leaf that cannot be read is listed with size 0 */
        return 0;
    int r = fs_describe(s->src, at->id, &meta, err);
    cJSON_Delete(meta);
    return r == -ENODATA ? 0 : r; /* a file that belongs to no checkpoint */
}

static int sum_entry(void *arg, const struct ckpt_dirent *e)
{
    struct summing *s = arg;
    struct ckpt_attr at;
    struct ckpt_err err = {0};
    if (e->type == CKPT_LINK)
        return 0;
    int r = ckpt_lookup(s->src, s->dir, e->name, &at, &err);
    if (r == -ENOENT) /* it went while we looked */
        return 0;
    bool is_dir = r == 0 && at.type == CKPT_DIR;
    s->sum->leaves += !is_dir && (r < 0 || at.type == CKPT_FILE);
    if (r == 0)
        r = is_dir ? sum_dir(s, &at, &err) : sum_leaf(s, &at, &err);
    if (r < 0)
        sum_fault(s->sum, e->name, r, &err);
    if (at.id)
        ckpt_forget(s->src, at.id, 1);
    return 0;
}

int fs_sum(struct ckpt_source *src, uint64_t id, struct fs_sum *ret, struct ckpt_err *err)
{
    *ret = (struct fs_sum){.containers = 1};
    struct summing s = {src, ret, id, 0};
    return fs_each_entry(src, id, sum_entry, &s, err);
}

/* --- text --- */

void fs_put_name(FILE *out, const char *name)
{
    if (!isatty(fileno(out))) {
        fputs(name, out);
        return;
    }
    for (const unsigned char *p = (const unsigned char *)name; *p; p++) {
        bool is_c1 = *p == 0xc2 && p[1] >= 0x80 && p[1] < 0xa0; /* the controls beyond ASCII, in UTF-8 */
        bool steers = is_c1 || *p < 0x20 || *p == 0x7f;
        fputc(steers ? '?' : *p, out);
        p += is_c1;
    }
}

const char *fs_human(uint64_t bytes, char buf[32])
{
    static const char units[] = "KMGTPE";
    double v = (double)bytes;
    int unit = -1;
    while (v >= 1023.95 && units[unit + 1]) {
        v /= 1024;
        unit++;
    }
    if (unit < 0)
        snprintf(buf, 32, "%llu B", (unsigned long long)bytes);
    else
        snprintf(buf, 32, "%.1f %ciB", v, units[unit]);
    return buf;
}

const char *fs_number(double step, char buf[32])
{
    struct ckpt_buf text = CKPT_BUF_INIT;
    ckpt_add_json_number(&text, step);
    snprintf(buf, 32, "%.*s", (int)text.len, text.len ? (char *)text.data : "");
    ckpt_buf_clear(&text);
    return buf;
}

const char *fs_time(int64_t ns, char buf[32])
{
    time_t t = (time_t)(ns / 1000000000);
    struct tm tm;
    if (!localtime_r(&t, &tm) || !strftime(buf, 32, "%Y-%m-%d %H:%M:%S", &tm))
        snprintf(buf, 32, "-");
    return buf;
}

const char *fs_shape(const cJSON *shape, char buf[256])
{
    size_t n = 1;
    const cJSON *e;
    if (!cJSON_IsArray(shape))
        return "-";
    strcpy(buf, "(");
    cJSON_ArrayForEach(e, shape)
    {
        if (n > 220) { /* more dimensions than anyone reads */
            n += (size_t)sprintf(buf + n, "...,");
            break;
        }
        n += (size_t)snprintf(buf + n, 256 - n, "%.0f,", e->valuedouble);
    }
    if (cJSON_GetArraySize(shape) > 1)
        n--; /* its last comma; (3,) keeps it */
    strcpy(buf + n, ")");
    return buf;
}

/* --- JSON --- */

void fs_json_string(FILE *out, const char *text)
{
    struct ckpt_buf buf = CKPT_BUF_INIT;
    ckpt_buf_add_json_string(&buf, text, strlen(text));
    if (ckpt_buf_error(&buf) == 0)
        fwrite(buf.data, 1, buf.len, out);
    else
        fputs("null", out);
    ckpt_buf_clear(&buf);
}

void fs_json_pair(FILE *out, const char *before, const char *key, const char *text)
{
    fprintf(out, "%s\"%s\":", before, key);
    fs_json_string(out, text);
}

void fs_json_count(FILE *out, const char *before, const char *key, uint64_t count)
{
    fprintf(out, "%s\"%s\":%llu", before, key, (unsigned long long)count);
}

void fs_json_error(FILE *out, int error, const struct ckpt_err *err)
{
    const char *code = strerrorname_np(-error);
    fs_json_pair(out, "{", "code", code ? code : "EIO");
    fs_json_pair(out, ",", "message", fs_reason(error, err));
    fputc('}', out);
}

void fs_json_time(FILE *out, int64_t ns)
{
    fprintf(out, "%lld.%09lld", (long long)(ns / 1000000000), (long long)llabs(ns % 1000000000));
}

/* --- progress --- */

void fs_progress_begin(struct fs_progress *p)
{
    *p = (struct fs_progress){.on = isatty(STDERR_FILENO), .begin_ns = ckpt_monotonic_ns()};
}

static void draw_bar(const struct fs_progress *p, char buf[64])
{
    enum { WIDTH = 24 };
    buf[0] = 0;
    if (!p->total)
        return;
    double part = CKPT_MIN((double)p->done / (double)p->total, 1.0);
    int full = (int)(part * WIDTH);
    snprintf(buf, 64, "[%.*s%*s] %3d%% ", full, "########################", WIDTH - full, "", (int)(part * 100));
}

static int terminal_width(void)
{
    struct winsize ws;
    bool is_known = ioctl(STDERR_FILENO, TIOCGWINSZ, &ws) == 0 && ws.ws_col;
    return is_known ? ws.ws_col : 80;
}

/* The end of a path, which says most, in at most so many bytes; cut before a character. */
static const char *path_end(const char *path, size_t keep)
{
    size_t n = strlen(path);
    if (n <= keep)
        return path;
    path += n - keep;
    while (((unsigned char)*path & 0xc0) == 0x80)
        path++;
    return path;
}

void fs_progress_add(struct fs_progress *p, const char *path, uint64_t bytes)
{
    char bar[64], size[32], rate[32], name[256];
    p->done += bytes;
    if (!p->on)
        return;
    int64_t now = ckpt_monotonic_ns();
    if (now - p->shown_ns < PROGRESS_NS)
        return;
    p->shown_ns = now;
    p->shown = true;
    draw_bar(p, bar);
    fs_human(p->done, size);
    fs_human((uint64_t)((double)p->done * 1e9 / (double)CKPT_MAX(now - p->begin_ns, (int64_t)1)), rate);
    int room = terminal_width() - 1 - (int)(strlen(bar) + strlen(size) + strlen(rate) + 5);
    size_t keep = CKPT_MIN((size_t)CKPT_MAX(room, 0), sizeof name - 1);
    snprintf(name, sizeof name, "%s", path_end(path, keep));
    fprintf(stderr, "\r%s%s %s/s  ", bar, size, rate);
    fs_put_name(stderr, name);
    fputs("\033[K", stderr);
}

void fs_progress_clear(struct fs_progress *p)
{
    if (p->shown)
        fputs("\r\033[K", stderr);
    p->shown = false;
    p->shown_ns = ckpt_monotonic_ns();
}
