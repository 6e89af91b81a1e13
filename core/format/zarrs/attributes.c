/* SPDX-License-Identifier: Apache-2.0 */
/* The attributes that users of Zarr give to arrays and groups: JSON, in .zattrs or as a member of zarr.json. */
#include "core/format/zarrs/zarrs_private.h"

#include "core/base/util.h"
#include "core/io/json.h"

#define MAX_ATTRIBUTES ((size_t)1 << 20) /* of what has them */

char *ckpt_zarrs_attributes(const struct ckpt_extent *e, bool version3)
{
    if (e->len > MAX_ATTRIBUTES)
        return NULL;
    CKPT_AUTOFREE char *text = malloc(e->len + 1);
    if (!text || ckpt_extent_read(e, text, e->len, 0) < 0)
        return NULL;
    CKPT_AUTOCJSON cJSON *root = ckpt_json_parse(text, e->len);
    const cJSON *attributes = version3 ? ckpt_json_get(root, "attributes") : root;
    bool any = cJSON_IsObject(attributes) && attributes->child;
    return any ? cJSON_PrintUnformatted(attributes) : NULL;
}
