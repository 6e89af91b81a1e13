/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Large JSON files piece by piece: walks the members of an object (or the elements of an array) and hands each value on
 * as text, so that memory depends on the largest member only. The text of a value is then for cJSON. One thread.
 */
#ifndef CKPT_IO_JSON_H
#define CKPT_IO_JSON_H

#include "core/base/buf.h"
#include "core/io/backend.h"

#include <cjson/cJSON.h>

struct ckpt_json_reader;

int ckpt_json_open(struct ckpt_file *file, struct ckpt_json_reader **ret); /* file is borrowed */
void ckpt_json_close(struct ckpt_json_reader *r);
/* Go on at a byte of the file. */
void ckpt_json_seek(struct ckpt_json_reader *r, uint64_t off);

/* Enter the object or array that comes next. -EUCLEAN if something else comes. */
int ckpt_json_enter_object(struct ckpt_json_reader *r, struct ckpt_err *err) CKPT_MUST_USE;
int ckpt_json_enter_array(struct ckpt_json_reader *r, struct ckpt_err *err) CKPT_MUST_USE;
/* The next member's key, decoded, in *key (cleared first): 1, or 0 at the object's end, which is then left. */
int ckpt_json_member(struct ckpt_json_reader *r, struct ckpt_buf *key, struct ckpt_err *err) CKPT_MUST_USE;
/* 1 if the array has another element, or 0 at its end, which is then left. */
int ckpt_json_element(struct ckpt_json_reader *r, struct ckpt_err *err) CKPT_MUST_USE;
/* The first character of the value that comes, not taken. */
int ckpt_json_peek(struct ckpt_json_reader *r);
/* Take the value that comes: its text in *text (cleared first; at most text->max bytes), or nowhere when text is NULL.
 */
int ckpt_json_value(struct ckpt_json_reader *r, struct ckpt_buf *text, struct ckpt_err *err) CKPT_MUST_USE;
/* Nothing but white space may follow. */
int ckpt_json_end(struct ckpt_json_reader *r, struct ckpt_err *err) CKPT_MUST_USE;

/* cJSON's parse of one text, NULL for anything that is not exactly one value, or that holds \u0000, which cJSON would
 * cut strings at. */
cJSON *ckpt_json_parse(const char *text, size_t len);

/* Of what Python's json writes and cJSON does not take make something like it, in the metadata of a leaf: only its
 * value has that, for those who ask for the rest. NUL-terminated. */
void ckpt_json_tame(char *text);

static inline void ckpt_cleanup_cjson(cJSON **item)
{
    cJSON_Delete(*item);
}
/* Deletes a tree of cJSON at the end of its scope. */
#define CKPT_AUTOCJSON __attribute__((cleanup(ckpt_cleanup_cjson)))
/* A member of an object, or NULL. */
const cJSON *ckpt_json_get(const cJSON *object, const char *key);
/* A whole number from 0 to 2^53. */
bool ckpt_json_u64(const cJSON *item, uint64_t *ret);

#endif
