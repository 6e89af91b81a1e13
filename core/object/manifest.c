/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One line for the head, one for each node, one for the end. Writing: lines gather in a buffer that goes to the file
 * now and then. Reading: a window that holds the line at hand. What is wrong with a line is told as such only if the
 * sum at the end is right: else the manifest was damaged, and the line is just where that shows.
 */
#include "core/object/manifest.h"

#include "core/base/util.h"
#include "core/object/record.h"
#include "core/io/disk.h"

#include <inttypes.h>
#include <xxhash.h>

#define FORMAT "ckptfs-step"
#define SPARSE "sparse" /* in `required`: a leaf may be a sparse object, without a SHA-256 */
#define WHOLE  "whole"  /* a leaf may be named like a piece of an array, which it is not */
#define WINDOW ((size_t)256 << 10)

void ckpt_manifest_info_clear(struct ckpt_manifest_info *info)
{
    free(info->name);
    free(info->metadata);
    ckpt_manifest_node_clear(&info->top);
    info->name = info->metadata = NULL;
}

static bool is_id(const char *id)
{
    return strspn(id, "0123456789abcdef") == 32 && !id[32];
}

/* --- writing --- */

struct ckpt_manifest_writer {
    bool sparse, whole;
    int fd;
    struct ckpt_buf buf; /* not written yet */
    uint64_t off;
    uint32_t count; /* of nodes, the top too */
    int error;
    XXH3_state_t *sum;
};

static void flush(struct ckpt_manifest_writer *w)
{
    int r = ckpt_buf_error(&w->buf);
    if (r == 0 && w->buf.len)
        r = ckpt_disk_write(w->fd, w->buf.data, w->buf.len, w->off);
    if (!w->error)
        w->error = r;
    w->off += w->buf.len;
    w->buf.len = 0;
}

static void add_to_sum(struct ckpt_manifest_writer *w, size_t from)
{
    if (!ckpt_buf_error(&w->buf))
        XXH3_64bits_update(w->sum, w->buf.data + from, w->buf.len - from);
    if (w->buf.len >= WINDOW)
        flush(w);
}

static int add_metadata(struct ckpt_buf *buf, const char *metadata)
{
    struct ckpt_scan s = {metadata, metadata + strlen(metadata), NULL};
    ckpt_buf_adds(buf, "\"metadata\":");
    size_t begin = buf->len;
    int r = ckpt_scan_value(&s, buf);
    ckpt_buf_addc(buf, ',');
    if (r == -ENOMEM)
        return r;
    return r < 0 || s.p + strspn(s.p, " \t\r\n") != s.end || buf->data[begin] != '{' ||
                   buf->len > CKPT_MANIFEST_HEAD_MAX / 2
               ? -EINVAL
               : 0;
}

int ckpt_manifest_metadata_ok(const char *text, size_t len, struct ckpt_err *err)
{
    struct ckpt_scan s = {text, text + len, NULL};
    size_t begin = 0;
    while (begin < len && strchr(" \t\r\n", text[begin]) && text[begin])
        begin++;
    if (len > CKPT_MANIFEST_METADATA_MAX)
        return ckpt_fail(err, EINVAL, "user.ckpt.metadata has %zu bytes, and may have %zu", len,
                         CKPT_MANIFEST_METADATA_MAX);
    if (begin == len || text[begin] != '{')
        return ckpt_fail(err, EINVAL, "user.ckpt.metadata is a JSON object, and begins with {");
    if (ckpt_scan_value(&s, NULL) < 0)
        return ckpt_fail(err, EINVAL, "user.ckpt.metadata is not JSON, or nested too deeply");
    for (; s.p < s.end; s.p++)
        if (!*s.p || !strchr(" \t\r\n", *s.p))
            return ckpt_fail(err, EINVAL, "user.ckpt.metadata is one JSON object, and has more behind it");
    return 0;
}

