/* SPDX-License-Identifier: Apache-2.0 */
#include "core/format/zip.h"

#include "core/base/buf.h"
#include "core/base/util.h"

#include <xxhash.h>

#define END     22 /* bytes of each record without what varies */
#define LOCATOR 20
#define END64   56
#define CENTRAL 46
#define LOCAL   30
#define VARYING ((size_t)UINT16_MAX) /* at most: a name, an extra field, a comment */

#define END_MAGIC     0x06054b50u
#define LOCATOR_MAGIC 0x07064b50u
#define END64_MAGIC   0x06064b50u
#define CENTRAL_MAGIC 0x02014b50u
#define LOCAL_MAGIC   0x04034b50u

#define FLAG_ENCRYPTED 0x0001u
#define FLAGS_REFUSED  0x2061u /* encrypted, a patch, strongly encrypted, an encrypted directory */
#define DEFLATED       8
#define MAX_RATIO      1032 /* of deflate */
#define MAX_BYTES      ((uint64_t)1 << 62)
#define WINDOW         ((size_t)256 << 10) /* more than a whole entry of the directory */

struct record {
    uint64_t header : 63; /* of the local header, from the archive's beginning */
    uint64_t deflated : 1;
    uint64_t size, stored;
    uint32_t crc, name; /* in the names */
};

struct ckpt_zip {
    atomic_uint refs;
    struct ckpt_file *file;
    uint64_t off, len;  /* in the file */
    uint64_t directory; /* where it begins in the archive: no payload goes beyond */
    struct record *records;
    uint32_t count;
    struct ckpt_buf names; /* NUL-terminated */
    uint32_t *table;       /* by name; CKPT_ZIP_NONE = free */
    uint32_t table_size;   /* a power of two */
    uint32_t *order;       /* by place of the local header */
    atomic_uint *skip;     /* bytes from the local header to the payload; 0: it has not been looked at yet */
};

static const char *name_of(const struct ckpt_zip *z, uint32_t i)
{
    return (const char *)z->names.data + z->records[i].name;
}

static int read_at(const struct ckpt_zip *z, void *buf, size_t len, uint64_t at, struct ckpt_err *err)
{
    ssize_t n = ckpt_file_read(z->file, buf, len, z->off + at);
    if (n < 0)
        return ckpt_fail(err, (int)-n, "cannot read the archive: %s", strerror((int)-n));
    return (size_t)n == len ? 0 : ckpt_fail(err, EBADMSG, "the file is shorter than it was when it was opened");
}

static int memory(struct ckpt_err *err)
{
    return ckpt_no_memory(err);
}

/* --- the end record --- */

struct directory {
    uint64_t begin, size, count;
};

static int several_disks(struct ckpt_err *err)
{
    return ckpt_fail(err, EOPNOTSUPP, "an archive of several disks");
}

/* No end record: is it an archive at all? */
static int no_end(const struct ckpt_zip *z, struct ckpt_err *err)
{
    uint8_t magic[4] = {0};
    int r = z->len < sizeof magic ? 0 : read_at(z, magic, sizeof magic, 0, err);
    if (r < 0)
        return r;
    if (ckpt_le32(magic) == LOCAL_MAGIC || z->len < sizeof magic)
        return ckpt_fail(err, EBADMSG,
                         "the zip archive has no end: it was cut off, or has not been written to its end");
    return ckpt_fail(err, EUCLEAN, "not a zip archive");
}

/* The end record, whose comment goes to the very end. Mostly there is none, so that is tried first. */
static int find_end(const struct ckpt_zip *z, uint8_t ret[END], uint64_t *ret_at, struct ckpt_err *err)
{
    CKPT_AUTOFREE uint8_t *tail = malloc(END + VARYING);
    if (!tail)
        return memory(err);
    for (size_t max = END; max <= END + VARYING; max += VARYING) {
        size_t n = (size_t)CKPT_MIN((uint64_t)max, z->len);
        int r = n < END ? no_end(z, err) : read_at(z, tail, n, z->len - n, err);
        if (r < 0)
            return r;
        for (size_t at = n - END + 1; at-- > 0;)
            if (ckpt_le32(tail + at) == END_MAGIC && ckpt_le16(tail + at + 20) == n - END - at) {
                memcpy(ret, tail + at, END);
                *ret_at = z->len - n + at;
                return 0;
            }
    }
    return no_end(z, err);
}

