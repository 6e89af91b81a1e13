/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Private to the manifest: its lines. JSON in memory, read by hand: numbers have all their 64 bits, and a line takes a
 * microsecond, which matters when there are a million. One thread a scan.
 */
#ifndef CKPT_OBJECT_RECORD_H
#define CKPT_OBJECT_RECORD_H

#include "core/base/buf.h"
#include "core/object/manifest.h"

/* What is left of a line. */
struct ckpt_scan {
    const char *p, *end;
    struct ckpt_err *err;
};

int ckpt_scan_fail(struct ckpt_scan *s, const char *what); /* -EUCLEAN */
/* Take a character, after white space; false: another one comes. */
bool ckpt_scan_take(struct ckpt_scan *s, char c);
/* The next member's name in *key (cleared first), up to its colon: 1, or 0 at the object's end. *first is true before
 * the first one. */
int ckpt_scan_member(struct ckpt_scan *s, bool *first, struct ckpt_buf *key) CKPT_MUST_USE;
/* A string as bytes (ret is cleared first, and NUL-terminated). \u0000 and what is not UTF-8 are refused. */
int ckpt_scan_string(struct ckpt_scan *s, struct ckpt_buf *ret) CKPT_MUST_USE;
int ckpt_scan_u64(struct ckpt_scan *s, uint64_t max, uint64_t *ret) CKPT_MUST_USE;
int ckpt_scan_i64(struct ckpt_scan *s, int64_t *ret) CKPT_MUST_USE;
int ckpt_scan_bool(struct ckpt_scan *s, bool *ret) CKPT_MUST_USE;
/* Any value; its text goes to *text without white space (may be NULL). */
int ckpt_scan_value(struct ckpt_scan *s, struct ckpt_buf *text) CKPT_MUST_USE;

/* One node from its record, all of the line: of the top (which has neither parent nor name nor kind), or of another
 * one. */
int ckpt_record_parse(struct ckpt_scan *s, bool top, struct ckpt_manifest_node *ret) CKPT_MUST_USE;
/* Appends it, without a comma or newline. -EINVAL for a node that could not be read again. */
int ckpt_record_print(struct ckpt_buf *buf, const struct ckpt_manifest_node *n, bool top) CKPT_MUST_USE;

/* "name":... or "name_hex":..., as it must. */
void ckpt_record_add_name(struct ckpt_buf *buf, const char *name);
/* The bytes of pairs of lower-case digits, NUL-terminated; a NUL among them is refused. */
int ckpt_record_unhex(struct ckpt_scan *s, const struct ckpt_buf *hex, char **ret) CKPT_MUST_USE;

#endif