static void add_required(struct ckpt_buf *buf, const struct ckpt_manifest_info *info)
{
    if (!info->sparse && !info->whole)
        return;
    ckpt_buf_addf(buf, "\"required\":[%s%s%s],", info->sparse ? "\"" SPARSE "\"" : "",
                  info->sparse && info->whole ? "," : "", info->whole ? "\"" WHOLE "\"" : "");
}

static int add_head(struct ckpt_buf *buf, const struct ckpt_manifest_info *info)
{
    if (!ckpt_manifest_name_ok(info->name) || !is_id(info->id))
        return -EINVAL;
    ckpt_buf_addf(buf, "{\"format\":\"" FORMAT "\",\"version\":%d,", CKPT_MANIFEST_VERSION);
    add_required(buf, info);
    ckpt_record_add_name(buf, info->name);
    ckpt_buf_addf(buf, ",\"id\":\"%s\",\"time\":%" PRIu64 ",", info->id, info->time_ns);
    int r = info->metadata ? add_metadata(buf, info->metadata) : 0;
    if (r < 0)
        return r;
    ckpt_buf_adds(buf, "\"top\":");
    r = ckpt_record_print(buf, &info->top, true);
    ckpt_buf_adds(buf, ",\"nodes\":[\n");
    return r;
}

int ckpt_manifest_write_begin(int fd, const struct ckpt_manifest_info *info, struct ckpt_manifest_writer **ret)
{
    struct ckpt_manifest_writer *w = calloc(1, sizeof *w);
    if (!w)
        return -ENOMEM;
    w->fd = fd;
    w->count = 1;
    w->sparse = info->sparse;
    w->whole = info->whole;
    w->sum = XXH3_createState();
    int r = w->sum ? add_head(&w->buf, info) : -ENOMEM;
    if (r < 0) {
        ckpt_manifest_write_abort(w);
        return r;
    }
    XXH3_64bits_reset(w->sum);
    add_to_sum(w, 0);
    *ret = w;
    return 0;
}

int ckpt_manifest_write_node(struct ckpt_manifest_writer *w, const struct ckpt_manifest_node *n, uint32_t *ret_number)
{
    size_t begin = w->buf.len;
    if (w->error)
        return w->error;
    bool promised = (w->sparse || !ckpt_manifest_is_sparse(n)) && (w->whole || !n->whole);
    if (n->parent >= w->count || w->count >= CKPT_MAX_NODES || !promised)
        return w->error = -EINVAL;
    if (w->count > 1)
        ckpt_buf_adds(&w->buf, ",\n");
    int r = ckpt_record_print(&w->buf, n, false);
    if (r == 0 && w->buf.len - begin > CKPT_MANIFEST_LINE_MAX)
        r = -EINVAL;
    if (r < 0)
        return w->error = r;
    add_to_sum(w, begin);
    *ret_number = w->count++;
    return w->error;
}

int ckpt_manifest_write_end(struct ckpt_manifest_writer *w)
{
    if (!w->error && w->count > 1) {
        size_t begin = w->buf.len;
        ckpt_buf_addc(&w->buf, '\n');
        add_to_sum(w, begin);
    }
    if (!w->error) {
        ckpt_buf_addf(&w->buf, "],\"count\":%u,\"xxh3\":\"%016llx\"}\n", w->count - 1,
                      (unsigned long long)XXH3_64bits_digest(w->sum));
        flush(w);
    }
    int r = w->error;
    ckpt_manifest_write_abort(w);
    return r;
}

void ckpt_manifest_write_abort(struct ckpt_manifest_writer *w)
{
    if (!w)
        return;
    ckpt_buf_clear(&w->buf);
    XXH3_freeState(w->sum);
    free(w);
}

/* --- reading: lines --- */

struct lines {
    struct ckpt_file *file;
    uint64_t off; /* of the window in the file */
    char *window;
    size_t cap, len, at;
    struct ckpt_err *err;
};

