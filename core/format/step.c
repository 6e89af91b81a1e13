/* SPDX-License-Identifier: Apache-2.0 */
#include "core/format/step.h"

#include <ctype.h>
#include <stdlib.h>
#include <string.h>

bool ckpt_step_number(const char *name, bool any, double *ret)
{
    const char *p = strrchr(name, '_');
    if (p == name)
        return false;
    p = p ? p + 1 : name;
    size_t n = strspn(p, "0123456789");
    if (any) {
        const char *q = p + (*p == '-' || *p == '+');
        n = strspn(q, "0123456789");
        if (!n)
            return false;
        q += n;
        if (*q == '.')
            q += 1 + strspn(q + 1, "0123456789");
        if (*q == 'e' || *q == 'E') {
            q += 1 + (q[1] == '-' || q[1] == '+');
            if (!isdigit((unsigned char)*q))
                return false;
            q += strspn(q, "0123456789");
        }
        if (*q)
            return false;
    } else if (!n || p[n])
        return false;
    *ret = strtod(p, NULL);
    return true;
}
