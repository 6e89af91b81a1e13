/* SPDX-License-Identifier: Apache-2.0 */
#include "core/format/pytorch/archive.h"

#include "core/array/layout.h"
#include "core/base/util.h"
#include "core/format/pytorch/pickle.h"
#include "core/format/pytorch/tar.h"

#include <stdio.h>

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

int ckpt_torch_archive_open(struct ckpt_file *file, uint64_t off, uint64_t len, struct torch_archive *ret,
                            struct ckpt_err *err)
{
    struct torch_archive a = {0};
    int r = ckpt_zip_open(file, off, len, &a.zip, err);
    if (r < 0)
        return r;
    r = find_folder(&a, err);
    a.script = r == 0 && find(&a, "constants.pkl") != CKPT_ZIP_NONE;
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

int ckpt_torch_archive_open_file(struct ckpt_file *file, struct torch_archive *ret, struct ckpt_err *err)
{
    if (ckpt_torch_is_tar(file))
        return ckpt_fail(
            err, EOPNOTSUPP,
            "a tar archive, as the first releases of PyTorch saved them, which is not read; convert it with "
            "torch.save(torch.load(OLD), NEW)");
    if (!ckpt_torch_stream_probe(file))
        return ckpt_torch_archive_open(file, 0, file->st.size, ret, err);
    *ret = (struct torch_archive){0};
    return ckpt_torch_stream_open(file, 0, file->st.size, &ret->stream, err);
}

struct torch_archive ckpt_torch_archive_ref(const struct torch_archive *a)
{
    struct torch_archive ref = *a;
    if (ref.ranges)
        ckpt_file_ref(ref.ranges);
    if (ref.stream)
        ckpt_torch_stream_ref(ref.stream);
    if (ref.zip)
        ckpt_zip_ref(ref.zip);
    return ref;
}

void ckpt_torch_archive_close(struct torch_archive *a)
{
    ckpt_file_unref(a->ranges);
    ckpt_torch_stream_unref(a->stream);
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

static int load_member(const struct torch_archive *a, const char *name, struct ckpt_buf *records, uint64_t number,
                       struct torch_graph *ret, struct ckpt_err *err)
{
    uint8_t *pickle;
    size_t len;
    int r = ckpt_zip_read_all(a->zip, find(a, name), TORCH_MAX_PICKLE, &pickle, &len, err);
    if (r == -EFBIG)
        return ckpt_fail(err, EUCLEAN, "%s has more than %zu bytes", name, TORCH_MAX_PICKLE);
    return r < 0 ? r : ckpt_torch_pickle_load(pickle, len, TORCH_SAVE, records, number, ret, err);
}

int ckpt_torch_archive_load(const struct torch_archive *a, struct ckpt_buf *records, uint64_t number,
                            struct torch_graph *ret, struct ckpt_err *err)
{
    return a->stream ? ckpt_torch_stream_load(a->stream, records, number, ret, err)
                     : load_member(a, "data.pkl", records, number, ret, err);
}

int ckpt_torch_archive_load_constants(const struct torch_archive *a, struct ckpt_buf *records, struct torch_graph *ret,
                                      struct ckpt_err *err)
{
    return load_member(a, "constants.pkl", records, TORCH_CONSTANTS, ret, err);
}

/* --- storages --- */

/* The member that a storage is. */
static int find_member(const struct torch_archive *a, const struct torch_tensor *t, uint32_t *ret, struct ckpt_err *err)
{
    char name[32];
    snprintf(name, sizeof name, "%s/%llu", t->archive == TORCH_CONSTANTS ? "constants" : "data",
             (unsigned long long)t->key);
    *ret = find(a, name);
    if (*ret == CKPT_ZIP_NONE)
        return ckpt_fail(err, EUCLEAN, "its storage %s is missing in the archive", name);
    uint64_t size = ckpt_zip_member(a->zip, *ret).size;
    if (size != t->size)
        return ckpt_fail(err, EUCLEAN, "its storage %s has %llu bytes, not %llu", name, (unsigned long long)size,
                         (unsigned long long)t->size);
    return 0;
}

/* Where a storage lies, and how it is encoded. The caller clears *ret. */
static int find_storage(const struct torch_archive *a, const struct torch_tensor *t, struct ckpt_extent *ret,
                        struct ckpt_codec_chain *ret_chain, struct ckpt_err *err)
{
    uint32_t member;
    if (a->ranges) {
        *ret_chain = (struct ckpt_codec_chain){0};
        *ret = (struct ckpt_extent){.file = ckpt_file_ref(a->ranges), .off = t->key, .len = t->size};
        return 0;
    }
    if (!a->stream) {
        int r = find_member(a, t, &member, err);
        return r < 0 ? r : ckpt_zip_payload(a->zip, member, ret, ret_chain, err);
    }
    *ret_chain = (struct ckpt_codec_chain){0};
    if (!ckpt_torch_stream_storage(a->stream, t->key, ret))
        return ckpt_fail(err, EUCLEAN, "its storage %llu is missing in the file", (unsigned long long)t->key);
    if (ret->len == t->size)
        return 0;
    uint64_t size = ret->len;
    ckpt_extent_clear(ret);
    return ckpt_fail(err, EUCLEAN, "its storage %llu has %llu bytes, not %llu", (unsigned long long)t->key,
                     (unsigned long long)size, (unsigned long long)t->size);
}

/* Is it deflated? As far as that can be told without reading anything. */
static int is_deflated(const struct torch_archive *a, const struct torch_tensor *t, bool *ret, struct ckpt_err *err)
{
    struct ckpt_extent extent;
    struct ckpt_codec_chain chain;
    uint32_t member;
    int r;
    *ret = false;
    if (a->ranges)
        return 0;
    if (a->stream) {
        r = find_storage(a, t, &extent, &chain, err);
        if (r == 0)
            ckpt_extent_clear(&extent);
        return r;
    }
    r = find_member(a, t, &member, err);
    if (r == 0)
        *ret = ckpt_zip_member(a->zip, member).deflated;
    return r;
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
static int settle_chunk(const struct torch_archive *a, const struct torch_tensor *t, bool deflated,
                        struct ckpt_array *array, struct ckpt_err *err)
{
    struct ckpt_extent extent;
    array->chunk_bytes = span(t);
    if (!deflated || !array->nbytes)
        return 0;
    int r = find_storage(a, t, &extent, &array->codecs, err);
    if (r < 0)
        return r;
    ckpt_extent_clear(&extent);
    array->start = t->offset * array->itemsize;
    array->chunk_bytes = t->size;
    strcpy(array->codec_text, "deflate");
    return 0;
}

int ckpt_torch_archive_layout(const struct torch_archive *a, const struct torch_tensor *t, struct ckpt_array **ret,
                              struct ckpt_err *err)
{
    bool deflated;
    int r = is_deflated(a, t, &deflated, err);
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
    r = settle_chunk(a, t, deflated, array, err);
    if (r < 0)
        ckpt_array_unref(array);
    else
        *ret = array;
    return r;
}

int ckpt_torch_archive_chunk(const struct torch_archive *a, const struct torch_tensor *t, struct ckpt_extent *ret,
                             struct ckpt_err *err)
{
    struct ckpt_codec_chain chain;
    int r = find_storage(a, t, ret, &chain, err);
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
    if (a->stream || a->ranges)
        return bytes;
    if (!bytes || find_member(a, t, &member, NULL) < 0)
        return 0;
    struct ckpt_zip_member m = ckpt_zip_member(a->zip, member);
    return m.stored == m.size ? bytes : (uint64_t)((double)bytes / (double)m.size * (double)m.stored);
}

int ckpt_torch_archive_verify(const struct torch_archive *a, void (*progress)(void *arg, uint64_t bytes), void *arg,
                              struct ckpt_err *err)
{
    if (a->stream)
        return ckpt_torch_stream_verify(a->stream, progress, arg, err);
    int r = 0;
    for (uint32_t i = 0, n = ckpt_zip_count(a->zip); i < n && r == 0; i++)
        r = ckpt_zip_verify(a->zip, i, progress, arg, err);
    return r;
}

size_t ckpt_torch_archive_memory(const struct torch_archive *a)
{
    size_t stream = a->stream ? ckpt_torch_stream_memory(a->stream) : 0;
    return stream + (a->zip ? ckpt_zip_memory(a->zip) : 0);
}
