/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Input: a manifest without its last line, which is made to fit here. Its nodes are read one by one, and what can be
 * read is written again; and it is looked at as a step, in a store that has one object: 4096 bytes, of which byte i is
 * i * 7, and which begin with an .npy header at 1024.
 */
#include "core/object/manifest.h"
#include "core/format/native.h"
#include "tests/fuzz/look.h"

#include <openssl/evp.h>
#include <sys/mman.h>
#include <xxhash.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static uint8_t object[4096];
static struct ckpt_buf sums;
static char object_path[128], sums_path[128];

static void make_object(void)
{
    uint8_t hash[CKPT_SHA256];
    char path[CKPT_OBJECT_PATH];
    struct ckpt_buf head = CKPT_BUF_INIT;
    uint64_t size = sizeof object, sum;
    if (sums.len)
        return;
    for (size_t i = 0; i < sizeof object; i++)
        object[i] = (uint8_t)(i * 7);
    ckpt_npy_add_header(&head, "<f4", 2, (uint64_t[]){4, 5});
    memcpy(object + 1024, head.data, head.len);
    ckpt_buf_clear(&head);
    look_expect(EVP_Digest(object, sizeof object, hash, NULL, EVP_sha256(), NULL) == 1, "no hash");
    ckpt_object_path(hash, path);
    snprintf(object_path, sizeof object_path, "objects/%s", path);
    snprintf(sums_path, sizeof sums_path, "objects/%s.sums", path);
    ckpt_buf_add(&sums, "CKPTSUM1\1\0\0\0\x14\0\0", 16);
    ckpt_buf_add(&sums, &size, 8);
    ckpt_buf_add(&sums, hash, sizeof hash);
    sum = XXH3_64bits(object, sizeof object);
    ckpt_buf_add(&sums, &sum, 8);
    sum = XXH3_64bits(sums.data, sums.len);
    ckpt_buf_add(&sums, &sum, 8);
}

struct copy {
    struct ckpt_file *file;
    struct ckpt_manifest_writer *writer; /* NULL: it could not be begun */
    uint32_t count;
};

static int visit(void *arg, uint32_t number, const struct ckpt_manifest_node *n, uint64_t off, uint32_t len)
{
    struct copy *c = arg;
    struct ckpt_manifest_node again;
    uint32_t copied;
    look_expect(number == ++c->count && ckpt_manifest_name_ok(n->name) && n->parent < number, "a node that cannot be");
    look_expect(ckpt_manifest_record(c->file, off, len, &again, NULL) == 0 && again.check == n->check &&
                    again.size == n->size,
                "another record");
    ckpt_manifest_node_clear(&again);
    if (c->writer)
        look_expect(ckpt_manifest_write_node(c->writer, n, &copied) == 0 && copied == number,
                    "what was read cannot be written");
    return 0;
}

static void read_all(const uint8_t *data, size_t size, bool copy)
{
    struct ckpt_backend *b = ckpt_backend_new_memory();
    struct ckpt_file *f = NULL;
    struct ckpt_manifest_info info;
    struct ckpt_err err = {0};
    struct copy c = {0};
    look_expect(b && ckpt_backend_memory_add(b, "m", data, size) == 0 && ckpt_backend_open(b, "m", &f) == 0,
                "no memory");
    c.file = f;
    int fd = -1, r = copy ? ckpt_manifest_info(f, &info, &err) : -1;
    if (r == 0) {
        fd = memfd_create("manifest", MFD_CLOEXEC);
        look_expect(ckpt_manifest_write_begin(fd, &info, &c.writer) == 0, "a head that was read cannot be written");
        ckpt_manifest_info_clear(&info);
    }
    r = ckpt_manifest_each(f, &info, visit, &c, &err);
    look_expect(r == 0 ? info.count == c.count + 1 : err.code == -r && *err.text, "no reason");
    if (r == 0)
        ckpt_manifest_info_clear(&info);
    look_expect(!copy || r < 0 || c.writer, "a manifest is read, and its head is not");
    if (r < 0)
        ckpt_manifest_write_abort(c.writer);
    else if (c.writer) {
        look_expect(ckpt_manifest_write_end(c.writer) == 0, "the copy cannot be written");
        size_t len = (size_t)lseek(fd, 0, SEEK_END);
        uint8_t *text = malloc(len);
        look_expect(pread(fd, text, len, 0) == (ssize_t)len, "the copy cannot be read");
        read_all(text, len, false);
        free(text);
    }
    if (fd >= 0)
        close(fd);
    ckpt_file_unref(f);
    ckpt_backend_unref(b);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct ckpt_buf m = CKPT_BUF_INIT;
    unsigned lines = 0;
    make_object();
    read_all(data, size, false);
    for (size_t i = 0; i < size; i++)
        lines += data[i] == '\n';
    ckpt_buf_add(&m, data, size);
    ckpt_buf_addf(&m, "],\"count\":%u,\"xxh3\":\"%016llx\"}\n", lines ? lines - 1 : 0,
                  (unsigned long long)XXH3_64bits(data, size));
    read_all(m.data, m.len, true);
    struct ckpt_backend *b = ckpt_backend_new_memory();
    look_expect(b && ckpt_backend_memory_add(b, "steps/1.json", m.data, m.len) == 0 &&
                    ckpt_backend_memory_add(b, object_path, object, sizeof object) == 0 &&
                    ckpt_backend_memory_add(b, sums_path, sums.data, sums.len) == 0,
                "no memory");
    look_at(&ckpt_store_format, b, "steps/1.json");
    ckpt_backend_unref(b);
    ckpt_buf_clear(&m);
    return 0;
}
