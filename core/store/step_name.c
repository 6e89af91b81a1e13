/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Names of steps of a store. Version 0.1.0 had another rule than this one: what it named is a step still, though none
 * is given such a name any more; and what it would not know is given a name in a store only that it does not open
 * (fence.c).
 */
#include "core/store/internal.h"

#include "core/base/util.h"
#include "core/format/step.h"

#include <stdio.h>

static bool fits(const char *name)
{
    return strlen(name) <= CKPT_STEP_NAME && !strchr(name, '/');
}

/* What version 0.1.0 takes for a step's name: digits, or any prefix, '_' and digits. */
static bool is_plain_name(const char *name, double *ret_number)
{
    const char *p = strrchr(name, '_');
    if (p == name)
        return false;
    p = p ? p + 1 : name;
    if (!*p || p[strspn(p, "0123456789")])
        return false;
    *ret_number = strtod(p, NULL);
    return true;
}

bool ckpt_step_name(const char *name, double *ret_number)
{
    double number;
    if (!fits(name) || !ckpt_step_number(name, false, &number))
        return false;
    if (ret_number)
        *ret_number = number;
    return true;
}

bool ckpt_step_is_stored(const char *name, double *ret_number)
{
    double number;
    if (ckpt_step_name(name, ret_number))
        return true;
    if (!fits(name) || !is_plain_name(name, &number))
        return false;
    if (ret_number)
        *ret_number = number;
    return true;
}

bool ckpt_step_needs_mark(const char *name)
{
    double number;
    return !is_plain_name(name, &number);
}

bool ckpt_step_of_file(const char *file, char ret[CKPT_STEP_NAME + 1], double *ret_number)
{
    size_t n = strlen(file);
    if (n < 6 || n - 5 > CKPT_STEP_NAME || strcmp(file + n - 5, ".json") != 0)
        return false;
    snprintf(ret, CKPT_STEP_NAME + 1, "%.*s", (int)(n - 5), file);
    return ckpt_step_is_stored(ret, ret_number);
}
