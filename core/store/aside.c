/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Manifests that cannot be read are set aside: what they name is not known, but it is among the objects that were there
 * when they were found so. Those are listed in .ckptstore/aside and stay, as long as there is such a manifest: so it
 * can still be repaired, and whatever is stored later can be collected all the same. A manifest is known by its bytes,
 * since one of other bytes may name other objects; one whose bytes the disk does not give, by its file as it is.
 *
 * A list that is damaged, or does not know one of the manifests, is made anew of all that is there then. Nothing that
 * the former list kept has gone before, so it loses nothing; and neither does it matter which one of two is left where
 * two make one.
 */
#include "core/store/internal.h"

#include "core/base/util.h"
#include "core/io/disk.h"

#include <fcntl.h>
#include <openssl/evp.h>
#include <stdio.h>
#include <xxhash.h>

#define LIST     "aside"
#define HEAD     "ckptfs-aside 1\n"
#define MANIFEST "manifest "
#define OBJECT   "object "
#define END      "end "
#define LIST_MAX ((size_t)16 << 30)
#define BLOCK    ((size_t)1 << 20)

/* --- what a manifest is known by --- */

static bool add_bytes(EVP_MD_CTX *md, struct ckpt_file *file)
{
    CKPT_AUTOFREE uint8_t *block = malloc(BLOCK);
    ssize_t n = block ? 1 : -ENOMEM;
    for (uint64_t off = 0; n > 0; off += (uint64_t)n) {
        n = ckpt_file_read(file, block, BLOCK, off);
        if (n > 0 && EVP_DigestUpdate(md, block, (size_t)n) != 1)
            n = -ENOMEM;
    }
    return n == 0;
}

static bool of_bytes(struct ckpt_file *file, uint8_t ret[CKPT_SHA256])
{
    EVP_MD_CTX *md = EVP_MD_CTX_new();
    bool ok = md && EVP_DigestInit_ex(md, EVP_sha256(), NULL) == 1 && add_bytes(md, file) &&
              EVP_DigestFinal_ex(md, ret, NULL) == 1;
    EVP_MD_CTX_free(md);
    return ok;
}

bool ckpt_aside_identity(struct ckpt_file *file, const struct ckpt_stat *st, uint8_t ret[CKPT_SHA256])
{
    char text[160];
    if (file && of_bytes(file, ret))
        return true;
    snprintf(text, sizeof text, "%llx %llx %llx %llx %llx", (unsigned long long)st->dev, (unsigned long long)st->ino,
             (unsigned long long)st->size, (unsigned long long)st->mtime_ns, (unsigned long long)st->ctime_ns);
    return EVP_Digest(text, strlen(text), ret, NULL, EVP_sha256(), NULL) == 1;
}

/* --- the list that is there --- */

/* The line's hash, if it is one of that kind. */
static bool take_line(const char **p, const char *word, uint8_t ret[CKPT_SHA256])
{
    char hex[CKPT_HEX];
    size_t n = strlen(word);
    if (strncmp(*p, word, n) || strnlen(*p + n, CKPT_HEX) < CKPT_HEX || (*p)[n + CKPT_HEX - 1] != '\n')
        return false;
    snprintf(hex, sizeof hex, "%s", *p + n);
    *p += n + CKPT_HEX;
    return ckpt_hash_parse(hex, ret);
}

/* -EUCLEAN: damaged. */
static int parse(const char *text, size_t len, struct ckpt_hashes *manifests, struct ckpt_hashes *objects)
{
    const char *p = text;
    char end[64];
    uint8_t hash[CKPT_SHA256];
    int r = 0;
    if (strncmp(p, HEAD, strlen(HEAD)))
        return -EUCLEAN;
    p += strlen(HEAD);
    while (r >= 0 && take_line(&p, MANIFEST, hash))
        r = ckpt_hashes_add(manifests, hash);
    while (r >= 0 && take_line(&p, OBJECT, hash))
        r = ckpt_hashes_add(objects, hash);
    if (r < 0)
        return r;
    snprintf(end, sizeof end, END "%016llx\n", (unsigned long long)XXH3_64bits(text, (size_t)(p - text)));
    return (size_t)(p - text) + strlen(end) == len && !strcmp(p, end) ? 0 : -EUCLEAN;
}

static bool all_known(const struct ckpt_aside *a, const struct ckpt_hashes *manifests)
{
    for (size_t i = 0; i < a->count; i++)
        if (!ckpt_hashes_has(manifests, a->found[i].id))
            return false;
    return true;
}