/* A number of the end record that zip64 repeats with more bytes. */
static bool agrees(uint64_t narrow, uint64_t ones, uint64_t wide)
{
    return narrow == wide || narrow == ones;
}

/* The zip64 end record, which a locator right before the end record points to. *at: where the directory must end. */
static int read_end64(const struct ckpt_zip *z, const uint8_t locator[LOCATOR], const uint8_t end[END], uint64_t *at,
                      struct directory *ret, struct ckpt_err *err)
{
    uint8_t e[END64];
    uint64_t before = *at - LOCATOR, begin = ckpt_le64(locator + 8);
    if (ckpt_le32(locator + 4) || ckpt_le32(locator + 16) > 1)
        return several_disks(err);
    if (begin > before || before - begin < END64)
        return ckpt_fail(err, EUCLEAN, "the zip64 end record is not where it should be");
    int r = read_at(z, e, sizeof e, begin, err);
    if (r < 0)
        return r;
    if (ckpt_le32(e) != END64_MAGIC || ckpt_le64(e + 4) != before - begin - 12)
        return ckpt_fail(err, EUCLEAN, "the zip64 end record is not where it should be");
    if (ckpt_le32(e + 16) || ckpt_le32(e + 20) || ckpt_le64(e + 24) != ckpt_le64(e + 32))
        return several_disks(err);
    *ret = (struct directory){.count = ckpt_le64(e + 32), .size = ckpt_le64(e + 40), .begin = ckpt_le64(e + 48)};
    if (!agrees(ckpt_le16(end + 10), UINT16_MAX, ret->count) || !agrees(ckpt_le32(end + 12), UINT32_MAX, ret->size) ||
        !agrees(ckpt_le32(end + 16), UINT32_MAX, ret->begin))
        return ckpt_fail(err, EUCLEAN, "the two end records of the archive contradict each other");
    *at = begin;
    return 0;
}

static int read_end(const struct ckpt_zip *z, struct directory *ret, struct ckpt_err *err)
{
    uint8_t end[END] = {0}, locator[LOCATOR] = {0};
    uint64_t at = 0, stop;
    int r = find_end(z, end, &at, err);
    if (r == 0 && at >= LOCATOR)
        r = read_at(z, locator, sizeof locator, at - LOCATOR, err);
    if (r < 0)
        return r;
    bool wide = ckpt_le32(locator) == LOCATOR_MAGIC;
    if (!agrees(ckpt_le16(end + 4), wide ? UINT16_MAX : 0, 0) ||
        !agrees(ckpt_le16(end + 6), wide ? UINT16_MAX : 0, 0) || ckpt_le16(end + 8) != ckpt_le16(end + 10))
        return several_disks(err);
    *ret = (struct directory){.count = ckpt_le16(end + 10), .size = ckpt_le32(end + 12), .begin = ckpt_le32(end + 16)};
    if (wide)
        r = read_end64(z, locator, end, &at, ret, err);
    if (r < 0)
        return r;
    if (ckpt_add(ret->begin, ret->size, &stop) || stop > at)
        return ckpt_fail(err, EBADMSG,
                         "the archive's directory should reach to byte %llu, and its end record is at %llu",
                         (unsigned long long)stop, (unsigned long long)at);
    if (stop < at)
        return ckpt_fail(err, EUCLEAN, "something lies between the archive's directory and its end record");
    if (ret->count > CKPT_ZIP_MAX_MEMBERS)
        return ckpt_fail(err, EOPNOTSUPP, "the archive has more than %u members", CKPT_ZIP_MAX_MEMBERS);
    if (ret->count > ret->size / CENTRAL)
        return ckpt_fail(err, EUCLEAN, "the archive's directory is too small for %llu members",
                         (unsigned long long)ret->count);
    return 0;
}

/* --- the central directory --- */

