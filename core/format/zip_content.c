/* SPDX-License-Identifier: Apache-2.0 */
#include "core/format/zip_content.h"

#include "core/base/log.h"
#include "core/base/util.h"

struct content_file {
    struct ckpt_file base;
    struct ckpt_zip *zip;
    uint32_t member;
    struct ckpt_cache *cache;
    struct ckpt_chunk_key key;
};

static int locate(void *arg, const struct ckpt_chunk_key *key, struct ckpt_chunk_source *ret, struct ckpt_err *err)
{
    struct content_file *f = arg;
    ret->size = f->base.st.size;
    ret->dtype = CKPT_DT_OTHER;
    return ckpt_zip_payload(f->zip, f->member, &ret->extent, &ret->codecs, err);
}

static ssize_t content_read(struct ckpt_file *base, void *buf, size_t len, uint64_t off)
{
    struct content_file *f = (struct content_file *)base;
    struct ckpt_chunk *chunk;
    if (off >= base->st.size)
        return 0;
    len = (size_t)CKPT_MIN((uint64_t)len, base->st.size - off);
    struct ckpt_err err = {0};
    int r = ckpt_cache_get(f->cache, &f->key, locate, f, &chunk, &err);
    if (r == 0) {
        /* The rest is decoded ahead: it would be needed to come to anything that lies behind, and to the checksum. */
        r = ckpt_chunk_read(f->cache, chunk, buf, len, off, true, &err);
        ckpt_chunk_put(f->cache, chunk);
    }
    if (r < 0) /* the reader gets a number only */
        ckpt_log(CKPT_LOG_WARN, "%s: %s", ckpt_zip_member(f->zip, f->member).name,
                 err.code == -r ? err.text : strerror(-r));
    return r < 0 ? r : (ssize_t)len;
}

static void content_close(struct ckpt_file *base)
{
    ckpt_zip_unref(((struct content_file *)base)->zip);
    free(base);
}

static const struct ckpt_file_ops content_ops;

int ckpt_zip_content(struct ckpt_zip *z, uint32_t i, struct ckpt_cache *cache, const struct ckpt_chunk_key *key,
                     struct ckpt_extent *ret, struct ckpt_err *err)
{
    struct ckpt_zip_member m = ckpt_zip_member(z, i);
    struct ckpt_codec_chain chain;
    if (!m.deflated)
        return ckpt_zip_payload(z, i, ret, &chain, err);
    struct content_file *f = calloc(1, sizeof *f);
    if (!f)
        return ckpt_no_memory(err);
    atomic_init(&f->base.refs, 1);
    f->base.ops = &content_ops;
    f->base.st = (struct ckpt_stat){.type = CKPT_FT_FILE, .size = m.size};
    f->zip = ckpt_zip_ref(z);
    f->member = i;
    f->cache = cache;
    f->key = *key;
    *ret = (struct ckpt_extent){.file = &f->base, .len = m.size};
    return 0;
}

static const struct ckpt_file_ops content_ops = {
    .name = "deflated member",
    .derived = true,
    .read = content_read,
    .close = content_close,
};
