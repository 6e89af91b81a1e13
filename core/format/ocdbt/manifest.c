/* SPDX-License-Identifier: Apache-2.0 */
/* From the bytes of a manifest to its newest version. */
#include "core/format/ocdbt/node.h"

#include "core/base/util.h"

#define ARITY_LOG2_MAX 16
#define NO_ROOT        UINT64_MAX

static void skip_varints(struct ckpt_ocdbt_reader *r, uint64_t count)
{
    for (uint64_t i = 0; i < count && !r->bad; i++)
        ckpt_ocdbt_varint(r, UINT64_MAX);
}

/* Returns the last of a column. */
static uint64_t last_varint(struct ckpt_ocdbt_reader *r, uint64_t count, uint64_t max)
{
    uint64_t last = 0;
    for (uint64_t i = 0; i < count && !r->bad; i++)
        last = ckpt_ocdbt_varint(r, max);
    return last;
}

/* All columns but for the last version only have to be there: nothing is ever read through the older ones. */
static int parse_versions(struct ckpt_ocdbt_reader *r, const struct ckpt_ocdbt_files *files, unsigned arity_log2,
                          struct ckpt_ocdbt_manifest *ret, struct ckpt_err *err)
{
    uint64_t n = ckpt_ocdbt_varint(r, (uint64_t)1 << ARITY_LOG2_MAX);
    if (r->bad || n == 0)
        return ckpt_fail(err, EUCLEAN, "the number of versions is out of range");
    uint64_t generation = 0;
    for (uint64_t i = 0; i < n && !r->bad; i++) {
        uint64_t next = ckpt_ocdbt_varint(r, UINT64_MAX);
        if (!r->bad && next <= generation)
            return ckpt_fail(err, EUCLEAN, "the generations of its versions do not rise");
        generation = next;
    }
    if (!r->bad && n > ((generation - 1) & (((uint64_t)1 << arity_log2) - 1)) + 1)
        return ckpt_fail(err, EUCLEAN, "%llu versions up to generation %llu", (unsigned long long)n,
                         (unsigned long long)generation);
    const uint8_t *height = ckpt_ocdbt_take(r, n);
    uint64_t file = last_varint(r, n, files->count ? files->count - 1 : 0);
    uint64_t off = last_varint(r, n, UINT64_MAX);
    uint64_t len = last_varint(r, n, UINT64_MAX);
    skip_varints(r, n * 3);    /* keys, tree bytes, value bytes */
    ckpt_ocdbt_take(r, n * 8); /* commit times */
    if (r->bad || !height)
        return ckpt_ocdbt_fail_short(err);
    if (off == NO_ROOT && len == NO_ROOT) {
        ret->empty = true;
        return 0;
    }
    uint64_t end;
    if (file >= files->count || !*ckpt_ocdbt_path(files, (uint32_t)file) || ckpt_add(off, len, &end) ||
        end > CKPT_OCDBT_OFFSET_MAX)
        return ckpt_fail(err, EUCLEAN, "its root lies nowhere (data file %llu, offset %llu)", (unsigned long long)file,
                         (unsigned long long)off);
    if (ckpt_ocdbt_ref_init(&ret->root, ckpt_ocdbt_path(files, (uint32_t)file), files->base[file], off, len,
                            height[n - 1], NULL, 0, NULL, 0) < 0)
        return ckpt_no_memory(err);
    return 0;
}

/* They lead to older versions only. */
static void skip_version_tree(struct ckpt_ocdbt_reader *r)
{
    uint64_t n = ckpt_ocdbt_varint(r, (uint64_t)(r->end - r->p));
    skip_varints(r, n * 5);    /* generation, file, offset, length, number of generations */
    ckpt_ocdbt_take(r, n * 8); /* commit times */
    ckpt_ocdbt_take(r, n);     /* heights */
}

static int parse_body(struct ckpt_ocdbt_reader *r, struct ckpt_ocdbt_manifest *ret, struct ckpt_err *err)
{
    ckpt_ocdbt_take(r, 16); /* uuid */
    unsigned kind = ckpt_ocdbt_u8(r);
    skip_varints(r, 2); /* limits that concern writers: inline values, decoded nodes */
    unsigned arity_log2 = ckpt_ocdbt_u8(r);
    uint64_t compression = ckpt_ocdbt_varint(r, UINT32_MAX);
    if (r->bad)
        return ckpt_ocdbt_fail_short(err);
    if (kind > 1)
        return ckpt_fail(err, EOPNOTSUPP, "manifest kind %u", kind);
    if (compression > 1)
        return ckpt_fail(err, EOPNOTSUPP, "compression method %llu", (unsigned long long)compression);
    if (arity_log2 < 1 || arity_log2 > ARITY_LOG2_MAX)
        return ckpt_fail(err, EUCLEAN, "version tree arity 2^%u", arity_log2);
    if (compression == 1)
        ckpt_ocdbt_take(r, 4); /* level */
    ret->numbered = kind == 1;
    if (!ret->numbered) {
        struct ckpt_ocdbt_files files = {0};
        int e = ckpt_ocdbt_files_parse(r, "", 0, &files, err);
        if (e == 0)
            e = parse_versions(r, &files, arity_log2, ret, err);
        ckpt_ocdbt_files_clear(&files);
        if (e < 0)
            return e;
        skip_version_tree(r);
    }
    if (r->bad)
        return ckpt_ocdbt_fail_short(err);
    if (r->p != r->end)
        return ckpt_fail(err, EUCLEAN, "%zu bytes are left over in the manifest", (size_t)(r->end - r->p));
    return 0;
}

int ckpt_ocdbt_manifest_parse(const uint8_t *data, size_t len, struct ckpt_ocdbt_manifest *ret, struct ckpt_err *err)
{
    CKPT_AUTOFREE uint8_t *body = NULL;
    size_t body_len;
    struct ckpt_ocdbt_manifest manifest = {0};
    int e = ckpt_ocdbt_envelope(data, len, CKPT_OCDBT_MANIFEST, &body, &body_len, err);
    if (e < 0)
        return e;
    struct ckpt_ocdbt_reader r = {body, body + body_len, false};
    e = parse_body(&r, &manifest, err);
    if (e < 0) {
        ckpt_ocdbt_ref_clear(&manifest.root);
        return e;
    }
    *ret = manifest;
    return 0;
}