static int grow(struct lines *l)
{
    size_t cap = l->cap ? l->cap * 2 : WINDOW;
    char *window = realloc(l->window, cap);
    if (!window)
        return ckpt_no_memory(l->err);
    l->window = window;
    l->cap = cap;
    return 0;
}

/* The next line, with its newline (which only the last one may lack): 1, or 0 at the end. It stays where it is until
 * the next call. */
static int next_line(struct lines *l, size_t max, const char **ret, size_t *ret_len, uint64_t *ret_off)
{
    for (size_t looked = 0;;) {
        const char *begin = l->window + l->at;
        const char *newline = l->len > l->at + looked ? memchr(begin + looked, '\n', l->len - l->at - looked) : NULL;
        looked = l->len - l->at;
        size_t n = newline ? (size_t)(newline + 1 - begin) : looked;
        ssize_t got = 0;
        if (n > max)
            return ckpt_fail(l->err, EUCLEAN, "the manifest has a line of more than %zu bytes", max);
        if (!newline) {
            memmove(l->window, begin, looked);
            l->off += l->at;
            l->at = 0;
            l->len = looked;
            if (l->len == l->cap) {
                int r = grow(l);
                if (r < 0)
                    return r;
            }
            got = ckpt_file_read(l->file, l->window + l->len, l->cap - l->len, l->off + l->len);
            if (got < 0)
                return ckpt_fail(l->err, (int)-got, "the manifest cannot be read: %s", strerror((int)-got));
            l->len += (size_t)got;
            if (got)
                continue;
        }
        if (!n)
            return 0;
        *ret = l->window + l->at;
        *ret_len = n;
        *ret_off = l->off + l->at;
        l->at += n;
        return 1;
    }
}

/* --- reading: the head --- */

/* What a manifest needs its reader to know, beyond this version. */
static int take_required(struct ckpt_scan *s, struct ckpt_manifest_info *ret)
{
    if (!ckpt_scan_take(s, '['))
        return ckpt_scan_fail(s, "required is not an array");
    struct ckpt_buf feature = CKPT_BUF_INIT;
    int r = 0;
    for (bool first = true; r == 0 && !ckpt_scan_take(s, ']'); first = false) {
        if (!first && !ckpt_scan_take(s, ','))
            r = ckpt_scan_fail(s, "a comma is missing");
        if (r == 0)
            r = ckpt_scan_string(s, &feature);
        if (r == 0 && !strcmp((char *)feature.data, SPARSE))
            ret->sparse = true;
        else if (r == 0 && !strcmp((char *)feature.data, WHOLE))
            ret->whole = true;
        else if (r == 0)
            r = ckpt_fail(s->err, EOPNOTSUPP, "the manifest needs %.100s, which this program does not know",
                          (char *)feature.data);
    }
    ckpt_buf_clear(&feature);
    return r;
}

static int take_string(struct ckpt_scan *s, struct ckpt_buf *text, char **ret)
{
    int r = ckpt_scan_string(s, text);
    if (r < 0)
        return r;
    free(*ret);
    *ret = strdup((char *)text->data);
    return *ret ? 0 : ckpt_no_memory(s->err);
}

/* The top is one of several members: its record ends before the line does. */
static int take_top(struct ckpt_scan *s, struct ckpt_buf *text, struct ckpt_manifest_node *ret)
{
    text->len = 0;
    int r = ckpt_scan_value(s, text);
    if (r < 0)
        return r;
    struct ckpt_scan top = {(char *)text->data, (char *)text->data + text->len, s->err};
    ckpt_manifest_node_clear(ret);
    return ckpt_record_parse(&top, true, ret);
}

struct head {
    bool format, version, name, id, time, top, nodes;
};

