/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Keys as file names. A key is any bytes; a name is at most 255 bytes, without '/', and neither "." nor "..".
 * The way back is by looking the name up: the true key is in the metadata. No state, any thread.
 */
#ifndef CKPT_TREE_KEY_H
#define CKPT_TREE_KEY_H

#include "core/base/buf.h"

#define CKPT_NAME_MAX 255 /* NAME_MAX of Linux */

/*
 * Append the listed name of a key with its suffix (".npy", ".json" or ""). docs/using.md, "Names":
 * - '/', '%' and control bytes (below 0x20, 0x7f) become %XX, upper-case; "." and ".." become %2E and %2E%2E; the
 *   empty key is "%".
 * - A name over 255 bytes keeps as many whole characters (whole %XX) as leave room for "%~", 16 hex digits
 *   (lower-case) of the SHA-256 of the original key, and the suffix.
 * - UTF-8 stays as it is. A byte that is not part of valid UTF-8 is a character of its own and stays, too.
 */
void ckpt_key_escape(struct ckpt_buf *buf, const char *key, size_t len, const char *suffix);

/*
 * The same with each byte of the first `chars` characters written as %XX: the name of a key that would collide (try
 * 1, 2, ...), and of ".ckptfs" and ".files" at the top of a mount (1). Characters that are escaped anyway stay so;
 * from chars = len on the name no longer changes.
 */
void ckpt_key_escape_first(struct ckpt_buf *buf, const char *key, size_t len, unsigned chars, const char *suffix);

#endif
