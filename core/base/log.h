/* SPDX-License-Identifier: Apache-2.0 */
/* The log: one line an event, to stderr or to the system's log. The level is the process's only global. */
#ifndef CKPT_BASE_LOG_H
#define CKPT_BASE_LOG_H

#include <stdbool.h>
#include <stdint.h>

enum ckpt_log_level { CKPT_LOG_ERROR, CKPT_LOG_WARN, CKPT_LOG_INFO, CKPT_LOG_DEBUG, CKPT_LOG_LEVELS };

void ckpt_log_setup(enum ckpt_log_level level, int to_syslog);
void ckpt_log(enum ckpt_log_level level, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* Of what users may cause again and again: once a minute for each of them, and once a second in all. */
struct ckpt_log_limit {
    uint32_t key;
    int64_t ns;
};
bool ckpt_log_again(struct ckpt_log_limit *limit, uint32_t key);

#endif
