/* SPDX-License-Identifier: Apache-2.0 */
/* What a file is taken for: by what is in it, under the names that checkpoints have, and under any as the source. */
#include "core/base/util.h"
#include "core/format/format.h"
#include "tests/unit/check.h"

#include <stdio.h>

#define SAFETENSORS   "\2\0\0\0\0\0\0\0{}"
#define POINTER       "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n"
#define OF_A_MAC      "\0\5\x16\7\0\2\0\0Mac OS X        "
#define NPZ           "PK\3\4\n\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\5\0\0\0w.npy"
#define ENDED         "PK\5\6\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0"
#define STATE         "\x81\xa1w\xc7\5\1\x93"
#define FILE_OF(text) (text), sizeof(text) - 1

static const struct file {
    const char *path;
    const char *data;
    size_t len;
    const char *in_folder, *as_source; /* the formats; NULL: none */
} files[] = {
    /* By what is in them, whatever the name says. */
    {"d/a.safetensors", FILE_OF(SAFETENSORS), "safetensors", "safetensors"},
    {"d/A.SafeTensors", FILE_OF(SAFETENSORS), "safetensors", "safetensors"},
    {"d/a.sft", FILE_OF(SAFETENSORS), "safetensors", "safetensors"},
    {"d/a.SFT", FILE_OF(SAFETENSORS), "safetensors", "safetensors"},
    {"d/a.pt", FILE_OF(SAFETENSORS), "safetensors", "safetensors"},
    {"d/a.gguf", FILE_OF(SAFETENSORS), "safetensors", "safetensors"},
    {"d/a.npz", FILE_OF(SAFETENSORS), "safetensors", "safetensors"},
    {"d/a.bin", FILE_OF(SAFETENSORS), "safetensors", "safetensors"},
    {"d/a.CKPT", FILE_OF(SAFETENSORS), "safetensors", "safetensors"},
    {"d/a.pth.tar", FILE_OF(SAFETENSORS), "safetensors", "safetensors"},
    {"d/a.th", FILE_OF(SAFETENSORS), "safetensors", "safetensors"},
    {"d/a.pyth", FILE_OF(SAFETENSORS), "safetensors", "safetensors"},
    {"d/a.pkl", FILE_OF(SAFETENSORS), "safetensors", "safetensors"},
    {"d/a.pickle", FILE_OF(SAFETENSORS), "safetensors", "safetensors"},
    {"d/0123abcd", FILE_OF(SAFETENSORS), "safetensors", "safetensors"},
    {"d/a.tar", FILE_OF(SAFETENSORS), NULL, "safetensors"},
    {"d/a.safetensors.bak", FILE_OF(SAFETENSORS), NULL, "safetensors"},
    {"d/.safetensors", FILE_OF(SAFETENSORS), NULL, "safetensors"},
    {"d/._a.safetensors", FILE_OF(SAFETENSORS), NULL, "safetensors"},
    {"d/sha256-00ff", FILE_OF("GGUF\3\0\0\0"), "gguf", "gguf"},
    {"d/b.GGUF", FILE_OF("GGUF\3\0\0\0"), "gguf", "gguf"},
    {"d/b.msgpack", FILE_OF("GGUF\3\0\0\0"), "gguf", "gguf"},
    {"d/b.npz", FILE_OF(NPZ), "npz", "npz"},
    {"d/b.pth", FILE_OF(NPZ), "npz", "npz"},
    {"d/b.zip", FILE_OF(NPZ), NULL, "npz"},
    {"d/b.NPZ", FILE_OF(ENDED), "npz", "npz"},
    {"d/state", FILE_OF(STATE), "flax-msgpack", "flax-msgpack"},
    {"d/state.bin", FILE_OF(STATE), "flax-msgpack", "flax-msgpack"},
    {"d/state_5.bin", FILE_OF("\x82\xa6params\x81\xa1w\xc7\5\1\x93"), "flax-msgpack", "flax-msgpack"},
    {"d/checkpoint_0.5", FILE_OF("\x81\xa1"), "flax-msgpack", "flax-msgpack"},
    {"d/checkpoint", FILE_OF("\x80\4\x95\2\0\0\0\0\0\0\0}."), "pickle", "pickle"},
    {"d/k.PKL", FILE_OF("\x80\5}."), "pickle", "pickle"},
    {"d/k.msgpack", FILE_OF("\x80\2]K\1a."), "pickle", "pickle"},
    {"d/k.txt", FILE_OF("\x80\2]K\1a."), NULL, "pickle"},
    {"d/t.pkl", FILE_OF("(dp0\nS'a'\np1\nI1\ns."), "pickle", "pickle"},
    {"d/u.pkl", FILE_OF("(c) 2020 Somebody. All rights are reserved."), NULL, NULL},
    {"d/w.pkl", FILE_OF(".\n."), NULL, NULL},
    {"d/o.bin", FILE_OF("\x80\2\x8a\nl\xfc\x9c\x46\xf9 j\xa8P\x19."), "pytorch", "pytorch"},
    /* Other bytes that begin nearly so. */
    {"d/noise", FILE_OF("\x81\xa4\x01\x02\x03\x04\xc0"), NULL, NULL},
    {"d/noise.bin", FILE_OF("\x81\xa1w\xd6\xff...."), NULL, NULL},
    {"d/noise.ckpt", FILE_OF("\x81\xa1w\xc1"), NULL, NULL},
    {"d/text", FILE_OF("model_checkpoint_path: \"ckpt-3\"\n"), NULL, NULL},
    {"d/json", FILE_OF("{\"a\": 1}"), NULL, NULL},
    {"d/image.msgpack", FILE_OF("\x89PNG\r\n\x1a\n"), NULL, NULL},
    {"d/thing.bin", FILE_OF("\x80\0\0\0\0\0\0\0{x"), NULL, NULL},
    {"d/empty", FILE_OF(""), NULL, NULL},
    {"d/empty.bin", FILE_OF(""), NULL, NULL},
    /* Not one of them, though it is called so. */
    {"d/p.safetensors", FILE_OF(POINTER), NULL, NULL},
    {"d/p.gguf", FILE_OF(POINTER), NULL, NULL},
    {"d/p.msgpack", FILE_OF(POINTER), NULL, NULL},
    {"d/p.pt", FILE_OF(POINTER), NULL, NULL},
    {"d/p.npz", FILE_OF(POINTER), NULL, NULL},
    {"d/m.safetensors", FILE_OF(OF_A_MAC), NULL, NULL},
    {"d/m.gguf", FILE_OF(OF_A_MAC), NULL, NULL},
    {"d/m.msgpack", FILE_OF(OF_A_MAC), NULL, NULL},
    {"d/m.pt", FILE_OF(OF_A_MAC), NULL, NULL},
    {"d/m.npz", FILE_OF(OF_A_MAC), NULL, NULL},
    {"d/page.safetensors", FILE_OF("<!DOCTYPE html><html></html>"), NULL, NULL},
    {"d/note.safetensors", FILE_OF("none"), NULL, NULL},
    /* Known, and damaged. */
    {"d/e.safetensors", FILE_OF(""), "safetensors", "safetensors"},
    {"d/e.gguf", FILE_OF(""), "gguf", "gguf"},
    {"d/e.msgpack", FILE_OF(""), "flax-msgpack", "flax-msgpack"},
    {"d/e.npz", FILE_OF(""), "npz", "npz"},
    {"d/e.pt", FILE_OF(""), "pytorch", "pytorch"},
    {"d/c.safetensors", FILE_OF("\5\0"), "safetensors", "safetensors"},
    {"d/j.safetensors", FILE_OF("\5\0\0\0\0\0\0\0hello"), "safetensors", "safetensors"},
    {"d/n.safetensors", FILE_OF("\xff\xff\xff\xff\xff\xff\xff\xff{\""), "safetensors", "safetensors"},
    {"d/c.gguf", FILE_OF("GG"), "gguf", "gguf"},
    {"d/v.gguf", FILE_OF("GGUG\3\0\0\0"), "gguf", "gguf"},
    {"d/w.gguf", FILE_OF("GGUG\0\0\0\3"), "gguf", "gguf"},
    {"d/l.msgpack", FILE_OF("\x91\x91\x91"), "flax-msgpack", "flax-msgpack"},
    {"d/f.msgpack", FILE_OF("\x81\xa1\xff\xff"), "flax-msgpack", "flax-msgpack"},
    {"d/s.npz", FILE_OF("hello"), "npz", "npz"},
    {"d/s.pt", FILE_OF(ENDED), "pytorch", "pytorch"},
    /* A file of a folder that has views, and is itself the source. */
    {"d/x.npy", FILE_OF("\x93NUMPY\1\0"), "npy", "npy"},
    {"d/y.npy", FILE_OF("hello"), "npy", "npy"},
    {"d/z.npy", FILE_OF("GGUF\3\0\0\0"), "npy", "gguf"},
    {"d/x", FILE_OF("\x93NUMPY\1\0"), NULL, "npy"},
    {"d/x.dat", FILE_OF("\x93NUMPY\1\0"), NULL, "npy"},
};
#define FILES (sizeof files / sizeof *files)

static void check_probe(struct ckpt_backend *b, const struct file *f, bool any_name, const char *want)
{
    const struct ckpt_format *format;
    struct ckpt_probe probe;
    CHECK(ckpt_probe_file(b, f->path, any_name, &format, &probe) == 0);
    const char *got = format ? format->name : NULL;
    bool is_right = want ? got && !strcmp(got, want) : !got;
    if (!is_right)
        fprintf(stderr, "%s, %s: %s\n", f->path, any_name ? "the source" : "in a folder", got ? got : "none");
    CHECK(is_right && (format ? probe.bits >= 2 : !probe.bits));
    CHECK(probe.weak == (format && !strcmp(format->name, "npy")));
}

int main(void)
{
    struct ckpt_backend *b = ckpt_backend_new_memory();
    for (size_t i = 0; i < FILES; i++)
        CHECK(ckpt_backend_memory_add(b, files[i].path, files[i].data, files[i].len) == 0);
    for (size_t i = 0; i < FILES; i++) {
        check_probe(b, &files[i], false, files[i].in_folder);
        check_probe(b, &files[i], true, files[i].as_source);
    }
    ckpt_backend_unref(b);
    return 0;
}