/* It is read once, from the beginning to the end. */
struct scan {
    struct ckpt_zip *z;
    uint8_t *window;
    size_t at, len;      /* in the window */
    uint64_t next, stop; /* in the archive: what has not been read yet */
    struct ckpt_err *err;
};

/* The next n bytes, not taken. */
static int look(struct scan *s, size_t n, const uint8_t **ret)
{
    if (s->len - s->at < n) {
        memmove(s->window, s->window + s->at, s->len - s->at);
        s->len -= s->at;
        s->at = 0;
        size_t more = (size_t)CKPT_MIN((uint64_t)(WINDOW - s->len), s->stop - s->next);
        int r = read_at(s->z, s->window + s->len, more, s->next, s->err);
        if (r < 0)
            return r;
        s->len += more;
        s->next += more;
    }
    if (s->len < n)
        return ckpt_fail(s->err, EUCLEAN, "the archive's directory ends within an entry");
    *ret = s->window + s->at;
    return 0;
}

/* Numbers of an entry that have no room in its 32 bits are in the zip64 extra field, those alone, in this order. */
static int widen(struct scan *s, const char *name, const uint8_t *extra, size_t len, uint64_t *const numbers[3])
{
    const uint8_t *p = NULL, *end = NULL;
    for (size_t at = 0; len - at >= 4 && !p; at += 4 + ckpt_le16(extra + at + 2)) {
        if (ckpt_le16(extra + at + 2) > len - at - 4)
            break;
        if (ckpt_le16(extra + at) == 1) {
            p = extra + at + 4;
            end = p + ckpt_le16(extra + at + 2);
        }
    }
    for (unsigned i = 0; i < 3; i++) {
        if (*numbers[i] != UINT32_MAX)
            continue;
        if (!p || end - p < 8)
            return ckpt_fail(s->err, EUCLEAN, "%.200s: its zip64 field is missing or too short", name);
        *numbers[i] = ckpt_le64(p);
        p += 8;
    }
    return 0;
}

static int check_numbers(struct scan *s, const char *name, size_t name_len, uint64_t size, uint64_t stored,
                         uint64_t header, bool deflated)
{
    uint64_t end;
    if (ckpt_add(header, LOCAL + name_len, &end) || ckpt_add(end, stored, &end) || end > s->z->directory)
        return ckpt_fail(s->err, EUCLEAN,
                         "%.200s should lie at byte %llu, with %llu bytes, but the directory is at %llu", name,
                         (unsigned long long)header, (unsigned long long)stored, (unsigned long long)s->z->directory);
    if (deflated ? size > MAX_BYTES || size / MAX_RATIO > stored : size != stored)
        return ckpt_fail(s->err, EUCLEAN, "%.200s cannot have %llu bytes, with %llu stored", name,
                         (unsigned long long)size, (unsigned long long)stored);
    return 0;
}

/* Appended to the archive's names, where it is NUL-terminated. */
static int take_name(struct scan *s, const uint8_t *name, size_t len, uint32_t *ret)
{
    struct ckpt_buf *names = &s->z->names;
    *ret = (uint32_t)names->len;
    ckpt_buf_add(names, name, len);
    ckpt_buf_addc(names, 0);
    if (ckpt_buf_error(names) == -EFBIG)
        return ckpt_fail(s->err, EOPNOTSUPP, "the names of the archive's members have more than %zu bytes",
                         CKPT_ZIP_MAX_NAMES);
    if (ckpt_buf_error(names))
        return memory(s->err);
    const char *text = (const char *)names->data + *ret;
    if (!len || strlen(text) != len || !ckpt_utf8(text, len))
        return ckpt_fail(s->err, EUCLEAN,
                         "a member of the archive has a name that is empty, has a NUL or is not UTF-8");
    return 0;
}

/* The slot of a name: of the member that has it, or a free one. */
static uint32_t slot_of(const struct ckpt_zip *z, const char *name, size_t len)
{
    uint32_t at = (uint32_t)XXH3_64bits(name, len) & (z->table_size - 1);
    while (z->table[at] != CKPT_ZIP_NONE &&
           (strlen(name_of(z, z->table[at])) != len || memcmp(name_of(z, z->table[at]), name, len)))
        at = (at + 1) & (z->table_size - 1);
    return at;
}

