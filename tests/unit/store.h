/* SPDX-License-Identifier: Apache-2.0 */
/* Hand-made steps and objects in a store, for tests of what is done with them. Any failure ends the program. */
#ifndef CKPT_TESTS_STORE_H
#define CKPT_TESTS_STORE_H

#include "core/io/disk.h"
#include "core/store/store.h"
#include "tests/unit/check.h"
#include "tests/unit/files.h"

/* A raw object with its sums; its hash. */
static inline void store_add_object(struct ckpt_store *s, const char *content, uint8_t ret[CKPT_SHA256])
{
    char path[CKPT_OBJECT_PATH], folder[3], sums_path[CKPT_OBJECT_PATH + 8];
    struct ckpt_buf sums = CKPT_BUF_INIT;
    int in = openat(s->dir, "scratch", O_RDWR | O_CREAT | O_TRUNC, 0600);
    CHECK(in >= 0 && write(in, content, strlen(content)) == (ssize_t)strlen(content));
    CHECK(ckpt_object_hash(in, 0, strlen(content), NULL, ret, &sums, NULL) == 0);
    ckpt_object_path(ret, path);
    snprintf(folder, sizeof folder, "%.2s", path);
    snprintf(sums_path, sizeof sums_path, "%s.sums", path);
    CHECK(mkdirat(s->objects, folder, 0777) == 0 || errno == EEXIST);
    int out = openat(s->objects, sums_path, O_WRONLY | O_CREAT | O_TRUNC, 0644);
    CHECK(out >= 0 && ckpt_object_write_sums(out, strlen(content), ret, &sums, NULL) == 0);
    CHECK(renameat(s->dir, "scratch", s->objects, path) == 0);
    ckpt_buf_clear(&sums);
    close(in);
    close(out);
}

/* A leaf of a step: a file of its own, or what lies at an offset of an object. */
struct store_leaf {
    const char *name, *content;
    uint64_t offset;
    const uint8_t *pack; /* NULL: an object of its own, which is made */
};

static inline void store_write_leaf(struct ckpt_store *s, struct ckpt_manifest_writer *w, const struct store_leaf *leaf)
{
    struct ckpt_manifest_node n = {
        .kind = CKPT_NODE_BLOB, .name = (char *)leaf->name, .mode = 0644, .size = strlen(leaf->content)};
    uint32_t number;
    store_add_object(s, leaf->content, n.sha256);
    memcpy(n.object, leaf->pack ? leaf->pack : n.sha256, CKPT_SHA256);
    n.offset = leaf->offset;
    n.stored = n.size;
    if (leaf->pack) { /* only its hash was wanted */
        char path[CKPT_OBJECT_PATH], sums[CKPT_OBJECT_PATH + 8];
        ckpt_object_path(n.sha256, path);
        snprintf(sums, sizeof sums, "%s.sums", path);
        CHECK(unlinkat(s->objects, path, 0) == 0 && unlinkat(s->objects, sums, 0) == 0);
    }
    CHECK(ckpt_manifest_write_node(w, &n, &number) == 0);
}

/* A committed step of those leaves (the last has no name), made so many seconds ago. */
static inline void store_add_step(struct ckpt_store *s, const char *name, const struct store_leaf *leaves, int64_t age)
{
    char file[300], id[33];
    struct ckpt_manifest_info info = {.name = (char *)name, .time_ns = (uint64_t)(time(NULL) - age) * 1000000000};
    struct ckpt_manifest_writer *w;
    static unsigned serial;
    snprintf(id, sizeof id, "%032x", ++serial);
    memcpy(info.id, id, sizeof info.id);
    info.top = (struct ckpt_manifest_node){.kind = CKPT_NODE_DIR, .container = CKPT_DICT, .mode = 0755};
    snprintf(file, sizeof file, "%s.json", name);
    int fd = openat(s->dir, "scratch-step", O_RDWR | O_CREAT | O_TRUNC, 0644);
    CHECK(fd >= 0 && ckpt_manifest_write_begin(fd, &info, &w) == 0);
    for (; leaves->name; leaves++)
        store_write_leaf(s, w, leaves);
    CHECK(ckpt_manifest_write_end(w) == 0);
    close(fd);
    CHECK(renameat(s->dir, "scratch-step", s->steps, file) == 0);
}

/* "1 2 3": the steps as listed, a '*' behind those that are pinned. */
static inline const char *store_steps(struct ckpt_store *s)
{
    static char text[4096];
    struct ckpt_store_step *steps;
    size_t count, at = 0;
    text[0] = 0;
    CHECK(ckpt_store_steps(s, false, &steps, &count, NULL) == 0);
    for (size_t i = 0; i < count; i++)
        at += (size_t)snprintf(text + at, sizeof text - at, "%s%s%s", i ? " " : "", steps[i].name,
                               steps[i].pinned ? "*" : "");
    ckpt_store_steps_free(steps, count);
    return text;
}

/* Where an object is: 'o' in objects/, 't' in the trash, '-' nowhere; its sums must be there too. */
static inline char store_where(struct ckpt_store *s, const uint8_t hash[CKPT_SHA256])
{
    char path[CKPT_OBJECT_PATH], hex[CKPT_HEX], file[4][CKPT_OBJECT_PATH + 24];
    bool have[4];
    ckpt_object_path(hash, path);
    ckpt_hash_hex(hash, hex);
    snprintf(file[0], sizeof file[0], "objects/%s", path);
    snprintf(file[1], sizeof file[1], "objects/%s.sums", path);
    snprintf(file[2], sizeof file[2], "trash/objects/%s", hex);
    snprintf(file[3], sizeof file[3], "trash/objects/%s.sums", hex);
    for (int i = 0; i < 4; i++)
        have[i] = faccessat(s->dir, file[i], F_OK, 0) == 0;
    CHECK(have[0] == have[1] && have[2] == have[3]);
    return have[0] ? 'o' : have[2] ? 't' : '-';
}

#endif
