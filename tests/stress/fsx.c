/* SPDX-License-Identifier: Apache-2.0 */
/* Random calls on the files of one step of a writable mount, each compared with a model in memory.
 *
 * Every way to change a file's bytes is here: write, truncate, fallocate, mappings, copy_file_range, O_DIRECT. Between
 * them the step is committed, what is committed is compared, and the changes go on from there. The program ends at the
 * first difference, with the calls that led to it. tests/stress/fsx.py mounts and runs it. */
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <sys/xattr.h>
#include <time.h>
#include <unistd.h>
#include <linux/falloc.h>

enum { FILES = 3, BASES = 3, LOG_LINES = 256, LOG_WIDTH = 128, BLOCK = 4096, PATIENCE = 60 };

static const char *const file_names[FILES] = {"a", "b", "sub/c"};
static const char *const base_names[BASES] = {"noise", "zeros", "small"};

struct file {
    bool exists;
    size_t size;
    int fd;             /* -1: closed */
    unsigned char *map; /* a mapping of the file, NULL: none */
    size_t map_size;
    int old_fd; /* of the file as it was last committed, -1: none */
    size_t old_size;
};

/* The model, in shared memory: where steps must settle, a process of its own makes the changes. */
struct world {
    uint64_t random;
    unsigned long calls, commits, refused, busy;
    unsigned long unsupported[16];
    unsigned long lines;
    char log[LOG_LINES][LOG_WIDTH];
    struct file files[FILES];
    size_t base_size[BASES];
};

static struct {
    const char *mount, *root, *program, *other;
    unsigned long calls, every;
    uint64_t seed;
    size_t max;
    bool settle, quiet;
} option = {.calls = 10000, .every = 200, .max = 300000};

static struct world *world;
static unsigned char *bytes[FILES], *old_bytes[FILES], *base_bytes[BASES]; /* option.max each, shared */
static unsigned char *buffer;                                              /* of this process, aligned */