static int take_entry(struct scan *s, uint32_t number)
{
    struct ckpt_zip *z = s->z;
    const uint8_t *e = NULL;
    int r = look(s, CENTRAL, &e);
    if (r < 0)
        return r;
    if (ckpt_le32(e) != CENTRAL_MAGIC)
        return ckpt_fail(s->err, EUCLEAN, "entry %u of the archive's directory is none", number);
    unsigned flags = ckpt_le16(e + 8), method = ckpt_le16(e + 10);
    size_t name_len = ckpt_le16(e + 28), extra = ckpt_le16(e + 30),
           all = CENTRAL + name_len + extra + ckpt_le16(e + 32);
    struct record *m = &z->records[number];
    r = look(s, all, &e);
    if (r == 0)
        r = take_name(s, e + CENTRAL, name_len, &m->name);
    if (r < 0)
        return r;
    const char *name = name_of(z, number);
    if (flags & FLAGS_REFUSED)
        return ckpt_fail(s->err, EOPNOTSUPP, "%.200s is %s", name,
                         flags & FLAG_ENCRYPTED ? "encrypted" : "patched or hidden");
    if (method && method != DEFLATED)
        return ckpt_fail(s->err, EOPNOTSUPP,
                         "%.200s is compressed with method %u; only stored and deflated members are read", name,
                         method);
    if (!agrees(ckpt_le16(e + 34), UINT16_MAX, 0))
        return several_disks(s->err);
    uint64_t size = ckpt_le32(e + 24), stored = ckpt_le32(e + 20), header = ckpt_le32(e + 42);
    r = widen(s, name, e + CENTRAL + name_len, extra, (uint64_t *const[]){&size, &stored, &header});
    if (r == 0)
        r = check_numbers(s, name, name_len, size, stored, header, method == DEFLATED);
    if (r < 0)
        return r;
    m->size = size;
    m->stored = stored;
    m->header = header;
    m->deflated = method == DEFLATED;
    m->crc = ckpt_le32(e + 16);
    uint32_t slot = slot_of(z, name, name_len);
    if (z->table[slot] != CKPT_ZIP_NONE)
        return ckpt_fail(s->err, EUCLEAN, "%.200s is there twice", name);
    z->table[slot] = number;
    s->at += all;
    return 0;
}

static int by_header(const void *a, const void *b, void *arg)
{
    const struct record *records = arg, *left = &records[*(const uint32_t *)a], *right = &records[*(const uint32_t *)b];
    return left->header < right->header ? -1 : left->header > right->header;
}

/* Where the member at this place of the order must end. */
static uint64_t limit_of(const struct ckpt_zip *z, uint32_t place)
{
    return place + 1 < z->count ? z->records[z->order[place + 1]].header : z->directory;
}

/* Members share no bytes: a small archive of large members could be made of such. */
static int check_overlap(struct ckpt_zip *z, struct ckpt_err *err)
{
    for (uint32_t i = 0; i < z->count; i++)
        z->order[i] = i;
    qsort_r(z->order, z->count, sizeof *z->order, by_header, z->records);
    for (uint32_t i = 0; i < z->count; i++) {
        const struct record *m = &z->records[z->order[i]];
        if (limit_of(z, i) - m->header < LOCAL + strlen(name_of(z, z->order[i])) + m->stored)
            return ckpt_fail(err, EUCLEAN, "%.200s overlaps with the next member", name_of(z, z->order[i]));
    }
    return 0;
}

static int alloc_members(struct ckpt_zip *z, uint32_t count)
{
    for (z->table_size = 16; z->table_size < 2 * count;)
        z->table_size *= 2;
    size_t slots = count ? count : 1;
    z->records = calloc(slots, sizeof *z->records);
    z->order = calloc(slots, sizeof *z->order);
    z->skip = calloc(slots, sizeof *z->skip);
    z->table = malloc(z->table_size * sizeof *z->table);
    if (!z->records || !z->order || !z->skip || !z->table)
        return -ENOMEM;
    memset(z->table, 0xff, z->table_size * sizeof *z->table);
    return 0;
}