/* Its objects into the set: 1; 0: it is no use. */
static int take_list(struct ckpt_store *s, const struct ckpt_aside *a, struct ckpt_hashes *named)
{
    CKPT_AUTOFREE char *text = NULL;
    size_t len;
    struct ckpt_hashes manifests, objects;
    int r = ckpt_text_at(s->dir, LIST, LIST_MAX, &text, &len);
    if (r < 0)
        return r == -ENOMEM ? r : 0;
    ckpt_hashes_init(&manifests);
    ckpt_hashes_init(&objects);
    r = parse(text, len, &manifests, &objects);
    bool useful = r == 0 && all_known(a, &manifests);
    if (useful)
        r = ckpt_hashes_add_all(named, &objects);
    ckpt_hashes_clear(&manifests);
    ckpt_hashes_clear(&objects);
    return r < 0 && r != -EUCLEAN ? r : useful;
}

/* --- a new one --- */

struct listing {
    struct ckpt_hashes *named;
    struct ckpt_hashes listed;
    struct ckpt_buf text;
};

static void add_line(struct ckpt_buf *text, const char *word, const uint8_t hash[CKPT_SHA256])
{
    char hex[CKPT_HEX];
    ckpt_hash_hex(hash, hex);
    hex[CKPT_HEX - 1] = '\n';
    ckpt_buf_adds(text, word);
    ckpt_buf_add(text, hex, sizeof hex);
}

static int list_object(void *arg, int dir, const char *name)
{
    struct listing *l = arg;
    uint8_t hash[CKPT_SHA256];
    bool sums;
    if (!ckpt_object_name(name, hash, &sums))
        return 0;
    int r = ckpt_hashes_add(&l->listed, hash);
    if (r <= 0)
        return r;
    add_line(&l->text, OBJECT, hash);
    r = ckpt_hashes_add(l->named, hash);
    return r < 0 ? r : ckpt_buf_error(&l->text);
}

/* The trash first and last, since an object may be on its way there, or back. */
static int list_all(struct ckpt_store *s, struct listing *l)
{
    int r = ckpt_names_each(s->trash, "objects", list_object, l);
    if (r == 0)
        r = ckpt_objects_each(s, list_object, l);
    return r == 0 ? ckpt_names_each(s->trash, "objects", list_object, l) : r;
}

static int make_list(struct ckpt_store *s, const struct ckpt_aside *a, bool dry, struct ckpt_hashes *named)
{
    struct listing l = {.named = named, .text = {.max = LIST_MAX}};
    char end[64];
    ckpt_hashes_init(&l.listed);
    ckpt_buf_adds(&l.text, HEAD);
    for (size_t i = 0; i < a->count; i++)
        add_line(&l.text, MANIFEST, a->found[i].id);
    int r = list_all(s, &l);
    ckpt_hashes_clear(&l.listed);
    if (r == 0 && (r = ckpt_buf_error(&l.text)) == 0) {
        snprintf(end, sizeof end, END "%016llx\n", (unsigned long long)XXH3_64bits(l.text.data, l.text.len));
        ckpt_buf_adds(&l.text, end);
        r = ckpt_buf_error(&l.text);
    }
    if (r == 0 && !dry)
        r = ckpt_disk_replace(s->dir, LIST, l.text.data, l.text.len);
    ckpt_buf_clear(&l.text);
    return r;
}

int ckpt_aside_keep(struct ckpt_store *s, const struct ckpt_aside *a, bool dry, struct ckpt_hashes *named)
{
    int r = take_list(s, a, named);
    return r ? CKPT_MIN(r, 0) : make_list(s, a, dry, named);
}

int ckpt_aside_drop(struct ckpt_store *s)
{
    int r = ckpt_disk_unlink(s->dir, LIST, 0);
    return r == -ENOENT ? 0 : r;
}

/* --- those that are found --- */

bool ckpt_aside_has(const struct ckpt_aside *a, const uint8_t id[CKPT_SHA256])
{
    for (size_t i = 0; i < a->count; i++)
        if (!memcmp(a->found[i].id, id, CKPT_SHA256))
            return true;
    return false;
}

int ckpt_aside_add(struct ckpt_aside *a, const uint8_t id[CKPT_SHA256], const char *name, const struct ckpt_err *why)
{
    struct ckpt_aside_manifest *p = realloc(a->found, (a->count + 1) * sizeof *p);
    if (p)
        a->found = p;
    char *copy = p ? strdup(name) : NULL;
    if (!copy)
        return -ENOMEM;
    p = &a->found[a->count++];
    memcpy(p->id, id, CKPT_SHA256);
    p->name = copy;
    p->why = *why;
    return 0;
}

void ckpt_aside_clear(struct ckpt_aside *a)
{
    for (size_t i = 0; i < a->count; i++)
        free(a->found[i].name);
    free(a->found);
    *a = (struct ckpt_aside){0};
}