static uint64_t next_random(void)
{
    uint64_t z = world->random += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

static size_t below(size_t n)
{
    return n ? next_random() % n : 0;
}

static bool one_in(unsigned n)
{
    return below(n) == 0;
}

__attribute__((format(printf, 1, 2))) static void note(const char *format, ...)
{
    va_list args;
    va_start(args, format);
    char *line = world->log[world->lines++ % LOG_LINES];
    int n = snprintf(line, LOG_WIDTH, "%lu ", world->calls);
    vsnprintf(line + n, LOG_WIDTH - n, format, args);
    va_end(args);
}

__attribute__((format(printf, 1, 2), noreturn)) static void fail(const char *format, ...)
{
    va_list args;
    unsigned long first = world->lines > LOG_LINES ? world->lines - LOG_LINES : 0;
    for (unsigned long n = first; n < world->lines; n++)
        printf("  %s\n", world->log[n % LOG_LINES]);
    printf("FAULT at call %lu, seed %llu: ", world->calls, (unsigned long long)option.seed);
    va_start(args, format);
    vprintf(format, args);
    va_end(args);
    printf("\n");
    fflush(stdout);
    _exit(1);
}

static const char *path_of(int n)
{
    static char path[FILES][4096];
    snprintf(path[n], sizeof path[n], "%s/7/%s", option.mount, file_names[n]);
    return path[n];
}

static void compare(int n, const char *how, const unsigned char *got, const unsigned char *want, size_t offset,
                    size_t size)
{
    if (memcmp(got, want, size) == 0)
        return;
    size_t first = 0, last = size;
    while (got[first] == want[first])
        first++;
    while (got[last - 1] == want[last - 1])
        last--;
    size_t wrong = 0, zeros = 0;
    for (size_t k = first; k < last; k++) {
        wrong += got[k] != want[k];
        zeros += got[k] != want[k] && got[k] == 0;
    }
    fail("%s of %s: bytes %zu to %zu differ (%zu of them, %zu are zeros), at the first %02x instead of %02x", how,
         file_names[n], offset + first, offset + last, wrong, zeros, got[first], want[first]);
}

static void close_file(int n)
{
    struct file *f = &world->files[n];
    if (f->fd < 0)
        return;
    note("close %s", file_names[n]);
    if (close(f->fd))
        fail("close of %s: %m", file_names[n]);
    f->fd = -1;
    if (one_in(3))
        usleep(below(10000)); /* the daemon hashes it, and lets go of its bytes */
}

static void open_file(int n, int flags)
{
    struct file *f = &world->files[n];
    close_file(n);
    note("open %s%s%s", file_names[n], flags & O_TRUNC ? " O_TRUNC" : "", flags & O_APPEND ? " O_APPEND" : "");
    f->fd = open(path_of(n), O_RDWR | O_CREAT | flags, 0644);
    if (f->fd < 0)
        fail("open of %s: %m", file_names[n]);
    f->exists = true;
    if (flags & O_TRUNC)
        f->size = 0;
}

static int opened(int n)
{
    if (world->files[n].fd < 0)
        open_file(n, 0);
    return world->files[n].fd;
}

static void check_size(int n)
{
    struct stat st;
    if (fstat(opened(n), &st))
        fail("fstat of %s: %m", file_names[n]);
    if ((size_t)st.st_size != world->files[n].size)
        fail("%s has %zu bytes instead of %zu", file_names[n], (size_t)st.st_size, world->files[n].size);
}

/* A range, short ones more often than long ones. */
static void pick_range(size_t top, size_t *offset, size_t *size)
{
    static const size_t longest[] = {1, 100, BLOCK, 65536, 65536};
    *offset = below(top);
    if (one_in(4))
        *offset &= ~(size_t)(BLOCK - 1);
    size_t most = one_in(30) ? top : longest[below(5)];
    *size = 1 + below(most);
    if (*size > top - *offset)
        *size = top - *offset;
}

static void fill(unsigned char *at, size_t size)
{
    uint64_t kind = below(6), word = next_random();
    for (size_t k = 0; k < size; k++) {
        if (kind > 1 && k % 8 == 0)
            word = next_random();
        at[k] = kind == 0 ? 0 : word >> k % 8 * 8;
    }
}

/* The model's bytes from offset on are new; what lies between is zeros. */
static void grow(int n, size_t size)
{
    struct file *f = &world->files[n];
    if (size <= f->size)
        return;
    memset(bytes[n] + f->size, 0, size - f->size);
    f->size = size;
}

static void put(int n, size_t offset, const unsigned char *data, size_t size)
{
    grow(n, offset + size);
    memmove(bytes[n] + offset, data, size);
}

static void read_range(int n, int fd, const char *how, size_t offset, size_t size)
{
    struct file *f = &world->files[n];
    size_t want = offset < f->size ? f->size - offset : 0;
    if (want > size)
        want = size;
    size_t done = 0;
    while (done < want) {
        ssize_t got = pread(fd, buffer + done, size - done, offset + done);
        if (got < 0)
            fail("%s of %s, %zu bytes at %zu: %m", how, file_names[n], size, offset);
        if (got == 0)
            break;
        done += got;
    }
    if (done != want)
        fail("%s of %s, %zu bytes at %zu: %zu bytes instead of %zu", how, file_names[n], size, offset, done, want);
    compare(n, how, buffer, bytes[n] + offset, offset, want);
}

/* --- the calls --- */

static void do_read(int n)
{
    size_t offset, size;
    pick_range(option.max, &offset, &size);
    note("read %s %zu at %zu", file_names[n], size, offset);
    read_range(n, opened(n), "read", offset, size);
}

static void do_read_anew(int n)
{
    size_t offset, size;
    pick_range(option.max, &offset, &size);
    if (!world->files[n].exists)
        return;
    note("open to read, read %s %zu at %zu", file_names[n], size, offset);
    int fd = open(path_of(n), O_RDONLY);
    if (fd < 0)
        fail("open of %s to read: %m", file_names[n]);
    read_range(n, fd, "read through another descriptor", offset, size);
    close(fd);
}

static void do_write(int n)
{
    size_t offset, size;
    pick_range(option.max, &offset, &size);
    fill(buffer, size);
    note("write %s %zu at %zu", file_names[n], size, offset);
    ssize_t done = pwrite(opened(n), buffer, size, offset);
    if (done != (ssize_t)size)
        fail("write to %s, %zu bytes at %zu: %zd, %m", file_names[n], size, offset, done);
    put(n, offset, buffer, size);
}

static void do_append(int n)
{
    struct file *f = &world->files[n];
    size_t size = 1 + below(5000);
    if (f->size + size > option.max)
        return;
    open_file(n, O_APPEND);
    fill(buffer, size);
    note("append %s %zu", file_names[n], size);
    ssize_t done = write(f->fd, buffer, size);
    if (done != (ssize_t)size)
        fail("append to %s, %zu bytes: %zd, %m", file_names[n], size, done);
    put(n, f->size, buffer, size);
    close_file(n);
}

static void do_truncate(int n)
{
    struct file *f = &world->files[n];
    size_t size = one_in(6) ? 0 : below(one_in(2) ? f->size + 1 : option.max);
    bool by_path = one_in(2) && f->exists;
    note("%s %s to %zu, was %zu", by_path ? "truncate" : "ftruncate", file_names[n], size, f->size);
    if (by_path ? truncate(path_of(n), size) : ftruncate(opened(n), size))
        fail("truncate of %s to %zu: %m", file_names[n], size);
    grow(n, size);
    f->size = size;
}

static void do_open_trunc(int n)
{
    open_file(n, O_TRUNC);
}

static void do_allocate(int n)
{
    static const struct {
        int mode;
        const char *name;
    } kinds[] = {{0, "allocate"},
                 {FALLOC_FL_KEEP_SIZE, "allocate, keep size"},
                 {FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, "punch"},
                 {FALLOC_FL_ZERO_RANGE, "zero"},
                 {FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE, "zero, keep size"}};
    struct file *f = &world->files[n];
    size_t offset, size, kind = below(5);
    pick_range(option.max, &offset, &size);
    note("%s %s %zu at %zu", kinds[kind].name, file_names[n], size, offset);
    if (fallocate(opened(n), kinds[kind].mode, offset, size)) {
        if (errno != EOPNOTSUPP)
            fail("%s of %s, %zu bytes at %zu: %m", kinds[kind].name, file_names[n], size, offset);
        world->unsupported[kind]++;
        return;
    }
    if (!(kinds[kind].mode & FALLOC_FL_KEEP_SIZE))
        grow(n, offset + size);
    if (kinds[kind].mode & (FALLOC_FL_PUNCH_HOLE | FALLOC_FL_ZERO_RANGE) && offset < f->size)
        memset(bytes[n] + offset, 0, offset + size < f->size ? size : f->size - offset);
}

static void unmap_file(int n)
{
    struct file *f = &world->files[n];
    if (!f->map)
        return;
    note("munmap %s", file_names[n]);
    munmap(f->map, f->map_size);
    f->map = NULL;
}

/* A mapping lives on while other calls change the file. Nothing beyond the file's end is touched. */
static void map_file(int n)
{
    struct file *f = &world->files[n];
    if (f->map && (f->map_size < f->size || one_in(10)))
        unmap_file(n);
    if (f->map || !f->size)
        return;
    f->map_size = f->size;
    note("mmap %s %zu", file_names[n], f->map_size);
    f->map = mmap(NULL, f->map_size, PROT_READ | PROT_WRITE, MAP_SHARED, opened(n), 0);
    if (f->map == MAP_FAILED)
        fail("mmap of %s, %zu bytes: %m", file_names[n], f->size);
}

static void do_map_read(int n)
{
    struct file *f = &world->files[n];
    size_t offset, size;
    opened(n);
    map_file(n);
    if (!f->map)
        return;
    size_t top = f->map_size < f->size ? f->map_size : f->size;
    pick_range(top, &offset, &size);
    note("load %s %zu at %zu", file_names[n], size, offset);
    memcpy(buffer, f->map + offset, size);
    compare(n, "a mapping", buffer, bytes[n] + offset, offset, size);
    size_t tail = (f->size + BLOCK - 1) / BLOCK * BLOCK - f->size;
    for (size_t k = 0; f->map_size == f->size && k < tail; k++)
        if (f->map[f->size + k])
            fail("a mapping of %s, of %zu bytes: byte %zu behind the end is %02x", file_names[n], f->size, k,
                 f->map[f->size + k]);
}

static void do_map_write(int n)
{
    struct file *f = &world->files[n];
    size_t offset, size;
    map_file(n);
    if (!f->map || !f->size)
        return;
    pick_range(f->map_size < f->size ? f->map_size : f->size, &offset, &size);
    fill(buffer, size);
    note("store %s %zu at %zu", file_names[n], size, offset);
    memcpy(f->map + offset, buffer, size);
    put(n, offset, buffer, size);
    if (one_in(4)) {
        note("msync %s", file_names[n]);
        if (msync(f->map, f->map_size, MS_SYNC))
            fail("msync of %s: %m", file_names[n]);
    }
}

static void do_unmap(int n)
{
    unmap_file(n);
}

static void copy(int n, int source, const unsigned char *from, size_t offset, size_t size, size_t there)
{
    while (size) {
        loff_t in = offset, out = there;
        ssize_t done = copy_file_range(source, &in, opened(n), &out, size, 0);
        if (done < 0)
            fail("copy_file_range to %s, %zu bytes from %zu to %zu: %m", file_names[n], size, offset, there);
        if (done == 0)
            fail("copy_file_range to %s, %zu bytes from %zu to %zu: nothing", file_names[n], size, offset, there);
        put(n, there, from + offset, done);
        offset += done, there += done, size -= done;
    }
}

static void do_copy(int n)
{
    size_t offset, size, there;
    int m = below(FILES);
    pick_range(world->files[m].size, &offset, &size);
    there = below(option.max - size + 1);
    bool overlap = m == n && offset < there + size && there < offset + size;
    if (!size || overlap)
        return;
    int source = opened(m);
    note("copy %zu of %s at %zu to %s at %zu", size, file_names[m], offset, file_names[n], there);
    copy(n, source, bytes[m], offset, size, there);
}

static int open_base(int b)
{
    char path[4096];
    snprintf(path, sizeof path, "%s/1/%s", option.mount, base_names[b]);
    int fd = open(path, O_RDONLY);
    if (fd < 0)
        fail("open of 1/%s: %m", base_names[b]);
    return fd;
}

static void do_copy_base(int n)
{
    size_t offset = 0, size, there = 0;
    int b = below(BASES), source = open_base(b);
    if (one_in(2)) {
        open_file(n, O_TRUNC);
        size = world->base_size[b];
    } else {
        pick_range(world->base_size[b], &offset, &size);
        there = below(option.max - size + 1);
    }
    note("copy %zu of 1/%s at %zu to %s at %zu", size, base_names[b], offset, file_names[n], there);
    copy(n, source, base_bytes[b], offset, size, there);
    close(source);
}

/* As cp does it: the whole file, into an empty one. */
static void do_copy_whole(int n)
{
    int m = below(FILES);
    if (m == n || !world->files[m].size)
        return;
    if (one_in(2))
        close_file(m); /* what is hashed already is copied otherwise */
    int source = open(path_of(m), O_RDONLY);
    if (source < 0)
        fail("open of %s to copy it: %m", file_names[m]);
    open_file(n, O_TRUNC);
    note("copy %s, all %zu, to %s", file_names[m], world->files[m].size, file_names[n]);
    copy(n, source, bytes[m], 0, world->files[m].size, 0);
    close(source);
    if (one_in(2))
        close_file(n);
}

static void forget(int n)
{
    unmap_file(n);
    close_file(n);
    note("unlink %s", file_names[n]);
    if (world->files[n].exists && unlink(path_of(n)))
        fail("unlink of %s: %m", file_names[n]);
    world->files[n].exists = false;
    world->files[n].size = 0;
}

static void do_link_base(int n)
{
    char from[4096];
    int b = below(BASES);
    snprintf(from, sizeof from, "%s/1/%s", option.mount, base_names[b]);
    forget(n);
    note("link 1/%s to %s", base_names[b], file_names[n]);
    if (link(from, path_of(n)))
        fail("link of 1/%s to %s: %m", base_names[b], file_names[n]);
    world->files[n].exists = true;
    put(n, 0, base_bytes[b], world->base_size[b]);
}

static void do_unlink(int n)
{
    forget(n);
}

static void do_direct(int n)
{
    struct file *f = &world->files[n];
    size_t offset = below(option.max / BLOCK) * BLOCK, size = (1 + below(16)) * BLOCK;
    bool writes = one_in(2);
    if (offset + size > option.max)
        return;
    opened(n);
    int fd = open(path_of(n), O_RDWR | O_DIRECT);
    if (fd < 0 && errno == EINVAL) {
        world->unsupported[8]++;
        return;
    }
    if (fd < 0)
        fail("open of %s with O_DIRECT: %m", file_names[n]);
    note("direct %s %s %zu at %zu, size %zu", writes ? "write" : "read", file_names[n], size, offset, f->size);
    if (writes) {
        fill(buffer, size);
        ssize_t done = pwrite(fd, buffer, size, offset);
        if (done != (ssize_t)size)
            fail("direct write to %s, %zu bytes at %zu: %zd, %m", file_names[n], size, offset, done);
        put(n, offset, buffer, size);
    } else {
        ssize_t done = pread(fd, buffer, size, offset);
        ssize_t want = offset >= f->size ? 0 : f->size - offset < size ? f->size - offset : size;
        if (done != want)
            fail("direct read of %s, %zu bytes at %zu: %zd instead of %zd, %m", file_names[n], size, offset, done,
                 want);
        compare(n, "direct read", buffer, bytes[n] + offset, offset, want);
    }
    close(fd);
}

static void do_close(int n)
{
    close_file(n);
}

static void do_fsync(int n)
{
    note("fsync %s", file_names[n]);
    if (one_in(2) ? fsync(opened(n)) : fdatasync(opened(n)))
        fail("fsync of %s: %m", file_names[n]);
}

/* What was open when the step was committed reads on, whatever is changed. */
static void do_read_old(int n)
{
    struct file *f = &world->files[n];
    size_t offset, size;
    pick_range(f->old_size, &offset, &size);
    if (f->old_fd < 0 || !size)
        return;
    note("read committed %s %zu at %zu", file_names[n], size, offset);
    ssize_t done = pread(f->old_fd, buffer, size, offset);
    if (done != (ssize_t)size)
        fail("read of %s as it was committed, %zu bytes at %zu: %zd, %m", file_names[n], size, offset, done);
    compare(n, "what was open when it was committed", buffer, old_bytes[n] + offset, offset, size);
}

static const struct {
    void (*call)(int n);
    unsigned weight;
} calls[] = {{do_read, 14},      {do_read_anew, 4}, {do_write, 20},     {do_append, 2},    {do_truncate, 10},
             {do_open_trunc, 1}, {do_allocate, 8},  {do_map_read, 8},   {do_map_write, 9}, {do_unmap, 2},
             {do_copy, 6},       {do_copy_base, 2}, {do_copy_whole, 2}, {do_link_base, 1}, {do_unlink, 1},
             {do_direct, 6},     {do_close, 6},     {do_fsync, 1},      {do_read_old, 3}};

static void check_all(const char *how)
{
    for (int n = 0; n < FILES; n++) {
        struct stat st;
        bool exists = stat(path_of(n), &st) == 0;
        if (exists != world->files[n].exists)
            fail("%s: %s is %s", how, file_names[n], exists ? "there" : "gone");
        if (!exists)
            continue;
        if ((size_t)st.st_size != world->files[n].size)
            fail("%s: %s has %zu bytes instead of %zu", how, file_names[n], (size_t)st.st_size, world->files[n].size);
        int fd = open(path_of(n), O_RDONLY);
        if (fd < 0)
            fail("%s: open of %s: %m", how, file_names[n]);
        read_range(n, fd, how, 0, option.max);
        close(fd);
    }
}

static void check_bases(void)
{
    for (int b = 0; b < BASES; b++) {
        int fd = open_base(b);
        size_t size = world->base_size[b];
        if (pread(fd, buffer, option.max, 0) != (ssize_t)size || memcmp(buffer, base_bytes[b], size))
            fail("1/%s, which is committed, has changed", base_names[b]);
        close(fd);
    }
}

static void close_all(void)
{
    for (int n = 0; n < FILES; n++) {
        unmap_file(n);
        close_file(n);
    }
}

static void one_call(void)
{
    unsigned total = 0;
    for (size_t k = 0; k < sizeof calls / sizeof *calls; k++)
        total += calls[k].weight;
    size_t k = 0, chosen = below(total);
    while (chosen >= calls[k].weight)
        chosen -= calls[k++].weight;
    int n = below(FILES);
    world->calls++;
    calls[k].call(n);
    if (world->files[n].fd >= 0)
        check_size(n);
}

static void batch(void)
{
    char path[4096];
    snprintf(path, sizeof path, "%s/7", option.mount);
    mkdir(path, 0755);
    snprintf(path, sizeof path, "%s/7/sub", option.mount);
    if (mkdir(path, 0755) && errno != EEXIST)
        fail("mkdir of %s: %m", path);
    size_t count = 1 + below(2 * option.every);
    while (count-- && world->calls < option.calls)
        one_call();
    opened(below(FILES)); /* a step without a change would not settle */
    do_write(below(FILES));
    check_all("before the commit");
}

/* --- commits --- */

static int sync_step(const char *name)
{
    char path[4096];
    snprintf(path, sizeof path, "%s/%s", option.mount, name);
    int fd = open(path, O_RDONLY | O_DIRECTORY), code = 0;
    if (fd < 0 || fsync(fd))
        code = errno;
    if (fd >= 0)
        close(fd);
    return code;
}

static bool is_committed(void)
{
    char path[4096], value[32];
    snprintf(path, sizeof path, "%s/7", option.mount);
    ssize_t n = getxattr(path, "user.ckpt.state", value, sizeof value);
    return n == 9 && memcmp(value, "committed", 9) == 0;
}

/* Stops the step from being committed, and the refusal must change nothing. */
static void refused_commit(void)
{
    int n = below(FILES);
    map_file(n);
    if (!world->files[n].map)
        return;
    close_file(n);
    note("sync, refused");
    int code = sync_step("7");
    if (code != EBUSY)
        fail("sync beside a mapping of %s: %s", file_names[n], strerror(code));
    world->refused++;
    do_map_write(n);
    check_all("after a refused commit");
}

static void commit(void)
{
    if (option.settle) {
        note("settle");
        for (int n = 0; !is_committed(); n++) {
            if (n > PATIENCE * 50)
                fail("the step did not settle within %d s", PATIENCE);
            usleep(20000);
        }
        return;
    }
    if (one_in(20))
        refused_commit();
    close_all();
    note("sync");
    int code;
    for (int n = 0; (code = sync_step("7")) == EBUSY && n < 20; n++) {
        world->busy++; /* the kernel tells late of what was closed */
        usleep(50000);
    }
    if (code)
        fail("sync: %s", strerror(code));
    if (!is_committed())
        fail("not committed after a sync");
}

/* Through the command, which knows nothing of this mount. */
static void check_command(int n)
{
    char command[8300];
    snprintf(command, sizeof command, "'%s' cat '%s' '7/%s'", option.program, option.root, file_names[n]);
    FILE *f = popen(command, "r");
    size_t got = f ? fread(buffer, 1, option.max, f) : 0;
    if (!f || pclose(f))
        fail("%s fails", command);
    if (got != world->files[n].size)
        fail("%s: %zu bytes instead of %zu", command, got, world->files[n].size);
    compare(n, "ckptfs cat", buffer, bytes[n], 0, got);
}

/* Another mount sees the new step within its refresh time. Until then it has the old one, whole. */
static void check_other(int n)
{
    char path[4096];
    struct stat st;
    snprintf(path, sizeof path, "%s/7/%s", option.other, file_names[n]);
    for (int k = 0; k < PATIENCE * 20; k++, usleep(50000)) {
        int fd = open(path, O_RDONLY);
        if (fd < 0)
            continue;
        ssize_t got = fstat(fd, &st) ? -1 : pread(fd, buffer, option.max, 0);
        close(fd);
        if (got == (ssize_t)world->files[n].size && memcmp(buffer, bytes[n], got) == 0)
            return;
    }
    fail("another mount does not see %s as it was committed within %d s", file_names[n], PATIENCE);
}

static void after_commit(void)
{
    world->commits++;
    check_all("after the commit");
    check_bases();
    for (int n = 0; n < FILES; n++) {
        struct file *f = &world->files[n];
        if (f->old_fd >= 0)
            close(f->old_fd);
        f->old_fd = f->exists ? open(path_of(n), O_RDONLY) : -1;
        f->old_size = f->size;
        memcpy(old_bytes[n], bytes[n], f->size);
        if (f->exists && option.program)
            check_command(n);
    }
    int n = below(FILES);
    if (option.other && world->files[n].exists && world->commits % 16 == 0)
        check_other(n);
}

static void batch_of_another_process(void)
{
    fflush(stdout);
    pid_t child = fork();
    if (child < 0)
        fail("fork: %m");
    if (child == 0) {
        batch();
        close_all();
        _exit(0);
    }
    int status;
    if (waitpid(child, &status, 0) < 0 || status != 0) {
        printf("the process that makes the changes ended with status %d at call %lu\n", status, world->calls);
        exit(1);
    }
}

/* --- the whole --- */

static void *shared(size_t size)
{
    void *p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED)
        exit(2);
    return p;
}