static int take_head_member(struct ckpt_scan *s, struct ckpt_buf *text, struct head *h, struct ckpt_manifest_info *ret)
{
    const char *key = (char *)text->data;
    uint64_t version;
    int r;
    if (!strcmp(key, "format")) {
        r = ckpt_scan_string(s, text);
        h->format = r == 0 && !strcmp((char *)text->data, FORMAT);
        return r < 0 || h->format ? r : ckpt_scan_fail(s, "its format is not " FORMAT);
    }
    if (!strcmp(key, "version")) {
        r = ckpt_scan_u64(s, UINT32_MAX, &version);
        h->version = r == 0 && version == CKPT_MANIFEST_VERSION;
        return r < 0 || h->version
                   ? r
                   : ckpt_fail(s->err, EOPNOTSUPP, "the manifest has version %llu, which this program does not know",
                               (unsigned long long)version);
    }
    if (!strcmp(key, "required"))
        return take_required(s, ret);
    if (!strcmp(key, "name") || !strcmp(key, "name_hex")) {
        bool hex = key[4];
        h->name = true;
        if (!hex)
            return take_string(s, text, &ret->name);
        free(ret->name);
        ret->name = NULL;
        r = ckpt_scan_string(s, text);
        return r < 0 ? r : ckpt_record_unhex(s, text, &ret->name);
    }
    if (!strcmp(key, "id")) {
        r = ckpt_scan_string(s, text);
        h->id = r == 0 && is_id((char *)text->data);
        if (h->id)
            memcpy(ret->id, text->data, sizeof ret->id);
        return r < 0 || h->id ? r : ckpt_scan_fail(s, "its id is malformed");
    }
    if (!strcmp(key, "time"))
        return h->time = true, ckpt_scan_u64(s, UINT64_MAX, &ret->time_ns);
    if (!strcmp(key, "top"))
        return h->top = true, take_top(s, text, &ret->top);
    if (strcmp(key, "metadata"))
        return ckpt_scan_value(s, NULL);
    text->len = 0;
    r = ckpt_scan_value(s, text);
    if (r < 0 || *text->data != '{')
        return r < 0 ? r : ckpt_scan_fail(s, "metadata is not an object");
    free(ret->metadata);
    ret->metadata = strndup((char *)text->data, text->len);
    return ret->metadata ? 0 : ckpt_no_memory(s->err);
}

/* The line up to the bracket that opens the nodes. */
static int parse_head(struct ckpt_scan *s, struct ckpt_manifest_info *ret)
{
    struct ckpt_buf text = CKPT_BUF_INIT;
    struct head h = {0};
    bool first = true;
    int r = ckpt_scan_take(s, '{') ? 1 : ckpt_scan_fail(s, "it does not begin with an object");
    while (r >= 0 && !h.nodes) {
        r = ckpt_scan_member(s, &first, &text);
        if (r == 0)
            r = ckpt_scan_fail(s, "it has no nodes");
        if (r < 0)
            break;
        h.nodes = !strcmp((char *)text.data, "nodes");
        r = h.nodes ? 0 : take_head_member(s, &text, &h, ret);
    }
    ckpt_buf_clear(&text);
    if (r < 0)
        return r;
    if (!h.format || !h.version || !h.name || !h.id || !h.time || !h.top)
        return ckpt_scan_fail(s, "the head lacks a member");
    if (!ckpt_manifest_name_ok(ret->name))
        return ckpt_scan_fail(s, "no step can have its name");
    return ckpt_scan_take(s, '[') && s->end - s->p == 1 && *s->p == '\n'
               ? 0
               : ckpt_scan_fail(s, "the nodes do not begin on a line of their own");
}

static int read_head(struct lines *l, struct ckpt_manifest_info *ret, XXH3_state_t *sum)
{
    const char *line = NULL;
    size_t len = 0;
    uint64_t off;
    *ret = (struct ckpt_manifest_info){0};
    int r = next_line(l, CKPT_MANIFEST_HEAD_MAX, &line, &len, &off);
    if (r < 0)
        return r;
    if (r == 0 || line[len - 1] != '\n')
        return ckpt_fail(l->err, EBADMSG, "the manifest is cut short");
    if (sum)
        XXH3_64bits_update(sum, line, len);
    struct ckpt_scan s = {line, line + len, l->err};
    r = parse_head(&s, ret);
    if (r < 0)
        ckpt_manifest_info_clear(ret);
    return r;
}

