/* SPDX-License-Identifier: Apache-2.0 */
#include "core/base/log.h"

#include "core/base/util.h"

#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <syslog.h>

static atomic_int log_level = CKPT_LOG_INFO;
static atomic_int log_syslog;

void ckpt_log_setup(enum ckpt_log_level level, int to_syslog)
{
    atomic_store(&log_level, (int)level);
    atomic_store(&log_syslog, to_syslog);
    if (to_syslog)
        openlog("ckptfs", LOG_PID, LOG_DAEMON);
}

void ckpt_log(enum ckpt_log_level level, const char *fmt, ...)
{
    static const int priority[CKPT_LOG_LEVELS] = {LOG_ERR, LOG_WARNING, LOG_INFO, LOG_DEBUG};
    static const char *const name[CKPT_LOG_LEVELS] = {"error", "warning", "info", "debug"};
    if ((int)level > atomic_load_explicit(&log_level, memory_order_relaxed))
        return;
    char line[1024];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(line, sizeof line, fmt, ap);
    va_end(ap);
    for (char *p = line; *p; p++) /* names come from disk: a line stays a line */
        if ((unsigned char)*p < 0x20 || *p == 0x7f)
            *p = '?';
    if (atomic_load_explicit(&log_syslog, memory_order_relaxed))
        syslog(priority[level], "%s", line);
    else
        fprintf(stderr, "ckptfs: %s: %s\n", name[level], line);
}

bool ckpt_log_again(struct ckpt_log_limit *limit, uint32_t key)
{
    const int64_t second = 1000000000;
    int64_t now = ckpt_monotonic_ns(), since = now - limit->ns;
    if (limit->ns && since < (key == limit->key ? 60 : 1) * second)
        return false;
    *limit = (struct ckpt_log_limit){key, now};
    return true;
}
