/* SPDX-License-Identifier: Apache-2.0 */
#include "core/format/pytorch/archive.h"

#include "core/array/layout.h"
#include "core/base/util.h"
#include "core/format/pytorch/pickle.h"

#include <stdio.h>

/* How files began before the zip format: a pickle of the number 0x1950a86a20f9469cfc6c. */
static const uint8_t old_magic[] = {0x80, 0x02, 0x8a, 0x0a, 0x6c, 0xfc, 0x9c, 0x46,
                                    0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19, 0x2e};

/* A member of the folder; CKPT_ZIP_NONE: there is none. */
static uint32_t find(const struct torch_archive *a, const char *name)
{
    char path[512];
    size_t len = strlen(name);
    if (a->folder_len + len > sizeof path)
        return CKPT_ZIP_NONE;
    memcpy(path, a->folder, a->folder_len);
    memcpy(path + a->folder_len, name, len);
    return ckpt_zip_find(a->zip, path, a->folder_len + len);
}

static int find_folder(struct torch_archive *a, struct ckpt_err *err)
{
    uint32_t count = ckpt_zip_count(a->zip);
    for (uint32_t i = 0; i < count; i++) {
        struct ckpt_zip_member m = ckpt_zip_member(a->zip, i);
        if (i == 0) {
            const char *slash = memchr(m.name, '/', m.name_len);
            a->folder = m.name;
            a->folder_len = slash ? (size_t)(slash + 1 - m.name) : 0;
        }
        if (a->folder_len < 2 || m.name_len < a->folder_len || memcmp(m.name, a->folder, a->folder_len))
            return ckpt_fail(err, EUCLEAN,
                             "the members of the archive are not all in one folder, so torch.save did not write it");
    }
    return count ? 0 : ckpt_fail(err, EUCLEAN, "the archive is empty");
}

static int read_byteorder(struct torch_archive *a, struct ckpt_err *err)
{
    uint32_t member = find(a, "byteorder");
    if (member == CKPT_ZIP_NONE)
        return 0;
    uint8_t *text;
    size_t len;
    int r = ckpt_zip_read_all(a->zip, member, 16, &text, &len, err);
    if (r < 0)
        return r == -EFBIG ? ckpt_fail(err, EUCLEAN, "the byte order of the archive is neither little nor big") : r;
    a->big_endian = len == 3 && !memcmp(text, "big", len);
    bool known = a->big_endian || (len == 6 && !memcmp(text, "little", len));
    free(text);
    return known ? 0 : ckpt_fail(err, EUCLEAN, "the byte order of the archive is neither little nor big");
}

static int check_old(struct ckpt_file *file, uint64_t off, uint64_t len, struct ckpt_err *err)
{
    uint8_t head[sizeof old_magic];
    if (len < sizeof head || ckpt_file_read(file, head, sizeof head, off) != sizeof head ||
        memcmp(head, old_magic, sizeof head))
        return 0;
    return ckpt_fail(err, EOPNOTSUPP,
                     "saved in the format that PyTorch had before 1.6, which is not a zip archive; convert it with "
                     "torch.save(torch.load(OLD), NEW)");
}

int ckpt_torch_archive_open(struct ckpt_file *file, uint64_t off, uint64_t len, struct torch_archive *ret,
                            struct ckpt_err *err)
{
    struct torch_archive a = {0};
    int r = check_old(file, off, len, err);
    if (r == 0)
        r = ckpt_zip_open(file, off, len, &a.zip, err);
    if (r < 0)
        return r;
    r = find_folder(&a, err);
    if (r == 0 && find(&a, "constants.pkl") != CKPT_ZIP_NONE)
        r = ckpt_fail(err, EOPNOTSUPP,
                      "a TorchScript archive (it has constants.pkl): a program, not a checkpoint; save the module's "
                      "state_dict()");
    if (r == 0 && find(&a, "data.pkl") == CKPT_ZIP_NONE)
        r = ckpt_fail(err, EUCLEAN, "the archive has no data.pkl, so torch.save did not write it");
    if (r == 0)
        r = read_byteorder(&a, err);
    if (r < 0)
        ckpt_torch_archive_close(&a);
    else
        *ret = a;
    return r;
}

void ckpt_torch_archive_close(struct torch_archive *a)
{
    ckpt_zip_unref(a->zip);
    *a = (struct torch_archive){0};
}

bool ckpt_torch_archive_probe(struct ckpt_file *file)
{
    static const char pickle[] = "/data.pkl";
    uint8_t magic[4];
    struct ckpt_zip *zip;
    if (ckpt_file_read(file, magic, sizeof magic, 0) != sizeof magic || memcmp(magic, "PK\3\4", sizeof magic))
        return false;
    if (ckpt_zip_open(file, 0, file->st.size, &zip, NULL) < 0)
        return false;
    bool found = false;
    for (uint32_t i = 0, n = ckpt_zip_count(zip); i < n && !found; i++) {
        struct ckpt_zip_member m = ckpt_zip_member(zip, i);
        const char *slash = memchr(m.name, '/', m.name_len);
        found = slash && !strcmp(slash, pickle);
    }
    ckpt_zip_unref(zip);
    return found;
}

