/* SPDX-License-Identifier: Apache-2.0 */
#include "core/object/words.h"

#include "core/base/util.h"

#include <xxhash.h>

#define HELD ((size_t)1 << 20) /* bytes of a table that memory keeps */
#define SUM  8

static int read_exactly(struct ckpt_file *file, void *buf, size_t len, uint64_t off, struct ckpt_err *err)
{
    ssize_t n = ckpt_file_read(file, buf, len, off);
    if (n < 0)
        return ckpt_fail(err, (int)-n, "cannot read a table of a stored object: %s", strerror((int)-n));
    return (size_t)n == len ? 0 : ckpt_fail(err, EBADMSG, "a table of a stored object ends too early");
}

struct pass {
    struct ckpt_words *w;
    struct ckpt_file *file;
    uint64_t from, total; /* the bytes under the sum */
    uint8_t *buf;
    size_t piece; /* buf has a sum more */
    XXH3_state_t *sum;
    ckpt_words_visit *visit;
    void *arg;
    struct ckpt_err bad; /* what visit said first */
};

static void pass_words(struct pass *p, uint64_t pos, size_t len)
{
    for (size_t at = 0; at < len && p->visit && !p->bad.code; at += 8)
        if (p->from + pos + at >= p->w->off) {
            uint64_t i = (p->from + pos + at - p->w->off) / 8;
            int r = p->visit(p->arg, i, ckpt_le64(p->buf + at), &p->bad);
            if (r < 0 && !p->bad.code)
                ckpt_fail(&p->bad, -r, "a table of a stored object is malformed");
        }
}

/* All of it once. A wrong sum is the better reason for a wrong word. */
static int pass_run(struct pass *p, struct ckpt_err *err)
{
    uint64_t pos = 0;
    XXH3_64bits_reset(p->sum);
    for (;;) {
        size_t n = (size_t)CKPT_MIN(p->total - pos, (uint64_t)p->piece);
        bool last = n == p->total - pos;
        int r = read_exactly(p->file, p->buf, n + (last ? SUM : 0), p->from + pos, err);
        if (r < 0)
            return r;
        XXH3_64bits_update(p->sum, p->buf, n);
        pass_words(p, pos, n);
        pos += n;
        if (!last)
            continue;
        if (XXH3_64bits_digest(p->sum) != ckpt_le64(p->buf + n))
            return ckpt_fail(err, EBADMSG, "a table of a stored object is damaged");
        if (p->bad.code && err)
            *err = p->bad;
        return -p->bad.code;
    }
}

int ckpt_words_open(struct ckpt_words *w, struct ckpt_file *file, uint64_t from, uint64_t off, uint64_t count,
                    ckpt_words_visit *visit, void *arg, struct ckpt_err *err)
{
    struct pass p = {.w = w, .file = file, .from = from, .visit = visit, .arg = arg};
    *w = (struct ckpt_words){.off = off, .count = count, .skip = (size_t)(off - from)};
    uint64_t end;
    if (ckpt_mul(count, 8, &p.total) || ckpt_add(p.total, off - from, &p.total) ||
        ckpt_add(from + SUM, p.total, &end) || end > file->st.size)
        return ckpt_fail(err, EBADMSG, "a table of a stored object ends too early");
    p.piece = (size_t)CKPT_MIN(p.total, (uint64_t)HELD);
    CKPT_AUTOFREE uint8_t *buf = p.buf = malloc(p.piece + SUM);
    p.sum = XXH3_createState();
    int r = p.buf && p.sum ? pass_run(&p, err) : ckpt_no_memory(err);
    XXH3_freeState(p.sum);
    if (r < 0)
        return r;
    if (p.total <= HELD)
        w->data = CKPT_STEAL(buf);
    else
        w->file = ckpt_file_ref(file);
    return 0;
}

void ckpt_words_clear(struct ckpt_words *w)
{
    ckpt_file_unref(w->file);
    free(w->data);
    *w = (struct ckpt_words){0};
}

int ckpt_words_get(const struct ckpt_words *w, uint64_t i, unsigned n, uint64_t *ret, struct ckpt_err *err)
{
    if (i > w->count || n > w->count - i)
        return ckpt_fail(err, EINVAL, "a table of a stored object has no word %llu", (unsigned long long)i);
    if (!w->data)
        return read_exactly(w->file, ret, n * sizeof *ret, w->off + i * 8, err);
    memcpy(ret, w->data + w->skip + i * 8, n * sizeof *ret);
    return 0;
}
