/* SPDX-License-Identifier: Apache-2.0 */
#include "core/format/step.h"

#include <ctype.h>
#include <stdlib.h>
#include <string.h>

#define DIGITS "0123456789"

size_t ckpt_step_prefix(const char *name)
{
    size_t n = strlen(name);
    while (n && isdigit((unsigned char)name[n - 1]))
        n--;
    return n;
}

/* A '-' may belong to the number: "checkpoint_-5", "lr=-1", "1e-5". */
static bool is_minus(const char *name, const char *at)
{
    if (*at != '-' || at == name)
        return false;
    bool is_sign = strchr("_=-", at[-1]) != NULL;
    bool is_exponent = (at[-1] == 'e' || at[-1] == 'E') && at - name > 1 && isdigit((unsigned char)at[-2]);
    return is_sign || is_exponent;
}

static bool number_behind_prefix(const char *name, double *ret)
{
    size_t prefix = ckpt_step_prefix(name);
    const char *digits = name + prefix;
    if (!*digits || strchr(name, '.'))
        return false;
    bool is_separated = !prefix || (prefix > 1 && strchr("_-=", digits[-1]) && !is_minus(name, digits - 1));
    if (!is_separated)
        return false;
    *ret = strtod(digits, NULL);
    return true;
}

static bool number_of_flax(const char *name, double *ret)
{
    const char *p = strrchr(name, '_');
    if (p == name)
        return false;
    p = p ? p + 1 : name;
    const char *q = p + (*p == '-' || *p == '+');
    size_t n = strspn(q, DIGITS);
    if (!n)
        return false;
    q += n;
    if (*q == '.')
        q += 1 + strspn(q + 1, DIGITS);
    if (*q == 'e' || *q == 'E') {
        q += 1 + (q[1] == '-' || q[1] == '+');
        if (!isdigit((unsigned char)*q))
            return false;
        q += strspn(q, DIGITS);
    }
    if (*q)
        return false;
    *ret = strtod(p, NULL);
    return true;
}

bool ckpt_step_number(const char *name, bool any, double *ret)
{
    return number_behind_prefix(name, ret) || (any && number_of_flax(name, ret));
}

bool ckpt_step_number_glued(const char *name, double *ret)
{
    size_t prefix = ckpt_step_prefix(name);
    if (!prefix || !name[prefix] || strchr(name, '.') || !isalpha((unsigned char)name[prefix - 1]))
        return false;
    *ret = strtod(name + prefix, NULL);
    return true;
}

bool ckpt_step_is_plain(const char *name)
{
    double number;
    size_t prefix = ckpt_step_prefix(name);
    return number_behind_prefix(name, &number) && (!prefix || name[prefix - 1] == '_');
}