int ckpt_manifest_info(struct ckpt_file *file, struct ckpt_manifest_info *ret, struct ckpt_err *err)
{
    struct lines l = {.file = file, .err = err};
    int r = grow(&l);
    if (r == 0)
        r = read_head(&l, ret, NULL);
    free(l.window);
    return r;
}

/* --- reading: the nodes --- */

struct walk {
    struct lines lines;
    XXH3_state_t *sum;
    ckpt_manifest_visit *visit;
    void *arg;
    uint32_t count;      /* of records */
    bool comma;          /* behind the last one */
    int fault;           /* what is wrong with a line, to be told if the sum is right */
    int visited;         /* what ended the walk */
    struct ckpt_err err; /* of the fault, or of what came after */
    bool whole;          /* of the head */
};

/* A record without the comma and white space behind it. */
static size_t record_length(const char *line, size_t len, bool *ret_comma)
{
    while (len && strchr(" \t\r\n", line[len - 1]))
        len--;
    *ret_comma = len && line[len - 1] == ',';
    len -= *ret_comma;
    while (len && strchr(" \t\r\n", line[len - 1]))
        len--;
    return len;
}

static int parse_record(const char *line, size_t len, struct ckpt_manifest_node *ret, struct ckpt_err *err)
{
    struct ckpt_scan s = {line, line + len, err};
    int r = ckpt_record_parse(&s, false, ret);
    if (r == 0 && s.p != s.end) {
        ckpt_manifest_node_clear(ret);
        r = ckpt_scan_fail(&s, "something follows a record");
    }
    if (r == 0)
        ret->check = (uint32_t)XXH3_64bits(line, len);
    return r;
}

static int walk_line(struct walk *w, const char *line, size_t len, uint64_t off)
{
    struct ckpt_manifest_node n;
    struct ckpt_scan s = {line, line + len, &w->err};
    if (w->count && !w->comma)
        return ckpt_scan_fail(&s, "a comma is missing between two records");
    len = record_length(line, len, &w->comma);
    if (w->count + 1 >= CKPT_MAX_NODES)
        return ckpt_fail(&w->err, EUCLEAN, "the manifest has more than %u nodes", CKPT_MAX_NODES);
    int r = parse_record(line, len, &n, &w->err);
    if (r < 0)
        return r;
    w->count++;
    if (n.parent >= w->count)
        r = ckpt_scan_fail(&s, "a node is in a directory that comes later");
    else if (n.whole && !w->whole)
        r = ckpt_fail(&w->err, EOPNOTSUPP, "a leaf is named like a piece, of which the manifest's head does not tell");
    else if (w->visit)
        w->visited = w->visit(w->arg, w->count, &n, off, (uint32_t)len);
    ckpt_manifest_node_clear(&n);
    return r;
}

/* ],"count":N,"xxh3":"..."} */
static int parse_end(struct walk *w, const char *line, size_t len)
{
    struct ckpt_err *err = &w->err, ignored;
    struct ckpt_scan s = {line + 1, line + len, &ignored};
    struct ckpt_buf text = CKPT_BUF_INIT;
    bool first = false, seen[2] = {false};
    uint64_t count = 0, sum = 0;
    int r;
    while ((r = ckpt_scan_member(&s, &first, &text)) == 1) {
        bool is_sum = !strcmp((char *)text.data, "xxh3");
        if (!strcmp((char *)text.data, "count"))
            seen[0] = (r = ckpt_scan_u64(&s, UINT32_MAX, &count)) == 0;
        else if (is_sum && (r = ckpt_scan_string(&s, &text)) == 0) {
            seen[1] = text.len == 16 && strspn((char *)text.data, "0123456789abcdef") == 16;
            sum = strtoull((char *)text.data, NULL, 16);
        } else if (!is_sum)
            r = ckpt_scan_value(&s, NULL);
        if (r < 0)
            break;
    }
    ckpt_buf_clear(&text);
    bool ended = s.p == s.end || (s.end - s.p == 1 && *s.p == '\n');
    if (r < 0 || !seen[0] || !seen[1] || !ended)
        return ckpt_fail(err, EBADMSG, "the manifest's last line is damaged, or cut short");
    if (sum != XXH3_64bits_digest(w->sum))
        return ckpt_fail(err, EBADMSG, "the manifest is damaged: its checksum does not match");
    if (!w->fault && (count != w->count || w->comma))
        w->fault = ckpt_fail(err, EUCLEAN, "the manifest has %u records, not the %llu that it tells of", w->count,
                             (unsigned long long)count);
    return 0;
}