static void make_bases(void)
{
    char path[4096];
    snprintf(path, sizeof path, "%s/1", option.mount);
    if (mkdir(path, 0755))
        fail("mkdir of %s: %m", path);
    for (int b = 0; b < BASES; b++) {
        size_t size = world->base_size[b] = b == 2 ? 5000 : option.max - below(option.max / 4);
        for (size_t k = 0; k < size; k++)
            base_bytes[b][k] = b == 1 ? k / 1000 : next_random();
        snprintf(path, sizeof path, "%s/1/%s", option.mount, base_names[b]);
        int fd = open(path, O_WRONLY | O_CREAT, 0644);
        if (fd < 0 || write(fd, base_bytes[b], size) != (ssize_t)size || close(fd))
            fail("write of %s: %m", path);
    }
    int code = sync_step("1");
    if (code)
        fail("sync of 1: %s", strerror(code));
}

static void prepare(void)
{
    world = shared(sizeof *world);
    world->random = option.seed;
    for (int n = 0; n < FILES; n++) {
        bytes[n] = shared(option.max);
        old_bytes[n] = shared(option.max);
        world->files[n].fd = world->files[n].old_fd = -1;
    }
    for (int b = 0; b < BASES; b++)
        base_bytes[b] = shared(option.max);
    buffer = shared(option.max + BLOCK);
    make_bases();
}

