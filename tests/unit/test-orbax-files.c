/* SPDX-License-Identifier: Apache-2.0 */
/* The files of an Orbax checkpoint that a tree is laid out as: sizes are true, and any range of a file is the same
 * bytes as in the whole. */
#include "core/ckpt.h"
#include "tests/unit/files.h"
#include "tests/unit/random.h"

#define WIDE    17000001 /* bytes of a row that takes two chunks */
#define MAX_LEN 70000

static uint64_t seed = 88;

static void write_model(const char *path)
{
    char header[512];
    int n = snprintf(header, sizeof header,
                     "{\"wide\":{\"dtype\":\"U8\",\"shape\":[2,%d],\"data_offsets\":[0,%d]},\"t\":{\"dtype\":\"F32\","
                     "\"shape\":[3,5],\"data_offsets\":[%d,%d]},"
                     "\"none\":{\"dtype\":\"I8\",\"shape\":[0,4],\"data_offsets\":[%d,%d]}}",
                     WIDE, 2 * WIDE, 2 * WIDE, 2 * WIDE + 60, 2 * WIDE + 60, 2 * WIDE + 60);
    uint64_t len = (uint64_t)n;
    FILE *f = fopen(path, "w");
    CHECK(f && fwrite(&len, 8, 1, f) == 1 && fwrite(header, len, 1, f) == 1);
    for (int i = 0; i < 2 * WIDE + 60; i++)
        putc(1 + i % 251, f); /* never 0 */
    CHECK(fclose(f) == 0);
}

static uint8_t *read_whole(struct ckpt_files *files, size_t index, uint64_t size)
{
    uint8_t *all = malloc(size + 1);
    CHECK(all && ckpt_files_read(files, index, all, size + 1, 0, NULL) == (ssize_t)size);
    return all;
}

static void check_ranges(struct ckpt_files *files, size_t index, const uint8_t *all, uint64_t size)
{
    uint8_t *buf = malloc(MAX_LEN);
    for (int i = 0; i < 300; i++) {
        uint64_t off = test_below(&seed, size + 10), len = test_below(&seed, MAX_LEN),
                 want = off >= size        ? 0
                        : len < size - off ? len
                                           : size - off;
        CHECK(ckpt_files_read(files, index, buf, len, off, NULL) == (ssize_t)want &&
              (!want || !memcmp(buf, all + off, want)));
    }
    free(buf);
}

/* Each row has its place, and zeros behind it up to a whole number of chunks. */
static void check_data(const uint8_t *all, uint64_t size)
{
    const uint64_t padded = (WIDE + 1) / 2 * 2;
    const uint8_t *wide = all, *t = all + (2 * padded + 63) / 64 * 64;
    CHECK(t + 60 <= all + size);
    for (int i = 0; i < 60; i++)
        CHECK(t[i] == 1 + (2 * WIDE + i) % 251);
    for (uint64_t row = 0; row < 2; row++) {
        for (uint64_t i = 0; i < WIDE; i++)
            CHECK(wide[row * padded + i] == 1 + (row * WIDE + i) % 251);
        for (uint64_t i = WIDE; i < padded; i++)
            CHECK(wide[row * padded + i] == 0);
    }
}

int main(void)
{
    char top[] = FILES_TEMPLATE;
    struct ckpt_options options = CKPT_OPTIONS_INIT;
    struct ckpt_source *src;
    struct ckpt_files *files;
    const char *path, *last = "";
    uint64_t size, data = 0;
    size_t count = 0;
    files_begin(top);
    write_model(file_path(top, "m.safetensors"));
    CHECK(ckpt_source_open(file_path(top, "m.safetensors"), &options, &src, NULL) == 0);
    CHECK(ckpt_files_open(src, CKPT_ROOT, NULL, NULL, &files, NULL) == 0);
    for (; ckpt_files_get(files, count, &path, &size); count++) {
        uint8_t *all = read_whole(files, count, size);
        check_ranges(files, count, all, size);
        if (size > WIDE) {
            CHECK(!data);
            data = size;
            check_data(all, size);
        }
        free(all);
        last = path;
    }
    CHECK(count == 6 && data);
    CHECK_STR(last, "commit_success.txt");
    ckpt_files_close(files);
    ckpt_source_close(src);
    files_end(top);
    return 0;
}