static int read_directory(struct ckpt_zip *z, struct ckpt_err *err)
{
    struct directory d = {0};
    int r = read_end(z, &d, err);
    if (r < 0)
        return r;
    CKPT_AUTOFREE uint8_t *window = malloc(WINDOW);
    struct scan s = {.z = z, .window = window, .next = d.begin, .stop = d.begin + d.size, .err = err};
    if (!window || alloc_members(z, (uint32_t)d.count) < 0)
        return memory(err);
    z->directory = d.begin;
    for (uint32_t i = 0; i < d.count; i++) {
        r = take_entry(&s, i);
        if (r < 0)
            return r;
    }
    if (s.at < s.len || s.next < s.stop)
        return ckpt_fail(err, EUCLEAN, "the archive's directory has more than its %llu entries",
                         (unsigned long long)d.count);
    z->count = (uint32_t)d.count;
    return check_overlap(z, err);
}

int ckpt_zip_open(struct ckpt_file *file, uint64_t off, uint64_t len, struct ckpt_zip **ret, struct ckpt_err *err)
{
    if (off > file->st.size || len > file->st.size - off)
        return ckpt_fail(err, EBADMSG, "the file ends before the archive does");
    struct ckpt_zip *z = calloc(1, sizeof *z);
    if (!z)
        return memory(err);
    atomic_init(&z->refs, 1);
    z->file = ckpt_file_ref(file);
    z->off = off;
    z->len = len;
    z->names.max = CKPT_ZIP_MAX_NAMES;
    int r = read_directory(z, err);
    if (r < 0) {
        ckpt_zip_unref(z);
        return r;
    }
    *ret = z;
    return 0;
}

struct ckpt_zip *ckpt_zip_ref(struct ckpt_zip *z)
{
    atomic_fetch_add(&z->refs, 1);
    return z;
}

void ckpt_zip_unref(struct ckpt_zip *z)
{
    if (!z || atomic_fetch_sub(&z->refs, 1) != 1)
        return;
    ckpt_file_unref(z->file);
    ckpt_buf_clear(&z->names);
    free(z->records);
    free(z->table);
    free(z->order);
    free(z->skip);
    free(z);
}

/* --- members --- */

uint32_t ckpt_zip_count(const struct ckpt_zip *z)
{
    return z->count;
}

struct ckpt_zip_member ckpt_zip_member(const struct ckpt_zip *z, uint32_t i)
{
    const struct record *m = &z->records[i];
    const char *name = name_of(z, i);
    return (struct ckpt_zip_member){name, strlen(name), m->size, m->stored, m->crc, m->deflated};
}

uint32_t ckpt_zip_find(const struct ckpt_zip *z, const char *name, size_t len)
{
    return z->table[slot_of(z, name, len)];
}

/* Where the space of a member ends that begins there. */
static uint64_t end_of_space(const struct ckpt_zip *z, uint64_t header)
{
    uint32_t lo = 0, hi = z->count;
    while (hi - lo > 1) {
        uint32_t mid = lo + (hi - lo) / 2;
        if (z->records[z->order[mid]].header <= header)
            lo = mid;
        else
            hi = mid;
    }
    return limit_of(z, lo);
}

/* Its sizes are not looked at: they may be of the kind that follows the data. */
static int check_local(const struct ckpt_zip *z, uint32_t i, uint32_t *ret_skip, struct ckpt_err *err)
{
    const struct record *m = &z->records[i];
    const char *name = name_of(z, i);
    size_t name_len = strlen(name);
    CKPT_AUTOFREE uint8_t *h = malloc(LOCAL + name_len);
    int r = h ? read_at(z, h, LOCAL + name_len, m->header, err) : memory(err);
    if (r < 0)
        return r;
    if (ckpt_le32(h) != LOCAL_MAGIC)
        return ckpt_fail(err, EUCLEAN, "%.200s: there is no member where the archive's directory says", name);
    if (ckpt_le16(h + 26) != name_len || memcmp(h + LOCAL, name, name_len) ||
        ckpt_le16(h + 8) != (m->deflated ? DEFLATED : 0) || ckpt_le16(h + 6) & FLAG_ENCRYPTED)
        return ckpt_fail(err, EUCLEAN, "%.200s: the member itself and the archive's directory contradict each other",
                         name);
    uint32_t skip = LOCAL + (uint32_t)name_len + ckpt_le16(h + 28);
    if (skip + m->stored > end_of_space(z, m->header) - m->header)
        return ckpt_fail(err, EUCLEAN, "%.200s overlaps with what follows it", name);
    *ret_skip = skip;
    return 0;
}