static void usage(void)
{
    fprintf(stderr, "usage: fsx [-n CALLS] [-s SEED] [-l MAX_BYTES] [-c CALLS_BETWEEN_COMMITS] [-S] [-q]\n"
                    "           [-p CKPTFS -r ROOT] [-o OTHER_MOUNT] MOUNT\n"
                    "-S: the mount commits by itself, and each batch of changes is made by a process of its own\n");
    exit(2);
}

static void read_options(int argc, char **argv)
{
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    option.seed = (uint64_t)now.tv_nsec ^ (uint64_t)now.tv_sec << 20;
    for (int c; (c = getopt(argc, argv, "n:s:l:c:p:r:o:Sq")) != -1;) {
        switch (c) {
        case 'n':
            option.calls = strtoul(optarg, NULL, 10);
            break;
        case 's':
            option.seed = strtoull(optarg, NULL, 10);
            break;
        case 'l':
            option.max = strtoul(optarg, NULL, 10);
            break;
        case 'c':
            option.every = strtoul(optarg, NULL, 10);
            break;
        case 'p':
            option.program = optarg;
            break;
        case 'r':
            option.root = optarg;
            break;
        case 'o':
            option.other = optarg;
            break;
        case 'S':
            option.settle = true;
            break;
        case 'q':
            option.quiet = true;
            break;
        default:
            usage();
        }
    }
    if (optind + 1 != argc || option.max < 2 * BLOCK || !option.every || !option.program != !option.root)
        usage();
    option.mount = argv[optind];
}

int main(int argc, char **argv)
{
    read_options(argc, argv);
    printf("fsx: seed %llu, %lu calls\n", (unsigned long long)option.seed, option.calls);
    fflush(stdout);
    prepare();
    while (world->calls < option.calls) {
        option.settle ? batch_of_another_process() : batch();
        commit();
        after_commit();
        if (!option.quiet && world->commits % 100 == 0) {
            printf("fsx: %lu calls, %lu commits\n", world->calls, world->commits);
            fflush(stdout);
        }
    }
    printf("fsx: %lu calls, %lu commits, %lu refused, %lu tried again; not supported: O_DIRECT %lu, allocate %lu, keep "
           "size %lu, "
           "punch %lu, zero %lu, zero and keep size %lu\n",
           world->calls, world->commits, world->refused, world->busy, world->unsupported[8], world->unsupported[0],
           world->unsupported[1], world->unsupported[2], world->unsupported[3], world->unsupported[4]);
    return 0;
}
