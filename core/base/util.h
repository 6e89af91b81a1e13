/* SPDX-License-Identifier: Apache-2.0 */
/* Scope cleanup, checked arithmetic, little-endian access, clocks, small helpers. */
#ifndef CKPT_BASE_UTIL_H
#define CKPT_BASE_UTIL_H

#include <errno.h>
#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static inline void ckpt_cleanup_free(void *p)
{
    free(*(void **)p);
}
static inline void ckpt_cleanup_fd(int *fd)
{
    if (*fd >= 0)
        close(*fd);
}
static inline void ckpt_cleanup_unlock(pthread_mutex_t **m)
{
    if (*m)
        pthread_mutex_unlock(*m);
}
static inline pthread_mutex_t *ckpt_lock(pthread_mutex_t *m)
{
    pthread_mutex_lock(m);
    return m;
}

#define CKPT_AUTOFREE __attribute__((cleanup(ckpt_cleanup_free)))
#define CKPT_AUTOFD   __attribute__((cleanup(ckpt_cleanup_fd)))
/* Holds a mutex to the end of the scope. */
#define CKPT_GUARD(m)          CKPT_GUARD_NAMED(m, __LINE__)
#define CKPT_GUARD_NAMED(m, n) CKPT_GUARD_NAMED2(m, n)
#define CKPT_GUARD_NAMED2(m, n)                                                                                        \
    __attribute__((cleanup(ckpt_cleanup_unlock), unused)) pthread_mutex_t *guard_##n = ckpt_lock(m)

/* Take a pointer out of a variable that would be cleaned up. */
#define CKPT_STEAL(p)                                                                                                  \
    ({                                                                                                                 \
        __auto_type steal_ = (p);                                                                                      \
        (p) = NULL;                                                                                                    \
        steal_;                                                                                                        \
    })
/* The same of a descriptor. */
#define CKPT_STEAL_FD(fd)                                                                                              \
    ({                                                                                                                 \
        int steal_ = (fd);                                                                                             \
        (fd) = -1;                                                                                                     \
        steal_;                                                                                                        \
    })

#define CKPT_MIN(a, b)                                                                                                 \
    ({                                                                                                                 \
        __auto_type min_a_ = (a);                                                                                      \
        __auto_type min_b_ = (b);                                                                                      \
        min_a_ < min_b_ ? min_a_ : min_b_;                                                                             \
    })
#define CKPT_MAX(a, b)                                                                                                 \
    ({                                                                                                                 \
        __auto_type max_a_ = (a);                                                                                      \
        __auto_type max_b_ = (b);                                                                                      \
        max_a_ > max_b_ ? max_a_ : max_b_;                                                                             \
    })

/* True if the last part of a path ends so, and is more than that. */
static inline bool ckpt_has_suffix(const char *path, const char *suffix)
{
    size_t n = strlen(path), len = strlen(suffix);
    return n > len && path[n - len - 1] != '/' && !strcmp(path + n - len, suffix);
}

/* In ASCII, whatever the locale. */
static inline bool ckpt_is_digit(int c)
{
    return c >= '0' && c <= '9';
}

/* True on overflow, like the builtins. */
static inline bool ckpt_mul(uint64_t a, uint64_t b, uint64_t *ret)
{
    return __builtin_mul_overflow(a, b, ret);
}
static inline bool ckpt_add(uint64_t a, uint64_t b, uint64_t *ret)
{
    return __builtin_add_overflow(a, b, ret);
}

static inline uint16_t ckpt_le16(const void *p)
{
    uint16_t v;
    memcpy(&v, p, sizeof v);
    return v;
}
static inline uint32_t ckpt_le32(const void *p)
{
    uint32_t v;
    memcpy(&v, p, sizeof v);
    return v;
}
static inline uint64_t ckpt_le64(const void *p)
{
    uint64_t v;
    memcpy(&v, p, sizeof v);
    return v;
}

#define CKPT_SECOND_NS 1000000000ll

static inline int64_t ckpt_timespec_ns(const struct timespec *ts)
{
    return ts->tv_sec * CKPT_SECOND_NS + ts->tv_nsec;
}
static inline struct timespec ckpt_timespec(int64_t ns)
{
    struct timespec ts = {.tv_sec = ns / CKPT_SECOND_NS, .tv_nsec = ns % CKPT_SECOND_NS};
    if (ts.tv_nsec < 0) { /* before 1970; the nanoseconds count forwards all the same */
        ts.tv_nsec += CKPT_SECOND_NS;
        ts.tv_sec--;
    }
    return ts;
}
static inline int64_t ckpt_clock_ns(clockid_t clock)
{
    struct timespec ts;
    clock_gettime(clock, &ts);
    return ckpt_timespec_ns(&ts);
}
static inline int64_t ckpt_realtime_ns(void) /* since 1970 */
{
    return ckpt_clock_ns(CLOCK_REALTIME);
}
static inline int64_t ckpt_monotonic_ns(void)
{
    return ckpt_clock_ns(CLOCK_MONOTONIC);
}

/* Spreads the bits of a number over all of the result: the end of a hash. */
static inline uint64_t ckpt_mix(uint64_t h)
{
    h = (h ^ h >> 30) * 0xbf58476d1ce4e5b9;
    h = (h ^ h >> 27) * 0x94d049bb133111eb;
    return h ^ h >> 31;
}

static inline bool ckpt_has_bit(const uint64_t *bits, uint32_t number)
{
    return bits[number / 64] >> number % 64 & 1;
}
static inline void ckpt_set_bit(uint64_t *bits, uint32_t number)
{
    bits[number / 64] |= (uint64_t)1 << number % 64;
}

/* The result of a getxattr or listxattr call whose answer is known: its length, copied where there is room; len 0 asks
 * for it alone. */
static inline ssize_t ckpt_give_xattr(const void *value, size_t n, char *buf, size_t len)
{
    if (len && n > len)
        return -ERANGE;
    if (len && n)
        memcpy(buf, value, n);
    return (ssize_t)n;
}

/* Bytes read, fewer than len only at the end of the file; or a negative errno. */
static inline ssize_t ckpt_pread(int fd, void *buf, size_t len, uint64_t off)
{
    size_t done = 0;
    while (done < len) {
        ssize_t n = pread(fd, (char *)buf + done, len - done, (off_t)(off + done));
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return -errno;
        if (n == 0)
            break;
        done += (size_t)n;
    }
    return (ssize_t)done;
}

/* All of it: 0, or a negative errno. For files that are nobody's data; those of a store are written by core/io/disk.h.
 */
static inline int ckpt_pwrite(int fd, const void *buf, size_t len, uint64_t off)
{
    for (size_t done = 0; done < len;) {
        ssize_t n = pwrite(fd, (const char *)buf + done, len - done, (off_t)(off + done));
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return -errno;
        done += (size_t)n;
    }
    return 0;
}

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "ckptfs is written for little-endian machines");

#endif