int ckpt_torch_archive_load(const struct torch_archive *a, struct ckpt_buf *records, uint64_t number,
                            struct torch_graph *ret, struct ckpt_err *err)
{
    uint8_t *pickle;
    size_t len;
    int r = ckpt_zip_read_all(a->zip, find(a, "data.pkl"), TORCH_MAX_PICKLE, &pickle, &len, err);
    if (r == -EFBIG)
        return ckpt_fail(err, EUCLEAN, "data.pkl has more than %zu bytes", TORCH_MAX_PICKLE);
    return r < 0 ? r : ckpt_torch_pickle_load(pickle, len, TORCH_SAVE, records, number, ret, err);
}

/* --- storages --- */

static int find_storage(const struct torch_archive *a, const struct torch_tensor *t, uint32_t *ret,
                        struct ckpt_err *err)
{
    char name[32];
    snprintf(name, sizeof name, "data/%llu", (unsigned long long)t->key);
    *ret = find(a, name);
    if (*ret == CKPT_ZIP_NONE)
        return ckpt_fail(err, EUCLEAN, "its storage %s is missing in the archive", name);
    uint64_t size = ckpt_zip_member(a->zip, *ret).size;
    if (size != t->size)
        return ckpt_fail(err, EUCLEAN, "its storage %s has %llu bytes, not %llu", name, (unsigned long long)size,
                         (unsigned long long)t->size);
    return 0;
}

/* From the first element to the end of the last one, in bytes. */
static uint64_t span(const struct torch_tensor *t)
{
    uint64_t last = 0;
    for (unsigned i = 0; i < t->ndim; i++) {
        if (!t->shape[i])
            return 0;
        last += (t->shape[i] - 1) * t->stride[i];
    }
    return (last + 1) * ckpt_dtype_info(t->dtype)->size;
}

/* A deflated storage is decoded whole; of one that is not, the chunk is what the view spans, so that views alike have
 * the same layout. */
int ckpt_torch_archive_layout(const struct torch_archive *a, const struct torch_tensor *t, struct ckpt_array **ret,
                              struct ckpt_err *err)
{
    uint32_t member;
    int r = find_storage(a, t, &member, err);
    if (r < 0)
        return r;
    struct ckpt_array *array = ckpt_array_new(t->dtype, t->ndim, t->shape);
    if (!array)
        return ckpt_no_memory(err);
    if (ckpt_array_settle(array, NULL) < 0) {
        ckpt_array_unref(array);
        return ckpt_fail(err, EUCLEAN, "its shape is impossible");
    }
    for (unsigned i = 0; i < t->ndim; i++)
        if (t->shape[i] > 1)
            array->stride[i] = (int64_t)(t->stride[i] * array->itemsize);
    array->big_endian = a->big_endian;
    array->flip = t->flip;
    array->chunk_bytes = span(t);
    if (ckpt_zip_member(a->zip, member).deflated && array->nbytes) {
        struct ckpt_extent extent;
        r = ckpt_zip_payload(a->zip, member, &extent, &array->codecs, err);
        if (r < 0) {
            ckpt_array_unref(array);
            return r;
        }
        ckpt_extent_clear(&extent);
        array->start = t->offset * array->itemsize;
        array->chunk_bytes = t->size;
        strcpy(array->codec_text, "deflate");
    }
    *ret = array;
    return 0;
}

int ckpt_torch_archive_chunk(const struct torch_archive *a, const struct torch_tensor *t, struct ckpt_extent *ret,
                             struct ckpt_err *err)
{
    struct ckpt_codec_chain chain;
    uint32_t member;
    int r = find_storage(a, t, &member, err);
    if (r == 0)
        r = ckpt_zip_payload(a->zip, member, ret, &chain, err);
    if (r == 0 && !chain.count) {
        ret->off += t->offset * ckpt_dtype_info(t->dtype)->size;
        ret->len = span(t);
    }
    return r;
}

uint64_t ckpt_torch_archive_stored(const struct torch_archive *a, const struct torch_tensor *t,
                                   const struct ckpt_array *layout)
{
    uint32_t member;
    uint64_t bytes = CKPT_MIN(layout->nbytes, span(t));
    if (!bytes || find_storage(a, t, &member, NULL) < 0)
        return 0;
    struct ckpt_zip_member m = ckpt_zip_member(a->zip, member);
    return m.stored == m.size ? bytes : (uint64_t)((double)bytes / (double)m.size * (double)m.stored);
}
