/* SPDX-License-Identifier: Apache-2.0 */
#include "core/format/safetensors/index.h"

#include "core/base/util.h"
#include "core/format/safetensors/header.h"

#define WINDOW ((size_t)256 << 10)

/* Not a path: what it names lies in the folder itself. */
static bool is_plain(const struct ckpt_buf *name)
{
    const char *p = (char *)name->data;
    bool is_text = name->len > 1 && strlen(p) == name->len - 1; /* without a NUL in it */
    if (!is_text || strpbrk(p, "/\\"))
        return false;
    return strcmp(p, ".") != 0 && strcmp(p, "..") != 0;
}

static int take_entry(struct tokens *t, struct ckpt_buf *tensor, struct ckpt_buf *shard)
{
    tensor->len = shard->len = 0;
    int r = ckpt_tokens_string(t, tensor);
    if (r == 0 && ckpt_buf_error(tensor))
        return ckpt_fail(t->err, ckpt_buf_error(tensor) == -ENOMEM ? ENOMEM : EOPNOTSUPP,
                         "the name of a tensor is longer than %zu bytes", SAFETENSORS_MAX_NAME);
    if (r == 0)
        r = ckpt_tokens_take(t, ':');
    if (r == 0 && ckpt_tokens_peek(t) != '"')
        return ckpt_tokens_fail(t, "the name of a shard is missing");
    if (r == 0)
        r = ckpt_tokens_string(t, shard);
    ckpt_buf_addc(shard, 0);
    if (r == 0 && (ckpt_buf_error(shard) || !is_plain(shard)))
        return ckpt_fail(t->err, EUCLEAN, "a shard is not the name of a file in this folder");
    return r;
}

static int take_map(struct tokens *t, safetensors_index_visit *visit, void *arg)
{
    struct ckpt_buf tensor = {.max = SAFETENSORS_MAX_NAME}, shard = {.max = 256};
    bool first = true;
    int r = ckpt_tokens_take(t, '{');
    while (r == 0) {
        r = ckpt_tokens_more(t, '}', &first);
        if (r != 1)
            break;
        r = take_entry(t, &tensor, &shard);
        if (r == 0)
            r = visit(arg, &tensor, (char *)shard.data);
    }
    ckpt_buf_clear(&tensor);
    ckpt_buf_clear(&shard);
    return r;
}

int ckpt_safetensors_index_each(struct ckpt_file *file, safetensors_index_visit *visit, void *arg,
                                struct ckpt_buf *metadata, struct ckpt_err *err)
{
    if (file->st.size > SAFETENSORS_MAX_HEADER)
        return ckpt_fail(err, EUCLEAN, "an index of %llu bytes: more than %llu", (unsigned long long)file->st.size,
                         (unsigned long long)SAFETENSORS_MAX_HEADER);
    CKPT_AUTOFREE uint8_t *window = malloc(WINDOW);
    if (!window)
        return ckpt_no_memory(err);
    struct tokens t = {.file = file, .end = file->st.size, .window = window, .size = WINDOW, .err = err};
    struct ckpt_buf key = {.max = 64};
    bool first = true, has_map = false, has_metadata = false;
    int r = ckpt_tokens_take(&t, '{');
    while (r == 0 && (r = ckpt_tokens_more(&t, '}', &first)) == 1) {
        key.len = 0;
        key.error = 0;
        r = ckpt_tokens_string(&t, &key);
        if (r == 0)
            r = ckpt_tokens_take(&t, ':');
        if (r < 0)
            break;
        if (key.len == 10 && !memcmp(key.data, "weight_map", 10)) {
            r = has_map ? ckpt_tokens_fail(&t, "weight_map is there twice") : take_map(&t, visit, arg);
            has_map = true;
        } else if (key.len == 8 && !memcmp(key.data, "metadata", 8)) {
            bool object = ckpt_tokens_peek(&t) == '{';
            r = has_metadata ? ckpt_tokens_fail(&t, "metadata is there twice")
                             : ckpt_tokens_value(&t, object ? metadata : NULL);
            has_metadata = true;
        } else
            r = ckpt_tokens_value(&t, NULL);
    }
    ckpt_buf_clear(&key);
    if (r == 0)
        r = ckpt_tokens_end(&t);
    return r == 0 && !has_map ? ckpt_fail(err, EUCLEAN, "it has no weight_map") : r;
}
