/* SPDX-License-Identifier: Apache-2.0 */
/* Input: a JSON file. Its members are taken one by one, with their text and without. */
#include "core/base/util.h"
#include "core/io/json.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* The members of an object, or the elements of an array, down to `depth`; the values of the last as text. */
static int walk(struct ckpt_json_reader *json, bool keep, unsigned depth)
{
    struct ckpt_buf key = {.max = 4096}, text = {.max = 1 << 16};
    bool object = ckpt_json_peek(json) == '{';
    int r = object ? ckpt_json_enter_object(json, NULL) : ckpt_json_enter_array(json, NULL);
    while (r == 0 && (r = object ? ckpt_json_member(json, &key, NULL) : ckpt_json_element(json, NULL)) == 1) {
        int c = ckpt_json_peek(json);
        if (depth && (c == '{' || c == '['))
            r = walk(json, keep, depth - 1);
        else
            r = ckpt_json_value(json, keep ? &text : NULL, NULL);
        if (r == 0 && keep && text.len)
            cJSON_Delete(ckpt_json_parse((char *)text.data, text.len));
        text.len = 0;
    }
    ckpt_buf_clear(&key);
    ckpt_buf_clear(&text);
    return r;
}

static int walk_file(struct ckpt_file *f, bool keep, unsigned depth)
{
    struct ckpt_json_reader *json;
    if (ckpt_json_open(f, &json) < 0)
        abort();
    int r = walk(json, keep, depth);
    if (r == 0)
        r = ckpt_json_end(json, NULL);
    ckpt_json_close(json);
    return r;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct ckpt_backend *b = ckpt_backend_new_memory();
    struct ckpt_file *f;
    if (!b || ckpt_backend_memory_add(b, "f", data, size) < 0 || ckpt_backend_open(b, "f", &f) < 0)
        abort();
    for (unsigned depth = 0; depth < 3; depth += 2)
        if (walk_file(f, true, depth) == 0 && walk_file(f, false, depth) < 0)
            abort(); /* what can be read can be stepped over */
    cJSON *item = ckpt_json_parse((const char *)data, size);
    cJSON_Delete(item);
    ckpt_file_unref(f);
    ckpt_backend_unref(b);
    return 0;
}