int ckpt_zip_payload(struct ckpt_zip *z, uint32_t i, struct ckpt_extent *ret, struct ckpt_codec_chain *ret_chain,
                     struct ckpt_err *err)
{
    const struct record *m = &z->records[i];
    uint32_t skip = atomic_load_explicit(&z->skip[i], memory_order_relaxed);
    int r = skip ? 0 : check_local(z, i, &skip, err);
    if (r < 0)
        return r;
    atomic_store_explicit(&z->skip[i], skip, memory_order_relaxed);
    *ret = (struct ckpt_extent){.file = ckpt_file_ref(z->file), .off = z->off + m->header + skip, .len = m->stored};
    *ret_chain = (struct ckpt_codec_chain){0};
    if (m->deflated)
        *ret_chain = (struct ckpt_codec_chain){2, {CKPT_CODEC_DEFLATE, CKPT_CODEC_CRC32}, m->crc};
    return 0;
}

/* The content with its CRC-32 checked, which a stored member's payload alone would not be. */
static int open_checked(struct ckpt_zip *z, uint32_t i, struct ckpt_stream **ret, struct ckpt_err *err)
{
    struct ckpt_extent extent;
    struct ckpt_codec_chain chain;
    int r = ckpt_zip_payload(z, i, &extent, &chain, err);
    if (r < 0)
        return r;
    if (!chain.count)
        chain = (struct ckpt_codec_chain){1, {CKPT_CODEC_CRC32}, z->records[i].crc};
    r = ckpt_stream_open(&chain, &extent, z->records[i].size, ret, err);
    ckpt_extent_clear(&extent);
    return r;
}

int ckpt_zip_read_all(struct ckpt_zip *z, uint32_t i, size_t max, uint8_t **ret, size_t *ret_len, struct ckpt_err *err)
{
    uint64_t size = z->records[i].size;
    struct ckpt_stream *s;
    if (size > max)
        return ckpt_fail(err, EFBIG, "%.200s has %llu bytes; at most %zu belong there", name_of(z, i),
                         (unsigned long long)size, max);
    CKPT_AUTOFREE uint8_t *data = malloc((size_t)size + 1);
    int r = data ? open_checked(z, i, &s, err) : memory(err);
    if (r < 0)
        return r;
    ssize_t n = ckpt_stream_read(s, data, (size_t)size, err);
    ckpt_stream_close(s);
    if (n < 0)
        return ckpt_fail_in(err, (int)-n, "%.200s", name_of(z, i));
    data[size] = 0;
    *ret = CKPT_STEAL(data);
    *ret_len = (size_t)size;
    return 0;
}

int ckpt_zip_verify(struct ckpt_zip *z, uint32_t i, void (*progress)(void *arg, uint64_t bytes), void *arg,
                    struct ckpt_err *err)
{
    CKPT_AUTOFREE uint8_t *block = malloc(WINDOW);
    struct ckpt_stream *s;
    int r = block ? open_checked(z, i, &s, err) : memory(err);
    if (r < 0)
        return r;
    ssize_t n;
    while ((n = ckpt_stream_read(s, block, WINDOW, err)) > 0)
        if (progress)
            progress(arg, (uint64_t)n);
    ckpt_stream_close(s);
    return n < 0 ? ckpt_fail_in(err, (int)-n, "%.200s", name_of(z, i)) : 0;
}

size_t ckpt_zip_memory(const struct ckpt_zip *z)
{
    return sizeof *z + z->count * (sizeof *z->records + sizeof *z->order + sizeof *z->skip) +
           z->table_size * sizeof *z->table + z->names.cap;
}
