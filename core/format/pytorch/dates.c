/* SPDX-License-Identifier: Apache-2.0 */
#include "core/format/pytorch/dates.h"

#define MAX_DAYS 999999999 /* Python's */
#define MICROS   INT64_C(1000000)
#define DAY      (86400 * MICROS)

/* (days, seconds, microseconds) in microseconds and days. */
static bool read_delta(const struct torch_graph *g, torch_value delta, int64_t *ret_days, int64_t *ret_micros)
{
    int64_t part[3];
    torch_value args = ckpt_torch_args(g, delta);
    for (uint32_t i = 0; i < 3; i++) {
        torch_value v = ckpt_torch_item(g, args, i);
        if (ckpt_torch_kind(g, v) != TORCH_INT || !ckpt_torch_int(g, v, &part[i]))
            return false;
        if (part[i] > 1000 * (int64_t)MAX_DAYS || part[i] < -1000 * (int64_t)MAX_DAYS)
            return false;
    }
    int64_t micros = part[1] % 86400 * MICROS + part[2];
    *ret_days = part[0] + part[1] / 86400 + micros / DAY;
    *ret_micros = micros % DAY;
    if (*ret_micros < 0) {
        *ret_micros += DAY;
        --*ret_days;
    }
    return *ret_days >= -MAX_DAYS && *ret_days <= MAX_DAYS;
}

/* As much of H:MM:SS.ffffff as is not zero, at least H:MM or, with `seconds`, H:MM:SS. */
static void add_clock(struct ckpt_buf *buf, int hour_digits, int64_t micros, bool seconds)
{
    int64_t all = micros / MICROS, rest = micros % MICROS;
    ckpt_buf_addf(buf, "%0*d", hour_digits, (int)(all / 3600));
    ckpt_buf_addf(buf, ":%02d", (int)(all / 60 % 60));
    if (seconds || all % 60 || rest)
        ckpt_buf_addf(buf, ":%02d", (int)(all % 60));
    if (rest)
        ckpt_buf_addf(buf, ".%06d", (int)rest);
}

static bool add_delta(const struct torch_graph *g, torch_value v, struct ckpt_buf *buf)
{
    int64_t days, micros;
    if (!read_delta(g, v, &days, &micros))
        return false;
    if (days)
        ckpt_buf_addf(buf, "%d day%s, ", (int)days, days == 1 || days == -1 ? "" : "s");
    add_clock(buf, 1, micros, true);
    return true;
}

/* +01:00 */
static bool add_offset(const struct torch_graph *g, torch_value zone, struct ckpt_buf *buf)
{
    int64_t days, micros;
    if (!read_delta(g, ckpt_torch_item(g, ckpt_torch_args(g, zone), 0), &days, &micros) || days < -1 || days > 0)
        return false;
    ckpt_buf_addc(buf, days < 0 ? '-' : '+');
    add_clock(buf, 2, days < 0 ? DAY - micros : micros, false);
    return true;
}

static bool add_zone(const struct torch_graph *g, torch_value v, struct ckpt_buf *buf)
{
    int64_t days, micros;
    if (!read_delta(g, ckpt_torch_item(g, ckpt_torch_args(g, v), 0), &days, &micros))
        return false;
    ckpt_buf_adds(buf, "UTC");
    return (!days && !micros) || add_offset(g, v, buf);
}

/* The first bit of a month is no part of it: it tells the second of two equal hours. */
static bool add_day(const uint8_t *p, struct ckpt_buf *buf)
{
    unsigned year = p[0] << 8u | p[1], month = p[2] & 0x7f, day = p[3];
    if (!year || year > 9999 || !month || month > 12 || !day || day > 31)
        return false;
    ckpt_buf_addf(buf, "%04u-%02u-%02u", year, month, day);
    return true;
}

static bool add_time(const uint8_t *p, struct ckpt_buf *buf)
{
    unsigned hour = p[0] & 0x7f, minute = p[1], second = p[2], micros = (unsigned)p[3] << 16 | p[4] << 8u | p[5];
    if (hour > 23 || minute > 59 || second > 59 || micros >= MICROS)
        return false;
    add_clock(buf, 2, (int64_t)(hour * 3600 + minute * 60 + second) * MICROS + micros, true);
    return true;
}

static bool add_moment(const struct ckpt_buf *data, enum torch_meaning meaning, struct ckpt_buf *buf)
{
    const uint8_t *p = data->data;
    switch (meaning) {
    case TORCH_IS_DATE:
        return data->len == 4 && add_day(p, buf);
    case TORCH_IS_TIME:
        return data->len == 6 && add_time(p, buf);
    default:
        if (data->len != 10 || !add_day(p, buf))
            return false;
        ckpt_buf_addc(buf, 'T');
        return add_time(p + 4, buf);
    }
}

bool ckpt_torch_add_date(const struct torch_graph *g, torch_value v, const struct ckpt_buf *data, struct ckpt_buf *buf)
{
    torch_value args = ckpt_torch_args(g, v);
    enum torch_meaning meaning = ckpt_torch_global_of(g, v)->meaning;
    if (meaning == TORCH_IS_TIMEDELTA)
        return add_delta(g, v, buf);
    if (meaning == TORCH_IS_TIMEZONE)
        return add_zone(g, v, buf);
    if (!add_moment(data, meaning, buf))
        return false;
    return ckpt_torch_count(g, args) < 2 || add_offset(g, ckpt_torch_item(g, args, 1), buf);
}