static int walk_lines(struct walk *w)
{
    const char *line = NULL;
    size_t len = 0;
    uint64_t off;
    struct lines *l = &w->lines;
    for (;;) {
        int r = next_line(l, CKPT_MANIFEST_LINE_MAX, &line, &len, &off);
        if (r < 0)
            return r;
        if (r == 0 && w->fault) /* that it has no end either is the lesser thing */
            return 0;
        if (r == 0 || (line[len - 1] != '\n' && *line != ']'))
            return ckpt_fail(l->err, EBADMSG, "the manifest is cut short");
        if (*line == ']') {
            r = parse_end(w, line, len);
            if (r == 0 && next_line(l, CKPT_MANIFEST_LINE_MAX, &line, &len, &off) != 0)
                r = ckpt_fail(l->err, EUCLEAN, "something follows the manifest's end");
            return r;
        }
        XXH3_64bits_update(w->sum, line, len);
        if (!w->fault && !w->visited)
            w->fault = walk_line(w, line, len, off);
        if (w->visited)
            return w->visited;
    }
}

int ckpt_manifest_each(struct ckpt_file *file, struct ckpt_manifest_info *ret_info, ckpt_manifest_visit *visit,
                       void *arg, struct ckpt_err *err)
{
    struct walk w = {.lines = {.file = file}, .visit = visit, .arg = arg, .sum = XXH3_createState()};
    struct ckpt_manifest_info info = {0};
    w.lines.err = &w.err;
    int r = w.sum ? grow(&w.lines) : ckpt_no_memory(&w.err);
    if (r == 0) {
        XXH3_64bits_reset(w.sum);
        r = read_head(&w.lines, &info, w.sum);
    }
    w.whole = info.whole;
    w.fault = r == -EUCLEAN ? r : 0;
    if (r == 0 || w.fault)
        r = walk_lines(&w);
    if (r == 0)
        r = w.fault;
    if (r < 0 && !w.visited && err)
        *err = w.err;
    info.count = (uint64_t)w.count + 1;
    if (r == 0 && ret_info)
        *ret_info = info;
    else
        ckpt_manifest_info_clear(&info);
    free(w.lines.window);
    XXH3_freeState(w.sum);
    return r;
}

int ckpt_manifest_record(struct ckpt_file *file, uint64_t off, uint32_t len, struct ckpt_manifest_node *ret,
                         struct ckpt_err *err)
{
    if (len > CKPT_MANIFEST_LINE_MAX)
        return ckpt_fail(err, EINVAL, "no record is that long");
    char small[2048];
    CKPT_AUTOFREE char *large = len > sizeof small ? malloc(len) : NULL;
    char *line = len > sizeof small ? large : small;
    if (!line)
        return ckpt_no_memory(err);
    ssize_t n = ckpt_file_read(file, line, len, off);
    if (n < 0)
        return ckpt_fail(err, (int)-n, "the manifest cannot be read: %s", strerror((int)-n));
    if ((size_t)n != len)
        return ckpt_fail(err, EBADMSG, "the manifest has become shorter");
    return parse_record(line, len, ret, err);
}
