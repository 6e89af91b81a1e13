/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Input: a letter, then
 * 'p', 'b', 'd' data.pkl of a file that torch.save wrote (b: big-endian, d: deflated) and that has storages 0 and 1 of
 * 64 bytes; 'm' a u16le length, so many bytes of .metadata, and the data.pkl of the only piece, which is all of
 * __0_0.distcp; 'z' the file itself, a zip archive or a stream of pickles and storages; 'o' what follows the magic
 * number of such a stream; 'k' a pickle by itself; 'f' a u16le length, so many bytes of pytorch_model.bin.index.json,
 * and the data.pkl of its shard a.bin.
 */
#include "core/format/pytorch/pytorch.h"
#include "tests/fuzz/look.h"
#include "tests/unit/zips.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void add_archive(struct ckpt_backend *b, const char *name, struct zip_maker *ret, const uint8_t *pickle,
                        size_t len, bool big, unsigned how)
{
    uint8_t storage[64];
    for (unsigned i = 0; i < sizeof storage; i++)
        storage[i] = (uint8_t)i;
    zip_add(ret, "a/data.pkl", pickle, len, how);
    zip_add(ret, "a/byteorder", big ? "big" : "little", big ? 3 : 6, how);
    zip_add(ret, "a/data/0", storage, sizeof storage, how);
    zip_add(ret, "a/data/1", storage, sizeof storage, how);
    zip_end(ret, false, "");
    look_expect(ckpt_backend_memory_add(b, name, ret->all.data, ret->all.len) == 0, "no memory");
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct ckpt_backend *b = ckpt_backend_new_memory();
    struct zip_maker zip = {0};
    look_expect(b, "no memory");
    char kind = size ? (char)*data++ : 0;
    size -= size > 0;
    if (kind == 'm' && size >= 2) {
        size_t metadata = CKPT_MIN((size_t)ckpt_le16(data), size - 2);
        look_expect(ckpt_backend_memory_add(b, ".metadata", data + 2, metadata) == 0, "no memory");
        add_archive(b, "__0_0.distcp", &zip, data + 2 + metadata, size - 2 - metadata, false, 0);
        look_at(&ckpt_dcp_format, b, "");
    } else if (kind == 'z') {
        look_expect(ckpt_backend_memory_add(b, "x.pt", data, size) == 0, "no memory");
        look_at(&ckpt_pytorch_format, b, "x.pt");
    } else if (kind == 'k') {
        look_expect(ckpt_backend_memory_add(b, "x.pkl", data, size) == 0, "no memory");
        look_at(&ckpt_pickle_format, b, "x.pkl");
    } else if (kind == 'f' && size >= 2) {
        size_t index = CKPT_MIN((size_t)ckpt_le16(data), size - 2);
        look_expect(ckpt_backend_memory_add(b, "pytorch_model.bin.index.json", data + 2, index) == 0, "no memory");
        add_archive(b, "a.bin", &zip, data + 2 + index, size - 2 - index, false, 0);
        look_at(&ckpt_pytorch_format, b, "");
    } else if (kind == 'o') {
        static const uint8_t magic[] = {0x80, 0x02, 0x8a, 0x0a, 0x6c, 0xfc, 0x9c, 0x46,
                                        0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19, 0x2e};
        struct ckpt_buf all = CKPT_BUF_INIT;
        ckpt_buf_add(&all, magic, sizeof magic);
        ckpt_buf_add(&all, data, size);
        look_expect(ckpt_backend_memory_add(b, "x.pt", all.data, all.len) == 0, "no memory");
        look_at(&ckpt_pytorch_format, b, "x.pt");
        ckpt_buf_clear(&all);
    } else if (kind == 'p' || kind == 'b' || kind == 'd') {
        add_archive(b, "x.pt", &zip, data, size, kind == 'b', kind == 'd' ? ZIP_DEFLATE : ZIP_ALIGN | ZIP_DESCRIPTOR);
        look_at(&ckpt_pytorch_format, b, "x.pt");
    }
    ckpt_backend_unref(b);
    zip_maker_clear(&zip);
    return 0;
}
